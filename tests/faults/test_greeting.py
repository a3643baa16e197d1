"""Peers that greet badly, slowly or not at all: each takes one place for a while, and no other peer
notices.
"""

from __future__ import annotations

import random
import tracemalloc

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import sp
from tests.transports.ends import dial, server_tls
from tests.transports.wire import (
    BUS,
    REP,
    REQ,
    Stream,
    at_most,
    connect,
    connect_as,
    end,
    expect,
    frame,
    greeting,
    receive_end,
    receive_exactly,
    socket_of,
    until,
)


@pytest.fixture(params=["tcp", "tls+tcp"])
def url(request: pytest.FixtureRequest) -> str:
    return f"{request.param}://127.0.0.1:0"


async def check(rep: sp.Rep0, url: str) -> None:
    """A good client is served."""
    async with sp.Req0() as req:
        await dial(req, url)
        await req.send(b"hello")
        assert await rep.receive() == b"hello"
        await rep.send(b"hello yourself")
        assert await req.receive() == b"hello yourself"


# Silence.


@pytest.mark.slow
async def test_two_hundred_silent_connections_delay_no_peer_and_end_at_the_deadline(url: str, mock_clock: MockClock) -> None:
    with at_most(20):
        async with sp.Rep0(listen=url, tls=server_tls(url), handshake_timeout=10) as rep:
            (listener,) = rep.listeners
            silent = [await connect(listener.url) for _ in range(200)]
            await until(lambda: listener.statistics().in_handshake == 200)
            await check(rep, listener.url)  # and the clock stands still
            mock_clock.jump(9.9)
            await until(lambda: not rep.pipes)
            assert listener.statistics().in_handshake == 200
            await check(rep, listener.url)

            events = rep.events()
            mock_clock.jump(0.2)
            for stream in silent:
                assert await receive_exactly(stream, 8) == greeting(REP)
                assert await receive_end(stream) == b""
                event = await expect(events, sp.EventKind.REFUSED)
                assert isinstance(event.error, sp.GreetingError)
                assert "within 10 s" in event.reason
                await stream.aclose()
            assert listener.statistics().in_handshake == 0
            assert listener.statistics().failures == {"GreetingError": 200}
            await check(rep, listener.url)


async def test_a_silent_listener_fails_a_dial_at_the_deadline(mock_clock: MockClock) -> None:
    (listening,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listening, sp.Req0(handshake_timeout=3) as req:
        with at_most(10):
            async with trio.open_nursery() as nursery:

                async def dial() -> None:
                    with pytest.raises(sp.DialError, match="within 3 s") as caught:
                        await req.dial(f"tcp://127.0.0.1:{listening.socket.getsockname()[1]}")
                    assert isinstance(caught.value.__cause__, sp.GreetingError)

                nursery.start_soon(dial)
                stream = await listening.accept()
                assert await receive_exactly(stream, 8) == greeting(REQ)
                mock_clock.jump(3.1)
                assert await receive_end(stream) == b""
                await stream.aclose()


async def test_every_byte_of_a_slow_greeting_counts_against_the_same_deadline(url: str, mock_clock: MockClock) -> None:
    with at_most(10):
        async with sp.Rep0(listen=url, tls=server_tls(url), handshake_timeout=10) as rep, await connect(rep.url) as stream:
            events = rep.events()
            for byte in greeting(REQ)[:5]:
                await stream.send_all(bytes([byte]))
                await wait_all_tasks_blocked(0.002)
                mock_clock.jump(2.1)
            event = await expect(events, sp.EventKind.REFUSED)
            assert isinstance(event.error, sp.GreetingError)


async def test_a_greeting_and_messages_may_come_byte_by_byte(url: str, mock_clock: MockClock) -> None:
    with at_most(10):
        async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, await connect(rep.url) as stream:
            request = b"\x80\0\0\1slow"
            for byte in greeting(REQ) + frame(request) + frame(request):
                await stream.send_all(bytes([byte]))
                await wait_all_tasks_blocked(0.001)
            assert await rep.receive() == b"slow"
            await rep.send(b"patient")
            assert await receive_exactly(stream, 8 + 8 + 11) == greeting(REP) + frame(b"\x80\0\0\1patient")
            assert await rep.receive() == b"slow"


async def test_a_greeting_and_messages_may_come_in_one_piece(url: str) -> None:
    with trio.fail_after(5):
        async with sp.Bus0(listen=url, tls=server_tls(url)) as bus, await connect(bus.url) as stream:
            await stream.send_all(greeting(BUS) + b"".join(frame(b"%d" % number) for number in range(100)))
            assert [await bus.receive() for _ in range(100)] == [b"%d" % number for number in range(100)]


# authorize.


async def test_the_deadline_covers_a_slow_authorize(url: str, mock_clock: MockClock) -> None:
    asked: list[sp.Pipe] = []

    async def authorize(pipe: sp.Pipe) -> bool:
        asked.append(pipe)
        await trio.sleep_forever()
        raise AssertionError

    with at_most(10):
        async with sp.Bus0(listen=url, tls=server_tls(url), handshake_timeout=10, authorize=authorize) as bus:
            events = bus.events()
            async with await connect_as(bus.url, BUS) as stream:
                await stream.send_all(frame(b"too early"))
                await until(lambda: asked)
                mock_clock.jump(10.1)
                event = await expect(events, sp.EventKind.REFUSED)
                assert isinstance(event.error, sp.GreetingError)
                assert await receive_end(stream) == b""
            assert bus.pipes == ()
            with pytest.raises(trio.WouldBlock):
                bus.receive_nowait()


async def test_while_authorize_thinks_about_one_peer_others_are_served(autojump_clock: MockClock) -> None:
    first = True

    async def authorize(_: sp.Pipe) -> bool:
        nonlocal first
        if first:
            first = False
            await trio.sleep(5)
        return True

    async with sp.Rep0(listen="inproc://authorize", authorize=authorize) as rep, sp.Req0(dial="inproc://authorize") as slow:
        with trio.fail_after(30):
            await wait_all_tasks_blocked()
            began = trio.current_time()
            await check(rep, "inproc://authorize")
            assert trio.current_time() == began
            await slow.send(b"late")
            assert await rep.receive() == b"late"
            assert trio.current_time() == began + 5


async def test_nothing_of_a_refused_peer_is_delivered(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url), authorize=lambda _: False) as bus:
        events = bus.events()
        with trio.fail_after(5):
            async with await connect(bus.url) as stream:
                await stream.send_all(greeting(BUS) + frame(b"let me in"))
                event = await expect(events, sp.EventKind.REFUSED)
                assert isinstance(event.error, sp.PipeRefused)
                await receive_end(stream)
        with pytest.raises(trio.WouldBlock):
            bus.receive_nowait()


