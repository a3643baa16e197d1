"""Devices: what arrives at one raw socket is sent by another one.

``sp.device.device(front, back)`` runs one in a program, ``python -m sp.device`` from the shell.
"""

from __future__ import annotations

from typing import Final

import trio

from sp.core.core import Core
from sp.protocol_numbers import COUNTERPARTS, protocol_name
from sp.raw import RawSocket, Wiring, wiring_of
from sp.sockets.base import Socket, plain

__all__ = ["device"]

_MANY: Final = 64
"""After this many messages, other tasks get their turn.

A message to several peers counts once for each.
"""


@trio.lowlevel.enable_ki_protection
async def device(front: RawSocket, back: RawSocket | None = None) -> None:
    """Send by *back* what arrives at *front*, and the other way round, until cancelled.

    Both are open raw sockets (``sp.raw.Rep0`` and so on) of counterpart protocols, or both BUS, or
    both PAIR of the same version.  It makes no difference which one is the front, or which
    transports they use.  Messages of PUSH, PULL, PUB and SUB go in their one direction.  With
    *front* alone, it also sends what arrives there: a BUS passes a message on to all its other
    peers.

    Replies find their way back by the backtrace.  A message that made more hops than the ``ttl`` of
    the receiving socket is dropped and counted, so a ring of devices comes to rest.  PUSH, PUB, BUS
    and PAIR0 count no hops: in a ring of those a message goes round for ever.

    While one side has no room, or no peer, the other side is not read, and its peers are slowed
    down.  Messages that a protocol drops elsewhere are also dropped here, and the ``statistics`` of
    both sockets count them.  Do not receive on a socket of a device: the device would miss those
    messages.

    If the call is cancelled, nothing is lost: a message that was not passed on yet is the next one
    that its socket receives.  The sockets stay open.  (nng's device closes them.  The devices of
    nanomsg and mangos do not.)

    Raises TypeError for sockets that are not raw, ValueError for protocols that do not fit,
    StateError for a socket that is not open, BusyResourceError for one that is in a device already,
    and ClosedResourceError when one is closed.
    """
    other = front if back is None else back
    for socket in (front, other):
        _check_raw(socket)
    if back is front:
        raise ValueError("the same socket was given twice: for a device with one socket, call sp.device.device(socket)")
    ends = [wiring_of(front), wiring_of(other)]
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


def _check_raw(socket: object) -> None:
    if isinstance(socket, RawSocket):
        return
    if isinstance(socket, Socket):
        raise TypeError(f"a device needs raw sockets: expected sp.raw.{type(socket).__name__}(...), not {socket!r}")
    raise TypeError(f"a device takes raw sockets, such as sp.raw.Rep0(...), not {type(socket).__name__}")


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
    """Raise ClosedResourceError when the socket is closed.

    It does so even while ``_pass_on`` waits for the other socket.
    """
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
