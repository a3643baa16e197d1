"""The HTTP side of listeners and dialers of ``ws``, ``wss`` and ``ws+unix``."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Literal, cast, final

import attrs

from sp.address import is_path
from sp.checks import check_seconds, choice, flag, optional, seconds_or_none
from sp.http.connect_proxy import ConnectProxy
from sp.http.message import HeaderItems, HTTPResponse, header_items

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Health = Callable[[], HTTPResponse | str | bool | Awaitable[HTTPResponse | str | bool]]
ForwardedHeader = Literal["X-Forwarded-For", "Forwarded"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_UNIX: Final = "unix"


def _several(field: str, value: object, kind: type[object] | tuple[type[object], ...] = str) -> tuple[Any, ...]:
    """Return *value*, one or several of *kind*, as a tuple."""
    several = (value,) if isinstance(value, kind) else value
    if isinstance(several, bytes) or not isinstance(several, Iterable):
        raise TypeError(f"{field}: expected a str or several, not {type(value).__name__}")
    found = tuple(cast("Iterable[object]", several))
    for one in found:
        if not isinstance(one, kind):
            raise TypeError(f"{field}: expected a str or several, not {type(one).__name__}")
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
        raise ValueError(f'{value!r} is not an origin: expected SCHEME://HOST or SCHEME://HOST:PORT, "null", or "*" for all')
    default = match[2] is not None and _DEFAULT_PORTS.get(match[1]) == int(match[2])
    return normal_origin(value.rpartition(":")[0] if default else value)


def normal_origin(value: str) -> str:
    """Return an origin that a browser sent, in the form that ``origins`` uses."""
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
            raise ValueError(
                f'trusted_proxies: {network!r} is not a network like 10.0.0.0/8 or 2001:db8::7, and not "unix": {error}'
            ) from None
    return tuple(found)


def _check_health(_: object, __: attrs.Attribute[Any], value: object) -> None:
    if not callable(value):
        raise TypeError(f"health must be a function or None, not {value!r}")


def _check_health_path(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name} must be a str, not {type(value).__name__}")
    if not is_path(value) or "?" in value:
        raise ValueError(f"{attribute.name} must be a path like /healthz, not {value!r}")


def _check_timeout(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        raise TypeError(f"{attribute.name} must be a number of seconds, not None: set ping_interval=None to send no pings")
    check_seconds(attribute.name, value)


@attrs.frozen(kw_only=True)
class _WSConfig:
    ping_interval: float | None = attrs.field(default=20.0, validator=seconds_or_none)
    """Seconds between two pings, sent even while messages flow.

    Proxies often end connections that are idle for a minute.

    None: no pings.
    """
    ping_timeout: float = attrs.field(default=20.0, validator=_check_timeout)
    """Seconds after a ping within which something must arrive from the peer.

    Otherwise the pipe ends with ``PeerSilent``.
    """
    ping_everyone: bool = attrs.field(default=False, validator=flag)
    """True: ping every peer, and end the pipe if the peer stays silent.

    False, the default: a peer that may be libnanomsg gets no pings, because it passes each ping to
    its application as a message and never answers.  libnng and mangos get pings, but a missing
    answer does not end the pipe: they read nothing while their application does not receive.  The
    handshake tells libnanomsg from browsers, from this library and from most others.  When
    libnanomsg dials, it looks like libnng.
    """


@final
@attrs.frozen(kw_only=True)
class WSServerConfig(_WSConfig):
    """Options of a listener at ``ws://``, ``wss://`` or ``ws+unix:``.

    Wrong values raise TypeError or ValueError.
    """

    origins: tuple[str, ...] = attrs.field(default=(), converter=_origins)
    """Origins whose web pages may connect, like ``https://app.example``; ``"*"``: all.

    Default: none.

    A client that sends no ``Origin`` is not a browser and may always connect.
    """
    response_headers: HeaderItems = attrs.field(default=(), converter=header_items, repr=False)
    """Headers added to the response of each handshake."""
    health_path: str | None = attrs.field(default=None, validator=optional(_check_health_path))
    """Path of a health check, like ``/healthz``; None: no health check.

    GET and HEAD get 200, or 503 while the listener drains.
    """
    health: Health | None = attrs.field(default=None, validator=optional(_check_health))
    """Function, async or not, that is called for each health check.

    It returns True or a str (the body) for 200, False for 503, or an ``HTTPResponse``.  None: 200
    with the body ``ok``.
    """
    trusted_proxies: tuple[IPNetwork | str, ...] = attrs.field(default=(), converter=_networks)
    """Networks of proxies whose headers about the client are believed, like ``10.0.0.0/8``.

    ``"unix"``: every peer that connects by a unix socket.
    """
    forwarded_header: ForwardedHeader = attrs.field(default="X-Forwarded-For", validator=choice("X-Forwarded-For", "Forwarded"))
    """The header in which these proxies name the client.

    The other one is ignored, because a client may have sent it.
    """

    def __attrs_post_init__(self) -> None:
        if self.health is not None and self.health_path is None:
            raise ValueError("health is never called without health_path: set that as well")

    def allows_origin(self, origin: str) -> bool:
        """Whether a web page of *origin* may connect."""
        return "*" in self.origins or normal_origin(origin) in self.origins

    def trusts(self, address: IPAddress | None) -> bool:
        """Whether a peer at this address is a trusted proxy.  None: it came by a unix socket."""
        if address is None:
            return _UNIX in self.trusted_proxies
        return any(not isinstance(network, str) and address in network for network in self.trusted_proxies)


def _check_host(_: object, __: attrs.Attribute[Any], value: HeaderItems) -> None:
    hosts = [content for name, content in value if name.lower() == "host"]
    if len(hosts) > 1 or any(not content or " " in content for content in hosts):
        raise ValueError(f"headers: expected one Host, a name or an address with or without a port, not {hosts!r}")


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
    """Options of a dialer to ``ws://``, ``wss://`` or ``ws+unix:``.

    Wrong values raise TypeError or ValueError.
    """

    headers: HeaderItems = attrs.field(default=(), converter=header_items, validator=_check_host, repr=False)
    """Headers added to each request, for example ``Authorization`` or ``Cookie``.

    ``Host``, ``Origin`` and ``User-Agent`` replace the default ones.
    """
    proxy: str | Literal[True] | None = attrs.field(default=True, validator=_check_proxy, repr=_shown_proxy)
    """URL of an HTTP proxy to connect through (CONNECT): ``http://[USER:PASSWORD@]HOST:PORT``.

    True, the default: the environment decides (``HTTPS_PROXY`` for wss, ``HTTP_PROXY`` for ws,
    ``NO_PROXY``).  None: no proxy.
    """
