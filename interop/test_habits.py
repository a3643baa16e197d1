"""Habits of other implementations that comments in our code rely on, and how they react to ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trio
import trio.testing

import sp
from interop.ends import OurEnd, TheirEnd, link, our_end, their_end
from interop.partners import REDIAL, Arrivals, fixed_address, next_event, port_of, read_exactly, running, until_received
from interop.tools import GREETING, NANOCAT, NNGCAT, Tool, each_tool, to_dial, to_listen
from sp.protocol_numbers import PAIR1, PULL
from tests.tls.authority import Authority

pytestmark = pytest.mark.libnng

MANY: Final = 1000
WHILE: Final = 0.3
STORM: Final = 60
"""More attempts in WHILE than these are too many; without waits there would be a thousand.

libnanomsg waits for 100 ms before each attempt but the first, libnng for a random part of the time
that it is told (1.5, by mistake, only every other time).
"""

ALL: Final = ("tcp", "ipc", "ws")
each_transport = pytest.mark.parametrize("transport", ALL)


@attrs.frozen
class Wire:
    """A peer that writes its bytes itself over tcp, and sends what no socket sends."""

    stream: trio.abc.Stream

    async def greet(self, number: int) -> None:
        """Pretend to be protocol *number*."""
        await self.stream.send_all(GREETING % number.to_bytes(2, "big"))
        assert (await self._read(8)).startswith(b"\0SP\0")

    async def send(self, payload: bytes) -> None:
        """Send a message, header included."""
        await self.stream.send_all(len(payload).to_bytes(8, "big") + payload)

    async def receive(self) -> bytes:
        """Receive a message, header included."""
        return await self._read(int.from_bytes(await self._read(8), "big"))

    async def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await self.stream.receive_some(size - len(data))
            assert more, "the other side has hung up"
            data += more
        return data


@asynccontextmanager
async def wire(url: str, number: int) -> AsyncIterator[Wire]:
    """A peer that pretends to be protocol *number* and dials *url* until a socket listens there."""
    while True:
        try:
            stream = await trio.open_tcp_stream("127.0.0.1", port_of(url))
            break
        except OSError:
            await trio.testing.wait_all_tasks_blocked(0.005)
    async with stream:
        peer = Wire(stream)
        await peer.greet(number)
        yield peer


# A PUSH that gets a message.


async def talk_back(url: str) -> None:
    """Send to the PUSH at *url*, and check that it keeps sending by the same connection."""
    async with wire(url, PULL) as pull:
        for _ in range(3):
            await pull.send(b"what no PULL says")
        for _ in range(MANY):
            assert await pull.receive() == b"work"


@pytest.mark.parametrize("end", [our_end, their_end], ids=["ours", "libnng"])
async def test_a_push_drops_what_a_pull_sends_and_goes_on(end: Any, tmp_path: Path, authority: Authority) -> None:
    async with end("Push0") as push, trio.open_nursery() as nursery:

        async def send() -> None:
            while True:
                await push.send(b"work")

        url = await push.listen("tcp", tmp_path, authority)
        nursery.start_soon(send)
        await talk_back(url)
        if isinstance(push, OurEnd):
            assert push.socket.statistics().dropped[sp.DropReason.UNEXPECTED] == 3
        nursery.cancel_scope.cancel()


@each_tool
async def test_a_program_that_pushes_drops_what_a_pull_sends_and_goes_on(tool: Tool, tmp_path: Path) -> None:
    url = fixed_address("tcp", tmp_path)
    async with running(tool.program, "--push", *to_listen(url), "--data", "work", "--interval", "0"):
        await talk_back(url)


# A PAIR that has its peer.


async def refusals(events: sp.EventStream) -> int:
    """Count for a moment how often we refuse a peer; at least once."""
    count = 0
    with trio.CancelScope() as scope:
        while True:
            event = await next_event(events, sp.EventKind.REFUSED)
            assert isinstance(event.error, sp.PipeRefused)
            assert event.reason.endswith(": refused: this PAIR already has a peer")
            count += 1
            if count == 1:
                scope.deadline = trio.current_time() + WHILE
    return count


@each_transport
@pytest.mark.parametrize("name", ["Pair0", "Pair1"])
async def test_libnng_that_we_refuse_as_second_peer_knows_it_and_comes_again_at_its_pace(
    name: str, transport: str, tmp_path: Path, authority: Authority
) -> None:
    async with our_end(name) as ours, our_end(name) as first:
        await link(ours, first, transport, tmp_path, authority)
        async with their_end(name) as second_end, trio.open_nursery() as nursery:
            second = second_end.socket
            second.reconnect_time_min = second.reconnect_time_max = 50
            arrivals = Arrivals(second)
            events = ours.socket.events()
            second.dial(ours.socket.url, block=False)
            nursery.start_soon(second.asend, b"not lost")
            assert await refusals(events) < STORM
            if transport != "ws":
                assert arrivals.count == 0
            await first.send(b"undisturbed")
            assert await ours.receive() == b"undisturbed"
            await first.socket.aclose()
            assert await ours.receive() == b"not lost"
            await ours.send(b"welcome")
            assert await second.arecv() == b"welcome"
            await arrivals.wait()
            assert arrivals.count == 1
    assert not ours.socket.statistics().dropped


@pytest.mark.parametrize(
    ("tool", "transport"),
    [
        *[pytest.param(NNGCAT, transport, marks=pytest.mark.needs("nngcat"), id=f"nngcat-{transport}") for transport in ALL],
        *[pytest.param(NANOCAT, transport, marks=pytest.mark.needs("nanocat"), id=f"nanocat-{transport}") for transport in ALL[:2]],
    ],
)
async def test_a_program_that_we_refuse_as_second_peer_comes_again_at_its_pace(
    tool: Tool, transport: str, tmp_path: Path, authority: Authority
) -> None:
    async with our_end("Pair0") as ours, our_end("Pair0") as first:
        await link(ours, first, transport, tmp_path, authority)
        events = ours.socket.events()
        where = to_dial(ours.socket.url)
        more = ("--async",) if tool is NNGCAT else ()  # or it would give up
        async with running(tool.program, tool.option("Pair0"), *where, *more, "--data", "not lost", "--raw") as process:
            assert await refusals(events) < STORM
            await first.send(b"undisturbed")
            assert await ours.receive() == b"undisturbed"
            await first.socket.aclose()
            assert await ours.receive() == b"not lost"
            await ours.send(b"welcome")
            assert await read_exactly(process, 7) == b"welcome"
    assert not ours.socket.statistics().dropped


@pytest.mark.needs("nanocat")
async def test_nanomsg_that_we_refuse_as_second_peer_by_ws_never_comes_again(tmp_path: Path, authority: Authority) -> None:
    # Any answer but 101 to its handshake is final for it.
    async with our_end("Pair0") as ours, our_end("Pair0") as first:
        await link(ours, first, "ws", tmp_path, authority)
        events = ours.socket.events()
        where = to_dial(ours.socket.url)
        async with running(NANOCAT.program, "--pair", *where, "--data", "lost", "--raw") as process:
            assert await refusals(events) == 1
            await first.socket.aclose()
            await next_event(events, sp.EventKind.DETACHED)
            with trio.move_on_after(WHILE):  # it would wait for a tenth of a second
                await ours.socket.wait_for_peers()
            assert not ours.socket.pipes
            assert ours.socket.listeners[0].statistics().accepted == 2
            assert process.poll() is None


@each_transport
@pytest.mark.parametrize("name", ["Pair0", "Pair1"])
async def test_libnng_that_has_its_peer_lets_us_in_and_hangs_up_and_we_say_why_that_may_be(
    name: str, transport: str, tmp_path: Path, authority: Authority
) -> None:
    async with their_end(name) as theirs, their_end(name) as first, our_end(name) as ours:
        url = await theirs.listen(transport, tmp_path, authority)
        await first.dial(url, authority)
        await theirs.wait()
        await first.wait()
        await be_turned_away(ours.socket, url)
        await first.send(b"undisturbed")
        assert await theirs.receive() == b"undisturbed"
        first.socket.close()
        # It may be accepted and turned away once more.
        await until_received(ours.send, theirs.receive, b"at last")


async def be_turned_away(ours: Any, url: str) -> None:
    """Dial a PAIR that has its peer a few times; each time the error has to say why."""
    events = ours.events()
    dialer = await ours.dial(url, wait=False)
    for _ in range(3):
        event = await next_event(events, sp.EventKind.DETACHED)
        assert "a PAIR that already has a peer hangs up like this" in event.reason, event.reason
    assert dialer.statistics().attempts <= 5


@each_transport
@pytest.mark.needs("nanocat")
async def test_nanomsg_that_has_its_peer_lets_us_in_and_hangs_up_and_we_say_why_that_may_be(transport: str, tmp_path: Path) -> None:
    url = fixed_address(transport, tmp_path)
    async with (
        sp.Pair0(**REDIAL) as first,
        sp.Pair0(redial_min=0.05, redial_max=0.05) as ours,
        running(NANOCAT.program, "--pair", *to_listen(url), "--raw") as process,
    ):
        await first.dial(url, wait=False)
        await first.send(b"first")
        assert await read_exactly(process, 5) == b"first"
        await be_turned_away(ours, url)
        await first.send(b"undisturbed")
        assert await read_exactly(process, 11) == b"undisturbed"
        await first.aclose()
        # It may be accepted and turned away once more.
        await until_received(ours.send, partial(read_exactly, process, 7), b"at last")


# The hops of PAIR1.


@pytest.mark.parametrize("poly", [False, True], ids=["one", "poly"])
@pytest.mark.parametrize("side", ["ours", "libnng"])
async def test_the_first_hop_of_a_pair1_is_one_and_none_is_taken_as_well(
    side: str, poly: bool, tmp_path: Path, authority: Authority
) -> None:
    end: Any = our_end("Pair1", poly=poly) if side == "ours" else their_end("Pair1", polyamorous=poly)
    async with end as pair:
        async with wire(await pair.listen("tcp", tmp_path, authority), PAIR1) as peer:
            await pair.wait()
            await pair.send(b"hello")
            assert await peer.receive() == b"\0\0\0\1hello"
            for hops in (0, 1, 8):  # mangos begins with 0, libnng with 1
                await peer.send(bytes([0, 0, 0, hops]) + b"%d" % hops)
                assert await pair.receive() == b"%d" % hops
        assert isinstance(pair, OurEnd | TheirEnd)
