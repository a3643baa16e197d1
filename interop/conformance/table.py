"""The outcomes as a table: a row for each case, a column for each subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from interop.conformance.case import CASES, Case, Trial
from interop.conformance.deviations import known
from interop.conformance.run import CRASHED, FAILED, NOT_APPLICABLE, PASSED, Outcome

Outcomes = Mapping[Trial, Outcome]
Seen = list[tuple[Trial, Outcome]]


def rows(subjects: Sequence[str], outcomes: Outcomes) -> list[tuple[Case, list[Seen]]]:
    """Return the outcomes of each case, by subject."""
    seen: dict[tuple[str, str], Seen] = {}
    for trial, outcome in outcomes.items():
        seen.setdefault((trial.case.name, trial.subject.name), []).append((trial, outcome))
    return [(case, [seen[case.name, name] for name in subjects]) for case in CASES if (case.name, subjects[0]) in seen]


def cell(seen: Seen) -> str:
    """Sum up the outcomes of a case in a few words; if it was not passed everywhere, say where not."""
    kinds = {outcome.kind for _, outcome in seen}
    if kinds == {NOT_APPLICABLE}:
        return NOT_APPLICABLE
    bad = [trial.place for trial, outcome in seen if outcome.bad]
    if bad:
        kind, notes = CRASHED if CRASHED in kinds else FAILED, sorted(bad) if PASSED in kinds else []
    else:
        kind, notes = (
            PASSED,
            sorted({note for _, outcome in seen if outcome.kind == PASSED for note in (outcome.note or "").split(", ") if note}),
        )
    return f"{kind} ({', '.join(notes)})" if notes else kind


def text(subjects: Sequence[str], outcomes: Outcomes) -> str:
    """Return the table for a terminal, a line for each trial that was not passed, and the totals."""
    table = [([*map(cell, cells)], case.sentence) for case, cells in rows(subjects, outcomes)]
    shown = [([*subjects], "case"), *((cells, sentence) for cells, sentence in table if {*cells} != {NOT_APPLICABLE})]
    widths = [max(len(cells[place]) for cells, _ in shown) for place in range(len(subjects))]
    lines = ["  ".join([*map(str.ljust, cells, widths), last]) for cells, last in shown]
    bad = sorted(f"{trial.subject.name}: {trial.key}: {outcome}" for trial, outcome in outcomes.items() if outcome.bad)
    ran = sum(outcome.kind != NOT_APPLICABLE for outcome in outcomes.values())
    total = f"{ran} trials, {ran - len(bad)} passed, {len(bad)} not; {len(table) + 1 - len(shown)} cases are not applicable"
    return "\n".join([*lines, "", *bad, total, ""])


def markdown(subjects: Sequence[str], outcomes: Outcomes) -> str:
    """Return the table for README.md, and below it the known reasons for what was not passed."""
    whys: list[str] = []
    lines = [["case", "source", *subjects], ["---"] * (len(subjects) + 2)]
    for case, cells in rows(subjects, outcomes):
        line = [case.sentence, case.source]
        for seen in cells:
            deviations = [known(trial.subject.name, trial.key) for trial, outcome in seen if outcome.bad]
            for why in (deviation.why for deviation in deviations if deviation is not None):
                if why not in whys:
                    whys.append(why)
            notes = sorted({whys.index(deviation.why) + 1 for deviation in deviations if deviation is not None})
            line.append(f"**{cell(seen)}** {notes or ''}".rstrip() if deviations else cell(seen).replace(NOT_APPLICABLE, "-"))
        lines.append(line)
    table = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*table, "", *(f"{number}. {why}." for number, why in enumerate(whys, 1)), ""])
