from __future__ import annotations

import gc
import itertools
import tracemalloc
from collections import Counter
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import sp
from sp.protocol_numbers import PULL, PUSH
from sp.sockets.base import Socket
from tests.transports.ends import client_tls, dial, listen, network_only, server_tls
from tests.transports.wire import connect_as, frame, receive_frame, until

from .conftest import Background, connect
from .kinds import Kind, each, gone


async def received(pull: sp.Pull0) -> list[int]:
    """Return the numbers that have arrived, once nothing is under way any more."""
    numbers: list[int] = []
    while True:
        await wait_all_tasks_blocked()
        try:
            numbers.append(int(pull.receive_nowait()))
        except trio.WouldBlock:
            return numbers


# Whose turn it is.


@each([Kind(sp.Push0), Kind(sp.Push0, raw=True)])
async def test_messages_go_round_among_the_peers_one_each(kind: Kind, url: str) -> None:
    async with kind(listen=url, tls=server_tls(url)) as push, sp.Pull0() as one, sp.Pull0() as two, sp.Pull0() as three:
        for pull in (one, two, three):
            await connect_next(push, pull)
        for number in range(300):
            await push.send(b"%d" % number)
        for place, pull in enumerate((one, two, three)):
            assert [int(await pull.receive()) for _ in range(100)] == list(range(place, 300, 3))


async def connect_next(listening: Socket, dialing: Socket) -> None:
    """Dial, and wait until the listening side has the pipe too."""
    count = len(listening.pipes)
    await dial(dialing, listening.url)
    await listening.wait_for_peers(count + 1)


async def test_a_new_peer_gets_its_share_and_a_leaving_peer_leaves_it_to_the_others(name: str) -> None:
    async with sp.Push0(listen=name) as push, sp.Pull0() as lasting:
        await connect(push, lasting)
        others: list[sp.Pull0] = []
        total: list[int] = []
        sent = 0
        async with trio.open_nursery() as nursery:
            for change in (1, 1, 1, -1, 1, -1, -1, 1):
                if change > 0:
                    others.append(await nursery.start(_live, name))
                    await push.wait_for_peers(1 + len(others))
                else:
                    leaving = others.pop(0)
                    await leaving.aclose()
                    await until(lambda: len(push.pipes) == 1 + len(others))
                for _ in range(60):
                    await push.send(b"%d" % sent)
                    sent += 1
                shares = [await received(pull) for pull in (lasting, *others)]
                assert {len(share) for share in shares} == {60 // len(shares)}
                assert all(later - earlier == len(shares) for share in shares for earlier, later in itertools.pairwise(share))
                for share in shares:
                    total += share
            nursery.cancel_scope.cancel()
        assert sorted(total) == list(range(sent))
        assert push.statistics().dropped == {}


async def _live(url: str, task_status: trio.TaskStatus[sp.Pull0]) -> None:
    async with sp.Pull0() as pull:
        await pull.dial(url)
        task_status.started(pull)
        await trio.sleep_forever()


async def test_a_peer_without_room_is_passed_over_and_comes_back_at_the_end_of_the_round(name: str) -> None:
    async with (
        sp.Push0(listen=name, outbox_limit=1) as push,
        sp.Pull0(inbox_limit=1) as slow,
        sp.Pull0() as one,
        sp.Pull0() as two,
    ):
        for pull in (slow, one, two):
            await connect_next(push, pull)
        total = 0
        shares = [1]
        while shares[0]:
            for _ in range(30):
                await push.send(b"%d" % total)
                total += 1
            await wait_all_tasks_blocked()
            shares = [0, len(await received(one)), len(await received(two))]
            shares[0] = 30 - shares[1] - shares[2]
        assert shares[1] == shares[2] == 15
        assert len(await received(slow)) > 100
        for _ in range(30):
            await push.send(b"%d" % total)
            total += 1
        assert [len(await received(pull)) for pull in (slow, one, two)] == [10, 10, 10]
        assert push.statistics().dropped == {}


async def test_messages_that_wait_for_a_peer_leave_in_the_order_of_their_calls(name: str) -> None:
    async with sp.Push0(listen=name) as push, sp.Pull0() as pull, trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(push.send, b"%d" % number)
            await wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            push.send_nowait(b"in front of all")
        await connect(push, pull)
        await push.send(b"20")
        assert [int(await pull.receive()) for _ in range(21)] == list(range(21))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [8, 300])  # written at once, or in parts
