"""Our own sockets, libnng by nngcat and libnanomsg by nanocat, against the suite."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import trio

from interop.conformance.case import Trial, trials
from interop.conformance.deviations import KNOWN, known
from interop.conformance.run import NOT_APPLICABLE, PASSED, Outcome, run
from interop.conformance.subjects import SUBJECTS
from interop.conformance.table import markdown
from interop.partners import PACKAGES, missing

Outcomes = Mapping[Trial, Outcome]

ALL = [trial for subject in SUBJECTS.values() for trial in trials(subject)]
README = Path(__file__).with_name("README.md")


def marks(trial: Trial) -> list[pytest.MarkDecorator]:
    return [pytest.mark.needs(trial.subject.name)] if trial.subject.name in PACKAGES else []


each_trial = pytest.mark.parametrize(
    "trial",
    [pytest.param(trial, id=f"{trial.subject.name}-{trial.key}", marks=marks(trial)) for trial in ALL if trial.why_not is None],
)


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest) -> Outcomes:
    """What is seen of all trials that were asked for: they run side by side, since many of them wait for a program's next second."""
    asked = {id(item.callspec.params.get("trial")) for item in request.session.items if hasattr(item, "callspec")}
    there = [name for name in SUBJECTS if name not in PACKAGES or missing(name) is None]
    return trio.run(lambda: run([trial for trial in ALL if id(trial) in asked and trial.subject.name in there], jobs=6))


@each_trial
def test_conforms_or_deviates_as_is_known(trial: Trial, outcomes: Outcomes) -> None:
    outcome = outcomes[trial]
    deviation = known(trial.subject.name, trial.key)
    if deviation is None:
        assert outcome.kind == PASSED, str(outcome)
    else:
        assert outcome.kind == deviation.kind, f"known to be {deviation.kind} ({deviation.why}), now {outcome}"
        assert deviation.says in str(outcome)


def test_each_known_deviation_is_that_of_a_trial() -> None:
    for subject, pattern in KNOWN:
        assert any(trial.subject.name == subject and trial.why_not is None and fnmatchcase(trial.key, pattern) for trial in ALL), pattern


def test_the_readme_has_the_table(outcomes: Outcomes) -> None:
    if len(outcomes) < sum(trial.why_not is None for trial in ALL):
        pytest.skip("not all trials were run")
    seen = {trial: outcomes.get(trial) or Outcome(NOT_APPLICABLE) for trial in ALL}
    written = _verdicts(README.read_text("utf-8"))
    assert [line for line in _verdicts(markdown(list(SUBJECTS), seen)) if line not in written] == []


def _verdicts(text: str) -> list[str]:
    """Return the lines of *text* without the choices that were seen: where several conform, a partner may take now one and now another."""
    return [re.sub(r"passed \([^)]*\)", "passed", line) for line in text.splitlines()]
