"""SURVEYOR: all peers are asked, and answers count until the time is up."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from random import Random
from time import process_time
from typing import Protocol

import pytest

from sp.errors import StateError
from sp.message import Message
from sp.options import SocketOptions
from sp.protocols.engine import Mailbox
from sp.protocols.surveyor import SurveyorContext, SurveyorEngine
from sp.testing import FakePipe


class Clock(Protocol):
    now: float

    def __call__(self) -> float: ...


class Over(Exception):
    """The time is up."""


class FixedRandom(Random):
    """Always draws the number that it was made with."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def getrandbits(self, k: int, /) -> int:
        assert k == 31
        return self._number


class Circle(int):
    """Counts 1, 2, 0, 1, ...: a supply of ids that comes round soon."""

    def __add__(self, other: int) -> Circle:
        return Circle((int(self) + other) % 3)

    def __and__(self, other: int) -> Circle:
        return self


def make_engine(clock: Clock, random: Random | None = None, limit: int = 4) -> SurveyorEngine:
    return SurveyorEngine(SocketOptions(inbox_limit=limit), random or Random(1), clock, Over)


@pytest.fixture
def engine(clock: Clock) -> SurveyorEngine:
    return make_engine(clock)


def attach(engine: SurveyorEngine, count: int, room: int | None = None) -> list[FakePipe]:
    pipes = [FakePipe(room) for _ in range(count)]
    for pipe in pipes:
        engine.pipe_attached(pipe)
    return pipes


def ask(engine: SurveyorEngine, context: SurveyorContext, pipe: FakePipe, body: bytes = b"who?") -> Message:
    """Begin a survey; return it as *pipe* got it."""
    assert context.send(Message(body))
    return pipe.taken[-1]


def answer(engine: SurveyorEngine, pipe: FakePipe, survey: Message, *bodies: bytes) -> list[bool]:
    return [engine.message_received(pipe, Message(body, survey.header)) for body in bodies]


def received(context: SurveyorContext) -> list[bytes]:
    """Receive all there is, while the survey is under way."""
    bodies: list[bytes] = []
    while (message := context.receive()) is not None:
        bodies.append(message.body)
    return bodies


def left_over(context: SurveyorContext, count: int) -> list[bytes]:
    """Receive *count* answers, and see that there are no more and that the survey is over."""
    messages = [context.receive() for _ in range(count)]
    for _ in range(2):
        with pytest.raises(Over):
            context.receive()
    return [message.body for message in messages if message is not None]


def wait(mailbox: Mailbox) -> list[Exception | None]:
    """Wait on *mailbox*; the list grows with each wake-up, by None or by the error that it comes
    with.
    """
    calls: list[Exception | None] = []
    mailbox.wake = lambda: calls.append(None)
    mailbox.fail = lambda error: calls.append(error())
    return calls


def pass_time(engine: SurveyorEngine, clock: Clock, seconds: float) -> None:
    clock.now += seconds
    engine.deadline_reached(clock.now)


# Survey ids


def test_a_survey_has_an_id_with_its_top_bit_set_before_the_body(engine: SurveyorEngine) -> None:
    (pipe,) = attach(engine, 1)
    survey = ask(engine, engine.open_context(1.0), pipe)
    assert survey.body == b"who?"
    assert len(survey.header) == 4
    assert survey.header[0] & 0x80


def test_ids_start_at_random(clock: Clock) -> None:
    first: set[bytes] = set()
    for seed in range(20):
        engine = make_engine(clock, Random(seed))
        (pipe,) = attach(engine, 1)
        first.add(ask(engine, engine.open_context(1.0), pipe).header)
    assert len(first) == 20


def test_ids_wrap_and_keep_their_top_bit(clock: Clock) -> None:
    engine = make_engine(clock, FixedRandom(0x7FFF_FFFD))
    (pipe,) = attach(engine, 1)
    ids = [ask(engine, engine.open_context(1.0), pipe).header.hex() for _ in range(4)]
    assert ids == ["fffffffe", "ffffffff", "80000000", "80000001"]


