"""One connection of ws, wss or ws+unix: the handshake at either end, frames, pings, and how it ends."""

from __future__ import annotations

import inspect
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, cast

import attrs
import trio
from websockets.protocol import Side

from sp.address import Address
from sp.errors import GreetingError, PeerClosed, PeerError, PeerSilent, PipeRefused
from sp.http import Client, HTTPClientConfig, HTTPHeaders, HTTPInfo, HTTPResponse, HTTPServerConfig, client_of, parse_ip, refusal
from sp.message import Message
from sp.transports import Answered, Diverted, Terms
from sp.transports.stream import (
    LARGE_READ_SIZE,
    MAX_PARTS,
    READ_SIZE,
    WRITE_SIZE,
    Link,
    LinkConnection,
    receive_first,
    wait_for_either,
)
from sp.transports.websocket import (
    ClientHandshake,
    Pings,
    ServerHandshake,
    WebSocket,
    client_protocol,
    pings_for_client,
    pings_for_server,
)

if TYPE_CHECKING:
    from sp.transports.ws import Member, Port

log = logging.getLogger("sp")

_LAST_WORDS: Final = 1.0
"""Seconds that a peer has to read why it is sent away: closing at once could take the words back (RST)."""
_NORMAL, _GOING_AWAY, _PROTOCOL_ERROR, _POLICY, _GONE = 1000, 1001, 1002, 1008, 1011
"""Codes of Close (RFC 6455, 7.4.1)."""


