from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import sp
from sp.core.receivers import Receivers
from sp.protocol_numbers import RESPONDENT, SURVEYOR
from sp.protocols.surveyor import SurveyorContext
from tests.transports.ends import dial, network_only, server_tls
from tests.transports.wire import connect_as, frame, receive_frame, until

from .conftest import Background, connect


@asynccontextmanager
async def respondents(url: str, count: int, **options: float) -> AsyncIterator[tuple[sp.Surveyor0, list[sp.Respondent0]]]:
    """A surveyor that listens, and *count* respondents."""
    async with sp.Surveyor0(listen=url, tls=server_tls(url), **options) as surveyor, trio.open_nursery() as nursery:  # type: ignore[arg-type]
        sockets = [sp.Respondent0() for _ in range(count)]

        async def live(socket: sp.Respondent0) -> None:
            async with socket:
                await dial(socket, surveyor.url)
                await trio.sleep_forever()

        for socket in sockets:
            nursery.start_soon(live, socket)
        await surveyor.wait_for_peers(count)
        yield surveyor, sockets
        nursery.cancel_scope.cancel()


async def answer_all(respondent: sp.Respondent0, suffix: bytes = b"", after: float = 0) -> None:
    """Answer every survey with its own body and *suffix*, *after* so many seconds."""
    async for survey in respondent.surveys():
        await trio.sleep(after)
        await survey.reply(survey.body + suffix)


async def test_all_peers_are_asked_and_all_answers_come(url: str) -> None:
    async with respondents(url, 3, deadline=60) as (surveyor, sockets):
        await surveyor.send(b"who?")
        for number, respondent in enumerate(sockets):
            assert await respondent.receive() == b"who?"
            await respondent.send(b"%d" % number)
        assert sorted([await surveyor.receive() for _ in sockets]) == [b"0", b"1", b"2"]
        for respondent in sockets:
            assert respondent.statistics().dropped == {}


async def test_respondents_cannot_answer_and_surveyors_cannot_receive_before_a_survey(name: str) -> None:
    async with respondents(name, 1) as (surveyor, (respondent,)):
        with pytest.raises(sp.StateError, match="no survey to answer: receive one first"):
            await respondent.send(b"")
        for call in (surveyor.receive, surveyor.receive_message, surveyor.context().receive):
            with pytest.raises(sp.StateError, match="no survey under way: send one first"):
                await call()
        with pytest.raises(sp.StateError, match="no survey under way: send one first"):
            surveyor.receive_nowait()
        await surveyor.send(b"x")
        await respondent.send(await respondent.receive())
        with pytest.raises(sp.StateError, match="receive one first"):
            await respondent.send(b"twice")


async def test_the_iteration_over_the_answers_ends_with_the_deadline(name: str, autojump_clock: MockClock) -> None:
    async with respondents(name, 3) as (surveyor, sockets), trio.open_nursery() as nursery:
        for number, respondent in enumerate(sockets):
            nursery.start_soon(partial(answer_all, respondent, b"%d" % number, after=number))
        began = trio.current_time()
        answers = [(answer, trio.current_time() - began) async for answer in surveyor.survey(b"a", deadline=1.5)]
        assert answers == [(b"a0", 0), (b"a1", 1)]
        assert trio.current_time() - began == pytest.approx(1.5)
        await trio.sleep(1)
        assert surveyor.statistics().dropped == {"late answer": 1}
        nursery.cancel_scope.cancel()


async def test_the_sockets_own_survey_ends_as_well_and_again_and_again_until_the_next(name: str, autojump_clock: MockClock) -> None:
    async with respondents(name, 2, deadline=2) as (surveyor, sockets), trio.open_nursery() as nursery:
        for respondent in sockets:
            nursery.start_soon(answer_all, respondent)
        for body in (b"first", b"second"):
            began = trio.current_time()
            await surveyor.send(body)
            assert [answer async for answer in surveyor] == [body, body]
            assert trio.current_time() - began == pytest.approx(2)
            for _ in range(3):
                with pytest.raises(trio.EndOfChannel, match="the survey is over: its time is up"):
                    await surveyor.receive()
                with pytest.raises(trio.EndOfChannel):
                    await surveyor.receive_message()
                with pytest.raises(trio.EndOfChannel):
                    surveyor.receive_nowait()
        nursery.cancel_scope.cancel()