def test_an_id_is_not_used_again_while_its_survey_is_under_way(clock: Clock) -> None:
    engine = make_engine(clock, FixedRandom(Circle()))
    (pipe,) = attach(engine, 1)
    contexts = [engine.open_context(1.0) for _ in range(4)]
    ids = [ask(engine, context, pipe).header.hex() for context in contexts[:3]]
    contexts[1].close()
    ids.append(ask(engine, contexts[3], pipe).header.hex())
    assert ids == ["80000001", "80000002", "80000000", "80000002"]


def test_each_survey_of_a_context_has_an_id_of_its_own(engine: SurveyorEngine, clock: Clock) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    ids = {ask(engine, context, pipe).header for _ in range(3)}
    pass_time(engine, clock, 1.0)
    ids.add(ask(engine, context, pipe).header)
    assert len(ids) == 4


def test_closing_a_context_whose_survey_is_over_leaves_one_with_the_same_id_alone(clock: Clock) -> None:
    engine = make_engine(clock, FixedRandom(Circle()))
    (pipe,) = attach(engine, 1)
    short, long = engine.open_context(1.0), [engine.open_context(60.0) for _ in range(3)]
    first = ask(engine, short, pipe)
    pass_time(engine, clock, 1.0)
    surveys = [ask(engine, context, pipe) for context in long]
    assert surveys[2].header == first.header, "the ids have come round"
    short.close()
    assert answer(engine, pipe, surveys[2], b"here") == [True]
    assert received(long[2]) == [b"here"]


# Sending


def test_every_respondent_gets_the_survey(engine: SurveyorEngine) -> None:
    pipes = attach(engine, 3)
    assert engine.open_context(1.0).send(Message(b"who?"))
    assert [pipe.bodies for pipe in pipes] == [[b"who?"]] * 3
    assert len({pipe.taken[0].header for pipe in pipes}) == 1
    assert not engine.dropped


def test_a_survey_waits_for_no_pipe(engine: SurveyorEngine) -> None:
    attach(engine, 1, room=0)
    context, survey = engine.open_context(1.0), Message(b"who?")
    assert context.send(survey)
    assert context.pipe_for(survey) is None


def test_a_respondent_without_room_misses_the_survey_and_the_others_get_it(engine: SurveyorEngine) -> None:
    (full,), (other,) = attach(engine, 1, room=1), attach(engine, 1)
    context = engine.open_context(1.0)
    for body in (b"1", b"2", b"3"):
        assert context.send(Message(body))
    assert (full.bodies, other.bodies) == ([b"1"], [b"1", b"2", b"3"])
    assert engine.dropped == {"peer full": 2}


def test_a_survey_without_peers_is_counted_and_lasts_as_long_as_any(engine: SurveyorEngine, clock: Clock) -> None:
    context = engine.open_context(1.0)
    assert context.send(Message(b"who?"))
    assert engine.dropped == {"no peer": 1}
    assert context.receive() is None
    pass_time(engine, clock, 1.0)
    assert left_over(context, 0) == []


def test_a_respondent_that_is_gone_is_not_asked(engine: SurveyorEngine) -> None:
    gone, other = attach(engine, 2)
    engine.pipe_detached(gone)
    engine.pipe_detached(FakePipe())
    engine.open_context(1.0).send(Message(b"who?"))
    assert (gone.bodies, other.bodies) == ([], [b"who?"])


def test_a_respondent_that_comes_later_is_not_asked(engine: SurveyorEngine) -> None:
    engine.open_context(1.0).send(Message(b"who?"))
    (late,) = attach(engine, 1)
    assert late.taken == []


# Answers