class WSConnection(LinkConnection):
    """A connection that carries WebSocket frames, once it is a WebSocket."""

    __slots__ = (
        "_config",
        "_control",
        "_heard",
        "_keeping",
        "_more",
        "_parted",
        "_pings",
        "_waiting",
        "_websocket",
        "http",
    )

    _code = _NORMAL
    """Of Close, when nothing is wrong."""

    def __init__(self, link: Link, terms: Terms) -> None:
        super().__init__(link, terms)
        self._config = cast("HTTPServerConfig | HTTPClientConfig", terms.http)
        self.http: HTTPInfo | None = None
        self._websocket: WebSocket | None = None
        self._control = b""  # frames that stand between messages: the answer to a ping, a ping, Close
        self._heard = False  # anything since the last ping
        self._waiting = False  # for the peer, so that all it has sent was read
        self._pings = Pings.NONE
        self._more = False  # the last read was full: there is more to read, and no need to ask the kernel
        self._parted = False  # the peer has had its time for our last words
        self._keeping: trio.CancelScope | None = None

    # Writing.

    def send_nowait(self, outbox: deque[Message]) -> bool:
        if not super().send_nowait(outbox):
            return False
        return not self._take_control() or super().send_nowait(outbox)

    def _take_control(self) -> bool:
        """Have control frames written next.  False: there are none."""
        if not self._control:
            return False
        self._unwritten, self._sizes = [self._control], []
        self._control = b""
        return True

    def _encode(self, outbox: deque[Message]) -> list[bytes | memoryview]:
        websocket = self._websocket
        assert websocket is not None
        if self._take_control():
            return self._unwritten
        parts: list[bytes | memoryview] = []
        sizes: list[int] = []
        size = 0
        while outbox and size < WRITE_SIZE and len(parts) < MAX_PARTS:
            frames = websocket.encode(outbox[0])
            outbox.popleft()
            length = sum(map(len, frames))
            parts += frames
            sizes.append(length)
            size += length
        self._sizes = sizes
        return parts if size >= WRITE_SIZE else [b"".join(parts)]

    def _say(self, data: bytes) -> None:
        """Write *data* between messages, soon.  What could not be written before is replaced: of pings, only the last needs an answer."""
        if data:
            self._control = data
            self._flush()

    def _flush(self) -> None:
        try:
            self.send_nowait(deque())
        except OSError:
            pass  # reading finds out

    # Reading.

    async def receive_batch(self) -> list[Message]:
        websocket = self._websocket
        assert websocket is not None
        self._interrupted = False
        while websocket.error is None:
            self._check_open()
            if self._interrupted:
                raise trio.ClosedResourceError
            if websocket.has_more:
                await trio.lowlevel.checkpoint()
                data = b""
            elif websocket.ended:
                await trio.lowlevel.checkpoint()
                raise PeerClosed(websocket.ended)
            else:
                if self._more:
                    await trio.lowlevel.checkpoint()
                else:
                    await self._wait_readable()
                size = LARGE_READ_SIZE if self._more else READ_SIZE
                try:
                    data = self._link.recv(size)
                except BlockingIOError:
                    self._more = False
                    continue
                self._heard = True
                if not data:
                    # Without a Close, as nanomsg and mangos do it.
                    if websocket.in_message:
                        raise PeerClosed("the peer closed the connection in the middle of a message")
                    return []
                self._more = len(data) == size
            messages = websocket.receive_data(data)
            self._say(websocket.data_to_send())
            if messages:
                return messages
        await self.see_off()
        raise websocket.error

    async def _wait_readable(self) -> None:
        link = self._link
        self._waiting = True
        try:
            if (self._unwritten or self._control) and link.writer is None:
                await wait_for_either(link, link.wait_readable)
                self._flush()
            else:
                await link.wait_readable()
        except trio.ClosedResourceError:
            if self.closed or self._websocket is None or self._websocket.error is None:
                raise
        finally:
            self._waiting = False

    async def _send_all(self, data: bytes) -> None:
        """Send *data*, of a handshake."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._link.send(rest) :]
            except BlockingIOError:
                await self._link.wait_writable()
                self._check_open()

    async def see_off(self) -> None:
        if self._parted or self.closed:
            return
        self._parted = True
        link = self._link
        try:
            self._flush()
            link.finish()
            with trio.move_on_after(_LAST_WORDS):
                while not self.closed:
                    await link.wait_readable()
                    try:
                        if not link.recv(READ_SIZE):
                            return
                    except BlockingIOError:
                        pass
        except (OSError, PeerError, trio.ClosedResourceError):
            pass

    # Keeping alive.

    @property
    def keep_alive(self) -> Callable[[], Awaitable[None]] | None:
        config = self._config
        return None if config.ping_interval is None or (self._pings is Pings.NONE and not config.ping_everyone) else self._keep_alive

    async def _keep_alive(self) -> None:
        """Ping the peer in time; end the connection when nothing comes any more."""
        interval, timeout = self._config.ping_interval, self._config.ping_timeout
        assert interval is not None
        is_judged = self._pings is Pings.ANSWERED or self._config.ping_everyone
        due = trio.current_time() + interval
        deadline = math.inf
        with trio.CancelScope() as self._keeping:
            while not self.closed:
                await self._write_until(min(due, deadline))
                now = trio.current_time()
                if now >= deadline:
                    for _ in range(2):  # if it was we who paused, what has come meanwhile is about to be read
                        await trio.lowlevel.checkpoint()
                if self._heard:
                    deadline = math.inf
                elif now >= deadline:
                    if self._waiting:
                        self._give_up(timeout)
                        return
                    deadline = now + timeout  # it is we who do not read: the application holds the pipe back
                if now >= due:
                    due = now + interval
                    ping = b"" if self._control or self._websocket is None else self._websocket.ping()
                    if ping and deadline == math.inf and is_judged:
                        self._heard, deadline = False, now + timeout
                    self._say(ping)

    async def _write_until(self, time: float) -> None:
        """Wait for *time*; write meanwhile what the kernel did not take at once."""
        with trio.move_on_at(time):
            while (self._unwritten or self._control) and not self.closed:
                try:
                    await self._link.wait_writable()
                except trio.ClosedResourceError:
                    await trio.lowlevel.checkpoint()  # closed, or a reader was interrupted
                else:
                    self._flush()
            await trio.sleep_forever()

    def _give_up(self, timeout: float) -> None:
        websocket = self._websocket
        assert websocket is not None
        websocket.error = PeerSilent(f"the peer has not answered a ping within {timeout:g} s, nor sent anything else")
        self._say(websocket.close(_GONE, "no answer to a ping"))
        self._parted = True
        self._link.interrupt()

    # The end.

    def finish(self) -> bool:
        assert self._websocket is not None
        self._say(self._websocket.close(self._code))
        return not (self._unwritten or self._control)

    def close(self, error: Exception | None = None) -> None:
        if self.closed:
            return
        self.closed = True
        if self._keeping is not None:
            self._keeping.cancel()
        if self._websocket is not None:
            self._say_goodbye(self._websocket, error)
            self._websocket.forget()
        self._link.close()

    def _say_goodbye(self, websocket: WebSocket, error: Exception | None) -> None:
        if isinstance(error, PeerError) and not isinstance(error, PeerClosed):
            self._say(websocket.close(_PROTOCOL_ERROR, str(error)))
        elif isinstance(error, PipeRefused):
            self._say(websocket.close(_POLICY, str(error)))
        elif not isinstance(error, OSError):
            self._say(websocket.close(self._code))


class ClientConnection(WSConnection):
    """A dialer's."""

    __slots__ = ("_address", "_handshake")

    def __init__(self, link: Link, terms: Terms, address: Address) -> None:
        super().__init__(link, terms)
        self._address = address
        self._handshake: ClientHandshake | None = None

    @property
    def stage(self) -> str:
        handshake = self._handshake
        if self._terms.tls is not None and self._link.tls is None:
            return self._link.stage
        said = f" (the server has begun with {handshake.first_line!r})" if handshake is not None and handshake.first_line else ""
        return f"WebSocket handshake{said}"

    async def greet(self) -> int:
        terms, link, address = self._terms, self._link, self._address
        config = cast("HTTPClientConfig", self._config)
        protocol = client_protocol(terms.peer_number)
        number, host = terms.peer_number, address.host_header
        handshake = ClientHandshake(protocol, number, address.target, host, config.headers, over_tls=terms.tls is not None)
        self._handshake = handshake
        if terms.tls is None:
            await link.open(b"")
            await self._send_all(handshake.request)
        else:
            await link.open(handshake.request)  # it leaves with the end of the TLS handshake
        agreed = False
        while not agreed:
            self._check_open()
            await link.wait_readable()
            try:
                data = link.recv(READ_SIZE)
            except BlockingIOError:
                continue
            agreed = handshake.receive_data(data)
        assert handshake.response is not None
        path, _, query = address.target.partition("?")
        self.http = HTTPInfo(
            path=path,
            query=query,
            headers=handshake.request_headers,
            response_headers=handshake.response,
            scheme="http" if terms.tls is None else "https",
        )
        self._pings = pings_for_server(handshake.response)
        self._websocket = WebSocket(Side.CLIENT, terms.split, terms.options.max_message_size)
        self._websocket.add(handshake.rest)
        self._handshake = None
        return terms.peer_number

    def admit(self) -> None:
        pass  # it was the server that was asked

    async def refuse(self, response: HTTPResponse) -> None:
        pass  # it was the server that was asked