async def test_answers_that_came_in_time_can_be_received_after_it(name: str, autojump_clock: MockClock) -> None:
    async with respondents(name, 3) as (surveyor, sockets), trio.open_nursery() as nursery:
        for number, respondent in enumerate(sockets):
            nursery.start_soon(partial(answer_all, respondent, after=number * 0.4))
        await surveyor.send(b"x")
        await trio.sleep(10)
        assert surveyor.statistics().inbox == 3
        assert [answer async for answer in surveyor] == [b"x"] * 3
        survey = surveyor.survey(b"y")
        assert await anext(survey) == b"y"
        await trio.sleep(10)
        assert [answer async for answer in survey] == [b"y", b"y"]
        nursery.cancel_scope.cancel()


async def test_a_late_answer_is_counted_whether_anybody_still_asks_or_not(name: str, autojump_clock: MockClock) -> None:
    async with respondents(name, 2) as (surveyor, (one, two)):
        await surveyor.send(b"early")
        for respondent in (one, two):
            assert await respondent.receive() == b"early"
        await trio.sleep(2)
        await one.send(b"late")
        await surveyor.send(b"next")
        await two.send(b"late as well")
        await wait_all_tasks_blocked()
        assert surveyor.statistics().dropped == {"late answer": 2}
        with pytest.raises(trio.WouldBlock):
            surveyor.receive_nowait()
        assert await one.receive() == b"next"
        await one.send(b"in time")
        assert await surveyor.receive() == b"in time"


async def test_surveys_side_by_side_get_each_its_own_answers(url: str) -> None:
    async with respondents(url, 3, deadline=60) as (surveyor, sockets), trio.open_nursery() as nursery:
        for number, respondent in enumerate(sockets):
            nursery.start_soon(partial(answer_all, respondent, b"-%d" % number))
        done = 0

        async def ask(number: int) -> None:
            nonlocal done
            survey = surveyor.survey(b"%d" % number)
            answers = {await anext(survey) for _ in sockets}
            assert answers == {b"%d-%d" % (number, respondent) for respondent in range(3)}
            survey.close()
            done += 1

        async with trio.open_nursery() as asking:
            for number in range(50):
                asking.start_soon(ask, number)
        assert done == 50
        assert surveyor.statistics().dropped == {}
        nursery.cancel_scope.cancel()


async def test_each_survey_ends_at_its_own_time_the_shorter_one_first_even_if_it_began_later(name: str, autojump_clock: MockClock) -> None:
    async with respondents(name, 1, deadline=100) as (surveyor, _), trio.open_nursery() as nursery:
        ends: list[tuple[str, float]] = []

        async def ask(label: str, deadline: float | None) -> None:
            async for _ in surveyor.survey(b"", deadline=deadline):
                raise AssertionError("nobody answers")
            ends.append((label, trio.current_time()))

        began = trio.current_time()
        await surveyor.send(b"the socket's own")
        waiting = Background(nursery, surveyor.receive)
        context = surveyor.context(deadline=20)
        nursery.start_soon(ask, "long", 50)
        await trio.sleep(1)
        await context.send(b"")
        nursery.start_soon(ask, "short", 5)
        await trio.sleep(1)
        nursery.start_soon(ask, "shorter", 1)
        nursery.start_soon(ask, "as the socket has it", None)
        with pytest.raises(trio.EndOfChannel):
            await context.receive()
        assert trio.current_time() - began == pytest.approx(21)
        with pytest.raises(trio.EndOfChannel):
            await waiting.done()
        assert trio.current_time() - began == pytest.approx(100)
        await trio.sleep(10)
        expected: list[tuple[str, object]] = [
            (label, pytest.approx(began + end))
            for label, end in (("shorter", 3), ("short", 6), ("long", 50), ("as the socket has it", 102))
        ]
        assert ends == expected


