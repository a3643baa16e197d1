"""PAIR1: one peer or several, and messages that count their hops."""

from __future__ import annotations

import gc
import math
import weakref
from typing import cast

import pytest

from sp.errors import PipeRefused
from sp.message import Message
from sp.options import SocketOptions
from sp.pipe import Pipe
from sp.protocols.pair1 import Pair1Engine, PolyPair1Engine, RawPair1Engine, hops_end
from sp.testing import FakePipe

OPTIONS = SocketOptions(inbox_limit=4)


def word(hops: int) -> bytes:
    return bytes([0, 0, 0, hops])


def make_pair(kind: type[Pair1Engine] = Pair1Engine, ttl: int = 8, room: int | None = None) -> tuple[Pair1Engine, FakePipe]:
    engine = kind(OPTIONS, ttl)
    pipe = FakePipe(room)
    engine.pipe_attached(pipe)
    return engine, pipe


def arrive(engine: Pair1Engine, pipe: FakePipe, body: bytes, hops: int = 1) -> bool:
    return engine.message_received(pipe, Message(body, word(hops), cast("Pipe", pipe)))


def received(engine: Pair1Engine) -> list[bytes]:
    bodies: list[bytes] = []
    while (message := engine.receive()) is not None:
        bodies.append(message.body)
    return bodies


# The word before the body


@pytest.mark.parametrize("hops", [0, 1, 8, 127, 128, 255])
@pytest.mark.parametrize("before", [b"", b"x", b"\xff\xff\xff\xff", b"before"])
def test_the_body_begins_behind_the_word_with_the_hops(before: bytes, hops: int) -> None:
    data = before + word(hops) + b"body"
    assert hops_end(data, len(before), len(data)) == len(before) + 4
    assert hops_end(data, len(before), len(before) + 4) == len(before) + 4, "an empty body"


@pytest.mark.parametrize("before", [b"", b"\0", b"before"])
@pytest.mark.parametrize("size", range(4))
def test_a_message_shorter_than_a_word_has_no_body(before: bytes, size: int) -> None:
    data = before + word(1)
    assert hops_end(data, len(before), len(before) + size) == -1, "whatever stands behind it"
    assert hops_end(data[: len(before) + size], len(before), len(before) + size) == -1


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("value", [1, 0x80, 0xFF])
@pytest.mark.parametrize("before", [b"", b"\0\0\0\0", b"before"])
def test_a_word_that_says_more_than_hops_is_none(place: int, value: int, before: bytes) -> None:
    broken = bytearray(word(1))
    broken[place] = value
    data = before + bytes(broken) + b"body"
    assert hops_end(data, len(before), len(data)) == -1


@pytest.mark.parametrize("kind", [Pair1Engine, RawPair1Engine, PolyPair1Engine])
def test_every_kind_splits_there(kind: type[Pair1Engine]) -> None:
    assert kind.find_body is not None
    assert kind.find_body(b"..\0\0\0\1body", 2, 10) == 6
    assert kind.find_body(b"..\0\0\1\1body", 2, 10) == -1
    assert (kind.number, kind.peer_number) == (0x11, 0x11)
    assert kind.hold_time == math.inf


# One peer, cooked


def test_a_message_leaves_with_one_hop() -> None:
    engine, pipe = make_pair()
    assert engine.send(Message(b"hello"))
    assert [(message.header, message.body) for message in pipe.taken] == [(word(1), b"hello")]


def test_a_message_that_waited_for_room_leaves_with_one_hop() -> None:
    engine, pipe = make_pair(room=0)
    message = Message(b"hello")
    assert not engine.send(message)
    assert not engine.send(message)
    pipe.room = None
    assert engine.send(message)
    assert [message.header for message in pipe.taken] == [word(1)]


@pytest.mark.parametrize("kind", [Pair1Engine, RawPair1Engine, PolyPair1Engine])
@pytest.mark.parametrize("ttl", [1, 2, 8, 254, 255])
def test_as_many_hops_as_the_ttl_are_accepted_and_not_one_more(kind: type[Pair1Engine], ttl: int) -> None:
    engine, pipe = make_pair(kind, ttl)
    for hops in (0, ttl - 1, ttl):
        assert arrive(engine, pipe, b"in", hops)
        assert received(engine) == [b"in"]
    assert not engine.dropped
    for hops in {ttl + 1, 255} & set(range(ttl + 1, 256)):
        engine.dropped.clear()
        assert arrive(engine, pipe, b"in", hops), "it is taken, and goes nowhere"
        assert engine.queued() == 0
        assert engine.dropped == {"ttl": 1}
    assert pipe.error is None, "it is not the neighbour's mistake"


