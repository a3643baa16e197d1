"""Senders: the tasks that wait to send.

A reply waits for room in one pipe, the one that its request came by.  Other messages wait for room
in any pipe.  Calls that wait for the same room form a line.  A call that finds a line joins its end
without trying to send.  A line is tried only when something has changed for it, from the front up
to the first message that finds no room.  So the cost of a call does not depend on how many others
wait, and no call overtakes another.

The peer decides how many replies there are, so their line has a limit.  While ``reply_limit``
replies or ``reply_bytes`` bytes of them wait for one pipe, we read no more requests from it, which
slows the peer down.  We do not drop replies or end the pipe at once: a peer that only reads a
little late would then send all its requests again.  If a peer reads nothing for a minute, its pipe
is ended.
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
from sp.message import Message
from sp.protocols.engine import EnginePipe, Sender

if TYPE_CHECKING:
    from sp.core.core import Core

STALLED_AFTER: Final = 60.0
"""A pipe with too many waiting replies is ended after this many seconds without progress.

A REQ resends after the same time.
"""


@uninterrupted
class Senders:
    """The tasks of one socket that wait to send, in the order of their calls."""

    __slots__ = ("_by_sender", "_core", "_numbers", "lines")

    def __init__(self, core: Core) -> None:
        self._core = core
        self._numbers = itertools.count()
        self._by_sender: dict[Sender, dict[_Waiting, None]] = {}
        self.lines: dict[EnginePipe | None, _Line] = {}
        """The lines by pipe; None stands for any pipe.  No line is empty."""

    def must_wait(self, sender: Sender, message: Message) -> bool:
        """Whether *message* has to wait behind others.

        Raises ValueError if it could never be sent.
        """
        self._core.engine.check_message(message)
        return sender.pipe_for(message) in self.lines

    async def wait(self, sender: Sender, message: Message) -> None:
        """Wait until *sender* has taken *message*.  If the call is cancelled, nothing was sent."""
        waiting = _Waiting(trio.lowlevel.current_task(), sender, message, sender.pipe_for(message), next(self._numbers))
        self._join(waiting)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._leave(waiting)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def serve(self, pipe: EnginePipe) -> None:
        """Try to send what waits for *pipe*, and what waits for any pipe.

        Call this when *pipe* was attached, has room again, or has ended.
        """
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
        """Wake the tasks that wait to send by *sender*; they raise an error."""
        for waiting in list(self._by_sender.get(sender, ())):
            self._leave(waiting)
            trio.lowlevel.reschedule(waiting.task, outcome.Error(error()))

    def fail_all(self, error: Callable[[], Exception]) -> None:
        """Wake all tasks; they raise an error."""
        for sender in list(self._by_sender):
            self.fail(sender, error)

    def _join(self, waiting: _Waiting) -> None:
        self._by_sender.setdefault(waiting.sender, {})[waiting] = None
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
        others = self._by_sender[waiting.sender]
        del others[waiting]
        if not others:
            del self._by_sender[waiting.sender]
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
        """End *pipe* if it stays congested and its peer reads nothing."""
        while not relief.is_set():
            progress = pipe.progress
            with trio.move_on_after(STALLED_AFTER):
                await relief.wait()
                return
            if pipe.progress == progress:
                pipe.hang_up(
                    PeerStalled(
                        f"the peer reads nothing: {len(line.waiting)} replies ({line.bytes} bytes) wait for it, "
                        f"and it has read none for {STALLED_AFTER:g} s"
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
    """The calls that wait for room in one pipe, or in any."""

    __slots__ = ("bytes", "relief", "waiting")

    def __init__(self) -> None:
        # In a plain dict, the first key is slow to find after many were removed.
        self.waiting: OrderedDict[_Waiting, None] = OrderedDict()
        self.bytes = 0
        # Exists while the pipe is congested.  It is set when the congestion is over.
        self.relief: trio.Event | None = None

    @property
    def first(self) -> _Waiting:
        return next(iter(self.waiting))


def _number_of_first(line: _Line) -> int:
    return line.first.number
