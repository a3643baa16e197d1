"""HTTP, as far as WebSocket needs it: how the two sides are configured, and what a pipe shows of it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final, Literal, cast, final
from urllib.parse import unquote, urlsplit

import attrs

from sp.address import host_port, is_host, is_path, plain_zone
from sp.checks import check_seconds, choice, count, flag, optional, seconds_or_none
from sp.errors import RefusalResponse

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Health = Callable[[], "HTTPResponse | str | bool | Awaitable[HTTPResponse | str | bool]"]
ForwardedHeader = Literal["X-Forwarded-For", "Forwarded"]
HeaderItems = tuple[tuple[str, str], ...]

_TOKEN: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_OURS: Final = frozenset({"connection", "upgrade", "content-length", "transfer-encoding", "date"})
"""Headers that belong to the handshake, as do those that begin with ``sec-websocket-``."""
_FRAMING: Final = frozenset({"connection", "content-length", "transfer-encoding"})
"""What says where an answer ends, which is ours to say, also for an answer that was somebody else's."""
WITHOUT_CONTENT: Final = (204, 304)
"""They end with their head (RFC 9112, 6.3)."""
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_UNIX: Final = "unix"


class HTTPHeaders(Mapping[str, str]):
    """Headers, looked up in any case.  Several of one name are joined with ``", "`` (RFC 9110, 5.3); ``raw`` keeps them apart."""

    __slots__ = ("_values", "raw")

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        self.raw: HeaderItems = tuple(items)
        """Names and values as they came."""
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


def _header_items(value: Mapping[str, str] | Iterable[tuple[str, str]]) -> HeaderItems:
    if isinstance(value, (str, bytes)):
        raise TypeError(f"headers are a mapping, or pairs of name and value, not {type(value).__name__}")
    if isinstance(value, HTTPHeaders):
        value = value.raw
    pairs = cast("Mapping[str, str]", value).items() if isinstance(value, Mapping) else value
    try:
        items = tuple((name, content) for name, content in pairs)
    except (TypeError, ValueError):
        raise TypeError("headers are a mapping, or pairs of name and value") from None
    for name, content in items:
        check_header(name, content)
    return items


def check_header(name: object, value: object) -> None:
    """Raise unless *name* and *value* make a header that may stand beside those of the handshake.  The value is never shown."""
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(f"a header's name and value must be str, not {type(name).__name__} and {type(value).__name__}")
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a header")
    if name.lower() in _OURS or name.lower().startswith("sec-websocket-"):
        raise ValueError(f"header {name!r} belongs to the handshake and cannot be set")
    if not _VALUE.fullmatch(value) or value != value.strip(" \t"):
        raise ValueError(f"the value of header {name!r} has a line break, another control character, or blanks at its ends")


def _body(value: bytes | str) -> bytes:
    if not isinstance(value, bytes | str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"body must be bytes or str, not {type(value).__name__}")
    return value.encode() if isinstance(value, str) else value


def _headers(value: Mapping[str, str] | Iterable[tuple[str, str]]) -> HTTPHeaders:
    return HTTPHeaders(_header_items(value))


def _size(value: object) -> str:
    return f"<{len(cast('bytes', value))} bytes>"


@final
@attrs.frozen
class HTTPResponse(RefusalResponse):
    """An answer instead of a WebSocket: what ``authorize`` and ``health`` may return, and what a dialer got in ``UpgradeRefused``."""

    status: int = attrs.field(validator=count(200, 599))
    """200 to 599."""
    body: bytes = attrs.field(default=b"", converter=_body, repr=_size)
    """The content; a str is encoded as UTF-8."""
    headers: HTTPHeaders = attrs.field(factory=HTTPHeaders, converter=_headers)
    """Given as a mapping or as pairs; ``Content-Length`` and ``Connection`` are added."""

    @classmethod
    def received(cls, status: int, body: bytes, headers: Iterable[tuple[str, str]]) -> HTTPResponse:
        """Return an answer of somebody else's, who may have sent what we would not."""
        response = cls(status if status >= 200 else 200, body)
        object.__setattr__(response, "status", status)
        object.__setattr__(response, "headers", HTTPHeaders(headers))
        return response

    @property
    def reason(self) -> str:
        """The standard's words for the status; empty when it has none."""
        try:
            return HTTPStatus(self.status).phrase
        except ValueError:
            return ""

    def encode(self, *, with_body: bool = True) -> bytes:
        """Return the bytes for the network; without the body, the answer to HEAD."""
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
_SAYS_WHEN: Final = (429, 503)


def retry_after(answer: HTTPResponse, now: float) -> float:
    """Return the seconds that a busy server wants to be left alone (RFC 9110, 10.2.3).

    0: it does not say.  A date counts from the answer's own ``Date``, since clocks may differ, or
    else from *now*, a POSIX time.
    """
    wanted = answer.headers.get("Retry-After", "") if answer.status in _SAYS_WHEN else ""
    if _NUMBER.fullmatch(wanted):
        return float(wanted)
    until = _http_date(wanted)
    if until is None:
        return 0.0
    said = _http_date(answer.headers.get("Date", ""))
    return max(0.0, until - (now if said is None else said))


