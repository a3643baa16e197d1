"""WebSocket peers that break the rules, HTTP clients that want something else, and proxies.

A fault of a peer costs that peer's connection and no other.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import http.client
import io
import logging
import random
import socket
import struct
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import sp
from sp.transports.proxy_protocol import SIGNATURE
from tests.transports.ends import authority, client_tls, dial, listen, server_tls
from tests.transports.wire import (
    REQ,
    Stream,
    _trusting,
    at_most,
    connect,
    expect,
    greeting,
    receive_end,
    receive_exactly,
    reset,
    socket_of,
    until,
)
from tests.transports.wire import frame as tcp_frame

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ID = b"\x80\0\0\1"
MASK = b"\x1f\xe2\x03\xc4"

both = pytest.mark.parametrize("url", ["ws://127.0.0.1:0", "wss://127.0.0.1:0"], ids=["ws", "wss"])
WS = "ws://127.0.0.1:0"


def masked(data: bytes) -> bytes:
    pad = (MASK * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")).to_bytes(len(data), "big")


def frame(data: bytes = b"", opcode: int = BINARY, *, fin: bool = True, mask: bool = True, rsv: int = 0, size: int | None = None) -> bytes:
    """Return a client's frame; *size* is a false length that it announces."""
    size = len(data) if size is None else size
    head = bytes([fin << 7 | rsv << 4 | opcode])
    bit = mask << 7
    if size < 126:
        head += bytes([bit | size])
    elif size < 1 << 16:
        head += struct.pack(">BH", bit | 126, size)
    else:
        head += struct.pack(">BQ", bit | 127, size)
    return head + MASK + masked(data) if mask else head + data


def request(*headers: tuple[str, str], line: str = "GET / HTTP/1.1", without: Sequence[str] = (), name: str = "rep") -> bytes:
    """Return a good request, with some headers replaced, added, or left out."""
    items = [
        ("Host", "localhost"),
        ("User-Agent", "a test"),  # so that it cannot be libnanomsg, which gets no Close
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", KEY),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Protocol", f"{name}.sp.nanomsg.org"),
    ]
    gone = {header.lower() for header in without} | {header.lower() for header, _ in headers}
    items = [item for item in items if item[0].lower() not in gone]
    return "\r\n".join([line, *(f"{header}: {value}" for header, value in [*items, *headers]), "", ""]).encode("latin-1")


def below(url: str) -> str:
    """Return the URL of the layer below HTTP at *url*."""
    scheme, _, rest = url.partition("://")
    return f"{scheme.replace('wss', 'tls+tcp').replace('ws', 'tcp')}://{rest.partition('/')[0]}"


def tcp(url: str) -> str:
    """Return the URL of the layer below TLS and HTTP at *url*."""
    return below(url).removeprefix("tls+")


async def web(url: str) -> Stream:
    """Connect to a ws or wss URL, do the TLS handshake if there is one, and send nothing."""
    return await connect(below(url))


async def receive_head(stream: Stream) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await receive_exactly(stream, 1)
    return head


async def upgrade(stream: Stream, *headers: tuple[str, str], line: str = "GET / HTTP/1.1", name: str = "rep", behind: bytes = b"") -> None:
    """Become a WebSocket; send *behind* together with the request."""
    await stream.send_all(request(*headers, line=line, name=name) + behind)
    assert (await receive_head(stream)).startswith(b"HTTP/1.1 101 ")


async def upgraded(url: str, *, name: str = "rep", behind: bytes = b"") -> Stream:
    stream = await web(url)
    path = "/" + url.partition("://")[2].partition("/")[2]
    try:
        await upgrade(stream, line=f"GET {path} HTTP/1.1", name=name, behind=behind)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def receive_frame(stream: Stream) -> tuple[int, bytes]:
    first, size = await receive_exactly(stream, 2)
    assert first & 0x80
    assert not size & 0x80, "a server does not mask"
    if size >= 126:
        size = int.from_bytes(await receive_exactly(stream, 2 if size == 126 else 8), "big")
    return first & 15, await receive_exactly(stream, size)


async def receive_close(stream: Stream) -> tuple[int, str]:
    """Return code and reason of the next frame, a Close after which nothing comes."""
    opcode, data = await receive_frame(stream)
    assert opcode == CLOSE, (opcode, data)
    assert await receive_end(stream) == b""
    return int.from_bytes(data[:2], "big"), data[2:].decode()


class Answer:
    """An HTTP response, which must be complete and must end the connection."""

    def __init__(self, data: bytes, method: str = "GET") -> None:
        self._file = io.BytesIO(data)
        response = http.client.HTTPResponse(self, method=method)  # type: ignore[arg-type]
        response.begin()
        assert response.version == 11
        head, _, self.body = data.partition(b"\r\n\r\n")
        self.status = response.status
        self.headers = response.headers
        self.head = head.decode("latin-1")
        assert [header.lower() for header in self.headers].count("content-length") == 1
        length = int(self.headers["Content-Length"])
        assert len(self.body) == (0 if method == "HEAD" else length)
        assert self.headers["Connection"] == "close"
        assert length == 0 or self.headers["Content-Type"] == "text/plain; charset=utf-8"
        self.text = self.body.decode()

    def makefile(self, mode: str) -> io.BytesIO:
        return self._file


async def ask(url: str, data: bytes, *, method: str = "GET") -> Answer:
    """Return the response to *data*."""
    async with await web(url) as stream:
        await stream.send_all(data)
        return Answer(await receive_end(stream), method)


async def check(rep: sp.Rep0, url: str) -> None:
    """Check that a good client is served."""
    async with sp.Req0() as req:
        await dial(req, url)
        await req.send(b"hello")
        assert await rep.receive() == b"hello"
        await rep.send(b"hello yourself")
        assert await req.receive() == b"hello yourself"


# Frames that break the rules.


@pytest.mark.slow
@both
@pytest.mark.parametrize(
    ("wrong", "code", "kind", "words"),
    [
        *(
            pytest.param(frame(b"x", rsv=rsv), 1002, sp.MalformedMessage, "reserved bits", id=f"reserved bits {rsv:03b}")
            for rsv in (1, 2, 4, 7)
        ),
        *(pytest.param(frame(b"", opcode), 1002, sp.MalformedMessage, "opcode", id=f"opcode {opcode}") for opcode in (3, 7, 11, 15)),
        pytest.param(frame(b"\x80\0\0\1x", mask=False), 1002, sp.MalformedMessage, "mask", id="not masked"),
        pytest.param(frame(b"", PING, mask=False), 1002, sp.MalformedMessage, "mask", id="a ping that is not masked"),
        pytest.param(frame(b"x", PING, fin=False), 1002, sp.MalformedMessage, "fragmented control", id="a fragmented ping"),
        pytest.param(frame(b"x", CLOSE, fin=False), 1002, sp.MalformedMessage, "fragmented control", id="a fragmented close"),
        pytest.param(frame(bytes(126), PING), 1002, sp.MalformedMessage, "too long", id="a long ping"),
        pytest.param(frame(b"x", CONT), 1002, sp.MalformedMessage, "continuation", id="a continuation of nothing"),
        pytest.param(frame(b"x", CONT, fin=False), 1002, sp.MalformedMessage, "continuation", id="a fragment of nothing"),
        pytest.param(frame(b"x", fin=False) + frame(b"y"), 1002, sp.MalformedMessage, "continuation", id="a message in a message"),
        pytest.param(frame(b"x", fin=False) + frame(b"y", TEXT), 1002, sp.MalformedMessage, "continuation", id="text in a message"),
        *(
            pytest.param(frame(struct.pack(">H", code), CLOSE), 1002, sp.MalformedMessage, "status code", id=f"close with {code}")
            for code in (0, 999, 1004, 1005, 1006, 1016, 2999, 5000, 65535)
        ),
        pytest.param(frame(b"\x03", CLOSE), 1002, sp.MalformedMessage, "close frame", id="a close of one byte"),
        pytest.param(frame(b"\x03\xe8\xff\xfe", CLOSE), 1007, sp.MalformedMessage, "utf-8", id="a close that is no text"),
        pytest.param(frame(b"\x80\0\0\1\xff", TEXT), 1007, sp.MalformedMessage, "UTF-8", id="text that is no text"),
        pytest.param(frame(b"ab\xc3", TEXT, fin=False) + frame(b"x", CONT), 1007, sp.MalformedMessage, "UTF-8", id="half a character"),
        pytest.param(frame(ID + bytes(997)), 1009, sp.MessageTooLarge, "1001 bytes, but max_message_size is 1000", id="too large"),
        pytest.param(frame(ID, size=1 << 63), 1009, sp.MessageTooLarge, "max_message_size is 1000", id="absurdly large"),
        pytest.param(
            frame(bytes(600), fin=False) + frame(bytes(401), CONT),
            1009,
            sp.MessageTooLarge,
            "1001 bytes, but max_message_size is 1000",
            id="too large in parts",
        ),
        pytest.param(frame(b"abc"), 1002, sp.MalformedMessage, "3 bytes without a complete protocol header", id="no header"),
        pytest.param(frame(b"\0\0\0\1" * 300), 1009, sp.MessageTooLarge, "max_message_size is 1000", id="a backtrace without an end"),
        pytest.param(b"\xff" * 100, 1002, sp.MalformedMessage, "WebSocket", id="noise"),
        pytest.param(request(), 1002, sp.MalformedMessage, "WebSocket", id="another request"),
    ],
)
async def test_a_frame_that_is_wrong_ends_that_connection_with_the_right_code(
    url: str, wrong: bytes, code: int, kind: type[sp.Error], words: str
) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url), max_message_size=1000) as rep:
        url = rep.url
        events = rep.events()
        with trio.fail_after(10):
            async with await upgraded(url) as stream:
                await stream.send_all(frame(ID + b"before") + wrong)
                assert await rep.receive() == b"before"
                closed, reason = await receive_close(stream)
                assert closed == code
                assert reason
            event = await expect(events, sp.EventKind.DETACHED)
            assert type(event.error) is kind
            assert words in event.reason
            assert event.pipe is not None
            assert event.pipe.reason == event.reason
            await check(rep, url)
            with pytest.raises(trio.WouldBlock):
                rep.receive_nowait()


