"""SP over WebSocket without I/O: messages to frames and back, with the ``websockets`` package.

An SP message, header and body, is one binary WebSocket message in frames of at most 64 KiB: libnng
takes no frame above 1 MiB, whatever its limit for messages is.  We also accept text messages,
because nanomsg can be configured to send them.
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
"""The largest payload of a frame that we send, in bytes."""
_MAX_BATCH: Final = 1024
"""How many plain messages one call decodes; any other frame counts as _COST of them."""
_COST: Final = 16
_KEPT_TAIL: Final = 4096
"""A size in bytes.

An incomplete frame below it is kept until its rest comes.  A fragment below it is joined with
others.
"""
_PLAIN: Final = 0x82
"""The first byte of a binary message in one frame."""
_SHORT: Final = [bytes((_PLAIN, size)) for size in range(126)]
_SHORT_MASKED: Final = [bytes((_PLAIN, 0x80 | size)) for size in range(126)]
_POOL: Final = 4096
_OPCODES: Final = frozenset(Opcode)
_MAX_CONTROL: Final = 125
_MAX_REASON: Final = 123
"""How many bytes of text a Close has room for after its code."""
_PLAIN_CODES: Final = (1000, 1005)
"""Codes of a Close without a reason to report: normal closure, and none."""
ENDED: Final = "the peer closed the connection"
"""The text for a Close.  More follows if it came in the middle of a message, or had a reason."""

quiet: Final = logging.Logger("sp.websockets", level=logging.CRITICAL + 1)  # noqa: LOG001  # the package would log payloads


class _Masks:
    """Masks for a client's frames: four unpredictable bytes each, for one use (RFC 6455, 10.3).

    To ask the system for each one would cost half as much as a message does.
    """

    def __init__(self) -> None:
        self._pool = b""
        self._used = 0

    def take(self) -> bytes:
        """Return the next mask."""
        used = self._used
        if used >= len(self._pool):
            self._pool, used = token_bytes(_POOL), 0
        self._used = used + 4
        return self._pool[used : used + 4]


_masks = _Masks()
_medium: Final = struct.Struct(">BBH")


class WebSocket:
    """Messages to frames and back, on one connection, once the handshake is over.

    The heads of frames are checked here, because the package's protocol class would first wait for
    the payload.  Nearly all frames are whole binary messages of at most 64 KiB that have arrived
    completely.  Those are decoded here, at a quarter of the cost.  All others go through that
    class.
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
        # With max_size=, control frames would count too.
        protocol = Protocol(side, max_size=None, logger=quiet)
        self.error: PeerError | None = None
        """What the peer did wrong.

        The messages before it were returned, and nothing more can be decoded.
        """
        self.ended = ""
        """The text for the peer's Close, once it has come; empty before."""
        self._protocol = protocol
        self._is_server = side is Side.SERVER
        self._find_body = find_body
        self._limit = limit
        self._plain_limit = FRAGMENT if limit is None else min(limit, FRAGMENT)
        self._rest: bytes = b""  # what exceeded the limit of the last batch
        self._start: bytes = b""  # an incomplete frame
        self._missing = 0  # bytes of the frame that the protocol is reading
        self._parts: list[bytes | bytearray] = []  # of an incomplete message in several frames
        self._gathered = 0  # the bytes of that message that its frames have announced
        self._text = False

    @property
    def has_more(self) -> bool:
        """Whether ``receive_data(b"")`` may return messages.

        A call has a limit, so a flood of tiny messages does not keep other tasks waiting.
        """
        return bool(self._rest)

    @property
    def in_message(self) -> bool:
        """Whether a message would be cut off if the stream ended here."""
        return bool(self._parts or self._missing or self._start)

    def add(self, data: bytes) -> None:
        """Take *data* that came with the handshake.  The next ``receive_data`` decodes it."""
        self._rest = data

    def receive_data(self, received: bytes) -> list[Message]:
        """Return the messages that *received* completes.

        Sets ``error`` if the peer did something wrong.
        """
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
                    # A Close may come between fragments (RFC 6455, 5.4).  Without this the package
                    # objects.
                    self._protocol.current_size = None
            room -= _COST
            self._feed(data[offset:stop], messages)
            offset = stop
        return messages

    def _is_acceptable(self, first: int, second: int, size: int) -> bool:
        """Check the first bytes of a frame (RFC 6455, 5.2, 5.4, 5.5).

        The parser would wait for the payload before it objects.
        """
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
        """Take the frames that the protocol has read."""
        protocol = self._protocol
        for frame in protocol.events_received():
            assert not isinstance(frame, (Request, Response))
            opcode = frame.opcode
            data, frame.data = frame.data, b""  # the parser keeps its last frame alive
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
        """Return our answer to what was read: to a ping, to a Close or to a mistake."""
        writes = self._protocol.data_to_send()
        return b"".join(writes) if writes else b""

    def ping(self) -> bytes:
        """Return a ping, or nothing if the connection is closing."""
        if self._protocol.state is not OPEN:
            return b""
        self._protocol.send_ping(b"")
        return self.data_to_send()

    def close(self, code: int, reason: str = "") -> bytes:
        """Return a Close, or nothing if one was sent already."""
        if self._protocol.state is not OPEN:
            return b""
        self._protocol.send_close(code, reason.encode()[:_MAX_REASON].decode(errors="ignore"))
        return self.data_to_send()

    def forget(self) -> None:
        """Drop incomplete messages and frames."""
        self._parts.clear()
        self._rest = self._start = b""
        self._missing = self._gathered = 0

    def _keep(self, data: bytes | bytearray | memoryview) -> None:
        """Keep a part of a message.

        Small parts are joined, since an object for each would take many times its bytes.
        """
        if len(data) >= _KEPT_TAIL:
            self._parts.append(bytes(data))
        elif self._parts and isinstance(self._parts[-1], bytearray):
            self._parts[-1] += data
        else:
            self._parts.append(bytearray(data))

    def _complete(self, data: bytes, messages: list[Message]) -> None:
        """Make a message of *data*, or refuse it."""
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
        """Tell the peer about *error*, and take nothing more."""
        self.error = error
        self._protocol.fail(code, str(error)[:_MAX_REASON])
        self.forget()
