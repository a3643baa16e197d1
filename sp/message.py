"""Message: what travels between sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from sp.pipe import Pipe

BytesLike = bytes | bytearray | memoryview
FindBody = Callable[[bytes, int, int], int]
"""Where the body begins in a message with a header: ``find_body(data, start, stop)``.

The message is ``data[start:stop]``.  Returns -1 if its header is broken.
"""


class Message:
    """A body with its protocol header and its pipe.

    On the wire, the body follows the header with nothing between them.  Do not change a message
    that was received: several SUB contexts may share it.

    *body* is the payload.  *header* is the protocol header, which only raw sockets use.  *pipe* is
    the pipe that a received message came by.  With ``Pair1(poly=True)`` it is also the pipe to send
    a message to; None lets the protocol choose.
    """

    __slots__ = ("body", "header", "pipe")

    def __init__(self, body: bytes, header: bytes = b"", pipe: Pipe | None = None) -> None:
        self.body = body
        self.header = header
        self.pipe = pipe

    @property
    def size(self) -> int:
        """The size of header and body in bytes, which ``max_message_size`` limits."""
        return len(self.header) + len(self.body)

    def __repr__(self) -> str:
        # The body may be secret: a log may show its size, but not its content.
        return f"<Message header={self.header.hex()} body={len(self.body)} bytes pipe={self.pipe!r}>"


def to_body(value: BytesLike | Any, what: str = "a message body") -> bytes:
    """Return *value* as bytes, which cannot change while they wait in a queue.

    Raises TypeError, naming *what*, for other types.
    """
    if type(value) is bytes:
        return value
    if isinstance(value, str):
        raise TypeError(f"{what} must be bytes, not str: encode it first, for example with .encode()")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(cast("BytesLike", value))
    raise TypeError(f"{what} must be bytes, bytearray or memoryview, not {type(value).__name__}")
