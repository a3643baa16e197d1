"""What both command-line partners must do with us, beyond the matrix.

They take the same options for it.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

import sp
from interop.partners import OURS, REDIAL, each_greeting, each_listener, each_transport, next_event, read_all, read_exactly
from interop.tools import TOOLS, connected

PING_INTERVAL = 0.01


def pinging(listener: str, **options: Any) -> sp.WSServerConfig | sp.WSClientConfig:
    """Return a configuration of ours, for the side that *listener* names, that pings often."""
    return (sp.WSServerConfig if listener == OURS else sp.WSClientConfig)(ping_interval=PING_INTERVAL, ping_timeout=0.3, **options)


class ToolContract:
    """Tests that a program has to pass; a subclass names it."""

    tool: ClassVar[str]

    def connected(
        self, ours: Any, theirs: str, transport: str, listener: str, directory: Path, *options: str
    ) -> AbstractAsyncContextManager[trio.Process]:
        """Run the tool as *theirs*, and connect it with *ours*."""
        return connected(TOOLS[self.tool], ours, theirs, transport, listener, directory, *options)

    @pytest.mark.parametrize(
        ("form", "shown"), [("--quoted", rb'"a\n\x00\xff"'), ("--hex", rb'"\x61\x0a\x00\xff"'), ("--raw", b"a\n\0\xff")]
    )
    async def test_it_shows_our_bytes_in_every_format(self, form: str, shown: bytes, tmp_path: Path) -> None:
        async with sp.Pub0() as ours, self.connected(ours, "Sub0", "tcp", OURS, tmp_path, form) as process:
            await ours.wait_for_peers()
            await ours.send(b"a\n\0\xff")
            assert await read_exactly(process, len(shown)) == shown

    async def test_it_filters_what_we_publish_by_its_own_subscriptions(self, tmp_path: Path) -> None:
        async with sp.Pub0() as ours, self.connected(ours, "Sub0", "tcp", OURS, tmp_path, "--subscribe", "ab", "--raw") as process:
            await ours.wait_for_peers()
            await ours.send_many([b"", b"a", b"b", b"ab1", b"aab", b"ab2"])
            assert await read_exactly(process, 6) == b"ab1ab2"

    @each_listener
    async def test_it_has_its_request_answered_and_ends(self, listener: str, tmp_path: Path) -> None:
        async with (
            sp.Rep0(**REDIAL) as ours,
            self.connected(ours, "Req0", "tcp", listener, tmp_path, "--data", "question", "--raw") as process,
        ):
            assert await ours.receive() == b"question"
            await ours.send(b"answer")
            assert await read_all(process) == b"answer"
            assert await process.wait() == 0

    @each_transport
    async def test_it_finds_us_again_when_we_were_closed_and_came_back(self, transport: str, tmp_path: Path) -> None:
        async with sp.Pub0() as first, self.connected(first, "Sub0", transport, OURS, tmp_path, "--raw") as process:
            await first.wait_for_peers()
            (listener,) = first.listeners
            await first.aclose()
            async with sp.Pub0(listen=listener.url) as second:
                await second.wait_for_peers()
                await second.send(b"again")
                assert await read_exactly(process, 5) == b"again"

    @each_transport
    async def test_our_listener_refuses_it_with_the_wrong_protocol_and_says_so(self, transport: str, tmp_path: Path) -> None:
        async with sp.Rep0() as ours:
            events = ours.events()
            async with self.connected(ours, "Sub0", transport, OURS, tmp_path):
                event = await next_event(events, sp.EventKind.REFUSED)
            assert isinstance(event.error, sp.WrongProtocol)
            assert "wrong protocol: the peer is SUB, expected REQ" in event.reason

    @each_greeting
    async def test_our_dialer_refuses_it_with_the_wrong_protocol_and_says_so(self, transport: str, tmp_path: Path) -> None:
        async with sp.Rep0(**REDIAL) as ours:
            events = ours.events()
            async with self.connected(ours, "Sub0", transport, "theirs", tmp_path):
                event = await next_event(events, sp.EventKind.DIAL_FAILED, sp.WrongProtocol)
            assert "wrong protocol: the peer is SUB, expected REQ" in event.reason
            assert not ours.pipes

    async def test_it_is_greeted_in_time_at_its_first_attempt(self, tmp_path: Path) -> None:
        # libnanomsg gives its peer one second for that, libnng ten.
        async with sp.Rep0() as ours, self.connected(ours, "Req0", "tcp", OURS, tmp_path, "--data", "question"):
            assert await ours.receive() == b"question"
            (listener,) = ours.listeners
            statistics = listener.statistics()
            assert (statistics.accepted, statistics.attached, dict(statistics.failures)) == (1, 1, {})

    @pytest.mark.parametrize(("kind", "theirs"), [(sp.Pub0, "Sub0"), (sp.Bus0, "Bus0")])
    @each_listener
    async def test_none_of_our_pings_becomes_a_message_of_its(self, kind: type[Any], theirs: str, listener: str, tmp_path: Path) -> None:
        async with (
            kind(ws=pinging(listener), **REDIAL) as ours,
            self.connected(ours, theirs, "ws", listener, tmp_path, "--quoted") as process,
        ):
            await ours.wait_for_peers()
            pipes = ours.pipes
            end = trio.current_time() + 60 * PING_INTERVAL
            while trio.current_time() < end:
                await ours.send(b"hello")
                assert await read_exactly(process, 8) == b'"hello"\n'
            assert ours.pipes == pipes
