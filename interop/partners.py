"""What the tests share: the pairs of sockets, their addresses, and how to run and watch a partner."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE
from typing import Any, Final, Literal, TypedDict

import attrs
import pynng
import pytest
import trio
from pynng import TLSConfig

import sp
from tests.tls.authority import Authority

PACKAGES: Final[Mapping[str, str]] = {
    "nngcat": "nng-utils",
    "nanocat": "nanomsg-utils",
    "openssl": "openssl",
    "sslscan": "sslscan",
    "nginx": "nginx-light",
    "haproxy": "haproxy",
    "apache2": "apache2-bin",
    "caddy": "caddy",
    "hitch": "hitch",
    "squid": "squid",
    "stunnel": "stunnel4",
    "traffic_server": "trafficserver",
    "varnishd": "varnish",
    "chromium": "chromium",
    "cc": "gcc libc6-dev",
    "nanomsg/nn.h": "libnanomsg-dev",
}
"""Partners that are programs or C headers, and the Debian packages that have them."""
WHEELS: Final[Mapping[str, str]] = {"nng": "nng-ssl"}
"""Partners that are Python packages and may be missing, with their names on PyPI.

There is no wheel for every machine.
"""

LIMIT: Final = 1 << 20
"""The largest message that our sockets accept by default, header included."""


class Redial(TypedDict):
    """The options of a socket that say how long its dialers wait."""

    redial_min: float
    redial_max: float


REDIAL: Final[Redial] = {"redial_min": 0.01, "redial_max": 0.05}
"""Our dialers never wait longer than this."""

SOON: Final = 3
"""Seconds in which a refusal must come: far fewer than the handshake time of either side."""
LONG: Final = 60
"""Seconds that a survey takes in tests that are not about its end."""
TIMEOUT: Final = 0.5
"""Seconds after which a message counts as lost."""
WINDOW: Final = 64
"""Messages that may be under way at once: fewer than any queue on the way takes."""

Version = Literal["TLSv1.2", "TLSv1.3"]

OURS: Final = "ours"
THEIRS: Final = "theirs"

each_transport = pytest.mark.parametrize("transport", ["tcp", "ipc", "ws"])
each_greeting = pytest.mark.parametrize("transport", ["tcp", "ipc"])
"""The transports where both sides tell their protocol; over ws a listener only refuses."""
each_listener = pytest.mark.parametrize("listener", [OURS, THEIRS])


@attrs.frozen
class Pair:
    """One of our sockets and its counterpart."""

    ours: type[Any]
    theirs: str
    """The name of pynng's class."""
    turns: tuple[str, ...]
    """The sides that send, in order."""
    header: int = 0
    """Bytes before the body."""
    poly: bool = False
    """Whether it is a PAIR with several peers."""

    def __str__(self) -> str:
        return f"{self.ours.__name__}-{self.theirs}{'-poly' if self.poly else ''}"

    def open(self, **options: Any) -> Any:
        """Make our socket."""
        own: dict[str, Any] = {"poly": True} if self.poly else {}
        if self.ours is sp.Sub0:
            own["topics"] = b""
        elif self.ours is sp.Surveyor0:
            own["deadline"] = LONG
        return self.ours(**REDIAL, **own, **options)

    def open_partner(self, **options: Any) -> pynng.Socket:
        """Make pynng's socket."""
        return open_partner(self.theirs, **({"polyamorous": True} if self.poly else {}), **options)

    def partner(self, **options: Any) -> AbstractAsyncContextManager[pynng.Socket]:
        """Pynng's socket, while a block lasts."""
        return closing(self.open_partner(**options))


