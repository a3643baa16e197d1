"""Inbox: a queue with two bounds, that holds pipes back or drops."""

from __future__ import annotations

from time import process_time

import pytest

from sp.message import Message
from sp.options import DropPolicy, SocketOptions
from sp.protocols.engine import Engine
from sp.protocols.inbox import Inbox
from sp.testing import FakePipe


def make_inbox(limit: int = 100, size: int = 1000, policy: DropPolicy | None = None) -> Inbox:
    return Inbox(SocketOptions(inbox_limit=limit, inbox_bytes=size), policy)


@pytest.fixture
def pipe() -> FakePipe:
    return FakePipe()


def offer(inbox: Inbox, pipe: FakePipe, *bodies: bytes) -> list[bool]:
    """Offer each body; what ``has_room`` said before must come true."""
    taken: list[bool] = []
    for body in bodies:
        room = inbox.has_room(Message(body))
        taken.append(inbox.offer(pipe, Message(body)))
        assert taken[-1] is room
    return taken


def take_all(inbox: Inbox) -> list[bytes]:
    bodies: list[bytes] = []
    while (message := inbox.take()) is not None:
        bodies.append(message.body)
    return bodies


def test_messages_come_out_in_order(pipe: FakePipe) -> None:
    inbox = make_inbox()
    assert inbox.take() is None
    offer(inbox, pipe, b"1", b"2", b"3")
    assert len(inbox) == 3
    assert take_all(inbox) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_it_takes_as_many_messages_as_the_limit_and_not_one_more(pipe: FakePipe, limit: int) -> None:
    assert offer(make_inbox(limit), pipe, *[b""] * (limit + 1)) == [True] * limit + [False]


def test_it_takes_as_many_bytes_as_the_limit_and_not_one_more(pipe: FakePipe) -> None:
    assert offer(make_inbox(size=10), pipe, bytes(5), bytes(6), bytes(5), b"x", b"") == [True, False, True, False, True]


def test_an_empty_one_takes_any_size(pipe: FakePipe) -> None:
    inbox = make_inbox(size=1)
    assert offer(inbox, pipe, bytes(5000), b"x") == [True, False]
    assert take_all(inbox) == [bytes(5000)]
    assert offer(inbox, pipe, b"x") == [True]


def test_a_pipe_is_resumed_once_and_only_when_half_of_the_messages_are_gone(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=4)
    offer(inbox, pipe, *[b""] * 6)
    inbox.take()
    assert pipe.resumed == 0
    inbox.take()
    assert pipe.resumed == 1
    take_all(inbox)
    assert pipe.resumed == 1


def test_a_pipe_is_resumed_only_when_half_of_the_bytes_are_gone(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=4, size=10)
    offer(inbox, pipe, bytes(1), bytes(3), bytes(6), bytes(1))
    inbox.take()
    inbox.take()
    assert pipe.resumed == 0, "6 of 10 bytes are left"
    inbox.take()
    assert pipe.resumed == 1


def test_a_limit_of_one_resumes_when_it_is_empty(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=1)
    offer(inbox, pipe, b"1", b"2")
    inbox.take()
    assert pipe.resumed == 1


def test_a_pipe_that_was_held_without_an_offer_is_resumed(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=1)
    offer(inbox, pipe, b"1")
    other = FakePipe()
    inbox.hold(other)
    inbox.take()
    assert (pipe.resumed, other.resumed) == (0, 1)


def test_the_pipe_that_waited_first_is_resumed_first() -> None:
    order: list[int] = []

    class Pipe(FakePipe):
        def resume(self) -> None:
            order.append(self.id)

    inbox = make_inbox(limit=1)
    pipes = [Pipe() for _ in range(4)]
    offer(inbox, pipes[0], b"1")
    for pipe in (pipes[2], pipes[0], pipes[3], pipes[2], pipes[1]):
        offer(inbox, pipe, b"2")
    inbox.take()
    assert order == [pipes[2].id], "there is one place, and one that may fill it"
    offer(inbox, pipes[2], b"2")
    inbox.take()
    assert order == [pipes[2].id, pipes[0].id]
    inbox.forget(pipes[0])
    inbox.purge(lambda _: True)
    assert order == [pipes[i].id for i in (2, 0, 3, 1)]


