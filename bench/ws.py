"""What WebSocket costs, plain and over TLS: for each message, for each connection, and for many
idle pipes with pings."""

from __future__ import annotations

from functools import partial
from statistics import median
from time import process_time
from typing import Any

import trio
import trio.testing

from bench.harness import Line, Peer, Plan, Row, Side, compare, hear, in_turn, two_processes
from bench.sides import Papers, any_port, nng, ours
from bench.tls import far_away, held, megabytes, papers
from sp import Rep0, Req0, TLSClientConfig, TLSServerConfig, WSClientConfig, WSServerConfig

_SMALL = 64
_LARGE = 64 * 1024
_REQUESTS = 16
_AT_A_TIME = 25
_KIB = 1024


def _both(server: Side, client: Side, *arguments: object, own: Papers | None = None, ws: bool = True) -> Any:
    return two_processes(trio.run, partial(server, papers=own, ws=ws), partial(client, papers=own, ws=ws), *arguments)


def rtt(plan: Plan) -> list[Row]:
    """Measure round trips over ws and wss, beside our own tcp and tls+tcp."""
    rows: list[Row] = []
    for scheme, below, own in (("ws", "tcp", None), ("wss", "tls+tcp", papers())):
        arguments = (_SMALL, plan.seconds)
        results = in_turn(
            plan.runs,
            {
                "trio-sp": partial(_both, ours.echo, ours.ask, *arguments, own=own),
                f"trio-sp over {below}": partial(_both, ours.echo, ours.ask, *arguments, own=own, ws=False),
                "pynng on trio": partial(_both, nng.echo, nng.ask, *arguments, own=own),
            },
        )
        rows += compare(f"round trips over {scheme}", "/s", results, **{f"trio-sp_over_{below}": 0.7, "pynng_on_trio": 1.5})
    return rows


def oneway(plan: Plan) -> list[Row]:
    """Measure what one subscriber receives over ws from a publisher that does not wait for it."""
    results = in_turn(
        plan.runs,
        {
            "trio-sp": partial(_received, ours.publish, ours.subscribe, _SMALL, plan.seconds, False),
            "trio-sp, many": partial(_received, ours.publish, ours.subscribe, _SMALL, plan.seconds, True),
            "pynng on trio": partial(_received, nng.publish, nng.subscribe, _SMALL, plan.seconds),
        },
    )
    many = results.pop("trio-sp, many")
    return [
        Row("received over ws", median(results["trio-sp"]), "/s", at_least=120_000),
        Row("received over ws, send_many, receive_many", median(many), "/s"),
        *compare("received over ws", "/s", results),
    ]


def _received(publish: Side, subscribe: Side, *arguments: object) -> float:
    _, rate, *_ = _both(publish, subscribe, *arguments)
    return float(round(rate))


def oneway_large(plan: Plan) -> list[Row]:
    """Measure messages of 64 KiB one way over wss and ws: several requests under way with empty
    replies."""
    rows: list[Row] = []
    for scheme, own in (("ws", None), ("wss", papers())):
        arguments = (_LARGE, plan.seconds, _REQUESTS)
        results = in_turn(
            plan.runs,
            {
                "trio-sp": partial(_poured, ours, *arguments, own=own),
                "pynng on trio": partial(_poured, nng, *arguments, own=own),
            },
        )
        goals = {"pynng_on_trio": 2.0} if own is not None else {}
        rows += compare(f"{_REQUESTS} requests of 64 KiB under way over {scheme}", "MB/s", results, **goals)
    return rows


def _poured(side: Any, *arguments: object, own: Papers | None) -> float:
    return megabytes(_both(side.take_requests, side.request_in_parallel, *arguments, own=own))


def delay(plan: Plan) -> list[Row]:
    """Measure the time to the first reply over wss, on a line with a delay."""
    return far_away(plan, ws=True, at_most=3.1)


# Many idle pipes with pings.


async def _listen(line: Line, own: Papers, interval: float) -> None:
    """Keep idle pipes.  When asked for a number, wait for that many and tell the memory.

    When asked for a time, tells the CPU used in it.
    """
    tls = TLSServerConfig(certificate=own.server)
    async with Rep0(listen=any_port("wss"), tls=tls, ws=WSServerConfig(ping_interval=interval)) as rep:
        line.send(rep.url)
        while True:
            what, amount = await hear(line)
            if what == "pipes":
                while len(rep.pipes) != amount:
                    await trio.sleep(0.01)
                await trio.testing.wait_all_tasks_blocked()
                line.send(held())
            else:
                before = process_time()
                await trio.sleep(amount)
                line.send((process_time() - before) / amount)
                if any(pipe.error for pipe in rep.pipes):
                    raise AssertionError("a pipe has ended")


async def _dial(line: Line, url: str, own: Papers) -> None:
    """Open as many pipes as asked for, and answer pings."""
    tls = TLSClientConfig(ca=own.ca, server_name="localhost")
    async with Req0(tls=tls, ws=WSClientConfig(ping_interval=None, proxy=None)) as req:
        line.send(None)
        while True:
            (wanted,) = await hear(line)
            while len(req.dialers) < wanted:
                async with trio.open_nursery() as nursery:
                    for _ in range(min(_AT_A_TIME, wanted - len(req.dialers))):
                        nursery.start_soon(req.dial, url)
            line.send(None)


def idle(plan: Plan) -> list[Row]:
    """Measure what idle wss pipes with pings cost the listener."""
    number, interval, window = (200, 2.0, 2.0) if plan.quick else (2000, 20.0, 20.0)
    (runs,) = in_turn(min(plan.runs, 3), {"trio-sp": lambda: _idle(number, interval, window)}).values()
    return [
        Row(f"{number:,} idle wss pipes with pings every {interval:g} s", median(run["cpu"] for run in runs), "% of a core", at_most=5),
        Row("memory of each", median(run["memory"] for run in runs), "KiB", at_most=80),
    ]


def _idle(number: int, interval: float, window: float) -> dict[str, float]:
    own = papers()
    with Peer(trio.run, _listen, own, interval) as listener, Peer(trio.run, _dial, listener.get(), own) as dialers:
        dialers.get()
        dialers.ask(1)
        before = listener.ask("pipes", 1)
        dialers.ask(number)
        after = listener.ask("pipes", number)
        cpu = listener.ask("seconds", window)
    return {"cpu": round(100 * cpu, 2), "memory": round((after - before) / (number - 1) / _KIB, 1)}
