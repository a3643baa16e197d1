"""ws and wss beyond the contract: pings, HTTP of dialers and listeners, draining, the end of a
WebSocket.
"""

from __future__ import annotations

import functools
import gc
import logging
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import sp
from sp.transports import tcp_info
from tests.transports.ends import authority, client_tls, dial, server_tls
from tests.transports.web import (
    BINARY,
    BROWSER,
    CLOSE,
    PING,
    PONG,
    connect_plainly,
    receive_answer,
    receive_close,
    receive_ws_frame,
    request,
    upgrade,
    ws_frame,
)
from tests.transports.wire import expect, receive_end, reset, until

PUB, REP, BUS, SUB = "pub.sp.nanomsg.org", "rep.sp.nanomsg.org", "bus.sp.nanomsg.org", "sub.sp.nanomsg.org"
K = sp.EventKind


@pytest.fixture(params=["ws", "wss"])
def url(request: pytest.FixtureRequest) -> str:
    return f"{request.param}://127.0.0.1:0/s"


async def jump(clock: MockClock, seconds: float) -> None:
    """Let *seconds* pass, and all tasks do what is due then."""
    await trio.testing.wait_all_tasks_blocked(0.005)
    clock.jump(seconds)
    await trio.testing.wait_all_tasks_blocked(0.005)


# Pings.


@pytest.mark.slow
async def test_idle_pipes_of_ours_ping_each_other_and_live(url: str, mock_clock: MockClock) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as req:
        await dial(req, rep.url)
        await rep.wait_for_peers()
        for _ in range(30):  # ten minutes
            await jump(mock_clock, 20)
        assert req.pipes[0].error is None
        assert rep.pipes[0].error is None
        assert rep.statistics().messages_received == req.statistics().messages_received == 0


async def test_pings_come_every_interval_whatever_else_is_sent(mock_clock: MockClock) -> None:
    async with sp.Bus0(listen="ws://127.0.0.1:0", ws=sp.WSServerConfig(ping_interval=7)) as bus:
        stream = await upgrade(bus.url, BUS, *BROWSER)
        await bus.wait_for_peers()
        for _ in range(5):
            await bus.send(b"busy")
            assert await receive_ws_frame(stream) == (BINARY, b"busy")
            await stream.send_all(ws_frame(BINARY, b"busy as well"))
            assert await bus.receive() == b"busy as well"
            await jump(mock_clock, 7)
            assert await receive_ws_frame(stream) == (PING, b"")
            await stream.send_all(ws_frame(PONG))
        await stream.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("timeout", [3.0, 20.0, 45.0])
async def test_a_peer_that_says_nothing_after_a_ping_is_given_up_with_that_reason(url: str, timeout: float, mock_clock: MockClock) -> None:
    http = sp.WSServerConfig(ping_timeout=timeout)
    async with sp.Bus0(listen=url, tls=server_tls(url), ws=http) as bus, sp.Bus0() as other:
        events = bus.events()
        address = bus.url
        await dial(other, address)
        silent = await upgrade(address, BUS, *BROWSER)
        await bus.wait_for_peers(2)
        began = trio.current_time()
        while len(bus.pipes) == 2:
            await jump(mock_clock, 1)
        assert trio.current_time() - began == pytest.approx(20 + timeout, abs=1.5)
        event = await expect(events, K.DETACHED)
        assert isinstance(event.error, sp.PeerSilent)
        assert f"within {timeout:g} s" in event.reason
        assert await receive_close(silent) == (1011, "no answer to a ping")
        await bus.send(b"still here")
        assert await other.receive() == b"still here"
        await silent.aclose()


async def test_a_peer_that_answers_no_ping_but_sends_messages_lives(mock_clock: MockClock) -> None:
    async with sp.Bus0(listen="ws://127.0.0.1:0") as bus:
        stream = await upgrade(bus.url, BUS, *BROWSER)
        await bus.wait_for_peers()
        for number in range(10):
            await jump(mock_clock, 20)
            await stream.send_all(ws_frame(BINARY, b"%d" % number))
            assert await bus.receive() == b"%d" % number
        await stream.aclose()


@pytest.mark.slow
async def test_an_application_that_does_not_receive_for_long_loses_no_pipe(url: str, mock_clock: MockClock) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url), inbox_limit=1) as rep, sp.Req0(resend_after=None) as req:
        await dial(req, rep.url)
        contexts = [req.context() for _ in range(5)]
        for number, context in enumerate(contexts):
            await context.send(b"%d" % number)
        for _ in range(30):
            await jump(mock_clock, 20)
        assert rep.pipes[0].error is None
        for number, context in enumerate(contexts):
            assert await rep.receive() == b"%d" % number
            await rep.send(b"done")
            assert await context.receive() == b"done"


@pytest.mark.parametrize("everyone", [False, True])
async def test_a_peer_that_may_be_libnanomsg_is_pinged_only_with_ping_everyone(everyone: bool, mock_clock: MockClock) -> None:
    async with sp.Bus0(listen="ws://127.0.0.1:0", ws=sp.WSServerConfig(ping_everyone=everyone, ping_timeout=1000)) as bus:
        stream = await upgrade(bus.url, BUS)
        await bus.wait_for_peers()
        for _ in range(3):
            await jump(mock_clock, 20)
        await bus.send(b"message")
        opcodes = []
        while (frame := await receive_ws_frame(stream))[0] != BINARY:
            opcodes.append(frame[0])
        assert opcodes == ([PING] * 3 if everyone else [])
        await stream.aclose()


async def test_no_ping_that_was_not_sent_is_missed(mock_clock: MockClock) -> None:
    async with sp.Bus0(listen="ws://127.0.0.1:0") as bus, trio.open_nursery() as nursery:
        stream = await upgrade(bus.url, BUS, *BROWSER)
        await bus.wait_for_peers()
        nursery.start_soon(bus.listeners[0].drain, 100)
        assert await receive_close(stream) == (1001, "")
        for _ in range(9):
            await jump(mock_clock, 10)
        assert bus.pipes[0].error is None  # no ping follows a Close
        await jump(mock_clock, 10)
        await stream.aclose()


