"""Devices: ours between partners, theirs between ours, two in a row, the ttl; and our raw sockets
without a device."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pynng
import pytest
import trio
import trio.testing

import sp
from interop.ends import (
    FAMILIES,
    Device,
    End,
    Family,
    OurEnd,
    TheirEnd,
    each_counting_family,
    each_family,
    end_of,
    link,
    nanomsg_device,
    our_device,
    our_end,
    our_raw_end,
    their_device,
    their_end,
    tool_end,
)
from interop.partners import LIMIT, OURS, REDIAL, THEIRS, body_of, each_listener, fixed_address, read_exactly, running
from interop.tools import TOOLS, sending
from tests.tls.authority import Authority

pytestmark = pytest.mark.libnng

DEVICES: Final[dict[str, Callable[..., Any]]] = {OURS: our_device, THEIRS: their_device}
# The longest header is that of an answer between the devices.
BODIES: Final = tuple(map(body_of, (0, 1, 65_536, LIMIT - 8, 2)))
HOPS: Final = 3
"""The hops that a message has made after two devices."""

each_two_transports = pytest.mark.parametrize(("before", "behind"), [("tcp", "ipc"), ("ws", "tls+tcp"), ("ipc", "wss")])
each_tool_before = pytest.mark.parametrize("before", [pytest.param(name, marks=pytest.mark.needs(name)) for name in TOOLS])
each_tool_behind = pytest.mark.parametrize("behind", [pytest.param(name, marks=pytest.mark.needs(name)) for name in TOOLS])


async def converse(family: Family, left: End, right: End, *bodies: bytes) -> None:
    """Let each side that may send do so, and check that its messages arrive at the other."""
    for body in bodies:
        await left.send(body)
        received = await right.receive()
        while received == EARLY:
            received = await right.receive()
        assert received == body
        if family.answers:
            await right.send(body[::-1])
            assert await left.receive() == body[::-1]


# Ours between theirs.


@each_listener
@each_two_transports
@each_family
async def test_our_device_joins_partners(
    family: Family, before: str, behind: str, listener: str, tmp_path: Path, authority: Authority
) -> None:
    async with their_end(family.left) as left, our_device(family) as device, their_end(family.right) as right:
        for ours, theirs, transport in ((device.front, left, before), (device.back, right, behind)):
            ends: tuple[End, End] = (ours, theirs) if listener == OURS else (theirs, ours)
            await link(*ends, transport, tmp_path, authority)
        await converse(family, left, right, *BODIES)
        for end in (device.front, device.back):
            assert len(end.socket.pipes) == 1
            assert not end.socket.statistics().dropped


@each_tool_before
@each_tool_behind
@pytest.mark.parametrize("transports", [("tcp", "ipc"), ("ipc", "ws")], ids="-".join)
async def test_our_device_joins_a_program_that_asks_and_one_that_answers(
    before: str, behind: str, transports: tuple[str, str], tmp_path: Path
) -> None:
    question, answer = body_of(100_000), body_of(70_000)
    for family in FAMILIES[:2]:
        async with (
            our_device(family) as device,
            tool_end(TOOLS[behind], family.right, device.back, transports[1], tmp_path, "--raw", *sending(answer, tmp_path)) as answering,
            tool_end(TOOLS[before], family.left, device.front, transports[0], tmp_path, "--raw", *sending(question, tmp_path)) as asking,
        ):
            assert await read_exactly(answering, len(question)) == question
            assert await read_exactly(asking, len(answer)) == answer


@each_tool_before
@each_tool_behind
@pytest.mark.parametrize("transports", [("tcp", "ipc"), ("ipc", "ws")], ids="-".join)
async def test_our_device_joins_a_program_that_publishes_and_one_that_subscribes(
    before: str, behind: str, transports: tuple[str, str], tmp_path: Path
) -> None:
    body = body_of(100_000)
    async with (
        our_device(FAMILIES[2]) as device,
        tool_end(TOOLS[behind], "Sub0", device.back, transports[1], tmp_path, "--raw") as subscriber,
        tool_end(TOOLS[before], "Pub0", device.front, transports[0], tmp_path, *sending(body, tmp_path)),
    ):
        assert await read_exactly(subscriber, len(body)) == body


async def test_our_device_with_one_socket_lets_partners_hear_each_other(tmp_path: Path, authority: Authority) -> None:
    async with (
        our_raw_end("Bus0") as middle,
        their_end("Bus0") as one,
        their_end("Bus0") as two,
        their_end("Bus0") as three,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(sp.device.device, middle.socket)
        everybody = (one, two, three)
        for end, transport in zip(everybody, ("tcp", "ipc", "ws"), strict=True):
            await link(middle, end, transport, tmp_path, authority)
        for round_number in range(10):
            for speaker in everybody:
                # An echo would show in the next round.
                body = b"%d of %d" % (round_number, everybody.index(speaker))
                await speaker.send(body)
                for listener in everybody:
                    if listener is not speaker:
                        assert await listener.receive() == body
        assert not middle.socket.statistics().dropped
        nursery.cancel_scope.cancel()


# Theirs between ours.


@each_two_transports
@each_family
async def test_libnng_s_device_joins_ours(family: Family, before: str, behind: str, tmp_path: Path, authority: Authority) -> None:
    async with our_end(family.left) as left, their_device(family) as device, our_end(family.right) as right:
        await link(device.front, left, before, tmp_path, authority)
        await link(right, device.back, behind, tmp_path, authority)
        await converse(family, left, right, *BODIES)
        for end in (left, right):
            assert len(end.socket.pipes) == 1
            assert not end.socket.statistics().dropped


@pytest.fixture(scope="session")
def nn_device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that is libnanomsg's device."""
    program = tmp_path_factory.mktemp("nn") / "nn_device"
    source = Path(__file__).with_name("nn_device.c")
    subprocess.run(["cc", "-o", program, source, "-lnanomsg"], check=True)
    return program