def _http_date(text: str) -> float | None:
    from calendar import timegm  # noqa: PLC0415  # few programs ever need them
    from email.utils import parsedate  # noqa: PLC0415

    try:
        parts = parsedate(text)  # all three forms of RFC 9110, 5.6.7; each of them is in GMT
        return None if parts is None else timegm(parts)
    except (ValueError, IndexError, OverflowError):
        return None


def refusal(status: int, reason: str, headers: Mapping[str, str] | None = None) -> HTTPResponse:
    """Return an answer that says *reason* in a line of text."""
    return HTTPResponse(status, f"{reason}\n", headers or {})


@final
@attrs.frozen(kw_only=True)
class HTTPInfo:
    """The handshake of a WebSocket pipe."""

    path: str
    """Of the request, as it was sent: percent-encoded, ``/`` if it was empty."""
    query: str
    """What stood behind the ``?``, as it was sent; empty when there was none."""
    headers: HTTPHeaders
    """Of the request."""
    response_headers: HTTPHeaders = attrs.field(factory=HTTPHeaders)
    """Of the answer; empty before there is one."""
    scheme: str = "http"
    """What the client spoke, ``http`` or ``https``: to a trusted proxy, as that says, or else to us."""
    via_trusted_proxy: bool = False
    """Whether the request came from one of ``trusted_proxies``, which may vouch for headers about its client."""

    def __repr__(self) -> str:
        return f"<HTTPInfo {self.path}>"  # a query may hold a token


def _several(field: str, value: object, kind: type[object] | tuple[type[object], ...] = str) -> tuple[Any, ...]:
    """Return *value*, one or several of *kind*, as a tuple."""
    several = (value,) if isinstance(value, kind) else value
    if isinstance(several, bytes) or not isinstance(several, Iterable):
        raise TypeError(f"{field}: expected str, or several, not {type(value).__name__}")
    found = tuple(cast("Iterable[object]", several))
    for one in found:
        if not isinstance(one, kind):
            raise TypeError(f"{field}: expected str, or several, not {type(one).__name__}")
    return found


def _origins(value: str | Iterable[str]) -> tuple[str, ...]:
    return tuple(_origin(origin) for origin in _several("origins", value))


_MAX_PORT: Final = 65535
_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.\-]*)://(?:\[[0-9a-f:.]+\]|[a-z0-9_\-]+(?:\.[a-z0-9_\-]+)*)(?::([0-9]{1,5}))?")


def _origin(value: str) -> str:
    """Return *value* as browsers send it (RFC 6454, 6.2): in lower case, without a default port."""
    if value in ("*", "null"):
        return value
    match = _ORIGIN.fullmatch(value.lower())
    if match is None or int(match[2] or 0) > _MAX_PORT:
        raise ValueError(f'{value!r} is no origin: expected SCHEME://HOST or SCHEME://HOST:PORT, "null", or "*" for all')
    default = match[2] is not None and _DEFAULT_PORTS.get(match[1]) == int(match[2])
    return normal_origin(value.rpartition(":")[0] if default else value)


def normal_origin(value: str) -> str:
    """Return what a browser sent in the form that is listed."""
    return value.lower()


def _networks(value: str | Iterable[str]) -> tuple[IPNetwork | str, ...]:
    found: list[IPNetwork | str] = []
    for network in _several("trusted_proxies", value, (str, ipaddress.IPv4Network, ipaddress.IPv6Network)):
        if network == _UNIX or not isinstance(network, str):
            found.append(network)
            continue
        try:
            found.append(ipaddress.ip_network(network))
        except ValueError as error:
            raise ValueError(f'trusted_proxies: {network!r} is no network, as 10.0.0.0/8 or 2001:db8::7, nor "unix": {error}') from None
    return tuple(found)


def _check_health(_: object, __: attrs.Attribute[Any], value: object) -> None:
    if not callable(value):
        raise TypeError(f"health must be callable, not {value!r}")


def _check_health_path(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name} must be a str, not {type(value).__name__}")
    if not is_path(value) or "?" in value:
        raise ValueError(f"{attribute.name} must be a path, as /healthz, not {value!r}")


