"""PipeTask: serves a connection to one peer, from its greeting until it ends."""

from __future__ import annotations

import enum
import itertools
import math
import secrets
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from sp.errors import PeerClosed, PeerError, PeerSilent
from sp.interrupts import uninterrupted
from sp.pipe import Pipe
from sp.protocol_numbers import protocol_name
from sp.statistics import DropReason, PipeStatistics

if TYPE_CHECKING:
    from sp.core.core import Core
    from sp.http.message import HTTPInfo
    from sp.message import Message
    from sp.protocols.engine import Receiver
    from sp.tls.config import TLSInfo
    from sp.transports.contract import Connection
    from sp.transports.proxy_protocol import ProxyInfo

_SOON: Final = 1.0
TAKEN_HINT: Final = "; a PAIR that has its peer does that, and one whose authorize says no"
_ids = itertools.count(secrets.randbits(31))


class _State(enum.Enum):
    GREETED = "greeted"
    ATTACHED = "attached"
    LEAVING = "leaving"
    """Writes what waits and reads to the end, and delivers what it reads."""
    FINISHING = "finishing"
    """The same, but the socket takes nothing any more."""
    ENDED = "ended"


class _Writing(enum.Enum):
    IDLE = "idle"
    """Nothing waits.  The next message is queued, so that more can join it, and the socket's writer is told."""
    PROMPT = "prompt"
    """Nothing waits, and the peer has spoken since our last write: a dialogue, so the next message is written at once."""
    DUE = "due"
    """Messages wait for the socket's writer."""
    BLOCKED = "blocked"
    """The kernel takes no more; a task of our own waits for it."""
    BROKEN = "broken"
    """Writing failed.  What the peer sent before is still read, but not for longer than the linger time."""


class _Reading(enum.Enum):
    OWN = "own"
    """The pipe's task reads, or is about to."""
    ON_OFFER = "on offer"
    """Between two reads: a task that waits for a message may read in our stead, and save itself being woken by us."""
    GRANTED = "granted"
    """A waiting task reads; ours is parked until it stops."""
    REVOKED = "revoked"
    """The same, but it is to stop with this read."""


# Looking up an enum's member costs as much as the rest of a test; these are looked up for every message.
_GREETED, _ATTACHED, _LEAVING, _FINISHING, _ENDED = _State.GREETED, _State.ATTACHED, _State.LEAVING, _State.FINISHING, _State.ENDED
_IDLE, _PROMPT, _DUE, _BLOCKED, _BROKEN = _Writing.IDLE, _Writing.PROMPT, _Writing.DUE, _Writing.BLOCKED, _Writing.BROKEN
_OWN, _ON_OFFER, _GRANTED, _REVOKED = _Reading.OWN, _Reading.ON_OFFER, _Reading.GRANTED, _Reading.REVOKED


