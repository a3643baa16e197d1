"""Core: what a socket consists of, below its public verbs: an engine, pipes, and the tasks that serve them.

One task a socket writes (so that a message to a hundred peers wakes one task, not a hundred), one task a pipe reads, one task a
dialer or listener makes new pipes; a task that waits for a full kernel buffer exists only as long as that is so.
"""

from __future__ import annotations

import enum
import logging
import math
import os
import sys
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from threading import get_ident
from typing import TYPE_CHECKING, Final, NoReturn, TypeVarTuple, Unpack

import trio

from sp.core.admission import Admission
from sp.core.pipe_task import PipeTask
from sp.core.receivers import Receivers
from sp.core.senders import Senders
from sp.errors import (
    MalformedMessage,
    MessageTooLarge,
    PeerClosed,
    PipeRefused,
    StateError,
    TLSConfigError,
)
from sp.events import Event, EventKind, EventStream
from sp.interrupts import uninterrupted
from sp.pipe import Pipe, worker_of
from sp.protocol_numbers import protocol_name
from sp.statistics import DropReason, SocketStatistics
from sp.transports.contract import SHORTEST_KEEPALIVE, EndpointConfig

if TYPE_CHECKING:
    from sp.core.accepting import ListenerTask
    from sp.core.dialing import DialerTask
    from sp.options import SocketOptions
    from sp.protocols.engine import Engine, Mailbox
    from sp.tls.context import ContextSource

log = logging.getLogger("sp")

_Arguments = TypeVarTuple("_Arguments")

