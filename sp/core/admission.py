"""Admission: how a new connection becomes a pipe of a socket, or is turned away."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Final

import trio

from sp.core.pipe_task import PipeTask
from sp.errors import GreetingError, PipeRefused, WrongProtocol
from sp.interrupts import uninterrupted
from sp.options import Authorize
from sp.pipe import Pipe
from sp.protocol_numbers import protocol_name
from sp.refusal import RefusalKind, RefusalResponse
from sp.transports.contract import Newcomer

if TYPE_CHECKING:
    from sp.core.core import Core

log = logging.getLogger("sp")

_SLOT_RESERVED: Final = 1.0
"""How long, in seconds, a PAIR reserves its slot for a peer still in its handshake.

A silent peer must not keep all others away.
"""


@uninterrupted
class Admission:
    """Greets new connections, asks ``authorize``, and attaches them to the socket.

    A socket with a single peer (PAIR) has one slot.  Our greeting makes a peer believe that it has
    a pipe, so the slot is reserved before we greet.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._reserved: _Reservation | None = None

    async def admit_connection(self, newcomer: Newcomer, url: str, priority: int, *, dialed: bool) -> PipeTask:
        """Turn *newcomer* into a pipe within the handshake timeout.

        Raises PeerError, PipeRefused, OSError or ClosedResourceError; the caller then closes the
        newcomer.
        """
        core = self._core
        if not core.engine.single_peer or (newcomer.defers_greeting and not dialed):
            return await self._admit(newcomer, url, priority)
        if dialed:
            self._check_slot(newcomer)
        elif core.options.authorize is not None or self._reserved is not None or not self._has_free_slot:
            newcomer.defer_greeting()  # until we know that the peer will get a pipe
            return await self._admit(newcomer, url, priority)
        self._reserved = reserved = _Reservation(newcomer, dialed=dialed)
        try:
            return await self._admit(newcomer, url, priority)
        finally:
            if self._reserved is reserved:
                self._reserved = None
                core.announce_change()

    async def _admit(self, newcomer: Newcomer, url: str, priority: int) -> PipeTask:
        core = self._core
        seconds = core.options.handshake_timeout
        is_greeted = False
        with trio.move_on_after(seconds):
            greeted = await newcomer.greet()
            number, expected = greeted.peer_number, core.engine.peer_number
            log.debug("%s %s: the peer greets as %s", url, newcomer.remote_address, protocol_name(number))
            if number != expected:
                error = WrongProtocol(f"wrong protocol: the peer is {protocol_name(number)}, expected {protocol_name(expected)}")
                await greeted.reject(error)
                raise error
            pipe = PipeTask(core, greeted, url, priority)
            is_greeted = True
            try:
                await self._wait_for_earlier_newcomer(newcomer)
                self._check_slot(newcomer)
                await self._authorize(pipe)
                self._check_slot(newcomer)
                if pipe.error is not None:
                    raise PipeRefused("refused: authorize closed the pipe")
            except PipeRefused as refused:
                await greeted.reject(refused)
                raise
            if newcomer.closed:
                raise trio.ClosedResourceError("the connection was closed during its handshake")
            if not core.open:
                raise trio.ClosedResourceError("the socket is closed")
            connection = greeted.accept()
            core.attach(pipe, connection)
            keep_alive = connection.keep_alive
            if keep_alive is not None:
                core.spawn(keep_alive)
            return pipe
        late = "authorize did not decide" if is_greeted else f"the {newcomer.stage} was not complete"
        timeout = GreetingError(f"{late} within {seconds:g} s")
        newcomer.close(timeout)
        raise timeout

    # The slot of a socket with a single peer.

    @property
    def _has_free_slot(self) -> bool:
        try:
            self._core.engine.check_can_attach()
        except PipeRefused:
            return False
        return True

    def _check_slot(self, newcomer: Newcomer) -> None:
        """Raise PipeRefused when there is no slot for *newcomer*."""
        reserved = self._reserved
        self._core.engine.check_can_attach()
        if reserved is not None and reserved.keeps_out(newcomer):
            raise PipeRefused("refused: this PAIR already has a peer, or is about to get one", kind=RefusalKind.NO_ROOM)

    async def _wait_for_earlier_newcomer(self, newcomer: Newcomer) -> None:
        """Wait until an earlier newcomer has taken the slot or left, or its reservation is over."""
        while (reserved := self._reserved) is not None and reserved.keeps_out(newcomer) and not reserved.dialed:
            with trio.move_on_at(reserved.until):
                await self._core.changed()

    async def _authorize(self, pipe: PipeTask) -> None:
        """Raise PipeRefused unless the application's ``authorize`` returns True for *pipe*."""
        authorize = self._core.options.authorize
        if authorize is None:
            return
        try:
            answer = await _call(authorize, pipe.handle)
        except PipeRefused:
            raise
        except Exception as error:
            raise PipeRefused(f"refused: authorize raised {error!r}") from error
        if isinstance(answer, RefusalResponse):
            raise PipeRefused(f"refused: authorize answered {answer.status}", answer)
        if answer is False:
            raise PipeRefused("refused: authorize said no")
        if answer is not True:  # most often a None, from a function that forgot its return
            what = None if answer is None else type(answer).__name__
            raise PipeRefused(f"refused: authorize returned {what}, expected True, False or an HTTPResponse")


class _Reservation:
    """The slot of a PAIR, kept for a while for one peer that is still in its handshake."""

    __slots__ = ("_newcomer", "dialed", "until")

    def __init__(self, newcomer: Newcomer, *, dialed: bool) -> None:
        self._newcomer = newcomer
        self.dialed = dialed
        self.until = trio.current_time() + _SLOT_RESERVED

    def keeps_out(self, newcomer: Newcomer) -> bool:
        """Whether the slot is reserved for a connection other than *newcomer* now."""
        return newcomer is not self._newcomer and trio.current_time() < self.until


@trio.lowlevel.disable_ki_protection
async def _call(authorize: Authorize, pipe: Pipe) -> object:
    answer = authorize(pipe)
    return await answer if inspect.isawaitable(answer) else answer
