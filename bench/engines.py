"""The engines alone, without sockets or trio: what they add to the cost of a message."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter

from bench.harness import Line, Peer, Plan, Row, in_turn, plainly
from sp.message import Message
from sp.options import SocketOptions
from sp.protocols.bus import BusEngine
from sp.protocols.pub import PubEngine
from sp.protocols.rep import RepEngine
from sp.protocols.req import ReqEngine
from sp.protocols.sub import SubEngine
from sp.testing import FakePipe

_OPTIONS = SocketOptions()
_BODY = bytes(64)

Batch = Callable[[], None]
"""Carries _BATCH messages all the way."""
_BATCH = 100


def _pub() -> Batch:
    engine, pipe = PubEngine("oldest"), FakePipe()
    engine.pipe_attached(pipe)

    def batch() -> None:
        for _ in range(_BATCH):
            engine.send(Message(_BODY))
        pipe.taken.clear()

    return batch


def _sub(topics: int = 1) -> Batch:
    engine, pipe = SubEngine(_OPTIONS, "oldest"), FakePipe()
    engine.pipe_attached(pipe)
    context = engine.open_context()
    names = [b"topic %06d." % number for number in range(topics)]
    for name in names:
        context.subscribe(name)
    bodies = [name + _BODY[len(name) :] for name in random.Random(1).choices(names, k=_BATCH)]

    def batch() -> None:
        for body in bodies:
            engine.message_received(pipe, Message(body))
            context.receive()

    return batch


def _bus() -> Batch:
    engine, pipe = BusEngine(_OPTIONS, "newest"), FakePipe()
    engine.pipe_attached(pipe)

    def batch() -> None:
        for _ in range(_BATCH):
            engine.send(Message(_BODY))
            engine.message_received(pipe, Message(_BODY))
            engine.receive()
        pipe.taken.clear()

    return batch


def _req() -> Batch:
    engine, pipe = ReqEngine(60.0, random.Random(1), perf_counter), FakePipe()
    engine.pipe_attached(pipe)
    context = engine.open_context()

    def batch() -> None:
        for _ in range(_BATCH):
            context.send(Message(_BODY))
            engine.message_received(pipe, Message(_BODY, pipe.taken.pop().header))
            context.receive()

    return batch


def _rep() -> Batch:
    engine, pipe = RepEngine(_OPTIONS, 8), FakePipe()
    engine.pipe_attached(pipe)
    context = engine.open_context()

    def batch() -> None:
        for _ in range(_BATCH):
            request = Message(_BODY, b"\x80\0\0\1")
            request.pipe = pipe  # type: ignore[assignment]  # a stand-in
            engine.message_received(pipe, request)
            context.receive()
            context.send(Message(_BODY))
        pipe.taken.clear()

    return batch


_ENGINES: dict[str, Callable[[], Batch]] = {
    "PUB: send to 1 peer": _pub,
    "SUB: take in and receive": _sub,
    "BUS: send to 1 peer, take in and receive": _bus,
    "REQ: send, take in the reply and receive": _req,
    "REP: take in, receive and reply": _rep,
}


def _nanoseconds(_: Line, seconds: float, prepare: Callable[..., Batch], *arguments: object) -> float:
    batch = prepare(*arguments)
    batches = 0
    start = perf_counter()
    while (passed := perf_counter() - start) < seconds:
        batch()
        batches += 1
    return round(1e9 * passed / (batches * _BATCH))


def _measure(plan: Plan, prepare: Callable[..., Batch], *arguments: object) -> float:
    with Peer(plainly, _nanoseconds, plan.seconds / 4, prepare, *arguments) as process:
        return float(process.get())


def subscriptions(plan: Plan) -> list[Row]:
    """Measure the cost of a message for a subscriber with few and with many subscriptions."""
    one, *numbers = 1, 100, 10_000
    results = in_turn(plan.runs, {str(number): partial(_measure, plan, _sub, number) for number in (one, *numbers)})
    base = results[str(one)]
    return [
        Row(
            f"a message with {number:,} subscriptions",
            median(results[str(number)]),
            "ns",
            "with 1 subscription",
            median(base),
            median(a / b for a, b in zip(results[str(number)], base, strict=True)),
            at_most=2.0,
        )
        for number in numbers
    ]


def engines(plan: Plan) -> list[Row]:
    """Measure the time that each engine takes for a message."""
    results = in_turn(plan.runs, {name: partial(_measure, plan, prepare) for name, prepare in _ENGINES.items()})
    return [Row(name, median(runs), "ns") for name, runs in results.items()]
