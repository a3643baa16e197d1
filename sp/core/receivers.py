"""Receivers: the tasks that wait for one mailbox."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import outcome
import trio

from sp.core.pipe_task import PipeTask
from sp.errors import StateError
from sp.message import Message
from sp.protocols.engine import Mailbox, Receiver

if TYPE_CHECKING:
    from sp.core.core import Core


class Receivers:
    """The tasks that wait for one mailbox, served in the order of their calls.

    The first of them may read the socket's only pipe itself while it waits
    (``sp.core.direct_read``).
    """

    __slots__ = ("_by_receiver", "_core", "_error", "_exclusive", "_mailbox", "_reading", "_waiting")

    def __init__(self, core: Core, mailbox: Mailbox, *, exclusive: bool) -> None:
        self._core = core
        self._mailbox = mailbox
        self._exclusive = exclusive
        self._reading: Receiver | None = None  # the receiver of the task that reads directly
        self._error: Exception | None = None  # the error that this task is to raise
        # The other tasks, the oldest call first.
        self._waiting: OrderedDict[trio.lowlevel.Task, Receiver] = OrderedDict()
        # The same tasks by receiver, because one receiver may be closed alone.
        self._by_receiver: dict[Receiver, dict[trio.lowlevel.Task, None]] = {}

    async def wait(self, receiver: Receiver) -> Message:
        """Wait until *receiver* has a message.  If the call is cancelled, no message was taken."""
        has_read = False
        if self._mailbox.wake is None:
            pipe = self._core.direct_read.offered
            if pipe is not None:
                has_read = True
                message = await self._read(pipe, receiver)
                if message is not None:
                    return message
        elif self._exclusive:
            raise trio.BusyResourceError("another task waits for the reply on this context: use request(), or a context for each task")
        task = trio.lowlevel.current_task()
        self._waiting[task] = receiver
        if has_read:
            self._waiting.move_to_end(task, last=False)
        self._by_receiver.setdefault(receiver, {})[task] = None
        self._listen()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._leave(task)
            return trio.lowlevel.Abort.SUCCEEDED

        received: Message = await trio.lowlevel.wait_task_rescheduled(abort)
        return received

    async def _read(self, pipe: PipeTask, receiver: Receiver) -> Message | None:
        """Wait by reading *pipe*.

        Returns None if there is no message yet and the caller has to wait in another way.
        """
        self._reading = receiver
        self._listen()
        try:
            message = await self._core.direct_read.read(pipe, receiver)
            error = self._error
            if message is None and error is None:
                message = receiver.receive()
        except StateError:
            if self._error is None:
                raise
            message, error = None, self._error  # the request was taken away while we read
        finally:
            self._reading = self._error = None
            self._serve_waiting()
            self._stop_listening()
            if self._core.waiting:
                self._core.direct_read.revoke()  # the pipe's own task must read for them
        if message is None and error is not None:
            raise error
        return message

    def _listen(self) -> None:
        """Ask the mailbox to report messages and errors."""
        self._mailbox.wake = self._serve
        self._mailbox.fail = self.fail
        self._core.waiting[self] = None

    def _stop_listening(self) -> None:
        """Undo ``_listen`` if no task waits any more."""
        if not self._waiting and self._reading is None:
            self._mailbox.wake = self._mailbox.fail = None
            self._core.waiting.pop(self, None)

    def _leave(self, task: trio.lowlevel.Task) -> None:
        """Remove *task*, which no longer waits."""
        receiver = self._waiting.pop(task)
        others = self._by_receiver[receiver]
        del others[task]
        if not others:
            del self._by_receiver[receiver]
        self._stop_listening()

    def _serve(self) -> None:
        if self._reading is not None:
            self._core.direct_read.interrupt()  # it called first, so it may have the message
        else:
            self._serve_waiting()

    def _serve_waiting(self) -> None:
        # Hand the message over together with the wake-up: from then on trio cannot cancel the task
        # before it has the message.
        while self._waiting:
            task, receiver = next(iter(self._waiting.items()))
            message = receiver.receive()
            if message is None:
                return
            self._leave(task)
            trio.lowlevel.reschedule(task, outcome.Value(message))

    def fail(self, error: Callable[[], Exception], receiver: Receiver | None = None) -> None:
        """Wake the tasks that wait for *receiver*, or all if it is None, with an error."""
        for task in list(self._waiting if receiver is None else self._by_receiver.get(receiver, ())):
            self._leave(task)
            trio.lowlevel.reschedule(task, outcome.Error(error()))
        if self._reading is not None and receiver in (None, self._reading):
            if self._error is None:  # the first error counts, as for a task that is woken at once
                self._error = error()
            self._core.direct_read.interrupt()
