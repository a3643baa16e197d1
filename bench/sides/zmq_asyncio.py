"""pyzmq, on asyncio."""

from __future__ import annotations

import asyncio
from time import perf_counter

import zmq
import zmq.asyncio

from bench.harness import Line, Meter
from bench.sides import BATCH, END, END_EVERY, HOST


def _socket(kind: int) -> zmq.asyncio.Socket:
    return zmq.asyncio.Context.instance().socket(kind)


def _bind(line: Line, socket: zmq.asyncio.Socket) -> None:
    url = f"tcp://{HOST}"
    line.send(f"{url}:{socket.bind_to_random_port(url)}")


async def echo(line: Line, *_: object) -> None:
    """Answer each request with itself."""
    rep = _socket(zmq.REP)
    _bind(line, rep)
    while True:
        await rep.send(await rep.recv())


async def ask(_line: Line, url: str, size: int, seconds: float) -> float:
    """Return round trips a second."""
    req = _socket(zmq.REQ)
    req.connect(url)
    body = bytes(size)
    meter = Meter(seconds)
    for _ in meter:
        await req.send(body)
        await req.recv()
    return meter.rate


async def publish(line: Line, size: int, seconds: float) -> None:
    """Publish as fast as possible; tell how many messages."""
    pub = _socket(zmq.XPUB)
    _bind(line, pub)
    await pub.recv()  # the subscription
    body = bytes(size)
    sent = 0
    start = perf_counter()
    while (passed := perf_counter() - start) < seconds:
        for _ in range(BATCH):
            await pub.send(body)
        sent += BATCH
    line.send((sent, sent / passed))
    while True:
        await pub.send(END)
        await asyncio.sleep(END_EVERY)


async def subscribe(line: Line, url: str, *_: object) -> None:
    """Receive until the end; tell how many messages, and how many a second."""
    sub = _socket(zmq.SUB)
    sub.subscribe(b"")
    sub.connect(url)
    received = 0
    await sub.recv()
    start = perf_counter()
    while await sub.recv():
        received += 1
    line.send((received + 1, received / (perf_counter() - start)))


async def push(line: Line, size: int, seconds: float) -> None:
    """Push as fast as possible; tell how many messages, and how many a second."""
    socket = _socket(zmq.PUSH)
    _bind(line, socket)
    body = bytes(size)
    await socket.send(body)  # waits for the peer
    sent = 1
    start = perf_counter()
    while (passed := perf_counter() - start) < seconds:
        for _ in range(BATCH):
            await socket.send(body)
        sent += BATCH
    await socket.send(END)
    line.send((sent, sent / passed))
    await asyncio.Event().wait()


async def pull(line: Line, url: str, *_: object) -> None:
    """Receive until the end; tell how many messages, and how many a second."""
    socket = _socket(zmq.PULL)
    socket.connect(url)
    received = 0
    await socket.recv()
    start = perf_counter()
    while await socket.recv():
        received += 1
    line.send((received + 1, received / (perf_counter() - start)))
