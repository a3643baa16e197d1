"""Peers that speak no TLS, half of it, or broken TLS: each costs only its own connection, and the
error names the fault.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import re
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio

import sp
from tests.tls.authority import Authority
from tests.transports.wire import BUS, REP, REQ, expect, frame, greeting, receive_end, until

URL = "tls+tcp://127.0.0.1:0"
PLAIN_URL = "tcp://127.0.0.1:0"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
async def rep(authority: Authority) -> AsyncIterator[sp.Rep0]:
    async with sp.Rep0(listen=URL, tls=authority.server(), linger=0) as rep:
        yield rep


async def connect(rep: sp.Rep0) -> trio.SocketStream:
    """Connect by TCP, and say nothing."""
    return await trio.open_tcp_stream("127.0.0.1", int(rep.url.rpartition(":")[2]))


def context_for(authority: Authority | None) -> ssl.SSLContext:
    """Return a client context of the standard library that trusts *authority*, or no authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authority is not None:
        authority.ca.configure_trust(context)
    return context


Secure = trio.SSLStream[trio.SocketStream]


@asynccontextmanager
async def secured(rep: sp.Rep0, authority: Authority) -> AsyncIterator[Secure]:
    """A client of the standard library after the handshake."""
    stream = trio.SSLStream(await connect(rep), context_for(authority), server_hostname="localhost")
    try:
        await stream.do_handshake()
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


@asynccontextmanager
async def attached(rep: sp.Rep0, authority: Authority) -> AsyncIterator[Secure]:
    """One that has greeted as well."""
    async with secured(rep, authority) as stream:
        await stream.send_all(greeting(REQ))
        data = b""
        while len(data) < 8:
            data += await stream.receive_some(8 - len(data))
        assert data == greeting(REP)
        await rep.wait_for_peers()
        yield stream


async def check(rep: sp.Rep0, authority: Authority) -> None:
    """A good client is served."""
    async with sp.Req0(tls=authority.client()) as req:
        await req.dial(rep.url)
        await req.send(b"hello")
        assert await rep.receive() == b"hello"
        await rep.send(b"hello yourself")
        assert await req.receive() == b"hello yourself"


def client_hello() -> bytes:
    """Return what a client of the standard library says first."""
    out = ssl.MemoryBIO()
    client = context_for(None).wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


async def shake(end: ssl.SSLObject, received: ssl.MemoryBIO, sent: ssl.MemoryBIO, stream: trio.SocketStream) -> None:
    """Do the handshake of *end* over *stream*.

    When it fails, the alert is sent first, which trio's own stream does not do.
    """
    while True:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            await stream.send_all(sent.read())
            received.write(await stream.receive_some())
        except ssl.SSLError:
            await stream.send_all(sent.read())
            raise
        else:
            await stream.send_all(sent.read())
            return


