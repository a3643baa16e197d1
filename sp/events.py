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
"""Events that wait for one reader; one more drops the oldest and counts it in ``missed``."""


class EventKind(enum.Enum):
    """What happened."""

    LISTENING = "listening"
    DIALING = "dialing"
    DIAL_FAILED = "dial failed"
    ATTACHED = "attached"
    DETACHED = "detached"
    REFUSED = "refused"
    """A newcomer at a listener that never became a pipe; ``reason`` says why."""
    RELOADED = "reloaded"
    """The TLS configuration of a listener or dialer was read again: new connections get what the files have now."""
    RELOAD_FAILED = "reload failed"
    """A watched file has changed for the worse: what was in use stays in use."""
    STOPPED = "stopped"
    """A dialer or a listener has ended for good."""


@attrs.frozen(kw_only=True)
class Event:
    """One thing that happened."""

    kind: EventKind
    url: str
    """The URL of the dialer or listener that it happened to."""
    pipe: Pipe | None = None
    reason: str = ""
    """Why, in words; the same words stand in the log and in ``pipe.reason``."""
    error: BaseException | None = None
    """The exception behind the reason, when there is one."""

    def __str__(self) -> str:
        return f"{self.kind.value} {self.url}" + (f": {self.reason}" if self.reason else "")


@uninterrupted
class EventStream:
    """An async iterator over the events since it was made; it ends when the socket is closed.

    Several tasks that iterate share the events.  A cancelled ``__anext__`` loses no event.
    """

    def __init__(self, check_caller: Callable[[], None]) -> None:
        self.missed = 0
        """Events that were dropped because nobody took them in time."""
        self._check_caller: Callable[[], None] | None = check_caller
        self._events: deque[Event] = deque()
        self._ended = False
        self._arrived = trio.Event()

    def __aiter__(self) -> EventStream:
        return self

    def __repr__(self) -> str:
        return f"<EventStream waiting={len(self._events)} missed={self.missed}{' ended' if self._ended else ''}>"

    async def __anext__(self) -> Event:
        """Return the oldest event that waits, or wait for one."""
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
        self._check_caller = None  # nobody's calls matter any more, and it holds on to the socket
        self._arrived.set()
