"""EventLog: gives the events of a socket to its event streams, and writes them to the log."""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable

import trio

from sp.errors import MalformedMessage, MessageTooLarge, PeerClosed, TLSConfigError
from sp.events import EVENT_LIMIT, Event, EventKind, EventStream
from sp.interrupts import uninterrupted

log = logging.getLogger("sp")


@uninterrupted
class EventQueue:
    """The events that wait in one stream."""

    def __init__(self, check_caller: Callable[[], None]) -> None:
        self.missed = 0
        self._check_caller: Callable[[], None] | None = check_caller
        self._events: deque[Event] = deque()
        self._ended = False
        self._arrived = trio.Event()

    @property
    def state(self) -> str:
        return f"waiting={len(self._events)} missed={self.missed}{' ended' if self._ended else ''}"

    async def get(self) -> Event | None:
        if self._check_caller is not None:
            self._check_caller()
        await trio.lowlevel.checkpoint()
        while not self._events:
            if self._ended:
                return None
            if self._arrived.is_set():
                self._arrived = trio.Event()
            await self._arrived.wait()
        return self._events.popleft()

    def put(self, event: Event) -> None:
        """Add *event*.  If there are too many, the oldest is dropped."""
        if len(self._events) >= EVENT_LIMIT:
            self._events.popleft()
            self.missed += 1
        self._events.append(event)
        self._arrived.set()

    def end(self) -> None:
        """Add no more events."""
        self._ended = True
        # This would keep the socket alive, and a closed socket accepts any caller anyway.
        self._check_caller = None
        self._arrived.set()


@uninterrupted
class EventLog:
    """The event streams of one socket, and its lines in the log."""

    __slots__ = ("_name", "_queues")

    def __init__(self, name: str) -> None:
        self._name = name
        # Made only when it is needed, because it takes 1 kB.
        self._queues: weakref.WeakSet[EventQueue] | None = None

    def stream(self, check_caller: Callable[[], None], *, ended: bool) -> EventStream:
        """Return a stream of the events from now on.  If *ended*, there are none."""
        queue = EventQueue(check_caller)
        if ended:
            queue.end()
        if self._queues is None:
            self._queues = weakref.WeakSet()
        self._queues.add(queue)
        return EventStream(queue)

    def put(self, event: Event) -> None:
        """Give *event* to all streams, and log it."""
        for queue in list(self._queues or ()):
            queue.put(event)
        level = _level(event)
        if log.isEnabledFor(level):
            pipe = f" pipe {event.pipe.id} {event.pipe.remote_address}" if event.pipe is not None else ""
            log.log(level, "%s %s %s%s%s", self._name, event.kind.value, event.url, pipe, f": {event.reason}" if event.reason else "")

    def end(self) -> None:
        """End all streams."""
        for queue in list(self._queues or ()):
            queue.end()


def _level(event: Event) -> int:
    if isinstance(event.error, (MessageTooLarge, MalformedMessage, TLSConfigError)):
        # The peer may send such a message again and again, since nothing tells it what is wrong.
        return logging.WARNING
    if event.kind is EventKind.REFUSED and isinstance(event.error, PeerClosed) and event.error.silent:
        return logging.DEBUG  # load balancers connect and hang up every few seconds
    return logging.INFO
