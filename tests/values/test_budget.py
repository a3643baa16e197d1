"""When a call that did not block lets others run."""

from __future__ import annotations

from sp.core.budget import EVERY, CheckpointBudget


def test_every_sixteenth_call_is_a_schedule_point() -> None:
    budget = CheckpointBudget()
    assert EVERY == 16
    assert [number for number in range(1, 65) if budget.due()] == [16, 32, 48, 64]


def test_each_socket_counts_for_itself() -> None:
    first, second = CheckpointBudget(), CheckpointBudget()
    assert not any(first.due() for _ in range(EVERY - 1))
    assert not second.due()
    assert first.due()