@pytest.mark.parametrize("call", ["send", "send_many", "send_message"])
@each([Kind(sp.Push0), Kind(sp.Pair0), Kind(sp.Pair1)])
async def test_a_waiting_send_is_not_overtaken_by_a_later_one(kind: Kind, call: str, limit: int, name: str) -> None:
    async with kind(listen=name, outbox_limit=limit) as push, kind.peer(inbox_limit=1) as pull, trio.open_nursery() as nursery:
        await connect(push, pull)
        blocked = 0
        while not blocked:
            try:
                push.send_nowait(b"0")
            except trio.WouldBlock:
                blocked = 1
            await wait_all_tasks_blocked()
        early = Background(nursery, lambda: push.send(b"early"))
        await wait_all_tasks_blocked()
        calls = {
            "send": lambda: push.send(b"late"),
            "send_many": lambda: push.send_many([b"late"]),
            "send_message": lambda: push.send_message(sp.Message(b"late")),
        }
        seen: list[bytes] = []
        while b"early" not in seen:
            assert len(seen) < 1000, "it is never its turn"
            seen.append(await pull.receive())
            nursery.start_soon(calls[call])
            for _ in range(len(seen) % 4):
                await trio.lowlevel.checkpoint()
        assert b"late" not in seen
        await early.done()
        nursery.cancel_scope.cancel()


# Peers that flood.


@pytest.mark.slow
async def test_one_that_floods_does_not_shut_out_nine_others(url: str) -> None:
    async with sp.Pull0(listen=url, tls=server_tls(url)) as pull, trio.open_nursery() as nursery:

        async def push(letter: bytes, count: int | None, ready: trio.Event) -> None:
            async with sp.Push0(linger=0) as sender:
                await dial(sender, pull.url)
                ready.set()
                if count is None:
                    await sender.send_many(itertools.repeat(letter))
                for _ in range(count or 0):
                    await sender.send(letter)
                await trio.sleep_forever()

        with trio.fail_after(30):
            flooding = trio.Event()
            nursery.start_soon(push, b"f", None, flooding)
            await flooding.wait()
            got: list[bytes] = []
            while len(got) < 1000:
                got += await pull.receive_many()
            for number in range(9):
                ready = trio.Event()
                nursery.start_soon(push, b"%d" % number, 30, ready)
                await ready.wait()
            got.clear()
            begun = len(got)
            while any(got.count(b"%d" % number) < 30 for number in range(9)):
                got += await pull.receive_many(16)
                await trio.lowlevel.checkpoint()
                assert len(got) - begun < 60_000, Counter(got)
            nursery.cancel_scope.cancel()


@pytest.mark.slow
@network_only
async def test_each_of_ten_that_flood_gets_its_share(url: str) -> None:
    async with sp.Pull0(listen=url, tls=server_tls(url), inbox_limit=100) as pull, trio.open_nursery() as nursery:

        async def flood(letter: bytes, size: int) -> None:
            async with await connect_as(pull.url, PUSH) as stream:
                batch = frame(letter) * size
                while True:
                    await stream.send_all(batch)

        with trio.fail_after(30):
            for number in range(10):
                # One of them with all its might.
                nursery.start_soon(flood, b"%d" % number, 1 if number else 5000)
            await pull.wait_for_peers(10)
            counts: Counter[bytes] = Counter()
            while counts.total() < 20_000:
                counts.update(await pull.receive_many())
                await trio.lowlevel.checkpoint()
            assert min(counts.values()) > 20_000 // 10 // 10
            nursery.cancel_scope.cancel()


# Priorities.


async def test_the_best_priority_gets_all_while_it_has_room_and_the_next_one_what_is_left(name: str) -> None:
    async with (
        sp.Push0(outbox_limit=2) as push,
        sp.Pull0(listen=name + "-best", inbox_limit=1) as best,
        sp.Pull0(listen=name + "-good") as good,
        sp.Pull0(listen=name + "-good-too") as good_too,
        sp.Pull0(listen=name + "-worst") as worst,
    ):
        await push.dial(name + "-worst", priority=16)
        await push.dial(name + "-good")  # 8
        await push.dial(name + "-best", priority=1)
        await push.dial(name + "-good-too", priority=8)
        for number in range(10):
            await push.send(b"%d" % number)
        await wait_all_tasks_blocked()
        assert [pull.statistics().messages_received for pull in (good, good_too, worst)] == [0, 0, 0]
        while not good.statistics().messages_received:  # until the best one has no room
            await push.send(b"0")
            await wait_all_tasks_blocked()
        assert best.statistics().inbox == 1
        assert await received(good) == [0]
        for number in range(100):
            await push.send(b"%d" % number)
        assert len(await received(good)) == len(await received(good_too)) == 50
        assert worst.statistics().messages_received == 0
        assert len(await received(best)) > 100  # and now it has room again
        for number in range(50):
            await push.send(b"%d" % number)
        assert await received(best) == list(range(50))
        assert [pull.statistics().inbox for pull in (good, good_too, worst)] == [0, 0, 0]
        assert {pipe.url: pipe.priority for pipe in push.pipes} == {
            name + "-best": 1,
            name + "-good": 8,
            name + "-good-too": 8,
            name + "-worst": 16,
        }


