"""The frames of WebSocket."""

from __future__ import annotations

from interop.conformance.case import BOTH, RFC6455, WS, case
from interop.conformance.subjects import ANSWERING, RECEIVING
from interop.conformance.target import Target
from interop.conformance.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    PipeEnded,
    ws_frame,
)

TALKING = ("rep", "respondent", "pub", "push", "bus", "pair0", "pair1", "req", "surveyor")


async def fails(target: Target, *hostile: bytes) -> str:
    """Send each of *hostile* on a pipe of its own; return how the pipes end.  None may be delivered or answered.

    A subject that dials gets only the first.
    """
    fates = set()
    for sent in hostile if target.listens else hostile[:1]:
        pipe = await target.websocket()
        await pipe.wire.send(sent)
        fates.add(await pipe.receive_close(f"after a frame that begins with {sent[0]:02x}"))
        await target.leave()
    return ", ".join(sorted(fates))


def _frame(target: Target, opcode: int, payload: bytes = b"", *, final: bool = True, reserved: int = 0) -> bytes:
    return ws_frame(opcode, payload, masked=target.listens, final=final, reserved=reserved)


@case(f"{RFC6455}, 5.1 and 5.2; {WS}, 3", roles=TALKING, transports=("ws",), sides=BOTH)
async def frames_of_a_message(target: Target) -> None:
    """A message is one or more binary frames without reserved bits, masked by the dialer and never by the listener."""
    pipe = await target.websocket()
    if target.role.name in ANSWERING:
        await pipe.send(target.message("question"))
    got = await pipe.receive_frame()
    assert got.opcode == BINARY, f"the frame has opcode {got.opcode}"
    assert not got.reserved, f"the frame has the reserved bits {got.reserved:03b}"
    assert got.masked is not target.listens, "the frame has a mask" if got.masked else "the frame has no mask"


@case(f"{RFC6455}, 5.1", roles=RECEIVING, shown=True, transports=("ws",), sides=BOTH)
async def wrong_masking(target: Target) -> str:
    """An unmasked frame from a dialer, or a masked one from a listener, ends the connection."""
    return await fails(target, ws_frame(BINARY, target.message("wrongly masked"), masked=not target.listens))


@case(f"{RFC6455}, 5.4; {WS}, 3", roles=RECEIVING, shown=True, transports=("ws",), sides=BOTH)
async def fragments(target: Target) -> None:
    """A message may come in fragments, some of them empty."""
    pipe = await target.websocket()
    whole = target.message("in fragments")
    await pipe.wire.send(pipe.frame(BINARY, whole[:1], final=False) + pipe.frame(CONTINUATION, final=False))
    await pipe.wire.send(pipe.frame(CONTINUATION, whole[1:7], final=False) + pipe.frame(CONTINUATION, whole[7:]))
    await pipe.send(target.message("behind"))
    await target.delivered(pipe, "in fragments", "behind")


@case(f"{RFC6455}, 5.4 and 5.5", roles=RECEIVING, shown=True, transports=("ws",), sides=BOTH)
async def ping_between_fragments(target: Target) -> None:
    """A ping between fragments is answered, and does not disturb the message."""
    pipe = await target.websocket()
    whole = target.message("in fragments")
    await pipe.wire.send(pipe.frame(BINARY, whole[:5], final=False) + pipe.frame(PING, b"ping") + pipe.frame(CONTINUATION, whole[5:]))
    got = await pipe.receive_frame("a pong")
    assert (got.opcode, got.payload) == (PONG, b"ping"), f"a frame with opcode {got.opcode} has come: expected the pong"
    await target.delivered(pipe, "in fragments")