@pytest.mark.parametrize("agent", ["Go-http-client/1.1", "Mozilla/5.0"])
async def test_a_silent_mangos_is_pinged_and_not_given_up(agent: str, mock_clock: MockClock) -> None:
    # It does not read while its application does not receive.
    async with sp.Bus0(listen="ws://127.0.0.1:0") as bus:
        stream = await upgrade(bus.url, BUS, f"User-Agent: {agent}")
        await bus.wait_for_peers()
        for _ in range(6):
            await jump(mock_clock, 20)
        assert (await receive_ws_frame(stream))[0] == PING
        assert len(bus.pipes) == (1 if agent.startswith("Go") else 0)
        await stream.aclose()


@pytest.mark.skipif(sys.platform != "linux", reason="needs TCP_INFO")
async def test_a_mangos_that_does_not_even_acknowledge_a_ping_is_given_up(mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ping on its way keeps the kernel from asking whether the peer is there."""
    repeated = iter(range(1000))

    def nothing(_: bytes) -> tcp_info.TCPInfo:
        return tcp_info.TCPInfo(in_flight=True, repeated=next(repeated), heard=1000)

    async with sp.Bus0(listen="ws://127.0.0.1:0", tcp_keepalive=60) as bus:
        events = bus.events()
        stream = await upgrade(bus.url, BUS, "User-Agent: Go-http-client/1.1")
        await bus.wait_for_peers()
        await jump(mock_clock, 20)
        monkeypatch.setattr(tcp_info, "decode", nothing)
        for _ in range(3):
            await jump(mock_clock, 20)
        assert len(bus.pipes) == 1
        await jump(mock_clock, 20)
        event = await expect(events, K.DETACHED)
        assert isinstance(event.error, sp.PeerSilent)
        assert "acknowledged nothing for 60 s" in event.reason
        await stream.aclose()


async def test_a_dialer_pings_as_well(mock_clock: MockClock) -> None:
    never = sp.WSServerConfig(ping_interval=None)
    async with sp.Bus0(listen="ws://127.0.0.1:0", ws=never) as bus, sp.Bus0() as other:
        await other.dial(bus.url)
        await bus.wait_for_peers()
        (pipe,) = bus.pipes
        pinged: list[bytes] = []
        connection: Any = bus._core.task_of(pipe).connection
        link = connection._link
        real = link.send

        def send(data: bytes) -> int:
            pinged.append(bytes(data))
            sent: int = real(data)
            return sent

        link.send = send
        await jump(mock_clock, 20)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert pinged == [bytes((0x80 | PONG, 0))]  # the answer to a ping


async def test_without_an_interval_no_peer_is_pinged(mock_clock: MockClock) -> None:
    async with sp.Bus0(listen="ws://127.0.0.1:0", ws=sp.WSServerConfig(ping_interval=None)) as bus:
        stream = await upgrade(bus.url, BUS, *BROWSER)
        await bus.wait_for_peers()
        for _ in range(10):
            await jump(mock_clock, 20)
        await bus.send(b"message")
        assert await receive_ws_frame(stream) == (BINARY, b"message")
        await stream.aclose()


@pytest.mark.slow
async def test_pings_that_are_due_while_closing_do_no_harm(url: str) -> None:
    often = 0.0005
    with trio.fail_after(20):
        for _ in range(30):
            async with (
                sp.Bus0(listen=url, tls=server_tls(url), ws=sp.WSServerConfig(ping_interval=often)) as bus,
                sp.Bus0(ws=sp.WSClientConfig(ping_interval=often)) as other,
            ):
                await dial(other, bus.url)
                await other.send(b"x" * 70_000)
                assert await bus.receive() == b"x" * 70_000


async def test_the_answer_to_a_ping_breaks_no_frame_while_much_waits_to_be_written() -> None:
    async with sp.Pub0(listen="ws://127.0.0.1:0") as pub:
        with trio.fail_after(10):
            stream = await upgrade(pub.url, PUB)
            await pub.wait_for_peers()
            body = bytes(range(256)) * 3000
            for _ in range(6):  # more than the kernel takes
                await pub.send(body)
            await stream.send_all(ws_frame(PING, b"are you there?"))
            got = b""
            answers: list[bytes] = []
            while len(got) < 6 * len(body) or not answers:
                opcode, payload = await receive_ws_frame(stream)
                if opcode == PONG:
                    answers.append(payload)
                else:
                    got += payload
            assert got == body * 6
            assert answers == [b"are you there?"]
            await stream.aclose()


# HTTP.


async def test_both_sides_see_the_handshake(url: str) -> None:
    server = sp.WSServerConfig(response_headers={"X-Served-By": "backend 7"})
    client = sp.WSClientConfig(headers=[("Authorization", "Bearer secret"), ("Cookie", "a=1"), ("X-Twice", "1"), ("X-Twice", "2")])
    async with sp.Rep0(listen=url, tls=server_tls(url), ws=server) as rep, sp.Req0(tls=client_tls(url), ws=client) as req:
        address = rep.url
        await req.dial(f"{address}?token=7&x=%20")
        await rep.wait_for_peers()
        for pipe in (rep.pipes[0], req.pipes[0]):
            http = pipe.http
            assert http is not None
            assert (http.path, http.query) == ("/s", "token=7&x=%20")
            assert http.scheme == ("https" if url.startswith("wss") else "http")
            assert http.headers["authorization"] == "Bearer secret"
            assert http.headers["COOKIE"] == "a=1"
            assert http.headers["x-twice"] == "1, 2"
            assert [value for name, value in http.headers.raw if name == "X-Twice"] == ["1", "2"]
            assert http.headers["host"] == address.split("/")[2]
            assert http.headers["Sec-WebSocket-Protocol"] == REP
            assert http.response_headers["X-Served-By"] == "backend 7"
            assert "secret" not in repr(http) + repr(http.headers) + repr(pipe)
            assert not http.via_trusted_proxy
            assert pipe.proxy_address is None
            assert pipe.proxy is None


async def test_authorize_may_answer_before_there_is_a_websocket(url: str) -> None:
    def authorize(pipe: sp.Pipe) -> bool | sp.HTTPResponse:
        assert pipe.http is not None
        if pipe.http.headers.get("Authorization") == "Bearer good":
            return True
        return sp.HTTPResponse(401, "who are you?", {"WWW-Authenticate": "Bearer"})

    async with sp.Rep0(listen=url, tls=server_tls(url), authorize=authorize) as rep, sp.Req0(tls=client_tls(url)) as req:
        events = rep.events()
        address = rep.url
        with pytest.raises(sp.DialError, match="401 Unauthorized: 'who are you"):
            await req.dial(address)
        with pytest.raises(sp.DialError) as caught:
            await req.dial(address, ws=sp.WSClientConfig(headers={"Authorization": "Bearer bad"}))
        refused = caught.value.__cause__
        assert isinstance(refused, sp.UpgradeRefused)
        assert refused.permanent
        assert refused.response.status == 401
        assert refused.response.body == b"who are you?"
        assert refused.response.headers["www-authenticate"] == "Bearer"
        event = await expect(events, K.REFUSED)
        assert isinstance(event.error, sp.PipeRefused)
        assert "authorize answered 401" in event.reason
        await req.dial(address, ws=sp.WSClientConfig(headers={"Authorization": "Bearer good"}))
        assert rep.statistics().listeners[0].failures == {"PipeRefused": 2}


async def test_no_message_is_delivered_before_authorize_has_decided() -> None:
    decide = trio.Event()

    async def authorize(pipe: sp.Pipe) -> bool:
        await decide.wait()
        return False

    async with sp.Bus0(listen="ws://127.0.0.1:0", authorize=authorize) as bus:
        with trio.fail_after(5):
            events = bus.events()
            stream = await connect_plainly(bus.url)
            await stream.send_all(request("/", BUS) + ws_frame(BINARY, b"too early"))
            await trio.testing.wait_all_tasks_blocked(0.02)
            decide.set()
            status, _, _ = await receive_answer(stream)
            assert status == 403
            await expect(events, K.REFUSED)
            assert bus.statistics().messages_received == 0
            await stream.aclose()


@asynccontextmanager
async def answering(answer: bytes | Callable[[trio.SocketStream, bytes], Awaitable[None]]) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that sends *answer* to any head; its ``host:port``, and the heads that have come."""
    heads: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            more = await stream.receive_some()
            if not more:
                return
            head += more
        heads.append(head)
        try:
            if callable(answer):
                await answer(stream, head)
            else:
                await stream.send_all(answer)
                await stream.send_eof()
                await receive_end(stream)
        except trio.BrokenResourceError:
            pass  # the client has read enough
        finally:
            await stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(lambda task_status: trio.serve_tcp(serve, 0, host="127.0.0.1", task_status=task_status))
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}", heads
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "error", "permanent", "words"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nnope", sp.UpgradeRefused, True, "401 Unauthorized: 'nope'"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", sp.UpgradeRefused, True, "403 Forbidden"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n\r\n<html>", sp.UpgradeRefused, False, "404 Not Found"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", sp.UpgradeRefused, False, "500 Oops"),
        (b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nlater\r\n0\r\n\r\n", sp.UpgradeRefused, False, "503 Busy: 'later'"),
        (
            b"HTTP/1.1 302 Found\r\nLocation: wss://else.where/\r\nContent-Length: 0\r\n\r\n",
            sp.UpgradeRefused,
            False,
            "'wss://else.where/'",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", sp.UpgradeRefused, False, "200 OK"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            sp.GreetingError,
            False,
            "Sec-WebSocket-Accept",
        ),
        (b"\0SP\0\0\x31\0\0" * 3 + b"\n", sp.GreetingError, False, "SP"),
        (b"HTTP/1.1 101", sp.PeerClosed, False, "before its answer was complete"),
        (b"x" * 100_000, sp.GreetingError, False, "expected no more than"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", sp.GreetingError, False, "headers"),
    ],
    ids=["401", "403", "404", "500", "503", "302", "200", "bad accept", "no HTTP", "cut off", "long line", "many headers"],
)
async def test_a_refused_upgrade_is_reported_with_status_and_body(
    answer: bytes, error: type[sp.Error], permanent: bool, words: str
) -> None:
    async with answering(answer) as (place, _), sp.Req0() as req:
        with trio.fail_after(5), pytest.raises(sp.DialError) as caught:
            await req.dial(f"ws://{place}/s")
        cause = caught.value.__cause__
        assert type(cause) is error
        assert cause.permanent is permanent
        assert words in str(cause)


