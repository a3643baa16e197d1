"""Raw engines: messages bring their headers with them, and nothing is matched."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any, cast

import pytest

from sp.message import Message
from sp.options import DropPolicy, SocketOptions
from sp.pipe import Pipe
from sp.protocols.backtrace import MAX_WORDS, word_of
from sp.protocols.bus import RawBusEngine
from sp.protocols.rep import RawRepEngine
from sp.protocols.req import RawReqEngine
from sp.protocols.respondent import RawRespondentEngine
from sp.protocols.surveyor import RawSurveyorEngine
from sp.testing import FakePipe

OPTIONS = SocketOptions(inbox_limit=4)
ID = b"\x80\0\0\1"
HOP = b"\0\0\0\7"
FAR = b"\x7f\xff\xff\xff"
"""A word that stands for no pipe of ours."""

ASKING = [RawReqEngine, RawSurveyorEngine]
ANSWERING = [RawRepEngine, RawRespondentEngine]


def make(kind: type, *rooms: int | None, ttl: int = 8, policy: DropPolicy = "newest") -> tuple[Any, list[FakePipe]]:
    more = [ttl] if kind in ANSWERING else [policy] if kind is RawBusEngine else []
    engine = kind(OPTIONS, *more)
    pipes = [FakePipe(room) for room in rooms]
    for pipe in pipes:
        engine.pipe_attached(pipe)
    return engine, pipes


def arrive(engine: Any, pipe: FakePipe, body: bytes, header: bytes = ID) -> bool:
    taken: bool = engine.message_received(pipe, Message(body, header, cast("Pipe", pipe)))
    return taken


def received(engine: Any) -> list[tuple[bytes, bytes]]:
    messages: list[tuple[bytes, bytes]] = []
    while (message := engine.receive()) is not None:
        messages.append((message.header, message.body))
    return messages


def taken(pipe: FakePipe) -> list[tuple[bytes, bytes]]:
    return [(message.header, message.body) for message in pipe.taken]


# What they all do


@pytest.mark.parametrize("kind", [*ASKING, *ANSWERING, RawBusEngine])
def test_messages_to_be_sent_bring_their_header(kind: type) -> None:
    engine, _ = make(kind)
    assert engine.takes_headers
    assert not engine.timed
    assert not engine.sends_again
    assert engine.next_deadline() is None


@pytest.mark.parametrize("kind", [*ASKING, *ANSWERING])
def test_a_full_inbox_holds_the_peer_back_and_drops_nothing(kind: type) -> None:
    engine, (pipe,) = make(kind, None)
    assert [arrive(engine, pipe, b"%d" % number) for number in range(5)] == [True] * 4 + [False]
    assert engine.queued() == 4
    engine.receive()
    assert pipe.resumed == 0
    engine.receive()
    assert pipe.resumed == 1
    assert arrive(engine, pipe, b"4")
    assert [body for _, body in received(engine)] == [b"2", b"3", b"4"]
    assert (engine.inbox_dropped(), engine.dropped) == (0, {})
    assert engine.hold_time == math.inf


@pytest.mark.parametrize("kind", [*ASKING, *ANSWERING, RawBusEngine])
def test_a_message_wakes_a_waiting_receiver_and_names_its_pipe(kind: type) -> None:
    engine, pipes = make(kind, None, None)
    woken: list[None] = []
    engine.mailbox.wake = lambda: woken.append(None)
    for pipe in pipes:
        arrive(engine, pipe, b"hello")
    assert len(woken) == 2
    assert [engine.receive().pipe for _ in pipes] == pipes


@pytest.mark.parametrize("kind", [*ASKING, *ANSWERING, RawBusEngine])
def test_what_is_put_back_is_received_next_as_it_was(kind: type) -> None:
    engine, (pipe,) = make(kind, None)
    for body in (b"1", b"2"):
        arrive(engine, pipe, body)
    message = engine.receive()
    header = message.header
    engine.put_back(message)
    assert engine.queued() == 2
    assert engine.receive() is message
    assert message.header == header
    assert [body for _, body in received(engine)] == [b"2"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*ASKING, *ANSWERING, RawBusEngine])
def test_a_pipe_that_is_gone_is_not_resumed_and_nothing_is_kept_of_it(kind: type) -> None:
    engine, pipes = make(kind, None, None)
    gone = pipes.pop(0)
    for _ in range(5):
        arrive(engine, gone, b"hello")
    arrive(engine, pipes[0], b"hello")
    engine.pipe_detached(gone)
    engine.pipe_detached(FakePipe())
    received(engine)
    assert (gone.resumed, pipes[0].resumed) == (0, 1)
    reference = weakref.ref(gone)
    del gone
    gc.collect()
    assert reference() is None


BROKEN_BACKTRACES = [
    (b"", "empty"),
    (ID[:3], "800000"),
    (HOP, "00000007"),
    (HOP + HOP, "0000000700000007"),
    (ID + b"\0", "8000000100"),
    (ID + HOP, "8000000100000007"),
    (ID + ID, "8000000180000001"),
    (HOP + ID + HOP, "000000078000000100000007"),
    (HOP * MAX_WORDS + ID, "00000007" * 16),
]


@pytest.mark.parametrize("kind", [*ASKING, *ANSWERING])
@pytest.mark.parametrize(("header", "shown"), BROKEN_BACKTRACES)
@pytest.mark.parametrize("attached", [True, False])
def test_a_header_that_is_no_backtrace_is_a_mistake_that_shows_it(kind: type, header: bytes, shown: str, attached: bool) -> None:
    engine, pipes = make(kind, *[None] * attached)
    for refuse in (engine.send, engine.check_message):
        with pytest.raises(ValueError, match=rf"backtrace, 32-bit words of which the last one alone has its high bit set, not {shown}$"):
            refuse(Message(b"hello", header))
    assert not any(pipe.taken for pipe in pipes)
    assert not engine.dropped


@pytest.mark.parametrize("kind", [*ASKING, *ANSWERING])
@pytest.mark.parametrize("words", [1, 2, MAX_WORDS])
def test_a_backtrace_of_any_length_may_be_sent(kind: type, words: int) -> None:
    engine, (pipe,) = make(kind, None)
    header = (word_of(pipe) + HOP * words)[: 4 * (words - 1)] + ID
    engine.check_message(Message(b"hello", header))
    assert engine.send(Message(b"hello", header))
    popped = kind in ANSWERING
    assert taken(pipe) == ([] if popped and words == 1 else [(header[4 * popped :], b"hello")])


# Raw REP and raw RESPONDENT


@pytest.mark.parametrize("kind", ANSWERING)
def test_the_id_of_the_pipe_is_pushed_when_a_message_comes_and_popped_when_it_goes_back(kind: type) -> None:
    engine, (pipe, other) = make(kind, None, None)
    arrive(engine, pipe, b"question", HOP + ID)
    request = engine.receive()
    assert (request.header, request.body) == (word_of(pipe) + HOP + ID, b"question")
    assert request.header[0] < 0x80, "it does not end the backtrace"
    assert engine.send(Message(b"answer", request.header))
    assert (taken(pipe), taken(other)) == ([(HOP + ID, b"answer")], [])
    assert request.header == word_of(pipe) + HOP + ID


@pytest.mark.parametrize("kind", ANSWERING)
def test_any_number_of_requests_are_under_way_and_answered_in_any_order_any_number_of_times(kind: type) -> None:
    engine, pipes = make(kind, None, None)
    for number, pipe in enumerate((*pipes, *pipes)):
        arrive(engine, pipe, b"", bytes([0x80, 0, 0, number]))
    headers = [header for header, _ in received(engine)]
    for number in (3, 0, 1, 2, 0):
        engine.send(Message(b"re: %d" % number, headers[number]))
    assert [pipe.bodies for pipe in pipes] == [[b"re: 0", b"re: 2", b"re: 0"], [b"re: 3", b"re: 1"]]
    assert [message.header[3] for message in pipes[0].taken] == [0, 2, 0]


@pytest.mark.parametrize("kind", ANSWERING)
@pytest.mark.parametrize("ttl", [1, 2, 8, 255])
def test_as_many_words_as_the_ttl_are_accepted_and_not_one_more(kind: type, ttl: int) -> None:
    engine, (pipe,) = make(kind, None, ttl=ttl)
    words = [words for words in (ttl - 1, ttl, ttl + 1) if words]
    for count in words:
        assert arrive(engine, pipe, b"", HOP * (count - 1) + ID), "it is taken, be it to go nowhere"
    assert [len(header) for header, _ in received(engine)] == [4 * count + 4 for count in words[:-1]]
    assert engine.dropped == {"ttl": 1}
    assert pipe.error is None


@pytest.mark.parametrize("kind", ANSWERING)
def test_what_has_made_too_many_hops_is_dropped_even_when_the_inbox_is_full(kind: type) -> None:
    engine, (pipe,) = make(kind, None, ttl=1)
    for _ in range(4):
        arrive(engine, pipe, b"")
    assert arrive(engine, pipe, b"", HOP + ID)
    assert engine.dropped == {"ttl": 1}
    assert not arrive(engine, pipe, b"")


@pytest.mark.parametrize("kind", ANSWERING)
def test_an_answer_to_an_unknown_peer_is_dropped_and_counted(kind: type) -> None:
    engine, (pipe,) = make(kind, None)
    for count, header in enumerate((ID, FAR + ID, word_of(FakePipe()) + ID, FAR + word_of(pipe) + ID), 1):
        assert engine.send(Message(b"answer", header))
        assert engine.dropped == {"requester gone": count}
    assert pipe.taken == []


@pytest.mark.parametrize("kind", ANSWERING)
def test_a_client_that_pushes_the_id_of_another_gets_the_answer_itself(kind: type) -> None:
    engine, (forger, victim) = make(kind, None, None)
    for forged in (word_of(victim) + ID, word_of(victim) + word_of(forger) + ID, FAR + ID):
        arrive(engine, forger, b"give it to another", forged)
        ((header, _),) = received(engine)
        assert header == word_of(forger) + forged
        engine.send(Message(b"answer", header))
        assert forger.taken[-1].header == forged
    assert len(forger.taken) == 3
    assert victim.taken == []
    assert not engine.dropped


@pytest.mark.parametrize("kind", ANSWERING)
def test_an_answer_to_a_full_peer_is_dropped_and_counted_and_delays_no_other(kind: type) -> None:
    engine, (full, other) = make(kind, 1, None)
    for body in (b"1", b"2"):
        for pipe in (full, other):
            assert engine.send(Message(body, word_of(pipe) + ID))
    assert (full.bodies, other.bodies) == ([b"1"], [b"1", b"2"])
    assert engine.dropped == {"peer full": 1}


@pytest.mark.parametrize("kind", ANSWERING)
@pytest.mark.parametrize("how", ["gone", "broken"])
def test_an_answer_to_a_peer_that_is_gone_is_dropped_and_counted(kind: type, how: str) -> None:
    engine, (pipe, other) = make(kind, None, None)
    arrive(engine, pipe, b"question")
    if how == "gone":
        engine.pipe_detached(pipe)
    pipe.broken = how == "broken"
    ((header, body),) = received(engine)
    assert body == b"question", "what somebody asked before going can be received"
    assert engine.send(Message(b"answer", header))
    assert (pipe.taken, other.taken) == ([], [])
    assert engine.dropped == {"requester gone": 1}


def test_raw_rep_and_respondent_have_the_numbers_of_the_cooked_ones() -> None:
    assert [(kind.number, kind.peer_number) for kind in ANSWERING] == [(0x31, 0x30), (0x63, 0x62)]


# Raw REQ


def test_raw_req_sends_each_message_to_the_next_peer_with_room() -> None:
    engine, pipes = make(RawReqEngine, None, 0, None)
    for number in range(4):
        assert engine.send(Message(b"%d" % number, HOP + ID))
    assert [pipe.bodies for pipe in pipes] == [[b"0", b"2"], [], [b"1", b"3"]]
    assert {header for pipe in pipes for header, _ in taken(pipe)} == {HOP + ID}
    assert engine.balances


def test_raw_req_waits_for_a_peer_and_for_room() -> None:
    engine, _ = make(RawReqEngine)
    assert not engine.send(Message(b"question", ID))
    pipe = FakePipe(1)
    engine.pipe_attached(pipe)
    assert [engine.send(Message(b"%d" % number, ID)) for number in range(2)] == [True, False]
    pipe.room = 1
    assert not engine.send(Message(b"1", ID)), "it has not told"
    engine.pipe_has_room(pipe)
    assert engine.send(Message(b"1", ID))
    assert pipe.bodies == [b"0", b"1"]
    assert not engine.dropped


def test_raw_req_prefers_the_best_priority() -> None:
    engine, _ = make(RawReqEngine)
    best, spare = FakePipe(1, priority=1), FakePipe(priority=2)
    for pipe in (spare, best):
        engine.pipe_attached(pipe)
    for body in (b"1", b"2"):
        engine.send(Message(body, ID))
    assert (best.bodies, spare.bodies) == ([b"1"], [b"2"])


def test_raw_req_sends_nothing_to_a_peer_that_is_gone_and_nothing_again() -> None:
    engine, (gone, other) = make(RawReqEngine, None, None)
    engine.send(Message(b"1", ID))
    engine.pipe_detached(gone)
    assert other.bodies == []
    engine.send(Message(b"2", ID))
    assert other.bodies == [b"2"]


@pytest.mark.parametrize("kind", ASKING)
def test_whatever_answers_come_are_received_with_their_whole_backtrace(kind: type) -> None:
    engine, (first, second) = make(kind, None, None)
    arrive(engine, first, b"1", HOP + ID)
    arrive(engine, second, b"2", ID)
    arrive(engine, second, b"2", ID)
    assert received(engine) == [(HOP + ID, b"1"), (ID, b"2"), (ID, b"2")]
    assert not engine.dropped


@pytest.mark.parametrize("kind", [*ASKING, *ANSWERING])
def test_the_body_begins_behind_the_first_word_with_its_high_bit_set(kind: Any) -> None:
    assert kind.find_body(b".." + HOP + ID + b"body", 2, 14) == 10
    assert kind.find_body(b".." + HOP + HOP, 2, 10) == -1


# Raw SURVEYOR


def test_raw_surveyor_sends_each_message_to_all_as_it_is() -> None:
    engine, pipes = make(RawSurveyorEngine, None, None, None)
    assert engine.send(Message(b"who?", HOP + ID))
    assert [taken(pipe) for pipe in pipes] == [[(HOP + ID, b"who?")]] * 3
    assert not engine.dropped


def test_raw_surveyor_leaves_out_peers_without_room_and_counts_that() -> None:
    engine, (full, other) = make(RawSurveyorEngine, 1, None)
    for body in (b"1", b"2", b"3"):
        assert engine.send(Message(body, ID))
    assert (full.bodies, other.bodies) == ([b"1"], [b"1", b"2", b"3"])
    assert engine.dropped == {"peer full": 2}


def test_raw_surveyor_counts_surveys_without_a_peer() -> None:
    engine, (pipe,) = make(RawSurveyorEngine, None)
    engine.pipe_detached(pipe)
    assert engine.send(Message(b"who?", ID))
    assert pipe.taken == []
    assert engine.dropped == {"no peer": 1}


def test_raw_req_and_surveyor_have_the_numbers_of_the_cooked_ones() -> None:
    assert [(kind.number, kind.peer_number) for kind in ASKING] == [(0x30, 0x31), (0x62, 0x63)]


# Raw BUS


def test_raw_bus_receives_the_id_of_the_pipe_in_the_header() -> None:
    engine, pipes = make(RawBusEngine, None, None)
    for pipe in pipes:
        assert arrive(engine, pipe, b"hello", b"")
    assert received(engine) == [(word_of(pipe), b"hello") for pipe in pipes]
    assert engine.find_body is None, "it was not on the wire"


def test_raw_bus_sends_to_all_but_the_origin_and_never_the_header() -> None:
    engine, pipes = make(RawBusEngine, None, None, None)
    arrive(engine, pipes[1], b"hello", b"")
    message = engine.receive()
    assert engine.send(message)
    assert [taken(pipe) for pipe in pipes] == [[(b"", b"hello")], [], [(b"", b"hello")]]
    assert message.header == word_of(pipes[1]), "what was received is not changed"
    assert not engine.dropped


@pytest.mark.parametrize("header", [b"", FAR, b"\xff\xff\xff\xff", bytes(4)])
def test_raw_bus_sends_to_all_what_came_by_no_pipe_of_its_own(header: bytes) -> None:
    engine, pipes = make(RawBusEngine, None, None)
    assert engine.send(Message(b"hello", header))
    assert [taken(pipe) for pipe in pipes] == [[(b"", b"hello")]] * 2


@pytest.mark.parametrize("size", [1, 3, 5, 8, 100])
def test_raw_bus_a_header_of_another_size_is_a_mistake_that_shows_it(size: int) -> None:
    engine, (pipe,) = make(RawBusEngine, None)
    for refuse in (engine.send, engine.check_message):
        with pytest.raises(ValueError, match=rf"must be empty or the id of a pipe in 4 bytes, not {'ab' * min(size, 64)}$"):
            refuse(Message(b"hello", b"\xab" * size))
    assert pipe.taken == []
    assert not engine.dropped


def test_raw_bus_counts_what_a_full_peer_misses_and_what_goes_to_no_peer() -> None:
    engine, (full, origin) = make(RawBusEngine, 1, None)
    for body in (b"1", b"2"):
        assert engine.send(Message(body, word_of(origin)))
    assert full.bodies == [b"1"]
    assert engine.dropped == {"peer full": 1}
    engine.pipe_detached(full)
    assert engine.send(Message(b"3", word_of(origin)))
    assert origin.taken == []
    assert engine.dropped == {"peer full": 1, "no peer": 1}


@pytest.mark.parametrize(("policy", "kept"), [("oldest", [b"2", b"3", b"4", b"5"]), ("newest", [b"1", b"2", b"3", b"4"])])
def test_raw_bus_an_overdue_message_has_its_header_as_well_and_one_is_dropped(policy: DropPolicy, kept: list[bytes]) -> None:
    engine, (pipe,) = make(RawBusEngine, None, policy=policy)
    assert [arrive(engine, pipe, b"%d" % number, b"") for number in (1, 2, 3, 4, 5)] == [True] * 4 + [False]
    engine.force_message(pipe, Message(b"5", b"", cast("Pipe", pipe)))
    assert received(engine) == [(word_of(pipe), body) for body in kept]
    assert engine.inbox_dropped() == 1
    assert engine.hold_time == pytest.approx(0.1)


def test_raw_bus_has_the_number_of_the_cooked_one() -> None:
    assert RawBusEngine.number == RawBusEngine.peer_number == 0x70
