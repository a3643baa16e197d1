"""How ws, wss and ws+unix are listened on.

Several sockets of a trio run share a host and port by the paths of their URLs.  The one that has listened there for longest accepts; a
newcomer goes to the socket whose path it asks for, and who asks for something else gets an answer of HTTP.
"""

from __future__ import annotations

import errno
import inspect
import logging
import os
import re
from collections import deque
from typing import Final, cast

import attrs
import trio
from websockets.protocol import Side

from sp.address import Address, normal_path
from sp.errors import AddressError, GreetingError, PeerClosed, PeerError, PipeRefused, TLSConfigError
from sp.http.config import WSServerConfig
from sp.http.forwarding import Client, client_of, parse_ip
from sp.http.message import HTTPHeaders, HTTPInfo, HTTPResponse, text_response
from sp.refusal import RefusalKind
from sp.tls.config import TLSServerConfig
from sp.transports import ipc, tcp
from sp.transports.contract import Acceptor, AnsweredByHTTP, Connection, EndpointConfig, HandedOver
from sp.transports.link import READ_SIZE, Link, SocketLink, receive_first
from sp.transports.tls import TLSLink
from sp.transports.ws.connection import GOING_AWAY, WSConnection
from sp.transports.ws.frames import WebSocket
from sp.transports.ws.handshake import Pings, ServerHandshake, pings_for_client

log = logging.getLogger("sp")


async def listen(address: Address, terms: EndpointConfig) -> list[Acceptor]:
    """Bind *address*, or share the port with who has bound it.  OSError "address in use" if they do not fit together."""
    await trio.lowlevel.checkpoint()
    ports = _the_ports()
    key = _key(address, address.port)
    port = ports.get(key)
    if port is None:
        check_health_path([(normal_path(address.target), cast("WSServerConfig", terms.ws))], address)
        port = SharedPort(terms, address, key)
        try:
            await port.bind(address, terms)
        except OSError:
            port = ports.get(key)
            if port is None:
                raise  # else another task has bound it meanwhile
        else:
            ports[port.key] = port
    if port.routes:
        port.check(address, terms)
    return port.join(address, terms)


def _key(address: Address, port: int) -> tuple[str, str, int]:
    if address.scheme == "ws+unix":
        return "unix", os.path.abspath(str(address.path)), 0
    family = address.scheme[-1] if address.scheme[-1] in "46" else ""
    return family, address.host.lower(), port


_ports: trio.lowlevel.RunVar[dict[tuple[str, str, int], SharedPort]] = trio.lowlevel.RunVar("sp.ws")


def _the_ports() -> dict[tuple[str, str, int], SharedPort]:
    try:
        return _ports.get()
    except LookupError:
        ports: dict[tuple[str, str, int], SharedPort] = {}
        _ports.set(ports)
        return ports


