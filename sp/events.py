"""Events: what happens to a socket's pipes, dialers and listeners, as an async stream."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs
import trio

from sp.interrupts import uninterrupted

if TYPE_CHECKING:
    from sp.pipe import Pipe

EVENT_LIMIT: Final = 256
"""The most events that wait in one stream.  A further event drops the oldest, which is counted in ``missed``."""


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
    """Why it happened, in the words of the log and of ``pipe.reason``; empty if there is nothing to explain."""
    error: BaseException | None = None
    """The exception that was the reason; None if there was none."""

    def __str__(self) -> str:
        return f"{self.kind.value} {self.url}" + (f": {self.reason}" if self.reason else "")


@uninterrupted
class EventStream:
    """An async iterator over the events from its creation until the socket is closed.  Made by ``socket.events``.

    If several tasks iterate over one stream, each event goes to one of them.  If ``__anext__`` is cancelled, no event is lost.
    """

    def __init__(self, check_caller: Callable[[], None]) -> None:
        self.missed = 0
        """The number of events that were dropped because they were not read in time (see ``EVENT_LIMIT``)."""
        self._check_caller: Callable[[], None] | None = check_caller
        self._events: deque[Event] = deque()
        self._ended = False
        self._arrived = trio.Event()

    def __aiter__(self) -> EventStream:
        return self

    def __repr__(self) -> str:
        return f"<EventStream waiting={len(self._events)} missed={self.missed}{' ended' if self._ended else ''}>"

    async def __anext__(self) -> Event:
        """Return the oldest event.  Waits if there is none."""
        if self._check_caller is not None:
            self._check_caller()
        await trio.lowlevel.checkpoint()
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            if self._arrived.is_set():
                self._arrived = trio.Event()
            await self._arrived.wait()
        return self._events.popleft()

    def put(self, event: Event) -> None:
        """Queue *event*.  Called by the socket."""
        if len(self._events) >= EVENT_LIMIT:
            self._events.popleft()
            self.missed += 1
        self._events.append(event)
        self._arrived.set()

    def end(self) -> None:
        """Let the iteration end once the queue is empty.  Called by the socket."""
        self._ended = True
        self._check_caller = None  # a closed socket accepts any caller, and this would keep the socket alive
        self._arrived.set()
