"""The greeting: eight bytes, refused at the first wrong one."""

from __future__ import annotations

import pytest

from sp.errors import GreetingError
from sp.protocol_numbers import BUS, PUB, REP, REQ, SUB
from sp.transports.framing import GREETING_SIZE, decode_greeting, encode_greeting

GOOD = encode_greeting(REP)


def test_it_is_the_magic_the_number_and_two_zeros() -> None:
    assert GOOD == b"\0SP\0\0\x31\0\0"
    assert len(GOOD) == GREETING_SIZE


@pytest.mark.parametrize("number", [0, REQ, REP, PUB, SUB, BUS, 0x1234, 0xFFFF])
def test_every_number_comes_back(number: int) -> None:
    assert decode_greeting(encode_greeting(number)) == number


@pytest.mark.parametrize("size", range(GREETING_SIZE))
def test_a_beginning_is_not_decided_yet(size: int) -> None:
    assert decode_greeting(GOOD[:size]) is None


@pytest.mark.parametrize("position", range(4))
def test_a_wrong_byte_of_the_magic_is_refused_as_soon_as_it_is_there(position: int) -> None:
    for byte in set(range(256)) - {GOOD[position]}:
        wrong = GOOD[:position] + bytes([byte])
        for data in (wrong, wrong + GOOD[position + 1 :]):
            with pytest.raises(GreetingError, match="does not speak SP"):
                decode_greeting(data)


@pytest.mark.parametrize("position", [6, 7])
def test_a_reserved_byte_that_is_not_zero_is_refused_as_soon_as_it_is_there(position: int) -> None:
    for byte in range(1, 256):
        wrong = GOOD[:position] + bytes([byte])
        for data in (wrong, wrong + GOOD[position + 1 :]):
            with pytest.raises(GreetingError, match="reserved bytes"):
                decode_greeting(data)


@pytest.mark.parametrize("data", [b"G", b"GET / HT", b"SSH-2.0-", b"EHLO me\r", b"\x16\x03\x01\x02\0\x01\0\x01", bytes(8), b"\xff" * 8])
def test_another_protocol_is_refused_and_shown(data: bytes) -> None:
    with pytest.raises(GreetingError) as refused:
        decode_greeting(data)
    assert repr(data) in str(refused.value)