async def test_a_new_survey_on_a_context_ends_the_one_before_and_the_waiting_call_says_so(url: str) -> None:
    async with respondents(url, 1, deadline=60) as (surveyor, (respondent,)):
        for context in (surveyor, surveyor.context()):
            # From the second time on the waiter reads the connection itself, where that is
            # possible.
            for _ in range(3):
                await context.send(b"old")
                async with trio.open_nursery() as nursery:
                    waiting = [Background(nursery, context.receive) for _ in range(2)]
                    await wait_all_tasks_blocked()
                    await context.send(b"new")
                    for call in waiting:
                        with pytest.raises(trio.EndOfChannel, match="a new survey on this context ended the one you were waiting for"):
                            await call.done()
                old, new = [await anext(respondent.surveys()) for _ in range(2)]
                assert (old.body, new.body) == (b"old", b"new")
                await old.reply(b"late")
                await new.reply(b"in time")
                assert await context.receive() == b"in time"
        assert surveyor.statistics().dropped == {"late answer": 6}


async def test_the_iteration_may_be_left_and_taken_up_again(name: str, autojump_clock: MockClock) -> None:
    async with respondents(name, 3) as (surveyor, sockets), trio.open_nursery() as nursery:
        for respondent in sockets:
            nursery.start_soon(answer_all, respondent)
        survey = surveyor.survey(b"x")
        async for answer in survey:
            assert answer == b"x"
            break
        assert [answer async for answer in survey] == [b"x"] * 2
        assert [answer async for answer in survey] == []
        # It was sent once.
        assert [respondent.statistics().messages_received for respondent in sockets] == [1] * 3
        nursery.cancel_scope.cancel()


async def test_a_closed_survey_is_over_and_what_comes_is_late(name: str, autojump_clock: MockClock) -> None:
    async with respondents(name, 2) as (surveyor, (one, two)):
        survey = surveyor.survey(b"x", deadline=1000)
        async with trio.open_nursery() as nursery:
            waiting = Background(nursery, lambda: anext(survey))
            await wait_all_tasks_blocked()
            for respondent in (one, two):
                assert await respondent.receive() == b"x"
            await one.send(b"1")
            assert await waiting.done() == b"1"
            waiting = Background(nursery, lambda: anext(survey, None))
            await wait_all_tasks_blocked()
            survey.close()
            survey.close()
            assert await waiting.done() is None
        await two.send(b"2")
        await wait_all_tasks_blocked()
        assert [answer async for answer in survey] == []
        assert surveyor.statistics().dropped == {"late answer": 1}


async def test_a_survey_that_was_closed_before_it_began_asks_no_peer(name: str) -> None:
    async with respondents(name, 1) as (surveyor, (respondent,)):
        survey = surveyor.survey(b"never")
        survey.close()
        assert [answer async for answer in survey] == []
        await wait_all_tasks_blocked()
        assert respondent.statistics().messages_received == 0


async def test_a_survey_is_sent_when_its_iteration_begins(name: str) -> None:
    async with respondents(name, 1) as (surveyor, (respondent,)), trio.open_nursery() as nursery:
        survey = surveyor.survey(bytearray(b"x"))
        await wait_all_tasks_blocked()
        assert respondent.statistics().messages_received == 0
        waiting = Background(nursery, lambda: anext(survey))
        await respondent.send(await respondent.receive())
        assert await waiting.done() == b"x"
        survey.close()


