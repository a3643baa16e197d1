"""Prints what is published under one topic: ``python -m examples.subscriber URL TOPIC``."""

import sys

import trio

import sp


async def main(url: str, topic: str) -> None:
    async with sp.Sub0(topics=[topic.encode(), b"end"], dial=url) as sub:
        async for body in sub:
            if body == b"end":
                break
            print(body.decode(), flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
