"""ws, wss, ws+unix: SP over WebSocket over tcp, TLS or a unix socket.

Several sockets of a trio run share a host and port by the paths of their URLs.  The one that has listened there for longest accepts; a
newcomer goes to the socket whose path it asks for, and who asks for something else gets an answer of HTTP.
"""

from __future__ import annotations

import base64
import errno
import ipaddress
import os
import urllib.request
from typing import cast

import trio
from websockets.http11 import Response
from websockets.streams import StreamReader

from sp.address import Address
from sp.errors import AddressError, GreetingError, PeerClosed, TLSConfigError, printable
from sp.http import HTTPClientConfig, HTTPProxy, HTTPServerConfig, normal_path
from sp.tls import TLSClientConfig, TLSServerConfig
from sp.transports import Acceptor, Connection, Terms, ipc, tcp
from sp.transports.stream import READ_SIZE, Link, SocketLink
from sp.transports.tls import TLSLink
from sp.transports.websocket import refused_by
from sp.transports.ws_connection import ClientConnection, ServerConnection


async def connect(address: Address, terms: Terms) -> Connection:
    """Connect to *address*, through a proxy if there is one; all handshakes are part of the greeting."""
    config = cast("HTTPClientConfig", terms.http)
    link: Link
    if address.scheme == "ws+unix":
        return ClientConnection(await ipc.connect_link(address), terms, address)
    proxy = _proxy_for(address, config)
    inner = await tcp.connect_link(address, terms) if proxy is None else await _connect_through(proxy, address, terms)
    link = inner
    if isinstance(terms.tls, TLSClientConfig):
        link = TLSLink(inner, terms.tls, host=address.host, port=address.port, http=True)
    return ClientConnection(link, terms, address)


async def listen(address: Address, terms: Terms) -> list[Acceptor]:
    """Bind *address*, or share the port with who has bound it.  OSError "address in use" if they do not fit together."""
    await trio.lowlevel.checkpoint()
    ports = _the_ports()
    key = _key(address, address.port)
    port = ports.get(key)
    if port is None:
        check_health_path([(normal_path(address.target), cast("HTTPServerConfig", terms.http))], address)
        port = Port(terms, address, key)
        try:
            await port.bind(address, terms)
        except OSError:
            port = ports.get(key)
            if port is None:
                raise  # else another task has bound it meanwhile
        else:
            ports[port.key] = port
    if port.members:
        port.check(address, terms)
    return port.join(address, terms)


def _key(address: Address, port: int) -> tuple[str, str, int]:
    if address.scheme == "ws+unix":
        return "unix", os.path.abspath(str(address.path)), 0
    family = address.scheme[-1] if address.scheme[-1] in "46" else ""
    return family, address.host.lower(), port


_ports: trio.lowlevel.RunVar[dict[tuple[str, str, int], Port]] = trio.lowlevel.RunVar("sp.ws")


def _the_ports() -> dict[tuple[str, str, int], Port]:
    try:
        return _ports.get()
    except LookupError:
        ports: dict[tuple[str, str, int], Port] = {}
        _ports.set(ports)
        return ports


class Port:
    """A bound address, and the listeners that share it, the oldest first."""

    def __init__(self, terms: Terms, address: Address, key: tuple[str, str, int]) -> None:
        self.key = key
        self.bases: list[Acceptor] = []
        self.members: list[Member] = []
        self.is_unix = address.scheme == "ws+unix"
        self._terms = terms

    def newcomer(self, inner: SocketLink) -> Connection:
        """Make a connection of who was accepted."""
        config = self._terms.tls
        link = TLSLink(inner, config, http=True) if isinstance(config, TLSServerConfig) else inner
        return ServerConnection(link, self._terms, self)

    async def bind(self, address: Address, terms: Terms) -> None:
        """Bind *address*, and learn which port that is."""
        if self.is_unix:
            self.bases = await ipc.listen_link(address, terms, self.newcomer)
        else:
            self.bases = await tcp.listen_link(address, terms, self.newcomer)
            self.key = _key(address, Address.parse(self.bases[0].url).port)

    def check(self, address: Address, terms: Terms) -> None:
        """Raise unless a listener with these terms can share the port."""
        if terms.tls is not self._terms.tls:
            if terms.tls is None or self._terms.tls is None:
                raise OSError(errno.EADDRINUSE, f"{address.url!r}: address in use, with the other of ws:// and wss://")
            raise TLSConfigError(f"{address.url!r} shares its port with other sockets: expected the same TLSServerConfig as theirs")
        if terms.proxy_protocol != self._terms.proxy_protocol:
            raise OSError(errno.EADDRINUSE, f"{address.url!r}: address in use, with another proxy_protocol")
        if any(member.path == normal_path(address.target) for member in self.members):
            raise OSError(errno.EADDRINUSE, f"{address.url!r}: address in use")
        new = (normal_path(address.target), cast("HTTPServerConfig", terms.http))
        check_health_path([new, *((member.path, member.config) for member in self.members)], address)

    def join(self, address: Address, terms: Terms) -> list[Acceptor]:
        member = Member(self, address.target, terms)
        self.members.append(member)
        url = address.url if self.is_unix else address.with_port(self.key[2]).url
        member.acceptors = [WSAcceptor(member, base, url) for base in self.bases]
        return list(member.acceptors)

    def leave(self, member: Member) -> None:
        """The last one to leave closes the port."""
        self.members.remove(member)
        if self.members:
            self.members[0].wake()
        else:
            for base in self.bases:
                base.close()
            if _the_ports().get(self.key) is self:
                del _the_ports()[self.key]

    def member_for(self, path: str) -> Member | None:
        """Return who listens at *path*; as in nng, a slash behind it makes no difference."""
        path = normal_path(path)
        for wanted in (path, path.removesuffix("/"), f"{path}/"):
            for member in self.members:
                if member.path == wanted:
                    return member
        return None

    def health_at(self, path: str) -> Member | None:
        """Return who answers health checks at *path*."""
        return next((member for member in self.members if member.health_path == normal_path(path)), None)


