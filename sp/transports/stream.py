"""Messages over a link: what all stream transports share, and their connection except for ws."""

from __future__ import annotations

import abc
from collections import deque
from contextlib import suppress
from typing import Final

import trio

from sp.errors import PeerClosed, PipeRefused, WrongProtocol
from sp.message import Message
from sp.tls.info import TLSInfo
from sp.transports.contract import Connection, EndpointConfig, Greeted
from sp.transports.framing import GREETING_SIZE, FrameDecoder, decode_greeting, encode_greeting, frame_prefix
from sp.transports.link import READ_SIZE, Link, receive_first
from sp.transports.proxy_protocol import ProxyInfo

LARGE_READ_SIZE: Final = 256 * 1024
"""The size of a read after one that came back full."""
WRITE_SIZE: Final = 64 * 1024
"""Messages are joined up to this size.

Above it the kernel gathers them, so a large body is not copied.
"""
MAX_PARTS: Final = 1000
"""Below Linux's IOV_MAX of 1024."""


class OverLink:
    """What we know about a peer at the other end of a link."""

    __slots__ = ("_link",)

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def local_address(self) -> str:
        return self._link.local_address

    @property
    def remote_address(self) -> str:
        return self._link.remote_address

    @property
    def proxy(self) -> ProxyInfo | None:
        return self._link.proxy

    @property
    def proxy_address(self) -> str | None:
        return self._link.proxy_address

    @property
    def tls(self) -> TLSInfo | None:
        return self._link.tls


class LinkConnection(OverLink, abc.ABC):
    """A connection over a link, for any form of messages."""

    allows_direct_read = True

    __slots__ = ("_endpoint", "_interrupted", "_sizes", "_unwritten", "closed")

    def __init__(self, link: Link, endpoint: EndpointConfig) -> None:
        super().__init__(link)
        self._endpoint = endpoint
        self._unwritten: list[bytes | memoryview] = []
        self._sizes: list[int] = []  # of the frames in the last write
        self._interrupted = False
        self.closed = False

    @property
    def detects_silence(self) -> bool:
        return self._link.detects_silence

    def check_silence(self, now: float) -> bool:
        return self._link.check_silence(now)

    def acknowledged(self) -> int:
        return self._link.acknowledged()

    @property
    def unsent(self) -> int:
        left = sum(map(len, self._unwritten))
        frames = 0
        for size in reversed(self._sizes):
            if left <= 0:
                break
            left -= size
            frames += 1
        return frames

    def send_nowait(self, outbox: deque[Message]) -> bool:
        try:
            while outbox or self._unwritten:
                if not self._unwritten:
                    self._unwritten = self._encode(outbox)
                # Writing may fail, so what was taken from the outbox stays in _unwritten until it
                # is written.
                parts = self._unwritten
                if len(parts) > 1:
                    self._unwritten = _rest(parts, self._link.send_parts(parts))
                    continue
                written = self._link.send(parts[0])
                self._unwritten = [] if written == len(parts[0]) else _rest(parts, written)
        except BlockingIOError:
            return False
        return True

    @abc.abstractmethod
    def _encode(self, outbox: deque[Message]) -> list[bytes | memoryview]:
        """Take as many messages out of *outbox* as one write should carry.

        Returns their frames, joined if they are small.
        """

    async def wait_writable(self) -> None:
        self._check_open()
        await self._link.wait_writable()

    def _check_open(self) -> None:
        """Raise ClosedResourceError if closed: trio lets no task wait for a closed socket."""
        if self.closed:
            raise trio.ClosedResourceError

    def interrupt(self) -> None:
        self._interrupted = True
        self._link.interrupt()