@pytest.mark.parametrize("status", [401, 403, 407])
@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_where_tls_is_asked_for_a_proxys_refusal_in_plain_text_is_not_permanent(scheme: str, status: int) -> None:
    async with answering(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status) as (place, _), sp.Req0() as req:
        url = f"{scheme}://service.example.org/s"
        with trio.fail_after(5), pytest.raises(sp.DialError) as caught:
            await req.dial(url, tls=client_tls(url), ws=sp.WSClientConfig(proxy=f"http://{place}"))
        cause = caught.value.__cause__
        assert isinstance(cause, sp.UpgradeRefused)
        assert cause.permanent is (scheme == "ws")


@pytest.mark.parametrize("status", [*range(400, 412), *range(421, 432), 451, *range(500, 512)])
async def test_a_dialer_waits_long_only_where_the_request_itself_is_wrong(status: int) -> None:
    answer = f"HTTP/1.1 {status} \r\nContent-Length: 0\r\n\r\n".encode()
    async with answering(answer) as (place, _), sp.Req0() as req:
        with trio.fail_after(5), pytest.raises(sp.DialError) as caught:
            await req.dial(f"ws://{place}/s")
        cause = caught.value.__cause__
        assert isinstance(cause, sp.UpgradeRefused)
        assert cause.permanent is (status in (400, 401, 403, 405, 407, 410, 426, 501, 505))


