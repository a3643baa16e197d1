"""PipeTask: serves a connection to one peer, from its greeting until it ends."""

from __future__ import annotations

import enum
import itertools
import math
import secrets
from typing import TYPE_CHECKING, Final

import trio

from sp.core.outbox import Outbox
from sp.errors import PeerClosed, PeerError
from sp.interrupts import uninterrupted
from sp.message import Message
from sp.pipe import Pipe
from sp.protocol_numbers import protocol_name
from sp.statistics import DropReason, PipeStatistics
from sp.tls.info import TLSInfo
from sp.transports.contract import Connection, Greeted, Peer
from sp.transports.proxy_protocol import ProxyInfo

if TYPE_CHECKING:
    from sp.core.core import Core
    from sp.http.message import HTTPInfo

_SOON: Final = 1.0
"""If a pipe ends within this many seconds, its peer may never have wanted it."""
PAIR_HINT: Final = "; a PAIR that already has a peer hangs up like this, and so does one whose authorize refuses"
"""Added to errors that explain nothing by themselves."""
_ids = itertools.count(secrets.randbits(31))


class _State(enum.Enum):
    GREETED = "greeted"
    ATTACHED = "attached"
    LEAVING = "leaving"
    """Writes the messages that wait, and delivers what the peer still sends."""
    FINISHING = "finishing"
    """Writes the messages that wait, and drops what the peer still sends: the socket is closing."""
    ENDED = "ended"


# These are looked up for every message, and looking up a member of an enum is slow.
_GREETED, _ATTACHED, _LEAVING, _FINISHING, _ENDED = _State.GREETED, _State.ATTACHED, _State.LEAVING, _State.FINISHING, _State.ENDED