class SharedPort:
    """A bound address, and the listeners that share it, the oldest first."""

    def __init__(self, terms: EndpointConfig, address: Address, key: tuple[str, str, int]) -> None:
        self.key = key
        self.bases: list[Acceptor] = []
        self.routes: list[Route] = []
        self.is_unix = address.scheme == "ws+unix"
        self._terms = terms

    def newcomer(self, inner: SocketLink) -> Connection:
        """Make a connection of who was accepted."""
        config = self._terms.tls
        link = TLSLink(inner, config, http=True) if isinstance(config, TLSServerConfig) else inner
        return ServerConnection(link, self._terms, self)

    async def bind(self, address: Address, terms: EndpointConfig) -> None:
        """Bind *address*, and learn which port that is."""
        if self.is_unix:
            self.bases = await ipc.listen_link(address, terms, self.newcomer)
        else:
            self.bases = await tcp.listen_link(address, terms, self.newcomer)
            self.key = _key(address, Address.parse(self.bases[0].url).port)

    def check(self, address: Address, terms: EndpointConfig) -> None:
        """Raise unless a listener with these terms can share the port."""
        if terms.tls is not self._terms.tls:
            if terms.tls is None or self._terms.tls is None:
                raise OSError(errno.EADDRINUSE, f"{address.url!r}: address in use, with the other of ws:// and wss://")
            raise TLSConfigError(f"{address.url!r} shares its port with other sockets: expected the same TLSServerConfig as theirs")
        if terms.proxy_protocol != self._terms.proxy_protocol:
            raise OSError(errno.EADDRINUSE, f"{address.url!r}: address in use, with another proxy_protocol")
        if any(route.path == normal_path(address.target) for route in self.routes):
            raise OSError(errno.EADDRINUSE, f"{address.url!r}: address in use")
        new = (normal_path(address.target), cast("WSServerConfig", terms.ws))
        check_health_path([new, *((route.path, route.config) for route in self.routes)], address)

    def join(self, address: Address, terms: EndpointConfig) -> list[Acceptor]:
        route = Route(self, address.target, terms)
        self.routes.append(route)
        url = address.url if self.is_unix else address.with_port(self.key[2]).url
        route.acceptors = [WSAcceptor(route, base, url) for base in self.bases]
        return list(route.acceptors)

    def leave(self, route: Route) -> None:
        """The last one to leave closes the port."""
        self.routes.remove(route)
        if self.routes:
            self.routes[0].wake()
        else:
            for base in self.bases:
                base.close()
            if _the_ports().get(self.key) is self:
                del _the_ports()[self.key]

    def pass_on(self, connection: Connection) -> None:
        """Let who leads now serve a newcomer."""
        if self.routes:
            self.routes[0].add(connection)
        else:
            connection.close()

    def route_for(self, path: str) -> Route | None:
        """Return who listens at *path*; as in nng, a slash behind it makes no difference."""
        path = normal_path(path)
        for wanted in (path, path.removesuffix("/"), f"{path}/"):
            for route in self.routes:
                if route.path == wanted:
                    return route
        return None

    def health_at(self, path: str) -> Route | None:
        """Return who answers health checks at *path*."""
        return next((route for route in self.routes if route.health_path == normal_path(path)), None)


def check_health_path(listening: list[tuple[str, WSServerConfig]], address: Address) -> None:
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


class Route:
    """One listener at a port."""

    def __init__(self, port: SharedPort, path: str, terms: EndpointConfig) -> None:
        self.port = port
        self.path = normal_path(path)
        self.terms = terms
        self.config = cast("WSServerConfig", terms.ws)
        self.health_path = None if self.config.health_path is None else normal_path(self.config.health_path)
        self.acceptors: list[WSAcceptor] = []
        self.draining = False
        self.closed = False
        self.handed: list[Connection] = []
        """Newcomers that others have accepted."""

    @property
    def accepts_for_all(self) -> bool:
        """Whether it accepts for all."""
        return self.port.routes[:1] == [self]

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

    def __init__(self, route: Route, base: Acceptor, url: str) -> None:
        self.url = url
        self._route = route
        self._base = base
        self._scope = trio.CancelScope()

    async def accept(self) -> list[Connection]:
        route = self._route
        while True:
            if route.closed:
                raise trio.ClosedResourceError
            if route.handed:
                await trio.lowlevel.checkpoint()
                handed, route.handed = route.handed, []
                if handed:
                    return handed
            with trio.CancelScope() as self._scope:
                if not route.accepts_for_all:
                    await trio.sleep_forever()
                newcomers = await self._base.accept()
                if route.accepts_for_all:
                    return newcomers
                for connection in newcomers:  # they came in the moment in which it has left
                    route.port.pass_on(connection)

    def wake(self) -> None:
        """Let ``accept`` look around."""
        self._scope.cancel()

    def drain(self) -> None:
        self._route.draining = True

    def close(self) -> None:
        self._route.close()


