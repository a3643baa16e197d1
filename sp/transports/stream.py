"""Messages over a byte stream: what tcp, ipc, tls and ws share."""

from __future__ import annotations

import abc
import os
import socket
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

import trio

from sp.errors import PeerClosed, PeerError
from sp.http.message import HTTPResponse
from sp.message import Message
from sp.transports import tcp_info
from sp.transports.contract import EndpointConfig
from sp.transports.framing import GREETING_SIZE, FrameDecoder, decode_greeting, encode_greeting, frame_prefix
from sp.transports.proxy_protocol import ProxyDecoder, ProxyInfo

if TYPE_CHECKING:
    from sp.tls.config import TLSInfo

READ_SIZE: Final = 64 * 1024
LARGE_READ_SIZE: Final = 256 * 1024
"""How much is read at once while reads come back full."""
WRITE_SIZE: Final = 64 * 1024
"""Messages are joined up to this size; from here on the kernel gathers them, so that a large body is not copied."""
MAX_PARTS: Final = 1000
"""Below Linux's IOV_MAX of 1024."""


_inheritable: Final[weakref.WeakSet[socket.socket]] = weakref.WeakSet()


def not_for_children(sock: socket.socket) -> socket.socket:
    """Return *sock*, and have it closed in every child that is forked.

    A child's copy would keep the address taken, and keep the peer from seeing our end.
    """
    _inheritable.add(sock)
    return sock


def _close_inherited() -> None:
    # No more than that: a shutdown would end the parent's connection, and the event loop is the
    # parent's as well.
    for sock in list(_inheritable):
        sock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


def stop_listening(sock: socket.socket) -> None:
    """Close *sock*, which listens."""
    trio.lowlevel.notify_closing(sock)
    try:
        # Closing alone would leave the address open while somebody has a copy of the descriptor.
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # not every system does that
    sock.close()


class Link(Protocol):
    """A byte stream that is tried first and waited for only when it says BlockingIOError."""

    @property
    def local_address(self) -> str: ...

    @property
    def remote_address(self) -> str: ...

    @property
    def proxy(self) -> ProxyInfo | None: ...

    @property
    def proxy_address(self) -> str | None: ...

    @property
    def tls(self) -> TLSInfo | None: ...

    @property
    def stage(self) -> str:
        """What ``open`` and the greeting after it are waiting for."""
        ...

    async def open(self, greeting: bytes) -> None:
        """Make the link ready, and send *greeting* as soon as it can leave.  Raises PeerError, OSError or ClosedResourceError."""
        ...

    # Attributes rather than methods, so that a socket's own can be used as they are.
    @property
    def recv(self) -> Callable[[int], bytes]: ...
    @property
    def send(self) -> Callable[[bytes | memoryview], int]: ...
    @property
    def send_parts(self) -> Callable[[list[bytes | memoryview]], int]: ...
    def wait_readable(self) -> Awaitable[None]: ...
    async def wait_writable(self) -> None: ...

    @property
    def writer(self) -> trio.Event | None:
        """While a task is in ``wait_writable``: set when it no longer is."""
        ...

    @property
    def watchable(self) -> bool: ...
    def look(self, now: float) -> bool: ...
    def acknowledged(self) -> int: ...
    def interrupt(self) -> None: ...
    def finish(self) -> bool: ...
    def close(self) -> None: ...


