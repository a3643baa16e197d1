"""REQ: which request goes where, and which reply belongs to it."""

from __future__ import annotations

import gc
import weakref
from random import Random
from typing import Protocol

import pytest

from sp.errors import RequestLost, RequestReplaced, StateError
from sp.message import Message
from sp.protocols.engine import Mailbox
from sp.protocols.req import ReqContext, ReqEngine
from sp.testing import FakePipe


class Clock(Protocol):
    now: float

    def __call__(self) -> float: ...


class FixedRandom(Random):
    """Always draws the number that it was made with."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def getrandbits(self, k: int, /) -> int:
        assert k == 31
        return self._number


@pytest.fixture
def engine(clock: Clock) -> ReqEngine:
    return ReqEngine(60.0, Random(1), clock)


@pytest.fixture
def once(clock: Clock) -> ReqEngine:
    """An engine that never sends a request again."""
    return ReqEngine(None, Random(1), clock)


def attach(engine: ReqEngine, count: int, room: int | None = None) -> list[FakePipe]:
    pipes = [FakePipe(room) for _ in range(count)]
    for pipe in pipes:
        engine.pipe_attached(pipe)
    return pipes


def answer(engine: ReqEngine, pipe: FakePipe, request: Message, body: bytes = b"answer") -> None:
    assert engine.message_received(pipe, Message(body, request.header))


def body_of(context: ReqContext) -> bytes | None:
    message = context.receive()
    return None if message is None else message.body


def wait(mailbox: Mailbox) -> list[Exception | None]:
    """Wait on *mailbox*; the list grows with each wake-up, by None or by the error that it comes
    with.
    """
    calls: list[Exception | None] = []
    mailbox.wake = lambda: calls.append(None)
    mailbox.fail = lambda error: calls.append(error())
    return calls


# Request ids


def test_a_request_has_an_id_with_its_top_bit_set_before_the_body(engine: ReqEngine) -> None:
    (pipe,) = attach(engine, 1)
    assert engine.open_context().send(Message(b"question"))
    (request,) = pipe.taken
    assert request.body == b"question"
    assert len(request.header) == 4
    assert request.header[0] & 0x80


def test_ids_start_at_random(clock: Clock) -> None:
    first: set[bytes] = set()
    for seed in range(20):
        engine = ReqEngine(60.0, Random(seed), clock)
        (pipe,) = attach(engine, 1)
        engine.open_context().send(Message(b""))
        first.add(pipe.taken[0].header)
    assert len(first) == 20


def test_ids_wrap_and_keep_their_top_bit(clock: Clock) -> None:
    engine = ReqEngine(60.0, FixedRandom(0x7FFF_FFFD), clock)
    (pipe,) = attach(engine, 1)
    for _ in range(4):
        engine.open_context().send(Message(b""))
    assert [message.header.hex() for message in pipe.taken] == ["fffffffe", "ffffffff", "80000000", "80000001"]


class Circle(int):
    """Counts 1, 2, 0, 1, ...: a supply of ids that comes round soon."""

    def __add__(self, other: int) -> Circle:
        return Circle((int(self) + other) % 3)

    def __and__(self, other: int) -> Circle:
        return self


def test_an_id_is_not_used_again_while_its_request_is_under_way(clock: Clock) -> None:
    engine = ReqEngine(60.0, FixedRandom(Circle()), clock)
    (pipe,) = attach(engine, 1)
    for _ in range(3):
        engine.open_context().send(Message(b""))
    answer(engine, pipe, pipe.taken[1])
    engine.open_context().send(Message(b""))
    assert [message.header.hex() for message in pipe.taken] == ["80000001", "80000002", "80000000", "80000002"]


# Replies


def test_the_reply_is_received_once(engine: ReqEngine) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context()
    context.send(Message(b"question"))
    assert context.receive() is None
    answer(engine, pipe, pipe.taken[0])
    assert body_of(context) == b"answer"
    with pytest.raises(StateError):
        context.receive()


def test_the_reply_wakes_a_waiting_receiver(engine: ReqEngine) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context()
    woken = wait(context.mailbox)
    context.send(Message(b"question"))
    assert not woken
    answer(engine, pipe, pipe.taken[0])
    assert len(woken) == 1


def test_a_second_reply_is_dropped_and_counted(engine: ReqEngine) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context()
    context.send(Message(b"question"))
    answer(engine, pipe, pipe.taken[0], b"first")
    answer(engine, pipe, pipe.taken[0], b"second")
    assert body_of(context) == b"first"
    assert engine.dropped == {"stale reply": 1}


def test_the_reply_to_an_older_request_is_dropped_and_counted(engine: ReqEngine) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context()
    context.send(Message(b"old"))
    context.send(Message(b"new"))
    answer(engine, pipe, pipe.taken[0])
    assert context.receive() is None
    answer(engine, pipe, pipe.taken[1])
    assert body_of(context) == b"answer"
    assert engine.dropped == {"stale reply": 1}


@pytest.mark.parametrize("header", [b"\0\0\0\0", b"\x80\0\0\0", b"\xff\xff\xff\xff"])
def test_a_reply_to_nothing_that_was_asked_is_dropped_and_counted(engine: ReqEngine, header: bytes) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context()
    context.send(Message(b"question"))
    assert engine.message_received(pipe, Message(b"foreign", header))
    assert context.receive() is None
    assert engine.dropped == {"stale reply": 1}


def test_a_reply_without_the_top_bit_of_its_id_is_not_the_reply(engine: ReqEngine) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context()
    context.send(Message(b"question"))
    header = pipe.taken[0].header
    assert engine.message_received(pipe, Message(b"", bytes([header[0] & 0x7F]) + header[1:]))
    assert context.receive() is None


def test_a_reply_by_a_pipe_that_never_carried_the_request_is_dropped_and_counted(engine: ReqEngine) -> None:
    first, second = attach(engine, 2)
    context = engine.open_context()
    context.send(Message(b"question"))
    answer(engine, second, first.taken[0], b"guessed")
    assert context.receive() is None
    assert engine.dropped == {"stale reply": 1}
    answer(engine, first, first.taken[0])
    assert body_of(context) == b"answer"


@pytest.mark.parametrize("number", range(3))
def test_a_reply_is_good_by_any_pipe_that_carried_the_request(engine: ReqEngine, clock: Clock, number: int) -> None:
    pipes = attach(engine, 3)
    context = engine.open_context()
    context.send(Message(b"question"))
    for _ in range(4):
        clock.now += 60
        engine.deadline_reached(clock.now)
    assert [len(pipe.taken) for pipe in pipes] == [2, 2, 1]
    answer(engine, pipes[number], pipes[number].taken[0])
    assert body_of(context) == b"answer"
    assert engine.next_deadline() is None


def test_a_new_request_is_not_answered_by_a_pipe_that_carried_only_the_old_one(engine: ReqEngine, clock: Clock) -> None:
    first, second, third = attach(engine, 3)
    context = engine.open_context()
    context.send(Message(b"old"))
    clock.now += 60
    engine.deadline_reached(clock.now)
    context.send(Message(b"new"))
    assert [first.bodies, second.bodies, third.bodies] == [[b"old"], [b"old"], [b"new"]]
    for pipe in (first, second):
        answer(engine, pipe, third.taken[0], b"guessed")
    assert context.receive() is None


# The order of calls


def test_receiving_before_sending_is_a_mistake(engine: ReqEngine) -> None:
    with pytest.raises(StateError, match="send one first"):
        engine.open_context().receive()


def test_without_a_pipe_nothing_is_sent(engine: ReqEngine) -> None:
    context = engine.open_context()
    assert not context.send(Message(b"question"))
    with pytest.raises(StateError):
        context.receive()
    assert engine.next_deadline() is None


def test_a_request_that_no_pipe_has_room_for_changes_nothing(engine: ReqEngine) -> None:
    (pipe,) = attach(engine, 1, room=1)
    context = engine.open_context()
    woken = wait(context.mailbox)
    assert context.send(Message(b"first"))
    assert not context.send(Message(b"second"))
    assert pipe.bodies == [b"first"]
    assert not woken
    answer(engine, pipe, pipe.taken[0])
    assert body_of(context) == b"answer"


def test_requests_go_round_the_pipes(engine: ReqEngine) -> None:
    pipes = attach(engine, 3)
    for number in range(7):
        assert engine.open_context().send(Message(b"%d" % number))
    assert [pipe.bodies for pipe in pipes] == [[b"0", b"3", b"6"], [b"1", b"4"], [b"2", b"5"]]


def test_a_full_pipe_is_left_out(engine: ReqEngine) -> None:
    pipes = attach(engine, 3)
    pipes[1].room = 0
    for number in range(4):
        assert engine.open_context().send(Message(b"%d" % number))
    assert [pipe.bodies for pipe in pipes] == [[b"0", b"2"], [], [b"1", b"3"]]


def test_a_pipe_that_is_gone_is_left_out(engine: ReqEngine) -> None:
    pipes = attach(engine, 2)
    engine.pipe_detached(pipes[0])
    assert engine.open_context().send(Message(b"question"))
    assert [pipe.bodies for pipe in pipes] == [[], [b"question"]]


def test_a_pipe_that_was_never_attached_may_go(engine: ReqEngine) -> None:
    engine.pipe_detached(FakePipe())
    assert not engine.open_context().send(Message(b"question"))


# Replacing, closing, contexts side by side


def test_a_new_request_ends_the_wait_for_the_reply_to_the_old_one(engine: ReqEngine) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context()
    context.send(Message(b"old"))
    woken = wait(context.mailbox)
    context.send(Message(b"new"))
    assert [type(error) for error in woken] == [RequestReplaced]
    answer(engine, pipe, pipe.taken[1])
    assert body_of(context) == b"answer"


def test_a_new_request_is_no_error_when_no_task_waits(engine: ReqEngine) -> None:
    attach(engine, 1)
    context = engine.open_context()
    context.send(Message(b"old"))
    context.send(Message(b"new"))
    assert context.receive() is None


def test_a_new_request_is_no_error_when_the_old_one_was_answered(engine: ReqEngine) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context()
    context.send(Message(b"old"))
    answer(engine, pipe, pipe.taken[0])
    woken = wait(context.mailbox)
    context.send(Message(b"new"))
    assert not woken
    assert context.receive() is None, "the old answer is forgotten"
    assert engine.dropped == {"unread": 1}


def test_a_reply_that_was_not_received_before_its_context_is_closed_is_counted(engine: ReqEngine) -> None:
    (pipe,) = attach(engine, 1)
    received, unread = engine.open_context(), engine.open_context()
    for context in (received, unread):
        context.send(Message(b"question"))
        answer(engine, pipe, pipe.taken[-1])
    assert body_of(received) == b"answer"
    for context in (received, unread, unread):
        context.close()
    assert engine.dropped == {"unread": 1}


def test_a_request_that_no_pipe_has_room_for_leaves_the_reply_before_it(engine: ReqEngine) -> None:
    (pipe,) = attach(engine, 1, room=1)
    context = engine.open_context()
    context.send(Message(b"question"))
    answer(engine, pipe, pipe.taken[0])
    assert not context.send(Message(b"another question"))
    assert body_of(context) == b"answer"
    assert not engine.dropped


def test_a_replaced_request_is_not_sent_again(engine: ReqEngine) -> None:
    first, second = attach(engine, 2)
    context = engine.open_context()
    context.send(Message(b"old"))
    context.send(Message(b"new"))
    engine.pipe_detached(first)
    assert second.bodies == [b"new"]


def test_contexts_get_their_own_replies_in_any_order(engine: ReqEngine) -> None:
    (pipe,) = attach(engine, 1)
    contexts = [engine.open_context() for _ in range(5)]
    for number, context in enumerate(contexts):
        context.send(Message(b"%d" % number))
    for request in reversed(pipe.taken):
        answer(engine, pipe, request, b"re: " + request.body)
    assert [body_of(context) for context in contexts] == [b"re: 0", b"re: 1", b"re: 2", b"re: 3", b"re: 4"]


def test_closing_a_context_gives_up_its_request_and_no_other(engine: ReqEngine) -> None:
    first, second = attach(engine, 2)
    closed, other = engine.open_context(), engine.open_context()
    closed.send(Message(b"closed"))
    other.send(Message(b"other"))
    closed.close()
    answer(engine, first, first.taken[0])
    assert engine.dropped == {"stale reply": 1}
    engine.pipe_detached(first)
    assert second.bodies == [b"other"], "what is given up is not sent again"
    answer(engine, second, second.taken[0])
    assert body_of(other) == b"answer"


@pytest.mark.parametrize("unsent", [False, True])
@pytest.mark.parametrize("end", ["close", "new request"])
def test_nothing_is_due_any_more_for_a_request_that_was_given_up(engine: ReqEngine, clock: Clock, end: str, unsent: bool) -> None:
    (pipe,) = attach(engine, 1)
    context = engine.open_context()
    context.send(Message(b"given up"))
    if unsent:
        engine.pipe_detached(pipe)
    if end == "close":
        context.close()
        assert engine.next_deadline() is None
    else:
        (pipe,) = attach(engine, 1) if unsent else (pipe,)
        context.send(Message(b"new"))
    taken = len(pipe.taken)
    clock.now += 60
    engine.deadline_reached(clock.now)
    assert pipe.bodies[taken:] == ([] if end == "close" else [b"new"])


def test_a_context_without_a_request_can_be_closed(engine: ReqEngine) -> None:
    engine.open_context().close()


# Sending again


def test_the_deadline_is_that_of_the_oldest_request(engine: ReqEngine, clock: Clock) -> None:
    (pipe,) = attach(engine, 1)
    assert engine.next_deadline() is None
    for _ in range(3):
        engine.open_context().send(Message(b"question"))
        clock.now += 10
    assert engine.next_deadline() == 1060.0
    answer(engine, pipe, pipe.taken[0])
    assert engine.next_deadline() == 1070.0


def test_a_request_without_an_answer_is_sent_again_to_the_next_pipe(engine: ReqEngine, clock: Clock) -> None:
    first, second = attach(engine, 2)
    context = engine.open_context()
    context.send(Message(b"question"))
    clock.now += 60
    engine.deadline_reached(clock.now)
    assert first.bodies == second.bodies == [b"question"]
    assert first.taken[0].header == second.taken[0].header, "it is the same request"
    assert engine.next_deadline() == 1120.0
    answer(engine, second, second.taken[0])
    assert body_of(context) == b"answer"


def test_nothing_is_sent_again_before_its_time(engine: ReqEngine, clock: Clock) -> None:
    (pipe,) = attach(engine, 1)
    engine.open_context().send(Message(b"early"))
    clock.now += 30
    engine.open_context().send(Message(b"late"))
    engine.deadline_reached(1059.9)
    assert pipe.bodies == [b"early", b"late"]
    clock.now = 1060.0
    engine.deadline_reached(clock.now)
    assert pipe.bodies == [b"early", b"late", b"early"]
    assert engine.next_deadline() == 1090.0


def test_an_answered_request_is_not_sent_again(engine: ReqEngine) -> None:
    (pipe,) = attach(engine, 1)
    engine.open_context().send(Message(b"question"))
    answer(engine, pipe, pipe.taken[0])
    assert engine.next_deadline() is None
    engine.deadline_reached(1e9)
    assert len(pipe.taken) == 1


def test_with_no_room_at_the_deadline_it_waits_for_the_next_one(engine: ReqEngine, clock: Clock) -> None:
    (pipe,) = attach(engine, 1, room=1)
    context = engine.open_context()
    context.send(Message(b"question"))
    clock.now += 60
    engine.deadline_reached(clock.now)
    assert len(pipe.taken) == 1
    assert engine.next_deadline() == 1120.0, "and not at once again, which would be a busy loop"
    answer(engine, pipe, pipe.taken[0])
    assert body_of(context) == b"answer"


def test_a_request_whose_pipe_dies_goes_to_another_one_at_once(engine: ReqEngine, clock: Clock) -> None:
    first, second = attach(engine, 2)
    context = engine.open_context()
    context.send(Message(b"question"))
    clock.now += 5
    engine.pipe_detached(first)
    assert second.bodies == [b"question"]
    assert second.taken[0].header == first.taken[0].header
    assert engine.next_deadline() == 1065.0
    answer(engine, second, second.taken[0])
    assert body_of(context) == b"answer"


def test_a_request_whose_pipe_dies_waits_for_the_next_pipe(engine: ReqEngine) -> None:
    (first,) = attach(engine, 1)
    context = engine.open_context()
    context.send(Message(b"question"))
    engine.pipe_detached(first)
    assert context.receive() is None
    (second,) = attach(engine, 1)
    assert second.bodies == [b"question"]
    (third,) = attach(engine, 1)
    assert third.bodies == [], "once is enough"


def test_a_request_whose_pipe_dies_waits_for_room(engine: ReqEngine) -> None:
    first, second = attach(engine, 2)
    second.room = 0
    engine.open_context().send(Message(b"question"))
    engine.pipe_detached(first)
    assert second.bodies == []
    second.room = 1
    engine.pipe_has_room(second)
    engine.pipe_has_room(second)
    assert second.bodies == [b"question"]


def test_the_requests_of_a_pipe_that_dies_keep_their_order(engine: ReqEngine) -> None:
    (first,) = attach(engine, 1)
    for number in range(5):
        engine.open_context().send(Message(b"%d" % number))
    engine.pipe_detached(first)
    (second,) = attach(engine, 1, room=3)
    assert second.bodies == [b"0", b"1", b"2"]
    second.room = None
    engine.pipe_has_room(second)
    assert second.bodies == [b"0", b"1", b"2", b"3", b"4"]


def test_a_dying_pipe_that_carries_nothing_changes_nothing(engine: ReqEngine) -> None:
    first, second = attach(engine, 2)
    engine.open_context().send(Message(b"question"))
    engine.pipe_detached(second)
    assert first.bodies == [b"question"]


def test_a_request_that_waits_for_a_pipe_can_be_replaced_and_closed(engine: ReqEngine) -> None:
    (first,) = attach(engine, 1)
    replaced, closed = engine.open_context(), engine.open_context()
    replaced.send(Message(b"replaced"))
    closed.send(Message(b"closed"))
    engine.pipe_detached(first)
    woken = wait(replaced.mailbox)
    assert not replaced.send(Message(b"new")), "there is no pipe"
    closed.close()
    (second,) = attach(engine, 1)
    assert second.bodies == [b"replaced"]
    assert replaced.send(Message(b"new"))
    assert [type(error) for error in woken] == [RequestReplaced]


def test_a_pipe_that_carried_the_request_before_may_die_without_another_sending(engine: ReqEngine, clock: Clock) -> None:
    first, second = attach(engine, 2)
    context = engine.open_context()
    context.send(Message(b"question"))
    clock.now += 60
    engine.deadline_reached(clock.now)
    engine.pipe_detached(first)
    assert second.bodies == [b"question"]
    answer(engine, second, second.taken[0])
    assert body_of(context) == b"answer"


def test_a_request_that_waits_for_room_can_be_answered_by_a_peer_that_got_it_before(engine: ReqEngine, clock: Clock) -> None:
    first, second = attach(engine, 2, room=1)
    context = engine.open_context()
    context.send(Message(b"question"))
    clock.now += 60
    engine.deadline_reached(clock.now)
    engine.pipe_detached(second)
    answer(engine, first, first.taken[0])
    assert body_of(context) == b"answer"
    first.room = 1
    engine.pipe_has_room(first)
    assert len(first.taken) == 1, "what is answered is not sent again"


def test_a_request_that_waits_for_a_pipe_past_its_deadline_is_sent_to_the_next_one(engine: ReqEngine, clock: Clock) -> None:
    first, second = attach(engine, 2)
    second.room = 0
    context = engine.open_context()
    context.send(Message(b"question"))
    engine.pipe_detached(first)
    clock.now += 60
    engine.deadline_reached(clock.now)
    assert second.bodies == []
    assert engine.next_deadline() == 1120.0, "and not at once again, which would be a busy loop"
    clock.now += 5
    second.room = None
    engine.pipe_has_room(second)
    assert second.bodies == [b"question"]
    assert engine.next_deadline() == 1125.0
    answer(engine, second, second.taken[0])
    assert body_of(context) == b"answer"


def test_a_request_that_waits_for_room_is_replaced_by_one_that_finds_it(engine: ReqEngine) -> None:
    first, second = attach(engine, 2)
    second.room = 0
    context = engine.open_context()
    woken = wait(context.mailbox)
    context.send(Message(b"old"))
    engine.pipe_detached(first)
    assert not context.send(Message(b"new")), "it waits for room as well"
    assert not woken
    second.room = 2
    engine.pipe_has_room(second)
    assert second.bodies == [b"old"], "who came first is sent first"
    assert context.send(Message(b"new"))
    assert second.bodies == [b"old", b"new"]
    assert [type(error) for error in woken] == [RequestReplaced]
    answer(engine, second, second.taken[0], b"re: old")
    answer(engine, second, second.taken[1], b"re: new")
    assert body_of(context) == b"re: new"


def test_requests_without_a_pipe_go_in_order_and_only_while_there_is_room(engine: ReqEngine) -> None:
    first, second = attach(engine, 2)
    second.room = 0
    contexts = [engine.open_context() for _ in range(6)]
    for number, context in enumerate(contexts):
        assert context.send(Message(b"%d" % number))
    engine.pipe_detached(first)
    contexts[1].close()
    second.room = 2
    engine.pipe_has_room(second)
    assert second.bodies == [b"0", b"2"]
    second.room = 1
    assert not contexts[5].send(Message(b"new")), "the full pipe has not told of room"
    engine.pipe_has_room(second)
    assert second.bodies == [b"0", b"2", b"3"]
    second.room = None
    contexts[5].close()
    engine.pipe_has_room(second)
    assert second.bodies == [b"0", b"2", b"3", b"4"]


def test_a_full_pipe_is_sent_nothing_before_it_reports_room(engine: ReqEngine) -> None:
    full, other = attach(engine, 2)
    full.room = 0
    for number in range(2):
        engine.open_context().send(Message(b"%d" % number))
    full.room = None
    engine.open_context().send(Message(b"2"))
    assert (full.bodies, other.bodies) == ([], [b"0", b"1", b"2"])
    engine.pipe_has_room(full)
    for number in (3, 4):
        engine.open_context().send(Message(b"%d" % number))
    assert (full.bodies, other.bodies) == ([b"4"], [b"0", b"1", b"2", b"3"])


def test_the_best_priority_gets_the_requests_and_the_next_one_those_that_it_loses(engine: ReqEngine, clock: Clock) -> None:
    spare, best = FakePipe(priority=2), FakePipe(priority=1)
    for pipe in (spare, best):
        engine.pipe_attached(pipe)
    for number in range(2):
        engine.open_context().send(Message(b"%d" % number))
    clock.now += 60
    engine.deadline_reached(clock.now)
    assert (best.bodies, spare.bodies) == ([b"0", b"1"] * 2, [])
    engine.pipe_detached(best)
    assert spare.bodies == [b"0", b"1"]
    assert engine.balances


@pytest.mark.slow
@pytest.mark.parametrize("end", ["answer", "close", "new request"])
def test_nothing_is_kept_of_pipes_that_are_gone(engine: ReqEngine, clock: Clock, end: str) -> None:
    pipes = attach(engine, 3)
    context = engine.open_context()
    context.send(Message(b"question"))
    clock.now += 60
    engine.deadline_reached(clock.now)
    if end == "answer":
        answer(engine, pipes[1], pipes[0].taken[0])
    elif end == "close":
        context.close()
    else:
        context.send(Message(b"another question"))
        answer(engine, pipes[2], pipes[2].taken[0])
    if end != "close":
        assert body_of(context) == b"answer"
    gone = [weakref.ref(pipe) for pipe in pipes]
    while pipes:
        engine.pipe_detached(pipes.pop())
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3


def test_what_a_pipe_did_not_write_is_sent_again_unless_resending_is_off(engine: ReqEngine, once: ReqEngine) -> None:
    assert (engine.sends_again, once.sends_again) == (True, False)
    assert engine.timed


def test_with_resending_off_a_request_has_no_deadline(once: ReqEngine) -> None:
    attach(once, 1)
    once.open_context().send(Message(b"question"))
    assert once.next_deadline() is None


def test_with_resending_off_nothing_is_ever_due(once: ReqEngine, clock: Clock) -> None:
    (pipe,) = attach(once, 1)
    once.open_context().send(Message(b"question"))
    once.deadline_reached(clock.now)
    assert pipe.bodies == [b"question"]


def test_with_resending_off_a_request_is_lost_with_its_pipe(once: ReqEngine) -> None:
    first, second = attach(once, 2)
    context = once.open_context()
    woken = wait(context.mailbox)
    context.send(Message(b"question"))
    once.pipe_detached(first)
    assert second.bodies == []
    assert [type(error) for error in woken] == [RequestLost]
    with pytest.raises(StateError):
        context.receive()


def test_without_resending_a_later_receive_learns_of_the_lost_request_and_another_may_start(once: ReqEngine) -> None:
    first, second = attach(once, 2)
    context = once.open_context()
    context.send(Message(b"question"))
    once.pipe_detached(first)
    with pytest.raises(RequestLost):
        context.receive()
    assert context.send(Message(b"again"))
    answer(once, second, second.taken[0])
    assert body_of(context) == b"answer"


def test_with_resending_off_a_new_request_makes_up_for_a_lost_one(once: ReqEngine) -> None:
    first, _ = attach(once, 2)
    context = once.open_context()
    context.send(Message(b"question"))
    once.pipe_detached(first)
    assert context.send(Message(b"again"))
    assert context.receive() is None


def test_with_resending_off_an_answer_that_came_before_its_pipe_went_is_kept(once: ReqEngine) -> None:
    (pipe,) = attach(once, 1)
    context = once.open_context()
    context.send(Message(b"question"))
    answer(once, pipe, pipe.taken[0])
    once.pipe_detached(pipe)
    assert body_of(context) == b"answer"


def test_it_is_the_counterpart_of_rep(engine: ReqEngine) -> None:
    assert (engine.number, engine.peer_number) == (0x30, 0x31)
