"""Messages, and what can be one."""

from __future__ import annotations

from array import array

import pytest

from sp.message import Message, to_body


class SpecialBytes(bytes):
    pass


@pytest.mark.parametrize("value", [b"body", bytearray(b"body"), memoryview(b"body"), memoryview(b"b-o-d-y")[::2], SpecialBytes(b"body")])
def test_anything_bytes_like_becomes_plain_bytes(value: bytes | bytearray | memoryview) -> None:
    body = to_body(value)
    assert body == b"body"
    assert type(body) is bytes


def test_plain_bytes_are_not_copied() -> None:
    body = bytes(1000)
    assert to_body(body) is body


def test_what_is_changed_later_does_not_change_the_body() -> None:
    value = bytearray(b"body")
    direct, viewed = to_body(value), to_body(memoryview(value))
    value[:] = b"gone"
    assert direct == viewed == b"body"


def test_a_view_of_numbers_becomes_their_bytes() -> None:
    numbers = array("H", [1, 2])
    assert to_body(memoryview(numbers)) == numbers.tobytes()


def test_a_str_is_refused_with_advice() -> None:
    with pytest.raises(TypeError, match=r"must be bytes, not str: encode it first, for example with \.encode\(\)"):
        to_body("body")


@pytest.mark.parametrize("value", [5, None, [1, 2], (b"a", b"b"), object()])
def test_anything_else_is_refused_by_name(value: object) -> None:
    with pytest.raises(TypeError, match=f"must be bytes, bytearray or memoryview, not {type(value).__name__}"):
        to_body(value)


def test_the_size_is_that_of_header_and_body() -> None:
    assert Message(b"").size == 0
    assert Message(b"body", b"head").size == 8


def test_a_new_message_has_no_header_and_came_by_no_pipe() -> None:
    message = Message(b"body")
    assert (message.body, message.header, message.pipe) == (b"body", b"", None)


def test_its_repr_shows_the_header_and_the_size_but_not_the_body() -> None:
    assert repr(Message(b"secret", b"\x80\0\0\1")) == "<Message header=80000001 body=6 bytes pipe=None>"