def test_answers_are_received_in_the_order_in_which_they_came(engine: SurveyorEngine) -> None:
    first, second = attach(engine, 2)
    context = engine.open_context(1.0)
    survey = ask(engine, context, first)
    assert received(context) == []
    answer(engine, second, survey, b"second")
    answer(engine, first, survey, b"first")
    assert engine.queued() == 2
    assert received(context) == [b"second", b"first"]
    assert engine.queued() == 0


def test_an_answer_wakes_a_waiting_receiver(engine: SurveyorEngine) -> None:
    (pipe,) = attach(engine, 1)
    context, other = engine.open_context(1.0), engine.open_context(1.0)
    survey = ask(engine, context, pipe)
    ask(engine, other, pipe)
    woken, not_woken = wait(context.mailbox), wait(other.mailbox)
    answer(engine, pipe, survey, b"1", b"2")
    assert (woken, not_woken) == ([None, None], [])


def test_an_answer_counts_whatever_pipe_it_comes_by(engine: SurveyorEngine) -> None:
    (asked,) = attach(engine, 1)
    context = engine.open_context(1.0)
    survey = ask(engine, context, asked)
    (device,) = attach(engine, 1)
    answer(engine, device, survey, b"from afar", b"from farther")
    answer(engine, asked, survey, b"from here")
    assert received(context) == [b"from afar", b"from farther", b"from here"]


def test_answers_go_to_the_context_that_asked(engine: SurveyorEngine) -> None:
    (pipe,) = attach(engine, 1)
    contexts = [engine.open_context(1.0) for _ in range(3)]
    surveys = [ask(engine, context, pipe, b"%d" % number) for number, context in enumerate(contexts)]
    for survey in (surveys[2], surveys[0], surveys[2], surveys[1]):
        answer(engine, pipe, survey, b"re: " + survey.body)
    assert [received(context) for context in contexts] == [[b"re: 0"], [b"re: 1"], [b"re: 2", b"re: 2"]]


@pytest.mark.parametrize("header", [b"\0\0\0\0", b"\x80\0\0\0", b"\xff\xff\xff\xff"])
def test_an_answer_to_nothing_that_was_asked_is_dropped_and_counted(engine: SurveyorEngine, header: bytes) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    context.send(Message(b"who?"))
    assert answer(engine, pipe, Message(b"", header), b"foreign") == [True]
    assert context.receive() is None
    assert engine.dropped == {"late answer": 1}
    assert pipe.error is None


def test_an_answer_without_the_top_bit_of_its_id_is_none(engine: SurveyorEngine) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    header = ask(engine, context, pipe).header
    answer(engine, pipe, Message(b"", bytes([header[0] & 0x7F]) + header[1:]), b"foreign")
    assert context.receive() is None
    assert engine.dropped == {"late answer": 1}


# The order of calls


def test_receiving_before_sending_is_a_mistake(engine: SurveyorEngine) -> None:
    context = engine.open_context(1.0)
    for _ in range(2):
        with pytest.raises(StateError, match="send one first"):
            context.receive()


def test_receiving_in_a_context_without_a_survey_is_a_mistake_while_another_has_one(engine: SurveyorEngine) -> None:
    engine.open_context(1.0).send(Message(b"who?"))
    with pytest.raises(StateError):
        engine.open_context(1.0).receive()


# Time


@pytest.mark.parametrize("seconds", [0.001, 1.0, 60.0])
def test_a_survey_lasts_as_long_as_its_context_says(clock: Clock, seconds: float) -> None:
    clock.now = 0.0
    engine = make_engine(clock)
    (pipe,) = attach(engine, 1)
    context = engine.open_context(seconds)
    assert engine.next_deadline() is None
    survey = ask(engine, context, pipe)
    assert engine.next_deadline() == seconds
    engine.deadline_reached(seconds * 0.999)
    answer(engine, pipe, survey, b"in time")
    assert received(context) == [b"in time"]
    assert engine.next_deadline() == seconds
    engine.deadline_reached(seconds)
    answer(engine, pipe, survey, b"late")
    assert left_over(context, 0) == []
    assert engine.dropped == {"late answer": 1}
    assert engine.next_deadline() is None