async def test_an_iteration_cancelled_in_the_middle_loses_no_answer(name: str, autojump_clock: MockClock) -> None:
    async with respondents(name, 3) as (surveyor, sockets), trio.open_nursery() as nursery:
        for number, respondent in enumerate(sockets):
            nursery.start_soon(partial(answer_all, respondent, b"%d" % number, after=number * 2))
        survey = surveyor.survey(b"x", deadline=10)
        answers = []
        over = False
        while not over:
            with trio.move_on_after(0.5):
                while not over:
                    answer = await anext(survey, None)
                    over = answer is None
                    answers += [] if answer is None else [answer]
        assert answers == [b"x0", b"x1", b"x2"]
        assert [respondent.statistics().messages_received for respondent in sockets] == [1] * 3
        nursery.cancel_scope.cancel()


async def test_an_iteration_cancelled_before_it_began_has_asked_no_peer_and_may_begin_later(name: str, autojump_clock: MockClock) -> None:
    async with respondents(name, 1) as (surveyor, (respondent,)), trio.open_nursery() as nursery:
        survey = surveyor.survey(b"x")
        with trio.CancelScope() as scope:
            scope.cancel()
            await anext(survey)
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert respondent.statistics().messages_received == 0
        nursery.start_soon(answer_all, respondent)
        assert [answer async for answer in survey] == [b"x"]
        nursery.cancel_scope.cancel()


async def test_closing_a_socket_or_a_context_ends_the_wait_with_an_error_that_says_so(name: str) -> None:
    async with respondents(name, 1, deadline=1000) as (surveyor, _), trio.open_nursery() as nursery:
        context = surveyor.context()
        await context.send(b"")
        await surveyor.send(b"")
        survey = surveyor.survey(b"")
        in_context = Background(nursery, context.receive)
        in_socket = Background(nursery, surveyor.receive)
        iterating = Background(nursery, lambda: anext(survey))
        await wait_all_tasks_blocked()
        await context.aclose()
        with pytest.raises(trio.ClosedResourceError, match="the context is closed"):
            await in_context.done()
        with pytest.raises(trio.ClosedResourceError, match="the context is closed"):
            await context.send(b"")
        surveyor.close()
        for call in (in_socket, iterating):
            with pytest.raises(trio.ClosedResourceError, match="the socket is closed"):
                await call.done()
        with pytest.raises(trio.ClosedResourceError):
            surveyor.survey(b"")
        with pytest.raises(trio.ClosedResourceError):
            await anext(survey)


async def test_without_peers_a_survey_takes_its_time_and_is_counted(name: str, autojump_clock: MockClock) -> None:
    async with sp.Surveyor0(listen=name) as surveyor:
        began = trio.current_time()
        assert [answer async for answer in surveyor.survey(b"", deadline=3)] == []
        assert trio.current_time() - began == pytest.approx(3)
        assert surveyor.statistics().dropped == {"no peer": 1}


async def test_respondents_that_never_answer_or_are_gone_change_nothing_for_the_others(name: str, autojump_clock: MockClock) -> None:
    async with respondents(name, 10, deadline=5) as (surveyor, sockets), trio.open_nursery() as nursery:
        for respondent in sockets[:3]:
            nursery.start_soon(partial(answer_all, respondent, after=1))
        for respondent in sockets[7:]:
            nursery.start_soon(_leave_when_asked, respondent)
        began = trio.current_time()
        assert [answer async for answer in surveyor.survey(b"x")] == [b"x"] * 3
        assert trio.current_time() - began == pytest.approx(5)
        assert len(surveyor.pipes) == 7
        nursery.cancel_scope.cancel()


async def _leave_when_asked(respondent: sp.Respondent0) -> None:
    await respondent.receive()
    respondent.close()