async def _and_stay(stream: trio.SocketStream) -> None:
    await receive_end(stream)


async def _and_trickle(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(b".")
        await trio.sleep(0.3)


async def _and_reset(stream: trio.SocketStream) -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)  # the client reads what was sent before
    reset(stream)


async def _and_flood(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(bytes(64 * 1024))


@pytest.mark.slow
@pytest.mark.parametrize("by_proxy", [False, True], ids=["server", "proxy"])
@pytest.mark.parametrize(
    ("head", "behave"),
    [
        pytest.param(b"HTTP/1.1 401 No\r\nContent-Length: 100\r\n", _and_stay, id="cut off"),
        pytest.param(b"HTTP/1.0 401 No\r\n", _and_stay, id="open"),
        pytest.param(b"HTTP/1.1 401 No\r\nContent-Length: 100\r\n", _and_reset, id="reset"),
        pytest.param(b"HTTP/1.1 401 No\r\nContent-Length: 1000000\r\n", _and_trickle, id="trickling"),
        pytest.param(b"HTTP/1.1 103 Hints\r\n\r\nHTTP/1.0 401 No\r\n", _and_flood, id="endless"),
    ],
)
async def test_a_refusal_is_reported_soon_whatever_its_body_does(
    head: bytes, behave: Callable[[trio.SocketStream], Awaitable[None]], by_proxy: bool, mock_clock: MockClock
) -> None:
    async def refuse(stream: trio.SocketStream, _: bytes) -> None:
        await stream.send_all(head + b"\r\nnope\n")
        await behave(stream)

    async with answering(refuse) as (place, _), sp.Req0(redial_max=20) as req:
        http = sp.WSClientConfig(proxy=f"http://{place}") if by_proxy else None
        dialer = await req.dial("ws://far.invalid/" if by_proxy else f"ws://{place}/", wait=False, ws=http)
        for _ in range(12):
            await jump(mock_clock, 0.1)
        await until(lambda: dialer.error)
        error = dialer.error
        assert isinstance(error, sp.UpgradeRefused)
        assert error.response.status == 401
        assert error.response.body.startswith(b"nope\n")
        assert "answered 401 No: 'nope'" in str(error)
        assert (place in str(error)) is by_proxy
        # The user has to change something, so the next attempt waits long.
        await jump(mock_clock, 18)
        assert dialer.statistics().attempts == 1
        await jump(mock_clock, 2)
        await until(lambda: dialer.statistics().attempts == 2)


@pytest.mark.parametrize("farewell", ["close_notify", "FIN", "RST"])
@pytest.mark.parametrize("body", [b"\r\nnope\n", b"Content-Length: 100\r\n\r\nnope\n"], ids=["open", "cut off"])
async def test_a_refusal_over_tls_is_reported_however_the_stream_ends(farewell: str, body: bytes, tmp_path: Path) -> None:
    async def refuse(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.0 401 No\r\n" + body)
        if farewell == "close_notify":
            await stream.aclose()
        elif farewell == "FIN":
            await stream.transport_stream.aclose()
        else:
            await trio.testing.wait_all_tasks_blocked(0.01)  # the client reads what was sent before
            reset(stream)

    (tmp_path / "server.pem").write_bytes(authority().issue("127.0.0.1"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.pem")
    async with sp.Req0(tls=client_tls("wss://")) as req, trio.open_nursery() as nursery:
        serve = functools.partial(trio.serve_ssl_over_tcp, refuse, 0, context, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        port = listener.transport_listener.socket.getsockname()[1]
        with trio.fail_after(5), pytest.raises(sp.DialError) as caught:
            await req.dial(f"wss://127.0.0.1:{port}/")
        cause = caught.value.__cause__
        assert isinstance(cause, sp.UpgradeRefused)
        assert (cause.response.status, cause.response.body, cause.permanent) == (401, b"nope\n", True)
        nursery.cancel_scope.cancel()


async def test_a_client_that_is_still_sending_its_request_gets_the_refusal() -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        await stream.send_all(b"HTTP/1.1 431 Too Large\r\nContent-Length: 5\r\n\r\nless\n")
        await stream.aclose()  # with a reset, since much is unread

    cookies = [("Cookie", "x" * 100_000)] * 100
    async with sp.Req0(ws=sp.WSClientConfig(headers=cookies)) as req, trio.open_nursery() as nursery:
        (listener,) = await nursery.start(functools.partial(trio.serve_tcp, refuse, 0, host="127.0.0.1"))
        with trio.fail_after(5), pytest.raises(sp.DialError, match="431 Too Large: 'less'"):
            await req.dial(f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/")
        nursery.cancel_scope.cancel()


async def test_authorize_may_say_when_to_come_again(url: str, mock_clock: MockClock) -> None:
    refusals = [sp.HTTPResponse(503, "warming up", {"Retry-After": "7"})]
    authorize = lambda _: refusals.pop() if refusals else True  # noqa: E731
    async with sp.Rep0(listen=url, tls=server_tls(url), authorize=authorize) as rep, sp.Req0(tls=client_tls(url)) as req:
        dialer = await req.dial(rep.url, wait=False)
        await until(lambda: dialer.error)
        assert isinstance(dialer.error, sp.UpgradeRefused)
        assert dialer.error.retry_after == 7
        await jump(mock_clock, 6.9)
        assert dialer.statistics().attempts == 1
        await jump(mock_clock, 0.2)
        await until(lambda: dialer.pipe)


async def test_a_refusal_is_reported_within_a_short_handshake_timeout(mock_clock: MockClock) -> None:
    async def refuse(stream: trio.SocketStream, _: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\n")
        await trio.sleep_forever()

    async with answering(refuse) as (place, heads), sp.Req0(handshake_timeout=0.5) as req:
        dialer = await req.dial(f"ws://{place}/", wait=False)
        await until(lambda: heads)
        await jump(mock_clock, 0.25)
        await until(lambda: dialer.error)
        assert isinstance(dialer.error, sp.UpgradeRefused)


async def test_a_dial_that_is_given_up_while_a_refusal_comes_leaves_nothing(mock_clock: MockClock) -> None:
    async def refuse(stream: trio.SocketStream, _: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\n")
        await receive_end(stream)

    async with answering(refuse) as (place, heads), sp.Req0() as req:
        with trio.move_on_after(0.5) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(req.dial, f"ws://{place}/")
                await until(lambda: heads)
                await jump(mock_clock, 0.5)
        assert scope.cancelled_caught
        await until(lambda: not req.dialers)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ("Retry-After: 7", 7),
        ("Retry-After: 0", 0.2),
        ("Retry-After: 100000", 20),
        ("Retry-After: soon", 0.2),
        ("Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nRetry-After: Sun, 06 Nov 1994 08:49:42 GMT", 5),
        ("Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nRetry-After: Sun, 06 Nov 1994 08:49:37 GMT", 0.2),
        ("Retry-After: Fri, 31 Dec 9999 23:59:59 GMT", 20),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_server_says_when_to_come_again(status: int, headers: str, wait: float, mock_clock: MockClock) -> None:
    answer = f"HTTP/1.1 {status} Busy\r\n{headers}\r\nContent-Length: 0\r\n\r\n".encode()
    async with answering(answer) as (place, _), sp.Req0(redial_max=20) as req:
        dialer = await req.dial(f"ws://{place}/", wait=False)
        await until(lambda: dialer.error)
        if wait > 1:
            await jump(mock_clock, wait - 0.01)
            assert dialer.statistics().attempts == 1
            await jump(mock_clock, 0.02)
        else:  # the first wait is drawn from 0.1 to 0.2 s
            await jump(mock_clock, wait)
        await until(lambda: dialer.statistics().attempts == 2)


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_where_tls_is_asked_for_a_proxy_does_not_say_in_plain_text_when_to_come_again(scheme: str, mock_clock: MockClock) -> None:
    answer = b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"
    async with answering(answer) as (place, _), sp.Req0(redial_max=20) as req:
        url = f"{scheme}://service.example.org/s"
        dialer = await req.dial(url, wait=False, tls=client_tls(url), ws=sp.WSClientConfig(proxy=f"http://{place}"))
        await until(lambda: dialer.error)
        assert isinstance(dialer.error, sp.UpgradeRefused)
        assert dialer.error.retry_after == (7 if scheme == "ws" else 0)
        await jump(mock_clock, 0.3)
        await until(lambda: dialer.statistics().attempts == (1 if scheme == "ws" else 2))


async def test_after_many_failures_a_short_retry_after_does_not_count(mock_clock: MockClock) -> None:
    answer = b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
    async with answering(answer) as (place, _), sp.Req0(redial_min=4, redial_max=4) as req:
        dialer = await req.dial(f"ws://{place}/", wait=False)
        await until(lambda: dialer.error)
        await jump(mock_clock, 3.99)
        assert dialer.statistics().attempts == 1
        await jump(mock_clock, 0.02)
        await until(lambda: dialer.statistics().attempts == 2)


async def test_a_server_that_begins_an_answer_and_stops_is_reported_with_what_it_said(mock_clock: MockClock) -> None:
    async def begin(stream: trio.SocketStream, _: bytes) -> None:
        # Libnanomsg ends it there.
        await stream.send_all(b"HTTP/1.1 400 Incompatible Socket Type\r\nSec-WebSocket-Version: 13\r\n")
        await trio.sleep_forever()

    async with answering(begin) as (place, heads), sp.Req0() as req, trio.open_nursery() as nursery:
        failed: list[sp.DialError] = []

        async def try_it() -> None:
            with pytest.raises(sp.DialError) as caught:
                await req.dial(f"ws://{place}/s")
            failed.append(caught.value)

        nursery.start_soon(try_it)
        await until(lambda: heads)
        await jump(mock_clock, 10)
        await until(lambda: failed)
        assert "400 Incompatible Socket Type" in str(failed[0])
        assert "within 10 s" in str(failed[0])


async def test_a_server_that_agrees_to_no_sub_protocol_is_not_believed() -> None:
    async def agree(stream: trio.SocketStream, head: bytes) -> None:
        from websockets.utils import accept_key

        key = next(line.partition(b": ")[2] for line in head.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key")).decode()
        answer = (
            f"HTTP/1.1 101 OK\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Accept: {accept_key(key)}\r\n\r\n"
        )
        await stream.send_all(answer.encode())
        await receive_end(stream)

    async with answering(agree) as (place, _), sp.Req0() as req:
        with trio.fail_after(5), pytest.raises(sp.DialError, match="did not agree to speak rep.sp.nanomsg.org") as caught:
            await req.dial(f"ws://{place}/s")
        assert isinstance(caught.value.__cause__, sp.WrongProtocol)


async def test_a_host_of_ones_own_takes_the_place_of_the_urls() -> None:
    async with answering(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n") as (place, heads), sp.Req0() as req:
        with trio.fail_after(5), pytest.raises(sp.DialError):
            await req.dial(f"ws://{place}/s", ws=sp.WSClientConfig(headers={"Host": "inner.example", "User-Agent": "mine"}))
        lines = heads[0].decode().split("\r\n")
        assert lines[:2] == ["GET /s HTTP/1.1", "Host: inner.example"]
        assert "User-Agent: mine" in lines
        assert len([line for line in lines if line.lower().startswith(("host:", "user-agent:"))]) == 2
        assert not [line for line in lines if line.lower().startswith("sec-websocket-extensions")]


# Through a proxy.


@asynccontextmanager
async def proxying(status: str = "200 OK", extra: bytes = b"") -> AsyncIterator[tuple[str, list[bytes]]]:
    """A proxy for CONNECT, ``host:port`` of it, and the heads that it has seen."""

    async def serve(stream: trio.SocketStream, head: bytes) -> None:
        await stream.send_all(f"HTTP/1.0 {status}\r\nVia: test\r\n\r\n".encode() + extra)
        if not status.startswith("200"):
            await stream.send_eof()
            return
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        here = host.strip("[]").replace("far.invalid", "127.0.0.1")
        async with await trio.open_tcp_stream(here, int(port)) as far, trio.open_nursery() as nursery:
            nursery.start_soon(_pass_on, stream, far)
            nursery.start_soon(_pass_on, far, stream)

    async with answering(serve) as found:
        yield found


async def _pass_on(source: trio.SocketStream, target: trio.SocketStream) -> None:
    try:
        async for data in source:
            await target.send_all(data)
        await target.send_eof()
    except trio.BrokenResourceError:
        pass


async def test_a_proxy_is_asked_to_connect_with_its_credentials(url: str) -> None:
    async with proxying() as (place, heads), sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0(tls=client_tls(url)) as req:
        address = rep.url
        with trio.fail_after(10):
            await req.dial(address, ws=sp.WSClientConfig(proxy=f"http://me:p%40ss@{place}"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(req.send, b"question")
                assert await rep.receive() == b"question"
                await rep.send(b"answer")
                assert await req.receive() == b"answer"
        target = address.split("/")[2]
        assert heads == [f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Basic bWU6cEBzcw==\r\n\r\n".encode()]


@pytest.mark.parametrize(
    ("status", "extra", "words"),
    [
        ("407 Proxy Authentication Required", b"", "answered 407 Proxy Authentication Required"),
        ("502 Bad Gateway", b"", "answered 502 Bad Gateway"),
        ("200 OK", b"more than asked for", "sent more than its answer"),
        ("twohundred", b"", "did not answer in HTTP"),
    ],
)
async def test_a_proxy_that_does_not_do_it_is_named(status: str, extra: bytes, words: str) -> None:
    async with proxying(status, extra) as (place, _), sp.Req0() as req:
        with trio.fail_after(5), pytest.raises(sp.DialError, match=words) as caught:
            await req.dial("ws://far.invalid/", ws=sp.WSClientConfig(proxy=f"http://me:secret@{place}"))
        assert place in str(caught.value)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("variable", "scheme"), [("HTTPS_PROXY", "wss"), ("HTTP_PROXY", "ws"), ("https_proxy", "wss")])
async def test_the_environment_names_a_proxy_unless_it_excepts_the_host(
    variable: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    url = f"{scheme}://127.0.0.1:0"
    tls = authority().client(server_name="127.0.0.1") if scheme == "wss" else None
    async with proxying() as (place, heads), sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0(tls=tls) as req:
        monkeypatch.setenv(variable, f"http://{place}")
        here = rep.url
        far = here.replace("127.0.0.1", "far.invalid")
        with trio.fail_after(10):
            await req.dial(far)
            assert len(heads) == 1
            assert (req.pipes[0].remote_address, req.pipes[0].proxy_address) == (far.split("/")[2], place)
            await req.dial(here)  # no proxy could reach this machine for us
            assert len(heads) == 1
            with pytest.raises(sp.DialError):
                await req.dial(far, ws=sp.WSClientConfig(proxy=None))
            monkeypatch.setenv("NO_PROXY", "example,.invalid")
            with pytest.raises(sp.DialError):
                await req.dial(far)
            assert len(heads) == 1
            monkeypatch.delenv("NO_PROXY")
            monkeypatch.setenv(variable, "socks5://u:secret@127.0.0.1:1")
            with pytest.raises(sp.DialError, match="socks5:// is not supported") as caught:
                await req.dial(far)
            assert "secret" not in str(caught.value)


async def test_a_proxy_is_not_told_of_a_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxying("502 Bad Gateway") as (place, heads), sp.Req0() as req:
        with trio.fail_after(10):
            with pytest.raises(sp.DialError, match="502"):
                await req.dial("ws://[fe80::1%25lo]:81/", ws=sp.WSClientConfig(proxy=f"http://{place}"))
            assert heads == [b"CONNECT [fe80::1]:81 HTTP/1.1\r\nHost: [fe80::1]:81\r\n\r\n"]
            monkeypatch.setenv("http_proxy", f"http://{place}")
            with pytest.raises(sp.DialError):
                await req.dial("ws://[fe80::1%25lo]:81/")  # no proxy could reach that for us
            assert len(heads) == 1


async def test_a_proxy_may_have_a_zone() -> None:
    async with sp.Req0() as req:
        with trio.fail_after(5), pytest.raises(sp.DialError, match="no network interface 'no-such-1'"):
            await req.dial("ws://far.invalid/", ws=sp.WSClientConfig(proxy="http://[fe80::1%25no-such-1]:3128"))


# Draining.


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["ws", "wss", "tcp", "tls+tcp", "inproc"])
async def test_a_drained_backend_loses_no_request(scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:0" if scheme != "inproc" else "inproc://drained-{}"
    answered: list[bytes] = []

    async def serve(rep: sp.Rep0) -> None:
        async for asked in rep.requests():
            await trio.lowlevel.checkpoint()
            await asked.reply(asked.body)

    with trio.fail_after(20):
        async with (
            sp.Rep0(listen=url.format(1), tls=server_tls(url)) as one,
            sp.Rep0(listen=url.format(2), tls=server_tls(url)) as two,
            sp.Req0(tls=client_tls(url), redial_min=0.001, redial_max=0.001) as req,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(serve, one)
            nursery.start_soon(serve, two)
            listener = one.listeners[0]
            for rep in (one, two):
                await req.dial(rep.url)

            async def ask(name: int) -> None:
                for number in range(100):
                    body = b"%d %d" % (name, number)
                    assert await req.request(body) == body
                    answered.append(body)

            async with trio.open_nursery() as asking:
                for name in range(10):
                    asking.start_soon(ask, name)
                await until(lambda: len(answered) > 100)
                await listener.drain(5)
                assert not one.pipes
                assert listener not in one.listeners
            assert len(set(answered)) == 1000
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["pipe", "listener", "drain", "socket"])
async def test_a_peer_that_may_be_libnanomsg_gets_no_close_since_it_would_never_dial_again(how: str) -> None:
    async with sp.Rep0(listen="ws://127.0.0.1:0") as rep, trio.open_nursery() as nursery:
        stream = await upgrade(rep.url, REP)
        await rep.wait_for_peers()
        nursery.start_soon({"drain": rep.listeners[0].drain, "socket": rep.aclose}.get(how, trio.lowlevel.checkpoint))
        if how in ("pipe", "listener"):
            (rep.pipes[0] if how == "pipe" else rep.listeners[0]).close()
        with trio.fail_after(5):
            assert await stream.receive_some() == b""
        await stream.aclose()


@pytest.mark.slow
async def test_draining_says_so_to_peers_newcomers_and_health_checks(url: str) -> None:
    http = sp.WSServerConfig(health_path="/healthz")
    async with sp.Rep0(listen=url, tls=server_tls(url), ws=http) as rep, trio.open_nursery() as nursery:
        listener = rep.listeners[0]
        peer = await upgrade(listener.url, REP, *BROWSER)
        await rep.wait_for_peers()
        with trio.fail_after(5):
            ask = await connect_plainly(listener.url)
            await ask.send_all(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert await receive_answer(ask) == (
                200,
                {"content-type": "text/plain; charset=utf-8", "content-length": "3", "connection": "close"},
                b"ok\n",
            )
            waiting = await connect_plainly(listener.url)
            await waiting.send_all(b"GET /s HTTP/1.1\r\n")  # in the middle of its request
            await until(lambda: rep.statistics().listeners[0].in_handshake == 1)
            nursery.start_soon(listener.drain, 5)
            assert await receive_close(peer) == (1001, "")
            await waiting.send_all(request("/s", REP).partition(b"\r\n")[2])
            assert (await receive_answer(waiting))[0] == 503
            for head, expected in ((b"GET /healthz HTTP/1.1\r\n\r\n", 503), (request("/s", REP), 503)):
                newcomer = await connect_plainly(listener.url)
                await newcomer.send_all(head)
                assert (await receive_answer(newcomer))[0] == expected
                await newcomer.aclose()
            # The messages that it still sends are delivered.
            await peer.send_all(ws_frame(BINARY, b"\x80\0\0\1late") + ws_frame(CLOSE, b"\x03\xe9"))
            assert await rep.receive() == b"late"
            await until(lambda: not rep.listeners)
        for stream in (ask, waiting, peer):
            await stream.aclose()


async def test_draining_one_of_two_that_share_a_port_costs_its_dialers_an_ordinary_wait(url: str, mock_clock: MockClock) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0(tls=client_tls(url)) as req:
        address = rep.url
        async with sp.Pub0(listen=f"{address.rpartition('/')[0]}/news", tls=server_tls(url)):
            dialer = await req.dial(address)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rep.listeners[0].drain)
                await until(lambda: not rep.listeners)
            for attempt in (2, 3):  # no socket listens there now, but the port stays open
                await jump(mock_clock, 0.4)
                await until(lambda attempt=attempt: dialer.statistics().attempts >= attempt)
                await until(lambda: isinstance(dialer.error, sp.UpgradeRefused))
                assert isinstance(dialer.error, sp.UpgradeRefused)
                assert dialer.error.response.status == 404
            await rep.listen(address)
            await jump(mock_clock, 1)
            await until(lambda: dialer.pipe)


async def test_draining_ends_at_its_bound_and_can_be_cancelled(mock_clock: MockClock) -> None:
    async with sp.Pub0() as pub:
        for bound, cancelled in ((30.0, False), (50.0, True)):
            listener = await pub.listen("ws://127.0.0.1:0")
            stubborn = await upgrade(listener.url, PUB)
            await pub.wait_for_peers()
            began = trio.current_time()
            scope = trio.CancelScope()

            async def drain(listener: sp.Listener = listener, bound: float = bound, scope: trio.CancelScope = scope) -> None:
                with scope:
                    await listener.drain(bound)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(drain)
                await jump(mock_clock, 20)
                listeners = pub.listeners
                assert listeners == (listener,)
                if cancelled:
                    scope.cancel()
                else:
                    await jump(mock_clock, 10)
            assert trio.current_time() - began == pytest.approx(20 if cancelled else 30)
            await until(lambda: not pub.pipes)
            assert pub.listeners == ()
            await stubborn.aclose()


@pytest.mark.parametrize("timeout", [None, 0, -1, "x", float("nan")])
async def test_draining_takes_a_bound(timeout: Any) -> None:
    async with sp.Pub0(listen="ws://127.0.0.1:0") as pub:
        with pytest.raises((TypeError, ValueError), match="timeout"):
            await pub.listeners[0].drain(timeout)
        assert len(pub.listeners) == 1


# The end of a WebSocket.


async def test_a_listener_says_that_it_goes_away_and_a_dialer_that_all_is_well(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as bus:
        events = bus.events()
        async with sp.Bus0() as other:
            await dial(other, bus.url)
            await bus.wait_for_peers()
        event = await expect(events, K.DETACHED)
        assert event.reason == "the peer closed the connection"
        async with sp.Bus0() as other:
            events = other.events()
            await dial(other, bus.url)
            await bus.wait_for_peers()
            await bus.aclose()
            event = await expect(events, K.DETACHED)
            assert event.reason == "the peer closed the connection: 1001 (going away)"
            assert event.pipe is not None
            assert event.pipe.reason == event.reason


async def test_a_close_of_the_peers_is_answered_and_reported_after_what_came_before_it(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as bus:
        events = bus.events()
        stream = await upgrade(bus.url, BUS)
        with trio.fail_after(5):
            await stream.send_all(b"".join(ws_frame(BINARY, b"%d" % n) for n in range(50)) + ws_frame(CLOSE, b"\x0f\xa0because"))
            assert [await bus.receive() for _ in range(50)] == [b"%d" % n for n in range(50)]
            event = await expect(events, K.DETACHED)
            assert isinstance(event.error, sp.PeerClosed)
            assert event.reason == "the peer closed the connection: 4000 (private use) because"
            assert await receive_close(stream) == (4000, "because")
            await stream.aclose()


async def test_a_peer_that_never_answers_a_close_delays_nothing_longer_than_the_linger_time(url: str, autojump_clock: MockClock) -> None:
    async with sp.Bus0(linger=3) as bus:
        stream = await upgrade((await bus.listen(url, tls=server_tls(url))).url, BUS)
        await bus.wait_for_peers()
        began = trio.current_time()
        await bus.aclose()
        assert trio.current_time() - began == pytest.approx(3)
        await stream.aclose()


async def test_a_peer_that_goes_on_sending_after_a_close_delays_nothing_either() -> None:
    async with sp.Bus0(linger=0.05) as bus:
        stream = await upgrade((await bus.listen("ws://127.0.0.1:0")).url, BUS)
        await bus.wait_for_peers()

        async def flood() -> None:
            try:
                while True:
                    await stream.send_all(ws_frame(BINARY, b"more") * 100)
            except trio.BrokenResourceError:
                pass

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                await bus.aclose()
        await stream.aclose()


@pytest.mark.slow
async def test_a_malformed_backtrace_ends_the_websocket_with_a_protocol_error(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep:
        events = rep.events()
        with trio.fail_after(15):
            for body in (b"\0\0\0\1no end", b"\x80"):
                stream = await upgrade(rep.url, REP)
                await stream.send_all(ws_frame(BINARY, body))
                code, reason = await receive_close(stream)
                assert code == 1002
                assert "header" in reason
                event = await expect(events, K.DETACHED)
                assert isinstance(event.error, sp.MalformedMessage)
                await stream.aclose()


@pytest.mark.slow
async def test_thousands_of_handshakes_leave_nothing_behind() -> None:
    # trio forgets the deadlines of tasks that are gone a thousand at a time, so without pings.
    async with sp.Rep0(listen="ws://127.0.0.1:0", ws=sp.WSServerConfig(ping_interval=None)) as rep:
        with trio.fail_after(30):
            counts = []
            for _ in range(3):
                for _ in range(100):
                    async with sp.Req0(ws=sp.WSClientConfig(ping_interval=None)) as req:
                        await req.dial(rep.url)
                await until(lambda: not rep.pipes)
                gc.collect()
                counts.append(len(gc.get_objects()))
            assert counts[2] - counts[1] < 500
            assert rep.statistics().listeners[0].in_handshake == 0


# TLS.


async def test_wss_agrees_on_http_1_1_and_nothing_else_and_resumes() -> None:
    async with (
        sp.Rep0(listen="wss://127.0.0.1:0", tls=server_tls("wss:")) as rep,
        sp.Req0(tls=authority().client(), redial_min=0.001, redial_max=0.001) as req,
    ):
        dialer = await req.dial(rep.url)
        with trio.fail_after(5):
            for count in range(3):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(req.request, b"x")
                    asked = await anext(rep.requests())
                    await asked.reply(b"y")
                pipe = dialer.pipe
                assert pipe is not None
                assert pipe.tls is not None
                theirs = rep.pipes[0].tls
                assert theirs is not None
                assert pipe.tls.alpn == theirs.alpn == "http/1.1"
                assert pipe.tls.resumed is (count > 0)
                pipe.close()
                await until(lambda old=pipe: dialer.pipe not in (None, old))


async def test_tls_without_http_names_nothing_in_the_handshake() -> None:
    async with sp.Rep0(listen="tls+tcp://127.0.0.1:0", tls=server_tls("tls")) as rep, sp.Req0(tls=client_tls("tls")) as req:
        await req.dial(rep.url)
        assert req.pipes[0].tls is not None
        assert req.pipes[0].tls.alpn == ""


async def test_a_server_with_one_configuration_agrees_with_a_client_that_offers_more(url: str) -> None:
    """Browsers offer several protocols; a server with one configuration for wss and tls+tcp tells
    them apart.
    """
    import ssl

    config = server_tls("wss:")
    async with sp.Rep0(listen="wss://127.0.0.1:0", tls=config) as web, sp.Rep0(listen="tls+tcp://127.0.0.1:0", tls=config) as plain:
        for rep, offered, agreed in (
            (web, ["h2", "http/1.1"], "http/1.1"),
            (web, ["h2"], None),
            (web, [], None),
            (plain, ["http/1.1"], None),
        ):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            authority().ca.configure_trust(context)
            if offered:
                context.set_alpn_protocols(offered)
            port = int(rep.url.rpartition(":")[2])
            stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), context, server_hostname="127.0.0.1")
            with trio.fail_after(5):
                await stream.do_handshake()
            assert stream.selected_alpn_protocol() == agreed
            await stream.transport_stream.aclose()


# Logs.


async def test_no_payload_and_no_header_value_is_logged(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = sp.WSClientConfig(headers={"Authorization": "Bearer s3cret"})
    async with sp.Bus0(listen=url, tls=server_tls(url)) as bus, sp.Bus0(tls=client_tls(url), ws=client) as other:
        await other.dial(bus.url)
        await other.send(b"pay1oad")
        assert await bus.receive() == b"pay1oad"
    assert "s3cret" not in caplog.text
    assert "pay1oad" not in caplog.text
    assert "websockets" not in {record.name.split(".")[0] for record in caplog.records}