def test_a_message_with_too_many_hops_is_dropped_even_when_the_inbox_is_full() -> None:
    engine, pipe = make_pair(ttl=3)
    for _ in range(4):
        assert arrive(engine, pipe, b"in")
    assert arrive(engine, pipe, b"in", 4)
    assert engine.dropped == {"ttl": 1}
    assert not arrive(engine, pipe, b"in", 3)


@pytest.mark.parametrize("kind", [Pair1Engine, RawPair1Engine])
def test_the_first_peer_stays(kind: type[Pair1Engine]) -> None:
    engine, first = make_pair(kind)
    second = FakePipe()
    with pytest.raises(PipeRefused):
        engine.check_can_attach()
    with pytest.raises(PipeRefused):
        engine.pipe_attached(second)
    engine.pipe_detached(second)
    assert engine.send(Message(b"1", word(1)))
    engine.pipe_detached(first)
    engine.check_can_attach()
    engine.pipe_attached(second)
    assert engine.send(Message(b"2", word(1)))
    assert (first.bodies, second.bodies) == ([b"1"], [b"2"])
    assert engine.single_peer


@pytest.mark.parametrize("kind", [Pair1Engine, RawPair1Engine, PolyPair1Engine])
def test_a_message_waits_for_a_peer_and_for_room(kind: type[Pair1Engine]) -> None:
    engine = kind(OPTIONS, 8)
    message = Message(b"hello", word(0))
    assert not engine.send(message)
    pipe = FakePipe(0)
    engine.pipe_attached(pipe)
    assert not engine.send(message)
    pipe.room = 1
    engine.pipe_has_room(pipe)
    assert engine.send(message)
    assert [(message.header, message.body) for message in pipe.taken] == [(word(1), b"hello")]
    assert not engine.dropped


@pytest.mark.parametrize("kind", [Pair1Engine, RawPair1Engine, PolyPair1Engine])
def test_a_full_inbox_holds_the_peer_back_and_drops_nothing(kind: type[Pair1Engine]) -> None:
    engine, pipe = make_pair(kind)
    assert [arrive(engine, pipe, b"%d" % i) for i in range(5)] == [True] * 4 + [False]
    assert received(engine) == [b"0", b"1", b"2", b"3"]
    assert pipe.resumed == 1
    assert (engine.inbox_dropped(), engine.dropped) == (0, {})


@pytest.mark.parametrize("kind", [Pair1Engine, PolyPair1Engine])
@pytest.mark.parametrize(("room", "taken"), [(None, 3), (0, 0), (2, 2)])
def test_of_a_batch_as_many_are_sent_as_the_peer_has_room_for(kind: type[Pair1Engine], room: int | None, taken: int) -> None:
    engine, pipe = make_pair(kind, room=room)
    assert engine.send_batch([Message(body) for body in (b"1", b"2", b"3")]) == taken
    assert [(message.header, message.body) for message in pipe.taken] == [(word(1), b"1"), (word(1), b"2"), (word(1), b"3")][:taken]


def test_raw_each_of_a_batch_has_made_one_hop_more() -> None:
    engine, pipe = make_pair(RawPair1Engine, room=2)
    assert engine.send_batch([Message(b"%d" % hops, word(hops)) for hops in (0, 255, 5, 6)]) == 3
    assert [(message.header, message.body) for message in pipe.taken] == [(word(1), b"0"), (word(6), b"5")]
    assert engine.dropped == {"ttl": 1}


@pytest.mark.parametrize("kind", [Pair1Engine, RawPair1Engine, PolyPair1Engine])
def test_of_many_that_come_at_once_those_with_too_many_hops_are_dropped(kind: type[Pair1Engine]) -> None:
    engine = kind(SocketOptions(inbox_limit=3), 8)
    pipe = FakePipe()
    engine.pipe_attached(pipe)
    messages = [Message(b"%d" % hops, bytes([0, 0, 0, hops])) for hops in (1, 9, 8, 255, 0, 9, 2)]
    assert engine.messages_received(pipe, []) == 0
    assert engine.messages_received(pipe, messages) == 6, "then the inbox is full"
    assert engine.dropped == {"ttl": 3}
    assert engine.receive_more(None) == [b"1", b"8", b"0"]
    assert engine.messages_received(pipe, messages[:1]) == 1
    assert engine.receive_more(None) == [b"1"]


# Raw


