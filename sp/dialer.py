"""Dialer: what an application sees of a URL that a socket dials."""

from __future__ import annotations

from typing import Protocol

from sp.pipe import Pipe
from sp.statistics import DialerStatistics
from sp.unique import Unique


class DialerWorker(Protocol):
    """What a dialer needs from the task that dials.

    ``Dialer`` describes the attributes.
    """

    @property
    def url(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def pipe(self) -> Pipe | None: ...
    @property
    def error(self) -> Exception | None: ...
    def statistics(self) -> DialerStatistics: ...
    def close(self) -> None: ...


class Dialer(Unique):
    """A URL that a socket keeps one connection to.  Made by ``socket.dial``.

    When the connection is lost, the dialer connects again, until it is closed.
    """

    __slots__ = ("__weakref__", "_worker")

    def __init__(self, worker: DialerWorker) -> None:
        self._worker = worker

    @property
    def url(self) -> str:
        """The URL as it was given."""
        return self._worker.url

    @property
    def pipe(self) -> Pipe | None:
        """The current pipe; None while there is no connection."""
        return self._worker.pipe

    @property
    def error(self) -> Exception | None:
        """Why the last attempt failed or the last pipe was lost; None while a pipe is attached."""
        return self._worker.error

    def statistics(self) -> DialerStatistics:
        """Return the counters of attempts, pipes and failures so far."""
        return self._worker.statistics()

    def close(self) -> None:
        """Stop dialing and end the pipe.  A second call does nothing.

        Raises RuntimeError if the call comes from outside the socket's trio run.
        """
        self._worker.close()

    def __repr__(self) -> str:
        return f"<Dialer {self.url} {self._worker.state}>"
