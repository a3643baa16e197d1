"""Balancer: whose turn it is."""

from __future__ import annotations

import gc
import weakref
from typing import cast

import pytest

from sp.message import Message
from sp.protocols.balancer import Balancer
from sp.testing import FakePipe


class Pipe(FakePipe):
    """A pipe that counts how often it was asked."""

    asked = 0

    def offer(self, message: Message) -> bool:
        self.asked += 1
        return super().offer(message)


def make(*priorities: int, room: int | None = None) -> tuple[Balancer, list[Pipe]]:
    balancer = Balancer()
    pipes = [Pipe(room, priority) for priority in priorities]
    for pipe in pipes:
        balancer.add(pipe)
    return balancer, pipes


def offer(balancer: Balancer, count: int, pipes: list[Pipe]) -> str:
    """Offer *count* messages; for each, return the place in *pipes* of the pipe that took it, or a
    dash.
    """
    takers = ""
    for _ in range(count):
        before = [len(pipe.taken) for pipe in pipes]
        taker = balancer.offer(Message(b""))
        after = [len(pipe.taken) for pipe in pipes]
        changed = [place for place, pipe in enumerate(pipes) if after[place] != before[place]]
        assert changed == ([] if taker is None else [pipes.index(cast("Pipe", taker))]), "it says who took it, and nobody else did"
        takers += str(changed[0]) if changed else "-"
    return takers


def give_room(balancer: Balancer, pipe: FakePipe, room: int | None) -> None:
    pipe.room = room
    balancer.has_room(pipe)


# CheckpointBudget


def test_without_a_pipe_no_message_is_taken() -> None:
    balancer, pipes = make()
    assert offer(balancer, 2, pipes) == "--"


def test_pipes_take_turns() -> None:
    balancer, pipes = make(8, 8, 8)
    assert offer(balancer, 7, pipes) == "0120120"


def test_the_message_itself_is_what_a_pipe_is_offered() -> None:
    balancer, (pipe,) = make(8)
    message = Message(b"body", b"head")
    assert balancer.offer(message) is pipe
    assert pipe.taken == [message]
    assert (message.header, message.body) == (b"head", b"body")


@pytest.mark.parametrize("before", range(4))
def test_a_new_pipe_has_its_turn_after_all_others(before: int) -> None:
    balancer, pipes = make(8, 8, 8)
    offer(balancer, before, pipes)
    pipes.append(Pipe())
    balancer.add(pipes[3])
    order = [(before + step) % 3 for step in range(3)]
    assert offer(balancer, 4, pipes) == "".join(map(str, order)) + "3"


@pytest.mark.parametrize(("gone", "then"), [(0, "1212"), (1, "2020"), (2, "1010")])
def test_when_a_pipe_goes_the_others_keep_their_order(gone: int, then: str) -> None:
    balancer, pipes = make(8, 8, 8)
    assert offer(balancer, 1, pipes) == "0"
    balancer.remove(pipes[gone])
    assert offer(balancer, 4, pipes) == then


def test_no_pipe_is_passed_over_or_comes_twice_while_others_come_and_go() -> None:
    balancer, pipes = make(*[8] * 5)
    visitor = Pipe()

    def counts_after(count: int) -> list[int]:
        for _ in range(count):
            assert balancer.offer(Message(b"")) is not None
        return [len(pipe.taken) for pipe in (*pipes, visitor)]

    assert counts_after(23) == [5, 5, 5, 4, 4, 0]
    balancer.remove(pipes[1])
    assert counts_after(20) == [10, 5, 10, 9, 9, 0]
    balancer.add(visitor)
    assert counts_after(52) == [20, 5, 20, 20, 20, 10]
    balancer.remove(visitor)
    balancer.add(pipes[1])
    assert counts_after(24) == [25, 9, 25, 25, 25, 10]
    pipes[2].room = 0
    assert counts_after(21) == [30, 15, 25, 30, 30, 10]
    give_room(balancer, pipes[2], None)
    assert counts_after(50) == [40, 25, 35, 40, 40, 10]


def test_a_pipe_that_was_never_there_may_go() -> None:
    balancer, pipes = make(8)
    balancer.remove(Pipe())
    balancer.remove(Pipe(priority=1))
    assert offer(balancer, 2, pipes) == "00"


