"""Publish/subscribe."""

from __future__ import annotations

from interop.conformance.case import AGREED, NNG_AND_MANGOS, case
from interop.conformance.subjects import SENDING
from interop.conformance.target import Target
from interop.conformance.wire import PipeEnded, WebSocketPipe


@case(AGREED, roles=(*SENDING, "bus", "pair0"), every=True)
async def only_the_body(target: Target) -> None:
    """It sends the body alone, without a header."""
    pipe = await target.pipe()
    body = await pipe.receive("a message")
    assert target.subject.data in (None, body), f"the subject has sent {body!r}"


@case(AGREED, roles=("pub",))
async def everybody_gets_what_is_published(target: Target) -> None:
    """A PUB sends to all its peers, whatever they subscribe to."""
    for pipe in [await target.pipe(), await target.pipe()]:
        await pipe.receive("what is published")


@case(NNG_AND_MANGOS, roles=SENDING, every=True)
async def message_to_a_sender(target: Target) -> str:
    """A subject that only sends drops a message that it gets, or closes the pipe."""
    pipe = await target.pipe()
    await pipe.send(b"unwanted", b"")
    try:
        for _ in range(3):
            await pipe.receive("a message, or the end")
    except PipeEnded:
        return "closed"
    return "dropped"


@case(AGREED, roles=("sub",), shown=True)
async def filter_by_prefix(target: Target) -> None:
    """A SUB accepts messages that begin with its topic, byte by byte, and drops the rest."""
    topic = target.subject.topic
    others = [b"", topic[:-1], topic[1:] + b"x", topic[:-1] + b"\xff", b"x" + topic, topic.upper()] if topic else []
    pipe = await target.pipe()
    await pipe.send(*others, topic, *others, topic + b"x")
    await target.expect_printed(topic, topic + b"x")


@case(AGREED, roles=("sub", "pull"), every=True)
async def receiver_is_silent(target: Target) -> None:
    """A subject that only receives sends nothing, not even a subscription."""
    pipe = await target.pipe()
    await target.serve(pipe)
    await pipe.wire.send_end()
    if isinstance(pipe, WebSocketPipe):
        await pipe.receive_close("after ours")
    else:
        said = await pipe.wire.receive_end("after ours")
        assert not said, f"the subject has said {said[:24]!r}"
