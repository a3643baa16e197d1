"""SUB: receives what its subscriptions match.

A subscription is a prefix of the body; without one nothing is delivered.  A SUB never sends, since that aborts a nanomsg PUB.
Each context has subscriptions and an inbox of its own.  A full inbox holds the pipe back for a moment, then drops.
A raw SUB does not filter, as in nng and mangos: it is subscribed to everything.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING

from sp.engine import PATIENCE, Engine, EnginePipe, Inbox, Mailbox
from sp.protocol_numbers import PUB, SUB

if TYPE_CHECKING:
    from sp.message import Message
    from sp.options import DropPolicy, SocketOptions


class Subscriptions:
    """A set of prefixes that is searched in O(log n).

    Beside all prefixes it keeps those that no shorter one covers.  Between a prefix of a body and the body, in byte order, stand only
    strings that begin with that prefix; so in a list where none covers another, the greatest entry not above the body is the only one that
    can match.
    """

    __slots__ = ("_all", "_uncovered")

    def __init__(self) -> None:
        self._all: list[bytes] = []
        self._uncovered: list[bytes] = []

    def add(self, prefix: bytes) -> bool:
        """Add *prefix*; False: it was there."""
        place = bisect_left(self._all, prefix)
        if self._all[place : place + 1] == [prefix]:
            return False
        self._all.insert(place, prefix)
        if not self.match(prefix):
            first, last = _range(self._uncovered, prefix)
            self._uncovered[first:last] = [prefix]
        return True

    def remove(self, prefix: bytes) -> bool:
        """Remove *prefix*; False: it was not there."""
        place = bisect_left(self._all, prefix)
        if self._all[place : place + 1] != [prefix]:
            return False
        del self._all[place]
        place = bisect_left(self._uncovered, prefix)
        if self._uncovered[place : place + 1] == [prefix]:
            del self._uncovered[place]
            first, last = _range(self._all, prefix)
            for covered in self._all[first:last]:  # in byte order: a prefix comes before what it covers
                if not self.match(covered):
                    insort(self._uncovered, covered)
        return True

    def match(self, body: bytes) -> bool:
        """Whether *body* begins with one of the prefixes."""
        place = bisect_right(self._uncovered, body)
        return place > 0 and body.startswith(self._uncovered[place - 1])


def _range(ordered: list[bytes], prefix: bytes) -> tuple[int, int]:
    """Return where the entries that begin with *prefix* start and stop."""
    first = bisect_left(ordered, prefix)
    after = prefix.rstrip(b"\xff")  # the least string above all that begin with prefix
    if not after:
        return first, len(ordered)
    return first, bisect_left(ordered, after[:-1] + bytes([after[-1] + 1]), first)


class SubContext:
    """Subscriptions, and the messages that they let in."""

    __slots__ = ("_engine", "inbox", "subscriptions")

    def __init__(self, engine: SubEngine, inbox: Inbox) -> None:
        self._engine = engine
        self.inbox = inbox
        self.subscriptions = Subscriptions()

    @property
    def mailbox(self) -> Mailbox:
        return self.inbox

    def receive(self) -> Message | None:
        return self.inbox.take()

    def receive_more(self, limit: int | None) -> list[bytes]:
        return self.inbox.take_bodies(limit)

    def put_back(self, message: Message) -> None:
        self.inbox.put_back(message)

    def subscribe(self, prefix: bytes) -> None:
        self.subscriptions.add(prefix)  # a second time is no news: nng, mangos

    def unsubscribe(self, prefix: bytes) -> bool:
        """End a subscription and forget what only it had let in, as nng and mangos do.  False: there was none."""
        if not self.subscriptions.remove(prefix):
            return False
        self.inbox.purge(lambda message: self.subscriptions.match(message.body))
        return True

    def close(self) -> None:
        self._engine.close_context(self)


class SubEngine(Engine):
    """The state behind a SUB socket."""

    number = SUB
    peer_number = PUB
    patience = PATIENCE

    def __init__(self, options: SocketOptions, inbox_drops: DropPolicy) -> None:
        super().__init__()
        self._options = options
        self._inbox_drops: DropPolicy = inbox_drops
        self._contexts: list[SubContext] = []
        self._dropped_before = 0  # by contexts that are closed

    def open_context(self) -> SubContext:
        context = SubContext(self, Inbox(self._options, self._inbox_drops))
        self._contexts.append(context)
        return context

    def close_context(self, context: SubContext) -> None:
        self._contexts.remove(context)
        self._dropped_before += context.inbox.dropped
        context.inbox.purge(lambda _: False)

    def pipe_detached(self, pipe: EnginePipe) -> None:
        for context in self._contexts:
            context.inbox.forget(pipe)

    def message_received(self, pipe: EnginePipe, message: Message) -> bool:
        body = message.body
        if len(self._contexts) == 1:
            context = self._contexts[0]
            return not context.subscriptions.match(body) or context.inbox.offer(pipe, message)
        # All or none: a message that came again would be doubled for the contexts that had room at first.
        inboxes = [context.inbox for context in self._contexts if context.subscriptions.match(body)]
        for inbox in inboxes:
            if not inbox.has_room(message):
                inbox.hold(pipe)
                return False
        for inbox in inboxes:
            inbox.offer(pipe, message)
        return True

    def message_overdue(self, pipe: EnginePipe, message: Message) -> None:
        for context in self._contexts:
            if context.subscriptions.match(message.body) and not context.inbox.has_room(message):
                context.inbox.lose()
        self.message_received(pipe, message)

    def queued(self) -> int:
        return sum(len(context.inbox) for context in self._contexts)

    def inbox_dropped(self) -> int:
        return self._dropped_before + sum(context.inbox.dropped for context in self._contexts)