PAIRS: Final = (
    Pair(sp.Req0, "Rep0", (OURS, THEIRS), header=4),
    Pair(sp.Rep0, "Req0", (THEIRS, OURS), header=4),
    Pair(sp.Pub0, "Sub0", (OURS,)),
    Pair(sp.Sub0, "Pub0", (THEIRS,)),
    Pair(sp.Push0, "Pull0", (OURS,)),
    Pair(sp.Pull0, "Push0", (THEIRS,)),
    Pair(sp.Surveyor0, "Respondent0", (OURS, THEIRS), header=4),
    Pair(sp.Respondent0, "Surveyor0", (THEIRS, OURS), header=4),
    Pair(sp.Bus0, "Bus0", (OURS, THEIRS)),
    Pair(sp.Pair0, "Pair0", (OURS, THEIRS)),
    Pair(sp.Pair1, "Pair1", (OURS, THEIRS), header=4),
    Pair(sp.Pair1, "Pair1", (OURS, THEIRS), header=4, poly=True),
)


def pair_of(ours: type[Any]) -> Pair:
    """Return the pair of our class *ours*, without poly."""
    return next(pair for pair in PAIRS if pair.ours is ours)


STRANGERS: Final = (
    (sp.Req0, "Pub0"),
    (sp.Rep0, "Rep0"),
    (sp.Pub0, "Bus0"),
    (sp.Sub0, "Sub0"),
    (sp.Push0, "Push0"),
    (sp.Pull0, "Pair0"),
    (sp.Surveyor0, "Rep0"),
    (sp.Respondent0, "Pull0"),
    (sp.Bus0, "Req0"),
    (sp.Pair0, "Pair1"),
    (sp.Pair1, "Pair0"),
)
"""Sockets that do not fit each other."""
each_stranger = pytest.mark.parametrize(("kind", "stranger"), STRANGERS, ids=[f"{kind.__name__}-{name}" for kind, name in STRANGERS])


def protocol_of(theirs: str) -> str:
    """Return our name of the protocol of pynng's class *theirs*."""
    return theirs.upper() if theirs.startswith("Pair") else theirs[:-1].upper()


def missing(partner: str) -> str | None:
    """Return why *partner* cannot be used; None: it can."""
    if partner in WHEELS:
        return None if find_spec(partner) is not None else f"{partner} is not installed (PyPI's {WHEELS[partner]})"
    is_there = Path("/usr/include", partner).exists() if partner.endswith(".h") else shutil.which(partner) is not None
    return None if is_there else f"{partner} is not installed (Debian package {PACKAGES[partner]})"


def address(transport: str, directory: Path) -> str:
    """Return a URL to listen on that no other test has."""
    return f"ipc://{_unused_path(directory)}" if transport == "ipc" else f"{transport}://127.0.0.1:0"


def fixed_address(transport: str, directory: Path) -> str:
    """Return a URL like ``address`` with a fixed port, for a program that cannot tell which port it
    got."""
    if transport == "ipc":
        return address(transport, directory)
    return f"{transport}://127.0.0.1:{free_port()}"


def free_port() -> int:
    """Return a free port outside the range that the system chooses from, so that no connection of
    ours takes it.

    Each worker of xdist has its own ports.
    """
    worker, workers = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(20_000 + worker, 32_000, workers)))
            port: int = probe.getsockname()[1]
            return port


def port_of(url: str) -> int:
    """Return the port in *url*, which may have a path."""
    return int(url.partition("://")[2].partition("/")[0].rpartition(":")[2])


_numbers = itertools.count()


def _unused_path(directory: Path) -> Path:
    path = directory / f"s{next(_numbers)}"
    assert len(str(path)) < 100, "too long for a socket address"
    return path


async def next_event(events: sp.EventStream, kind: sp.EventKind, error: type[Exception] = Exception) -> sp.Event:
    """Return the next event of *kind*; with *error*, the next one with such an error."""
    async for event in events:
        if event.kind is kind and (event.error is None or isinstance(event.error, error)):
            return event
    raise AssertionError(f"the socket was closed before an event {kind.value!r}")


# pynng.


