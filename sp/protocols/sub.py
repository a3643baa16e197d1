"""SUB: receives the messages that match its subscriptions.

A subscription is a prefix of the body.  Without one, nothing is delivered.  A SUB never sends
anything, since that would abort a nanomsg PUB.  Each context has its own subscriptions and its own
inbox.  A full inbox holds the pipe back for ``HOLD_TIME``, then drops.  A raw SUB does not filter,
as in nng and mangos: it is subscribed to everything.
"""

from __future__ import annotations

import logging

from sp.message import Message
from sp.options import DropPolicy, SocketOptions
from sp.protocol_numbers import PUB, SUB
from sp.protocols.engine import HOLD_TIME, Engine, EnginePipe, Mailbox
from sp.protocols.inbox import Inbox

log = logging.getLogger("sp")


class Subscriptions:
    """A set of prefixes, as a tree that branches only where they differ.

    The time for a call depends on the length of its prefix or body, and not on the number of
    prefixes.
    """

    __slots__ = ("_root", "_start")

    def __init__(self) -> None:
        self._root = self._start = _Node(b"")

    def __bool__(self) -> bool:
        return bool(self._root.ends or self._root.below)

    def add(self, prefix: bytes) -> bool:
        """Add *prefix*.  False: it was there already."""
        node = self._root
        while node.size < len(prefix):
            first = prefix[node.size]
            child = node.below.get(first)
            if child is None:
                child = node.below[first] = _Node(prefix)
            elif not prefix.startswith(child.stem):
                child = node.below[first] = child.branched(prefix)
            node = child
        if node.ends:
            return False
        node.ends = True
        self._find_start()
        return True

    def remove(self, prefix: bytes) -> bool:
        """Remove *prefix*.  False: it was not there."""
        node = self._root
        way: list[_Node] = []
        while node.size < len(prefix):
            way.append(node)
            child = node.below.get(prefix[node.size])
            if child is None:
                return False
            node = child
        if not node.ends or node.stem != prefix:
            return False
        node.ends = False
        for above in reversed(way):  # remove nodes that are not a prefix and do not branch any more
            if node.ends or len(node.below) > 1:
                break
            del above.below[prefix[above.size]]
            for child in node.below.values():
                above.below[prefix[above.size]] = child
            node = above
        self._find_start()
        return True

    def match(self, body: bytes) -> bool:
        """Whether *body* begins with one of the prefixes."""
        # Going down, look only at the bytes where prefixes differ.  At the end of a prefix, stop:
        # all prefixes further down begin with this one, so if they match, it matches too.
        node = self._start
        try:
            while not node.ends:
                node = node.below[body[node.size]]
        except LookupError:
            return False
        return body.startswith(node.stem)

    def _find_start(self) -> None:
        """Begin matching below the root if the root has just one branch."""
        root = self._root
        self._start = root
        if not root.ends and len(root.below) == 1:
            (self._start,) = root.below.values()


class _Node:
    """A prefix, or the common beginning of several, or both."""

    __slots__ = ("below", "ends", "size", "stem")

    def __init__(self, stem: bytes) -> None:
        self.stem = stem
        self.size = len(stem)
        self.ends = False  # the stem is a prefix itself
        self.below: dict[int, _Node] = {}  # longer prefixes, by the byte that follows the stem

    def branched(self, prefix: bytes) -> _Node:
        """Return a new node above this one: the common beginning of its stem and *prefix*.

        *prefix* must not begin with the whole stem.
        """
        size = next((place for place, (ours, other) in enumerate(zip(self.stem, prefix, strict=False)) if ours != other), len(prefix))
        above = _Node(self.stem[:size])
        above.below[self.stem[size]] = self
        return above


