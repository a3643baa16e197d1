"""Tests with libnng in our own process run in a child of it, which may die.

libnng 1.11 aborts its process now and then when a pipe over ws or wss ends, be it with itself or with
us: it locks what is gone already, or frees memory twice, after a hundred pipes or after a thousand.
On a busy machine it may hang there as well.  The child runs one test after the other.  When it was
aborted, or does not answer, the next child begins with the test that was under way.  A test that
never comes through is a failure, and says where its last child was.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import tempfile
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any, Final, Literal

import pytest
from _pytest.runner import runtestprotocol

MARK: Final = "libnng"
DEATHS: Final = "deaths"
"""The property of a report that tells how many children were lost before the test ended."""
_TRIES: Final = 3
_SECONDS = 60
"""Far more than a test may take: what hangs then is not trio's, since each test has its time there."""
_PATIENCE: Final = 2
_ABORTS: Final = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)
_TELL: Final = signal.SIGUSR1
"""Makes a child write down what its threads do."""

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
        words = ""
        for deaths in range(_TRIES):
            if self._child is None:
                self._child = _Child(self._session)
            reports = self._child.run(number, next_number)
            if reports is not None:
                reports[0]["user_properties"].append((DEATHS, deaths))
                deserialize = item.config.hook.pytest_report_from_serializable
                return [deserialize(config=item.config, data=report) for report in reports]
            words, is_lost = self._child.end()
            self._child = None
            if not is_lost:
                break
        # Keywords as pytest's own reports have them: another process may want to read this one.
        keywords: dict[str, Literal[1]] = dict.fromkeys(item.keywords, 1)
        return [pytest.TestReport(item.nodeid, item.location, keywords, "failed", words, "call")]

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.end()
            self._child = None


class _Child:
    """A process like ours that runs tests for us."""

    def __init__(self, session: pytest.Session) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        self._told = tempfile.TemporaryFile()  # noqa: SIM115  # what its threads do when it hangs
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
            faulthandler.register(_TELL, self._told)
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

    def end(self) -> tuple[str, bool]:
        """End it, with the programs that it has started.

        Return how it has ended, and whether libnng may be to blame: it was aborted, or hangs.
        """
        self._connection.close()  # if it lives and does not hang, it ends now
        deadline = time.monotonic() + _PATIENCE
        hangs = False
        while (ended := os.waitpid(self._pid, os.WNOHANG)) == (0, 0):
            if not hangs and time.monotonic() > deadline:
                hangs = True
                os.kill(self._pid, _TELL)
                deadline = time.monotonic() + _PATIENCE
            elif time.monotonic() > deadline:
                os.kill(self._pid, signal.SIGKILL)
            time.sleep(0.005)
        try:
            os.killpg(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._told.seek(0)
        told = self._told.read().decode(errors="replace")
        self._told.close()
        if hangs:
            return f"the process of the test hung:\n{told}", True
        if os.WIFSIGNALED(ended[1]):
            death = signal.Signals(os.WTERMSIG(ended[1]))
            return f"the process of the test was ended by {death.name}", death in _ABORTS
        return "the process of the test ended before the test did", False


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
