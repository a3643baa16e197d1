"""Bus, beyond the cases in pubsub.py."""

from __future__ import annotations

from interop.conformance.case import AGREED, case
from interop.conformance.target import Target


@case(AGREED, roles=("bus",), shown=True)
async def nothing_is_forwarded(target: Target) -> None:
    """A peer's message goes to the application, and neither back to that peer nor on to another one."""
    pipes = [await target.pipe(), await target.pipe()]
    await pipes[0].send(b"of a peer")
    await target.expect_printed(b"of a peer")
    for pipe in pipes:
        for _ in range(2):
            got = await pipe.receive("what the application sends")
            assert got != b"of a peer", "a peer's message was forwarded"
