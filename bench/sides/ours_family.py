"""trio-sp: pipelines, pairs, surveys and devices."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import trio

from bench.harness import Line, Meter
from bench.sides import ANY_PORT, BATCH, END
from sp import Pair0, Pair1, Pull0, Push0, Rep0, Req0, Respondent0, Surveyor0, device, raw

_KINDS: dict[str, tuple[Any, Any]] = {"push": (Push0, Pull0), "pair0": (Pair0, Pair0), "pair1": (Pair1, Pair1)}


async def push(line: Line, kind: str, size: int, seconds: float, many: bool, url: str | None = None) -> None:
    """Send as fast as possible, with *many* in batches, to peers that dial or to *url*.

    Tells how many messages, and how many a second.
    """
    async with _KINDS[kind][0](listen=ANY_PORT if url is None else (), dial=url or ()) as socket:
        if url is None:
            line.send(socket.url)
        await socket.wait_for_peers()
        body = bytes(size)
        batch = [body] * BATCH
        sent = 0
        start = perf_counter()
        while (passed := perf_counter() - start) < seconds:
            if many:
                await socket.send_many(batch)
            else:
                for _ in range(BATCH):
                    await socket.send(body)
            sent += BATCH
        await socket.send(END)
        line.send((sent, sent / passed))
        await trio.sleep_forever()


async def pull(line: Line, url: str, kind: str, _size: int, _seconds: float, many: bool) -> None:
    """Receive until the end; tell how many messages, and how many a second."""
    async with _KINDS[kind][1](dial=url) as socket:
        received = 0
        await socket.receive()
        start = perf_counter()
        if many:
            while (bodies := await socket.receive_many())[-1]:
                received += len(bodies)
            received += len(bodies) - 1
        else:
            while await socket.receive():
                received += 1
        line.send((received + 1, received / (perf_counter() - start)))
        await trio.sleep_forever()


async def pour(line: Line, size: int, *_: object) -> None:
    """Push without end."""
    async with Push0(listen=ANY_PORT) as socket:
        line.send(socket.url)
        body = bytes(size)
        while True:
            await socket.send(body)


async def drain(_line: Line, url: str, size: int, seconds: float) -> float:
    """Return the bytes a second that are pulled."""
    async with Pull0(dial=url) as socket:
        rate = 0.0
        for duration in (seconds / 5, seconds):
            received = 0
            start = perf_counter()
            while (passed := perf_counter() - start) < duration:
                await socket.receive()
                received += size
            rate = received / passed
        return rate


async def forward(line: Line, kind: str) -> None:
    """Be a device; tell the URLs of front and back."""
    front, back = (raw.Rep0(), raw.Req0()) if kind == "req" else (raw.Pull0(), raw.Push0())
    async with front, back:
        line.send(((await front.listen(ANY_PORT)).url, (await back.listen(ANY_PORT)).url))
        await device.device(front, back)


async def echo(_line: Line, url: str) -> None:
    """Answer each request that comes from *url* with itself."""
    async with Rep0(dial=url) as rep:
        while True:
            await rep.send(await rep.receive())


async def answer(_line: Line, url: str, kind: str, number: int) -> None:
    """Be *number* respondents or repliers, each with its own socket, that dial *url*."""

    async def respond() -> None:
        async with (Respondent0 if kind == "survey" else Rep0)(dial=url) as socket:
            while True:
                await socket.send(await socket.receive())

    async with trio.open_nursery() as nursery:
        for _ in range(number):
            nursery.start_soon(respond)


async def ask_all(line: Line, kind: str, size: int, seconds: float, number: int) -> float:
    """Return how often a second all *number* peers answer: one survey, or as many requests at once."""
    body = bytes(size)
    async with (Surveyor0 if kind == "survey" else Req0)(listen=ANY_PORT) as socket:
        line.send(socket.url)
        await socket.wait_for_peers(number)
        meter = Meter(seconds, block=4)
        if isinstance(socket, Surveyor0):
            for _ in meter:
                await socket.send(body)
                for _ in range(number):
                    await socket.receive()
        else:
            for _ in meter:
                async with trio.open_nursery() as nursery:
                    for _ in range(number):
                        nursery.start_soon(socket.request, body)
        return meter.rate
