"""trio-sp."""

from __future__ import annotations

from time import perf_counter, process_time
from typing import Any

import trio

from bench.harness import Line, Meter, hear
from bench.sides import ANY_PORT, BATCH, END, END_EVERY, SERVER_NAME, Papers, any_port
from sp import Pub0, Rep0, Req0, Sub0, TLSClientConfig, TLSServerConfig, WSClientConfig
from sp.sockets.base import Socket


def _dropped(socket: Socket) -> int:
    return sum(socket.statistics().dropped.values())


def listening(papers: Papers | None, ws: bool) -> dict[str, Any]:
    """Return the options of a socket that listens, with TLS if there are *papers*, with WebSocket
    if *ws*."""
    if papers is None:
        return {"listen": any_port("ws" if ws else "tcp")}
    client_ca = papers.ca if papers.client_certificates else None
    return {"listen": any_port("wss" if ws else "tls+tcp"), "tls": TLSServerConfig(certificate=papers.server, client_ca=client_ca)}


def dialing(papers: Papers | None, ws: bool) -> dict[str, Any]:
    """Return the options of a socket that dials."""
    plainly: dict[str, Any] = {"ws": WSClientConfig(proxy=None)} if ws else {}
    if papers is None:
        return plainly
    own = papers.client if papers.client_certificates else None
    return plainly | {"tls": TLSClientConfig(ca=papers.ca, server_name=SERVER_NAME, certificate=own, session_reuse=papers.session_reuse)}


async def echo(line: Line, *_: object, papers: Papers | None = None, ws: bool = False) -> None:
    """Answer each request with itself."""
    async with Rep0(**listening(papers, ws)) as rep:
        line.send(rep.url)
        while True:
            await rep.send(await rep.receive())


async def ask(_line: Line, url: str, size: int, seconds: float, papers: Papers | None = None, ws: bool = False) -> float:
    """Return round trips a second."""
    async with Req0(**dialing(papers, ws)) as req:
        await req.dial(url)
        body = bytes(size)
        meter = Meter(seconds)
        for _ in meter:
            await req.send(body)
            await req.receive()
        return meter.rate


async def publish(line: Line, size: int, seconds: float, many: bool, papers: Papers | None = None, ws: bool = False) -> None:
    """Publish as fast as possible, with *many* in batches; tell how many messages, and how many
    were dropped here."""
    async with Pub0(**listening(papers, ws)) as pub:
        line.send(pub.url)
        await pub.wait_for_peers()
        body = bytes(size)
        batch = [body] * BATCH
        sent = 0
        start = perf_counter()
        while (passed := perf_counter() - start) < seconds:
            if many:
                await pub.send_many(batch)
            else:
                for _ in range(BATCH):
                    await pub.send(body)
            sent += BATCH
        while any(pipe.outbox for pipe in pub.statistics().pipes):
            await trio.sleep(END_EVERY)
        line.send((sent, sent / passed, _dropped(pub)))
        while True:
            await pub.send(END)
            await trio.sleep(END_EVERY)


async def subscribe(line: Line, url: str, _size: int, _seconds: float, many: bool, papers: Papers | None = None, ws: bool = False) -> None:
    """Receive until the end; tell how many messages, how many a second, and how many were dropped
    here."""
    async with Sub0(topics=b"", dial=url, **dialing(papers, ws)) as sub:
        received = 0
        await sub.receive()
        start = perf_counter()
        if many:
            while (bodies := await sub.receive_many())[-1]:
                received += len(bodies)
            received += sum(1 for body in bodies if body)
        else:
            while await sub.receive():
                received += 1
        passed = perf_counter() - start
        line.send((received + 1, received / passed, _dropped(sub)))


async def take_requests(line: Line, *_: object, papers: Papers | None = None, ws: bool = False) -> None:
    """Answer each request with nothing."""
    async with Rep0(**listening(papers, ws)) as rep:
        line.send(rep.url)
        async for request in rep.requests():
            await request.reply(b"")


