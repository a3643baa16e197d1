"""Time that stands still until a test moves it."""

from __future__ import annotations

import pytest


class Clock:
    """A clock that shows *now*."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()
