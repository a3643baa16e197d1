"""A client of a listener before there is a WebSocket: its request, and the answer to it."""

from __future__ import annotations

import inspect
import logging
import re
from typing import Final, NamedTuple

import attrs
import trio
from websockets.http11 import Request
from websockets.protocol import Side

from sp.errors import GreetingError, PeerClosed, PeerError, PipeRefused, WrongProtocol
from sp.http.config import WSServerConfig
from sp.http.forwarding import Client, client_of, parse_ip
from sp.http.message import HTTPHeaders, HTTPInfo, HTTPResponse, text_response
from sp.refusal import RefusalKind
from sp.transports.contract import AnsweredByHTTP, Connection, Greeted, HandedOver, ListenerConfig
from sp.transports.link import READ_SIZE, Link, receive_first
from sp.transports.stream import OverLink
from sp.transports.ws.connection import GOING_AWAY, WSConnection, linger, send_all
from sp.transports.ws.frames import WebSocket
from sp.transports.ws.handshake import Pings, ServerHandshake, pings_for_client
from sp.transports.ws.routes import Route, Routes

log = logging.getLogger("sp")


class _Routed(NamedTuple):
    """A request whose listener is known."""

    route: Route
    http: HTTPInfo


class ServerNewcomer(OverLink):
    """A client that is accepted and not greeted.

    If its request says so, another listener gets it.
    """

    defers_greeting = True

    __slots__ = ("_answered", "_asks_health", "_connection", "_handshake", "_lingered", "_opened", "_routed", "_routes", "closed")

    def __init__(self, link: Link, endpoint: ListenerConfig, routes: Routes) -> None:
        super().__init__(link)
        self.closed = False
        self._routes = routes
        self._handshake = ServerHandshake(over_tls=endpoint.tls is not None)
        self._opened = False  # from now on, HTTP can be spoken
        self._asks_health = False
        self._answered = False
        self._lingered = False  # the client has had time to read the answer
        self._routed: _Routed | None = None
        self._connection: WSConnection | None = None  # exists once the client is accepted

    @property
    def stage(self) -> str:
        if not self._opened:
            return self._link.stage
        return "answer of health" if self._asks_health else "HTTP request"

    def defer_greeting(self) -> None:
        pass  # it is always deferred: our greeting is the answer to the request

    async def greet(self) -> Greeted:
        if self._routed is None:
            await self._link.open(b"")
            self._opened = True
            self._routed = await self._find_route(await self._read_request())
            if not self._routed.route.accepts_for_all:
                self._routed.route.add(self)
                raise HandedOver
        return await self._check(*self._routed)

    async def _read_request(self) -> Request:
        handshake, link = self._handshake, self._link
        while handshake.request is None:
            if self.closed:
                raise trio.ClosedResourceError
            await link.wait_readable()
            try:
                data = link.recv(READ_SIZE) if handshake.has_begun else receive_first(link, READ_SIZE, "before its HTTP request")
            except BlockingIOError:
                continue
            if not data:
                raise PeerClosed("the peer closed the connection in the middle of its HTTP request")
            handshake.receive_data(data)
            if handshake.problem is not None:
                response, reason = handshake.problem
                await self.answer(response)
                raise GreetingError(reason)
        return handshake.request

    async def _find_route(self, request: Request) -> _Routed:
        """Return the listener that *request* is for.

        Raises AnsweredByHTTP if it is a health check.
        """
        path, query = _path_and_query(request.path)
        route = self._routes.find(path)
        if route is None:
            healthy = self._routes.find_health(path)
            if healthy is None:
                await self.answer(text_response(404, "no socket listens here"))
                raise GreetingError(f"HTTP 404: no socket listens at {path[:200]!r}")
            await self._answer_health(healthy, request.method)
            raise AnsweredByHTTP
        headers = HTTPHeaders(request.headers.raw_items())
        client = self._find_client(route.config, headers)
        if client.via:
            self._link.set_peer_address(client.address)
        return _Routed(route, HTTPInfo(path=path, query=query, headers=headers, scheme=client.scheme, via_trusted_proxy=client.via))

    def _find_client(self, config: WSServerConfig, headers: HTTPHeaders) -> Client:
        """Return the client, as the PROXY protocol header and trusted proxies report it."""
        link = self._link
        scheme = "http" if link.tls is None else "https"
        if link.proxy is not None and parse_ip(link.proxy.source) is None:
            # The client is unknown, so do not believe the headers of its request either.
            return Client(link.remote_address, scheme, via=False)
        return client_of(config, headers, link.remote_address, scheme, unix=self._routes.is_unix and link.proxy is None)

    async def _check(self, route: Route, http: HTTPInfo) -> Greeted:
        """Return the client if its request is in order.

        Otherwise, answer it and raise PeerError.
        """
        if route.draining or route.closed:
            await self.answer(text_response(503, "going away"))
            raise GreetingError("HTTP 503: the listener is going away")
        origin = http.headers.get("Origin")
        if origin is not None and not route.config.allows_origin(origin):
            await self.answer(text_response(403, "pages of this origin may not connect"))
            raise GreetingError(f"HTTP 403: origin {origin[:200]!r} is not among the allowed origins")
        response, error = self._handshake.check(route.endpoint.number)
        if response is not None:
            await self.answer(response)
        if error is not None:
            raise error
        return ServerGreeted(self, self._link, route, http)

    def accept(self, route: Route, http: HTTPInfo) -> WSConnection:
        """Make it a WebSocket.  Raises OSError."""
        handshake, endpoint = self._handshake, route.endpoint
        answer, headers = handshake.accept(route.config.response_headers)
        pings = pings_for_client(http.headers)
        websocket = WebSocket(Side.SERVER, endpoint.find_body, endpoint.options.max_message_size)
        websocket.add(handshake.rest)
        self._answered = True
        self._connection = connection = WSConnection(
            self._link,
            endpoint,
            websocket,
            attrs.evolve(http, response_headers=headers),
            pings,
            code=GOING_AWAY,
            says_close=pings is not Pings.NONE,  # a libnanomsg that gets a Close never dials again
        )
        connection.send_answer(answer)
        return connection

    async def _answer_health(self, route: Route, method: str) -> None:
        response = text_response(405, "expected GET or HEAD", {"Allow": "GET, HEAD"})
        if method in ("GET", "HEAD"):
            self._asks_health = True
            response = text_response(503, "draining") if route.draining else await _ask_health(route.config)
        log.debug("%s asked for the health check: %d", self.remote_address, response.status)
        await self.answer(response)

    async def answer(self, response: HTTPResponse) -> None:
        """Send *response* instead of a WebSocket's.

        ``linger_close`` gives the client time to read it.
        """
        self._answered = True
        try:
            await send_all(self._link, self._encode(response))
        except (OSError, PeerError, trio.ClosedResourceError):
            self._lingered = True  # the client is gone

    def _encode(self, response: HTTPResponse) -> bytes:
        return response.encode(with_body=not self._handshake.is_head)

    async def linger_close(self, error: Exception | None = None) -> None:
        if self._connection is not None:
            await self._connection.linger_close(error)
        elif self._answered and not self._lingered and not self.closed:
            self._lingered = True
            await linger(self._link)

    def close(self, error: Exception | None = None) -> None:
        if self.closed:
            return
        self.closed = True
        if self._connection is not None:
            self._connection.close(error)
            return
        if self._opened and not self._answered:
            self._answered = True
            is_late = isinstance(error, GreetingError) and self._routed is None and not self._asks_health
            response = text_response(408, "no request came in time") if is_late else answer_for(error)
            try:
                self._link.send(self._encode(response))
            except (OSError, PeerError):
                pass
        self._link.close()