@both
@pytest.mark.parametrize("payload", [b"", b"\x03\xe8", b"\x03\xe8done", b"\x03\xe9going", b"\x0f\xa0ours", b"\x13\x87"])
async def test_a_close_is_answered_with_the_same_and_what_came_before_is_delivered(url: str, payload: bytes) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep:
        events = rep.events()
        with trio.fail_after(10):
            async with await upgraded(rep.url) as stream:
                await stream.send_all(frame(ID + b"last words") + frame(payload, CLOSE) + frame(ID + b"too late"))
                assert await receive_frame(stream) == (CLOSE, payload)
                assert await receive_end(stream) == b""
            event = await expect(events, sp.EventKind.DETACHED)
            assert isinstance(event.error, sp.PeerClosed)
            if payload[2:]:
                assert payload[2:].decode() in event.reason
            await check_first(rep, b"last words")
            await check(rep, rep.url)


@both
@pytest.mark.parametrize("payload", [b"", b"\x03\xe8done", b"\x03\xe9going", b"\x03\xf3no memory"])
async def test_a_close_within_a_message_is_answered_with_the_same_and_reported(url: str, payload: bytes) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep:
        events = rep.events()
        with trio.fail_after(10):
            async with await upgraded(rep.url) as stream:
                await stream.send_all(frame(ID + b"half a", fin=False) + frame(payload, CLOSE))
                assert await receive_frame(stream) == (CLOSE, payload)
                assert await receive_end(stream) == b""
            event = await expect(events, sp.EventKind.DETACHED)
            assert type(event.error) is sp.PeerClosed
            assert event.pipe is not None
            assert event.pipe.reason == event.reason
            assert "the peer closed the connection in the middle of a message" in event.reason
            if payload:
                assert str(int.from_bytes(payload[:2], "big")) in event.reason
            assert payload[2:].decode() in event.reason
            with pytest.raises(trio.WouldBlock):
                rep.receive_nowait()
            await check(rep, rep.url)


async def check_first(rep: sp.Rep0, body: bytes) -> None:
    """Check that *body* is the only message that waits."""
    try:
        assert await rep.receive() == body
    finally:
        with pytest.raises(trio.WouldBlock):
            rep.receive_nowait()


@both
@pytest.mark.parametrize("how", ["pipe", "listener", "close", "aclose", "drain"])
async def test_a_server_that_leaves_says_that_it_goes_away(url: str, how: str) -> None:
    with trio.fail_after(10):
        async with (
            sp.Rep0(listen=url, tls=server_tls(url)) as rep,
            await upgraded(rep.url) as stream,
            trio.open_nursery() as tasks,
        ):
            await rep.wait_for_peers()
            if how == "pipe":
                rep.pipes[0].close()
            elif how == "listener":
                rep.listeners[0].close()
            elif how == "close":
                rep.close()
            elif how == "aclose":
                tasks.start_soon(rep.aclose)
            else:
                tasks.start_soon(rep.listeners[0].drain)
            opcode, data = await receive_frame(stream)
            assert (opcode, data[:2]) == (CLOSE, struct.pack(">H", 1001))
            await stream.send_all(frame(data[:2], CLOSE)) if how in ("aclose", "drain") else None
            assert await receive_end(stream) == b""


