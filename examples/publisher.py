"""Publishes temperatures and humidities: ``python -m examples.publisher [URL]``.

It waits for two subscribers, so that they miss nothing.
"""

import sys

import trio

import sp


async def main(url: str) -> None:
    async with sp.Pub0(listen=url) as pub:
        print("listening on", pub.url, flush=True)
        await pub.wait_for_peers(2)
        for value in range(20, 25):
            await pub.send(f"temperature {value}".encode())
            await pub.send(f"humidity {value * 2}".encode())
        await pub.send(b"end")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5556")