@pytest.mark.parametrize("hops", [0, 1, 8, 253, 254])
def test_raw_a_message_has_made_one_hop_more_when_it_is_sent_on(hops: int) -> None:
    front, arrived_by = make_pair(RawPair1Engine, 255)
    back, left_by = make_pair(RawPair1Engine, 255)
    assert arrive(front, arrived_by, b"hello", hops)
    message = front.receive()
    assert message is not None
    assert (message.header, message.pipe) == (word(hops), cast("Pipe", arrived_by)), "the application sees what came"
    assert back.send(message)
    assert [(message.header, message.body) for message in left_by.taken] == [(word(hops + 1), b"hello")]
    assert message.header == word(hops), "what was received is not changed, so that it can be put back"


def test_raw_a_message_that_waited_for_room_has_made_one_hop_more_all_the_same() -> None:
    engine, pipe = make_pair(RawPair1Engine, room=0)
    message = Message(b"hello", word(3))
    assert not engine.send(message)
    assert not engine.send(message)
    pipe.room = None
    assert engine.send(message)
    assert [message.header for message in pipe.taken] == [word(4)]


@pytest.mark.parametrize("attached", [True, False])
def test_raw_a_message_that_cannot_make_another_hop_is_dropped_and_counted(attached: bool) -> None:
    engine, pipe = make_pair(RawPair1Engine, 255)
    if not attached:
        engine.pipe_detached(pipe)
    assert engine.send(Message(b"hello", word(255)))
    assert pipe.taken == []
    assert engine.dropped == {"ttl": 1}


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        (b"", "empty"),
        (b"\0\0\1", "000001"),
        (b"\0\0\1\1", "00000101"),
        (b"\x80\0\0\1", "80000001"),
        (b"\0\0\0\1\0", "0000000100"),
        (bytes(8), "0000000000000000"),
        (b"\xff" * 100, "ff" * 64),
    ],
)
def test_raw_a_header_that_is_no_word_with_hops_is_a_mistake_that_shows_it(header: bytes, shown: str) -> None:
    engine, pipe = make_pair(RawPair1Engine)
    for refuse in (engine.send, engine.check_message):
        with pytest.raises(ValueError, match=rf"a word with the hops, from 0 to 255, not {shown}$"):
            refuse(Message(b"hello", header))
    assert pipe.taken == []
    assert not engine.dropped


def test_only_raw_takes_headers() -> None:
    assert [kind.takes_headers for kind in (Pair1Engine, RawPair1Engine, PolyPair1Engine)] == [False, True, False]


def test_raw_what_is_put_back_is_received_next_with_its_header() -> None:
    engine, pipe = make_pair(RawPair1Engine)
    arrive(engine, pipe, b"1", 5)
    arrive(engine, pipe, b"2", 6)
    message = engine.receive()
    assert message is not None
    engine.put_back(message)
    assert engine.receive() is message
    assert message.header == word(5)
    assert received(engine) == [b"2"]


# Poly


def make_poly(*rooms: int | None) -> tuple[PolyPair1Engine, list[FakePipe]]:
    engine = PolyPair1Engine(OPTIONS, 8)
    pipes = [FakePipe(room) for room in rooms]
    for pipe in pipes:
        engine.check_can_attach()
        engine.pipe_attached(pipe)
    engine.check_can_attach()
    return engine, pipes


def leave(engine: PolyPair1Engine, pipe: FakePipe) -> None:
    pipe.broken = True  # as a pipe is by the time that it is detached
    engine.pipe_detached(pipe)


def test_poly_there_is_always_a_place() -> None:
    engine, pipes = make_poly(None, None, None)
    assert all(pipe.error is None for pipe in pipes)
    assert not engine.single_peer


def test_poly_messages_of_all_peers_are_received_and_tell_whose_they_are() -> None:
    engine, pipes = make_poly(None, None)
    for pipe in (*pipes, *pipes):
        assert arrive(engine, pipe, b"in")
    messages = [engine.receive() for _ in range(4)]
    senders: list[object] = [*pipes, *pipes]
    assert [message and message.pipe for message in messages] == senders


def test_poly_a_message_goes_to_the_peer_that_it_names_and_to_no_other() -> None:
    engine, pipes = make_poly(None, None, None)
    for number in (2, 0, 1, 2):
        assert engine.lane_to(pipes[number]).send(Message(b"%d" % number))
    assert [pipe.bodies for pipe in pipes] == [[b"0"], [b"1"], [b"2", b"2"]]
    assert {message.header for pipe in pipes for message in pipe.taken} == {word(1)}


def test_poly_a_message_without_a_pipe_goes_to_the_peer_that_has_been_there_longest() -> None:
    engine, pipes = make_poly(None, None, None)
    for body in (b"1", b"2"):
        assert engine.send(Message(body))
    assert [pipe.bodies for pipe in pipes] == [[b"1", b"2"], [], []]
    assert pipes[0].taken[0].header == word(1)


