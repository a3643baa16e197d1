"""The cost of a call while many others wait, and what a peer that does not read costs the others."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import trio

from bench.harness import Line, Peer, Plan, Row, hear, in_turn, ratio, two_processes
from bench.sides import ANY_PORT
from sp import Pull0, Push0, Rep0, Req0, Request
from sp.protocol_numbers import REQ
from sp.transports.framing import encode_greeting

_MANY = 8_000
_SMALL_BODY = bytes(20)
_LARGE = 10_000
_SETTLED = 0.5


def at_once(plan: Plan) -> list[Row]:
    """Measure calls that are made at once: the cost of one must not depend on their number."""
    rows: list[Row] = []
    most = 20_000 if plan.quick else 100_000
    for what, measure in (
        ("request()", partial(two_processes, trio.run, _serve, _request_at_once)),
        ("Push0.send, before there is a peer", partial(two_processes, trio.run, _pull_late, _push_at_once)),
    ):
        counts = (1_000, _MANY, most)
        results = in_turn(plan.runs, {f"{count:,} at once: {what}": partial(_seconds, measure, count) for count in counts})
        few, many, most_ = results.values()
        rows += [
            Row(f"{_MANY:,} calls at once: {what}", median(many), "s", at_most=0.5),
            _per_call(what, _MANY, many, 1_000, few),
            _per_call(what, most, most_, _MANY, many),
        ]
    return rows


def _per_call(what: str, count: int, mine: list[float], other: int, theirs: list[float]) -> Row:
    a, b = [1e6 * seconds / count for seconds in mine], [1e6 * seconds / other for seconds in theirs]
    return Row(f"a call of {count:,}: {what}", median(a), "us", f"of {other:,}", median(b), ratio(a, b), at_most=1.5)


def _seconds(measure: Callable[[int], object], count: int) -> float:
    return float(str(measure(count)))


async def _serve(line: Line, *_: object) -> None:
    """Answer each request in its own task, as the guide does."""
    async with Rep0(listen=ANY_PORT) as rep, trio.open_nursery() as nursery:
        line.send(rep.url)
        nursery.start_soon(_tell_memory, line)
        async for request in rep.requests():
            nursery.start_soon(_answer, request)


async def _answer(request: Request) -> None:
    await request.reply(bytes(_LARGE) if request.body == _SMALL_BODY else b"")


async def _tell_memory(line: Line) -> None:
    while True:
        await hear(line)
        line.send(_memory())


def _memory() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(row.split()[1] for row in status.splitlines() if row.startswith("VmRSS"))) / 1024


async def _request_at_once(_: Line, url: str, count: int) -> float:
    async with Req0(dial=url) as req:
        await req.wait_for_peers()
        start = perf_counter()
        async with trio.open_nursery() as nursery:
            for _number in range(count):
                nursery.start_soon(req.request, b"")
        return perf_counter() - start


async def _pull_late(line: Line, count: int) -> None:
    """Receive *count* messages from a PUSH that began to send before we connected."""
    async with Pull0(listen=ANY_PORT) as pull:
        line.send(pull.url)
        received = 0
        while received < count:
            received += len(await pull.receive_many())
        await trio.sleep_forever()


async def _push_at_once(_: Line, url: str, count: int) -> float:
    async with Push0() as push:
        start = perf_counter()
        async with trio.open_nursery() as nursery:
            for _number in range(count):
                nursery.start_soon(push.send, b"")
            await trio.lowlevel.checkpoint()
            await push.dial(url)
        return perf_counter() - start


def unread(plan: Plan) -> list[Row]:
    """Measure a client's round trips while another client leaves thousands of replies unread.

    Also measures what those replies cost in memory.
    """
    (runs,) = in_turn(plan.runs, {"trio-sp": partial(_unread, _MANY)}).values()
    beside, alone = [run["beside"] for run in runs], [run["alone"] for run in runs]
    what = f"{_MANY:,} requests of a peer that reads none of the replies of 10 kB"
    return [
        Row(f"round trip beside {what}", median(beside), "us", "alone", median(alone), ratio(beside, alone), at_most=2),
        Row(f"memory of {what}", median(run["memory"] for run in runs), "MiB", at_most=32),
    ]


def _unread(count: int) -> dict[str, float]:
    with Peer(trio.run, _serve) as service:
        url = service.get()
        with Peer(trio.run, _measure, url, count) as client:
            result: dict[str, float] = {"alone": client.get()}
            before = service.ask()
            result["beside"] = client.ask()
            result["memory"] = round(service.ask() - before, 1)
            return result


async def _measure(line: Line, url: str, count: int) -> float:
    """Tell the time of a round trip; when asked, send *count* requests by another connection.

    Their replies are not read.  Returns the time of a round trip meanwhile.
    """
    async with Req0() as req, trio.open_nursery() as nursery:
        await req.dial(url)
        line.send(await _round_trips(req))
        await hear(line)
        host, _, port = url.removeprefix("tcp://").rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(encode_greeting(REQ))
            requests = (struct.pack(">QI", 4 + len(_SMALL_BODY), 0x8000_0000 | number) + _SMALL_BODY for number in range(count))
            nursery.start_soon(stream.send_all, b"".join(requests))
            await trio.sleep(_SETTLED)
            result = await _round_trips(req)
            nursery.cancel_scope.cancel()
    return result


async def _round_trips(req: Req0) -> float:
    """Return the median of 500 round trips in microseconds."""
    taken: list[float] = []
    for _ in range(500):
        start = perf_counter()
        await req.request(b"")
        taken.append(perf_counter() - start)
    return round(1e6 * median(taken), 1)
