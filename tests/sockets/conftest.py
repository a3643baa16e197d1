from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import outcome
import pytest
import trio

from sp.sockets.base import Socket
from tests.transports.ends import dial

_numbers = itertools.count()


@pytest.fixture
def name() -> str:
    """An inproc URL of the test's own."""
    return f"inproc://test-{next(_numbers)}"


@pytest.fixture(params=["inproc", "tcp", "tls+tcp", "ipc", "ws", "wss"])
def url(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> str:
    """A URL to listen on, once for each transport."""
    return {
        "inproc": name,
        "tcp": "tcp://127.0.0.1:0",
        "tls+tcp": "tls+tcp://127.0.0.1:0",
        "ipc": f"ipc://{tmp_path}/s",
        "ws": "ws://127.0.0.1:0/s",
        "wss": "wss://127.0.0.1:0/s",
    }[request.param]


async def connect(listening: Socket, *dialing: Socket) -> None:
    """Dial *listening* with each of *dialing*, until both sides have all the pipes."""
    for socket in dialing:
        await dial(socket, listening.url)
    await listening.wait_for_peers(len(dialing))


class Background:
    """A call that runs in a task of its own; ``done`` gives its result or raises its error."""

    def __init__(self, nursery: trio.Nursery, call: Callable[..., Awaitable[object]]) -> None:
        self._outcome: outcome.Outcome[object] | None = None
        self._ended = trio.Event()
        self.scope = trio.CancelScope()
        nursery.start_soon(self._run, call)

    async def _run(self, call: Callable[..., Awaitable[object]]) -> None:
        with self.scope:
            self._outcome = await outcome.acapture(call)
            if isinstance(self._outcome, outcome.Error) and isinstance(self._outcome.error, trio.Cancelled):
                self._outcome.unwrap()
        self._ended.set()

    async def done(self) -> object:
        await self._ended.wait()
        assert self._outcome is not None
        return self._outcome.unwrap()
