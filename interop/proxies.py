"""Starts proxies with the files that the guide shows; only ports, paths and times are replaced."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Final

import pytest
import trio

from interop.partners import free_port
from interop.proxy_programs import PROGRAMS

FILES: Final = Path(__file__).parents[1] / "examples" / "proxies"
STREAM_MODULE: Final = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
_TAKEN: Final = ("ddress already in use", "cannot bind socket")
_TRIES: Final = 3


class Proxy:
    """A proxy that runs."""

    def __init__(self, name: str, port: int, process: trio.Process) -> None:
        self.name = name
        self.port = port
        self.log = ""
        """All that it has said."""
        self._process = process
        self._spoke = trio.Event()
        self._ended = False

    async def listen_to(self) -> None:
        """Read what it says until it ends."""
        assert self._process.stdout is not None
        async with self._process.stdout as stdout:
            async for data in stdout:
                self.log += data.decode(errors="replace")
                self._wake()
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        self._spoke.set()
        self._spoke = trio.Event()

    async def says(self, words: str, since: int = 0) -> None:
        """Wait until it says *words*, behind place *since* of its log."""
        assert await self._said(words, since), f"{self.name} has ended:\n{self.log}"

    async def starts(self) -> bool:
        """Wait until it listens.  False: another program has taken the port meanwhile."""
        ready = await self._said(PROGRAMS[self.name].ready, 0)
        taken = any(words in self.log for words in _TAKEN)
        assert ready or taken, f"{self.name} does not start:\n{self.log}"
        return not taken

    async def _said(self, words: str, since: int) -> bool:
        while self.log.find(words, since) < 0:
            if self._ended:
                return False
            await self._spoke.wait()
        return True


def missing_for(file: str) -> str | None:
    """Say in words what *file* needs and is not there, beyond the program itself; None: nothing."""
    if "ngx_stream_module" in (FILES / file).read_text() and not STREAM_MODULE.exists():
        return f"{STREAM_MODULE} is not there (Debian package libnginx-mod-stream)"
    return None


def need(file: str) -> None:
    """Skip the test where *file* cannot be used, or fail it if nothing may be missing."""
    reason = missing_for(file)
    if reason is None:
        return
    if os.environ.get("SP_REQUIRE_PARTNERS") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def name_of(file: str) -> str:
    """Return the program that *file* is for."""
    return file.partition("-")[0]


def _command(file: str, directory: Path, port: int, changes: Mapping[str, str]) -> Sequence[str]:
    """Write the file for this run, and others that belong to it; return the command that uses it."""
    name = name_of(file)
    program = PROGRAMS[name]
    path = shutil.which(name)
    assert path is not None
    names = [part.name for part in FILES.glob(f"{name}-*")] if name == "traffic_server" else [file]
    texts = {name: (FILES / name).read_text() for name in names}
    mark, own = program.port
    for old, new in {mark: own.format(port), **changes}.items():
        assert any(old in text for text in texts.values()), f"{file} has no {old!r}"
        texts = {name: text.replace(old, new) for name, text in texts.items()}
    for name, text in texts.items():
        (directory / name).write_text(text.replace("/etc/sp", str(directory)).replace("/var/log/nginx", str(directory)))
    return program.command(path, directory / file, port)


@asynccontextmanager
async def proxy(file: str, directory: Path, changes: Mapping[str, str]) -> AsyncIterator[Proxy]:
    """Run the proxy that *file* is for, with *changes* made to it, for as long as the block lasts.

    *directory* has what the file looks for in ``/etc/sp``.
    """
    async with trio.open_nursery() as nursery:
        for _ in range(_TRIES):
            port = free_port()
            command = _command(file, directory, port, changes)
            process = await trio.lowlevel.open_process(command, stdout=PIPE, stderr=STDOUT, start_new_session=True)
            running = Proxy(name_of(file), port, process)
            nursery.start_soon(running.listen_to)
            try:
                if await running.starts():
                    yield running
                    return
            finally:
                with trio.CancelScope(shield=True):
                    await _end(process)
        raise AssertionError("no port stays free for long enough")


async def _end(process: trio.Process) -> None:
    """End *process* and its workers, which keep our end of their output open as long as they live."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with trio.move_on_after(5):
            await process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended in order, and so have its workers
    await process.wait()


@asynccontextmanager
async def client_at(host: str, port: int) -> AsyncIterator[int]:
    """A port that leads to *port* of this machine, whose connections come from *host*: so that a
    client has an address of its own.
    """

    async def serve(client: trio.SocketStream) -> None:
        sock = trio.socket.socket()
        await sock.bind((host, 0))
        await sock.connect(("127.0.0.1", port))
        server = trio.SocketStream(sock)
        async with client, server, trio.open_nursery() as passing:
            passing.start_soon(_pass_on, client, server)
            passing.start_soon(_pass_on, server, client)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def _pass_on(source: trio.SocketStream, target: trio.SocketStream) -> None:
    try:
        async for data in source:
            await target.send_all(data)
        await target.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        await target.aclose()
