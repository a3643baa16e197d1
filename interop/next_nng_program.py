"""A socket of nng 2.0, as a program: commands on its input, results on its output.

python -m interop.next_nng_program Rep0

Each command and each result is a length of four bytes, then as many bytes; the first byte of a
command says which it is.
"""

from __future__ import annotations

import json
import struct
import sys
import threading
from typing import Any, Final

import nng

LISTEN, DIAL, WAIT, SEND, RECEIVE = (bytes((letter,)) for letter in b"LDWSR")
SURVEY: Final = 60_000
"""Milliseconds that a survey is open."""


def make(name: str) -> Any:
    """Make the socket that pynng calls *name*; a SUB is subscribed to everything."""
    options = {"v0": True} if name == "Pair0" else {}
    socket: Any = getattr(nng, f"{name.rstrip('01')}Socket")(**options)
    if name == "Sub0":
        socket.subscribe(b"")
    elif name == "Surveyor0":
        socket.survey_time = SURVEY
    return socket


class Arrivals:
    """All pipes that a socket has had so far, counted once its protocol can use them."""

    def __init__(self, socket: Any) -> None:
        self._pipes: set[int] = set()
        self._changed = threading.Condition()
        socket.on_new_pipe = self._greet

    def _greet(self, pipe: Any) -> None:
        pipe.on_status_change = lambda: self._look(pipe)
        self._look(pipe)

    def _look(self, pipe: Any) -> None:
        with self._changed:
            if pipe.status == nng.PipeStatus.ACTIVE:
                self._pipes.add(pipe.id)
                self._changed.notify_all()

    def wait(self, n: int) -> None:
        """Wait for the *n*-th pipe."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._pipes) >= n)


def listen(socket: Any, url: str, own: str | None) -> str:
    """Listen, over TLS with the certificate and key in the file *own*.

    Return the URL with the port that was bound.
    """
    listener = socket.add_listener(url, tls=nng.TlsConfig.for_server(cert_file=own) if own else None)
    listener.start()
    return url if url.startswith("ipc:") else url.replace(":0", f":{listener.port}")


def dial(socket: Any, url: str, ca: str | None) -> str:
    """Dial in the background; over TLS, trust the authorities in the file *ca*."""
    tls = nng.TlsConfig.for_client(server_name="localhost", ca_file=ca) if ca else None
    socket.add_dialer(url, tls=tls, reconnect_min_ms=10, reconnect_max_ms=10).start(block=False)
    return ""


def main(name: str) -> None:
    socket = make(name)
    arrivals = Arrivals(socket)
    while head := sys.stdin.buffer.read(4):
        (size,) = struct.unpack(">I", head)
        command = sys.stdin.buffer.read(size)
        verb, argument = command[:1], command[1:]
        result = b""
        if verb == LISTEN:
            result = listen(socket, **json.loads(argument)).encode()
        elif verb == DIAL:
            dial(socket, **json.loads(argument))
        elif verb == WAIT:
            arrivals.wait(int(argument))
        elif verb == SEND:
            socket.send(argument)
        elif verb == RECEIVE:
            result = socket.recv().to_bytes()
        sys.stdout.buffer.write(struct.pack(">I", len(result)) + result)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1])
