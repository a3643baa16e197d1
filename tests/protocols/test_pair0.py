"""PAIR0: one peer, and messages both ways."""

from __future__ import annotations

import gc
import math
import weakref

import pytest

from sp.errors import PipeRefused
from sp.message import Message
from sp.options import SocketOptions
from sp.protocols.pair0 import Pair0Engine
from sp.testing import FakePipe


@pytest.fixture
def engine() -> Pair0Engine:
    return Pair0Engine(SocketOptions(inbox_limit=4))


@pytest.fixture
def pipe(engine: Pair0Engine) -> FakePipe:
    pipe = FakePipe()
    engine.check_can_attach()
    engine.pipe_attached(pipe)
    return pipe


def received(engine: Pair0Engine) -> list[bytes]:
    bodies: list[bytes] = []
    while (message := engine.receive()) is not None:
        bodies.append(message.body)
    return bodies


# One peer


def test_a_second_peer_is_refused_before_it_is_greeted(engine: Pair0Engine, pipe: FakePipe) -> None:
    with pytest.raises(PipeRefused, match="this PAIR already has a peer"):
        engine.check_can_attach()


def test_a_second_peer_is_refused_when_both_were_greeted_at_once(engine: Pair0Engine, pipe: FakePipe) -> None:
    second = FakePipe()
    with pytest.raises(PipeRefused, match="this PAIR already has a peer"):
        engine.pipe_attached(second)
    assert engine.send(Message(b"hello"))
    assert (pipe.bodies, second.bodies) == ([b"hello"], [])
    assert pipe.error is None


def test_a_refused_peer_is_welcome_to_try_again(engine: Pair0Engine, pipe: FakePipe) -> None:
    with pytest.raises(PipeRefused) as refused:
        engine.check_can_attach()
    assert not refused.value.permanent
    assert engine.single_peer, "so a listener greets nobody who has no place"


def test_when_the_peer_is_gone_there_is_a_place_for_another(engine: Pair0Engine, pipe: FakePipe) -> None:
    engine.pipe_detached(pipe)
    engine.check_can_attach()
    second = FakePipe()
    engine.pipe_attached(second)
    assert engine.send(Message(b"hello"))
    assert (pipe.bodies, second.bodies) == ([], [b"hello"])
    with pytest.raises(PipeRefused):
        engine.check_can_attach()


def test_the_end_of_a_refused_peer_does_not_disturb_the_first(engine: Pair0Engine, pipe: FakePipe) -> None:
    second = FakePipe()
    with pytest.raises(PipeRefused):
        engine.pipe_attached(second)
    engine.pipe_detached(second)
    with pytest.raises(PipeRefused):
        engine.check_can_attach()
    for _ in range(5):
        engine.message_received(pipe, Message(b"in"))
    engine.pipe_detached(second)
    assert engine.send(Message(b"out"))
    assert pipe.bodies == [b"out"]
    assert received(engine) == [b"in"] * 4
    assert pipe.resumed == 1


def test_asking_for_a_place_does_not_take_it(engine: Pair0Engine) -> None:
    for _ in range(3):
        engine.check_can_attach()
    engine.pipe_attached(FakePipe())


@pytest.mark.slow
def test_nothing_is_kept_of_a_peer_that_is_gone(engine: Pair0Engine) -> None:
    pipe = FakePipe()
    engine.pipe_attached(pipe)
    for _ in range(5):
        engine.message_received(pipe, Message(b"in"))
    gone = weakref.ref(pipe)
    engine.pipe_detached(pipe)
    del pipe
    gc.collect()
    assert gone() is None


# Batches


@pytest.mark.parametrize(("room", "taken"), [(None, 3), (0, 0), (1, 1), (2, 2), (3, 3)])
def test_of_a_batch_as_many_are_sent_as_the_peer_has_room_for(engine: Pair0Engine, pipe: FakePipe, room: int | None, taken: int) -> None:
    pipe.room = room
    bodies = [b"1", b"2", b"3"]
    assert engine.send_batch([Message(body) for body in bodies]) == taken
    assert pipe.bodies == bodies[:taken]


