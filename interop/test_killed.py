"""A partner's process is killed with messages under way.

We notice, every message is accounted for, and the work goes on with another partner.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trio.testing

import sp
from interop.ends import FAMILIES, link, our_device, our_end
from interop.partners import REDIAL, address, body_of, fixed_address, next_event, read_all, read_exactly, running
from interop.tools import NANOCAT, NNGCAT, Tool, each_tool, sending, to_dial, to_listen
from tests.tls.authority import Authority

SIZE: Final = 50_000
SEEN: Final = 5
REQUESTS: Final = 20

each_local_transport = pytest.mark.parametrize("transport", ["tcp", "ipc"])


def numbered(n: int) -> bytes:
    return b"%08d" % n + body_of(SIZE - 8)


@asynccontextmanager
async def partner(tool: Tool, theirs: str, url: str, *options: str) -> AsyncIterator[trio.Process]:
    """A program in the role *theirs* that dials *url*."""
    raw = () if theirs == "Push0" else ("--raw",)
    async with running(tool.program, tool.option(theirs), *to_dial(url), *raw, *options) as process:
        yield process


async def until(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds, where nothing reports it."""
    while not condition():
        await trio.testing.wait_all_tasks_blocked(0.005)


async def fill(ours: Any, first: int = 0) -> int:
    """Send numbered messages until neither we nor the kernel have room; return how many were
    accepted."""
    number = first
    while True:
        try:
            ours.send_nowait(numbered(number))
            number += 1
        except trio.WouldBlock:
            sent = ours.statistics().bytes_sent
            await trio.testing.wait_all_tasks_blocked(0.02)
            if ours.statistics().bytes_sent == sent:
                return number


def whole(data: bytes) -> int:
    """Count the messages at the beginning of *data*; check that they are the first ones that were
    sent."""
    count = len(data) // SIZE
    assert data[: count * SIZE] == b"".join(map(numbered, range(count)))
    return count


@each_local_transport
@pytest.mark.parametrize(
    ("kind", "theirs", "tool"),
    [
        pytest.param(kind, theirs, tool, marks=pytest.mark.needs(tool.program), id=f"{kind.__name__}-{theirs}-{tool.program}")
        for kind, theirs, tool in (
            (sp.Push0, "Pull0", NNGCAT),
            (sp.Push0, "Pull0", NANOCAT),
            (sp.Pair0, "Pair0", NNGCAT),
            (sp.Pair0, "Pair0", NANOCAT),
            (sp.Pair1, "Pair1", NNGCAT),
        )
    ],
)
async def test_what_was_sent_to_one_that_is_killed_is_written_or_counted_and_the_rest_goes_to_the_next(
    kind: type[Any], theirs: str, tool: Tool, transport: str, tmp_path: Path
) -> None:
    async with kind() as ours, trio.open_nursery() as nursery:
        events = ours.events()
        url = (await ours.listen(address(transport, tmp_path))).url
        async with partner(tool, theirs, url) as first:
            for number in range(SEEN):
                await ours.send(numbered(number))
            seen = await read_exactly(first, SEEN * SIZE)
            first.send_signal(signal.SIGSTOP)
            taken = await fill(ours, SEEN)
            nursery.start_soon(ours.send, numbered(taken))
            await trio.testing.wait_all_tasks_blocked()
            first.kill()
            event = await next_event(events, sp.EventKind.DETACHED)
            arrived = whole(seen + await read_all(first))
        assert event.pipe is not None
        assert event.reason
        written = event.pipe.statistics().messages_sent
        assert SEEN <= arrived <= written < taken
        assert ours.statistics().dropped == {"pipe closed": taken - written}
        async with partner(tool, theirs, url) as second:
            for number in range(taken, taken + 10):  # the first of them is waiting already
                assert await read_exactly(second, SIZE) == numbered(number)
                await ours.send(numbered(number + 1))
            assert await read_exactly(second, SIZE) == numbered(taken + 10)
        statistics = ours.statistics()
        assert (statistics.messages_sent, statistics.dropped) == (written + 11, {"pipe closed": taken - written})


@each_tool
@each_local_transport
async def test_what_a_pusher_that_is_killed_has_sent_is_received_and_the_next_one_goes_on(
    transport: str, tool: Tool, tmp_path: Path
) -> None:
    body = body_of(300_000)
    async with sp.Pull0(inbox_limit=4) as ours:
        events = ours.events()
        url = (await ours.listen(address(transport, tmp_path))).url
        received = 0
        for _ in range(2):
            async with partner(tool, "Push0", url, *sending(body, tmp_path), "--interval", "0") as process:
                for _ in range(20):
                    assert await ours.receive() == body
                    received += 1
                process.kill()
            async with trio.open_nursery() as nursery:

                async def receive_the_rest() -> None:
                    nonlocal received
                    while True:
                        assert await ours.receive() == body
                        received += 1

                nursery.start_soon(receive_the_rest)
                event = await next_event(events, sp.EventKind.DETACHED)
                await until(lambda: not ours.statistics().inbox)
                nursery.cancel_scope.cancel()
            assert event.reason
            statistics = ours.statistics()
            assert (statistics.messages_received, statistics.inbox, statistics.dropped) == (received, 0, {})


