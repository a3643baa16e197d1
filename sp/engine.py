"""The contracts between engines and the shell, and the queue that most engines end in.

An engine is a protocol without I/O: events come in as method calls, answers go out as return values, as messages offered to
pipes and as messages left in a mailbox.  It never awaits, reads no clock and sees no byte stream.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

from sp.errors import PeerError
from sp.message import Message
from sp.options import DropPolicy, SocketOptions

PATIENCE = 0.1
"""Seconds that a dropping protocol holds a pipe back before it starts to drop, so that a burst is not a loss."""

Split = Callable[[bytes, int, int], int]
"""``split(data, start, stop)`` finds where the body of the message in ``data[start:stop]`` begins; -1: its header is broken."""


class EnginePipe(Protocol):
    """A pipe as an engine may use it."""

    @property
    def id(self) -> int: ...

    @property
    def broken(self) -> bool:
        """Whether nothing can be written any more; ``pipe_detached`` follows."""
        ...

    def offer(self, message: Message) -> bool:
        """Queue *message* to be written.  False: the outbox is full, and ``pipe_has_room`` will tell when it no longer is."""
        ...

    def discard_oldest(self) -> bool:
        """Drop the oldest message that waits to be written.  False: none waits."""
        ...

    def resume(self) -> None:
        """Go on reading after ``message_received`` said False."""
        ...

    def hang_up(self, error: PeerError) -> None:
        """End the pipe for what the peer did.  ``pipe_detached`` follows later, never from within this call."""
        ...


class Mailbox:
    """Where a context's messages turn up, and who waits for them: both calls are None while nobody does."""

    __slots__ = ("fail", "wake")

    def __init__(self) -> None:
        self.wake: Callable[[], None] | None = None
        """Called when ``receive`` is worth a try."""
        self.fail: Callable[[Callable[[], Exception]], None] | None = None
        """Called with what makes the error for those who wait, when what they wait for will not come."""


class Sender(Protocol):
    """The sending half of a context."""

    def send(self, message: Message) -> bool:
        """Take *message*.  False: not now, try again when a pipe is attached or has room.  A wrong moment raises StateError."""
        ...


class Receiver(Protocol):
    """The receiving half of a context."""

    @property
    def mailbox(self) -> Mailbox: ...

    def receive(self) -> Message | None:
        """Return the next message, or None when there is none yet.  A wrong moment raises StateError."""
        ...


class BatchReceiver(Receiver, Protocol):
    """The receiving half of a context whose messages need no answer."""

    def receive_more(self, limit: int | None) -> list[bytes]:
        """Return the bodies of the messages that wait, at most *limit*; None: all."""
        ...


class Engine:
    """What the shell calls.  The defaults here do nothing: an engine overrides the events that concern it."""

    number: int
    """Our protocol number, for the greeting."""
    peer_number: int
    """The number that the peer must have."""
    split: Split | None = None
    """Where received messages are split into header and body; None: there is no header."""
    sends_again: bool = False
    """Whether what a pipe did not write is not lost with it."""
    timed: bool = False
    """Whether it ever has a deadline."""
    patience: float = math.inf
    """Seconds that a pipe waits for room before ``message_overdue``."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()

    def pipe_attached(self, pipe: EnginePipe) -> None:
        """A pipe is ready.  May raise PipeRefused."""

    def pipe_detached(self, pipe: EnginePipe) -> None:
        """A pipe is gone."""

    def pipe_has_room(self, pipe: EnginePipe) -> None:
        """A pipe that said no to an offer would now say yes."""

    def message_received(self, pipe: EnginePipe, message: Message) -> bool:
        """Take *message*.  False: not now; the pipe holds it, reads no more, and comes again after ``pipe.resume()``."""
        raise NotImplementedError

    def message_overdue(self, pipe: EnginePipe, message: Message) -> None:
        """Take *message* now, whatever must be dropped for it: the pipe's patience is over."""
        raise NotImplementedError

    def next_deadline(self) -> float | None:
        """Return the earliest time at which ``deadline_reached`` has something to do."""
        return None

    def deadline_reached(self, now: float) -> None:
        """Do what is due at *now*."""

    def queued(self) -> int:
        """Count the messages that wait for ``receive``, in all contexts."""
        return 0

    def inbox_dropped(self) -> int:
        """Count the messages that were dropped because an inbox was full."""
        return 0


