"""Devices: what arrives at one raw socket leaves by another."""

from __future__ import annotations

import gc
import itertools
import os
import random
import tracemalloc
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import sp
from tests.transports.ends import dial, listen
from tests.transports.wire import until

from .conftest import Background, connect
from .kinds import ID, RAW, Kind, Talk, each, everything, gone, kind_of, raw_of

_names = itertools.count()
PATTERNS: dict[str, tuple[type, type]] = {
    "req": (sp.Req0, sp.Rep0),
    "survey": (sp.Surveyor0, sp.Respondent0),
    "push": (sp.Push0, sp.Pull0),
    "pub": (sp.Pub0, sp.Sub0),
    "bus": (sp.Bus0, sp.Bus0),
    "pair0": (sp.Pair0, sp.Pair0),
    "pair1": (sp.Pair1, sp.Pair1),
}
every_pattern = pytest.mark.parametrize(("asking", "answering"), PATTERNS.values(), ids=PATTERNS)


def only(*names: str) -> pytest.MarkDecorator:
    """Run a test once for each of these patterns."""
    return pytest.mark.parametrize(("asking", "answering"), [PATTERNS[name] for name in names], ids=names)


with_hops = only("req", "survey", "pair1")
NOTHING: Mapping[str, Any] = MappingProxyType({})
LASTING: dict[type, dict[str, float]] = {sp.Surveyor0: {"deadline": 1000}}


def new_url(scheme: str, folder: Path) -> str:
    name = f"{os.getpid()}-{next(_names)}"
    return {
        "inproc": f"inproc://device-{name}",
        "ipc": f"ipc://{folder}/{name}",
        "abstract": f"abstract://sp-device-{name}",
    }.get(scheme, f"{scheme}://127.0.0.1:0")


