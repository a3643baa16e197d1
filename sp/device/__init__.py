"""Device: passes on what arrives at one raw socket by another one.  ``python -m sp.device`` runs one from the shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from sp.errors import StateError
from sp.protocol_numbers import COUNTERPARTS, protocol_name
from sp.sockets.base import Socket, plain

if TYPE_CHECKING:
    from sp.core.core import Core
    from sp.sockets.base import Wiring

_MANY: Final = 64
"""Messages after which other tasks get their turn; one to many peers counts for each of them."""


@trio.lowlevel.enable_ki_protection
async def device(front: Socket, back: Socket | None = None) -> None:
    """Pass on all that arrives at *front* by *back*, and the other way round, as far as their protocols go both ways; until cancelled.

    Both are open raw sockets (``raw=True``), of counterpart protocols or both BUS or both PAIR; which is which makes no difference, and
    neither does the transport.  With *front* alone, what arrives there leaves there: a BUS so reaches all other peers of it.

    Replies find their way back by the backtrace, and what has made more hops than the ``ttl`` of the socket that it comes to is dropped,
    so that a ring of devices comes to rest.  PUSH, PUB, BUS and PAIR0 count no hops: a ring of those never does.
    When one side has no room, the other is not read: whoever sends there is held back.  What protocols drop otherwise, they drop here,
    and ``front.statistics()`` and ``back.statistics()`` have all counts.  A side without peers is waited for.

    Who receives on a socket beside its device takes messages away from it.

    Cancelled, nothing is lost: a message that was not passed on yet is received next from its socket.  The sockets stay open.
    Raises ValueError for sockets that do not fit, StateError for one that is not raw or not open, BusyResourceError for one that
    is in a device already, and ClosedResourceError when one is closed.  (nng's device closes the sockets; nanomsg's and mangos' do not.)
    """
    other = front if back is None else back
    for socket in (front, other):
        if not isinstance(socket, Socket):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"a device takes sockets, not {type(socket).__name__}")
        if not socket.raw:
            raise StateError(f"a device needs raw sockets: make {socket!r} with raw=True")
    if back is front:
        raise ValueError("a device with one socket is device(socket), not device(socket, socket)")
    ends = [front.wiring, other.wiring]
    cores = {end.core for end in ends}
    ours, theirs = (end.core.engine.number for end in ends)
    if COUNTERPARTS[ours] != theirs:
        what = "itself" if back is None else protocol_name(theirs)
        raise ValueError(f"a device cannot join {protocol_name(ours)} and {what}: expected {protocol_name(COUNTERPARTS[ours])}")
    for core in cores:
        core.check_open()
        if core.in_device:
            raise trio.BusyResourceError("the socket is in another device already")
    for core in cores:
        core.in_device = True
    try:
        await _run([ends] if back is None else [ends, ends[::-1]])
    finally:
        for core in cores:
            core.in_device = False


async def _run(ways: list[list[Wiring]]) -> None:
    cores = [end.core for end in ways[0]]
    try:
        async with trio.open_nursery() as nursery:
            for core in cores:
                nursery.start_soon(_watch, core)
            for source, sink in ways:
                if source.receiver is not None and sink.sender is not None:
                    nursery.start_soon(_pass_on, source, sink)
    except BaseExceptionGroup as group:
        cancelled, errors = group.split(trio.Cancelled)
        other = None if errors is None else errors.split(trio.ClosedResourceError)[1]
        if other is not None:
            raise plain(other) or other from None
        if cancelled is not None:
            raise cancelled from None  # which may have closed the sockets as well
        for core in cores:
            core.check_open()  # the reason, once
        raise


@trio.lowlevel.enable_ki_protection
async def _watch(core: Core) -> None:
    """Raise ClosedResourceError when the socket is closed: who passes on may wait for the other one."""
    while True:
        core.check_open()
        await core.changed()


@trio.lowlevel.enable_ki_protection
async def _pass_on(source: Wiring, sink: Wiring) -> None:
    receiver, receivers, sender = source.receiver, source.receivers, sink.sender
    assert receiver is not None
    assert receivers is not None
    assert sender is not None
    fans_out, pipes, left = sink.core.engine.fans_out, sink.core.pipes, _MANY
    senders = sink.core.senders
    while True:
        message = receiver.receive()
        if message is None:
            message = await receivers.wait(receiver)
            left = _MANY
        try:
            source.core.check_open()
            sink.core.check_open()
            left -= max(1, len(pipes)) if fans_out else 1
            if left <= 0:
                left = _MANY
                await trio.lowlevel.checkpoint()
                sink.core.check_open()
            if (senders.lines and senders.must_wait(sender, message)) or not sender.send(message):
                await senders.wait(sender, message)
        except BaseException:
            receiver.put_back(message)
            raise