class StreamConnection(LinkConnection):
    """The SP byte stream: a greeting, then framed messages.

    One object is the newcomer, the greeted and the connection, so an idle pipe takes little memory.
    """

    http = None
    keep_alive = None

    __slots__ = ("_decoder", "_more", "_typed", "defers_greeting", "peer_number")

    def __init__(self, link: Link, endpoint: EndpointConfig, *, typed: bool = False) -> None:
        super().__init__(link, endpoint)
        self.defers_greeting = False
        self.peer_number = 0  # unknown before ``greet``
        self._typed = typed
        self._decoder = FrameDecoder(endpoint.find_body, endpoint.options.max_message_size, typed=typed)
        self._more = False  # the last read was full, so there is probably more to read

    @property
    def stage(self) -> str:
        return self._link.stage

    async def greet(self) -> Greeted:
        # nanomsg waits one second for a greeting, so ours leaves at once unless it is deferred.
        await self._link.open(b"" if self.defers_greeting else encode_greeting(self._endpoint.number))
        data = b""
        while True:
            self._check_open()
            await self._link.wait_readable()
            try:
                # Read no byte beyond the greeting: what follows is for the decoder.
                received = (
                    self._link.recv(GREETING_SIZE - len(data))
                    if data
                    else receive_first(self._link, GREETING_SIZE, f"after 0 of {GREETING_SIZE} bytes of its greeting")
                )
            except BlockingIOError:
                continue
            if not received:
                raise PeerClosed(f"the peer closed the connection after {len(data)} of {GREETING_SIZE} bytes of its greeting")
            data += received
            number = decode_greeting(data, over_tls=self.tls is not None)
            if number is not None:
                self.peer_number = number
                return self

    def defer_greeting(self) -> None:
        self.defers_greeting = True

    def accept(self) -> Connection:
        if self.defers_greeting:
            # A fresh connection has room for 8 bytes.
            self._link.send(encode_greeting(self._endpoint.number))
        return self

    async def reject(self, error: PipeRefused | WrongProtocol) -> None:
        # SP has no message for this, but our greeting shows which protocol we speak.
        if isinstance(error, WrongProtocol):
            with suppress(OSError):
                self.accept()

    async def linger_close(self, error: Exception | None = None) -> None:
        pass  # nothing was sent that the peer should read

    def _encode(self, outbox: deque[Message]) -> list[bytes | memoryview]:
        parts: list[bytes | memoryview] = []
        sizes: list[int] = []
        size = 0
        last, prefix = -1, b""  # many messages are as long as the one before
        take, add = outbox.popleft, parts.extend
        while outbox and size < WRITE_SIZE and len(parts) < MAX_PARTS:
            message = take()
            header, body = message.header, message.body
            length = len(header) + len(body)
            if length != last:
                last, prefix = length, frame_prefix(length, self._typed)
            add((prefix, header, body) if header else (prefix, body))
            length += len(prefix)
            sizes.append(length)
            size += length
        self._sizes = sizes
        return parts if size >= WRITE_SIZE else [b"".join(parts)]

    async def receive_batch(self) -> list[Message]:
        decoder = self._decoder
        self._interrupted = False
        while decoder.error is None:
            self._check_open()
            if self._interrupted:
                raise trio.ClosedResourceError
            if decoder.has_more:
                await trio.lowlevel.checkpoint()
                data = b""
            else:
                if self._more:
                    await trio.lowlevel.checkpoint()
                else:
                    await self._link.wait_readable()
                size = LARGE_READ_SIZE if self._more or decoder.missing > READ_SIZE else READ_SIZE
                try:
                    data = self._link.recv(size)
                except BlockingIOError:
                    self._more = False
                    continue
                if not data:
                    if decoder.in_message:
                        raise PeerClosed("the peer closed the connection in the middle of a message")
                    return []
                self._more = len(data) == size
            messages = decoder.receive_data(data)
            if messages:
                return messages
        raise decoder.error

    def finish(self) -> bool:
        return self._link.finish()

    def close(self, error: Exception | None = None) -> None:
        self.closed = True
        self._link.close()
        self._decoder.forget()


def _rest(parts: list[bytes | memoryview], written: int) -> list[bytes | memoryview]:
    """Return the part of *parts* that follows the first *written* bytes."""
    for index, part in enumerate(parts):
        if written < len(part):
            return [memoryview(part)[written:], *parts[index + 1 :]]
        written -= len(part)
    return []
