"""Surveys, beyond the cases in backtraces.py."""

from __future__ import annotations

from typing import Final

from interop.conformance.case import SURVEY, case
from interop.conformance.target import NotPrinted, Target

_SURVEYS: Final = 3
"""Surveys after which a surveyor has accepted the answers of one, even on a busy machine."""


@case(f"{SURVEY}, 5.1", roles=("surveyor",), shown=True)
async def everybody_is_asked(target: Target) -> None:
    """A survey goes to all peers with the same word, and the answers of all are accepted."""
    pipes = [await target.pipe(), await target.pipe()]
    asked = [[(await pipe.receive("a survey"))[:4]] for pipe in pipes]
    for _ in range(_SURVEYS):
        while asked[0][-1] != asked[1][-1]:
            # The second pipe may have come too late for a survey that the first one has seen.
            behind = 0 if asked[1][-1] not in asked[0] else 1
            asked[behind].append((await pipes[behind].receive("the next survey"))[:4])
            assert len(asked[behind]) <= 2 * _SURVEYS, "the two have never been asked the same"
        own = asked[0][-1]
        answers = {own.hex().encode() + b" answer %d" % n for n in range(len(pipes))}
        for n, pipe in enumerate(pipes):
            await pipe.send(own + own.hex().encode() + b" answer %d" % n)
        try:
            got = {await target.printed(), await target.printed()}
        except NotPrinted:
            # On a busy machine the survey was over before the answers came: try the next one.
            for pipe, words in zip(pipes, asked, strict=True):
                words.append((await pipe.receive("the next survey"))[:4])
            continue
        assert got == answers, f"the surveyor has received {got}"
        return
    raise AssertionError(f"the surveyor has not printed both answers to any of {_SURVEYS} surveys")


@case(f"{SURVEY}, 6.1", roles=("surveyor",), shown=True)
async def late_answer(target: Target) -> None:
    """The answer to a survey that is over is ignored."""
    pipe = await target.pipe()
    old = (await pipe.receive("a survey"))[:4]
    new = (await pipe.receive("the next survey"))[:4]
    await pipe.send(old + b"late", new + b"in time")
    await target.expect_printed(b"in time")