async def test_a_listener_has_a_priority_as_well(name: str) -> None:
    async with sp.Push0() as push, sp.Pull0() as through_best, sp.Pull0() as through_worst, sp.Pull0(listen=name + "-3") as dialed:
        await push.listen(name + "-1", priority=1)
        await push.listen(name + "-2", priority=3)
        await push.dial(name + "-3", priority=2)
        await through_worst.dial(name + "-2")
        await push.wait_for_peers(2)
        await push.send(b"0")
        await through_best.dial(name + "-1")
        await push.wait_for_peers(3)
        await push.send(b"1")
        await wait_all_tasks_blocked()
        through_best.close()
        await until(lambda: len(push.pipes) == 2)
        await push.send(b"2")
        await wait_all_tasks_blocked()
        dialed.close()
        await until(lambda: len(push.pipes) == 1)
        await push.send(b"3")
        assert await received(through_worst) == [3]
        assert [pull.statistics().messages_received for pull in (through_best, dialed, through_worst)] == [1, 2, 1]


async def test_when_the_best_dies_the_next_one_takes_over_until_it_is_back(url: str, name: str) -> None:
    async with sp.Push0(redial_min=0.01, redial_max=0.01) as push, sp.Pull0(listen=name + "-spare") as spare:
        await push.dial(name + "-spare", priority=9)
        with trio.fail_after(20):
            for turn in range(3):
                async with sp.Pull0() as best:
                    url = (await listen(best, url)).url
                    if not turn:
                        await push.dial(url, priority=2, tls=client_tls(url))
                    await push.wait_for_peers(2)
                    for number in range(20):
                        await push.send(b"%d" % number)
                    assert [int(await best.receive()) for _ in range(20)] == list(range(20))
                await until(lambda: len(push.pipes) == 1)
                for number in range(20):
                    await push.send(b"%d" % number)
                assert [int(await spare.receive()) for _ in range(20)] == list(range(20))
        assert push.statistics().dropped == {}


async def test_a_request_asks_the_best_and_another_one_only_when_it_is_gone(name: str) -> None:
    async with (
        sp.Req0() as req,
        sp.Rep0(listen=name + "-best") as best,
        sp.Rep0(listen=name + "-spare") as spare,
        trio.open_nursery() as nursery,
    ):

        async def serve(rep: sp.Rep0, answer: bytes) -> None:
            async for request in rep.requests():
                await request.reply(answer)

        await req.dial(name + "-spare", priority=10)
        await req.dial(name + "-best", priority=1)
        nursery.start_soon(serve, spare, b"spare")
        nursery.start_soon(serve, best, b"best")
        assert [await req.request(b"") for _ in range(20)] == [b"best"] * 20
        req.pipes[1].close()
        await until(lambda: len(req.pipes) == 1)
        assert await req.request(b"") == b"spare"
        nursery.cancel_scope.cancel()


async def test_a_raw_req_has_priorities_too(name: str) -> None:
    async with sp.raw.Req0() as req, sp.Rep0(listen=name + "-best") as best, sp.Rep0(listen=name + "-spare") as spare:
        await req.dial(name + "-spare", priority=2)
        await req.dial(name + "-best", priority=1)
        for number in range(5):
            await req.send_message(sp.Message(b"%d" % number, b"\x80\0\0\1"))
        assert [await best.receive() for _ in range(5)] == [b"%d" % number for number in range(5)]
        assert spare.statistics().messages_received == 0


# Backpressure.


async def test_a_pull_that_does_not_receive_holds_its_pushers_back_and_nothing_is_lost(name: str, autojump_clock: MockClock) -> None:
    async with sp.Pull0(listen=name, inbox_limit=4) as pull, sp.Push0(outbox_limit=4) as push, trio.open_nursery() as nursery:
        await connect(pull, push)
        sent = 0

        async def send() -> None:
            nonlocal sent
            for number in range(2000):
                await push.send(b"%d" % number)
                sent += 1

        nursery.start_soon(send)
        await trio.sleep(10_000)  # however long it takes
        stuck = sent
        assert 4 + 4 <= stuck < 300
        assert pull.statistics().inbox == 4
        assert push.statistics().pipes[0].outbox == 4
        for number in range(1000):
            assert int(await pull.receive()) == number
        await trio.sleep(10_000)
        assert 1000 + 8 <= sent < 1300
        assert [int(await pull.receive()) for _ in range(1000)] == list(range(1000, 2000))
        assert push.statistics().dropped == pull.statistics().dropped == {}


