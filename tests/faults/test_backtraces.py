"""Forged backtraces, sent to raw sockets and devices by hand."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import sp
from sp.protocol_numbers import REP, REQ, RESPONDENT, SURVEYOR
from tests.transports.ends import dial, listen, network_only
from tests.transports.wire import connect_as, frame, receive_frame, until

END = b"\x80\0\0\1"
both_patterns = pytest.mark.parametrize("pattern", ["req", "survey"])


def words(*values: int) -> bytes:
    return b"".join(struct.pack(">I", value) for value in values)


class Device:
    """A device between clients and services, and the numbers that raw peers of it greet with."""

    asking: type[sp.Req0] | type[sp.Surveyor0]
    answering: type[sp.Rep0] | type[sp.Respondent0]

    def __init__(self, pattern: str, front: Any, back: Any) -> None:
        self.front, self.back = front, back
        self.asking, self.answering = (sp.Req0, sp.Rep0) if pattern == "req" else (sp.Surveyor0, sp.Respondent0)
        self.asks, self.answers = (REQ, REP) if pattern == "req" else (SURVEYOR, RESPONDENT)

    async def client(self) -> Any:
        """Connect to it as a client."""
        count = len(self.front.pipes)
        stream = await connect_as(self.front.url, self.asks)
        await self.front.wait_for_peers(count + 1)
        return stream

    async def service(self) -> Any:
        """Connect to it as a service."""
        count = len(self.back.pipes)
        stream = await connect_as(self.back.url, self.answers)
        await self.back.wait_for_peers(count + 1)
        return stream


@asynccontextmanager
async def running(pattern: str, url: str, **options: Any) -> AsyncIterator[Device]:
    asking, answering = (sp.raw.Req0, sp.raw.Rep0) if pattern == "req" else (sp.raw.Surveyor0, sp.raw.Respondent0)
    async with answering(**options) as front, asking() as back, trio.open_nursery() as nursery:
        for socket in (front, back):
            await listen(socket, url)
        nursery.start_soon(sp.device.device, front, back)
        with trio.fail_after(20):
            yield Device(pattern, front, back)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def good_client(device: Device) -> AsyncIterator[Any]:
    """A client of ours, which is served by one of ours through the device to the end of the block."""
    async with (
        device.asking(**({"deadline": 1000} if device.asking is sp.Surveyor0 else {"resend_after": 0.2})) as client,
        device.answering() as service,
        trio.open_nursery() as nursery,
    ):
        await dial(service, device.back.url)
        await dial(client, device.front.url)

        async def serve() -> None:
            while True:
                await service.send(await service.receive())

        nursery.start_soon(serve)

        async def ask() -> None:
            await client.send(b"still there?")
            assert await client.receive() == b"still there?"

        await ask()
        yield ask
        await ask()
        nursery.cancel_scope.cancel()


@network_only
@both_patterns
async def test_a_forged_backtrace_leads_back_to_the_peer_that_forged_it(pattern: str, url: str) -> None:
    async with running(pattern, url) as device:
        victim, forger, service = await device.client(), await device.client(), await device.service()
        victim_id, forger_id = (pipe.id for pipe in device.front.pipes)
        await victim.send_all(frame(words(0x8000_0042) + b"honest"))
        asked = await receive_frame(service)
        assert asked == words(victim_id, 0x8000_0042) + b"honest"
        for forged in (
            words(victim_id, 0x8000_0042),
            words(victim_id, victim_id, 0x8000_0042),
            words(device.back.pipes[0].id, victim_id, 0x8000_0042),
            words(forger_id, victim_id, 0x8000_0042),
        ):
            await forger.send_all(frame(forged + b"forged"))
            asked = await receive_frame(service)
            assert asked == words(forger_id) + forged + b"forged"
            await service.send_all(frame(asked))
            assert await receive_frame(forger) == forged + b"forged"
        await service.send_all(frame(words(victim_id, 0x8000_0042) + b"answer"))
        assert await receive_frame(victim) == words(0x8000_0042) + b"answer"
        assert device.front.pipes[0].statistics().messages_sent == 1
        for stream in (victim, forger, service):
            await stream.aclose()


@network_only
@both_patterns
@pytest.mark.parametrize(
    "payload",
    [b"", b"\x80", b"\0\0\0\1", b"\0\0\0\1\x80\0\0", words(*[7] * 300), words(*[7] * 300) + END, bytes(100_000)],
    ids=["nothing", "a byte", "no end", "cut off", "too long", "an end too late", "endless"],
)
async def test_a_backtrace_without_its_end_ends_that_pipe_and_the_others_go_on(pattern: str, payload: bytes, url: str) -> None:
    async with running(pattern, url) as device, good_client(device) as ask:
        forger = await device.client()
        pipe = device.front.pipes[-1]
        await forger.send_all(frame(payload))
        await until(lambda: pipe.error is not None)
        assert isinstance(pipe.error, sp.MalformedMessage)
        await ask()
        assert len(device.front.pipes) == 1
        assert device.front.statistics().dropped == {}
        await forger.aclose()


@network_only
@both_patterns
@pytest.mark.parametrize(("count", "passed"), [(1, True), (8, True), (9, False), (16, False), (256, False)])
async def test_a_backtrace_longer_than_the_ttl_is_dropped_and_counted_and_its_pipe_goes_on(
    pattern: str, count: int, passed: bool, url: str
) -> None:
    async with running(pattern, url, ttl=8) as device:
        client, service = await device.client(), await device.service()
        header = words(*range(1, count)) + END
        await client.send_all(frame(header + b"body") + frame(END + b"last"))
        pipe_id = device.front.pipes[0].id
        if passed:
            assert await receive_frame(service) == words(pipe_id) + header + b"body"
        assert await receive_frame(service) == words(pipe_id) + END + b"last"
        assert device.front.statistics().dropped == ({} if passed else {"ttl": 1})
        for stream in (client, service):
            await stream.aclose()


@network_only
@both_patterns
async def test_the_longest_backtrace_goes_to_the_end_and_back_and_one_word_more_does_not(pattern: str, url: str) -> None:
    async with running(pattern, url, ttl=255) as device:
        client, service = await device.client(), await device.service()
        header = words(*range(1, 255)) + END
        await client.send_all(frame(words(0) + header + b"too far") + frame(header + b"far"))
        asked = await receive_frame(service)
        assert asked == words(device.front.pipes[0].id) + header + b"far"
        await service.send_all(frame(asked))
        assert await receive_frame(client) == header + b"far"
        assert device.front.statistics().dropped == {"ttl": 1}
        for stream in (client, service):
            await stream.aclose()


@network_only
@both_patterns
async def test_answers_that_lead_nowhere_are_dropped_and_counted_and_the_others_arrive(pattern: str, url: str) -> None:
    async with running(pattern, url) as device, good_client(device) as ask:
        service = await device.service()
        gone = await device.client()
        gone_id = device.front.pipes[-1].id
        await gone.aclose()
        await until(lambda: len(device.front.pipes) == 1)
        (client_pipe,) = device.front.pipes
        for header in (
            words(gone_id) + END,
            words(gone_id, client_pipe.id) + END,
            words(device.back.pipes[-1].id) + END,
            words(0) + END,
            END,
            words(0x7FFF_FFFF, 1, 2, 3) + END,
        ):
            await service.send_all(frame(header + b"nowhere"))
        await until(lambda: device.front.statistics().dropped[sp.DropReason.REQUESTER_GONE] == 6)
        # To somebody, but not to what it has asked: that one knows.
        await service.send_all(frame(words(client_pipe.id, 0x8000_0000) + b"foreign") + frame(words(client_pipe.id, 5, 6) + END + b"x"))
        await ask()
        assert device.front.statistics().dropped == {"requester gone": 6}
        assert len(device.front.pipes) == 1
        await service.aclose()


@network_only
@both_patterns
@pytest.mark.parametrize("payload", [b"", b"\x80\0\0", b"\0\0\0\1" * 3, bytes(5000)], ids=["nothing", "cut off", "no end", "endless"])
async def test_an_answer_without_the_end_of_its_backtrace_ends_its_pipe_and_no_other(pattern: str, payload: bytes, url: str) -> None:
    async with running(pattern, url) as device, good_client(device) as ask:
        service = await device.service()
        pipe = device.back.pipes[-1]
        await service.send_all(frame(payload))
        await until(lambda: pipe.error is not None)
        assert isinstance(pipe.error, sp.MalformedMessage)
        await ask()
        assert len(device.back.pipes) == 1
        await service.aclose()


@pytest.mark.slow
@network_only
@both_patterns
async def test_a_flood_of_forged_backtraces_leaves_the_others_their_turn(pattern: str, url: str) -> None:
    async with running(pattern, url, ttl=8) as device, good_client(device) as ask, trio.open_nursery() as nursery:

        async def flood() -> None:
            forged = frame(words(*range(50)) + END) * 200
            async with await device.client() as stream:
                while True:
                    await stream.send_all(forged)

        for _ in range(3):
            nursery.start_soon(flood)
        dropped = 0
        for turn in range(1, 6):
            while dropped < turn * 5000:
                await trio.lowlevel.checkpoint()
                dropped = device.front.statistics().dropped[sp.DropReason.TTL]
            await ask()
            assert device.front.statistics().dropped[sp.DropReason.TTL] - dropped < 100_000
        nursery.cancel_scope.cancel()


@pytest.mark.slow
@both_patterns
@pytest.mark.parametrize("url", ["tcp://127.0.0.1:0"])
async def test_a_flood_of_answers_to_no_peer_costs_a_device_no_memory_and_disturbs_no_other(pattern: str, url: str) -> None:
    async with running(pattern, url) as device, good_client(device) as ask, trio.open_nursery() as nursery:

        async def flood() -> None:
            async with await device.service() as service:
                while True:
                    await service.send_all(frame(words(1) + END + bytes(1000)) * 100)

        nursery.start_soon(flood)
        while device.front.statistics().dropped[sp.DropReason.REQUESTER_GONE] < 5000:
            await trio.lowlevel.checkpoint()
            assert device.front.statistics().inbox + device.back.statistics().inbox <= 2 * 128
        for _ in range(5):
            with trio.fail_after(5):
                await ask()
        nursery.cancel_scope.cancel()


async def test_survey_answers_to_no_survey_are_late_whichever_way_they_come(name: str = "inproc://no-survey") -> None:
    async with (
        sp.Surveyor0(listen=name, deadline=1000) as surveyor,
        sp.raw.Respondent0() as far,
        sp.raw.Surveyor0(listen=name + "-2") as back,
        sp.raw.Respondent0(dial=name) as front,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(sp.device.device, front, back)
        await far.dial(name + "-2")
        await surveyor.wait_for_peers()
        await back.wait_for_peers()
        await surveyor.send(b"x")
        asked = await far.receive_message()
        wrong = asked.header[:-4] + b"\xff\xff\xff\xff"
        await far.send_message(sp.Message(b"no survey", wrong))
        await far.send_message(sp.Message(b"answer", asked.header))
        assert await surveyor.receive() == b"answer"
        assert surveyor.statistics().dropped == {"late answer": 1}
        surveyor_context = surveyor.context()
        await surveyor.send(b"y")
        await far.send_message(sp.Message(b"of before", asked.header))
        await wait_all_tasks_blocked()
        assert surveyor.statistics().dropped == {"late answer": 2}
        surveyor_context.close()
        nursery.cancel_scope.cancel()
