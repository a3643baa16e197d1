"""Core: what is below the public calls of a socket.

It holds the engine, the pipes, and the tasks that serve them.

Each socket has one task that writes: a message to a hundred peers then wakes one task, not a
hundred.  Each pipe has a task that reads.  Each dialer and each listener has a task that makes new
pipes.  A task that waits for a full kernel buffer exists only while the buffer is full.
"""

from __future__ import annotations

import enum
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from threading import get_ident
from typing import TYPE_CHECKING, TypeVarTuple, Unpack

import trio

from sp.core import forks
from sp.core.admission import Admission
from sp.core.callers import check_caller
from sp.core.direct_read import DirectRead
from sp.core.event_log import EventLog
from sp.core.pipe_task import PipeTask
from sp.core.receivers import Receivers
from sp.core.senders import Senders
from sp.core.writer import Writer
from sp.errors import MessageTooLarge, PipeRefused, StateError
from sp.events import Event, EventKind, EventStream
from sp.interrupts import uninterrupted
from sp.options import SocketOptions
from sp.pipe import Pipe, worker_of
from sp.protocol_numbers import protocol_name
from sp.protocols.engine import Engine, Mailbox
from sp.statistics import DropReason, SocketStatistics
from sp.transports.contract import Connection, EndpointConfig

if TYPE_CHECKING:
    from sp.core.accepting import ListenerTask
    from sp.core.dialing import DialerTask

log = logging.getLogger("sp")

_Arguments = TypeVarTuple("_Arguments")


class _State(enum.Enum):
    NEW = "not entered"
    ENTERED = "being entered"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"
    FORKED = "inherited through a fork"