class ServerConnection(WSConnection):
    """A listener's.  It may go from one listener to another before it is a pipe."""

    __slots__ = ("_answered", "_asking", "_client", "_handshake", "_opened", "_port", "_route")

    asks = True
    _code = GOING_AWAY

    def __init__(self, link: Link, terms: EndpointConfig, port: SharedPort) -> None:
        super().__init__(link, terms)
        self._port = port
        self._handshake: ServerHandshake | None = ServerHandshake(over_tls=terms.tls is not None)
        self._route: Route | None = None
        self._client: Client | None = None
        self._opened = False  # so that HTTP can be spoken
        self._answered = False
        self._asking = False  # for the health

    @property
    def stage(self) -> str:
        if not self._opened:
            return self._link.stage
        return "answer of health" if self._asking else "HTTP request"

    @property
    def remote_address(self) -> str:
        return self._link.remote_address if self._client is None else self._client.address

    @property
    def proxy_address(self) -> str | None:
        direct = self._link.proxy_address
        return self._link.remote_address if direct is None and self._client is not None and self._client.via else direct

    @property
    def _says_close(self) -> bool:
        return self._pings is not Pings.NONE  # a libnanomsg that has had a Close never dials again

    async def greet(self) -> int:
        handshake = self._handshake
        assert handshake is not None
        if self._route is None:
            await self._link.open(b"")
            self._opened = True
            await self._read_request(handshake)
            await self._find_route(handshake)
        assert self._route is not None
        return await self._check(handshake, self._route)

    async def _read_request(self, handshake: ServerHandshake) -> None:
        complete = False
        while not complete:
            self._check_open()
            await self._link.wait_readable()
            try:
                data = (
                    self._link.recv(READ_SIZE) if handshake.has_begun else receive_first(self._link, READ_SIZE, "before its HTTP request")
                )
            except BlockingIOError:
                continue
            if not data:
                raise PeerClosed("the peer closed the connection in the middle of its HTTP request")
            complete = handshake.receive_data(data)
        if handshake.problem is not None:
            response, reason = handshake.problem
            await self._answer(response)
            raise GreetingError(reason)

    async def _find_route(self, handshake: ServerHandshake) -> None:
        """Find out whom the request is for.  Raises HandedOver or AnsweredByHTTP if that is not the listener that has accepted it."""
        request = handshake.request
        assert request is not None
        path, query = _path_and_query(request.path)
        route = self._port.route_for(path)
        if route is None:
            healthy = self._port.health_at(path)
            if healthy is None:
                await self._answer(text_response(404, "nobody listens here"))
                raise GreetingError(f"HTTP 404: nobody listens at {path[:200]!r}")
            await self._tell_health(healthy, request.method)
            raise AnsweredByHTTP
        self._route = route
        self._terms, self._config = route.terms, route.config
        headers = HTTPHeaders(request.headers.raw_items())
        scheme = "http" if self._link.tls is None else "https"
        proxy, peer = self._link.proxy, self._link.remote_address
        if proxy is not None and parse_ip(proxy.source) is None:
            self._client = Client(peer, scheme, via=False)  # who sent the request is not known, so nobody vouches for its headers
        else:
            self._client = client_of(route.config, headers, peer, scheme, unix=self._port.is_unix and proxy is None)
        self.http = HTTPInfo(path=path, query=query, headers=headers, scheme=self._client.scheme, via_trusted_proxy=self._client.via)
        if route is not self._port.routes[0]:
            route.add(self)
            raise HandedOver

    async def _check(self, handshake: ServerHandshake, route: Route) -> int:
        http = self.http
        assert http is not None
        if route.draining or route.closed:
            await self._answer(text_response(503, "going away"))
            raise GreetingError("HTTP 503: the listener is going away")
        origin = http.headers.get("Origin")
        if origin is not None and not route.config.allows_origin(origin):
            await self._answer(text_response(403, "pages of this origin may not connect"))
            raise GreetingError(f"HTTP 403: origin {origin[:200]!r} is not among the allowed origins")
        response, error = handshake.accept(self._terms.number)
        if response is not None:
            await self._answer(response)
        if error is not None:
            raise error
        self._pings = pings_for_client(http.headers)
        return self._terms.peer_number

    def admit(self) -> None:
        handshake, self._handshake = self._handshake, None
        assert handshake is not None
        assert self._route is not None
        assert self.http is not None
        answer, headers = handshake.admit(self._route.config.response_headers)
        self.http = attrs.evolve(self.http, response_headers=headers)
        self._answered = True
        self._websocket = WebSocket(Side.SERVER, self._terms.find_body, self._terms.options.max_message_size)
        self._control = answer
        self.send_nowait(deque())
        self._websocket.add(handshake.rest)

    async def refuse(self, refusal: PipeRefused) -> None:
        await self._answer(_answer_for(refusal))

    async def _tell_health(self, route: Route, method: str) -> None:
        response = text_response(405, "expected GET or HEAD", {"Allow": "GET, HEAD"})
        if method in ("GET", "HEAD"):
            self._asking = True
            response = text_response(503, "draining") if route.draining else await _ask_health(route.config)
        log.debug("%s asked for the health: %d", self.remote_address, response.status)
        await self._answer(response)

    async def _answer(self, response: HTTPResponse) -> None:
        """Send *response*; time to read it comes with ``linger_close``."""
        self._answered = True
        try:
            await self._send_all(self._encode_answer(response))
        except (OSError, PeerError, trio.ClosedResourceError):
            self._parted = True  # the peer does not want to know

    def _encode_answer(self, response: HTTPResponse) -> bytes:
        return response.encode(with_body=self._handshake is None or not self._handshake.is_head)

    async def linger_close(self, error: Exception | None = None) -> None:
        if self._answered:
            await super().linger_close(error)

    def close(self, error: Exception | None = None) -> None:
        if self._opened and not self._answered and not self.closed:
            self._answered = True
            is_late = isinstance(error, GreetingError) and self.http is None and not self._asking
            response = text_response(408, "no request in time") if is_late else _answer_for(error)
            try:
                self._link.send(self._encode_answer(response))
            except (OSError, PeerError):
                pass
        super().close(error)