def test_the_next_deadline_is_the_earliest_of_all_contexts(engine: SurveyorEngine, clock: Clock) -> None:
    attach(engine, 1)
    contexts = [engine.open_context(seconds) for seconds in (30.0, 10.0, 20.0)]
    deadlines: list[float | None] = []
    for context in contexts:
        context.send(Message(b"who?"))
        deadlines.append(engine.next_deadline())
    assert deadlines == [1030.0, 1010.0, 1010.0], "a new one may be before the others"
    assert engine.deadlines_come_nearer
    for expected in (1020.0, 1030.0, None):
        pass_time(engine, clock, 10.0)
        assert engine.next_deadline() == expected


def test_the_deadline_of_a_survey_that_a_shorter_one_overtakes_is_not_forgotten(engine: SurveyorEngine, clock: Clock) -> None:
    long, short = engine.open_context(60.0), engine.open_context(1.0)
    long.send(Message(b"who?"))
    for _ in range(3):
        short.send(Message(b"who?"))
        assert engine.next_deadline() == clock.now + 1.0
        pass_time(engine, clock, 1.0)
        assert left_over(short, 0) == []
        assert engine.next_deadline() == 1060.0
    assert received(long) == []


def test_at_a_deadline_only_those_surveys_end_that_are_due(engine: SurveyorEngine, clock: Clock) -> None:
    (pipe,) = attach(engine, 1)
    early, late = engine.open_context(1.0), engine.open_context(2.0)
    surveys = [ask(engine, context, pipe) for context in (early, late)]
    pass_time(engine, clock, 1.0)
    for survey in surveys:
        answer(engine, pipe, survey, b"answer")
    assert left_over(early, 0) == []
    assert received(late) == [b"answer"]
    assert engine.dropped == {"late answer": 1}


def test_surveys_that_are_due_at_once_end_at_once(engine: SurveyorEngine, clock: Clock) -> None:
    contexts = [engine.open_context(1.0) for _ in range(3)]
    waiting = [wait(context.mailbox) for context in contexts]
    for context in contexts:
        context.send(Message(b"who?"))
    pass_time(engine, clock, 5.0)
    assert [[type(error) for error in calls] for calls in waiting] == [[Over]] * 3


def test_the_deadline_of_a_closed_survey_does_no_harm(engine: SurveyorEngine, clock: Clock) -> None:
    (pipe,) = attach(engine, 1)
    closed, other = engine.open_context(1.0), engine.open_context(2.0)
    closed.send(Message(b"who?"))
    survey = ask(engine, other, pipe)
    closed.close()
    pass_time(engine, clock, 1.0)
    answer(engine, pipe, survey, b"answer")
    assert received(other) == [b"answer"]
    assert engine.next_deadline() == 1002.0


def test_a_receive_that_waits_when_the_time_is_up_gets_an_error(engine: SurveyorEngine, clock: Clock) -> None:
    attach(engine, 1)
    context, other = engine.open_context(1.0), engine.open_context(2.0)
    told, not_told = wait(context.mailbox), wait(other.mailbox)
    context.send(Message(b"who?"))
    other.send(Message(b"who?"))
    pass_time(engine, clock, 1.0)
    assert [type(error) for error in told] == [Over]
    assert str(told[0]) == "the survey is over: its time is up"
    assert not_told == []
    pass_time(engine, clock, 0.5)
    assert len(told) == 1, "once"


def test_answers_that_came_in_time_can_be_received_afterwards_and_then_the_survey_is_over(engine: SurveyorEngine, clock: Clock) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    survey = ask(engine, context, pipe)
    answer(engine, pipe, survey, b"1", b"2", b"3")
    pass_time(engine, clock, 1.0)
    answer(engine, pipe, survey, b"late")
    assert engine.queued() == 3
    assert left_over(context, 3) == [b"1", b"2", b"3"]


