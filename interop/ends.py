"""Sockets of either implementation behind one interface, so that a test can put any of them
anywhere in a chain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import pynng
import pytest
import trio

import sp
from interop.partners import (
    LONG,
    REDIAL,
    Arrivals,
    address,
    listen_partner,
    our_client,
    our_server,
    partner,
    running,
    their_client,
    their_server,
)
from interop.tools import NNGCAT, Credentials, Tool, to_dial
from tests.tls.authority import Authority


@attrs.frozen
class Family:
    """The two protocols of a pattern."""

    left: str
    """The class of the side that speaks first; both implementations call it the same."""
    right: str
    answers: bool
    """Whether *right* sends something as well."""

    def __str__(self) -> str:
        return self.left if self.left == self.right else f"{self.left}-{self.right}"


FAMILIES: Final = (
    Family("Req0", "Rep0", answers=True),
    Family("Surveyor0", "Respondent0", answers=True),
    Family("Pub0", "Sub0", answers=False),
    Family("Push0", "Pull0", answers=False),
    Family("Bus0", "Bus0", answers=True),
    Family("Pair0", "Pair0", answers=True),
    Family("Pair1", "Pair1", answers=True),
)
COUNTING: Final = tuple(family for family in FAMILIES if family.left in ("Req0", "Surveyor0", "Pair1"))
"""The patterns whose messages count their hops."""


class End(Protocol):
    """A socket."""

    async def listen(self, transport: str, directory: Path, authority: Authority) -> str: ...
    async def dial(self, url: str, authority: Authority) -> None: ...
    async def wait(self) -> None:
        """Wait for one more pipe than at the last call."""
        ...

    async def send(self, body: bytes) -> None: ...
    async def receive(self) -> bytes: ...


@attrs.define
class OurEnd:
    """One of ours."""

    socket: Any
    _pipes: int = 0

    async def listen(self, transport: str, directory: Path, authority: Authority) -> str:
        tls = our_server(authority) if transport in ("tls+tcp", "wss") else None
        url: str = (await self.socket.listen(address(transport, directory), tls=tls)).url
        return url

    async def dial(self, url: str, authority: Authority) -> None:
        await self.socket.dial(url, tls=our_client(authority) if url.startswith(("tls", "wss")) else None)

    async def wait(self) -> None:
        self._pipes += 1
        await self.socket.wait_for_peers(self._pipes)

    async def send(self, body: bytes) -> None:
        await self.socket.send(body)

    async def receive(self) -> bytes:
        body: bytes = await self.socket.receive()
        return body


@attrs.define
class TheirEnd:
    """One of libnng's."""

    socket: pynng.Socket
    _pipes: int = 0
    _arrivals: Arrivals = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._arrivals = Arrivals(self.socket)

    async def listen(self, transport: str, directory: Path, authority: Authority) -> str:
        if transport in ("tls+tcp", "wss"):
            self.socket.tls_config = their_server(authority)
        return listen_partner(self.socket, address(transport, directory))

    async def dial(self, url: str, authority: Authority) -> None:
        if url.startswith(("tls", "wss")):
            self.socket.tls_config = their_client(authority)
        self.socket.dial(url, block=False)

    async def wait(self) -> None:
        self._pipes += 1
        await self._arrivals.wait(self._pipes)

    async def send(self, body: bytes) -> None:
        await self.socket.asend(body)

    async def receive(self) -> bytes:
        body: bytes = await self.socket.arecv()
        return body


@asynccontextmanager
async def our_end(name: str, **options: Any) -> AsyncIterator[OurEnd]:
    """One of ours, by the name of its class."""
    if name == "Sub0":
        options.setdefault("topics", b"")
    elif name == "Surveyor0":
        options.setdefault("deadline", LONG)
    async with getattr(sp, name)(**REDIAL, **options) as socket:
        yield OurEnd(socket)


@asynccontextmanager
async def our_raw_end(name: str, **options: Any) -> AsyncIterator[OurEnd]:
    """One of ours from ``sp.raw``, by the name of its class."""
    async with getattr(sp.raw, name)(**REDIAL, **options) as socket:
        yield OurEnd(socket)


@asynccontextmanager
async def their_end(name: str, **options: Any) -> AsyncIterator[TheirEnd]:
    """One of libnng's, by the name of pynng's class."""
    async with partner(name, **options) as socket:
        yield TheirEnd(socket)


def end_of(side: str, name: str, **options: Any) -> Any:
    """A socket of ours or of theirs, as *side* says."""
    return (our_end if side == "ours" else their_end)(name, **options)


async def link(listener: End, dialer: End, transport: str, directory: Path, authority: Authority) -> None:
    """Connect the two, and wait until both have the pipe."""
    await dialer.dial(await listener.listen(transport, directory, authority), authority)
    await listener.wait()
    await dialer.wait()


# Devices.


@attrs.frozen
class Device:
    """A running device: the left end talks to *front*, the right end to *back*."""

    front: Any
    back: Any


@asynccontextmanager
async def our_device(family: Family, **options: Any) -> AsyncIterator[Device]:
    """A device of ours; *options* are for its front."""
    async with (
        our_raw_end(family.right, **options) as front,
        our_raw_end(family.left) as back,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(sp.device.device, front.socket, back.socket)
        yield Device(front, back)
        nursery.cancel_scope.cancel()


def open_raw_partner(name: str) -> pynng.Socket:
    """Make a raw socket of libnng, which pynng does not offer."""
    opener = getattr(pynng.lib, f"nng_{name.lower()}_open_raw")
    return pynng.Socket(opener=opener, reconnect_time_min=10, reconnect_time_max=10)


@asynccontextmanager
async def their_device(family: Family, *, ttl: int | None = None) -> AsyncIterator[Device]:
    """A device of libnng; its front has that *ttl*."""
    front, back = open_raw_partner(family.right), open_raw_partner(family.left)
    if ttl is not None:
        front.ttl_max = ttl
    in_thread = partial(trio.to_thread.run_sync, abandon_on_cancel=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, pynng.lib.nng_device, front.socket, back.socket)
        try:
            yield Device(TheirEnd(front), TheirEnd(back))
        finally:
            for socket in (front, back):
                nursery.start_soon(in_thread, socket.close)
            # Once in a thousand times it does not notice that it should end; closing its sockets
            # then hangs too.
            nursery.cancel_scope.deadline = trio.current_time() + 1
            nursery.cancel_scope.shield = True


@asynccontextmanager
async def nanomsg_device(
    program: Path, family: Family, left: OurEnd, right: OurEnd, *transports: str, directory: Path
) -> AsyncIterator[None]:
    """A device of libnanomsg between two of ours."""
    command = [str(program)]
    for name, end, transport in zip((family.right, family.left), (left, right), transports, strict=True):
        url = (await end.socket.listen(address(transport, directory))).url
        command += [name.rstrip("01").lower(), url]
    async with running(*command):
        await left.wait()
        await right.wait()
        yield


@asynccontextmanager
async def tool_end(
    tool: Tool, name: str, device_s: OurEnd, transport: str, directory: Path, *options: str, credentials: Credentials | None = None
) -> AsyncIterator[trio.Process]:
    """A program in the role *name* that has dialed an end of our device."""
    url = (await device_s.socket.listen(address(transport, directory))).url
    if tool is not NNGCAT and name in ("Pub0", "Surveyor0"):
        options = (*options, "--interval", "0.05")
    async with running(tool.program, tool.option(name), *to_dial(url, credentials), *options) as process:
        await device_s.wait()
        yield process


each_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
each_counting_family = pytest.mark.parametrize("family", COUNTING, ids=str)
