"""TLS without trio-sp: pyOpenSSL over memory buffers, and a crowd of clients that use Python's ssl."""

from __future__ import annotations

import ssl

import trio
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate
from OpenSSL import SSL

from bench.harness import Line, Meter, hear
from bench.sides import HOST, SERVER_NAME, Papers
from sp.protocol_numbers import REQ
from sp.transports.framing import GREETING_SIZE, encode_greeting

_CHUNK = 64 * 1024
_ROUND_TRIP = bytes.fromhex("0000000000000044 80000001") + bytes(64)


def through_memory(_line: Line, seconds: float, papers: Papers) -> float:
    """Return the bytes a second that one end encrypts and the other decrypts, in one process
    without a network."""
    client, server = _ends(papers)
    for _ in range(3):
        for end in (client, server):
            try:
                end.do_handshake()
            except SSL.WantReadError:
                pass
            _carry(client, server)
            _carry(server, client)
    chunk = bytes(_CHUNK)
    meter = Meter(seconds, block=16)
    for _ in meter:
        rest = memoryview(chunk)
        while rest:
            rest = rest[client.send(rest) :]
        _carry(client, server)
        received = 0
        while received < _CHUNK:
            received += len(server.recv(_CHUNK))
    return meter.rate * _CHUNK


def _ends(papers: Papers) -> tuple[SSL.Connection, SSL.Connection]:
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_privatekey(load_pem_private_key(papers.server, None))  # type: ignore[arg-type]
    context.use_certificate(load_pem_x509_certificate(papers.server[papers.server.index(b"-----BEGIN CERT") :]))
    client, server = SSL.Connection(context), SSL.Connection(context)
    client.set_connect_state()
    server.set_accept_state()
    return client, server


def _carry(source: SSL.Connection, target: SSL.Connection) -> None:
    try:
        while True:
            target.bio_write(source.bio_read(2 * _CHUNK))
    except SSL.WantReadError:
        pass


async def crowd(line: Line, port: int, papers: Papers) -> None:
    """Be a crowd of requesters; do all their handshakes at once.

    When asked for a number, and whether each should ask something, connects as many as are missing.
    They verify nobody, so that most of the work is the listener's.
    """
    context = ssl.create_default_context(cadata=papers.ca.decode())
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    requesters: list[trio.SSLStream[trio.SocketStream]] = []

    async def connect(stream: trio.SSLStream[trio.SocketStream], asks: bool) -> None:
        await stream.send_all(encode_greeting(REQ))
        await _receive(stream, GREETING_SIZE)
        if asks:
            await stream.send_all(_ROUND_TRIP)
            await _receive(stream, len(_ROUND_TRIP))

    line.send(None)
    while True:
        number, asks = await hear(line)
        newcomers = [
            trio.SSLStream(await trio.open_tcp_stream(HOST, port), context, server_hostname=SERVER_NAME)
            for _ in range(len(requesters), number)
        ]
        requesters += newcomers
        line.send(None)
        await hear(line)
        async with trio.open_nursery() as nursery:
            for stream in newcomers:
                nursery.start_soon(connect, stream, asks)
        line.send(None)


async def _receive(stream: trio.SSLStream[trio.SocketStream], size: int) -> None:
    while size:
        received = len(await stream.receive_some(size))
        if not received:
            raise EOFError("the listener has closed the connection")
        size -= received
