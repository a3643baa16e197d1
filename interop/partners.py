"""What the tests share: who talks to whom, where, and how a partner is watched and run."""

from __future__ import annotations

import itertools
import shutil
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any, Final

import attrs
import pynng
import pytest
import trio

import sp

PACKAGES: Final[Mapping[str, str]] = {"nngcat": "nng-utils", "nanocat": "nanomsg-utils", "openssl": "openssl"}
"""The partners that are programs, and the Debian packages that bring them."""

LIMIT: Final = 1 << 20
"""The largest message that our sockets take by default, header included."""

REDIAL: Final[Mapping[str, float]] = {"redial_min": 0.01, "redial_max": 0.05}
"""Our dialers wait for nobody longer than this."""

OURS: Final = "ours"
THEIRS: Final = "theirs"

each_transport = pytest.mark.parametrize("transport", ["tcp", "ipc"])
each_listener = pytest.mark.parametrize("listener", [OURS, THEIRS])


@attrs.frozen
class Pair:
    """One of our sockets and its counterpart."""

    ours: type[Any]
    theirs: str
    """The name of pynng's class."""
    turns: tuple[str, ...]
    """Who sends, in which order."""
    header: int = 0
    """Bytes before the body."""

    def __str__(self) -> str:
        return f"{self.ours.__name__}-{self.theirs}"

    def open(self, **options: Any) -> Any:
        """Make our socket."""
        topics = {"topics": b""} if self.ours is sp.Sub0 else {}
        return self.ours(**REDIAL, **topics, **options)

    def open_partner(self, **options: Any) -> pynng.Socket:
        """Make pynng's socket."""
        return open_partner(self.theirs, **options)


PAIRS: Final = (
    Pair(sp.Req0, "Rep0", (OURS, THEIRS), header=4),
    Pair(sp.Rep0, "Req0", (THEIRS, OURS), header=4),
    Pair(sp.Pub0, "Sub0", (OURS,)),
    Pair(sp.Sub0, "Pub0", (THEIRS,)),
    Pair(sp.Bus0, "Bus0", (OURS, THEIRS)),
)


def missing(partner: str) -> str | None:
    """Say in words that the program *partner* is not there; None: it is."""
    if shutil.which(partner) is not None:
        return None
    return f"{partner} is not installed (Debian package {PACKAGES[partner]})"


def address(transport: str, directory: Path) -> str:
    """Return a URL to listen on that nobody else has."""
    return f"ipc://{_unused_path(directory)}" if transport == "ipc" else f"{transport}://127.0.0.1:0"


def fixed_address(transport: str, directory: Path) -> str:
    """Return a URL like ``address``, but with a port: for a program that cannot tell which one it was given."""
    if transport == "ipc":
        return address(transport, directory)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


_numbers = itertools.count()


def _unused_path(directory: Path) -> Path:
    path = directory / f"s{next(_numbers)}"
    assert len(str(path)) < 100, "too long for a socket address"
    return path


async def next_event(events: sp.EventStream, kind: sp.EventKind, error: type[Exception] = Exception) -> sp.Event:
    """Return the next event of *kind*, of those with an error the next one with such an *error*."""
    async for event in events:
        if event.kind is kind and (event.error is None or isinstance(event.error, error)):
            return event
    raise AssertionError(f"the socket was closed before an event {kind.value!r}")


# pynng.


def open_partner(name: str, **options: Any) -> pynng.Socket:
    """Make pynng's socket *name*; it dials again at once, and a SUB is subscribed to everything."""
    if name == "Sub0":
        options.setdefault("topics", b"")
    socket: pynng.Socket = getattr(pynng, name)(reconnect_time_min=10, reconnect_time_max=10, **options)
    return socket


def listen_partner(theirs: pynng.Socket, url: str) -> str:
    """Let *theirs* listen, and return the URL with the port that was really bound."""
    listener = theirs.listen(url)
    scheme = url.partition("://")[0]
    return f"{scheme}://{listener.local_address}" if scheme.endswith("tcp") else url