@each_tool
@each_local_transport
async def test_requests_to_one_that_is_killed_are_all_answered_by_the_next(transport: str, tool: Tool, tmp_path: Path) -> None:
    async with sp.Req0() as ours, trio.open_nursery() as nursery:
        events = ours.events()
        url = (await ours.listen(address(transport, tmp_path))).url
        answers: list[bytes] = []

        async def ask(n: int) -> None:
            answers.append(await ours.request(b"%02d" % n))

        async with partner(tool, "Rep0", url, "--data", "from the first") as first:
            await ours.wait_for_peers()
            first.send_signal(signal.SIGSTOP)
            for n in range(REQUESTS):
                nursery.start_soon(ask, n)
            await until(lambda: ours.statistics().messages_sent == REQUESTS)
            first.kill()
            event = await next_event(events, sp.EventKind.DETACHED)
        assert event.reason
        async with partner(tool, "Rep0", url, "--data", "from the second") as second:
            asked = await read_exactly(second, 2 * REQUESTS)
            await until(lambda: len(answers) == REQUESTS)
        assert sorted(asked[n : n + 2] for n in range(0, len(asked), 2)) == [b"%02d" % n for n in range(REQUESTS)]
        assert answers == [b"from the second"] * REQUESTS
        statistics = ours.statistics()
        assert (statistics.messages_sent, statistics.messages_received, statistics.dropped) == (2 * REQUESTS, REQUESTS, {})


@each_tool
@each_local_transport
@pytest.mark.parametrize(("kind", "theirs"), [(sp.Rep0, "Req0"), (sp.Respondent0, "Surveyor0")])
async def test_the_answer_to_one_that_is_killed_is_counted_and_the_next_one_is_answered(
    kind: type[Any], theirs: str, transport: str, tool: Tool, tmp_path: Path
) -> None:
    again = ("--interval", "0.05") if tool is NANOCAT and theirs == "Surveyor0" else ()
    async with kind() as ours:
        events = ours.events()
        url = (await ours.listen(address(transport, tmp_path))).url
        async with partner(tool, theirs, url, "--data", "question", *again) as first:
            assert await ours.receive() == b"question"
            first.kill()
            event = await next_event(events, sp.EventKind.DETACHED)
        assert event.reason
        asked = ours.statistics().messages_received
        await ours.send(b"answer")
        for _ in range(asked - 1):
            assert await ours.receive() == b"question"
            await ours.send(b"answer")
        assert ours.statistics().dropped == {"requester gone": asked}
        async with partner(tool, theirs, url, "--data", "question", *again) as second, trio.open_nursery() as nursery:
            # An answer is lost if it comes after the next survey has begun.
            async def answer_all() -> None:
                while True:
                    assert await ours.receive() == b"question"
                    await ours.send(b"answer")

            nursery.start_soon(answer_all)
            assert await read_exactly(second, 6) == b"answer"
            nursery.cancel_scope.cancel()
        assert (ours.statistics().messages_sent == 1) or again


@each_tool
@each_local_transport
async def test_a_survey_ends_in_time_when_a_respondent_is_killed_and_the_next_one_finds_its_successor(
    transport: str, tool: Tool, tmp_path: Path
) -> None:
    async with sp.Surveyor0() as ours:
        events = ours.events()
        url = (await ours.listen(address(transport, tmp_path))).url
        async with partner(tool, "Respondent0", url, "--data", "one") as one:
            await ours.wait_for_peers()
            one.send_signal(signal.SIGSTOP)
            async with partner(tool, "Respondent0", url, "--data", "two"):
                await ours.wait_for_peers(2)
                answers = []
                async for answer in ours.survey(b"who is there?", deadline=1):
                    answers.append(answer)
                    one.kill()
                assert answers == [b"two"]
                await next_event(events, sp.EventKind.DETACHED)
                async with partner(tool, "Respondent0", url, "--data", "three"):
                    await ours.wait_for_peers(2)
                    survey = ours.survey(b"and now?", deadline=10)
                    assert {await anext(survey), await anext(survey)} == {b"two", b"three"}
                    survey.close()
        statistics = ours.statistics()
        assert (statistics.messages_sent, statistics.messages_received, statistics.dropped) == (4, 3, {})


@each_tool
async def test_a_request_through_a_device_of_ours_to_one_that_is_killed_is_answered_by_the_next(
    tool: Tool, tmp_path: Path, authority: Authority
) -> None:
    async with our_end("Req0", resend_after=0.2) as left, our_device(FAMILIES[0]) as device:
        await link(device.front, left, "tcp", tmp_path, authority)
        events = device.back.socket.events()
        url = (await device.back.socket.listen(address("tcp", tmp_path))).url
        async with partner(tool, "Rep0", url, "--data", "from the first") as first:
            await device.back.socket.wait_for_peers()
            first.send_signal(signal.SIGSTOP)
            await left.send(b"question")
            await until(lambda: device.back.socket.statistics().messages_sent)
            first.kill()
            await next_event(events, sp.EventKind.DETACHED)
        async with partner(tool, "Rep0", url, "--data", "from the second"):
            assert await left.receive() == b"from the second"


@each_tool
@each_local_transport
async def test_requests_to_one_that_we_have_dialed_are_answered_when_it_was_killed_and_came_back(
    transport: str, tool: Tool, tmp_path: Path
) -> None:
    async with sp.Req0(**REDIAL) as ours:
        url = fixed_address(transport, tmp_path)
        dialer = await ours.dial(url, wait=False)
        command = (tool.program, "--rep", *to_listen(url), "--data", "answer", "--raw")
        async with running(*command) as first, trio.open_nursery() as nursery:
            await ours.wait_for_peers()
            first.send_signal(signal.SIGSTOP)
            for n in range(REQUESTS):
                nursery.start_soon(ours.request, b"%02d" % n)
            await until(lambda: ours.statistics().messages_sent == REQUESTS)
            first.kill()
            await first.wait()
            async with running(*command) as second:
                asked = await read_exactly(second, 2 * REQUESTS)
                assert sorted(asked[n : n + 2] for n in range(0, len(asked), 2)) == [b"%02d" % n for n in range(REQUESTS)]
                await until(lambda: ours.statistics().messages_received == REQUESTS)
        assert dialer.statistics().attached == 2
        assert not ours.statistics().dropped
