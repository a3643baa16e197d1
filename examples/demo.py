"""What ``make demo`` shows: request and reply over TLS, and publish and subscribe.

The service, the publisher and the subscribers are the other examples, each in a process of its own.
The certificates are made for the demo and thrown away.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import trio

import sp
from examples.certificates import make_certificates
from examples.client import tls_from

QUESTION = b"what is the answer?"
QUESTIONS = 10_000
CONNECTIONS = 50


def title(text: str) -> None:
    print(f"\n{text}\n", flush=True)


def show(who: str, text: str) -> None:
    print(f"   {who:<14}{text}", flush=True)


@contextmanager
def program(name: str, *arguments: str) -> Iterator[Iterator[str]]:
    """Run an example in a process of its own; give the lines that it prints."""
    command = [sys.executable, "-m", f"examples.{name}", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield (line.strip() for line in process.stdout)
        finally:
            process.terminate()


def url_in(line: str) -> str:
    """Return the URL at the end of ``listening on URL``."""
    return line.rsplit(maxsplit=1)[-1]


async def ask(url: str, tls: sp.TLSClientConfig) -> None:
    async with sp.Req0(tls=tls) as req:
        await req.dial(url)
        info = req.pipes[0].tls
        assert info is not None
        show("client", f"connected with {info.version}, {info.cipher}, {info.group}")
        show("client", f"the certificate of the service is for {', '.join(info.names)}: {'verified' if info.verified else 'NOT verified'}")
        show("client", f"asks    {QUESTION.decode()!r}")
        show("client", f"answer  {(await req.request(QUESTION)).decode()!r}")
        began = time.perf_counter()
        for _ in range(QUESTIONS):
            await req.send(b"x" * 64)
            await req.receive()
        rate = QUESTIONS / (time.perf_counter() - began)
        show("client", f"{QUESTIONS:,} more questions, one after the other: {rate:,.0f} round trips/s")


async def be_refused(url: str, tls: sp.TLSClientConfig) -> None:
    async with sp.Req0(tls=tls) as req:
        try:
            await req.dial(url)
        except sp.DialError as error:
            show("stranger", str(error))


async def first_answer(url: str, tls: sp.TLSClientConfig) -> tuple[bool, float]:
    """Connect and ask; return whether the TLS session was resumed, and the milliseconds."""
    async with sp.Req0(tls=tls) as req:
        began = time.perf_counter()
        await req.dial(url)
        await req.request(QUESTION)
        passed = time.perf_counter() - began
        info = req.pipes[0].tls
        assert info is not None
        return info.resumed, 1000 * passed


async def compare_connections(url: str, directory: Path) -> None:
    always_new = sp.TLSClientConfig(ca=directory / "ca.pem", certificate=directory / "client.pem", session_reuse=False)
    remembers = tls_from(directory)
    await first_answer(url, remembers)  # it has a session from here on
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(CONNECTIONS):
        for tls in (always_new, remembers):
            resumed, passed = await first_answer(url, tls)
            times[resumed].append(passed)
    show("new client", f"first answer after {median(times[False]):.2f} ms, with a full handshake")
    show("reconnect", f"first answer after {median(times[True]):.2f} ms, with a resumed session")


def show_tls() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_certificates(directory)
        title("1. Request and reply over TLS. Service and client check each other's certificate.")
        with program("service", "tls+tcp://127.0.0.1:0", name) as service:
            listening = next(service)
            show("service", listening)
            url = url_in(listening)
            trio.run(ask, url, tls_from(directory))
            title("2. A client without a certificate is refused, and told why.")
            trio.run(be_refused, url, sp.TLSClientConfig(ca=directory / "ca.pem"))
            title(f"3. A client that comes back resumes its session (medians of {CONNECTIONS} connections).")
            trio.run(compare_connections, url, directory)


def show_subscribers() -> None:
    title("4. Publish and subscribe. Each subscriber gets the topic that it asked for.")
    with program("publisher", "tcp://127.0.0.1:0") as publisher:
        listening = next(publisher)
        show("publisher", listening)
        url = url_in(listening)
        with program("subscriber", url, "temperature") as first, program("subscriber", url, "humidity") as second:
            show("subscriber 1", ", ".join(first))
            show("subscriber 2", ", ".join(second))


if __name__ == "__main__":
    show_tls()
    show_subscribers()
    print("\nThe programs are in examples/, and docs/guide.md explains how to write your own.")
