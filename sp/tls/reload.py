"""Replaces a context when its files change."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NoReturn

from sp.errors import TLSConfigError
from sp.tls.context import TLSContext
from sp.tls.settings import ClientSettings, ServerSettings

log = logging.getLogger("sp")


class ContextSource:
    """The context that new connections get.  It is replaced when the files of *config* change."""

    def __init__(self, config: ServerSettings | ClientSettings) -> None:
        self._config = config
        self._seen = self._signature()
        self.current = TLSContext(config)
        self._generation = 1
        self.failure: TLSConfigError | None = None
        """Why the last reload failed.  None: it did not."""
        if isinstance(config, ClientSettings) and config.insecure_skip_verification:
            log.warning("TLS: insecure_skip_verification is on: any server is accepted")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a TLS configuration cannot be pickled: create it in the process that uses it")

    def reload(self) -> None:
        """Build a new context from what the files hold now.

        Raises TLSConfigError if that fails; the old context then stays in use.
        """
        if self._config.context is not None:
            raise TLSConfigError("a ready-made context cannot be reloaded: create a new configuration")
        self._seen = self._signature()
        try:
            self.current = TLSContext(self._config)
        except TLSConfigError as error:
            self.failure = error
            raise
        self._generation += 1
        self.failure = None

    @property
    def status(self) -> tuple[int, str]:
        """How many contexts were built, and why the last reload failed (empty: it did not)."""
        return self._generation, str(self.failure or "")

    def check_files(self) -> None:
        """Reload if a file has changed, or if the last reload failed.

        After a failure it tries again even if no file has changed, since the cause may be gone.
        ``status`` has the result.
        """
        if self.failure is not None or self._signature() != self._seen:
            try:
                self.reload()
            except TLSConfigError:
                pass

    def _signature(self) -> tuple[object, ...]:
        config = self._config
        trusted = config.client_ca if isinstance(config, ServerSettings) else config.ca
        sources = (config.certificate, config.private_key, config.revoked, trusted)
        return tuple(_stamp(path) for source in sources if isinstance(source, str | os.PathLike) for path in _files(Path(source)))


def _files(path: Path) -> list[Path]:
    """Return *path*, and what is in it if it is a directory."""
    try:
        return [path, *sorted(path.iterdir())] if path.is_dir() else [path]
    except OSError:
        return [path]


def _stamp(path: Path) -> object:
    """Return a value that changes when the file at *path* is changed or replaced."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return path, found.st_mtime_ns, found.st_size, found.st_ino