@both
async def test_a_peer_that_ends_the_stream_without_a_close_is_gone_like_any_other(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep:
        events = rep.events()
        with trio.fail_after(10):
            for sent, words in (
                (b"", "closed"),
                (frame(ID + b"cut off")[:-1], "in the middle of a message"),
                (b"\x82", "middle of a message"),
            ):
                stream = await upgraded(rep.url)
                await stream.send_all(sent)
                await stream.aclose()
                event = await expect(events, sp.EventKind.DETACHED)
                assert isinstance(event.error, sp.PeerClosed)
                assert words in event.reason
            await check(rep, rep.url)


async def test_a_reset_ends_that_connection_only() -> None:
    async with sp.Rep0(listen=WS) as rep:
        events = rep.events()
        with trio.fail_after(10):
            stream = await upgraded(rep.url)
            await stream.send_all(frame(ID + b"half", fin=False))
            await rep.wait_for_peers()
            reset(stream)
            event = await expect(events, sp.EventKind.DETACHED)
            assert event.error is not None
            await check(rep, rep.url)


@pytest.mark.slow
async def test_garbage_behind_the_handshake_ends_the_pipe_and_the_listener_goes_on() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    async with sp.Rep0(listen=WS) as rep:
        with trio.fail_after(20):
            for _ in range(100):
                events = rep.events()
                async with await upgraded(rep.url) as stream:
                    await stream.send_all(bytes([rng.randrange(1, 128) | 0x40]) + rng.randbytes(rng.randrange(1, 300)))
                    await stream.send_eof()
                    event = await expect(events, sp.EventKind.DETACHED)
                    assert isinstance(event.error, sp.PeerError)
                    await receive_end(stream)
            await check(rep, rep.url)
        assert rep.statistics().messages_received == 1


@both
async def test_a_handshake_and_messages_may_come_byte_by_byte(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep:
        with trio.fail_after(20):
            async with await web(rep.url) as stream:
                parts = frame(ID + b"slow", fin=False) + frame(b"p", PING) + frame(b"ly", CONT)
                for byte in request() + parts:
                    await stream.send_all(bytes([byte]))
                    await trio.lowlevel.checkpoint()
                assert (await receive_head(stream)).startswith(b"HTTP/1.1 101 ")
                assert await rep.receive() == b"slowly"
                assert await receive_frame(stream) == (PONG, b"p")
                await rep.send(b"patient")
                assert await receive_frame(stream) == (BINARY, ID + b"patient")


@both
async def test_frames_may_come_in_the_same_segment_as_the_request(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep:
        with trio.fail_after(10):
            behind = frame(ID + b"one") + frame(b"early", PING) + frame(ID + b"two", fin=False)
            async with await upgraded(rep.url, behind=behind) as stream:
                assert await rep.receive() == b"one"
                assert await receive_frame(stream) == (PONG, b"early")
                await stream.send_all(frame(b"!", CONT))
                assert await rep.receive() == b"two!"


@pytest.mark.parametrize("junk", [request(), b"\0" * 100, b"\xff" * 100_000, frame(ID, mask=False)])
async def test_junk_behind_the_request_gets_its_own_answer_after_that_to_the_request(junk: bytes) -> None:
    async with sp.Rep0(listen=WS) as rep:
        events = rep.events()
        with trio.fail_after(10):
            async with await web(rep.url) as stream:
                await stream.send_all(request() + junk)
                assert (await receive_head(stream)).startswith(b"HTTP/1.1 101 ")
                assert (await receive_close(stream))[0] == 1002
            event = await expect(events, sp.EventKind.DETACHED)
            assert isinstance(event.error, sp.MalformedMessage)
            await check(rep, rep.url)


async def test_what_a_refused_client_sends_behind_its_request_is_neither_answered_nor_delivered() -> None:
    async with sp.Rep0(listen=WS, authorize=lambda _: False) as rep:
        with trio.fail_after(10):
            answer = await ask(rep.url, request() + frame(b"", PING) + frame(ID + b"let me in") + request())
            assert answer.status == 403
        with pytest.raises(trio.WouldBlock):
            rep.receive_nowait()


# Storms.


@pytest.mark.slow
async def test_a_peer_that_pings_and_never_reads_costs_a_bounded_place() -> None:
    async with sp.Rep0(listen=WS) as rep:
        with trio.fail_after(20):
            async with await upgraded(rep.url) as stream:
                await rep.wait_for_peers()
                socket_of(stream).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
                storm = frame(b"p" * 125, PING) * 500
                sent = 0
                connection: Any = rep._core.task_of(rep.pipes[0]).connection
                while not connection._control:  # until the way back is full
                    await stream.send_all(storm)
                    sent += 500
                tracemalloc.start()
                try:
                    for _ in range(20):
                        await stream.send_all(storm)
                        sent += 500
                    await check(rep, rep.url)
                    _, peak = tracemalloc.get_traced_memory()
                finally:
                    tracemalloc.stop()
                assert peak < 2 << 20
                # Its messages still arrive, and once it reads, its last ping is answered.
                await stream.send_all(frame(ID + b"hello") + frame(b"last", PING))
                assert await rep.receive() == b"hello"
                pong, last = bytes([0x80 | PONG, 125]) + b"p" * 125, bytes([0x80 | PONG, 4]) + b"last"
                read, end = 0, b""
                while end != last:  # by large reads: one for each frame would take seconds
                    data = await stream.receive_some(1 << 16)
                    read += len(data)
                    end = (end + data)[-len(last) :]
                answered, rest = divmod(read - len(last), len(pong))
                assert rest == 0
                assert answered < sent


@pytest.mark.slow
async def test_a_storm_of_pings_does_not_keep_others_from_being_served() -> None:
    async with sp.Rep0(listen=WS) as rep, trio.open_nursery() as nursery:
        sent = 0

        async def storm(url: str) -> None:
            nonlocal sent
            async with await upgraded(url) as stream, trio.open_nursery() as inner:

                async def swallow() -> None:
                    while await stream.receive_some(1 << 20):
                        pass

                inner.start_soon(swallow)
                while True:
                    await stream.send_all(frame(b"", PING) * 1000)
                    sent += 1000

        with trio.fail_after(20):
            for _ in range(3):
                nursery.start_soon(storm, rep.url)
            while sent < 20_000:
                await trio.lowlevel.checkpoint()
            before = sent
            await check(rep, rep.url)
            assert sent - before < 500_000
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("storm", [frame(b"\x03\xe8", CLOSE), frame(b"", CLOSE) + frame(b"", PING)], ids=["closes", "closes and pings"])
async def test_of_a_storm_of_closes_one_is_answered(storm: bytes) -> None:
    async with sp.Rep0(listen=WS) as rep:
        events = rep.events()
        with trio.fail_after(10):
            async with await web(rep.url) as stream:
                data = b""
                try:
                    await stream.send_all(request() + storm * 20_000)
                except trio.BrokenResourceError:
                    pass
                data = await receive_end(stream)
                _, _, frames = data.partition(b"\r\n\r\n")
                # The reset may overtake it.
                assert frames in (b"", b"\x88\x02\x03\xe8", b"\x88\x00")
            event = await expect(events, sp.EventKind.DETACHED)
            assert isinstance(event.error, sp.PeerClosed)
            await check(rep, rep.url)


@pytest.mark.slow
async def test_a_message_in_a_hundred_thousand_fragments_arrives() -> None:
    async with sp.Rep0(listen=WS) as rep:
        with trio.fail_after(20):
            async with await upgraded(rep.url) as stream:
                await stream.send_all(frame(ID, fin=False) + frame(b"x", CONT, fin=False) * 100_000 + frame(b"", CONT))
                assert await rep.receive() == b"x" * 100_000


@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1, 1 << 40, (1 << 20) + 1])
async def test_an_absurd_length_allocates_nothing_and_ends_that_pipe_only(size: int) -> None:
    async with sp.Bus0(listen=WS) as bus:
        events = bus.events()
        with trio.fail_after(10):
            bad = await upgraded(bus.url, name="bus")
            good = await upgraded(bus.url, name="bus")
            await bus.wait_for_peers(2)
            tracemalloc.start()
            try:
                await bad.send_all(frame(b"and a little", size=size))
                assert (await receive_close(bad))[0] == 1009
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak < 1 << 20
            await bad.aclose()
            event = await expect(events, sp.EventKind.DETACHED)
            assert isinstance(event.error, sp.MessageTooLarge)
            assert str(size) in event.reason
            await good.send_all(frame(b"still here"))
            assert await bus.receive() == b"still here"
            assert len(bus.pipes) == 1
            await good.aclose()


# Requests that get another answer.

HEALTHY = sp.WSServerConfig(health_path="/healthz", origins="https://app.example")


@pytest.mark.slow
@both
@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        pytest.param(request(line="GET /nobody HTTP/1.1"), 404, "HTTP 404: no socket listens at '/nobody'", id="404"),
        pytest.param(request(line="GET /\x1b[31m HTTP/1.1"), 400, "control characters", id="400 with colour"),
        pytest.param(request(line="GET /p?a\rb HTTP/1.1"), 400, "control characters", id="400 with a line"),
        pytest.param(request(line="GET /" + "a" * 8000 + " HTTP/1.1"), 404, "no socket listens at '/aaa", id="404 at length"),
        pytest.param(b"GET /favicon.ico HTTP/1.1\r\nHost: h\r\n\r\n", 404, "'/favicon.ico'", id="404 for a browser"),
        pytest.param(request(line="POST / HTTP/1.1"), 405, "POST", id="405"),
        pytest.param(request(("Content-Length", "5"), line="PUT / HTTP/1.1") + b"hello", 405, "PUT", id="405 with a body"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", 426, "HTTP 426", id="426"),
        pytest.param(request(("Upgrade", "h2c")), 426, "h2c", id="426 for another upgrade"),
        pytest.param(request(without=["Sec-WebSocket-Key"]), 400, "Sec-WebSocket-Key", id="400 without a key"),
        pytest.param(request(without=["Host"]), 400, "Host", id="400 without a host"),
        pytest.param(request(name="pub"), 400, "wrong protocol: the peer is SUB, expected REQ", id="400 for a sub-protocol"),
        pytest.param(request(name="req"), 400, "wrong protocol: the peer is REP, expected REQ", id="400 for our own"),
        pytest.param(request(("Sec-WebSocket-Protocol", "chat")), 400, "asks for 'chat', expected REQ", id="400 for chat"),
        pytest.param(request(without=["Sec-WebSocket-Protocol"]), 400, "expected REQ", id="400 for none"),
        pytest.param(request(("Content-Length", "0"), ("Content-Length", "5")) + b"hello", 400, "body", id="400 for two lengths"),
        pytest.param(request(("Transfer-Encoding", "chunked")) + b"0\r\n\r\n", 400, "transfer", id="400 for chunks"),
        pytest.param(b"NONSENSE\r\n\r\n", 400, "does not speak HTTP", id="400 for nonsense"),
        pytest.param(request(line="GET / HTTP/1.0"), 505, "HTTP 505", id="505"),
        pytest.param(request(*(("X-One", "1"),) * 200), 431, "headers", id="431 for many"),
        pytest.param(request(("X-One", "a" * 9000)), 431, "headers", id="431 for a long one"),
        pytest.param(request(("Origin", "https://evil.example")), 403, "HTTP 403: origin 'https://evil.example'", id="403"),
        pytest.param(request(("Origin", "")), 403, "HTTP 403: origin ''", id="403 for an empty origin"),
        pytest.param(request(("Origin", "null")), 403, "HTTP 403: origin 'null'", id="403 for no origin"),
        pytest.param(
            request(("Origin", "https://app.example"), ("Origin", "https://evil.example")),
            403,
            "HTTP 403: origin",
            id="403 for two origins",
        ),
        pytest.param(request(("Origin", "https://app.example.evil")), 403, "HTTP 403: origin", id="403 for a longer origin"),
    ],
)
async def test_a_client_that_is_rejected_gets_a_whole_answer_and_the_event_says_why(url: str, data: bytes, status: int, words: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url), ws=HEALTHY) as rep:
        url = rep.url
        events = rep.events()
        with trio.fail_after(10):
            answer = await ask(url, data)
            assert answer.status == status
            assert answer.text.endswith("\n")
            event = await expect(events, sp.EventKind.REFUSED)
            assert isinstance(event.error, sp.PeerError)
            assert words in event.reason
            assert event.reason.startswith("127.0.0.1:")
            assert event.reason.isprintable()
            if status == 405:
                assert answer.headers["Allow"] == "GET"
            if status == 426:
                assert answer.headers["Upgrade"] == "websocket"
            if "expected REQ" in words:
                assert answer.headers["SP-Expected-Protocol"] == "rep.sp.nanomsg.org"
            await check(rep, url)
            assert rep.listeners[0].statistics().attached == 1


