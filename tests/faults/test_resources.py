"""What peers may cost: memory with one that does not read, turns with one that floods, nothing once
they are gone.
"""

from __future__ import annotations

import gc
import itertools
import os
import socket
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import sp
from tests.transports.ends import client_tls, dial, network_only, server_tls
from tests.transports.wire import PUB, REQ, SUB, connect_as, frame, receive_frame, until

_names = itertools.count(1)


@pytest.fixture(params=["tcp", "tls+tcp", "ipc", "abstract", "inproc", "ws", "wss"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name = f"{os.getpid()}-{next(_names)}"
    return {
        "tcp": "tcp://127.0.0.1:0",
        "tls+tcp": "tls+tcp://127.0.0.1:0",
        "ipc": f"ipc://{tmp_path}/s",
        "abstract": f"abstract://sp-resources-{name}",
        "inproc": f"inproc://resources-{name}",
        "ws": "ws://127.0.0.1:0",
        "wss": "wss://127.0.0.1:0",
    }[request.param]


@contextmanager
def growth_below(limit: int) -> Iterator[None]:
    """Fail if Python's memory grows by *limit* bytes or more at any moment of the block."""
    gc.collect()
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit, f"memory grew by {peak} bytes"


# Memory.


@pytest.mark.slow
@network_only
async def test_a_subscriber_that_never_reads_costs_its_outbox_and_what_it_misses_is_counted(url: str) -> None:
    async with sp.Pub0(listen=url, tls=server_tls(url), outbox_limit=10) as pub:
        with trio.fail_after(20):
            deaf = await connect_as(pub.url, SUB)
            await pub.wait_for_peers()
            with growth_below(4 << 20):
                for _ in range(20_000):  # 200 MB
                    await pub.send(bytes(10_000))
            figures = pub.statistics()
            (pipe,) = figures.pipes
            assert figures.dropped[sp.DropReason.PEER_FULL] > 15_000
            assert pipe.outbox <= 10 + 7  # the outbox, and what one write of 64 KiB took over
            assert figures.messages_sent + 10 + figures.dropped[sp.DropReason.PEER_FULL] == 20_000
            await deaf.aclose()


@network_only
@pytest.mark.parametrize("drops", ["oldest", "newest"])
async def test_the_policy_says_which_messages_a_slow_subscriber_misses(url: str, drops: Literal["oldest", "newest"]) -> None:
    async with sp.Pub0(listen=url, tls=server_tls(url), outbox_limit=10, outbox_drops=drops) as pub:
        with trio.fail_after(10):
            slow = await connect_as(pub.url, SUB)
            await pub.wait_for_peers()
            count = 1_000
            for number in range(count):
                await pub.send(number.to_bytes(4, "big") + bytes(100_000))
            missed = pub.statistics().dropped[sp.DropReason.PEER_FULL]
            got = [int.from_bytes((await receive_frame(slow))[:4], "big") for _ in range(count - missed)]
            assert got == sorted(set(got))
            assert 0 < missed < count
            assert (got[-1] == count - 1) == (drops == "oldest")
            await slow.aclose()


@network_only
async def test_one_slow_subscriber_does_not_cost_the_others_a_message(url: str) -> None:
    async with sp.Pub0(listen=url, tls=server_tls(url), outbox_limit=10) as pub, sp.Sub0(topics=b"") as good:
        with trio.fail_after(20):
            deaf = await connect_as(pub.url, SUB)
            await dial(good, pub.url)
            await pub.wait_for_peers(2)
            for number in range(300):
                await pub.send(b"%d" % number + bytes(100_000))
                assert (await good.receive()).startswith(b"%d\0" % number)
            assert pub.statistics().dropped[sp.DropReason.PEER_FULL] > 0
            await deaf.aclose()


@pytest.mark.slow
async def test_an_application_that_never_receives_costs_its_inbox_and_what_it_misses_is_counted(url: str) -> None:
    async with sp.Pub0(listen=url, tls=server_tls(url)) as pub, sp.Sub0(topics=b"", inbox_limit=10) as sub:
        with trio.fail_after(30):
            await dial(sub, pub.url)
            await pub.wait_for_peers()
            count = 3_000
            with growth_below(16 << 20):  # two queues of a few MB between inproc sockets
                for number in range(count):
                    await pub.send(number.to_bytes(4, "big") + bytes(20_000))
            # The subscriber holds the publisher back for a moment, then it drops and counts.
            missed = pub.statistics().dropped[sp.DropReason.PEER_FULL]
            await until(lambda: sub.statistics().messages_received + missed == count)
            await until(lambda: sub.statistics().inbox + sub.statistics().dropped[sp.DropReason.INBOX_FULL] + missed == count)
            assert sub.statistics().inbox <= 10
            assert sub.statistics().dropped[sp.DropReason.INBOX_FULL] > 0


@pytest.mark.slow
@network_only
async def test_a_byte_bound_holds_where_a_bound_in_messages_would_not(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url), inbox_limit=10_000, inbox_bytes=300_000) as rep:
        with trio.fail_after(10), growth_below(3 << 20):
            async with await connect_as(rep.url, REQ) as stream, trio.open_nursery() as nursery:

                async def flood() -> None:
                    request = frame(b"\x80\0\0\1" + bytes(100_000))
                    while True:
                        await stream.send_all(request)

                nursery.start_soon(flood)
                await until(lambda: rep.statistics().inbox)
                await wait_all_tasks_blocked(0.02)
                assert rep.statistics().inbox == 3
                nursery.cancel_scope.cancel()


@network_only
async def test_a_requester_that_does_not_read_its_replies_delays_no_other(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url), outbox_limit=2) as rep, sp.Req0() as good:
        with trio.fail_after(20):
            deaf = await connect_as(rep.url, REQ)
            await rep.wait_for_peers()
            async with trio.open_nursery() as nursery:

                async def serve() -> None:
                    async for request in rep.requests():
                        nursery.start_soon(request.reply, bytes(1_000_000))

                nursery.start_soon(serve)
                with growth_below(160 << 20):
                    for number in range(100):
                        await deaf.send_all(frame((0x8000_0000 + number).to_bytes(4, "big")))
                    await dial(good, rep.url)
                    for _ in range(10):
                        assert len(await good.request(b"")) == 1_000_000
                nursery.cancel_scope.cancel()
            await deaf.aclose()