def reset(stream: trio.SocketStream) -> None:
    """Let its end be a reset."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# One side has no TLS.


async def test_a_plain_dialer_and_a_tls_listener_name_the_mismatch(rep: sp.Rep0, authority: Authority) -> None:
    events = rep.events()
    with trio.fail_after(10):
        async with sp.Req0() as req:
            with pytest.raises(sp.DialError) as caught:
                await req.dial(rep.url.removeprefix("tls+"))
            assert isinstance(caught.value.__cause__, sp.GreetingError)
            assert "TLS" in str(caught.value)
        event = await expect(events, sp.EventKind.REFUSED)
        assert isinstance(event.error, sp.TLSError)
        assert "SP without TLS: one side says tcp://, the other tls+tcp://" in event.reason
        assert event.reason.startswith("127.0.0.1:")
        await check(rep, authority)


async def test_a_tls_dialer_and_a_plain_listener_name_the_mismatch(authority: Authority) -> None:
    with trio.fail_after(10):
        async with sp.Rep0(listen=PLAIN_URL) as rep, sp.Req0(tls=authority.client()) as req:
            events = rep.events()
            with pytest.raises(sp.DialError, match="SP without TLS: one side says tcp://, the other tls") as caught:
                await req.dial(f"tls+{rep.url}")
            assert isinstance(caught.value.__cause__, sp.TLSError)
            event = await expect(events, sp.EventKind.REFUSED)
            assert isinstance(event.error, sp.GreetingError)
            assert "TLS" in event.reason


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "the client does not speak TLS: it began with b'GET / HT'"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the client does not speak TLS: it began with b'SSH-2.0-'"),
        (bytes(64), "the client does not speak TLS"),
        (b"\x16\x03\x01\x00\x05hello", "TLS handshake: "),
    ],
    ids=["http", "ssh", "zeros", "a broken hello"],
)
async def test_a_peer_that_begins_with_something_else_is_refused_at_once(
    rep: sp.Rep0, authority: Authority, said: bytes, words: str
) -> None:
    events = rep.events()
    with trio.fail_after(10):
        async with await connect(rep) as stream:
            await stream.send_all(said)
            event = await expect(events, sp.EventKind.REFUSED)
            assert isinstance(event.error, sp.TLSError)
            assert words in event.reason
            assert greeting(REP) not in await receive_end(stream)
        await check(rep, authority)


# Half a handshake.


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1, 5, 100])
async def test_half_a_hello_ends_at_the_greeting_timeout(authority: Authority, size: int) -> None:
    with trio.fail_after(10):
        async with sp.Rep0(listen=URL, tls=authority.server(), handshake_timeout=0.2) as rep, await connect(rep) as stream:
            events = rep.events()
            await stream.send_all(client_hello()[:size])
            event = await expect(events, sp.EventKind.REFUSED)
            assert isinstance(event.error, sp.GreetingError)
            assert "the TLS handshake was not complete within 0.2 s" in event.reason
            assert await receive_end(stream) == b""


async def test_a_peer_that_completes_tls_and_does_not_greet_has_an_error_of_its_own(authority: Authority) -> None:
    with trio.fail_after(10):
        async with sp.Rep0(listen=URL, tls=authority.server(), handshake_timeout=0.2) as rep:
            events = rep.events()
            async with secured(rep, authority):
                event = await expect(events, sp.EventKind.REFUSED)
                assert "the greeting was not complete within 0.2 s" in event.reason


async def test_a_silent_listener_fails_a_dial_at_the_deadline(authority: Authority) -> None:
    (listening,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(10):
        async with listening, sp.Req0(tls=authority.client(), handshake_timeout=0.2) as req:
            with pytest.raises(sp.DialError, match="the TLS handshake was not complete within 0.2 s"):
                await req.dial(f"tls+tcp://127.0.0.1:{listening.socket.getsockname()[1]}")


async def test_a_hello_in_single_bytes_is_as_good_as_in_one_piece(rep: sp.Rep0, authority: Authority) -> None:
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context_for(authority).wrap_bio(received, sent, server_hostname="localhost")
    with trio.fail_after(10):
        async with await connect(rep) as stream:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            done = False
            while not done:
                try:
                    client.do_handshake()
                    client.write(greeting(REQ))
                    done = True
                except ssl.SSLWantReadError:
                    pass
                for byte in sent.read():
                    await stream.send_all(bytes([byte]))
                if not done:
                    received.write(await stream.receive_some())
            await rep.wait_for_peers()


@pytest.mark.parametrize("how", ["eof", "reset"])
@pytest.mark.parametrize("size", [0, 3, 100, 10_000])
async def test_a_peer_that_leaves_during_the_handshake_is_reported_and_disturbs_no_other(
    rep: sp.Rep0, authority: Authority, size: int, how: str
) -> None:
    events = rep.events()
    with trio.fail_after(10):
        stream = await connect(rep)
        await stream.send_all(client_hello()[:size])
        if size > 1000:
            await stream.receive_some(1)
        await until(lambda: rep.listeners[0].statistics().accepted == 1)
        if how == "reset":
            reset(stream)
        await stream.aclose()
        event = await expect(events, sp.EventKind.REFUSED)
        assert isinstance(event.error, (sp.PeerClosed, ConnectionError))
        assert event.reason
        if how == "eof" and size < 1000:
            assert "the peer closed the connection during the TLS handshake" in event.reason
        await check(rep, authority)


# After the handshake.


async def test_garbage_after_the_handshake_ends_that_pipe_only(rep: sp.Rep0, authority: Authority) -> None:
    events = rep.events()
    with trio.fail_after(10):
        async with attached(rep, authority) as stream:
            await stream.transport_stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            event = await expect(events, sp.EventKind.DETACHED)
            assert isinstance(event.error, sp.TLSError)
            assert event.reason.startswith("TLS: ") or ": TLS: " in event.reason
            with pytest.raises(trio.BrokenResourceError) as caught:
                await stream.receive_some()
            assert "ALERT" in str(caught.value.__cause__).upper()
        await check(rep, authority)


async def test_a_record_that_is_cut_off_is_reported_as_truncation_and_not_delivered(rep: sp.Rep0, authority: Authority) -> None:
    events = rep.events()
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context_for(authority).wrap_bio(received, sent, server_hostname="localhost")
    with trio.fail_after(10):
        async with await connect(rep) as stream:
            await shake(client, received, sent, stream)
            client.write(greeting(REQ))
            await stream.send_all(sent.read())
            await expect(events, sp.EventKind.ATTACHED)
            client.write(frame(b"\x80\0\0\1request"))
            await stream.send_all(sent.read()[:-3])
            await stream.send_eof()
            event = await expect(events, sp.EventKind.DETACHED)
            assert isinstance(event.error, sp.PeerClosed)
            assert "without ending TLS: the last data it sent may be missing" in event.reason
    with pytest.raises(trio.WouldBlock):
        rep.receive_nowait()


async def test_an_end_without_close_notify_is_reported(rep: sp.Rep0, authority: Authority) -> None:
    events = rep.events()
    with trio.fail_after(10):
        async with attached(rep, authority) as stream:
            await stream.transport_stream.send_eof()
            event = await expect(events, sp.EventKind.DETACHED)
            assert isinstance(event.error, sp.PeerClosed)
            assert "without ending TLS" in event.reason


async def test_an_end_with_close_notify_is_an_ordinary_one(rep: sp.Rep0, authority: Authority) -> None:
    events = rep.events()
    with trio.fail_after(10):
        async with attached(rep, authority) as stream:
            await stream.aclose()
            event = await expect(events, sp.EventKind.DETACHED)
            assert isinstance(event.error, sp.PeerClosed)
            assert "TLS" not in event.reason


async def test_the_wrong_protocol_is_reported_by_name(rep: sp.Rep0, authority: Authority) -> None:
    events = rep.events()
    with trio.fail_after(10):
        async with sp.Bus0(tls=authority.client()) as bus:
            with pytest.raises(sp.DialError, match="the peer is REP, expected BUS") as caught:
                await bus.dial(rep.url)
            assert isinstance(caught.value.__cause__, sp.WrongProtocol)
        async with secured(rep, authority) as stream:
            await stream.send_all(greeting(BUS))
            while not isinstance((event := await expect(events, sp.EventKind.REFUSED)).error, sp.WrongProtocol):
                pass
            assert "the peer is BUS, expected REQ" in event.reason


@pytest.mark.parametrize("size", [(1 << 20) + 1, 1 << 63])
async def test_a_message_too_large_ends_that_pipe_only(rep: sp.Rep0, authority: Authority, size: int) -> None:
    events = rep.events()
    with trio.fail_after(10):
        async with attached(rep, authority) as stream:
            await stream.send_all(struct.pack(">Q", size) + b"and a little")
            event = await expect(events, sp.EventKind.DETACHED)
            assert isinstance(event.error, sp.MessageTooLarge)
            assert str(size) in event.reason
        await check(rep, authority)


async def test_the_largest_message_passes(rep: sp.Rep0, authority: Authority) -> None:
    with trio.fail_after(10):
        async with sp.Req0(tls=authority.client()) as req:
            await req.dial(rep.url)
            body = os.urandom((1 << 20) - 4)
            await req.send(body)
            assert await rep.receive() == body
            await rep.send(body)
            assert await req.receive() == body


# Either side refuses the other.


async def test_a_client_that_refuses_our_certificate_is_heard(rep: sp.Rep0, authority: Authority) -> None:
    events = rep.events()
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context_for(None).wrap_bio(received, sent, server_hostname="localhost")
    with trio.fail_after(10):
        async with await connect(rep) as stream:
            with pytest.raises(ssl.SSLCertVerificationError):
                await shake(client, received, sent, stream)
            event = await expect(events, sp.EventKind.REFUSED)
            assert isinstance(event.error, sp.AuthenticationError)
            assert "the client refused our certificate" in event.reason
            assert "unknown ca" in event.reason
        await check(rep, authority)


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("shown", ["none", "a stranger's"])
async def test_a_server_that_refuses_our_certificate_is_heard(authority: Authority, version: Any, shown: str) -> None:
    """Under 1.3 a client learns that after its own handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.ca.issue_cert("127.0.0.1").configure_cert(context)
    context.verify_mode = ssl.CERT_REQUIRED
    client = authority.client(certificate=None if shown == "none" else Authority().issue("client-7"), maximum_version=version)
    (listening,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(10):
        async with listening, sp.Req0(tls=client) as req, trio.open_nursery() as nursery:

            async def refuse() -> None:
                received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
                async with await listening.accept() as stream:
                    with pytest.raises(ssl.SSLError):
                        await shake(context.wrap_bio(received, sent, server_side=True), received, sent, stream)
                    await receive_end(stream)

            nursery.start_soon(refuse)
            with pytest.raises(sp.DialError) as caught:
                await req.dial(f"tls+tcp://127.0.0.1:{listening.socket.getsockname()[1]}")
            if (shown, version) == ("none", "TLSv1.2"):  # which has no better word for it
                assert isinstance(caught.value.__cause__, sp.TLSError)
                assert "the server ended the connection: " in str(caught.value)
                assert "alert handshake failure" in str(caught.value)
            else:
                assert isinstance(caught.value.__cause__, sp.AuthenticationError)
                assert "the server refused our certificate, or requires one" in str(caught.value)


async def test_both_sides_report_that_they_have_nothing_in_common(authority: Authority) -> None:
    with trio.fail_after(10):
        server = authority.server(minimum_version="TLSv1.3")
        async with sp.Rep0(listen=URL, tls=server) as rep, sp.Req0(tls=authority.client(maximum_version="TLSv1.2")) as req:
            events = rep.events()
            with pytest.raises(sp.DialError, match="the server ended the connection: .*alert protocol version") as caught:
                await req.dial(rep.url)
            assert isinstance(caught.value.__cause__, sp.TLSError)
            event = await expect(events, sp.EventKind.REFUSED)
            assert "TLS handshake: unsupported protocol" in event.reason


# Many.


@pytest.mark.slow
@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01"], ids=["silent", "half a header"])
async def test_two_hundred_silent_peers_delay_no_other(rep: sp.Rep0, authority: Authority, said: bytes) -> None:
    (listener,) = rep.listeners
    with trio.fail_after(20):
        streams = [await connect(rep) for _ in range(200)]
        for stream in streams:
            await stream.send_all(said)
        await until(lambda: listener.statistics().in_handshake == 200)
        with trio.fail_after(2):
            await check(rep, authority)
        assert listener.statistics().in_handshake == 200
        for stream in streams:
            await stream.aclose()
        await until(lambda: not listener.statistics().in_handshake)
        assert sum(listener.statistics().failures.values()) == 200


@pytest.mark.slow
async def test_a_hundred_dialers_at_once_all_attach(rep: sp.Rep0, authority: Authority) -> None:
    with trio.fail_after(30):
        async with sp.Req0(tls=authority.client()) as req, trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(req.dial, rep.url)
        assert rep.listeners[0].statistics().attached == 100
        assert sum(rep.listeners[0].statistics().tls_handshakes.values()) == 100
        assert rep.listeners[0].statistics().failures == {}


def _nothing(_: random.Random) -> bytes:
    return b""


def _noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 64))


