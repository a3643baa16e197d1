"""A task that waits for a message may read the only pipe itself.

Nothing may get lost or stuck between it and the pipe's own task.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
from trio.testing import MockClock

import sp
from sp.core.direct_read import DirectRead
from tests.transports.ends import dial, server_tls
from tests.transports.wire import REQ, connect_as, frame, receive_frame

from .conftest import Background, connect

if TYPE_CHECKING:
    from sp.core.core import Core


@pytest.fixture(params=["tcp", "tls+tcp", "ws", "wss"])
def url(request: pytest.FixtureRequest) -> str:
    return f"{request.param}://127.0.0.1:0"


async def talk(one: sp.Bus0, two: sp.Bus0, rounds: int = 50) -> None:
    """Exchange messages until the receivers read for themselves."""
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            for _ in range(rounds):
                await two.send(await two.receive())

        nursery.start_soon(answer)
        for number in range(rounds):
            await one.send(b"%d" % number)
            assert await one.receive() == b"%d" % number


async def test_a_read_larger_than_the_inbox_loses_nothing(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url), inbox_limit=3) as one, sp.Bus0(outbox_limit=10_000) as two:
        await connect(one, two)
        await talk(one, two)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two.send_many, [b"%d" % number for number in range(3000)])
            received: list[bytes] = []
            while len(received) < 3000:
                received += await one.receive_many()
        assert received == [b"%d" % number for number in range(3000)]


async def test_a_second_pipe_is_heard_while_a_task_reads_the_first(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as one, sp.Bus0() as two, sp.Bus0() as three, trio.open_nursery() as nursery:
        await connect(one, two)
        await talk(one, two)
        waiting = Background(nursery, one.receive)
        await trio.testing.wait_all_tasks_blocked()
        await dial(three, one.url)
        await three.send(b"hello")
        assert await waiting.done() == b"hello"
        await two.send(b"still there")
        assert await one.receive() == b"still there"


async def test_a_cancelled_reader_hands_back(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as one, sp.Bus0() as two:
        await connect(one, two)
        for _ in range(20):
            await talk(one, two, 3)
            async with trio.open_nursery() as nursery:
                waiting = Background(nursery, one.receive)
                await trio.testing.wait_all_tasks_blocked()
                waiting.scope.cancel()
            await two.send(b"kept")
            await one.wait_for_peers()
            while not one.statistics().inbox:
                await trio.lowlevel.checkpoint()
            assert one.receive_nowait() == b"kept"


async def test_the_end_of_the_peer_is_noticed_while_a_task_reads(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as one, trio.open_nursery() as nursery:
        async with sp.Bus0() as two:
            await connect(one, two)
            await talk(one, two)
            waiting = Background(nursery, one.receive)
            await trio.testing.wait_all_tasks_blocked()
        while one.pipes:
            await trio.lowlevel.checkpoint()
        async with sp.Bus0() as three:
            await connect(one, three)
            await three.send(b"another one")
            assert await waiting.done() == b"another one"


async def test_the_end_of_the_peer_is_noticed_when_no_task_comes_back_to_read(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as one:
        async with sp.Bus0() as two:
            await connect(one, two)
            await talk(one, two)
        while one.pipes:
            await trio.lowlevel.checkpoint()


async def test_a_malformed_message_ends_the_pipe_while_a_task_reads(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url), max_message_size=10) as one, sp.Bus0() as two, trio.open_nursery() as nursery:
        await connect(one, two)
        await talk(one, two)
        pipe = one.pipes[0]
        waiting = Background(nursery, one.receive)
        await trio.testing.wait_all_tasks_blocked()
        await two.send(b"the last")
        await two.send(b"longer than ten")
        assert await waiting.done() == b"the last"
        while pipe in one.pipes:
            await trio.lowlevel.checkpoint()
        assert isinstance(pipe.error, sp.MessageTooLarge)


async def test_the_task_that_reads_serves_the_other_waiters(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as req, trio.open_nursery() as nursery:
        await connect(rep, req)
        for _ in range(20):
            await req.send(b"x")
            await rep.send(await rep.receive())
            assert await req.receive() == b"x"
        await req.send(b"slow")
        slow = await anext(rep.requests())
        first = Background(nursery, req.receive)
        await trio.testing.wait_all_tasks_blocked()
        others = [Background(nursery, lambda: req.request(b"quick")) for _ in range(5)]
        for _ in others:
            request = await anext(rep.requests())
            await request.reply(request.body)
        for other in others:
            assert await other.done() == b"quick"
        await slow.reply(b"slow")
        assert await first.done() == b"slow"


async def test_a_reader_that_is_interrupted_for_nothing_keeps_its_place_before_later_calls(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as one, sp.Bus0() as two, sp.Bus0() as three, trio.open_nursery() as nursery:
        await connect(one, two)
        await talk(one, two, 20)
        calls = []
        for _ in range(3):
            calls.append(Background(nursery, one.receive))
            await trio.testing.wait_all_tasks_blocked()
        await dial(three, one.url)  # from now on the first of them reads no more
        await one.wait_for_peers(2)
        await trio.testing.wait_all_tasks_blocked()
        for number, call in enumerate(calls):
            await three.send(b"%d" % number)
            assert await call.done() == b"%d" % number


async def test_two_tasks_that_receive_share_the_messages(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as one, sp.Bus0() as two, trio.open_nursery() as nursery:
        await connect(one, two)
        await talk(one, two)
        received: list[bytes] = []

        async def receive() -> None:
            while True:
                received.append(await one.receive())

        nursery.start_soon(receive)
        nursery.start_soon(receive)
        for number in range(1000):
            await two.send(b"%d" % number)
        while len(received) < 1000:
            await trio.lowlevel.checkpoint()
        assert sorted(received) == sorted(b"%d" % number for number in range(1000))
        nursery.cancel_scope.cancel()


async def test_blocked_writing_goes_on_when_a_reader_is_interrupted(url: str) -> None:
    async with (
        sp.Bus0(listen=url, tls=server_tls(url), outbox_limit=1000) as one,
        sp.Bus0(inbox_limit=1) as two,
        sp.Bus0() as three,
        trio.open_nursery() as nursery,
    ):
        await connect(one, two)
        await talk(one, two, 20)
        for _ in range(60):
            await one.send(bytes(200_000))  # more than the kernel takes at once
        waiting = Background(nursery, one.receive)
        await trio.testing.wait_all_tasks_blocked()
        # Interrupts the reader of the first pipe, whose writer waits as well.
        await dial(three, one.url)
        for _ in range(60 - one.statistics().dropped[sp.DropReason.PEER_FULL]):
            assert len(await two.receive()) == 200_000
        await three.send(b"done")
        assert await waiting.done() == b"done"


async def test_a_message_for_a_task_that_waits_beside_the_reader_is_not_left_to_a_reader_that_does_not_come_back(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sp.core.direct_read._UNUSED_FOR", 3600)  # until then no task would read
    async with sp.Bus0(listen=url, tls=server_tls(url)) as one, sp.Bus0() as two, trio.open_nursery() as nursery:
        await connect(one, two)
        await talk(one, two)
        first = Background(nursery, one.receive)
        await trio.testing.wait_all_tasks_blocked()
        second = Background(nursery, one.receive)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(10):
            await two.send(b"first")
            assert await first.done() == b"first"
            await two.send(b"second")
            assert await second.done() == b"second"


async def test_a_reader_whose_context_is_closed_while_it_wakes_up_reads_no_more() -> None:
    async with sp.Rep0(ttl=1, listen="tcp://127.0.0.1:0") as rep, await connect_as(rep.url, REQ) as peer:
        for _ in range(30):  # one task or the other comes first
            context = rep.context()
            ours, theirs = socket.socketpair()
            async with trio.open_nursery() as nursery:

                async def converse(context: sp.Rep0Context = context) -> None:
                    for _ in range(5):
                        await context.receive()
                        await context.send(b"")
                    with pytest.raises(trio.ClosedResourceError):
                        await context.receive()

                async def close(context: sp.Rep0Context = context, sock: socket.socket = ours) -> None:
                    await trio.lowlevel.wait_readable(sock)
                    context.close()

                nursery.start_soon(converse)
                nursery.start_soon(close)
                with trio.fail_after(10):
                    for _ in range(5):
                        await peer.send_all(frame(b"\x80\0\0\1?"))
                        await receive_frame(peer)
                    await trio.testing.wait_all_tasks_blocked(0.001)
                    theirs.send(b"x")
                    await peer.send_all(frame(b"\0\0\0\1\x80\0\0\1too many hops"))
                    while nursery.child_tasks:
                        await trio.lowlevel.checkpoint()
            ours.close()
            theirs.close()


# The life of an offer.


@pytest.fixture
def lasting_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no offer end because it was unused for a while."""
    monkeypatch.setattr("sp.core.direct_read._UNUSED_FOR", 3600)


