"""Push/pull, beyond the cases in pubsub.py."""

from __future__ import annotations

from interop.conformance.case import AGREED, case
from interop.conformance.target import Target


@case(AGREED, roles=("pull",), shown=True)
async def pulls_in_order(target: Target) -> None:
    """The messages that one peer pushes are received whole and in order."""
    pipe = await target.pipe()
    bodies = [b"%d" % n for n in range(500)]
    await pipe.send(*bodies)
    await target.expect_printed(*bodies)


@case(AGREED, roles=("pull",), shown=True)
async def pulls_from_everybody(target: Target) -> None:
    """The messages that several peers push are all received."""
    pipes = [await target.pipe() for _ in range(3)]
    for n, pipe in enumerate(pipes):
        await pipe.send(b"from %d" % n)
    got = {await target.printed() for _ in pipes}
    assert got == {b"from %d" % n for n in range(len(pipes))}, f"the subject has received {got}"


@case(AGREED, roles=("push",))
async def pushes_to_the_remaining_peers(target: Target) -> None:
    """When a peer leaves, the others still get messages."""
    first, second = await target.pipe(), await target.pipe()
    await first.wire.leave()
    for _ in range(2):
        await second.receive("a message")