@pytest.mark.slow
async def test_a_delivered_message_is_held_only_by_its_receiver(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as bus, sp.Bus0() as peer:
        with trio.fail_after(5):
            await dial(peer, bus.url)
            await bus.wait_for_peers()
            for size in (10, 100_000):
                await peer.send(bytes([size % 251]) * size)
                body = await bus.receive()
                await wait_all_tasks_blocked(0.01)
                gc.collect()
                holders = [each for each in gc.get_referrers(body) if not hasattr(each, "f_code")]
                assert holders == []
                del holders
                assert sys.getrefcount(body) <= 3


# CheckpointBudget.


async def count_turns(stop: trio.Event, sample: Callable[[], int]) -> list[int]:
    """Run whenever it is our turn; return what *sample* grew by from each turn to the next."""
    steps: list[int] = []
    before = sample()
    while not stop.is_set():
        await trio.lowlevel.checkpoint()
        now = sample()
        steps.append(now - before)
        before = now
    return steps


@pytest.mark.slow
async def test_a_flood_of_small_messages_leaves_a_turn_to_others_every_few_of_them(url: str) -> None:
    received = 0
    steps: list[int] = []
    async with sp.Bus0(listen=url, tls=server_tls(url)) as receiver, sp.Bus0() as flooder:
        with trio.fail_after(30):
            await dial(flooder, receiver.url)
            await receiver.wait_for_peers()
            stop = trio.Event()
            async with trio.open_nursery() as nursery:

                async def flood() -> None:
                    while True:
                        await flooder.send(b"flood")

                async def receive() -> None:
                    nonlocal received
                    while received < 20_000:
                        await receiver.receive()
                        received += 1
                    stop.set()

                async def tick() -> None:
                    steps.extend(await count_turns(stop, lambda: received))
                    nursery.cancel_scope.cancel()

                nursery.start_soon(flood)
                nursery.start_soon(receive)
                nursery.start_soon(tick)
    assert sum(steps) == 20_000
    assert max(steps) <= 32


@pytest.mark.slow
@network_only
async def test_an_unwanted_flood_leaves_a_turn_to_others_after_every_read(url: str) -> None:
    steps: list[int] = []
    block = frame(b"f") * 30_000
    # Subscribed to nothing, so it discards as fast as it can.
    async with sp.Sub0(listen=url, tls=server_tls(url)) as sub:
        with trio.fail_after(30):
            stream = await connect_as(sub.url, PUB)
            await sub.wait_for_peers()
            (pipe,) = sub.pipes
            stop = trio.Event()
            async with trio.open_nursery() as nursery:

                async def flood() -> None:
                    for _ in range(20):
                        await stream.send_all(block)
                    while pipe.statistics().messages_received < 600_000:
                        await trio.lowlevel.checkpoint()
                    stop.set()

                async def tick() -> None:
                    steps.extend(await count_turns(stop, lambda: pipe.statistics().messages_received))

                nursery.start_soon(flood)
                nursery.start_soon(tick)
            await stream.aclose()
    assert sum(steps) == 600_000
    # Two reads at most, of the largest size there is.
    assert max(steps) <= 2 * (256 * 1024 // 9 + 1)


@pytest.mark.slow
async def test_a_flooding_peer_does_not_keep_others_waiting(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url), linger=0) as rep, sp.Req0(linger=0) as flooder, sp.Req0() as good:
        with trio.fail_after(30):
            await dial(flooder, rep.url)
            await dial(good, rep.url)
            await rep.wait_for_peers(2)
            served: list[bytes] = []
            async with trio.open_nursery() as nursery:

                async def serve() -> None:
                    async for request in rep.requests():
                        served.append(request.body)
                        await request.reply(b"")

                async def flood() -> None:
                    while True:
                        await flooder.request(b"flood")

                nursery.start_soon(serve)
                for _ in range(200):
                    nursery.start_soon(flood)
                while len(served) < 500:
                    await trio.lowlevel.checkpoint()
                for number in range(20):
                    await good.request(b"%d" % number)
                nursery.cancel_scope.cancel()
        places = [place for place, body in enumerate(served) if body != b"flood"]
        assert len(places) == 20
        # Each of ours waits for an inbox of others, not for all that they could send.
        assert max(later - earlier for earlier, later in itertools.pairwise(places)) <= 1_000


@pytest.mark.slow
@network_only
async def test_a_flood_of_connections_leaves_turns_to_others_and_to_good_clients(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as good:
        (listener,) = rep.listeners
        host, _, port = listener.url.partition("://")[2].rpartition(":")
        with trio.fail_after(30):
            await dial(good, listener.url)
            stop = trio.Event()
            async with trio.open_nursery() as nursery:

                async def flood() -> None:
                    for _ in range(100):
                        for _ in range(20):  # as many as a backlog certainly has room for
                            with socket.create_connection((host, int(port))):
                                pass
                        await trio.lowlevel.checkpoint()
                    stop.set()

                async def answer() -> None:
                    async for request in rep.requests():
                        await request.reply(request.body)

                nursery.start_soon(flood)
                nursery.start_soon(answer)
                steps = await count_turns(stop, lambda: listener.statistics().accepted)
                with trio.fail_after(1):
                    assert await good.request(b"me too") == b"me too"
                nursery.cancel_scope.cancel()
        assert sum(steps) > 1_000
        assert max(steps) <= 128


# Nothing is left.


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _objects() -> int:
    # trio drops unused deadlines by the thousand.  Only then are their scopes gone.
    gc.collect()
    return sum(type(each).__name__ not in ("CancelScope", "CancelReason", "tuple") for each in gc.get_objects())


def _inventory() -> tuple[int, int, int]:
    return _descriptors(), trio.lowlevel.current_statistics().tasks_living, _objects()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
@pytest.mark.parametrize("closing", ["dialing socket", "pipe of the listener", "pipe of the dialer"])
async def test_hundreds_of_connections_that_came_and_went_leave_nothing(url: str, closing: str) -> None:
    cycles = 200
    with trio.fail_after(30):
        async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0(redial_min=1e-4, redial_max=1e-4) as lasting:
            (listener,) = rep.listeners

            async def ask(req: sp.Req0) -> None:
                await req.send(b"question")
                assert await rep.receive() == b"question"
                await rep.send(b"answer")
                assert await req.receive() == b"answer"

            async def cycle() -> None:
                if closing == "dialing socket":
                    async with sp.Req0(dial=listener.url, tls=client_tls(url)) as req:
                        await ask(req)
                else:
                    await ask(lasting)
                    sock = rep if closing == "pipe of the listener" else lasting
                    sock.pipes[0].close()
                    while sock.pipes:
                        await trio.lowlevel.checkpoint()
                while rep.pipes:
                    await trio.lowlevel.checkpoint()

            if closing != "dialing socket":
                await dial(lasting, listener.url)
            for _ in range(50):
                await cycle()
            await wait_all_tasks_blocked(0.01)
            descriptors, tasks, objects = _inventory()
            for _ in range(cycles):
                await cycle()
            await wait_all_tasks_blocked(0.01)
            after = _inventory()
            assert after[:2] == (descriptors, tasks)
            assert after[2] - objects < cycles // 3


@pytest.mark.slow
async def test_contexts_that_came_and_went_leave_nothing(autojump_clock: MockClock) -> None:
    async with sp.Rep0(listen="inproc://contexts") as rep, sp.Req0(dial="inproc://contexts") as req, sp.Sub0() as sub:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:

                async def serve() -> None:
                    async for request in rep.requests():
                        await request.reply(request.body)

                async def cycle(count: int) -> None:
                    for _ in range(count):
                        assert await req.request(b"x") == b"x"
                        with trio.move_on_after(0):
                            await req.request(b"given up")
                        async with sub.context() as context:
                            context.subscribe(b"topic")
                            with trio.move_on_after(0):
                                await context.receive()

                nursery.start_soon(serve)
                await cycle(50)
                before = _objects()
                await cycle(500)
                assert _objects() - before < 150
                nursery.cancel_scope.cancel()


async def test_events_that_no_task_takes_are_bounded_and_the_loss_is_counted(autojump_clock: MockClock) -> None:
    async with sp.Req0(dial="inproc://nobody", redial_min=1, redial_max=1) as req:
        events = req.events()
        await trio.sleep(1_000)
        waiting = 0
        with trio.move_on_after(0.1):
            async for _ in events:
                waiting += 1
        assert waiting < 1_000
        assert waiting + events.missed == pytest.approx(2 * req.dialers[0].statistics().attempts, abs=2)
