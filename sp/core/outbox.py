"""Outbox: the messages that wait to be written to one peer, and the ways to write them.

If nothing waits and the peer has sent something since our last write, a message is written at once:
this is a dialogue, and the peer may be waiting for it.  Otherwise it is queued for the socket's
writer task, and more messages can join it in one write.  When the kernel takes no more, a task of
the outbox waits until it does.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING

import trio

from sp.errors import PeerSilent
from sp.interrupts import uninterrupted
from sp.message import Message
from sp.transports.contract import Connection

if TYPE_CHECKING:
    from sp.core.core import Core
    from sp.core.pipe_task import PipeTask


class _Writing(enum.Enum):
    IDLE = "idle"
    """Nothing waits.  The next message is queued for the socket's writer."""
    PROMPT = "prompt"
    """Nothing waits, and the peer has sent something since our last write.

    The next message is written at once.
    """
    DUE = "due"
    """Messages wait for the socket's writer."""
    BLOCKED = "blocked"
    """The kernel takes no more.  A task of our own waits for it."""
    BROKEN = "broken"
    """Writing failed.

    What the peer sent before that is still read, for the linger time at most.
    """
    ENDED = "ended"
    """The pipe has ended."""


# These are looked up for every message, and looking up a member of an enum is slow.
_IDLE, _PROMPT, _DUE, _BLOCKED, _BROKEN, _ENDED = (
    *(_Writing.IDLE, _Writing.PROMPT, _Writing.DUE),
    *(_Writing.BLOCKED, _Writing.BROKEN, _Writing.ENDED),
)


