"""Raw peers, on which a test writes the SP wire format by hand, and waits that tests share."""

from __future__ import annotations

import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from urllib.parse import unquote_to_bytes

import trio

import sp
from tests.transports.ends import authority

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]

PUB, SUB, REQ, REP, BUS = 0x20, 0x21, 0x30, 0x31, 0x70


def greeting(number: int) -> bytes:
    return b"\0SP\0" + struct.pack(">HH", number, 0)


def frame(body: bytes, *, typed: bool = False) -> bytes:
    return (b"\x01" if typed else b"") + struct.pack(">Q", len(body)) + body


@cache
def _trusting() -> ssl.SSLContext:
    """The TLS of the standard library, so that ours is tested against another one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority().ca.configure_trust(context)
    return context


async def connect(url: str) -> Stream:
    """Connect to a tcp, tls+tcp, ipc or abstract URL, with the TLS handshake if any."""
    scheme, _, rest = url.partition("://")
    if scheme in ("tcp", "tls+tcp"):
        host, _, port = rest.rpartition(":")
        stream = await trio.open_tcp_stream(host.strip("[]"), int(port))
        if scheme == "tcp":
            return stream
        secured = trio.SSLStream(stream, _trusting(), server_hostname=host.strip("[]"))
        await secured.do_handshake()
        return secured
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await sock.connect(b"\0" + unquote_to_bytes(rest) if scheme == "abstract" else rest)
    return trio.SocketStream(sock)


def socket_of(stream: Stream) -> trio.socket.SocketType:
    return stream.transport_stream.socket if isinstance(stream, trio.SSLStream) else stream.socket


async def end(stream: Stream) -> None:
    """End the sending direction.

    Over TLS, read what was received before; this also waits until the peer has ended.
    """
    if isinstance(stream, trio.SSLStream):
        transport, _ = await stream.unwrap()
        await transport.aclose()
    else:
        await stream.send_eof()


def reset(stream: Stream) -> None:
    """Reset the connection."""
    sock = socket_of(stream)
    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def greet(stream: Stream, number: int) -> bytes:
    """Greet as protocol *number* and return the greeting that came back."""
    await stream.send_all(greeting(number))
    return await receive_exactly(stream, 8)


async def connect_as(url: str, number: int) -> Stream:
    stream = await connect(url)
    await greet(stream, number)
    return stream


async def receive_exactly(stream: Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        assert more, f"the stream ended after {data!r}"
        data += more
    return data


async def receive_frame(stream: Stream, *, typed: bool = False) -> bytes:
    if typed:
        assert await receive_exactly(stream, 1) == b"\x01"
    (size,) = struct.unpack(">Q", await receive_exactly(stream, 8))
    return await receive_exactly(stream, size)


async def receive_end(stream: Stream) -> bytes:
    """Return what arrives until the peer ends the stream by a FIN or an RST."""
    data = b""
    try:
        while more := await stream.receive_some():
            data += more
    except trio.BrokenResourceError:
        pass
    return data


async def expect(events: sp.EventStream, kind: sp.EventKind) -> sp.Event:
    """Return the next event of *kind*, passing over others."""
    async for event in events:
        if event.kind is kind:
            return event
    raise AssertionError(f"the events ended without one of {kind}")


async def until(condition: Callable[..., object]) -> None:
    """Let all tasks run until *condition* holds.

    The pauses are real milliseconds, even if the clock is a mock, since the kernel needs time.
    """
    while not condition():
        await trio.testing.wait_all_tasks_blocked(0.002)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Like ``trio.fail_after``, but in real seconds even if the clock is a mock."""
    token = trio.lowlevel.current_trio_token()
    scope = trio.CancelScope()

    def expire() -> None:
        try:
            token.run_sync_soon(scope.cancel)
        except trio.RunFinishedError:
            pass

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        with scope:
            yield
    finally:
        timer.cancel()
        timer.join()
    assert not scope.cancelled_caught, f"not done after {seconds:g} real seconds"
