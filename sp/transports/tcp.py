"""tcp: SP over TCP, with host names, IPv4 and IPv6."""

from __future__ import annotations

import errno
import math
import os
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import trio

from sp.address import Address, bracketed, is_host
from sp.transports import tcp_info
from sp.transports.contract import SHORTEST_KEEPALIVE, Acceptor, DialerConfig, EndpointConfig, ListenerConfig, Newcomer
from sp.transports.fork import close_all_copies, close_in_children
from sp.transports.link import BACKLOG, SocketLink, accept_pending
from sp.transports.stream import StreamConnection

_PORT_TRIES: Final = 16
_MAX_KEEPALIVE: Final = 32767
"""The largest number of seconds that Linux accepts for each of the keepalive times."""
_HEAD_START: Final = 0.25
"""Seconds until the next address of a name is also tried (RFC 8305, 5)."""
_MAX_LOOKUPS: Final = 64
"""How many names are looked up at the same time, each in a thread."""
_LOOKUP_SHARE: Final = 0.9
"""A lookup may take this share of the time for a connection.

The rest is too short to connect, but the error can then say that the lookup was slow.
"""
_FAMILIES: Final = {"4": socket.AF_INET, "6": socket.AF_INET6}
_Target = tuple[int, tuple[Any, ...]]
"""An address family and an address, in the form that the system's functions take."""


async def connect(address: Address, endpoint: DialerConfig) -> Newcomer:
    """Connect to *address*.

    Its name is looked up each time, and all of its addresses are tried.
    """
    return StreamConnection(await connect_link(address, endpoint), endpoint)


async def connect_link(address: Address, endpoint: EndpointConfig) -> SocketLink:
    """Connect to *address*, for every transport over TCP."""
    targets = _by_turns(await look_up(address, limit=endpoint.options.handshake_timeout * _LOOKUP_SHARE))
    return _link(await (_open(*targets[0]) if len(targets) == 1 else _race(targets)), endpoint.options.tcp_keepalive)


def _by_turns(targets: list[_Target]) -> list[_Target]:
    """Move an address of the other family to the second place (RFC 8305, 4).

    The first family may not work on this network.
    """
    other = next((place for place, target in enumerate(targets) if target[0] != targets[0][0]), None)
    if other is not None:
        targets.insert(1, targets.pop(other))
    return targets


async def _race(targets: list[_Target]) -> socket.socket:
    """Return the first connection that succeeds (RFC 8305, 5).

    Each attempt has a head start before the next one, unless it fails sooner.
    """
    failures: list[OSError] = []
    connected: list[socket.socket] = []
    try:
        async with trio.open_nursery() as nursery:

            @trio.lowlevel.enable_ki_protection
            async def attempt(target: _Target, failed: trio.Event) -> None:
                try:
                    connected.append(await _open(*target))
                except OSError as error:
                    failures.append(error)
                    failed.set()
                else:
                    nursery.cancel_scope.cancel()

            for target in targets:
                failed = trio.Event()
                nursery.start_soon(attempt, target, failed)
                with trio.move_on_after(_HEAD_START):
                    await failed.wait()
        if not connected:
            # The error has the class of the last failure, and the reasons of all failures.
            reasons = dict.fromkeys(error.strerror or str(error) for error in failures)
            raise type(failures[-1])(failures[-1].errno, "; ".join(reasons)) from failures[-1]
        return connected.pop()
    finally:
        for sock in connected:
            sock.close()


async def _open(family: int, sockaddr: tuple[Any, ...]) -> socket.socket:
    sock = close_in_children(socket.socket(family, socket.SOCK_STREAM))
    try:
        sock.setblocking(False)
        await trio.socket.from_stdlib_socket(sock).connect(sockaddr)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise _explained(error, sockaddr) from error
        raise
    return sock


def _explained(error: OSError, sockaddr: tuple[Any, ...]) -> OSError:
    """Return *error* with the system's text, and with a hint if an address lacks its zone."""
    reason = os.strerror(error.errno or 0)
    if error.errno == errno.EINVAL and sockaddr[0].startswith("fe80:") and not sockaddr[3]:
        reason += f": a link-local address needs its network interface, as in [{sockaddr[0]}%eth0]"
    return type(error)(error.errno, reason)


