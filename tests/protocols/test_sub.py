"""SUB: what the subscriptions let in, and to which contexts."""

from __future__ import annotations

from time import process_time
from typing import Any, SupportsIndex

import pytest

from sp.message import Message
from sp.options import DropPolicy, SocketOptions
from sp.protocols.sub import SubContext, SubEngine, Subscriptions
from sp.testing import FakePipe


def make_engine(policy: DropPolicy = "oldest", limit: int = 4) -> SubEngine:
    return SubEngine(SocketOptions(inbox_limit=limit), policy)


def open_context(engine: SubEngine, *prefixes: bytes) -> SubContext:
    context = engine.open_context()
    for prefix in prefixes:
        context.subscribe(prefix)
    return context


def publish(engine: SubEngine, pipe: FakePipe, *bodies: bytes) -> list[bool]:
    return [engine.message_received(pipe, Message(body)) for body in bodies]


def received(context: SubContext) -> list[bytes]:
    bodies: list[bytes] = []
    while (message := context.receive()) is not None:
        bodies.append(message.body)
    return bodies


@pytest.fixture
def engine() -> SubEngine:
    return make_engine(limit=100)


@pytest.fixture
def pipe() -> FakePipe:
    return FakePipe()


# Subscriptions


def test_without_a_subscription_nothing_comes_in(engine: SubEngine, pipe: FakePipe) -> None:
    context = open_context(engine)
    assert publish(engine, pipe, b"", b"news") == [True, True]
    assert received(context) == []
    assert engine.inbox_dropped() == 0


def test_what_is_put_back_is_received_next(engine: SubEngine, pipe: FakePipe) -> None:
    context = open_context(engine, b"")
    publish(engine, pipe, b"1", b"2")
    message = context.receive()
    assert message is not None
    context.put_back(message)
    assert received(context) == [b"1", b"2"]


def test_without_a_context_nothing_comes_in(engine: SubEngine, pipe: FakePipe) -> None:
    assert publish(engine, pipe, b"news") == [True]
    assert engine.queued() == 0


def test_a_subscription_is_a_prefix_of_the_body(engine: SubEngine, pipe: FakePipe) -> None:
    context = open_context(engine, b"ab")
    publish(engine, pipe, b"ab", b"abc", b"a", b"", b"b", b"ac", b"aab", b"ab\0")
    assert received(context) == [b"ab", b"abc", b"ab\0"]


def test_the_empty_subscription_lets_everything_in(engine: SubEngine, pipe: FakePipe) -> None:
    context = open_context(engine, b"")
    publish(engine, pipe, b"", b"\0", b"\xff", b"news")
    assert received(context) == [b"", b"\0", b"\xff", b"news"]


def test_a_message_comes_once_however_many_subscriptions_match(engine: SubEngine, pipe: FakePipe) -> None:
    context = open_context(engine, b"", b"a", b"ab", b"ab")
    publish(engine, pipe, b"abc")
    assert received(context) == [b"abc"]


def test_one_unsubscribe_ends_a_subscription_made_twice(engine: SubEngine, pipe: FakePipe) -> None:
    context = open_context(engine, b"a", b"a")
    assert context.unsubscribe(b"a")
    assert not context.unsubscribe(b"a")
    publish(engine, pipe, b"a")
    assert received(context) == []


def test_only_a_subscription_that_is_there_can_be_ended(engine: SubEngine) -> None:
    context = open_context(engine, b"ab")
    assert not any(context.unsubscribe(prefix) for prefix in (b"", b"a", b"abc", b"b"))


def test_ending_the_wider_of_two_subscriptions_leaves_the_narrower(engine: SubEngine, pipe: FakePipe) -> None:
    context = open_context(engine, b"a", b"ab", b"abc", b"ad")
    assert context.unsubscribe(b"a")
    publish(engine, pipe, b"a", b"ab", b"abc", b"ac", b"ad")
    assert received(context) == [b"ab", b"abc", b"ad"]


def test_ending_the_narrower_of_two_subscriptions_leaves_the_wider(engine: SubEngine, pipe: FakePipe) -> None:
    context = open_context(engine, b"ab", b"a")
    assert context.unsubscribe(b"ab")
    publish(engine, pipe, b"ab", b"b")
    assert received(context) == [b"ab"]


def test_unsubscribing_forgets_what_no_other_subscription_matches(engine: SubEngine, pipe: FakePipe) -> None:
    context = open_context(engine, b"a", b"ab", b"c")
    publish(engine, pipe, b"a1", b"ab1", b"c1", b"a2", b"ab2")
    assert context.unsubscribe(b"a")
    assert received(context) == [b"ab1", b"c1", b"ab2"]
    assert engine.inbox_dropped() == 0, "what is no longer wanted was not lost"


def test_unsubscribing_makes_room_and_resumes_the_pipe(pipe: FakePipe) -> None:
    engine = make_engine(limit=4)
    context = open_context(engine, b"a", b"b")
    assert publish(engine, pipe, b"a", b"a", b"a", b"b", b"b") == [True, True, True, True, False]
    context.unsubscribe(b"a")
    assert pipe.resumed == 1
    assert received(context) == [b"b"]