def needs_nn_device(test: Callable[..., Any]) -> Callable[..., Any]:
    for partner in ("cc", "nanomsg/nn.h", "nanocat"):  # the last for the library
        test = pytest.mark.needs(partner)(test)
    return test


EARLY: Final = b"early"


async def meet_through_libnanomsg(family: Family, left: OurEnd, right: OurEnd) -> None:
    """If *left* drops messages without a peer, let it send until *right* gets one: it does not show
    when it has its peers."""
    if family.left not in ("Pub0", "Surveyor0", "Bus0"):
        return
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            while True:
                await left.send(EARLY)
                with trio.move_on_after(0.02):
                    await trio.sleep_forever()

        nursery.start_soon(send)
        assert await right.receive() == EARLY
        nursery.cancel_scope.cancel()


@needs_nn_device
@pytest.mark.parametrize("transports", [("tcp", "ipc"), ("ipc", "ws")], ids="-".join)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family.left != "Pair1"], ids=str)
async def test_libnanomsg_s_device_joins_ours(family: Family, transports: tuple[str, str], nn_device: Path, tmp_path: Path) -> None:
    async with (
        our_end(family.left) as left,
        our_end(family.right) as right,
        nanomsg_device(nn_device, family, left, right, *transports, directory=tmp_path),
    ):
        await meet_through_libnanomsg(family, left, right)
        await converse(family, left, right, *BODIES)
        for end in (left, right):
            assert len(end.socket.pipes) == 1
            assert not end.socket.statistics().dropped


@needs_nn_device
@pytest.mark.parametrize(("transport", "kept"), [("tcp", True), ("ipc", False)])
async def test_libnanomsg_forgets_by_ipc_what_its_application_has_not_received_when_we_leave(
    transport: str, kept: bool, nn_device: Path, tmp_path: Path
) -> None:
    # The application is a device with nothing behind it: it receives one message, and the next one
    # only after it has passed that on.
    front, back = fixed_address(transport, tmp_path), fixed_address("tcp", tmp_path)
    firsts, lasts = [b"first %d" % n for n in range(20)], [b"last %d" % n for n in range(40)]
    async with running(str(nn_device), "pull", f"@{front}", "push", f"@{back}"), sp.Push0(**REDIAL) as push, sp.Pull0(**REDIAL) as pull:
        async with sp.Push0(**REDIAL) as leaving:
            await leaving.dial(front, wait=False)
            await leaving.wait_for_peers()
            await leaving.send_many(firsts)
        # Once it greets the next one, it has noticed that the last one is gone.
        await push.dial(front, wait=False)
        await push.wait_for_peers()
        await push.send_many(lasts)
        await pull.dial(back, wait=False)
        received: list[bytes] = []
        # It receives from both in turn, so all the others came before.
        while lasts[-1] not in received:
            received.append(await pull.receive())
    assert [body for body in received if body in lasts] == lasts
    arrived = [body for body in received if body in firsts]
    assert arrived == (firsts if kept else firsts[: len(arrived)])
    assert (len(arrived) == len(firsts)) is kept


# Two in a row, and the ttl.

IN_A_ROW: Final = ((OURS, OURS), (OURS, THEIRS), (THEIRS, OURS))
each_row = pytest.mark.parametrize(("first", "second"), IN_A_ROW)


