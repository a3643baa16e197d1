"""Asks a service ten questions at the same time: ``python -m examples.client URL [CERTIFICATES]``.

CERTIFICATES is a directory that ``examples.certificates`` has filled, for a URL with TLS.
"""

import sys
from pathlib import Path

import trio

import sp


async def ask(req: sp.Req0, question: str) -> None:
    answer = await req.request(question.encode())
    print(answer.decode())


async def main(url: str, tls: sp.TLSClientConfig | None = None) -> None:
    async with sp.Req0(dial=url, tls=tls) as req, trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(ask, req, f"question {number}")


def tls_from(directory: Path) -> sp.TLSClientConfig:
    return sp.TLSClientConfig(ca=directory / "ca.pem", certificate=directory / "client.pem")


if __name__ == "__main__":
    _, url, *arguments = sys.argv
    trio.run(main, url, tls_from(Path(arguments[0])) if arguments else None)
