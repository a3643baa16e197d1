"""BUS: to all neighbours that keep up."""

from __future__ import annotations

import pytest

from sp.message import Message
from sp.options import DropPolicy, SocketOptions
from sp.protocols.bus import BusEngine
from sp.testing import FakePipe


def make_bus(*rooms: int | None, policy: DropPolicy = "newest", limit: int = 4) -> tuple[BusEngine, list[FakePipe]]:
    engine = BusEngine(SocketOptions(inbox_limit=limit), policy)
    pipes = [FakePipe(room) for room in rooms]
    for pipe in pipes:
        engine.pipe_attached(pipe)
    return engine, pipes


def received(engine: BusEngine) -> list[bytes]:
    bodies: list[bytes] = []
    while (message := engine.receive()) is not None:
        bodies.append(message.body)
    return bodies


def test_every_peer_gets_the_message() -> None:
    engine, pipes = make_bus(None, None, None)
    assert engine.send(Message(b"hello"))
    assert [pipe.bodies for pipe in pipes] == [[b"hello"]] * 3
    assert not engine.dropped


def test_a_full_peer_misses_the_message_and_the_others_get_it() -> None:
    engine, (full, other) = make_bus(1, None)
    for body in (b"1", b"2", b"3"):
        assert engine.send(Message(body))
    assert full.bodies == [b"1"]
    assert other.bodies == [b"1", b"2", b"3"]
    assert engine.dropped == {"peer full": 2}


def test_every_peer_gets_each_message_of_a_batch_that_it_has_room_for() -> None:
    engine, (full, other) = make_bus(1, None)
    assert engine.send_batch([Message(b"1"), Message(b"2"), Message(b"3")]) == 3
    assert (full.bodies, other.bodies) == ([b"1"], [b"1", b"2", b"3"])
    assert engine.dropped == {"peer full": 2}


def test_a_message_without_a_peer_is_counted() -> None:
    engine, _ = make_bus()
    assert engine.send(Message(b"hello"))
    assert engine.dropped == {"no peer": 1}


def test_a_peer_that_is_gone_gets_nothing() -> None:
    engine, (gone, other) = make_bus(None, None)
    engine.pipe_detached(gone)
    engine.pipe_detached(FakePipe())
    engine.send(Message(b"hello"))
    assert (gone.bodies, other.bodies) == ([], [b"hello"])


def test_what_comes_in_is_received_and_not_forwarded() -> None:
    engine, (first, second) = make_bus(None, None)
    assert engine.message_received(first, Message(b"1"))
    assert engine.message_received(second, Message(b"2"))
    assert engine.queued() == 2
    assert received(engine) == [b"1", b"2"]
    assert first.bodies == second.bodies == []


def test_a_message_wakes_a_waiting_receiver() -> None:
    engine, (pipe,) = make_bus(None)
    woken: list[None] = []
    engine.mailbox.wake = lambda: woken.append(None)
    engine.message_received(pipe, Message(b"hello"))
    assert len(woken) == 1


def test_a_full_inbox_holds_the_pipe_back_until_half_of_it_is_free() -> None:
    engine, (pipe,) = make_bus(None)
    assert [engine.message_received(pipe, Message(b"%d" % i)) for i in range(5)] == [True] * 4 + [False]
    engine.receive()
    assert pipe.resumed == 0
    engine.receive()
    assert pipe.resumed == 1
    assert engine.inbox_dropped() == 0


def test_a_pipe_that_is_gone_is_not_resumed() -> None:
    engine, (pipe,) = make_bus(None, limit=1)
    engine.message_received(pipe, Message(b"1"))
    engine.message_received(pipe, Message(b"2"))
    engine.pipe_detached(pipe)
    assert received(engine) == [b"1"]
    assert pipe.resumed == 0


@pytest.mark.parametrize(("policy", "kept"), [("oldest", [b"2", b"3"]), ("newest", [b"1", b"2"])])
def test_an_overdue_message_is_taken_and_one_is_dropped_and_counted(policy: DropPolicy, kept: list[bytes]) -> None:
    engine, (pipe,) = make_bus(None, policy=policy, limit=2)
    for body in (b"1", b"2"):
        engine.message_received(pipe, Message(body))
    engine.force_message(pipe, Message(b"3"))
    assert received(engine) == kept
    assert engine.inbox_dropped() == 1


def test_it_holds_a_pipe_back_for_a_tenth_of_a_second_before_anything_is_dropped() -> None:
    assert BusEngine.hold_time == pytest.approx(0.1)


def test_it_is_its_own_counterpart() -> None:
    assert BusEngine.number == BusEngine.peer_number == 0x70
