"""ReloadReports: tells when the TLS files of a dialer or listener were read again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sp.events import Event, EventKind
from sp.interrupts import uninterrupted

if TYPE_CHECKING:
    from sp.core.core import Core
    from sp.tls.reload import ContextSource


@uninterrupted
class ReloadReports:
    """Tells when the TLS files of one dialer or listener were read again, whoever has asked for that."""

    __slots__ = ("_contexts", "_core", "_reported", "_url")

    def __init__(self, core: Core, url: str, contexts: ContextSource) -> None:
        self._core = core
        self._url = url
        self._contexts = contexts
        self._reported = contexts.status

    def check_files(self) -> None:
        """Read the files again if they have changed, and tell what has become of that."""
        self._contexts.check_files()
        self.report()

    def report(self) -> None:
        """Emit an event if the files were read again since the last report, or could not be."""
        reported = self._reported
        self._reported = status = generation, failure = self._contexts.status
        if failure and status != reported:
            self._core.emit(Event(kind=EventKind.RELOAD_FAILED, url=self._url, reason=failure, error=self._contexts.failure))
        elif generation != reported[0]:
            self._core.emit(Event(kind=EventKind.RELOADED, url=self._url))
