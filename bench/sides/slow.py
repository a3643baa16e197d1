"""A long way: a proxy that delays every byte and has no limit on bytes under way."""

from __future__ import annotations

from functools import partial

import trio

from bench.harness import Line
from bench.sides import HOST


async def proxy(line: Line, port: int, delay: float) -> None:
    """Pass on all bytes to *port* and back, each *delay* seconds late.

    Connecting to the proxy takes no time.
    """

    async def handle(near: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream(HOST, port) as far, trio.open_nursery() as nursery:
            nursery.start_soon(_pass_on, near, far, delay)
            nursery.start_soon(_pass_on, far, near, delay)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handle, 0, host=HOST))
        line.send(listener.socket.getsockname()[1])


async def _pass_on(source: trio.SocketStream, target: trio.SocketStream, delay: float) -> None:
    sender, receiver = trio.open_memory_channel[tuple[float, bytes]](1000)

    async def take_in() -> None:
        async with sender:
            try:
                while data := await source.receive_some():
                    await sender.send((trio.current_time() + delay, data))
            except trio.BrokenResourceError:
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_in)
        try:
            async for due, data in receiver:
                await trio.sleep_until(due)
                await target.send_all(data)
            await target.send_eof()
        except trio.BrokenResourceError:
            pass