def test_a_pipe_that_is_resumed_may_offer_from_within_the_call() -> None:
    inbox = make_inbox(limit=1)

    class Pipe(FakePipe):
        def resume(self) -> None:
            super().resume()
            assert self.resumed < 10
            inbox.offer(self, Message(b"again"))

    pipes = Pipe(), Pipe()
    for pipe in pipes:
        inbox.offer(pipe, Message(b"first"))
    inbox.take()
    assert [pipe.resumed for pipe in pipes] == [0, 1]
    inbox.offer(pipes[0], Message(b"second"))
    assert [pipe.resumed for pipe in pipes] == [0, 1]
    inbox.take()
    assert [pipe.resumed for pipe in pipes] == [1, 1]


def test_a_forgotten_pipe_is_not_resumed(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=1)
    other = FakePipe()
    offer(inbox, pipe, b"1", b"2")
    offer(inbox, other, b"2")
    inbox.forget(pipe)
    inbox.forget(FakePipe())
    inbox.take()
    assert (pipe.resumed, other.resumed) == (0, 1)


def test_a_message_wakes_a_waiting_receiver_and_a_refused_one_does_not(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=1)
    woken: list[int] = []
    inbox.wake = lambda: woken.append(len(inbox))
    offer(inbox, pipe, b"1", b"2")
    assert woken == [1], "the message is there when the call comes"


def test_purging_keeps_the_order_and_makes_room(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=4, size=8)
    offer(inbox, pipe, b"a1", b"b1", b"a2", b"b2", b"c")
    inbox.purge(lambda message: message.body.startswith(b"b"))
    assert pipe.resumed == 1
    assert offer(inbox, pipe, bytes(4), b"x") == [True, False]
    assert take_all(inbox) == [b"b1", b"b2", bytes(4)]
    assert inbox.dropped == 0


def test_purging_too_little_resumes_no_pipe(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=4)
    offer(inbox, pipe, b"a", b"b", b"b", b"b", b"b")
    inbox.purge(lambda message: message.body == b"b")
    assert not pipe.resumed


def test_purging_an_empty_inbox_does_no_harm() -> None:
    inbox = make_inbox()
    inbox.purge(lambda _: False)
    assert len(inbox) == 0


# Batches


def test_a_batch_is_taken_as_far_as_there_are_places_and_then_the_pipe_is_held(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=4)
    assert inbox.offer_many(pipe, [Message(b"%d" % number) for number in range(3)]) == 3
    assert inbox.offer_many(pipe, [Message(b"%d" % number) for number in range(3, 6)]) == 1
    assert inbox.offer_many(pipe, [Message(b"4")]) == 0
    assert take_all(inbox) == [b"0", b"1", b"2", b"3"]
    assert pipe.resumed == 1
    assert inbox.dropped == 0


def test_an_empty_batch_holds_no_pipe_and_wakes_no_task(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=1)
    woken: list[None] = []
    inbox.wake = lambda: woken.append(None)
    assert inbox.offer_many(pipe, []) == 0
    offer(inbox, pipe, b"1")
    assert inbox.offer_many(pipe, []) == 0
    assert len(woken) == 1
    take_all(inbox)
    assert not pipe.resumed


def test_a_batch_that_is_all_taken_holds_no_pipe(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=3, size=6)
    assert inbox.offer_many(pipe, [Message(bytes(2))] * 3) == 3
    take_all(inbox)
    assert not pipe.resumed


@pytest.mark.parametrize(("sizes", "taken"), [((5, 5, 1), 2), ((5, 6), 1), ((11, 1), 1), ((11,), 1), ((4, 7, 6), 1), ((0, 10, 0, 1), 3)])
def test_a_batch_is_taken_as_far_as_there_are_bytes(pipe: FakePipe, sizes: tuple[int, ...], taken: int) -> None:
    inbox = make_inbox(size=10)
    assert inbox.offer_many(pipe, [Message(bytes(size)) for size in sizes]) == taken
    assert [len(body) for body in take_all(inbox)] == list(sizes[:taken])
    assert offer(inbox, pipe, bytes(10), b"x") == [True, False], "all bytes are free again"


def test_the_bytes_of_a_batch_count(pipe: FakePipe) -> None:
    inbox = make_inbox(size=10)
    inbox.offer_many(pipe, [Message(bytes(4)), Message(bytes(4))])
    assert offer(inbox, pipe, bytes(3), bytes(2)) == [False, True]
    inbox.take()
    assert inbox.offer_many(pipe, [Message(bytes(2)), Message(bytes(3))]) == 1


def test_a_batch_wakes_the_receiver_and_what_it_takes_makes_room_for_the_rest(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=2)
    received: list[bytes] = []
    inbox.wake = lambda: received.extend(inbox.take_bodies(None))
    assert inbox.offer_many(pipe, [Message(b"%d" % number) for number in range(5)]) == 5
    assert received == [b"0", b"1", b"2", b"3", b"4"]
    assert not pipe.resumed


