"""tcp: SP over TCP, to and from host names, IPv4 and IPv6."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Final, cast

import trio

from sp.address import Address
from sp.transports import Acceptor, Connection, Terms
from sp.transports.stream import SocketLink, StreamConnection

_ACCEPT_BATCH: Final = 64
BACKLOG: Final = 65535
"""Connections that the kernel completes for us before we accept them: more than any kernel allows, so that it takes its own limit
(``net.core.somaxconn``).  Beyond that, dialers wait a second for their next try."""
_PORT_TRIES: Final = 16
_MAX_KEEPALIVE: Final = 32767
"""The longest time in seconds that Linux takes for each of the keepalive times."""
_FAMILIES: Final = {"4": socket.AF_INET, "6": socket.AF_INET6}


async def connect(address: Address, terms: Terms) -> Connection:
    """Connect to *address*: every address of its name is tried, newly looked up each time."""
    return StreamConnection(await connect_link(address, terms), terms)


async def connect_link(address: Address, terms: Terms) -> SocketLink:
    """Do so, for tls as well."""
    *others, last = [address.host] if _family(address) == socket.AF_UNSPEC else await _only_family(address)
    for host in others:
        try:
            return await _open(host, address.port, terms)
        except OSError:
            pass  # the next address may do
    return await _open(last, address.port, terms)


async def _open(host: str, port: int, terms: Terms) -> SocketLink:
    family = _numeric_family(host)
    if family is not None:
        # There is one address only, and nothing to race it against.
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            await sock.connect((host, port))
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise type(error)(error.errno, os.strerror(error.errno or 0)) from error
            raise
        return _link(socket.socket(fileno=sock.detach()), terms)
    try:
        # trio tries all addresses of a name, a quarter of a second apart (RFC 8305).
        stream = await trio.open_tcp_stream(host, port)
    except OSError as error:
        raise _plain(error) from error
    return _link(socket.socket(fileno=stream.socket.detach()), terms)


def _numeric_family(host: str) -> socket.AddressFamily | None:
    """Return the family of an IP address, or None for a name, and for an address with a zone, which has to be looked up."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return family
    return None


def _plain(error: OSError) -> OSError:
    """Return one error, of the class that the last attempt failed with, that names the reason of every attempt."""
    cause = error.__cause__
    causes: Sequence[object] = cast("ExceptionGroup[OSError]", cause).exceptions if isinstance(cause, ExceptionGroup) else (cause,)
    reasons = [reason for reason in causes if isinstance(reason, OSError)]
    if not reasons:
        return error
    return type(reasons[-1])(reasons[-1].errno, "; ".join(dict.fromkeys(reason.strerror or str(reason) for reason in reasons)))


def _family(address: Address) -> socket.AddressFamily:
    return _FAMILIES.get(address.scheme[-1], socket.AF_UNSPEC)


async def _only_family(address: Address) -> list[str]:
    found = await trio.socket.getaddrinfo(address.host, address.port, family=_family(address), type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for _, _, _, _, sockaddr in found]


async def listen(address: Address, terms: Terms) -> list[Acceptor]:
    """Bind *address*.  A name is bound at all its addresses, no host at all interfaces of both families."""
    return await listen_link(address, terms, lambda link: StreamConnection(link, terms))


async def listen_link(address: Address, terms: Terms, make: Callable[[SocketLink], Connection]) -> list[Acceptor]:
    """Do so, for others as well: *make* makes a connection of each newcomer."""
    try:
        sockets = await _bind(address)
    except OSError as error:
        raise type(error)(error.errno, f"cannot listen on {address.url!r}: {error.strerror or error}") from error
    port: int = sockets[0].getsockname()[1]
    url = address.with_port(port).url
    return [TCPAcceptor(sock, url, terms, make) for sock in sockets]


class TCPAcceptor:
    """A socket that listens."""

    def __init__(self, sock: socket.socket, url: str, terms: Terms, make: Callable[[SocketLink], Connection]) -> None:
        self.url = url
        self._socket = sock
        self._terms = terms
        self._make = make

    async def accept(self) -> list[Connection]:
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_readable(self._socket)
        return [self._make(_link(sock, self._terms)) for sock in accept_pending(self._socket)]

    def drain(self) -> None:
        self.close()

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()


def accept_pending(listening: socket.socket) -> list[socket.socket]:
    """Accept who is waiting, a bounded number.  Raises OSError only when nobody could be accepted."""
    accepted: list[socket.socket] = []
    while len(accepted) < _ACCEPT_BATCH:
        try:
            accepted.append(listening.accept()[0])
        except BlockingIOError:
            break
        except ConnectionError:
            continue  # it was gone before it was accepted
        except OSError:
            if accepted:
                break
            raise
    return accepted


def _link(sock: socket.socket, terms: Terms) -> SocketLink:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _set_keepalive(sock, terms.options.keepalive)
        return SocketLink(sock, format_address(sock.getsockname()), format_address(sock.getpeername()), proxied=terms.proxy_protocol)
    except OSError:
        # The peer is gone already; reading will find that out in the right place.
        return SocketLink(sock, "", "", proxied=terms.proxy_protocol)


def _set_keepalive(sock: socket.socket, seconds: float | None) -> None:
    """Give up a peer that was silent and unreachable for *seconds*.

    While data is on its way the kernel's own retransmissions decide.  TCP_USER_TIMEOUT would speed those up, but it also cuts off
    a living peer that holds us back for that long.
    """
    if seconds is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        # Half of the time until the first probe, then probes until the time is over.
        whole = max(2, round(seconds))
        idle = min(max(1, whole // 2), _MAX_KEEPALIVE)
        interval = min(max(1, (whole - idle) // 4), _MAX_KEEPALIVE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, min(max(1, (whole - idle) // interval), 127))


async def _bind(address: Address) -> list[socket.socket]:
    found = await trio.socket.getaddrinfo(
        address.host or None, address.port, family=_family(address), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    wanted = list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))
    for _ in range(_PORT_TRIES):
        try:
            return _bind_all(wanted, address.port)
        except OSError as error:
            # The port that the kernel gave us for one family may be taken in the other: ask for another one.
            if address.port or error.errno != errno.EADDRINUSE or len(wanted) == 1:
                raise
    raise OSError(errno.EADDRINUSE, f"no port is free for all addresses of {address.url!r}")


def _bind_all(wanted: Sequence[tuple[int, tuple[object, ...]]], port: int) -> list[socket.socket]:
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
                    raise
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


def format_address(sockaddr: tuple[object, ...]) -> str:
    """Return ``host:port``, with IPv6 in brackets."""
    host, port = sockaddr[:2]
    return f"[{host}]:{port}" if len(sockaddr) > 2 else f"{host}:{port}"