def test_without_a_peer_nothing_of_a_batch_is_sent(engine: Pair0Engine) -> None:
    assert engine.send_batch([Message(b"1")]) == 0


def test_of_a_batch_as_many_are_received_as_there_is_room_for(engine: Pair0Engine, pipe: FakePipe) -> None:
    assert engine.takes_batches
    assert engine.messages_received(pipe, [Message(b"%d" % number) for number in range(6)]) == 4
    assert received(engine) == [b"0", b"1", b"2", b"3"]
    assert pipe.resumed == 1


# Both ways


def test_without_a_peer_a_message_waits(engine: Pair0Engine) -> None:
    assert not engine.send(Message(b"hello"))
    assert not engine.dropped


def test_messages_go_to_the_peer_in_order(engine: Pair0Engine, pipe: FakePipe) -> None:
    assert all(engine.send(Message(body)) for body in (b"1", b"2", b"3"))
    assert pipe.bodies == [b"1", b"2", b"3"]
    assert {message.header for message in pipe.taken} == {b""}


def test_a_message_waits_for_room(engine: Pair0Engine, pipe: FakePipe) -> None:
    pipe.room = 1
    assert [engine.send(Message(b"%d" % i)) for i in (1, 2, 2)] == [True, False, False]
    pipe.room = 1
    engine.pipe_has_room(pipe)
    assert pipe.bodies == [b"1"], "who waits tries again by itself"
    assert engine.send(Message(b"2"))
    assert pipe.bodies == [b"1", b"2"]
    assert not engine.dropped


def test_messages_are_received_in_order_and_wake_a_waiting_receiver(engine: Pair0Engine, pipe: FakePipe) -> None:
    woken: list[None] = []
    engine.mailbox.wake = lambda: woken.append(None)
    for body in (b"1", b"2", b"3"):
        assert engine.message_received(pipe, Message(body))
    assert len(woken) == 3
    assert engine.queued() == 3
    assert received(engine) == [b"1", b"2", b"3"]
    assert pipe.bodies == []


def test_what_a_peer_sent_before_it_went_is_received(engine: Pair0Engine, pipe: FakePipe) -> None:
    engine.message_received(pipe, Message(b"1"))
    engine.pipe_detached(pipe)
    assert received(engine) == [b"1"]


def test_a_full_inbox_holds_the_peer_back_and_drops_nothing(engine: Pair0Engine, pipe: FakePipe) -> None:
    assert [engine.message_received(pipe, Message(b"%d" % i)) for i in range(5)] == [True] * 4 + [False]
    engine.receive()
    assert pipe.resumed == 0
    engine.receive()
    assert pipe.resumed == 1
    assert engine.message_received(pipe, Message(b"4"))
    assert received(engine) == [b"2", b"3", b"4"]
    assert engine.inbox_dropped() == 0


def test_a_peer_that_is_gone_is_not_resumed(engine: Pair0Engine, pipe: FakePipe) -> None:
    for _ in range(5):
        engine.message_received(pipe, Message(b""))
    engine.pipe_detached(pipe)
    received(engine)
    assert pipe.resumed == 0


def test_no_dropping_is_ever_asked_of_it(engine: Pair0Engine) -> None:
    assert engine.hold_time == math.inf


def test_what_is_put_back_is_received_next(engine: Pair0Engine, pipe: FakePipe) -> None:
    engine.message_received(pipe, Message(b"1"))
    engine.message_received(pipe, Message(b"2"))
    message = engine.receive()
    assert message is not None
    engine.put_back(message)
    assert received(engine) == [b"1", b"2"]


def test_raw_or_not_it_takes_no_headers(engine: Pair0Engine) -> None:
    assert engine.find_body is None
    assert not engine.takes_headers


def test_it_is_its_own_counterpart() -> None:
    assert Pair0Engine.number == Pair0Engine.peer_number == 0x10
