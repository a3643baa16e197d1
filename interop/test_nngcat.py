"""Against an older libnng than pynng's (1.5 in Debian 12), as a process: nngcat."""

from __future__ import annotations

import pytest

from interop.tool_contract import ToolContract


@pytest.mark.needs("nngcat")
class TestNngcat(ToolContract):
    tool = "nngcat"
