"""REP: each answer goes back the way that its request came."""

from __future__ import annotations

from typing import cast

import pytest

from sp.errors import StateError
from sp.message import Message
from sp.options import SocketOptions
from sp.pipe import Pipe
from sp.protocols.rep import RepEngine
from sp.testing import FakePipe

ID = b"\x80\0\0\1"
HOP = b"\0\0\0\7"


@pytest.fixture
def engine() -> RepEngine:
    return RepEngine(SocketOptions(inbox_limit=4), ttl=8)


@pytest.fixture
def pipe(engine: RepEngine) -> FakePipe:
    pipe = FakePipe()
    engine.pipe_attached(pipe)
    return pipe


def request(pipe: FakePipe, body: bytes = b"question", header: bytes = ID) -> Message:
    return Message(body, header, cast("Pipe", pipe))


def test_the_answer_goes_to_the_peer_that_asked(engine: RepEngine, pipe: FakePipe) -> None:
    other = FakePipe()
    engine.pipe_attached(other)
    engine.message_received(pipe, request(pipe))
    context = engine.open_context()
    received = context.receive()
    assert received is not None
    assert received.body == b"question"
    assert context.send(Message(b"answer"))
    assert (pipe.bodies, other.bodies) == ([b"answer"], [])


@pytest.mark.parametrize("hops", range(8))
def test_the_header_is_carried_back_unchanged(engine: RepEngine, pipe: FakePipe, hops: int) -> None:
    header = HOP * hops + ID
    engine.message_received(pipe, request(pipe, header=header))
    context = engine.open_context()
    context.receive()
    context.send(Message(b"answer"))
    assert pipe.taken[0].header == header


@pytest.mark.parametrize("ttl", [1, 8, 255])
def test_a_request_with_more_hops_than_the_ttl_is_dropped_and_counted(ttl: int) -> None:
    engine = RepEngine(SocketOptions(), ttl)
    pipe = FakePipe()
    engine.pipe_attached(pipe)
    assert engine.message_received(pipe, request(pipe, header=HOP * ttl + ID))
    assert engine.queued() == 0
    assert engine.dropped == {"ttl": 1}
    assert pipe.error is None
    assert engine.message_received(pipe, request(pipe, header=HOP * (ttl - 1) + ID))
    assert engine.queued() == 1


def test_answering_without_a_request_is_a_mistake(engine: RepEngine) -> None:
    with pytest.raises(StateError, match="receive one first"):
        engine.open_context().send(Message(b"answer"))


def test_answering_twice_is_a_mistake(engine: RepEngine, pipe: FakePipe) -> None:
    engine.message_received(pipe, request(pipe))
    context = engine.open_context()
    context.receive()
    context.send(Message(b"answer"))
    with pytest.raises(StateError):
        context.send(Message(b"another"))
    assert pipe.bodies == [b"answer"]


def test_an_answer_that_its_requester_has_no_room_for_can_be_repeated(engine: RepEngine, pipe: FakePipe) -> None:
    engine.message_received(pipe, request(pipe))
    context = engine.open_context()
    context.receive()
    pipe.room = 0
    assert not context.send(Message(b"answer"))
    assert not context.send(Message(b"answer"))
    pipe.room = 1
    assert context.send(Message(b"answer"))
    assert pipe.bodies == [b"answer"]


def test_an_answer_to_a_requester_that_is_gone_is_dropped_and_counted(engine: RepEngine, pipe: FakePipe) -> None:
    engine.message_received(pipe, request(pipe))
    context = engine.open_context()
    context.receive()
    engine.pipe_detached(pipe)
    assert context.send(Message(b"answer"))
    assert pipe.bodies == []
    assert engine.dropped == {"requester gone": 1}
    with pytest.raises(StateError):
        context.send(Message(b"answer"))


def test_a_request_of_a_peer_that_has_left_can_be_received(engine: RepEngine, pipe: FakePipe) -> None:
    engine.message_received(pipe, request(pipe))
    engine.pipe_detached(pipe)
    assert engine.open_context().receive() is not None


def test_contexts_share_the_queue_and_answer_in_any_order(engine: RepEngine, pipe: FakePipe) -> None:
    for number in range(3):
        engine.message_received(pipe, request(pipe, b"%d" % number, bytes([0x80, 0, 0, number])))
    contexts = [engine.open_context() for _ in range(4)]
    received = [context.receive() for context in contexts]
    assert [message and message.body for message in received] == [b"0", b"1", b"2", None]
    for number in (2, 0, 1):
        contexts[number].send(Message(b"re: %d" % number))
    assert [(message.header[3], message.body) for message in pipe.taken] == [(2, b"re: 2"), (0, b"re: 0"), (1, b"re: 1")]


