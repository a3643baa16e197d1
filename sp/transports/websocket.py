"""SP over WebSocket without I/O: the sub-protocols' names, the handshake, and frames, by the ``websockets`` package's protocol classes.

A message is header and body in one binary WebSocket message, in frames of at most 64 KiB: libnng takes no frame above 1 MiB, whatever
its limit for messages is.  Text is taken as well, since nanomsg can be told to send it.  No extension is agreed on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from websockets.client import ClientProtocol
from websockets.exceptions import (
    HeaderLineTooLong,
    InvalidStatus,
    NegotiationError,
    PayloadTooBig,
    RequestLineTooLong,
    TooManyHeaders,
)
from websockets.frames import Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN, Protocol
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from sp.engine import Split
from sp.errors import GreetingError, MalformedMessage, MessageTooLarge, PeerClosed, PeerError, UpgradeRefused, WrongProtocol
from sp.framing import broken_header, stranger
from sp.http import HTTPHeaders, HTTPResponse, refusal
from sp.message import Message
from sp.protocol_numbers import BUS, COUNTERPARTS, PAIR0, PAIR1, PUB, PULL, PUSH, REP, REQ, RESPONDENT, SUB, SURVEYOR, protocol_name

FRAGMENT: Final = 64 * 1024
"""The most that goes into a frame."""
_SLICE: Final = 16 * 1024
"""Bytes that are decoded at once: a flood of tiny frames would hold up other tasks for as long as it takes."""
_GATHERED: Final = 4096
"""Fragments below this are gathered, since an object for each would cost many times its bytes."""
MAX_HEAD: Final = 64 * 1024
"""The most that a request line and its headers may be."""
_SHOWN: Final = 80
_KEPT_BODY: Final = 4096
_END: Final = b"\r\n\r\n"

SUBPROTOCOLS: Final = {
    number: f"{name}.sp.nanomsg.org"
    for number, name in {
        PAIR0: "pair",
        PAIR1: "pair1",  # nng and mangos; the draft does not know it
        PUB: "pub",
        SUB: "sub",
        REQ: "req",
        REP: "rep",
        PUSH: "push",
        PULL: "pull",
        SURVEYOR: "surveyor",
        RESPONDENT: "respondent",
        BUS: "bus",
    }.items()
}
"""By the protocol number of who listens, whoever sends it (websocket mapping draft, 2)."""
_NUMBERS: Final = {name: number for number, name in SUBPROTOCOLS.items()}

_PLAIN_CODES: Final = (1000, 1005)
"""Of a Close that says nothing more: OK, and none."""
_MARK: Final = "SP-Implementation"
_EXPECTED: Final = "SP-Expected-Protocol"
"""In a 400: the sub-protocol that would have been right, so that both sides can name the mistake."""
_NAME: Final = "trio-sp"
_NOT_NANOMSG: Final = ("user-agent", "origin", "sec-websocket-extensions")
"""Headers that libnanomsg does not send when it dials.  libnng does not either: the two send the same."""
_NNG_ANSWER: Final = ("Connection", "Upgrade", "Sec-WebSocket-Accept", "Sec-WebSocket-Protocol")
"""What libnng answers, in this order and spelling, and nothing else; libnanomsg has the first two the other way round."""

_quiet: Final = logging.Logger("sp.websockets", level=logging.CRITICAL + 1)  # noqa: LOG001  # the package would log payloads


class WebSocket:
    """Messages to frames and back, on one connection, once the handshake is over."""

    __slots__ = ("_at", "_data", "_limit", "_parts", "_protocol", "_split", "_text", "ended", "error")

    def __init__(self, protocol: Protocol, split: Split | None, limit: int | None) -> None:
        self.error: PeerError | None = None
        """What the peer did wrong, after the messages before it were returned.  Nothing can be decoded any more."""
        self.ended = ""
        """Once the peer has sent Close: the words for it.  What came before was returned."""
        protocol.max_message_size = limit
        self._protocol = protocol
        self._split = split
        self._limit = limit
        self._data = memoryview(b"")  # read and not decoded, from `_at` on
        self._at = 0
        self._parts: list[bytes | bytearray] = []  # of a message in several frames
        self._text = False

    @property
    def has_more(self) -> bool:
        """Whether ``receive_data(b"")`` may have messages."""
        return self._at < len(self._data) or bool(self._protocol.events) or self._protocol.parser_exc is not None

    @property
    def in_message(self) -> bool:
        """Whether a message would be cut off if the stream ended here."""
        return bool(self._parts or self._protocol.reader.buffer)

    def receive_data(self, received: bytes) -> list[Message]:
        """Return the messages that *received* completes, of a part of it: see ``has_more``.  What is wrong is in ``error``."""
        messages: list[Message] = []
        if self.error is not None or self.ended:
            return messages
        if received:
            assert self._at >= len(self._data)
            self.add(received)
        protocol = self._protocol
        part = self._data[self._at : self._at + _SLICE]
        self._at += len(part)
        if self._at >= len(self._data):
            self._data, self._at = memoryview(b""), 0
        if part:
            protocol.receive_data(part)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # it only adds it to a bytearray
        for frame in protocol.events_received():
            assert not isinstance(frame, (Request, Response))
            opcode = frame.opcode
            data, frame.data = frame.data, b""  # the parser holds on to its last frame
            if opcode is Opcode.BINARY or opcode is Opcode.TEXT:
                self._text = opcode is Opcode.TEXT
                if not frame.fin:
                    self._keep(data)
                elif not self._complete(bytes(data), messages):
                    return messages
            elif opcode is Opcode.CONT:
                self._keep(data)
                if frame.fin:
                    parts, self._parts = self._parts, []
                    if not self._complete(b"".join(parts), messages):
                        return messages
            elif opcode is Opcode.CLOSE:
                close = protocol.close_rcvd
                self.ended = "the peer closed the connection"
                if close is not None and close.code not in _PLAIN_CODES:
                    self.ended += f": {close}"
                self.forget()
        if protocol.parser_exc is not None:
            self._fail(protocol.parser_exc)
        return messages

    def add(self, data: bytes) -> None:
        """Take what came with the handshake; it is decoded by the next ``receive_data``."""
        self._data, self._at = memoryview(data), 0

    def encode(self, message: Message) -> list[bytes]:
        """Return the frames of *message*.  Raises BrokenPipeError once Close was sent."""
        protocol = self._protocol
        if protocol.state is not OPEN:
            raise BrokenPipeError("the WebSocket is closing")
        data = message.header + message.body if message.header else message.body
        if len(data) <= FRAGMENT:
            protocol.send_binary(data)
        else:
            view = memoryview(data)
            protocol.send_binary(view[:FRAGMENT], fin=False)
            for start in range(FRAGMENT, len(data), FRAGMENT):
                protocol.send_continuation(view[start : start + FRAGMENT], fin=start + FRAGMENT >= len(data))
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
        self._protocol.send_close(code, reason.encode()[:120].decode(errors="ignore"))
        return self.data_to_send()

    def forget(self) -> None:
        """Drop what is incomplete."""
        self._parts.clear()
        self._data, self._at = memoryview(b""), 0

    def _keep(self, data: bytes | bytearray | memoryview) -> None:
        if len(data) >= _GATHERED:
            self._parts.append(bytes(data))
        elif self._parts and isinstance(self._parts[-1], bytearray):
            self._parts[-1] += data
        else:
            self._parts.append(bytearray(data))

    def _complete(self, data: bytes, messages: list[Message]) -> bool:
        """Make a message of *data*.  False: it is none."""
        if self._text:
            try:
                str(data, "utf-8")
            except UnicodeDecodeError:
                self._protocol.fail(1007, "text that is not UTF-8")
                self.error = MalformedMessage("WebSocket: a text message that is not UTF-8")
                self.forget()
                return False
        if self._split is None:
            messages.append(Message(data))
            return True
        body = self._split(data, 0, len(data))
        if body < 0:
            self.error = broken_header(len(data))
            self._protocol.fail(1002, str(self.error))
            self.forget()
            return False
        messages.append(Message(data[body:], data[:body]))
        return True

    def _fail(self, error: Exception) -> None:
        self.forget()
        if isinstance(error, PayloadTooBig):
            size = (error.size or 0) + (error.current_size or 0)
            self.error = MessageTooLarge(f"message too large: the peer announced {size} bytes, at most {self._limit} are accepted")
        else:
            self.error = MalformedMessage(f"WebSocket: {error}")


# Handshakes.


class ServerHandshake:
    """Reads a request, then accepts it or says why not."""

    def __init__(self) -> None:
        self.protocol = ServerProtocol(logger=_quiet)
        self.request: Request | None = None
        self.problem: tuple[HTTPResponse, str] | None = None
        """What is wrong with the request, as an answer and in our words; there is no request then."""
        self.rest = b""
        """What came behind the request."""
        self._head = b""

    def receive_data(self, data: bytes) -> bool:
        """Take what came.  True: there is a request or a problem."""
        start = max(len(self._head) - len(_END) + 1, 0)
        before = len(self._head)
        self._head += data
        end = self._head.find(_END, start)
        if end >= 0:
            data, self.rest = data[: end + len(_END) - before], self._head[end + len(_END) :]
        # Not a byte beyond the request: the parser would take it for frames, and answer them before us.
        self.protocol.receive_data(data)
        events = self.protocol.events_received()
        self.protocol.data_to_send()  # its answers to what it cannot read; the ones below say more
        if events:
            assert isinstance(events[0], Request)
            self.request = events[0]
        elif self.protocol.handshake_exc is not None:
            self.problem = self._explain(self.protocol.handshake_exc)
        elif len(self._head) > MAX_HEAD:
            self.problem = refusal(431, f"more than {MAX_HEAD} bytes of headers"), f"the request has more than {MAX_HEAD} bytes of headers"
        if self.request is not None or self.problem is not None:
            self._head = b""
        return self.request is not None or self.problem is not None

    @property
    def has_begun(self) -> bool:
        """Whether anything has come."""
        return bool(self._head)

    def accept(self, number: int) -> tuple[HTTPResponse | None, PeerError | None]:
        """Look at the request as a WebSocket's to who speaks protocol *number*; return a refusal and the error, or two times None."""
        assert self.request is not None
        wrong: list[str] = []
        expected = SUBPROTOCOLS[number]

        def select(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol:
            for name in offered:
                if name.lower() == expected:  # nanomsg and nng take any case
                    return name
            wrong.extend(offered or ["nothing"])
            raise NegotiationError(f"expected sub-protocol {expected}, not {', '.join(offered) or 'none'}")

        protocol = self.protocol
        protocol.select_subprotocol = select.__get__(protocol)  # type: ignore[method-assign]
        if len(self.request.headers.get_all("Host")) != 1 and self.request.protocol == "HTTP/1.1":
            return refusal(400, "expected one Host header"), GreetingError("the request has not exactly one Host header")
        response = protocol.accept(self.request)
        if response.status_code == 101:
            self.response = response
            return None, None
        if wrong:
            asked = _NUMBERS.get(wrong[0].lower())
            peer = f"one that asks for {wrong[0][:_SHOWN]!r}" if asked is None else protocol_name(COUNTERPARTS[asked])
            error = _wrong_protocol(peer, COUNTERPARTS[number])
            return HTTPResponse(400, f"expected sub-protocol {expected}\n", {_EXPECTED: expected}), error
        reason = f"no WebSocket request: {protocol.handshake_exc}"
        headers = [(name, value) for name, value in response.headers.raw_items() if name in ("Allow", "Upgrade", "Sec-WebSocket-Version")]
        answer = HTTPResponse.received(response.status_code, f"{reason}\n".encode(), headers)
        return answer, GreetingError(f"HTTP {response.status_code}: {reason}")

    def admit(self, headers: Sequence[tuple[str, str]]) -> tuple[bytes, HTTPHeaders]:
        """Return the answer that makes it a WebSocket, and its headers."""
        response = self.response
        response.headers[_MARK] = _NAME
        for name, value in headers:
            response.headers[name] = value
        self.protocol.send_response(response)
        return b"".join(self.protocol.data_to_send()), HTTPHeaders(response.headers.raw_items())

    def _explain(self, error: Exception) -> tuple[HTTPResponse, str]:
        reason = str(error.__cause__ or error)
        line = self._head[:1024].partition(b"\r\n")[0]
        if isinstance(error, RequestLineTooLong):
            return refusal(414, "the request line is too long"), f"the request line is too long: {error}"
        if isinstance(error, (HeaderLineTooLong, TooManyHeaders)):
            return refusal(431, f"too many or too long headers: {error}"), f"the request's headers are too many or too long: {error}"
        method = line.partition(b" ")[0]
        if "request body" in reason and method not in (b"GET", b"HEAD"):
            return refusal(405, "expected GET", {"Allow": "GET"}), f"the request's method is {method[:_SHOWN]!r}, expected GET"
        hint = stranger(self._head, "ws")
        return refusal(
            400, f"no HTTP request: {reason}{hint}"
        ), f"the peer does not speak HTTP: it began with {line[:_SHOWN]!r} ({reason}{hint})"


class ClientHandshake:
    """Makes a request and reads the answer."""

    def __init__(self, protocol: ClientProtocol, number: int, target: str, host: str, headers: Sequence[tuple[str, str]]) -> None:
        """*protocol* is fresh, *number* that of who listens."""
        self.protocol = protocol
        self._number = number
        request = protocol.connect()
        request.path = target
        del request.headers["Host"]
        own = {name.lower() for name, _ in headers}
        defaults = [("Host", host), ("User-Agent", _NAME)]
        items = [item for item in defaults if item[0].lower() not in own]
        items += [*(item for item in headers if item[0].lower() == "host"), *request.headers.raw_items()]
        items += [item for item in headers if item[0].lower() != "host"]
        request.headers.clear()
        for name, value in items:
            request.headers[name] = value
        protocol.send_request(request)
        self.request_headers = HTTPHeaders(items)
        self.request = b"".join(protocol.data_to_send())
        self.response: HTTPHeaders | None = None
        self.first_line = b""

    def receive_data(self, data: bytes) -> bool:
        """Take what came, nothing at the end of the stream.  True: the server has agreed.  Raises PeerError."""
        if b"\n" not in self.first_line:
            self.first_line = (self.first_line + data)[:_SHOWN]
        if data:
            self.protocol.receive_data(data)
        else:
            self.protocol.receive_eof()
        events = self.protocol.events
        error = self.protocol.handshake_exc
        if error is not None:
            raise self._explain(error) from error
        if not events:
            if not data:
                raise PeerClosed("the server closed the connection without an answer")
            return False
        response = events.pop(0)
        assert isinstance(response, Response)
        if self.protocol.subprotocol is None:
            raise WrongProtocol(f"the server has not agreed to speak {SUBPROTOCOLS[self._number]}: it named no sub-protocol")
        self.response = HTTPHeaders(response.headers.raw_items())
        return True

    def _explain(self, error: Exception) -> PeerError:
        if isinstance(error, InvalidStatus):
            refused = refused_by("the server", error.response)
            listening = _NUMBERS.get(refused.response.headers.get(_EXPECTED, "").lower())
            return refused if listening is None else _wrong_protocol(protocol_name(listening), self._number)
        if isinstance(error, NegotiationError):
            return WrongProtocol(f"the server does not agree to speak {SUBPROTOCOLS[self._number]}: {error}")
        cause = error.__cause__
        if isinstance(cause, EOFError):
            return PeerClosed("the server closed the connection before its answer was complete")
        return GreetingError(f"the server's answer is no WebSocket's: {cause or error} ({self.first_line!r})")


def _wrong_protocol(peer: str, expected: int) -> WrongProtocol:
    return WrongProtocol(f"wrong protocol: the peer is {peer}, expected {protocol_name(expected)}")


def client_protocol(number: int) -> ClientProtocol:
    """Return a protocol for a dialer to who speaks protocol *number*."""
    from websockets.uri import WebSocketURI  # noqa: PLC0415

    uri = WebSocketURI(secure=False, host="localhost", port=80, path="/", query="")  # the request's own is ours
    return ClientProtocol(uri, subprotocols=[Subprotocol(SUBPROTOCOLS[number])], logger=_quiet)


def refused_by(who: str, response: Response) -> UpgradeRefused:
    """Return the error for an answer that is no agreement."""
    body = bytes(response.body)[:_KEPT_BODY]
    answer = HTTPResponse.received(response.status_code, body, response.headers.raw_items())
    reason = f"{who} has answered {response.status_code} {response.reason_phrase[:_SHOWN]}".rstrip()
    location = answer.headers.get("Location")
    if 300 <= answer.status < 400 and location is not None:
        reason += f": it redirects to {location[:200]!r}, which is not followed"
    elif body.strip() and answer.headers.get("Content-Type", "text/plain").startswith("text/plain"):
        reason += f": {body.decode(errors='replace').strip().splitlines()[0][:200]!r}"
    return UpgradeRefused(reason, answer)


def client_answers_pings(headers: HTTPHeaders) -> bool:
    """Whether who has sent a request with *headers* is surely not libnanomsg."""
    return any(name in headers for name in _NOT_NANOMSG)


def server_answers_pings(headers: HTTPHeaders) -> bool:
    """Whether who has answered with *headers* is surely not libnanomsg: it is one of ours, or libnng with nobody in between."""
    return _MARK in headers or tuple(name for name, _ in headers.raw) == _NNG_ANSWER