class SubContext:
    """Subscriptions, and the messages that matched them."""

    __slots__ = ("_engine", "inbox", "subscriptions")

    def __init__(self, engine: SubEngine, inbox: Inbox) -> None:
        self._engine = engine
        self.inbox = inbox
        self.subscriptions = Subscriptions()

    @property
    def mailbox(self) -> Mailbox:
        return self.inbox

    def receive(self) -> Message | None:
        message = self.inbox.take()
        if message is None and not self.subscriptions:
            self._engine.nothing_to_come(self)
        return message

    def receive_more(self, limit: int | None) -> list[bytes]:
        return self.inbox.take_bodies(limit)

    def put_back(self, message: Message) -> None:
        self.inbox.put_back(message)

    def subscribe(self, prefix: bytes) -> None:
        self._engine.may_have_topics = True
        self.subscriptions.add(prefix)  # a second time changes nothing, as in nng and mangos

    def unsubscribe(self, prefix: bytes) -> bool:
        """End a subscription, and remove the messages that no other one matches.

        nng and mangos do the same.

        False: there was none.
        """
        if not self.subscriptions.remove(prefix):
            return False
        match = self.subscriptions.match
        self.inbox.purge(lambda message: not message.body.startswith(prefix) or match(message.body))
        return True

    def close(self) -> None:
        self._engine.close_context(self)


class SubEngine(Engine):
    """The state behind a SUB socket."""

    number = SUB
    peer_number = PUB
    hold_time = HOLD_TIME

    def __init__(self, options: SocketOptions, inbox_drops: DropPolicy) -> None:
        super().__init__()
        self._options = options
        self._inbox_drops: DropPolicy = inbox_drops
        self._contexts: dict[SubContext, None] = {}  # an ordered set: removing one of many is quick
        self._only: SubContext | None = None  # the only context, if there is just one
        self._dropped_before = 0  # by contexts that were closed
        self._has_warned = False
        self.may_have_topics = False
        """Whether a context may have topics.  ``nothing_to_come`` looks only then."""

    def open_context(self) -> SubContext:
        context = SubContext(self, Inbox(self._options, self._inbox_drops))
        self._contexts[context] = None
        self._find_only()
        return context

    def close_context(self, context: SubContext) -> None:
        del self._contexts[context]
        self._find_only()
        self._dropped_before += context.inbox.dropped
        context.inbox.purge(lambda _: False)

    def nothing_to_come(self, context: SubContext) -> None:
        """Warn once if *context* has no topics and another one has some."""
        if self._has_warned or not self.may_have_topics:
            return
        self.may_have_topics = any(other.subscriptions for other in self._contexts)
        if not self.may_have_topics:
            return
        # Log it instead of warnings.warn: topics may rightly come later, and the call would fail
        # where warnings are errors.
        self._has_warned = True
        if context is next(iter(self._contexts)):  # the socket's own
            log.warning("SUB: the socket itself has no topics, so receive gets nothing: topics of a context count for that context only")
        else:
            log.warning("SUB: a context has no topics, so receive gets nothing: each context needs topics of its own")

    def pipe_detached(self, pipe: EnginePipe) -> None:
        for context in self._contexts:
            context.inbox.forget(pipe)

    def message_received(self, pipe: EnginePipe, message: Message) -> bool:
        body = message.body
        context = self._only
        if context is not None:
            return not context.subscriptions.match(body) or context.inbox.offer(pipe, message)
        # All contexts or none: if the message came again, some would get it twice.
        inboxes = [context.inbox for context in self._contexts if context.subscriptions.match(body)]
        for inbox in inboxes:
            if not inbox.has_room(message):
                inbox.hold(pipe)
                return False
        for inbox in inboxes:
            inbox.offer(pipe, message)
        return True

    def force_message(self, pipe: EnginePipe, message: Message) -> None:
        for context in self._contexts:
            if context.subscriptions.match(message.body) and not context.inbox.has_room(message):
                context.inbox.start_dropping()
        self.message_received(pipe, message)

    def socket_closed(self) -> None:
        for context in self._contexts:
            context.inbox.forget_bodies()

    def _find_only(self) -> None:
        self._only = next(iter(self._contexts)) if len(self._contexts) == 1 else None

    def queued(self) -> int:
        # The caller may be another thread.
        return sum(len(context.inbox) for context in tuple(self._contexts))

    def inbox_dropped(self) -> int:
        return self._dropped_before + sum(context.inbox.dropped for context in tuple(self._contexts))
