"""EventLog: tells what happens to a socket, to those who iterate over its events and to the log."""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING

from sp.errors import MalformedMessage, MessageTooLarge, PeerClosed, TLSConfigError
from sp.events import Event, EventKind, EventStream
from sp.interrupts import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("sp")


@uninterrupted
class EventLog:
    """The event streams of one socket, and its lines in the log."""

    __slots__ = ("_name", "_streams")

    def __init__(self, name: str) -> None:
        self._name = name
        self._streams: weakref.WeakSet[EventStream] | None = None  # made when it is needed: it takes 1 kB

    def stream(self, check_caller: Callable[[], None]) -> EventStream:
        """Return a stream of the events from now on."""
        stream = EventStream(check_caller)
        if self._streams is None:
            self._streams = weakref.WeakSet()
        self._streams.add(stream)
        return stream

    def put(self, event: Event) -> None:
        """Give *event* to all streams, and log it."""
        for stream in list(self._streams or ()):
            stream.put(event)
        level = _level(event)
        if log.isEnabledFor(level):
            pipe = f" pipe {event.pipe.id} {event.pipe.remote_address}" if event.pipe is not None else ""
            log.log(level, "%s %s %s%s%s", self._name, event.kind.value, event.url, pipe, f": {event.reason}" if event.reason else "")

    def end(self) -> None:
        """End all streams."""
        for stream in list(self._streams or ()):
            stream.end()


def _level(event: Event) -> int:
    if isinstance(event.error, (MessageTooLarge, MalformedMessage, TLSConfigError)):
        return logging.WARNING  # the peer may send such a message again and again, and its sender is told nothing
    if event.kind is EventKind.REFUSED and isinstance(event.error, PeerClosed) and event.error.silent:
        return logging.DEBUG  # load balancers connect and hang up every few seconds
    return logging.INFO
