"""What stands before the body: any bytes, and the way there and back through a chain of devices."""

from __future__ import annotations

from random import Random
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sp.message import Message
from sp.options import SocketOptions
from sp.pipe import Pipe
from sp.protocols.backtrace import MAX_WORDS, backtrace_end, check_header, request_id_end
from sp.protocols.engine import Engine
from sp.protocols.pair1 import Pair1Engine, PolyPair1Engine, RawPair1Engine, hops_end
from sp.protocols.rep import RawRepEngine, RepEngine
from sp.protocols.req import RawReqEngine, ReqEngine
from sp.protocols.respondent import RawRespondentEngine, RespondentEngine
from sp.protocols.surveyor import RawSurveyorEngine, SurveyorEngine
from sp.testing import FakePipe

OPTIONS = SocketOptions()
ID = b"\x80\0\0\1"

garbage = st.binary(max_size=40) | st.lists(st.sampled_from(b"\0\1\x7f\x80\xff"), max_size=40).map(bytes)
splits = st.sampled_from([backtrace_end, request_id_end, hops_end])


# Garbage


@settings(deadline=None, max_examples=300)
@given(splits, garbage, garbage, garbage)
def test_any_bytes_have_no_body_or_one_that_begins_within_them(find_body: Any, before: bytes, data: bytes, after: bytes) -> None:
    start, stop = len(before), len(before) + len(data)
    place = find_body(before + data + after, start, stop)
    assert place == -1 or start + 4 <= place <= stop
    assert (place - start) % 4 == 0 or place == -1
    assert place == find_body(before + data, start, stop), "what comes behind makes no difference"
    assert (place if place == -1 else place - start) == find_body(data, 0, len(data)), "nor what comes before"


@settings(deadline=None)
@given(garbage)
def test_a_header_that_was_split_off_may_be_sent_on(data: bytes) -> None:
    place = backtrace_end(data, 0, len(data))
    if place >= 0:
        check_header(Message(data[place:], data[:place]))
        with pytest.raises(ValueError, match="must be a backtrace"):
            check_header(Message(b"", data[: place - 4]))
        with pytest.raises(ValueError, match="must be a backtrace"):
            check_header(Message(b"", data[:place] + ID))


@settings(deadline=None)
@given(st.integers(0, MAX_WORDS + 2), garbage)
def test_a_backtrace_of_up_to_so_many_words_is_found(hops: int, body: bytes) -> None:
    data = b"\x7f\xff\xff\xff" * hops + ID + body
    assert backtrace_end(data, 0, len(data)) == (4 * hops + 4 if hops < MAX_WORDS else -1)


def test_these_are_all_the_splits_that_there_are() -> None:
    backtrace: list[type[Engine]] = [RepEngine, RawRepEngine, RawReqEngine, RespondentEngine, RawRespondentEngine, RawSurveyorEngine]
    assert {kind.find_body for kind in backtrace} == {backtrace_end}
    assert {kind.find_body for kind in (ReqEngine, SurveyorEngine)} == {request_id_end}
    assert {kind.find_body for kind in (Pair1Engine, RawPair1Engine, PolyPair1Engine)} == {hops_end}


# Chains of devices


def arrive(engine: Any, pipe: FakePipe, sent: FakePipe) -> None:
    """Let the oldest message that *sent* was offered arrive by *pipe*, as bytes."""
    message = sent.taken.pop(0)
    data = message.header + message.body
    place = engine.find_body(data, 0, len(data))
    assert place >= 0
    assert engine.message_received(pipe, Message(data[place:], data[:place], cast("Pipe", pipe)))


class Device:
    """Two raw engines, one pipe each, and what passes on between them."""

    def __init__(self, front: RawRepEngine, back: RawReqEngine | RawSurveyorEngine) -> None:
        self.front, self.back = front, back
        self.front_pipe, self.back_pipe = FakePipe(), FakePipe()
        front.pipe_attached(self.front_pipe)
        back.pipe_attached(self.back_pipe)

    def pass_on(self) -> None:
        while (message := self.front.receive()) is not None:
            assert self.back.send(message)
        while (message := self.back.receive()) is not None:
            assert self.front.send(message)


