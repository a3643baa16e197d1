"""The bytes on the wire: connections, greetings, frames, WebSockets.

This is an independent witness: it knows no implementation, and a connection does nothing that a
case did not ask for. If something that must come does not come, it raises AssertionError, whose
text is the line that the run prints.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import attrs
import trio

TIMEOUT: Final = 5.0
"""Seconds within which something must come."""
SILENCE: Final = 1.0
"""Seconds of silence that show that nothing comes, where no later message could show it."""
PACE: Final = 0.002
"""Seconds between two pieces that should be read one at a time; no verdict depends on it."""


@attrs.frozen
class Role:
    """One side of a protocol."""

    name: str
    number: int
    peer: int
    """The number of its counterpart."""
    subprotocol: str
    """The sub-protocol of a WebSocket to such a listener."""


def _role(name: str, number: int, peer: int) -> Role:
    return Role(name, number, peer, f"{'pair' if name == 'pair0' else name}.sp.nanomsg.org")


ROLES: Final[Mapping[str, Role]] = {
    name: _role(name, number, peer)
    for name, number, peer in (
        ("rep", 0x31, 0x30),
        ("req", 0x30, 0x31),
        ("respondent", 0x63, 0x62),
        ("surveyor", 0x62, 0x63),
        ("pull", 0x51, 0x50),
        ("push", 0x50, 0x51),
        ("sub", 0x21, 0x20),
        ("pub", 0x20, 0x21),
        ("bus", 0x70, 0x70),
        ("pair0", 0x10, 0x10),
        ("pair1", 0x11, 0x11),
    )
}


class PipeEnded(AssertionError):
    """The subject has ended the connection although something had to come."""


def greeting(number: int) -> bytes:
    return b"\0SP\0" + struct.pack(">HH", number, 0)


def word(value: int) -> bytes:
    return struct.pack(">I", value)


def frame(message: bytes, *, kind: int | None = None) -> bytes:
    """Return a message of tcp; with a *kind*, one of ipc."""
    return (b"" if kind is None else bytes((kind,))) + struct.pack(">Q", len(message)) + message


class Wire:
    """A connection, and the bytes on it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._ahead = b""

    async def send(self, data: bytes) -> None:
        """Send *data*.  If the subject has hung up, the next read shows it."""
        with suppress(trio.BrokenResourceError):
            await self.stream.send_all(data)

    async def send_slowly(self, data: bytes, step: int = 1) -> None:
        """Send *data* in pieces, byte by byte or so."""
        for place in range(0, len(data), step):
            await self.send(data[place : place + step])
            await trio.sleep(PACE)

    async def send_end(self) -> None:
        """Tell the subject that nothing more will be sent."""
        with suppress(trio.BrokenResourceError, OSError):
            await self.stream.send_eof()

    async def receive_some(self) -> bytes:
        """Return the next bytes; empty at the end, whether by FIN or RST."""
        try:
            return await self.stream.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    async def _receive(self, expected: str) -> bytes:
        with trio.move_on_after(TIMEOUT):
            return await self.receive_some()
        raise AssertionError(f"nothing came within {TIMEOUT:g} seconds: expected {expected}")

    async def receive_exactly(self, size: int, expected: str = "more") -> bytes:
        data = self._ahead
        while len(data) < size:
            more = await self._receive(expected)
            if not more:
                raise PipeEnded(f"the subject has ended the connection: expected {expected}")
            data += more
        self._ahead = data[size:]
        return data[:size]

    async def receive_until(self, mark: bytes, expected: str) -> bytes:
        data = b""
        while not data.endswith(mark):
            data += await self.receive_exactly(1, expected)
        return data

    async def receive_end(self, why: str) -> bytes:
        """Return what comes until the subject ends the connection.

        *why*: after what it must do so, for errors.
        """
        data, self._ahead = self._ahead, b""
        while more := await self._receive(f"the end of the connection, {why}"):
            data += more
        return data

    async def leave(self) -> None:
        """End the connection, and wait until the subject has noticed: then one with room for one
        peer can take the next."""
        await self.send_end()
        with trio.move_on_after(1), suppress(AssertionError):
            await self.receive_end("after ours")
        await trio.aclose_forcefully(self.stream)


