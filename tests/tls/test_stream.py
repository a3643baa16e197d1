"""A trio stream over an encrypted link keeps all promises of a trio stream."""

from __future__ import annotations

import socket
from functools import partial

import pytest
import trio
import trio.testing
from trio.testing import check_half_closeable_stream, check_two_way_stream

import sp
from sp.transports.link import Link, SocketLink
from sp.transports.tls import TLSLink
from tests.tls.authority import Authority
from tests.tls.link_stream import LinkStream

SMALL = 4096
"""Bytes; a small kernel buffer, which is soon full."""


def links() -> tuple[SocketLink, SocketLink]:
    pair = socket.socketpair()
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    return SocketLink(pair[0], "", ""), SocketLink(pair[1], "", "")


async def plain() -> tuple[LinkStream, LinkStream]:
    one, other = links()
    return LinkStream(one), LinkStream(other)


async def encrypted(server: sp.TLSServerConfig, client: sp.TLSClientConfig) -> tuple[LinkStream, LinkStream]:
    one, other = links()
    ends: list[Link] = [TLSLink(one, server), TLSLink(other, client, host="localhost", port=1)]
    async with trio.open_nursery() as nursery:
        for end in ends:
            nursery.start_soon(end.open, b"")
    return LinkStream(ends[0]), LinkStream(ends[1])


async def test_a_plain_link_makes_a_two_way_stream() -> None:
    await check_two_way_stream(plain, None)


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_an_encrypted_link_makes_a_two_way_stream(authority: Authority, version: str) -> None:
    server, client = authority.server(), authority.client(maximum_version=version)
    await check_two_way_stream(partial(encrypted, server, client), None)


async def test_an_encrypted_link_can_be_closed_in_one_direction(authority: Authority) -> None:
    server, client = authority.server(), authority.client()
    await check_half_closeable_stream(partial(encrypted, server, client), None)


async def test_after_a_cancelled_send_nothing_more_can_be_sent(authority: Authority) -> None:
    one, other = await encrypted(authority.server(), authority.client())
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_all, bytes(2_000_000))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    with pytest.raises(trio.BrokenResourceError, match="an earlier send was cancelled"):
        await one.send_all(b"new words")
    await one.aclose()
    await other.aclose()


async def test_every_reader_gets_the_error_of_a_forged_record(authority: Authority) -> None:
    """A task that reads directly may get it first, and the pipe's own task must get it too."""
    inner, wire = links()
    one, other = TLSLink(inner, authority.server()), TLSLink(wire, authority.client(), host="localhost", port=1)
    async with trio.open_nursery() as nursery:
        for end in (one, other):
            nursery.start_soon(end.open, b"")
    wire.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    with trio.fail_after(5):
        await one.wait_readable()
        for _ in range(2):
            with pytest.raises(sp.TLSError, match="bad record mac"):
                one.recv(100)
            await one.wait_readable()
    one.close()
    other.close()


async def test_the_last_of_the_handshake_the_greeting_and_the_first_message_of_a_client_leave_in_one_write(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = links()
    client, server = TLSLink(near, authority.client(), host="localhost", port=1), TLSLink(far, authority.server())
    writes: list[int] = []
    send = client._send

    def count(data: bytes | memoryview) -> int:
        writes.append(len(data))
        return send(data)

    monkeypatch.setattr(client, "_send", count)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.open, b"greeting")
            await client.open(b"reply to")
            await client.wait_readable()
            assert client.recv(8) == b"greeting", "it has come with the server's first flight"
            assert len(writes) == 1, "nothing but the hello"
            assert client.send(b"request") == 7
            assert len(writes) == 2
        await server.wait_readable()
        assert server.recv(100) == b"reply torequest"
    client.close()
    server.close()