class Chain:
    """A client's pipe, devices in a row, and a server at the other end."""

    def __init__(self, ttls: list[int], server_ttl: int, *, surveys: bool) -> None:
        rep, req = (RawRespondentEngine, RawSurveyorEngine) if surveys else (RawRepEngine, RawReqEngine)
        self.devices = [Device(rep(OPTIONS, ttl), req(OPTIONS)) for ttl in ttls]
        self.server = (RespondentEngine if surveys else RepEngine)(OPTIONS, server_ttl)
        self.server_pipe = FakePipe()
        self.server.pipe_attached(self.server_pipe)
        self.ends = [(device.front, device.front_pipe) for device in self.devices] + [(self.server, self.server_pipe)]

    def ask(self, client: FakePipe) -> int | None:
        """Pass on what *client* was offered; return the place where it got stuck, or None when it
        has come to the server.
        """
        sent = client
        for place, (engine, pipe) in enumerate(self.ends):
            arrive(engine, pipe, sent)
            if engine.dropped:
                return place
            if place < len(self.devices):
                self.devices[place].pass_on()
                sent = self.devices[place].back_pipe
        return None

    def answer(self, body: bytes) -> FakePipe:
        """Answer as the server, and pass that on; return the pipe that the client would read."""
        context = self.server.open_context()
        assert context.receive() is not None
        assert context.send(Message(body))
        sent = self.server_pipe
        for device in reversed(self.devices):
            arrive(device.back, device.back_pipe, sent)
            device.pass_on()
            sent = device.front_pipe
        return sent


@settings(deadline=None, max_examples=60)
@given(devices=st.integers(0, 12), ttl=st.integers(1, 14), surveys=st.booleans(), body=garbage)
@example(devices=7, ttl=8, surveys=False, body=b"")
@example(devices=8, ttl=8, surveys=False, body=b"")
@example(devices=254, ttl=255, surveys=True, body=b"")
@example(devices=255, ttl=255, surveys=True, body=b"")
def test_what_passes_a_chain_is_what_arrives_everywhere_with_no_more_words_than_the_ttl(
    devices: int, ttl: int, surveys: bool, body: bytes
) -> None:
    chain = Chain([ttl] * devices, ttl, surveys=surveys)
    client: Any = SurveyorEngine(OPTIONS, Random(1), lambda: 0.0, KeyError) if surveys else ReqEngine(60.0, Random(1), lambda: 0.0)
    pipe = FakePipe()
    client.pipe_attached(pipe)
    context = client.open_context(1.0) if surveys else client.open_context()
    context.send(Message(body))
    stuck = chain.ask(pipe)
    # One word leaves the client and each device adds one: the server gets one more than there are
    # devices.
    assert stuck == (None if devices + 1 <= ttl else ttl)
    if stuck is None:
        arrive(client, pipe, chain.answer(body[::-1]))
        assert context.receive().body == body[::-1]
    else:
        assert chain.ends[stuck][0].dropped == {"ttl": 1}
        assert not any(engine.dropped for place, (engine, _) in enumerate(chain.ends) if place != stuck)


@settings(deadline=None, max_examples=60)
@given(
    words=st.lists(st.binary(min_size=4, max_size=4).map(lambda word: bytes([word[0] & 0x7F]) + word[1:]), max_size=4),
    ttls=st.lists(st.integers(1, 12), max_size=6),
    server_ttl=st.integers(1, 12),
    surveys=st.booleans(),
)
def test_each_device_counts_what_a_message_arrives_with_and_the_way_back_is_the_way_there(
    words: list[bytes], ttls: list[int], server_ttl: int, surveys: bool
) -> None:
    chain = Chain(ttls, server_ttl, surveys=surveys)
    header = b"".join(words) + ID
    client = FakePipe()
    client.offer(Message(b"question", header))
    stuck = chain.ask(client)
    assert stuck == next((place for place, ttl in enumerate([*ttls, server_ttl]) if len(words) + 1 + place > ttl), None)
    if stuck is None:
        (answer,) = chain.answer(b"answer").taken
        assert (answer.header, answer.body) == (header, b"answer")
        assert not any(engine.dropped for engine, _ in chain.ends)


@settings(deadline=None)
@given(devices=st.integers(0, 12), ttl=st.integers(1, 14), first=st.integers(0, 14))
@example(devices=254, ttl=255, first=0)
@example(devices=255, ttl=255, first=1)
def test_a_pair_counts_its_hops_through_a_chain_of_devices(devices: int, ttl: int, first: int) -> None:
    message: Message | None = Message(b"hello", bytes([0, 0, 0, first]))
    passed = 0
    for place in range(devices + 1):
        engine = RawPair1Engine(OPTIONS, ttl) if place < devices else Pair1Engine(OPTIONS, ttl)
        pipe = FakePipe()
        engine.pipe_attached(pipe)
        assert message is not None
        pipe.taken.append(message)
        arrive(engine, pipe, pipe)
        message = engine.receive()
        if message is None:
            assert engine.dropped == {"ttl": 1}
            break
        passed += 1
        if place < devices:
            assert engine.send(message)
            message = pipe.taken.pop() if pipe.taken else None
            if message is None:
                assert engine.dropped == {"ttl": 1}
                break
    assert passed == max(0, min(devices + 1, ttl - first + 1))
