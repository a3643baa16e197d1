"""The handshake of SP over WebSocket, for both sides and without I/O.

It uses the ``websockets`` package.  The sub-protocol is the name of the listener's protocol.  No
extension is used.  The handshake also shows which implementation the peer may be, and so whether it
gets pings.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from typing import Final

from websockets.client import ClientProtocol
from websockets.exceptions import (
    HeaderLineTooLong,
    InvalidHandshake,
    NegotiationError,
    RequestLineTooLong,
    TooManyHeaders,
)
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from sp.errors import GreetingError, PeerError, UpgradeRefused, WrongProtocol, printable
from sp.guess import guess_protocol
from sp.http.message import HTTPHeaders, HTTPResponse, text_response
from sp.protocol_numbers import BUS, COUNTERPARTS, PAIR0, PAIR1, PUB, PULL, PUSH, REP, REQ, RESPONDENT, SUB, SURVEYOR, protocol_name
from sp.transports.framing import encode_greeting
from sp.transports.proxy_protocol import SIGNATURE as PROXY_SIGNATURE
from sp.transports.ws.answer import MAX_HEAD, SHOWN, SWITCHING, TOLD, Answer, shown, without_quotation
from sp.transports.ws.frames import quiet

_TARGET: Final = re.compile(r"[\x21-\x7e]*")
_HOST: Final = re.compile(r"[A-Za-z0-9._~\-]*(:[0-9]*)?|\[[0-9A-Fa-f:.]+\](:[0-9]*)?")
_END: Final = b"\r\n\r\n"

SUBPROTOCOLS: Final = {
    number: f"{name}.sp.nanomsg.org"
    for number, name in {
        PAIR0: "pair",
        PAIR1: "pair1",  # from nng and mangos; it is not in the draft
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
"""The sub-protocols, by the number of the listener's protocol (websocket mapping draft, 2)."""
_NUMBERS: Final = {name: number for number, name in SUBPROTOCOLS.items()}

_MARK: Final = "SP-Implementation"
_EXPECTED: Final = "SP-Expected-Protocol"
"""A header of a 400: the right sub-protocol, so that both sides can report the mistake."""
_NAME: Final = "trio-sp"
_NOT_NANOMSG: Final = ("user-agent", "origin", "sec-websocket-extensions")
"""Headers that neither libnanomsg nor libnng sends when it dials."""
_MANGOS: Final = "Go-http-client"
_NNG_ANSWER: Final = ("Connection", "Upgrade", "Sec-WebSocket-Accept", "Sec-WebSocket-Protocol")
"""The headers of libnng's answer, in this order and spelling.

libnanomsg sends the first two in the other order.
"""

_NAMED: Final = (PROXY_SIGNATURE, encode_greeting(0)[:4])
"""Beginnings that an error names: the PROXY protocol, and SP over tcp."""


class _Head:
    """Finds where the head of a request ends.

    The parser must not see what follows, because it would read that as frames.
    """

    def __init__(self) -> None:
        self.begun = b""
        """The first bytes, for error texts."""
        self.size = 0
        self._last = b""

    def split(self, received: bytes) -> tuple[bytes, bytes]:
        """Return the part of *received* that belongs to the head, and the part that follows it."""
        if len(self.begun) < SHOWN:
            self.begun += received[: SHOWN - len(self.begun)]
        before = len(self._last)
        end = (self._last + received).find(_END)
        if end >= 0:
            size = end + len(_END) - before
            self.size += size
            return received[:size], received[size:]
        self.size += len(received)
        self._last = (self._last + received)[-len(_END) + 1 :]
        return received, b""

    @property
    def first_line(self) -> bytes:
        """The part of the first line that has come, at most as much as an error shows."""
        return self.begun.partition(b"\n")[0].rstrip(b"\r")


