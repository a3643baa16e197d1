"""Forks: a forked child inherits sockets, but cannot use them.

The descriptors and trio's event loop belong to the parent too, so a child touches neither.
"""

from __future__ import annotations

import logging
import os
import sys
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sp.core.core import Core

log = logging.getLogger("sp")

cores: weakref.WeakSet[Core] = weakref.WeakSet()
"""All sockets of this process.  A forked child must not use any of them."""


def _disown_all() -> None:
    for core in list(cores):
        core.disown()


def end_child(error: BaseException | None) -> NoReturn:
    """End this process: a forked child that leaves an ``async with`` block of its parent.

    *error* is the exception that leaves the block, if any.  If the child continued, it would take
    events from the parent, and unregister the descriptors that the parent waits for.
    """
    status: object = 1
    if isinstance(error, SystemExit):
        status = error.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
    else:
        log.critical(
            "a forked child left the 'async with' block of a socket of its parent, so it ends now: end such a child with os._exit",
            exc_info=error,
        )
    for stream in (sys.stdout, sys.stderr):
        # The stream may be missing or closed.
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(status if isinstance(status, int) else 1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
