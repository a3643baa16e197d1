"""Against libnanomsg, as a process: nanocat."""

from __future__ import annotations

import pytest

from interop.tool_contract import ToolContract


@pytest.mark.needs("nanocat")
class TestNanocat(ToolContract):
    tool = "nanocat"
