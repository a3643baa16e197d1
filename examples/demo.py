"""What ``make demo`` shows: a service and its clients over TLS with throwaway certificates, and a publisher with two subscribers."""

import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import trio

import sp
from examples.certificates import make_certificates
from examples.client import tls_from

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUND_TRIPS = 10_000
CONNECTIONS = 50
QUESTION = b"what is the answer?"


@contextmanager
def program(name: str, *arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """Run an example in a process of its own."""
    with subprocess.Popen([sys.executable, "-m", f"examples.{name}", *arguments], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def lines(process: "subprocess.Popen[str]") -> "Iterator[str]":
    assert process.stdout is not None
    for line in process.stdout:
        yield line.strip()


async def ask(url: str, tls: sp.TLSClientConfig) -> None:
    async with sp.Req0(tls=tls) as req:
        await req.dial(url)
        info = req.pipes[0].tls
        assert info is not None
        print(f"client:       {info.version}, {info.cipher}, {info.group}")
        print(f"client:       the service is {', '.join(info.names)}: {'verified' if info.verified else 'NOT verified'}")
        print(f"client:       {QUESTION.decode()!r} -> {(await req.request(QUESTION)).decode()!r}")
        began = time.perf_counter()
        for _ in range(ROUND_TRIPS):
            await req.send(b"x" * 64)
            await req.receive()
        print(f"client:       {ROUND_TRIPS / (time.perf_counter() - began):,.0f} round trips/s, 64 bytes, one after the other")


async def be_refused(url: str, tls: sp.TLSClientConfig) -> None:
    async with sp.Req0(tls=tls) as req:
        try:
            await req.dial(url)
        except sp.DialError as error:
            print(f"no client:    {error}")


async def first_reply(url: str, tls: sp.TLSClientConfig) -> tuple[bool, float]:
    """Connect, ask and get an answer; return whether a session was resumed, and the milliseconds."""
    async with sp.Req0(tls=tls) as req:
        began = time.perf_counter()
        await req.dial(url)
        await req.request(QUESTION)
        passed = time.perf_counter() - began
        info = req.pipes[0].tls
        assert info is not None
        return info.resumed, 1000 * passed


async def compare_connections(url: str, directory: Path) -> None:
    once = sp.TLSClientConfig(ca=directory / "ca.pem", certificate=directory / "client.pem", session_reuse=False)
    again = tls_from(directory)
    await first_reply(url, again)  # from here on it has a session
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(CONNECTIONS):
        for tls in (once, again):
            resumed, passed = await first_reply(url, tls)
            times[resumed].append(passed)
    full, resumed_time = median(times[False]), median(times[True])
    print(f"connections:  first reply after {full:.2f} ms with a full handshake, {resumed_time:.2f} ms with a resumed session")


def main() -> None:
    print("== request and reply over TLS, both sides with certificates, two processes")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_certificates(directory)
        with program("service", "tls+tcp://127.0.0.1:0", name) as service:
            listening = next(lines(service))
            print("service:     ", listening)
            url = listening.split()[-1]
            trio.run(ask, url, tls_from(directory))
            trio.run(be_refused, url, sp.TLSClientConfig(ca=directory / "ca.pem"))
            trio.run(compare_connections, url, directory)
    print("== publish and subscribe, three processes")
    with program("publisher", "tcp://127.0.0.1:0") as publisher:
        listening = next(lines(publisher))
        print("publisher:   ", listening)
        url = listening.split()[-1]
        with program("subscriber", url, "temperature") as first, program("subscriber", url, "humidity") as second:
            print("subscriber 1:", ", ".join(lines(first)))
            print("subscriber 2:", ", ".join(lines(second)))


if __name__ == "__main__":
    main()
