"""Runs trials, several of each subject at a time, and returns the outcomes."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import trio

import interop.conformance.cases  # noqa: F401  # fills the list
from interop.conformance.case import Trial
from interop.conformance.target import Crashed, NotStarted, running

SECONDS: Final = 30
"""More than any trial needs, however slow the machine."""

ATTEMPTS: Final = 3
"""The most times that a program is started, if it does not come up."""

PASSED, FAILED, CRASHED, NOT_APPLICABLE = "passed", "FAILED", "CRASHED", "not applicable"


@attrs.frozen
class Outcome:
    """The outcome of a trial."""

    kind: str
    note: str | None = None
    """The choice that was seen, or in one line why the trial was not passed."""

    def __str__(self) -> str:
        return self.kind if self.note is None else f"{self.kind}: {self.note}" if self.bad else f"{self.kind} ({self.note})"

    @property
    def bad(self) -> bool:
        return self.kind in (FAILED, CRASHED)


async def try_out(trial: Trial) -> Outcome:
    """Run *trial* against a subject of its own."""
    why_not = trial.why_not
    if why_not is not None:
        return Outcome(NOT_APPLICABLE, why_not)
    for attempt in range(ATTEMPTS):
        try:
            with trio.fail_after(SECONDS):
                return Outcome(PASSED, await _observe(trial, held=attempt == 0))
        except NotStarted as error:
            outcome = Outcome(CRASHED, str(error))
        except Crashed as error:
            return Outcome(CRASHED, str(error))
        except AssertionError as error:
            return Outcome(FAILED, str(error))
        except trio.TooSlowError:
            return Outcome(FAILED, f"not done within {SECONDS} seconds")
    return outcome


async def _observe(trial: Trial, *, held: bool) -> str | None:
    case = trial.case
    assert trial.role is not None
    with tempfile.TemporaryDirectory(prefix="sp") as directory:
        async with running(
            trial.subject, trial.role, trial.transport, Path(directory), listens=trial.listens, once=case.once, held=held
        ) as target:
            choice = await case.function(target)
            # Whether a WebSocket is dialed again is a case of its own.
            if case.lives and (trial.listens or trial.transport != "ws"):
                await target.lives()
    return choice


async def run(plan: Sequence[Trial], *, jobs: int) -> Mapping[Trial, Outcome]:
    """Run all trials of *plan* in order, at most *jobs* of each subject at a time."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # some programs abort, as expected
    seen: dict[Trial, Outcome] = {}

    async def work(queue: Iterator[Trial]) -> None:
        for trial in queue:
            seen[trial] = await try_out(trial)

    async with trio.open_nursery() as nursery:
        for name in {trial.subject.name for trial in plan}:
            queue = iter([trial for trial in plan if trial.subject.name == name])
            for _ in range(jobs):
                nursery.start_soon(work, queue)
    return {trial: seen[trial] for trial in plan}
