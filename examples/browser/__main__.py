"""Serves a web page, and the sockets that it subscribes to and asks.

``python -m examples.browser CERTIFICATES [PAGE_PORT [SERVICE_PORT [SECONDS]]]``

CERTIFICATES is a directory that ``examples.certificates`` has filled.  A tick is published every
SECONDS.  README.md, beside this file, explains the rest.
"""

import itertools
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import trio

import sp


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the base class's
        pass


async def tick(pub: sp.Pub0, seconds: float) -> None:
    for number in itertools.count(1):
        await pub.send(f"tick {number}".encode())
        await trio.sleep(seconds)


async def answer(rep: sp.Rep0) -> None:
    async for request in rep.requests():
        print("asked:", request.body.decode(), flush=True)
        await request.reply(b"you asked: " + request.body)


async def tell(events: sp.EventStream) -> None:
    async for event in events:
        print(event, flush=True)


async def main(certificates: Path, page_port: int, service_port: int, seconds: float) -> None:
    tls = sp.TLSServerConfig(certificate=certificates / "server.pem")
    with ThreadingHTTPServer(("localhost", page_port), partial(Quiet, directory=Path(__file__).parent)) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            page = f"http://localhost:{server.server_port}"
            # A page can connect with the cookies of the person who opened it, so only the origins
            # listed here may.
            ws = sp.WSServerConfig(origins=page)
            async with sp.Pub0(tls=tls, ws=ws) as pub, sp.Rep0(tls=tls, ws=ws) as rep, trio.open_nursery() as nursery:
                ticks = await pub.listen(f"wss://localhost:{service_port}/ticks")
                service = ticks.url.removesuffix("/ticks")
                await rep.listen(f"{service}/questions")  # two sockets, one port
                nursery.start_soon(tell, pub.events())
                nursery.start_soon(tell, rep.events())
                print(f"open {page}/?service={service}", flush=True)
                nursery.start_soon(tick, pub, seconds)
                await answer(rep)
        finally:
            server.shutdown()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m examples.browser CERTIFICATES [PAGE_PORT [SERVICE_PORT [SECONDS]]]")
    _, directory, *rest = sys.argv
    page_port, service_port, seconds = [*rest, *["8000", "8443", "1"][len(rest) :]]
    try:
        trio.run(main, Path(directory), int(page_port), int(service_port), float(seconds))
    except KeyboardInterrupt:
        pass
