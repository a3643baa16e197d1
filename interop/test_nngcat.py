"""Against an older libnng than pynng's (1.5 in Debian 12), as a process: nngcat."""

from __future__ import annotations

from pathlib import Path

import pytest

import sp
from interop.partners import REDIAL, next_event
from interop.tool_contract import ToolContract


@pytest.mark.needs("nngcat")
class TestNngcat(ToolContract):
    tool = "nngcat"

    async def test_over_ws_our_dialer_shows_how_it_refuses_the_wrong_protocol(self, tmp_path: Path) -> None:
        async with sp.Rep0(**REDIAL) as ours:
            events = ours.events()
            async with self.connected(ours, "Sub0", "ws", "theirs", tmp_path):
                event = await next_event(events, sp.EventKind.DIAL_FAILED, sp.UpgradeRefused)
            assert "the server answered 400" in event.reason
            assert not ours.pipes
