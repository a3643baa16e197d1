"""Events: what happens to a socket's pipes, dialers and listeners, as an async stream."""

from __future__ import annotations

import enum
from typing import Final, Protocol

import attrs

from sp.pipe import Pipe
from sp.unique import Unique

EVENT_LIMIT: Final = 256
"""The most events that wait in one stream.

One more drops the oldest, and ``missed`` counts it.
"""


class EventKind(enum.Enum):
    """What happened."""

    LISTENING = "listening"
    DIALING = "dialing"
    DIAL_FAILED = "dial failed"
    ATTACHED = "attached"
    DETACHED = "detached"
    REFUSED = "refused"
    """A connection to a listener did not become a pipe; ``reason`` says why."""
    RELOADED = "reloaded"
    """The TLS files of a listener or dialer were read again.  New connections use them."""
    RELOAD_FAILED = "reload failed"
    """The TLS files could not be read again.  The old contents stay in use."""
    STOPPED = "stopped"
    """A dialer or a listener has ended."""


@attrs.frozen(kw_only=True)
class Event:
    """One thing that happened."""

    kind: EventKind
    url: str
    """The URL of the dialer or listener, or of the one that made the pipe."""
    pipe: Pipe | None = None
    """The pipe of ``ATTACHED`` and ``DETACHED``; None for other events."""
    reason: str = ""
    """Why it happened, in the words of the log and of ``pipe.reason``; may be empty."""
    error: BaseException | None = None
    """The exception that was the reason; None if there was none."""

    def __str__(self) -> str:
        return f"{self.kind.value} {self.url}" + (f": {self.reason}" if self.reason else "")


class EventSource(Protocol):
    """What an event stream needs from the socket."""

    @property
    def missed(self) -> int: ...
    @property
    def state(self) -> str: ...
    async def get(self) -> Event | None:
        """Wait for the next event.  Returns None if there will be none."""
        ...


class EventStream(Unique):
    """An async iterator over the events from its creation until the socket is closed.

    Made by ``socket.events``.

    If several tasks iterate over one stream, each event goes to one of them.  If ``__anext__`` is
    cancelled, no event is lost.
    """

    __slots__ = ("__weakref__", "_source")

    def __init__(self, source: EventSource) -> None:
        self._source = source

    @property
    def missed(self) -> int:
        """The number of events that were dropped because more than ``EVENT_LIMIT`` waited."""
        return self._source.missed

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        """Return the oldest event.  Waits if there is none."""
        event = await self._source.get()
        if event is None:
            raise StopAsyncIteration
        return event

    def __repr__(self) -> str:
        return f"<EventStream {self._source.state}>"