async def request_in_parallel(
    _line: Line, url: str, size: int, seconds: float, tasks: int, papers: Papers | None = None, ws: bool = False
) -> float:
    """Return the bytes a second that arrive in requests, when *tasks* of them are under way."""
    async with Req0(**dialing(papers, ws)) as req:
        await req.dial(url)
        body = bytes(size)
        meter = Meter(seconds, block=16)
        ticks = iter(meter)

        async def request() -> None:
            for _ in ticks:
                await req.request(body)

        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(request)
        return meter.rate * size


async def fan_out(line: Line, size: int, subscribers: int, blocks: int, block: int) -> None:
    """Publish *blocks* of messages, at most two ahead of the subscribers; tell seconds of wall time
    and of CPU time."""
    limit = 4 * block
    async with Pub0(listen=ANY_PORT, outbox_limit=limit) as pub, Sub0(listen=ANY_PORT, topics=b"") as done:
        line.send((pub.url, done.url))
        await pub.wait_for_peers(subscribers)
        await done.receive()
        body = bytes(size)
        start, cpu = perf_counter(), process_time()
        for number in range(blocks + 2):
            if number >= 2:
                await done.receive()
            if number < blocks:
                for _ in range(block):
                    await pub.send(body)
        line.send((perf_counter() - start, process_time() - cpu, _dropped(pub)))


async def fan_in(line: Line, urls: tuple[str, str], _size: int, subscribers: int, blocks: int, block: int) -> None:
    """Be all the *subscribers*; tell when all have received a block, and how many messages were
    dropped here."""
    waited_for = [subscribers] * blocks
    dropped = 0

    async def subscribe(task_status: trio.TaskStatus[None]) -> None:
        nonlocal dropped
        async with Sub0(topics=b"", inbox_limit=4 * block) as sub:
            await sub.dial(urls[0])
            task_status.started()
            for number in range(blocks):
                for _ in range(block):
                    await sub.receive()
                waited_for[number] -= 1
                if not waited_for[number]:
                    await done.send(b"")
            dropped += _dropped(sub)

    async with Pub0() as done:
        await done.dial(urls[1])
        async with trio.open_nursery() as nursery:
            for _ in range(subscribers):
                await nursery.start(subscribe)
            await done.send(b"")
        line.send(dropped)
        await trio.sleep_forever()


async def connect(_line: Line, url: str, times: int, papers: Papers, ws: bool = False) -> list[tuple[float, bool]]:
    """Dial *times* times, each with a new socket.

    Returns the seconds until the first reply, and whether a session was resumed.
    """
    options = dialing(papers, ws)
    found: list[tuple[float, bool]] = []
    for _ in range(times):
        async with Req0(**options) as req:
            start = perf_counter()
            dialer = await req.dial(url)
            await req.request(b"")
            passed = perf_counter() - start
            pipe = dialer.pipe
            assert pipe is not None
            assert pipe.tls is not None
            found.append((passed, pipe.tls.resumed))
    return found


async def reconnect(_line: Line, url: str, times: int, papers: Papers, ws: bool = False) -> int:
    """End the pipe of one dialer *times* times, each after a reply; return how many of the next
    ones resumed."""
    async with Req0(redial_min=0.001, redial_max=0.001, **dialing(papers, ws)) as req:
        dialer = await req.dial(url)
        for _ in range(times):
            await req.request(b"")
            pipe = dialer.pipe
            assert pipe is not None
            pipe.close()
        await req.request(b"")
        return dialer.statistics().tls_handshakes.get("resumed", 0)


async def keep_asking(line: Line, url: str, size: int, papers: Papers, ws: bool = False) -> None:
    """When asked, make round trips until asked to stop; tell the seconds that each has taken."""
    async with Req0(**dialing(papers, ws)) as req:
        await req.dial(url)
        line.send(None)
        body = bytes(size)
        while True:
            await hear(line)
            line.send(None)
            durations: list[float] = []

            async def ask_on(durations: list[float] = durations) -> None:
                while True:
                    start = perf_counter()
                    await req.request(body)
                    durations.append(perf_counter() - start)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask_on)
                await hear(line)
                nursery.cancel_scope.cancel()
            line.send(durations)
