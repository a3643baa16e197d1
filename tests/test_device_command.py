"""``python -m sp.device``, as a process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE

import pytest
import trio

import sp
from tests.tls.authority import Authority

pytestmark = pytest.mark.slow

_ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(sp.__file__).parent.parent), "PYTHONDONTWRITEBYTECODE": "1"}
_COMMAND = (sys.executable, "-W", "error", "-m", "sp.device")


@asynccontextmanager
async def running(*arguments: str, ends: int = 2, last_words: str = "") -> AsyncIterator[list[str]]:
    """Run the command; yield the URLs that it prints.

    When it is asked to end, it must end well, with *last_words*.
    """
    process = await trio.lowlevel.open_process([*_COMMAND, *arguments], stdout=PIPE, stderr=PIPE, env=_ENVIRONMENT)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        said = b""
        with trio.fail_after(20):
            while said.count(b"\n") < ends:
                more = await process.stdout.receive_some()
                assert more, (await process.stderr.receive_some()).decode()
                said += more
        yield [line.partition(" ")[2] for line in said.decode().splitlines()]
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(10):
            assert await process.wait() == 0
            last = await process.stderr.receive_some()
            assert last.decode().endswith(last_words) if last_words else not last
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()
            await process.stderr.aclose()


async def refused(*arguments: str) -> str:
    """Run the command, which cannot run, and return what it says on stderr."""
    process = await trio.run_process([*_COMMAND, *arguments], capture_stdout=True, capture_stderr=True, check=False, env=_ENVIRONMENT)
    assert process.returncode != 0
    text: str = process.stderr.decode()
    assert "Traceback" not in text
    return text


async def test_requests_pass_from_a_verified_websocket_to_a_unix_socket(tmp_path: Path) -> None:
    authority = Authority()
    for name, pem in (("server.pem", authority.issue("localhost", "127.0.0.1")), ("ca.pem", authority.pem)):
        (tmp_path / name).write_bytes(pem)
    front = ("--front", "wss://127.0.0.1:0/ask", "--certificate", str(tmp_path / "server.pem"), "--origin", "https://app.example")
    async with (
        running("rep", *front, "--back-listen", f"ipc://{tmp_path}/back") as (outside, inside),
        sp.Req0(tls=sp.TLSClientConfig(ca=str(tmp_path / "ca.pem"))) as req,
        sp.Rep0() as rep,
    ):
        assert inside == f"ipc://{tmp_path}/back"
        with trio.fail_after(10):
            await rep.dial(inside)
            await req.dial(outside)
            await req.send(b"question")
            assert await rep.receive() == b"question"
            await rep.send(b"answer")
            assert await req.receive() == b"answer"


async def test_it_dials_on_both_sides_and_waits_for_peers_that_are_not_there_yet(tmp_path: Path) -> None:
    front, back = f"ipc://{tmp_path}/in", f"ipc://{tmp_path}/out"
    arguments = ("pull", "--front-dial", front, "--back", back, "--front", "tcp://127.0.0.1:0")
    async with sp.Push0(listen=front) as push, sp.Pull0() as pull, running(*arguments, ends=1):
        with trio.fail_after(10):
            await push.send(b"work")
            await pull.listen(back)
            assert await pull.receive() == b"work"


async def test_what_it_takes_to_its_grave_is_said_in_the_end() -> None:
    said = "front: 3 messages were received and not passed on\n"
    arguments = ("pull", "--front", "tcp://127.0.0.1:0", "--back", "inproc://nobody")
    async with running(*arguments, ends=1, last_words=said) as (url,), sp.Push0() as push:
        with trio.fail_after(10):
            await push.dial(url)
            await push.send_many([b"1", b"2", b"3"])
            await push.aclose()


async def test_without_a_back_it_reflects_a_bus() -> None:
    async with running("bus", "--front", "tcp://127.0.0.1:0", ends=1) as (url,), sp.Bus0() as one, sp.Bus0() as two, sp.Bus0() as three:
        with trio.fail_after(10):
            for bus in (one, two, three):
                await bus.dial(url)
            received = 0
            while received < 2:  # the others may not be attached at its end yet
                await one.send(b"hello")
                received = 0
                for bus in (two, three):
                    with trio.move_on_after(0.5):
                        assert await bus.receive() == b"hello"
                        received += 1
            with pytest.raises(trio.WouldBlock):
                one.receive_nowait()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "the front needs a URL: give --front or --front-dial"),
        (("star", "--front", "inproc://x"), "invalid choice: 'star'"),
        (("--front", "tcp://127.0.0.1:x", "--back", "inproc://x"), "'tcp://127.0.0.1:x': 'x' is not a port"),
        (("--front", "tls+tcp://127.0.0.1:0", "--back", "inproc://x"), "a server needs a certificate"),
        (("--front", "tcp://127.0.0.1:0"), "the back needs a URL: give --back or --back-listen; only bus, pair0, pair1"),
        (
            ("--front", "tcp://127.0.0.1:0", "--back", "inproc://x", "--certificate", "/nowhere.pem"),
            "--certificate was given, but nothing uses it",
        ),
        (
            ("--front", "tcp://127.0.0.1:0", "--back", "tls+tcp://x:1", "--client-ca", "/nowhere.pem"),
            "--client-ca was given, but nothing uses it",
        ),
        (("push", "--front", "tcp://127.0.0.1:0", "--back", "inproc://x", "--ttl", "3"), "--ttl was given, but nothing uses it"),
        (("--front", "tcp://127.0.0.1:0", "--back", "inproc://x", "--ttl", "0"), "ttl must be from 1 to 255, not 0"),
        (("--front", "ipc:///nowhere/at/all", "--back", "inproc://x"), "/nowhere/at/all"),
    ],
)
async def test_what_cannot_work_is_said_in_a_line(arguments: tuple[str, ...], words: str) -> None:
    text = await refused(*arguments)
    assert words in text
    assert "python -m sp.device" in text
