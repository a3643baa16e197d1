"""Ten thousand connections that come to nothing."""

from __future__ import annotations

import gc
import os
import random
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

import sp
from tests.transports.wire import REQ, greeting, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")

GREETING = greeting(REQ)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


def _nothing(_: random.Random) -> bytes:
    return b""


def _noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 64))


def _half_a_greeting(rng: random.Random) -> bytes:
    return GREETING[: rng.randrange(1, 8)]


def _half_a_frame(rng: random.Random) -> bytes:
    return GREETING + b"\0\0\0\0\0\0\0\x10"[: rng.randrange(1, 8)]


def _noise_after_the_greeting(rng: random.Random) -> bytes:
    return GREETING + rng.randbytes(rng.randrange(1, 64))


_KINDS: list[Callable[[random.Random], bytes]] = [_nothing, _noise, _half_a_greeting, _half_a_frame, _noise_after_the_greeting]


def attack(rng: random.Random, family: int, address: tuple[str, int] | str) -> None:
    """Come, say something wrong, and go: in order or, every third time, with a reset."""
    with socket.socket(family) as sock:
        sock.connect(address)
        sock.send(rng.choice(_KINDS)(rng))
        if rng.randrange(3) == 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "count"), [("tcp", 10_000), ("ipc", 2_500)])
async def test_after_thousands_of_broken_connections_a_good_client_is_served_at_once_and_nothing_is_left(
    scheme: str, count: int, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    with trio.fail_after(60):
        async with sp.Rep0(listen="tcp://127.0.0.1:0" if scheme == "tcp" else f"ipc://{tmp_path}/s") as rep:
            (listener,) = rep.listeners
            place = listener.url.partition("://")[2]
            host, _, port = place.rpartition(":")
            family, address = (socket.AF_INET, (host, int(port))) if scheme == "tcp" else (socket.AF_UNIX, place)

            await trio.testing.wait_all_tasks_blocked(0.01)
            gc.collect()
            descriptors_before, tasks_before = descriptors(), tasks()
            for number in range(count):
                attack(rng, family, address)
                if number % 50 == 0:  # less than a backlog
                    await until(lambda number=number: listener.statistics().accepted >= number)

            async with sp.Req0() as req:
                with trio.fail_after(1):
                    await req.dial(listener.url)
                    await req.send(b"at last")
                    while await rep.receive() != b"at last":
                        pass
                    await rep.send(b"welcome")
                    assert await req.receive() == b"welcome"

            await until(lambda: not rep.pipes and not listener.statistics().in_handshake)
            await trio.testing.wait_all_tasks_blocked(0.01)
            gc.collect()
            assert (descriptors(), tasks()) == (descriptors_before, tasks_before)
            figures = listener.statistics()
            assert figures.accepted == count + 1
            assert figures.attached + sum(figures.failures.values()) == count + 1
