"""Surveys, beyond what backtraces.py says of them."""

from __future__ import annotations

from interop.conformance.case import SURVEY, case
from interop.conformance.target import Target


@case(f"{SURVEY}, 5.1", roles=("surveyor",), shown=True)
async def everybody_is_asked(target: Target) -> None:
    """A survey goes to all peers with the same word, and the answers of all are taken."""
    pipes = [await target.pipe(), await target.pipe()]
    asked = [{(await pipe.receive("a survey"))[:4]} for pipe in pipes]
    while not (common := asked[0] & asked[1]):
        # The second may have come too late for a survey that the first has seen.
        for pipe, words in zip(pipes, asked, strict=True):
            words.add((await pipe.receive("the next survey"))[:4])
        assert len(asked[0]) < 4, "the two have never been asked the same"
    own = max(common)
    for n, pipe in enumerate(pipes):
        await pipe.send(own + b"answer %d" % n)
    got = {await target.printed(), await target.printed()}
    assert got == {b"answer 0", b"answer 1"}, f"the surveyor has received {got}"


@case(f"{SURVEY}, 6.1", roles=("surveyor",), shown=True)
async def late_answer(target: Target) -> None:
    """The answer to a survey that is over is ignored."""
    pipe = await target.pipe()
    old = (await pipe.receive("a survey"))[:4]
    new = (await pipe.receive("the next survey"))[:4]
    await pipe.send(old + b"late", new + b"in time")
    await target.expect_printed(b"in time")
