"""Where a body begins."""

from __future__ import annotations

import pytest

from sp.protocols.backtrace import MAX_WORDS, backtrace_end, request_id_end

ID = b"\x80\0\0\1"
HOP = b"\x7f\xff\xff\xff"


@pytest.mark.parametrize("hops", [0, 1, 8, MAX_WORDS - 1])
def test_the_body_begins_behind_the_first_word_with_its_high_bit_set(hops: int) -> None:
    data = HOP * hops + ID + ID + b"body"
    assert backtrace_end(data, 0, len(data)) == 4 * hops + 4


@pytest.mark.parametrize("data", [b"", b"\x80\0\0", HOP, HOP + b"\x80\0\0", HOP * MAX_WORDS + ID])
def test_a_backtrace_without_an_end_has_no_body(data: bytes) -> None:
    assert backtrace_end(data, 0, len(data)) == -1


def test_only_the_given_part_is_looked_at() -> None:
    data = ID + HOP + HOP + ID
    assert backtrace_end(data, 4, 12) == -1
    assert backtrace_end(data, 4, 15) == -1
    assert backtrace_end(data, 4, 16) == 16


def test_a_high_bit_elsewhere_in_a_word_ends_nothing() -> None:
    data = b"\0\xff\xff\xff" + ID
    assert backtrace_end(data, 0, len(data)) == 8


@pytest.mark.parametrize("word", [ID, HOP, b"\0\0\0\0"])
def test_the_header_of_a_reply_is_one_word_whatever_it_is(word: bytes) -> None:
    data = b"before" + word + b"body"
    assert request_id_end(data, 6, len(data)) == 10
    assert request_id_end(data, 6, 10) == 10


@pytest.mark.parametrize("size", range(4))
def test_a_reply_shorter_than_a_word_has_no_body(size: int) -> None:
    assert request_id_end(ID, 0, size) == -1
    assert request_id_end(b"before" + ID, 6, 6 + size) == -1
