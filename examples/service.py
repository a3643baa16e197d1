"""Answers questions, any number at the same time:
``python -m examples.service [URL [CERTIFICATES]]``.

For TLS, give a URL such as ``tls+tcp://127.0.0.1:5555`` and a directory that
``examples.certificates`` has filled.  Clients then need a certificate from the same directory.
"""

import sys
from pathlib import Path

import trio

import sp


async def answer(request: sp.Request) -> None:
    await request.reply(b"you asked: " + request.body)


async def main(url: str, tls: sp.TLSServerConfig | None = None) -> None:
    async with sp.Rep0(listen=url, tls=tls) as rep, trio.open_nursery() as nursery:
        print("listening on", rep.url, flush=True)
        async for request in rep.requests():
            nursery.start_soon(answer, request)


def tls_from(directory: Path) -> sp.TLSServerConfig:
    return sp.TLSServerConfig(certificate=directory / "server.pem", client_ca=directory / "ca.pem")


if __name__ == "__main__":
    _, *arguments = sys.argv
    url = arguments[0] if arguments else "tcp://127.0.0.1:5555"
    trio.run(main, url, tls_from(Path(arguments[1])) if len(arguments) > 1 else None)