@pytest.mark.parametrize("wide", [b"\xff", b"a\xff", b"a\xff\xff"])
def test_a_prefix_that_ends_in_ff_covers_what_begins_with_it_and_nothing_else(wide: bytes) -> None:
    subscriptions = Subscriptions()
    for prefix in (wide + b"\xff", wide + b"x", b"b", wide):
        assert subscriptions.add(prefix)
    for body in (wide, wide + b"\xff\xff", wide + b"\0", b"b", b"bc"):
        assert subscriptions.match(body)
    for body in (b"", b"a", wide[:-1], wide[:-1] + b"\xfe\xff", b"c"):
        assert not subscriptions.match(body)
    assert subscriptions.remove(wide)
    assert [subscriptions.match(body) for body in (wide, wide + b"\xff", wide + b"x", b"b")] == [False, True, True, True]


class CountedBytes(bytes):
    """Bytes that count how often they are looked at."""

    looks = 0

    def __getitem__(self, place: SupportsIndex | slice) -> Any:
        CountedBytes.looks += 1
        return super().__getitem__(place)

    def startswith(self, *arguments: Any) -> bool:
        CountedBytes.looks += 1
        return super().startswith(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("overlapping", [False, True])
def test_matching_among_ten_thousand_subscriptions_looks_only_where_they_differ(overlapping: bool) -> None:
    subscriptions = Subscriptions()
    if overlapping:
        subscriptions.add(b"topic 5000/")
    for number in range(10_000):
        subscriptions.add(b"topic %d/" % number)
    for body, matched in ((b"5000/x", True), (b"5000", False), (b"x", False), (b"", False), (b"0/", True), (b"9999/", True)):
        CountedBytes.looks = 0
        assert subscriptions.match(CountedBytes(b"topic " + body)) is matched
        assert 0 < CountedBytes.looks <= len(b"9999/") + 1


@pytest.mark.slow
def test_subscribing_and_unsubscribing_do_not_get_slower_with_the_number_of_subscriptions() -> None:
    subscriptions = Subscriptions()
    prefixes = [b"%06d" % number for number in range(200_000)]
    for prefix in prefixes:
        subscriptions.add(prefix)
    began = process_time()
    for _ in range(1000):
        assert subscriptions.add(b"")
        assert subscriptions.remove(b"")
    for prefix in prefixes:
        assert subscriptions.remove(prefix)
    assert process_time() - began < 4, "it takes half a second, and a sorted list took a hundred"


# Several contexts


def test_each_context_gets_what_its_own_subscriptions_match(engine: SubEngine, pipe: FakePipe) -> None:
    a, b, everything, nothing = open_context(engine, b"a"), open_context(engine, b"b"), open_context(engine, b""), open_context(engine)
    assert publish(engine, pipe, b"a", b"b", b"c") == [True, True, True]
    assert [received(context) for context in (a, b, everything, nothing)] == [[b"a"], [b"b"], [b"a", b"b", b"c"], []]


def test_a_message_goes_to_all_contexts_that_match_or_to_none(pipe: FakePipe) -> None:
    engine = make_engine(limit=2)
    full, free = open_context(engine, b""), open_context(engine, b"b")
    assert publish(engine, pipe, b"a", b"a", b"b") == [True, True, False]
    assert received(free) == []
    assert received(full) == [b"a", b"a"]
    assert pipe.resumed == 1
    assert publish(engine, pipe, b"b") == [True]
    assert (received(full), received(free)) == ([b"b"], [b"b"])


def test_a_full_context_that_does_not_match_holds_no_pipe_back(pipe: FakePipe) -> None:
    engine = make_engine(limit=1)
    full, free = open_context(engine, b"a"), open_context(engine, b"b")
    assert publish(engine, pipe, b"a", b"b") == [True, True]
    assert (received(full), received(free)) == ([b"a"], [b"b"])
    assert not pipe.resumed


def test_a_pipe_held_back_is_resumed_when_the_full_context_is_closed(pipe: FakePipe) -> None:
    engine = make_engine(limit=1)
    full, free = open_context(engine, b""), open_context(engine, b"b")
    assert publish(engine, pipe, b"a", b"b") == [True, False]
    full.close()
    assert pipe.resumed == 1
    assert publish(engine, pipe, b"b") == [True]
    assert received(free) == [b"b"]
    assert received(full) == []


def test_a_pipe_that_is_gone_is_not_resumed(pipe: FakePipe) -> None:
    engine = make_engine(limit=1)
    contexts = [open_context(engine, b""), open_context(engine, b"")]
    publish(engine, pipe, b"a", b"b")
    engine.pipe_detached(pipe)
    for context in contexts:
        received(context)
    assert not pipe.resumed


def test_a_closed_context_gets_nothing_more(engine: SubEngine, pipe: FakePipe) -> None:
    context = open_context(engine, b"")
    context.close()
    assert publish(engine, pipe, b"a") == [True]
    assert engine.queued() == 0


# An application that does not keep up


@pytest.mark.parametrize(("policy", "kept"), [("oldest", [b"2", b"3", b"4"]), ("newest", [b"1", b"2", b"3"])])
def test_an_overdue_message_is_taken_and_one_is_dropped_and_counted(policy: DropPolicy, kept: list[bytes], pipe: FakePipe) -> None:
    engine = make_engine(policy, limit=3)
    context = open_context(engine, b"")
    assert publish(engine, pipe, b"1", b"2", b"3", b"4") == [True, True, True, False]
    engine.force_message(pipe, Message(b"4"))
    assert received(context) == kept
    assert engine.inbox_dropped() == 1


def test_after_an_overdue_message_the_inbox_drops_at_once_until_half_of_it_is_free(pipe: FakePipe) -> None:
    engine = make_engine(limit=4)
    context = open_context(engine, b"")
    publish(engine, pipe, *[b"old"] * 5)
    engine.force_message(pipe, Message(b"new"))
    assert publish(engine, pipe, b"new", b"new") == [True, True]
    assert engine.inbox_dropped() == 3
    context.receive()
    context.receive()
    assert publish(engine, pipe, b"new", b"new", b"held back") == [True, True, False]
    assert engine.inbox_dropped() == 3


def test_an_overdue_message_reaches_all_contexts_that_match_and_only_full_ones_drop(pipe: FakePipe) -> None:
    engine = make_engine(limit=2)
    full, free = open_context(engine, b""), open_context(engine, b"b")
    publish(engine, pipe, b"a1", b"a2", b"b")
    engine.force_message(pipe, Message(b"b"))
    assert (received(full), received(free)) == ([b"a2", b"b"], [b"b"])
    assert engine.inbox_dropped() == 1


def test_a_full_context_that_does_not_match_keeps_its_hold_time_when_another_has_used_it_up(pipe: FakePipe) -> None:
    engine = make_engine(limit=1)
    impatient, other = open_context(engine, b"a"), open_context(engine, b"b")
    assert publish(engine, pipe, b"b1", b"a1", b"a2") == [True, True, False]
    engine.force_message(pipe, Message(b"a2"))
    assert received(impatient) == [b"a2"]
    assert publish(engine, pipe, b"b2") == [False], "held back, as nothing for this context was overdue"
    assert received(other) == [b"b1"]


def test_a_context_with_room_keeps_its_hold_time_when_another_has_used_it_up(pipe: FakePipe) -> None:
    engine = make_engine(limit=2)
    full, free = open_context(engine, b""), open_context(engine, b"b")
    publish(engine, pipe, b"a1", b"a2", b"b1")
    engine.force_message(pipe, Message(b"b1"))
    received(full)
    assert publish(engine, pipe, b"b2", b"b3") == [True, False], "held back, as nothing for this context was overdue"
    assert received(free) == [b"b1", b"b2"]


def test_what_a_context_dropped_is_still_counted_when_it_is_closed(pipe: FakePipe) -> None:
    engine = make_engine(limit=1)
    context = open_context(engine, b"")
    open_context(engine, b"x")
    publish(engine, pipe, b"1", b"2")
    engine.force_message(pipe, Message(b"2"))
    context.close()
    assert engine.inbox_dropped() == 1
    assert engine.queued() == 0


def test_the_queues_of_all_contexts_are_counted(engine: SubEngine, pipe: FakePipe) -> None:
    open_context(engine, b"")
    open_context(engine, b"a")
    publish(engine, pipe, b"a", b"b")
    assert engine.queued() == 3


def test_a_message_wakes_a_receiver_that_waits_in_a_context_that_it_matches(engine: SubEngine, pipe: FakePipe) -> None:
    woken: list[str] = []
    for name in ("a", "b"):
        open_context(engine, name.encode()).mailbox.wake = lambda name=name: woken.append(name)
    publish(engine, pipe, b"b")
    assert woken == ["b"]


def test_a_pipe_is_held_back_for_a_tenth_of_a_second_before_anything_is_dropped(engine: SubEngine) -> None:
    assert engine.hold_time == pytest.approx(0.1)


def test_it_is_the_counterpart_of_pub(engine: SubEngine) -> None:
    assert (engine.number, engine.peer_number) == (0x21, 0x20)


def test_many_contexts_are_closed_in_the_time_that_each_of_them_takes(engine: SubEngine) -> None:
    contexts = [engine.open_context() for _ in range(40_000)]
    began = process_time()
    for context in reversed(contexts):
        context.close()
    assert process_time() - began < 3  # a search for each of them took 10 s and more


@pytest.mark.parametrize("topic_has_gone", [False, True])
def test_many_contexts_wait_without_topics_in_the_time_that_each_of_them_takes(engine: SubEngine, topic_has_gone: bool) -> None:
    contexts = [engine.open_context() for _ in range(10_000)]
    if topic_has_gone:
        contexts[0].subscribe(b"a")
        assert contexts[0].unsubscribe(b"a")
    began = process_time()
    for context in contexts:
        assert context.receive() is None
    assert process_time() - began < 3  # a look at all others took 5 s and more
