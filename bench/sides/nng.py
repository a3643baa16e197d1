"""pynng, on trio."""

from __future__ import annotations

from time import perf_counter

import pynng  # type: ignore[import-untyped]
import trio

from bench.harness import Line, Meter
from bench.sides import ANY_PORT, BATCH, END, END_EVERY


def _url(socket: pynng.Socket) -> str:
    return str(socket.listeners[0].url)


async def echo(line: Line, *_: object) -> None:
    """Answer each request with itself."""
    with pynng.Rep0(listen=ANY_PORT) as rep:
        line.send(_url(rep))
        while True:
            await rep.asend(await rep.arecv())


async def ask(_line: Line, url: str, size: int, seconds: float) -> float:
    """Return round trips a second."""
    with pynng.Req0(dial=url) as req:
        body = bytes(size)
        meter = Meter(seconds)
        for _ in meter:
            await req.asend(body)
            await req.arecv()
        return meter.rate


async def publish(line: Line, size: int, seconds: float) -> None:
    """Publish as fast as it goes; tell how many messages."""
    with pynng.Pub0(listen=ANY_PORT) as pub:
        line.send(_url(pub))
        while not pub.pipes:
            await trio.sleep(END_EVERY)
        body = bytes(size)
        sent = 0
        start = perf_counter()
        while (passed := perf_counter() - start) < seconds:
            for _ in range(BATCH):
                await pub.asend(body)
            sent += BATCH
        line.send((sent, sent / passed))
        while True:
            await pub.asend(END)
            await trio.sleep(END_EVERY)


async def subscribe(line: Line, url: str, *_: object) -> None:
    """Receive until the end; tell how many messages, and how many a second."""
    with pynng.Sub0(topics=b"", dial=url) as sub:
        received = 0
        await sub.arecv()
        start = perf_counter()
        while await sub.arecv():
            received += 1
        line.send((received + 1, received / (perf_counter() - start)))