def _answer_for(error: Exception | None) -> HTTPResponse:
    """Return what a client is told that is turned away for *error*, or since the listener closes."""
    if isinstance(error, PipeRefused):
        if isinstance(error.response, HTTPResponse):
            return error.response
        return text_response(503, str(error)) if error.kind is RefusalKind.NO_ROOM else text_response(403, "refused")
    if isinstance(error, trio.ClosedResourceError):  # authorize has closed the pipe
        return text_response(403, "refused")
    return text_response(503, "going away")


_ABSOLUTE: Final = re.compile(r"(?:http|ws)s?://[^/?]*", re.IGNORECASE)


def _path_and_query(target: str) -> tuple[str, str]:
    """Return path and query of a request's target; libnng 1.11 sends none for ``/``, and a proxy may send a whole URL (RFC 9112, 3.2.2)."""
    absolute = _ABSOLUTE.match(target)
    if absolute is not None:
        target = target[absolute.end() :]
    path, _, query = target.partition("?")
    return path or "/", query


@trio.lowlevel.disable_ki_protection
async def _ask_health(config: WSServerConfig) -> HTTPResponse:
    if config.health is None:
        return HTTPResponse(200, "ok\n")
    try:
        answer = config.health()
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, bool):
            return HTTPResponse(200, "ok\n") if answer else text_response(503, "not healthy")
    except Exception as error:
        log.warning("health raised %r", error)
        return text_response(500, "nobody knows")
    if isinstance(answer, HTTPResponse):
        return answer
    if isinstance(answer, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        return HTTPResponse(200, answer)
    log.warning("health returned %s, expected a bool, a str or an HTTPResponse", type(answer).__name__)
    return text_response(500, "nobody knows")