_lookups: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("sp.transports.tcp")


def _the_lookups() -> trio.CapacityLimiter:
    """Return the limit for our threads.  Lookups that hang must not use up the application's."""
    try:
        return _lookups.get()
    except LookupError:
        limiter = trio.CapacityLimiter(_MAX_LOOKUPS)
        _lookups.set(limiter)
        return limiter


async def look_up(address: Address, *, flags: int = 0, limit: float = math.inf) -> list[_Target]:
    """Return the addresses of the host, which may be a name or an address.

    Raises OSError; after *limit* seconds, TimeoutError.  A lookup that hangs keeps its thread until
    the system gives up.
    """
    host, family = address.host or None, _FAMILIES.get(address.scheme[-1], socket.AF_UNSPEC)
    await trio.lowlevel.checkpoint()
    try:
        found: Sequence[tuple[Any, ...]] = socket.getaddrinfo(
            host, address.port, family, socket.SOCK_STREAM, 0, flags | socket.AI_NUMERICHOST
        )
    except socket.gaierror as error:
        if error.errno != socket.EAI_NONAME or host is None:
            raise
        if "%" in host:
            raise _zone_error(host) from error
        found = await _look_up_name(host, address.port, family, flags, limit)
    return list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))


def _zone_error(host: str) -> OSError:
    """Return why the system does not accept *host*, an IPv6 address with a zone."""
    address, _, zone = host.partition("%")
    if any(zone == name for _, name in socket.if_nameindex()):
        reason = f"only a link-local address (fe80::...) takes a network interface: write {address!r} without '%{zone}'"
        return OSError(errno.EINVAL, reason)
    return OSError(errno.ENODEV, f"this machine has no network interface {zone!r}")


async def _look_up_name(host: str, port: int, family: int, flags: int, limit: float) -> Sequence[tuple[Any, ...]]:
    lookups = _the_lookups()
    with trio.move_on_after(limit):
        resolver = trio.socket.set_custom_hostname_resolver(None)
        trio.socket.set_custom_hostname_resolver(resolver)  # there is no other way to read it
        if resolver is not None or not host.isascii():  # trio encodes other letters (IDNA)
            return await trio.socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, flags)
        look = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, 0, flags)
        return await trio.to_thread.run_sync(look, abandon_on_cancel=True, limiter=lookups)
    others = (
        f": {lookups.borrowed_tokens} lookups are hanging, and no more can run at the same time" if not lookups.available_tokens else ""
    )
    raise TimeoutError(errno.ETIMEDOUT, f"the name {host!r} was not looked up within {limit:g} s{others}")


async def listen(address: Address, endpoint: ListenerConfig) -> list[Acceptor]:
    """Bind *address*.

    All addresses of a name are bound.  Without a host, all interfaces are bound, IPv4 and IPv6.
    """
    return await listen_link(address, endpoint, lambda link: StreamConnection(link, endpoint))


async def listen_link(address: Address, endpoint: ListenerConfig, make: Callable[[SocketLink], Newcomer]) -> list[Acceptor]:
    """Bind *address*, for every transport over TCP.

    *make* turns each accepted link into a newcomer.
    """
    try:
        sockets = await _bind(address)
    except OSError as error:
        raise type(error)(error.errno, f"cannot listen on {address.url!r}: {error.strerror or error}") from error
    port: int = sockets[0].getsockname()[1]
    url = address.with_port(port).url
    return [TCPAcceptor(sock, url, endpoint, make) for sock in sockets]


class TCPAcceptor:
    """A listening socket."""

    def __init__(self, sock: socket.socket, url: str, endpoint: ListenerConfig, make: Callable[[SocketLink], Newcomer]) -> None:
        self.url = url
        self._socket = close_in_children(sock)
        self._endpoint = endpoint
        self._make = make

    async def accept(self) -> list[Newcomer]:
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_readable(self._socket)
        return [
            self._make(_link(sock, self._endpoint.options.tcp_keepalive, proxied=self._endpoint.proxy_protocol))
            for sock in accept_pending(self._socket)
        ]

    def drain(self) -> None:
        self.close()

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            close_all_copies(self._socket)