class SocketLink:
    """A link that is a non-blocking socket, which it owns from now on."""

    __slots__ = (
        "_decoder",
        "_socket",
        "local_address",
        "proxy",
        "proxy_address",
        "recv",
        "remote_address",
        "send",
        "send_parts",
        "writer",
    )

    tls = None
    stage = "greeting"
    watchable = False

    def __init__(self, sock: socket.socket, local_address: str, remote_address: str, *, proxied: bool = False) -> None:
        """*proxied*: a PROXY protocol header comes first."""
        sock.setblocking(False)
        self._socket = not_for_children(sock)
        self._decoder = ProxyDecoder() if proxied else None
        self.local_address = local_address
        self.remote_address = remote_address
        self.proxy: ProxyInfo | None = None
        self.proxy_address: str | None = None
        self.recv = sock.recv
        self.send = sock.send
        self.send_parts = sock.sendmsg
        self.writer: trio.Event | None = None

    async def open(self, greeting: bytes) -> None:
        if self._decoder is not None:
            await self._read_proxy_header(self._decoder)
        if greeting:
            self.send(greeting)  # a fresh connection has room for 8 bytes

    async def _read_proxy_header(self, decoder: ProxyDecoder) -> None:
        """Read the PROXY protocol header and not a byte more, since what follows may be TLS."""
        begun = False
        while decoder.info is None:
            await self.wait_readable()
            try:
                received = self.recv(decoder.missing) if begun else receive_first(self, decoder.missing, "before its PROXY protocol header")
            except BlockingIOError:
                continue
            if not received:
                raise PeerClosed("the peer closed the connection in the middle of its PROXY protocol header")
            begun = True
            decoder.receive_data(received)
        self._decoder = None
        self.proxy = decoder.info
        if self.proxy.source:
            self.proxy_address, self.remote_address = self.remote_address, self.proxy.source

    def wait_readable(self) -> Awaitable[None]:
        if self._socket.fileno() < 0:  # trio must not be asked about a descriptor that is gone
            raise trio.ClosedResourceError
        return trio.lowlevel.wait_readable(self._socket)  # noqa: ASYNC105  # the caller awaits it

    async def wait_writable(self) -> None:
        if self.writer is not None:  # trio lets one task wait; whoever comes later looks again when that one does
            await self.writer.wait()
            return
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError
        self.writer = done = trio.Event()
        try:
            await trio.lowlevel.wait_writable(self._socket)
        finally:
            self.writer = None
            done.set()

    def look(self, now: float) -> bool:
        return False

    def acknowledged(self) -> int:
        try:
            return tcp_info.acknowledged(self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, tcp_info.SIZE))
        except (AttributeError, OSError):
            return 0  # another system, a UNIX socket, or it is closed

    def interrupt(self) -> None:
        trio.lowlevel.notify_closing(self._socket)

    def finish(self) -> bool:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the peer was quicker
        return True

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            try:
                # Closing alone would leave the connection open when a forked child holds a copy of the descriptor.
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            self._socket.close()


def receive_first(link: Link, size: int, when: str) -> bytes:
    """Return the first that comes by *link*.  Raises PeerClosed that says *when*, if the peer leaves without a word."""
    try:
        data = link.recv(size)
    except ConnectionResetError as error:
        raise PeerClosed(f"the peer reset the connection {when}", silent=True) from error
    if not data:
        raise PeerClosed(f"the peer closed the connection {when}", silent=True)
    return data


async def wait_for_either(link: Link, wait_readable: Callable[[], Awaitable[None]]) -> None:
    """Wait until there is something to read, or room for what we have to say while nobody else writes.

    Two sides that each wait for the other to read its last words would wait for ever.
    """

    @trio.lowlevel.enable_ki_protection
    async def until(wait: Callable[[], Awaitable[None]]) -> None:
        try:
            await wait()
        except trio.ClosedResourceError:
            pass  # who called looks around anyway
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(until, link.wait_writable)
        await until(wait_readable)


