"""pynng, on trio."""

from __future__ import annotations

import socket
from time import perf_counter
from typing import Any

import pynng
import trio

from bench.harness import Line, Meter
from bench.sides import BATCH, END, END_EVERY, HOST, SERVER_NAME, Papers, any_port


def _url(sock: pynng.Socket) -> str:
    return str(sock.listeners[0].url)


def _some_port(scheme: str) -> str:
    """Return a URL with a free port: libnng does not tell which port it chose for WebSocket."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return f"{scheme}://{HOST}:{probe.getsockname()[1]}/"


def _listening(papers: Papers | None, ws: bool) -> dict[str, Any]:
    if papers is None:
        return {"listen": _some_port("ws") if ws else any_port("tcp")}
    key, begin, certificate = papers.server.partition(b"-----BEGIN CERTIFICATE-----")
    tls = pynng.TLSConfig(pynng.TLSConfig.MODE_SERVER, own_key_string=key, own_cert_string=begin + certificate)
    return {"listen": _some_port("wss") if ws else any_port("tls+tcp"), "tls_config": tls}


def _dialing(papers: Papers | None) -> dict[str, Any]:
    if papers is None:
        return {}
    kind = pynng.TLSConfig
    return {"tls_config": kind(kind.MODE_CLIENT, server_name=SERVER_NAME, ca_string=papers.ca, auth_mode=kind.AUTH_MODE_REQUIRED)}


async def echo(line: Line, *_: object, papers: Papers | None = None, ws: bool = False) -> None:
    """Answer each request with itself."""
    with pynng.Rep0(**_listening(papers, ws)) as rep:
        line.send(_url(rep))
        while True:
            await rep.asend(await rep.arecv())


async def ask(_line: Line, url: str, size: int, seconds: float, papers: Papers | None = None, **_ws: object) -> float:
    """Return round trips a second."""
    with pynng.Req0(dial=url, **_dialing(papers)) as req:
        body = bytes(size)
        meter = Meter(seconds)
        for _ in meter:
            await req.asend(body)
            await req.arecv()
        return meter.rate


async def publish(line: Line, size: int, seconds: float, papers: Papers | None = None, ws: bool = False) -> None:
    """Publish as fast as possible; report how many messages."""
    with pynng.Pub0(**_listening(papers, ws)) as pub:
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


async def subscribe(line: Line, url: str, *_: object, papers: Papers | None = None, **_ws: object) -> None:
    """Receive until the end; tell how many messages, and how many a second."""
    with pynng.Sub0(topics=b"", dial=url, **_dialing(papers)) as sub:
        received = 0
        await sub.arecv()
        start = perf_counter()
        while await sub.arecv():
            received += 1
        line.send((received + 1, received / (perf_counter() - start)))


async def take_requests(line: Line, _size: int, _seconds: float, tasks: int, papers: Papers | None = None, ws: bool = False) -> None:
    """Answer each request with nothing."""
    with pynng.Rep0(**_listening(papers, ws)) as rep:
        line.send(_url(rep))

        async def answer() -> None:
            with rep.new_context() as context:
                while True:
                    await context.arecv()
                    await context.asend(b"")

        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(answer)


async def request_in_parallel(
    _line: Line, url: str, size: int, seconds: float, tasks: int, papers: Papers | None = None, **_ws: object
) -> float:
    """Return the bytes a second that arrive in requests, when *tasks* of them are under way."""
    with pynng.Req0(dial=url, **_dialing(papers)) as req:
        body = bytes(size)
        meter = Meter(seconds, block=16)
        ticks = iter(meter)

        async def request() -> None:
            with req.new_context() as context:
                for _ in ticks:
                    await context.asend(body)
                    await context.arecv()

        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(request)
        return meter.rate * size


async def connect(_line: Line, url: str, times: int, papers: Papers, **_ws: object) -> list[tuple[float, bool]]:
    """Dial *times* times, each with a new socket; return the seconds until the first reply.

    No session is resumed.
    """
    options = _dialing(papers)
    found: list[tuple[float, bool]] = []
    for _ in range(times):
        with pynng.Req0(**options) as req:
            start = perf_counter()
            req.dial(url, block=True)
            await req.asend(b"")
            await req.arecv()
            found.append((perf_counter() - start, False))
    return found
