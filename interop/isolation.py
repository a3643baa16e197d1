"""Tests with libnng in our own process run in a child of it, which may die.

libnng 1.11 aborts its process now and then when a pipe over ws or wss ends, be it with itself or with us: it locks what is gone already,
or frees memory twice, after a hundred pipes or after a thousand.  The child runs one test after the other; when libnng has aborted it,
the next child begins with the test that was under way.  What aborts libnng each time is a failure.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any, Final

import pytest
from _pytest.runner import runtestprotocol

MARK: Final = "libnng"
DEATHS: Final = "deaths"
"""The property of a report that tells how many children were aborted before the test ended."""
_TRIES: Final = 3
_SECONDS: Final = 60
"""Far more than a test may take: something hangs that is not trio's."""
_PATIENCE: Final = 2
_ABORTS: Final = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)

Reports = list[dict[str, Any]]


def is_isolated(item: pytest.Item) -> bool:
    """Whether *item* runs in a child."""
    return item.get_closest_marker(MARK) is not None


class Children:
    """The child that runs the tests now, and those before it and after it."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._child: _Child | None = None

    def run(self, item: pytest.Item, following: pytest.Item | None) -> list[pytest.TestReport]:
        """Run *item*, behind which comes *following*, and return its reports."""
        number = self._session.items.index(item)
        next_number = self._session.items.index(following) if following is not None and is_isolated(following) else None
        for deaths in range(_TRIES):
            if self._child is None:
                self._child = _Child(self._session)
            reports = self._child.run(number, next_number)
            if reports is not None:
                reports[0]["user_properties"].append((DEATHS, deaths))
                deserialize = item.config.hook.pytest_report_from_serializable
                return [deserialize(config=item.config, data=report) for report in reports]
            death = self._child.end()
            self._child = None
            if death not in _ABORTS:
                break
        words = f"the process of the test has ended by {death.name}" if death else "the process of the test has ended"
        return [pytest.TestReport(item.nodeid, item.location, dict(item.keywords), "failed", words, "call")]

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.end()
            self._child = None


class _Child:
    """A process like ours that runs tests for us."""

    def __init__(self, session: pytest.Session) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads: all are idle, and none is needed in the child
            self._pid = os.fork()
        if self._pid:
            theirs.close()
            return
        try:
            os.setpgid(0, 0)
            self._connection.close()
            faulthandler.disable()
            _serve(session, theirs)
        finally:
            os._exit(0)

    def run(self, number: int, following: int | None) -> Reports | None:
        """Run the test of that number, after which comes *following*, and return its reports.  None: it has died, or hangs."""
        try:
            self._connection.send((number, following))
            return self._connection.recv() if self._connection.poll(_SECONDS) else None
        except (EOFError, OSError):
            return None

    def end(self) -> signal.Signals | None:
        """End it, with the programs that it has started, and return the signal that it has died of."""
        self._connection.close()  # if it lives and does not hang, it ends now
        deadline = time.monotonic() + _PATIENCE
        while (ended := os.waitpid(self._pid, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(self._pid, signal.SIGKILL)
            time.sleep(0.005)
        try:
            os.killpg(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        return signal.Signals(os.WTERMSIG(ended[1])) if os.WIFSIGNALED(ended[1]) else None


def _serve(session: pytest.Session, connection: Connection[Any, Any]) -> None:
    while True:
        try:
            number, following = connection.recv()
        except EOFError:
            return
        item = session.items[number]
        # What belongs to the whole session is not the child's to tear down.
        behind: Any = session if following is None else session.items[following]
        reports = runtestprotocol(item, log=False, nextitem=behind)
        serialize = item.config.hook.pytest_report_to_serializable
        connection.send([serialize(config=item.config, report=report) for report in reports])
