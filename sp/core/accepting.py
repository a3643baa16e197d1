"""ListenerTask: accepts connections at a bound URL.

Each new connection has a task of its own, so a silent peer delays no other peer.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

import trio

from sp.checks import check_seconds
from sp.core.core import Core
from sp.core.pipe_task import PipeTask
from sp.core.tls_files import TLSFiles
from sp.errors import Error, StateError
from sp.events import Event, EventKind
from sp.interrupts import uninterrupted
from sp.listener import Listener
from sp.statistics import ListenerStatistics
from sp.tls.config import TLSServerConfig
from sp.transports.contract import Acceptor, AnsweredByHTTP, HandedOver, Newcomer

log = logging.getLogger("sp")

_ACCEPT_PAUSE: Final = 0.1
"""Seconds to wait after accepting has failed, for example because no descriptor was free."""


@uninterrupted
class ListenerTask:
    """The task that accepts at one URL until it is closed.  Applications see its ``handle``."""

    def __init__(self, core: Core, acceptors: list[Acceptor], tls: TLSServerConfig | None, priority: int) -> None:
        self.url = acceptors[0].url
        self.handle = Listener(self)
        """What the application sees."""
        self._core = core
        self._priority = priority
        self._tls_files = None if tls is None else TLSFiles(core, self.url, tls)
        self._acceptors = acceptors
        # Connections whose handshake is running, the oldest first.
        self._in_handshake: dict[Newcomer, None] = {}
        self._pipes: set[PipeTask] = set()
        self._stopped = False
        self._draining = False
        self._accepted = 0
        self._attached = 0
        self._failures: Counter[str] = Counter()
        self._tls_handshakes: Counter[str] = Counter()

    def close(self) -> None:
        """Free the address and end the pipes of this listener, as the application asks for."""
        if self._core.may_close():
            self._close_unchecked()

    def _close_unchecked(self) -> None:
        self.stop()
        for pipe in list(self._pipes):
            pipe.close_unchecked()

    def stop(self) -> None:
        """Free the address; the pipes stay."""
        if not self._stopped:
            self._stopped = True
            for acceptor in self._acceptors:
                acceptor.close()
            for newcomer in self._in_handshake:
                newcomer.close()
            if self in self._core.listeners:
                self._core.listeners.remove(self)
            self._core.emit(Event(kind=EventKind.STOPPED, url=self.url))

    async def drain(self, timeout: float) -> None:
        """Refuse new connections, let the peers go elsewhere, then close.

        See ``Listener.drain``.
        """
        self._core.check_open()
        # None is not allowed: one peer that never leaves would make it wait forever.
        check_seconds("timeout", timeout)
        self._draining = True
        try:
            for acceptor in self._acceptors:
                acceptor.drain()
            for pipe in list(self._pipes):
                pipe.leave()
            with trio.move_on_after(timeout):
                while not self._core.pipes.keys().isdisjoint(pipe.id for pipe in self._pipes):
                    await self._core.changed()
        finally:
            self._close_unchecked()
        await trio.lowlevel.checkpoint()

    def reload(self) -> None:
        """Read the files of the TLS configuration again.  See ``Listener.reload``."""
        self._core.check_caller()
        if self._tls_files is None:
            raise StateError(f"{self.url!r} has no TLS, so there is nothing to reload")
        self._tls_files.reload()

    def statistics(self) -> ListenerStatistics:
        return ListenerStatistics(
            url=self.url,
            accepted=self._accepted,
            attached=self._attached,
            in_handshake=len(self._in_handshake),
            failures=dict(self._failures),
            tls_handshakes=dict(self._tls_handshakes),
        )

    @property
    def state(self) -> str:
        return "stopped" if self._stopped else f"{len(self._pipes)} pipes"

    def __repr__(self) -> str:
        return f"<ListenerTask {self.url} {self.state}>"

    async def run(self) -> None:
        """Accept connections until the listener stops."""
        try:
            async with trio.open_nursery() as nursery:
                for acceptor in self._acceptors:
                    nursery.start_soon(self._accept, acceptor)
                if self._tls_files is not None and self._tls_files.watch_interval is not None:
                    nursery.start_soon(self._watch, self._tls_files, self._tls_files.watch_interval)
        finally:
            self.stop()

    async def _watch(self, files: TLSFiles, interval: float) -> None:
        while not self._stopped:
            await trio.sleep(interval)
            if not self._stopped:
                files.check()

    async def _accept(self, acceptor: Acceptor) -> None:
        failing = False
        while not self._stopped:
            try:
                newcomers = await acceptor.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:
                if self._stopped:
                    return
                if not failing:
                    log.warning("%s cannot accept: %s; trying again every %g s", self.url, error, _ACCEPT_PAUSE)
                failing = True
                await trio.sleep(_ACCEPT_PAUSE)
                continue
            failing = False
            for newcomer in newcomers:
                self._accepted += 1
                self._in_handshake[newcomer] = None
                self._core.spawn(self.serve, newcomer)
            while len(self._in_handshake) > self._core.options.max_handshakes:
                oldest = next(iter(self._in_handshake))
                del self._in_handshake[oldest]
                oldest.close()

    async def serve(self, newcomer: Newcomer) -> None:
        """Turn *newcomer* into a pipe, and serve the pipe until it ends."""
        try:
            pipe = await self._greet(newcomer)
        finally:
            self._in_handshake.pop(newcomer, None)
        if pipe is None:
            return
        self._attached += 1
        if pipe.tls is not None:
            self._tls_handshakes["resumed" if pipe.tls.resumed else "full"] += 1
        self._pipes.add(pipe)
        if self._draining:
            pipe.leave()  # it was admitted after draining began
        del newcomer
        try:
            await pipe.run()
        finally:
            self._pipes.discard(pipe)

    async def _greet(self, newcomer: Newcomer) -> PipeTask | None:
        """Turn *newcomer* into a pipe.

        Returns None if that fails; the connection is then closed or handed over.
        """
        reason: Exception | None = None
        try:
            try:
                return await self._core.admission.admit_connection(newcomer, self.url, self._priority, dialed=False)
            except HandedOver:
                self._accepted -= 1
                return None
            except AnsweredByHTTP:
                self._accepted -= 1
            except Exception as error:
                if not isinstance(error, (Error, OSError, trio.ClosedResourceError)):
                    # A bug of ours costs this connection, not the listener.
                    log.exception("%s: refused a connection because of an unexpected error", self.url)
                self._refused(newcomer, error)
                reason = error
            await newcomer.linger_close(reason)
        except BaseException:
            newcomer.close()
            raise
        newcomer.close(reason)
        return None

    def _refused(self, newcomer: Newcomer, error: Exception) -> None:
        if self._stopped:
            return
        self._failures[type(error).__name__] += 1
        if isinstance(error, trio.ClosedResourceError) and self._draining:
            reason = "the listener is draining"
        elif isinstance(error, trio.ClosedResourceError):
            reason = f"more than {self._core.options.max_handshakes} handshakes were running"
        else:
            reason = str(error)
        peer = newcomer.remote_address
        self._core.emit(Event(kind=EventKind.REFUSED, url=self.url, reason=f"{peer}: {reason}" if peer else reason, error=error))
