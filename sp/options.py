"""What can be set on a socket: keyword arguments that become one frozen object."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, cast

import attrs

from sp.checks import count, flag, optional, plain_function, seconds

if TYPE_CHECKING:
    from sp.http.config import WSClientConfig, WSServerConfig
    from sp.http.message import HTTPResponse
    from sp.pipe import Pipe
    from sp.tls.config import TLSClientConfig, TLSServerConfig

    _Attribute = attrs.Attribute[Any]

Authorize = Callable[["Pipe"], "bool | HTTPResponse | Awaitable[bool | HTTPResponse]"]
DEFAULT_PRIORITY = 8
ShouldRedial = Callable[[Exception], bool]
DropPolicy = Literal["oldest", "newest"]
DROP_POLICIES: Final[tuple[DropPolicy, ...]] = ("oldest", "newest")


def _tls(_: object, __: _Attribute, value: object) -> None:
    # By name: the classes stand in a higher layer.
    if value is not None and type(value).__name__ not in ("TLSServerConfig", "TLSClientConfig"):
        raise TypeError(f"tls must be a TLSServerConfig or a TLSClientConfig, not {type(value).__name__}")


def _ws(_: object, __: _Attribute, value: object) -> None:
    if value is not None and type(value).__name__ not in ("WSServerConfig", "WSClientConfig"):
        raise TypeError(f"ws must be a WSServerConfig or a WSClientConfig, not {type(value).__name__}")


class SocketKeywords(TypedDict, total=False):
    """The keyword arguments that every socket takes; :class:`SocketOptions` says what each one means."""

    dial: str | Sequence[str]
    listen: str | Sequence[str]
    tls: TLSServerConfig | TLSClientConfig | None
    ws: WSServerConfig | WSClientConfig | None
    proxy_protocol: bool
    authorize: Authorize | None
    should_redial: ShouldRedial | None
    max_message_size: int | None
    inbox_limit: int
    inbox_bytes: int
    outbox_limit: int
    outbox_bytes: int
    reply_limit: int
    reply_bytes: int
    handshake_timeout: float
    max_handshakes: int
    redial_min: float
    redial_max: float
    tcp_keepalive: float | None
    linger: float
    ipc_mode: int | None


def _urls(value: str | Sequence[str]) -> tuple[str, ...]:
    urls = cast("object", (value,) if isinstance(value, str) else value)
    if isinstance(urls, bytes) or not isinstance(urls, Iterable):
        raise TypeError(f"dial and listen take a URL or several, each a str, not {value!r}")
    return tuple(cast("Iterable[str]", urls))


@attrs.frozen(kw_only=True)
class SocketOptions:
    """What every socket can be told.  Nothing can be changed once the socket exists.

    Every queue takes a message whenever it is empty, so that no byte bound keeps a legal message out.
    """

    dial: tuple[str, ...] = attrs.field(default=(), converter=_urls)
    """One URL or several, dialed in the background once the socket is entered."""
    listen: tuple[str, ...] = attrs.field(default=(), converter=_urls)
    """One URL or several, listened on once the socket is entered."""
    tls: TLSServerConfig | TLSClientConfig | None = attrs.field(default=None, validator=_tls)
    """The configuration for URLs with TLS, a listener's or a dialer's; ``listen`` and ``dial`` take one of their own as well."""
    ws: WSServerConfig | WSClientConfig | None = attrs.field(default=None, validator=_ws)
    """For URLs that begin as HTTP (``ws``, ``wss``, ``ws+unix``), a listener's or a dialer's; ``listen`` and ``dial`` take their own."""
    proxy_protocol: bool = attrs.field(default=False, validator=flag)
    """Whether every connection to a listener begins with a PROXY protocol header.  ``listen`` takes one of its own."""
    authorize: Authorize | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.is_callable()))
    """Sees each pipe after the greeting and before any message; anything but True, or an exception, ends the pipe.  May be async.

    Who has come by HTTP has not had its answer then: an ``HTTPResponse`` refuses it with that, anything else but True with a 403."""
    should_redial: ShouldRedial | None = attrs.field(default=None, validator=optional(plain_function))
    """Asked with the reason after each failed attempt or lost pipe; false ends the dialer.  None: always redial."""
    max_message_size: int | None = attrs.field(default=1 << 20, validator=optional(count(0)))
    """Largest message accepted, in bytes of header and body; exactly this size is accepted.  None: no limit."""
    inbox_limit: int = attrs.field(default=128, validator=count(1))
    """Messages that may wait for ``receive``, per context."""
    inbox_bytes: int = attrs.field(default=4 << 20, validator=count(1))
    """Bytes of bodies that may wait for ``receive``, per context."""
    outbox_limit: int = attrs.field(default=128, validator=count(1))
    """Messages that may wait to be written, per pipe."""
    outbox_bytes: int = attrs.field(default=4 << 20, validator=count(1))
    """Bytes that may wait to be written, per pipe."""
    reply_limit: int = attrs.field(default=1024, validator=count(1))
    """Replies of REP and RESPONDENT that may wait for one peer, beyond its outbox.

    A peer with more of them is not read until half has gone.  Requests that the application has
    already received can still be answered.  A peer that takes nothing for 60 s meanwhile is ended
    (PeerStalled)."""
    reply_bytes: int = attrs.field(default=4 << 20, validator=count(1))
    """The same in bytes of headers and bodies."""
    handshake_timeout: float = attrs.field(default=10.0, validator=seconds(zero=False))
    """Seconds a new connection has until its pipe is attached, ``authorize`` included; a dial has as long to connect."""
    max_handshakes: int = attrs.field(default=1024, validator=count(1))
    """Newcomers that may be greeting at once, per listener; one more ends the oldest."""
    redial_min: float = attrs.field(default=0.1, validator=seconds(zero=False))
    """Shortest wait in seconds before a redial; equal to ``redial_max`` it makes the wait constant."""
    redial_max: float = attrs.field(default=60.0, validator=seconds(zero=False))
    """Longest wait in seconds before a redial."""
    tcp_keepalive: float | None = attrs.field(default=60.0, validator=optional(seconds(zero=False, maximum=86_400)))
    """Seconds after which a tcp peer that vanished without a word is given up.  None: when the kernel does."""
    linger: float = attrs.field(default=1.0, validator=seconds(zero=True))
    """Seconds that ``aclose`` may take to deliver what was accepted.  0: it drops that at once."""
    ipc_mode: int | None = attrs.field(default=None, validator=optional(count(0, 0o777)))
    """Permission bits of a listener's socket file.  None: what the umask leaves."""

    def __attrs_post_init__(self) -> None:
        if self.redial_max < self.redial_min:
            raise ValueError(f"redial_min must not be above redial_max: {self.redial_min} is above {self.redial_max}")
