"""The calls of push/pull, pair, survey, raw sockets and devices, each cancelled while it is
blocked, or at any moment.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import sp
from tests.sockets.conftest import Background, connect, name, url
from tests.sockets.kinds import ID, Kind, each, raw_of, talking
from tests.transports.ends import dial, listen, server_tls

__all__ = ["name", "url"]

PUSH_AND_PAIR = [
    Kind(sp.Push0),
    Kind(sp.Push0, raw=True),
    Kind(sp.Pair0),
    Kind(sp.Pair0, raw=True),
    Kind(sp.Pair1),
    Kind(sp.Pair1, raw=True),
    Kind(sp.Pair1, {"poly": True}, {"poly": True}),
]
WITHOUT_HEADERS = each([kind for kind in PUSH_AND_PAIR if not kind.header])


async def cancel_blocked(call: Callable[[], Awaitable[object]]) -> None:
    """Cancel *call* once it waits."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                await call()
                raise AssertionError("it did not wait")

            nursery.start_soon(run)
            await wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught


class Chances:
    """Scopes that are cancelled at random moments."""

    def __init__(self, seed: int, nursery: trio.Nursery) -> None:
        self.random = random.Random(seed)
        self._nursery = nursery

    def scope(self, longest: int = 4) -> trio.CancelScope:
        """Return a scope that is cancelled after up to *longest* turns of the loop."""
        scope = trio.CancelScope()
        self._nursery.start_soon(self._cancel, scope, self.random.randrange(longest))
        return scope

    async def _cancel(self, scope: trio.CancelScope, turns: int) -> None:
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        scope.cancel()


# Every message once and in order, whichever task is cancelled.


@pytest.mark.slow
@each(PUSH_AND_PAIR)
async def test_receivers_under_random_cancellations_get_every_message_once_and_in_order(kind: Kind, url: str) -> None:
    count = 500
    async with (
        talking(kind, url, tls=server_tls(url), outbox_limit=8, peer={"inbox_limit": 8}) as talk,
        trio.open_nursery() as nursery,
    ):
        chances = Chances(1, nursery)

        async def send() -> None:
            for number in range(count):
                await talk.send(b"%d" % number)
                if chances.random.random() < 0.1:
                    await trio.lowlevel.checkpoint()

        nursery.start_soon(send)
        received: list[int] = []
        with trio.fail_after(20):
            while len(received) < count:
                with chances.scope():
                    while len(received) < count:
                        choice = chances.random.random()
                        if choice < 0.2:
                            received += map(int, await talk.back.receive_many(3))
                        elif choice < 0.4:
                            received.append(int((await talk.back.receive_message()).body))
                        else:
                            received.append(int(await talk.back.receive()))
        assert received == list(range(count))
        assert talk.front.statistics().dropped == talk.back.statistics().dropped == {}
        nursery.cancel_scope.cancel()


@pytest.mark.slow
@each(PUSH_AND_PAIR)
async def test_a_message_whose_send_was_cancelled_never_arrives_and_all_others_do_in_order(kind: Kind, url: str) -> None:
    async with (
        talking(kind, url, tls=server_tls(url), outbox_limit=2, peer={"inbox_limit": 2}) as talk,
        trio.open_nursery() as nursery,
    ):
        chances = Chances(1, nursery)
        sent: list[bytes] = []
        cancelled: set[bytes] = set()
        received: list[bytes] = []

        async def receive() -> None:
            while True:
                received.append((await talk.back.receive()).rstrip(b" "))
                for _ in range(chances.random.choice([0, 0, 3])):
                    await trio.lowlevel.checkpoint()

        for number in range(300):
            body = b"%d" % number
            size = 200_000 if len(cancelled) < 20 else chances.random.choice([0, 10, 20_000])
            with chances.scope(3) as scope:
                await talk.send(body + b" " * size)
                sent.append(body)
            if scope.cancelled_caught:
                cancelled.add(body)
                if len(cancelled) == 20:  # until then no task has received anything
                    nursery.start_soon(receive)
        with trio.fail_after(20):
            await talk.send(b"last")
            while received[-1:] != [b"last"]:
                await trio.lowlevel.checkpoint()
        assert cancelled
        assert received == [*sent, b"last"]
        assert talk.front.statistics().dropped == talk.back.statistics().dropped == {}
        nursery.cancel_scope.cancel()


