"""Receivers: the tasks that wait for one mailbox."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import outcome
import trio

from sp.errors import StateError

if TYPE_CHECKING:
    from sp.core.core import Core
    from sp.core.pipe_task import PipeTask
    from sp.message import Message
    from sp.protocols.engine import Mailbox, Receiver


class Receivers:
    """The tasks that wait for one mailbox, served in the order of their calls."""

    __slots__ = ("_core", "_error", "_exclusive", "_mailbox", "_of", "_reading", "_waiting")

    def __init__(self, core: Core, mailbox: Mailbox, *, exclusive: bool) -> None:
        self._core = core
        self._mailbox = mailbox
        self._exclusive = exclusive
        self._reading: tuple[PipeTask, Receiver] | None = None  # one of us reads that pipe while it waits
        self._error: Exception | None = None  # why it should stop
        self._waiting: OrderedDict[trio.lowlevel.Task, Receiver] = OrderedDict()
        self._of: dict[Receiver, dict[trio.lowlevel.Task, None]] = {}  # by receiver, which may end alone

    async def wait(self, receiver: Receiver) -> Message:
        """Wait until *receiver* has a message.  Cancelled, none was taken."""
        core, mailbox = self._core, self._mailbox
        has_read = False
        if mailbox.wake is not None:  # somebody waits already
            if self._exclusive:
                raise trio.BusyResourceError("another task waits for the reply on this context: use request(), or a context for each task")
        elif core.direct_reader is not None and core.direct_reader.on_offer:
            has_read = True
            message = await self._read(core.direct_reader, receiver)
            if message is not None:
                return message
        task = trio.lowlevel.current_task()
        self._waiting[task] = receiver
        if has_read:
            self._waiting.move_to_end(task, last=False)
        self._of.setdefault(receiver, {})[task] = None
        core.receivers_wait(self)
        mailbox.wake = self._serve
        mailbox.fail = self.fail
        core.parked += 1

        def abort(_: object) -> trio.lowlevel.Abort:
            self._leave(task)
            self._rest()
            return trio.lowlevel.Abort.SUCCEEDED

        received: Message = await trio.lowlevel.wait_task_rescheduled(abort)
        return received

    async def _read(self, pipe: PipeTask, receiver: Receiver) -> Message | None:
        """Wait by reading *pipe*.  None: there is none yet, and the caller has to wait in another way."""
        self._reading = (pipe, receiver)
        self._core.receivers_wait(self)
        self._mailbox.wake = self._serve
        self._mailbox.fail = self.fail
        try:
            message = await pipe.read_for(receiver)
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
            self._rest()
        if message is None and error is not None:
            raise error
        return message

    def _leave(self, task: trio.lowlevel.Task) -> None:
        """*task* waits no more."""
        receiver = self._waiting.pop(task)
        others = self._of[receiver]
        del others[task]
        if not others:
            del self._of[receiver]
        self._core.parked -= 1

    def _rest(self) -> None:
        """Ask to be woken no more, if nobody waits."""
        if not self._waiting and self._reading is None:
            self._mailbox.wake = self._mailbox.fail = None
            self._core.receivers_rest(self)

    def _serve(self) -> None:
        if self._reading is not None:
            self._reading[0].interrupt()  # who reads called first
        else:
            self._serve_waiting()

    def _serve_waiting(self) -> None:
        # A message is handed over with the wake-up: from then on trio cannot cancel that task before it has it.
        while self._waiting:
            task, receiver = next(iter(self._waiting.items()))
            message = receiver.receive()
            if message is None:
                return
            self._leave(task)
            trio.lowlevel.reschedule(task, outcome.Value(message))
        self._rest()

    def fail(self, error: Callable[[], Exception], receiver: Receiver | None = None) -> None:
        """Wake those that wait for *receiver*, or all, with an error."""
        for task in list(self._waiting if receiver is None else self._of.get(receiver, ())):
            self._leave(task)
            trio.lowlevel.reschedule(task, outcome.Error(error()))
        if self._reading is not None and receiver in (None, self._reading[1]):
            self._error = error()
            self._reading[0].interrupt()
        self._rest()
