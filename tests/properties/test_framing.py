"""Framing: any bytes in any chunks."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sp.errors import GreetingError, MalformedMessage, MessageTooLarge, PeerError
from sp.message import FindBody
from sp.protocols.backtrace import backtrace_end, request_id_end
from sp.transports.framing import FrameDecoder, decode_greeting, encode_greeting, frame_prefix

LIMIT = 20_000
ID = b"\x80\0\0\1"

Decoded = tuple[list[tuple[bytes, bytes]], type[PeerError] | None]

splits = st.sampled_from([None, backtrace_end, request_id_end])
headers = st.one_of(st.binary(max_size=12), st.sampled_from([0, 1, 5, 255, 256]).map(lambda hops: b"\0\0\0\1" * hops + ID))
bodies = st.one_of(st.binary(max_size=20), st.sampled_from([0, 4095, 4096, 10_000, LIMIT - 4, LIMIT - 3]).map(bytes))
messages = st.tuples(headers, bodies).map(b"".join)
sizes = st.one_of(st.integers(0, 30), st.integers(LIMIT - 1, LIMIT + 1), st.integers(0, (1 << 64) - 1))


@st.composite
def streams(draw: st.DrawFn, typed: bool) -> bytes:
    """Frames in a row, with something else in between now and then."""
    frame = messages.map(lambda data: frame_prefix(len(data), typed) + data)
    prefix = sizes.map(lambda size: frame_prefix(size, typed))
    return b"".join(draw(st.lists(st.one_of(frame, frame, frame, prefix, st.binary(max_size=20)), max_size=6)))


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:stop] for start, stop in pairwise(edges)]


def decode(chunks: list[bytes], typed: bool, find_body: FindBody | None) -> Decoded:
    decoder = FrameDecoder(find_body, LIMIT, typed=typed)
    decoded = []
    for chunk in chunks:
        decoded += [(m.header, m.body) for m in decoder.receive_data(chunk)]
        while decoder.has_more:
            decoded += [(m.header, m.body) for m in decoder.receive_data(b"")]
    return decoded, None if decoder.error is None else type(decoder.error)


def model(stream: bytes, typed: bool, find_body: FindBody | None) -> Decoded:
    """Do the same, one message at a time and with no thought of speed."""
    decoded: list[tuple[bytes, bytes]] = []
    prefix = 9 if typed else 8
    while len(stream) >= prefix:
        if typed and stream[0] != 1:
            return decoded, MalformedMessage
        size = int.from_bytes(stream[prefix - 8 : prefix], "big")
        if size > LIMIT:
            return decoded, MessageTooLarge
        data, stream = stream[prefix : prefix + size], stream[prefix + size :]
        if len(data) < size:
            break
        body = 0 if find_body is None else find_body(data, 0, size)
        if body < 0:
            return decoded, MalformedMessage
        decoded.append((data[:body], data[body:]))
    return decoded, None


@settings(deadline=None)
@given(st.data(), st.booleans(), splits, st.lists(st.integers(0), max_size=20))
def test_what_is_decoded_does_not_depend_on_the_chunks(
    data: st.DataObject, typed: bool, find_body: FindBody | None, places: list[int]
) -> None:
    stream = data.draw(streams(typed))
    expected = model(stream, typed, find_body)
    assert decode([stream], typed, find_body) == expected
    assert decode(cut(stream, places), typed, find_body) == expected


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=20), st.booleans(), splits)
def test_any_bytes_are_messages_or_a_peer_error_and_never_an_exception(
    chunks: list[bytes], typed: bool, find_body: FindBody | None
) -> None:
    assert decode(chunks, typed, find_body) == model(b"".join(chunks), typed, find_body)


@settings(deadline=None)
@given(st.lists(bodies, max_size=10), st.booleans(), st.lists(st.integers(0), max_size=20))
def test_what_is_encoded_is_what_is_decoded(sent: list[bytes], typed: bool, places: list[int]) -> None:
    stream = b"".join(frame_prefix(len(body) + 4, typed) + ID + body for body in sent if len(body) <= LIMIT - 4)
    decoded, error = decode(cut(stream, places), typed, backtrace_end)
    assert decoded == [(ID, body) for body in sent if len(body) <= LIMIT - 4]
    assert error is None


@settings(deadline=None)
@given(st.integers(0, 0xFFFF), st.integers(0, 8))
def test_a_greeting_comes_back_once_it_is_complete(number: int, size: int) -> None:
    assert decode_greeting(encode_greeting(number)[:size]) == (number if size == 8 else None)


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=8), st.binary(max_size=4).map(lambda tail: b"\0SP\0" + tail)))
@example(b"\0SP\0\0\x31\0\1")
def test_any_bytes_are_a_greeting_or_its_beginning_or_a_greeting_error(data: bytes) -> None:
    good = data[:4] == b"\0SP\0"[: len(data)] and not any(data[6:])
    try:
        number = decode_greeting(data)
    except GreetingError:
        assert not good
    else:
        assert good
        assert number == (int.from_bytes(data[4:6], "big") if len(data) == 8 else None)
