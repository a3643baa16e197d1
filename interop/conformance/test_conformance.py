"""Our own sockets, libnng by nngcat and libnanomsg by nanocat, against the suite."""

from __future__ import annotations

import re
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import trio

from interop.conformance.case import Trial, trials
from interop.conformance.deviations import KNOWN, known
from interop.conformance.run import FAILED, NOT_APPLICABLE, PASSED, Outcome, run, try_out
from interop.conformance.subjects import SUBJECTS, Subject
from interop.conformance.table import markdown
from interop.conformance.wire import ROLES, Wire, frame, greeting
from interop.partners import PACKAGES, missing

Outcomes = Mapping[Trial, Outcome]

pytestmark = pytest.mark.timeout(600)  # the first test waits for all trials: minutes, on a busy machine

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
    """The outcomes of all trials that were asked for.

    They run side by side, since many only wait for a program's next message.
    """
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


# A program that only answers, over ipc.


@asynccontextmanager
async def answering(directory: Path, reaction: str) -> AsyncIterator[Subject]:
    """A REP that reacts to a message of another type than 1 as *reaction* says."""

    async def serve(stream: trio.SocketStream) -> None:
        wire = Wire(stream)
        await wire.send(greeting(ROLES["rep"].number))
        with suppress(AssertionError):  # the end, or that nothing comes
            await wire.receive_exactly(8, "a greeting")
            while True:
                kind, size = struct.unpack(">BQ", await wire.receive_exactly(9, "a message"))
                message = await wire.receive_exactly(size, "its body")
                if kind != 1 and reaction == "closed":
                    break
                if kind == 1 or reaction == "accepted":
                    await wire.send(frame(message[:4] + b"answer", kind=1))
                elif reaction == "spoiled":
                    await wire.send(frame(b"\x80\0\0\0answer", kind=1))
        await stream.aclose()

    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await sock.bind(str(directory / "s"))
    sock.listen()
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve, [trio.SocketListener(sock)])
        yield Subject(name="small", url=f"ipc://{directory}/s", roles=("rep",), transports=("ipc",), dials=False)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("reaction", ["closed", "accepted", "dropped"])
async def test_any_reaction_to_an_ipc_message_of_another_type_passes(reaction: str, tmp_path: Path) -> None:
    async with answering(tmp_path, reaction) as subject:
        (trial,) = (trial for trial in trials(subject) if trial.case.name == "type_of_an_ipc_message")
        assert await try_out(trial) == Outcome(PASSED, reaction)


async def test_a_message_that_arrives_as_another_one_does_not_pass(tmp_path: Path) -> None:
    async with answering(tmp_path, "spoiled") as subject:
        (trial,) = (trial for trial in trials(subject) if trial.case.name == "type_of_an_ipc_message")
        assert (await try_out(trial)).kind == FAILED


def _verdicts(text: str) -> list[str]:
    """Return the lines of *text* without the choices that were seen: where several conform, a
    partner may choose differently each time."""
    return [re.sub(r"passed \([^)]*\)", "passed", line) for line in text.splitlines()]