def check_health_path(listening: list[tuple[str, HTTPServerConfig]], address: Address) -> None:
    """Raise AddressError if one of those that share a port is *listening* where another one, or itself, answers health checks."""
    answers: dict[str, object] = {}
    for _, config in listening:
        if config.health_path is None:
            continue
        path = normal_path(config.health_path)
        if any(path.rstrip("/") == other.rstrip("/") for other, _ in listening):
            raise AddressError(f"{address.url!r}: health_path {config.health_path!r} is where a socket listens at that port")
        if answers.setdefault(path, config.health) is not config.health:
            raise AddressError(f"{address.url!r}: health_path {config.health_path!r} is answered by another health= at that port")


class Member:
    """One listener at a port."""

    def __init__(self, port: Port, path: str, terms: Terms) -> None:
        self.port = port
        self.path = normal_path(path)
        self.terms = terms
        self.config = cast("HTTPServerConfig", terms.http)
        self.health_path = None if self.config.health_path is None else normal_path(self.config.health_path)
        self.acceptors: list[WSAcceptor] = []
        self.draining = False
        self.closed = False
        self.handed: list[Connection] = []
        """Newcomers that others have accepted."""

    @property
    def leads(self) -> bool:
        """Whether it accepts for all."""
        return self.port.members[:1] == [self]

    def add(self, connection: Connection) -> None:
        self.handed.append(connection)
        self.wake()

    def wake(self) -> None:
        for acceptor in self.acceptors:
            acceptor.wake()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            for connection in self.handed:
                connection.close()
            self.port.leave(self)
            self.wake()


class WSAcceptor:
    """One bound socket of a port, as one of its listeners sees it."""

    def __init__(self, member: Member, base: Acceptor, url: str) -> None:
        self.url = url
        self._member = member
        self._base = base
        self._scope = trio.CancelScope()

    async def accept(self) -> list[Connection]:
        member = self._member
        while True:
            if member.closed:
                raise trio.ClosedResourceError
            if member.handed:
                await trio.lowlevel.checkpoint()
                handed, member.handed = member.handed, []
                if handed:
                    return handed
            with trio.CancelScope() as self._scope:
                if member.leads:
                    return await self._base.accept()
                await trio.sleep_forever()

    def wake(self) -> None:
        """Let ``accept`` look around."""
        self._scope.cancel()

    def drain(self) -> None:
        self._member.draining = True

    def close(self) -> None:
        self._member.close()


# Dialing through a proxy.


def _proxy_for(address: Address, config: HTTPClientConfig) -> HTTPProxy | None:
    if config.proxy is None:
        return None
    if isinstance(config.proxy, str):
        return HTTPProxy.parse(config.proxy)
    host = f"[{address.host}]" if ":" in address.host else address.host
    kind = "https" if address.is_encrypted else "http"
    url = urllib.request.getproxies().get(kind)
    if not url or _is_loopback(address.host) or urllib.request.proxy_bypass(f"{host}:{address.port}"):
        return None
    try:
        return HTTPProxy.parse(url)
    except ValueError as error:
        raise AddressError(f"{kind.upper()}_PROXY in the environment: {error}") from None


def _is_loopback(host: str) -> bool:
    """Whether no proxy could reach *host* for us: as in Go, the environment then does not count."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


async def _connect_through(proxy: HTTPProxy, address: Address, terms: Terms) -> SocketLink:
    """Connect to *proxy*, and have it connect to *address* (RFC 9110, 9.3.6)."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    authority = f"{host}:{address.port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if proxy.username is not None:
        credentials = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {credentials}")
    try:
        link = await tcp.connect_link(Address(f"http://{proxy.address}", "tcp", host=proxy.host, port=proxy.port), terms)
    except OSError as error:
        raise OSError(error.errno, f"the proxy {proxy.address} cannot be reached: {error.strerror or error}") from error
    try:
        await link.open("\r\n".join([*lines, "", ""]).encode())
        response = await _read_answer(link, proxy)
        if not 200 <= response.status_code < 300:
            raise refused_by(f"the proxy {proxy.address}", response)
    except BaseException:
        link.close()
        raise
    link.proxy_address, link.remote_address = link.remote_address, authority
    return link


async def _read_answer(link: SocketLink, proxy: HTTPProxy) -> Response:
    """Read the head of an answer; nothing may follow it, since it is we who speak first."""
    reader = StreamReader()
    parser = Response.parse(reader.read_line, reader.read_exact, reader.read_to_eof, proxy=True)
    try:
        next(parser)
        while True:
            await link.wait_readable()
            try:
                data = link.recv(READ_SIZE)
            except BlockingIOError:
                continue
            if data:
                reader.feed_data(data)
            else:
                reader.feed_eof()
            next(parser)
    except StopIteration as done:
        response = cast("Response", done.value)
        if reader.buffer and response.status_code < 300:
            raise GreetingError(f"the proxy {proxy.address} has sent more than its answer") from None
        return response
    except EOFError as error:
        raise PeerClosed(f"the proxy {proxy.address} closed the connection without an answer") from error
    except (OSError, trio.ClosedResourceError):
        raise
    except Exception as error:
        raise GreetingError(f"the proxy {proxy.address} has not answered in HTTP: {printable(str(error)[:300])}") from error