def other(side: str) -> str:
    return THEIRS if side == OURS else OURS


def limited(end: OurEnd | TheirEnd, ttl: int) -> None:
    """Set the *ttl* of a socket of theirs; ours have it from the start."""
    if not isinstance(end, OurEnd):
        end.socket.ttl_max = ttl


def ttl_of(side: str, ttl: int) -> dict[str, int]:
    return {"ttl": ttl} if side == OURS else {}


@asynccontextmanager
async def row(
    family: Family, first: str, second: str, ttl: int, directory: Path, authority: Authority
) -> AsyncIterator[tuple[End, Device, OurEnd | TheirEnd]]:
    """Two devices between two ends; the second one has that *ttl*.

    Yields left, second device, right.
    """
    async with (
        end_of(second, family.left) as left,
        DEVICES[first](family) as one,
        DEVICES[second](family) as two,
        end_of(other(second), family.right, **ttl_of(other(second), ttl)) as right,
    ):
        limited(right, ttl)
        await link(one.front, left, "tcp", directory, authority)
        await link(two.front, one.back, "ipc", directory, authority)
        await link(two.back, right, "tcp", directory, authority)
        yield left, two, right


@pytest.mark.parametrize("ttl", [HOPS, HOPS + 1])
@each_row
@each_counting_family
async def test_a_message_behind_two_devices_is_accepted_if_the_ttl_is_large_enough(
    family: Family, first: str, second: str, ttl: int, tmp_path: Path, authority: Authority
) -> None:
    async with row(family, first, second, ttl, tmp_path, authority) as (left, _, right):
        await converse(family, left, right, *BODIES[:3])


@pytest.mark.parametrize("order", [("device", "nanomsg"), ("nanomsg", "device")], ids="-".join)
@pytest.mark.parametrize("family", FAMILIES[:2], ids=str)
@needs_nn_device
async def test_our_device_and_libnanomsg_s_in_a_row(
    family: Family, order: tuple[str, str], nn_device: Path, tmp_path: Path, authority: Authority
) -> None:
    nanomsg = partial(nanomsg_device, nn_device, family)
    async with our_end(family.left) as left, our_device(family) as device, our_end(family.right, ttl=HOPS) as right:
        if order[0] == "device":
            await link(device.front, left, "tcp", tmp_path, authority)
            between = nanomsg(device.back, right, "ipc", "tcp", directory=tmp_path)
        else:
            await link(device.back, right, "tcp", tmp_path, authority)
            between = nanomsg(left, device.front, "ipc", "tcp", directory=tmp_path)
        async with between:
            await meet_through_libnanomsg(family, left, right)
            await converse(family, left, right, *BODIES[:3])


@each_row
@each_counting_family
async def test_a_message_behind_two_devices_is_dropped_if_the_ttl_is_smaller(
    family: Family, first: str, second: str, tmp_path: Path, authority: Authority
) -> None:
    async with row(family, first, second, HOPS - 1, tmp_path, authority) as (left, device, right):
        await left.send(b"far")
        if isinstance(right, OurEnd):
            while not right.socket.statistics().dropped:
                await trio.testing.wait_all_tasks_blocked(0.005)
            assert right.socket.statistics().dropped == {"ttl": 1}
            assert right.socket.statistics().inbox == 0
        elif family.left == "Pair1":
            while not their_statistic(right.socket, "ttl_drop"):
                await trio.testing.wait_all_tasks_blocked(0.005)
        else:
            while not device.back.socket.statistics().messages_sent:
                await trio.testing.wait_all_tasks_blocked(0.005)
            async with our_end(family.left) as near:
                await link(device.front, near, "tcp", tmp_path, authority)
                await converse(family, near, right, b"near")  # it comes after the other one
        if not isinstance(right, OurEnd):
            with pytest.raises(pynng.TryAgain):
                right.socket.recv(block=False)


def their_statistic(socket: pynng.Socket, name: str) -> int:
    """Return a counter of libnng's."""
    lib, ffi = pynng.lib, pynng.ffi
    tree = ffi.new("nng_stat **")
    assert lib.nng_stats_get(tree) == 0
    try:
        found = lib.nng_stat_find(lib.nng_stat_find_socket(tree[0], socket.socket), name.encode())
        assert found != ffi.NULL
        return int(lib.nng_stat_value(found))
    finally:
        lib.nng_stats_free(tree[0])


