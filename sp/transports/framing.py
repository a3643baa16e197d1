"""The SP byte stream: an 8-byte greeting each way, then messages, each after its length.

There is no I/O here.  Over tcp, a 64-bit big-endian length precedes each message (tcp mapping
draft).  Over ipc, a message type byte, always 1, precedes the length (ipc mapping draft).  Whatever
a peer sends, only PeerErrors are raised.
"""

from __future__ import annotations

import struct
from typing import Final

from sp.errors import GreetingError, MalformedMessage, MessageTooLarge, PeerError
from sp.guess import guess_protocol
from sp.message import FindBody, Message

GREETING_SIZE: Final = 8
_MAGIC: Final = b"\0SP\0"
_KEPT_TAIL: Final = 4096
"""A part of a message below this size is copied, so it does not keep a whole read in memory."""
_MAX_BATCH: Final = 1024
"""The most messages that one call decodes."""
_MAX_HEADER: Final = 1024
"""The longest backtrace: 255 hops and the request id."""

_length: Final = struct.Struct(">Q")
_typed_length: Final = struct.Struct(">BQ")


def encode_greeting(number: int) -> bytes:
    """Return the greeting of protocol *number*."""
    return _MAGIC + struct.pack(">HH", number, 0)


def decode_greeting(data: bytes, *, over_tls: bool = False) -> int | None:
    """Return the peer's protocol number, or None while *data* is incomplete.

    Raises GreetingError at the first wrong byte; *over_tls* is for the hint in its text.  The
    reserved bytes must be zero, as in the drafts, nng and mangos.  nanomsg does not check them, but
    sends zeros.
    """
    if not _MAGIC.startswith(data[:4]):
        hint = guess_protocol(data, "tcp", over_tls=over_tls)
        raise GreetingError(f"the peer does not speak SP: it began with {data[:GREETING_SIZE]!r}, expected {_MAGIC!r}{hint}")
    if data[6:8].strip(b"\0"):
        raise GreetingError(f"the reserved bytes of the greeting must be zero, not {data[6:8].hex()}")
    if len(data) < GREETING_SIZE:
        return None
    return int.from_bytes(data[4:6], "big")


def frame_prefix(size: int, typed: bool) -> bytes:
    """Return what precedes a message of *size* bytes, in the form of ipc if *typed*."""
    return _typed_length.pack(1, size) if typed else _length.pack(size)


