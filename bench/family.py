"""The figures of pipelines, pairs, surveys and devices."""

from __future__ import annotations

from functools import partial
from statistics import median

import trio

from bench.harness import Loop, Peer, Plan, Row, Side, compare, in_turn, on_asyncio, plainly, ratio, two_processes
from bench.sides import ours, ours_family, raw, zmq_asyncio, zmq_blocking

_SMALL = 64
_LARGE = 1 << 20
_RESPONDENTS = 100


def pipeline(plan: Plan) -> list[Row]:
    """Measure what a PULL receives from a PUSH that sends as fast as it can.

    Nothing may be lost.
    """
    size, seconds = _SMALL, plan.seconds
    results = in_turn(
        plan.runs,
        {
            "send, receive": partial(_one_way, trio.run, ours_family.push, ours_family.pull, "push", size, seconds, False),
            "send_many, receive_many": partial(_one_way, trio.run, ours_family.push, ours_family.pull, "push", size, seconds, True),
            "pyzmq on asyncio": partial(_one_way, on_asyncio, zmq_asyncio.push, zmq_asyncio.pull, size, seconds),
            "pyzmq blocking": partial(_one_way, plainly, zmq_blocking.push, zmq_blocking.pull, size, seconds),
        },
    )
    rows = [Row("send, receive", median(results["send, receive"]), "/s", at_least=400_000)]
    for ours_name, peer, goal in (
        ("send, receive", "pyzmq on asyncio", 3.0),
        ("send, receive", "pyzmq blocking", None),
        ("send_many, receive_many", "pyzmq blocking", 1.0),
    ):
        mine, theirs = results[ours_name], results[peer]
        rows.append(Row(ours_name, median(mine), "/s", peer, median(theirs), ratio(mine, theirs), at_least=goal))
    return rows


def _one_way(loop: Loop, push: Side, pull: Side, *arguments: object) -> float:
    with Peer(loop, push, *arguments) as pusher, Peer(loop, pull, pusher.get(), *arguments) as puller:
        return _received(pusher, puller)


def _received(pusher: Peer, puller: Peer) -> float:
    sent, _ = pusher.get()
    received, rate = puller.get()
    if sent != received:
        raise AssertionError(f"{sent} messages were sent, {received} received")
    return float(round(rate))


def pipeline_large(plan: Plan) -> list[Row]:
    """Measure messages of 1 MiB one way, against a stream that only sends and discards bytes."""
    results = in_turn(
        plan.runs,
        {
            "trio-sp": partial(_megabytes, ours_family.pour, ours_family.drain, _LARGE, plan.seconds),
            "raw trio stream": partial(_megabytes, raw.pour, raw.drain, _LARGE, plan.seconds),
        },
    )
    return compare("messages of 1 MiB", "MB/s", results, raw_trio_stream=0.8)


def _megabytes(server: Side, client: Side, *arguments: object) -> float:
    return round(float(two_processes(trio.run, server, client, *arguments)) / 1e6, 1)


def pair(plan: Plan) -> list[Row]:
    """Measure a pair one way against a pipeline."""
    rows: list[Row] = []
    for many in (False, True):
        results = in_turn(
            plan.runs,
            {
                kind: partial(_one_way, trio.run, ours_family.push, ours_family.pull, kind, _SMALL, plan.seconds, many)
                for kind in ("pair0", "pair1", "push")
            },
        )
        theirs = results.pop("push")
        for kind, mine in results.items():
            what = f"{kind}, {'send_many, receive_many' if many else 'send, receive'}"
            rows.append(Row(what, median(mine), "/s", "PUSH, PULL", median(theirs), ratio(mine, theirs), at_least=0.95))
    return rows


def through_device(plan: Plan) -> list[Row]:
    """Measure round trips and one way through a device in its own process, against the direct way."""
    round_trips = in_turn(
        plan.runs,
        {
            "through a device": partial(_asked_through, _SMALL, plan.seconds),
            "direct": partial(two_processes, trio.run, ours.echo, ours.ask, _SMALL, plan.seconds),
        },
    )
    one_way = in_turn(
        plan.runs,
        {f"{many}": partial(_pushed_through, _SMALL, plan.seconds, many) for many in (True, False)},
    )
    return [
        *compare("round trips through a device", "/s", round_trips, direct=0.45),
        Row("one way through a device, send_many, receive_many", median(one_way["True"]), "/s", at_least=200_000),
        Row("one way through a device, send, receive", median(one_way["False"]), "/s"),
    ]


def _asked_through(size: int, seconds: float) -> float:
    with Peer(trio.run, ours_family.forward, "req") as between:
        front, back = between.get()
        with Peer(trio.run, ours_family.echo, back), Peer(trio.run, ours.ask, front, size, seconds) as client:
            return float(client.get())


def _pushed_through(size: int, seconds: float, many: bool) -> float:
    arguments = ("push", size, seconds, many)
    with Peer(trio.run, ours_family.forward, "push") as between:
        front, back = between.get()
        with Peer(trio.run, ours_family.pull, back, *arguments) as puller, Peer(trio.run, ours_family.push, *arguments, front) as pusher:
            return _received(pusher, puller)


def survey(plan: Plan) -> list[Row]:
    """Measure a survey of a hundred respondents against a hundred requests that are under way
    together."""
    results = in_turn(plan.runs, {kind: partial(_asked, kind, _SMALL, plan.seconds, _RESPONDENTS) for kind in ("survey", "requests")})
    times = {kind: [1e3 / rate for rate in rates] for kind, rates in results.items()}
    mine, theirs = times["survey"], times["requests"]
    what = f"a survey of {_RESPONDENTS}, all answers"
    return [Row(what, median(mine), "ms", f"{_RESPONDENTS} requests", median(theirs), ratio(mine, theirs), at_most=3)]


def _asked(kind: str, size: int, seconds: float, number: int) -> float:
    with (
        Peer(trio.run, ours_family.ask_all, kind, size, seconds, number) as one,
        Peer(trio.run, ours_family.answer, one.get(), kind, number),
    ):
        return float(one.get())
