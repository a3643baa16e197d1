"""A link that encrypts, over links that take and give little at a time.

Nothing is lost or sent twice, and no task waits for ever.
"""

from __future__ import annotations

import gc
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal, cast

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from trio.testing import wait_all_tasks_blocked

import sp
from sp.transports.link import SocketLink
from sp.transports.tls import TLSLink
from tests.tls.authority import Authority
from tests.transports.wire import BUS, REP, REQ, SUB, expect, greeting, until

Version = Literal["TLSv1.2", "TLSv1.3"]
URL = "tls+tcp://127.0.0.1:0"
MUTUAL = pytest.mark.parametrize("mutual", [False, True], ids=["server only", "mutual"])
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(params=["TLSv1.2", "TLSv1.3"])
def version(request: pytest.FixtureRequest) -> Version:
    return cast("Version", request.param)


class Thin:
    """One end of a link in memory.

    It takes *size* bytes, then none, in turns, and gives one byte at a time.
    """

    local_address = remote_address = ""
    writer = None

    def __init__(self, size: int) -> None:
        self.other: Thin = self
        self.refused = 0
        """How often it took nothing."""
        self._size = size
        self._takes = False
        self._arrived = bytearray()
        self._finished = False
        self._changed = trio.Event()

    async def open(self, greeting: bytes) -> None:
        assert not greeting

    def send(self, data: bytes | memoryview) -> int:
        self._takes = not self._takes
        if not self._takes:
            self.refused += 1
            raise BlockingIOError
        self.other._arrived += data[: self._size]
        self.other._wake()
        return min(self._size, len(data))

    def recv(self, size: int) -> bytes:
        if not self._arrived and not self._finished:
            raise BlockingIOError
        data = bytes(self._arrived[:1])
        del self._arrived[:1]
        return data

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._arrived and not self._finished:
            await self._changed.wait()

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()

    def finish(self) -> None:
        self.other._finished = True
        self.other._wake()

    def interrupt(self) -> None:
        self._wake()

    def close(self) -> None:
        self.finish()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def thin(size: int = 1) -> tuple[Any, Any]:
    one, other = Thin(size), Thin(size)
    one.other, other.other = other, one
    return one, other


def narrow() -> tuple[Any, Any]:
    """Two ends of a connection with the smallest possible kernel buffers."""
    pair = socket.socketpair()
    for end in pair:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, 1)
    return SocketLink(pair[0], "", ""), SocketLink(pair[1], "", "")


def configs(
    authority: Authority, version: Version, *, mutual: bool = False, names: int = 0
) -> tuple[sp.TLSServerConfig, sp.TLSClientConfig]:
    """Return a matching pair of configurations.  *names* more names make a certificate longer."""
    more = [f"host-{number}.of-many.example.org" for number in range(names)]
    server = authority.server("localhost", *more, **({"client_ca": authority.pem} if mutual else {}))
    client = authority.client(maximum_version=version, **({"certificate": authority.issue("client-7", *more)} if mutual else {}))
    return server, client


async def send_all(link: TLSLink, data: bytes) -> None:
    """Send as a connection does: offer the same bytes again until they are reported as sent."""
    rest = memoryview(data)
    while rest:
        try:
            sent = link.send(rest)
            assert 0 < sent <= len(rest)
            rest = rest[sent:]
        except BlockingIOError:
            await link.wait_writable()


async def receive(link: TLSLink, size: int) -> bytes:
    """Receive *size* bytes, or to the end."""
    data = b""
    while len(data) < size:
        await link.wait_readable()
        try:
            more = link.recv(size - len(data))
        except BlockingIOError:
            continue
        if not more:
            break
        data += more
    return data


