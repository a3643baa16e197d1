"""The first eight bytes of tcp and ipc."""

from __future__ import annotations

import struct

from interop.conformance.case import ANY, BOTH, DIALS, TCP, case
from interop.conformance.subjects import RECEIVING, STREAMS
from interop.conformance.target import Target
from interop.conformance.wire import ROLES, Wire, greeting


async def refused(target: Target, *greetings: bytes) -> None:
    """Check that each of *greetings* ends a connection, on which the subject sends only its own greeting."""
    for said in greetings:
        wire = await target.connect()
        await wire.send(said)
        await ends(target, wire, f"after the greeting {said.hex(' ')}")


async def ends(target: Target, wire: Wire, why: str) -> None:
    got = await wire.receive_end(why)
    assert greeting(target.role.number).startswith(got), f"{why} the subject has gone on, with {got[:24].hex(' ')}"


async def greets(target: Target) -> None:
    wire = await target.connect()
    got = await wire.receive_exactly(8, "a greeting before ours")
    assert got == greeting(target.role.number), f"the subject has greeted with {got.hex(' ')}"
    await wire.send(greeting(target.role.peer))
    await target.serve(target.stream_pipe(wire))


@case(f"{TCP}, 2", roles=ANY, every=True, transports=("tcp",))
async def greets_first(target: Target) -> None:
    """It sends its greeting, with the number of its protocol, without waiting for the peer's, and then serves the peer."""
    await greets(target)


@case(f"{TCP}, 2; SP IPC mapping, 2", roles=ANY, transports=STREAMS, sides=BOTH)
async def greets_first_everywhere(target: Target) -> None:
    """It does so over tcp and over ipc, listening and dialing."""
    await greets(target)


@case(f"{TCP}, 2", roles=ANY, transports=STREAMS, sides=BOTH)
async def wrong_magic(target: Target) -> None:
    """A greeting with a wrong byte among the first four (the last of them is the version) ends the connection."""
    right = greeting(target.role.peer)
    wrong = [right[:place] + bytes((byte,)) + right[place + 1 :] for place, byte in ((0, 1), (1, 0x73), (2, 0), (3, 1), (3, 255))]
    await refused(target, *wrong, b"GET / HTTP/1.1\r\n\r\n")


@case(f"{TCP}, 2", roles=ANY, transports=STREAMS, sides=BOTH)
async def reserved_bytes(target: Target) -> None:
    """A greeting whose reserved bytes are not zero ends the connection."""
    right = greeting(target.role.peer)
    await refused(target, right[:6] + b"\1\0", right[:6] + b"\0\1")


def strangers(target: Target) -> list[bytes]:
    """Return the greetings of all other protocols, of numbers that no protocol has, and of the peer with its bytes swapped."""
    (swapped,) = struct.unpack("<H", struct.pack(">H", target.role.peer))
    return [greeting(number) for number in {0, 0xFFFF, swapped, *(role.number for role in ROLES.values())} - {target.role.peer}]


@case(f"{TCP}, 2; SP request/reply, 3", roles=ANY, every=True, transports=("tcp",))
async def wrong_protocol(target: Target) -> None:
    """A peer of a protocol that is not the counterpart is turned away and gets no message."""
    await refused(target, *strangers(target))


@case(f"{TCP}, 2; SP request/reply, 3", roles=ANY, transports=STREAMS, sides=DIALS)
async def wrong_protocol_of_a_dialed_peer(target: Target) -> None:
    """A peer of a wrong protocol that the subject has dialed is turned away as well."""
    await refused(target, *strangers(target)[:3])


@case("TCP", roles=ANY, transports=STREAMS, sides=BOTH)
async def slow_greeting(target: Target) -> None:
    """A greeting may come byte by byte."""
    wire = await target.connect()
    await wire.send_slowly(greeting(target.role.peer))
    await wire.receive_exactly(8, "a greeting")
    await target.serve(target.stream_pipe(wire))


@case("TCP", roles=RECEIVING, transports=STREAMS, sides=BOTH, shown=True)
async def message_behind_the_greeting(target: Target) -> None:
    """The first message may come in one segment with the greeting."""
    wire = await target.connect()
    pipe = target.stream_pipe(wire)
    await wire.send(greeting(target.role.peer) + pipe.encode(target.message("first")))
    await wire.receive_exactly(8, "a greeting")
    await target.delivered(pipe, "first")


@case(f"{TCP}, 6", roles=ANY, transports=STREAMS)
async def unfinished_greetings(target: Target) -> None:
    """Peers that do not finish their greeting, or send nothing, do not keep others from being served."""
    for size in (0, 4, 7):
        wire = await target.connect()
        await wire.send(greeting(target.role.peer)[:size])
    await target.serve(await target.pipe())


@case("TCP", roles=ANY, transports=STREAMS, sides=BOTH)
async def end_in_the_greeting(target: Target) -> None:
    """When a connection ends within the greeting, the subject gives it up."""
    for size in (0, 5):
        wire = await target.connect()
        await wire.send(greeting(target.role.peer)[:size])
        await wire.send_end()
        await ends(target, wire, "after ours")