# Room


def test_a_full_pipe_is_left_out() -> None:
    balancer, pipes = make(8, 8, 8)
    pipes[1].room = 0
    assert offer(balancer, 5, pipes) == "02020"


def test_a_full_pipe_is_asked_once_and_not_again_before_it_reports_room() -> None:
    balancer, pipes = make(8, 8)
    pipes[0].room = 0
    assert offer(balancer, 10, pipes) == "1" * 10
    assert pipes[0].asked == 1
    pipes[0].room = None
    assert offer(balancer, 10, pipes) == "1" * 10, "it has not told"
    assert pipes[0].asked == 1


def test_a_pipe_takes_as_many_as_it_has_room_for_and_not_one_more() -> None:
    balancer, pipes = make(8, 8, room=2)
    assert offer(balancer, 5, pipes) == "0101-"


@pytest.mark.parametrize("before", range(4))
def test_a_pipe_that_has_room_again_comes_last_in_the_round(before: int) -> None:
    balancer, pipes = make(8, 8, 8, 8)
    pipes[3].room = 0
    offer(balancer, 3, pipes)
    assert offer(balancer, before, pipes) == "0120"[:before]
    assert pipes[3].asked == (before > 0)
    balancer.offer(Message(b""))
    order = [(before + 1 + step) % 3 for step in range(3)]
    give_room(balancer, pipes[3], None)
    assert offer(balancer, 5, pipes) == "".join(map(str, order)) + "3" + str(order[0])


def test_pipes_that_have_room_again_come_in_the_order_in_which_they_said_so() -> None:
    balancer, pipes = make(8, 8, 8, room=0)
    assert offer(balancer, 1, pipes) == "-"
    for place in (2, 0, 1):
        give_room(balancer, pipes[place], None)
    assert offer(balancer, 6, pipes) == "201201"


def test_a_pipe_that_was_not_full_gains_nothing_by_reporting_room() -> None:
    balancer, pipes = make(8, 8)
    for _ in range(3):
        balancer.has_room(pipes[0])
    assert offer(balancer, 6, pipes) == "010101"


def test_a_full_pipe_gains_nothing_by_reporting_room_twice() -> None:
    balancer, pipes = make(8, 8)
    pipes[0].room = 0
    offer(balancer, 1, pipes)
    for _ in range(3):
        give_room(balancer, pipes[0], None)
    assert offer(balancer, 6, pipes) == "101010"


def test_a_pipe_that_claims_room_and_has_none_is_asked_and_left_out_again() -> None:
    balancer, pipes = make(8, room=0)
    offer(balancer, 1, pipes)
    balancer.has_room(pipes[0])
    assert offer(balancer, 3, pipes) == "---"
    assert pipes[0].asked == 2
    give_room(balancer, pipes[0], 1)
    assert offer(balancer, 2, pipes) == "0-"


def test_when_no_pipe_has_room_each_was_asked_once() -> None:
    balancer, pipes = make(1, 8, 8, 16, room=0)
    assert offer(balancer, 3, pipes) == "---"
    assert [pipe.asked for pipe in pipes] == [1, 1, 1, 1]


def test_a_pipe_that_ends_while_it_is_full_does_not_come_back_by_reporting_room() -> None:
    balancer, pipes = make(8, 8)
    pipes[0].room = 0
    offer(balancer, 1, pipes)
    balancer.remove(pipes[0])
    give_room(balancer, pipes[0], None)
    assert offer(balancer, 3, pipes) == "111"


def test_an_unknown_pipe_does_not_join_by_reporting_room() -> None:
    balancer, pipes = make(8)
    stranger = Pipe()
    balancer.has_room(stranger)
    assert offer(balancer, 2, [*pipes, stranger]) == "00"


# Priorities


def test_the_best_priority_gets_everything_while_it_has_room() -> None:
    balancer, pipes = make(2, 1, 16)
    assert offer(balancer, 5, pipes) == "11111"
    assert (pipes[0].asked, pipes[2].asked) == (0, 0)


