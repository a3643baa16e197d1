"""SP over WebSocket without I/O: messages to frames and back, by the ``websockets`` package's protocol class.

A message is header and body in one binary WebSocket message, in frames of at most 64 KiB: libnng takes no frame above 1 MiB, whatever
its limit for messages is.  Text is taken as well, since nanomsg can be told to send it.
"""

from __future__ import annotations

import logging
import struct
from secrets import token_bytes
from typing import Final

from websockets.frames import CloseCode, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN, Protocol, Side

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without its C extension
    from websockets.utils import apply_mask

from sp.errors import MalformedMessage, PeerError, printable
from sp.message import FindBody, Message
from sp.transports.framing import broken_header, too_large

FRAGMENT: Final = 64 * 1024
"""The most that goes into a frame."""
_MAX_BATCH: Final = 1024
"""Plain messages that are decoded at once; any other frame counts for _COST of them."""
_COST: Final = 16
_KEPT_TAIL: Final = 4096
"""A frame that is cut off below this size waits for its rest here; a fragment below it is gathered with others."""
_PLAIN: Final = 0x82
"""A binary message in one frame."""
_SHORT: Final = [bytes((_PLAIN, size)) for size in range(126)]
_SHORT_MASKED: Final = [bytes((_PLAIN, 0x80 | size)) for size in range(126)]
_POOL: Final = 4096
_OPCODES: Final = frozenset(Opcode)
_MAX_CONTROL: Final = 125
_MAX_REASON: Final = 123
"""What a Close has room for behind its code."""
_PLAIN_CODES: Final = (1000, 1005)
"""Of a Close that says nothing more: OK, and none."""
ENDED: Final = "the peer closed the connection"
"""What is told of a Close; by itself: it came between messages and said no more."""

quiet: Final = logging.Logger("sp.websockets", level=logging.CRITICAL + 1)  # noqa: LOG001  # the package would log payloads


class _Masks:
    """Masks for a client's frames: four unpredictable bytes each, for one use (RFC 6455, 10.3).

    Asking the system for each one would cost half of a message.
    """

    def __init__(self) -> None:
        self._pool = b""
        self._used = 0

    def take(self) -> bytes:
        """Return the next one."""
        used = self._used
        if used >= len(self._pool):
            self._pool, used = token_bytes(_POOL), 0
        self._used = used + 4
        return self._pool[used : used + 4]


_masks = _Masks()
_medium: Final = struct.Struct(">BBH")


