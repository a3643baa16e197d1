"""A trio stream without any protocol: what a program gets that does it all by hand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from time import perf_counter

import trio

from bench.harness import Line, Meter
from bench.sides import HOST

_READ_SIZE = 256 * 1024


async def _serve(line: Line, handler: Callable[[trio.SocketStream], Awaitable[object]]) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await handler(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handle, 0, host=HOST))
        line.send(listener.socket.getsockname()[1])


async def _connect(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream(HOST, port)


async def echo(line: Line, *_: object) -> None:
    """Send back all that comes."""

    async def handle(stream: trio.SocketStream) -> None:
        while data := await stream.receive_some():
            await stream.send_all(data)

    await _serve(line, handle)


async def ask(_line: Line, port: int, size: int, seconds: float) -> float:
    """Return round trips a second."""
    stream = await _connect(port)
    body = bytes(size)
    meter = Meter(seconds)
    for _ in meter:
        await stream.send_all(body)
        received = 0
        while received < size:
            received += len(await stream.receive_some())
    return meter.rate


async def pour(line: Line, size: int, *_: object) -> None:
    """Send without end."""
    body = bytes(size)

    async def handle(stream: trio.SocketStream) -> None:
        while True:
            await stream.send_all(body)

    await _serve(line, handle)


async def drain(_line: Line, port: int, _size: int, seconds: float, *_: object) -> float:
    """Return bytes received a second."""
    stream = await _connect(port)
    rate = 0.0
    for duration in (seconds / 5, seconds):
        received = 0
        start = perf_counter()
        while (passed := perf_counter() - start) < duration:
            received += len(await stream.receive_some(_READ_SIZE))
        rate = received / passed
    return rate