async def test_another_version_of_websocket_is_told_which_one_is_spoken() -> None:
    async with sp.Rep0(listen=WS) as rep:
        with trio.fail_after(10):
            answer = await ask(rep.url, request(("Sec-WebSocket-Version", "8")))
            assert answer.status in (400, 426)
            assert answer.headers["Sec-WebSocket-Version"] == "13"


@pytest.mark.parametrize("origin", ["https://app.example", "HTTPS://APP.example", None])
async def test_an_allowed_page_and_a_client_that_is_no_browser_connect(origin: str | None) -> None:
    async with sp.Rep0(listen=WS, ws=HEALTHY) as rep:
        with trio.fail_after(10):
            async with await web(rep.url) as stream:
                await upgrade(stream, *(() if origin is None else (("Origin", origin),)))
                await rep.wait_for_peers()


async def test_a_request_line_of_a_megabyte_is_refused_while_it_still_comes() -> None:
    async with sp.Rep0(listen=WS) as rep:
        events = rep.events()
        with trio.fail_after(10):
            async with await web(rep.url) as stream, trio.open_nursery() as nursery:

                async def send() -> None:
                    try:
                        await stream.send_all(b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n\r\n")
                    except trio.BrokenResourceError:
                        pass

                nursery.start_soon(send)
                answer = Answer(await receive_end(stream))
                assert answer.status == 414
            event = await expect(events, sp.EventKind.REFUSED)
            assert "the request line is too long" in event.reason
            assert len(event.reason) < 500
            await check(rep, rep.url)


@pytest.mark.parametrize("header", [b"X-One: " + b"a" * 1000 + b"\r\n", b"X: y\r\n", b"a" * 1000], ids=["long", "short", "without an end"])
async def test_headers_without_an_end_are_refused_and_cost_a_bounded_place(header: bytes) -> None:
    async with sp.Rep0(listen=WS) as rep:
        events = rep.events()
        with trio.fail_after(10):
            tracemalloc.start()
            try:
                async with await web(rep.url) as stream, trio.open_nursery() as nursery:

                    async def send() -> None:
                        try:
                            await stream.send_all(b"GET / HTTP/1.1\r\n")
                            while True:
                                await stream.send_all(header * 20)
                        except trio.BrokenResourceError:
                            pass

                    nursery.start_soon(send)
                    answer = Answer(await receive_end(stream))
                    _, peak = tracemalloc.get_traced_memory()
                    nursery.cancel_scope.cancel()
            finally:
                tracemalloc.stop()
            assert answer.status == 431
            assert peak < 2 << 20
            event = await expect(events, sp.EventKind.REFUSED)
            assert "headers" in event.reason
            await check(rep, rep.url)


async def test_every_byte_of_slow_headers_counts_against_the_same_deadline(mock_clock: MockClock) -> None:
    with at_most(10):
        async with sp.Rep0(listen=WS, handshake_timeout=10) as rep, await web(rep.url) as stream:
            events = rep.events()
            for byte in request()[:10]:
                await stream.send_all(bytes([byte]))
                await wait_all_tasks_blocked(0.002)
                mock_clock.jump(1.001)
            answer = Answer(await receive_end(stream))
            assert answer.status == 408
            event = await expect(events, sp.EventKind.REFUSED)
            assert isinstance(event.error, sp.GreetingError)
            assert "the HTTP request was not complete within 10 s" in event.reason
            await check(rep, rep.url)


@both
@pytest.mark.parametrize("said", [b"", b"GET / HT", request()[:-1]])
async def test_half_a_request_ends_at_the_greeting_timeout(url: str, said: bytes, mock_clock: MockClock) -> None:
    with at_most(10):
        async with sp.Rep0(listen=url, tls=server_tls(url), handshake_timeout=3) as rep:
            events = rep.events()
            async with await web(rep.url) as stream:
                await stream.send_all(said)
                await wait_all_tasks_blocked(0.02)
                mock_clock.jump(3.1)
                assert Answer(await receive_end(stream)).status == 408
            event = await expect(events, sp.EventKind.REFUSED)
            assert isinstance(event.error, sp.GreetingError)
            assert "the HTTP request was not complete within 3 s" in event.reason


async def test_a_client_that_stays_after_its_refusal_is_still_refused_for_what_it_did(mock_clock: MockClock) -> None:
    with at_most(10):
        async with sp.Rep0(listen=WS, handshake_timeout=0.5) as rep:
            events = rep.events()
            async with await web(rep.url) as stream:
                await stream.send_all(request(line="GET /nobody HTTP/1.1"))
                assert Answer(await receive_end(stream)).status == 404
                mock_clock.jump(0.6)
                # Although it never closes its end.
                event = await expect(events, sp.EventKind.REFUSED)
                assert "HTTP 404: no socket listens at '/nobody'" in event.reason


@pytest.mark.parametrize("size", [1, 20, len(request()) - 1])
async def test_a_client_that_ends_within_its_request_is_refused_with_the_reason(size: int) -> None:
    async with sp.Rep0(listen=WS) as rep:
        events = rep.events()
        with trio.fail_after(10):
            async with await web(rep.url) as stream:
                await stream.send_all(request()[:size])
                assert isinstance(stream, trio.SocketStream)
                await stream.send_eof()
                event = await expect(events, sp.EventKind.REFUSED)
                assert isinstance(event.error, sp.PeerClosed)
                assert "in the middle of its HTTP request" in event.reason
            await check(rep, rep.url)


@pytest.mark.slow
async def test_two_hundred_silent_connections_delay_no_peer_and_end_at_the_deadline(mock_clock: MockClock) -> None:
    with at_most(20):
        async with sp.Rep0(listen=WS, handshake_timeout=10) as rep:
            (listener,) = rep.listeners
            silent = [await web(listener.url) for _ in range(200)]
            await until(lambda: listener.statistics().in_handshake == 200)
            await check(rep, listener.url)  # and the clock stands still
            events = rep.events()
            mock_clock.jump(10.1)
            for stream in silent:
                assert Answer(await receive_end(stream)).status == 408
                event = await expect(events, sp.EventKind.REFUSED)
                assert isinstance(event.error, sp.GreetingError)
                await stream.aclose()
            assert listener.statistics().in_handshake == 0
            assert listener.statistics().failures == {"GreetingError": 200}
            await check(rep, listener.url)


@both
async def test_a_crowd_of_silent_newcomers_does_not_keep_a_good_client_out(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url), max_handshakes=5) as rep:
        with trio.fail_after(10):
            streams = [await web(rep.url) for _ in range(30)]
            await check(rep, rep.url)
            assert rep.listeners[0].statistics().in_handshake <= 5
            for stream in streams[:20]:
                data = await receive_end(stream)
                assert not data or Answer(data).status == 503
            for stream in streams:
                await stream.aclose()


