"""What ``make demo`` shows: a service and its client in two processes, a publisher and two subscribers in three."""

import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

import sp

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUND_TRIPS = 20_000


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


async def ask(url: str) -> None:
    async with sp.Req0() as req:
        await req.dial(url)
        question = b"what is the answer?"
        print(f"client:       {question.decode()!r} -> {(await req.request(question)).decode()!r}")
        began = time.perf_counter()
        for _ in range(ROUND_TRIPS):
            await req.send(b"x" * 64)
            await req.receive()
        print(f"client:       {ROUND_TRIPS / (time.perf_counter() - began):,.0f} round trips/s, 64 bytes, one after the other")


def main() -> None:
    print("== request and reply, two processes")
    with program("service", "tcp://127.0.0.1:0") as service:
        listening = next(lines(service))
        print("service:     ", listening)
        trio.run(ask, listening.split()[-1])
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
