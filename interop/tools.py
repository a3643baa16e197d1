"""The command-line partners, nngcat and nanocat: how to run them, and the peculiarities of each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trio

import sp.protocol_numbers
from interop.partners import OURS, address, fixed_address, our_client, our_server, running
from tests.tls.authority import Authority

GREETING: Final = b"\0SP\0%b\0\0"


@attrs.frozen
class Credentials:
    """The files that a program needs for TLS, and the authority behind them."""

    authority: Authority
    ca: Path
    own: Path

    def ours(self, listener: str, **options: Any) -> Any:
        """Return our configuration, depending on who listens."""
        return (our_server if listener == OURS else our_client)(self.authority, **options)


def credentials_in(directory: Path, authority: Authority) -> Credentials:
    """Write the files that a program needs for TLS into *directory*."""
    credentials = Credentials(authority, directory / "ca.pem", directory / "own.pem")
    credentials.ca.write_bytes(authority.pem)
    credentials.own.write_bytes(authority.issue("localhost", "127.0.0.1"))
    return credentials


@attrs.frozen
class Tool:
    """One of the two.  They take the same options for what both can do."""

    program: str
    dials_first: bool
    """Whether it waits until its dialers have a pipe before it sends anything: nngcat does."""
    names: dict[str, str]
    """Its names for roles that are not the obvious ones."""

    def option(self, theirs: str) -> str:
        """Return the option for the role that pynng calls *theirs*."""
        return f"--{self.names.get(theirs, theirs.removesuffix('0').lower())}"


NNGCAT: Final = Tool("nngcat", dials_first=True, names={"Pair0": "pair0"})
NANOCAT: Final = Tool("nanocat", dials_first=False, names={})
TOOLS: Final = {tool.program: tool for tool in (NNGCAT, NANOCAT)}
each_tool = pytest.mark.parametrize("tool", [pytest.param(tool, id=name, marks=pytest.mark.needs(name)) for name, tool in TOOLS.items()])


def sending(body: bytes, directory: Path) -> tuple[str, ...]:
    """Return the options that make a program send *body*."""
    if not body:
        return ("--data", "")  # nanocat treats an empty file as no file
    file = directory / f"body{len(body)}"
    file.write_bytes(body)
    return ("--file", str(file))


def to_dial(url: str, credentials: Credentials | None = None) -> tuple[str, ...]:
    """Return the options that make a program dial *url*, which is ours."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("tls+tcp", "wss"):
        return ("--connect", url)
    assert credentials is not None
    # The mbedTLS of Debian's libnng 1.5 checks only names in certificates, no addresses.
    return ("--connect", f"{scheme}4://{rest.replace('127.0.0.1', 'localhost')}", "--cacert", str(credentials.ca))


def to_listen(url: str, credentials: Credentials | None = None) -> tuple[str, ...]:
    """Return the options that make a program listen on *url*."""
    if not url.startswith(("tls+tcp:", "wss:")):
        return ("--bind", url)
    assert credentials is not None
    return ("--bind", url, "--cert", str(credentials.own))


async def meet(ours: Any, transport: str, listener: str, directory: Path, credentials: Credentials | None = None) -> tuple[str, ...]:
    """Let *ours* listen, or dial an address without a listener; return the program's options
    for the other side."""
    if listener == OURS:
        return to_dial((await ours.listen(address(transport, directory))).url, credentials)
    url = fixed_address(transport, directory)
    await ours.dial(url, wait=False)
    return to_listen(url, credentials)


def number_of(ours: type[Any]) -> int:
    """Return the protocol number of one of our sockets."""
    number: int = getattr(sp.protocol_numbers, ours.__name__.upper() if ours.__name__.startswith("Pair") else ours.__name__[:-1].upper())
    return number


class Gate:
    """A peer that greets on demand, so a program that dials it sends nothing before
    that."""

    def __init__(self, number: int) -> None:
        self._greeting = GREETING % number.to_bytes(2, "big")
        self._opened = trio.Event()

    def open(self) -> None:
        """Let all peers through that wait."""
        self._opened.set()

    async def serve(self, client: trio.SocketStream) -> None:
        """Let one through."""
        async with client:
            await self._opened.wait()
            await client.send_all(self._greeting)
            async for _ in client:
                pass


@asynccontextmanager
async def gate(number: int) -> AsyncIterator[tuple[Gate, tuple[str, ...]]]:
    """A gate that greets as protocol *number*, and the options that make a program wait for it."""
    closed = Gate(number)
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, closed.serve, 0, host="127.0.0.1"))
        yield closed, ("--connect", f"tcp://127.0.0.1:{listener.socket.getsockname()[1]}")
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(
    tool: Tool, ours: Any, theirs: str, transport: str, listener: str, directory: Path, *options: str
) -> AsyncIterator[trio.Process]:
    """Run *tool* as *theirs*, and connect it with *ours*."""
    where = await meet(ours, transport, listener, directory)
    async with running(tool.program, tool.option(theirs), *where, *options) as process:
        yield process