# Targets.


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("", "/", ""),  # libnng 1.11 sends "GET  HTTP/1.1"
        ("/", "/", ""),
        ("/?a=b", "/", "a=b"),
        ("?a=b", "/", "a=b"),
        ("/?", "/", ""),
        ("/?a?b", "/", "a?b"),
        ("http://localhost", "/", ""),
        ("http://localhost/", "/", ""),
        ("http://localhost:80/?a=b", "/", "a=b"),
        ("https://user@localhost/?a=http://b/c", "/", "a=http://b/c"),
        ("HTTP://LOCALHOST/", "/", ""),
        ("http://localhost?a=b", "/", "a=b"),
        ("http://localhost?a=/b", "/", "a=/b"),
        ("ws://localhost", "/", ""),
        ("ws://localhost/?a=b", "/", "a=b"),
        ("wss://localhost:443/?a=ws://b/c", "/", "a=ws://b/c"),
        ("WSS://LOCALHOST?a=/b", "/", "a=/b"),
    ],
)
async def test_a_target_may_be_empty_or_absolute(target: str, path: str, query: str) -> None:
    async with sp.Rep0(listen=WS) as rep:
        with trio.fail_after(10):
            async with await web(rep.url) as stream:
                await upgrade(stream, line=f"GET {target} HTTP/1.1")
                await rep.wait_for_peers()
                (pipe,) = rep.pipes
                assert pipe.http is not None
                assert (pipe.http.path, pipe.http.query) == (path, query)


@pytest.mark.parametrize(
    ("listened", "asked"), [("/a", "/a"), ("/a", "/a/"), ("/a", "http://h/a?b"), ("/a", "wss://h/a"), ("/a/", "/a/"), ("/a/", "/a")]
)
async def test_a_slash_at_the_end_of_a_path_makes_no_difference(listened: str, asked: str) -> None:
    async with sp.Rep0(listen=f"{WS}{listened}") as rep:
        with trio.fail_after(10):
            async with await web(rep.url) as stream:
                await upgrade(stream, line=f"GET {asked} HTTP/1.1")


@pytest.mark.parametrize(
    ("listened", "asked"), [("/a", "/%61"), ("/%61", "/a"), ("/%7eu", "/~u"), ("/b%2fc", "/b%2Fc"), ("/a", "http://h/%61/?b")]
)
async def test_all_spellings_of_a_path_are_the_same(listened: str, asked: str) -> None:
    async with sp.Rep0(listen=f"{WS}{listened}") as rep:
        with trio.fail_after(10):
            async with await web(rep.url) as stream:
                await upgrade(stream, line=f"GET {asked} HTTP/1.1")


@pytest.mark.parametrize(
    "asked",
    ["/", "", "/b", "/a/b", "/A", "/a%2F", "//a", "/a//", "a", "*", "http://h/", "http://h", "ws://a", "ftp://h/a", "/ws://h/a", "/a;b"],
)
async def test_another_path_is_another_address(asked: str) -> None:
    async with sp.Rep0(listen=f"{WS}/a") as rep:
        with trio.fail_after(10):
            assert (await ask(rep.url, request(line=f"GET {asked} HTTP/1.1"))).status == 404


# HEAD, and health checks.


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(line="HEAD / HTTP/1.1"), 405),
        (request(line="HEAD /nobody HTTP/1.1"), 404),
        (b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        (b"HEAD /healthz HTTP/1.1\r\nHost: h\r\n\r\n", 200),
        (b"HEAD /healthz HTTP/1.0\r\n\r\n", 200),
        (request(("Origin", "https://evil.example"), line="HEAD / HTTP/1.1"), 403),
        (request(("Content-Length", "5"), line="HEAD / HTTP/1.1") + b"hello", 400),
        (request(("X-One", "a" * 9000), line="HEAD / HTTP/1.1"), 431),
        (request(without=["Host"], line="HEAD / HTTP/1.1"), 400),
    ],
)
async def test_the_answer_to_head_never_has_a_body(data: bytes, status: int) -> None:
    async with sp.Rep0(listen=WS, ws=HEALTHY) as rep:
        with trio.fail_after(10):
            answer = await ask(rep.url, data, method="HEAD")
            assert answer.status == status
            assert int(answer.headers["Content-Length"]) > 0


@both
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_health_check_is_answered_and_is_no_failure(url: str, version: str, caplog: pytest.LogCaptureFixture) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url), ws=HEALTHY) as rep:
        (listener,) = rep.listeners
        caplog.set_level(logging.DEBUG, "sp")
        caplog.clear()
        with trio.fail_after(10):
            host = "Host: h\r\n" if version == "1.1" else ""
            for _ in range(5):
                answer = await ask(listener.url, f"GET /healthz?x HTTP/{version}\r\n{host}User-Agent: balancer\r\n\r\n".encode())
                assert (answer.status, answer.text) == (200, "ok\n")
            await until(lambda: listener.statistics().in_handshake == 0)
        assert listener.statistics().failures == {}
        assert listener.statistics().accepted == 0
        assert {record.levelno for record in caplog.records} <= {logging.DEBUG}