_WRITES_A_TURN: Final = 64
"""Pipes that are written to before other tasks get their turn."""
_LOOKS: Final = 8
"""Within the keepalive time, at a pipe with data in flight."""
_GRANT_LASTS: Final = 0.02
"""Seconds after which a pipe reads for itself again when the task that read it last has not come back."""
_OTHER_THREAD: Final = (
    "a socket is used by tasks of the trio run that has entered it, and this call comes from another thread: "
    "use trio.from_thread.run_sync(...), or trio.from_thread.run(...) for what is awaited, "
    "with trio_token= of that run in a thread that trio.to_thread has not started"
)
_NO_TASK: Final = (
    "a socket is used by trio tasks, and this call comes from none, but from a callback, an instrument or the like: "
    "use trio_token.run_sync_soon(...), or do it in a task"
)


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
        self.terms = EndpointConfig(number=engine.number, peer_number=engine.peer_number, find_body=engine.find_body, options=options)
        self.pipes: dict[int, PipeTask] = {}
        self.dialers: list[DialerTask] = []
        self.listeners: list[ListenerTask] = []
        self.dropped: Counter[DropReason] = Counter()
        self.open = False
        """Whether calls are accepted."""
        self.open_in = 0
        """The thread whose calls are accepted, that of the trio run; 0: nobody's are."""
        self.closed_in_order = False
        """Whether what ended, or ends, the socket is ``aclose``."""
        self.direct_reader: PipeTask | None = None
        """A pipe that a waiting task may read itself, or does."""
        self.granted = 0
        """How often one has."""
        self.in_device = False
        """Whether a device passes on what the socket receives."""
        self.parked = 0
        """Tasks that wait for messages and do not read."""
        self.timer_idle = False
        """Whether an engine's new deadline must wake the timer task."""
        self.admission = Admission(self)
        """Makes pipes of new connections."""
        self.senders = Senders(self)
        """The tasks that wait to send."""
        self._state = _State.NEW
        self._thread = 0  # of the trio run, as long as there may be tasks of the socket
        self._nursery: trio.Nursery | None = None
        self._ended = trio.Event()
        self._changed = trio.Event()
        self._events: weakref.WeakSet[EventStream] | None = None  # it takes 1 kB: made when needed
        self._receivers: dict[Receivers, None] = {}  # those with somebody who waits
        self._due: list[PipeTask] = []
        self._writer: trio.lowlevel.Task | None = None
        self._watched: dict[PipeTask, None] = {}  # with data in flight, or written since the last look
        self._until_look = trio.CancelScope()
        self._look_every = max(SHORTEST_KEEPALIVE, options.tcp_keepalive or 0) / _LOOKS
        self._timer_wanted = trio.Event()
        self._timer_until = math.inf
        self._watching = False
        self._past = Counter[str]()  # what the pipes moved that are gone
        _cores.add(self)

    @property
    def name(self) -> str:
        """The protocol's name."""
        return protocol_name(self.engine.number)

    @property
    def state(self) -> str:
        """The state in words, for ``repr``."""
        return self._state.value

    def check_caller(self) -> None:
        """Raise RuntimeError unless a task of the socket's trio run calls.

        Before the socket is entered and after its end it is nobody's: then anybody may call.  In a
        forked child nobody may: StateError.
        """
        if get_ident() != self._thread:
            if self._thread:
                raise RuntimeError(_OTHER_THREAD)
            if self._state is _State.FORKED:
                raise StateError("the socket was made before a fork and belongs to the parent: make a new one in this process")
            return
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            raise RuntimeError(_NO_TASK) from None

    def may_close(self) -> bool:
        """Return whether the caller may close the socket or a part of it; in a forked child there is nothing to close.

        Raises RuntimeError unless a task of the socket's trio run calls.
        """
        if self._state is _State.FORKED:
            return False
        self.check_caller()
        return True

    def check_open(self) -> None:
        """Raise unless the socket can be used, and by this caller."""
        self.check_caller()
        if self._state is _State.OPEN:
            return
        if self._state in (_State.NEW, _State.ENTERED):
            raise StateError("the socket is not open: enter it with 'async with' first")
        raise trio.ClosedResourceError("the socket is closed")

    # Life and death.

    def enter(self) -> None:
        """Claim the socket for one block.  Raises StateError when there was one already, RuntimeError outside of trio."""
        self.check_caller()
        if self._state is not _State.NEW:
            raise StateError("a socket can be entered once")
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
                await self._write()
        finally:
            self.close()
            self._end()

    def _end(self) -> None:
        """There are no tasks any more, and there will be none."""
        self._thread = 0
        self._ended.set()

    def spawn(self, function: Callable[[Unpack[_Arguments]], Awaitable[None]], *arguments: *_Arguments) -> None:
        """Run *function* in a task of the socket."""
        assert self._nursery is not None
        self._nursery.start_soon(function, *arguments)

    async def aclose(self) -> None:
        """Close in order: stop dialing and listening, deliver what was accepted, then close."""
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
        if ours:  # called in ``authorize`` or ``health``: we would wait for ourselves
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        await self._ended.wait()
        await trio.lowlevel.checkpoint()

    async def _deliver(self) -> None:
        """Let the pipes deliver what was accepted, then close."""
        try:
            with trio.move_on_after(self.options.linger):
                while self.pipes:
                    await self.changed()
        finally:
            self.close()

    def _serves(self, task: trio.lowlevel.Task | None) -> bool:
        """Whether *task* is one of the socket's, or was started by one that waits for it."""
        while task is not None and task.parent_nursery is not None:
            if task.parent_nursery is self._nursery:
                return True
            task = task.parent_nursery.parent_task
        return False

    def close(self) -> None:
        """Close now.  What was accepted and not written is dropped and counted."""
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
            for pipe in pipes:  # now that a REQ finds no pipe to send its request again
                self.detach(pipe)
        finally:  # also when a handler of the log has raised
            if self._nursery is not None:
                self._nursery.cancel_scope.cancel()
            for stream in list(self._events or ()):
                stream.end()
            self.engine.socket_closed()
            self.announce_change()

    def _refuse_calls(self, state: _State) -> None:
        """Enter *state*, in which no call is accepted, and wake those that wait."""
        self._state = state
        self.open = False
        self.open_in = 0
        self.senders.fail_all(lambda: trio.ClosedResourceError("the socket is closed"))
        for receivers in list(self._receivers):
            receivers.fail(lambda: trio.ClosedResourceError("the socket is closed"))
        self.announce_change()

    def disown(self) -> None:
        """We are in a forked child: descriptors and event loop are the parent's, so nothing is touched, and no call accepted."""
        self._state = _State.FORKED
        self.open = False
        self.open_in = self._thread = 0

    # Pipes.

    def attach(self, pipe: PipeTask) -> None:
        """Make *pipe*, which was admitted, one of the socket's.  Raises PipeRefused when the engine does not take it."""
        if self.direct_reader is not None:
            self.direct_reader.revoke()  # from now on messages may come by any pipe
        self.pipes[pipe.id] = pipe
        pipe.attach()
        try:
            self.engine.pipe_attached(pipe)
        except PipeRefused:
            del self.pipes[pipe.id]
            raise
        self.emit(Event(kind=EventKind.ATTACHED, url=pipe.url, pipe=pipe.handle))
        self.senders.serve(pipe)

    def detach(self, pipe: PipeTask) -> None:
        """*pipe* has ended."""
        if self.pipes.pop(pipe.id, None) is None:
            return
        self._watched.pop(pipe, None)
        pipe.settle()
        if not (self.open and self.engine.sends_again):
            self.dropped[DropReason.PIPE_CLOSED if self.open else DropReason.SOCKET_CLOSED] += pipe.unsent
        self._past.update(_moved(pipe))
        if isinstance(pipe.error, MessageTooLarge):
            self.dropped[DropReason.TOO_LARGE] += 1
        self.engine.pipe_detached(pipe)
        self.emit(Event(kind=EventKind.DETACHED, url=pipe.url, pipe=pipe.handle, reason=pipe.handle.reason, error=pipe.error))
        self.senders.serve(pipe)

    def task_of(self, pipe: Pipe) -> PipeTask:
        """Return the task that serves *pipe*, or served it.  Raises ValueError if *pipe* belongs to another socket."""
        task = worker_of(pipe)
        if not isinstance(task, PipeTask) or not task.is_of(self):
            raise ValueError(f"{pipe!r} is a pipe of another socket")
        return task

    def lone(self, pipe: PipeTask) -> bool:
        """Whether *pipe* is the only one, so that a message can come by no other."""
        return self.open and len(self.pipes) == 1 and pipe.id in self.pipes

    def watch_direct_reader(self) -> None:
        """A task has read *lender* in its stead: see to it that somebody reads if it does not come again."""
        if not self._watching:
            self._watching = True
            self.spawn(self._watch_direct_reader)

    async def _watch_direct_reader(self) -> None:
        granted = -1
        while granted != self.granted:
            granted = self.granted
            await trio.sleep(_GRANT_LASTS)
        self._watching = False
        if self.direct_reader is not None and self.direct_reader.on_offer:
            self.direct_reader.resume()

    async def changed(self) -> None:
        """Wait for the next change of the pipes, or of the socket's state."""
        await self._changed.wait()

    def announce_change(self) -> None:
        """Wake the tasks that wait in ``changed``."""
        self._changed.set()
        self._changed = trio.Event()

    # Events.

    def emit(self, event: Event) -> None:
        """Give *event* to those who listen, wake those who wait for a change, and log it."""
        for stream in list(self._events or ()):
            stream.put(event)
        self.announce_change()
        level = logging.INFO
        if isinstance(event.error, (MessageTooLarge, MalformedMessage, TLSConfigError)):
            level = logging.WARNING  # a message that one side sent and the other does not accept would come again and again without a word
        elif event.kind is EventKind.REFUSED and isinstance(event.error, PeerClosed) and event.error.silent:
            level = logging.DEBUG  # balancers do that every few seconds
        if log.isEnabledFor(level):
            pipe = f" pipe {event.pipe.id} {event.pipe.remote_address}" if event.pipe is not None else ""
            log.log(level, "%s %s %s%s%s", self.name, event.kind.value, event.url, pipe, f": {event.reason}" if event.reason else "")

    def events(self) -> EventStream:
        """Return a stream of the events from now on."""
        self.check_caller()
        stream = EventStream(self.check_caller)
        if self._state is _State.CLOSED:
            stream.end()
        if self._events is None:
            self._events = weakref.WeakSet()
        self._events.add(stream)
        return stream

    def tell_reload(self, contexts: ContextSource, url: str, reported: tuple[int, str]) -> tuple[int, str]:
        """Tell what has become of the contexts of the endpoint *url* since it *told* last, whoever has reloaded them; return the news."""
        status = generation, failure = contexts.status
        if failure and status != reported:
            self.emit(Event(kind=EventKind.RELOAD_FAILED, url=url, reason=failure, error=contexts.failure))
        elif generation != reported[0]:
            self.emit(Event(kind=EventKind.RELOADED, url=url))
        return status

    # Writing.

    def write_soon(self, pipe: PipeTask) -> None:
        """Let the writer task write what *pipe* has gathered by its next turn."""
        self._due.append(pipe)
        writer, self._writer = self._writer, None
        if writer is not None:
            trio.lowlevel.reschedule(writer)

    async def _write(self) -> None:
        while True:
            with trio.CancelScope() as self._until_look:
                self._plan_look()
                await self._write_due()
            self._look()

    def watch(self, pipe: PipeTask) -> None:
        """Look from time to time whether the peer of *pipe* acknowledges what was written.

        Until ``look`` of the pipe has said that nothing is in flight any more.
        """
        self._watched[pipe] = None
        if len(self._watched) == 1:
            self._plan_look()

    def _plan_look(self) -> None:
        if self._watched:
            self._until_look.deadline = trio.current_time() + self._look_every

    def _look(self) -> None:
        now = trio.current_time()
        self._watched = {pipe: None for pipe in list(self._watched) if pipe.look(now)}

    async def _write_due(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            if not self._due:
                self._writer = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)
            due, self._due = self._due, []
            for count, pipe in enumerate(due, 1):
                pipe.write_due()
                if count % _WRITES_A_TURN == 0:
                    with trio.CancelScope(shield=True):  # a look must not make us forget the rest
                        await trio.lowlevel.checkpoint()

    def room(self, pipe: PipeTask) -> None:
        """*pipe* can take messages again."""
        self.engine.pipe_has_room(pipe)
        self.senders.serve(pipe)

    # Calls that wait to receive.

    def receivers(self, mailbox: Mailbox, *, exclusive: bool = False) -> Receivers:
        """Return the queue of those that wait for *mailbox*; *exclusive*: one at a time."""
        return Receivers(self, mailbox, exclusive=exclusive)

    def receivers_wait(self, receivers: Receivers) -> None:
        """Somebody waits in *receivers*, and is to be told when the socket is closed."""
        self._receivers[receivers] = None

    def receivers_rest(self, receivers: Receivers) -> None:
        """Nobody waits there any more."""
        self._receivers.pop(receivers, None)

    # Time.

    def wake_timer(self) -> None:
        """Tell the timer task that the engine has a deadline before the one that it waits for."""
        deadline = self.engine.next_deadline()
        if deadline is not None and deadline < self._timer_until:
            self.timer_idle = False
            self._timer_wanted.set()

    async def _time(self) -> None:
        # Where deadlines only move away, a task that sleeps until the first of them is never too late.
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
        pipes = tuple(self.pipes.values())  # at once: the caller may be another thread
        for pipe in pipes:
            totals.update(_moved(pipe))
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


def _moved(pipe: PipeTask) -> dict[str, int]:
    return {
        "messages_sent": pipe.messages_sent,
        "bytes_sent": pipe.bytes_sent,
        "messages_received": pipe.messages_received,
        "bytes_received": pipe.bytes_received,
    }


_cores: weakref.WeakSet[Core] = weakref.WeakSet()


def _disown_all() -> None:
    for core in list(_cores):
        core.disown()


def end_child(error: BaseException | None) -> NoReturn:
    """End this process, a forked child that leaves a block of its parent.

    Going on would take events from the parent and unregister what it waits for: trio's event loop
    is that of both.
    """
    status: object = 1
    if isinstance(error, SystemExit):
        status = error.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
    else:
        log.critical("a forked child leaves the block of a socket of its parent, and ends here: end it by os._exit", exc_info=error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # there is none, or it is closed
            stream.flush()
    os._exit(status if isinstance(status, int) else 1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
