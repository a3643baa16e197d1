"""Tests that have libnng in their process run in a child process, which may die.

libnng 1.11 now and then aborts its process when a pipe over ws or wss ends, whether the peer is
libnng or ours: it locks something that is gone already, or frees memory twice, after a hundred
pipes or after a thousand. On a busy machine it may also hang there. The child runs one test after
the other. If it is aborted or does not answer, the next child begins with the test that was
running. A test that never finishes fails, and says where its last child was.
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
"""The property of a report with the number of children that were lost before the test ended."""
_TRIES: Final = 3
_SECONDS = 60
"""Far more than a test may take.  Trio is not what hangs then: it limits each test's time."""
_PATIENCE: Final = 2
_ABORTS: Final = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)
_TELL: Final = signal.SIGUSR1
"""The signal that makes a child write down what its threads are doing."""

Reports = list[dict[str, Any]]


def is_isolated(item: pytest.Item) -> bool:
    """Whether *item* runs in a child."""
    return item.get_closest_marker(MARK) is not None


class Children:
    """The child that runs the tests now, and its predecessors and successors."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._child: _Child | None = None

    def run(self, item: pytest.Item, following: pytest.Item | None) -> list[pytest.TestReport]:
        """Run *item*, which *following* comes after; return its reports."""
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
        # Keywords as in pytest's own reports, since another process may read this one.
        keywords: dict[str, Literal[1]] = dict.fromkeys(item.keywords, 1)
        return [pytest.TestReport(item.nodeid, item.location, keywords, "failed", words, "call")]

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.end()
            self._child = None


class _Child:
    """A copy of our process that runs tests for us."""

    def __init__(self, session: pytest.Session) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        self._told = tempfile.TemporaryFile()  # noqa: SIM115  # what its threads do when it hangs
        with warnings.catch_warnings():
            # Other threads: all are idle, and none is needed in the child.
            warnings.simplefilter("ignore", DeprecationWarning)
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
        """Run the test of that number; return its reports.  None: the child has died, or hangs."""
        try:
            self._connection.send((number, following))
            return self._connection.recv() if self._connection.poll(_SECONDS) else None
        except (EOFError, OSError):
            return None

    def end(self) -> tuple[str, bool]:
        """End the child and the programs that it has started.

        Returns how it ended, and whether libnng may be to blame because the child was aborted or
        hung.
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
        # The child must not tear down what belongs to the whole session.
        behind: Any = session if following is None else session.items[following]
        reports = runtestprotocol(item, log=False, nextitem=behind)
        serialize = item.config.hook.pytest_report_to_serializable
        connection.send([serialize(config=item.config, report=report) for report in reports])