@uninterrupted
class Outbox:
    """The outgoing half of a pipe.  It takes messages from ``open`` until ``finish`` or ``end``."""

    __slots__ = (
        "_byte_limit",
        "_bytes",
        "_connection",
        "_core",
        "_finishing",
        "_grace",
        "_limit",
        "_messages",
        "_opened",
        "_pipe",
        "_refused",
        "_takes",
        "_times_writable",
        "_watched",
        "_writer",
        "_writing",
        "bytes_sent",
        "messages_sent",
    )

    def __init__(self, core: Core, pipe: PipeTask) -> None:
        self.messages_sent = self.bytes_sent = 0
        self._core = core
        self._pipe = pipe
        self._connection: Connection  # from ``open`` on
        self._opened = False
        self._writer = core.writer
        self._messages: deque[Message] = deque()
        self._bytes = 0
        self._limit = core.options.outbox_limit
        self._byte_limit = core.options.outbox_bytes
        self._takes = False
        # After the last message, tell the peer that it was the last.
        self._finishing = False
        self._writing = _PROMPT
        # A message was turned away, so tell the engine when there is room.
        self._refused = False
        self._grace: trio.CancelScope | None = None  # how long a broken pipe may still be read
        self._times_writable = 0  # how often the kernel took data again after it had been full
        self._watched = False  # also true if watching would show nothing

    @property
    def broken(self) -> bool:
        """Whether nothing can be written any more."""
        return self._writing is _BROKEN or self._writing is _ENDED

    @property
    def unsent(self) -> int:
        """The number of messages that are not completely written."""
        return len(self._messages) + (self._connection.unsent if self._opened else 0)

    @property
    def progress(self) -> int:
        """A number that grows when a peer that kept us waiting has read something.

        The kernel takes more data only when a third of its megabytes is free.  With a slow peer
        that may need minutes, so the number includes what the peer has acknowledged.
        """
        return self._times_writable + self._connection.acknowledged()

    def open(self, connection: Connection) -> None:
        """Take messages from now on, and write them to *connection*."""
        self._connection = connection
        self._watched = not connection.detects_silence
        self._opened = self._takes = True

    def offer(self, message: Message, /) -> bool:
        """Queue *message*, or write it at once.  Returns False if there is no room."""
        if not self._takes:
            return False
        size = len(message.header) + len(message.body)
        messages = self._messages
        if messages:
            # Something waits already, so some task is going to write it.
            if len(messages) >= self._limit or self._bytes + size > self._byte_limit:
                if self._writing is _DUE and self._write() is _IDLE:
                    self._writing = _DUE  # the writer has this outbox on its list already
                if self._is_full(size):
                    self._refused = True
                    return False
            messages.append(message)
            self._bytes += size
            return True
        messages.append(message)
        self._bytes = size
        if self._writing is _PROMPT:
            self._write()
        elif self._writing is _IDLE:
            self._writing = _DUE
            self._writer.write_soon(self)
        return True

    def offer_many(self, messages: list[Message], /) -> int:
        """Offer each of *messages* until one is not taken.  Returns how many were taken."""
        waiting = self._messages
        taken = 0
        # Nothing is written at once, so many can be queued in one step.
        if waiting or self._writing is _IDLE:
            first = messages[: max(0, self._limit - len(waiting))]
            size = sum([len(message.header) + len(message.body) for message in first])
            if self._takes and self._bytes + size <= self._byte_limit:
                if not waiting and first:
                    self._writing = _DUE
                    self._writer.write_soon(self)
                waiting.extend(first)
                self._bytes += size
                taken = len(first)
        for message in messages[taken:]:
            if not self.offer(message):
                break
            taken += 1
        return taken

    def discard_oldest(self) -> bool:
        """Drop the oldest message that waits.  Returns False if none waits."""
        if not self._messages:
            return False
        self._bytes -= self._messages.popleft().size
        return True

    def peer_has_sent(self) -> None:
        """Write the next message at once if nothing waits: the peer may be waiting for it."""
        if self._writing is _IDLE:
            self._writing = _PROMPT

    def write_due(self) -> None:
        """Write what has gathered.  Called by the socket's writer."""
        if self._writing is _DUE:
            self._write()

    def finish(self) -> None:
        """Take no more messages, write those that wait, then tell the peer that this was all."""
        self._takes = False
        self._finishing = True
        if self._writing is not _BLOCKED and self._writing is not _BROKEN:
            self._write()

    def end(self) -> None:
        """Stop: the connection is closed."""
        self._takes = False
        if self._writing is not _ENDED:
            self._writing = _ENDED
            # Otherwise each would keep the other alive until the garbage collector runs.
            del self._pipe
        if self._grace is not None:
            self._grace.cancel()

    def settle(self) -> None:
        """Subtract from ``messages_sent`` those that the connection never wrote completely.

        The messages that wait are released, since an application may keep the pipe; ``unsent``
        still counts them.
        """
        self.messages_sent -= self._connection.unsent
        self._messages = deque([Message(b"")]) * len(self._messages)

    def check_silence(self, now: float) -> bool:
        """End the pipe if its peer acknowledges nothing any more.

        Returns whether to check again.
        """
        try:
            self._watched = self._connection.check_silence(now)
        except PeerSilent as error:
            self._pipe.end(error)
            return False
        return self._watched

    def _is_full(self, size: int) -> bool:
        """Whether there is no room for *size* bytes more.  An empty outbox always has room."""
        messages = self._messages
        return bool(messages) and (len(messages) >= self._limit or self._bytes + size > self._byte_limit)

    def _write(self) -> _Writing:
        """Write what the connection takes without waiting.  Returns the new state."""
        messages = self._messages
        waiting, waiting_bytes = len(messages), self._bytes
        try:
            done = self._connection.send_nowait(messages)
        except OSError as error:
            self._takes = False
            self._writing = _BROKEN
            self._count_written(waiting, waiting_bytes)  # ``settle`` subtracts what failed
            self._grace = trio.CancelScope()
            self._core.spawn(self._end_later, self._pipe, error, self._grace)
            return self._writing
        self._count_written(waiting, waiting_bytes)
        if not self._watched:
            self._watched = True
            self._writer.watch(self)
        if done and self._finishing:
            done = self._connection.finish()
        if done:
            self._writing = _IDLE
        elif self._writing is not _BLOCKED:
            self._writing = _BLOCKED
            self._core.spawn(self._write_blocked)
        return self._writing

    def _count_written(self, waiting: int, waiting_bytes: int) -> None:
        messages = self._messages
        self._bytes = sum(message.size for message in messages) if messages else 0
        self.messages_sent += waiting - len(messages)
        self.bytes_sent += waiting_bytes - self._bytes

    async def _end_later(self, pipe: PipeTask, error: OSError, grace: trio.CancelScope) -> None:
        with grace:
            await trio.sleep(self._core.options.linger)
            pipe.end(error)

    async def _write_blocked(self) -> None:
        """Write whenever the kernel takes something, until nothing waits."""
        state = self._writing
        while state is _BLOCKED:
            try:
                await self._connection.wait_writable()
                self._times_writable += 1
            except trio.ClosedResourceError:
                pass  # the connection was closed, or a task that reads it was interrupted
            if self._writing is not _BLOCKED:
                return  # the pipe has ended
            state = self._write()
            if self._has_room_again():
                # These messages may block us again: then another task waits for that.
                self._core.pipe_has_room(self._pipe)

    def _has_room_again(self) -> bool:
        """Whether a message was turned away and the outbox is half empty now.

        Returns True only once, until another message is turned away.
        """
        if not self._refused or not self._takes:
            return False
        if len(self._messages) > self._limit // 2 or self._bytes > self._byte_limit // 2:
            return False
        self._refused = False
        return True
