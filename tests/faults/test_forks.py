"""What a forked child inherits: neither the addresses nor the peers of its parent."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import sp
from tests.faults.scripts import Script, run_script, start_script
from tests.transports.ends import authority, dial, listen
from tests.transports.wire import expect

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks as POSIX systems do")

_FORKING = """
import ctypes, gc, multiprocessing, os, signal, sys, sp, trio, warnings

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def tell(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # whole lines, although two processes write

def live_on():
    tell("child is ready")
    signal.alarm(60)
    signal.pause()

def clean_up(bus):
    for thing in (*bus.pipes, *bus.listeners, *bus.dialers, bus):
        thing.close()
    try:
        bus.aclose().send(None)
    except StopIteration:
        pass
    else:
        os._exit(1)  # the event loop is the parent's as well
    gc.collect()
    live_on()

def fork(way, bus):
    if way == "multiprocessing":
        child = multiprocessing.get_context("fork").Process(target=live_on)
        child.start()
        return child.pid
    # Of what C code forks, Python knows nothing.
    pid = ctypes.PyDLL(None).fork() if way == "C" else os.fork()
    if not pid:
        try:
            clean_up(bus) if way == "cleaning up" else live_on()
        finally:
            os._exit(2)
    return pid

async def main():
    url, other, way, certificate, ca = sys.argv[1:]
    secure = url.startswith(("tls", "wss"))
    async with sp.Bus0() as bus:
        listener = await bus.listen(url, tls=sp.TLSServerConfig(certificate=certificate) if secure else None)
        tell("url", listener.url)
        await bus.dial(other, tls=sp.TLSClientConfig(ca=ca) if secure else None)
        await bus.wait_for_peers(2)
        tell("child has id", fork(way, bus))
        while order := (await trio.to_thread.run_sync(sys.stdin.readline)).strip():
            if order == "close":
                listener.close()
            elif order == "listen":
                await bus.listen(listener.url, tls=sp.TLSServerConfig(certificate=certificate) if secure else None)
            elif order == "meet":
                await bus.wait_for_peers(3)
            else:
                await bus.send(order.encode())
            tell(order, "done")

trio.run(main)
"""


class Parent:
    """A program that has forked, with a peer that it has dialed and one that has dialed it."""

    def __init__(self, script: Script, url: str, child: int, dialed: sp.Bus0, dialing: sp.Bus0) -> None:
        self.script, self.url, self.child, self.dialed, self.dialing = script, url, child, dialed, dialing

    async def do(self, order: str) -> None:
        await self.script.tell(order)
        await self.script.hear(f"{order} done")


@asynccontextmanager
async def forked(scheme: str, way: str, tmp_path: Path) -> AsyncIterator[Parent]:
    """Start the program, and kill its child at the end."""
    here = {"ipc": f"{tmp_path}/%s", "ws+unix": f"/{tmp_path}/%s:/path", "abstract": f"sp-forks-{os.getpid()}-{tmp_path.name}-%s"}
    url = f"{scheme}://{here.get(scheme, '127.0.0.1:0')}"
    names = [url % name if "%" in url else url for name in ("one", "two")]
    ca, certificate = tmp_path / "ca.pem", tmp_path / "certificate.pem"
    ca.write_bytes(authority().pem)
    certificate.write_bytes(authority().issue("127.0.0.1"))
    with trio.fail_after(30):
        async with sp.Bus0() as dialed, sp.Bus0(redial_max=0.1, redial_min=0.05) as dialing:
            listener = await listen(dialed, names[1])
            async with start_script(_FORKING, names[0], listener.url, way, str(certificate), str(ca)) as script:
                bound = await script.hear_after("url ")
                await dial(dialing, bound)
                child = int(await script.hear_after("child has id "))
                try:
                    await script.hear("child is ready")
                    yield Parent(script, bound, child, dialed, dialing)
                    os.kill(child, 0)  # it has lived until now
                finally:
                    os.kill(child, signal.SIGKILL)


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="abstract names exist on Linux only")
SCHEMES = ["tcp", "tls+tcp", "ws", "wss", "ipc", "ws+unix", pytest.param("abstract", marks=on_linux)]
each_scheme = pytest.mark.parametrize("scheme", SCHEMES)
each_way = pytest.mark.parametrize(
    ("scheme", "way"),
    [*((scheme, "os.fork") for scheme in SCHEMES[:-1]), pytest.param("abstract", "os.fork", marks=on_linux), ("tcp", "multiprocessing")],
)


@pytest.mark.slow
@each_scheme
async def test_a_closed_listener_is_closed_even_if_another_process_holds_a_copy(scheme: str, tmp_path: Path) -> None:
    async with forked(scheme, "C", tmp_path) as parent:
        events = parent.dialing.events()
        await parent.do("close")
        await expect(events, sp.EventKind.DETACHED)
        async with sp.Bus0() as late:
            with pytest.raises(sp.DialError) as caught:
                await dial(late, parent.url)
            assert isinstance(caught.value.__cause__, ConnectionRefusedError | FileNotFoundError)
            if scheme != "abstract":  # such a name is taken as long as any process holds a copy
                await parent.do("listen")
                await dial(late, parent.url)


@pytest.mark.slow
@each_way
async def test_the_peers_of_a_killed_parent_see_its_end_and_its_address_is_free(scheme: str, way: str, tmp_path: Path) -> None:
    async with forked(scheme, way, tmp_path) as parent:
        sides = [parent.dialing, parent.dialed]
        streams = [side.events() for side in sides]
        parent.script.process.kill()
        for events in streams:
            assert isinstance((await expect(events, sp.EventKind.DETACHED)).error, sp.PeerClosed | ConnectionError)
        await parent.script.process.wait()  # it closes one descriptor after the other
        async with sp.Bus0() as restarted:
            await listen(restarted, parent.url)
            await restarted.wait_for_peers()
            await restarted.send(b"back")
            assert await parent.dialing.receive() == b"back"


@pytest.mark.slow
@each_scheme
async def test_a_child_that_closes_all_that_it_inherited_ends_nothing_of_its_parents(scheme: str, tmp_path: Path) -> None:
    async with forked(scheme, "cleaning up", tmp_path) as parent:
        await parent.do("first")
        async with sp.Bus0() as late:
            await dial(late, parent.url)
            await parent.do("meet")
            await parent.do("second")
            assert await late.receive() == b"second"
        for side in (parent.dialing, parent.dialed):
            assert [await side.receive(), await side.receive()] == [b"first", b"second"]
            assert [pipe.error for pipe in side.pipes] == [None]
            await side.send(b"thanks")


_LEAVING = """
import os, sys, sp, trio

async def main():
    async with sp.Bus0(listen="tcp://127.0.0.1:0") as bus, sp.Bus0(dial=bus.url) as other:
        await bus.wait_for_peers()
        await other.wait_for_peers()
        pid = os.fork()
        if not pid:
            {leave}
        with trio.fail_after(60):
            _, status = await trio.to_thread.run_sync(os.waitpid, pid, 0, abandon_on_cancel=True)
            print(os.waitstatus_to_exitcode(status))
            await trio.to_thread.run_sync(print, "threads are heard")
            await other.send(b"x")
            assert await bus.receive() == b"x"

trio.run(main)
print("once")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("leave", "status", "told"),
    [
        ("return", 1, "CRITICAL"),
        ("raise KeyError('mine')", 1, "KeyError: 'mine'"),
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('words')", 1, "words"),
    ],
)
async def test_a_child_that_leaves_its_parents_block_ends_there_and_does_the_parent_no_harm(leave: str, status: int, told: str) -> None:
    with trio.fail_after(60):
        script = await run_script("import logging; logging.basicConfig()\n" + _LEAVING.format(leave=leave), flags=())
    assert script.stdout.decode().splitlines() == [str(status), "threads are heard", "once"]
    assert told in script.stderr.decode()
    assert bool(told) == bool(script.stderr)
