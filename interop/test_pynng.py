"""Against libnng 1.11 of pynng, in our own process: what the matrix does not test already."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import sp
from interop.partners import (
    LIMIT,
    OURS,
    PAIRS,
    REDIAL,
    THEIRS,
    WINDOW,
    Arrivals,
    Pair,
    address,
    connect,
    each_greeting,
    each_listener,
    each_stranger,
    each_transport,
    exchange,
    exchange_again,
    listen_partner,
    next_event,
    partner,
    protocol_of,
    pump,
)

pytestmark = pytest.mark.libnng

MESSAGES = 10_000
IN_ORDER = 3000
OUTBOX = 128
"""How many messages of ours may wait for a peer."""


@each_listener
@each_transport
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if THEIRS in pair.turns], ids=str)
async def test_one_byte_over_the_limit_ends_the_pipe_and_the_next_pipe_works(
    pair: Pair, transport: str, listener: str, tmp_path: Path
) -> None:
    async with pair.open() as ours, pair.partner() as theirs:
        arrivals = await connect(ours, theirs, transport, listener, tmp_path)
        events = ours.events()
        if pair.ours in (sp.Req0, sp.Surveyor0):
            await ours.send(b"question")
            assert await theirs.arecv() == b"question"
        await theirs.asend(bytes(LIMIT - pair.header + 1))
        event = await next_event(events, sp.EventKind.DETACHED)
        assert isinstance(event.error, sp.MessageTooLarge)
        assert "message too large" in event.reason
        assert str(LIMIT + 1) in event.reason
        assert event.pipe is not None
        assert event.pipe.reason == event.reason
        await arrivals.wait(2)
        await ours.wait_for_peers()  # or a bus would have no peer to send to yet
        if pair.ours is sp.Req0:
            assert await theirs.arecv() == b"question", "the request is sent again to the next pipe"
            await theirs.asend(b"answer")
            assert await ours.receive() == b"answer"
        await exchange_again(ours, theirs, pair, b"next")


@each_transport
async def test_a_request_is_answered_by_a_server_that_died_and_came_back(transport: str, tmp_path: Path) -> None:
    async with sp.Req0(**REDIAL) as ours:
        async with partner("Rep0") as first:
            url = listen_partner(first, address(transport, tmp_path))
            await ours.dial(url)
            await ours.send(b"question")
            assert await first.arecv() == b"question"
        async with partner("Rep0") as second:
            second.listen(url)
            assert await second.arecv() == b"question"
            await second.asend(b"answer")
            assert await ours.receive() == b"answer"


@each_transport
async def test_a_partner_s_request_is_answered_by_our_server_that_was_closed_and_came_back(transport: str, tmp_path: Path) -> None:
    async with partner("Req0") as theirs:
        async with sp.Rep0() as first:
            url = (await first.listen(address(transport, tmp_path))).url
            theirs.dial(url, block=False)
            await theirs.asend(b"question")
            assert await first.receive() == b"question"
        async with sp.Rep0(listen=url) as second:
            assert await second.receive() == b"question"
            await second.send(b"answer")
            assert await theirs.arecv() == b"answer"


@each_transport
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair.ours is not sp.Req0], ids=str)
async def test_a_partner_that_died_and_came_back_is_found_again(pair: Pair, transport: str, tmp_path: Path) -> None:
    async with pair.open() as ours:
        events = ours.events()
        async with pair.partner() as first:
            arrivals = Arrivals(first)
            url = listen_partner(first, address(transport, tmp_path))
            await ours.dial(url)
            await arrivals.wait()
            await exchange(ours, first, pair.turns, b"first")
        await next_event(events, sp.EventKind.DETACHED)
        async with pair.partner() as second:
            arrivals = Arrivals(second)
            second.listen(url)
            await ours.wait_for_peers()
            await arrivals.wait()
            await exchange(ours, second, pair.turns, b"second")
    assert not ours.statistics().dropped


@each_transport
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair.ours is not sp.Rep0], ids=str)
async def test_a_partner_finds_us_again_when_we_were_closed_and_came_back(pair: Pair, transport: str, tmp_path: Path) -> None:
    async with pair.partner() as theirs:
        arrivals = Arrivals(theirs)
        async with pair.open() as first:
            url = (await first.listen(address(transport, tmp_path))).url
            theirs.dial(url, block=False)
            await first.wait_for_peers()
            await arrivals.wait()
            await exchange(first, theirs, pair.turns, b"first")
        async with pair.open(listen=url) as second:
            await second.wait_for_peers()
            await arrivals.wait(2)
            await exchange_again(second, theirs, pair, b"second")
    assert not first.statistics().dropped
    assert not second.statistics().dropped


@each_transport
async def test_requests_are_answered_in_any_order(transport: str, tmp_path: Path) -> None:
    async with sp.Rep0() as ours:
        url = (await ours.listen(address(transport, tmp_path))).url
        async with partner("Req0") as theirs:
            theirs.dial(url, block=False)
            with theirs.new_context() as one, theirs.new_context() as two:
                await one.asend(b"one")
                await two.asend(b"two")
                requests = ours.requests()
                waiting = {request.body: request for request in [await anext(requests), await anext(requests)]}
                for body in (b"two", b"one"):
                    await waiting[body].reply(body.upper())
                assert await one.arecv() == b"ONE"
                assert await two.arecv() == b"TWO"


@each_transport
@each_stranger
async def test_a_listener_refuses_a_partner_of_the_wrong_protocol_and_says_so(
    kind: type[Any], stranger: str, transport: str, tmp_path: Path
) -> None:
    async with kind() as ours:
        events = ours.events()
        listener = await ours.listen(address(transport, tmp_path))
        async with partner(stranger) as theirs:
            theirs.dial(listener.url, block=False)
            event = await next_event(events, sp.EventKind.REFUSED)
        assert isinstance(event.error, sp.WrongProtocol)
        assert f"wrong protocol: the peer is {protocol_of(stranger)}" in event.reason
        assert not ours.pipes
        assert listener.statistics().failures["WrongProtocol"] >= 1


@each_greeting
@each_stranger
async def test_a_dialer_refuses_a_partner_of_the_wrong_protocol_and_says_so(
    kind: type[Any], stranger: str, transport: str, tmp_path: Path
) -> None:
    async with kind(**REDIAL) as ours:
        events = ours.events()
        async with partner(stranger) as theirs:
            dialer = await ours.dial(listen_partner(theirs, address(transport, tmp_path)), wait=False)
            event = await next_event(events, sp.EventKind.DIAL_FAILED)
            assert isinstance(event.error, sp.WrongProtocol)
            assert f"wrong protocol: the peer is {protocol_of(stranger)}" in event.reason
            assert not ours.pipes
            assert dialer.statistics().attached == 0


async def test_a_dialer_finds_the_right_partner_at_the_address_of_a_wrong_one(tmp_path: Path) -> None:
    async with sp.Req0(**REDIAL) as ours:
        events = ours.events()
        async with partner("Pub0") as wrong:
            url = listen_partner(wrong, address("tcp", tmp_path))
            await ours.dial(url, wait=False)
            await next_event(events, sp.EventKind.DIAL_FAILED, sp.WrongProtocol)
        async with partner("Rep0") as right:
            right.listen(url)
            await exchange(ours, right, (OURS, THEIRS), b"found")


@each_listener
@each_transport
async def test_a_subscriber_that_keeps_up_gets_every_message_in_order(transport: str, listener: str, tmp_path: Path) -> None:
    async with sp.Pub0() as ours, partner("Sub0", recv_buffer_size=2 * WINDOW) as theirs:
        await connect(ours, theirs, transport, listener, tmp_path)
        await pump(ours.send, theirs.arecv, IN_ORDER)
    statistics = ours.statistics()
    assert statistics.messages_sent == IN_ORDER
    assert not statistics.dropped


@each_listener
@each_transport
async def test_we_get_every_message_of_a_publisher_in_order(transport: str, listener: str, tmp_path: Path) -> None:
    async with sp.Sub0(topics=b"") as ours, partner("Pub0", send_buffer_size=2 * WINDOW) as theirs:
        await connect(ours, theirs, transport, listener, tmp_path)
        await pump(theirs.asend, ours.receive, IN_ORDER)
    statistics = ours.statistics()
    assert statistics.messages_received == IN_ORDER
    assert not statistics.dropped


@each_transport
@pytest.mark.parametrize(
    "pair", [pair for pair in PAIRS if pair.ours in (sp.Push0, sp.Pull0, sp.Pair0, sp.Pair1) and not pair.poly], ids=str
)
async def test_nothing_is_lost_where_the_sender_waits_for_the_receiver(pair: Pair, transport: str, tmp_path: Path) -> None:
    bodies = [b"%d " % n + bytes(16_000) for n in range(1000)]  # more than the kernel keeps

    async def send_all(send: Callable[[bytes], Awaitable[None]]) -> None:
        for body in bodies:
            await send(body)

    async with pair.open() as ours, pair.partner() as theirs:
        await connect(ours, theirs, transport, OURS, tmp_path)
        for turn in pair.turns:
            send, receive = (ours.send, theirs.arecv) if turn == OURS else (theirs.asend, ours.receive)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all, send)
                # No task receives until all buffers on the way are full.
                if turn == OURS:
                    while ours.statistics().pipes[0].outbox < OUTBOX:
                        await trio.testing.wait_all_tasks_blocked(0.01)
                assert [await receive() for _ in bodies] == bodies
    assert not ours.statistics().dropped


@each_transport
async def test_what_a_publisher_sends_at_full_speed_is_sent_or_counted(transport: str, tmp_path: Path) -> None:
    async with sp.Pub0() as ours, partner("Sub0") as theirs:
        await connect(ours, theirs, transport, OURS, tmp_path)
        await ours.send_many(bytes(1000) for _ in range(MESSAGES))
        await ours.aclose()
    statistics = ours.statistics()
    assert statistics.messages_sent + sum(statistics.dropped.values()) == MESSAGES


@each_transport
async def test_what_an_idle_application_is_sent_is_received_or_counted(transport: str, tmp_path: Path) -> None:
    burst = MESSAGES // 2
    async with sp.Sub0(topics=b"", inbox_limit=10) as ours, ours.context() as bell:
        bell.subscribe(b"last")
        # As many as libnng accepts, so that it loses nothing.
        async with partner("Pub0", send_buffer_size=8192) as theirs:
            await connect(ours, theirs, transport, THEIRS, tmp_path)
            received: list[bytes] = []
            for _ in range(2):
                for n in range(burst - 1):
                    theirs.send(b"%d" % n)
                theirs.send(b"last")
                assert await bell.receive() == b"last"
                received += await ours.receive_many()
                assert received[-1] == b"last"
    statistics = ours.statistics()
    assert statistics.messages_received == MESSAGES
    assert len(received) < MESSAGES
    assert statistics.dropped == {"inbox full": MESSAGES - len(received)}


async def test_subscriptions_are_prefixes_on_both_sides(tmp_path: Path) -> None:
    bodies = [b"", b"a", b"ab", b"abc", b"b", b"\xff"]
    async with (
        sp.Pub0() as pub,
        sp.Sub0(topics=[b"ab", b"\xff"]) as sub,
        partner("Sub0", topics=[b"ab", b"\xff"]) as their_sub,
        partner("Pub0") as their_pub,
    ):
        await connect(pub, their_sub, "tcp", OURS, tmp_path)
        await connect(sub, their_pub, "tcp", THEIRS, tmp_path)
        for body in bodies:
            await pub.send(body)
            await their_pub.asend(body)
        for body in (b"ab", b"abc", b"\xff"):
            assert await their_sub.arecv() == body
            assert await sub.receive() == body


@each_transport
async def test_in_a_mesh_each_member_of_a_bus_hears_each_other_one_once(transport: str, tmp_path: Path) -> None:
    async with sp.Bus0() as one, sp.Bus0() as two, partner("Bus0") as three:
        arrivals = Arrivals(three)
        first = (await one.listen(address(transport, tmp_path))).url
        await two.dial(first)
        three.dial(first, block=False)
        await two.dial(listen_partner(three, address(transport, tmp_path)))
        await one.wait_for_peers(2)
        await two.wait_for_peers(2)
        await arrivals.wait(2)
        for round_number in range(10):
            await one.send(b"one %d" % round_number)
            await two.send(b"two %d" % round_number)
            await three.asend(b"three %d" % round_number)
            # An echo or a forwarded message would be a third one, and show in the next round.
            for receive, others in (
                (one.receive, (b"two", b"three")),
                (two.receive, (b"one", b"three")),
                (three.arecv, (b"one", b"two")),
            ):
                assert {await receive(), await receive()} == {b"%s %d" % (name, round_number) for name in others}
    assert not one.statistics().dropped
    assert not two.statistics().dropped


CROWD = 5


@each_transport
async def test_each_of_many_partners_is_answered_by_our_poly_pair(transport: str, tmp_path: Path) -> None:
    async with sp.Pair1(poly=True) as ours, AsyncExitStack() as stack:
        partners = [await stack.enter_async_context(partner("Pair1")) for _ in range(CROWD)]
        url = (await ours.listen(address(transport, tmp_path))).url
        for n, theirs in enumerate(partners):
            theirs.dial(url, block=False)
            await theirs.asend(b"%d" % n)
        messages = [await ours.receive_message() for _ in partners]
        assert sorted(message.body for message in messages) == [b"%d" % n for n in range(CROWD)]
        for message in messages[::-1]:
            await ours.send_message(sp.Message(b"to " + message.body, pipe=message.pipe))
        for n, theirs in enumerate(partners):
            assert await theirs.arecv() == b"to %d" % n
        # Without a pipe it is for the peer that has been there for longest.
        by_pipe = {message.pipe: partners[int(message.body)] for message in messages}
        for pipe in ours.pipes[:2]:
            await ours.send(b"to whom it may concern")
            assert await by_pipe[pipe].arecv() == b"to whom it may concern"
            pipe.close()
    assert not ours.statistics().dropped


@each_transport
async def test_each_of_many_of_ours_is_answered_by_a_partner_s_poly_pair(transport: str, tmp_path: Path) -> None:
    async with partner("Pair1", polyamorous=True) as theirs:
        url = listen_partner(theirs, address(transport, tmp_path))
        async with AsyncExitStack() as stack:
            ours = [await stack.enter_async_context(sp.Pair1(dial=url)) for _ in range(CROWD)]
            for n, one in enumerate(ours):
                await one.send(b"%d" % n)
            messages = [await theirs.arecv_msg() for _ in ours]
            for message in messages[::-1]:
                await message.pipe.asend(b"to " + message.bytes)
            for n, one in enumerate(ours):
                assert await one.receive() == b"to %d" % n