def _half_a_hello(rng: random.Random) -> bytes:
    return _HELLO[: rng.randrange(1, len(_HELLO))]


def _a_hello_with_a_fault(rng: random.Random) -> bytes:
    place = rng.randrange(len(_HELLO))
    return _HELLO[:place] + rng.randbytes(1) + _HELLO[place + 1 :]


def _a_hello_and_noise(rng: random.Random) -> bytes:
    return _HELLO + rng.randbytes(rng.randrange(1, 64))


_HELLO = client_hello()
_KINDS: list[Callable[[random.Random], bytes]] = [_nothing, _noise, _half_a_hello, _a_hello_with_a_fault, _a_hello_and_noise]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
async def test_after_hundreds_of_broken_connections_a_good_client_is_served_and_nothing_is_left(authority: Authority) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    with trio.fail_after(40):
        async with sp.Rep0(listen=URL, tls=authority.server()) as rep:
            (listener,) = rep.listeners
            await check(rep, authority)
            await until(lambda: not rep.pipes and not listener.statistics().in_handshake)
            gc.collect()
            before = descriptors(), trio.lowlevel.current_statistics().tasks_living
            for number in range(1, 301):
                stream = await connect(rep)
                await stream.send_all(rng.choice(_KINDS)(rng))
                if rng.randrange(3) == 0:
                    reset(stream)
                await stream.aclose()
                if number % 50 == 0:
                    await until(lambda number=number: listener.statistics().accepted == number + 1)
            with trio.fail_after(2):
                await check(rep, authority)
            await until(lambda: not rep.pipes and not listener.statistics().in_handshake)
            await trio.testing.wait_all_tasks_blocked(0.01)
            gc.collect()
            assert (descriptors(), trio.lowlevel.current_statistics().tasks_living) == before
            figures = listener.statistics()
            assert figures.accepted == 302
            assert figures.attached == 2
            assert sum(figures.failures.values()) == 300


