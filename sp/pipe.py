"""Pipe: what an application sees of one connected peer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sp.statistics import PipeStatistics
from sp.unique import Unique

if TYPE_CHECKING:
    from sp.http.message import HTTPInfo
    from sp.tls.info import TLSInfo
    from sp.transports.proxy_protocol import ProxyInfo


class PipeWorker(Protocol):
    """What a pipe needs from the task that serves it.

    ``Pipe`` describes the attributes.
    """

    @property
    def id(self) -> int: ...
    @property
    def url(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def peer_protocol(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def local_address(self) -> str: ...
    @property
    def remote_address(self) -> str: ...
    @property
    def proxy_address(self) -> str | None: ...
    @property
    def proxy(self) -> ProxyInfo | None: ...
    @property
    def http(self) -> HTTPInfo | None: ...
    @property
    def tls(self) -> TLSInfo | None: ...
    @property
    def error(self) -> Exception | None: ...
    @property
    def unsent(self) -> int: ...
    def statistics(self) -> PipeStatistics: ...
    def close(self) -> None: ...


class Pipe(Unique):
    """A connection to one peer, after the handshake.

    Dialers and listeners make pipes.  An application gets them from ``message.pipe``,
    ``socket.pipes``, ``dialer.pipe``, events, and as the argument of ``authorize``; each connection
    has exactly one ``Pipe`` object, so pipes can be compared with ``is`` and used as keys.  All
    attributes stay readable after the pipe has ended.
    """

    __slots__ = ("__weakref__", "_worker")

    def __init__(self, worker: PipeWorker) -> None:
        self._worker = worker

    @property
    def id(self) -> int:
        """A number of 31 bits that no other pipe of this process has."""
        return self._worker.id

    @property
    def url(self) -> str:
        """The URL of the dialer or listener that made the pipe."""
        return self._worker.url

    @property
    def peer_protocol(self) -> str:
        """The name of the peer's protocol, for example ``REQ``."""
        return self._worker.peer_protocol

    @property
    def priority(self) -> int:
        """The priority of the dialer or listener that made the pipe, from 1 (the best) to 16.

        PUSH and REQ use it.
        """
        return self._worker.priority

    @property
    def local_address(self) -> str:
        """The address of this end: ``host:port`` on a network, the URL for ipc and inproc."""
        return self._worker.local_address

    @property
    def remote_address(self) -> str:
        """The address of the peer: ``host:port`` on a network, the URL for ipc and inproc.

        Behind a trusted proxy, this is the client's address as the proxy reports it, without
        ``:port`` if the proxy reports none.
        """
        return self._worker.remote_address

    @property
    def proxy_address(self) -> str | None:
        """The address of the proxy, if ``remote_address`` is the address of its client.

        None without a proxy.
        """
        return self._worker.proxy_address

    @property
    def proxy(self) -> ProxyInfo | None:
        """The PROXY protocol header, on a listener with ``proxy_protocol=True``; None elsewhere."""
        return self._worker.proxy

    @property
    def http(self) -> HTTPInfo | None:
        """The HTTP handshake of a WebSocket pipe: path, query, headers; None without WebSocket."""
        return self._worker.http

    @property
    def tls(self) -> TLSInfo | None:
        """TLS version, cipher, the peer's certificate and so on; None without TLS."""
        return self._worker.tls

    @property
    def error(self) -> Exception | None:
        """Why the pipe ended; None while it has not."""
        return self._worker.error

    @property
    def reason(self) -> str:
        """Why the pipe ended, in the words that events and the log use; empty while it has not."""
        error = self._worker.error
        return "" if error is None else str(error)

    @property
    def unsent(self) -> int:
        """The number of messages that wait to be written to this peer."""
        return self._worker.unsent

    def statistics(self) -> PipeStatistics:
        """Return the counters of messages and bytes so far."""
        return self._worker.statistics()

    def close(self) -> None:
        """End the pipe now.  If a dialer made it, the dialer connects again.

        Messages that wait to be written are dropped and counted.  A second call does nothing.
        Raises RuntimeError if the call comes from outside the socket's trio run.
        """
        self._worker.close()

    def __repr__(self) -> str:
        return f"<Pipe {self.id} {self._worker.state} {self.peer_protocol} {self.remote_address}>"


def worker_of(pipe: Pipe) -> PipeWorker:
    """Return the task that serves *pipe*.  For the library."""
    return pipe._worker  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