@pytest.mark.slow
@WITHOUT_HEADERS
@pytest.mark.parametrize("make", [list, iter], ids=["list", "iterator"])
async def test_of_a_send_many_that_was_cancelled_a_beginning_was_sent(kind: Kind, make: Callable[[list[bytes]], Any], url: str) -> None:
    async with (
        talking(kind, url, tls=server_tls(url), outbox_limit=2, peer={"inbox_limit": 2}) as talk,
        trio.open_nursery() as nursery,
    ):
        chances = Chances(1, nursery)
        received: list[tuple[int, int]] = []

        async def receive() -> None:
            while True:
                batch, number, _ = (await talk.back.receive()).split(b" ", 2)
                received.append((int(batch), int(number)))

        nursery.start_soon(receive)
        whole: dict[int, bool] = {}
        left: dict[int, int] = {}
        for batch in range(40):
            bodies = make([b"%d %d " % (batch, number) + bytes(2000) for number in range(100)])
            with chances.scope(12) as scope:
                await talk.front.send_many(bodies)
            whole[batch] = not scope.cancelled_caught
            if make is iter:
                left[batch] = len(list(bodies))
        with trio.fail_after(20):
            await talk.front.send(b"40 0 ")
            while received[-1:] != [(40, 0)]:
                await trio.lowlevel.checkpoint()
        assert received == sorted(set(received))
        for batch in range(40):
            numbers = [number for of_batch, number in received if of_batch == batch]
            assert numbers == list(range(len(numbers)))
            assert (len(numbers) == 100) == whole[batch] or not whole[batch]
            if make is iter and not whole[batch]:
                # Of an iterator the rest is still to be had, but for the one that was waiting.
                assert 100 - len(numbers) - left[batch] in (0, 1)
        assert not all(whole.values())
        assert talk.front.statistics().dropped == {}
        nursery.cancel_scope.cancel()


# Blocked for certain.


@each(PUSH_AND_PAIR)
async def test_a_send_that_waits_for_a_peer_and_is_cancelled_sends_nothing_to_the_one_that_comes(kind: Kind, name: str) -> None:
    async with kind() as front, kind.peer(listen=name) as back:
        before = front.statistics()
        for _ in range(3):
            await cancel_blocked(partial(front.send_message, sp.Message(b"never", kind.header)))
            if not kind.header:
                await cancel_blocked(partial(front.send, b"never"))
                await cancel_blocked(partial(front.send_many, [b"never"] * 3))
        assert front.statistics() == before
        await front.dial(name)
        await front.send_message(sp.Message(b"this one", kind.header))
        assert await back.receive() == b"this one"
        await wait_all_tasks_blocked()
        assert back.statistics().messages_received == 1


async def test_a_raw_req_that_waits_for_a_service_and_is_cancelled_asks_no_peer(name: str) -> None:
    async with sp.raw.Req0() as req, sp.Rep0(listen=name) as rep:
        await cancel_blocked(partial(req.send_message, sp.Message(b"never", ID)))
        await req.dial(name)
        await req.send_message(sp.Message(b"this one", ID))
        assert await rep.receive() == b"this one"


async def test_a_message_to_one_of_several_that_is_full_and_is_cancelled_does_not_reach_it(name: str) -> None:
    async with sp.Pair1(poly=True, listen=name, outbox_limit=1) as pair, sp.Pair1(inbox_limit=1) as full, sp.Pair1() as other:
        await connect(pair, full)
        await dial(other, name)
        await pair.wait_for_peers(2)
        sent = 0
        while True:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def send(nursery: trio.Nursery = nursery) -> None:
                        nonlocal sent
                        await pair.send_message(sp.Message(b"%d" % sent, pipe=pair.pipes[0]))
                        sent += 1
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(send)
                    await wait_all_tasks_blocked()
                    scope.cancel()
            if scope.cancelled_caught:
                break
        await pair.send_message(sp.Message(b"x", pipe=pair.pipes[1]))
        assert await other.receive() == b"x"
        assert [await full.receive() for _ in range(sent)] == [b"%d" % number for number in range(sent)]
        await pair.send_message(sp.Message(b"next", pipe=pair.pipes[0]))
        assert await full.receive() == b"next"