@case(f"{RFC6455}, 5.5.2 and 5.5.3", roles=RECEIVING, shown=True, transports=("ws",), sides=BOTH)
async def ping(target: Target) -> None:
    """A ping is answered with a pong of the same payload, and neither pings nor pongs reach the application."""
    pipe = await target.websocket()
    for payload in (b"", b"x" * 125):
        await pipe.wire.send(pipe.frame(PONG, b"unasked") + pipe.frame(PING, payload) + pipe.encode(target.message("behind")))
        got = await pipe.receive_frame("a pong")
        assert (got.opcode, got.payload) == (PONG, payload), f"a frame with opcode {got.opcode} has come: expected the pong"
        await target.delivered(pipe, "behind")


@case(f"{RFC6455}, 5.5.1", roles=RECEIVING, transports=("ws",), sides=BOTH)
async def close(target: Target) -> str:
    """A Close is answered with a Close, and then the connection ends."""
    answers = set()
    for payload in (b"\x03\xe8", b"\x03\xe9going away", b"")[: 3 if target.listens else 1]:
        pipe = await target.websocket()
        await pipe.wire.send(pipe.frame(CLOSE, payload))
        got = await pipe.receive_frame("a Close")
        assert got.opcode == CLOSE, f"a frame with opcode {got.opcode} has come: expected a Close"
        answers.add("empty" if got.code is None else str(got.code))
        if target.listens:
            await pipe.wire.receive_end("after the answer to a Close")
        await target.leave()
    return ", ".join(sorted(answers))


@case(f"{RFC6455}, 5.2", roles=RECEIVING, shown=True, transports=("ws",), sides=BOTH)
async def reserved_bits(target: Target) -> str:
    """A frame with a reserved bit ends the connection."""
    return await fails(target, *(_frame(target, BINARY, target.message("reserved"), reserved=bit) for bit in (1, 2, 4)))


@case(f"{RFC6455}, 5.2", roles=RECEIVING, shown=True, transports=("ws",))
async def unknown_opcodes(target: Target) -> str:
    """A frame with an undefined opcode ends the connection."""
    return await fails(target, *(_frame(target, opcode, target.message("unknown")) for opcode in (3, 7, 11, 15)))


@case(f"{RFC6455}, 5.5", roles=RECEIVING, shown=True, transports=("ws",))
async def long_control_frame(target: Target) -> str:
    """A ping, a pong or a Close of more than 125 bytes ends the connection."""
    return await fails(target, *(_frame(target, opcode, b"\x03\xe8" + b"x" * 124) for opcode in (PING, PONG, CLOSE)))


@case(f"{RFC6455}, 5.5", roles=RECEIVING, shown=True, transports=("ws",))
async def fragmented_control_frame(target: Target) -> str:
    """A ping in fragments ends the connection."""
    return await fails(target, _frame(target, PING, b"in", final=False) + _frame(target, CONTINUATION, b"fragments"))


@case(f"{RFC6455}, 5.4", roles=RECEIVING, shown=True, transports=("ws",))
async def stray_continuation(target: Target) -> str:
    """A continuation without a beginning, or a message within another one, ends the connection."""
    whole = target.message("out of order")
    return await fails(
        target, _frame(target, CONTINUATION, whole), _frame(target, BINARY, whole, final=False) + _frame(target, BINARY, whole)
    )


@case(f"{WS}, 3", roles=RECEIVING, shown=True, transports=("ws",))
async def text(target: Target) -> str:
    """A message in a text frame is delivered; or it ends the connection, as with nng."""
    pipe = await target.websocket()
    # A REP's first word is no UTF-8 on its own: U+10FFFF is, but for its highest bit it serves as well.
    message = "\U0010ffff".encode() + b"text" if target.role.name in ANSWERING else target.message("text")
    await pipe.wire.send(pipe.frame(TEXT, message))
    try:
        if target.role.name in ANSWERING:
            assert (await pipe.receive("an answer")).startswith(message[:4]), "the answer has other words"
        else:
            await target.delivered(pipe, "text")
    except PipeEnded as ended:
        return f"refused with {str(ended).partition('Close ')[2][:4]}" if "Close" in str(ended) else "refused"
    return "delivered"
