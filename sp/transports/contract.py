"""What a transport offers to a socket.

A transport connects or listens.  Both give newcomers, which become connections once they are
greeted and accepted.  A connection moves messages in batches, and does not wait if it need not.  A
caller's ``send`` may write by itself, and a task waits only when the kernel takes no more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import attrs

from sp.address import Address
from sp.errors import PipeRefused, WrongProtocol
from sp.http.config import WSClientConfig, WSServerConfig
from sp.http.message import HTTPInfo
from sp.message import FindBody, Message
from sp.options import SocketOptions
from sp.tls.config import TLSClientConfig, TLSServerConfig
from sp.tls.info import TLSInfo
from sp.transports.proxy_protocol import ProxyInfo

SHORTEST_KEEPALIVE: Final = 2
"""In seconds.

The kernel counts whole seconds.  It needs one before it asks, and one for the answer.
"""


@attrs.frozen(kw_only=True)
class EndpointConfig:
    """What a transport needs to know about its socket and about the URL."""

    number: int
    """Our protocol's number, for our greeting."""
    peer_number: int
    """The number that the peer should have.  Admission compares it, so a transport need not."""
    find_body: FindBody | None
    """Where the body begins in what the peer sends; None: its messages have no header."""
    options: SocketOptions
    """The options of the socket, such as ``max_message_size``."""


@attrs.frozen(kw_only=True)
class DialerConfig(EndpointConfig):
    """What ``connect`` needs to know of a dialer as well."""

    tls: TLSClientConfig | None
    """None for a scheme without TLS."""
    ws: WSClientConfig
    """For a scheme over WebSocket."""


@attrs.frozen(kw_only=True)
class ListenerConfig(EndpointConfig):
    """What ``listen`` needs to know of a listener as well."""

    tls: TLSServerConfig | None
    """None for a scheme without TLS."""
    ws: WSServerConfig
    """For a scheme over WebSocket."""
    proxy_protocol: bool
    """Whether connections begin with a PROXY protocol header."""


class HandedOver(Exception):  # one way for ``greet`` to end, not an error
    """The newcomer belongs to another listener on the same port, which has it now."""


class AnsweredByHTTP(Exception):  # one way for ``greet`` to end, not an error
    """The newcomer was a health check, and has been answered."""


class Peer(Protocol):
    """What we know about a peer that has greeted us."""

    @property
    def local_address(self) -> str: ...

    @property
    def remote_address(self) -> str: ...

    @property
    def proxy(self) -> ProxyInfo | None:
        """The PROXY protocol header; None without one."""
        ...

    @property
    def proxy_address(self) -> str | None:
        """The address of the proxy, if ``remote_address`` is its client; None without a proxy."""
        ...

    @property
    def http(self) -> HTTPInfo | None:
        """The opening handshake of a WebSocket; None elsewhere."""
        ...

    @property
    def tls(self) -> TLSInfo | None:
        """None without TLS."""
        ...

    def close(self, error: Exception | None = None) -> None:
        """End the connection now, because of *error*, and wake the tasks that wait on it.

        A second call does nothing.
        """
        ...


class Newcomer(Protocol):
    """A new connection, before the two sides have greeted.

    ``greet`` makes it a ``Greeted``, whose ``accept`` makes it a ``Connection``.  In each of these
    states, ``close`` of the newcomer ends the connection.
    """

    @property
    def remote_address(self) -> str: ...

    @property
    def tls(self) -> TLSInfo | None:
        """None before the TLS handshake, and without TLS."""
        ...

    @property
    def stage(self) -> str:
        """What ``greet`` is waiting for, in words."""
        ...

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        ...

    @property
    def defers_greeting(self) -> bool:
        """Whether our greeting waits for ``Greeted.accept``: until then the peer has no pipe."""
        ...

    def defer_greeting(self) -> None:
        """Let our greeting wait for ``Greeted.accept``.  Call this before ``greet``."""
        ...

    async def greet(self) -> Greeted:
        """Exchange greetings.  The caller sets the time limit.

        Raises PeerError or OSError, or ClosedResourceError if it is closed meanwhile.  Raises
        HandedOver or AnsweredByHTTP if nothing is wrong but there will be no pipe.
        """
        ...

    async def linger_close(self, error: Exception | None = None) -> None:
        """Give a peer that was rejected because of *error* a moment to read why.

        Call this before ``close``, which could destroy our last words on their way (RST).
        """
        ...

    def close(self, error: Exception | None = None) -> None:
        """End the connection now, because of *error*, and wake the tasks that wait on it.

        A second call does nothing.
        """
        ...


