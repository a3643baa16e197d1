"""Each of our sockets against each partner over each transport, each side listening once.

The table in docs/interop.md shows the result.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio

import sp
from interop.matrix import CELLS, NEW_NNG, NEXT_NNG, Cell
from interop.next_nng import next_partner
from interop.partners import LIMIT, OURS, address, body_of, connect, exchange, next_event, read_exactly, running, tls_ends
from interop.tools import NANOCAT, TOOLS, Credentials, Tool, credentials_in, gate, meet, number_of, sending
from tests.tls.authority import Authority

BODIES: Final = tuple(map(body_of, (0, 1, 65_536, 300_000)))
LOSING: Final = ("Pub0", "Surveyor0", "Bus0")
"""The sockets whose messages are lost without a peer."""
AGAIN: Final = {"nngcat": "1", "nanocat": "0.03"}
"""Seconds after which a program sends again, in case the first time was too early; it accepts no
less."""

in_process = pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.partner is NEW_NNG], ids=str)
in_a_process_of_its_own = pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.partner is NEXT_NNG], ids=str)
as_program = pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, id=str(cell), marks=pytest.mark.needs(cell.partner.program)) for cell in CELLS if cell.partner.program is not None],
)


@pytest.fixture(scope="module")
def credentials(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return credentials_in(tmp_path_factory.mktemp("tls"), authority)


def is_encrypted(cell: Cell) -> bool:
    return cell.transport in ("tls+tcp", "wss")


@pytest.mark.libnng
@in_process
async def test_with_a_library(cell: Cell, tmp_path: Path, authority: Authority) -> None:
    tls, tls_config = tls_ends(cell.listener, authority, mutual=False) if is_encrypted(cell) else (None, None)
    async with cell.pair.open(tls=tls) as ours, cell.pair.partner(tls_config=tls_config) as theirs:
        await connect(ours, theirs, cell.transport, cell.listener, tmp_path)
        await exchange_all(cell, ours, theirs)
    assert not ours.statistics().dropped


@pytest.mark.needs("nng")
@in_a_process_of_its_own
async def test_with_the_next_version_of_a_library(cell: Cell, tmp_path: Path, credentials: Credentials) -> None:
    tls, theirs_too = None, None
    if is_encrypted(cell):
        # Its dialer cannot cope with the tickets of TLS 1.3.
        versions: dict[str, Any] = {"maximum_version": "TLSv1.2"} if cell.listener == OURS else {}
        tls, theirs_too = credentials.ours(cell.listener, **versions), credentials
    url = address(cell.transport, tmp_path)
    async with cell.pair.open(tls=tls) as ours, next_partner(cell.pair.theirs) as theirs:
        if cell.listener == OURS:
            await theirs.dial((await ours.listen(url)).url, theirs_too)
        else:
            await ours.dial(await theirs.listen(url, theirs_too))
        await ours.wait_for_peers()
        await theirs.wait()
        await exchange_all(cell, ours, theirs)
    assert not ours.statistics().dropped


async def exchange_all(cell: Cell, ours: Any, theirs: Any) -> None:
    """Exchange messages from the smallest to the largest, on one pipe."""
    for size in (0, 1, 65_535, 65_536, LIMIT - cell.pair.header, 0):
        await exchange(ours, theirs, cell.pair.turns, body_of(size))
    assert len(ours.pipes) == 1


@as_program
async def test_with_a_program(cell: Cell, tmp_path: Path, credentials: Credentials) -> None:
    assert cell.partner.program is not None
    tls = credentials.ours(cell.listener) if is_encrypted(cell) else None
    async with cell.pair.open(tls=tls) as ours:
        events = ours.events()
        where = await meet(ours, cell.transport, cell.listener, tmp_path, credentials)
        run = partial(running_once, TOOLS[cell.partner.program], cell, ours, events, where, tmp_path)
        await CONVERSATIONS[cell.pair.ours](ours, run)
    assert set(ours.statistics().dropped) <= {"requester gone"}


@asynccontextmanager
async def running_once(
    tool: Tool, cell: Cell, ours: Any, events: sp.EventStream, where: tuple[str, ...], directory: Path, body: bytes | None = None
) -> AsyncIterator[trio.Process]:
    """Run *tool* as the other side of *ours*, sending *body* if there is one; wait until our pipe
    has ended as well."""
    theirs = cell.pair.theirs
    command = [tool.program, tool.option(theirs), *where]
    if theirs not in ("Pub0", "Push0"):
        command.append("--raw")
    if body is not None:
        command += sending(body, directory)
    if tool is NANOCAT and theirs == "Push0":
        command += ["--interval", "60"]  # or it would end at once and lose what it has not written
    if theirs not in LOSING or body is None:
        async with running(*command) as process:
            yield process
    else:
        command += ["--interval", AGAIN[tool.program]]
        if cell.listener == OURS or not tool.dials_first:
            async with running(*command) as process:
                yield process
        else:
            async with gate(number_of(cell.pair.ours)) as (closed, more), running(*command, *more) as process:
                await ours.wait_for_peers()
                closed.open()
                yield process
    await next_event(events, sp.EventKind.DETACHED)


Run = Callable[..., Any]


async def we_send(ours: Any, run: Run) -> None:
    async with run() as process:
        await ours.wait_for_peers()
        for body in BODIES:
            await ours.send(body)
            assert await read_exactly(process, len(body)) == body


async def we_receive(ours: Any, run: Run) -> None:
    before = b""
    for body in BODIES:
        async with run(body):
            received = await ours.receive()
            while received == before != body:  # it was sent more than once
                received = await ours.receive()
            assert received == body
        before = body


async def we_ask(ours: Any, run: Run) -> None:
    for answer in BODIES:
        async with run(answer) as process:
            await ours.wait_for_peers()
            for body in BODIES:
                await ours.send(body)
                assert await read_exactly(process, len(body)) == body  # before it answers
                assert await ours.receive() == answer


async def we_answer(ours: Any, run: Run) -> None:
    before = b""
    for question in BODIES:
        answered = trio.Event()

        async def answer_all(question: bytes, before: bytes, answered: trio.Event) -> None:
            while True:
                received = await ours.receive()
                await ours.send(received[::-1])
                if received == question:
                    answered.set()
                else:
                    assert received == before  # it was sent more than once

        async with run(question) as process, trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, question, before, answered)
            assert await read_exactly(process, len(question)) == question[::-1]
            await answered.wait()
            nursery.cancel_scope.cancel()
        before = question


async def both_send(ours: Any, run: Run) -> None:
    before = b""
    for theirs in BODIES:
        async with run(theirs) as process:
            received = await ours.receive()
            while received == before != theirs:
                received = await ours.receive()
            assert received == theirs
            for body in BODIES:
                await ours.send(body)
                assert await read_exactly(process, len(body)) == body
        before = theirs


CONVERSATIONS: Final[dict[type[Any], Any]] = {
    sp.Req0: we_ask,
    sp.Rep0: we_answer,
    sp.Pub0: we_send,
    sp.Sub0: we_receive,
    sp.Push0: we_send,
    sp.Pull0: we_receive,
    sp.Surveyor0: we_ask,
    sp.Respondent0: we_answer,
    sp.Bus0: both_send,
    sp.Pair0: both_send,
    sp.Pair1: both_send,
}
