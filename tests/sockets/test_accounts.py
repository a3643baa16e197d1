"""Every message is somewhere: delivered, waiting, or dropped and counted once."""

from __future__ import annotations

from collections import deque

import pytest
import trio

import sp
from sp.message import Message
from sp.options import SocketOptions
from sp.transports.contract import EndpointConfig
from sp.transports.stream import StreamConnection
from tests.transports.ends import network_only, server_tls
from tests.transports.wire import BUS, connect_as

from .conftest import Background, connect


class StubbornLink:
    """A link that takes a write whole or not at all, and not at all every other time, as a UNIX
    socket may.
    """

    local_address = remote_address = ""

    def __init__(self) -> None:
        self.written = b""
        self._willing = False

    def send(self, data: bytes) -> int:
        self._willing = not self._willing
        if not self._willing:
            self.written += data
            return len(data)
        raise BlockingIOError

    def send_parts(self, parts: list[bytes]) -> int:
        return self.send(b"".join(parts))


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_write_that_was_refused_is_kept_and_tried_again(size: int) -> None:
    link = StubbornLink()
    endpoint = EndpointConfig(number=0x20, peer_number=0x21, find_body=None, options=SocketOptions())
    connection = StreamConnection(link, endpoint)  # type: ignore[arg-type]
    outbox = deque(Message(bytes([number]) * size) for number in range(10))
    rounds = 0
    while not connection.send_nowait(outbox):
        assert connection.unsent > 0
        rounds += 1
        assert rounds < 100
    assert connection.unsent == 0
    frame = 8 + size
    assert [link.written[8 + number * frame] for number in range(10)] == list(range(10))
    assert len(link.written) == 10 * frame


@network_only
async def test_a_large_message_whose_write_fails_is_dropped_once(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url), linger=0) as bus:
        peer = await connect_as(bus.url, BUS)
        await bus.wait_for_peers()
        for _ in range(20):
            await bus.send(bytes(1 << 20))
        await peer.aclose()
        while bus.pipes:
            await trio.lowlevel.checkpoint()
    counted = bus.statistics()
    assert counted.messages_sent + sum(counted.dropped.values()) == 20


async def test_messages_that_were_read_and_never_delivered_are_counted(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url), inbox_limit=2) as bus, sp.Bus0(linger=0) as peer:
        await connect(bus, peer)
        await peer.send_many([b"x"] * 50)
        while bus.statistics().messages_received < 50:
            await trio.lowlevel.checkpoint()
        bus.pipes[0].close()
        while bus.pipes:
            await trio.lowlevel.checkpoint()
        assert bus.statistics().inbox + bus.statistics().dropped[sp.DropReason.UNDELIVERED] == 50


async def test_what_a_req_sends_again_is_not_dropped(url: str) -> None:
    async with (
        sp.Rep0(listen=url, tls=server_tls(url)) as rep,
        sp.Req0(redial_min=0.01, redial_max=0.01) as req,
        trio.open_nursery() as nursery,
    ):
        await connect(rep, req)
        asking = [Background(nursery, lambda: req.request(bytes(300_000))) for _ in range(12)]
        while rep.statistics().messages_received < 3:
            await trio.lowlevel.checkpoint()
        rep.pipes[0].close()

        async def serve() -> None:
            async for request in rep.requests():
                await request.reply(b"y")

        nursery.start_soon(serve)
        for asked in asking:
            assert await asked.done() == b"y"
        assert req.statistics().dropped == {}
        nursery.cancel_scope.cancel()


# Which task a cancellation reaches first is chance.
@pytest.mark.parametrize("how", ["close", "aclose", *["cancel"] * 10])
async def test_closing_a_req_does_not_send_its_request_to_its_other_peers(how: str, name: str) -> None:
    async with sp.Rep0(listen=name + "1") as one, sp.Rep0(listen=name + "2") as two, sp.Rep0(listen=name + "3") as three:
        async with trio.open_nursery() as nursery, sp.Req0() as req:
            for rep in (one, two, three):
                await connect(rep, req)
            await req.send(b"pay 100 EUR")
            await trio.testing.wait_all_tasks_blocked()
            if how == "cancel":

                async def cancel() -> None:
                    nursery.cancel_scope.cancel()

                nursery.start_soon(cancel)
                await trio.sleep_forever()
            elif how == "close":
                req.close()
        await trio.testing.wait_all_tasks_blocked()
        assert sum(rep.statistics().messages_received for rep in (one, two, three)) == 1


async def test_closing_a_context_wakes_the_calls_that_wait_to_send_in_it(name: str) -> None:
    async with sp.Req0() as req, trio.open_nursery() as nursery:
        context = req.context()
        waiting = Background(nursery, lambda: context.send(b"never"))
        await trio.testing.wait_all_tasks_blocked()
        context.close()
        with pytest.raises(trio.ClosedResourceError):
            await waiting.done()
        async with sp.Rep0(listen=name) as rep:
            await connect(rep, req)
            await trio.testing.wait_all_tasks_blocked()
            assert rep.statistics().messages_received == 0


@pytest.mark.slow
async def test_a_waiting_send_is_not_overtaken_by_a_later_one(name: str) -> None:
    async with sp.Rep0(listen=name, inbox_limit=1) as rep, sp.Req0(outbox_limit=4) as req, trio.open_nursery() as nursery:
        await connect(rep, req)
        number = 0
        while True:
            try:
                req.context().send_nowait(b"%d" % number)
                number += 1
            except trio.WouldBlock:
                await trio.testing.wait_all_tasks_blocked()
                try:
                    req.context().send_nowait(b"%d" % number)
                    number += 1
                except trio.WouldBlock:
                    break
        early = req.context()
        waiting = Background(nursery, lambda: early.send(b"early"))
        await trio.testing.wait_all_tasks_blocked()
        seen: list[bytes] = []
        while b"early" not in seen:
            seen.append(await rep.context().receive())
            await trio.lowlevel.checkpoint()
            try:
                req.context().send_nowait(b"late")
            except trio.WouldBlock:
                pass
        assert b"late" not in seen
        await waiting.done()


@network_only
async def test_the_first_to_receive_gets_the_first_message_also_when_it_reads_for_itself(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as one, sp.Bus0() as two, trio.open_nursery() as nursery:
        await connect(one, two)
        for _ in range(20):
            await two.send(b"x")
            await one.receive()
            await one.send(b"y")
            await two.receive()
        calls = []
        for _ in range(3):
            calls.append(Background(nursery, one.receive))
            await trio.testing.wait_all_tasks_blocked()
        await two.send_many([b"1", b"2", b"3"])
        assert [await call.done() for call in calls] == [b"1", b"2", b"3"]


@pytest.mark.slow
async def test_what_waits_between_two_sockets_of_a_process_is_bounded_in_bytes(name: str) -> None:
    async with sp.Rep0(listen=name, inbox_limit=1) as rep, sp.Req0(outbox_bytes=1 << 20) as req:
        await connect(rep, req)
        sent = 0
        for _ in range(100):
            try:
                req.context().send_nowait(bytes(500_000))
            except trio.WouldBlock:
                break
            sent += 1
            await trio.testing.wait_all_tasks_blocked()
        # 4 MiB between the two, 1 MiB in the outbox, one in the inbox and a read of as much again.
        assert 5 <= sent < 25