class Greeted(Peer, Protocol):
    """A connection whose peer has greeted us.  It will be accepted or rejected."""

    @property
    def peer_number(self) -> int:
        """The number of the peer's protocol."""
        ...

    def accept(self) -> Connection:
        """Accept the peer: send it our greeting, if that was deferred.  Raises OSError."""
        ...

    async def reject(self, error: PipeRefused | WrongProtocol) -> None:
        """Tell the peer that it was turned away, if the transport has a way to say so.

        Call ``close`` afterwards.
        """
        ...


class Connection(Peer, Protocol):
    """An accepted connection.  It carries messages."""

    @property
    def allows_direct_read(self) -> bool:
        """Whether it is faster if a task that waits for a message reads the connection itself."""
        ...

    @property
    def keep_alive(self) -> Callable[[], Awaitable[None]] | None:
        """A function to run in a task of its own while the pipe is attached; None: nothing."""
        ...

    @property
    def detects_silence(self) -> bool:
        """Whether ``check_silence`` can find out anything: only Linux says, and only about TCP."""
        ...

    def check_silence(self, now: float) -> bool:
        """Raise PeerSilent if the peer, or the way to it, seems to be gone.

        That is so if it has acknowledged nothing of what was sent for ``tcp_keepalive`` seconds.
        Returns whether data is in flight: if so, another check is worthwhile.  *now* is trio's
        time.
        """
        ...

    def acknowledged(self) -> int:
        """Return how many bytes the peer's system has taken; always 0 if that is not known."""
        ...

    def send_nowait(self, outbox: deque[Message]) -> bool:
        """Write messages from the left of *outbox*; remove those that the connection takes.

        True: all is written.  False: the peer takes no more now; call ``wait_writable``, then this
        again.  Raises OSError.
        """
        ...

    async def wait_writable(self) -> None:
        """Wait until ``send_nowait`` is worth a try.

        Raises ClosedResourceError when the connection is closed meanwhile.
        """
        ...

    @property
    def unsent(self) -> int:
        """The number of messages that the connection has, but has not completely written."""
        ...

    async def receive_batch(self) -> list[Message]:
        """Return what has arrived, at least one message.  Empty: the peer ended the connection.

        The header and the body of each message are split where ``find_body`` says.  A message with
        a broken header, or one above ``max_message_size``, is a PeerError; those before it are
        returned first.

        Always a checkpoint.  A cancellation loses nothing.  Raises PeerError, OSError, or
        ClosedResourceError.
        """
        ...

    def interrupt(self) -> None:
        """Make a ``receive_batch`` that waits raise ClosedResourceError.  The next call works."""
        ...

    def finish(self) -> bool:
        """Tell the peer that nothing more will be sent.

        False: the peer takes no more now; call ``wait_writable``, then this again.
        """
        ...


class Acceptor(Protocol):
    """A bound address."""

    @property
    def url(self) -> str: ...

    async def accept(self) -> list[Newcomer]:
        """Wait for newcomers.

        Raises ClosedResourceError when closed.  Raises OSError, after which it may be called again.
        """
        ...

    def drain(self) -> None:
        """Take no more newcomers.

        Reject them if the transport has a way to say so; otherwise stop listening.
        """
        ...

    def close(self) -> None:
        """Stop listening and free the address.

        A second call does nothing, because another process may have the address by then.
        """
        ...


class Transport(Protocol):
    """What a module of this package has to offer."""

    async def connect(self, address: Address, endpoint: DialerConfig) -> Newcomer:
        """Open a connection.  Raises OSError or AddressError."""
        ...

    async def listen(self, address: Address, endpoint: ListenerConfig) -> list[Acceptor]:
        """Bind *address*.

        A name may stand for several addresses; their acceptors all have the same URL.

        Raises OSError or AddressError.
        """
        ...
