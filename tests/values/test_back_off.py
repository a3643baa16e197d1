"""How long a dialer waits."""

from __future__ import annotations

from random import Random

import pytest

from sp.core.dialing import BackOff


class Highest(Random):
    """Always draws the highest number."""

    def uniform(self, a: float, b: float) -> float:
        assert a <= b
        return b


class Lowest(Random):
    """Always draws the lowest number."""

    def uniform(self, a: float, b: float) -> float:
        assert a <= b
        return a


def waits(back_off: BackOff, count: int) -> list[float]:
    return [back_off.next() for _ in range(count)]


def test_the_ceiling_doubles_until_the_longest_wait() -> None:
    assert waits(BackOff(1, 10, Highest()), 6) == [2, 4, 8, 10, 10, 10]


def test_a_wait_is_never_below_the_shortest() -> None:
    assert waits(BackOff(1, 10, Lowest()), 6) == [1] * 6


@pytest.mark.parametrize("seed", range(5))
def test_waits_are_drawn_between_the_bounds(seed: int) -> None:
    drawn = waits(BackOff(0.1, 60.0, Random(seed)), 200)
    assert all(0.1 <= wait <= 60.0 for wait in drawn)
    assert len(set(drawn)) == 200, "or all dialers would come back at once"
    assert max(drawn) > 50


def test_equal_bounds_make_the_wait_constant() -> None:
    assert waits(BackOff(0.5, 0.5, Random(1)), 10) == [0.5] * 10


def test_the_longest_wait_bounds_the_first_one_too() -> None:
    assert waits(BackOff(1, 1.5, Highest()), 2) == [1.5, 1.5]


def test_after_a_reset_waits_are_short_again() -> None:
    back_off = BackOff(1, 10, Highest())
    waits(back_off, 4)
    back_off.reset()
    assert waits(back_off, 3) == [2, 4, 8]


def test_where_trying_again_soon_is_pointless_the_wait_is_the_longest() -> None:
    back_off = BackOff(1, 10, Lowest())
    assert back_off.next(permanent=True) == 10
    assert back_off.next() == 1


@pytest.mark.parametrize(("asked", "expected"), [(0, [2, 4, 8, 10]), (3, [3, 4, 8, 10]), (10, [10] * 4), (11, [10] * 4), (1e18, [10] * 4)])
def test_a_peer_may_ask_for_a_longer_wait_up_to_the_longest(asked: float, expected: list[float]) -> None:
    back_off = BackOff(1, 10, Highest())
    assert [back_off.next(asked=asked) for _ in range(4)] == expected