def header_with(family: Family, words: int) -> bytes:
    """Return the message that a raw socket must send so that it arrives with that many hops."""
    if family.left == "Pair1":
        return bytes([0, 0, 0, words - 1])
    return b"".join(n.to_bytes(4, "big") for n in range(1, words)) + b"\x80\0\0\1"


TTL: Final = 5


@pytest.mark.parametrize("side", [OURS, THEIRS])
@each_counting_family
async def test_a_device_s_own_ttl_is_the_last_that_it_passes_on(family: Family, side: str, tmp_path: Path, authority: Authority) -> None:
    async with (
        our_raw_end(family.left) as left,
        DEVICES[side](family, ttl=TTL) as device,
        end_of(other(side), family.right) as right,
    ):
        await link(device.front, left, "tcp", tmp_path, authority)
        await link(device.back, right, "ipc", tmp_path, authority)
        for words, body in ((TTL - 1, b"below"), (TTL, b"at"), (TTL + 1, b"above"), (TTL, b"at, again")):
            await left.socket.send_message(sp.Message(body, header_with(family, words)))
        for body in (b"below", b"at", b"at, again"):
            assert await right.receive() == body
        if side == OURS:
            assert device.front.socket.statistics().dropped == {"ttl": 1}


@pytest.mark.parametrize("ttl", [1, 8, 15])
@each_counting_family
async def test_libnng_counts_hops_as_we_do(family: Family, ttl: int, tmp_path: Path, authority: Authority) -> None:
    async with our_raw_end(family.left) as ours, their_end(family.right) as theirs, our_end(family.right, ttl=ttl) as mirror:
        theirs.socket.ttl_max = ttl
        async with our_raw_end(family.left) as ours_again:
            await link(theirs, ours, "tcp", tmp_path, authority)
            await link(mirror, ours_again, "tcp", tmp_path, authority)
            for left, right in ((ours, theirs), (ours_again, mirror)):
                for words, body in ((ttl, b"at"), (ttl + 1, b"above"), (1, b"one")):
                    await left.socket.send_message(sp.Message(body, header_with(family, words)))
                assert await right.receive() == b"at"
                assert await right.receive() == b"one"
        assert mirror.socket.statistics().dropped == {"ttl": 1}


async def test_libnng_cannot_be_told_a_ttl_above_fifteen() -> None:
    async with their_end("Rep0") as theirs:
        with pytest.raises(pynng.InvalidOperation):
            theirs.socket.ttl_max = 16


# Raw sockets without a device.


ID: Final = b"\x80\x01\x02\x03"


def word_of(pipe: sp.Pipe) -> bytes:
    return pipe.id.to_bytes(4, "big")


@each_family
async def test_a_raw_socket_of_ours_speaks_first_with_a_partner(family: Family, tmp_path: Path, authority: Authority) -> None:
    async with our_raw_end(family.left) as ours, their_end(family.right) as theirs:
        await link(theirs, ours, "tcp", tmp_path, authority)
        given = {"Req0": ID, "Surveyor0": ID, "Pair1": bytes(4)}.get(family.left, b"")
        for body in BODIES[:3]:
            await ours.socket.send_message(sp.Message(body, given))
            assert await theirs.receive() == body
            if not family.answers:
                continue
            await theirs.send(body[::-1])
            answer = await ours.socket.receive_message()
            (pipe,) = ours.socket.pipes
            assert answer.body == body[::-1]
            assert answer.header == {"Bus0": word_of(pipe), "Pair1": b"\0\0\0\1"}.get(family.left, given)
            assert answer.pipe is pipe
    assert not ours.socket.statistics().dropped


@each_family
async def test_a_raw_socket_of_ours_is_spoken_to_by_a_partner(family: Family, tmp_path: Path, authority: Authority) -> None:
    async with their_end(family.left) as theirs, our_raw_end(family.right) as ours:
        await link(ours, theirs, "tcp", tmp_path, authority)
        for body in BODIES[:3]:
            await theirs.send(body)
            message = await ours.socket.receive_message()
            (pipe,) = ours.socket.pipes
            assert (message.body, message.pipe) == (body, pipe)
            if family.left in ("Req0", "Surveyor0"):
                assert (len(message.header), message.header[:4], message.header[4] & 0x80) == (8, word_of(pipe), 0x80)
            else:
                assert message.header == {"Bus0": word_of(pipe), "Pair1": b"\0\0\0\1"}.get(family.left, b"")
            if family.answers:
                # On a bus the header says which pipe must not get it.
                await ours.socket.send_message(sp.Message(body[::-1], b"" if family.left == "Bus0" else message.header))
                assert await theirs.receive() == body[::-1]
    assert not ours.socket.statistics().dropped
