"""PUB: all subscribers get all messages, except those that do not keep up."""

from __future__ import annotations

import pytest

from sp.errors import MalformedMessage
from sp.message import Message
from sp.options import DropPolicy
from sp.protocols.pub import PubEngine
from sp.testing import FakePipe


def publisher(policy: DropPolicy, *rooms: int | None) -> tuple[PubEngine, list[FakePipe]]:
    engine = PubEngine(policy)
    pipes = [FakePipe(room) for room in rooms]
    for pipe in pipes:
        engine.pipe_attached(pipe)
    return engine, pipes


def test_every_subscriber_gets_the_message() -> None:
    engine, pipes = publisher("oldest", None, None, None)
    assert engine.send(Message(b"news"))
    assert [pipe.bodies for pipe in pipes] == [[b"news"]] * 3
    assert not engine.dropped


def test_with_newest_a_full_peer_misses_the_message_and_the_others_get_it() -> None:
    engine, (full, other) = publisher("newest", 1, None)
    for body in (b"1", b"2", b"3"):
        assert engine.send(Message(body))
    assert full.bodies == [b"1"]
    assert other.bodies == [b"1", b"2", b"3"]
    assert engine.dropped == {"peer full": 2}


def test_with_oldest_a_full_peer_misses_what_has_waited_longest_and_the_others_get_all() -> None:
    engine, (full, other) = publisher("oldest", 2, None)
    for body in (b"1", b"2", b"3"):
        assert engine.send(Message(body))
    assert full.bodies == [b"2", b"3"]
    assert other.bodies == [b"1", b"2", b"3"]
    assert engine.dropped == {"peer full": 1}


def test_every_subscriber_gets_each_message_of_a_batch() -> None:
    engine, (full, other) = publisher("newest", 1, None)
    assert engine.send_batch([Message(b"1"), Message(b"2"), Message(b"3")]) == 3
    assert (full.bodies, other.bodies) == ([b"1"], [b"1", b"2", b"3"])
    assert engine.dropped == {"peer full": 2}


class PipeForTwo(FakePipe):
    """Takes one big message or two small ones."""

    def offer(self, message: Message) -> bool:
        if self.taken and sum(map(len, self.bodies)) + len(message.body) > 2:
            return False
        return super().offer(message)


def test_with_oldest_as_many_go_as_the_new_one_needs_and_each_is_counted() -> None:
    engine = PubEngine("oldest")
    pipe = PipeForTwo()
    engine.pipe_attached(pipe)
    for body in (b"1", b"2", b"33"):
        engine.send(Message(body))
    assert pipe.bodies == [b"33"]
    assert engine.dropped == {"peer full": 2}


@pytest.mark.parametrize("policy", ["oldest", "newest"])
def test_a_peer_that_takes_nothing_at_all_misses_the_message(policy: DropPolicy) -> None:
    engine, (pipe,) = publisher(policy, 0)
    assert engine.send(Message(b"news"))
    assert pipe.bodies == []
    assert engine.dropped == {"peer full": 1}


def test_a_message_without_a_peer_is_counted() -> None:
    engine, _ = publisher("oldest")
    assert engine.send(Message(b"news"))
    assert engine.dropped == {"no peer": 1}


def test_a_subscriber_that_is_gone_gets_nothing() -> None:
    engine, (gone, other) = publisher("oldest", None, None)
    engine.pipe_detached(gone)
    engine.send(Message(b"news"))
    assert (gone.bodies, other.bodies) == ([], [b"news"])


def test_a_subscriber_that_was_never_attached_may_go() -> None:
    engine, (pipe,) = publisher("oldest", None)
    engine.pipe_detached(FakePipe())
    engine.send(Message(b"news"))
    assert pipe.bodies == [b"news"]


def test_it_hangs_up_on_a_subscriber_that_sends_and_on_no_other() -> None:
    engine, (bad, good) = publisher("oldest", None, None)
    assert engine.message_received(bad, Message(b"hello"))
    assert isinstance(bad.error, MalformedMessage)
    assert good.error is None
    assert engine.queued() == 0


def test_it_is_the_counterpart_of_sub() -> None:
    assert (PubEngine.number, PubEngine.peer_number) == (0x20, 0x21)
