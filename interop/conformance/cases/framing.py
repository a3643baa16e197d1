"""Messages over tcp and ipc, and how large they may be."""

from __future__ import annotations

import struct

from interop.conformance.case import AGREED, BOTH, IPC, RFC6455, TCP, case
from interop.conformance.subjects import RECEIVING, STREAMS, TRANSPORTS
from interop.conformance.target import Target
from interop.conformance.wire import BINARY, PipeEnded, frame


@case(f"{TCP}, 3", roles=("pull", "bus", "pair0"), shown=True, transports=TRANSPORTS)
async def empty_message(target: Target) -> None:
    """An empty message is delivered."""
    pipe = await target.pipe()
    await pipe.send(b"", target.message("behind"))
    await target.expect_printed(b"", target.body("behind"))


@case("TCP", roles=RECEIVING, shown=True, transports=TRANSPORTS)
async def slow_message(target: Target) -> None:
    """A message may come byte by byte."""
    pipe = await target.pipe()
    await pipe.wire.send_slowly(pipe.encode(target.message("slow")))
    await target.delivered(pipe, "slow")


@case("TCP", roles=RECEIVING, shown=True, transports=TRANSPORTS, sides=BOTH)
async def messages_in_a_segment(target: Target) -> None:
    """Several messages in one segment are delivered one by one, in their order."""
    pipe = await target.pipe()
    texts = [f"message {n}" for n in range(20)]
    await pipe.send(*map(target.message, texts))
    await target.delivered(pipe, *texts)


@case("TCP", roles=RECEIVING, shown=True, transports=STREAMS)
async def unfinished_message(target: Target) -> None:
    """A message that is cut off is not delivered, not even in part."""
    for size in (1, 8, 12, 60):
        pipe = await target.pipe()
        await pipe.wire.send(pipe.encode(target.message("x" * 100))[:size])
        await pipe.wire.send_end()
        await pipe.wire.receive_end("after ours")


@case(f"{TCP}, 3", roles=RECEIVING, shown=True, transports=STREAMS, sides=BOTH)
async def absurd_length(target: Target) -> None:
    """A length of 2^63, or of 2^64-1, ends the connection."""
    for length in (1 << 63, (1 << 64) - 1):
        pipe = await target.pipe()
        await pipe.wire.send((b"\x01" if target.transport == "ipc" else b"") + struct.pack(">Q", length) + target.message("far too long"))
        await pipe.wire.receive_end(f"after a length of {length:#x}")


@case(f"{RFC6455}, 5.2", roles=RECEIVING, shown=True, transports=("ws",))
async def absurd_length_of_a_frame(target: Target) -> str:
    """Over ws, a length of 2^63-1, or one with the highest bit set, ends the connection."""
    fates = set()
    for length in ((1 << 63) - 1, (1 << 64) - 1):
        pipe = await target.websocket()
        await pipe.wire.send(pipe.frame(BINARY, target.message("far too long"), size=length))
        fates.add(await pipe.receive_close(f"after a length of {length:#x}"))
    return ", ".join(sorted(fates))


@case(AGREED, roles=RECEIVING, shown=True, limited=True, transports=TRANSPORTS)
async def largest_message(target: Target) -> None:
    """A message of exactly the largest size, header included, is delivered."""
    assert target.subject.limit is not None
    text = "x" * (target.subject.limit - len(target.message("")))
    pipe = await target.pipe()
    await pipe.send(target.message(text))
    await target.delivered(pipe, text)


@case(AGREED, roles=RECEIVING, shown=True, limited=True, transports=STREAMS)
async def message_too_large(target: Target) -> None:
    """A message that is one byte larger ends the connection before it has arrived, and is not delivered."""
    assert target.subject.limit is not None
    pipe = await target.pipe()
    await pipe.wire.send(pipe.encode(bytes(target.subject.limit + 1))[:64])
    await pipe.wire.receive_end("after the length of a message that is too large")


@case(AGREED, roles=RECEIVING, shown=True, limited=True, transports=("ws",))
async def websocket_message_too_large(target: Target) -> str:
    """Over ws, a message that is one byte larger ends the connection, and is not delivered."""
    assert target.subject.limit is not None
    pipe = await target.websocket()
    await pipe.wire.send(pipe.frame(BINARY, bytes(target.subject.limit + 1)))
    return await pipe.receive_close("after a message that is too large")


@case(f"{IPC}, 3, names no reaction", roles=RECEIVING, shown=True, transports=("ipc",))
async def type_of_an_ipc_message(target: Target) -> str:
    """An ipc message of another type than 1 ends the connection, is accepted, or is dropped.

    nng ends the connection, mangos accepts the message.
    """
    fates = set()
    for kind in (0, 2, 255):
        pipe = await target.pipe()
        odd = frame(target.message("odd"), kind=kind)
        await pipe.wire.send(odd + pipe.encode(target.message("good")))
        try:
            await target.delivered(pipe, "odd", "good")
            fates.add("accepted")
        except PipeEnded:
            fates.add("closed")
        except AssertionError:
            # If it was dropped, "good" was all that arrived, and "better" comes next.
            await pipe.wire.send(odd + pipe.encode(target.message("better")))
            await target.delivered(pipe, "better")
            fates.add("dropped")
        await target.leave()
    return " or ".join(sorted(fates))