# Too many at once.


async def test_one_newcomer_too_many_ends_the_one_that_has_greeted_longest(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url), max_handshakes=5) as rep:
        (listener,) = rep.listeners
        events = rep.events()
        with trio.fail_after(5):
            streams: list[Stream] = []
            for number in range(1, 8):
                streams.append(await connect(listener.url))
                await until(lambda number=number: listener.statistics().accepted == number)
            for stream in streams[:2]:
                assert await receive_end(stream) in (b"", greeting(REP))
                event = await expect(events, sp.EventKind.REFUSED)
                assert "more than 5" in event.reason
                assert socket_of(stream).getsockname()[1] == int(event.reason.partition(": ")[0].rpartition(":")[2])
            assert listener.statistics().in_handshake == 5
            for stream in streams[2:]:  # the others still may
                await stream.send_all(greeting(REQ))
            await rep.wait_for_peers(5)
            for stream in streams:
                await stream.aclose()


@pytest.mark.slow
async def test_a_crowd_of_silent_newcomers_does_not_keep_a_good_client_out(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url), max_handshakes=5) as rep:
        (listener,) = rep.listeners
        with trio.fail_after(5):
            streams = [await connect(listener.url) for _ in range(50)]
            await check(rep, listener.url)
            assert listener.statistics().in_handshake <= 5
            for stream in streams:
                await stream.aclose()


# Nonsense.


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", sp.GreetingError, "does not speak SP"),
        (b"\x16\x03\x01\x02\x00", sp.GreetingError, "does not speak SP"),
        (b"\0SP\1\0\x30\0\0", sp.GreetingError, "does not speak SP"),
        (b"\0SP\0\0\x30\0\1", sp.GreetingError, "reserved"),
        (b"\0SP\0\x09\x99\0\0", sp.WrongProtocol, "protocol 0x0999, expected REQ"),
        (b"\0SP\0\0\x31\0\0", sp.WrongProtocol, "the peer is REP, expected REQ"),
    ],
    ids=["http", "tls", "version", "reserved", "unknown protocol", "our own protocol"],
)
async def test_a_peer_with_a_wrong_greeting_is_refused_at_once_and_the_listener_continues(
    url: str, said: bytes, kind: type[sp.Error], words: str
) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep:
        events = rep.events()
        with trio.fail_after(5):
            async with await connect(rep.url) as stream:
                await stream.send_all(said)
                event = await expect(events, sp.EventKind.REFUSED)
                assert isinstance(event.error, kind)
                assert words in event.reason
                port = socket_of(stream).getsockname()[1]
                assert f"127.0.0.1:{port}" in event.reason
                assert await receive_end(stream) in (b"", greeting(REP))
            await check(rep, rep.url)


