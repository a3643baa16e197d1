"""Framing: the same messages and the same error, however the stream is cut into pieces."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from sp.errors import MalformedMessage, MessageTooLarge, PeerError
from sp.message import FindBody
from sp.protocols.backtrace import backtrace_end, request_id_end
from sp.transports.framing import FrameDecoder, frame_prefix

KIB = 1 << 10
MIB = 1 << 20
ID = b"\x80\0\0\1"
HOP = b"\0\0\0\7"

Decoded = tuple[list[tuple[bytes, bytes]], type[PeerError] | None]


@pytest.fixture(params=[False, True], ids=["tcp", "ipc"])
def typed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def frame(data: bytes, typed: bool) -> bytes:
    return frame_prefix(len(data), typed) + data


def decode(data: bytes, typed: bool, *, find_body: FindBody | None = None, limit: int | None = MIB) -> Decoded:
    """Return headers and bodies, and the error.

    They are the same for the whole input, byte by byte, and with the start of another frame.
    """
    results: list[Decoded] = []
    for chunks in ([data], [data[i : i + 1] for i in range(len(data))], [data + b"\1"]):
        decoder = FrameDecoder(find_body, limit, typed=typed)
        messages = [(m.header, m.body) for chunk in chunks for m in decoder.receive_data(chunk)]
        results.append((messages, None if decoder.error is None else type(decoder.error)))
    assert results[0] == results[1] == results[2]
    return results[0]


def test_on_tcp_a_frame_is_a_big_endian_length_and_the_message() -> None:
    assert frame_prefix(0x0102, typed=False) == b"\0\0\0\0\0\0\1\2"


def test_on_ipc_a_type_byte_stands_before_the_length() -> None:
    assert frame_prefix(0x0102, typed=True) == b"\1\0\0\0\0\0\0\1\2"


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536])
def test_a_body_of_any_size_comes_out_as_it_went_in(size: int, typed: bool) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    assert decode(frame(body, typed), typed) == ([(b"", body)], None)


def test_messages_come_out_in_order(typed: bool) -> None:
    bodies = [b"", b"first", b"", b"second" * 100, b"\0"]
    messages, error = decode(b"".join(frame(body, typed) for body in bodies), typed)
    assert [body for _, body in messages] == bodies
    assert error is None


def test_a_message_of_exactly_the_limit_is_accepted(typed: bool) -> None:
    assert decode(frame(bytes(100), typed), typed, limit=100) == ([(b"", bytes(100))], None)


def test_one_byte_above_the_limit_is_too_large_and_what_came_before_is_kept(typed: bool) -> None:
    data = frame(b"before", typed) + frame(bytes(101), typed)
    assert decode(data, typed, limit=100) == ([(b"", b"before")], MessageTooLarge)


def test_the_limit_counts_header_and_body(typed: bool) -> None:
    assert decode(frame(ID + bytes(96), typed), typed, find_body=request_id_end, limit=100) == ([(ID, bytes(96))], None)
    assert decode(frame(ID + bytes(97), typed), typed, find_body=request_id_end, limit=100) == ([], MessageTooLarge)


def test_a_limit_of_zero_accepts_empty_messages_only(typed: bool) -> None:
    assert decode(frame(b"", typed), typed, limit=0) == ([(b"", b"")], None)
    assert decode(frame(b"x", typed), typed, limit=0) == ([], MessageTooLarge)


def test_without_a_limit_any_size_is_accepted(typed: bool) -> None:
    decoder = FrameDecoder(None, None, typed=typed)
    assert len(decoder.receive_data(frame(bytes(3 * MIB), typed))[0].body) == 3 * MIB


def test_the_error_for_a_large_message_has_both_sizes(typed: bool) -> None:
    decoder = FrameDecoder(None, 100, typed=typed)
    decoder.receive_data(frame_prefix(101, typed))
    assert "101 bytes, but max_message_size is 100" in str(decoder.error)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1])
def test_a_huge_announcement_costs_nothing_and_the_messages_before_it_are_kept(size: int, typed: bool) -> None:
    data = frame(b"before", typed) + frame_prefix(size, typed)
    assert decode(data, typed) == ([(b"", b"before")], MessageTooLarge)
    assert tracemalloc.get_traced_memory()[1] < 64 * KIB


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1])
def test_a_huge_announcement_costs_nothing_even_without_a_limit(size: int, typed: bool) -> None:
    assert decode(frame_prefix(size, typed), typed, limit=None) == ([], None)
    assert tracemalloc.get_traced_memory()[1] < 64 * KIB


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("find_body", [None, request_id_end])
def test_a_body_that_comes_in_parts_is_copied_once(find_body: FindBody | None, typed: bool) -> None:
    size = 8 * MIB
    decoder = FrameDecoder(find_body, None, typed=typed)
    messages = decoder.receive_data(frame_prefix(size, typed) + ID + bytes(64 * KIB - 4))
    for received in range(64 * KIB, size, 64 * KIB):
        assert messages == []
        assert tracemalloc.get_traced_memory()[1] < received + 512 * KIB, "nothing is joined before the end"
        messages = decoder.receive_data(bytes(64 * KIB))
    assert messages[0].size == size
    assert tracemalloc.get_traced_memory()[1] < 2 * size + 512 * KIB


@pytest.mark.usefixtures("traced")
def test_a_body_that_comes_in_one_read_is_copied_once(typed: bool) -> None:
    data = frame(ID + bytes(4 * MIB), typed)
    before = tracemalloc.get_traced_memory()[0]
    decoder = FrameDecoder(request_id_end, None, typed=typed)
    assert len(decoder.receive_data(data)) == 1
    assert tracemalloc.get_traced_memory()[1] < before + 4 * MIB + 64 * KIB


@pytest.mark.usefixtures("traced")
def test_the_first_part_of_a_body_is_not_copied_before_the_rest_is_there(typed: bool) -> None:
    first = frame(bytes(4 * MIB), typed)[:-1]
    before = tracemalloc.get_traced_memory()[0]
    decoder = FrameDecoder(None, None, typed=typed)
    assert decoder.receive_data(first) == []
    assert tracemalloc.get_traced_memory()[0] < before + 64 * KIB


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("cut", [3, 20])
def test_the_short_beginning_of_a_message_does_not_hold_on_to_a_whole_read(cut: int, typed: bool) -> None:
    decoder = FrameDecoder(None, None, typed=typed)
    decoder.receive_data(frame(bytes(MIB), typed) + frame(bytes(100), typed)[:cut])
    assert tracemalloc.get_traced_memory()[0] < 64 * KIB


@pytest.mark.parametrize("byte", [0, 2, 255])
def test_a_wrong_type_byte_is_malformed_and_what_came_before_is_kept(byte: int) -> None:
    data = frame(b"before", typed=True) + bytes([byte]) + frame(b"x", typed=False)
    assert decode(data, typed=True) == ([(b"", b"before")], MalformedMessage)


@pytest.mark.parametrize("hops", range(4))
def test_a_backtrace_is_cut_off_behind_the_request_id(hops: int, typed: bool) -> None:
    header = HOP * hops + ID
    assert decode(frame(header + b"\xffbody", typed), typed, find_body=backtrace_end) == ([(header, b"\xffbody")], None)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\0\0", HOP, HOP * 3, HOP + b"\x80\0\0"])
def test_a_backtrace_without_an_end_is_malformed_and_what_came_before_is_kept(data: bytes, typed: bool) -> None:
    good = frame(ID + b"before", typed)
    assert decode(good + frame(data, typed), typed, find_body=backtrace_end) == ([(ID, b"before")], MalformedMessage)


@pytest.mark.parametrize("hops", [255, 256, 300])
def test_a_backtrace_is_looked_at_for_256_words(hops: int, typed: bool) -> None:
    header = HOP * hops + ID
    expected = ([(header, b"body")], None) if hops < 256 else ([], MalformedMessage)
    assert decode(frame(header + b"body", typed), typed, find_body=backtrace_end) == expected


def test_a_header_can_be_cut_anywhere(typed: bool) -> None:
    header = HOP * 3 + ID
    data = frame(header + b"body", typed)
    for first in range(len(data)):
        for second in range(first, len(data)):
            decoder = FrameDecoder(backtrace_end, None, typed=typed)
            parts = (data[:first], data[first:second], data[second:])
            messages = [message for part in parts for message in decoder.receive_data(part)]
            assert [(m.header, m.body) for m in messages] == [(header, b"body")]


def test_header_and_body_are_bytes_of_their_own(typed: bool) -> None:
    decoder = FrameDecoder(request_id_end, None, typed=typed)
    data = frame(ID + bytes(20_000), typed)
    (whole,) = decoder.receive_data(data)
    (joined,) = decoder.receive_data(data[:10_000]) + decoder.receive_data(data[10_000:])
    assert {type(whole.body), type(whole.header), type(joined.body), type(joined.header)} == {bytes}


@pytest.mark.parametrize("wrong", [frame_prefix(101, typed=True), b"\0" * 9, frame(b"", typed=True)])
def test_nothing_is_decoded_after_an_error(wrong: bytes) -> None:
    decoder = FrameDecoder(request_id_end, 100, typed=True)
    good = frame(ID, typed=True)
    assert len(decoder.receive_data(good + wrong + good)) == 1
    error = decoder.error
    assert error is not None
    assert decoder.receive_data(good) == []
    assert decoder.error is error


def test_an_error_in_a_message_that_came_in_parts_stops_the_rest_of_the_read(typed: bool) -> None:
    decoder = FrameDecoder(request_id_end, 100, typed=typed)
    broken = frame(b"abc", typed)
    assert decoder.receive_data(broken[:-1]) == []
    assert decoder.receive_data(broken[-1:] + frame(ID, typed)) == []
    assert isinstance(decoder.error, MalformedMessage)


def test_a_broken_message_is_described_by_its_size_and_not_shown(typed: bool) -> None:
    decoder = FrameDecoder(backtrace_end, None, typed=typed)
    decoder.receive_data(frame(b"secret", typed))
    assert "6 bytes" in str(decoder.error)
    assert "secret" not in str(decoder.error)


def test_it_knows_when_the_stream_would_be_cut_off_and_by_how_much(typed: bool) -> None:
    decoder = FrameDecoder(None, None, typed=typed)
    data = frame(b"body", typed)
    prefix = len(data) - 4
    assert not decoder.in_message
    decoder.receive_data(data[:3])
    assert (decoder.in_message, decoder.missing) == (True, 0)
    decoder.receive_data(data[3 : prefix + 1])
    assert (decoder.in_message, decoder.missing) == (True, 3)
    decoder.receive_data(data[prefix + 1 : prefix + 2])
    assert (decoder.in_message, decoder.missing) == (True, 2)
    decoder.receive_data(data[prefix + 2 :])
    assert (decoder.in_message, decoder.missing) == (False, 0)


def test_a_flood_of_tiny_messages_comes_in_batches() -> None:
    decoder = FrameDecoder(None, MIB, typed=False)
    sizes = [len(decoder.receive_data(frame(b"", False) * 2500 + b"\0"))]
    while decoder.has_more:
        sizes.append(len(decoder.receive_data(b"")))
    assert sizes == [1024, 1024, 452]
    assert len(decoder.receive_data(b"\0" * 7)) == 1
    assert not decoder.has_more


@pytest.mark.parametrize("typed", [False, True])
def test_runs_of_messages_of_one_size_are_cut_where_they_end(typed: bool) -> None:
    sizes = [3, 3, 3, 0, 0, 0, 3, 5, 5, 5, 5, 3, 3] + [64] * 2_500 + [1, 64, 64, 64]
    bodies = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    wire = b"".join(frame_prefix(len(body), typed) + body for body in bodies)
    for step in (7, 1_000, len(wire)):
        decoder = FrameDecoder(None, 64, typed=typed)
        found: list[bytes] = []
        for start in range(0, len(wire), step):
            found += [message.body for message in decoder.receive_data(wire[start : start + step])]
            while decoder.has_more:
                more = decoder.receive_data(b"")
                assert len(more) <= 1024
                found += [message.body for message in more]
        assert found == bodies
        assert not decoder.in_message


def test_a_run_ends_at_a_message_that_is_too_large() -> None:
    decoder = FrameDecoder(None, 3, typed=False)
    wire = b"".join(frame_prefix(3, False) + b"abc" for _ in range(5)) + frame_prefix(4, False) + b"abcd"
    assert [message.body for message in decoder.receive_data(wire)] == [b"abc"] * 5
    assert isinstance(decoder.error, MessageTooLarge)
