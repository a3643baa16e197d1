"""Partners that are missing, and a limit on the time of every test."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest
import trio

pytest.register_assert_rewrite("interop.partners", "interop.tool_contract")

from interop.partners import PACKAGES, missing  # noqa: E402  # after the line above, or it would be too late
from tests.tls.authority import Authority  # noqa: E402

_SECONDS: Final = 20
"""What no test needs, however slow the machine."""


@pytest.fixture(scope="session")
def authority() -> Authority:
    """Whom both sides trust."""
    return Authority()


@pytest.fixture(scope="session")
def stranger() -> Authority:
    """An authority that nobody trusts."""
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason in filter(None, map(missing, PACKAGES)):
        terminalreporter.write_line(f"partner missing: {reason}", yellow=True)


def _limited(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Return *test* with an end to its patience."""

    @functools.wraps(test)
    async def limited(**fixtures: Any) -> None:
        with trio.fail_after(_SECONDS):
            await test(**fixtures)

    return limited
