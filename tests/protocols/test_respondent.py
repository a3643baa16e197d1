"""RESPONDENT: each answer goes back the way that its survey came."""

from __future__ import annotations

import math
from typing import cast

import pytest

from sp.errors import StateError
from sp.message import Message
from sp.options import SocketOptions
from sp.pipe import Pipe
from sp.protocols.respondent import RespondentEngine
from sp.testing import FakePipe

ID = b"\x80\0\0\1"
HOP = b"\0\0\0\7"


def make_engine(ttl: int = 8) -> tuple[RespondentEngine, FakePipe]:
    engine = RespondentEngine(SocketOptions(inbox_limit=4), ttl)
    pipe = FakePipe()
    engine.pipe_attached(pipe)
    return engine, pipe


def survey(pipe: FakePipe, body: bytes = b"who?", header: bytes = ID) -> Message:
    return Message(body, header, cast("Pipe", pipe))


def test_the_answer_goes_to_the_peer_that_asked() -> None:
    engine, pipe = make_engine()
    other = FakePipe()
    engine.pipe_attached(other)
    engine.message_received(pipe, survey(pipe))
    context = engine.open_context()
    received = context.receive()
    assert received is not None
    assert received.body == b"who?"
    assert context.send(Message(b"me"))
    assert (pipe.bodies, other.bodies) == ([b"me"], [])


@pytest.mark.parametrize("hops", range(8))
def test_the_backtrace_is_carried_back_unchanged(hops: int) -> None:
    engine, pipe = make_engine()
    header = b"".join(bytes([0, 0, 0, hop]) for hop in range(hops)) + ID
    engine.message_received(pipe, survey(pipe, header=header))
    context = engine.open_context()
    context.receive()
    context.send(Message(b"me"))
    assert [message.header for message in pipe.taken] == [header]


@pytest.mark.parametrize("ttl", [1, 2, 8, 255])
def test_as_many_words_as_the_ttl_are_accepted_and_not_one_more(ttl: int) -> None:
    engine, pipe = make_engine(ttl)
    words = [words for words in (ttl - 1, ttl, ttl + 1) if words]
    for count in words:
        assert engine.message_received(pipe, survey(pipe, header=HOP * (count - 1) + ID)), "it is taken, be it to go nowhere"
    assert engine.queued() == len(words) - 1
    assert engine.dropped == {"ttl": 1}
    assert pipe.error is None


def test_a_survey_without_the_end_of_its_backtrace_has_no_body() -> None:
    assert RespondentEngine.find_body is not None
    assert RespondentEngine.find_body(HOP + HOP, 0, 8) == -1
    assert RespondentEngine.find_body(HOP + ID + b"who?", 0, 12) == 8


def test_answering_without_a_survey_is_a_mistake() -> None:
    engine, pipe = make_engine()
    context = engine.open_context()
    with pytest.raises(StateError, match="RESPONDENT has no survey to answer: receive one first"):
        context.send(Message(b"me"))
    engine.message_received(pipe, survey(pipe))
    context.receive()
    context.send(Message(b"me"))
    with pytest.raises(StateError, match="RESPONDENT"):
        context.send(Message(b"me again"))
    assert pipe.bodies == [b"me"]


def test_an_answer_waits_for_a_surveyor_that_has_no_room() -> None:
    engine, pipe = make_engine()
    engine.message_received(pipe, survey(pipe))
    context = engine.open_context()
    context.receive()
    pipe.room = 0
    assert not context.send(Message(b"me"))
    pipe.room = 1
    assert context.send(Message(b"me"))
    assert [(message.header, message.body) for message in pipe.taken] == [(ID, b"me")]
    assert not engine.dropped


@pytest.mark.parametrize("how", ["gone", "broken"])
def test_an_answer_to_a_surveyor_that_is_gone_is_dropped_and_counted(how: str) -> None:
    engine, pipe = make_engine()
    engine.message_received(pipe, survey(pipe))
    context = engine.open_context()
    context.receive()
    if how == "gone":
        engine.pipe_detached(pipe)
    pipe.broken = how == "broken"
    assert context.send(Message(b"me"))
    assert pipe.bodies == []
    assert engine.dropped == {"requester gone": 1}


def test_a_survey_need_not_be_answered() -> None:
    engine, pipe = make_engine()
    for body in (b"1", b"2"):
        engine.message_received(pipe, survey(pipe, body))
    context = engine.open_context()
    context.receive()
    received = context.receive()
    assert received is not None
    assert received.body == b"2"
    context.send(Message(b"re: 2"))
    context.close()
    assert pipe.bodies == [b"re: 2"]


def test_contexts_share_the_queue_and_answer_in_any_order() -> None:
    engine, pipe = make_engine()
    for number in range(3):
        engine.message_received(pipe, survey(pipe, b"%d" % number, bytes([0x80, 0, 0, number])))
    contexts = [engine.open_context() for _ in range(3)]
    for context in contexts:
        context.receive()
    for number in (2, 0, 1):
        contexts[number].send(Message(b"re: %d" % number))
    assert [(message.header[3], message.body) for message in pipe.taken] == [(2, b"re: 2"), (0, b"re: 0"), (1, b"re: 1")]


def test_a_full_inbox_holds_the_surveyor_back_and_drops_nothing() -> None:
    engine, pipe = make_engine()
    assert [engine.message_received(pipe, survey(pipe)) for _ in range(5)] == [True] * 4 + [False]
    context = engine.open_context()
    for _ in range(2):
        context.receive()
    assert pipe.resumed == 1
    assert engine.message_received(pipe, survey(pipe))
    assert not engine.dropped
    assert engine.hold_time == math.inf


def test_it_is_the_counterpart_of_surveyor() -> None:
    assert (RespondentEngine.number, RespondentEngine.peer_number) == (0x63, 0x62)
