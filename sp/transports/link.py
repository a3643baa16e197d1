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
BACKLOG: Final = 65535
"""How many connections the kernel may complete before we accept them.

This is more than any kernel allows, so the kernel's own limit applies (``net.core.somaxconn``).  If
it is reached, the kernel of the dialer tries again after a second.
"""
_ACCEPT_BATCH: Final = 64
"""After this many connections that were accepted at once, other tasks get their turn."""


class Link(Protocol):
    """A non-blocking byte stream.  The caller tries first, and waits after a BlockingIOError."""

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
        """What ``open``, or the greeting after it, is waiting for, in words for errors."""
        ...

    def set_peer_address(self, address: str) -> None:
        """Use *address* as the peer's address, because there is a proxy in between."""
        ...

    async def open(self, greeting: bytes) -> None:
        """Do the handshakes of the link, and send *greeting* as early as possible.

        Raises PeerError, OSError or ClosedResourceError.
        """
        ...

    # These are attributes, not methods, so a link can use the methods of its socket directly.
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
        """Set when the task in ``wait_writable`` returns.  None: no task is in it."""
        ...

    @property
    def detects_silence(self) -> bool: ...
    def check_silence(self, now: float) -> bool: ...
    def acknowledged(self) -> int: ...
    def interrupt(self) -> None: ...
    def finish(self) -> bool: ...
    def close(self) -> None: ...


class SocketLink:
    """A link that is a non-blocking socket.  It owns the socket."""

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
    detects_silence = False

    def __init__(self, sock: socket.socket, local_address: str, remote_address: str, *, proxied: bool = False) -> None:
        """Wrap *sock*.  If *proxied*, a PROXY protocol header comes first."""
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
        """Read the PROXY protocol header, and no byte beyond it: what follows may be for TLS."""
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
            self.set_peer_address(self.proxy.source)

    def set_peer_address(self, address: str) -> None:
        """Use *address* as the peer's address, because the other end of the socket is a proxy."""
        if self.proxy_address is None:
            self.proxy_address = self.remote_address
        self.remote_address = address

    def wait_readable(self) -> Awaitable[None]:
        # Trio treats it as a programming error to wait for a closed socket.
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError
        return trio.lowlevel.wait_readable(self._socket)  # noqa: ASYNC105  # the caller awaits it

    async def wait_writable(self) -> None:
        # Trio lets only one task wait, so other tasks wait for that one.
        if self.writer is not None:
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

    def check_silence(self, now: float) -> bool:
        return False

    def acknowledged(self) -> int:
        try:
            return tcp_info.acknowledged(self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, tcp_info.SIZE))
        except (AttributeError, OSError):
            return 0  # not Linux, or a UNIX socket, or closed

    def interrupt(self) -> None:
        trio.lowlevel.notify_closing(self._socket)

    def finish(self) -> bool:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the peer has already closed
        return True

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            close_all_copies(self._socket)


def accept_pending(listening: socket.socket) -> list[socket.socket]:
    """Accept the waiting connections, up to a limit.

    Raises OSError only if none could be accepted.
    """
    accepted: list[socket.socket] = []
    while len(accepted) < _ACCEPT_BATCH:
        try:
            accepted.append(listening.accept()[0])
        except BlockingIOError:
            break
        except ConnectionError:
            continue  # this one was closed before it was accepted
        except OSError:
            if accepted:
                break
            raise
    return accepted


def receive_first(link: Link, size: int, when: str) -> bytes:
    """Return the first bytes from *link*.

    Raises PeerClosed, which says *when*, if the peer leaves before it sends any.
    """
    try:
        data = link.recv(size)
    except ConnectionResetError as error:
        raise PeerClosed(f"the peer reset the connection {when}", silent=True) from error
    if not data:
        raise PeerClosed(f"the peer closed the connection {when}", silent=True)
    return data


async def wait_for_either(link: Link, wait_readable: Callable[[], Awaitable[None]]) -> None:
    """Wait until there is something to read, or room to write.

    If two sides have something to write, and both wait only to read, they wait for ever.
    """

    @trio.lowlevel.enable_ki_protection
    async def until(wait: Callable[[], Awaitable[None]]) -> None:
        try:
            await wait()
        except trio.ClosedResourceError:
            pass  # the caller checks for that
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(until, link.wait_writable)
        await until(wait_readable)
