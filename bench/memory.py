"""What pipes cost a listener in memory, and whether all of it is freed again."""

from __future__ import annotations

import gc
import os
import resource
import socket
import struct
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import trio
import trio.testing

from bench.harness import Line, Peer, Plan, Row, hear, in_turn, plainly
from bench.sides import ANY_PORT, HOST
from sp import Rep0
from sp.protocol_numbers import REQ
from sp.transports.framing import encode_greeting

_KIB = 1024
_SETTLED = 20
"""After so many rounds nothing may grow any more."""


async def _listen(line: Line) -> None:
    """Answer requests.

    When asked for a number of pipes, wait for that many and tell what the process holds.
    """
    async with Rep0(listen=ANY_PORT) as rep, trio.open_nursery() as nursery:
        nursery.start_soon(_echo, rep)
        line.send(int(rep.url.rpartition(":")[2]))
        while True:
            (pipes,) = await hear(line)
            while len(rep.pipes) != pipes:
                await trio.sleep(0.005)
            await trio.testing.wait_all_tasks_blocked()
            line.send(_held())


async def _echo(rep: Rep0) -> None:
    while True:
        await rep.send(await rep.receive())


def _held() -> dict[str, int]:
    gc.collect()
    return {
        "memory": int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "objects": len(gc.get_objects()),
    }


def _dial(line: Line, port: int) -> None:
    """Be as many requesters as asked for, without trio-sp.

    Tells the median time of some round trips of the first and of the last.
    """
    pipes: list[socket.socket] = []
    line.send(None)
    while True:
        wanted, trips = line.recv()
        while len(pipes) > wanted:
            pipes.pop().close()
        while len(pipes) < wanted:
            pipe = socket.create_connection((HOST, port))
            pipe.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pipe.sendall(encode_greeting(REQ))
            pipe.recv(8, socket.MSG_WAITALL)
            pipes.append(pipe)
        line.send(median(_round_trip(pipes[-(number % 2)]) for number in range(trips)) if trips else None)


def _round_trip(pipe: socket.socket) -> float:
    request = struct.pack(">QI", 68, 0x80000001) + bytes(64)
    start = perf_counter()
    pipe.sendall(request)
    reply = pipe.recv(len(request), socket.MSG_WAITALL)
    if reply != request:
        raise AssertionError(f"the reply is {reply!r}")
    return perf_counter() - start


def idle_pipes(plan: Plan) -> list[Row]:
    """Measure a listener's memory for each idle pipe, and whether it still answers."""
    few, many = (200, 1000) if plan.quick else (1000, 5000)
    (runs,) = in_turn(plan.runs, {"trio-sp": lambda: _idle_pipes(few, many)}).values()
    rows = [Row(f"memory a pipe, {number:,} of them", median(run[number] for run in runs), "KiB", at_most=16) for number in (few, many)]
    crowded, alone = [run["crowded"] for run in runs], [run["alone"] for run in runs]
    return [
        *rows,
        Row(
            f"round trip, with {many:,} pipes",
            median(crowded),
            "us",
            "with 1 pipe",
            median(alone),
            median(a / b for a, b in zip(crowded, alone, strict=True)),
        ),
    ]


def _idle_pipes(few: int, many: int) -> dict[Any, float]:
    with Peer(trio.run, _listen) as listener, Peer(plainly, _dial, listener.get()) as dialers:
        dialers.get()
        result: dict[Any, float] = {"alone": round(1e6 * dialers.ask(1, 500))}
        before = listener.ask(1)["memory"]
        for number in (few, many):
            dialers.ask(number, 0)
            result[number] = round((listener.ask(number)["memory"] - before) / (number - 1) / _KIB, 2)
        result["crowded"] = round(1e6 * dialers.ask(many, 500))
        return result


def churn(plan: Plan) -> list[Row]:
    """Attach and detach pipes in rounds; after the first rounds nothing of them may stay behind."""
    rounds, pipes = (30 if plan.quick else 100), 100
    with Peer(trio.run, _listen) as listener, Peer(plainly, _dial, listener.get()) as dialers:
        dialers.get()
        held: list[dict[str, int]] = []
        for _ in range(rounds):
            dialers.ask(pipes, 2)
            listener.ask(pipes)
            dialers.ask(0, 0)
            held.append(listener.ask(0))
    settled, last = held[_SETTLED - 1], held[-1]
    what = f"after {rounds * pipes:,} pipes against {_SETTLED * pipes:,}"
    return [
        Row(
            f"{name} {what}",
            last[name] / unit_size,
            unit,
            f"after {_SETTLED * pipes:,}",
            settled[name] / unit_size,
            last[name] / settled[name],
            at_most=limit,
        )
        for name, unit, unit_size, limit in (
            ("memory", "MiB", 1 << 20, 1.02),
            ("descriptors", "", 1, 1.0),
            ("tasks", "", 1, 1.0),
            ("objects", "", 1, 1.001),
        )
    ]
