"""The figures over sockets, one function each; FIGURES has all of them by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import trio

from bench import family, load, tls, ws
from bench.engines import engines, subscriptions
from bench.harness import Loop, Peer, Plan, Row, Side, compare, in_turn, on_asyncio, one_process, plainly, ratio, two_processes
from bench.memory import churn, idle_pipes
from bench.sides import nng, ours, raw, zmq_asyncio, zmq_blocking

_SMALL = 64
_LARGE = (1 << 20) - 64  # together with its header within the default limit
_REQUESTS = 16
_SUBSCRIBERS = 100
_BLOCK = 512


def rtt(plan: Plan) -> list[Row]:
    """Measure round trips between two processes."""
    results = in_turn(
        plan.runs,
        {
            "trio-sp": partial(two_processes, trio.run, ours.echo, ours.ask, _SMALL, plan.seconds),
            "raw trio stream": partial(two_processes, trio.run, raw.echo, raw.ask, _SMALL, plan.seconds),
            "pynng on trio": partial(two_processes, trio.run, nng.echo, nng.ask, _SMALL, plan.seconds),
            "pyzmq on asyncio": partial(two_processes, on_asyncio, zmq_asyncio.echo, zmq_asyncio.ask, _SMALL, plan.seconds),
        },
    )
    return compare("round trips", "/s", results, raw_trio_stream=0.9, pynng_on_trio=2.0, pyzmq_on_asyncio=1.2)


def rtt_one_process(plan: Plan) -> list[Row]:
    """Measure round trips with both ends in one process."""
    results = in_turn(
        plan.runs,
        {
            "trio-sp": partial(one_process, ours.echo, ours.ask, _SMALL, plan.seconds),
            "raw trio stream": partial(one_process, raw.echo, raw.ask, _SMALL, plan.seconds),
        },
    )
    return compare("round trips", "/s", results, raw_trio_stream=0.9)


def oneway(plan: Plan) -> list[Row]:
    """Measure what one subscriber receives from a publisher that does not wait for it."""
    size, seconds = _SMALL, plan.seconds
    results = in_turn(
        plan.runs,
        {
            "trio-sp": partial(_one_way, trio.run, ours.publish, ours.subscribe, size, seconds, False),
            "trio-sp, many": partial(_one_way, trio.run, ours.publish, ours.subscribe, size, seconds, True),
            "pynng on trio": partial(_one_way, trio.run, nng.publish, nng.subscribe, size, seconds),
            "pyzmq on asyncio": partial(_one_way, on_asyncio, zmq_asyncio.publish, zmq_asyncio.subscribe, size, seconds),
            "pyzmq blocking": partial(_one_way, plainly, zmq_blocking.publish, zmq_blocking.subscribe, size, seconds),
        },
    )
    rows: list[Row] = []
    for name, goal in (("trio-sp", 400_000), ("trio-sp, many", 800_000)):
        what = "send_many, receive_many" if "many" in name else "send, receive"
        runs = results.pop(name)
        received = [run["received/s"] for run in runs]
        rows += [
            Row(f"{what}: received", median(received), "/s", at_least=goal),
            Row(f"{what}: sent", median(run["sent/s"] for run in runs), "/s"),
            Row(f"{what}: dropped and counted", 100 * median(run["dropped"] / run["sent"] for run in runs), "%"),
            Row(f"{what}: lost and not counted, in all runs", sum(abs(run["lost"] - run["dropped"]) for run in runs), "", at_most=0),
        ]
        for peer, others in results.items():
            if not peer.startswith("trio-sp"):
                theirs = [run["received/s"] for run in others]
                rows.append(Row(f"{what}: received", median(received), "/s", peer, median(theirs), ratio(received, theirs)))
    rows += [Row("lost", None, "%", peer, 100 * median(run["lost"] / run["sent"] for run in runs)) for peer, runs in results.items()]
    return rows


def _one_way(loop: Loop, publish: Side, subscribe: Side, *arguments: object) -> dict[str, float]:
    with Peer(loop, publish, *arguments) as publisher, Peer(loop, subscribe, publisher.get(), *arguments) as subscriber:
        sent, sent_rate, *dropped_there = publisher.get()
        received, rate, *dropped_here = subscriber.get()
    return {
        "received/s": round(rate),
        "sent/s": round(sent_rate),
        "sent": sent,
        "lost": sent - received,
        "dropped": sum(dropped_there + dropped_here),
    }


def oneway_large(plan: Plan) -> list[Row]:
    """Measure large messages one way: several requests under way with empty replies, since requests
    are never dropped."""
    arguments = (_LARGE, plan.seconds, _REQUESTS)
    results = in_turn(
        plan.runs,
        {
            "trio-sp": partial(_megabytes, ours.take_requests, ours.request_in_parallel, *arguments),
            "raw trio stream": partial(_megabytes, raw.pour, raw.drain, *arguments),
        },
    )
    return compare(f"{_REQUESTS} requests of 1 MiB under way", "MB/s", results, raw_trio_stream=0.8)


def _megabytes(server: Side, client: Side, *arguments: object) -> float:
    return round(float(two_processes(trio.run, server, client, *arguments)) / 1e6, 1)


def fan_out(plan: Plan) -> list[Row]:
    """Measure the cost of a delivered message with one subscriber and with a hundred, all in one
    other process."""
    deliveries = (1 if plan.quick else 5) * 2 * _BLOCK * _SUBSCRIBERS
    results = in_turn(plan.runs, {str(number): partial(_fan_out, number, deliveries) for number in (_SUBSCRIBERS, 1)})
    many, one = ({key: [run[key] for run in runs] for key in runs[0]} for runs in results.values())
    return [
        Row(
            f"{what} a delivered message, {_SUBSCRIBERS} subscribers",
            median(many[key]),
            "us",
            "1 subscriber",
            median(one[key]),
            ratio(many[key], one[key]),
            at_most=limit,
        )
        for key, what, limit in (("wall", "time", 1.3), ("cpu", "CPU time of the publisher", None))
    ] + [Row("dropped, in all runs", sum(many["dropped"] + one["dropped"]), "", at_most=0)]


def _fan_out(subscribers: int, deliveries: int) -> dict[str, float]:
    blocks = deliveries // (subscribers * _BLOCK)
    arguments = (_SMALL, subscribers, blocks, _BLOCK)
    with Peer(trio.run, ours.fan_out, *arguments) as publisher, Peer(trio.run, ours.fan_in, publisher.get(), *arguments) as others:
        wall, cpu, dropped = publisher.get()
        delivered = subscribers * blocks * _BLOCK
        return {"wall": round(1e6 * wall / delivered, 2), "cpu": round(1e6 * cpu / delivered, 2), "dropped": dropped + others.get()}


FIGURES: dict[str, Callable[[Plan], list[Row]]] = {
    "rtt-64": rtt,
    "rtt-64-one-process": rtt_one_process,
    "oneway-64": oneway,
    "oneway-1MiB": oneway_large,
    "fanout": fan_out,
    "push-64": family.pipeline,
    "push-1MiB": family.pipeline_large,
    "pair-64": family.pair,
    "device-64": family.through_device,
    "survey-100": family.survey,
    "at-once": load.at_once,
    "unread": load.unread,
    "memory": idle_pipes,
    "churn": churn,
    "subscriptions": subscriptions,
    "engines": engines,
    "tls-rtt-64": tls.rtt,
    "tls-oneway-64": tls.oneway,
    "tls-oneway-large": tls.oneway_large,
    "tls-connect": tls.connect,
    "tls-delay": tls.delay,
    "tls-resume": tls.resume,
    "tls-memory": tls.memory,
    "tls-storm": tls.storm,
    "ws-rtt-64": ws.rtt,
    "ws-oneway-64": ws.oneway,
    "ws-oneway-64KiB": ws.oneway_large,
    "ws-delay": ws.delay,
    "ws-idle": ws.idle,
}
