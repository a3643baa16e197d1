"""PAIR and its one slot: a peer that does not use it does not keep it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import trio

import sp
from tests.transports.conftest import new_url, scheme
from tests.transports.ends import client_tls, dial, listen, network_only, server_tls
from tests.transports.web import connect_plainly
from tests.transports.wire import (
    REQ,
    connect,
    connect_as,
    expect,
    frame,
    greet,
    greeting,
    receive_end,
    receive_exactly,
    receive_frame,
    until,
)

__all__ = ["new_url", "scheme"]
PAIR0 = 0x10
PAIR1 = 0x11

stream_only = pytest.mark.parametrize("scheme", ["tcp", "tls+tcp", "ipc", "abstract"])


@pytest.mark.parametrize("scheme", ["tcp", "tls+tcp", "ipc", "abstract", "ws", "wss"])
async def test_a_silent_peer_does_not_keep_the_slot_from_others(
    scheme: str, new_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sp.core.admission._SLOT_RESERVED", 0.05)
    async with sp.Pair0(handshake_timeout=60) as pair, sp.Pair0() as good:
        url = (await listen(pair, new_url())).url
        silent = [await (connect_plainly if scheme.startswith("ws") else connect)(url) for _ in range(20)]
        await until(lambda: pair.statistics().listeners[0].accepted == 20)
        with trio.fail_after(5):
            await dial(good, url)
            await good.send(b"x")
            assert await pair.receive() == b"x"
        for stream in silent:
            await trio.aclose_forcefully(stream)


@stream_only
async def test_a_peer_of_another_protocol_does_not_keep_the_slot(new_url: Callable[[], str]) -> None:
    async with sp.Pair0() as pair, sp.Pair0() as good:
        url = (await listen(pair, new_url())).url
        told = pair.events()
        with trio.fail_after(5):
            async with await connect(url) as stream:
                await stream.send_all(greeting(REQ))
                assert isinstance((await expect(told, sp.EventKind.REFUSED)).error, sp.WrongProtocol)
                await dial(good, url)
                await good.send(b"x")
                assert await pair.receive() == b"x"


@pytest.mark.slow
async def test_a_server_that_says_nothing_keeps_the_place_no_longer_than_its_greeting_time(new_url: Callable[[], str]) -> None:
    # A peer that has our greeting may have attached us, so the slot is taken until that is decided.
    (silent,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with silent, sp.Pair0(handshake_timeout=0.1, redial_min=0.02, redial_max=0.02) as pair, sp.Pair0() as good:
        heard = pair.events()
        await pair.dial(f"tcp://127.0.0.1:{silent.socket.getsockname()[1]}", wait=False)
        async with await silent.accept():
            await trio.testing.wait_all_tasks_blocked(0.001)
            await dial(pair, (await listen(good, new_url())).url, wait=False)
            with trio.fail_after(10):
                refused = await expect(heard, sp.EventKind.DIAL_FAILED)
                assert "already has a peer, or is about to get one" in refused.reason
                await good.send(b"x")
                assert await pair.receive() == b"x"


@pytest.mark.parametrize("good_dials", [True, False])
async def test_a_silent_server_keeps_others_away_for_a_second_and_not_for_the_greeting_time(
    good_dials: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async def never(_: sp.Pipe) -> bool:
        await trio.sleep_forever()
        return False

    async with sp.Pair0(listen="inproc://silent", authorize=never), sp.Pair0() as pair, sp.Pair0() as good:
        await pair.dial("inproc://silent", wait=False)
        await trio.testing.wait_all_tasks_blocked()
        here, there = (pair, good) if good_dials else (good, pair)
        await here.listen("inproc://here")
        await there.dial("inproc://here", wait=False)
        with trio.fail_after(8):
            await good.send(b"x")
            assert await pair.receive() == b"x"


async def test_a_free_place_is_greeted_without_waiting_for_the_peer_and_a_taken_one_is_not() -> None:
    async with sp.Pair0(listen="tcp://127.0.0.1:0") as pair, sp.Pair0() as good:
        url = pair.url
        with trio.fail_after(10):
            async with await connect(url) as stream:
                assert await receive_exactly(stream, 8) == greeting(PAIR0)
            await dial(good, url)
            async with await connect(url) as stream:
                await stream.send_all(greeting(PAIR0))
                assert await receive_end(stream) == b""
            await good.send(b"x")
            assert await pair.receive() == b"x"


@pytest.mark.parametrize("decision", [True, False])
async def test_while_authorize_decides_about_one_the_place_is_its_own_and_free_again_if_it_says_no(
    decision: bool, new_url: Callable[[], str]
) -> None:
    gate = trio.Event()
    asked: list[sp.Pipe] = []

    async def authorize(pipe: sp.Pipe) -> bool:
        asked.append(pipe)
        if len(asked) > 1:
            return True
        await gate.wait()
        return decision

    async with (
        sp.Pair0(authorize=authorize) as pair,
        sp.Pair0(redial_min=0.005, redial_max=0.005) as first,
        sp.Pair0(redial_min=0.005, redial_max=0.005) as second,
        trio.open_nursery() as nursery,
    ):
        with trio.fail_after(5):
            url = (await listen(pair, new_url())).url
            told = pair.events()
            nursery.start_soon(first.send, b"first")
            await dial(first, url, wait=False)
            await until(lambda: asked)
            nursery.start_soon(second.send, b"second")
            await dial(second, url, wait=False)
            await trio.testing.wait_all_tasks_blocked(0.001)
            gate.set()
            await expect(told, sp.EventKind.REFUSED)
            got = await pair.receive()
            (first if got == b"first" else second).close()
            assert {got, await pair.receive()} == {b"first", b"second"}


@pytest.mark.slow
@network_only
async def test_peers_that_come_and_go_at_full_speed_leave_the_place_to_the_next_each_time(url: str) -> None:
    async with sp.Pair1(listen=url, tls=server_tls(url)) as pair:
        with trio.fail_after(20):
            for number in range(100):
                stream = await connect_as(pair.url, PAIR1)
                await stream.send_all(frame(b"\0\0\0\1%d" % number))
                assert await pair.receive() == b"%d" % number
                await trio.aclose_forcefully(stream)
                await until(lambda: not pair.pipes)


@network_only
async def test_a_second_peer_that_other_implementations_would_let_in_is_told_by_an_end_without_a_greeting(url: str) -> None:
    async with sp.Pair0(listen=url, tls=server_tls(url)) as pair:
        with trio.fail_after(10):
            async with await connect_as(pair.url, PAIR0) as first:
                await pair.wait_for_peers()
                async with await connect(pair.url) as second:
                    await second.send_all(greeting(PAIR0))
                    assert await second.receive_some() == b""
                await pair.send(b"x")
                assert await receive_frame(first) == b"x"


@network_only
@pytest.mark.parametrize("payload", [b"", b"\0\0\0", b"\0\0\1\1", b"\1\0\0\0body", b"\xff\xff\xff\xff"], ids=bytes.hex)
async def test_a_message_without_its_hops_ends_that_pipe_and_its_place_is_free(url: str, payload: bytes) -> None:
    for make in (sp.Pair1, partial(sp.Pair1, poly=True), sp.raw.Pair1):
        async with make(listen=url, tls=server_tls(url)) as pair, sp.Pair1() as good:
            with trio.fail_after(10):
                stream = await connect_as(pair.url, PAIR1)
                await pair.wait_for_peers()
                pipe = pair.pipes[0]
                await stream.send_all(frame(payload))
                await until(lambda pair=pair: not pair.pipes)
                assert isinstance(pipe.error, sp.MalformedMessage)
                await stream.aclose()
                await good.dial(pair.url, tls=client_tls(url))
                await good.send(b"x")
                assert await pair.receive() == b"x"


@network_only
@pytest.mark.parametrize(("hops", "taken"), [(0, True), (1, True), (8, True), (9, False), (255, False)])
async def test_hops_up_to_the_ttl_are_taken_and_more_are_dropped_and_counted(url: str, hops: int, taken: bool) -> None:
    async with sp.Pair1(listen=url, tls=server_tls(url), ttl=8) as pair:
        with trio.fail_after(10):
            async with await connect(pair.url) as stream:
                await greet(stream, PAIR1)
                await stream.send_all(frame(bytes([0, 0, 0, hops]) + b"body") + frame(b"\0\0\0\1last"))
                if taken:
                    assert await pair.receive() == b"body"
                assert await pair.receive() == b"last"
                await pair.send(b"ours")
                assert await receive_frame(stream) == b"\0\0\0\1ours"
        assert pair.statistics().dropped == ({} if taken else {"ttl": 1})
