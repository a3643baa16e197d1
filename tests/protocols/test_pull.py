"""PULL: from all peers alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from itertools import repeat

import pytest

from sp.message import Message
from sp.options import SocketOptions
from sp.protocols.pull import PullEngine
from sp.testing import FakePipe


def make_pull(count: int = 1, limit: int = 4, size: int = 1000) -> tuple[PullEngine, list[FakePipe]]:
    engine = PullEngine(SocketOptions(inbox_limit=limit, inbox_bytes=size))
    pipes = [FakePipe() for _ in range(count)]
    for pipe in pipes:
        engine.pipe_attached(pipe)
    return engine, pipes


def arrive(engine: PullEngine, pipe: FakePipe, *bodies: bytes) -> list[bool]:
    return [engine.message_received(pipe, Message(body)) for body in bodies]


def received(engine: PullEngine) -> list[bytes]:
    bodies: list[bytes] = []
    while (message := engine.receive()) is not None:
        bodies.append(message.body)
    return bodies


def test_messages_are_received_in_the_order_in_which_they_came() -> None:
    engine, (first, second) = make_pull(2)
    arrive(engine, first, b"1")
    arrive(engine, second, b"2")
    arrive(engine, first, b"3")
    assert engine.queued() == 3
    assert received(engine) == [b"1", b"2", b"3"]
    assert engine.queued() == 0


def test_a_message_wakes_a_waiting_receiver() -> None:
    engine, (pipe,) = make_pull()
    woken: list[None] = []
    engine.mailbox.wake = lambda: woken.append(None)
    arrive(engine, pipe, b"1")
    assert len(woken) == 1


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_a_full_inbox_holds_the_pipe_back_and_drops_nothing(limit: int) -> None:
    engine, (pipe,) = make_pull(limit=limit)
    assert arrive(engine, pipe, *[b""] * (limit + 1)) == [True] * limit + [False]
    assert pipe.resumed == 0
    assert received(engine) == [b""] * limit
    assert pipe.resumed == 1
    assert (engine.inbox_dropped(), engine.dropped) == (0, {})


def test_an_inbox_that_is_full_by_its_bytes_holds_the_pipe_back() -> None:
    engine, (pipe,) = make_pull(size=10)
    assert arrive(engine, pipe, bytes(10), b"x") == [True, False]
    assert received(engine) == [bytes(10)]
    assert arrive(engine, pipe, b"x") == [True]


def test_a_batch_is_taken_as_far_as_there_is_room() -> None:
    engine, (pipe,) = make_pull()
    assert engine.takes_batches
    assert engine.messages_received(pipe, [Message(b"%d" % number) for number in range(6)]) == 4
    assert received(engine) == [b"0", b"1", b"2", b"3"]
    assert pipe.resumed == 1
    assert engine.messages_received(pipe, [Message(b"4"), Message(b"5")]) == 2


def test_no_dropping_is_ever_asked_of_it() -> None:
    engine, _ = make_pull()
    assert engine.hold_time == math.inf


def test_a_pipe_that_is_gone_is_not_resumed_and_the_next_one_is() -> None:
    engine, (gone, other) = make_pull(2, limit=1)
    arrive(engine, gone, b"1", b"2")
    arrive(engine, other, b"3")
    engine.pipe_detached(gone)
    assert received(engine) == [b"1"], "what came before it went is received"
    assert (gone.resumed, other.resumed) == (0, 1)


def test_receiving_many_at_once_returns_all_or_as_many_as_were_asked_for() -> None:
    engine, (pipe,) = make_pull()
    arrive(engine, pipe, b"1", b"2", b"3", b"4", b"5")
    assert engine.receive_more(1) == [b"1"]
    assert pipe.resumed == 0
    assert engine.receive_more(1) == [b"2"]
    assert pipe.resumed == 1
    assert engine.receive_more(None) == [b"3", b"4"]
    assert engine.receive_more(None) == []


def test_what_is_put_back_is_received_next() -> None:
    engine, (pipe,) = make_pull()
    arrive(engine, pipe, b"1", b"2")
    message = engine.receive()
    assert message is not None
    engine.put_back(message)
    assert engine.queued() == 2
    assert received(engine) == [b"1", b"2"]


# Fairness


class Peer(FakePipe):
    """A pipe as the shell drives it: resumed, it delivers one, lets the others do the same, and
    then delivers until it is refused.
    """

    def __init__(self, engine: PullEngine, resumed: list[Peer], bodies: Iterable[bytes]) -> None:
        super().__init__()
        self.engine = engine
        self.resumed_ones = resumed
        self.to_come = iter(bodies)
        self.held: bytes | None = None
        engine.pipe_attached(self)

    def resume(self) -> None:
        super().resume()
        self.resumed_ones.append(self)

    def deliver(self) -> bool:
        """Deliver one; False: there is none, or it is held."""
        body = self.held if self.held is not None else next(self.to_come, None)
        taken = body is not None and self.engine.message_received(self, Message(body))
        self.held = None if taken else body
        return taken

    def deliver_all(self) -> None:
        while self.deliver():
            pass


def receive_from(engine: PullEngine, resumed: list[Peer], count: int) -> bytes:
    """Receive *count* messages, and let the peers deliver more in between."""
    received = b""
    for _ in range(count):
        message = engine.receive()
        assert message is not None
        received += message.body
        turns = resumed[:]
        resumed.clear()
        for peer in turns:
            peer.deliver()
        for peer in turns:
            if peer.held is None:
                peer.deliver_all()
    return received


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize("others", [1, 3, 7])
def test_a_peer_that_floods_gets_no_more_than_its_turn_and_what_nobody_else_wants(limit: int, others: int) -> None:
    engine, _ = make_pull(0, limit)
    resumed: list[Peer] = []
    Peer(engine, resumed, repeat(b"~")).deliver_all()
    assert engine.queued() == limit
    names = b"0123456"[:others]
    for name in names:
        Peer(engine, resumed, [bytes([name])] * 10).deliver_all()
    places = max(limit - limit // 2, others + 1)  # that are given away at a time
    order = receive_from(engine, resumed, limit + 10 * places)
    assert order[:limit] == b"~" * limit, "what it had got in before the others came"
    for turn in range(10):
        given = order[limit + turn * places :][:places]
        assert Counter(given) == Counter(names + b"~" * (places - others))


@pytest.mark.parametrize("limit", [1, 2, 4, 7])
def test_peers_that_are_held_back_deliver_in_turn(limit: int) -> None:
    engine, _ = make_pull(0, limit)
    resumed: list[Peer] = []
    for name in b"abcd":
        Peer(engine, resumed, repeat(bytes([name]))).deliver_all()
    assert receive_from(engine, resumed, limit + 40) == b"a" * limit + b"abcd" * 10


def test_raw_or_not_it_takes_no_headers() -> None:
    engine, _ = make_pull()
    assert engine.find_body is None
    assert not engine.takes_headers


def test_it_is_the_counterpart_of_push() -> None:
    assert (PullEngine.number, PullEngine.peer_number) == (0x51, 0x50)
