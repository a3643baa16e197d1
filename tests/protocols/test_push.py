"""PUSH: each message to one peer, in turn."""

from __future__ import annotations

import pytest

from sp.message import Message
from sp.protocols.push import PushEngine
from sp.testing import FakePipe


def make_push(*rooms: int | None) -> tuple[PushEngine, list[FakePipe]]:
    engine = PushEngine()
    pipes = [FakePipe(room) for room in rooms]
    for pipe in pipes:
        engine.pipe_attached(pipe)
    return engine, pipes


def push(engine: PushEngine, *bodies: bytes) -> list[bool]:
    return [engine.send(Message(body)) for body in bodies]


def test_without_a_peer_a_message_waits() -> None:
    engine, _ = make_push()
    assert push(engine, b"1") == [False]
    assert not engine.dropped


def test_a_message_goes_to_one_peer_and_the_next_to_the_next() -> None:
    engine, pipes = make_push(None, None, None)
    assert all(push(engine, b"1", b"2", b"3", b"4"))
    assert [pipe.bodies for pipe in pipes] == [[b"1", b"4"], [b"2"], [b"3"]]


def test_a_body_is_all_that_is_sent() -> None:
    engine, (pipe,) = make_push(None)
    push(engine, b"work")
    assert pipe.taken[0].header == b""


def test_a_message_goes_to_a_peer_with_room() -> None:
    engine, (full, free) = make_push(1, None)
    assert all(push(engine, b"1", b"2", b"3", b"4"))
    assert (full.bodies, free.bodies) == ([b"1"], [b"2", b"3", b"4"])
    assert not engine.dropped


def test_when_no_peer_has_room_a_message_waits_until_one_has() -> None:
    engine, (first, second) = make_push(1, 1)
    assert push(engine, b"1", b"2", b"3", b"3") == [True, True, False, False]
    second.room = 1
    engine.pipe_has_room(second)
    assert push(engine, b"3", b"4") == [True, False]
    assert (first.bodies, second.bodies) == ([b"1"], [b"2", b"3"])
    assert not engine.dropped


def test_of_a_batch_as_many_are_sent_as_there_is_room_for() -> None:
    engine, (first, second) = make_push(1, 2)
    assert engine.send_batch([Message(b"%d" % number) for number in range(5)]) == 3
    assert (first.bodies, second.bodies) == ([b"0"], [b"1", b"2"])
    second.room = None
    engine.pipe_has_room(second)
    assert engine.send_batch([Message(b"3"), Message(b"4")]) == 2
    assert second.bodies == [b"1", b"2", b"3", b"4"]


def test_a_peer_that_is_gone_gets_nothing() -> None:
    engine, (gone, other) = make_push(None, None)
    engine.pipe_detached(gone)
    engine.pipe_detached(FakePipe())
    push(engine, b"1", b"2")
    assert (gone.bodies, other.bodies) == ([], [b"1", b"2"])


def test_when_the_last_peer_is_gone_messages_wait() -> None:
    engine, (pipe,) = make_push(None)
    engine.pipe_detached(pipe)
    assert push(engine, b"1") == [False]


def test_the_best_priority_comes_first() -> None:
    engine = PushEngine()
    spare, best = FakePipe(priority=9), FakePipe(2, priority=8)
    for pipe in (spare, best):
        engine.pipe_attached(pipe)
    push(engine, b"1", b"2", b"3")
    assert (best.bodies, spare.bodies) == ([b"1", b"2"], [b"3"])


def test_a_message_from_a_pull_is_dropped_and_counted_and_its_pipe_stays() -> None:
    engine, (pipe, _) = make_push(None, None)
    for count in (1, 2):
        assert engine.message_received(pipe, Message(b"thanks"))
        assert engine.dropped == {"unexpected": count}
    assert pipe.error is None
    assert engine.queued() == 0
    assert push(engine, b"1", b"2") == [True, True]
    assert pipe.bodies == [b"1"], "it still has its turn"


def test_priorities_count_and_nothing_is_sent_again_or_timed() -> None:
    engine, _ = make_push()
    assert engine.balances
    assert not engine.sends_again
    assert not engine.timed
    assert not engine.takes_headers, "raw or not, there is no header"
    assert engine.find_body is None


def test_it_is_the_counterpart_of_pull() -> None:
    assert (PushEngine.number, PushEngine.peer_number) == (0x50, 0x51)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_idle_peer_costs_the_others_nothing(count: int) -> None:
    engine, pipes = make_push(*[0] * count, None)
    assert all(push(engine, *[b""] * 10))
    assert [len(pipe.taken) for pipe in pipes] == [0] * count + [10]
