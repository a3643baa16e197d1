"""DialerTask: keeps one pipe to one URL, and makes a new one when the pipe is lost."""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from random import Random, SystemRandom
from typing import Final

import trio

from sp.address import Address
from sp.core.core import Core
from sp.core.pipe_task import PAIR_HINT, PipeTask
from sp.core.tls_files import TLSFiles
from sp.dialer import Dialer
from sp.errors import Error, PeerClosed, PeerError, UpgradeRefused
from sp.events import Event, EventKind
from sp.interrupts import uninterrupted
from sp.options import ShouldRedial
from sp.pipe import Pipe
from sp.statistics import DialerStatistics
from sp.transports import transport_for
from sp.transports.contract import DialerConfig, Newcomer

log = logging.getLogger("sp")

_random: Final = SystemRandom()  # one for all dialers: it has no state, but takes 3 kB
_STABLE: Final = 1.0
"""A pipe that lasts for this many seconds is a success, even if its peer has sent nothing."""


class BackOff:
    """The waits between attempts, in seconds.

    Each wait is drawn evenly from *shortest* up to a ceiling, which doubles with each attempt until
    it reaches *longest*.
    """

    def __init__(self, shortest: float, longest: float, random: Random) -> None:
        self._shortest = shortest
        self._longest = longest
        self._random = random
        self._ceiling = shortest

    def next(self, *, permanent: bool = False, asked: float = 0.0) -> float:
        """Return the next wait.

        If the failure is *permanent*, this is the longest wait: trying again soon is pointless.

        *asked* is the wait that the peer asks for.  It applies if it is longer than ours, up to the
        longest wait.
        """
        if permanent:
            return self._longest
        self._ceiling = min(self._ceiling * 2, self._longest)
        return max(self._random.uniform(self._shortest, self._ceiling), min(asked, self._longest))

    def reset(self) -> None:
        """Start with short waits again."""
        self._ceiling = self._shortest