class Inbox(Mailbox):
    """A queue of received messages, bounded in messages and in bytes.

    Full, it holds the pipes back.  With a *policy* it drops once ``lose`` was called, until half of it is free again;
    without one it never drops.
    """

    __slots__ = ("_byte_limit", "_bytes", "_held", "_limit", "_losing", "_low", "_messages", "_policy", "dropped")

    def __init__(self, options: SocketOptions, policy: DropPolicy | None = None) -> None:
        super().__init__()
        self.dropped = 0
        self._messages: deque[Message] = deque()
        self._bytes = 0
        self._limit = options.inbox_limit
        self._byte_limit = options.inbox_bytes
        self._low = options.inbox_limit // 2
        self._policy = policy
        self._losing = False
        self._held: dict[EnginePipe, None] = {}  # an ordered set: who waited first comes first

    def __len__(self) -> int:
        return len(self._messages)

    def has_room(self, message: Message) -> bool:
        """Whether ``offer`` would take *message*, be it by dropping one."""
        messages = self._messages
        return not messages or self._losing or (len(messages) < self._limit and self._bytes + len(message.body) <= self._byte_limit)

    def hold(self, pipe: EnginePipe) -> None:
        """Remember to resume *pipe* when there is room."""
        self._held[pipe] = None

    def offer(self, pipe: EnginePipe, message: Message) -> bool:
        """Take *message* from *pipe*, or hold the pipe and return False."""
        messages = self._messages
        size = len(message.body)
        if messages and (len(messages) >= self._limit or self._bytes + size > self._byte_limit):
            if not self._losing:
                self._held[pipe] = None
                return False
            if not self._make_room(size):
                return True
        messages.append(message)
        self._bytes += size
        if self.wake is not None:
            self.wake()
        return True

    def lose(self) -> None:
        """The application has not kept up: drop from now on."""
        self._losing = True

    def take(self) -> Message | None:
        """Return the oldest message, or None."""
        if not self._messages:
            return None
        message = self._messages.popleft()
        self._bytes -= len(message.body)
        if self._held or self._losing:
            self._relax()
        return message

    def take_bodies(self, limit: int | None) -> list[bytes]:
        """Return the bodies of the oldest messages, at most *limit*; None: of all."""
        messages = self._messages
        if limit is None or limit >= len(messages):
            bodies = [message.body for message in messages]
            messages.clear()
            self._bytes = 0
        else:
            bodies = [messages.popleft().body for _ in range(limit)]
            self._bytes -= sum(map(len, bodies))
        if self._held or self._losing:
            self._relax()
        return bodies

    def purge(self, keep: Callable[[Message], bool]) -> None:
        """Forget the messages that *keep* does not want."""
        self._messages = deque(message for message in self._messages if keep(message))
        self._bytes = sum(len(message.body) for message in self._messages)
        self._relax(everybody=True)  # what they hold may be unwanted as well, and then nobody would wake the rest

    def forget(self, pipe: EnginePipe) -> None:
        """*pipe* is gone and needs no resuming; the one behind it may."""
        self._held.pop(pipe, None)
        self._relax()

    def _make_room(self, size: int) -> bool:
        """Drop by the policy; False: it is the new message that goes."""
        if self._policy == "newest":
            self.dropped += 1
            return False
        messages = self._messages
        while messages and (len(messages) >= self._limit or self._bytes + size > self._byte_limit):
            self._bytes -= len(messages.popleft().body)
            self.dropped += 1
        return True

    def _relax(self, *, everybody: bool = False) -> None:
        if len(self._messages) > self._low or self._bytes > self._byte_limit // 2:
            return
        self._losing = False
        # No more than there are places, so that the first to run cannot take them all and leave the rest to the end of the line again.
        for pipe in list(self._held)[: None if everybody else self._limit - len(self._messages)]:
            del self._held[pipe]
            pipe.resume()
