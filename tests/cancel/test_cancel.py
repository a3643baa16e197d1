"""Cancelled means that it did not happen: nothing lost, nothing doubled, nothing left behind."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio

import sp
from tests.sockets.conftest import connect, name, url
from tests.transports import wire
from tests.transports.ends import dial, network_only, server_tls

__all__ = ["name", "url"]
COUNT = 2000


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
async def test_receivers_under_random_cancellations_get_every_message_once_and_in_order(url: str, seed: int) -> None:
    chance = random.Random(seed)
    async with (
        sp.Sub0(topics=b"", listen=url, tls=server_tls(url), inbox_limit=COUNT) as sub,
        sp.Pub0(outbox_limit=COUNT) as pub,
        trio.open_nursery() as nursery,
    ):
        await dial(pub, sub.url)
        received: list[int] = []

        async def send() -> None:
            for number in range(COUNT):
                await pub.send(b"%d" % number)
                if chance.random() < 0.1:
                    await trio.lowlevel.checkpoint()

        async def cancel(scope: trio.CancelScope) -> None:
            for _ in range(chance.randrange(4)):
                await trio.lowlevel.checkpoint()
            scope.cancel()

        nursery.start_soon(send)
        while len(received) < COUNT:
            async with trio.open_nursery() as inner:
                with trio.CancelScope() as scope:
                    inner.start_soon(cancel, scope)
                    while len(received) < COUNT:
                        if chance.random() < 0.2:
                            received += map(int, await sub.receive_many(3))
                        else:
                            received.append(int(await sub.receive()))
        assert received == list(range(COUNT))
        assert sub.statistics().dropped == pub.statistics().dropped == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
async def test_a_request_whose_send_was_cancelled_never_reaches_the_peer(url: str, seed: int) -> None:
    chance = random.Random(seed)
    seen: set[bytes] = set()
    cancelled: set[bytes] = set()
    async with (
        sp.Rep0(listen=url, tls=server_tls(url), inbox_limit=1) as rep,
        sp.Req0(outbox_limit=1) as req,
        trio.open_nursery() as nursery,
    ):
        await connect(rep, req)

        async def answer() -> None:
            async for request in rep.requests():
                seen.add(request.body.rstrip(b" "))
                await request.reply(request.body)

        async def ask(number: int) -> None:
            body = b"%d" % number
            context = req.context()
            try:
                await context.send(body + b" " * 100_000)
            except trio.Cancelled:
                cancelled.add(body)
                raise
            finally:
                context.close()

        async with trio.open_nursery() as senders:
            for number in range(300):
                scope = trio.CancelScope()

                async def one(number: int = number, scope: trio.CancelScope = scope) -> None:
                    with scope:
                        await ask(number)

                senders.start_soon(one)
                await trio.lowlevel.checkpoint()
                if chance.random() < 0.5:
                    scope.cancel()
                if number == 50:
                    nursery.start_soon(answer)
        assert await req.request(b"last") == b"last"
        assert cancelled
        assert not cancelled & seen
        assert seen | cancelled >= {b"%d" % number for number in range(300)}
        nursery.cancel_scope.cancel()


async def test_a_cancelled_receive_of_a_request_leaves_it_under_way(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as req:
        await connect(rep, req)
        for _ in range(10):
            await req.send(b"x")
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(req.receive)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            await rep.send(await rep.receive())
            assert await req.receive() == b"x"


async def test_a_cancelled_receive_of_a_service_leaves_the_request_for_the_next(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as req:
        await connect(rep, req)
        for _ in range(10):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(rep.receive)
                    await trio.testing.wait_all_tasks_blocked()
                    await req.send(b"x")
                    scope.cancel()  # the message may be on its way to the task already, or not
            await rep.send(await rep.receive())
            assert await req.receive() == b"x"


@network_only
async def test_a_cancelled_reply_was_not_sent_and_can_be_repeated(url: str) -> None:
    async with (
        sp.Rep0(listen=url, tls=server_tls(url), outbox_limit=1) as rep,
        await wire.connect_as(rep.url, wire.REQ) as stuck,
    ):
        await stuck.send_all(wire.frame(b"\x80\0\0\1") * 40)
        requests = [await anext(rep.requests()) for _ in range(40)]
        blocked = None
        for request in requests:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def reply(request: sp.Request = request, nursery: trio.Nursery = nursery) -> None:
                        await request.reply(bytes(1 << 20))
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(reply)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    scope.cancel()
            if scope.cancelled_caught:
                blocked = request
                break
        assert blocked is not None
        received = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blocked.reply, b"short")
            while rep.statistics().messages_sent < requests.index(blocked) + 1:
                received += len(await stuck.receive_some(1 << 20))
        expected = requests.index(blocked) * (12 + (1 << 20)) + 12 + 5
        while received < expected:
            received += len(await stuck.receive_some(1 << 20))
        assert received == expected


@pytest.mark.parametrize("call", ["wait_for_peers", "events", "listen", "request"])
async def test_other_waits_end_at_once_and_leave_the_socket_as_it_was(call: str, name: str) -> None:
    async with sp.Req0() as req:
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "wait_for_peers": lambda: req.wait_for_peers(3),
            "events": lambda: anext(req.events()),
            "listen": lambda: req.listen(name),
            "request": lambda: req.request(b"x"),
        }
        before = req.statistics()
        with trio.CancelScope() as scope:
            scope.cancel()
            await calls[call]()
        if call != "listen":
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(calls[call])
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
        assert scope.cancelled_caught
        assert req.statistics() == before
