"""Direct reading: a task that waits for a message reads the socket's only pipe itself.

Normally a message wakes two tasks: first the pipe's task, which reads it, and then the task that
waits for it.  In a dialogue with the only peer of a socket, the pipe's task lets the waiting task
read instead.  A round trip then wakes one task at each end instead of two.

    NONE      The pipe's own task reads.
    OFFERED   The pipe's own task waits: the next task that waits for a message may read.
    READING   A waiting task reads.
    STOPPING  It still reads, but was interrupted and will stop.

An offer ends when the pipe's own task reads again: because the pipe has ended, a second pipe was
attached, another task waits for a message too, a message found no room, or no task has read for a
while.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import trio

from sp.core.pipe_task import PipeTask
from sp.errors import PeerError
from sp.interrupts import uninterrupted
from sp.message import Message
from sp.protocols.engine import Receiver

if TYPE_CHECKING:
    from sp.core.core import Core

_UNUSED_FOR: Final = 0.02
"""Seconds without a direct read after which the pipe's own task reads again."""


class _State(enum.Enum):
    NONE = "none"
    OFFERED = "offered"
    READING = "reading"
    STOPPING = "stopping"


# These are looked up for every message, and looking up a member of an enum is slow.
_NONE, _OFFERED, _READING, _STOPPING = _State.NONE, _State.OFFERED, _State.READING, _State.STOPPING


@uninterrupted
class DirectRead:
    """Decides which task reads the only pipe of a socket: the pipe's own or one that waits."""

    __slots__ = ("_core", "_left_over", "_pipe", "_reads", "_state", "_watching")

    def __init__(self, core: Core) -> None:
        self._core = core
        self._state = _NONE
        self._pipe: PipeTask | None = None  # the pipe whose task made the offer
        # Messages that were read directly and that the engine did not take.
        self._left_over: list[Message] = []
        self._reads = 0
        self._watching = False

    # For the pipe's own task.

    async def grant(self, pipe: PipeTask) -> tuple[bool, list[Message]]:
        """Let a task that waits for a message read *pipe* instead of the caller.

        The caller is the pipe's own task.  Returns when it has to read again.  The result says
        whether a task has read, and has the messages that the engine did not take from that task.
        """
        self._pipe = pipe
        self._state = _OFFERED
        try:
            # Let the task that got the last message run first: if it waits for the next message, it
            # can read.
            await trio.lowlevel.checkpoint()
            was_used = self._is_used
            while self._is_used:
                await pipe.park()
        finally:
            self._state = _NONE
            self._pipe = None
        left_over, self._left_over = self._left_over, []
        return was_used, left_over

    # For tasks that wait for a message.

    @property
    def offered(self) -> PipeTask | None:
        """The pipe that a waiting task may read now."""
        return self._pipe if self._state is _OFFERED else None

    async def read(self, pipe: PipeTask, receiver: Receiver) -> Message | None:
        """Read *pipe*, which is ``offered``, until *receiver* has a message.

        Returns None if the caller has to wait in another way.  If the call is cancelled, nothing is
        lost.
        """
        self._reads += 1
        message = None
        try:
            while True:
                self._state = _READING
                batch = await pipe.connection.receive_batch()
                must_stop = self._is_stopping
                # No other task may interrupt this one while the engine has the messages.
                self._state = _OFFERED
                if not batch:
                    return None  # the pipe's own task will see this too
                pipe.count_received(batch)
                pipe.deliver(batch)
                self._left_over = batch
                message = receiver.receive()
                if message is not None or batch or must_stop or not pipe.is_attached:
                    return message
        except (PeerError, OSError, trio.ClosedResourceError):
            return None  # we were interrupted, or the pipe's own task will see this too
        finally:
            if message is None or self._left_over or self._pipe is not pipe:
                self._state = _NONE
                pipe.resume()
            else:
                self._state = _OFFERED
                # The task that got this message usually comes back for the next one, but not
                # always.
                self._watch()

    def interrupt(self) -> None:
        """Interrupt the task that is reading the pipe directly, so it can check other sources."""
        if self._state is _READING and self._pipe is not None:
            self._state = _STOPPING
            self._pipe.connection.interrupt()

    def revoke(self) -> None:
        """Let the pipe's own task read again."""
        self.interrupt()
        self._end_offer()

    @property
    def _is_used(self) -> bool:
        return self._state is _READING or self._state is _STOPPING

    @property
    def _is_stopping(self) -> bool:
        return self._state is _STOPPING

    def _end_offer(self) -> None:
        if self._state is _OFFERED and self._pipe is not None:
            self._state = _NONE
            self._pipe.resume()

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            self._core.spawn(self._end_unused_offer)

    async def _end_unused_offer(self) -> None:
        """End the offer once no task has begun to read for a while.

        A task that is reading may continue.
        """
        reads = -1
        while reads != self._reads:
            reads = self._reads
            await trio.sleep(_UNUSED_FOR)
        self._watching = False
        self._end_offer()