@uninterrupted
class PipeTask:
    """What reads and writes one connection.  The application sees it as its ``handle``."""

    __slots__ = (
        "__weakref__",
        "_byte_limit",
        "_core",
        "_grace",
        "_left_over",
        "_limit",
        "_outbox",
        "_outbox_bytes",
        "_reader",
        "_reading",
        "_refused",
        "_state",
        "_times_writable",
        "_watched",
        "_writing",
        "bytes_received",
        "bytes_sent",
        "connection",
        "error",
        "handle",
        "id",
        "messages_received",
        "messages_sent",
        "peer_number",
        "priority",
        "url",
    )

    def __init__(self, core: Core, connection: Connection, url: str, peer_number: int, priority: int) -> None:
        self.id: int = next(_ids) & 0x7FFF_FFFF  # 31 bits, from a random start
        self.url = url
        self.peer_number = peer_number
        self.priority = priority
        self.error: Exception | None = None
        self.handle = Pipe(self)
        """What the application sees."""
        self.messages_sent = self.bytes_sent = self.messages_received = self.bytes_received = 0
        self._core = core
        self.connection = connection
        self._limit = core.options.outbox_limit
        self._byte_limit = core.options.outbox_bytes
        self._outbox: deque[Message] = deque()
        self._outbox_bytes = 0
        self._state = _GREETED
        self._writing = _PROMPT
        self._refused = False  # an offer was turned down, so somebody wants to hear of room
        self._grace: trio.CancelScope | None = None  # the time that a broken pipe has left
        self._reading = _OWN
        self._reader: trio.lowlevel.Task | None = None  # our task, while it is parked
        self._times_writable = 0  # how often the kernel could take something again after it had been full
        self._watched = not connection.watchable  # also if looking at it would tell nothing
        self._left_over: list[Message] = []  # read by a borrower, not taken by the engine

    @property
    def peer_protocol(self) -> str:
        return protocol_name(self.peer_number)

    @property
    def local_address(self) -> str:
        return self.connection.local_address

    @property
    def remote_address(self) -> str:
        return self.connection.remote_address

    @property
    def tls(self) -> TLSInfo | None:
        return self.connection.tls

    @property
    def http(self) -> HTTPInfo | None:
        return self.connection.http

    @property
    def proxy_address(self) -> str | None:
        return self.connection.proxy_address

    @property
    def proxy(self) -> ProxyInfo | None:
        return self.connection.proxy

    @property
    def unsent(self) -> int:
        return len(self._outbox) + self.connection.unsent

    def close(self) -> None:
        """End the pipe, as the application asks for."""
        if self._core.may_close():
            self.close_unchecked()

    def close_unchecked(self) -> None:
        """Do as ``close``, whoever calls."""
        self.end(trio.ClosedResourceError("the pipe was closed by the application"))

    def is_of(self, core: Core) -> bool:
        """Whether it is, or was, a pipe of the socket with *core*."""
        return self._core is core

    def statistics(self) -> PipeStatistics:
        """Return what the pipe has moved so far."""
        return PipeStatistics(
            id=self.id,
            url=self.url,
            remote_address=self.remote_address,
            messages_sent=self.messages_sent,
            bytes_sent=self.bytes_sent,
            messages_received=self.messages_received,
            bytes_received=self.bytes_received,
            outbox=self.unsent,
        )

    @property
    def state(self) -> str:
        return self._state.value

    def __repr__(self) -> str:
        return f"<PipeTask {self.id} {self._state.value} {self.peer_protocol} {self.remote_address}>"

    # What the engine may do (sp.protocols.engine.EnginePipe).

    def offer(self, message: Message) -> bool:
        """Queue *message*, or write it at once.  False: no room."""
        if self._state is not _ATTACHED or self._writing is _BROKEN:
            return False
        size = len(message.header) + len(message.body)
        outbox = self._outbox
        if outbox:
            # Something waits, so somebody is to write it already.
            if len(outbox) >= self._limit or self._outbox_bytes + size > self._byte_limit:
                if self._writing is _DUE and self._write() is _IDLE:
                    self._writing = _DUE  # the writer has it on its list already
                if self._is_full(size):
                    self._refused = True
                    return False
            outbox.append(message)
            self._outbox_bytes += size
            return True
        outbox.append(message)
        self._outbox_bytes = size
        if self._writing is _PROMPT:
            self._write()
        elif self._writing is _IDLE:
            self._writing = _DUE
            self._core.write_soon(self)
        return True

    def offer_many(self, messages: list[Message]) -> int:
        """Do as ``offer`` with each of *messages* until one is not taken; return how many were."""
        outbox = self._outbox
        taken = 0
        if outbox or self._writing is _IDLE:  # those that nobody writes at once
            first = messages[: max(0, self._limit - len(outbox))]
            size = sum([len(message.header) + len(message.body) for message in first])
            if self._state is _ATTACHED and self._writing is not _BROKEN and self._outbox_bytes + size <= self._byte_limit:
                if not outbox and first:
                    self._writing = _DUE
                    self._core.write_soon(self)
                outbox.extend(first)
                self._outbox_bytes += size
                taken = len(first)
        for message in messages[taken:]:
            if not self.offer(message):
                break
            taken += 1
        return taken

    def discard_oldest(self) -> bool:
        """Drop the oldest message that waits to be written.  False: none waits."""
        if not self._outbox:
            return False
        self._outbox_bytes -= self._outbox.popleft().size
        return True

    @property
    def broken(self) -> bool:
        """Whether nothing can be written any more."""
        return self._writing is _BROKEN or self._state is _ENDED

    @property
    def progress(self) -> int:
        """Grows whenever a peer that kept us waiting has read something.

        The kernel takes more of ours only when a third of its megabytes is free: a slow peer may
        need minutes for that, so what it has acknowledged counts as well.
        """
        return self._times_writable + self.connection.acknowledged()

    def resume(self) -> None:
        """Wake our task, if it is parked: it finds out by itself what has changed."""
        reader, self._reader = self._reader, None
        if reader is not None:
            trio.lowlevel.reschedule(reader)

    def hang_up(self, error: PeerError) -> None:
        """End the pipe for what the peer did."""
        self.end(error)

    # What the core does.

    def attach(self) -> None:
        """From now on messages can be offered."""
        self._state = _ATTACHED

    def end(self, error: Exception) -> None:
        """Record why, once, and close the connection; the task in ``run`` then detaches the pipe."""
        if self.error is None:
            self.error = error
        self._state = _ENDED
        self.connection.close(error)
        if self._grace is not None:
            self._grace.cancel()
        self.resume()

    def settle(self) -> None:
        """Take what was handed to the connection and never written to its end out of what counts as sent."""
        self.messages_sent -= self.connection.unsent

    def finish(self) -> None:
        """Write what waits, tell the peer that this was all, and deliver nothing more.  The peer's end then ends the pipe."""
        if self._state is _LEAVING:
            self._state = _FINISHING
            self.resume()
        else:
            self._leave(_FINISHING)

    def leave(self) -> None:
        """Do the same, but go on delivering what the peer has sent before its end."""
        self._leave(_LEAVING)

    def _leave(self, state: _State) -> None:
        if self._state is _ATTACHED:
            self._state = state
            if state is _FINISHING:
                self.resume()
            if self._writing not in (_BLOCKED, _BROKEN):
                self._write()

    def write_due(self) -> None:
        """Write what has gathered."""
        if self._writing is _DUE and self.error is None:
            self._write()

    def look(self, now: float) -> bool:
        """Return whether to look again; end the pipe if its peer acknowledges nothing any more."""
        try:
            self._watched = self.connection.look(now)
        except PeerSilent as error:
            self.end(error)
            return False
        return self._watched

    async def run(self) -> None:
        """Read until the pipe ends, then detach it.  Only a cancellation comes out."""
        began = trio.current_time()
        try:
            await self._read()
            self.end(self._explained(PeerClosed("the peer closed the connection", silent=True), began))
        except (PeerClosed, ConnectionError) as error:
            self.end(self._explained(error, began))
        except (PeerError, OSError, trio.ClosedResourceError) as error:
            self.end(error)
        except trio.Cancelled:
            self._core.close()  # all pipes at once, before one after the other is detached
            raise
        finally:
            self.end(trio.ClosedResourceError("the socket was closed"))
            self._core.detach(self)

    def _explained(self, error: PeerClosed | ConnectionError, began: float) -> Exception:
        """Return *error* with what may be behind it: other implementations let a second peer of a PAIR in and soon hang up."""
        if not self._core.engine.single_peer or self.messages_received or trio.current_time() - began > _SOON:
            return error
        if isinstance(error, PeerClosed) and not error.silent:
            return error
        explained = PeerClosed(f"{error}{TAKEN_HINT}")
        explained.__cause__ = error
        return explained

    async def _read(self) -> None:
        receive_batch = self.connection.receive_batch
        while True:
            batch = await receive_batch()
            if not batch:
                return
            dialogue = len(batch) == 1
            self._received(batch)
            await self._deliver_all(batch)
            del batch  # nobody's message is kept alive while we wait
            while dialogue and self.connection.allows_direct_read and self._core.lone(self):
                dialogue = await self._grant()

    def _received(self, batch: list[Message]) -> None:
        """Count *batch* and mark it as ours."""
        handle = self.handle
        for message in batch:
            message.pipe = handle
        size = sum([len(message.body) for message in batch])
        if self._core.engine.find_body is not None:
            size += sum([len(message.header) for message in batch])
        self.messages_received += len(batch)
        self.bytes_received += size
        if self._writing is _IDLE:
            self._writing = _PROMPT

    def _deliver(self, batch: list[Message]) -> None:
        """Give *batch* to the engine, and take out of it what the engine took."""
        engine = self._core.engine
        if engine.takes_batches and (self._state is _ATTACHED or self._state is _LEAVING):
            del batch[: engine.messages_received(self, batch)]
            return
        message_received = engine.message_received
        taken = 0
        for message in batch:
            if self._state is not _ATTACHED and self._state is not _LEAVING:
                self._core.dropped[DropReason.UNDELIVERED] += 1
            elif not message_received(self, message):
                break
            taken += 1
        del batch[:taken]

    async def _deliver_all(self, batch: list[Message]) -> None:
        self._deliver(batch)
        while batch:
            await self._hold(batch)
            if batch:
                if not self._core.lone(self):
                    await trio.lowlevel.checkpoint()  # others that were held deliver one as well before we deliver the rest
                self._deliver(batch)

    async def _grant(self) -> bool:
        """Offer to let a task that waits for a message read in our stead.  True: one did, and does no longer."""
        self._reading = _ON_OFFER
        self._core.direct_reader = self
        try:
            # Both we and who got the message are about to run.  Is it first, and waits for another one, it reads on.
            await trio.lowlevel.checkpoint()
            granted = self._is_granted
            while self._is_granted:
                await self._park()
        finally:
            self._reading = _OWN
            self._core.direct_reader = None
        left_over, self._left_over = self._left_over, []
        await self._deliver_all(left_over)
        return granted and self._state is _ATTACHED

    async def read_for(self, receiver: Receiver) -> Message | None:
        """Read in the calling task, which waits for *receiver*.  None: it has to wait in another way.

        A round trip then wakes one task at each end instead of two.  Cancelled, nothing is lost.
        """
        core = self._core
        core.granted += 1
        message = None
        try:
            while True:
                self._reading = _GRANTED
                batch = await self.connection.receive_batch()
                revoked = self._is_revoked
                self._reading = _ON_OFFER
                if not batch:
                    return None  # our own task will see the same
                self._received(batch)
                self._deliver(batch)
                self._left_over = batch
                message = receiver.receive()
                if message is not None or batch or revoked or self._state is not _ATTACHED:
                    return message
        except (PeerError, OSError, trio.ClosedResourceError):
            return None  # interrupted, or our own task will see the same
        finally:
            if message is None or core.parked or self._left_over:
                self._reading = _OWN  # and nobody reads before our task has dealt with what is left over
                self.resume()
            else:
                self._reading = _ON_OFFER
                core.watch_direct_reader()  # who got its message mostly comes back for the next one, but it need not

    @property
    def on_offer(self) -> bool:
        """Whether a task that waits for a message may read in our stead."""
        return self._reading is _ON_OFFER

    @property
    def _is_granted(self) -> bool:
        return self._reading is _GRANTED or self._reading is _REVOKED

    @property
    def _is_revoked(self) -> bool:
        return self._reading is _REVOKED

    def interrupt(self) -> None:
        """Make a task that reads in our stead look around: there may be something for it by another way."""
        if self._reading is _GRANTED:
            self._reading = _REVOKED
            self.connection.interrupt()

    def revoke(self) -> None:
        """Read by ourselves from now on."""
        self.interrupt()
        if self._reading is _ON_OFFER:
            self._reading = _OWN
            self.resume()

    async def _hold(self, batch: list[Message]) -> None:
        """Wait until the engine takes the first of *batch*, which holds the peer back meanwhile."""
        engine = self._core.engine
        try:
            if engine.hold_time == math.inf:
                await self._until_taken(batch)
            else:
                with trio.move_on_after(engine.hold_time):
                    await self._until_taken(batch)
                    return
                if self._state is _ATTACHED or self._state is _LEAVING:
                    if not engine.message_received(self, batch[0]):
                        engine.force_message(self, batch[0])
                    del batch[0]
        except trio.Cancelled:
            self._core.dropped[DropReason.UNDELIVERED] += len(batch)
            raise

    async def _until_taken(self, batch: list[Message]) -> None:
        while True:
            await self._park()
            if self._state is not _ATTACHED and self._state is not _LEAVING:
                return  # and _deliver counts what is lost
            if self._core.engine.message_received(self, batch[0]):
                del batch[0]
                return

    async def _park(self) -> None:
        """Wait for ``resume``."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._reader = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._reader = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _is_full(self, size: int) -> bool:
        """Whether a message of *size* bytes has to stay out.  An empty outbox takes any."""
        outbox = self._outbox
        return bool(outbox) and (len(outbox) >= self._limit or self._outbox_bytes + size > self._byte_limit)

    def _write(self) -> _Writing:
        """Write what the connection takes without waiting; return the state that this leads to."""
        outbox = self._outbox
        waiting, waiting_bytes = len(outbox), self._outbox_bytes
        try:
            done = self.connection.send_nowait(outbox)
        except OSError as error:
            self._writing = _BROKEN
            self._count_written(waiting, waiting_bytes)  # and what was not written after all is in the connection's count
            self._grace = trio.CancelScope()
            self._core.spawn(self._end_soon, error, self._grace)
            return self._writing
        self._count_written(waiting, waiting_bytes)
        if not self._watched:
            self._watched = True
            self._core.watch(self)
        if done and (self._state is _FINISHING or self._state is _LEAVING):
            done = self.connection.finish()
        if done:
            self._writing = _IDLE
        elif self._writing is not _BLOCKED:
            self._writing = _BLOCKED
            self._core.spawn(self._write_blocked)
        return self._writing

    def _count_written(self, waiting: int, waiting_bytes: int) -> None:
        outbox = self._outbox
        self._outbox_bytes = sum(message.size for message in outbox) if outbox else 0
        self.messages_sent += waiting - len(outbox)
        self.bytes_sent += waiting_bytes - self._outbox_bytes

    async def _end_soon(self, error: OSError, grace: trio.CancelScope) -> None:
        with grace:
            await trio.sleep(self._core.options.linger)
            self.end(error)

    async def _write_blocked(self) -> None:
        """Go on writing as the kernel takes it, until nothing waits."""
        state = self._writing
        while state is _BLOCKED:
            try:
                await self.connection.wait_writable()
                self._times_writable += 1
            except trio.ClosedResourceError:
                pass  # closed, or a reader was interrupted
            if self.error is not None:
                return
            state = self._write()
            if self._wanted_room():
                self._core.room(self)  # which may block us again: then another task does this

    def _wanted_room(self) -> bool:
        """Whether an offer was turned down and would now be taken: said once, when the outbox is half empty."""
        if not self._refused or self._state is not _ATTACHED:
            return False
        if len(self._outbox) > self._limit // 2 or self._outbox_bytes > self._byte_limit // 2:
            return False
        self._refused = False
        return True