def test_over_is_said_in_words_each_time(engine: SurveyorEngine, clock: Clock) -> None:
    context = engine.open_context(1.0)
    context.send(Message(b"who?"))
    pass_time(engine, clock, 1.0)
    errors: list[Over] = []
    for _ in range(3):
        with pytest.raises(Over, match="its time is up") as caught:
            context.receive()
        errors.append(caught.value)
    assert len(set(errors)) == 3, "a new error each time, since an error keeps where it was raised"


def test_after_a_survey_comes_another(engine: SurveyorEngine, clock: Clock) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    old = ask(engine, context, pipe)
    answer(engine, pipe, old, b"unread")
    pass_time(engine, clock, 1.0)
    new = ask(engine, context, pipe)
    answer(engine, pipe, old, b"late")
    answer(engine, pipe, new, b"new")
    assert engine.next_deadline() == 1002.0
    assert received(context) == [b"new"], "an answer to the old one is none to the new one"
    pass_time(engine, clock, 1.0)
    assert left_over(context, 0) == []


@pytest.mark.slow
def test_a_context_that_was_not_closed_leaves_nothing_behind_after_its_time(engine: SurveyorEngine, clock: Clock) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    answer(engine, pipe, ask(engine, context, pipe), *[b"answer"] * 5)
    forgotten = weakref.ref(context)
    del context
    gc.collect()
    assert engine.queued() == 4, "its survey is under way"
    pass_time(engine, clock, 1.0)
    gc.collect()
    assert forgotten() is None
    assert (engine.queued(), engine.next_deadline()) == (0, None)
    assert pipe.resumed == 1


@pytest.mark.slow
def test_a_thousand_forgotten_contexts_leave_nothing_behind(engine: SurveyorEngine, clock: Clock) -> None:
    def contexts() -> Iterable[weakref.ref[SurveyorContext]]:
        for number in range(1000):
            context = engine.open_context(1.0 + number)
            if number % 10:
                context.send(Message(b"who?"))
            if number % 10 == 1:
                context.close()
            yield weakref.ref(context)

    references = list(contexts())
    pass_time(engine, clock, 2000.0)
    gc.collect()
    assert not any(reference() for reference in references)
    assert engine.next_deadline() is None


# A new survey, and closing


def test_a_new_survey_ends_the_old_one_and_the_call_that_waits_for_it(engine: SurveyorEngine) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    old = ask(engine, context, pipe)
    told = wait(context.mailbox)
    new = ask(engine, context, pipe)
    assert [type(error) for error in told] == [Over]
    assert "a new survey" in str(told[0])
    told = wait(context.mailbox)
    answer(engine, pipe, old, b"old")
    answer(engine, pipe, new, b"new")
    assert told == [None]
    assert received(context) == [b"new"]
    assert engine.dropped == {"late answer": 1}


def test_a_new_survey_forgets_the_answers_to_the_old_one(engine: SurveyorEngine) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    answer(engine, pipe, ask(engine, context, pipe), b"old")
    ask(engine, context, pipe)
    assert engine.queued() == 0
    assert context.receive() is None


@pytest.mark.parametrize("is_over", [False, True])
@pytest.mark.parametrize("end", ["new survey", "close"])
def test_answers_that_were_not_received_by_the_next_survey_or_the_end_are_counted(
    engine: SurveyorEngine, clock: Clock, end: str, is_over: bool
) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    answer(engine, pipe, ask(engine, context, pipe), b"1", b"2", b"3")
    context.receive()
    pass_time(engine, clock, is_over * 1.0)
    assert not engine.dropped
    for _ in range(2):
        if end == "close":
            context.close()
        else:
            context.send(Message(b"who?"))
        assert engine.dropped == {"unread": 2}
        assert engine.queued() == 0
    assert engine.inbox_dropped() == 0