@each([Kind(sp.Pull0), Kind(sp.Pair0), Kind(sp.Pair1), Kind(sp.Respondent0), Kind(sp.Rep0, raw=True), Kind(sp.Sub0, raw=True)])
async def test_a_blocked_receive_that_is_cancelled_leaves_the_next_message_to_the_next(kind: Kind, url: str) -> None:
    async with talking(kind, url, tls=server_tls(url)) as talk:
        calls: list[Callable[[], Awaitable[object]]] = [talk.ours.receive, talk.ours.receive_message]
        if hasattr(talk.ours, "receive_many"):
            calls.append(talk.ours.receive_many)
        for call in calls:
            await cancel_blocked(call)
            await talk.send_to_ours(b"kept")
            with trio.fail_after(5):
                assert await talk.ours.receive() == b"kept"


# Surveys.


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
async def test_an_iteration_over_answers_under_random_cancellations_gets_each_answer_once(url: str, seed: int) -> None:
    async with sp.Surveyor0(listen=url, tls=server_tls(url), deadline=1000) as surveyor, trio.open_nursery() as nursery:
        chances = Chances(seed, nursery)

        async def respond(number: int, ready: trio.Event) -> None:
            async with sp.Respondent0() as respondent:
                await dial(respondent, surveyor.url)
                ready.set()
                async for survey in respondent.surveys():
                    await survey.reply(survey.body + b"-%d" % number)

        for number in range(8):
            ready = trio.Event()
            nursery.start_soon(respond, number, ready)
            await ready.wait()
        await surveyor.wait_for_peers(8)
        with trio.fail_after(20):
            for turn in range(40):
                survey = surveyor.survey(b"%d" % turn)
                answers: list[bytes] = []
                while len(answers) < 8:
                    with chances.scope():
                        while len(answers) < 8:
                            answers.append(await anext(survey))
                assert sorted(answers) == [b"%d-%d" % (turn, number) for number in range(8)]
                survey.close()
        # Each survey was sent once.
        assert all(pipe.statistics().messages_sent == 40 for pipe in surveyor.pipes)
        assert surveyor.statistics().dropped == {}
        nursery.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
async def test_a_service_under_random_cancellations_answers_each_survey_and_each_request_once(url: str, seed: int) -> None:
    for asking, answering in ((sp.Surveyor0(deadline=1000), sp.Respondent0), (sp.Req0(resend_after=None), sp.Rep0)):
        async with answering(listen=url, tls=server_tls(url)) as service, asking as asker, trio.open_nursery() as nursery:
            await connect(service, asker)
            chances = Chances(seed, nursery)

            async def serve(service: Any = service, chances: Chances = chances) -> None:
                asked = service.surveys() if isinstance(service, sp.Respondent0) else service.requests()
                while True:
                    request = None
                    with chances.scope():
                        request = await anext(asked)
                    while request is not None:
                        with chances.scope(3):
                            await request.reply(request.body)
                            request = None

            nursery.start_soon(serve)
            with trio.fail_after(20):
                for number in range(200):
                    await asker.send(b"%d" % number)
                    assert await asker.receive() == b"%d" % number
            assert service.statistics().dropped == asker.statistics().dropped == {}
            nursery.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["surveys", "respondent context", "surveyor context", "socket", "survey"])
async def test_waits_for_surveys_and_answers_end_at_once_and_lose_nothing(what: str, name: str) -> None:
    async with sp.Surveyor0(listen=name, deadline=1000) as surveyor, sp.Respondent0() as respondent:
        await connect(surveyor, respondent)
        context, answering = surveyor.context(), respondent.context()
        if what in ("surveys", "respondent context"):
            asked = respondent.surveys()
            call: Callable[[], Awaitable[object]] = (lambda: anext(asked)) if what == "surveys" else answering.receive
            for _ in range(3):
                await cancel_blocked(call)
                await surveyor.send(b"x")
                await respondent.send(await respondent.receive())
                assert await surveyor.receive() == b"x"
            return
        survey = surveyor.survey(b"x")
        if what != "survey":
            await (context if what == "surveyor context" else surveyor).send(b"x")
        waits: dict[str, Callable[[], Awaitable[bytes]]] = {
            "surveyor context": context.receive,
            "socket": surveyor.receive,
            "survey": lambda: anext(survey),
        }
        receive = waits[what]
        for _ in range(3):
            await cancel_blocked(receive)
        assert respondent.statistics().messages_received == 1
        await respondent.send(await respondent.receive())
        assert await receive() == b"x"


