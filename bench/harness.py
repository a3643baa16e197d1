"""What all figures share: processes that measure, runs in turn, and the table."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import platform
import resource
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Self

import trio

Line = Connection
"""Messages between a process and the one that started it."""
Side = Callable[..., Any]
"""Runs in a process: gets a line and arguments; its result is reported last."""
Loop = Callable[..., Any]
"""Runs a side: ``trio.run``, ``on_asyncio`` or ``plainly``."""

_TIMEOUT = 300.0
_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    runs: int
    seconds: float
    quick: bool


# Processes.


class Peer:
    """A side that runs in its own process until the ``with`` block ends."""

    def __init__(self, loop: Loop, side: Side, *arguments: object) -> None:
        self._line, far = _spawn.Pipe()
        self._process = _spawn.Process(target=_main, args=(far, loop, side, arguments), daemon=True)
        self._process.start()
        far.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._line.close()

    def get(self) -> Any:
        """Return what the side tells next.  Raises EOFError if it has failed; stderr says why."""
        if not self._line.poll(_TIMEOUT):
            raise TimeoutError(f"nothing heard for {_TIMEOUT:g} s")
        return self._line.recv()

    def ask(self, *question: object) -> Any:
        """Tell the side *question* and return its answer."""
        self._line.send(question)
        return self.get()


def _main(line: Line, loop: Loop, side: Side, arguments: tuple[object, ...]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    line.send(loop(side, line, *arguments))


def on_asyncio(function: Callable[..., Coroutine[Any, Any, Any]], *arguments: object) -> Any:
    """Run *function* as ``trio.run`` would, on asyncio."""
    return asyncio.run(function(*arguments))


def plainly(function: Callable[..., Any], *arguments: object) -> Any:
    """Call *function*, which is not async."""
    return function(*arguments)


async def hear(line: Line) -> Any:
    """Wait in a trio task for what the other end of *line* tells."""
    await trio.lowlevel.wait_readable(line.fileno())
    return line.recv()


def two_processes(loop: Loop, server: Side, client: Side, *arguments: object) -> Any:
    """Start *server*, which tells its URL, then *client* with that URL; return what the client
    returns."""
    with Peer(loop, server, *arguments) as far, Peer(loop, client, far.get(), *arguments) as near:
        return near.get()


def one_process(server: Side, client: Side, *arguments: object) -> Any:
    """Do the same with both sides, on trio, in one process."""
    with Peer(trio.run, _together, server, client, *arguments) as both:
        return both.get()


async def _together(_: Line, server: Side, client: Side, *arguments: object) -> Any:
    near, far = multiprocessing.Pipe()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server, far, *arguments)
        result = await client(near, await hear(near), *arguments)
        nursery.cancel_scope.cancel()
    return result


# Measuring.


class Meter:
    """Repeats something for some seconds: ``for _ in meter: ...``, then ``meter.rate`` is the rate
    per second.

    A fifth of the time is spent before that, to warm up.
    """

    def __init__(self, seconds: float, block: int = 64) -> None:
        self.rate = 0.0
        self._seconds = seconds
        self._block = block  # repetitions between two looks at the clock

    def __iter__(self) -> Iterator[None]:
        for seconds in (self._seconds / 5, self._seconds):
            count = 0
            start = perf_counter()
            while (passed := perf_counter() - start) < seconds:
                for _ in range(self._block):
                    yield
                count += self._block
        self.rate = count / passed


def in_turn(runs: int, sides: Mapping[str, Callable[[], Any]]) -> dict[str, list[Any]]:
    """Run all *sides* in turn, again and again; return the results of each.

    So whatever disturbs the machine meets all of them alike.
    """
    results: dict[str, list[Any]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, run in sides.items():
            result = run()
            results[name].append(result)
            print(f"  {name}: {f'{result:,.2f}' if isinstance(result, float) else result}", file=sys.stderr)
    return results


# Reporting.


@dataclass(frozen=True)
class Row:
    """One line of the table.

    A goal is about the ratio if there is a peer, otherwise about the value.
    """

    what: str
    value: float | None
    unit: str
    peer: str = ""
    peer_value: float | None = None
    ratio: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def goal(self) -> str:
        """The goal in words."""
        if self.at_least is not None:
            return f">= {self.at_least:,g}"
        return "" if self.at_most is None else f"<= {self.at_most:,g}"

    @property
    def verdict(self) -> str:
        """Whether the goal is met."""
        judged = self.value if self.ratio is None else self.ratio
        if judged is None:
            return ""
        if self.at_least is not None:
            return "met" if judged >= self.at_least else "**not met**"
        if self.at_most is not None:
            return "met" if judged <= self.at_most else "**not met**"
        return ""


def compare(what: str, unit: str, results: Mapping[str, list[float]], **goals: float) -> list[Row]:
    """Return a row that compares the first of *results* with each of the others.

    *goals* has the least ratio to each peer.
    """
    (_, ours), *peers = results.items()
    return [
        Row(what, median(ours), unit, peer, median(theirs), ratio(ours, theirs), at_least=goals.get(peer.replace(" ", "_")))
        for peer, theirs in peers
    ]


def ratio(ours: Iterable[float], theirs: Iterable[float]) -> float:
    """Return the median of the ratios of neighbouring runs: on a noisy machine it is steadier than
    the ratio of the medians."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def heading(plan: Plan) -> str:
    """Return the versions and the machine that were measured with."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("trio-sp", "trio", "pynng", "pyzmq"))
    return (
        f"{_cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}; "
        f"{platform.python_implementation()} {platform.python_version()}, {versions}.  "
        f"Load average {os.getloadavg()[0]:.1f} at the end.  "
        f"Medians of {plan.runs} runs in turn; a ratio is the median of the ratios of neighbouring runs.\n"
    )


def table(rows: Iterable[tuple[str, Row]]) -> str:
    """Return *rows* as Markdown."""
    lines = ["| figure | measured | trio-sp | beside | its value | ratio | goal | |", "|---|---|--:|---|--:|--:|--:|---|"]
    for figure, row in rows:
        ratio_text = "" if row.ratio is None else f"{row.ratio:.2f}"
        value, peer_value = _number(row.value, row.unit), _number(row.peer_value, row.unit)
        cells = (figure, row.what, value, row.peer, peer_value, ratio_text, row.goal, row.verdict)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:,.{0 if abs(value) >= 100 or value == int(value) else 2}f} {unit}".rstrip()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