@pytest.mark.slow
async def test_memory_stays_bounded_while_no_task_receives_and_nothing_is_lost_when_one_does(url: str) -> None:
    body = bytes(20_000)
    async with (
        sp.Pull0(listen=url, tls=server_tls(url), inbox_limit=8) as pull,
        sp.Push0(outbox_limit=8) as push,
        trio.open_nursery() as nursery,
    ):
        await connect(pull, push)
        gc.collect()
        tracemalloc.start()
        sent = 0

        async def send() -> None:
            nonlocal sent
            for number in range(3000):  # 60 MB
                await push.send(number.to_bytes(4, "big") + body)
                sent += 1

        nursery.start_soon(send)
        before = -1
        while sent > before:
            before = sent
            await wait_all_tasks_blocked(0.01)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert 16 <= sent < 1500
        assert peak < 16 << 20
        with trio.fail_after(20):
            numbers: list[int] = []
            while len(numbers) < 3000:
                numbers += [int.from_bytes(got[:4], "big") for got in await pull.receive_many()]
        assert numbers == list(range(3000))
        assert push.statistics().dropped == pull.statistics().dropped == {}


@network_only
async def test_a_peer_that_does_not_read_is_left_with_what_it_has_and_the_rest_goes_to_the_others(url: str) -> None:
    async with sp.Push0(listen=url, tls=server_tls(url), outbox_limit=4, linger=0) as push, sp.Pull0() as good:
        with trio.fail_after(20):
            deaf = await connect_as(push.url, PULL)
            await connect_next(push, good)
            got = 0
            for number in range(300):
                with trio.fail_after(5):
                    await push.send(number.to_bytes(4, "big") + bytes(100_000))
                while True:
                    await trio.lowlevel.checkpoint()
                    try:
                        good.receive_nowait()
                    except trio.WouldBlock:
                        break
                    got += 1
            stuck = push.statistics().pipes[0].outbox
            assert stuck <= 4 + 1
            sent_to_deaf = push.statistics().pipes[0].messages_sent
            while got < 300 - sent_to_deaf - push.pipes[0].unsent:
                await good.receive()
                got += 1
            await deaf.aclose()
            await until(lambda: len(push.pipes) == 1)
        assert push.statistics().dropped == {"pipe closed": stuck}


@network_only
async def test_what_a_pull_says_is_dropped_and_counted_and_the_pipe_goes_on(url: str) -> None:
    async with sp.Push0(listen=url, tls=server_tls(url)) as push:
        with trio.fail_after(10):
            async with await connect_as(push.url, PULL) as stream:
                await push.wait_for_peers()
                await stream.send_all(frame(b"what?") * 3)
                await until(lambda: push.statistics().messages_received == 3)
                await push.send(b"x")
                assert await receive_frame(stream) == b"x"
        assert push.statistics().dropped == {"unexpected": 3}


# The end.


async def test_what_was_accepted_is_delivered_before_the_end(url: str) -> None:
    async with sp.Pull0(listen=url, tls=server_tls(url), inbox_limit=1000) as pull:
        async with sp.Push0(outbox_limit=1000, linger=20) as push:
            await dial(push, pull.url)
            await push.send_many([b"%d" % number for number in range(800)])
        assert [int(await pull.receive()) for _ in range(800)] == list(range(800))
        await gone(pull)
    assert push.statistics().dropped == {}


@pytest.mark.parametrize("leaving", ["pull", "pipe"])
async def test_messages_that_a_lost_pipe_has_not_written_are_counted(leaving: str, name: str) -> None:
    async with sp.Push0(listen=name, outbox_limit=10) as push, trio.open_nursery() as nursery:
        async with sp.Pull0(inbox_limit=1) as pull:
            await connect(push, pull)
            sending = Background(nursery, partial(push.send_many, [b"%d" % number for number in range(1000)]))
            await wait_all_tasks_blocked()
            pipe = push.pipes[0]
            assert pipe.statistics().outbox == 10
            pull.close() if leaving == "pull" else pipe.close()
        await gone(push)
        assert push.statistics().dropped == {"pipe closed": 10}
        async with sp.Pull0(inbox_limit=1000) as pull:
            await connect(push, pull)
            await sending.done()
            rest = await received(pull)
        assert rest == list(range(rest[0], 1000))
        assert push.statistics().messages_sent + 10 == 1000
