"""TLSFiles: reads the TLS files of a dialer or listener again, and emits an event for it."""

from __future__ import annotations

from sp.core.core import Core
from sp.events import Event, EventKind
from sp.interrupts import uninterrupted
from sp.tls.config import TLSClientConfig, TLSServerConfig


@uninterrupted
class TLSFiles:
    """The files that the TLS configuration of one dialer or listener names.

    Several dialers and listeners may share a configuration.  When one of them reads the files
    again, all of them emit an event.
    """

    __slots__ = ("_config", "_core", "_reported", "_url")

    def __init__(self, core: Core, url: str, config: TLSServerConfig | TLSClientConfig) -> None:
        self._core = core
        self._url = url
        self._config = config
        self._reported = config.contexts.status

    @property
    def watch_interval(self) -> float | None:
        """Seconds between two checks for changed files; None if they are not watched."""
        return self._config.watch_files

    def reload(self) -> None:
        """Read the files again.

        Raises TLSConfigError if something is wrong with them: the old contents then stay in use.
        """
        try:
            self._config.reload()
        finally:
            self._report()

    def check(self) -> None:
        """Read the files again if they are watched and have changed.

        Failures are reported, not raised.
        """
        if self._config.watch_files is not None:
            self._config.contexts.check_files()
            self._report()

    def _report(self) -> None:
        """Emit an event if the files were read again since the last report, or could not be."""
        contexts = self._config.contexts
        reported = self._reported
        self._reported = status = generation, failure = contexts.status
        if failure and status != reported:
            self._core.emit(Event(kind=EventKind.RELOAD_FAILED, url=self._url, reason=failure, error=contexts.failure))
        elif generation != reported[0]:
            self._core.emit(Event(kind=EventKind.RELOADED, url=self._url))