async def test_a_peer_that_comes_during_a_survey_does_not_get_it(name: str, autojump_clock: MockClock) -> None:
    async with respondents(name, 1) as (surveyor, (first,)), sp.Respondent0() as second, trio.open_nursery() as nursery:
        await surveyor.send(b"x")
        await connect(surveyor, second)
        for respondent in (first, second):
            nursery.start_soon(answer_all, respondent)
        assert [answer async for answer in surveyor] == [b"x"]
        assert [answer async for answer in surveyor.survey(b"y")] == [b"y"] * 2
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_hundred_respondents_are_all_heard(autojump_clock: MockClock, name: str) -> None:
    async with respondents(name, 100, deadline=5) as (surveyor, sockets), trio.open_nursery() as nursery:
        for number, respondent in enumerate(sockets):
            nursery.start_soon(partial(answer_all, respondent, b"%d" % number))
        for _ in range(3):
            answers = [answer async for answer in surveyor.survey(b"")]
            assert sorted(map(int, answers)) == list(range(100))
        assert surveyor.statistics().dropped == {}
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_hundred_respondents_over_a_network_are_all_heard(url: str) -> None:
    async with respondents(url, 100, deadline=60) as (surveyor, sockets), trio.open_nursery() as nursery:
        for number, respondent in enumerate(sockets):
            nursery.start_soon(partial(answer_all, respondent, b"%d" % number))
        survey = surveyor.survey(b"")
        assert sorted([int(await anext(survey)) for _ in sockets]) == list(range(100))
        survey.close()
        nursery.cancel_scope.cancel()


async def test_an_application_that_does_not_receive_loses_the_newest_answers_and_stalls_no_peer(
    name: str, autojump_clock: MockClock
) -> None:
    async with respondents(name, 50, deadline=10, inbox_limit=20) as (surveyor, sockets), trio.open_nursery() as nursery:
        for respondent in sockets:
            nursery.start_soon(answer_all, respondent)
        await surveyor.send(b"lazy")
        await trio.sleep(0.05)
        assert surveyor.statistics().dropped == {}  # held back first: a burst is not a loss
        await trio.sleep(1)
        assert surveyor.statistics().inbox == 20
        assert surveyor.statistics().dropped == {"inbox full": 30}
        # Answers that no task takes do not hold up other peers.
        answers = 0
        with trio.fail_after(1):
            survey = surveyor.survey(b"quick")
            while answers < 50:
                await anext(survey)
                answers += 1
        assert [answer async for answer in surveyor] == [b"lazy"] * 20
        nursery.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["broken off", "cancelled", "closed", "never begun", "over", "context"])
async def test_surveys_that_came_and_went_leave_nothing(how: str, name: str, autojump_clock: MockClock) -> None:
    async with respondents(name, 2, deadline=1) as (surveyor, sockets), trio.open_nursery() as nursery:
        for respondent in sockets:
            nursery.start_soon(answer_all, respondent)

        async def cycle() -> None:
            if how == "context":
                async with surveyor.context(deadline=0.5) as context:
                    await context.send(b"x")
                    await context.receive()
                return
            survey = surveyor.survey(b"x")
            if how == "never begun":
                return
            with trio.CancelScope() as scope:
                async for _ in survey:
                    if how == "broken off":
                        return
                    if how == "cancelled":
                        scope.cancel()
                    if how == "closed":
                        survey.close()

        def count() -> tuple[int, int]:
            gc.collect()
            kinds = [type(thing) for thing in gc.get_objects()]
            return kinds.count(SurveyorContext), kinds.count(Receivers)

        await cycle()
        await trio.sleep(2)
        before = count(), trio.lowlevel.current_statistics().tasks_living
        for _ in range(50):
            await cycle()
        await trio.sleep(2)  # a survey that was not closed ends when its time is up
        assert (count(), trio.lowlevel.current_statistics().tasks_living) == before
        assert surveyor.statistics().inbox == 0
        nursery.cancel_scope.cancel()


