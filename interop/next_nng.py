"""Partners with nng 2.0, which is not released yet: PyPI's nng-ssl has a development version.

Each runs in its own process, since pynng's libnng is in ours.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from subprocess import PIPE

import attrs
import trio

from interop.partners import read_exactly, running
from interop.tools import Credentials


def version() -> str:
    """Return the version of the library; empty: it is not installed."""
    command = [sys.executable, "-c", "import nng; print(nng.version())"]
    return subprocess.run(command, stdout=PIPE, stderr=subprocess.DEVNULL, check=False).stdout.decode().strip()


@attrs.frozen
class NextSocket:
    """A socket of nng 2.0, with pynng's names where both have the same."""

    process: trio.Process

    async def listen(self, url: str, credentials: Credentials | None = None) -> str:
        """Listen, and return the URL with the port that was really bound."""
        own = None if credentials is None else str(credentials.own)
        return (await self._do(b"L", json.dumps({"url": url, "own": own}).encode())).decode()

    async def dial(self, url: str, credentials: Credentials | None = None) -> None:
        """Dial in the background."""
        ca = None if credentials is None else str(credentials.ca)
        await self._do(b"D", json.dumps({"url": url, "ca": ca}).encode())

    async def wait(self, n: int = 1) -> None:
        """Wait for the *n*-th pipe."""
        await self._do(b"W", str(n).encode())

    async def asend(self, body: bytes) -> None:
        await self._do(b"S", body)

    async def arecv(self) -> bytes:
        return await self._do(b"R")

    async def _do(self, verb: bytes, argument: bytes = b"") -> bytes:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(struct.pack(">I", 1 + len(argument)) + verb + argument)
        (size,) = struct.unpack(">I", await read_exactly(self.process, 4))
        return await read_exactly(self.process, size)


@asynccontextmanager
async def next_partner(name: str) -> AsyncIterator[NextSocket]:
    """The socket that pynng calls *name*, while a block lasts."""
    async with running(sys.executable, "-m", "interop.next_nng_program", name, stdin=PIPE) as process:
        yield NextSocket(process)