async def test_a_socket_ends_quickly_while_handshakes_are_under_way(authority: Authority) -> None:
    (silent,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    streams: list[trio.SocketStream] = []
    with trio.fail_after(10):
        async with silent:
            rep = sp.Rep0(listen=URL, tls=authority.server())
            async with rep, sp.Req0(tls=authority.client()) as req:
                for number in range(30):
                    stream = await connect(rep)
                    streams.append(stream)
                    await stream.send_all(client_hello()[: None if number % 2 else 50])
                for _ in range(10):
                    await req.dial(f"tls+tcp://127.0.0.1:{silent.socket.getsockname()[1]}", wait=False)
                await until(lambda: rep.listeners[0].statistics().in_handshake == 30)
                with trio.fail_after(0.9):  # less than the linger time
                    await req.aclose()
                    await rep.aclose()
            for stream in streams:
                await receive_end(stream)
                await stream.aclose()


# What is secret.


async def test_no_log_has_what_is_secret_in_it(authority: Authority, caplog: pytest.LogCaptureFixture, tmp_path: Any) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "the-payload-of-a-message"
    pem = authority.issue("127.0.0.1")
    keys = tmp_path / "keys.log"
    server = sp.TLSServerConfig(certificate=pem, client_ca=authority.pem, key_log_file=keys)
    client = authority.client(certificate=authority.issue("client-7"))
    shown: list[str] = []
    with trio.fail_after(10):
        async with sp.Rep0(listen=URL, tls=server) as rep, sp.Req0(tls=client, redial_min=0.001, redial_max=0.001) as req:
            events = [rep.events(), req.events()]
            dialer = await req.dial(rep.url)
            for _ in range(3):
                await req.send(secret.encode())
                assert await rep.receive() == secret.encode()
                await rep.send(secret.encode())
                assert await req.receive() == secret.encode()
                shown += [repr(thing) for thing in (rep, req, dialer, rep.pipes[0], rep.pipes[0].tls, server, client, rep.statistics())]
                rep.pipes[0].close()
            async with await connect(rep) as stream:
                await stream.send_all(client_hello() + secret.encode())
                await receive_end(stream)
            await until(lambda: rep.listeners[0].statistics().failures)
            assert dialer.statistics().tls_handshakes["resumed"] >= 2
        for stream_of_events in events:
            async for event in stream_of_events:
                shown.append(f"{event} {event.error!r}")
    assert len(caplog.records) > 10
    text = caplog.text + "".join(shown)
    assert "127.0.0.1" in text
    assert secret not in text
    logged = [word for line in keys.read_text().splitlines() for word in line.split()[1:]]
    assert len(logged) > 10
    assert not [word for word in logged if word in text.lower()]
    lines = [line for line in pem.decode().splitlines() if len(line) > 20 and not line.startswith("-")]
    assert not [line for line in lines if line in text]
    assert "BEGIN" not in text


def test_a_hello_is_what_the_tests_take_it_for() -> None:
    assert _HELLO[0] == 22
    assert len(_HELLO) == 5 + int.from_bytes(_HELLO[3:5], "big") > 200


@pytest.mark.parametrize("group", ["P-256", "P-384", "P-521"])
async def test_a_client_that_has_to_say_hello_again_is_greeted_all_the_same(authority: Authority, group: str) -> None:
    """Its first key is for X25519MLKEM768, which this server does not take."""
    with trio.fail_after(10):
        async with sp.Rep0(listen=URL, tls=authority.server(group=group)) as rep:
            for _ in range(2):
                await check(rep, authority)


# An attacker on the way.


Attack = Callable[[trio.SocketStream, trio.SocketStream], Awaitable[None]]


class OnTheWay:
    """Stands between a dialer and a listener, and passes on what they say unless it attacks."""

    def __init__(self, target: int) -> None:
        self.attack: Attack | None = None
        self.port = 0
        self._target = target

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            (listening,) = await nursery.start(partial(trio.serve_tcp, self._meet, 0, host="127.0.0.1"))
            self.port = listening.socket.getsockname()[1]
            task_status.started()

    async def _meet(self, client: trio.SocketStream) -> None:
        async with client, await trio.open_tcp_stream("127.0.0.1", self._target) as server:
            with suppress(trio.BrokenResourceError):
                await (self.attack or pass_on)(client, server)


async def pass_on(client: trio.SocketStream, server: trio.SocketStream) -> None:
    async def copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await target.send_all(data)
            await target.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy, client, server)
        nursery.start_soon(copy, server, client)


