"""DialerTask: keeps one pipe to one URL, and makes a new one when it is lost."""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Final

import trio

from sp.core.pipe_task import TAKEN_HINT, PipeTask
from sp.core.reloads import ReloadReports
from sp.dialer import Dialer
from sp.errors import Error, PeerClosed, PeerError, UpgradeRefused
from sp.events import Event, EventKind
from sp.interrupts import uninterrupted
from sp.statistics import DialerStatistics
from sp.transports import transport_for

if TYPE_CHECKING:
    from sp.address import Address
    from sp.core.core import Core
    from sp.options import ShouldRedial
    from sp.pipe import Pipe
    from sp.transports.contract import Connection, EndpointConfig

log = logging.getLogger("sp")

_random: Final = SystemRandom()  # has no state of its own, but takes 3 kB
_STABLE: Final = 1.0
"""Seconds after which a pipe counts as a success even if the peer has sent nothing."""


class BackOff:
    """How long to wait before the next attempt: drawn evenly from *shortest* up to a ceiling that doubles until *longest*."""

    def __init__(self, shortest: float, longest: float, random: Random) -> None:
        self._shortest = shortest
        self._longest = longest
        self._random = random
        self._ceiling = shortest

    def next(self, *, permanent: bool = False, asked: float = 0.0) -> float:
        """Return the next wait in seconds; the longest one when trying again soon is pointless.

        *asked*: the wait that the peer would like, which is no less than ours and no more than the
        longest one.
        """
        if permanent:
            return self._longest
        self._ceiling = min(self._ceiling * 2, self._longest)
        return max(self._random.uniform(self._shortest, self._ceiling), min(asked, self._longest))

    def reset(self) -> None:
        """Begin with short waits again."""
        self._ceiling = self._shortest