class ServerHandshake:
    """Reads a request, checks it, and makes the answer to it."""

    def __init__(self, *, over_tls: bool = False) -> None:
        """Read a request.  *over_tls* is for error texts, which guess what the peer may speak."""
        self._over_tls = over_tls
        self.protocol = ServerProtocol(select_subprotocol=lambda _, offered: self._select(offered), logger=quiet)
        self._expected = self._wrong = ""  # sub-protocols
        self.request: Request | None = None
        self.problem: tuple[HTTPResponse, str] | None = None
        """The response to a broken request, and what is wrong, for our error.

        ``request`` is None then.
        """
        self.rest = b""
        """The bytes after the request."""
        self._head = _Head()

    def receive_data(self, data: bytes) -> bool:
        """Take *data* from the client.  Returns True once there is a request or a problem."""
        head, self.rest = self._head.split(data)
        begun = self._head.begun
        if not begun[:1].isalpha():
            # This is not a request, so its first line may never end.  Wait only until there is
            # enough to say what it is.
            if any(len(begun) < len(one) and one.startswith(begun) for one in _NAMED):
                return False
            self.problem = self._explain(ValueError("it does not begin with a method"))
            return True
        self.protocol.receive_data(head)
        events = self.protocol.events_received()
        self.protocol.data_to_send()  # drop its answers to a broken request; ours say more
        if events and self._head.size <= MAX_HEAD:
            assert isinstance(events[0], Request)
            if _TARGET.fullmatch(events[0].path):
                self.request = events[0]
            else:
                self.problem = self._explain(ValueError("a target with control characters"))
        elif self.protocol.handshake_exc is not None:
            self.problem = self._explain(self.protocol.handshake_exc)
        elif self._head.size > MAX_HEAD:
            reason = f"more than {MAX_HEAD} bytes of headers"
            self.problem = text_response(431, reason), f"the request has {reason}"
        return self.request is not None or self.problem is not None

    @property
    def has_begun(self) -> bool:
        """Whether the client has sent anything."""
        return bool(self._head.begun)

    @property
    def is_head(self) -> bool:
        """Whether the client asks for the head of a response only."""
        return self._head.begun.startswith(b"HEAD ")

    def check(self, number: int) -> tuple[HTTPResponse | None, PeerError | None]:
        """Check that the request asks for a WebSocket with protocol *number*.

        Returns a refusal and the error, or None and None.
        """
        assert self.request is not None
        expected = SUBPROTOCOLS[number]

        protocol = self.protocol
        self._expected = expected
        hosts = self.request.headers.get_all("Host")
        if (len(hosts) != 1 and self.request.protocol == "HTTP/1.1") or not all(map(_HOST.fullmatch, hosts)):
            error: PeerError = GreetingError("the request must have exactly one Host header, with a name or an address")
            return text_response(400, "expected one Host header"), error
        response = protocol.accept(_without_alternatives(self.request))
        if response.status_code == SWITCHING:
            self.response = response
            return None, None
        if self._wrong:
            asked = _NUMBERS.get(self._wrong.lower())
            peer = f"one that asks for {self._wrong[:SHOWN]!r}" if asked is None else protocol_name(COUNTERPARTS[asked])
            error = _wrong_protocol(peer, COUNTERPARTS[number])
            return HTTPResponse(400, f"expected sub-protocol {expected}\n", {_EXPECTED: expected}), error
        reason = f"not a WebSocket request: {printable(str(protocol.handshake_exc)[:TOLD])}"
        headers = [(name, value) for name, value in response.headers.raw_items() if name in ("Allow", "Upgrade")]
        if self.request.headers.get_all("Sec-WebSocket-Version") != ["13"]:
            # So that the client can try again (RFC 6455, 4.2.2).
            headers.append(("Sec-WebSocket-Version", "13"))
        answer = HTTPResponse.received(response.status_code, f"{reason}\n".encode(), headers)
        return answer, GreetingError(f"HTTP {response.status_code}: {reason}")

    def _select(self, offered: Sequence[Subprotocol]) -> Subprotocol:
        for name in offered:
            if name.lower() == self._expected:  # nanomsg and nng ignore the case
                return name
        self._wrong = offered[0] if offered else "nothing"
        raise NegotiationError(f"expected sub-protocol {self._expected}")

    def accept(self, headers: Sequence[tuple[str, str]]) -> tuple[bytes, HTTPHeaders]:
        """Return the answer that makes it a WebSocket, and the headers of that answer.

        ``check`` comes before.
        """
        response = self.response
        response.headers[_MARK] = _NAME
        for name, value in headers:
            response.headers[name] = value
        self.protocol.send_response(response)
        return b"".join(self.protocol.data_to_send()), HTTPHeaders(response.headers.raw_items())

    def _explain(self, error: Exception) -> tuple[HTTPResponse, str]:
        reason = printable(without_quotation(error.__cause__ or error))
        line = self._head.first_line
        if isinstance(error, RequestLineTooLong):
            return text_response(414, "the request line is too long"), f"the request line is too long: {error}"
        if isinstance(error, (HeaderLineTooLong, TooManyHeaders)):
            return text_response(431, f"too many or too long headers: {error}"), f"the request's headers are too many or too long: {error}"
        method = line.partition(b" ")[0]
        if method.isalpha() and method not in (b"GET", b"HEAD") and line.endswith((b" HTTP/1.1", b" HTTP/1.0")):
            return text_response(405, "expected GET", {"Allow": "GET"}), f"the request's method is {method!r}, expected GET"
        hint = guess_protocol(self._head.begun, "ws", over_tls=self._over_tls)
        return text_response(
            400, f"not an HTTP request: {reason}{hint}"
        ), f"the peer does not speak HTTP: it began with {shown(line)!r} ({reason}{hint})"


