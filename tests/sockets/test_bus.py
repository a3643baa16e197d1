from __future__ import annotations

import pytest
import trio

import sp
from tests.transports.ends import server_tls

from .conftest import connect


async def test_every_direct_peer_gets_a_message_but_never_the_sender(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as middle, sp.Bus0() as left, sp.Bus0() as right:
        await connect(middle, left, right)
        await middle.send(b"from the middle")
        await left.send(b"from the left")
        assert [await left.receive(), await right.receive()] == [b"from the middle"] * 2
        message = await middle.receive_message()
        assert message.body == b"from the left"
        assert message.pipe in middle.pipes
        for socket in (left, right, middle):
            with pytest.raises(trio.WouldBlock):
                socket.receive_nowait()


async def test_a_bus_without_peers_takes_messages_and_counts_them(name: str) -> None:
    async with sp.Bus0(listen=name) as bus:
        await bus.send(b"x")
        assert bus.statistics().dropped == {"no peer": 1}


async def test_an_application_that_does_not_receive_cannot_stall_its_peers(name: str, autojump_clock: trio.testing.MockClock) -> None:
    async with sp.Bus0(listen=name, inbox_limit=5) as lazy, sp.Bus0(outbox_limit=1000) as busy:
        await connect(lazy, busy)
        await busy.send_many([b"%d" % number for number in range(100)])
        await trio.sleep(1)
        assert [await lazy.receive() for _ in range(5)] == [b"%d" % number for number in range(5)]
        assert lazy.statistics().dropped == {"inbox full": 95}


@pytest.mark.slow
async def test_both_sides_talk_at_once(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as one, sp.Bus0() as two, trio.open_nursery() as nursery:
        await connect(one, two)

        async def talk(socket: sp.Bus0) -> None:
            for number in range(2000):
                await socket.send(b"%d" % number)
                assert await socket.receive() == b"%d" % number

        nursery.start_soon(talk, one)
        nursery.start_soon(talk, two)