@uninterrupted
class DialerTask:
    """What dials one URL until it is closed.  The application sees it as its ``handle``."""

    def __init__(self, core: Core, address: Address, terms: EndpointConfig, priority: int, *, once: bool) -> None:
        self.error: Exception | None = None
        self.handle = Dialer(self)
        """What the application sees."""
        self._pipe: PipeTask | None = None  # the current one
        self._core = core
        self._address = address
        self._terms = terms
        self._priority = priority
        self._reloads = None if terms.tls is None else ReloadReports(core, address.url, terms.tls.contexts)
        self._give_up = once  # the first failure is reported to the caller instead of tried again
        self._back_off = BackOff(core.options.redial_min, core.options.redial_max, _random)
        self._scope = trio.CancelScope()
        self._stopped = False
        self._decided = trio.Event()
        self._attempts = 0
        self._attached = 0
        self._failures: Counter[str] = Counter()
        self._handshakes: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return self._address.url

    @property
    def pipe(self) -> Pipe | None:
        return None if self._pipe is None else self._pipe.handle

    @property
    def state(self) -> str:
        return "attached" if self._pipe is not None else "stopped" if self._stopped else "trying"

    def close(self) -> None:
        """Stop dialing and end the pipe, as the application asks for."""
        if self._core.may_close():
            self.close_unchecked()

    def close_unchecked(self) -> None:
        """Do as ``close``, whoever calls."""
        self.stop()
        if self._pipe is not None:
            self._pipe.close_unchecked()

    def stop(self) -> None:
        """Stop dialing; the current pipe stays."""
        self._stopped = True
        if self._pipe is None:
            self._scope.cancel()

    def statistics(self) -> DialerStatistics:
        return DialerStatistics(
            url=self.url,
            attempts=self._attempts,
            attached=self._attached,
            failures=dict(self._failures),
            handshakes=dict(self._handshakes),
        )

    def __repr__(self) -> str:
        return f"<DialerTask {self.url} {self.state}>"

    async def decided(self) -> Exception | None:
        """Wait until the first attempt is over; return why it failed, or None when it made a pipe."""
        await self._decided.wait()
        return None if self._attached else self.error

    async def run(self) -> None:
        """Dial, keep the pipe, and dial again."""
        try:
            with self._scope:
                await self._run()
        finally:
            self._stopped = True
            self.error = self.error or trio.ClosedResourceError("the dialer was closed")
            self._decided.set()
            if self in self._core.dialers:
                self._core.dialers.remove(self)
            self._emit(EventKind.STOPPED, self.error)

    async def _run(self) -> None:
        while not self._stopped:
            try:
                pipe = await self._connect()
            except Exception as error:  # whatever it is, for example no thread for the resolver: only this attempt has failed
                self._failed(error)
                self._emit(EventKind.DIAL_FAILED, error)
            else:
                self._give_up = False
                began = trio.current_time()
                await self._keep(pipe)
                # A listener that turns us away right after its greeting, or whose reply is too large for us each time, would
                # otherwise be dialed at full speed for ever.
                served = pipe.messages_received > 0 or trio.current_time() - began >= _STABLE
                misbehaved = isinstance(pipe.error, PeerError) and not isinstance(pipe.error, PeerClosed)
                if served and not misbehaved:
                    self._back_off.reset()
            reason = self.error
            assert reason is not None
            if self._stopped or self._give_up or not self._wants_redial(reason):
                return
            asked = reason.retry_after if isinstance(reason, UpgradeRefused) else 0.0
            wait = self._back_off.next(permanent=isinstance(reason, Error) and reason.permanent, asked=asked)
            log.debug("%s next attempt in %.2f s", self.url, wait)
            await trio.sleep(wait)

    async def _connect(self) -> PipeTask:
        tls = self._terms.tls
        if tls is not None and self._reloads is not None and tls.watch_files is not None:
            self._reloads.check_files()
        self._attempts += 1
        self._emit(EventKind.DIALING)
        connection = None
        try:
            with trio.fail_after(self._core.options.handshake_timeout):
                connection = await transport_for(self._address).connect(self._address, self._terms)
            log.debug("%s connected to %s", self.url, connection.remote_address)
            return await self._admit(connection)
        except trio.TooSlowError:
            raise TimeoutError(f"no connection within {self._core.options.handshake_timeout:g} s") from None
        except BaseException as error:
            if tls is not None and isinstance(error, Error) and not _is_known(connection):
                # Anybody on the way can bring it about, and the next attempt would come late.
                error.permanent = False
                if isinstance(error, UpgradeRefused):
                    error.retry_after = 0.0
            if connection is not None:
                connection.close(error if isinstance(error, Exception) else None)
            raise

    async def _admit(self, connection: Connection) -> PipeTask:
        try:
            return await self._core.admission.admit_connection(connection, self.url, self._priority, dialed=True)
        except (PeerClosed, ConnectionError) as error:
            told = isinstance(error, PeerClosed) and not error.silent
            if told or not self._core.engine.single_peer or connection.stage != "greeting":
                raise
            raise PeerClosed(f"{error}{TAKEN_HINT}") from error

    async def _keep(self, pipe: PipeTask) -> None:
        late = self._stopped  # in the tick in which it was attached
        if late:
            pipe.close_unchecked()
        self._pipe = pipe
        self.error = None
        self._attached += 1
        if pipe.tls is not None:
            self._handshakes["resumed" if pipe.tls.resumed else "full"] += 1
        self._decided.set()
        try:
            with trio.CancelScope(shield=late):  # the cancellation is ours, and a pipe would take it for the socket's
                await pipe.run()
        finally:
            self._pipe = None
        assert pipe.error is not None
        self._failed(pipe.error)

    def _failed(self, error: Exception) -> None:
        self.error = error
        self._failures[type(error).__name__] += 1

    def _wants_redial(self, error: Exception) -> bool:
        should_redial = self._core.options.should_redial
        try:
            return should_redial is None or _ask(should_redial, error)
        except Exception as raised:
            self.error = raised
            log.warning("%s is dialed no more: redial raised %r", self.url, raised)
            return False

    def _emit(self, kind: EventKind, error: Exception | None = None) -> None:
        self._core.emit(Event(kind=kind, url=self.url, reason="" if error is None else str(error), error=error))


@trio.lowlevel.disable_ki_protection
def _ask(should_redial: ShouldRedial, error: Exception) -> bool:
    answer: object = should_redial(error)
    if inspect.iscoroutine(answer):
        answer.close()
    if inspect.isawaitable(answer):  # which is true, whatever it would become
        raise TypeError("redial must be a plain function that returns True or False, not what has to be awaited")
    return bool(answer)


def _is_known(connection: Connection | None) -> bool:
    """Whether TLS has verified the peer."""
    return connection is not None and connection.tls is not None and connection.tls.verified
