"""Listener: what an application sees of a URL that a socket is bound to."""

from __future__ import annotations

from typing import Protocol

from sp.statistics import ListenerStatistics
from sp.unique import Unique


class ListenerWorker(Protocol):
    """What a listener needs from the task that accepts.

    ``Listener`` describes the attributes.
    """

    @property
    def url(self) -> str: ...
    @property
    def state(self) -> str: ...
    async def drain(self, timeout: float) -> None: ...
    def reload(self) -> None: ...
    def statistics(self) -> ListenerStatistics: ...
    def close(self) -> None: ...


class Listener(Unique):
    """A URL that a socket is bound to until the listener is closed.  Made by ``socket.listen``."""

    __slots__ = ("__weakref__", "_worker")

    def __init__(self, worker: ListenerWorker) -> None:
        self._worker = worker

    @property
    def url(self) -> str:
        """The URL as it was given, with the port or the abstract name that was really bound."""
        return self._worker.url

    async def drain(self, timeout: float = 30.0) -> None:
        """Close the listener gently: peers move elsewhere and no request is lost.

        From now on, new connections are refused.  At ``ws`` and ``wss`` they get status 503, and so
        do health checks; elsewhere the address is freed.  Messages that wait for a peer are still
        written.  The peer is then asked to leave (on a WebSocket by code 1001, "going away"), and
        what it sent before that is still delivered.  A REQ at the other end sends its request to
        another peer, even if the application here is working on it.  The reply from here is then
        dropped.

        Returns when all pipes of the listener have ended, or after *timeout* seconds.  If it is
        cancelled, the listener closes at once.  Raises StateError or ClosedResourceError if the
        socket is not open, TypeError or ValueError if *timeout* is not a positive number.
        """
        await self._worker.drain(timeout)

    def reload(self) -> None:
        """Read the certificate, the key and all other files of the TLS configuration again.

        This changes all listeners that share the configuration.  New connections use the new files;
        existing pipes continue.  Raises TLSConfigError if something is wrong with a file: then the
        old contents stay in use.  Raises StateError if the listener has no TLS.
        """
        self._worker.reload()

    def statistics(self) -> ListenerStatistics:
        """Return the counters of connections, pipes and failures so far."""
        return self._worker.statistics()

    def close(self) -> None:
        """Free the address and end all pipes that the listener made.  A second call does nothing.

        Raises RuntimeError if the call comes from outside the socket's trio run.
        """
        self._worker.close()

    def __repr__(self) -> str:
        return f"<Listener {self.url} {self._worker.state}>"