async def talk(
    ends: tuple[Any, Any], config: tuple[sp.TLSServerConfig, sp.TLSClientConfig], said: bytes = b"hello"
) -> tuple[TLSLink, TLSLink]:
    """Do the handshake, and exchange greetings and first data.

    Return the server's link and the client's.
    """
    links = TLSLink(ends[0], config[0]), TLSLink(ends[1], config[1], host="localhost", port=5555)
    heard: dict[int, bytes] = {}

    async def one(index: int, number: int) -> None:
        link = links[index]
        await link.open(greeting(number))
        heard[index] = await receive(link, 8)
        await send_all(link, said)
        heard[index] += await receive(link, len(said))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, 0, REP)
            nursery.start_soon(one, 1, REQ)
    assert heard == {0: greeting(REQ) + said, 1: greeting(REP) + said}
    for link in links:
        assert link.tls is not None
    return links


@asynccontextmanager
async def opened(authority: Authority, version: Version, ends: tuple[Any, Any]) -> AsyncIterator[tuple[TLSLink, TLSLink]]:
    links = await talk(ends, configs(authority, version))
    try:
        for link in links:
            with pytest.raises(BlockingIOError):
                while link.recv(1):
                    pass
        yield links
    finally:
        for link in links:
            link.close()


# Little at a time.


@pytest.mark.slow
@MUTUAL
async def test_a_handshake_and_first_words_pass_one_byte_at_a_time(authority: Authority, version: Version, mutual: bool) -> None:
    config = configs(authority, version, mutual=mutual)
    for resumed in (False, True):
        ends = thin()
        links = await talk(ends, config)
        assert all(end.refused > 10 for end in ends)
        for link in links:
            assert link.tls is not None
            assert link.tls.resumed is resumed
            link.close()


@MUTUAL
async def test_certificates_longer_than_what_the_kernel_keeps_pass(authority: Authority, version: Version, mutual: bool) -> None:
    config = configs(authority, version, mutual=mutual, names=400)
    for source in (config[0].certificate, config[1].certificate):
        if source is not None:
            pem = cast("bytes", source)
            (found, *_) = x509.load_pem_x509_certificates(pem[pem.index(b"-----BEGIN CERT") :])
            assert len(found.public_bytes(serialization.Encoding.DER)) > 10_000
    for link in await talk(narrow(), config):
        link.close()


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 1000, 100_000])
async def test_each_byte_is_reported_once(authority: Authority, version: Version, size: int) -> None:
    async with opened(authority, version, thin(size)) as links:
        data = os.urandom(2000 if size == 1 else 400_000)
        for source, target in (links, links[::-1]):
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send_all, source, data)
                    # Byte by byte would take too long: decrypting waits for whole records anyway.
                    inside: Any = target
                    inside._recv = gulp(inside._inner)
                    assert await receive(target, len(data)) == data


def gulp(end: Any) -> Callable[[int], bytes]:
    def recv(size: int) -> bytes:
        if not end._arrived:
            raise BlockingIOError
        data = bytes(end._arrived[:size])
        del end._arrived[:size]
        return data

    return recv


async def test_parts_are_sent_as_one_whole(authority: Authority, version: Version) -> None:
    parts: list[bytes | memoryview] = [b"a" * 9, b"b" * 70_000, memoryview(b"c" * 200_000), b"", b"d"]
    whole = b"".join(parts)
    async with opened(authority, version, narrow()) as (server, client):

        async def send_parts() -> None:
            rest = list(parts)
            while rest:
                try:
                    sent = server.send_parts(rest)
                except BlockingIOError:
                    await server.wait_writable()
                    continue
                while rest and sent >= len(rest[0]):
                    sent -= len(rest[0])
                    del rest[0]
                if sent:
                    rest[0] = memoryview(rest[0])[sent:]

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_parts)
                assert await receive(client, len(whole)) == whole


async def test_both_sides_may_write_more_than_the_kernel_keeps(authority: Authority, version: Version) -> None:
    data = os.urandom(300_000)
    async with opened(authority, version, narrow()) as links:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for link in links:
                    nursery.start_soon(send_all, link, data)

                async def check(link: TLSLink) -> None:
                    assert await receive(link, len(data)) == data

                for link in links:
                    nursery.start_soon(check, link)


# A full kernel buffer.


def fill(link: TLSLink) -> int:
    """Write until no more is taken.  Return how many bytes were encrypted."""
    size = 0
    while True:
        try:
            size += link.send(bytes(1000))
        except BlockingIOError:
            return size + 1000


