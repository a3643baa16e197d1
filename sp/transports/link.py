"""The byte streams below a connection: a non-blocking socket, or TLS over one (see ``tls``)."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from sp.errors import PeerClosed
from sp.tls.info import TLSInfo
from sp.transports import tcp_info
from sp.transports.fork import close_all_copies, close_in_children
from sp.transports.proxy_protocol import ProxyDecoder, ProxyInfo

READ_SIZE: Final = 64 * 1024
"""How much is read at once."""


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
        self._socket = close_in_children(sock)
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
            close_all_copies(self._socket)


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