@asynccontextmanager
async def attacked(server: sp.TLSServerConfig, client: sp.TLSClientConfig, **options: Any) -> AsyncIterator[tuple[OnTheWay, sp.Req0, str]]:
    """An attacker on the way, a dialing socket, and a URL that leads directly to the listener."""
    with trio.fail_after(10):
        async with (
            sp.Rep0(listen=URL, tls=server, linger=0) as rep,
            sp.Req0(tls=client, **options) as req,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(answer_all, rep)
            somebody = OnTheWay(int(rep.url.rpartition(":")[2]))
            await nursery.start(somebody.serve)
            yield somebody, req, f"tls+tcp://127.0.0.1:{somebody.port}"
            nursery.cancel_scope.cancel()


async def answer_all(rep: sp.Rep0) -> None:
    async for request in rep.requests():
        await request.reply(request.body)


async def visit(req: sp.Req0, url: str) -> sp.TLSInfo:
    """Dial, ask something, hang up; return what TLS said of the pipe."""
    dialer = await req.dial(url)
    assert await req.request(b"there?") == b"there?"
    assert dialer.pipe is not None
    assert dialer.pipe.tls is not None
    info = dialer.pipe.tls
    dialer.close()
    await until(lambda: not req.pipes)
    return info


async def refusal_of(req: sp.Req0, url: str) -> sp.Error:
    """Dial in vain, and return the reason."""
    with pytest.raises(sp.DialError) as caught:
        await req.dial(url)
    assert isinstance(caught.value.__cause__, sp.Error)
    return caught.value.__cause__


def alert(number: int) -> bytes:
    """A fatal alert in plain text."""
    return b"\x15\x03\x03\x00\x02\x02" + bytes([number])


def says(data: bytes) -> Attack:
    """Answer the client's hello with *data*."""

    async def attack(client: trio.SocketStream, _: trio.SocketStream) -> None:
        await client.receive_some()
        await client.send_all(data)
        await receive_end(client)

    return attack


@pytest.mark.slow
@pytest.mark.parametrize("resumed", [False, True], ids=["first hello", "resumed"])
@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("number", [40, 42, 46, 48, 51, 116])
async def test_an_alert_before_the_servers_hello_is_nobodys_refusal(authority: Authority, number: int, version: str, resumed: bool) -> None:
    """Anyone on the way can send this, so the dialer must try again soon."""
    client = authority.client(maximum_version=version, certificate=authority.issue("client-7"))
    async with attacked(authority.server(client_ca=authority.pem), client) as (somebody, req, url):
        if resumed:
            await visit(req, url)
            assert (await visit(req, url)).resumed
        somebody.attack = says(alert(number))
        error = await refusal_of(req, url)
        assert type(error) is sp.TLSError
        assert not error.permanent
        assert "the server ended the connection" in str(error)
        somebody.attack = None
        # And nothing of what was refused is offered again.
        assert not (await visit(req, url)).resumed
        assert (await visit(req, url)).resumed


@pytest.mark.parametrize("number", [40, 42, 48, 51])
async def test_an_alert_behind_a_hello_that_anybody_can_send_is_not_permanent(authority: Authority, number: int) -> None:
    """The end of a handshake of TLS 1.2 is the first that an impostor cannot say."""

    async def cut_in(client: trio.SocketStream, server: trio.SocketStream) -> None:
        await server.send_all(await client.receive_some())
        await client.send_all(await server.receive_some())
        await client.receive_some()
        await client.send_all(alert(number))
        await receive_end(client)

    client = authority.client(maximum_version="TLSv1.2", certificate=authority.issue("client-7"))
    async with attacked(authority.server(client_ca=authority.pem), client) as (somebody, req, url):
        somebody.attack = cut_in
        error = await refusal_of(req, url)
        assert isinstance(error, sp.TLSError)
        assert not error.permanent
        somebody.attack = None
        await visit(req, url)


async def test_a_hello_that_is_changed_on_the_way_costs_a_full_handshake(authority: Authority) -> None:
    """The last byte of a resumed hello is one of the binder.

    So the server itself says that something is wrong with a digest.
    """

    async def flip(client: trio.SocketStream, server: trio.SocketStream) -> None:
        hello = await client.receive_some()
        await server.send_all(hello[:-1] + bytes([hello[-1] ^ 1]))
        await pass_on(client, server)

    async with attacked(authority.server(), authority.client()) as (somebody, req, url):
        for _ in range(3):
            await visit(req, url)
        somebody.attack = flip
        error = await refusal_of(req, url)
        assert type(error) is sp.TLSError
        assert not error.permanent
        somebody.attack = None
        assert not (await visit(req, url)).resumed


async def test_after_a_failed_resumption_no_other_session_with_the_server_is_offered(authority: Authority) -> None:
    client = authority.client()
    async with attacked(authority.server(), client) as (somebody, req, url):
        for _ in range(3):  # so many at once leave as many sessions
            await req.dial(url)
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(req.request, b"there?")
        for pipe in req.pipes:
            pipe.close()
        somebody.attack = says(alert(40))
        await refusal_of(req, url)
        somebody.attack = None
        assert not (await visit(req, url)).resumed


async def waits_between_attempts(req: sp.Req0, url: str, caplog: pytest.LogCaptureFixture) -> list[float]:
    """Dial in the background; return the waits before the next three attempts."""
    caplog.set_level(logging.DEBUG, "sp")
    dialer = await req.dial(url, wait=False)
    await until(lambda: dialer.statistics().attempts >= 4)
    dialer.close()
    waits = [re.search(r"next attempt in (\S+) s", record.getMessage()) for record in caplog.records]
    return [float(found[1]) for found in waits if found is not None][:3]


HASTY = {"redial_min": 0.001, "redial_max": 77}


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_an_impostors_certificate_does_not_lock_the_dialer_out(
    authority: Authority, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Anyone on the way can show any certificate, so a wrong one says nothing about the server's."""
    impostor = Authority().server()
    async with attacked(impostor, authority.client(maximum_version=version), **HASTY) as (_, req, url):
        assert max(await waits_between_attempts(req, url, caplog)) < 1


async def test_an_impostor_that_hangs_up_on_a_client_without_certificate_does_not_either(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """Its alert is genuine, but of TLS 1.2, where it leaves before the server has proven anything."""
    server = authority.server(client_ca=authority.pem)
    async with attacked(server, authority.client(maximum_version="TLSv1.2"), **HASTY) as (_, req, url):
        assert max(await waits_between_attempts(req, url, caplog)) < 1


async def test_a_server_that_is_known_may_say_that_it_is_pointless(authority: Authority) -> None:
    server = authority.server(client_ca=authority.pem)
    async with attacked(server, authority.client()) as (_, req, url):
        error = await refusal_of(req, url)
        assert isinstance(error, sp.AuthenticationError)
        assert error.permanent


async def test_an_unverified_server_cannot_lock_a_dialer_out(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    server = authority.server(client_ca=authority.pem)
    client = authority.client(insecure_skip_verification=True)
    async with attacked(server, client, **HASTY) as (_, req, url):
        assert max(await waits_between_attempts(req, url, caplog)) < 1


async def test_a_dialer_that_pins_a_certificate_is_not_locked_out_by_another_one(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """``authorize`` decides about a peer that TLS has not verified."""
    client = authority.client(insecure_skip_verification=True)
    async with attacked(authority.server(), client, authorize=lambda _: False, **HASTY) as (_, req, url):
        assert max(await waits_between_attempts(req, url, caplog)) < 1


@pytest.mark.parametrize("verified", [True, False])
async def test_a_wrong_protocol_is_permanent_where_the_peer_is_known(authority: Authority, verified: bool) -> None:
    client = authority.client(insecure_skip_verification=not verified)
    async with sp.Pub0(listen=URL, tls=authority.server()) as pub, sp.Req0(tls=client) as req:
        with trio.fail_after(10):
            error = await refusal_of(req, pub.url)
        assert isinstance(error, sp.WrongProtocol)
        assert error.permanent is verified
