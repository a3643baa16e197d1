"""Programs that run in a process of their own, because they fork, are interrupted, or run out of
something.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

import sp

# A child inherits what its parent ignores: behind nohup, or an & of a shell script, that is Ctrl-C.
_HEEDS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def _command(source: str, *arguments: str, flags: tuple[str, ...] = ("-W", "error")) -> list[str]:
    return [sys.executable, *flags, "-c", _HEEDS_CTRL_C + source, *arguments]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(sp.__file__).parent.parent), "PYTHONDONTWRITEBYTECODE": "1"}


async def run_script(source: str, *arguments: str, flags: tuple[str, ...] = ("-W", "error")) -> subprocess.CompletedProcess[bytes]:
    """Run *source* to its end; the caller sets the time limit."""
    return await trio.run_process(
        _command(source, *arguments, flags=flags), capture_stdout=True, capture_stderr=True, check=False, env=_environment()
    )


class Script:
    """A program that runs beside the test."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._heard = b""

    async def hear(self, line: str) -> None:
        """Wait until it prints *line*."""
        await self._hear(re.escape(line))

    async def hear_after(self, start: str) -> str:
        """Wait until it prints *start* and something more; return that, to the end of the line."""
        return str((await self._hear(f"{re.escape(start)}(.*)"))[1])

    async def _hear(self, pattern: str) -> re.Match[str]:
        assert self.process.stdout is not None
        while (found := re.search(f"{pattern}\n", self._heard.decode())) is None:
            data = await self.process.stdout.receive_some()
            assert data, f"it ended after {self._heard!r}, expected {pattern!r}"
            self._heard += data
        return found

    async def tell(self, line: str) -> None:
        """Write *line* to its standard input."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(line.encode() + b"\n")


@asynccontextmanager
async def start_script(source: str, *arguments: str) -> AsyncIterator[Script]:
    """Run *source* beside the block, and kill it at its end."""
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                _command(source, *arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                check=False,
                env=_environment(),
            )
        )
        assert process.stdout is not None
        assert process.stdin is not None
        async with process.stdout, process.stdin:
            yield Script(process)
        nursery.cancel_scope.cancel()
