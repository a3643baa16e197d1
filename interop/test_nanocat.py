"""Against libnanomsg, as a process: nanocat."""

from __future__ import annotations

from pathlib import Path

import pytest

import sp
from interop.partners import REDIAL, each_listener, next_event, read_exactly
from interop.tool_contract import ToolContract, pinging


@pytest.mark.needs("nanocat")
class TestNanocat(ToolContract):
    tool = "nanocat"

    @each_listener
    async def test_if_we_ping_everyone_each_ping_becomes_a_message_of_its_and_none_is_answered(self, listener: str, tmp_path: Path) -> None:
        async with (
            sp.Pub0(ws=pinging(listener, ping_everyone=True), **REDIAL) as ours,
            self.connected(ours, "Sub0", "ws", listener, tmp_path, "--quoted") as process,
        ):
            events = ours.events()
            assert await read_exactly(process, 9) == b'""\n' * 3
            event = await next_event(events, sp.EventKind.DETACHED)
            assert isinstance(event.error, sp.PeerSilent)

    async def test_over_ws_our_dialer_shows_how_it_refuses_the_wrong_protocol(self, tmp_path: Path) -> None:
        # It leaves out the empty line after the headers, and does not hang up.
        async with sp.Rep0(handshake_timeout=0.3, **REDIAL) as ours:
            events = ours.events()
            async with self.connected(ours, "Sub0", "ws", "theirs", tmp_path):
                event = await next_event(events, sp.EventKind.DIAL_FAILED, sp.GreetingError)
            assert "400 Incompatible Socket Type" in event.reason
            assert not ours.pipes