class TCPLink(SocketLink):
    """A TCP socket on Linux: it knows whether the peer still answers while data is in flight."""

    detects_silence = True

    __slots__ = ("_limit", "_silence")

    def __init__(self, sock: socket.socket, local_address: str, remote_address: str, limit: float, *, proxied: bool) -> None:
        """Wrap *sock*.  After *limit* seconds of silence, the peer counts as gone."""
        super().__init__(sock, local_address, remote_address, proxied=proxied)
        self._limit = limit
        self._silence: tcp_info.Silence | None = None  # while data is in flight

    def check_silence(self, now: float) -> bool:
        try:
            info = tcp_info.decode(self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, tcp_info.SIZE))
        except OSError:
            info = None  # the socket is closed
        if info is None or not info.in_flight:
            self._silence = None
            return False
        if self._silence is None:
            self._silence = tcp_info.Silence(info, now)
        self._silence.check(info, now, self._limit)
        return True


def _link(sock: socket.socket, tcp_keepalive: float | None, *, proxied: bool = False) -> SocketLink:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _set_keepalive(sock, tcp_keepalive)
        ends = format_address(sock.getsockname()), format_address(sock.getpeername())
        if tcp_keepalive is None or not hasattr(socket, "TCP_INFO"):
            return SocketLink(sock, *ends, proxied=proxied)
        return TCPLink(sock, *ends, max(SHORTEST_KEEPALIVE, tcp_keepalive), proxied=proxied)
    except OSError:
        # The peer has closed the connection already.  Reading will report that.
        return SocketLink(sock, "", "", proxied=proxied)


def _set_keepalive(sock: socket.socket, seconds: float | None) -> None:
    """Let the kernel end the connection if the peer cannot be reached for *seconds*.

    The kernel does not do that while data is in flight; see ``tcp_info``.
    """
    if seconds is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        # The first probe is sent after half of the time, the others during the second half.
        whole = max(SHORTEST_KEEPALIVE, round(seconds))
        idle = min(max(1, whole // 2), _MAX_KEEPALIVE)
        interval = min(max(1, (whole - idle) // 4), _MAX_KEEPALIVE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, min(max(1, (whole - idle) // interval), 127))


async def _bind(address: Address) -> list[socket.socket]:
    wanted = await look_up(address, flags=socket.AI_PASSIVE)
    for _ in range(_PORT_TRIES):
        try:
            return _bind_all(wanted, address.port)
        except OSError as error:
            # The port that the kernel chose for one family may be taken in the other: try another
            # one.
            if address.port or error.errno != errno.EADDRINUSE or len(wanted) == 1:
                raise
    raise OSError(errno.EADDRINUSE, f"no port is free for all addresses of {address.url!r}")


def _bind_all(wanted: Sequence[_Target], port: int) -> list[socket.socket]:
    bound: list[socket.socket] = []
    unsupported: OSError | None = None
    try:
        for family, sockaddr in wanted:
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:  # a kernel without this family
                unsupported = error
                continue
            bound.append(sock)
            if sys.platform != "win32":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind((sockaddr[0], port, *sockaddr[2:]))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL or (len(wanted) == 1):
                    raise _explained(error, sockaddr) from error
                unsupported = error  # for example ::1 of localhost where IPv6 is switched off
                bound.pop().close()
                continue
            sock.listen(BACKLOG)
            sock.setblocking(False)
            port = sock.getsockname()[1]
        if not bound:
            raise unsupported or OSError(errno.EADDRNOTAVAIL, "the name has no address")
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    return bound


def format_address(sockaddr: tuple[Any, ...]) -> str:
    """Return ``host:port`` as in a URL: IPv6 has brackets, and its zone if it needs one."""
    host, port, *rest = sockaddr
    scope = rest[1] if rest else 0
    return f"{bracketed(f'{host}%{_zone(scope)}' if scope else host)}:{port}"


def _zone(scope: int) -> str:
    """Return the name of a network interface, or its number if no name can be in a URL."""
    try:
        name = socket.if_indextoname(scope)
    except OSError:
        return str(scope)
    return name if sys.platform != "win32" and is_host(f"fe80::%{name}") else str(scope)