class LinkStream(trio.abc.HalfCloseableStream):
    """A trio stream over a link, for what speaks something else than SP over the same links."""

    def __init__(self, link: Link) -> None:
        """Take over *link*, which is open."""
        self._link = link
        self._sending = self._receiving = self._finished = self._torn = self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of *data*.  Cancelled, a part of it may have been sent, and nothing more can be."""
        with self._alone("_sending", "sending"):
            if self._finished:
                raise trio.ClosedResourceError("send_eof was called")
            if self._torn:
                raise trio.BrokenResourceError("an earlier send was cancelled, and nobody knows how far it came")
            await trio.lowlevel.checkpoint()
            rest = memoryview(data)
            while rest:
                self._check_open()
                try:
                    rest = rest[self._link.send(rest) :]
                except BlockingIOError:
                    self._torn = True
                    await self._link.wait_writable()
                    self._torn = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the link may take something."""
        with self._alone("_sending", "sending"):
            await trio.lowlevel.checkpoint()
            await self._link.wait_writable()

    async def send_eof(self) -> None:
        """Tell the peer that nothing more will be sent."""
        with self._alone("_sending", "sending"):
            await trio.lowlevel.checkpoint()
            self._finished = True
            self._link.finish()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what has arrived, at least one byte; empty: the peer has ended the stream.  Cancelled, nothing is lost."""
        if max_bytes is not None and not isinstance(max_bytes, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"max_bytes must be an int or None, not {max_bytes!r}")
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        with self._alone("_receiving", "receiving"):
            await trio.lowlevel.checkpoint()
            while True:
                self._check_open()
                try:
                    return self._link.recv(max_bytes or READ_SIZE)
                except BlockingIOError:
                    await self._link.wait_readable()

    async def aclose(self) -> None:
        """Close the link."""
        self._closed = True
        self._link.close()
        await trio.lowlevel.checkpoint()

    @contextmanager
    def _alone(self, flag: str, doing: str) -> Generator[None]:
        """Keep a second task out, and tell a broken link from a closed one."""
        if getattr(self, flag):
            raise trio.BusyResourceError(f"another task is {doing}")
        self._check_open()
        setattr(self, flag, True)
        try:
            yield
            self._check_open()
        except (PeerError, OSError) as error:
            self._check_open()
            raise trio.BrokenResourceError(str(error)) from error
        finally:
            setattr(self, flag, False)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the stream is closed")


class LinkConnection(abc.ABC):
    """A connection over a link, whatever the messages look like there."""

    allows_direct_read = True

    __slots__ = ("_interrupted", "_link", "_sizes", "_terms", "_unwritten", "closed")

    def __init__(self, link: Link, terms: EndpointConfig) -> None:
        self._link = link
        self._terms = terms
        self._unwritten: list[bytes | memoryview] = []
        self._sizes: list[int] = []  # of the messages in the last write
        self._interrupted = False
        self.closed = False

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

    @property
    def stage(self) -> str:
        return self._link.stage

    @property
    def watchable(self) -> bool:
        return self._link.watchable

    def look(self, now: float) -> bool:
        return self._link.look(now)

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
                # What has left the outbox stands in _unwritten until it is written: the attempt may fail.
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
        """Take messages out of *outbox*, as many as one write should carry; return their frames, joined if they are small."""

    async def wait_writable(self) -> None:
        self._check_open()
        await self._link.wait_writable()

    def _check_open(self) -> None:
        """Raise before trio is asked to wait for a closed socket, which it takes for a programming error."""
        if self.closed:
            raise trio.ClosedResourceError

    def interrupt(self) -> None:
        self._interrupted = True
        self._link.interrupt()


class StreamConnection(LinkConnection):
    """Greeting, then framed messages."""

    http = None
    keep_alive = None

    __slots__ = ("_decoder", "_more", "_typed", "asks")

    def __init__(self, link: Link, terms: EndpointConfig, *, typed: bool = False) -> None:
        super().__init__(link, terms)
        self.asks = False
        self._typed = typed
        self._decoder = FrameDecoder(terms.find_body, terms.options.max_message_size, typed=typed)
        self._more = False  # the last read was full: there is more to read, and no need to ask the kernel

    async def greet(self) -> int:
        # nanomsg gives its peer one second for this, so ours leaves at once, unless it is to be an answer.
        await self._link.open(b"" if self.asks else encode_greeting(self._terms.number))
        data = b""
        while True:
            self._check_open()
            await self._link.wait_readable()
            try:
                # Not a byte more: what follows belongs to the decoder.
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
                return number

    def defer_greeting(self) -> None:
        self.asks = True

    def admit(self) -> None:
        if self.asks:
            self._link.send(encode_greeting(self._terms.number))  # a fresh connection has room for 8 bytes

    async def refuse(self, response: HTTPResponse) -> None:
        pass  # there is no way to say so

    async def linger_close(self, error: Exception | None = None) -> None:
        pass  # nothing was said

    def _encode(self, outbox: deque[Message]) -> list[bytes | memoryview]:
        parts: list[bytes | memoryview] = []
        sizes: list[int] = []
        size = 0
        last, prefix = -1, b""  # most messages are as long as the one before
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
    """Return what of *parts* is left after *written* bytes."""
    for index, part in enumerate(parts):
        if written < len(part):
            return [memoryview(part)[written:], *parts[index + 1 :]]
        written -= len(part)
    return []
