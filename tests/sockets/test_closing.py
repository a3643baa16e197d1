from __future__ import annotations

import gc
import logging
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

import sp
from sp.address import Address
from tests.sockets.kinds import ALL, Kind, each, gone, talking
from tests.transports.ends import dial, listen, network_only, server_tls
from tests.transports.wire import BUS, REQ, connect_as, expect, frame

from .conftest import Background, connect


class _Raises(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise ZeroDivisionError(record.getMessage())


async def test_a_log_handler_that_raises_while_a_socket_closes_leaves_nothing_behind(name: str, caplog: pytest.LogCaptureFixture) -> None:
    log, handler = logging.getLogger("sp"), _Raises()
    caplog.set_level(logging.INFO, "sp")
    try:
        with pytest.raises(ZeroDivisionError, match="PUB stopped"):
            async with sp.Pub0(listen=name) as pub:
                events = pub.events()
                log.addHandler(handler)
                raise KeyError("with which the block is left")
    finally:
        log.removeHandler(handler)
    assert [event.kind async for event in events] == [sp.EventKind.STOPPED]
    async with sp.Pub0(listen=name):
        assert "closed" in repr(pub)


async def test_what_was_accepted_is_delivered_before_the_end(url: str) -> None:
    bodies = [b"%d" % number * 1000 for number in range(500)]
    async with sp.Sub0(topics=b"", listen=url, tls=server_tls(url)) as sub, trio.open_nursery() as nursery:
        received: list[bytes] = []

        async def receive() -> None:
            while len(received) < len(bodies):
                received.append(await sub.receive())

        nursery.start_soon(receive)
        async with sp.Pub0(outbox_limit=1000) as pub:
            await dial(pub, sub.url)
            for body in bodies:
                pub.send_nowait(body)
    assert received == bodies
    assert pub.statistics().dropped == {}


@pytest.mark.slow
async def test_the_last_message_before_the_end_arrives_a_hundred_times_of_a_hundred(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as bus:
        for number in range(100):
            async with sp.Bus0() as peer:
                await dial(peer, bus.url)
                await peer.send(b"%d" % number)
            assert await bus.receive() == b"%d" % number


async def test_messages_of_a_peer_that_has_gone_are_still_received(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as bus:
        async with sp.Bus0() as peer:
            await dial(peer, bus.url)
            await peer.send_many([b"%d" % number for number in range(100)])
        while bus.pipes:
            await trio.lowlevel.checkpoint()
        assert [await bus.receive() for _ in range(100)] == [b"%d" % number for number in range(100)]


async def test_a_socket_that_is_closed_in_order_does_not_blame_its_peer(url: str) -> None:
    async with sp.Pair0(listen=url, tls=server_tls(url)) as pair:
        theirs = pair.events()
        async with sp.Pair0() as peer:
            ours = peer.events()
            await dial(peer, pair.url)
            await peer.send(b"and goodbye")
        ends = {event.kind: event.reason async for event in ours if event.kind in (sp.EventKind.DETACHED, sp.EventKind.STOPPED)}
        assert ends == dict.fromkeys((sp.EventKind.DETACHED, sp.EventKind.STOPPED), "the socket was closed")
        assert (await expect(theirs, sp.EventKind.DETACHED)).reason == "the peer closed the connection"


@network_only
@pytest.mark.parametrize("linger", [0.0, 0.05])
async def test_a_peer_that_does_not_read_delays_the_end_no_longer_than_the_linger_time(
    url: str, linger: float, caplog: pytest.LogCaptureFixture
) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url), linger=linger) as bus, await connect_as(bus.url, BUS):
        await bus.wait_for_peers()
        for _ in range(100):
            await bus.send(bytes(100_000))
        sent, dropped = bus.statistics().messages_sent, bus.statistics().dropped[sp.DropReason.PEER_FULL]
        began = trio.current_time()
        await bus.aclose()
        assert trio.current_time() - began < linger + 1
    unsent = bus.statistics().dropped[sp.DropReason.SOCKET_CLOSED]
    assert unsent >= 100 - sent - dropped > 0
    assert f"closed with {unsent} messages unsent" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING


@network_only
async def test_an_immediate_close_drops_and_counts(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url), linger=1000) as bus, await connect_as(bus.url, BUS):
        await bus.wait_for_peers()
        for _ in range(100):
            await bus.send(bytes(100_000))
        bus.close()
        assert bus.pipes or bus.statistics().dropped
    assert bus.statistics().dropped[sp.DropReason.SOCKET_CLOSED] > 0