def open_partner(name: str, **options: Any) -> pynng.Socket:
    """Make pynng's socket *name*; it dials again at once, and a SUB is subscribed to everything."""
    if name == "Sub0":
        options.setdefault("topics", b"")
    elif name == "Surveyor0":
        options.setdefault("survey_time", LONG * 1000)
    socket: pynng.Socket = getattr(pynng, name)(reconnect_time_min=10, reconnect_time_max=10, **options)
    return socket


@asynccontextmanager
async def closing(*sockets: pynng.Socket) -> AsyncIterator[pynng.Socket]:
    """Keep *sockets* open while a block lasts; yields the first."""
    try:
        yield sockets[0]
    finally:
        # In threads and all at once, since libnng may wait for our side to react to the end.
        async with trio.open_nursery() as nursery:
            for socket in sockets:
                nursery.start_soon(trio.to_thread.run_sync, socket.close)


def partner(name: str, **options: Any) -> AbstractAsyncContextManager[pynng.Socket]:
    """Pynng's socket *name*, while a block lasts."""
    return closing(open_partner(name, **options))


def listen_partner(theirs: pynng.Socket, url: str) -> str:
    """Let *theirs* listen; return the URL with the port that was bound."""
    listener = theirs.listen(url)
    scheme, _, rest = url.partition("://")
    if scheme == "ipc":
        return url
    return f"{scheme}://{listener.local_address}{''.join(rest.partition('/')[1:])}"


class Arrivals:
    """Counts all pipes that a pynng socket has had so far, once its protocol can use them."""

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
    """Connect the two, and wait until both have the pipe."""
    arrivals = Arrivals(theirs)
    url = address(transport, directory)
    if listener == OURS:
        theirs.dial((await ours.listen(url)).url, block=False)
    else:
        await ours.dial(listen_partner(theirs, url))
    await ours.wait_for_peers()
    await arrivals.wait()
    return arrivals


async def exchange(ours: Any, theirs: pynng.Socket, turns: tuple[str, ...], body: bytes) -> None:
    """Let each side that may send *body* do so, and check that it arrives."""
    for turn in turns:
        if turn == OURS:
            await ours.send(body)
            received = await theirs.arecv()
        else:
            await theirs.asend(body)
            received = await ours.receive()
        assert len(received) == len(body)
        assert received == body


async def exchange_again(ours: Any, theirs: pynng.Socket, pair: Pair, body: bytes) -> None:
    """Do as ``exchange``, on a pipe that has replaced another one."""
    if pair.theirs != "Push0":
        await exchange(ours, theirs, pair.turns, body)
    else:
        # libnng may give a message to the pipe that has ended, even when the next one is there.
        # The
        # message is then lost, as it may be.
        await until_received(theirs.asend, ours.receive, body)


async def until_received(send: Callable[[bytes], Awaitable[None]], receive: Callable[[], Awaitable[bytes]], body: bytes) -> None:
    """Send *body* again and again until it is received: it may get lost with a pipe that is ending."""
    received = None
    while received is None:
        await send(body)
        with trio.move_on_after(TIMEOUT):
            received = await receive()
    assert received == body


async def pump(send: Callable[[bytes], Awaitable[None]], receive: Callable[[], Awaitable[bytes]], size: int) -> None:
    """Send *size* messages, at most WINDOW of them under way, and check that they arrive in order."""
    room = trio.Semaphore(WINDOW)

    async def send_all() -> None:
        for n in range(size):
            await room.acquire()
            await send(b"%d" % n)

    received: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        while len(received) < size:
            received.append(await receive())
            room.release()
    assert received == [b"%d" % n for n in range(size)]


