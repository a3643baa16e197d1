"""Our own subject: a socket on the command line, with the options of nngcat and nanocat that the
cases need.

python -m interop.conformance.ours --rep --listen tcp://127.0.0.1:5555 --data answer --quoted
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

import sp

SOCKETS: Final = {
    "rep": "Rep0",
    "req": "Req0",
    "respondent": "Respondent0",
    "surveyor": "Surveyor0",
    "pull": "Pull0",
    "push": "Push0",
    "sub": "Sub0",
    "pub": "Pub0",
    "bus": "Bus0",
    "pair0": "Pair0",
    "pair1": "Pair1",
}


def show(body: bytes) -> None:
    """Print *body* in quotes, on a line of its own."""
    print('"' + "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in body) + '"', flush=True)


async def again(interval: float | None, act: Callable[[], Awaitable[None]]) -> None:
    """Act once, or every *interval* seconds."""
    while True:
        await act()
        if interval is None:
            return
        await trio.sleep(interval)


async def receive(socket: Any) -> None:
    while True:
        show(await socket.receive())


async def work(socket: Any, options: argparse.Namespace) -> None:
    """Do what the role asks for."""
    data = options.data.encode()

    async def ask() -> None:
        show(await socket.request(data))

    async def survey() -> None:
        async for answer in socket.survey(data, deadline=1):
            show(answer)

    async def send() -> None:
        await socket.send(data)

    match options.role:
        case "rep" | "respondent":
            async for asked in socket.requests() if options.role == "rep" else socket.surveys():
                show(asked.body)
                await asked.reply(data)
        case "req":
            await again(options.interval, ask)
        case "surveyor":
            await again(options.interval, survey)
        case "pub" | "push":
            await again(options.interval, send)
        case "sub" | "pull":
            await receive(socket)
        case _:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(again, options.interval, send)
                nursery.start_soon(receive, socket)


async def main(options: argparse.Namespace) -> None:
    topics = {"topics": options.subscribe.encode()} if options.role == "sub" else {}
    async with getattr(sp, SOCKETS[options.role])(redial_min=0.01, redial_max=0.05, **topics) as socket:
        if options.listen is not None:
            await socket.listen(options.listen)
        else:
            await socket.dial(options.dial, wait=False)
        await work(socket, options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m interop.conformance.ours", description="an SP socket on the command line")
    role = parser.add_mutually_exclusive_group(required=True)
    for name in SOCKETS:
        role.add_argument(f"--{name}", dest="role", action="store_const", const=name)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--listen")
    where.add_argument("--dial")
    parser.add_argument("--data", default="")
    parser.add_argument("--interval", type=float)
    parser.add_argument("--subscribe", default="")
    parser.add_argument("--quoted", action="store_true", help="print what is received in quotes: the only way there is")
    trio.run(main, parser.parse_args())