class ServerConnection(WSConnection):
    """A listener's.  It may go from one listener to another before it is a pipe."""

    __slots__ = ("_answered", "_asking", "_client", "_handshake", "_member", "_opened", "_port")

    _code = _GOING_AWAY

    def __init__(self, link: Link, terms: Terms, port: Port) -> None:
        super().__init__(link, terms)
        self._port = port
        self._handshake: ServerHandshake | None = ServerHandshake(over_tls=terms.tls is not None)
        self._member: Member | None = None
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

    async def greet(self) -> int:
        handshake = self._handshake
        assert handshake is not None
        if self._member is None:
            await self._link.open(b"")
            self._opened = True
            await self._read_request(handshake)
            await self._route(handshake)
        assert self._member is not None
        return await self._check(handshake, self._member)

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

    async def _route(self, handshake: ServerHandshake) -> None:
        """Find out whom the request is for.  Raises Diverted or Answered if that is not the listener that has accepted it."""
        request = handshake.request
        assert request is not None
        path, query = _path_and_query(request.path)
        member = self._port.member_for(path)
        if member is None:
            healthy = self._port.health_at(path)
            if healthy is None:
                await self._answer(refusal(404, "nobody listens here"))
                raise GreetingError(f"HTTP 404: nobody listens at {path[:200]!r}")
            await self._tell_health(healthy, request.method)
            raise Answered
        self._member = member
        self._terms, self._config = member.terms, member.config
        headers = HTTPHeaders(request.headers.raw_items())
        scheme = "http" if self._link.tls is None else "https"
        proxy, peer = self._link.proxy, self._link.remote_address
        if proxy is not None and parse_ip(proxy.source) is None:
            self._client = Client(peer, scheme, via=False)  # who sent the request is not known, so nobody vouches for its headers
        else:
            self._client = client_of(member.config, headers, peer, scheme, unix=self._port.is_unix and proxy is None)
        self.http = HTTPInfo(path=path, query=query, headers=headers, scheme=self._client.scheme, via_trusted_proxy=self._client.via)
        if member is not self._port.members[0]:
            member.add(self)
            raise Diverted

    async def _check(self, handshake: ServerHandshake, member: Member) -> int:
        http = self.http
        assert http is not None
        if member.draining or member.closed:
            await self._answer(refusal(503, "going away"))
            raise GreetingError("HTTP 503: the listener is going away")
        origin = http.headers.get("Origin")
        if origin is not None and not member.config.allows_origin(origin):
            await self._answer(refusal(403, "pages of this origin may not connect"))
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
        assert self._member is not None
        assert self.http is not None
        answer, headers = handshake.admit(self._member.config.response_headers)
        self.http = attrs.evolve(self.http, response_headers=headers)
        self._answered = True
        self._websocket = WebSocket(Side.SERVER, self._terms.split, self._terms.options.max_message_size)
        self._control = answer
        self.send_nowait(deque())
        self._websocket.add(handshake.rest)

    async def refuse(self, response: HTTPResponse) -> None:
        await self._answer(response)

    async def _tell_health(self, member: Member, method: str) -> None:
        response = refusal(405, "expected GET or HEAD", {"Allow": "GET, HEAD"})
        if method in ("GET", "HEAD"):
            self._asking = True
            response = refusal(503, "draining") if member.draining else await _ask_health(member.config)
        log.debug("%s asked for the health: %d", self.remote_address, response.status)
        await self._answer(response)

    async def _answer(self, response: HTTPResponse) -> None:
        """Send *response*; time to read it comes with ``see_off``."""
        self._answered = True
        try:
            await self._send_all(self._encode_answer(response))
        except (OSError, PeerError, trio.ClosedResourceError):
            self._parted = True  # the peer does not want to know

    def _encode_answer(self, response: HTTPResponse) -> bytes:
        return response.encode(with_body=self._handshake is None or not self._handshake.is_head)

    async def see_off(self) -> None:
        if self._answered:
            await super().see_off()

    def close(self, error: Exception | None = None) -> None:
        if self._opened and not self._answered and not self.closed:
            self._answered = True
            response = refusal(503, "going away")
            if error is not None:
                late = isinstance(error, GreetingError)
                if late and self.http is None and not self._asking:
                    response = refusal(408, "no request in time")
                elif isinstance(error, (PipeRefused, trio.ClosedResourceError)):
                    response = refusal(403, "refused")
            try:
                self._link.send(self._encode_answer(response))
            except (OSError, PeerError):
                pass
        super().close(error)


def _path_and_query(target: str) -> tuple[str, str]:
    """Return path and query of a request's target; libnng 1.11 sends none for ``/``, and a proxy may send a whole URL (RFC 9112, 3.2.2)."""
    if target[:7].lower() == "http://" or target[:8].lower() == "https://":
        rest = target.partition("://")[2]
        target = rest[min((place for place in map(rest.find, "/?") if place >= 0), default=len(rest)) :]
    path, _, query = target.partition("?")
    return path or "/", query


async def _ask_health(config: HTTPServerConfig) -> HTTPResponse:
    if config.health is None:
        return HTTPResponse(200, "ok\n")
    try:
        answer = config.health()
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, bool):
            return HTTPResponse(200, "ok\n") if answer else refusal(503, "not healthy")
    except Exception as error:
        log.warning("health raised %r", error)
        return refusal(500, "nobody knows")
    if isinstance(answer, HTTPResponse):
        return answer
    if isinstance(answer, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        return HTTPResponse(200, answer)
    log.warning("health returned %s, expected a bool, a str or an HTTPResponse", type(answer).__name__)
    return refusal(500, "nobody knows")