@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS", "get"])
async def test_a_health_check_is_get_or_head(method: str) -> None:
    async with sp.Rep0(listen=WS, ws=HEALTHY) as rep:
        with trio.fail_after(10):
            answer = await ask(rep.url, f"{method} /healthz HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            assert answer.status == 405
            assert answer.headers["Allow"] == "GET, HEAD"


Health = Callable[[], sp.HTTPResponse | str | bool | Awaitable[sp.HTTPResponse | str | bool]]


async def _well() -> str:
    await trio.lowlevel.checkpoint()
    return "well\n"


def _raise() -> bool:
    raise LookupError("s3cret")


@pytest.mark.parametrize(
    ("health", "status", "text"),
    [
        pytest.param(lambda: True, 200, "ok\n", id="true"),
        pytest.param(lambda: False, 503, "not healthy\n", id="false"),
        pytest.param(lambda: "fine, thanks\n", 200, "fine, thanks\n", id="words"),
        pytest.param(lambda: "", 200, "", id="no words"),
        pytest.param(lambda: sp.HTTPResponse(429, "busy\n", {"Retry-After": "5"}), 429, "busy\n", id="an answer"),
        pytest.param(_well, 200, "well\n", id="async"),
        pytest.param(_raise, 500, "health failed\n", id="an exception"),
        pytest.param(lambda: None, 500, "health failed\n", id="none"),
        pytest.param(lambda: 5, 500, "health failed\n", id="a number"),
    ],
)
async def test_health_is_what_the_application_says(health: Health, status: int, text: str) -> None:
    async with sp.Rep0(listen=WS, ws=sp.WSServerConfig(health_path="/healthz", health=health)) as rep:
        with trio.fail_after(10):
            answer = await ask(rep.url, b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (answer.status, answer.text) == (status, text)
            await check(rep, rep.url)


@both
async def test_while_draining_newcomers_and_health_checks_are_sent_elsewhere(url: str) -> None:
    with trio.fail_after(20):
        async with sp.Rep0(listen=url, tls=server_tls(url), ws=HEALTHY) as rep, trio.open_nursery() as nursery:
            (listener,) = rep.listeners
            events = rep.events()
            async with await upgraded(listener.url) as stream:
                await rep.wait_for_peers()
                async with await web(listener.url) as silent:  # has not asked for anything yet
                    await until(lambda: listener.statistics().in_handshake == 1)
                    nursery.start_soon(listener.drain)
                    # And does not answer it yet.
                    assert await receive_frame(stream) == (CLOSE, b"\x03\xe9")
                    await silent.send_all(request())
                    assert Answer(await receive_end(silent)).status == 503

                for asked, method in (
                    (request(), "GET"),
                    (b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", "GET"),
                    (b"HEAD /healthz HTTP/1.1\r\nHost: h\r\n\r\n", "HEAD"),
                    (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", "GET"),
                ):
                    answer = await ask(listener.url, asked, method=method)
                    assert answer.status == 503
                event = await expect(events, sp.EventKind.REFUSED)
                while "going away" not in event.reason:
                    event = await expect(events, sp.EventKind.REFUSED)
                assert len(rep.pipes) == 1

                await stream.send_all(frame(b"\x03\xe9", CLOSE))
                assert await receive_end(stream) == b""
        with pytest.raises(OSError):
            await trio.open_tcp_stream("127.0.0.1", int(below(listener.url).rpartition(":")[2]))


async def test_the_answer_to_head_has_no_body_while_draining_either() -> None:
    with trio.fail_after(10):
        async with sp.Rep0(listen=WS) as rep, trio.open_nursery() as nursery, await upgraded(rep.url) as stream:
            await rep.wait_for_peers()
            nursery.start_soon(rep.listeners[0].drain)
            assert (await receive_frame(stream))[0] == CLOSE
            answer = await ask(rep.url, request(line="HEAD / HTTP/1.1"), method="HEAD")
            assert answer.status == 503


# Probes.


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "proxied"])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("scheme", ["ws", "wss", "tcp", "tls+tcp"])
async def test_a_client_that_connects_and_leaves_silently_makes_no_log_line(
    scheme: str, how: str, proxied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{scheme}://127.0.0.1:0"
    async with sp.Rep0(listen=url, tls=server_tls(url), proxy_protocol=proxied) as rep:
        (listener,) = rep.listeners
        caplog.set_level(logging.DEBUG, "sp")
        caplog.clear()
        with trio.fail_after(10):
            for number in range(1, 11):
                stream = await connect(tcp(listener.url))
                if number % 2:
                    # Also one that was seen before it left.
                    await until(lambda: listener.statistics().in_handshake)
                if how == "reset":
                    reset(stream)
                else:
                    await stream.aclose()
                await until(lambda number=number: sum(listener.statistics().failures.values()) == number)
            await until(lambda: listener.statistics().in_handshake == 0)
        assert [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG] == []
        assert set(listener.statistics().failures) == {"PeerClosed"}


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_proxys_client_that_leaves_without_a_word_is_no_news(how: str, caplog: pytest.LogCaptureFixture) -> None:
    async with sp.Rep0(listen=WS, proxy_protocol=True) as rep:
        (listener,) = rep.listeners
        caplog.set_level(logging.DEBUG, "sp")
        caplog.clear()
        with trio.fail_after(10):
            stream = await connect(tcp(listener.url))
            await stream.send_all(V1)
            await wait_all_tasks_blocked(0.01)
            if how == "reset":
                reset(stream)
            else:
                await stream.aclose()
            await until(lambda: listener.statistics().failures)
        assert [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG] == []


async def test_nothing_that_a_peer_sends_is_logged_as_it_came(caplog: pytest.LogCaptureFixture) -> None:
    async with sp.Rep0(listen=WS) as rep:
        caplog.set_level(logging.DEBUG)
        with trio.fail_after(10):
            for data in (
                request(line="GET /\x1b[31m HTTP/1.1"),
                request(("X-One", "\x1b[31m")),
                request(("X\x1b[31m", "x")),
                request(("Upgrade", "\x9b31m")),
                request(("Sec-WebSocket-Protocol", "\x9b31m")),
                request(("Sec-WebSocket-Key", "\x9b31m")),
                b"\x1b[31m\r\n\r\n",
            ):
                assert (await ask(rep.url, data)).status >= 400
            async with await upgraded(rep.url) as stream:
                await stream.send_all(frame(b"\x03\xe9\x1b[31mred", CLOSE))
                await receive_end(stream)
            await until(lambda: not rep.pipes)
        text = "".join(record.getMessage() for record in caplog.records)
        assert text.isprintable(), [record.getMessage() for record in caplog.records if not record.getMessage().isprintable()]


# Servers that break the rules.


def agreement(asked: bytes) -> bytes:
    """Return a good answer to the request *asked*."""
    key = asked.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n"
        b"Sec-WebSocket-Protocol: bus.sp.nanomsg.org\r\n\r\n" % accept
    )


@pytest.mark.parametrize("early", [0, 1, 2, 3, 50, 102])
async def test_of_a_message_any_part_may_come_in_the_same_segment_as_the_answer(early: int) -> None:
    (listening,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(3):
        async with listening, sp.Bus0() as bus:
            await bus.dial(f"ws://127.0.0.1:{listening.socket.getsockname()[1]}", wait=False)
            async with await listening.accept() as stream:
                data = frame(b"x" * 100, mask=False)
                await stream.send_all(agreement(await receive_head(stream)) + data[:early])
                await bus.wait_for_peers()
                await stream.send_all(data[early:] + frame(b"next", mask=False))
                assert await bus.receive() == b"x" * 100
                assert await bus.receive() == b"next"


@pytest.mark.parametrize("together", [False, True], ids=["behind", "together"])
async def test_the_limit_of_a_dialer_holds_from_the_first_message_on(together: bool) -> None:
    (listening,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(3):
        async with listening, sp.Bus0(max_message_size=100) as bus:
            events = bus.events()
            await bus.dial(f"ws://127.0.0.1:{listening.socket.getsockname()[1]}", wait=False)
            async with await listening.accept() as stream:
                answer, data = agreement(await receive_head(stream)), frame(b"x" * 101, mask=False)
                if together:
                    await stream.send_all(answer + data)
                else:
                    await stream.send_all(answer)
                    await bus.wait_for_peers()
                    await stream.send_all(data)
                assert (await receive_exactly(stream, 2))[0] == 0x80 | CLOSE
            event = await expect(events, sp.EventKind.DETACHED)
            assert isinstance(event.error, sp.MessageTooLarge)
            with pytest.raises(trio.WouldBlock):
                bus.receive_nowait()


@pytest.mark.parametrize("body", [b"", b"busy\n", b"\x1c", b"\xc2\xa0", b"\xff", b"\n\n"])
async def test_a_dial_that_is_refused_says_so_whatever_stands_in_the_answer(body: bytes) -> None:
    (listening,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def answer() -> None:
        async with await listening.accept() as stream:
            await receive_head(stream)
            await stream.send_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await receive_end(stream)

    with trio.fail_after(10):
        async with listening, sp.Bus0() as bus, trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with pytest.raises(sp.DialError, match="503 Service Unavailable") as caught:
                await bus.dial(f"ws://127.0.0.1:{listening.socket.getsockname()[1]}")
            assert isinstance(caught.value.__cause__, sp.UpgradeRefused)
            assert caught.value.__cause__.response.body == body


# Several sockets at one port.


async def served_at(url: str, name: str, sock: sp.Rep0 | sp.Bus0) -> None:
    """Check that a client of *url* reaches *sock*."""
    body = f"to {name}".encode()
    async with await upgraded(url, name=name, behind=frame(ID + body if name == "rep" else body)) as stream:
        assert await sock.receive() == body
        await stream.send_all(frame(b"", CLOSE))
        await receive_end(stream)


@both
@pytest.mark.parametrize("first", ["rep", "bus"])
async def test_sockets_share_a_port_by_path_and_leave_in_any_order(url: str, first: str) -> None:
    with trio.fail_after(20):
        async with sp.Rep0() as rep, sp.Bus0() as bus, sp.Bus0() as other:
            at_rep = await listen(rep, f"{url}/rep")
            base = at_rep.url.removesuffix("/rep")
            at_bus = await listen(bus, f"{base}/bus")
            at_other = await listen(other, f"{base}/bus/other")
            assert at_bus.url == f"{base}/bus"
            for _ in range(2):
                await served_at(at_rep.url, "rep", rep)
                await served_at(at_bus.url, "bus", bus)
                await served_at(at_other.url, "bus", other)
            assert (await ask(base, request())).status == 404
            # Each socket counts its own.
            assert [sock.statistics().listeners[0].attached for sock in (rep, bus, other)] == [2, 2, 2]
            assert rep.statistics().listeners[0].accepted == 2 + 1

            stays = [at_rep, at_bus, at_other]
            for leaving in (at_rep, at_bus) if first == "rep" else (at_bus, at_rep):
                stays.remove(leaving)
                leaving.close()
                assert (await ask(base, request(line=f"GET {leaving.url.removeprefix(base)} HTTP/1.1"))).status == 404
                for listener in stays:
                    sock = rep if listener is at_rep else bus if listener is at_bus else other
                    await served_at(listener.url, "rep" if listener is at_rep else "bus", sock)
            # A listener that has left may come back.
            back = await listen(rep, at_rep.url)
            await served_at(at_rep.url, "rep", rep)
            at_other.close()
            await served_at(at_rep.url, "rep", rep)
            back.close()
            with pytest.raises(OSError):
                await trio.open_tcp_stream("127.0.0.1", int(base.rpartition(":")[2]))
            await listen(bus, at_bus.url)  # the port is free
            await served_at(at_bus.url, "bus", bus)


async def test_newcomers_on_their_way_survive_the_listener_that_accepts_for_all() -> None:
    with trio.fail_after(10):
        async with sp.Rep0() as rep, sp.Bus0() as bus:
            at_rep = await listen(rep, f"{WS}/rep")
            at_bus = await listen(bus, at_rep.url.replace("/rep", "/bus"))
            pipe = await upgraded(at_bus.url, name="bus")
            await bus.wait_for_peers()
            halves = [await web(at_rep.url) for _ in range(5)]
            for half in halves:
                await half.send_all(b"GET /bus HT")
            await until(lambda: at_rep.statistics().in_handshake == 5)
            at_rep.close()
            for half in halves:  # their paths are not known yet
                data = await receive_end(half)
                assert not data or Answer(data).status == 503
                await half.aclose()
            await pipe.send_all(frame(b"still here"))
            assert await bus.receive() == b"still here"
            await served_at(at_bus.url, "bus", bus)
            await pipe.aclose()


@both
async def test_a_path_can_be_listened_at_once(url: str) -> None:
    with trio.fail_after(10):
        async with sp.Rep0() as rep, sp.Rep0() as other:
            listener = await listen(rep, f"{url}/a")
            with pytest.raises(OSError) as caught:
                await listen(other, listener.url)
            assert caught.value.errno == errno.EADDRINUSE
            assert repr(listener.url) in str(caught.value)
            assert other.listeners == ()
            await check(rep, listener.url)


@pytest.mark.parametrize(("first", "second"), [("ws", "wss"), ("wss", "ws")])
async def test_a_port_is_encrypted_or_not(first: str, second: str) -> None:
    with trio.fail_after(10):
        async with sp.Rep0() as rep, sp.Rep0() as other:
            listener = await listen(rep, f"{first}://127.0.0.1:0/a")
            with pytest.raises(OSError, match="address in use, and ws:// and wss:// cannot share a port") as caught:
                await listen(other, listener.url.replace(first, second, 1).replace("/a", "/b"))
            assert caught.value.errno == errno.EADDRINUSE
            await check(rep, listener.url)


async def test_a_port_has_one_certificate() -> None:
    with trio.fail_after(10):
        async with sp.Rep0() as rep, sp.Rep0() as other:
            listener = await listen(rep, "wss://127.0.0.1:0/a")
            with pytest.raises(sp.TLSConfigError, match="pass the TLSServerConfig object that they use"):
                await other.listen(listener.url.replace("/a", "/b"), tls=authority().server())
            await check(rep, listener.url)
            await listen(other, listener.url.replace("/a", "/b"))
            await check(other, other.url)


@pytest.mark.parametrize("first", [False, True])
async def test_a_port_is_behind_a_proxy_or_not(first: bool) -> None:
    with trio.fail_after(10):
        async with sp.Rep0() as rep, sp.Rep0() as other:
            listener = await rep.listen(f"{WS}/a", proxy_protocol=first)
            with pytest.raises(OSError, match="address in use, with another proxy_protocol") as caught:
                await other.listen(listener.url.replace("/a", "/b"), proxy_protocol=not first)
            assert caught.value.errno == errno.EADDRINUSE


async def test_each_socket_at_a_port_has_its_own_terms() -> None:
    strict = sp.WSServerConfig(response_headers={"X-Who": "rep"})
    lax = sp.WSServerConfig(origins="*", response_headers={"X-Who": "bus"})
    with trio.fail_after(10):
        async with sp.Rep0(max_message_size=100, ws=strict) as rep, sp.Bus0(max_message_size=1000, ws=lax) as bus:
            at_rep = await rep.listen(f"{WS}/rep")
            at_bus = await bus.listen(at_rep.url.replace("/rep", "/bus"))
            page = ("Origin", "https://app.example")
            assert (await ask(at_rep.url, request(page, line="GET /rep HTTP/1.1"))).status == 403
            async with await web(at_bus.url) as stream:
                await stream.send_all(request(page, line="GET /bus HTTP/1.1", name="bus"))
                assert b"\r\nX-Who: bus\r\n" in await receive_head(stream)
                await stream.send_all(frame(bytes(1000)))
                assert await bus.receive() == bytes(1000)
                await stream.send_all(frame(bytes(1001)))
                assert (await receive_close(stream))[0] == 1009
            events = rep.events()
            async with await upgraded(at_rep.url) as stream:
                await stream.send_all(frame(ID + bytes(97)))
                assert (await receive_close(stream))[0] == 1009
            assert isinstance((await expect(events, sp.EventKind.DETACHED)).error, sp.MessageTooLarge)


# The PROXY protocol.

V1 = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n"
SCHEMES = ["tcp", "tls+tcp", "ws", "wss"]


def v2(command: int = 0x21, kind: int = 0x11, rest: bytes | None = None, *, size: int | None = None) -> bytes:
    if rest is None:
        rest = bytes([203, 0, 113, 7, 192, 0, 2, 1]) + struct.pack(">HH", 4711, 443)
    return SIGNATURE + bytes([command, kind]) + struct.pack(">H", len(rest) if size is None else size) + rest


TLVS = struct.pack(">BH", 5, 4) + b"id-1" + struct.pack(">BHBI", 0x20, 5 + 3 + 4, 7, 0) + struct.pack(">BH", 0x22, 4) + b"them"

schemes = pytest.mark.parametrize("scheme", SCHEMES)


async def secured(stream: trio.SocketStream, scheme: str) -> Stream:
    """Do the TLS handshake if *scheme* has one."""
    if scheme not in ("tls+tcp", "wss"):
        return stream
    secure = trio.SSLStream(stream, _trusting(), server_hostname="127.0.0.1")
    await secure.do_handshake()
    return secure


def first_words(scheme: str) -> bytes:
    """Return the beginning of a REQ's stream, with a request after it."""
    if scheme.startswith("ws"):
        return request() + frame(ID + b"hello")
    return greeting(REQ) + tcp_frame(ID + b"hello")


async def through_proxy(url: str, header: bytes, *, slowly: bool = False) -> tuple[Stream, str]:
    """Connect like a proxy that sends *header*, and send a request; return the proxy's own address
    too.
    """
    scheme = url.partition("://")[0]
    stream = await connect(tcp(url))
    assert isinstance(stream, trio.SocketStream)
    for part in [header[i : i + 1] for i in range(len(header))] if slowly else [header]:
        await stream.send_all(part)
        if slowly:
            await trio.lowlevel.checkpoint()
    host, port = stream.socket.getsockname()[:2]
    secure = await secured(stream, scheme)
    await secure.send_all(first_words(scheme))
    return secure, f"{host}:{port}"


@schemes
@pytest.mark.parametrize("slowly", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize(
    ("header", "source", "destination"),
    [
        pytest.param(V1, "203.0.113.7:4711", "192.0.2.1:443", id="v1"),
        pytest.param(b"PROXY TCP6 2a00::7 2001:db8::1 1 2\r\n", "[2a00::7]:1", "[2001:db8::1]:2", id="v1 of IPv6"),
        pytest.param(v2(), "203.0.113.7:4711", "192.0.2.1:443", id="v2"),
        pytest.param(
            v2(kind=0x31, rest=b"/client".ljust(108, b"\0") + b"/server".ljust(108, b"\0")), "unix:/client", "unix:/server", id="v2 of unix"
        ),
    ],
)
async def test_a_pipe_shows_the_client_behind_the_proxy(scheme: str, header: bytes, source: str, destination: str, slowly: bool) -> None:
    url = f"{scheme}://127.0.0.1:0"
    seen: list[str] = []

    def authorize(pipe: sp.Pipe) -> bool:
        seen.append(pipe.remote_address)
        return True

    with trio.fail_after(15):
        async with sp.Rep0(listen=url, tls=server_tls(url), proxy_protocol=True, authorize=authorize) as rep:
            stream, proxy = await through_proxy(rep.url, header, slowly=slowly)
            assert await rep.receive() == b"hello"
            (pipe,) = rep.pipes
            assert pipe.remote_address == source
            assert pipe.proxy_address == proxy
            assert pipe.proxy is not None
            assert (pipe.proxy.source, pipe.proxy.destination) == (source, destination)
            assert (pipe.tls is not None) == (scheme in ("tls+tcp", "wss"))
            assert seen == [source]
            await stream.aclose()


@schemes
@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", v2(0x20, 0, b""), v2(0x20), v2(kind=0, rest=b"")])
async def test_a_proxy_that_speaks_for_itself_is_the_peer(scheme: str, header: bytes) -> None:
    url = f"{scheme}://127.0.0.1:0"
    with trio.fail_after(10):
        async with sp.Rep0(listen=url, tls=server_tls(url), proxy_protocol=True) as rep:
            stream, proxy = await through_proxy(rep.url, header)
            assert await rep.receive() == b"hello"
            (pipe,) = rep.pipes
            assert (pipe.remote_address, pipe.proxy_address) == (proxy, None)
            assert pipe.proxy is not None
            assert pipe.proxy.source == ""
            await stream.aclose()


@schemes
async def test_what_else_the_proxy_says_is_there(scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:0"
    with trio.fail_after(10):
        async with sp.Rep0(listen=url, tls=server_tls(url), proxy_protocol=True) as rep:
            stream, _ = await through_proxy(rep.url, v2(rest=v2()[16:] + TLVS))
            assert await rep.receive() == b"hello"
            proxy = rep.pipes[0].proxy
            assert proxy is not None
            assert proxy.unique_id == b"id-1"
            assert proxy.ssl is not None
            assert (proxy.ssl.common_name, proxy.ssl.verified) == ("them", True)
            await stream.aclose()


@pytest.mark.parametrize("scheme", ["tcp", "ws"])
@pytest.mark.parametrize("header", [V1, v2()])
async def test_the_header_and_all_that_follows_may_come_in_one_segment(scheme: str, header: bytes) -> None:
    with trio.fail_after(10):
        async with (
            sp.Rep0(listen=f"{scheme}://127.0.0.1:0", proxy_protocol=True) as rep,
            await connect(tcp(rep.url)) as stream,
        ):
            await stream.send_all(header + first_words(scheme))
            assert await rep.receive() == b"hello"
            assert rep.pipes[0].remote_address == "203.0.113.7:4711"


async def test_a_client_that_sends_no_header_has_no_proxy() -> None:
    with trio.fail_after(10):
        async with sp.Rep0(listen=WS) as rep, await upgraded(rep.url) as stream:
            await rep.wait_for_peers()
            host, port = socket_of(stream).getsockname()[:2]
            (pipe,) = rep.pipes
            assert (pipe.remote_address, pipe.proxy_address, pipe.proxy) == (f"{host}:{port}", None, None)


async def test_behind_both_kinds_of_proxies_the_client_is_the_one_behind_all() -> None:
    config = sp.WSServerConfig(trusted_proxies="203.0.113.0/24")
    with trio.fail_after(10):
        async with sp.Rep0(listen=WS, proxy_protocol=True, ws=config) as rep:
            for header, expected in ((V1, "198.51.100.9"), (V1.replace(b"203.0.113.7", b"203.0.114.7"), "203.0.114.7:4711")):
                async with await connect(tcp(rep.url)) as stream:
                    await stream.send_all(header)
                    await upgrade(stream, ("X-Forwarded-For", "192.0.2.9, 198.51.100.9"))
                    await rep.wait_for_peers()
                    (pipe,) = rep.pipes
                    host, port = socket_of(stream).getsockname()[:2]
                    assert (pipe.remote_address, pipe.proxy_address) == (expected, f"{host}:{port}")
                    assert pipe.proxy is not None
                    assert pipe.proxy.source.endswith(":4711")
                    assert pipe.http is not None
                    assert pipe.http.via_trusted_proxy == (expected == "198.51.100.9")
                await until(lambda: not rep.pipes)


@pytest.mark.slow
@schemes
@pytest.mark.parametrize(
    ("said", "words"),
    [
        pytest.param(None, "no PROXY protocol header, which this listener requires", id="none"),
        pytest.param(b"PROXY TCP4 203.0.113.7 192.0.2.1 4711\r\n", "cannot be read", id="a broken line"),
        pytest.param(b"PROXY " + b"x" * 200, "must end within 107 bytes", id="a line without an end"),
        pytest.param(v2(size=0xFFFF), "announces 65535 bytes, but at most 8192", id="an absurd length"),
        pytest.param(v2(size=8193), "announces 8193 bytes, but at most 8192", id="one byte too long"),
        pytest.param(v2(0x31), "version and command 0x31", id="another version"),
        pytest.param(v2(kind=0x51), "family and transport 0x51", id="another family"),
        pytest.param(v2(rest=b"short"), "5 bytes of addresses, expected 12", id="short addresses"),
        pytest.param(v2(rest=v2()[16:] + b"\x01\xff\xff"), "longer than the header", id="a field that is cut off"),
        pytest.param(SIGNATURE[:-1] + b"X" + v2()[12:], "no PROXY protocol header", id="a broken signature"),
    ],
)
async def test_where_a_header_is_required_no_client_connects_without_a_good_one(scheme: str, said: bytes | None, words: str) -> None:
    url = f"{scheme}://127.0.0.1:0"
    async with sp.Rep0(listen=url, tls=server_tls(url), proxy_protocol=True) as rep:
        events = rep.events()
        with trio.fail_after(10):
            async with await connect(tcp(rep.url)) as stream:
                await stream.send_all(first_words("tcp") if said is None else said)
                event = await expect(events, sp.EventKind.REFUSED)
                assert isinstance(event.error, sp.GreetingError)
                assert words in event.reason
                assert event.reason.startswith("127.0.0.1:")
                await receive_end(stream)
            stream, _ = await through_proxy(rep.url, V1)
            assert await rep.receive() == b"hello"
            await stream.aclose()


@schemes
async def test_our_own_client_without_a_proxy_is_refused_where_a_header_is_required(scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:0"
    async with sp.Rep0(listen=url, tls=server_tls(url), proxy_protocol=True) as rep, sp.Req0() as req:
        events = rep.events()
        with trio.fail_after(10):
            with pytest.raises(sp.DialError):
                await req.dial(rep.url, tls=client_tls(url))
            event = await expect(events, sp.EventKind.REFUSED)
            assert "no PROXY protocol header, which this listener requires" in event.reason


@schemes
@pytest.mark.parametrize("header", [V1, b"PROXY UNKNOWN\r\n", v2(), v2(0x20, 0, b"")], ids=["v1", "v1 unknown", "v2", "v2 local"])
async def test_where_no_header_is_expected_it_is_refused_with_the_option_that_is_missing(scheme: str, header: bytes) -> None:
    url = f"{scheme}://127.0.0.1:0"
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep:
        events = rep.events()
        with trio.fail_after(10):
            async with await connect(tcp(rep.url)) as stream:
                await stream.send_all(header + first_words("tcp"))
                await receive_end(stream)
            event = await expect(events, sp.EventKind.REFUSED)
            assert isinstance(event.error, sp.PeerError)
            assert "proxy_protocol=True" in event.reason
            await check(rep, rep.url)


@schemes
@pytest.mark.parametrize("said", [b"", V1[:20], v2()[:20], v2(size=8000)], ids=["nothing", "v1", "v2", "v2 at length"])
async def test_a_header_counts_against_the_greeting_timeout(scheme: str, said: bytes, mock_clock: MockClock) -> None:
    url = f"{scheme}://127.0.0.1:0"
    with at_most(10):
        async with sp.Rep0(listen=url, tls=server_tls(url), proxy_protocol=True, handshake_timeout=3) as rep:
            events = rep.events()
            async with await connect(tcp(rep.url)) as stream:
                await stream.send_all(said)
                await wait_all_tasks_blocked(0.01)
                mock_clock.jump(3.1)
                event = await expect(events, sp.EventKind.REFUSED)
                assert isinstance(event.error, sp.GreetingError)
                assert "was not complete within 3 s" in event.reason
                # A client that has not said who it is gets no answer.
                assert await receive_end(stream) == b""


@schemes
async def test_a_proxy_that_ends_within_its_header_is_refused_with_the_reason(scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:0"
    async with sp.Rep0(listen=url, tls=server_tls(url), proxy_protocol=True) as rep:
        events = rep.events()
        with trio.fail_after(10):
            stream = await connect(tcp(rep.url))
            await stream.send_all(V1[:20])
            await stream.aclose()
            event = await expect(events, sp.EventKind.REFUSED)
            assert isinstance(event.error, sp.PeerClosed)
            assert "in the middle of its PROXY protocol header" in event.reason


async def test_a_health_check_comes_by_a_proxy_as_well() -> None:
    async with sp.Rep0(listen=WS, proxy_protocol=True, ws=HEALTHY) as rep:
        with trio.fail_after(10):
            for header in (V1, v2(0x20, 0, b"")):
                async with await connect(tcp(rep.url)) as stream:
                    await stream.send_all(header + b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
                    assert Answer(await receive_end(stream)).status == 200