class FrameDecoder:
    """Cuts what arrives into messages.

    A body is copied once: out of the read that contains it, or when its parts are joined.  Memory
    grows with the bytes that have arrived, never with the size that a peer announces.
    """

    __slots__ = ("_find_body", "_limit", "_missing", "_parts", "_prefix_size", "_rest", "_start", "_typed", "error")

    def __init__(self, find_body: FindBody | None, limit: int | None, *, typed: bool) -> None:
        self.error: PeerError | None = None
        """What the peer did wrong.

        The messages before it are returned first; nothing can be decoded after it."""
        self._find_body = find_body
        self._limit = (1 << 64) - 1 if limit is None else limit
        self._typed = typed
        self._prefix_size = 9 if typed else 8
        self._rest: bytes = b""  # what the last batch left over because it was full
        self._start: bytes = b""  # an incomplete prefix
        self._parts: list[bytes | bytearray | memoryview] = []  # of an incomplete message
        self._missing = 0

    @property
    def missing(self) -> int:
        """How many bytes an incomplete message still lacks; 0: no message is incomplete."""
        return self._missing

    @property
    def has_more(self) -> bool:
        """Whether ``receive_data(b"")`` may return messages.

        The size of a batch is limited, so a flood of tiny messages does not hold up other tasks.
        """
        return bool(self._rest)

    @property
    def in_message(self) -> bool:
        """Whether a message would be cut off if the stream ended here."""
        return bool(self._missing or self._start)

    def receive_data(self, data: bytes) -> list[Message]:
        """Return the messages that *data* completes.

        If anything after them is wrong, ``error`` is set.
        """
        messages: list[Message] = []
        if self.error is not None:
            return messages
        offset = 0
        if self._missing:
            offset = self._take_missing(data, messages)
            if not offset:
                return messages
        elif self._rest:
            data = self._rest + data
            self._rest = b""
        elif self._start:
            data = self._start + data
            self._start = b""
        # Every message passes through this loop, so it uses local names, and two slices for a plain
        # frame.
        unpack = _length.unpack_from
        typed, prefix_size, limit, find_body = self._typed, self._prefix_size, self._limit, self._find_body
        add = messages.append
        end = len(data)
        last = -1
        while len(messages) < _MAX_BATCH:
            start = offset + prefix_size
            if start > end:
                self._start = data[offset:]
                return messages
            if typed and data[offset] != 1:
                self.error = MalformedMessage(f"the message type byte must be 1, not {data[offset]}")
                return messages
            size: int = unpack(data, start - 8)[0]
            if size > limit:
                self.error = too_large(size, limit)
                return messages
            offset = start + size
            if offset > end:
                self._missing = offset - end
                self._parts = [data[start:] if end - start < _KEPT_TAIL else memoryview(data)[start:]]
                return messages
            if find_body is None:
                add(Message(data[start:offset]))
                if size == last and not typed:
                    bodies = _more_of(data, offset, size, _MAX_BATCH - len(messages))
                    messages.extend(map(Message, bodies))
                    offset += len(bodies) * (8 + size)
                    size = -1
                last = size
            else:
                body = find_body(data, start, offset)
                if body < 0:
                    self.error = broken_header(size)
                    return messages
                add(Message(data[body:offset], data[start:body]))
        self._rest = data[offset:]
        return messages

    def forget(self) -> None:
        """Drop what has not been returned."""
        self._parts.clear()
        self._start = self._rest = b""
        self._missing = 0

    def _take_missing(self, data: bytes, messages: list[Message]) -> int:
        """Continue an incomplete message.

        Returns where the next message begins, or 0 if none does.
        """
        size = self._missing
        if len(data) < size:
            self._keep(data)
            self._missing -= len(data)
            return 0
        self._parts.append(memoryview(data)[:size] if size < len(data) else data)
        self._missing = 0
        return size if self._complete(messages) else 0

    def _keep(self, data: bytes) -> None:
        """Keep a part of a message.

        Small parts are joined, since an object for each would cost many times its bytes.
        """
        if len(data) >= _KEPT_TAIL:
            self._parts.append(data)
        elif isinstance(self._parts[-1], bytearray):
            self._parts[-1] += data
        else:
            self._parts.append(bytearray(data))

    def _complete(self, messages: list[Message]) -> bool:
        """Turn the parts into a message.  False: its header is broken."""
        parts, self._parts = self._parts, []
        if self._find_body is None:
            messages.append(Message(b"".join(parts)))
            return True
        size = sum(map(len, parts))
        head = _head(parts)
        header_size = self._find_body(head, 0, len(head))
        if header_size < 0:
            self.error = broken_header(size)
            return False
        skip = header_size
        while skip:
            taken = min(skip, len(parts[0]))
            parts[0] = memoryview(parts[0])[taken:]
            skip -= taken
            if not parts[0] and len(parts) > 1:
                del parts[0]
        messages.append(Message(b"".join(parts), head[:header_size]))
        return True


def _more_of(data: bytes, offset: int, size: int, most: int) -> list[bytes]:
    """Return the bodies from *offset* on that have *size* bytes each.

    This takes half the time of the loop.
    """
    frame = 8 + size
    prefix = _length.pack(size)
    count = min((len(data) - offset) // frame, most)
    bodies: list[bytes] = []
    for found, body in struct.iter_unpack(f"8s{size}s", memoryview(data)[offset : offset + count * frame]):
        if found != prefix:
            break
        bodies.append(body)
    return bodies


def _head(parts: list[bytes | bytearray | memoryview]) -> bytes:
    """Return the first bytes of the message in *parts*, enough for the longest header."""
    head = b""
    for part in parts:
        head += part[: _MAX_HEADER - len(head)]
        if len(head) == _MAX_HEADER:
            break
    return head


def too_large(size: int, limit: int) -> MessageTooLarge:
    """Return the error for a message of *size* bytes, of which *limit* are allowed."""
    return MessageTooLarge(f"message too large: the peer announced {size} bytes, but max_message_size is {limit}")


def broken_header(size: int) -> MalformedMessage:
    """Return the error for a message of *size* bytes whose header does not end."""
    return MalformedMessage(f"a message of {size} bytes without a complete protocol header")