@uninterrupted
class PipeTask:
    """The task that reads and writes one connection.

    Applications see its ``handle``.  ``Pipe`` describes most of its attributes.
    """

    __slots__ = (
        "__weakref__",
        "_core",
        "_parked",
        "_peer",
        "_state",
        "bytes_received",
        "connection",
        "discard_oldest",
        "error",
        "handle",
        "id",
        "messages_received",
        "offer",
        "offer_many",
        "outbox",
        "peer_number",
        "priority",
        "url",
    )

    def __init__(self, core: Core, greeted: Greeted, url: str, priority: int) -> None:
        self.id: int = next(_ids) & 0x7FFF_FFFF  # 31 bits, from a random start
        self.url = url
        self.peer_number = greeted.peer_number
        self.priority = priority
        self.error: Exception | None = None
        self.messages_received = self.bytes_received = 0
        self.connection: Connection  # from ``attach`` on
        self.handle = Pipe(self)
        """What the application sees."""
        self.outbox = outbox = Outbox(core, self)
        # Engines call these for every message, so they are bound here without another call in
        # between.
        self.offer, self.offer_many, self.discard_oldest = outbox.offer, outbox.offer_many, outbox.discard_oldest
        self._core = core
        self._peer: Peer = greeted
        self._state = _GREETED
        self._parked: trio.lowlevel.Task | None = None  # our task, while it waits for ``resume``

    # What the application sees through the handle.

    @property
    def state(self) -> str:
        return self._state.value

    @property
    def peer_protocol(self) -> str:
        return protocol_name(self.peer_number)

    @property
    def local_address(self) -> str:
        return self._peer.local_address

    @property
    def remote_address(self) -> str:
        return self._peer.remote_address

    @property
    def proxy_address(self) -> str | None:
        return self._peer.proxy_address

    @property
    def proxy(self) -> ProxyInfo | None:
        return self._peer.proxy

    @property
    def http(self) -> HTTPInfo | None:
        return self._peer.http

    @property
    def tls(self) -> TLSInfo | None:
        return self._peer.tls

    @property
    def unsent(self) -> int:
        return self.outbox.unsent

    def counts(self) -> dict[str, int]:
        """Return the numbers of messages and bytes so far."""
        return {
            "messages_sent": self.outbox.messages_sent,
            "bytes_sent": self.outbox.bytes_sent,
            "messages_received": self.messages_received,
            "bytes_received": self.bytes_received,
        }

    def statistics(self) -> PipeStatistics:
        return PipeStatistics(id=self.id, url=self.url, remote_address=self.remote_address, outbox=self.unsent, **self.counts())

    def close(self) -> None:
        """End the pipe, as the application asks for."""
        if self._core.may_close():
            self.close_unchecked()

    def close_unchecked(self) -> None:
        """Close without checking the caller."""
        self.end(trio.ClosedResourceError("the pipe was closed by the application"))

    def __repr__(self) -> str:
        return f"<PipeTask {self.id} {self._state.value} {self.peer_protocol} {self.remote_address}>"

    # For the engine, together with ``offer`` and its relatives (sp.protocols.engine.EnginePipe).

    @property
    def broken(self) -> bool:
        return self.outbox.broken

    @property
    def progress(self) -> int:
        return self.outbox.progress

    def resume(self) -> None:
        """Wake our task if it is parked.  It checks by itself what has changed."""
        parked, self._parked = self._parked, None
        if parked is not None:
            trio.lowlevel.reschedule(parked)

    def hang_up(self, error: PeerError) -> None:
        """End the pipe because of what the peer did."""
        self.end(error)

    # For the core.

    def is_of(self, core: Core) -> bool:
        """Whether it is, or was, a pipe of the socket with *core*."""
        return self._core is core

    @property
    def is_attached(self) -> bool:
        return self._state is _ATTACHED

    def attach(self, connection: Connection) -> None:
        """Take messages from now on."""
        self.connection = self._peer = connection
        self._state = _ATTACHED
        self.outbox.open(connection)

    def end(self, error: Exception) -> None:
        """Keep the first *error* as the reason, and close the connection.

        The task in ``run`` then detaches the pipe.
        """
        if self.error is None:
            self.error = error
        self._state = _ENDED
        self._peer.close(error)
        self.outbox.end()
        self.resume()

    def finish(self) -> None:
        """Write what waits, tell the peer that this was all, and deliver nothing more.

        The pipe ends when the peer ends the connection.
        """
        if self._state is _LEAVING:
            self._state = _FINISHING
            self.resume()
        elif self._state is _ATTACHED:
            self._state = _FINISHING
            self.resume()
            self.outbox.finish()

    def leave(self) -> None:
        """Finish, but still deliver what the peer sends until it ends the connection."""
        if self._state is _ATTACHED:
            self._state = _LEAVING
            self.outbox.finish()

    async def run(self) -> None:
        """Read until the pipe ends, then detach it.  Raises nothing but trio.Cancelled."""
        began = trio.current_time()
        try:
            await self._read()
            self.end(self._explained(PeerClosed("the peer closed the connection", silent=True), began))
        except (PeerClosed, ConnectionError) as error:
            self.end(self._explained(error, began))
        except (PeerError, OSError, trio.ClosedResourceError) as error:
            self.end(error)
        except trio.Cancelled:
            # End all pipes at once, before they are detached one after the other.
            self._core.close()
            raise
        finally:
            self.end(trio.ClosedResourceError("the socket was closed"))
            self._core.detach(self)
            # The handle needs its task, but the task no longer needs the handle.  Each would keep
            # the other alive until the garbage collector runs.
            del self.handle

    def _explained(self, error: PeerClosed | ConnectionError, began: float) -> Exception:
        """Return why the pipe ended, after reading it ended with *error*.

        While the socket closes in order, the peer hangs up because we are done.  Otherwise it may
        have refused us, and the error gets a hint: a PAIR of other implementations completes the
        handshake with a second peer, and then hangs up.
        """
        if self._state is _FINISHING:
            return trio.ClosedResourceError("the socket was closed") if isinstance(error, PeerClosed) and error.silent else error
        if not self._core.engine.single_peer or self.messages_received or trio.current_time() - began > _SOON:
            return error
        if isinstance(error, PeerClosed) and not error.silent:
            return error
        explained = PeerClosed(f"{error}{PAIR_HINT}")
        explained.__cause__ = error
        return explained

    # Reading.

    async def _read(self) -> None:
        receive_batch, core = self.connection.receive_batch, self._core
        while True:
            batch = await receive_batch()
            if not batch:
                return
            is_dialogue = len(batch) == 1
            self.count_received(batch)
            await self._deliver_all(batch)
            del batch  # or its messages would stay in memory while we wait
            while is_dialogue and self.connection.allows_direct_read and core.has_only(self):
                was_read, left_over = await core.direct_read.grant(self)
                await self._deliver_all(left_over)
                is_dialogue = was_read and self._state is _ATTACHED

    def count_received(self, batch: list[Message]) -> None:
        """Count *batch*, and mark its messages with their pipe."""
        handle = self.handle
        for message in batch:
            message.pipe = handle
        size = sum([len(message.body) for message in batch])
        if self._core.engine.find_body is not None:
            size += sum([len(message.header) for message in batch])
        self.messages_received += len(batch)
        self.bytes_received += size
        self.outbox.peer_has_sent()

    def deliver(self, batch: list[Message]) -> None:
        """Give *batch* to the engine, and remove from it what the engine takes."""
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
        self.deliver(batch)
        while batch:
            await self._hold(batch)
            if batch:
                if not self._core.has_only(self):
                    # Let other pipes that were held deliver a message too, before we deliver the
                    # rest.
                    await trio.lowlevel.checkpoint()
                self.deliver(batch)

    async def _hold(self, batch: list[Message]) -> None:
        """Wait until the engine takes the first message of *batch*.

        Meanwhile the peer is slowed down.
        """
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
            await self.park()
            if self._state is not _ATTACHED and self._state is not _LEAVING:
                return  # ``deliver`` counts what is lost
            if self._core.engine.message_received(self, batch[0]):
                del batch[0]
                return

    async def park(self) -> None:
        """Wait for ``resume``."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._parked = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)