class WebSocket:
    """Messages to frames and back, on one connection, once the handshake is over.

    Heads of frames are looked at here, since the package's protocol class would wait for what follows them; frames go through that class
    but for the kind that nearly all are, a whole message in a binary frame of at most 64 KiB that has arrived whole: a quarter of the cost.
    """

    __slots__ = (
        "_find_body",
        "_gathered",
        "_is_server",
        "_limit",
        "_missing",
        "_parts",
        "_plain_limit",
        "_protocol",
        "_rest",
        "_start",
        "_text",
        "ended",
        "error",
    )

    def __init__(self, side: Side, find_body: FindBody | None, limit: int | None) -> None:
        protocol = Protocol(side, max_size=None, logger=quiet)  # control frames would count as well, so the limit is looked at here
        self.error: PeerError | None = None
        """What the peer did wrong, after the messages before it were returned.  Nothing can be decoded any more."""
        self.ended = ""
        """Once the peer has sent Close: the words for it.  What came before was returned."""
        self._protocol = protocol
        self._is_server = side is Side.SERVER
        self._find_body = find_body
        self._limit = limit
        self._plain_limit = FRAGMENT if limit is None else min(limit, FRAGMENT)
        self._rest: bytes = b""  # beyond the limit of the last batch
        self._start: bytes = b""  # an incomplete frame
        self._missing = 0  # bytes of the frame that the protocol is reading
        self._parts: list[bytes | bytearray] = []  # of a message in several frames
        self._gathered = 0  # bytes of it that have been announced
        self._text = False

    @property
    def has_more(self) -> bool:
        """Whether ``receive_data(b"")`` may have messages: a batch has its limit, or a flood of tiny ones would hold up other tasks."""
        return bool(self._rest)

    @property
    def in_message(self) -> bool:
        """Whether a message would be cut off if the stream ended here."""
        return bool(self._parts or self._missing or self._start)

    def add(self, data: bytes) -> None:
        """Take what came with the handshake; it is decoded by the next ``receive_data``."""
        self._rest = data

    def receive_data(self, received: bytes) -> list[Message]:
        """Return the messages that *received* completes.  What is wrong is in ``error``."""
        messages: list[Message] = []
        if self.error is not None or self.ended:
            return messages
        data = self._rest + received if self._rest else self._start + received if self._start else received
        self._rest = self._start = b""
        is_server, find_body, plain_limit = self._is_server, self._find_body, self._plain_limit
        offset, end = 0, len(data)
        room = _MAX_BATCH
        while offset < end and self.error is None and not self.ended:
            if room <= 0:
                self._rest = data[offset:]
                break
            if self._missing:
                stop = min(end, offset + self._missing)
                self._missing -= stop - offset
            else:
                # Where does the frame end that begins here (RFC 6455, 5.2)?
                begin = offset + 2
                size = data[offset + 1] & 0x7F if begin <= end else 0
                if size >= 126:
                    begin += 2 if size == 126 else 8
                    size = int.from_bytes(data[offset + 2 : begin], "big")
                is_masked = begin <= end and data[offset + 1] >= 0x80
                if is_masked:
                    begin += 4
                stop = begin + size
                if stop <= end and data[offset] == _PLAIN and is_masked is is_server and size <= plain_limit and not self._parts:
                    room -= 1
                    payload = apply_mask(data[begin:stop], data[begin - 4 : begin]) if is_masked else data[begin:stop]
                    offset = stop
                    if find_body is None:
                        messages.append(Message(payload))
                    else:
                        self._cut(payload, find_body, messages)
                    continue
                if offset + 1 < end and not self._is_acceptable(data[offset], data[offset + 1], size if begin <= end else 0):
                    break
                if begin > end or (stop > end and stop - offset < _KEPT_TAIL):
                    self._start = data[offset:]
                    break
                if stop > end:
                    stop, self._missing = end, stop - end
                if data[offset] & 0x08 == 0:
                    self._gathered += size
                elif data[offset] & 0x0F == Opcode.CLOSE:
                    # It may stand between fragments (RFC 6455, 5.4); the package finds fault.
                    self._protocol.current_size = None
            room -= _COST
            self._feed(data[offset:stop], messages)
            offset = stop
        return messages

    def _is_acceptable(self, first: int, second: int, size: int) -> bool:
        """Look at a frame's first bytes (RFC 6455, 5.2, 5.4, 5.5): the parser would wait for its payload before it says no."""
        opcode = first & 0x0F
        reason = ""
        if first & 0x70:
            reason = "reserved bits must be 0"
        elif opcode not in _OPCODES:
            reason = "invalid opcode"
        elif (second >= 0x80) is not self._is_server:
            reason = "incorrect masking"
        elif opcode & 0x08:
            if not first & 0x80:
                reason = "fragmented control frame"
            elif second & 0x7F > _MAX_CONTROL:
                reason = "control frame too long"
        elif (opcode == Opcode.CONT) is not bool(self._parts):
            reason = "expected a continuation frame" if self._parts else "unexpected continuation frame"
        elif self._limit is not None and self._gathered + size > self._limit:
            self._refuse(too_large(self._gathered + size, self._limit), CloseCode.MESSAGE_TOO_BIG)
            return False
        elif size >> 63:
            reason = "invalid length"
        if reason:
            self._refuse(MalformedMessage(f"WebSocket: {reason}"), CloseCode.PROTOCOL_ERROR)
        return not reason

    def _feed(self, data: bytes, messages: list[Message]) -> None:
        self._protocol.receive_data(data)
        self._take_events(messages)

    def _take_events(self, messages: list[Message]) -> None:
        """Take what the protocol has read."""
        protocol = self._protocol
        for frame in protocol.events_received():
            assert not isinstance(frame, (Request, Response))
            opcode = frame.opcode
            data, frame.data = frame.data, b""  # the parser holds on to its last frame
            if opcode is Opcode.CLOSE:
                close = protocol.close_rcvd
                self.ended = ENDED + (" in the middle of a message" if self._parts else "")
                if close is not None and (close.reason or close.code not in _PLAIN_CODES):
                    self.ended += f": {printable(str(close))}"
                self.forget()
            elif opcode in (Opcode.BINARY, Opcode.TEXT, Opcode.CONT):
                if opcode is not Opcode.CONT:
                    self._text = opcode is Opcode.TEXT
                self._keep(data)
                if frame.fin:
                    parts, self._parts, self._gathered = self._parts, [], 0
                    self._complete(b"".join(parts), messages)
        if protocol.parser_exc is not None and self.error is None:
            self.error = MalformedMessage(f"WebSocket: {printable(str(protocol.parser_exc))}")
            self.forget()

    def encode(self, message: Message) -> list[bytes]:
        """Return the frames of *message*.  Raises BrokenPipeError once Close was sent."""
        protocol = self._protocol
        if protocol.state is not OPEN:
            raise BrokenPipeError("the WebSocket is closing")
        data = message.header + message.body if message.header else message.body
        size = len(data)
        if size <= 125:
            if self._is_server:
                return [_SHORT[size] + data]
            mask = _masks.take()
            return [_SHORT_MASKED[size] + mask + apply_mask(data, mask)]
        if size < 1 << 16:
            if self._is_server:
                return [_medium.pack(_PLAIN, 126, size) + data]
            mask = _masks.take()
            return [_medium.pack(_PLAIN, 0x80 | 126, size) + mask + apply_mask(data, mask)]
        view = memoryview(data)
        protocol.send_binary(view[:FRAGMENT], fin=size <= FRAGMENT)
        for start in range(FRAGMENT, size, FRAGMENT):
            protocol.send_continuation(view[start : start + FRAGMENT], fin=start + FRAGMENT >= size)
        return protocol.data_to_send()

    def data_to_send(self) -> bytes:
        """Return what reading has made us say: the answer to the last ping, to a Close, or to a mistake."""
        writes = self._protocol.data_to_send()
        return b"".join(writes) if writes else b""

    def ping(self) -> bytes:
        """Return a ping; empty: the connection is closing."""
        if self._protocol.state is not OPEN:
            return b""
        self._protocol.send_ping(b"")
        return self.data_to_send()

    def close(self, code: int, reason: str = "") -> bytes:
        """Return a Close; empty: one was sent."""
        if self._protocol.state is not OPEN:
            return b""
        self._protocol.send_close(code, reason.encode()[:_MAX_REASON].decode(errors="ignore"))
        return self.data_to_send()

    def forget(self) -> None:
        """Drop what is incomplete."""
        self._parts.clear()
        self._rest = self._start = b""
        self._missing = self._gathered = 0

    def _keep(self, data: bytes | bytearray | memoryview) -> None:
        """Keep a part of a message.  Small ones are gathered, since an object for each would cost many times its bytes."""
        if len(data) >= _KEPT_TAIL:
            self._parts.append(bytes(data))
        elif self._parts and isinstance(self._parts[-1], bytearray):
            self._parts[-1] += data
        else:
            self._parts.append(bytearray(data))

    def _complete(self, data: bytes, messages: list[Message]) -> None:
        """Make a message of *data*, if it is one."""
        if self._text:
            try:
                str(data, "utf-8")
            except UnicodeDecodeError:
                self._refuse(MalformedMessage("WebSocket: a text message that is not UTF-8"), CloseCode.INVALID_DATA)
                return
        if self._find_body is None:
            messages.append(Message(data))
        else:
            self._cut(data, self._find_body, messages)

    def _cut(self, data: bytes, find_body: FindBody, messages: list[Message]) -> None:
        body = find_body(data, 0, len(data))
        if body < 0:
            self._refuse(broken_header(len(data)), CloseCode.PROTOCOL_ERROR)
        else:
            messages.append(Message(data[body:], data[:body]))

    def _refuse(self, error: PeerError, code: CloseCode) -> None:
        """Say *error* to the peer, and take no more."""
        self.error = error
        self._protocol.fail(code, str(error)[:_MAX_REASON])
        self.forget()