class Pipe:
    """A connection after its greeting, and the SP messages on it."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def encode(self, message: bytes) -> bytes:
        """Return *message* as it goes over the wire."""
        raise NotImplementedError

    async def receive(self, expected: str = "a message") -> bytes:
        """Return the next message."""
        raise NotImplementedError

    async def send(self, *messages: bytes) -> None:
        """Send *messages* in one segment."""
        await self.wire.send(b"".join(map(self.encode, messages)))


class StreamPipe(Pipe):
    """A pipe of tcp or ipc."""

    def __init__(self, wire: Wire, kind: int | None) -> None:
        super().__init__(wire)
        self._kind = kind

    def encode(self, message: bytes) -> bytes:
        return frame(message, kind=self._kind)

    async def receive(self, expected: str = "a message") -> bytes:
        if self._kind is not None:
            assert await self.wire.receive_exactly(1, expected) == b"\x01", "the subject has sent an ipc message of another type than 1"
        (size,) = struct.unpack(">Q", await self.wire.receive_exactly(8, expected))
        return await self.wire.receive_exactly(size, expected)


# WebSocket.

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


@attrs.frozen
class Frame:
    """A received frame."""

    final: bool
    reserved: int
    opcode: int
    masked: bool
    payload: bytes

    @property
    def code(self) -> int | None:
        """The code of a Close."""
        return int.from_bytes(self.payload[:2], "big") if len(self.payload) >= 2 else None


def ws_frame(
    opcode: int, payload: bytes = b"", *, masked: bool = True, final: bool = True, reserved: int = 0, size: int | None = None
) -> bytes:
    """Return a frame, which may announce another *size* than it has."""
    size = len(payload) if size is None else size
    bit = 0x80 if masked else 0
    first = (0x80 if final else 0) | reserved << 4 | opcode
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 1 << 16:
        head = bytes((first, bit | 126)) + struct.pack(">H", size)
    else:
        head = bytes((first, bit | 127)) + struct.pack(">Q", size)
    if not masked:
        return head + payload
    key = os.urandom(4)
    return head + key + _masked(payload, key)


def _masked(payload: bytes, key: bytes) -> bytes:
    pad = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(len(payload), "big")


class WebSocketPipe(Pipe):
    """A pipe of ws; the client masks its frames."""

    def __init__(self, wire: Wire, *, masked: bool) -> None:
        super().__init__(wire)
        self.masked = masked
        """Whether we are the client."""

    def frame(self, opcode: int, payload: bytes = b"", *, final: bool = True, reserved: int = 0, size: int | None = None) -> bytes:
        return ws_frame(opcode, payload, masked=self.masked, final=final, reserved=reserved, size=size)

    def encode(self, message: bytes) -> bytes:
        return self.frame(BINARY, message)

    async def receive_frame(self, expected: str = "a frame") -> Frame:
        first, second = await self.wire.receive_exactly(2, expected)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", await self.wire.receive_exactly(2, expected))
        elif size == 127:
            (size,) = struct.unpack(">Q", await self.wire.receive_exactly(8, expected))
        key = await self.wire.receive_exactly(4, expected) if second & 0x80 else b""
        payload = await self.wire.receive_exactly(size, expected)
        return Frame(bool(first & 0x80), first >> 4 & 7, first & 0x0F, bool(key), _masked(payload, key) if key else payload)

    async def receive(self, expected: str = "a message") -> bytes:
        message = b""
        while True:
            got = await self.receive_frame(expected)
            assert got.masked is not self.masked, "a frame of the subject is masked" if got.masked else "a frame of the subject has no mask"
            if got.opcode == CLOSE:
                raise PipeEnded(f"the subject has sent Close {got.code}: expected {expected}")
            if got.opcode == PING:
                await self.wire.send(self.frame(PONG, got.payload))
            elif got.opcode in (BINARY, TEXT, CONTINUATION):
                message += got.payload
                if got.final:
                    return message

    async def receive_close(self, why: str) -> str:
        """Return how the subject ends the connection, with a Close or without.

        *why*: after what it must do so.
        """
        try:
            got = await self.receive_frame(f"a Close or the end, {why}")
        except PipeEnded:
            return "no Close"
        assert got.opcode == CLOSE, f"a frame with opcode {got.opcode} came: expected a Close or the end, {why}"
        return f"Close {got.code}"


@attrs.frozen
class Head:
    """The first line and the headers of a request or an answer."""

    first: str
    headers: Mapping[str, str]
    """By their lower-case names."""

    @classmethod
    def parse(cls, data: bytes) -> Head:
        first, *lines = data.decode("latin-1").split("\r\n")
        return cls(first, {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)})

    @property
    def status(self) -> int:
        """The status of an answer; 0: this is not an answer."""
        parts = self.first.split(" ")
        return int(parts[1]) if len(parts) > 1 and parts[0].startswith("HTTP/") and parts[1].isdigit() else 0


def accept_of(key: str) -> str:
    """Return the answer to a *key* (RFC 6455, section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode(), usedforsecurity=False).digest()).decode()


def new_key() -> str:
    return base64.b64encode(os.urandom(16)).decode()


def head_of(first: str, headers: Sequence[tuple[str, str | None]]) -> bytes:
    """Return the bytes of a head; a header that is None is left out."""
    return "\r\n".join([first, *(f"{name}: {value}" for name, value in headers if value is not None), "", ""]).encode()


async def receive_request(wire: Wire) -> Head:
    return Head.parse(await wire.receive_until(b"\r\n\r\n", "a request"))


async def receive_answer(wire: Wire) -> Head:
    """Return an answer; only the first line of a refusal, since libnanomsg does not end that."""
    first = await wire.receive_until(b"\r\n", "an answer to the handshake")
    if Head.parse(first).status != 101:
        return Head.parse(first)
    return Head.parse(first + await wire.receive_until(b"\r\n\r\n", "the rest of the answer to the handshake"))