async def start_reading(nursery: trio.Nursery, one: sp.Bus0, two: sp.Bus0) -> Background:
    """Return a call of ``one.receive`` that reads the only pipe itself."""
    while True:
        await talk(one, two, 2)
        call = Background(nursery, one.receive)
        await trio.testing.wait_all_tasks_blocked()
        if one._core.direct_read._is_used:
            return call
        await two.send(b"again")
        await call.done()


@pytest.mark.parametrize("in_order", [False, True])
async def test_a_task_that_reads_is_told_that_its_socket_is_closed(in_order: bool, url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as one, sp.Bus0() as two, trio.open_nursery() as nursery:
        await connect(one, two)
        reading = await start_reading(nursery, one, two)
        if in_order:
            await one.aclose()
        else:
            one.close()
        with trio.fail_after(10), pytest.raises(trio.ClosedResourceError, match="the socket is closed"):
            await reading.done()


async def test_a_task_that_reads_is_told_so_as_well_after_a_task_beside_it_was_cancelled(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as one, sp.Bus0(linger=0) as two, trio.open_nursery() as nursery:
        await connect(one, two)
        reading = await start_reading(nursery, one, two)
        waiting = Background(nursery, one.receive)
        await trio.testing.wait_all_tasks_blocked()
        waiting.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        one.close()
        with trio.fail_after(10), pytest.raises(trio.ClosedResourceError, match="the socket is closed"):
            await reading.done()


async def test_tasks_that_have_waited_are_forgotten(url: str, lasting_offers: None) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as one, sp.Bus0(linger=0) as two, trio.open_nursery() as nursery:
        await connect(one, two)
        reading = await start_reading(nursery, one, two)
        waiting, cancelled = Background(nursery, one.receive), Background(nursery, one.receive)
        await trio.testing.wait_all_tasks_blocked()
        assert one._core.waiting
        cancelled.scope.cancel()
        await two.send(b"first")
        await two.send(b"second")
        assert (await reading.done(), await waiting.done()) == (b"first", b"second")
        assert not one._core.waiting


async def test_of_two_messages_in_one_read_a_task_that_waits_beside_the_reader_gets_the_second(url: str, lasting_offers: None) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as one, sp.Bus0(linger=0) as two, trio.open_nursery() as nursery:
        await connect(one, two)
        reading = await start_reading(nursery, one, two)
        waiting = Background(nursery, one.receive)
        await trio.testing.wait_all_tasks_blocked()
        await two.send_many([b"first", b"second"])
        with trio.fail_after(10):
            assert (await reading.done(), await waiting.done()) == (b"first", b"second")


async def answer_all(sock: sp.Rep0 | sp.Respondent0) -> None:
    while True:
        await sock.send(await sock.receive())


async def ask(sock: sp.Req0 | sp.Surveyor0, peer: sp.Rep0 | sp.Respondent0, rounds: int = 5) -> None:
    """Ask *peer* until the calls of ``receive`` read for themselves."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_all, peer)
        for _ in range(rounds):
            await sock.send(b"?")
            assert await sock.receive() == b"?"
        nursery.cancel_scope.cancel()


async def test_a_task_that_waits_in_another_context_is_not_left_to_a_reader_that_does_not_come_back(lasting_offers: None) -> None:
    async with sp.Rep0(listen="tcp://127.0.0.1:0") as rep, sp.Req0() as req, trio.open_nursery() as nursery:
        await connect(rep, req)
        requests = rep.requests()
        is_direct = False
        while not is_direct:
            await ask(req, rep)
            one, two = req.context(), req.context()
            await one.send(b"one")
            first = await anext(requests)
            reading = Background(nursery, one.receive)
            await trio.testing.wait_all_tasks_blocked()
            is_direct = req._core.direct_read._is_used
            await two.send(b"two")
            second = await anext(requests)
            waiting = Background(nursery, two.receive)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(10):
                await first.reply(b"1")
                assert await reading.done() == b"1"
                await second.reply(b"2")
                assert await waiting.done() == b"2"
            one.close()
            two.close()


async def test_a_task_that_reads_is_told_that_its_survey_is_over(mock_clock: MockClock) -> None:
    async with (
        sp.Surveyor0(listen="tcp://127.0.0.1:0", deadline=5) as surveyor,
        sp.Respondent0() as respondent,
        trio.open_nursery() as nursery,
    ):
        await connect(surveyor, respondent)
        is_direct = False
        while not is_direct:
            await ask(surveyor, respondent)
            reading = Background(nursery, surveyor.receive)
            await trio.testing.wait_all_tasks_blocked()
            is_direct = surveyor._core.direct_read._is_used
            mock_clock.jump(6)
            with pytest.raises(trio.EndOfChannel, match="its time is up"):
                await reading.done()


async def test_a_task_that_reads_is_told_that_a_newer_request_has_replaced_its_own(lasting_offers: None) -> None:
    async with sp.Rep0(listen="tcp://127.0.0.1:0") as rep, sp.Req0() as req, trio.open_nursery() as nursery:
        await connect(rep, req)
        is_direct = False
        while not is_direct:
            await ask(req, rep)
            await req.send(b"old")
            assert await rep.receive() == b"old"
            reading = Background(nursery, req.receive)
            await trio.testing.wait_all_tasks_blocked()
            is_direct = req._core.direct_read._is_used
            await req.send(b"new")
            with trio.fail_after(10):
                with pytest.raises(sp.RequestReplaced):
                    await reading.done()
                await rep.send(await rep.receive())
                assert await req.receive() == b"new"


@pytest.mark.parametrize("in_order", [False, True])
async def test_a_task_that_reads_its_reply_is_told_of_the_socket_and_not_of_the_pipe(in_order: bool, lasting_offers: None) -> None:
    async with sp.Rep0(listen="tcp://127.0.0.1:0") as rep, sp.Req0(resend_after=None) as req, trio.open_nursery() as nursery:
        await connect(rep, req)
        while True:
            await ask(req, rep)
            await req.send(b"question")
            reading = Background(nursery, req.receive)
            await trio.testing.wait_all_tasks_blocked()
            if req._core.direct_read._is_used:
                break
            await rep.send(await rep.receive())
            await reading.done()
        if in_order:
            await req.aclose()
        else:
            req.close()
        with trio.fail_after(10), pytest.raises(trio.ClosedResourceError, match="the socket is closed"):
            await reading.done()


async def test_a_second_pipe_ends_the_offer(url: str, lasting_offers: None) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as one, sp.Bus0() as two, sp.Bus0() as three, trio.open_nursery() as nursery:
        await connect(one, two)
        reading = await start_reading(nursery, one, two)
        await dial(three, one.url)
        await one.wait_for_peers(2)
        await trio.testing.wait_all_tasks_blocked()
        assert not one._core.direct_read._is_used
        assert one._core.direct_read.offered is None
        await three.send(b"from the second pipe")
        assert await reading.done() == b"from the second pipe"


class Wire:
    """The connection of a pipe: a read returns one message once *arrived* is set."""

    def __init__(self) -> None:
        self.arrived = trio.Event()

    async def receive_batch(self) -> list[sp.Message]:
        await self.arrived.wait()
        return [sp.Message(b"last")]


class Reader:
    """What a direct read needs of a pipe, of its socket and of a receiver."""

    is_attached = True

    def __init__(self) -> None:
        self.connection = Wire()
        self.taken: list[sp.Message] = []

    def count_received(self, batch: list[sp.Message]) -> None:
        pass

    def deliver(self, batch: list[sp.Message]) -> None:
        self.taken += batch
        batch.clear()

    def receive(self) -> sp.Message | None:
        return self.taken.pop() if self.taken else None

    async def park(self) -> None:
        await trio.sleep_forever()

    def resume(self) -> None:
        pass


async def test_an_offer_is_not_renewed_after_the_pipes_own_task_was_cancelled() -> None:
    pipe: Any = Reader()
    direct = DirectRead(cast("Core", None))  # it is asked for nothing

    async def offer() -> None:
        while True:
            await direct.grant(pipe)

    async def read() -> object:
        while direct.offered is None:
            await trio.lowlevel.checkpoint()
        return await direct.read(pipe, pipe)

    async with trio.open_nursery() as nursery:
        offering = Background(nursery, offer)
        reading = Background(nursery, read)
        await trio.testing.wait_all_tasks_blocked()
        offering.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        pipe.connection.arrived.set()
        message = await reading.done()
        assert isinstance(message, sp.Message)
        assert direct.offered is None
