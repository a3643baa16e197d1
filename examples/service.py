"""A service that answers questions, any number at once: ``python -m examples.service [URL]``."""

import sys

import trio

import sp


async def answer(request: sp.Request) -> None:
    await request.reply(b"you asked: " + request.body)


async def main(url: str) -> None:
    async with sp.Rep0(listen=url) as rep, trio.open_nursery() as nursery:
        print("listening on", rep.listeners[0].url, flush=True)
        async for request in rep.requests():
            nursery.start_soon(answer, request)


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5555")