@asynccontextmanager
async def running(front: Any, back: Any = None) -> AsyncIterator[trio.CancelScope]:
    """Run a device beside the block."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sp.device.device, front, back)
        await wait_all_tasks_blocked()
        yield nursery.cancel_scope
        nursery.cancel_scope.cancel()


class Chain:
    """Two sockets that talk through devices, and the devices' sockets between them, from the asking
    side.
    """

    def __init__(self, talk: Talk, middle: list[Any]) -> None:
        self.talk = talk
        self.middle = middle


@asynccontextmanager
async def chain(
    asking: type,
    answering: type,
    urls: list[str],
    *,
    front: Mapping[str, Any] = NOTHING,
    back: Mapping[str, Any] = NOTHING,
    middle: Mapping[str, Any] = NOTHING,
) -> AsyncIterator[Chain]:
    """Join an *asking* and an *answering* socket by one device less than there are *urls*.

    Who is nearer to the answering side listens.  *front* and *back* are options of the two ends,
    *middle* those of all between them.
    """
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        first = await enter(asking(**LASTING.get(asking, {}), **front))
        last = await enter(answering(**everything(Kind(answering)), **back))
        sockets = [first]
        for _ in urls[1:]:
            sockets += [await enter(raw_of(answering)(**middle)), await enter(raw_of(asking)(**middle))]
        sockets.append(last)
        for url, dialing, listening in zip(urls, sockets[::2], sockets[1::2], strict=True):
            await dial(dialing, (await listen(listening, url)).url)
            await listening.wait_for_peers()
        for one, other in zip(sockets[1:-1:2], sockets[2:-1:2], strict=True):
            await enter(running(one, other))
        yield Chain(Talk(first, last), sockets[1:-1])


# Every pattern, every transport.


@pytest.mark.slow
@every_pattern
@pytest.mark.parametrize(
    "schemes",
    [("wss", "ipc"), ("ipc", "wss"), ("tcp", "inproc"), ("inproc", "ws"), ("tls+tcp", "abstract"), ("inproc", "inproc")],
    ids="-".join,
)
async def test_a_device_joins_any_two_transports(asking: type, answering: type, schemes: tuple[str, str], tmp_path: Path) -> None:
    with trio.fail_after(20):
        async with chain(asking, answering, [new_url(scheme, tmp_path) for scheme in schemes]) as joined:
            talk = joined.talk
            for size in (0, 1, 65_535, 65_536, 500_000):
                body = os.urandom(size)
                assert await talk.ask(body) == body
                if talk.both_ways:
                    assert await talk.answer(body[::-1]) == body[::-1]
            for socket in (talk.front, *joined.middle, talk.back):
                assert socket.statistics().dropped == {}


@pytest.mark.slow
@every_pattern
@pytest.mark.parametrize("devices", [2, 3, 5])
async def test_devices_in_a_row_pass_on_to_each_other(asking: type, answering: type, devices: int, tmp_path: Path) -> None:
    schemes = ["inproc", "ipc", "tcp", "inproc", "abstract", "ws"]
    with trio.fail_after(20):
        async with chain(asking, answering, [new_url(scheme, tmp_path) for scheme in schemes[: devices + 1]]) as joined:
            talk = joined.talk
            for number in range(20):
                body = b"%d" % number
                assert await talk.ask(body) == body
                if talk.both_ways:
                    assert await talk.answer(body) == body
            for socket in joined.middle:
                figures = socket.statistics()
                assert figures.messages_received + figures.messages_sent == 20 * (1 + talk.both_ways)
                assert figures.inbox == 0


async def test_which_socket_is_called_the_front_makes_no_difference(tmp_path: Path) -> None:
    urls = [new_url("inproc", tmp_path) for _ in range(2)]
    for turned in (False, True):
        async with (
            sp.Rep0(listen=urls[1]) as rep,
            sp.raw.Req0(dial=urls[1]) as back,
            sp.raw.Rep0(listen=urls[0]) as front,
            sp.Req0(dial=urls[0]) as req,
            running(*((back, front) if turned else (front, back))),
        ):
            await req.send(b"x")
            await rep.send(await rep.receive())
            assert await req.receive() == b"x"


@pytest.mark.slow
async def test_a_hundred_requests_at_once_get_their_own_replies(tmp_path: Path) -> None:
    urls = [new_url("tcp", tmp_path), new_url("ipc", tmp_path)]
    with trio.fail_after(20):
        async with chain(sp.Req0, sp.Rep0, urls) as joined, trio.open_nursery() as nursery:

            async def serve() -> None:
                async for request in joined.talk.back.requests():
                    nursery.start_soon(request.reply, b"re: " + request.body)

            nursery.start_soon(serve)
            async with trio.open_nursery() as asking:
                for client in range(10):
                    asking.start_soon(_ask_ten, client, joined.middle[0].url)
            nursery.cancel_scope.cancel()


async def _ask_ten(client: int, url: str) -> None:
    async with sp.Req0() as req:
        await dial(req, url)

        async def ask(number: int) -> None:
            assert await req.request(b"%d-%d" % (client, number)) == b"re: %d-%d" % (client, number)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(ask, number)


@pytest.mark.slow
async def test_surveys_reach_all_peers_behind_a_device_and_all_answers_come_back(tmp_path: Path) -> None:
    urls = [new_url("tcp", tmp_path), new_url("inproc", tmp_path)]
    with trio.fail_after(20):
        async with (
            sp.raw.Respondent0(listen=urls[0]) as front,
            sp.raw.Surveyor0(listen=urls[1]) as back,
            trio.open_nursery() as nursery,
            running(front, back),
        ):

            async def answer(number: int) -> None:
                async with sp.Respondent0(dial=back.url) as respondent:
                    async for survey in respondent.surveys():
                        await survey.reply(b"%d" % number)

            async def ask() -> None:
                async with sp.Surveyor0(deadline=1000) as surveyor:
                    await surveyor.dial(front.url)
                    survey = surveyor.survey(b"who?")
                    assert sorted([int(await anext(survey)) for _ in range(20)]) == list(range(20))

            for number in range(20):
                nursery.start_soon(answer, number)
            await back.wait_for_peers(20)
            async with trio.open_nursery() as asking:
                for _ in range(5):
                    asking.start_soon(ask)
            nursery.cancel_scope.cancel()


# Hops.


@with_hops
@pytest.mark.parametrize("devices", [1, 2, 7])
@pytest.mark.parametrize(("more", "taken"), [(-1, False), (0, True), (1, True)], ids=["one below", "at the limit", "one above"])
async def test_the_ttl_of_the_last_one_counts_the_hops_up_to_it(
    asking: type, answering: type, devices: int, more: int, taken: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    ttl = devices + 1 + more
    if ttl < 1:
        pytest.skip("no ttl")
    urls = [new_url("inproc", tmp_path) for _ in range(devices + 1)]
    async with chain(asking, answering, urls, back={"ttl": ttl}) as joined:
        if not taken:
            await joined.talk.send(b"too far")
            await wait_all_tasks_blocked()
            assert joined.talk.back.statistics().dropped == {"ttl": 1}
            assert joined.talk.back.statistics().inbox == 0
            return
        assert await joined.talk.ask(b"x") == b"x"
        assert await joined.talk.answer(b"y") == b"y"
        assert joined.talk.back.statistics().dropped == {}


@with_hops
@pytest.mark.parametrize("ttl", [1, 2, 3])
async def test_a_device_drops_and_counts_what_has_come_further_than_its_own_ttl(
    asking: type, answering: type, ttl: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    # With all the same ttl, a message comes through as many devices, and the next one stops it.
    urls = [new_url("inproc", tmp_path) for _ in range(6)]
    own = {"ttl": ttl} if answering is asking else {}
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        first = await enter(asking(**LASTING.get(asking, {})))
        fronts = [await enter(raw_of(answering)(ttl=ttl, listen=url)) for url in urls]
        backs = [await enter(raw_of(asking)(**own)) for _ in urls]
        await dial(first, urls[0])
        for back, url in zip(backs, urls[1:], strict=False):
            await dial(back, url)
        for front, back in zip(fronts, backs, strict=True):
            await enter(running(front, back))
        await first.send(b"x")
        await wait_all_tasks_blocked()
        assert [front.statistics().messages_received for front in fronts] == [1] * (ttl + 1) + [0] * (5 - ttl)
        assert [front.statistics().dropped for front in fronts] == [{}] * ttl + [{"ttl": 1}] + [{}] * (5 - ttl)


@pytest.mark.slow
@with_hops
@pytest.mark.parametrize("ttl", [1, 2, 8, 255])
@pytest.mark.parametrize("scheme", ["inproc", "tcp"])
async def test_a_loop_of_two_devices_comes_to_rest(asking: type, answering: type, ttl: int, scheme: str, tmp_path: Path) -> None:
    async with (
        raw_of(answering)(ttl=ttl) as one_front,
        raw_of(asking)(**({"ttl": ttl} if asking is sp.Pair1 else {})) as one_back,
        raw_of(answering)(ttl=ttl) as two_front,
        raw_of(asking)(**({"ttl": ttl} if asking is sp.Pair1 else {})) as two_back,
    ):
        with trio.fail_after(20):
            await dial(one_back, (await listen(two_front, new_url(scheme, tmp_path))).url)
            await dial(two_back, (await listen(one_front, new_url(scheme, tmp_path))).url)
            for front in (one_front, two_front):
                await front.wait_for_peers()
            async with running(one_front, one_back), running(two_front, two_back):
                count = 20
                for _ in range(count):
                    await two_back.send_message(sp.Message(b"round and round", bytes(4) if asking is sp.Pair1 else ID))

                def made() -> int:
                    return sum(front.statistics().messages_received for front in (one_front, two_front))

                # Each was received once for each hop, and once more where it was dropped: a PAIR1
                # drops the 255th before it sends it.
                times = min(ttl + 1, 255) if asking is sp.Pair1 else ttl + 1
                await until(lambda: made() >= count * times)
                await wait_all_tasks_blocked(0.01)
                dropped = [socket.statistics().dropped[sp.DropReason.TTL] for socket in (one_front, one_back, two_front, two_back)]
                assert sum(dropped) == count
                assert made() == count * times
                assert [socket.statistics().inbox for socket in (one_front, one_back, two_front, two_back)] == [0] * 4


# Backpressure.


@pytest.mark.slow
@pytest.mark.parametrize("schemes", [("inproc", "inproc"), ("tcp", "ipc"), ("ws", "tls+tcp")], ids="-".join)
@only("push", "pair0", "pair1")
async def test_a_slow_end_slows_the_other_one_down_and_nothing_is_lost(
    asking: type, answering: type, schemes: tuple[str, str], tmp_path: Path
) -> None:
    body = bytes(10_000)
    count = 6000  # 60 MB, more than all queues and kernel buffers on the way
    bounds: dict[str, Any] = {"inbox_limit": 8, "outbox_limit": 8}
    urls = [new_url(scheme, tmp_path) for scheme in schemes]
    async with chain(asking, answering, urls, front=bounds, back=bounds, middle=bounds) as joined, trio.open_nursery() as nursery:
        gc.collect()
        tracemalloc.start()
        sent = 0

        async def send() -> None:
            nonlocal sent
            for number in range(count):
                await joined.talk.front.send(number.to_bytes(4, "big") + body)
                sent += 1

        nursery.start_soon(send)
        before = -1
        while sent > before:
            before = sent
            await wait_all_tasks_blocked(0.01)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert 32 <= sent < count // 2
        assert peak < 24 << 20
        for socket in (joined.talk.front, *joined.middle, joined.talk.back):
            figures = socket.statistics()
            assert figures.inbox <= 8
            # And what one write of 64 KiB took over.
            assert all(pipe.outbox <= 8 + 7 for pipe in figures.pipes)
        with trio.fail_after(30):
            numbers: list[int] = []
            while len(numbers) < count:
                numbers += [int.from_bytes(got[:4], "big") for got in await joined.talk.back.receive_many()]
        assert numbers == list(range(count))
        for socket in (joined.talk.front, *joined.middle, joined.talk.back):
            assert socket.statistics().dropped == {}


async def test_a_slow_service_behind_a_device_holds_its_clients_back_and_answers_all(tmp_path: Path) -> None:
    urls = [new_url("tcp", tmp_path), new_url("inproc", tmp_path)]
    bounds: dict[str, Any] = {"inbox_limit": 8, "outbox_limit": 8}
    count = 500  # 20 MB
    async with chain(sp.Req0, sp.Rep0, urls, front=bounds, back=bounds, middle=bounds) as joined, trio.open_nursery() as nursery:
        sent = 0
        answers: set[bytes] = set()

        async def ask(number: int) -> None:
            nonlocal sent
            async with joined.talk.front.context() as context:
                await context.send(number.to_bytes(4, "big") + bytes(40_000))
                sent += 1
                answers.add(await context.receive())

        for number in range(count):
            nursery.start_soon(ask, number)
        before = -1
        while sent > before:
            before = sent
            await wait_all_tasks_blocked(0.01)
        assert 16 <= sent < count
        assert joined.middle[0].statistics().inbox <= 8
        with trio.fail_after(30):
            requests = joined.talk.back.requests()
            for _ in range(count):
                request = await anext(requests)
                await request.reply(request.body[:4])
            await until(lambda: len(answers) == count)
        assert joined.talk.back.statistics().messages_received == count
        assert joined.middle[0].statistics().dropped == {}


@pytest.mark.parametrize("raw_class", [sp.Req0, sp.Surveyor0], ids=["req", "survey"])
async def test_a_client_that_does_not_read_its_answers_does_not_stall_the_others(raw_class: type, tmp_path: Path) -> None:
    asking, answering = PATTERNS["req" if raw_class is sp.Req0 else "survey"]
    urls = [new_url("inproc", tmp_path) for _ in range(2)]
    async with chain(asking, answering, urls, middle={"outbox_limit": 4}) as joined, raw_of(raw_class)(inbox_limit=1) as deaf:
        device_front = joined.middle[0]
        await dial(deaf, urls[0])
        await device_front.wait_for_peers(2)
        server = joined.talk.back
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:

                async def serve() -> None:
                    async for asked in server.requests() if raw_class is sp.Req0 else server.surveys():
                        await asked.reply(asked.body)

                nursery.start_soon(serve)
                for number in range(1000):
                    await deaf.send_message(sp.Message(b"%d" % number, ID))
                    if number % 10 == 0:
                        await joined.talk.front.send(b"and me?")
                        assert await joined.talk.front.receive() == b"and me?"
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        dropped = device_front.statistics().dropped[sp.DropReason.PEER_FULL]
        got = 0
        while True:
            await wait_all_tasks_blocked()
            try:
                deaf.receive_nowait()
            except trio.WouldBlock:
                break
            got += 1
        assert dropped > 500
        assert got + dropped == 1000


async def test_a_slow_subscriber_behind_a_device_misses_messages_and_the_others_none(tmp_path: Path, autojump_clock: MockClock) -> None:
    urls = [new_url("inproc", tmp_path) for _ in range(2)]
    async with (
        sp.raw.Sub0(listen=urls[0]) as front,
        sp.raw.Pub0(listen=urls[1], outbox_limit=4) as back,
        sp.Pub0(dial=urls[0]) as pub,
        sp.Sub0(topics=b"") as good,
        sp.Sub0(topics=b"", inbox_limit=1, inbox_drops="newest") as slow,
        running(front, back),
    ):
        for sub in (good, slow):
            await sub.dial(urls[1])
        await back.wait_for_peers(2)
        await pub.wait_for_peers()
        for number in range(1000):
            await pub.send(b"%d" % number)
            assert await good.receive() == b"%d" % number
        await trio.sleep(1)
        lost = back.statistics().dropped[sp.DropReason.PEER_FULL] + slow.statistics().dropped[sp.DropReason.INBOX_FULL]
        assert lost + slow.statistics().inbox == 1000
        assert good.statistics().dropped == front.statistics().dropped == pub.statistics().dropped == {}


# Sides that are absent, die and come back.


@each([Kind(sp.Push0), Kind(sp.Pair0), Kind(sp.Pair1), Kind(sp.Req0)])
async def test_a_side_without_peers_is_waited_for(kind: Kind, tmp_path: Path) -> None:
    urls = [new_url("inproc", tmp_path) for _ in range(2)]
    counterpart = type(kind.peer())
    async with (
        kind() as first,
        raw_of(counterpart)(listen=urls[0], inbox_limit=4) as front,
        raw_of(kind.socket)(listen=urls[1]) as back,
        running(front, back),
        trio.open_nursery() as nursery,
    ):
        await dial(first, urls[0])
        contexts = [first.context() if kind.socket is sp.Req0 else first for _ in range(400)]
        sending = [Background(nursery, lambda context=context: context.send(b"x")) for context in contexts]
        await wait_all_tasks_blocked()
        assert front.statistics().inbox == 4
        async with kind.peer() as last:
            await dial(last, urls[1])
            for _ in contexts:
                assert await last.receive() == b"x"
            for call in sending:
                await call.done()
            assert front.statistics().dropped == back.statistics().dropped == {}


@pytest.mark.parametrize("dying", ["front", "back"])
async def test_a_side_whose_peer_dies_goes_on_with_the_next_one(dying: str, tmp_path: Path) -> None:
    urls = [new_url("tcp", tmp_path), new_url("ipc", tmp_path)]
    with trio.fail_after(20):
        async with sp.raw.Rep0(listen=urls[0]) as front, sp.raw.Req0(listen=urls[1]) as back, running(front, back):
            address = front.url
            async with AsyncExitStack() as stack:
                req = rep = None
                for turn in range(5):
                    if req is None or dying == "front":
                        req = await stack.enter_async_context(sp.Req0(resend_after=None))
                        await req.dial(address)
                    if rep is None or dying == "back":
                        rep = await stack.enter_async_context(sp.Rep0())
                        await rep.dial(urls[1])
                        await back.wait_for_peers()
                    await req.send(b"%d" % turn)
                    await rep.send(await rep.receive())
                    assert await req.receive() == b"%d" % turn
                    gone_socket, left = (req, front) if dying == "front" else (rep, back)
                    gone_socket.close()
                    await gone(left)


async def test_an_answer_to_a_client_that_is_gone_is_dropped_and_counted(tmp_path: Path) -> None:
    urls = [new_url("inproc", tmp_path) for _ in range(2)]
    async with chain(sp.Req0, sp.Rep0, urls) as joined:
        await joined.talk.ask(b"x")
        joined.talk.front.close()
        await gone(joined.middle[0])
        await joined.talk.back.send(b"too late")
        await wait_all_tasks_blocked()
        assert joined.middle[0].statistics().dropped == {"requester gone": 1}


async def test_a_request_whose_service_dies_behind_the_device_is_asked_again_by_the_client(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    urls = [new_url("inproc", tmp_path) for _ in range(2)]
    async with chain(sp.Req0, sp.Rep0, urls, front={"resend_after": 10}) as joined, sp.Rep0() as another:
        await joined.talk.ask(b"x")
        joined.talk.back.close()
        await gone(joined.middle[1])
        await another.listen(urls[1])
        await another.send(await another.receive())
        assert await joined.talk.front.receive() == b"x"


# The bus.


async def test_a_device_of_one_bus_passes_on_to_all_but_the_sender(url: str) -> None:
    async with sp.raw.Bus0() as bus, trio.open_nursery() as nursery:
        await listen(bus, url)
        peers = [await nursery.start(_peer, bus.url) for _ in range(5)]
        await bus.wait_for_peers(5)
        async with running(bus):
            for number, peer in enumerate(peers):
                await peer.send(b"%d" % number)
                for other in peers:
                    if other is not peer:
                        assert await other.receive() == b"%d" % number
        await wait_all_tasks_blocked(0.005)
        assert [peer.statistics().inbox for peer in peers] == [0] * 5
        assert [peer.statistics().messages_received for peer in peers] == [4] * 5
        figures = bus.statistics()
        assert (figures.messages_received, figures.messages_sent) == (5, 20)
        assert figures.dropped == {}
        nursery.cancel_scope.cancel()


async def _peer(url: str, task_status: trio.TaskStatus[sp.Bus0]) -> None:
    async with sp.Bus0() as peer:
        await dial(peer, url)
        task_status.started(peer)
        await trio.sleep_forever()


async def test_a_bus_with_one_peer_has_no_peer_to_pass_messages_on_to_and_counts_them(name: str) -> None:
    async with sp.raw.Bus0(listen=name) as bus, sp.Bus0() as peer, running(bus):
        await connect(bus, peer)
        await peer.send(b"hello?")
        await wait_all_tasks_blocked()
        assert bus.statistics().dropped == {"no peer": 1}
        assert peer.statistics().messages_received == 0


async def test_two_buses_are_joined_to_one_but_no_message_comes_back_to_its_own(tmp_path: Path) -> None:
    urls = [new_url("inproc", tmp_path) for _ in range(2)]
    async with sp.raw.Bus0(listen=urls[0]) as one, sp.raw.Bus0(listen=urls[1]) as two, trio.open_nursery() as nursery:
        near = [await nursery.start(_peer, urls[0]) for _ in range(2)]
        far = [await nursery.start(_peer, urls[1]) for _ in range(3)]
        await one.wait_for_peers(2)
        await two.wait_for_peers(3)
        async with running(one, two):
            await near[0].send(b"x")
            assert [await peer.receive() for peer in far] == [b"x"] * 3
            await far[0].send(b"y")
            assert [await peer.receive() for peer in near] == [b"y"] * 2
            await wait_all_tasks_blocked()
            assert [peer.statistics().inbox for peer in (*near, *far)] == [0] * 5
        nursery.cancel_scope.cancel()


async def test_a_raw_bus_names_the_sender_and_can_answer_all_others(name: str) -> None:
    async with sp.raw.Bus0(listen=name) as bus, sp.Bus0() as one, sp.Bus0() as two:
        await connect(bus, one)
        await dial(two, name)
        await bus.wait_for_peers(2)
        await one.send(b"x")
        message = await bus.receive_message()
        assert message.pipe is not None
        assert message.header == message.pipe.id.to_bytes(4, "big")
        await bus.send_message(message)
        await bus.send_message(sp.Message(b"to all"))
        assert await two.receive() == b"x"
        assert [await peer.receive() for peer in (one, two)] == [b"to all"] * 2


# What is no device.


@each(RAW)
async def test_a_device_takes_counterparts_and_nothing_else(kind: Kind) -> None:
    counterpart = type(kind.peer())
    async with kind() as socket:
        for other_kind in RAW:
            if other_kind.socket is counterpart:
                continue
            async with other_kind() as other:
                for front, back in ((socket, other), (other, socket)):
                    names = f"{kind_of(front).protocol} and {kind_of(back).protocol}"
                    with pytest.raises(ValueError, match=f"a device cannot join {names}: expected {kind_of(front).peer_protocol}"):
                        await sp.device.device(front, back)
        if kind.socket not in (sp.Bus0, sp.Pair0, sp.Pair1):
            with pytest.raises(ValueError, match=f"a device cannot join {kind.protocol} and itself: expected {kind.peer_protocol}"):
                await sp.device.device(socket)
        with pytest.raises(
            ValueError, match=r"the same socket was given twice: for a device with one socket, call sp.device.device\(socket\)"
        ):
            await sp.device.device(socket, socket)


@every_pattern
async def test_a_device_takes_raw_sockets_that_are_open(asking: type, answering: type, name: str) -> None:
    async with raw_of(asking)() as raw, answering() as cooked, asking() as cooked_too:
        for pair in ((raw, cooked), (cooked, raw), (cooked, cooked_too), (cooked,)):
            with pytest.raises(TypeError, match=r"a device needs raw sockets: expected sp\.raw\.\w+\(\.\.\.\), not <\w+ open"):
                await sp.device.device(*pair)
        for pair in ((raw, raw_of(answering)()), (raw_of(answering)(), raw)):
            with pytest.raises(sp.StateError, match="async with"):
                await sp.device.device(*pair)
        closed = raw_of(answering)()
        closed.close()
        for pair in ((raw, closed), (closed, raw)):
            with pytest.raises(trio.ClosedResourceError):
                await sp.device.device(*pair)
        async with raw_of(answering)() as other, running(raw, other):  # after all that it is free
            pass


@every_pattern
async def test_a_socket_is_in_one_device_at_a_time_and_free_again_afterwards(asking: type, answering: type) -> None:
    async with raw_of(asking)() as one, raw_of(answering)() as two, raw_of(asking)() as three, raw_of(answering)() as four:
        for _ in range(2):
            async with running(one, two):
                for pair in ((one, four), (three, two), (two, three), (one, two), *([(one,)] if asking is answering else [])):
                    with pytest.raises(trio.BusyResourceError, match="in another device already"):
                        await sp.device.device(*pair)
                async with running(three, four):
                    pass


@every_pattern
@pytest.mark.parametrize("closing", [0, 1], ids=["front", "back"])
@pytest.mark.parametrize("turned", [False, True])
async def test_closing_a_socket_ends_the_device_with_an_error_of_its_own(asking: type, answering: type, closing: int, turned: bool) -> None:
    async with raw_of(answering)() as front, raw_of(asking)() as back, trio.open_nursery() as nursery:
        sockets = (back, front) if turned else (front, back)
        device = Background(nursery, lambda: sp.device.device(*sockets))
        await wait_all_tasks_blocked()
        sockets[closing].close()
        with trio.fail_after(1), pytest.raises(trio.ClosedResourceError):
            await device.done()
        other = sockets[1 - closing]
        async with raw_of(asking if other is front else answering)() as new, running(other, new):
            pass


@pytest.mark.parametrize("closing", ["front", "back"])
async def test_closing_a_socket_while_the_device_waits_for_room_ends_it_and_loses_nothing(closing: str, tmp_path: Path) -> None:
    urls = [new_url("inproc", tmp_path) for _ in range(2)]
    async with (
        sp.raw.Pull0(listen=urls[0]) as front,
        sp.raw.Push0(listen=urls[1]) as back,
        sp.Push0(dial=urls[0]) as push,
        trio.open_nursery() as nursery,
    ):
        device = Background(nursery, lambda: sp.device.device(front, back))
        for number in range(10):
            await push.send(b"%d" % number)
        await wait_all_tasks_blocked()
        assert front.statistics().inbox == 9
        (front if closing == "front" else back).close()
        with trio.fail_after(1), pytest.raises(trio.ClosedResourceError):
            await device.done()
        assert front.statistics().inbox == 10
        if closing == "back":
            assert [await front.receive() for _ in range(10)] == [b"%d" % number for number in range(10)]


async def test_leaving_the_block_of_a_socket_ends_the_device(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        async with sp.raw.Pair0() as one, sp.raw.Pair0() as two:
            device = Background(nursery, lambda: sp.device.device(one, two))
            await wait_all_tasks_blocked()
        with pytest.raises(trio.ClosedResourceError):
            await device.done()


async def test_an_application_may_use_the_sockets_of_a_device_beside_it(tmp_path: Path) -> None:
    urls = [new_url("inproc", tmp_path) for _ in range(2)]
    async with (
        sp.raw.Pull0(listen=urls[0]) as front,
        sp.raw.Push0(listen=urls[1]) as back,
        sp.Push0(dial=urls[0]) as push,
        sp.Pull0(dial=urls[1]) as pull,
        running(front, back),
    ):
        await back.wait_for_peers()
        await push.wait_for_peers()
        await back.send(b"from the side")
        await push.send(b"through")
        assert {await pull.receive(), await pull.receive()} == {b"from the side", b"through"}


async def test_a_device_that_has_much_to_do_leaves_turns_to_others(name: str) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with sp.raw.Bus0(listen=name, inbox_limit=5000) as bus, sp.Bus0(outbox_limit=5000) as peer, trio.open_nursery() as nursery:
        await connect(bus, peer)
        await peer.send_many([b"x"] * 4000)
        with trio.fail_after(5):
            while bus.statistics().inbox < 4000:
                await trio.lowlevel.checkpoint()
        nursery.start_soon(other)
        nursery.start_soon(sp.device.device, bus)
        await until_empty(bus)
        assert turns >= 4000 // 64 - 1
        nursery.cancel_scope.cancel()


async def until_empty(socket: Any) -> None:
    while socket.statistics().inbox:
        await trio.lowlevel.checkpoint()


@pytest.mark.slow
@only("push", "pair1", "survey")
@pytest.mark.parametrize("schemes", [("inproc", "inproc"), ("tcp", "ipc")], ids="-".join)
async def test_a_device_does_not_keep_what_it_has_passed_on(
    asking: type, answering: type, schemes: tuple[str, str], tmp_path: Path
) -> None:
    async with chain(asking, answering, [new_url(scheme, tmp_path) for scheme in schemes]) as joined:
        with trio.fail_after(5):
            assert len(await joined.talk.ask(bytes(54_321))) == 54_321
            if joined.talk.both_ways:
                await joined.talk.answer(b"")  # until then a respondent remembers what it was asked
        joined.talk._asked = None
        await wait_all_tasks_blocked(0.005)
        gc.collect()
        assert [thing for thing in gc.get_objects() if type(thing) is sp.Message and len(thing.body) == 54_321] == []


# Cancelled.


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["inproc", "tcp", "ws"])
@pytest.mark.parametrize("seed", range(4))
async def test_a_device_cancelled_at_any_moment_loses_and_doubles_nothing(scheme: str, seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    small: dict[str, Any] = {"inbox_limit": 3, "outbox_limit": 2}
    count = 600
    async with (
        sp.raw.Pull0(**small) as front,
        sp.raw.Push0(**small) as back,
        sp.Push0(outbox_limit=5) as push,
        sp.Pull0(**small) as pull,
        trio.open_nursery() as nursery,
    ):
        await dial(push, (await listen(front, new_url(scheme, tmp_path))).url)
        await dial(pull, (await listen(back, new_url(scheme, tmp_path))).url)
        await back.wait_for_peers()
        passed: list[int] = []
        taken: list[int] = []

        async def send() -> None:
            for number in range(count):
                await push.send(b"%d" % number + bytes(number % 7 * 3000))
                if chance.random() < 0.1:
                    await trio.lowlevel.checkpoint()

        async def receive() -> None:
            while True:
                passed.append(_number(await pull.receive()))
                for _ in range(chance.choice([0, 0, 0, 20])):
                    await trio.lowlevel.checkpoint()

        nursery.start_soon(send)
        nursery.start_soon(receive)
        with trio.fail_after(30):
            while len(passed) + len(taken) < count:
                async with trio.open_nursery() as inner:
                    inner.start_soon(sp.device.device, front, back)
                    for _ in range(chance.choice([1, 2, 3, 5, 10, 50])):
                        await trio.lowlevel.checkpoint()
                    inner.cancel_scope.cancel()
                # Meanwhile the application receives itself what was not passed on.
                if chance.random() < 0.3:
                    try:
                        taken.append(_number(front.receive_nowait()))
                    except trio.WouldBlock:
                        await trio.lowlevel.checkpoint()
        assert passed == sorted(passed)
        assert taken == sorted(taken)
        assert sorted(passed + taken) == list(range(count))
        for socket in (push, front, back, pull):
            assert socket.statistics().dropped == {}
        nursery.cancel_scope.cancel()


def _number(body: bytes) -> int:
    return int(body.rstrip(b"\0"))


@pytest.mark.slow
@only("req", "pair0", "pair1", "bus", "survey")
@pytest.mark.parametrize("seed", range(2))
async def test_a_device_that_is_stopped_and_started_again_and_again_passes_all_on_both_ways_once(
    asking: type, answering: type, seed: int, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    urls = [new_url("inproc", tmp_path), new_url("tcp", tmp_path)]
    count = 200
    async with (
        raw_of(answering)() as front,
        raw_of(asking)() as back,
        asking(**LASTING.get(asking, {})) as first,
        answering() as last,
        trio.open_nursery() as nursery,
    ):
        await dial(first, (await listen(front, urls[0])).url)
        await dial(last, (await listen(back, urls[1])).url)
        await back.wait_for_peers()
        asked: list[bytes] = []
        answered: list[bytes] = []

        async def talk_on() -> None:
            for number in range(count):
                await first.send(b"%d" % number)
                answered.append(await first.receive())
            nursery.cancel_scope.cancel()

        async def serve() -> None:
            while True:
                asked.append(await last.receive())
                await last.send(asked[-1])

        nursery.start_soon(talk_on)
        nursery.start_soon(serve)
        with trio.move_on_after(30):
            while True:
                async with trio.open_nursery() as inner:
                    inner.start_soon(sp.device.device, front, back)
                    for _ in range(chance.randrange(1, 12)):
                        await trio.lowlevel.checkpoint()
                    inner.cancel_scope.cancel()
    assert asked == answered == [b"%d" % number for number in range(count)]
    for socket in (first, front, back, last):
        assert socket.statistics().dropped == {}


async def test_a_cancellation_around_the_sockets_and_their_device_stays_one(tmp_path: Path) -> None:
    for _ in range(30):
        with trio.move_on_after(0) as scope:
            async with sp.raw.Rep0() as front, sp.raw.Req0() as back, trio.open_nursery() as nursery:
                nursery.start_soon(sp.device.device, front, back)
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught


@pytest.mark.parametrize("wrong", [None, "tcp://x", 7])
async def test_a_device_takes_sockets_only(wrong: object) -> None:
    with pytest.raises(TypeError, match=rf"a device takes raw sockets, such as sp.raw.Rep0\(...\), not {type(wrong).__name__}"):
        await sp.device.device(wrong)  # type: ignore[arg-type]