def _check_timeout(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        raise TypeError(f"{attribute.name} must be a number of seconds, not None: for no pings, ping_interval=None")
    check_seconds(attribute.name, value)


@attrs.frozen(kw_only=True)
class _WSConfig:
    ping_interval: float | None = attrs.field(default=20.0, validator=seconds_or_none)
    """Seconds between two pings, whatever else is said; proxies end what is idle for a minute.  None: no pings."""
    ping_timeout: float = attrs.field(default=20.0, validator=_check_timeout)
    """Seconds after a ping in which something has to come from the peer, or the pipe ends with ``PeerSilent``."""
    ping_everyone: bool = attrs.field(default=False, validator=flag)
    """True: ping everybody, and take silence for the end.

    False: not who may be libnanomsg, which gives each ping to its application as a message and never answers; and libnng and mangos, which
    read nothing while their application does not, are pinged and not given up.  By its handshake libnanomsg can be told from browsers, from
    us and mostly from others, but, when it dials, not from libnng."""


@final
@attrs.frozen(kw_only=True)
class WSServerConfig(_WSConfig):
    """How a listener at ``ws://``, ``wss://`` or ``ws+unix:`` treats HTTP.  Wrong values raise TypeError or ValueError."""

    origins: tuple[str, ...] = attrs.field(default=(), converter=_origins)
    """Pages of these origins may connect, as ``https://app.example``; ``"*"``: of all.  Who sends no Origin is no browser, and may."""
    response_headers: HeaderItems = attrs.field(default=(), converter=_header_items, repr=False)
    """Added to the answer of each handshake."""
    health_path: str | None = attrs.field(default=None, validator=optional(_check_health_path))
    """Where GET and HEAD are answered with 200, as ``/healthz``, and with 503 while draining.  None: nowhere."""
    health: Health | None = attrs.field(default=None, validator=optional(_check_health))
    """What it says there: called for each check, may be async.  A str is the body of a 200, False is 503; None: ``ok``."""
    trusted_proxies: tuple[IPNetwork | str, ...] = attrs.field(default=(), converter=_networks)
    """Networks whose word counts on whom they forward for, as ``10.0.0.0/8``; ``"unix"``: whoever comes by a unix socket."""
    forwarded_header: ForwardedHeader = attrs.field(default="X-Forwarded-For", validator=choice("X-Forwarded-For", "Forwarded"))
    """Where the proxies say so; the other header is not looked at, since a client may have sent it."""

    def __attrs_post_init__(self) -> None:
        if self.health is not None and self.health_path is None:
            raise ValueError("health says nothing without health_path: give that as well")

    def allows_origin(self, origin: str) -> bool:
        """Whether a page of *origin* may connect."""
        return "*" in self.origins or normal_origin(origin) in self.origins

    def trusts(self, address: IPAddress | None) -> bool:
        """Whether a peer with this address is a trusted proxy; None: one that came by a unix socket."""
        if address is None:
            return _UNIX in self.trusted_proxies
        return any(not isinstance(network, str) and address in network for network in self.trusted_proxies)


def _check_host(_: object, __: attrs.Attribute[Any], value: HeaderItems) -> None:
    hosts = [content for name, content in value if name.lower() == "host"]
    if len(hosts) > 1 or any(not content or " " in content for content in hosts):
        raise ValueError(f"headers: there is one Host, a name or address and perhaps a port, not {hosts!r}")


def _check_proxy(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is True or value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name} must be a URL, True or None, not {type(value).__name__}")
    ConnectProxy.parse(value)


def _shown_proxy(value: object) -> str:
    return f"'http://{ConnectProxy.parse(value).address}'" if isinstance(value, str) else repr(value)


@final
@attrs.frozen(kw_only=True)
class WSClientConfig(_WSConfig):
    """How a dialer to ``ws://``, ``wss://`` or ``ws+unix:`` treats HTTP.  Wrong values raise TypeError or ValueError."""

    headers: HeaderItems = attrs.field(default=(), converter=_header_items, validator=_check_host, repr=False)
    """Added to each request, for example ``Authorization`` or ``Cookie``; ``Host``, ``Origin`` and ``User-Agent`` can be set as well."""
    proxy: str | Literal[True] | None = attrs.field(default=True, validator=_check_proxy, repr=_shown_proxy)
    """``http://[USER:PASSWORD@]HOST:PORT`` of a proxy to go through, by CONNECT.

    True: as the environment says (``HTTPS_PROXY`` for wss, ``HTTP_PROXY`` for ws, ``NO_PROXY``).  None: none."""


@attrs.frozen
class ConnectProxy:
    """A proxy for CONNECT."""

    host: str
    port: int
    username: str | None = attrs.field(default=None, repr=False)
    password: str = attrs.field(default="", repr=False)

    @property
    def address(self) -> str:
        """Host and port, for messages: the credentials stay out."""
        return host_port(self.host, self.port)

    @classmethod
    def parse(cls, url: str) -> ConnectProxy:
        """Take *url* apart.  Raises ValueError, which does not show it: it may hold a password."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            raise ValueError("proxy: no URL, expected http://[USER:PASSWORD@]HOST:PORT") from None
        if parts.scheme != "http":
            raise ValueError(f"proxy: {parts.scheme}:// is not supported, expected http://[USER:PASSWORD@]HOST:PORT")
        if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("proxy: expected http://[USER:PASSWORD@]HOST:PORT and nothing more")
        if port == 0 or not _is_proxy_host(parts.hostname):
            raise ValueError(
                "proxy: expected a host name or an IP address, and a port from 1 to 65535, in http://[USER:PASSWORD@]HOST:PORT"
            )
        username = None if parts.username is None else unquote(parts.username)
        return cls(parts.hostname, port or 80, username, unquote(parts.password or ""))


def _is_proxy_host(host: str) -> bool:
    try:
        return is_host(plain_zone(host.encode("idna").decode()))
    except UnicodeError:
        return False