@pytest.mark.parametrize(("policy", "kept"), [("oldest", [b"3", b"4"]), ("newest", [b"0", b"1"])])
def test_a_batch_is_dropped_like_its_messages(pipe: FakePipe, policy: DropPolicy, kept: list[bytes]) -> None:
    inbox = make_inbox(limit=2, policy=policy)
    inbox.start_dropping()
    assert inbox.offer_many(pipe, [Message(b"%d" % number) for number in range(5)]) == 5
    assert inbox.dropped == 3
    assert take_all(inbox) == kept


def test_what_was_put_back_into_a_full_inbox_leaves_no_room_for_a_batch(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=1)
    offer(inbox, pipe, b"1")
    message = inbox.take()
    assert message is not None
    offer(inbox, pipe, b"2")
    inbox.put_back(message)
    assert inbox.offer_many(pipe, [Message(b"3"), Message(b"4")]) == 0
    assert take_all(inbox) == [b"1", b"2"]


# Putting back and letting go


def test_what_is_put_back_comes_out_next(pipe: FakePipe) -> None:
    inbox = make_inbox()
    offer(inbox, pipe, b"1", b"2")
    message = inbox.take()
    assert message is not None
    inbox.put_back(message)
    assert len(inbox) == 2
    assert inbox.take() is message
    assert take_all(inbox) == [b"2"]


def test_several_are_put_back_the_last_one_first(pipe: FakePipe) -> None:
    inbox = make_inbox()
    offer(inbox, pipe, b"1", b"2", b"3")
    first, second = inbox.take(), inbox.take()
    assert first is not None
    assert second is not None
    inbox.put_back(second)
    inbox.put_back(first)
    assert take_all(inbox) == [b"1", b"2", b"3"]


def test_a_message_that_is_put_back_wakes_a_waiting_receiver(pipe: FakePipe) -> None:
    inbox = make_inbox()
    woken: list[int] = []
    offer(inbox, pipe, b"1")
    message = inbox.take()
    assert message is not None
    inbox.wake = lambda: woken.append(len(inbox))
    inbox.put_back(message)
    assert woken == [1], "the message is there when the call comes"


def test_what_is_put_back_is_taken_whatever_the_bounds_say_and_counts_again(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=2, size=10)
    offer(inbox, pipe, bytes(4), bytes(6))
    message = inbox.take()
    assert message is not None
    assert offer(inbox, pipe, bytes(4)) == [True]
    inbox.put_back(message)
    assert len(inbox) == 3
    assert offer(inbox, pipe, b"") == [False]
    inbox.take()
    assert offer(inbox, pipe, b"") == [False]
    inbox.take()
    assert offer(inbox, pipe, bytes(7), bytes(6), b"") == [False, True, False]
    assert inbox.dropped == 0


def test_of_a_message_that_is_put_back_the_bytes_count_again(pipe: FakePipe) -> None:
    inbox = make_inbox(size=10)
    offer(inbox, pipe, bytes(6))
    for _ in range(3):
        message = inbox.take()
        assert message is not None
        inbox.put_back(message)
    assert offer(inbox, pipe, bytes(5), bytes(4), b"x") == [False, True, False]


def test_letting_go_resumes_all_that_are_held_in_their_order_and_keeps_the_messages() -> None:
    order: list[int] = []

    class Pipe(FakePipe):
        def resume(self) -> None:
            order.append(self.id)

    inbox = make_inbox(limit=1)
    pipes = [Pipe() for _ in range(3)]
    for place in (1, 0, 2, 1):
        offer(inbox, pipes[place], b"1")
    inbox.hold(pipes[1])
    inbox.release()
    assert order == [pipes[0].id, pipes[2].id, pipes[1].id]
    inbox.release()
    assert take_all(inbox) == [b"1"]
    assert len(order) == 3, "each once"


def test_a_pipe_that_was_resumed_and_offers_again_is_held_again(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=1)
    offer(inbox, pipe, b"1", b"2")
    inbox.release()
    assert offer(inbox, pipe, b"2") == [False]
    inbox.take()
    assert pipe.resumed == 2


def test_a_pipe_that_offers_again_from_within_resume_is_held_again() -> None:
    inbox = make_inbox(limit=1)

    class Pipe(FakePipe):
        def resume(self) -> None:
            super().resume()
            if self.resumed == 1:
                assert not inbox.offer(self, Message(b"2"))

    pipe = Pipe()
    offer(inbox, pipe, b"1", b"2")
    inbox.release()
    inbox.take()
    assert pipe.resumed == 2, "or it would be held for ever"