def test_a_new_survey_is_no_error_when_no_task_waits(engine: SurveyorEngine) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    ask(engine, context, pipe)
    ask(engine, context, pipe)
    assert context.receive() is None


def test_a_new_survey_does_not_disturb_a_call_that_waits_in_another_context(engine: SurveyorEngine) -> None:
    (pipe,) = attach(engine, 1)
    context, other = engine.open_context(1.0), engine.open_context(1.0)
    ask(engine, other, pipe)
    told = wait(other.mailbox)
    ask(engine, context, pipe)
    ask(engine, context, pipe)
    assert told == []


def test_a_new_survey_after_the_end_of_the_old_one_raises_no_error(engine: SurveyorEngine, clock: Clock) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    ask(engine, context, pipe)
    pass_time(engine, clock, 1.0)
    told = wait(context.mailbox)
    ask(engine, context, pipe)
    assert told == []


def test_a_new_survey_has_its_time_from_its_own_beginning(engine: SurveyorEngine, clock: Clock) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    ask(engine, context, pipe)
    clock.now += 0.75
    ask(engine, context, pipe)
    pass_time(engine, clock, 0.75)
    assert context.receive() is None
    assert engine.next_deadline() == 1001.75
    pass_time(engine, clock, 0.25)
    assert left_over(context, 0) == []


def test_closing_a_context_ends_its_survey_and_no_other(engine: SurveyorEngine) -> None:
    (pipe,) = attach(engine, 1)
    closed, other = engine.open_context(1.0), engine.open_context(1.0)
    surveys = [ask(engine, context, pipe) for context in (closed, other)]
    for survey in surveys:
        answer(engine, pipe, survey, b"before")
    closed.close()
    assert engine.queued() == 1
    for survey in surveys:
        answer(engine, pipe, survey, b"after")
    assert engine.dropped == {"unread": 1, "late answer": 1}
    assert received(other) == [b"before", b"after"]
    with pytest.raises(StateError):
        closed.receive()


def test_a_context_without_a_survey_can_be_closed_and_closed_again(engine: SurveyorEngine, clock: Clock) -> None:
    context = engine.open_context(1.0)
    context.close()
    context.send(Message(b"who?"))
    context.close()
    context.close()
    pass_time(engine, clock, 1.0)
    context.close()
    assert engine.next_deadline() is None


# An application that does not receive


def fill(engine: SurveyorEngine, context: SurveyorContext, pipe: FakePipe) -> Message:
    """Begin a survey and fill the inbox with its answers."""
    survey = ask(engine, context, pipe)
    assert answer(engine, pipe, survey, b"1", b"2", b"3", b"4") == [True] * 4
    return survey


def test_a_full_inbox_holds_the_respondent_back_until_half_of_it_is_free(engine: SurveyorEngine) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    survey = fill(engine, context, pipe)
    assert answer(engine, pipe, survey, b"5") == [False]
    context.receive()
    assert pipe.resumed == 0
    context.receive()
    assert pipe.resumed == 1
    assert answer(engine, pipe, survey, b"5") == [True]
    assert received(context) == [b"3", b"4", b"5"]
    assert (engine.inbox_dropped(), engine.dropped) == (0, {})


def test_a_full_inbox_holds_back_what_is_for_it_and_nothing_else(engine: SurveyorEngine) -> None:
    (pipe,) = attach(engine, 1)
    full, other = engine.open_context(1.0), engine.open_context(1.0)
    survey = fill(engine, full, pipe)
    elsewhere = ask(engine, other, pipe)
    assert answer(engine, pipe, elsewhere, b"elsewhere") == [True]
    assert answer(engine, pipe, survey, b"5") == [False]
    assert received(other) == [b"elsewhere"]
    assert pipe.resumed == 0


