"""Asks a service ten questions at once: ``python -m examples.client URL``."""

import sys

import trio

import sp


async def ask(req: sp.Req0, question: str) -> None:
    answer = await req.request(question.encode())
    print(answer.decode())


async def main(url: str) -> None:
    async with sp.Req0(dial=url) as req, trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(ask, req, f"question {number}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
