"""Message: what travels between sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from sp.pipe import Pipe

BytesLike = bytes | bytearray | memoryview
FindBody = Callable[[bytes, int, int], int]
"""``find_body(data, start, stop)``: where the body of the message in ``data[start:stop]`` begins; -1: its header is broken."""


class Message:
    """A protocol header, a body, and the pipe that it came by.

    On the wire header and body stand in a row with nothing between them.  A received message must not be changed: with several
    SUB contexts it may be in several hands.
    """

    __slots__ = ("body", "header", "pipe")

    def __init__(self, body: bytes, header: bytes = b"", pipe: Pipe | None = None) -> None:
        self.body = body
        self.header = header
        self.pipe = pipe

    @property
    def size(self) -> int:
        """Bytes of header and body: what ``max_message_size`` limits."""
        return len(self.header) + len(self.body)

    def __repr__(self) -> str:
        # The body is payload: its size may be shown, its content may not end up in a log.
        return f"<Message header={self.header.hex()} body={len(self.body)} bytes pipe={self.pipe!r}>"


def to_body(value: BytesLike | Any, what: str = "a message body") -> bytes:
    """Return *value* as bytes that nobody can change while they wait in a queue.  Anything but bytes-like is a TypeError about *what*."""
    if type(value) is bytes:
        return value
    if isinstance(value, str):
        raise TypeError(f"{what} must be bytes, not str: encode it first, for example with .encode()")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(cast("BytesLike", value))
    raise TypeError(f"{what} must be bytes, bytearray or memoryview, not {type(value).__name__}")