class ClientHandshake:
    """Makes a request, and reads the answer to it."""

    def __init__(
        self,
        protocol: ClientProtocol,
        number: int,
        target: str,
        host: str,
        headers: Sequence[tuple[str, str]],
        *,
        over_tls: bool = False,
    ) -> None:
        """*protocol* is a new object.

        *number* is the listener's.  *over_tls* is for error texts.
        """
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
        self.response: HTTPHeaders
        """The headers of the answer, once the server has agreed."""
        self.rest = b""
        """The bytes after the answer."""
        self._answer = Answer("the server", range(SWITCHING, SWITCHING + 1), scheme="ws", over_tls=over_tls)

    @property
    def first_line(self) -> bytes:
        """The part of the first line of the answer that has come."""
        return self._answer.first_line

    @property
    def is_refusal(self) -> bool:
        """Whether the server has refused, so only its explanation is missing."""
        return self._answer.is_refusal

    def receive_data(self, data: bytes) -> bool:
        """Take *data* from the server; empty: the stream has ended.

        Returns True once the server has agreed.  Raises PeerError.
        """
        try:
            if not self._answer.receive_data(data):
                return False
        except UpgradeRefused as refused:
            listening = _NUMBERS.get(refused.response.headers.get(_EXPECTED, "").lower())
            if listening is None:
                raise
            raise _wrong_protocol(protocol_name(listening), self._number) from refused
        response = self._answer.response
        assert response is not None
        try:
            self.protocol.process_response(response)
        except NegotiationError as error:
            reason = printable(str(error)[:TOLD])
            raise WrongProtocol(f"the server does not agree to speak {SUBPROTOCOLS[self._number]}: {reason}") from error
        except InvalidHandshake as error:
            reason = printable(str(error)[:TOLD])
            raise GreetingError(f"the server's answer does not complete the WebSocket handshake: {reason} ({self.first_line!r})") from error
        if self.protocol.subprotocol is None:
            raise WrongProtocol(f"the server did not agree to speak {SUBPROTOCOLS[self._number]}: it named no sub-protocol")
        self.rest = self._answer.rest
        self.response = HTTPHeaders(response.headers.raw_items())
        return True


def _without_alternatives(request: Request) -> Request:
    """Return *request* without the other protocols that its client would accept (RFC 9110, 7.8).

    The ``websockets`` package expects "websocket" alone.
    """
    offered = ",".join(request.headers.get_all("Upgrade")).split(",")
    if len(offered) == 1 or all(name.strip().lower() != "websocket" for name in offered):
        return request
    headers = request.headers.copy()
    del headers["Upgrade"]
    headers["Upgrade"] = "websocket"
    return Request(request.path, headers, request.method, request.protocol)


def _wrong_protocol(peer: str, expected: int) -> WrongProtocol:
    return WrongProtocol(f"wrong protocol: the peer is {peer}, expected {protocol_name(expected)}")


def client_protocol(number: int) -> ClientProtocol:
    """Return the package's protocol object for a dialer to a listener with protocol *number*."""
    from websockets.uri import WebSocketURI  # noqa: PLC0415

    # A placeholder: path and Host are set later.
    uri = WebSocketURI(secure=False, host="localhost", port=80, path="/", query="")
    return ClientProtocol(uri, subprotocols=[Subprotocol(SUBPROTOCOLS[number])], logger=quiet)


class Pings(enum.Enum):
    """What pings achieve with a peer."""

    NONE = "none"
    """They do harm: it may be libnanomsg, which passes them to its application."""
    SENT = "sent"
    """They keep proxies awake.

    A missing answer means nothing: libnng and mangos do not read while their application does not
    receive.
    """
    ANSWERED = "answered"
    """They show whether the peer is there.

    A peer that neither answers nor sends anything else is gone.
    """


def pings_for_client(headers: HTTPHeaders) -> Pings:
    """Return what pings achieve with a client that sent a request with *headers*."""
    if not any(name in headers for name in _NOT_NANOMSG):
        return Pings.NONE
    return Pings.SENT if headers.get("User-Agent", "").startswith(_MANGOS) else Pings.ANSWERED


def pings_for_server(headers: HTTPHeaders) -> Pings:
    """Return what pings achieve with a server that answered with *headers*.

    It is this library, or libnng without a proxy in between, or something else.
    """
    if _MARK in headers:
        return Pings.ANSWERED
    return Pings.SENT if tuple(name for name, _ in headers.raw) == _NNG_ANSWER else Pings.NONE