def test_a_request_that_was_not_answered_is_given_up_by_the_next_receive(engine: RepEngine, pipe: FakePipe) -> None:
    for number in range(2):
        engine.message_received(pipe, request(pipe, b"", bytes([0x80, 0, 0, number])))
    context = engine.open_context()
    context.receive()
    context.receive()
    context.send(Message(b"answer"))
    assert [message.header[3] for message in pipe.taken] == [1]
    with pytest.raises(StateError):
        context.send(Message(b"another"))


def test_a_requester_with_too_many_replies_waiting_is_held_and_stands_in_nobodys_way(engine: RepEngine, pipe: FakePipe) -> None:
    other = FakePipe()
    engine.pipe_attached(other)
    for _ in range(4):
        assert engine.message_received(other, request(other))
    assert not engine.message_received(pipe, request(pipe)), "the inbox is full"
    assert not engine.message_received(other, request(other))
    engine.pipe_congested(pipe)
    for _ in range(4):
        engine.open_context().receive()
    assert (pipe.resumed, other.resumed) == (0, 1), "it does not take the place of one that can deliver"
    assert not engine.message_received(pipe, request(pipe))
    assert engine.message_received(other, request(other))
    engine.pipe_relieved(pipe)
    assert pipe.resumed == 1
    assert engine.message_received(pipe, request(pipe))


def test_a_reply_that_waited_belongs_to_its_request(engine: RepEngine, pipe: FakePipe) -> None:
    other = FakePipe()
    engine.pipe_attached(other)
    for asking in (pipe, other, other):
        engine.message_received(asking, request(asking))
    context, answer = engine.open_context(), Message(b"answer")
    context.receive()
    assert context.pipe_for(answer) is pipe
    for _ in range(2):  # the same header, by another pipe
        context.receive()
        with pytest.raises(StateError, match="given up while its reply waited"):
            context.send(answer)
    assert context.send(Message(b"another answer"))
    assert (pipe.bodies, other.bodies) == ([], [b"another answer"])


def test_a_reply_that_waited_does_not_answer_the_next_request_of_the_same_peer(engine: RepEngine, pipe: FakePipe) -> None:
    next_id = b"\x80\0\0\x07"
    engine.message_received(pipe, request(pipe))
    engine.message_received(pipe, request(pipe, header=next_id))
    context, answer = engine.open_context(), Message(b"answer")
    context.receive()
    assert context.pipe_for(answer) is pipe
    context.receive()
    with pytest.raises(StateError, match="given up while its reply waited"):
        context.send(answer)
    assert context.send(Message(b"another answer"))
    assert [(message.header, message.body) for message in pipe.taken] == [(next_id, b"another answer")]


def test_a_reply_without_a_request_has_nowhere_to_wait(engine: RepEngine) -> None:
    with pytest.raises(StateError, match="receive one first"):
        engine.open_context().pipe_for(Message(b"answer"))


def test_a_receive_that_finds_nothing_gives_nothing_up(engine: RepEngine, pipe: FakePipe) -> None:
    engine.message_received(pipe, request(pipe))
    context = engine.open_context()
    context.receive()
    assert context.receive() is None
    assert context.send(Message(b"answer"))
    assert pipe.bodies == [b"answer"]


def test_a_closed_context_leaves_its_request_unanswered_and_the_queue_to_the_others(engine: RepEngine, pipe: FakePipe) -> None:
    engine.message_received(pipe, request(pipe, b"first"))
    engine.message_received(pipe, request(pipe, b"second"))
    context = engine.open_context()
    context.receive()
    context.close()
    with pytest.raises(StateError):
        context.send(Message(b"answer"))
    assert pipe.bodies == []
    assert engine.queued() == 1
    received = engine.open_context().receive()
    assert received is not None
    assert received.body == b"second"


def test_a_full_inbox_holds_the_pipe_back_and_drops_nothing(engine: RepEngine, pipe: FakePipe) -> None:
    for _ in range(4):
        assert engine.message_received(pipe, request(pipe))
    assert not engine.message_received(pipe, request(pipe))
    assert engine.queued() == 4
    context = engine.open_context()
    context.receive()
    assert pipe.resumed == 0
    context.receive()
    assert pipe.resumed == 1
    assert engine.message_received(pipe, request(pipe))
    assert not engine.dropped


def test_a_pipe_that_is_gone_is_not_resumed(engine: RepEngine, pipe: FakePipe) -> None:
    for _ in range(5):
        engine.message_received(pipe, request(pipe))
    engine.pipe_detached(pipe)
    context = engine.open_context()
    while context.receive():
        pass
    assert pipe.resumed == 0


def test_a_request_wakes_a_waiting_receiver(engine: RepEngine, pipe: FakePipe) -> None:
    woken: list[None] = []
    engine.open_context().mailbox.wake = lambda: woken.append(None)
    engine.message_received(pipe, request(pipe))
    assert len(woken) == 1


def test_no_dropping_is_ever_asked_of_it(engine: RepEngine) -> None:
    assert engine.hold_time == float("inf")


def test_it_is_the_counterpart_of_req(engine: RepEngine) -> None:
    assert (engine.number, engine.peer_number) == (0x31, 0x30)