@cache
def body_of(size: int) -> bytes:
    """Return *size* bytes that do not repeat soon, so that a shift shows."""
    return b"".join(n.to_bytes(4, "big") for n in range(size // 4 + 1))[:size]


async def answer(ours: sp.Rep0) -> None:
    """Answer every request, until cancelled."""
    async for request in ours.requests():
        await request.reply(request.body.upper())


@asynccontextmanager
async def crowd(ours: sp.Rep0, url: str, size: int, **options: Any) -> AsyncIterator[None]:
    """Have *size* partners dial *ours* at once, and answer all of them."""
    partners = [open_partner("Req0", **options) for _ in range(size)]
    async with closing(*partners):
        for theirs in partners:
            theirs.dial(url, block=False)

        async def ask(n: int) -> None:
            await partners[n].asend(b"question %d" % n)
            assert await partners[n].arecv() == b"QUESTION %d" % n

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, ours)
            async with trio.open_nursery() as asking:
                for n in range(size):
                    asking.start_soon(ask, n)
            nursery.cancel_scope.cancel()
        yield


async def dial_as_crowd(theirs: pynng.Socket, url: str, size: int, **options: Any) -> list[sp.DialerStatistics]:
    """Let *size* sockets of ours dial at once, check that all get answers; return the statistics of
    their dialers."""
    statistics: list[sp.DialerStatistics] = []
    waiting = set(range(size))
    all_answered = trio.Event()

    async def answer_all() -> None:
        for _ in range(size):
            await theirs.asend((await theirs.arecv()).upper())

    async def ask(n: int) -> None:
        async with sp.Req0(**REDIAL, **options) as ours:
            # When many come at once, libnng sometimes drops a connection, whichever side dials.
            dialer = await ours.dial(url, wait=False)
            assert await ours.request(b"question %d" % n) == b"QUESTION %d" % n
            waiting.discard(n)
            if not waiting:
                all_answered.set()
            await all_answered.wait()  # so that all are connected at the same time
            statistics.append(dialer.statistics())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_all)
        for n in range(size):
            nursery.start_soon(ask, n)
    return statistics


async def next_refusal(events: sp.EventStream) -> sp.Event:
    """Return the next event of a refusal.

    On a busy machine libnng now and then gives up a handshake by itself; such events are skipped.
    """
    while True:
        event = await next_event(events, sp.EventKind.REFUSED)
        if not isinstance(event.error, sp.PeerClosed):
            return event


async def refused_by_us(
    scheme: str, dialed: str, *, tls: sp.TLSServerConfig | None = None, tls_config: TLSConfig | None = None
) -> sp.Event:
    """Let a partner dial our listener of *scheme* as *dialed*, in vain; return our event.

    Checks that the partner never sees a pipe.
    """
    async with sp.Rep0(tls=tls) as ours:
        events = ours.events()
        listener = await ours.listen(f"{scheme}://127.0.0.1:0")
        async with partner("Req0", tls_config=tls_config) as theirs:
            arrivals = Arrivals(theirs)
            theirs.dial(f"{dialed}://127.0.0.1:{port_of(listener.url)}", block=False)
            with trio.fail_after(SOON):
                event = await next_refusal(events)
                await next_refusal(events)  # it has seen the end of the first one
            # Before it ends, which may cut the next handshake short.
            statistics = listener.statistics()
        assert not ours.pipes
        assert arrivals.count == 0
        assert (statistics.attached, statistics.tls_handshakes) == (0, {})
        assert set(statistics.failures) - {"PeerClosed"} == {type(event.error).__name__}
        return event


async def refused_by_partner(
    scheme: str, dialed: str, *, tls: sp.TLSClientConfig | None = None, tls_config: TLSConfig | None = None
) -> Exception:
    """Dial a partner's listener of *scheme* as *dialed*, in vain; return the reason that we get."""
    async with partner("Rep0", tls_config=tls_config) as theirs:
        port = port_of(listen_partner(theirs, f"{scheme}://127.0.0.1:0"))
        async with sp.Req0(tls=tls) as ours:
            with trio.fail_after(SOON), pytest.raises(sp.DialError) as caught:
                await ours.dial(f"{dialed}://127.0.0.1:{port}")
            cause = caught.value.__cause__
            assert isinstance(cause, Exception)
            assert str(cause) in str(caught.value)
            assert not ours.pipes
            return cause


