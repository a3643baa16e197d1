"""What a transport offers to a socket.

A transport connects or listens; both give connections.  A connection moves messages in batches, without blocking where it can:
the caller's own ``send`` may write, and tasks only wait when the kernel does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import attrs

from sp.address import Address
from sp.errors import PipeRefused
from sp.http.config import WSClientConfig, WSServerConfig
from sp.http.message import HTTPInfo
from sp.message import FindBody, Message
from sp.options import SocketOptions
from sp.tls.config import TLSClientConfig, TLSServerConfig
from sp.tls.info import TLSInfo
from sp.transports.proxy_protocol import ProxyInfo

SHORTEST_KEEPALIVE: Final = 2
"""Seconds; the kernel counts in whole ones, and needs one until it asks and one for the answer."""


@attrs.frozen(kw_only=True)
class EndpointConfig:
    """What a transport needs to know of the socket that it works for."""

    number: int
    peer_number: int
    find_body: FindBody | None
    options: SocketOptions
    tls: TLSServerConfig | TLSClientConfig | None = None
    """For a scheme with TLS: the side's configuration."""
    ws: WSServerConfig | WSClientConfig | None = None
    """For a scheme over WebSocket: the side's configuration."""
    proxy_protocol: bool = False
    """For a listener: whether connections begin with a PROXY protocol header."""


class HandedOver(Exception):  # an answer of ``greet``, and no error
    """The newcomer is for another listener, which has it now."""


class AnsweredByHTTP(Exception):  # an answer of ``greet``, and no error
    """The newcomer wanted to know something, and was told."""


class Connection(Protocol):
    """A link that carries messages, once ``greet`` has returned."""

    @property
    def local_address(self) -> str: ...

    @property
    def remote_address(self) -> str: ...

    @property
    def proxy(self) -> ProxyInfo | None:
        """What a PROXY protocol header says, once it is read; None without one."""
        ...

    @property
    def proxy_address(self) -> str | None:
        """The address of the proxy that is connected to us, when ``remote_address`` is its client's; None: the peer speaks for itself."""
        ...

    @property
    def http(self) -> HTTPInfo | None:
        """The handshake, where there is one, once it is read."""
        ...

    @property
    def tls(self) -> TLSInfo | None:
        """What TLS says of the connection, once it is established; None without TLS."""
        ...

    @property
    def stage(self) -> str:
        """What ``greet`` is waiting for, in words."""
        ...

    @property
    def allows_direct_read(self) -> bool:
        """Whether it is worth the while to let a task that waits for a message read the connection itself."""
        ...

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        ...

    @property
    def asks(self) -> bool:
        """Whether the peer's greeting is a question: it has no pipe before ``admit``."""
        ...

    def defer_greeting(self) -> None:
        """Make it one: called before ``greet``, our greeting is kept until ``admit``."""
        ...

    async def greet(self) -> int:
        """Exchange greetings; return the peer's protocol number.  The caller sets the time limit.

        Raises PeerError or OSError; HandedOver or AnsweredByHTTP when there is to be no pipe and nothing is wrong.
        Where the greeting is a question, its answer is left to ``admit`` or ``refuse``.
        """
        ...

    def admit(self) -> None:
        """The socket takes the peer: answer it, if it waits for that.  Raises OSError."""
        ...

    async def refuse(self, refusal: PipeRefused) -> None:
        """The socket does not take the peer: answer it, if it waits for that."""
        ...

    async def linger_close(self, error: Exception | None = None) -> None:
        """Give a peer that was refused, for *error*, a moment to read why, before ``close``: that could take our last words back (RST)."""
        ...

    @property
    def keep_alive(self) -> Callable[[], Awaitable[None]] | None:
        """What is to run beside the pipe as long as it is attached; None: nothing."""
        ...

    @property
    def watchable(self) -> bool:
        """Whether ``look`` can tell something."""
        ...

    def look(self, now: float) -> bool:
        """Return whether data is in flight, so that looking again is worth while.

        Raises PeerSilent when the peer, or the way to it, seems to be gone: it has not answered
        what was sent, for the time of ``tcp_keepalive``.  *now* is trio's time.
        """
        ...

    def acknowledged(self) -> int:
        """Return how many bytes the peer's system has taken; always 0 where ours does not tell."""
        ...

    def send_nowait(self, outbox: deque[Message]) -> bool:
        """Write messages from the left of *outbox*, taking out what was taken over.

        True: all is written.  False: the peer takes no more now; ``wait_writable``, then call again.  Raises OSError.
        """
        ...

    async def wait_writable(self) -> None:
        """Wait until ``send_nowait`` is worth a try.  Raises ClosedResourceError when the connection is closed meanwhile."""
        ...

    @property
    def unsent(self) -> int:
        """Messages that were taken over and not written to the end of the last of them."""
        ...

    async def receive_batch(self) -> list[Message]:
        """Return what has arrived, at least one message; empty: the peer has ended the connection.

        Always a schedule point.  A cancellation loses nothing.  Raises PeerError, OSError, or ClosedResourceError.
        """
        ...

    def interrupt(self) -> None:
        """Make a ``receive_batch`` that waits raise ClosedResourceError; the next one works again."""
        ...

    def finish(self) -> bool:
        """Tell the peer that nothing more will be sent.  False: it takes no more now; ``wait_writable``, then call again."""
        ...

    def close(self, error: Exception | None = None) -> None:
        """End the connection now, for *error*, and wake who waits on it.  A second time does nothing."""
        ...


class Acceptor(Protocol):
    """A bound address."""

    @property
    def url(self) -> str: ...

    async def accept(self) -> list[Connection]:
        """Wait for newcomers, not greeted yet.

        Raises ClosedResourceError when closed, and OSError, after which it may be called again.
        """
        ...

    def drain(self) -> None:
        """Take no more newcomers: tell them so where that can be said, or else stop listening."""
        ...

    def close(self) -> None:
        """Stop listening and free the address."""
        ...


class Transport(Protocol):
    """What a module of this package has to offer."""

    async def connect(self, address: Address, terms: EndpointConfig) -> Connection:
        """Open a connection, not greeted yet.  Raises OSError or AddressError."""
        ...

    async def listen(self, address: Address, terms: EndpointConfig) -> list[Acceptor]:
        """Bind *address*; a name may have several, all with the same URL.  Raises OSError or AddressError."""
        ...