class Arrivals:
    """Counts the pipes that a pynng socket has ever had, from when its protocol can use them."""

    def __init__(self, theirs: pynng.Socket) -> None:
        self.count = 0
        self._changed = trio.Event()
        token = trio.lowlevel.current_trio_token()
        theirs.add_post_pipe_connect_cb(lambda _: token.run_sync_soon(self._add))

    def _add(self) -> None:
        self.count += 1
        self._changed.set()
        self._changed = trio.Event()

    async def wait(self, n: int = 1) -> None:
        """Wait for the *n*-th pipe."""
        while self.count < n:
            await self._changed.wait()


async def connect(ours: Any, theirs: pynng.Socket, transport: str, listener: str, directory: Path) -> Arrivals:
    """Connect the two, and wait until both know."""
    arrivals = Arrivals(theirs)
    url = address(transport, directory)
    if listener == OURS:
        theirs.dial((await ours.listen(url)).url, block=False)
    else:
        await ours.dial(listen_partner(theirs, url))
    await ours.wait_for_peers()
    await arrivals.wait()
    return arrivals


# Programs.


async def exchange(ours: Any, theirs: pynng.Socket, turns: tuple[str, ...], body: bytes) -> None:
    """Let each side that may send do so, and see that *body* arrives."""
    for turn in turns:
        if turn == OURS:
            await ours.send(body)
            received = await theirs.arecv()
        else:
            await theirs.asend(body)
            received = await ours.receive()
        assert len(received) == len(body)
        assert received == body


def body_of(size: int) -> bytes:
    """Return *size* bytes without a short period, so that a slip is seen."""
    return b"".join(n.to_bytes(4, "big") for n in range(size // 4 + 1))[:size]


@asynccontextmanager
async def running(*command: str, **options: Any) -> AsyncIterator[trio.Process]:
    """Run *command* for as long as the block lasts; *options* are those of ``open_process``."""
    process = await trio.lowlevel.open_process(command, stdout=PIPE, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()
            if process.stdin is not None:
                await process.stdin.aclose()


async def read_exactly(process: trio.Process, size: int) -> bytes:
    """Return the next *size* bytes that *process* writes."""
    data = b""
    while len(data) < size:
        more = await process.stdout.receive_some(size - len(data))
        assert more, f"the program ended after {len(data)} of {size} bytes: {data[:100]!r}"
        data += more
    return data


async def read_all(process: trio.Process) -> bytes:
    """Return what *process* still writes until it ends."""
    return b"".join([data async for data in process.stdout])


# TLS, seen from outside.


class Relay:
    """Stands between a client and a server, and keeps what the server says."""

    def __init__(self, port: int) -> None:
        self.said = b""
        """All that the server has said."""
        self.first_flight = b""
        """What it had said before the client spoke for the second time."""
        self._port = port

    async def serve(self, client: trio.SocketStream) -> None:
        """Pass on what either side says until the client ends."""
        server = await trio.open_tcp_stream("127.0.0.1", self._port)

        async def back() -> None:
            while data := await server.receive_some():
                self.said += data
                await client.send_all(data)

        async with server, client, trio.open_nursery() as nursery:
            await server.send_all(await client.receive_some())
            nursery.start_soon(back)
            data = await client.receive_some()
            self.first_flight = self.said
            while data:
                await server.send_all(data)
                data = await client.receive_some()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def relay(url: str) -> AsyncIterator[tuple[Relay, str]]:
    """A relay to *url*, for one client, and the URL that it listens on."""
    scheme, _, host = url.partition("://")
    between = Relay(int(host.rpartition(":")[2]))
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, between.serve, 0, host="127.0.0.1"))
        yield between, f"{scheme}://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


def records(data: bytes) -> list[tuple[int, int]]:
    """Return type and size of each record of TLS in *data*."""
    found: list[tuple[int, int]] = []
    while data:
        size = int.from_bytes(data[3:5], "big")
        found.append((data[0], size))
        data = data[5 + size :]
    return found
