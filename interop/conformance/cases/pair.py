"""Pair, versions 0 and 1."""

from __future__ import annotations

from contextlib import suppress

import trio

from interop.conformance.case import AGREED, NNG_AND_MANGOS, case
from interop.conformance.subjects import TRANSPORTS
from interop.conformance.target import Target
from interop.conformance.wire import SILENCE, PipeEnded, word

TTL = 8


@case(AGREED, roles=("pair0", "pair1"), shown=True, transports=TRANSPORTS)
async def second_peer(target: Target) -> str:
    """While there is a peer, a second one is turned away or not used, and the first one keeps working."""
    first = await target.pipe()
    await target.serve(first)
    fate = "turned away"
    with suppress(PipeEnded):
        second = await target.pipe()
        await second.send(target.message("of an intruder"))
        with trio.move_on_after(SILENCE):
            raise AssertionError(f"the second peer has been sent {await second.receive()!r}")
        fate = "not used"
    await first.send(target.message("of the first"))
    await target.delivered(first, "of the first")
    return fate


@case(NNG_AND_MANGOS, roles=("pair1",))
async def hop_word_of_a_fresh_message(target: Target) -> str:
    """A new message begins with a word whose upper bytes are zero and whose hop count is 0 or 1."""
    message = await (await target.pipe()).receive()
    assert message[:3] == bytes(3), f"the message begins with {message[:4].hex(' ')}"
    assert message[3] in (0, 1), f"the message has made {message[3]} hops"
    assert target.subject.data in (None, message[4:]), f"the body of the message is {message[4:]!r}"
    return str(message[3])


@case(NNG_AND_MANGOS, roles=("pair1",), shown=True)
async def hops_within_the_limit(target: Target) -> None:
    """A message with up to eight hops is delivered, even if its body is empty."""
    pipe = await target.pipe()
    await pipe.send(*(word(hops) + b"%d" % hops for hops in range(TTL + 1)), word(1))
    await target.expect_printed(*(b"%d" % hops for hops in range(TTL + 1)), b"")


@case(NNG_AND_MANGOS, roles=("pair1",), shown=True)
async def hops_beyond_the_limit(target: Target) -> str:
    """A message with more hops is not delivered: it is dropped, or its pipe is closed."""
    return await target.fate(*(word(hops) + b"too far" for hops in (TTL + 1, 16, 255)))


@case(NNG_AND_MANGOS, roles=("pair1",), shown=True)
async def upper_bytes_of_the_hop_word(target: Target) -> str:
    """A message whose first word has upper bytes that are not zero is not delivered: it is dropped, or its pipe is closed."""
    return await target.fate(*(word(value) + b"wrong" for value in (0x101, 0x10001, 0x1000001, 0x80000001)))


@case(NNG_AND_MANGOS, roles=("pair1",), shown=True)
async def no_hop_word(target: Target) -> str:
    """A message too short for that word is not delivered: it is dropped, or its pipe is closed."""
    return await target.fate(b"", b"\0", b"\0\0\0")