# Dropping


def test_with_a_policy_it_still_holds_back_until_it_is_told_to_lose(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=2, policy="oldest")
    assert offer(inbox, pipe, b"1", b"2", b"3") == [True, True, False]
    assert inbox.dropped == 0


def test_with_oldest_the_new_message_pushes_out_the_oldest(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=2, policy="oldest")
    inbox.start_dropping()
    assert offer(inbox, pipe, b"1", b"2", b"3", b"4") == [True] * 4
    assert inbox.dropped == 2
    assert take_all(inbox) == [b"3", b"4"]


def test_with_newest_the_new_message_is_dropped(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=2, policy="newest")
    inbox.start_dropping()
    assert offer(inbox, pipe, b"1", b"2", b"3", b"4") == [True] * 4
    assert inbox.dropped == 2
    assert take_all(inbox) == [b"1", b"2"]


def test_with_oldest_as_many_go_as_the_bytes_of_the_new_one_need(pipe: FakePipe) -> None:
    inbox = make_inbox(size=10, policy="oldest")
    inbox.start_dropping()
    offer(inbox, pipe, bytes(3), bytes(3), b"last", bytes(6))
    assert inbox.dropped == 2
    assert take_all(inbox) == [b"last", bytes(6)]


def test_with_oldest_a_message_larger_than_the_bound_pushes_out_all(pipe: FakePipe) -> None:
    inbox = make_inbox(size=10, policy="oldest")
    inbox.start_dropping()
    offer(inbox, pipe, b"1", b"2", bytes(50))
    assert inbox.dropped == 2
    assert take_all(inbox) == [bytes(50)]


def test_a_dropped_message_wakes_no_task(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=1, policy="newest")
    offer(inbox, pipe, b"1")
    inbox.start_dropping()
    woken: list[None] = []
    inbox.wake = lambda: woken.append(None)
    offer(inbox, pipe, b"2")
    assert not woken


@pytest.mark.parametrize("policy", ["oldest", "newest"])
def test_it_loses_until_half_of_it_is_free(pipe: FakePipe, policy: DropPolicy) -> None:
    inbox = make_inbox(limit=4, policy=policy)
    offer(inbox, pipe, *[b""] * 4)
    inbox.start_dropping()
    inbox.take()
    assert offer(inbox, pipe, b"", b"") == [True, True]
    assert inbox.dropped == 1
    inbox.take()
    inbox.take()
    assert offer(inbox, pipe, b"", b"", b"") == [True, True, False]
    assert inbox.dropped == 1


def test_purging_half_of_it_ends_the_losing(pipe: FakePipe) -> None:
    inbox = make_inbox(limit=2, policy="oldest")
    offer(inbox, pipe, b"a", b"b")
    inbox.start_dropping()
    inbox.purge(lambda message: message.body == b"b")
    assert offer(inbox, pipe, b"a", b"a") == [True, False]


# What an engine does by default


def test_an_engine_that_overrides_nothing_has_nothing_to_do(pipe: FakePipe) -> None:
    engine = Engine()
    engine.check_can_attach()
    engine.pipe_attached(pipe)
    engine.pipe_has_room(pipe)
    engine.pipe_detached(pipe)
    engine.deadline_reached(0.0)
    assert (engine.next_deadline(), engine.queued(), engine.inbox_dropped(), engine.dropped) == (None, 0, 0, {})
    assert not any((engine.timed, engine.deadlines_come_nearer, engine.sends_again, engine.balances, engine.takes_headers))
    assert not any((engine.takes_batches, engine.single_peer))
    for method in (engine.message_received, engine.force_message):
        with pytest.raises(NotImplementedError):
            method(pipe, Message(b""))
    with pytest.raises(NotImplementedError):
        engine.messages_received(pipe, [Message(b"")])


def test_many_pipes_that_are_held_and_go_away_are_forgotten_in_the_time_that_each_of_them_takes() -> None:
    inbox = make_inbox(limit=2)
    pipes = [FakePipe() for _ in range(60_000)]
    for pipe in pipes:
        inbox.offer(pipe, Message(b"x"))
    take_all(inbox)
    began = process_time()
    for pipe in pipes:
        inbox.forget(pipe)
    assert process_time() - began < 3  # a copy of the line for each of them took 10 s and more
    assert sum(pipe.resumed for pipe in pipes) > 0