async def test_a_service_answers_surveys_in_any_order_and_leaves_some_unanswered(url: str) -> None:
    async with respondents(url, 1, deadline=60) as (surveyor, (respondent,)):
        contexts = [surveyor.context() for _ in range(5)]
        for number, context in enumerate(contexts):
            await context.send(b"%d" % number)
        asked = respondent.surveys()
        surveys = [await anext(asked) for _ in contexts]
        for survey in surveys[:1:-1]:
            assert survey.pipe is respondent.pipes[0]
            await survey.reply(survey.body + b"!")
        with pytest.raises(sp.StateError, match="already been answered"):
            await surveys[-1].reply(b"twice")
        assert [await context.receive() for context in contexts[2:]] == [b"2!", b"3!", b"4!"]
        with pytest.raises(trio.WouldBlock):
            contexts[0].receive_nowait()


async def test_contexts_of_a_respondent_are_conversations_of_their_own(name: str) -> None:
    async with respondents(name, 1, deadline=60) as (surveyor, (respondent,)):
        one, two = surveyor.context(), surveyor.context()
        async with respondent.context() as first, respondent.context() as second:
            await one.send(b"1")
            await two.send(b"2")
            asked = {await first.receive(): first, await second.receive(): second}
            await asked[b"2"].send(b"two")
            await asked[b"1"].send(b"one")
        assert (await one.receive(), await two.receive()) == (b"one", b"two")
        with pytest.raises(trio.ClosedResourceError):
            await first.receive()


@network_only
@pytest.mark.parametrize(("words", "answered"), [(0, True), (1, True), (7, True), (8, False), (254, False)])
async def test_an_answer_goes_back_through_any_number_of_hops_up_to_the_ttl(url: str, words: int, answered: bool) -> None:
    async with sp.Respondent0(listen=url, tls=server_tls(url), ttl=8) as respondent, trio.open_nursery() as nursery:
        nursery.start_soon(answer_all, respondent)
        with trio.fail_after(10):
            async with await connect_as(respondent.url, SURVEYOR) as stream:
                header = b"".join((7 + word).to_bytes(4, "big") for word in range(words)) + b"\x80\0\0\1"
                await stream.send_all(frame(header + b"body") + frame(b"\x80\0\0\2last"))
                if answered:
                    assert await receive_frame(stream) == header + b"body"
                assert await receive_frame(stream) == b"\x80\0\0\2last"
        assert respondent.statistics().dropped == ({} if answered else {"ttl": 1})
        nursery.cancel_scope.cancel()


@network_only
@pytest.mark.parametrize("payload", [b"", b"\x80\0\0", b"\0\0\0\1" * 3, b"\0\0\0\1\x80", b"\0\0\0\1" * 400 + b"\x80\0\0\1"], ids=len)
async def test_a_survey_without_the_end_of_its_header_ends_that_pipe_and_no_other(url: str, payload: bytes) -> None:
    async with sp.Respondent0(listen=url, tls=server_tls(url)) as respondent, sp.Surveyor0() as good:
        with trio.fail_after(10):
            await dial(good, respondent.url)
            async with await connect_as(respondent.url, SURVEYOR) as stream:
                await respondent.wait_for_peers(2)
                pipe = respondent.pipes[1]
                await stream.send_all(frame(payload))
                assert await stream.receive_some() == b""
            assert isinstance(pipe.error, sp.MalformedMessage)
            await good.send(b"x")
            assert await respondent.receive() == b"x"
            assert len(good.pipes) == 1