def test_an_overdue_answer_is_the_one_that_is_dropped_and_it_is_counted_once(engine: SurveyorEngine) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    survey = fill(engine, context, pipe)
    assert answer(engine, pipe, survey, b"5") == [False]
    engine.force_message(pipe, Message(b"5", survey.header))
    assert engine.inbox_dropped() == 1
    assert received(context) == [b"1", b"2", b"3", b"4"]
    assert engine.inbox_dropped() == 1
    assert not engine.dropped


def test_after_an_overdue_answer_the_inbox_drops_at_once_until_half_of_it_is_free(engine: SurveyorEngine) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    survey = fill(engine, context, pipe)
    engine.force_message(pipe, Message(b"5", survey.header))
    assert answer(engine, pipe, survey, b"6", b"7") == [True, True]
    assert engine.inbox_dropped() == 3
    context.receive()
    context.receive()
    assert answer(engine, pipe, survey, b"8", b"9", b"held") == [True, True, False]
    assert engine.inbox_dropped() == 3
    assert received(context) == [b"3", b"4", b"8", b"9"]


def test_an_overdue_answer_to_a_survey_that_is_over_is_late(engine: SurveyorEngine, clock: Clock) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    survey = fill(engine, context, pipe)
    assert answer(engine, pipe, survey, b"5") == [False]
    pass_time(engine, clock, 1.0)
    engine.force_message(pipe, Message(b"5", survey.header))
    assert engine.dropped == {"late answer": 1}
    assert engine.inbox_dropped() == 0
    assert left_over(context, 4) == [b"1", b"2", b"3", b"4"]


def test_an_overdue_answer_costs_no_other_context_anything(engine: SurveyorEngine) -> None:
    (pipe,) = attach(engine, 1)
    impatient, other = engine.open_context(1.0), engine.open_context(1.0)
    survey, elsewhere = fill(engine, impatient, pipe), fill(engine, other, pipe)
    engine.force_message(pipe, Message(b"5", survey.header))
    assert answer(engine, pipe, elsewhere, b"5") == [False], "held back, as nothing for this context was overdue"
    assert (received(impatient), received(other)) == ([b"1", b"2", b"3", b"4"], [b"1", b"2", b"3", b"4"])


@pytest.mark.parametrize("end", ["deadline", "new survey", "close"])
def test_a_pipe_that_was_held_back_is_resumed_when_the_survey_ends(engine: SurveyorEngine, clock: Clock, end: str) -> None:
    first, second = attach(engine, 2)
    context = engine.open_context(1.0)
    survey = fill(engine, context, first)
    assert answer(engine, first, survey, b"5") == answer(engine, second, survey, b"5") == [False]
    if end == "deadline":
        pass_time(engine, clock, 1.0)
    elif end == "new survey":
        context.send(Message(b"who?"))
    else:
        context.close()
    assert (first.resumed, second.resumed) == (1, 1)
    assert answer(engine, first, survey, b"5") == answer(engine, second, survey, b"5") == [True]
    assert engine.dropped == {"late answer": 2} | ({} if end == "deadline" else {"unread": 4})
    if end == "deadline":
        assert left_over(context, 4) == [b"1", b"2", b"3", b"4"]
    assert (first.resumed, second.resumed) == (1, 1), "once"


def test_what_was_lost_in_one_survey_is_no_reason_to_lose_in_the_next(engine: SurveyorEngine) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    survey = fill(engine, context, pipe)
    engine.force_message(pipe, Message(b"5", survey.header))
    survey = fill(engine, context, pipe)
    assert answer(engine, pipe, survey, b"5") == [False]
    assert engine.inbox_dropped() == 1


@pytest.mark.slow
def test_what_was_dropped_is_still_counted_when_its_context_is_gone(engine: SurveyorEngine, clock: Clock) -> None:
    (pipe,) = attach(engine, 1)
    for end in ("close", "forget"):
        context = engine.open_context(1.0)
        survey = fill(engine, context, pipe)
        engine.force_message(pipe, Message(b"5", survey.header))
        if end == "close":
            context.close()
        del context
    pass_time(engine, clock, 1.0)
    gc.collect()
    assert engine.inbox_dropped() == 2


