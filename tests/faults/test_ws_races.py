"""Races of ws and wss: shared ports whose listeners leave, full buffers, pauses, late calls."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

import sp
from tests.tls.authority import Authority
from tests.transports.ends import authority, client_tls, server_tls
from tests.transports.web import (
    BROWSER,
    PING,
    PONG,
    connect_plainly,
    receive_answer,
    receive_close,
    receive_head,
    receive_ws_frame,
    request,
    upgrade,
    ws_frame,
)
from tests.transports.wire import expect, socket_of, until

BUS, REP = "bus.sp.nanomsg.org", "rep.sp.nanomsg.org"
K = sp.EventKind


def port_of(listener: sp.Listener) -> str:
    return listener.url.split("/")[2]


# Shared ports.


@pytest.mark.parametrize("pause", range(4))
async def test_a_listener_that_joins_a_port_while_the_last_one_leaves_gets_a_new_port(pause: int) -> None:
    async with sp.Rep0(listen="ws://127.0.0.1:0/a") as first, sp.Rep0() as second, sp.Req0() as req:
        listener = first.listeners[0]
        joined: list[sp.Listener] = []

        async def join() -> None:
            joined.append(await second.listen(f"ws://{port_of(listener)}/b"))

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(join)
                for _ in range(pause):
                    await trio.lowlevel.checkpoint()
                listener.close()
            await req.dial(joined[0].url)


async def test_two_sockets_that_listen_at_the_same_moment_share_the_port() -> None:
    async with sp.Rep0(listen="ws://127.0.0.1:0/probe") as probe:
        place = port_of(probe.listeners[0])
    async with sp.Rep0() as one, sp.Rep0() as two, sp.Req0() as req:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.listen, f"ws://{place}/one")
                nursery.start_soon(two.listen, f"ws://{place}/two")
            for path in ("one", "two"):
                await req.dial(f"ws://{place}/{path}")


@pytest.mark.parametrize(("path", "health_path"), [("/", "/"), ("/h", "/h"), ("/h", "/h/"), ("/%68", "/h")])
async def test_a_health_path_where_a_socket_listens_is_refused(path: str, health_path: str) -> None:
    http = sp.WSServerConfig(health_path=health_path)
    async with sp.Rep0() as rep, sp.Rep0(listen="ws://127.0.0.1:0/other") as other:
        with pytest.raises(sp.AddressError, match="is the path of a socket at that port"):
            await rep.listen(f"ws://127.0.0.1:0{path}", ws=http)
        place = port_of(other.listeners[0])
        await rep.listen(f"ws://{place}{path}")
        with pytest.raises(sp.AddressError, match="is the path of a socket at that port"):
            await rep.listen(f"ws://{place}/third", ws=http)


async def test_two_answers_at_one_health_path_are_refused_and_one_for_all_is_not() -> None:
    shared = sp.WSServerConfig(health_path="/healthz", health=lambda: True)
    async with sp.Rep0(listen="ws://127.0.0.1:0/a", ws=shared) as one, sp.Rep0() as two:
        place = port_of(one.listeners[0])
        with pytest.raises(sp.AddressError, match="another health="):
            await two.listen(f"ws://{place}/b", ws=sp.WSServerConfig(health_path="/healthz", health=lambda: False))
        await two.listen(f"ws://{place}/b", ws=shared)


# Full buffers.


@pytest.mark.slow
async def test_a_peer_that_pings_and_does_not_read_does_no_harm_when_its_pipe_is_closed() -> None:
    async with sp.Bus0(listen="ws://127.0.0.1:0") as bus, sp.Bus0() as good:
        with trio.fail_after(20):
            for _ in range(3):
                stream = await upgrade(bus.url, BUS)
                socket_of(stream).setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
                await bus.wait_for_peers()

                async def flood(stream: Any = stream) -> None:
                    try:
                        while True:
                            await stream.send_all(ws_frame(PING, b"p" * 125) * 50)
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        pass

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(flood)
                    (pipe,) = bus.pipes
                    connection: Any = bus._core.task_of(pipe).connection
                    while not connection._unwritten:  # until the kernel takes no more answers
                        await trio.lowlevel.checkpoint()
                    pipe.close()
                    await until(lambda: not bus.pipes)
                    nursery.cancel_scope.cancel()
                await stream.aclose()
            await good.dial(bus.url)


def refuse_once(sock: sp.Bus0) -> None:
    """Let the kernel buffer of the only pipe be full for a moment."""
    (pipe,) = sock.pipes
    connection: Any = sock._core.task_of(pipe).connection
    link = connection._link
    real = link.send

    def send(data: bytes) -> int:
        link.send = real
        raise BlockingIOError

    link.send = send


async def test_a_close_that_the_kernel_does_not_take_at_once_is_written_when_it_does() -> None:
    async with sp.Bus0(listen="ws://127.0.0.1:0") as bus, trio.open_nursery() as nursery:
        stream = await upgrade(bus.url, BUS, *BROWSER)
        await bus.wait_for_peers()
        await trio.testing.wait_all_tasks_blocked(0.01)
        refuse_once(bus)
        with trio.fail_after(5):
            nursery.start_soon(bus.listeners[0].drain)
            assert await receive_close(stream) == (1001, "")
            await stream.aclose()


async def test_a_ping_that_the_kernel_does_not_take_at_once_is_written_when_it_does(mock_clock: MockClock) -> None:
    async with sp.Bus0(listen="ws://127.0.0.1:0") as bus:
        stream = await upgrade(bus.url, BUS, *BROWSER)
        await bus.wait_for_peers()
        await trio.testing.wait_all_tasks_blocked(0.01)
        refuse_once(bus)
        mock_clock.jump(20)
        assert await receive_ws_frame(stream) == (PING, b"")
        await stream.aclose()


async def test_after_a_pause_of_this_process_a_pipe_whose_answer_has_come_lives_on(mock_clock: MockClock) -> None:
    async with sp.Bus0(listen="ws://127.0.0.1:0") as bus:
        with trio.fail_after(1e6):
            stream = await upgrade(bus.url, BUS, *BROWSER)
            await bus.wait_for_peers()
            await trio.testing.wait_all_tasks_blocked(0.005)
            mock_clock.jump(20)
            for _ in range(20):
                assert await receive_ws_frame(stream) == (PING, b"")
                await trio.testing.wait_all_tasks_blocked(0.005)
                # The answer arrives, but the time is over before a task reads it.
                inside: Any = socket_of(stream)
                inside._sock.send(ws_frame(PONG))
                mock_clock.jump(20)
            assert len(bus.pipes) == 1
            await stream.aclose()


# Draining.


async def test_draining_ends_when_the_socket_is_closed(mock_clock: MockClock) -> None:
    for close in ("close", "aclose"):
        async with sp.Rep0(listen="ws://127.0.0.1:0", linger=0.001) as rep, trio.open_nursery() as nursery:
            stream = await upgrade(rep.url, REP)  # it never answers a Close
            await rep.wait_for_peers()
            began = trio.current_time()
            nursery.start_soon(rep.listeners[0].drain, 1000)
            await until(lambda rep=rep: rep._core.task_of(rep.pipes[0]).state == "leaving")
            if close == "close":
                rep.close()
            else:
                nursery.start_soon(rep.aclose)
                await trio.testing.wait_all_tasks_blocked(0.01)
                mock_clock.jump(0.01)
            await until(lambda rep=rep: not rep.pipes)
            assert trio.current_time() - began < 1
            await stream.aclose()


async def test_a_newcomer_still_in_its_handshake_is_rejected_when_draining_begins() -> None:
    waiting = trio.Event()

    async def authorize(_: sp.Pipe) -> bool:
        waiting.set()
        await trio.sleep_forever()
        return True

    async with sp.Rep0(listen="ws://127.0.0.1:0", authorize=authorize) as rep, trio.open_nursery() as nursery:
        peer = await upgrade_later(rep.url)
        with trio.fail_after(5):
            await waiting.wait()
            half = await connect_plainly(rep.url)
            await half.send_all(b"GET / HTTP/1.1\r\n")
            await until(lambda: rep.statistics().listeners[0].in_handshake == 2)
            nursery.start_soon(rep.listeners[0].drain, 5)
            assert (await receive_answer(half))[0] == 503
            assert (await receive_answer(peer))[0] == 503
            await peer.aclose()
            await half.aclose()


async def upgrade_later(url: str) -> Any:
    """Ask for a WebSocket and do not wait for the answer."""
    stream = await connect_plainly(url)
    await stream.send_all(request("/", REP))
    return stream


# What authorize and health return.


@pytest.mark.parametrize("answer", [(401, "x"), "no", {"error": 1}, ValueError("no"), sp.HTTPResponse, 1, [False]], ids=repr)
@pytest.mark.parametrize("scheme", ["ws", "tcp"])
async def test_what_authorize_returns_is_yes_only_if_it_is_true(scheme: str, answer: Any) -> None:
    async with sp.Rep0(listen=f"{scheme}://127.0.0.1:0", authorize=lambda _: answer) as rep, sp.Req0() as req:
        events = rep.events()
        await req.dial(rep.url, wait=False)
        with trio.fail_after(5):
            event = await expect(events, K.REFUSED)
        assert f"authorize returned {type(answer).__name__}, expected True, False or an HTTPResponse" in event.reason
        assert not rep.pipes


async def test_a_refusal_that_authorize_raises_is_the_answer() -> None:
    def authorize(_: sp.Pipe) -> bool:
        raise sp.PipeRefused("not here", sp.HTTPResponse(451, "for reasons"))

    async with sp.Rep0(listen="ws://127.0.0.1:0", authorize=authorize) as rep, sp.Req0() as req:
        with pytest.raises(sp.DialError, match="451 Unavailable For Legal Reasons: 'for reasons'"):
            await req.dial(rep.url)


async def test_the_error_names_the_callback_that_decides_too_slowly(autojump_clock: MockClock) -> None:
    async def ponder(_: object = None) -> bool:
        await trio.sleep_forever()
        return True

    http = sp.WSServerConfig(health_path="/healthz", health=ponder)
    async with sp.Rep0(listen="ws://127.0.0.1:0", ws=http, authorize=ponder, handshake_timeout=3) as rep:
        events = rep.events()
        health_check = b"GET /healthz HTTP/1.1\r\n\r\n"
        for head, words in (
            (request("/", REP), "authorize did not decide within 3 s"),
            (health_check, "answer of health"),
        ):
            stream = await connect_plainly(rep.url)
            await stream.send_all(head)
            status, _, _ = await receive_answer(stream)
            assert words in (await expect(events, K.REFUSED)).reason
            assert status == 503
            await stream.aclose()


@pytest.mark.parametrize("answer", [None, 7, b"bytes", {}], ids=repr)
async def test_a_health_that_answers_nonsense_is_no_good_health(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    http = sp.WSServerConfig(health_path="/healthz", health=lambda: answer)
    async with sp.Rep0(listen="ws://127.0.0.1:0", ws=http) as rep:
        stream = await connect_plainly(rep.url)
        with trio.fail_after(5):
            await stream.send_all(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert (await receive_answer(stream))[0] == 500
        await stream.aclose()
    assert f"health returned {type(answer).__name__}, expected a bool, a str or an HTTPResponse" in caplog.text


async def test_headers_of_a_request_cannot_be_passed_on_to_split_an_answer() -> None:
    def authorize(pipe: sp.Pipe) -> sp.HTTPResponse:
        assert pipe.http is not None
        if pipe.http.query:
            return sp.HTTPResponse(302, "", sp.HTTPHeaders([("Location", "/a\r\nSet-Cookie: admin=1")]))
        return sp.HTTPResponse(401, "", pipe.http.headers)

    async with sp.Rep0(listen="ws://127.0.0.1:0", authorize=authorize) as rep, sp.Req0() as req:
        with trio.fail_after(5):
            for target in ("/?x", "/"):
                stream = await connect_plainly(rep.url)
                await stream.send_all(request(target, REP))
                status, headers, _ = await receive_answer(stream)
                assert status == 403  # authorize has raised
                assert set(headers) == {"content-type", "content-length", "connection"}
                await stream.aclose()
            with pytest.raises(sp.DialError):
                await req.dial(rep.url)


async def test_a_fault_of_ours_costs_one_newcomer(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from sp.transports.ws import handshake as ws_handshake

    real = ws_handshake.pings_for_client
    failures = [KeyError("a fault of ours")]

    def fail_once(headers: sp.HTTPHeaders) -> ws_handshake.Pings:
        if failures:
            raise failures.pop()
        return real(headers)

    monkeypatch.setattr("sp.transports.ws.newcomer.pings_for_client", fail_once)
    async with sp.Rep0(listen="ws://127.0.0.1:0") as rep, sp.Req0(redial_min=0.01, redial_max=0.01) as req:
        with trio.fail_after(5):
            await req.dial(rep.url, wait=False)
            await rep.wait_for_peers()
        assert "a fault of ours" in caplog.text
        assert rep.statistics().listeners[0].failures == {"KeyError": 1}


# The wrong kind.


async def test_a_configuration_of_the_wrong_side_is_refused_wherever_it_is_given() -> None:
    for options in (
        {"listen": "ws://127.0.0.1:0", "ws": sp.WSClientConfig()},
        {"dial": "ws://127.0.0.1:1", "ws": sp.WSServerConfig()},
    ):
        with pytest.raises(TypeError, match="expected ws=sp.WS"):
            async with sp.Bus0(**options):  # type: ignore[arg-type]
                pass


@pytest.mark.parametrize(
    ("dialed", "there", "words"),
    [
        ("ws", "tcp", "SP without HTTP: one side says ws://, the other tcp://"),
        ("ws", "tls+tcp", "TLS: one side says ws://, the other wss://"),
        ("wss", "tcp", "SP without TLS: one side says wss://, the other tcp://"),
        ("wss", "tls+tcp", "SP without HTTP: one side says wss://, the other tls+tcp://"),
    ],
)
async def test_a_dialer_that_finds_no_http_names_what_it_finds(dialed: str, there: str, words: str) -> None:
    async with sp.Rep0(listen=f"{there}://127.0.0.1:0", tls=server_tls(there)) as rep, sp.Req0(tls=client_tls(dialed)) as req:
        with trio.fail_after(5), pytest.raises(sp.DialError) as caught:
            await req.dial(f"{dialed}://{port_of(rep.listeners[0])}/")
        assert words in str(caught.value), str(caught.value)


async def test_a_peer_that_is_accepted_while_the_listener_drains_is_told_to_go_elsewhere() -> None:
    decide, asked = trio.Event(), trio.Event()

    async def authorize(pipe: sp.Pipe) -> bool:
        assert pipe.http is not None
        if pipe.http.query:
            asked.set()
            await decide.wait()
        return True

    async with sp.Bus0(listen="ws://127.0.0.1:0", authorize=authorize) as bus, trio.open_nursery() as nursery:
        with trio.fail_after(5):
            stubborn = await upgrade(bus.url, BUS, *BROWSER)  # so that the draining goes on
            await bus.wait_for_peers()
            newcomer = await connect_plainly(bus.url)
            await newcomer.send_all(request("/?later", BUS, *BROWSER))
            await asked.wait()
            nursery.start_soon(bus.listeners[0].drain, 100)
            assert await receive_close(stubborn) == (1001, "")
            decide.set()
            assert (await receive_head(newcomer)).startswith("HTTP/1.1 101 ")
            assert await receive_close(newcomer) == (1001, "")
            await newcomer.aclose()
            await stubborn.aclose()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\xd8" + b"127.0.0.1:9".ljust(108, b"\0") + bytes(108),
    ],
    ids=["unknown", "local", "a unix socket with a name like an address"],
)
async def test_where_a_proxy_header_names_no_address_forwarded_headers_are_not_believed(header: bytes) -> None:
    http = sp.WSServerConfig(trusted_proxies=("127.0.0.0/8", "unix"))
    async with sp.Bus0(listen="ws://127.0.0.1:0", ws=http, proxy_protocol=True) as bus:
        with trio.fail_after(5):
            stream = await connect_plainly(bus.url)
            await stream.send_all(header + request("/", BUS, "X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https"))
            await bus.wait_for_peers()
            (pipe,) = bus.pipes
            assert pipe.http is not None
            assert "192.0.2.1" not in pipe.remote_address
            assert (pipe.http.scheme, pipe.http.via_trusted_proxy) == ("http", False)
            await stream.aclose()


async def test_a_newcomer_that_was_handed_on_when_its_listener_is_closed_gets_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from sp.transports.ws.routes import Route

    async with sp.Rep0(listen="ws://127.0.0.1:0/oldest") as oldest, sp.Rep0() as other:
        listener = await other.listen(f"ws://{port_of(oldest.listeners[0])}/other")
        with trio.fail_after(5):
            with monkeypatch.context() as patched:
                # It does not come to accept the newcomer.
                patched.setattr(Route, "wake", lambda _: None)
                stream = await connect_plainly(listener.url)
                await stream.send_all(request("/other", REP))
                await until(lambda: oldest.statistics().listeners[0].in_handshake == 0 and oldest.statistics().listeners[0].accepted == 0)
                await trio.testing.wait_all_tasks_blocked(0.01)
            listener.close()
            assert (await receive_answer(stream))[0] == 503
            await stream.aclose()


async def test_a_client_that_comes_while_the_oldest_listener_leaves_is_served_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sp.Rep0(listen="ws://127.0.0.1:0/oldest") as oldest, sp.Rep0() as other, sp.Req0() as req:
        its_listener = oldest.listeners[0]
        listener = await other.listen(f"ws://{port_of(its_listener)}/other")
        acceptor: Any = oldest._core.listeners[0]._acceptors[0]
        base = acceptor._base
        accept = base.accept

        async def accept_and_leave() -> Any:
            newcomers = await accept()
            monkeypatch.undo()
            its_listener.close()
            return newcomers

        monkeypatch.setattr(base, "accept", accept_and_leave)
        acceptor.wake()
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.fail_after(5):
            await req.dial(listener.url)
            await other.wait_for_peers()
        assert oldest.statistics().listeners == ()


async def test_a_peer_that_the_protocol_has_no_place_for_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sp.Bus0(listen="ws://127.0.0.1:0") as bus:

        def refuse(_: object) -> None:
            raise sp.PipeRefused("there is a peer already")

        monkeypatch.setattr(bus._core.engine, "pipe_attached", refuse)
        with trio.fail_after(5):
            stream = await upgrade(bus.url, BUS)
            assert await receive_close(stream) == (1008, "there is a peer already")
            await stream.aclose()


async def test_a_request_of_http_1_0_needs_no_host_to_be_told_that_it_is_too_old() -> None:
    async with sp.Rep0(listen="ws://127.0.0.1:0") as rep:
        with trio.fail_after(5):
            stream = await connect_plainly(rep.url)
            await stream.send_all(b"GET / HTTP/1.0\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            assert (await receive_answer(stream))[0] == 505
            await stream.aclose()


async def test_the_subject_of_a_certificate_that_is_refused_cannot_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    forged = Authority().issue("client", subject="x)\nBUS attached forged \x1b[31m")
    server = authority().server(client_ca=authority().pem)
    caplog.set_level("DEBUG")
    async with sp.Rep0(listen="wss://127.0.0.1:0", tls=server) as rep, sp.Req0(tls=authority().client(certificate=forged)) as req:
        events = rep.events()
        with trio.fail_after(5):
            await req.dial(rep.url, wait=False)
            event = await expect(events, K.REFUSED)
        assert "forged" in event.reason
        assert event.reason.isprintable()
    assert all(record.getMessage().isprintable() for record in caplog.records if record.name == "sp")