def test_poly_it_waits_for_that_peer_and_takes_no_other() -> None:
    engine, (oldest, other) = make_poly(0, None)
    assert not engine.send(Message(b"1"))
    assert other.bodies == []
    oldest.room = 1
    assert engine.send(Message(b"1"))
    assert oldest.bodies == [b"1"]


def test_poly_when_the_oldest_peer_leaves_the_next_one_takes_its_place() -> None:
    engine, pipes = make_poly(None, None, None)
    leave(engine, pipes[1])
    engine.send(Message(b"to the oldest"))
    leave(engine, pipes[0])
    engine.send(Message(b"to the next"))
    back = FakePipe()
    engine.pipe_attached(back)
    engine.send(Message(b"to the same"))
    leave(engine, pipes[2])
    engine.send(Message(b"to the new one"))
    assert [pipe.bodies for pipe in (*pipes, back)] == [[b"to the oldest"], [], [b"to the next", b"to the same"], [b"to the new one"]]
    leave(engine, back)
    assert not engine.send(Message(b"to nobody"))
    assert not engine.dropped
    engine.pipe_attached(last := FakePipe())
    assert engine.send(Message(b"to somebody"))
    assert last.bodies == [b"to somebody"]


def test_poly_a_full_peer_holds_up_what_is_meant_for_it_alone() -> None:
    engine, (full, free) = make_poly(1, None)
    to_full, to_free = engine.lane_to(full), engine.lane_to(free)
    assert [to_full.send(Message(b"%d" % i)) for i in (1, 2)] == [True, False]
    assert all(to_free.send(Message(b"%d" % i)) for i in (1, 2, 3))
    full.room = 1
    assert to_full.send(Message(b"2"))
    assert (full.bodies, free.bodies) == ([b"1", b"2"], [b"1", b"2", b"3"])
    assert not engine.dropped, "where nng drops"


def test_poly_the_way_to_a_peer_is_the_same_each_time_so_that_its_messages_keep_their_order() -> None:
    engine, (first, second) = make_poly(None, None)
    assert engine.lane_to(first) is engine.lane_to(first)
    assert engine.lane_to(first) is not engine.lane_to(second)


def test_poly_what_is_meant_for_a_peer_that_is_gone_is_dropped_and_counted() -> None:
    engine, (gone, other) = make_poly(None, None)
    before = engine.lane_to(gone)
    leave(engine, gone)
    assert engine.lane_to(gone).send(Message(b"1"))
    assert before.send(Message(b"2")), "also what waited for room there"
    assert (gone.bodies, other.bodies) == ([], [])
    assert engine.dropped == {"peer gone": 2}


def test_poly_what_is_meant_for_a_peer_that_takes_nothing_any_more_is_dropped_and_counted() -> None:
    engine, (broken, _) = make_poly(None, None)
    broken.broken = True
    assert engine.lane_to(broken).send(Message(b"1"))
    assert broken.bodies == []
    assert engine.dropped == {"peer gone": 1}


def test_poly_what_is_meant_for_a_stranger_is_dropped_and_counted() -> None:
    engine, (pipe,) = make_poly(None)
    assert engine.lane_to(FakePipe()).send(Message(b"1"))
    assert pipe.bodies == []
    assert engine.dropped == {"peer gone": 1}


def test_poly_a_full_inbox_holds_all_peers_back_and_a_peer_that_is_gone_is_not_resumed() -> None:
    engine, (first, gone, last) = make_poly(None, None, None)
    for _ in range(4):
        assert arrive(engine, first, b"in")
    assert [arrive(engine, pipe, b"in") for pipe in (gone, first, last)] == [False] * 3
    leave(engine, gone)
    assert received(engine) == [b"in"] * 4
    assert [pipe.resumed for pipe in (first, gone, last)] == [1, 0, 1]


def test_poly_a_peer_that_was_never_there_may_go() -> None:
    engine, (pipe,) = make_poly(None)
    engine.pipe_detached(FakePipe())
    assert engine.send(Message(b"1"))
    assert pipe.bodies == [b"1"]


@pytest.mark.slow
def test_poly_nothing_is_kept_of_a_peer_that_is_gone() -> None:
    engine, pipes = make_poly(None, None)
    for _ in range(5):
        arrive(engine, pipes[1], b"in")
    received(engine)
    arrive(engine, pipes[1], b"in")
    received(engine)
    gone = [weakref.ref(pipe) for pipe in pipes]
    while pipes:
        leave(engine, pipes.pop())
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