class ServerGreeted(OverLink):
    """A client whose request is in order.  It waits for the answer."""

    __slots__ = ("_newcomer", "_route", "http", "peer_number")

    def __init__(self, newcomer: ServerNewcomer, link: Link, route: Route, http: HTTPInfo) -> None:
        super().__init__(link)
        self.http = http
        self.peer_number = route.endpoint.peer_number
        self._newcomer = newcomer
        self._route = route

    def accept(self) -> Connection:
        return self._newcomer.accept(self._route, self.http)

    async def reject(self, error: PipeRefused | WrongProtocol) -> None:
        await self._newcomer.answer(answer_for(error))

    def close(self, error: Exception | None = None) -> None:
        self._newcomer.close(error)


_STATUSES: Final = {RefusalKind.NOT_AUTHORIZED: 403, RefusalKind.NO_ROOM: 503}


def answer_for(error: Exception | None) -> HTTPResponse:
    """Return the response to a client that is rejected because of *error*.

    None: the listener closes.
    """
    if isinstance(error, PipeRefused):
        if isinstance(error.response, HTTPResponse):
            return error.response
        # Do not tell the client why we refused it, or what an exception says.
        return text_response(_STATUSES[error.kind], str(error) if error.kind is RefusalKind.NO_ROOM else "refused")
    if isinstance(error, trio.ClosedResourceError):  # ``authorize`` closed the pipe
        return text_response(_STATUSES[RefusalKind.NOT_AUTHORIZED], "refused")
    return text_response(503, "going away")


_ABSOLUTE: Final = re.compile(r"(?:http|ws)s?://[^/?]*", re.IGNORECASE)


def _path_and_query(target: str) -> tuple[str, str]:
    """Return path and query of a request's target.

    libnng 1.11 sends no path instead of ``/``, and a proxy may send a whole URL (RFC 9112, 3.2.2).
    """
    absolute = _ABSOLUTE.match(target)
    if absolute is not None:
        target = target[absolute.end() :]
    path, _, query = target.partition("?")
    return path or "/", query


@trio.lowlevel.disable_ki_protection
async def _ask_health(config: WSServerConfig) -> HTTPResponse:
    """Return the response to a health check.

    ``health`` belongs to the application, so it may raise or return anything.
    """
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
        return text_response(500, "health failed")
    if isinstance(answer, HTTPResponse):
        return answer
    if isinstance(answer, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        return HTTPResponse(200, answer)
    log.warning("health returned %s, expected a bool, a str or an HTTPResponse", type(answer).__name__)
    return text_response(500, "health failed")
