"""Closing at any moment, whatever is going on: it ends within its deadline, and so do all calls
that wait.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import sp
from tests.transports.ends import client_tls, dial, network_only, server_tls
from tests.transports.wire import BUS, REQ, SUB, at_most, connect_as, expect, frame, receive_end, receive_frame, reset, socket_of

_names = itertools.count(1)

Work = Callable[[Any, random.Random], Awaitable[None]]


class DeliberateError(Exception):
    pass


async def _pause(rng: random.Random) -> None:
    if rng.randrange(4) == 0:
        await trio.sleep(0.001)


async def _ask(req: sp.Req0, rng: random.Random) -> None:
    while True:
        await req.request(rng.randbytes(rng.choice([0, 10, 70_000])))
        await _pause(rng)


async def _ask_in_turns(req: sp.Req0, rng: random.Random) -> None:
    try:
        while True:
            await req.send(b"x" * rng.choice([0, 10, 70_000]))
            if rng.randrange(3):
                await req.receive()
            await _pause(rng)
    except (sp.RequestReplaced, trio.BusyResourceError, sp.StateError):
        pass  # several of us on one conversation


async def _answer(rep: sp.Rep0, rng: random.Random) -> None:
    async for request in rep.requests():
        await _pause(rng)
        await request.reply(request.body)


async def _answer_sometimes(rep: sp.Rep0, rng: random.Random) -> None:
    while True:
        async with rep.context() as context:
            body = await context.receive()
            await _pause(rng)
            if rng.randrange(3):
                await context.send(body)


async def _send(sock: sp.Pub0 | sp.Bus0, rng: random.Random) -> None:
    while True:
        for _ in range(rng.randrange(1, 50)):
            await sock.send(b"x" * rng.choice([0, 10, 70_000]))
        await trio.sleep(0.001)


async def _receive(sock: sp.Sub0 | sp.Bus0, rng: random.Random) -> None:
    while True:
        await sock.receive_many(rng.choice([None, 1, 5]))
        await _pause(rng)


async def _watch(sock: Any, _: random.Random) -> None:
    async for _event in sock.events():
        pass


async def _wait_for_peers(sock: Any, rng: random.Random) -> None:
    await sock.wait_for_peers(rng.randrange(4))


async def _dial(sock: Any, rng: random.Random) -> None:
    with trio.move_on_after(rng.choice([0, 0.001, 0.1])):
        try:
            await sock.dial("inproc://nobody")
        except sp.DialError:
            pass


_ANYBODY: list[Work] = [_watch, _wait_for_peers, _dial]
_PAIRS: list[tuple[Callable[..., Any], list[Work], Callable[..., Any], list[Work]]] = [
    (sp.Rep0, [_answer, _answer_sometimes], sp.Req0, [_ask, _ask_in_turns]),
    (sp.Req0, [_ask, _ask_in_turns], sp.Rep0, [_answer, _answer_sometimes]),
    (sp.Pub0, [_send], lambda **options: sp.Sub0(topics=b"", **options), [_receive]),
    (lambda **options: sp.Sub0(topics=b"", **options), [_receive], sp.Pub0, [_send]),
    (sp.Bus0, [_send, _receive], sp.Bus0, [_send, _receive]),
]

LINGER = 0.2


async def _until_closed(work: Work, sock: Any, rng: random.Random) -> None:
    try:
        await work(sock, rng)
    except trio.ClosedResourceError:
        pass


async def _act(rng: random.Random, listening: Any, dialing: Any, scope: trio.CancelScope) -> None:
    sock = rng.choice([listening, dialing])
    match rng.randrange(10):
        case 0:
            sock.close()
        case 1 | 2:
            await sock.aclose()
        case 3:
            with trio.move_on_after(rng.choice([0, 0.01])):
                await sock.aclose()
        case 4:
            scope.cancel()
        case 5:
            raise DeliberateError
        case 6:
            for part in [*sock.pipes, *sock.dialers, *sock.listeners]:
                part.close()
        case 7:
            async with trio.open_nursery() as nursery:
                for each in (listening, dialing, listening):
                    nursery.start_soon(each.aclose)
        case _:
            pass  # just leave the blocks


async def one_life(seed: int, url: str) -> None:
    """Open two sockets, let tasks use them in every way, and close at a random moment in a random
    way.
    """
    rng = random.Random(seed)
    make_listening, listening_works, make_dialing, dialing_works = rng.choice(_PAIRS)

    def options() -> dict[str, Any]:
        return {
            "linger": rng.choice([0, LINGER]),
            "inbox_limit": rng.choice([1, 3, 128]),
            "outbox_limit": rng.choice([1, 3, 128]),
            "redial_min": 0.01,
            "redial_max": 0.02,
        }

    try:
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            listening = await stack.enter_async_context(make_listening(listen=url, tls=server_tls(url), **options()))
            dialing = await stack.enter_async_context(make_dialing(dial=listening.url, tls=client_tls(url), **options()))
            for sock, works in ((listening, listening_works), (dialing, dialing_works)):
                for work in rng.choices(works + _ANYBODY, weights=[3] * len(works) + [1] * len(_ANYBODY), k=rng.randrange(4)):
                    nursery.start_soon(_until_closed, work, sock, rng)
            for _ in range(rng.randrange(2)):
                await dialing.wait_for_peers()
            for _ in range(rng.randrange(60)):
                await trio.lowlevel.checkpoint()
            if rng.randrange(2):
                await trio.sleep(rng.choice([0.001, 0.01]))
            began = trio.current_time()
            await _act(rng, listening, dialing, nursery.cancel_scope)
    except* DeliberateError:
        pass
    assert trio.current_time() - began <= 2 * LINGER + 0.5, "closing took too long"


async def lives(count: int, new_url: Callable[[], str]) -> None:
    first = random.randrange(1 << 32)
    url = new_url()
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as req:
        # The task that lets handshakes through one by one lives as long as the run.
        await dial(req, rep.url)
    tasks = trio.lowlevel.current_statistics().tasks_living
    for seed in range(first, first + count):
        try:
            with trio.fail_after(10):
                await one_life(seed, new_url())
            assert trio.lowlevel.current_statistics().tasks_living == tasks
        except BaseException:
            print("seed", seed)
            raise


@pytest.mark.slow
async def test_closed_at_any_of_two_thousand_moments_everything_ends_within_the_deadline(autojump_clock: MockClock) -> None:
    await lives(2_000, lambda: f"inproc://life-{next(_names)}")


@pytest.mark.slow
@network_only
async def test_over_a_network_too_closing_at_any_moment_ends_within_the_deadline(url: str) -> None:
    await lives(300, lambda: url)


# Particular moments.


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:0", "tls+tcp://127.0.0.1:0", "inproc://close", "ws://127.0.0.1:0", "wss://127.0.0.1:0"])
async def test_all_waiting_calls_learn_that_the_socket_was_closed(url: str) -> None:
    told: list[str] = []

    async def wait(name: str, call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await call()
        told.append(name)

    async with sp.Req0() as req, sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Sub0() as sub:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                context = req.context()
                nursery.start_soon(wait, "send", lambda: req.send(b"to nobody"))
                nursery.start_soon(wait, "context send", lambda: context.send(b"to nobody"))
                nursery.start_soon(wait, "request", lambda: req.request(b"to nobody"))
                nursery.start_soon(wait, "receive", rep.receive)
                nursery.start_soon(wait, "context receive", rep.context().receive)
                nursery.start_soon(wait, "receive_many", sub.receive_many)
                nursery.start_soon(wait, "wait_for_peers", sub.wait_for_peers)
                nursery.start_soon(wait, "next request", lambda: anext(rep.requests()))
                await trio.testing.wait_all_tasks_blocked()
                req.close()
                rep.close()
                sub.close()
        assert len(told) == 8
        for sock in (req, rep, sub):
            assert [event async for event in sock.events()] == []


async def test_a_dial_that_waits_is_told_when_the_socket_is_closed() -> None:
    (listening,) = await trio.open_tcp_listeners(0, host="127.0.0.1")  # accepts, and says nothing
    async with listening, sp.Req0() as req:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:

                async def dial() -> None:
                    with pytest.raises((trio.ClosedResourceError, sp.DialError)):
                        await req.dial(f"tcp://127.0.0.1:{listening.socket.getsockname()[1]}")

                nursery.start_soon(dial)
                stream = await listening.accept()
                req.close()
            await stream.aclose()


@network_only
async def test_a_peer_that_never_reads_cannot_hold_up_closing_for_longer_than_linger(url: str, mock_clock: MockClock) -> None:
    with at_most(10):
        async with sp.Pub0(listen=url, tls=server_tls(url), linger=3, outbox_limit=1_000, outbox_bytes=1 << 30) as pub:
            stream = await connect_as(pub.url, SUB)
            await pub.wait_for_peers()
            for _ in range(500):
                await pub.send(bytes(100_000))
            async with trio.open_nursery() as nursery:
                closed: list[float] = []

                async def close() -> None:
                    await pub.aclose()
                    closed.append(trio.current_time())

                began = trio.current_time()
                nursery.start_soon(close)
                await trio.testing.wait_all_tasks_blocked(0.01)
                mock_clock.jump(2.9)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not closed
                mock_clock.jump(0.2)
            assert closed == [pytest.approx(began + 3.1)]
            dropped = pub.statistics().dropped[sp.DropReason.SOCKET_CLOSED]
            assert 0 < dropped < 500
            await stream.aclose()


@network_only
async def test_a_pipe_that_is_closed_in_the_moment_in_which_its_peers_buffer_is_full_ends_alone(url: str) -> None:
    async with sp.Pub0(listen=url, tls=server_tls(url), outbox_limit=1) as pub:
        url = pub.url
        with trio.fail_after(5):
            async with await connect_as(url, SUB) as deaf, await connect_as(url, SUB) as good:
                await pub.wait_for_peers(2)
                (pipe,) = (each for each in pub.pipes if each.remote_address.endswith(f":{socket_of(deaf).getsockname()[1]}"))
                for _ in range(100):  # none of which gives other tasks a turn
                    pub.send_nowait(bytes(1 << 20))
                pipe.close()
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert len(pub.pipes) == 1
                assert await good.receive_some(9)


@network_only
async def test_a_peer_that_never_stops_sending_cannot_hold_up_closing(url: str, mock_clock: MockClock) -> None:
    with at_most(10):
        async with sp.Bus0(listen=url, tls=server_tls(url), linger=3) as bus:
            stream = await connect_as(bus.url, BUS)
            await bus.wait_for_peers()
            async with trio.open_nursery() as nursery:
                rounds = 0

                async def flood() -> None:
                    nonlocal rounds
                    with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                        while True:
                            await stream.send_all(frame(b"more") * 1_000)
                            rounds += 1

                async def close() -> None:
                    await bus.aclose()

                nursery.start_soon(flood)
                while rounds < 4:
                    await trio.lowlevel.checkpoint()
                nursery.start_soon(close)
                before = rounds
                while rounds < before + 4:
                    await trio.lowlevel.checkpoint()
                mock_clock.jump(3.1)
            await stream.aclose()


@network_only
async def test_what_was_accepted_is_delivered_before_a_close_in_order_returns(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url), inbox_limit=10_000, inbox_bytes=1 << 30) as receiver:
        with trio.fail_after(10):
            async with sp.Bus0(linger=5) as sender:
                await dial(sender, receiver.url)
                await sender.wait_for_peers()
                for number in range(100):
                    await sender.send(b"%d" % number + bytes(100_000))
                left = sender.statistics().dropped[sp.DropReason.PEER_FULL]
            assert sender.statistics().dropped[sp.DropReason.SOCKET_CLOSED] == 0
            for _ in range(100 - left):
                await receiver.receive()


@network_only
async def test_a_reply_arrives_whole_even_when_its_socket_is_closed_with_requests_unread(url: str) -> None:
    # Closing a TCP socket that has something unread resets the connection, and what is on its way
    # is lost.
    async with sp.Rep0(listen=url, tls=server_tls(url), inbox_limit=1, linger=5, outbox_bytes=1 << 30) as rep:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery, await connect_as(rep.url, REQ) as stream:
                # A read takes 64 KiB at most and is not followed by another, for the inbox is full.
                nursery.start_soon(stream.send_all, frame(b"\x80\0\0\1" + bytes(10_000)) * 12)
                await trio.testing.wait_all_tasks_blocked(0.02)
                await rep.receive()
                await rep.send(bytes(3_000_000))
                nursery.start_soon(rep.aclose)
                await trio.testing.wait_all_tasks_blocked(0.02)
                assert await receive_frame(stream) == b"\x80\0\0\1" + bytes(3_000_000)
                assert await receive_end(stream) == b""


@network_only
async def test_closing_twice_or_from_two_tasks_or_cancelled_is_no_trouble(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep:
        with trio.fail_after(5):
            with trio.CancelScope() as scope:
                scope.cancel()
                await rep.aclose()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rep.aclose)
                nursery.start_soon(rep.aclose)
            rep.close()
            await rep.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await rep.receive()


@pytest.mark.slow
async def test_a_socket_that_is_opened_and_closed_in_either_order_of_its_peer_leaves_nothing(autojump_clock: MockClock) -> None:
    with trio.fail_after(300):
        tasks = trio.lowlevel.current_statistics().tasks_living
        for number in range(300):
            url = f"inproc://order-{next(_names)}"
            rep, req = sp.Rep0(listen=url), sp.Req0(dial=url)
            first, second = (rep, req) if number % 2 else (req, rep)
            async with first, second:
                if number % 3:
                    await req.wait_for_peers()
                if number % 5 == 0:
                    first.close()
        assert trio.lowlevel.current_statistics().tasks_living == tasks


@network_only
async def test_an_error_in_the_block_comes_out_as_itself(url: str) -> None:
    with trio.fail_after(5):
        with pytest.raises(DeliberateError):
            async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0(dial=rep.url, tls=client_tls(url)) as req:
                await req.wait_for_peers()
                raise DeliberateError


@network_only
async def test_a_failing_peer_neither_fails_the_socket_nor_the_listener(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as bus:
        events = bus.events()
        with trio.fail_after(5):
            for _ in range(20):
                stream = await connect_as(bus.url, BUS)
                await expect(events, sp.EventKind.ATTACHED)
                bus.send_nowait(bytes(100_000))
                reset(stream)
                await expect(events, sp.EventKind.DETACHED)
        assert len(bus.listeners) == 1