@uninterrupted
class Core:
    """The state of one socket and its tasks."""

    def __init__(self, engine: Engine, options: SocketOptions) -> None:
        self.engine = engine
        self.options = options
        self.endpoint_config = EndpointConfig(
            number=engine.number, peer_number=engine.peer_number, find_body=engine.find_body, options=options
        )
        self.pipes: dict[int, PipeTask] = {}
        self.dialers: list[DialerTask] = []
        self.listeners: list[ListenerTask] = []
        self.dropped: Counter[DropReason] = Counter()
        self.waiting: dict[Receivers, None] = {}
        """The queues in which tasks wait for a message.  Closing the socket wakes them."""
        self.open = False
        """Whether the socket accepts calls."""
        self.open_in = 0
        """The id of the thread that may call, which runs trio. 0: no thread may call."""
        self.closed_in_order = False
        """Whether ``aclose`` closed the socket, or is closing it."""
        self.in_device = False
        """Whether a device forwards the messages that the socket receives."""
        self.timer_idle = False
        """Whether the timer task must be woken when the engine has a new deadline."""
        self.admission = Admission(self)
        self.senders = Senders(self)
        self.writer = Writer(options.tcp_keepalive)
        self.direct_read = DirectRead(self)
        self._state = _State.NEW
        self._thread = 0  # the id of the trio run's thread, while the socket may have tasks
        self._nursery: trio.Nursery | None = None
        self._ended = trio.Event()
        self._changed = trio.Event()
        self._event_log = EventLog(self.name)
        self._timer_wanted = trio.Event()
        self._timer_until = math.inf
        self._past = Counter[str]()  # the counts of pipes that have ended
        forks.cores.add(self)

    @property
    def name(self) -> str:
        """The protocol's name."""
        return protocol_name(self.engine.number)

    @property
    def state(self) -> str:
        """The state in words, for ``repr``."""
        return self._state.value

    def check_caller(self) -> None:
        """Raise RuntimeError unless the caller is a task of the socket's trio run.

        Before the socket is entered, and after it has ended, any caller is accepted.  In a forked
        child, every call raises StateError.
        """
        if self._thread:
            check_caller(self._thread)
        elif self._state is _State.FORKED:
            raise StateError("the socket was made before a fork and belongs to the parent: make a new one in this process")

    def may_close(self) -> bool:
        """Return whether there is something to close.  In a forked child there is nothing.

        Raises RuntimeError unless the caller is a task of the socket's trio run.
        """
        if self._state is _State.FORKED:
            return False
        self.check_caller()
        return True

    def check_open(self) -> None:
        """Raise unless the socket is open and the caller may use it."""
        self.check_caller()
        if self._state is _State.OPEN:
            return
        if self._state in (_State.NEW, _State.ENTERED):
            raise StateError("the socket is not open: enter it with 'async with' first")
        raise trio.ClosedResourceError("the socket is closed")

    # Opening and closing.

    def enter(self) -> None:
        """Claim the socket for one ``async with`` block.

        Raises StateError if the socket was entered before, RuntimeError outside of a trio run.
        """
        self.check_caller()
        if self._state is not _State.NEW:
            raise StateError("a socket can be entered only once: make a new one")
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            raise RuntimeError("this library runs on trio: start your program with trio.run") from None
        self._state = _State.ENTERED
        self._thread = get_ident()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Serve the socket until it is closed."""
        try:
            if self._state is not _State.ENTERED:
                raise trio.ClosedResourceError("the socket was closed before it was open")
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._state = _State.OPEN
                self.open = True
                self.open_in = self._thread
                if self.engine.timed:
                    nursery.start_soon(self._time)
                task_status.started()
                await self.writer.run()
        finally:
            self.close()
            self._end()

    def _end(self) -> None:
        """Remember that the socket has no tasks, and will have none."""
        self._thread = 0
        self._ended.set()

    def spawn(self, function: Callable[[Unpack[_Arguments]], Awaitable[None]], *arguments: *_Arguments) -> None:
        """Run *function* in a task of the socket."""
        assert self._nursery is not None
        self._nursery.start_soon(function, *arguments)

    async def aclose(self) -> None:
        """Stop dialing and listening, deliver the messages that were accepted, then close."""
        if not self.may_close():
            return
        ours = self._serves(trio.lowlevel.current_task())
        if self._state in (_State.NEW, _State.ENTERED):
            self.close()
        elif self._state is _State.OPEN:
            self.closed_in_order = True
            self._refuse_calls(_State.CLOSING)
            for listener in list(self.listeners):
                listener.stop()
            for dialer in list(self.dialers):
                dialer.stop()
            for pipe in list(self.pipes.values()):
                pipe.finish()
            if ours:
                self.spawn(self._deliver)
            else:
                await self._deliver()
        if ours:  # called in ``authorize`` or ``health``: this task would wait for itself
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        await self._ended.wait()
        await trio.lowlevel.checkpoint()

    async def _deliver(self) -> None:
        """Wait for the pipes to deliver their messages, for the linger time at most; then close."""
        try:
            with trio.move_on_after(self.options.linger):
                while self.pipes:
                    await self.changed()
        finally:
            self.close()

    def _serves(self, task: trio.lowlevel.Task | None) -> bool:
        """Whether *task* is a task of the socket, or a task of the socket waits for it."""
        while task is not None and task.parent_nursery is not None:
            if task.parent_nursery is self._nursery:
                return True
            task = task.parent_nursery.parent_task
        return False

    def close(self) -> None:
        """Close now.  Messages that were accepted but not written are dropped and counted."""
        if self._state in (_State.CLOSED, _State.FORKED):
            return
        if self._nursery is None:
            self._end()
        self._refuse_calls(_State.CLOSED)
        try:
            unsent = sum(pipe.unsent for pipe in self.pipes.values())
            if unsent:
                log.warning("%s socket closed with %d messages unsent", self.name, unsent)
            for listener in list(self.listeners):
                listener.stop()
            pipes = list(self.pipes.values())
            for pipe in pipes:
                pipe.end(trio.ClosedResourceError("the socket was closed"))
            for pipe in pipes:  # only now: a REQ must not find another pipe to resend by
                self.detach(pipe)
        finally:  # even if a log handler raises
            if self._nursery is not None:
                self._nursery.cancel_scope.cancel()
            self._event_log.end()
            self.engine.socket_closed()
            self.announce_change()

    def _refuse_calls(self, state: _State) -> None:
        """Enter *state*, in which no calls are accepted, and wake the calls that wait."""
        self._state = state
        self.open = False
        self.open_in = 0
        self.senders.fail_all(lambda: trio.ClosedResourceError("the socket is closed"))
        for receivers in list(self.waiting):
            receivers.fail(lambda: trio.ClosedResourceError("the socket is closed"))
        self.announce_change()

    def disown(self) -> None:
        """Accept no calls and touch nothing: in this forked child, the socket is the parent's."""
        self._state = _State.FORKED
        self.open = False
        self.open_in = self._thread = 0

    # Pipes.

    def attach(self, pipe: PipeTask, connection: Connection) -> None:
        """Add *pipe*, over *connection*, to the socket's pipes.

        Raises PipeRefused if the engine does not take it.
        """
        self.direct_read.revoke()  # from now on, messages may come from any pipe
        self.pipes[pipe.id] = pipe
        pipe.attach(connection)
        try:
            self.engine.pipe_attached(pipe)
        except PipeRefused:
            del self.pipes[pipe.id]
            raise
        self.emit(Event(kind=EventKind.ATTACHED, url=pipe.url, pipe=pipe.handle))
        self.senders.serve(pipe)

    def detach(self, pipe: PipeTask) -> None:
        """Remove *pipe*, which has ended.  A second call does nothing."""
        if self.pipes.pop(pipe.id, None) is None:
            return
        self.writer.forget(pipe.outbox)
        pipe.outbox.settle()
        if not (self.open and self.engine.sends_again):
            self.dropped[DropReason.PIPE_CLOSED if self.open else DropReason.SOCKET_CLOSED] += pipe.unsent
        self._past.update(pipe.counts())
        if isinstance(pipe.error, MessageTooLarge):
            self.dropped[DropReason.TOO_LARGE] += 1
        self.engine.pipe_detached(pipe)
        self.emit(Event(kind=EventKind.DETACHED, url=pipe.url, pipe=pipe.handle, reason=pipe.handle.reason, error=pipe.error))
        self.senders.serve(pipe)

    def task_of(self, pipe: Pipe) -> PipeTask:
        """Return the task that serves *pipe*, or served it.

        Raises ValueError if *pipe* belongs to another socket.
        """
        task = worker_of(pipe)
        if not isinstance(task, PipeTask) or not task.is_of(self):
            raise ValueError(f"{pipe!r} is a pipe of another socket")
        return task

    def has_only(self, pipe: PipeTask) -> bool:
        """Whether *pipe* is the only one, so that all messages come from it."""
        return self.open and len(self.pipes) == 1 and pipe.id in self.pipes

    def pipe_has_room(self, pipe: PipeTask) -> None:
        """Send messages that waited for room: *pipe* can take some again."""
        self.engine.pipe_has_room(pipe)
        self.senders.serve(pipe)

    async def changed(self) -> None:
        """Wait until the pipes or the socket's state change."""
        await self._changed.wait()

    def announce_change(self) -> None:
        """Wake the tasks that wait in ``changed``."""
        self._changed.set()
        self._changed = trio.Event()

    # Events.

    def emit(self, event: Event) -> None:
        """Give *event* to the event streams and the log, and wake the tasks in ``changed``."""
        self.announce_change()
        self._event_log.put(event)

    def events(self) -> EventStream:
        """Return a stream of the events from now on."""
        self.check_caller()
        return self._event_log.stream(self.check_caller, ended=self._state is _State.CLOSED)

    # Calls that wait to receive.

    def receivers(self, mailbox: Mailbox, *, exclusive: bool = False) -> Receivers:
        """Return the queue of tasks that wait for *mailbox*.

        If it is *exclusive*, only one task may wait at a time.
        """
        return Receivers(self, mailbox, exclusive=exclusive)

    # Time.

    def wake_timer(self) -> None:
        """Wake the timer task if the engine has an earlier deadline than the task waits for."""
        deadline = self.engine.next_deadline()
        if deadline is not None and deadline < self._timer_until:
            self.timer_idle = False
            self._timer_wanted.set()

    async def _time(self) -> None:
        # Usually, new deadlines are never earlier than known ones, so a task that sleeps until the
        # first deadline is never late.  For other engines ``wake_timer`` ends the sleep.
        engine = self.engine
        while True:
            deadline = engine.next_deadline()
            self._timer_until = math.inf if deadline is None else deadline
            self.timer_idle = deadline is None or engine.deadlines_come_nearer
            self._timer_wanted = trio.Event()
            with trio.move_on_at(self._timer_until):
                await self._timer_wanted.wait()
                continue
            engine.deadline_reached(trio.current_time())

    # Statistics.

    def statistics(self) -> SocketStatistics:
        """Return a snapshot of all counters."""
        totals = self._past.copy()
        pipes = tuple(self.pipes.values())  # in one step, since the caller may be another thread
        for pipe in pipes:
            totals.update(pipe.counts())
        dropped = self.dropped.copy() + self.engine.dropped.copy() + Counter({DropReason.INBOX_FULL: self.engine.inbox_dropped()})
        return SocketStatistics(
            protocol=self.name,
            messages_sent=totals["messages_sent"],
            bytes_sent=totals["bytes_sent"],
            messages_received=totals["messages_received"],
            bytes_received=totals["bytes_received"],
            dropped=+dropped,
            inbox=self.engine.queued(),
            pipes=tuple(pipe.statistics() for pipe in pipes),
            dialers=tuple(dialer.statistics() for dialer in tuple(self.dialers)),
            listeners=tuple(listener.statistics() for listener in tuple(self.listeners)),
        )
