"""Callers: only tasks of the trio run that entered a socket can use it."""

from __future__ import annotations

from threading import get_ident
from typing import Final

import trio

_OTHER_THREAD: Final = (
    "this call comes from another thread, but only tasks of the trio run that entered the socket can use it: "
    "call trio.from_thread.run_sync(...), or trio.from_thread.run(...) for an async function; "
    "in a thread that trio.to_thread did not start, give it trio_token= of that run"
)
_NO_TASK: Final = (
    "this call comes from a callback, an instrument or the like, but only trio tasks can use a socket: "
    "call trio_token.run_sync_soon(...), or do this in a task"
)


def check_caller(thread: int) -> None:
    """Raise RuntimeError unless the caller is a trio task in the thread with the id *thread*."""
    if get_ident() != thread:
        raise RuntimeError(_OTHER_THREAD)
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        raise RuntimeError(_NO_TASK) from None