@each([Kind(sp.Rep0), Kind(sp.Respondent0)])
@pytest.mark.parametrize("call", ["send", "send_message", "reply"])
async def test_a_blocked_answer_that_is_cancelled_was_not_sent_and_can_be_repeated(kind: Kind, call: str, name: str) -> None:
    async with talking(kind, name, peer_kind=kind.talkative_peer, outbox_limit=1, linger=0, peer={"inbox_limit": 1, "linger": 0}) as talk:
        service, asker = talk.ours, talk.theirs
        for _ in range(400):
            await asker.send_message(sp.Message(b"x", ID))
        sent = 0
        blocked = False
        while not blocked:
            context = service.context()
            request = sp.Request(context, await context.receive_message())
            calls = {"send": context.send, "reply": request.reply}
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def answer(
                        nursery: trio.Nursery = nursery, context: Any = context, calls: dict[str, Any] = calls, number: int = sent
                    ) -> None:
                        body = b"%d" % number
                        await (context.send_message(sp.Message(body)) if call == "send_message" else calls[call](body))
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(answer)
                    await wait_all_tasks_blocked()
                    scope.cancel()
            blocked = scope.cancelled_caught
            sent += not blocked
        assert sent > 100
        assert [await asker.receive() for _ in range(sent)] == [b"%d" % number for number in range(sent)]
        await wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            asker.receive_nowait()
        await context.send(b"after all")
        assert await asker.receive() == b"after all"
        with pytest.raises(sp.StateError):
            await context.send(b"twice")
        assert service.statistics().dropped == {}


# Devices.


@pytest.mark.parametrize("kinds", [(sp.Pull0, sp.Push0), (sp.Rep0, sp.Req0), (sp.Pair1, sp.Pair1), (sp.Bus0, None)], ids=str)
async def test_an_idle_device_ends_at_once_and_leaves_its_sockets_as_they_were(kinds: tuple[Any, Any], name: str) -> None:
    front_class, back_class = kinds
    async with raw_of(front_class)() as front:
        back = None
        if back_class is not None:
            back = raw_of(back_class)()
        async with trio.open_nursery() as nursery:
            if back is not None:
                holding = Background(nursery, partial(_hold, back))
                await wait_all_tasks_blocked()
            for _ in range(3):
                before = front.statistics()
                tasks = trio.lowlevel.current_statistics().tasks_living
                await cancel_blocked(partial(sp.device.device, front, back))
                assert trio.lowlevel.current_statistics().tasks_living == tasks
                assert front.statistics() == before
            with trio.CancelScope() as scope:
                scope.cancel()
                await sp.device.device(front, back)
            assert scope.cancelled_caught
            if back is not None:
                holding.scope.cancel()


async def _hold(socket: Any) -> None:
    async with socket:
        await trio.sleep_forever()


async def test_a_device_that_waits_for_room_ends_at_once_and_puts_its_message_back_in_front(name: str, autojump_clock: MockClock) -> None:
    async with (
        sp.raw.Pull0(listen=name, inbox_limit=5) as front,
        sp.raw.Push0() as back,
        sp.Push0(dial=name) as push,
        sp.Pull0(listen=name + "-end") as pull,
    ):
        for number in range(8):
            await push.send(b"%d" % number)
        for _ in range(3):
            await cancel_blocked(partial(sp.device.device, front, back))
        assert await front.receive() == b"0"
        await back.dial(name + "-end")
        with trio.move_on_after(1):
            await sp.device.device(front, back)
        assert [await pull.receive() for _ in range(7)] == [b"%d" % number for number in range(1, 8)]
        assert front.statistics().dropped == back.statistics().dropped == {}


async def test_what_a_cancelled_device_leaves_goes_to_the_call_that_waits_for_it(name: str) -> None:
    async with (
        sp.raw.Pull0(listen=name) as front,
        sp.raw.Push0() as back,
        sp.Push0(dial=name) as push,
        trio.open_nursery() as nursery,
    ):
        device = Background(nursery, partial(sp.device.device, front, back))
        await push.send(b"0")
        await push.wait_for_peers()
        await wait_all_tasks_blocked()
        waiting = Background(nursery, front.receive)
        await wait_all_tasks_blocked()
        device.scope.cancel()
        with trio.fail_after(5):
            assert await waiting.done() == b"0"
        await listen(front, name + "-2")  # and nothing is broken