@network_only
async def test_an_answer_too_short_for_its_id_ends_the_pipe_and_a_foreign_one_is_late(url: str) -> None:
    async with sp.Surveyor0(listen=url, tls=server_tls(url), deadline=60) as surveyor:
        with trio.fail_after(10):
            async with await connect_as(surveyor.url, RESPONDENT) as stream:
                await surveyor.wait_for_peers()
                await surveyor.send(b"x")
                asked = await receive_frame(stream)
                assert asked[0] & 0x80
                assert asked[4:] == b"x"
                await stream.send_all(frame(b"\x80\0\0\0foreign") + frame(b"\0\0\0\1no bit") + frame(asked[:4] + b"answer") * 2)
                assert await surveyor.receive() == b"answer"
                # One survey may have any number of them.
                assert await surveyor.receive() == b"answer"
                pipe = surveyor.pipes[0]
                await stream.send_all(frame(b"\x80\0\0"))
                assert await stream.receive_some() == b""
            await until(lambda: not surveyor.pipes)
        assert surveyor.statistics().dropped == {"late answer": 2}
        assert isinstance(pipe.error, sp.MalformedMessage)


@network_only
async def test_a_respondent_that_does_not_read_misses_surveys_and_the_others_none(url: str) -> None:
    async with (
        sp.Surveyor0(listen=url, tls=server_tls(url), deadline=60, outbox_limit=4) as surveyor,
        sp.Respondent0() as good,
        trio.open_nursery() as nursery,
    ):
        with trio.fail_after(20):
            deaf = await connect_as(surveyor.url, RESPONDENT)
            await dial(good, surveyor.url)
            await surveyor.wait_for_peers(2)
            nursery.start_soon(answer_all, good)
            for number in range(100):
                body = number.to_bytes(4, "big") + bytes(200_000)
                await surveyor.send(body)
                assert await surveyor.receive() == body
            assert surveyor.statistics().dropped[sp.DropReason.PEER_FULL] > 10
            assert max(pipe.outbox for pipe in surveyor.statistics().pipes) <= 4 + 1
            await deaf.aclose()
            nursery.cancel_scope.cancel()


@network_only
async def test_an_answer_waits_for_a_surveyor_that_does_not_read_and_the_others_are_answered(url: str) -> None:
    async with (
        sp.Respondent0(listen=url, tls=server_tls(url), outbox_limit=2) as respondent,
        sp.Surveyor0(deadline=60) as good,
        trio.open_nursery() as nursery,
    ):
        big = bytes(1 << 20)

        async def serve() -> None:
            async for survey in respondent.surveys():
                nursery.start_soon(survey.reply, big if survey.body == b"big" else survey.body)

        nursery.start_soon(serve)
        with trio.fail_after(20):
            stream = await connect_as(respondent.url, SURVEYOR)
            await stream.send_all(b"".join(frame((0x8000_0000 + number).to_bytes(4, "big") + b"big") for number in range(20)))
            await dial(good, respondent.url)
            await until(lambda: respondent.statistics().messages_received == 20)
            survey = good.survey(b"others go on")
            assert await anext(survey) == b"others go on"
            survey.close()
            received = 0
            while received < 20 * (len(big) + 12):
                received += len(await stream.receive_some(1 << 20))
            await stream.aclose()
        assert respondent.statistics().dropped == {}
        nursery.cancel_scope.cancel()


async def test_what_was_not_read_of_a_survey_is_counted(name: str, autojump_clock: MockClock) -> None:
    async with sp.Surveyor0(listen=name) as surveyor, sp.Respondent0(dial=name) as respondent, trio.open_nursery() as nursery:

        async def respond() -> None:
            async for survey in respondent.surveys():
                await survey.reply(survey.body)

        nursery.start_soon(respond)
        await surveyor.wait_for_peers()
        for end in ("next", "close", "aclosing"):
            await surveyor.send(b"one") if end == "next" else None
            survey = surveyor.survey(b"two")
            assert repr(survey) == "<Survey not begun>"
            await trio.testing.wait_all_tasks_blocked()
            if end == "next":
                await surveyor.send(b"three")
            else:
                assert await anext(survey) == b"two"
                await (survey.aclose() if end == "aclosing" else trio.lowlevel.checkpoint())
                survey.close()
                assert repr(survey) == "<Survey over>"
        assert surveyor.statistics().dropped == {"unread": 1}
        nursery.cancel_scope.cancel()