# Programs.


@asynccontextmanager
async def running(*command: str, **options: Any) -> AsyncIterator[trio.Process]:
    """Run *command* while the block lasts; *options* are those of ``open_process``."""
    process = await trio.lowlevel.open_process(command, stdout=PIPE, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await output_of(process).aclose()
            if process.stdin is not None:
                await process.stdin.aclose()


def output_of(process: trio.Process) -> trio.abc.ReceiveStream:
    """Return the output of a *process* that :func:`running` has started."""
    assert process.stdout is not None
    return process.stdout


async def read_exactly(process: trio.Process, size: int) -> bytes:
    """Return the next *size* bytes that *process* writes."""
    data = b""
    while len(data) < size:
        more = await output_of(process).receive_some(size - len(data))
        assert more, f"the program ended after {len(data)} of {size} bytes: {data[:100]!r}"
        data += more
    return data


async def read_all(process: trio.Process) -> bytes:
    """Return what *process* still writes until it ends."""
    return b"".join([data async for data in output_of(process)])


# TLS.


def our_server(authority: Authority, *, mutual: bool = False, **options: Any) -> sp.TLSServerConfig:
    return authority.server(client_ca=authority.pem if mutual else None, **options)


def our_client(authority: Authority, *, mutual: bool = False, **options: Any) -> sp.TLSClientConfig:
    return authority.client(certificate=authority.issue("ours.example") if mutual else None, **options)


def _own(pem: bytes | None) -> dict[str, str | None]:
    text = None if pem is None else pem.decode()
    return {"own_cert_string": text, "own_key_string": text}


def their_server(authority: Authority, *, mutual: bool = False) -> TLSConfig:
    trust = {"ca_string": authority.pem.decode(), "auth_mode": TLSConfig.AUTH_MODE_REQUIRED} if mutual else {}
    return TLSConfig(TLSConfig.MODE_SERVER, **_own(authority.issue("localhost", "127.0.0.1")), **trust)


def their_client(authority: Authority, own: bytes | None = None) -> TLSConfig:
    # Without a name mbedTLS fails every handshake.
    return TLSConfig(TLSConfig.MODE_CLIENT, server_name="127.0.0.1", ca_string=authority.pem.decode(), **_own(own))


def tls_ends(listener: str, authority: Authority, *, mutual: bool, **options: Any) -> tuple[Any, TLSConfig]:
    """Return our configuration and the partner's, when *listener* listens; *options* are for ours."""
    if listener == OURS:
        own = authority.issue("theirs.example") if mutual else None
        return our_server(authority, mutual=mutual, **options), their_client(authority, own)
    return our_client(authority, mutual=mutual, **options), their_server(authority, mutual=mutual)


# A look from outside.


class Relay:
    """Stands between a client and a server, and records what the server sends."""

    def __init__(self, port: int) -> None:
        self.said = b""
        """All that the server has sent."""
        self.first_flight = b""
        """What it had sent before the client sent for the second time."""
        self._port = port
        self._heard = trio.Event()

    async def serve(self, client: trio.SocketStream) -> None:
        """Pass on what either side sends until the client ends."""
        server = await trio.open_tcp_stream("127.0.0.1", self._port)

        async def back() -> None:
            while data := await server.receive_some():
                self.said += data
                self._heard.set()
                self._heard = trio.Event()
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

    async def hear(self, words: bytes, n: int = 1) -> None:
        """Wait until the server has sent *words* for the *n*-th time."""
        while self.said.count(words) < n:
            await self._heard.wait()


@asynccontextmanager
async def relay(url: str) -> AsyncIterator[tuple[Relay, str]]:
    """A relay to *url*, for one client, and the URL that it listens on."""
    scheme = url.partition("://")[0]
    between = Relay(port_of(url))
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
