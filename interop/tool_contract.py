"""What both command-line partners must do with us.  They take the same options for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

import sp
from interop.partners import (
    OURS,
    REDIAL,
    address,
    each_greeting,
    each_listener,
    each_transport,
    fixed_address,
    next_event,
    read_all,
    read_exactly,
    running,
)

BODIES = (b"x", b"hello, world", bytes(range(256)), b"\n" * 65_536)
REPEAT = ("--interval", "1")
"""Send every second: what was sent before the peer was there is lost, a later one arrives."""

PING_INTERVAL = 0.01


def pinging(listener: str, **options: Any) -> sp.HTTPServerConfig | sp.HTTPClientConfig:
    """Return a configuration of ours that pings often, for who listens."""
    return (sp.HTTPServerConfig if listener == OURS else sp.HTTPClientConfig)(ping_interval=PING_INTERVAL, ping_timeout=0.3, **options)


class ToolContract:
    """Tests that a program has to pass; a subclass names it."""

    tool: ClassVar[str]

    @asynccontextmanager
    async def connected(
        self, ours: Any, role: str, transport: str, listener: str, directory: Path, *options: str
    ) -> AsyncIterator[trio.Process]:
        """Run the tool as *role*, and connect it with *ours*."""
        if listener == OURS:
            where = ("--connect", (await ours.listen(address(transport, directory))).url)
        else:
            where = ("--bind", fixed_address(transport, directory))
            await ours.dial(where[1], wait=False)
        async with running(self.tool, f"--{role}", *where, *options) as process:
            yield process

    @each_listener
    @each_transport
    async def test_it_answers_our_requests(self, transport: str, listener: str, tmp_path: Path) -> None:
        async with (
            sp.Req0(**REDIAL) as ours,
            self.connected(ours, "rep", transport, listener, tmp_path, "--data", "answer", "--raw") as process,
        ):
            for body in (b"", *BODIES):
                assert await ours.request(body) == b"answer"
                assert await read_exactly(process, len(body)) == body

    @each_listener
    @each_transport
    async def test_we_answer_its_requests(self, transport: str, listener: str, tmp_path: Path) -> None:
        file = tmp_path / "body"
        for body in BODIES:
            file.write_bytes(body)
            async with (
                sp.Rep0(**REDIAL) as ours,
                self.connected(ours, "req", transport, listener, tmp_path, "--file", str(file), "--raw") as process,
            ):
                assert await ours.receive() == body
                await ours.send(body[::-1])
                assert await read_exactly(process, len(body)) == body[::-1]

    @each_listener
    @each_transport
    async def test_it_gets_what_we_publish(self, transport: str, listener: str, tmp_path: Path) -> None:
        async with sp.Pub0(**REDIAL) as ours, self.connected(ours, "sub", transport, listener, tmp_path, "--raw") as process:
            await ours.wait_for_peers()
            for body in (b"", *BODIES):
                await ours.send(body)
                assert await read_exactly(process, len(body)) == body
        assert not ours.statistics().dropped

    @each_listener
    @each_transport
    async def test_we_get_what_it_publishes(self, transport: str, listener: str, tmp_path: Path) -> None:
        file = tmp_path / "body"
        file.write_bytes(bytes(range(256)))
        async with (
            sp.Sub0(topics=bytes(range(10)), **REDIAL) as ours,
            self.connected(ours, "pub", transport, listener, tmp_path, "--file", str(file), *REPEAT),
        ):
            assert await ours.receive() == bytes(range(256))

    @each_listener
    @each_transport
    async def test_it_shares_a_bus_with_us(self, transport: str, listener: str, tmp_path: Path) -> None:
        async with (
            sp.Bus0(**REDIAL) as ours,
            self.connected(ours, "bus", transport, listener, tmp_path, "--data", "hello", *REPEAT, "--raw") as process,
        ):
            assert await ours.receive() == b"hello"
            for body in (b"", *BODIES):
                await ours.send(body)
                assert await read_exactly(process, len(body)) == body
        assert not ours.statistics().dropped

    @pytest.mark.parametrize(
        ("form", "shown"), [("--quoted", rb'"a\n\x00\xff"'), ("--hex", rb'"\x61\x0a\x00\xff"'), ("--raw", b"a\n\0\xff")]
    )
    async def test_it_shows_our_bytes_in_every_format(self, form: str, shown: bytes, tmp_path: Path) -> None:
        async with sp.Pub0() as ours, self.connected(ours, "sub", "tcp", OURS, tmp_path, form) as process:
            await ours.wait_for_peers()
            await ours.send(b"a\n\0\xff")
            assert await read_exactly(process, len(shown)) == shown

    async def test_it_filters_what_we_publish_by_its_own_subscriptions(self, tmp_path: Path) -> None:
        async with sp.Pub0() as ours, self.connected(ours, "sub", "tcp", OURS, tmp_path, "--subscribe", "ab", "--raw") as process:
            await ours.wait_for_peers()
            await ours.send_many([b"", b"a", b"b", b"ab1", b"aab", b"ab2"])
            assert await read_exactly(process, 6) == b"ab1ab2"

    @each_listener
    async def test_it_has_its_request_answered_and_ends(self, listener: str, tmp_path: Path) -> None:
        async with (
            sp.Rep0(**REDIAL) as ours,
            self.connected(ours, "req", "tcp", listener, tmp_path, "--data", "question", "--raw") as process,
        ):
            assert await ours.receive() == b"question"
            await ours.send(b"answer")
            assert await read_all(process) == b"answer"
            assert await process.wait() == 0

    @each_transport
    async def test_our_listener_refuses_it_with_the_wrong_protocol_and_says_so(self, transport: str, tmp_path: Path) -> None:
        async with sp.Rep0() as ours:
            events = ours.events()
            async with self.connected(ours, "sub", transport, OURS, tmp_path):
                event = await next_event(events, sp.EventKind.REFUSED)
            assert isinstance(event.error, sp.WrongProtocol)
            assert "wrong protocol: the peer is SUB, expected REQ" in event.reason

    @each_greeting
    async def test_our_dialer_refuses_it_with_the_wrong_protocol_and_says_so(self, transport: str, tmp_path: Path) -> None:
        async with sp.Rep0(**REDIAL) as ours:
            events = ours.events()
            async with self.connected(ours, "sub", transport, "theirs", tmp_path):
                event = await next_event(events, sp.EventKind.DIAL_FAILED, sp.WrongProtocol)
            assert "wrong protocol: the peer is SUB, expected REQ" in event.reason
            assert not ours.pipes

    async def test_it_is_greeted_in_time_at_its_first_attempt(self, tmp_path: Path) -> None:
        # libnanomsg gives its peer one second for that, libnng ten.
        async with sp.Rep0() as ours, self.connected(ours, "req", "tcp", OURS, tmp_path, "--data", "question"):
            assert await ours.receive() == b"question"
            (listener,) = ours.listeners
            statistics = listener.statistics()
            assert (statistics.accepted, statistics.attached, dict(statistics.failures)) == (1, 1, {})

    @pytest.mark.parametrize("role", ["sub", "bus"])
    @each_listener
    async def test_none_of_our_pings_becomes_a_message_of_its(self, role: str, listener: str, tmp_path: Path) -> None:
        kind = {"sub": sp.Pub0, "bus": sp.Bus0}[role]
        async with (
            kind(http=pinging(listener), **REDIAL) as ours,
            self.connected(ours, role, "ws", listener, tmp_path, "--quoted") as process,
        ):
            await ours.wait_for_peers()
            pipes = ours.pipes
            end = trio.current_time() + 60 * PING_INTERVAL
            while trio.current_time() < end:
                await ours.send(b"hello")
                assert await read_exactly(process, 8) == b'"hello"\n'
            assert ours.pipes == pipes
