"""Senders: the tasks that wait to send.

A message waits for the room of one pipe (a reply can only go where its request came from), or for
the room of any.  For each there is a line.  A call that finds a line joins it without a try, and a
line is tried only when something has changed for it, from the front, up to the first message that
finds no room.  So a call costs the same however many wait, and nobody is overtaken.

Replies are as many as the peer has asked for, so their line is bounded.  While more than
``reply_limit`` of them, or ``reply_bytes``, wait for one pipe, its requests stay unread: what TCP does
for bytes, done for requests.  Dropping replies, or ending the pipe at once, would make a peer that
only reads a little late ask for all of them again.  A peer that takes nothing for a minute is ended.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import outcome
import trio

from sp.errors import Error, PeerStalled
from sp.interrupts import uninterrupted

if TYPE_CHECKING:
    from sp.core.core import Core
    from sp.message import Message
    from sp.protocols.engine import EnginePipe, Sender

STALLED_AFTER: Final = 60.0
"""Seconds without progress after which a peer is ended that has too many replies waiting for it.

As long as a REQ waits before it asks again.
"""


@uninterrupted
class Senders:
    """The tasks of one socket that wait to send, in the order of their calls."""

    __slots__ = ("_core", "_numbers", "_of", "lines")

    def __init__(self, core: Core) -> None:
        self._core = core
        self._numbers = itertools.count()
        self._of: dict[Sender, dict[_Waiting, None]] = {}
        self.lines: dict[EnginePipe | None, _Line] = {}
        """By the pipe whose room is needed, None for that of any; there are no empty ones."""

    def must_wait(self, sender: Sender, message: Message) -> bool:
        """Whether *message* has to wait behind others.  Raises ValueError when it could never be sent."""
        self._core.engine.check_message(message)
        return sender.pipe_for(message) in self.lines

    async def wait(self, sender: Sender, message: Message) -> None:
        """Wait until *sender* has taken *message*.  Cancelled, it was not sent."""
        waiting = _Waiting(trio.lowlevel.current_task(), sender, message, sender.pipe_for(message), next(self._numbers))
        self._join(waiting)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._leave(waiting)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def serve(self, pipe: EnginePipe) -> None:
        """*pipe* has come, has room or is gone: try those that wait for it, and those that wait for any."""
        if not self.lines:
            return
        lines = [line for line in (self.lines.get(None), self.lines.get(pipe)) if line is not None]
        while lines:
            line = min(lines, key=_number_of_first) if len(lines) > 1 else lines[0]
            if not self._serve_first(line) or not line.waiting:
                lines.remove(line)
        if self._core.timer_idle:
            self._core.wake_timer()

    def _serve_first(self, line: _Line) -> bool:
        waiting = line.first
        result: outcome.Outcome[None] = outcome.Value(None)
        try:
            if not waiting.sender.send(waiting.message):
                return False
        except Error as error:
            result = outcome.Error(error)
        self._leave(waiting)
        trio.lowlevel.reschedule(waiting.task, result)
        return True

    def fail(self, sender: Sender, error: Callable[[], Exception]) -> None:
        """Wake the tasks that wait to send by *sender* with an error."""
        for waiting in list(self._of.get(sender, ())):
            self._leave(waiting)
            trio.lowlevel.reschedule(waiting.task, outcome.Error(error()))

    def fail_all(self, error: Callable[[], Exception]) -> None:
        """Wake all tasks with an error."""
        for sender in list(self._of):
            self.fail(sender, error)

    def _join(self, waiting: _Waiting) -> None:
        self._of.setdefault(waiting.sender, {})[waiting] = None
        pipe, engine = waiting.pipe, self._core.engine
        line = self.lines.get(pipe)
        if line is None:
            line = self.lines[pipe] = _Line()
        line.waiting[waiting] = None
        line.bytes += waiting.message.size
        if pipe is None or line.relief is not None:
            return
        if len(line.waiting) >= engine.reply_limit or line.bytes >= engine.reply_bytes:
            line.relief = trio.Event()
            engine.pipe_congested(pipe)
            self._core.spawn(self._watch, pipe, line, line.relief)

    def _leave(self, waiting: _Waiting) -> None:
        others = self._of[waiting.sender]
        del others[waiting]
        if not others:
            del self._of[waiting.sender]
        pipe, engine = waiting.pipe, self._core.engine
        line = self.lines[pipe]
        del line.waiting[waiting]
        line.bytes -= waiting.message.size
        if not line.waiting:
            del self.lines[pipe]
        if line.relief is None or pipe is None:
            return
        if len(line.waiting) <= engine.reply_limit // 2 and line.bytes <= engine.reply_bytes // 2:
            line.relief.set()
            line.relief = None
            engine.pipe_relieved(pipe)

    async def _watch(self, pipe: EnginePipe, line: _Line, relief: trio.Event) -> None:
        """End *pipe* when it stays congested and its peer takes nothing."""
        while not relief.is_set():
            progress = pipe.progress
            with trio.move_on_after(STALLED_AFTER):
                await relief.wait()
                return
            if pipe.progress == progress:
                pipe.hang_up(
                    PeerStalled(
                        f"the peer reads nothing: {len(line.waiting)} replies ({line.bytes} bytes) wait for it, "
                        f"and it has taken none of them for {STALLED_AFTER:g} s"
                    )
                )
                return


class _Waiting:
    """One call that waits."""

    __slots__ = ("message", "number", "pipe", "sender", "task")

    def __init__(self, task: trio.lowlevel.Task, sender: Sender, message: Message, pipe: EnginePipe | None, number: int) -> None:
        self.task = task
        self.sender = sender
        self.message = message
        self.pipe = pipe
        self.number = number


class _Line:
    """The calls that wait for the room of one pipe, or of any."""

    __slots__ = ("bytes", "relief", "waiting")

    def __init__(self) -> None:
        self.waiting: OrderedDict[_Waiting, None] = OrderedDict()  # the first of a plain dict is slow to find once many have left
        self.bytes = 0
        self.relief: trio.Event | None = None  # while the pipe is congested; set when it no longer is

    @property
    def first(self) -> _Waiting:
        return next(iter(self.waiting))


def _number_of_first(line: _Line) -> int:
    return line.first.number