@pytest.mark.parametrize("who", [0, 1], ids=["server", "client"])
async def test_the_end_is_reported_even_when_the_kernel_is_full_at_that_moment(authority: Authority, version: Version, who: int) -> None:
    async with opened(authority, version, narrow()) as links:
        source, target = links[who], links[1 - who]
        size = fill(source)
        source.finish()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, source, 1)  # as a pipe does that is finishing
                assert await receive(target, size) == bytes(size)
                assert await receive(target, 1) == b""  # and not an error
                target.finish()


@linux_only
@pytest.mark.parametrize("peer", ["reads", "writes"])
async def test_a_wait_for_both_directions_ends_when_either_is_possible(authority: Authority, version: Version, peer: str) -> None:
    async with opened(authority, version, narrow()) as (server, client):
        fill(server)
        ended = False

        async def wait() -> None:
            nonlocal ended
            await server.wait_readable()
            ended = True

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await wait_all_tasks_blocked(0.01)
                assert not ended
                if peer == "writes":
                    client.send(b"x")
                else:
                    assert client._inner.recv(1 << 20)
            if peer == "writes":
                assert server.recv(10) == b"x"
                assert server._unflushed


async def test_data_that_the_kernel_did_not_take_is_sent_while_a_reader_waits(authority: Authority, version: Version) -> None:
    async with opened(authority, version, narrow()) as (server, client):
        size = fill(server)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, server, 1)
                assert await receive(client, size) == bytes(size)
                client.send(b"x")


@pytest.mark.parametrize("is_full", [False, True], ids=["nothing to say", "much to say"])
async def test_an_interrupt_wakes_a_reader(authority: Authority, version: Version, is_full: bool) -> None:
    async with opened(authority, version, narrow()) as (server, _):
        if is_full:
            fill(server)
        for _ in range(3):
            woken = trio.Event()

            async def wait(woken: trio.Event = woken) -> None:
                try:
                    await server.wait_readable()
                except trio.ClosedResourceError:
                    pass
                woken.set()

            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait)
                    await wait_all_tasks_blocked(0.01)
                    assert not woken.is_set()
                    server.interrupt()
                    await woken.wait()


async def test_a_link_that_is_closed_wakes_its_reader_and_says_the_end(authority: Authority, version: Version) -> None:
    async with opened(authority, version, narrow()) as (server, client):
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await server.wait_readable()

                nursery.start_soon(wait)
                await wait_all_tasks_blocked(0.01)
                server.close()
                server.close()
            assert await receive(client, 1) == b""


async def test_a_link_that_is_closed_in_its_handshake_ends_it(authority: Authority, version: Version) -> None:
    config = configs(authority, version)
    for index in (0, 1):
        ends = narrow()
        link = TLSLink(ends[index], config[index], host="localhost", port=5555)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:

                async def shake(link: TLSLink = link) -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await link.open(greeting(REQ))

                nursery.start_soon(shake)
                await wait_all_tasks_blocked(0.01)
                link.close()
        ends[1 - index].close()


async def test_an_end_without_close_notify_is_an_error(authority: Authority, version: Version) -> None:
    async with opened(authority, version, narrow()) as (server, client):
        client.send(b"last words")
        client._inner.finish()
        with trio.fail_after(5):
            assert await receive(server, 10) == b"last words"
            with pytest.raises(sp.PeerClosed, match="without ending TLS"):
                await receive(server, 1)


# A peer that does not read.


@asynccontextmanager
async def deaf(url: str, number: int, authority: Authority) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
    """A client of the standard library that greets as *number* and then never reads again."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    plain = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
    stream = trio.SSLStream(plain, context, server_hostname="localhost")
    await stream.send_all(greeting(number))
    data = b""
    while len(data) < 8:
        data += await stream.receive_some(8 - len(data))
    try:
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


def resident() -> int:
    """Return the memory of this process in bytes, including memory outside Python objects."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@linux_only