@pytest.mark.parametrize("size", range(8))
async def test_a_peer_that_ends_within_its_greeting_is_refused_with_the_reason(url: str, size: int) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep:
        events = rep.events()
        with trio.fail_after(5):
            stream = await connect(rep.url)
            await stream.send_all(greeting(REQ)[:size])
            assert await receive_exactly(stream, 8) == greeting(REP)
            await end(stream)
            event = await expect(events, sp.EventKind.REFUSED)
            assert isinstance(event.error, sp.PeerClosed)
            assert f"after {size} of 8 bytes" in event.reason
            await stream.aclose()


@pytest.mark.slow
async def test_garbage_after_the_greeting_ends_the_pipe_and_the_listener_goes_on(url: str) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep:
        (listener,) = rep.listeners
        with trio.fail_after(20):
            for _ in range(200):
                events = rep.events()
                async with await connect(listener.url) as stream:
                    # 2^56 bytes and more are announced.
                    garbage = bytes([rng.randrange(1, 256)]) + rng.randbytes(rng.randrange(7, 300))
                    await stream.send_all(greeting(REQ) + garbage)
                    event = await expect(events, sp.EventKind.DETACHED)
                    assert isinstance(event.error, sp.MessageTooLarge)
                    await receive_end(stream)
            await check(rep, listener.url)
        assert rep.statistics().messages_received == 1


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 12, 15])
async def test_a_message_that_is_cut_off_ends_the_pipe_and_is_not_delivered(url: str, cut: int) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as bus:
        events = bus.events()
        with trio.fail_after(5):
            stream = await connect_as(bus.url, BUS)
            await stream.send_all(frame(b"whole") + frame(b"half of")[: cut if cut < 15 else 14])
            await end(stream)
            event = await expect(events, sp.EventKind.DETACHED)
            assert isinstance(event.error, sp.PeerClosed)
            assert "in the middle of a message" in event.reason
            assert await bus.receive() == b"whole"
            with pytest.raises(trio.WouldBlock):
                bus.receive_nowait()
            await stream.aclose()


async def test_a_request_without_the_end_of_its_header_ends_the_pipe(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep:
        events = rep.events()
        with trio.fail_after(5):
            async with await connect_as(rep.url, REQ) as stream:
                await stream.send_all(frame(b"\0\0\0\1\0\0\0\2"))
                event = await expect(events, sp.EventKind.DETACHED)
                assert isinstance(event.error, sp.MalformedMessage)
            await check(rep, rep.url)


# Announced and not sent.


@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1, 1 << 40, (1 << 20) + 1])
async def test_an_absurd_length_allocates_nothing_and_ends_that_pipe_only(url: str, size: int) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as bus:
        events = bus.events()
        with trio.fail_after(5):
            bad = await connect_as(bus.url, BUS)
            good = await connect_as(bus.url, BUS)
            await bus.wait_for_peers(2)
            tracemalloc.start()
            try:
                await bad.send_all(size.to_bytes(8, "big") + b"and a little")
                event = await expect(events, sp.EventKind.DETACHED)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak < 1 << 20
            assert isinstance(event.error, sp.MessageTooLarge)
            assert "message too large" in event.reason
            assert str(size) in event.reason
            assert await receive_end(bad) == b""
            await good.send_all(frame(b"still here"))
            assert await bus.receive() == b"still here"
            assert len(bus.pipes) == 1
            await bad.aclose()
            await good.aclose()


async def test_without_a_limit_memory_grows_with_what_has_arrived_and_not_with_what_was_announced(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url), max_message_size=None) as bus:
        with trio.fail_after(5):
            async with await connect_as(bus.url, BUS) as stream:
                await bus.wait_for_peers()
                tracemalloc.start()
                try:
                    await stream.send_all((1 << 63).to_bytes(8, "big") + b"and a little")
                    await wait_all_tasks_blocked(0.02)
                    _, peak = tracemalloc.get_traced_memory()
                finally:
                    tracemalloc.stop()
                assert peak < 1 << 20
                assert len(bus.pipes) == 1