@uninterrupted
class DialerTask:
    """The task that dials one URL until it is closed.  Applications see its ``handle``."""

    def __init__(self, core: Core, address: Address, endpoint: DialerConfig, priority: int, *, once: bool) -> None:
        self.error: Exception | None = None
        self.handle = Dialer(self)
        """What the application sees."""
        self._pipe: PipeTask | None = None  # the current one
        self._core = core
        self._address = address
        self._endpoint = endpoint
        self._priority = priority
        self._tls_files = None if endpoint.tls is None else TLSFiles(core, address.url, endpoint.tls)
        self._give_up = once  # the first failure ends the dialer, and ``dial`` raises it
        self._back_off = BackOff(core.options.redial_min, core.options.redial_max, _random)
        self._scope = trio.CancelScope()
        self._stopped = False
        self._fault = ""  # of ``should_redial``, which ended the dialer
        self._decided = trio.Event()
        self._attempts = 0
        self._attached = 0
        self._failures: Counter[str] = Counter()
        self._tls_handshakes: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return self._address.url

    @property
    def pipe(self) -> Pipe | None:
        # The caller may be another thread, and a pipe that ends meanwhile gives up its handle.
        return getattr(self._pipe, "handle", None)

    @property
    def state(self) -> str:
        return "attached" if self._pipe is not None else "stopped" if self._stopped else "trying"

    def close(self) -> None:
        """Stop dialing and end the pipe, as the application asks for."""
        if self._core.may_close():
            self.close_unchecked()

    def close_unchecked(self) -> None:
        """Close without checking the caller."""
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
            tls_handshakes=dict(self._tls_handshakes),
        )

    def __repr__(self) -> str:
        return f"<DialerTask {self.url} {self.state}>"

    async def decided(self) -> Exception | None:
        """Wait until the first attempt is over.

        Returns why it failed, or None if it made a pipe.
        """
        await self._decided.wait()
        return None if self._attached else self.error

    async def run(self) -> None:
        """Dial, serve the pipe, and dial again, until the dialer is closed."""
        try:
            with self._scope:
                await self._run()
        finally:
            self._stopped = True
            self.error = self.error or trio.ClosedResourceError("the dialer was closed")
            self._decided.set()
            if self in self._core.dialers:
                self._core.dialers.remove(self)
            self._emit(EventKind.STOPPED, self.error, self._fault)

    async def _run(self) -> None:
        while not self._stopped:
            try:
                pipe = await self._connect()
            except Exception as error:  # of any kind: it ends only this attempt
                reason = error
                self._failed(error)
                self._emit(EventKind.DIAL_FAILED, error)
            else:
                self._give_up = False
                began = trio.current_time()
                reason = await self._serve(pipe)
                # Otherwise we would dial at full speed for ever if the listener hangs up right
                # after the handshake, or always sends a message that is too large.
                served = pipe.messages_received > 0 or trio.current_time() - began >= _STABLE
                misbehaved = isinstance(reason, PeerError) and not isinstance(reason, PeerClosed)
                if served and not misbehaved:
                    self._back_off.reset()
            if self._stopped or self._give_up or not self._wants_redial(reason):
                return
            asked = reason.retry_after if isinstance(reason, UpgradeRefused) else 0.0
            wait = self._back_off.next(permanent=isinstance(reason, Error) and reason.permanent, asked=asked)
            log.debug("%s next attempt in %.2f s", self.url, wait)
            await trio.sleep(wait)

    async def _connect(self) -> PipeTask:
        if self._tls_files is not None:
            self._tls_files.check()
        self._attempts += 1
        self._emit(EventKind.DIALING)
        newcomer = None
        try:
            with trio.fail_after(self._core.options.handshake_timeout):
                newcomer = await transport_for(self._address).connect(self._address, self._endpoint)
            log.debug("%s connected to %s", self.url, newcomer.remote_address)
            return await self._admit(newcomer)
        except trio.TooSlowError:
            raise TimeoutError(f"no connection within {self._core.options.handshake_timeout:g} s") from None
        except BaseException as error:
            if self._tls_files is not None and isinstance(error, Error) and not _is_known(newcomer):
                # TLS has not verified the peer, so anyone on the way can cause such an error.  They
                # must not be able to delay the next attempt.
                error.permanent = False
                if isinstance(error, UpgradeRefused):
                    error.retry_after = 0.0
            if newcomer is not None:
                newcomer.close(error if isinstance(error, Exception) else None)
            raise

    async def _admit(self, newcomer: Newcomer) -> PipeTask:
        try:
            return await self._core.admission.admit_connection(newcomer, self.url, self._priority, dialed=True)
        except (PeerClosed, ConnectionError) as error:
            has_reason = isinstance(error, PeerClosed) and not error.silent
            if has_reason or not self._core.engine.single_peer or newcomer.stage != "greeting":
                raise
            raise PeerClosed(f"{error}{PAIR_HINT}") from error

    async def _serve(self, pipe: PipeTask) -> Exception:
        """Serve *pipe* until it ends.  Returns why it ended."""
        is_late = self._stopped  # the dialer was stopped in the tick in which the pipe was attached
        if is_late:
            pipe.close_unchecked()
        self._pipe = pipe
        self.error = None
        self._attached += 1
        if pipe.tls is not None:
            self._tls_handshakes["resumed" if pipe.tls.resumed else "full"] += 1
        self._decided.set()
        try:
            # Shield the pipe: it would mistake the dialer's cancellation for the socket's.
            with trio.CancelScope(shield=is_late):
                await pipe.run()
        finally:
            self._pipe = None
        assert pipe.error is not None
        self._failed(pipe.error)
        return pipe.error

    def _failed(self, error: Exception) -> None:
        self.error = error
        self._failures[type(error).__name__] += 1

    def _wants_redial(self, error: Exception) -> bool:
        should_redial = self._core.options.should_redial
        try:
            return should_redial is None or _ask(should_redial, error)
        except Exception as raised:
            self.error = raised
            self._fault = f"should_redial raised {raised!r}"
            log.warning("%s will not be dialed again: %s", self.url, self._fault)
            return False

    def _emit(self, kind: EventKind, error: Exception | None = None, reason: str = "") -> None:
        self._core.emit(Event(kind=kind, url=self.url, reason=reason or ("" if error is None else str(error)), error=error))


@trio.lowlevel.disable_ki_protection
def _ask(should_redial: ShouldRedial, error: Exception) -> bool:
    answer: object = should_redial(error)
    if inspect.iscoroutine(answer):
        answer.close()
    if inspect.isawaitable(answer):  # an awaitable is always truthy
        raise TypeError("should_redial must be a plain function that returns True or False, not an async one")
    return bool(answer)


def _is_known(newcomer: Newcomer | None) -> bool:
    """Whether TLS has verified the peer."""
    return newcomer is not None and newcomer.tls is not None and newcomer.tls.verified