def test_pipes_of_the_best_priority_share_it_in_turn() -> None:
    balancer, pipes = make(8, 1, 8, 1, 1)
    assert offer(balancer, 7, pipes) == "1341341"


def test_the_next_priority_gets_some_only_while_no_pipe_of_the_best_has_room() -> None:
    balancer, pipes = make(1, 1, 2, 2, 3)
    pipes[0].room, pipes[1].room = 1, 2
    assert offer(balancer, 7, pipes) == "0112323"
    give_room(balancer, pipes[0], 2)
    assert offer(balancer, 4, pipes) == "0023", "those of the next one go on where they were"


def test_every_priority_is_used_before_no_pipe_has_room() -> None:
    balancer, pipes = make(3, 16, 1, 2, room=1)
    assert offer(balancer, 5, pipes) == "2301-"
    for place in (1, 0):
        give_room(balancer, pipes[place], 1)
    assert offer(balancer, 3, pipes) == "01-"


def test_a_better_pipe_that_comes_later_gets_everything_from_then_on() -> None:
    balancer, pipes = make(8, 8)
    assert offer(balancer, 2, pipes) == "01"
    pipes.append(Pipe(priority=7))
    balancer.add(pipes[2])
    assert offer(balancer, 3, pipes) == "222"
    balancer.remove(pipes[2])
    assert offer(balancer, 3, pipes) == "010"


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1), (16, 1, 8)])
def test_it_makes_no_difference_in_which_order_priorities_come(order: tuple[int, ...]) -> None:
    balancer, pipes = make(*order, room=1)
    takers = [pipes[int(place)].priority for place in offer(balancer, 3, pipes)]
    assert takers == sorted(order)


# Batches


def batch(balancer: Balancer, count: int) -> int:
    return balancer.offer_many([Message(b"%d" % number) for number in range(count)])


def test_without_a_pipe_nothing_of_a_batch_is_taken() -> None:
    balancer, _ = make()
    assert batch(balancer, 3) == 0
    assert batch(balancer, 0) == 0


@pytest.mark.parametrize(("room", "taken"), [(None, 5), (0, 0), (1, 1), (4, 4), (5, 5), (6, 5)])
def test_a_single_pipe_takes_of_a_batch_what_it_has_room_for(room: int | None, taken: int) -> None:
    balancer, (pipe,) = make(8, room=room)
    assert batch(balancer, 5) == taken
    assert pipe.bodies == [b"%d" % number for number in range(taken)]
    give_room(balancer, pipe, None)
    assert batch(balancer, 2) == 2


def test_pipes_take_turns_with_the_messages_of_a_batch() -> None:
    balancer, pipes = make(8, 8, 8)
    assert batch(balancer, 7) == 7
    assert [pipe.bodies for pipe in pipes] == [[b"0", b"3", b"6"], [b"1", b"4"], [b"2", b"5"]]
    assert offer(balancer, 3, pipes) == "120", "and go on from there"


def test_of_a_batch_a_full_pipe_is_left_out_and_the_last_one_gets_the_rest() -> None:
    balancer, pipes = make(8, 8)
    pipes[0].room = 2
    assert batch(balancer, 7) == 7
    assert [pipe.bodies for pipe in pipes] == [[b"0", b"2"], [b"1", b"3", b"4", b"5", b"6"]]


def test_of_a_batch_the_next_priority_gets_what_the_best_has_no_room_for() -> None:
    balancer, pipes = make(2, 1, 3, 2)
    for pipe, room in zip(pipes, (2, 3, 1, 1), strict=True):
        pipe.room = room
    assert batch(balancer, 9) == 7
    assert [pipe.bodies for pipe in pipes] == [[b"3", b"5"], [b"0", b"1", b"2"], [b"6"], [b"4"]]
    assert batch(balancer, 1) == 0
    give_room(balancer, pipes[1], 1)
    assert batch(balancer, 2) == 1


# What it keeps


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_nothing_is_kept_of_a_pipe_that_is_gone(full: bool) -> None:
    balancer, pipes = make(8, 8, room=0 if full else None)
    balancer.offer(Message(b""))
    gone = weakref.ref(pipes[0])
    balancer.remove(pipes.pop(0))
    gc.collect()
    assert gone() is None
