from __future__ import annotations

import struct

import pytest
import trio
from trio.testing import MockClock

import sp
from tests.transports.ends import dial, network_only, server_tls
from tests.transports.wire import REP, REQ, connect_as, frame

from .conftest import Background, connect


async def echo(rep: sp.Rep0) -> None:
    while True:
        await rep.send(await rep.receive())


async def test_a_question_gets_its_answer(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as req:
        await connect(rep, req)
        await req.send(b"question")
        assert await rep.receive() == b"question"
        await rep.send(b"answer")
        assert await req.receive() == b"answer"


async def test_a_hundred_requests_in_flight_get_each_its_own_answer_in_any_order(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as req, trio.open_nursery() as nursery:
        await connect(rep, req)
        answers = {}

        async def ask(number: int) -> None:
            answers[number] = await req.request(b"%d" % number)

        for number in range(100):
            nursery.start_soon(ask, number)
        requests = rep.requests()
        waiting = [await anext(requests) for _ in range(100)]
        for request in reversed(waiting):
            assert request.pipe is rep.pipes[0]
            await request.reply(request.body + b"!")
    assert answers == {number: b"%d!" % number for number in range(100)}


async def test_receive_before_send_is_a_state_error(name: str) -> None:
    async with sp.Rep0(listen=name) as rep, sp.Req0(dial=name) as req:
        with pytest.raises(sp.StateError, match="send one first"):
            await req.receive()
        with pytest.raises(sp.StateError, match="receive one first"):
            await rep.send(b"")


async def test_a_new_request_replaces_the_old_one_and_tells_its_waiter(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as req:
        await connect(rep, req)
        for _ in range(3):  # from the second time on the waiter reads the connection itself
            await req.send(b"old")
            async with trio.open_nursery() as nursery:
                waiting = Background(nursery, req.receive)
                await trio.testing.wait_all_tasks_blocked()
                await req.send(b"new")
                with pytest.raises(sp.RequestReplaced):
                    await waiting.done()
            old, new = await rep.context().receive(), await rep.receive()
            assert (old, new) == (b"old", b"new")
            await rep.send(b"newer")
            assert await req.receive() == b"newer"


async def test_two_tasks_cannot_wait_for_the_same_reply(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as req, trio.open_nursery() as nursery:
        await connect(rep, req)
        await req.send(b"x")
        nursery.start_soon(req.receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="context"):
            await req.receive()
        await rep.send(await rep.receive())


async def test_contexts_are_conversations_of_their_own(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as req:
        await connect(rep, req)
        async with req.context() as one, req.context() as two, rep.context() as first, rep.context() as second:
            await one.send(b"1")
            await two.send(b"2")
            asked = {await first.receive(): first, await second.receive(): second}
            await asked[b"2"].send(b"two")
            await asked[b"1"].send(b"one")
            assert (await one.receive(), await two.receive()) == (b"one", b"two")


async def test_a_closed_context_is_closed_and_its_reply_stale(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as req:
        await connect(rep, req)
        async with req.context() as context:
            await context.send(b"x")
        for call in (context.receive, lambda: context.send(b"")):
            with pytest.raises(trio.ClosedResourceError):
                await call()
        await rep.send(await rep.receive())
        await req.send(b"y")
        await rep.send(await rep.receive())
        assert await req.receive() == b"y"
        assert req.statistics().dropped == {"stale reply": 1}


async def test_closing_a_context_wakes_the_calls_that_wait_in_it(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as req:
        await connect(rep, req)
        # The context then waits by reading the connection itself, where that is possible.
        await req.send(b"x")
        await rep.send(await rep.receive())
        assert await req.receive() == b"x"
        context = req.context()
        await context.send(b"x")
        async with trio.open_nursery() as nursery:
            waiting = Background(nursery, context.receive)
            await trio.testing.wait_all_tasks_blocked()
            context.close()
            with pytest.raises(trio.ClosedResourceError):
                await waiting.done()


async def test_a_request_that_was_given_up_is_not_asked_again(name: str, autojump_clock: MockClock) -> None:
    async with sp.Rep0(listen=name) as rep, sp.Req0(resend_after=5) as req:
        await connect(rep, req)
        async with trio.open_nursery() as nursery:
            context = req.context()
            asking = Background(nursery, lambda: req.request(b"cancelled"))
            await context.send(b"closed")
            assert {await rep.receive() for _ in range(2)} == {b"cancelled", b"closed"}
            asking.scope.cancel()
            context.close()
        with trio.move_on_after(100):
            await rep.receive()
            raise AssertionError("it was asked again")
        assert await answered(req, rep)


async def answered(req: sp.Req0, rep: sp.Rep0) -> bool:
    """Whether a round trip works."""
    await req.send(b"?")
    await rep.send(await rep.receive())
    return await req.receive() == b"?"


async def test_an_unanswered_request_is_given_up_by_the_next_receive(name: str) -> None:
    async with sp.Rep0(listen=name) as rep, sp.Req0() as req, sp.Req0() as other:
        await connect(rep, req, other)
        await req.send(b"first")
        assert await rep.receive() == b"first"
        await other.send(b"second")
        assert await rep.receive() == b"second"
        await rep.send(b"reply")
        assert await other.receive() == b"reply"
        with pytest.raises(sp.StateError):
            await rep.send(b"late")


async def test_a_request_can_be_answered_once(name: str) -> None:
    async with sp.Rep0(listen=name) as rep, sp.Req0() as req:
        await connect(rep, req)
        await req.send(b"x")
        request = await anext(rep.requests())
        await request.reply(b"y")
        with pytest.raises(sp.StateError, match="already been answered"):
            await request.reply(b"z")


async def test_send_waits_for_a_peer_and_cancelled_has_not_happened(name: str) -> None:
    async with sp.Req0() as req:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(req.send, b"never")
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        with pytest.raises(trio.WouldBlock):
            req.send_nowait(b"never")
        async with sp.Rep0(listen=name) as rep, trio.open_nursery() as nursery:
            nursery.start_soon(req.send, b"waits")
            await trio.testing.wait_all_tasks_blocked()
            await connect(rep, req)
            assert await rep.receive() == b"waits"


async def test_a_request_goes_to_the_next_peer_when_its_pipe_dies(url: str, name: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as first, sp.Rep0(listen=name + "-other") as second, sp.Req0() as req:
        await connect(first, req)
        await req.send(b"x")
        assert await first.receive() == b"x"
        await connect(second, req)
        await first.aclose()
        assert await second.receive() == b"x"
        await second.send(b"y")
        assert await req.receive() == b"y"


async def test_a_request_survives_the_restart_of_its_only_peer(url: str) -> None:
    async with sp.Req0(redial_min=0.01, redial_max=0.01) as req:
        async with sp.Rep0(listen=url, tls=server_tls(url)) as rep:
            address = rep.url
            await connect(rep, req)
            await req.send(b"x")
            assert await rep.receive() == b"x"
            rep.close()
        async with sp.Rep0(listen=address, tls=server_tls(url)) as rep:
            await rep.send(await rep.receive())
            assert await req.receive() == b"x"


async def test_without_resending_a_lost_pipe_is_reported(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0(resend_after=None) as req:
        await connect(rep, req)
        await req.send(b"x")
        assert await rep.receive() == b"x"
        async with trio.open_nursery() as nursery:
            waiting = Background(nursery, req.receive)
            await trio.testing.wait_all_tasks_blocked()
            rep.close()
            with pytest.raises(sp.RequestLost):
                await waiting.done()
        with pytest.raises(sp.StateError):
            await req.receive()


async def test_a_request_without_an_answer_is_sent_again_in_time(name: str, autojump_clock: trio.testing.MockClock) -> None:
    async with sp.Rep0(listen=name) as rep, sp.Req0(resend_after=10) as req:
        await connect(rep, req)
        began = trio.current_time()
        await req.send(b"x")
        for number in range(4):
            assert await rep.receive() == b"x"
            assert trio.current_time() - began == pytest.approx(10 * number)
        await rep.send(b"y")
        assert await req.receive() == b"y"
        assert rep.statistics().messages_received == 4


async def test_resending_can_be_switched_off(name: str, autojump_clock: trio.testing.MockClock) -> None:
    async with sp.Rep0(listen=name) as rep, sp.Req0(resend_after=None) as req:
        await connect(rep, req)
        await req.send(b"x")
        await trio.sleep(10_000)
        assert rep.statistics().messages_received == 1


async def test_a_reply_that_is_too_large_each_time_does_not_become_a_storm(name: str, autojump_clock: trio.testing.MockClock) -> None:
    async with sp.Rep0(listen=name) as rep, sp.Req0(max_message_size=100) as req, trio.open_nursery() as nursery:
        await connect(rep, req)

        async def answer() -> None:
            async for request in rep.requests():
                await request.reply(bytes(1000))

        nursery.start_soon(answer)
        with trio.move_on_after(600):
            await req.request(b"x")
        asked = rep.statistics().messages_received
        assert 5 <= asked < 80  # at full speed it would be thousands
        assert req.statistics().dialers[0].failures["MessageTooLarge"] >= asked - 1
        nursery.cancel_scope.cancel()


@network_only
@pytest.mark.parametrize(("words", "answered"), [(0, True), (1, True), (7, True), (8, False)])
async def test_a_reply_goes_back_through_any_number_of_hops_up_to_the_ttl(url: str, words: int, answered: bool) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url), ttl=8) as rep, trio.open_nursery() as nursery:
        nursery.start_soon(echo, rep)
        async with await connect_as(rep.url, REQ) as stream:
            header = b"".join(struct.pack(">I", 7 + word) for word in range(words)) + b"\x80\0\0\1"
            last = b"\x80\0\0\2last"
            await stream.send_all(frame(header + b"body") + frame(last))
            expected = (frame(header + b"body") if answered else b"") + frame(last)
            received = b""
            while len(received) < len(expected):
                received += await stream.receive_some()
            assert received == expected
        assert rep.statistics().dropped == ({} if answered else {"ttl": 1})
        nursery.cancel_scope.cancel()


@network_only
@pytest.mark.parametrize("payload", [b"", b"\x80\0\0", b"\0\0\0\1" * 3, b"\0\0\0\1\x80"])
async def test_a_request_without_the_end_of_its_header_ends_the_pipe(url: str, payload: bytes) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep:
        events = rep.events()
        async with await connect_as(rep.url, REQ) as stream:
            await stream.send_all(frame(payload))
            assert await stream.receive_some() == b""
        async for event in events:
            if event.kind is sp.EventKind.DETACHED:
                assert isinstance(event.error, sp.MalformedMessage)
                break


@network_only
async def test_a_reply_too_short_for_its_id_ends_the_pipe_and_a_foreign_one_is_dropped(url: str) -> None:
    async with sp.Req0(listen=url, tls=server_tls(url)) as req:
        events = req.events()
        async with await connect_as(req.url, REP) as stream:
            await req.send(b"x")
            asked = b""
            while len(asked) < 13:
                asked += await stream.receive_some()
            assert asked[8] & 0x80
            await stream.send_all(frame(b"\x80\0\0\0stranger") + frame(b"\0\0\0\1no bit") + frame(asked[8:12] + b"reply"))
            assert await req.receive() == b"reply"
            await stream.send_all(frame(asked[8:12] + b"twice") + frame(b"\x80\0\0"))
            assert await stream.receive_some() == b""
        assert req.statistics().dropped[sp.DropReason.STALE_REPLY] == 3
        async for event in events:
            if event.kind is sp.EventKind.DETACHED:
                assert isinstance(event.error, sp.MalformedMessage)
                break


@pytest.mark.slow
@network_only
async def test_a_reply_waits_for_a_requester_that_does_not_read(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url), outbox_limit=2) as rep, sp.Req0() as quick, trio.open_nursery() as nursery:
        async with await connect_as(rep.url, REQ) as stream:
            big = bytes(1 << 20)

            async def answer() -> None:
                async for request in rep.requests():
                    if request.body == b"big":
                        nursery.start_soon(request.reply, big)
                    else:
                        await request.reply(request.body)

            nursery.start_soon(answer)
            await stream.send_all(b"".join(frame(struct.pack(">I", 0x8000_0000 + number) + b"big") for number in range(32)))
            await dial(quick, rep.url)
            while rep.statistics().messages_received < 32:
                await trio.lowlevel.checkpoint()
            assert await quick.request(b"others go on") == b"others go on"
            received = 0
            while received < 32 * (len(big) + 12):
                received += len(await stream.receive_some(1 << 20))
        assert received == 32 * (len(big) + 12)
        assert rep.statistics().dropped == {}
        nursery.cancel_scope.cancel()


async def test_a_task_that_replaces_a_request_gets_the_new_reply_and_the_old_waiter_the_error() -> None:
    async with sp.Rep0(listen="tcp://127.0.0.1:0") as rep, sp.Req0() as req, trio.open_nursery() as nursery:
        await connect(rep, req)
        for _ in range(20):  # until the waiter reads the connection itself
            await req.send(b"x")
            await rep.send(await rep.receive())
            assert await req.receive() == b"x"
        await req.send(b"old")
        old = Background(nursery, req.receive)
        await trio.testing.wait_all_tasks_blocked()

        async def renew() -> bytes:
            await req.send(b"new")
            while True:
                try:
                    return await req.receive()
                except trio.BusyResourceError:  # the old waiter has not run yet
                    await trio.lowlevel.checkpoint()

        new = Background(nursery, renew)
        await trio.testing.wait_all_tasks_blocked()
        assert await rep.receive() == b"old"
        assert await rep.receive() == b"new"
        await rep.send(b"newer")
        with pytest.raises(sp.RequestReplaced):
            await old.done()
        assert await new.done() == b"newer"


async def test_a_request_that_waited_for_a_peer_is_sent_again_in_time_too(name: str, autojump_clock: trio.testing.MockClock) -> None:
    async with sp.Req0(resend_after=10) as req, trio.open_nursery() as nursery:
        waiting = Background(nursery, lambda: req.send(b"x"))
        await trio.testing.wait_all_tasks_blocked()
        async with sp.Rep0(listen=name) as rep:
            await connect(rep, req)
            await waiting.done()
            began = trio.current_time()
            for number in range(3):
                assert await rep.receive() == b"x"
                assert trio.current_time() - began == pytest.approx(10 * number, abs=0.5)


async def test_requests_that_wait_on_one_context_are_started_in_the_order_of_their_calls(name: str) -> None:
    async with sp.Rep0(listen=name) as rep, sp.Req0() as req, trio.open_nursery() as nursery:
        waiting = []
        for number in range(5):
            body = b"%d" % number
            waiting.append(Background(nursery, lambda body=body: req.send(body)))
            await trio.testing.wait_all_tasks_blocked()
        await connect(rep, req)
        for call in waiting:
            await call.done()
        assert [await rep.context().receive() for _ in range(5)] == [b"%d" % number for number in range(5)]
        await rep.aclose()
