"""Against client and server of the ``websockets`` package, which do not know SP: a second opinion
on our HTTP and WebSocket."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import websockets.asyncio.client
import websockets.sync.client
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Event
from websockets.trio.client import ClientConnection, connect, unix_connect
from websockets.trio.server import ServerConnection, basic_auth, serve
from websockets.typing import Subprotocol

import sp
from interop.partners import LIMIT, REDIAL, SOON, answer, body_of, next_event
from tests.tls.authority import Authority

URL: Final = "ws://127.0.0.1:0"
PUB, SUB, REQ, REP, BUS = (Subprotocol(f"{name}.sp.nanomsg.org") for name in ("pub", "sub", "req", "rep", "bus"))
ID: Final = b"\x80\0\0\x07"
"""The id of the requests that are written by hand."""
INTERVAL: Final = 0.01
PINGS: Final = 60
OFTEN: Final[dict[str, Any]] = {"ping_interval": INTERVAL, "ping_timeout": PINGS * INTERVAL / 2}
FRAME: Final = 65_536
"""The largest payload that we put into a frame."""
SIZES: Final = (0, 1, 125, 126, 65_535, 65_536, 65_537, 900_000)


class Counting:
    """Counts the pings that a connection has received."""

    pings = 0
    pinged: trio.Event

    def process_event(self, event: Event) -> None:
        if isinstance(event, Frame) and event.opcode is Opcode.PING:
            self.pings += 1
            self.pinged.set()
            self.pinged = trio.Event()
        super().process_event(event)  # type: ignore[misc]

    def __init__(self, *args: Any, **options: Any) -> None:
        self.pinged = trio.Event()
        super().__init__(*args, **options)

    async def wait_pinged(self, n: int = PINGS) -> None:
        while self.pings < n:
            await self.pinged.wait()


class CountingClient(Counting, ClientConnection):
    pass


class CountingServer(Counting, ServerConnection):
    pass


def client(url: str, subprotocol: str = REP, **options: Any) -> Any:
    """Return a context manager for a client at our listener of *url*."""
    settings: dict[str, Any] = {
        "subprotocols": [Subprotocol(subprotocol)],
        "compression": None,
        "ping_interval": None,
        "create_connection": CountingClient,
    } | options
    if url.startswith("ws+unix"):
        return unix_connect(url.partition("://")[2], **settings)
    return connect(url, proxy=None, **settings)


@asynccontextmanager
async def serving(handler: Callable[[Any], Awaitable[None]], subprotocol: str = REP, **options: Any) -> AsyncIterator[str]:
    """A server, and its URL; it agrees to *subprotocol*."""
    settings: dict[str, Any] = {
        "subprotocols": [Subprotocol(subprotocol)],
        "compression": None,
        "ping_interval": None,
        "create_connection": CountingServer,
    } | options
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, handler, 0, host="127.0.0.1", **settings))
        port = server.listeners[0].socket.getsockname()[1]
        yield f"{'wss' if 'ssl' in options else 'ws'}://127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


def http_1_1(context: ssl.SSLContext) -> ssl.SSLContext:
    context.set_alpn_protocols(["http/1.1"])
    return context


@pytest.fixture(scope="module")
def trusting(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.ca.configure_trust(context)
    return http_1_1(context)


@pytest.fixture(scope="module")
def certified(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.ca.issue_cert("127.0.0.1").configure_cert(context)
    return http_1_1(context)


@asynccontextmanager
async def answering(url: str = URL, **options: Any) -> AsyncIterator[tuple[sp.Rep0, str]]:
    """A REP of ours that answers in upper case, and its URL."""
    async with sp.Rep0(**options) as ours, trio.open_nursery() as nursery:
        listener = await ours.listen(url)
        nursery.start_soon(answer, ours)
        yield ours, listener.url
        nursery.cancel_scope.cancel()


async def ask(websocket: Any, body: bytes) -> bytes:
    """Write a request by hand, and return what comes back behind the same id."""
    await websocket.send(ID + body)
    reply = await websocket.recv()
    assert reply[:4] == ID
    return bytes(reply[4:])


async def close_code(websocket: Any) -> int | None:
    """Return the code of the Close that comes next."""
    with pytest.raises(ConnectionClosed) as caught:
        await websocket.recv()
    assert caught.value.rcvd is not None, "the connection ended without a Close"
    return int(caught.value.rcvd.code)


# Its client, our listener.


@pytest.mark.parametrize("scheme", ["ws", "wss", "ws+unix"])
async def test_its_requests_are_answered(scheme: str, tmp_path: Path, authority: Authority, trusting: ssl.SSLContext) -> None:
    url = f"ws+unix://{tmp_path}/socket" if scheme == "ws+unix" else f"{scheme}://127.0.0.1:0"
    tls = authority.server() if scheme == "wss" else None
    options: dict[str, Any] = {"ssl": trusting} if tls else {}
    async with answering(url, tls=tls) as (ours, where):
        async with client(where, **options) as websocket:
            assert websocket.subprotocol == REP
            for size in (*SIZES, LIMIT - 4):
                assert await ask(websocket, body_of(size)) == body_of(size).upper()
            (pipe,) = ours.pipes
            assert pipe.http is not None
            assert "websockets" in pipe.http.headers["User-Agent"]
            assert pipe.http.scheme == ("https" if tls else "http")
            if tls:
                assert pipe.tls is not None
                assert websocket.stream.selected_alpn_protocol() == pipe.tls.alpn == "http/1.1"
        assert websocket.close_code == 1000


def ask_blocking(url: str) -> bytes:
    with websockets.sync.client.connect(url, subprotocols=[REP], proxy=None) as websocket:
        websocket.send(ID + b"question")
        return bytes(websocket.recv())  # type: ignore[arg-type]


def ask_in_asyncio(url: str) -> bytes:
    async def talk() -> bytes:
        async with websockets.asyncio.client.connect(url, subprotocols=[REP], proxy=None) as websocket:
            await websocket.send(ID + b"question")
            return bytes(await websocket.recv())  # type: ignore[arg-type]

    return asyncio.run(talk())


@pytest.mark.parametrize("talk", [ask_blocking, ask_in_asyncio])
async def test_its_other_clients_are_answered_as_well(talk: Callable[[str], bytes]) -> None:
    async with answering() as (_, url):
        assert await trio.to_thread.run_sync(talk, url) == ID + b"QUESTION"


async def test_its_requests_are_answered_when_they_come_all_at_once() -> None:
    async with answering() as (_, url), client(url) as websocket:
        for n in range(500):
            await websocket.send(ID + b"n%d" % n)
        for n in range(500):
            assert await websocket.recv() == ID + b"N%d" % n


async def test_it_gets_what_we_publish_in_order() -> None:
    async with sp.Pub0() as ours:
        listener = await ours.listen(URL)
        async with client(listener.url, PUB, max_queue=None) as websocket:
            await ours.wait_for_peers()
            for n in range(1000):
                await ours.send(b"%d" % n)
                assert await websocket.recv() == b"%d" % n
    assert not ours.statistics().dropped


async def test_we_get_what_it_publishes_in_order_text_and_pieces_included() -> None:
    # Room for all messages, or some might be dropped.
    async with sp.Sub0(topics=b"", inbox_limit=2000) as ours:
        listener = await ours.listen(URL)
        async with client(listener.url, SUB) as websocket:
            await websocket.send("text: é")
            await websocket.send(["in ", "", "pieces: ", "é"])
            await websocket.send([b"a", b"", b"b" * 100_000, b""])
            for n in range(1000):
                await websocket.send(b"%d" % n)
            assert await ours.receive() == "text: é".encode()
            assert await ours.receive() == "in pieces: é".encode()
            assert await ours.receive() == b"a" + b"b" * 100_000
            for n in range(1000):
                assert await ours.receive() == b"%d" % n


async def test_a_request_that_it_sends_as_text_is_answered_in_binary() -> None:
    async with answering() as (_, url), client(url) as websocket:
        await websocket.send("éé" + "question")  # its first bit is set
        assert await websocket.recv() == "éé".encode() + b"QUESTION"


async def test_a_ping_between_the_pieces_of_its_message_is_answered() -> None:
    async with answering() as (_, url), client(url) as websocket:

        async def pieces() -> AsyncIterator[bytes]:
            yield ID[:1]
            for _ in range(10):
                await (await websocket.ping()).wait()
                yield b"\0"
            await (await websocket.ping()).wait()
            yield b""

        await websocket.send(pieces())
        assert await websocket.recv() == ID[:1] + bytes(10)


async def test_our_large_messages_come_in_pieces() -> None:
    async with sp.Pub0() as ours:
        listener = await ours.listen(URL)
        async with client(listener.url, PUB, max_size=(LIMIT, FRAME)) as websocket:
            await ours.wait_for_peers()
            await ours.send(body_of(FRAME))
            assert [len(piece) async for piece in websocket.recv_streaming()] == [FRAME]
            await ours.send(body_of(2 * FRAME + 1))
            assert [len(piece) async for piece in websocket.recv_streaming()] == [FRAME, FRAME, 1]


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_we_agree_to_no_compression(compression: str | None) -> None:
    async with answering() as (_, url), client(url, compression=compression) as websocket:
        assert websocket.protocol.extensions == []
        assert await ask(websocket, b"question") == b"QUESTION"


@pytest.mark.parametrize("offered", [[REP], [BUS, REP], [REP, BUS], [Subprotocol("REP.SP.nanomsg.org")]])
async def test_we_choose_our_sub_protocol_among_those_that_it_offers(offered: list[Subprotocol]) -> None:
    async with answering() as (_, url), client(url, subprotocols=offered) as websocket:
        assert websocket.subprotocol in offered
        assert websocket.subprotocol.lower() == REP
        assert await ask(websocket, b"question") == b"QUESTION"


# Pings there.


async def test_its_pings_are_answered() -> None:
    async with answering() as (_, url), client(url) as websocket:
        for size in (0, 1, 125):
            await (await websocket.ping(body_of(size))).wait()
        assert await ask(websocket, b"question") == b"QUESTION"


async def test_its_keepalive_is_content_with_us() -> None:
    # We answer its pings, and ping as often: that many pings of ours are enough time for it.
    async with answering(ws=sp.WSServerConfig(**OFTEN)) as (_, url), client(url, **OFTEN) as websocket:
        await websocket.wait_pinged()
        assert websocket.latency > 0
        assert await ask(websocket, b"question") == b"QUESTION"


async def test_it_answers_our_pings_and_its_idle_pipe_lives() -> None:
    async with answering(ws=sp.WSServerConfig(**OFTEN)) as (ours, url), client(url) as websocket:
        pipes = ours.pipes
        await websocket.wait_pinged()
        assert ours.pipes == pipes
        assert await ask(websocket, b"question") == b"QUESTION"


async def test_one_that_answers_no_pings_is_ended_and_can_read_why() -> None:
    async with sp.Rep0(ws=sp.WSServerConfig(ping_interval=INTERVAL, ping_timeout=0.1)) as ours:
        events = ours.events()
        listener = await ours.listen(URL)
        async with client(listener.url) as websocket:
            websocket.pause_reading()
            event = await next_event(events, sp.EventKind.DETACHED)
            assert isinstance(event.error, sp.PeerSilent)
            websocket.resume_reading()
            assert await close_code(websocket) == 1011


# Ends there.


async def test_it_is_told_1001_when_our_socket_closes() -> None:
    async with sp.Rep0() as ours:
        listener = await ours.listen(URL)
        async with client(listener.url) as websocket:
            await ours.wait_for_peers()
            await ours.aclose()
            assert await close_code(websocket) == 1001


async def test_it_is_told_1001_when_our_listener_closes_or_is_drained() -> None:
    async with sp.Rep0() as ours:
        listener = await ours.listen(URL)
        async with client(listener.url) as websocket:
            listener.close()
            assert await close_code(websocket) == 1001
        listener = await ours.listen(URL)
        async with client(listener.url) as websocket, trio.open_nursery() as nursery:
            nursery.start_soon(listener.drain)
            assert await close_code(websocket) == 1001


async def test_it_is_told_1001_when_our_pipe_is_closed() -> None:
    async with sp.Rep0() as ours:
        listener = await ours.listen(URL)
        async with client(listener.url) as websocket:
            await ours.wait_for_peers()
            ours.pipes[0].close()
            assert await close_code(websocket) == 1001


@pytest.mark.parametrize(
    ("message", "code", "error"),
    [
        (ID + bytes(LIMIT - 3), 1009, sp.MessageTooLarge),
        ([ID, *[bytes(FRAME)] * 16], 1009, sp.MessageTooLarge),
        (b"", 1002, sp.MalformedMessage),
        (b"\0\0\0\x07", 1002, sp.MalformedMessage),
        ("text", 1002, sp.MalformedMessage),
    ],
    ids=["too large", "too large in pieces", "empty", "no request id", "text"],
)
async def test_it_is_told_what_was_wrong_with_its_message(message: Any, code: int, error: type[Exception]) -> None:
    async with sp.Rep0() as ours:
        events = ours.events()
        listener = await ours.listen(URL)
        async with client(listener.url) as websocket:
            try:
                await websocket.send(message)
            except ConnectionClosed:
                pass  # so quickly
            assert await close_code(websocket) == code
        event = await next_event(events, sp.EventKind.DETACHED)
        assert isinstance(event.error, error)


async def test_text_that_is_not_utf_8_ends_with_1007() -> None:
    async with sp.Bus0() as ours:
        events = ours.events()
        listener = await ours.listen(URL)
        async with client(listener.url, BUS) as websocket:
            await websocket.send(b"\xff", text=True)
            assert await close_code(websocket) == 1007
        event = await next_event(events, sp.EventKind.DETACHED)
        assert isinstance(event.error, sp.MalformedMessage)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "going away"), (1011, "it broke"), (4242, "of its own")])
async def test_its_code_and_reason_are_the_reason_of_our_pipe_s_end(code: int, reason: str) -> None:
    async with sp.Bus0() as ours:
        events = ours.events()
        listener = await ours.listen(URL)
        async with client(listener.url, BUS) as websocket:
            await websocket.send(b"last words")
            await websocket.aclose(code, reason)
            assert websocket.close_code == code, "we answer with the same code"
        event = await next_event(events, sp.EventKind.DETACHED)
        assert isinstance(event.error, sp.PeerClosed)
        assert reason in event.reason
        assert (str(code) in event.reason) is (code != 1000)
        assert await ours.receive() == b"last words"


# Refusals there.


async def refusal(url: str, subprotocol: str = REP, **options: Any) -> Response:
    """Return the answer that a client gets instead of a WebSocket."""
    with pytest.raises(InvalidStatus) as caught:
        async with client(url, subprotocol, **options):
            raise AssertionError("it was let in")
    return caught.value.response


@pytest.mark.parametrize("offered", [[SUB], [SUB, REQ], [Subprotocol("chat")], None], ids=["sub", "several", "chat", "none"])
async def test_one_that_offers_no_sub_protocol_of_ours_is_told_the_right_one(offered: list[Subprotocol] | None) -> None:
    async with sp.Rep0() as ours:
        events = ours.events()
        listener = await ours.listen(URL)
        response = await refusal(listener.url, subprotocols=offered)
        assert response.status_code == 400
        assert response.headers["SP-Expected-Protocol"] == REP
        assert response.body is not None
        assert REP.encode() in response.body
        event = await next_event(events, sp.EventKind.REFUSED)
        assert isinstance(event.error, sp.WrongProtocol)


async def test_a_request_for_an_unknown_path_gets_404_and_the_health_check_200() -> None:
    async with answering(f"{URL}/rep", ws=sp.WSServerConfig(health_path="/healthz", health=lambda: "fine")) as (_, url):
        assert (await refusal(url.replace("/rep", "/req"))).status_code == 404
        health = await refusal(url.replace("/rep", "/healthz"))
        assert (health.status_code, health.body) == (200, b"fine")
        async with client(f"{url}?token=1") as websocket:
            assert await ask(websocket, b"question") == b"QUESTION"


async def test_pages_of_our_origins_may_connect_and_of_others_not() -> None:
    async with answering(ws=sp.WSServerConfig(origins="https://app.example")) as (_, url):
        assert (await refusal(url, origin="https://other.example")).status_code == 403
        async with client(url, origin="https://app.example") as websocket:
            assert await ask(websocket, b"question") == b"QUESTION"


async def test_what_authorize_says_is_its_answer() -> None:
    def authorize(pipe: sp.Pipe) -> bool | sp.HTTPResponse:
        assert pipe.http is not None
        if "Authorization" not in pipe.http.headers:
            return sp.HTTPResponse(401, "who are you?", {"WWW-Authenticate": "Bearer"})
        return pipe.http.headers["Authorization"] == "Bearer right"

    async with answering(authorize=authorize, ws=sp.WSServerConfig(response_headers={"X-Served-By": "one"})) as (_, url):
        response = await refusal(url)
        assert (response.status_code, response.body, response.headers["WWW-Authenticate"]) == (401, b"who are you?", "Bearer")
        assert (await refusal(url, additional_headers={"Authorization": "Bearer wrong"})).status_code == 403
        async with client(url, additional_headers={"Authorization": "Bearer right"}) as websocket:
            assert websocket.response.headers["X-Served-By"] == "one"
            assert await ask(websocket, b"question") == b"QUESTION"


# Our dialer, its server.


async def echo(websocket: Any) -> None:
    async for message in websocket:
        await websocket.send(message)


async def idle(websocket: Any) -> None:
    await websocket.wait_closed()


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_its_echo_answers_our_requests(scheme: str, authority: Authority, certified: ssl.SSLContext) -> None:
    options: dict[str, Any] = {"ssl": certified} if scheme == "wss" else {}
    async with serving(echo, **options) as url, sp.Req0() as ours:
        await ours.dial(url, tls=authority.client() if options else None)
        for size in (*SIZES, LIMIT - 4):
            assert await ours.request(body_of(size)) == body_of(size)
        (pipe,) = ours.pipes
        assert pipe.http is not None
        assert pipe.http.response_headers["Sec-WebSocket-Protocol"] == REP
        if scheme == "wss":
            assert pipe.tls is not None
            assert pipe.tls.alpn == "http/1.1"


async def test_its_echo_answers_our_requests_over_a_unix_socket(tmp_path: Path) -> None:
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await sock.bind(str(tmp_path / "socket"))
    sock.listen()
    async with trio.open_nursery() as nursery, sp.Req0() as ours:
        await nursery.start(partial(serve, echo, listeners=[trio.SocketListener(sock)], subprotocols=[REP]))
        await ours.dial(f"ws+unix://{tmp_path}/socket")
        assert await ours.request(b"question") == b"question"
        nursery.cancel_scope.cancel()


async def test_we_get_what_it_sends_at_once_text_and_pieces_included() -> None:
    async def talk(websocket: Any) -> None:
        await websocket.send(body_of(900_000))
        await websocket.send("text")
        await websocket.send([b"in ", b"", b"pieces"])
        for n in range(1000):
            await websocket.send(b"%d" % n)
        await idle(websocket)

    # Room for all messages, or some might be dropped.
    async with serving(talk, PUB) as url, sp.Sub0(topics=b"", inbox_limit=2000) as ours:
        await ours.dial(url)
        for expected in (body_of(900_000), b"text", b"in pieces", *(b"%d" % n for n in range(1000))):
            assert await ours.receive() == expected


class PromptServer(CountingServer):
    """Sends its answer to the handshake together with its first message."""

    holding = True

    async def send_data(self) -> None:
        if not self.holding:
            async with self.send_lock:
                await self.stream.send_all(b"".join(self.protocol.data_to_send()))


@pytest.mark.parametrize("size", [0, 1, 126, 60_000, 65_536, 200_000, LIMIT])
async def test_a_message_that_comes_with_the_answer_to_our_handshake_arrives(size: int) -> None:
    async def talk(websocket: Any) -> None:
        websocket.holding = False
        await websocket.send(body_of(size))
        await websocket.send(b"next")
        await idle(websocket)

    async with serving(talk, PUB, create_connection=PromptServer) as url, sp.Sub0(topics=b"") as ours:
        await ours.dial(url)
        with trio.fail_after(SOON):
            assert await ours.receive() == body_of(size)
            assert await ours.receive() == b"next"
        assert len(ours.pipes) == 1


async def test_path_query_and_headers_of_our_request_arrive() -> None:
    requests: list[Request] = []

    async def keep(websocket: Any) -> None:
        requests.append(websocket.request)
        await echo(websocket)

    http = sp.WSClientConfig(headers=[("Cookie", "a=b"), ("Origin", "https://app.example"), ("Host", "name.example")])
    async with serving(keep, origins=["https://app.example"]) as url, sp.Req0(ws=http) as ours:
        await ours.dial(f"{url}/a%20b?c=d")
        assert await ours.request(b"question") == b"question"
    (request,) = requests
    assert request.path == "/a%20b?c=d"
    assert request.headers["Cookie"] == "a=b"
    assert request.headers.get_all("Host") == ["name.example"]
    assert request.headers.get_all("Sec-WebSocket-Protocol") == [REP]
    assert "Sec-WebSocket-Extensions" not in request.headers


async def test_its_password_lets_us_in() -> None:
    async with serving(echo, process_request=basic_auth(credentials=("name", "password"))) as url:
        async with sp.Req0() as ours:
            with pytest.raises(sp.DialError, match="401 Unauthorized") as caught:
                await ours.dial(url)
            assert isinstance(caught.value.__cause__, sp.UpgradeRefused)
            assert caught.value.__cause__.response.headers["WWW-Authenticate"].startswith("Basic")
        async with sp.Req0(ws=sp.WSClientConfig(headers={"Authorization": "Basic bmFtZTpwYXNzd29yZA=="})) as ours:
            await ours.dial(url)
            assert await ours.request(b"question") == b"question"


@pytest.mark.parametrize("status", [302, 401, 403, 404, 503])
async def test_its_refusal_is_reported_with_status_and_words(status: int) -> None:
    def refuse(connection: ServerConnection, _: Request) -> Response:
        response = connection.respond(status, "not today\n")
        if status == 302:
            response.headers["Location"] = "ws://elsewhere.example/"
        return response

    async with serving(idle, process_request=refuse) as url, sp.Req0() as ours:
        with pytest.raises(sp.DialError) as caught:
            await ours.dial(url)
        error = caught.value.__cause__
        assert isinstance(error, sp.UpgradeRefused)
        assert (error.response.status, error.response.body) == (status, b"not today\n")
        assert f"the server answered {status}" in str(error)
        assert ("ws://elsewhere.example/" if status == 302 else "not today") in str(error)
        assert error.permanent is (status in (401, 403))


async def test_our_dialer_comes_back_until_it_is_let_in() -> None:
    refused = 0

    def refuse(connection: ServerConnection, _: Request) -> Response | None:
        nonlocal refused
        refused += 1
        return connection.respond(503, "starting\n") if refused < 3 else None

    async with serving(echo, process_request=refuse) as url, sp.Req0(**REDIAL) as ours:
        dialer = await ours.dial(url, wait=False)
        assert await ours.request(b"question") == b"question"
        statistics = dialer.statistics()
        assert (statistics.attempts, statistics.failures) == (3, {"UpgradeRefused": 2})


async def test_a_server_that_names_no_sub_protocol_is_refused() -> None:
    async with serving(idle, subprotocols=None) as url, sp.Req0() as ours:
        with pytest.raises(sp.DialError, match="it named no sub-protocol") as caught:
            await ours.dial(url)
        assert isinstance(caught.value.__cause__, sp.WrongProtocol)
        assert not ours.pipes


async def test_a_server_that_names_another_sub_protocol_is_refused() -> None:
    def rename(_: ServerConnection, __: Request, response: Response) -> None:
        del response.headers["Sec-WebSocket-Protocol"]
        response.headers["Sec-WebSocket-Protocol"] = BUS

    async with serving(idle, process_response=rename) as url, sp.Req0() as ours:
        with pytest.raises(sp.DialError, match=BUS) as caught:
            await ours.dial(url)
        assert isinstance(caught.value.__cause__, sp.WrongProtocol)
        assert not ours.pipes


async def test_a_server_that_is_silent_is_given_up_in_time() -> None:
    async def think(_: ServerConnection, __: Request) -> None:
        await trio.sleep_forever()

    async with serving(idle, process_request=think) as url, sp.Req0(handshake_timeout=0.1) as ours:
        with trio.fail_after(SOON), pytest.raises(sp.DialError, match=r"WebSocket handshake was not complete within 0\.1 s") as caught:
            await ours.dial(url)
        assert isinstance(caught.value.__cause__, sp.GreetingError)


# Pings here.


async def test_its_server_s_keepalive_is_content_with_us() -> None:
    latencies: list[float] = []

    async def watch(websocket: Any) -> None:
        await websocket.wait_pinged()
        latencies.append(websocket.latency)
        await echo(websocket)

    async with serving(watch, **OFTEN) as url, sp.Req0(ws=sp.WSClientConfig(ping_everyone=True, **OFTEN)) as ours:
        dialer = await ours.dial(url)
        assert await ours.request(b"question") == b"question"
        assert dialer.statistics().attached == 1
    assert latencies[0] > 0


async def test_its_server_is_pinged_if_it_is_no_libnanomsg_for_sure() -> None:
    pinged = {"/": trio.Event(), "/marked": trio.Event()}

    async def watch(websocket: Any) -> None:
        await websocket.wait_pinged()
        pinged[websocket.request.path].set()
        await echo(websocket)

    def mark(_: ServerConnection, request: Request, response: Response) -> None:
        if request.path == "/marked":
            response.headers["SP-Implementation"] = "another"

    async with (
        serving(watch, process_response=mark) as url,
        sp.Req0(ws=sp.WSClientConfig(**OFTEN)) as ours,
        sp.Req0(ws=sp.WSClientConfig(**OFTEN)) as others,
    ):
        await ours.dial(url)
        await others.dial(f"{url}/marked")
        await pinged["/marked"].wait()
        assert await others.request(b"question") == b"question"
        assert not pinged["/"].is_set()
        assert len(ours.pipes) == 1


async def test_a_server_that_answers_no_pings_is_given_up_and_can_read_why() -> None:
    codes: list[int | None] = []
    told = trio.Event()
    given_up = trio.Event()

    async def hang(websocket: Any) -> None:
        websocket.pause_reading()
        await given_up.wait()
        websocket.resume_reading()
        codes.append(await close_code(websocket))
        told.set()

    http = sp.WSClientConfig(ping_interval=INTERVAL, ping_timeout=0.1, ping_everyone=True)
    async with serving(hang) as url, sp.Req0(ws=http) as ours:
        events = ours.events()
        await ours.dial(url)
        event = await next_event(events, sp.EventKind.DETACHED)
        assert isinstance(event.error, sp.PeerSilent)
        given_up.set()
        await told.wait()
    assert codes == [1011]


# Ends here.


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "going away"), (1011, "it broke"), (1012, "restart"), (4242, "its own")])
async def test_a_request_goes_to_the_next_connection_when_its_server_closes_with(code: int, reason: str) -> None:
    served = 0

    async def leave_first(websocket: Any) -> None:
        nonlocal served
        served += 1
        request = await websocket.recv()
        if served == 1:
            await websocket.aclose(code, reason)
        else:
            await websocket.send(request)

    async with serving(leave_first) as url, sp.Req0(**REDIAL) as ours:
        events = ours.events()
        await ours.dial(url)
        assert await ours.request(b"question") == b"question"
        event = await next_event(events, sp.EventKind.DETACHED)
        assert isinstance(event.error, sp.PeerClosed)
        assert reason in event.reason
        assert (str(code) in event.reason) is (code != 1000)


async def test_its_server_is_told_1000_when_our_socket_closes() -> None:
    codes: list[int | None] = []
    told = trio.Event()

    async def watch(websocket: Any) -> None:
        codes.append(await close_code(websocket))
        told.set()

    async with serving(watch) as url:
        async with sp.Req0() as ours:
            await ours.dial(url)
        await told.wait()
    assert codes == [1000]


async def test_its_server_is_told_1009_when_its_message_is_too_large_for_us() -> None:
    codes: list[int | None] = []
    told = trio.Event()

    async def flood(websocket: Any) -> None:
        try:
            await websocket.send(bytes(LIMIT + 1))
        except ConnectionClosed:
            pass
        if not codes:
            codes.append(await close_code(websocket))
            told.set()

    async with serving(flood, BUS) as url, sp.Bus0(**REDIAL) as ours:
        events = ours.events()
        await ours.dial(url)
        event = await next_event(events, sp.EventKind.DETACHED)
        assert isinstance(event.error, sp.MessageTooLarge)
        await told.wait()
    assert codes == [1009]