def test_a_respondent_that_is_gone_is_not_resumed_and_the_next_one_is(engine: SurveyorEngine) -> None:
    gone, other = attach(engine, 2)
    contexts = [engine.open_context(1.0) for _ in range(2)]
    survey = [fill(engine, context, gone) for context in contexts][1]
    assert answer(engine, gone, survey, b"5") == answer(engine, other, survey, b"5") == [False]
    engine.pipe_detached(gone)
    assert received(contexts[1]) == [b"1", b"2", b"3", b"4"], "what it said before it went counts"
    assert (gone.resumed, other.resumed) == (0, 1)


@pytest.mark.slow
def test_nothing_is_kept_of_a_respondent_that_is_gone(engine: SurveyorEngine) -> None:
    pipe, _ = attach(engine, 2)
    context = engine.open_context(1.0)
    answer(engine, pipe, fill(engine, context, pipe), b"5")
    gone = weakref.ref(pipe)
    engine.pipe_detached(pipe)
    del pipe
    gc.collect()
    assert gone() is None


def test_the_queues_of_all_contexts_are_counted(engine: SurveyorEngine, clock: Clock) -> None:
    (pipe,) = attach(engine, 1)
    contexts = [engine.open_context(1.0), engine.open_context(2.0)]
    for context in contexts:
        answer(engine, pipe, ask(engine, context, pipe), b"1", b"2")
    pass_time(engine, clock, 1.0)
    assert engine.queued() == 4, "what came in time for a survey that is over is there still"
    contexts[0].close()
    assert engine.queued() == 2


def test_a_respondent_is_held_back_for_a_tenth_of_a_second_before_anything_is_dropped(engine: SurveyorEngine) -> None:
    assert engine.hold_time == pytest.approx(0.1)


def test_an_answer_shorter_than_an_id_has_no_body() -> None:
    assert SurveyorEngine.find_body is not None
    assert [SurveyorEngine.find_body(b"..\x80\0\0\1", 2, stop) for stop in (2, 5, 6)] == [-1, -1, 6]


def test_it_is_the_counterpart_of_respondent(engine: SurveyorEngine) -> None:
    assert (engine.number, engine.peer_number) == (0x62, 0x63)
    assert engine.timed
    assert not engine.takes_headers


def test_an_answer_is_late_from_the_deadline_on_even_if_nobody_has_looked_at_the_clock(engine: SurveyorEngine, clock: Clock) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context(1.0)
    survey = ask(engine, context, pipe)
    clock.now += 1.0
    assert engine.message_received(pipe, Message(b"too late", survey.header))
    assert engine.dropped == {"late answer": 1}
    assert engine.queued() == 0


def test_many_surveys_end_one_after_the_other_in_the_time_that_each_of_them_takes(engine: SurveyorEngine, clock: Clock) -> None:
    count = 12_000
    contexts = [engine.open_context(1 + number / count) for number in range(count)]
    for context in contexts:
        assert context.send(Message(b"x"))
    began = process_time()
    ends = 0
    while (deadline := engine.next_deadline()) is not None:
        clock.now = deadline
        engine.deadline_reached(clock.now)
        ends += 1
    assert ends == count
    assert process_time() - began < 3  # a look at all others took 5 s and more


def test_surveys_that_end_before_their_time_do_not_gather(engine: SurveyorEngine) -> None:
    long = engine.open_context(10_000.0)
    assert long.send(Message(b"x"))
    for number in range(10_000):
        context = engine.open_context(3600.0 + number % 7)
        assert context.send(Message(b"x"))
        context.close()
    assert len(engine._deadlines) < 200
    assert engine.next_deadline() is not None
    engine.deadline_reached(3700.0)
    assert engine.next_deadline() == long.deadline