async def test_calls_that_wait_are_told_that_the_socket_was_closed(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as req, sp.Req0() as lonely, trio.open_nursery() as nursery:
        await connect(rep, req)
        await req.send(b"x")
        waiting = [
            Background(nursery, call)
            for call in (rep.context().receive, req.receive, lambda: lonely.send(b"x"), lambda: lonely.wait_for_peers(5))
        ]
        silent = await trio.open_tcp_listeners(0, host="127.0.0.1")
        waiting.append(Background(nursery, lambda: lonely.dial(f"tcp://127.0.0.1:{silent[0].socket.getsockname()[1]}")))
        await trio.testing.wait_all_tasks_blocked()
        for socket in (rep, req, lonely):
            socket.close()
        for call in waiting[1:]:
            with pytest.raises(trio.ClosedResourceError):
                await call.done()
        await silent[0].aclose()


@network_only
async def test_a_cancelled_close_still_closes(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url), linger=1000) as bus, await connect_as(bus.url, BUS):
        await bus.wait_for_peers()
        for _ in range(100):
            await bus.send(bytes(100_000))
        with trio.move_on_after(0.01) as scope:
            await bus.aclose()
        assert scope.cancelled_caught
        assert "closed" in repr(bus)
        assert bus.pipes == ()


async def test_closing_a_listener_ends_its_pipes_and_frees_its_address(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0(redial_min=50, redial_max=50) as req:
        await connect(rep, req)
        address = rep.url
        rep.listeners[0].close()
        while rep.pipes or req.pipes:
            await trio.lowlevel.checkpoint()
        await rep.listen(address)


async def test_closing_a_dialer_ends_its_pipe_and_it_dials_no_more(name: str, autojump_clock: trio.testing.MockClock) -> None:
    async with sp.Rep0(listen=name) as rep, sp.Req0() as req:
        dialer = await req.dial(name)
        dialer.close()
        await trio.sleep(1000)
        assert (rep.pipes, req.pipes, req.dialers) == ((), (), ())
        assert rep.statistics().listeners[0].accepted == 1


async def test_a_cancelled_dial_leaves_nothing_behind(name: str) -> None:
    async def never(pipe: sp.Pipe) -> bool:
        await trio.sleep_forever()
        return True

    async with sp.Rep0(listen=name) as rep, sp.Req0(authorize=never) as req:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(req.dial, name)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        while req.dialers or rep.pipes:
            await trio.lowlevel.checkpoint()


@pytest.mark.slow
async def test_closing_a_dialer_in_any_moment_of_its_dial_leaves_the_socket_open(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as req:
        for moment in range(30):
            dialer = await dial(req, rep.url, wait=False)
            for _ in range(moment):
                await trio.lowlevel.checkpoint()
            dialer.close()
            while req.dialers or req.pipes:
                await trio.lowlevel.checkpoint()
        await dial(req, rep.url)


async def test_cancelling_a_dial_in_any_moment_leaves_the_socket_open_and_nothing_behind(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as req:
        for moment in range(30):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(dial, req, rep.url)
                    for _ in range(moment):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            for dialer in req.dialers:  # it was quicker
                dialer.close()
            while req.dialers or req.pipes or rep.pipes:
                await trio.lowlevel.checkpoint()
        await dial(req, rep.url)
        await req.send(b"x")
        assert await rep.receive() == b"x"


@pytest.mark.slow
async def test_two_hundred_peers_are_written_to_in_turns_with_other_tasks(name: str) -> None:
    async with sp.Pub0(listen=name) as pub:
        subs = [sp.Sub0() for _ in range(200)]
        async with trio.open_nursery() as nursery:

            async def live(sub: sp.Sub0) -> None:
                async with sub:
                    await sub.dial(name)
                    await trio.sleep_forever()

            for sub in subs:
                nursery.start_soon(live, sub)
            await pub.wait_for_peers(200)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(2):  # the first message is written at once, the second by the writer
                pub.send_nowait(b"x")
            written = set()
            while sum(pipe.statistics().messages_sent for pipe in pub.pipes) < 400:
                written.add(sum(pipe.statistics().messages_sent for pipe in pub.pipes))
                await trio.lowlevel.checkpoint()
            assert len(written) >= 2  # in one go it would be seen once at most
            nursery.cancel_scope.cancel()


@network_only
async def test_a_reply_to_a_pipe_that_dies_meanwhile_ends_its_wait(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url), outbox_limit=1, linger=0) as rep, trio.open_nursery() as nursery:
        peer = await connect_as(rep.url, REQ)
        await peer.send_all(frame(b"\x80\0\0\1") * 30)
        requests = [await anext(rep.requests()) for _ in range(30)]
        replies = [Background(nursery, partial(request.reply, bytes(1 << 20))) for request in requests]
        await trio.testing.wait_all_tasks_blocked()
        await peer.aclose()
        for reply in replies:
            await reply.done()
        assert rep.statistics().dropped[sp.DropReason.REQUESTER_GONE] > 0


# Closing from within.


async def plainly(close: Callable[[], Awaitable[None]]) -> None:
    await close()


async def in_a_nursery(close: Callable[[], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)


async def from_a_thread(close: Callable[[], Awaitable[None]]) -> None:
    await trio.to_thread.run_sync(trio.from_thread.run, close)


@pytest.mark.slow
@pytest.mark.parametrize("way", [plainly, in_a_nursery, from_a_thread])
@pytest.mark.parametrize("dials", [False, True], ids=["of a listener", "of a dialer"])
async def test_authorize_may_close_its_socket_in_order(
    url: str, dials: bool, way: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
) -> None:
    answers = iter([True])

    async def authorize(_: sp.Pipe) -> bool:
        if next(answers, False):
            return True
        await way(closing.aclose)
        return True

    with trio.fail_after(10):
        async with sp.Bus0(authorize=authorize, outbox_limit=5000) as closing, sp.Bus0(inbox_limit=5000) as friend, sp.Bus0() as stranger:
            listener = await listen(friend, url)
            await dial(closing, listener.url)
            for number in range(1000):
                await closing.send(b"%d" % number)
            (ours, theirs) = (closing, stranger) if dials else (stranger, closing)
            listener = await listen(theirs, _other(url))
            await dial(ours, listener.url, wait=False)
            assert [await friend.receive() for _ in range(1000)] == [b"%d" % number for number in range(1000)]
            await gone(friend, stranger)
            await closing.aclose()
            assert not [*closing.listeners, *closing.dialers, *closing.pipes]
            assert repr(closing) == "<Bus0 closed pipes=0 inbox=0>"
            assert closing.statistics().dropped == {}
            stranger.close()


def _other(url: str) -> str:
    return url if url.endswith(":0") else f"{url}-other"


@pytest.mark.parametrize("is_oldest", [True, False])
async def test_a_health_check_may_close_a_socket_of_its_port(is_oldest: bool) -> None:
    async def health() -> bool:
        await (first if is_oldest else second).aclose()
        return True

    http = sp.WSServerConfig(health_path="/health", health=health)
    with trio.fail_after(10):
        async with sp.Bus0(ws=http, listen="ws://127.0.0.1:0/first") as first, sp.Bus0(ws=http) as second:
            port = Address.parse(first.url).port
            await second.listen(f"ws://127.0.0.1:{port}/second")
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                answer = b"".join([part async for part in stream])
            assert answer.startswith(b"HTTP/1.1 503 " if is_oldest else b"HTTP/1.1 200 ")
            await (first if is_oldest else second).aclose()
            async with sp.Bus0() as peer:
                await peer.dial(f"ws://127.0.0.1:{port}/{'second' if is_oldest else 'first'}")


async def test_two_sockets_that_close_each_other_from_authorize_are_closed_and_their_blocks_end(name: str) -> None:
    both = trio.Event()
    called: list[sp.Bus0] = []

    async def close(other: sp.Bus0) -> bool:
        called.append(other)
        if len(called) == 2:
            both.set()  # and no checkpoint before the call, where it could be cancelled already
        else:
            await both.wait()
        await other.aclose()
        return True

    with trio.fail_after(10):
        async with (
            sp.Bus0(listen=f"{name}-one", authorize=lambda _: close(two)) as one,
            sp.Bus0(listen=f"{name}-two", authorize=lambda _: close(one)) as two,
            sp.Bus0(dial=[f"{name}-one", f"{name}-two"]) as stranger,
        ):
            await both.wait()
            await trio.testing.wait_all_tasks_blocked()
            stranger.close()
            assert repr(one) == repr(two) == "<Bus0 closed pipes=0 inbox=0>"


@pytest.mark.parametrize("end", [sp.Listener.drain, sp.Listener.close])
async def test_a_callback_may_drain_or_close_its_listener(end: Callable[[sp.Listener], Awaitable[None] | None], name: str) -> None:
    over = trio.Event()

    async def authorize(_: sp.Pipe) -> bool:
        waiting = end(bus.listeners[0])
        if waiting is not None:
            await waiting
        over.set()
        return True

    with trio.fail_after(10):
        async with sp.Bus0(authorize=authorize, listen=name) as bus, sp.Bus0(dial=name) as stranger:
            await over.wait()
            await gone(bus, stranger)
            assert bus.listeners == ()


async def test_a_socket_that_is_closed_while_it_is_being_entered_is_closed() -> None:
    for _ in range(20):  # one task or the other comes first
        bus = sp.Bus0()
        closed = trio.Event()

        async def close(bus: sp.Bus0 = bus, closed: trio.Event = closed) -> None:
            await bus.aclose()
            closed.set()

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(close)
                with suppress(trio.ClosedResourceError):
                    async with bus:
                        await closed.wait()
                        assert "closed" in repr(bus)
                await closed.wait()


# Loops.

LOOPS: dict[str, tuple[Callable[[], Any], Callable[[Any], AsyncIterator[object]]]] = {
    "PULL": (sp.Pull0, lambda pull: pull),
    "SUB": (sp.Sub0, lambda sub: sub),
    "PAIR": (sp.Pair1, lambda pair: pair),
    "raw": (sp.raw.Req0, lambda req: req),
    "context of SUB": (sp.Sub0, lambda sub: sub.context()),
    "context of REP": (sp.Rep0, lambda rep: rep.context()),
    "requests": (sp.Rep0, lambda rep: rep.requests()),
    "surveys": (sp.Respondent0, lambda respondent: respondent.surveys()),
    "survey": (sp.Surveyor0, lambda surveyor: surveyor.survey(b"", deadline=1000)),
}
every_loop = pytest.mark.parametrize("loop", LOOPS)


@every_loop
@pytest.mark.parametrize("how", ["block", "aclose"])
async def test_a_loop_ends_when_its_socket_is_closed_in_order(loop: str, how: str) -> None:
    make, over = LOOPS[loop]
    ended: list[object] = []

    async def iterate(iterator: AsyncIterator[object]) -> None:
        ended.append([value async for value in iterator])

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, make() as socket:
            iterator = over(socket)
            for _ in range(1 if loop == "survey" else 3):
                nursery.start_soon(iterate, iterator)
            await wait_all_tasks_blocked()
            if how == "aclose":
                await socket.aclose()
        await iterate(iterator)  # whose body took until now
    assert ended == [[]] * (2 if loop == "survey" else 4)


@every_loop
@pytest.mark.parametrize("how", ["close", "error", "cancelled"])
async def test_a_loop_is_told_when_its_socket_is_closed_at_once(loop: str, how: str) -> None:
    make, over = LOOPS[loop]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                try:
                    async with make() as socket:
                        iterator = over(socket)
                        waiting = Background(nursery, lambda: anext(iterator))
                        await wait_all_tasks_blocked()
                        if how == "close":
                            socket.close()
                        elif how == "error":
                            raise KeyError
                        else:
                            scope.cancel()
                            await trio.lowlevel.checkpoint()
                except KeyError:
                    pass
            with pytest.raises(trio.ClosedResourceError):
                await waiting.done()
            with pytest.raises(trio.ClosedResourceError):
                await anext(iterator)


@pytest.mark.parametrize("loop", ["context of SUB", "context of REP"])
@pytest.mark.parametrize("how", ["close", "block"])
async def test_a_loop_over_a_context_ends_when_the_context_is_closed(loop: str, how: str) -> None:
    make, over = LOOPS[loop]
    with trio.fail_after(10):
        async with make() as socket, trio.open_nursery() as nursery:
            context: Any = over(socket)
            waiting = Background(nursery, lambda: anext(context, "over"))
            await wait_all_tasks_blocked()
            if how == "close":
                context.close()
            else:
                async with context:
                    pass
            assert await waiting.done() == await anext(context, "over") == "over"
            with pytest.raises(trio.ClosedResourceError):
                await context.receive()


# What is left.


@pytest.mark.slow
@each([kind for kind in ALL if kind.receives and not (kind.socket is sp.Req0 and not kind.raw)])
async def test_a_closed_socket_keeps_the_number_of_unread_messages_and_not_the_messages(kind: Kind, name: str) -> None:
    async with talking(kind, name) as talk:
        await talk.begin()
        body = b"unread " * 10
        await talk.send_to_ours(body)
        while not talk.ours.statistics().inbox:
            await trio.lowlevel.checkpoint()
        await talk.ours.aclose()
        await talk.theirs.aclose()
        gc.collect()
        assert not [thing for thing in gc.get_objects() if isinstance(thing, sp.Message) and thing.body == body]
        assert talk.ours.statistics().inbox == 1
        assert "closed pipes=0 inbox=1" in repr(talk.ours)


@pytest.mark.slow
async def test_a_closed_socket_that_an_exit_stack_still_holds_takes_little() -> None:
    count = 50

    async def come_and_go() -> None:
        for socket in (sp.Req0(), sp.Rep0(), sp.Surveyor0(), sp.Respondent0(), sp.Sub0()):
            await stack.enter_async_context(socket)
            await socket.aclose()

    async with AsyncExitStack() as stack:
        await come_and_go()
        tracemalloc.start()
        try:
            for _ in range(count):
                await come_and_go()
            gc.collect()
            size, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert size / (5 * count) < 12_000
