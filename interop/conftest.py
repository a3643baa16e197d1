"""Missing and dying partners, a time limit for every test, and the result of the matrix."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final

import pytest
import trio

pytest.register_assert_rewrite("interop.partners", "interop.tool_contract", "interop.tools")

from interop import matrix  # noqa: E402  # after the line above, or it would be too late
from interop.isolation import DEATHS, MARK, Children, is_isolated  # noqa: E402
from interop.partners import PACKAGES, WHEELS, missing  # noqa: E402
from tests.tls.authority import Authority  # noqa: E402

_SECONDS: Final = 20
"""More than any test needs, however slow the machine."""
_CHILDREN: Final = pytest.StashKey[Children]()


@pytest.fixture(scope="session")
def authority() -> Authority:
    """The authority that both sides trust."""
    return Authority()


@pytest.fixture(scope="session")
def stranger() -> Authority:
    """An authority that no side trusts."""
    return Authority()


def pytest_runtest_setup(item: pytest.Function) -> None:
    for mark in item.iter_markers("needs"):
        reason = missing(mark.args[0])
        if reason is None:
            continue
        if os.environ.get("SP_REQUIRE_PARTNERS") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    if inspect.iscoroutinefunction(item.obj):
        item.obj = _limited(item.obj)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if not is_isolated(item) or not hasattr(os, "fork") or item.config.getoption("usepdb"):
        return None
    config: Any = item.config
    config._tmp_path_factory.getbasetemp()  # here, so that all children share it
    children = item.session.stash.setdefault(_CHILDREN, Children(item.session))
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in children.run(item, nextitem):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    item.session._setupstate.teardown_exact(nextitem)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    cell = item.callspec.params.get("cell") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
    if isinstance(cell, matrix.Cell):
        # It may be on its way to another process.
        report.user_properties.append(("cell", str(cell)))
    return report


class _Outcomes:
    """Collects the results of the matrix and the deaths of libnng, in the process that hears of all
    tests."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._deaths = 0
        self._complaint: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == "cell":
                matrix.note(self._config, str(value), report)
            elif name == DEATHS:
                self._deaths += int(str(value))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._complaint = matrix.check_document(self._config)
        if self._complaint is not None and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for reason in filter(None, map(missing, [*PACKAGES, *WHEELS])):
            terminalreporter.write_line(f"partner missing: {reason}", yellow=True)
        if self._deaths:
            words = f"libnng has aborted its process, or hung, {self._deaths} times; the test under way then ran again"
            terminalreporter.write_line(words, yellow=True)
        if self._complaint is not None:
            terminalreporter.write_line(self._complaint, red=True)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARK}: runs in a process that libnng may abort")
    if not hasattr(config, "workerinput"):  # a worker of xdist hears of its own tests only
        config.pluginmanager.register(_Outcomes(config))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _CHILDREN in session.stash:
        session.stash[_CHILDREN].close()


def _limited(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Return *test* with a time limit."""

    @functools.wraps(test)
    async def limited(**fixtures: Any) -> None:
        with trio.fail_after(_SECONDS):
            await test(**fixtures)

    return limited
