"""The options of a socket: keyword arguments that become one frozen object."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, cast

import attrs

from sp.checks import count, flag, function, optional, plain_function, seconds
from sp.pipe import Pipe

if TYPE_CHECKING:
    from sp.http.config import WSClientConfig, WSServerConfig
    from sp.http.message import HTTPResponse
    from sp.tls.config import TLSClientConfig, TLSServerConfig

    _Attribute = attrs.Attribute[Any]

Authorize = Callable[["Pipe"], "bool | HTTPResponse | Awaitable[bool | HTTPResponse]"]
DEFAULT_PRIORITY = 8
ShouldRedial = Callable[[Exception], bool]
DropPolicy = Literal["oldest", "newest"]
DROP_POLICIES: Final[tuple[DropPolicy, ...]] = ("oldest", "newest")


def _tls(_: object, __: _Attribute, value: object) -> None:
    # Compare names, because the classes are in a higher layer.
    if value is not None and type(value).__name__ not in ("TLSServerConfig", "TLSClientConfig"):
        raise TypeError(f"tls must be a TLSServerConfig or a TLSClientConfig, not {type(value).__name__}")


def _ws(_: object, __: _Attribute, value: object) -> None:
    if value is not None and type(value).__name__ not in ("WSServerConfig", "WSClientConfig"):
        raise TypeError(f"ws must be a WSServerConfig or a WSClientConfig, not {type(value).__name__}")


class SocketKeywords(TypedDict, total=False):
    """The keyword arguments that every socket takes.  :class:`SocketOptions` describes them."""

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
    """The options that every socket has.  They cannot be changed once the socket exists.

    An empty queue takes any message, so a limit in bytes never keeps out a message that
    ``max_message_size`` allows.
    """

    dial: tuple[str, ...] = attrs.field(default=(), converter=_urls)
    """One URL (str) or several.

    The socket begins to dial them when its block is entered, as ``dial(url, wait=False)`` does.
    """
    listen: tuple[str, ...] = attrs.field(default=(), converter=_urls)
    """One URL (str) or several.  The socket listens on them when its block is entered."""
    tls: TLSServerConfig | TLSClientConfig | None = attrs.field(default=None, validator=_tls)
    """The configuration for ``tls+tcp`` and ``wss`` URLs, unless ``dial`` or ``listen`` has one.

    None: dialers trust the system's CAs, and listeners need one of their own.
    """
    ws: WSServerConfig | WSClientConfig | None = attrs.field(default=None, validator=_ws)
    """The configuration for ``ws``, ``wss`` and ``ws+unix`` URLs.

    ``dial`` and ``listen`` can have another one.  None: the defaults.
    """
    proxy_protocol: bool = attrs.field(default=False, validator=flag)
    """Whether each connection to a listener begins with a PROXY protocol header.

    ``listen`` can say otherwise.
    """
    authorize: Authorize | None = attrs.field(default=None, validator=optional(function))
    """A function, plain or async, that decides about each new ``Pipe``: True accepts it.

    It is called before any message.  If it returns anything else or raises, the pipe ends.  A peer
    over WebSocket then gets a 403, or the ``HTTPResponse`` that was returned.  None: every peer is
    accepted.
    """
    should_redial: ShouldRedial | None = attrs.field(default=None, validator=optional(plain_function))
    """A plain function that is called with the exception after each failure or lost pipe.

    If it returns something false, the dialer ends.  None: dialers always try again.
    """
    max_message_size: int | None = attrs.field(default=1 << 20, validator=optional(count(0)))
    """Largest message to accept, in bytes of header and body.

    A larger one ends its pipe.  None: no limit.
    """
    inbox_limit: int = attrs.field(default=128, validator=count(1))
    """How many messages may wait for ``receive``, for each context."""
    inbox_bytes: int = attrs.field(default=4 << 20, validator=count(1))
    """How many bytes of bodies may wait for ``receive``, for each context."""
    outbox_limit: int = attrs.field(default=128, validator=count(1))
    """How many messages may wait to be written, for each pipe."""
    outbox_bytes: int = attrs.field(default=4 << 20, validator=count(1))
    """How many bytes may wait to be written, for each pipe."""
    reply_limit: int = attrs.field(default=1024, validator=count(1))
    """How many replies of REP or RESPONDENT may wait for one peer, beyond its outbox.

    While more wait, the peer is not read, until half of them have gone.  Requests that were
    received can still be answered.  If the peer reads nothing for 60 s, its pipe ends with
    PeerStalled.
    """
    reply_bytes: int = attrs.field(default=4 << 20, validator=count(1))
    """The same limit in bytes of headers and bodies."""
    handshake_timeout: float = attrs.field(default=10.0, validator=seconds(zero=False))
    """Seconds from a new connection to an attached pipe, with TLS, HTTP and ``authorize``.

    A dialer may take the same time once more to connect.
    """
    max_handshakes: int = attrs.field(default=1024, validator=count(1))
    """How many handshakes may be under way at once, for each listener.

    One more ends the one that has taken longest.
    """
    redial_min: float = attrs.field(default=0.1, validator=seconds(zero=False))
    """The shortest wait before a redial, in seconds.

    If it equals ``redial_max``, all waits are the same.
    """
    redial_max: float = attrs.field(default=60.0, validator=seconds(zero=False))
    """The longest wait before a redial, in seconds."""
    tcp_keepalive: float | None = attrs.field(default=60.0, validator=optional(seconds(zero=False, maximum=86_400)))
    """Seconds until a tcp peer that vanished is given up, at most a day.

    None: the kernel decides.
    """
    linger: float = attrs.field(default=1.0, validator=seconds(zero=True))
    """Seconds that ``aclose`` may take to deliver the messages that were accepted.

    0: they are dropped at once.
    """
    ipc_mode: int | None = attrs.field(default=None, validator=optional(count(0, 0o777)))
    """The permissions of the socket file of an ``ipc`` or ``ws+unix`` listener.

    For example ``0o600``.  None: the umask decides.
    """

    def __attrs_post_init__(self) -> None:
        if self.redial_max < self.redial_min:
            raise ValueError(f"redial_min must not be above redial_max: {self.redial_min} is above {self.redial_max}")