@pytest.mark.parametrize("kind", ["pub", "bus"])
async def test_a_subscriber_that_never_reads_costs_bounded_memory_and_the_rest_is_dropped(authority: Authority, kind: str) -> None:
    make: type[sp.Pub0] | type[sp.Bus0]
    make, number = (sp.Pub0, SUB) if kind == "pub" else (sp.Bus0, BUS)
    with trio.fail_after(30):
        async with make(listen=URL, tls=authority.server(), linger=0) as pub, deaf(pub.url, number, authority):
            await pub.wait_for_peers()
            body = bytes(100_000)
            for _ in range(100):  # fill what there is to fill
                await pub.send(body)
                await trio.lowlevel.checkpoint()
            before = resident()
            for _ in range(2000):
                await pub.send(body)
                await trio.lowlevel.checkpoint()
            assert resident() - before < 20_000_000
            figures = pub.statistics()
            # And one that is being written.
            assert (figures.pipes[0].outbox - 1) * len(body) <= 4 << 20
            assert sum(figures.dropped.values()) > 1500
            (pipe,) = pub.pipes
            inside: Any = pipe
            assert len(inside._worker.connection._link._left) <= 150_000


@pytest.mark.parametrize("scheme", ["tcp", "tls+tcp"])
async def test_requests_wait_for_a_replier_that_never_reads_as_they_do_without_tls(authority: Authority, scheme: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.ca.issue_cert("127.0.0.1").configure_cert(context)
    (listening,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listening.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    url = f"{scheme}://127.0.0.1:{listening.socket.getsockname()[1]}"
    sent = 0
    with trio.fail_after(20):
        async with (
            listening,
            sp.Req0(tls=authority.client() if scheme == "tls+tcp" else None, outbox_limit=4, linger=0) as req,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(req.dial, url)
            plain = await listening.accept()
            stream = plain if scheme == "tcp" else trio.SSLStream(plain, context, server_side=True)
            await stream.send_all(greeting(REP))
            await req.wait_for_peers()

            async def ask() -> None:
                nonlocal sent
                async with req.context() as one:
                    await one.send(bytes(200_000))
                    sent += 1
                    await trio.sleep_forever()

            for _ in range(100):
                nursery.start_soon(ask)
            await wait_all_tasks_blocked(0.1)
            assert 4 <= sent < 60
            assert req.statistics().pipes[0].outbox <= 4 + 1  # and one that is being written
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(stream)


# Nothing is left behind.


@pytest.mark.slow
@linux_only
async def test_two_hundred_failed_handshakes_leave_no_descriptor(authority: Authority, version: Version) -> None:
    stranger = Authority().client(maximum_version=version)
    with trio.fail_after(30):
        async with sp.Rep0(listen=URL, tls=authority.server()) as rep, sp.Req0(tls=stranger) as req:
            (listener,) = rep.listeners
            with pytest.raises(sp.DialError):
                await req.dial(listener.url)
            await until(lambda: not listener.statistics().in_handshake)
            gc.collect()
            before = len(os.listdir("/proc/self/fd"))
            for number in range(200):
                with pytest.raises(sp.DialError, match="the server's certificate was refused"):
                    await req.dial(listener.url)
                await until(lambda number=number: listener.statistics().failures["AuthenticationError"] == number + 2)
            assert len(os.listdir("/proc/self/fd")) == before
            assert listener.statistics().failures == {"AuthenticationError": 201}


async def test_a_pipe_that_closes_says_so_in_tls(authority: Authority, version: Version) -> None:
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.maximum_version = ssl.TLSVersion.TLSv1_2 if version == "TLSv1.2" else ssl.TLSVersion.TLSv1_3
    with trio.fail_after(10):
        async with sp.Rep0(listen=URL, tls=authority.server()) as rep:
            events = rep.events()
            plain = await trio.open_tcp_stream("127.0.0.1", int(rep.url.rpartition(":")[2]))
            # It raises for an end without close_notify.
            stream = trio.SSLStream(plain, context, server_hostname="localhost")
            await stream.send_all(greeting(REQ))
            await expect(events, sp.EventKind.ATTACHED)
            rep.pipes[0].close()
            data = b""
            while more := await stream.receive_some():
                data += more
            assert data == greeting(REP)
            await trio.aclose_forcefully(stream)
