"""The values of an HTTP handshake: headers, a response, and what a pipe shows of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Final, cast, final

import attrs

from sp.checks import count
from sp.refusal import RefusalResponse

HeaderItems = tuple[tuple[str, str], ...]

_TOKEN: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_OURS: Final = frozenset({"connection", "upgrade", "content-length", "transfer-encoding", "date"})
"""Headers that the library sets itself, as well as those that begin with ``sec-websocket-``."""
_FRAMING: Final = frozenset({"connection", "content-length", "transfer-encoding"})
"""Headers that say where a response ends.

``encode`` always sets its own, even in a response that came from a server.
"""
WITHOUT_CONTENT: Final = (204, 304)
"""Statuses of responses that end with their head (RFC 9112, 6.3)."""


class HTTPHeaders(Mapping[str, str]):
    """Headers, looked up in any case.

    Several headers of one name are joined with ``", "`` (RFC 9110, 5.3); ``raw`` keeps them apart.
    """

    __slots__ = ("_values", "raw")

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        self.raw: HeaderItems = tuple(items)
        """Names and values as they were received or given."""
        self._values: dict[str, str] = {}
        for name, value in self.raw:
            key = name.lower()
            self._values[key] = f"{self._values[key]}, {value}" if key in self._values else value

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<HTTPHeaders {', '.join(self._values)}>"  # a value may be a credential


def header_items(value: Mapping[str, str] | Iterable[tuple[str, str]]) -> HeaderItems:
    """Return *value* as pairs of name and value.

    Raises TypeError or ValueError for headers that an application cannot set.
    """
    if isinstance(value, (str, bytes)):
        raise TypeError(f"headers must be a mapping or pairs of name and value, not {type(value).__name__}")
    if isinstance(value, HTTPHeaders):
        value = value.raw
    pairs = cast("Mapping[str, str]", value).items() if isinstance(value, Mapping) else value
    try:
        items = tuple((name, content) for name, content in pairs)
    except (TypeError, ValueError):
        raise TypeError("headers must be a mapping or pairs of name and value") from None
    for name, content in items:
        _check_header(name, content)
    return items


def _check_header(name: object, value: object) -> None:
    # No error shows the value: it may be a credential.
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(f"a header's name and value must be str, not {type(name).__name__} and {type(value).__name__}")
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is not a header name: expected letters, digits and -!#$%&'*+.^_`|~ only")
    if name.lower() in _OURS or name.lower().startswith("sec-websocket-"):
        raise ValueError(f"header {name!r} belongs to the handshake and cannot be set")
    if not _VALUE.fullmatch(value) or value != value.strip(" \t"):
        raise ValueError(f"the value of header {name!r} has a line break, another control character, or blanks at its ends")


def _body(value: bytes | str) -> bytes:
    if not isinstance(value, bytes | str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"body must be bytes or str, not {type(value).__name__}")
    return value.encode() if isinstance(value, str) else value


def _headers(value: Mapping[str, str] | Iterable[tuple[str, str]]) -> HTTPHeaders:
    return HTTPHeaders(header_items(value))


def _size(value: object) -> str:
    return f"<{len(cast('bytes', value))} bytes>"


@final
@attrs.frozen
class HTTPResponse(RefusalResponse):
    """An HTTP response instead of a WebSocket.

    ``authorize`` and ``health`` may return one, and ``UpgradeRefused.response`` is the one that a
    dialer got.  Wrong values raise TypeError or ValueError.
    """

    status: int = attrs.field(validator=count(200, 599))
    """From 200 to 599."""
    body: bytes = attrs.field(default=b"", converter=_body, repr=_size)
    """The content; a str is encoded as UTF-8."""
    headers: HTTPHeaders = attrs.field(factory=HTTPHeaders, converter=_headers)
    """A mapping or pairs of name and value; ``Content-Length`` and ``Connection`` are added."""

    @classmethod
    def received(cls, status: int, body: bytes, headers: Iterable[tuple[str, str]]) -> HTTPResponse:
        """Return a server's response, which may have values that an application cannot set."""
        response = cls(status if status >= 200 else 200, body)
        object.__setattr__(response, "status", status)
        object.__setattr__(response, "headers", HTTPHeaders(headers))
        return response

    @property
    def reason(self) -> str:
        """The standard reason phrase of the status; empty if it has none."""
        try:
            return HTTPStatus(self.status).phrase
        except ValueError:
            return ""

    def encode(self, *, with_body: bool = True) -> bytes:
        """Return the response as bytes.  A response to HEAD goes without its body."""
        items = [item for item in self.headers.raw if item[0].lower() not in _FRAMING]
        if self.status in WITHOUT_CONTENT:
            with_body = False
        else:
            if "content-type" not in self.headers:
                items.append(("Content-Type", "text/plain; charset=utf-8"))
            items.append(("Content-Length", str(len(self.body))))
        items.append(("Connection", "close"))
        lines = [f"HTTP/1.1 {self.status} {self.reason}", *(f"{name}: {value}" for name, value in items), "", ""]
        return "\r\n".join(lines).encode("latin-1") + (self.body if with_body else b"")


_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_BUSY: Final = (429, 503)


def retry_after(response: HTTPResponse, now: float) -> float:
    """Return how many seconds a busy server asks us to wait (RFC 9110, 10.2.3).

    0: it does not ask for a wait.  A date is compared with the response's own ``Date``, since
    clocks may differ, or else with *now*, a POSIX time.
    """
    wanted = response.headers.get("Retry-After", "") if response.status in _BUSY else ""
    if _NUMBER.fullmatch(wanted):
        return float(wanted)
    until = _http_date(wanted)
    if until is None:
        return 0.0
    said = _http_date(response.headers.get("Date", ""))
    return max(0.0, until - (now if said is None else said))


def _http_date(text: str) -> float | None:
    from calendar import timegm  # noqa: PLC0415  # few programs need them
    from email.utils import parsedate  # noqa: PLC0415

    try:
        parts = parsedate(text)  # all three forms of RFC 9110, 5.6.7, which are in GMT
        return None if parts is None else timegm(parts)
    except (ValueError, IndexError, OverflowError):
        return None


def text_response(status: int, text: str, headers: Mapping[str, str] | None = None) -> HTTPResponse:
    """Return a response whose body is one line of *text*."""
    return HTTPResponse(status, f"{text}\n", headers or {})


@final
@attrs.frozen(kw_only=True)
class HTTPInfo:
    """The HTTP handshake of a WebSocket pipe."""

    path: str
    """Path of the request, as it was sent: percent-encoded; ``/`` if it was empty."""
    query: str
    """The part after the ``?``, as it was sent; empty without one."""
    headers: HTTPHeaders
    """Headers of the request."""
    response_headers: HTTPHeaders = attrs.field(factory=HTTPHeaders)
    """Headers of the response; empty before it was sent."""
    scheme: str = "http"
    """``http`` or ``https``: how the client reached us, or the trusted proxy if that reports it."""
    via_trusted_proxy: bool = False
    """Whether the request came from one of ``trusted_proxies``, whose headers can be believed."""

    def __repr__(self) -> str:
        return f"<HTTPInfo {self.path}>"  # a query may hold a token
