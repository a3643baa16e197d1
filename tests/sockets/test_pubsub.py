from __future__ import annotations

import logging

import pytest
import trio

import sp
from tests.transports import wire
from tests.transports.ends import dial, network_only, server_tls
from tests.transports.wire import PUB, SUB, connect_as, frame, greeting, receive_exactly

from .conftest import connect


async def until(condition: object) -> None:
    """Let the others run until *condition* holds."""
    assert callable(condition)
    while not condition():
        await trio.lowlevel.checkpoint()


async def test_a_subscriber_gets_what_begins_with_its_topics(url: str) -> None:
    async with (
        sp.Pub0(listen=url, tls=server_tls(url)) as pub,
        sp.Sub0(topics=[b"a", b"bc"]) as sub,
        sp.Sub0(topics=b"") as everything,
        sp.Sub0() as nothing,
    ):
        await connect(pub, sub, everything, nothing)
        for body in (b"a", b"b", b"abc", b"bcd", b"", b"x", b"bc"):
            await pub.send(body)
        assert [await sub.receive() for _ in range(4)] == [b"a", b"abc", b"bcd", b"bc"]
        assert [await everything.receive() for _ in range(7)] == [b"a", b"b", b"abc", b"bcd", b"", b"x", b"bc"]
        with pytest.raises(trio.WouldBlock):
            nothing.receive_nowait()


@pytest.mark.slow
async def test_after_waiting_for_peers_the_first_message_arrives_a_thousand_times_of_a_thousand(url: str) -> None:
    async with sp.Pub0(listen=url, tls=server_tls(url)) as pub:
        for number in range(1000):
            async with sp.Sub0(topics=b"") as sub:
                await dial(sub, pub.url, wait=False)
                await pub.wait_for_peers(1)
                await pub.send(b"%d" % number)
                assert await sub.receive() == b"%d" % number
                pub.pipes[0].close()
            while pub.pipes:
                await trio.lowlevel.checkpoint()


async def test_topics_come_and_go_while_it_runs(name: str) -> None:
    async with sp.Pub0(listen=name) as pub, sp.Sub0() as sub:
        await connect(pub, sub)
        sub.subscribe(b"a")
        sub.subscribe(bytearray(b"ab"))
        sub.subscribe(b"a")
        await pub.send(b"ab1")
        assert await sub.receive() == b"ab1"
        sub.unsubscribe(b"a")
        await pub.send(b"a2")
        await pub.send(b"ab3")
        assert await sub.receive() == b"ab3"
        with pytest.raises(ValueError, match="not subscribed to b'a'"):
            sub.unsubscribe(b"a")
        with pytest.raises(TypeError, match="a subscription must be bytes, not str"):
            sub.subscribe("a")  # type: ignore[arg-type]


async def test_unsubscribing_forgets_what_only_that_topic_let_in(name: str) -> None:
    async with sp.Pub0(listen=name) as pub, sp.Sub0(topics=[b"a", b"ab"]) as sub:
        await connect(pub, sub)
        await pub.send_many([b"a1", b"ab2", b"a3"])
        await until(lambda: sub.statistics().inbox == 3)
        sub.unsubscribe(b"a")
        assert sub.receive_nowait() == b"ab2"
        assert sub.statistics().inbox == 0


async def test_contexts_have_topics_and_queues_of_their_own(url: str) -> None:
    async with sp.Pub0(listen=url, tls=server_tls(url)) as pub, sp.Sub0(topics=b"a") as sub, sub.context() as one, sub.context() as two:
        await connect(pub, sub)
        one.subscribe(b"b")
        two.subscribe(b"")
        for body in (b"a", b"b", b"c"):
            await pub.send(body)
        assert [await two.receive() for _ in range(3)] == [b"a", b"b", b"c"]
        assert (await sub.receive(), await one.receive()) == (b"a", b"b")
        two.close()
        with pytest.raises(trio.ClosedResourceError):
            two.subscribe(b"x")
        await pub.send(b"b2")
        assert await one.receive() == b"b2"
        assert sub.statistics().inbox == 0


@pytest.mark.parametrize("call", ["receive", "receive_many", "receive_nowait"])
@pytest.mark.parametrize("on", ["a context", "the socket itself"])
async def test_receiving_without_topics_while_others_have_some_warns_once(
    on: str, call: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with sp.Pub0(listen=name) as pub, sp.Sub0() as sub, sub.context() as context, trio.open_nursery() as nursery:
        await connect(pub, sub)
        deaf, other = (context, sub) if on == "a context" else (sub, context)

        async def receive() -> None:
            if call == "receive_nowait":
                with pytest.raises(trio.WouldBlock):
                    deaf.receive_nowait()
            else:
                nursery.start_soon(getattr(deaf, call))
                await trio.testing.wait_all_tasks_blocked()

        caplog.set_level(logging.WARNING, "sp")
        await receive()
        assert not caplog.messages, "nobody has topics yet"
        other.subscribe(b"a")
        for _ in range(3):
            await receive()
        (told,) = caplog.messages
        assert f"SUB: {on} has no topics" in told
        nursery.cancel_scope.cancel()


async def test_a_queue_with_topics_causes_no_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "sp")
    async with sp.Pub0(listen=name) as pub, sp.Sub0() as sub, sub.context() as one, sub.context() as two:
        await connect(pub, sub)
        for context in (one, two):
            context.subscribe(b"a")
            with pytest.raises(trio.WouldBlock):
                context.receive_nowait()
    async with sp.raw.Sub0() as raw, sp.Sub0() as silent:
        for nothing_here in (raw.receive_nowait, silent.receive_nowait):
            with pytest.raises(trio.WouldBlock):
                nothing_here()
    assert not caplog.messages


async def test_a_slow_context_holds_up_the_others_for_a_moment_only(name: str, autojump_clock: trio.testing.MockClock) -> None:
    async with sp.Pub0(listen=name, outbox_limit=10_000) as pub, sp.Sub0(topics=b"", inbox_limit=10) as sub, sub.context() as stuck:
        await connect(pub, sub)
        stuck.subscribe(b"")
        began = trio.current_time()
        for number in range(300):
            await pub.send(b"%d" % number)
            assert await sub.receive() == b"%d" % number
        assert trio.current_time() - began < 0.5
        assert sub.statistics().dropped == {"inbox full": 290}
        assert [await stuck.receive() for _ in range(10)] == [b"%d" % number for number in range(290, 300)]


@pytest.mark.parametrize(("policy", "kept"), [("oldest", range(90, 100)), ("newest", range(10))])
async def test_a_full_inbox_drops_by_its_policy_and_counts(
    policy: str, kept: range, name: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with sp.Pub0(listen=name, outbox_limit=1000) as pub, sp.Sub0(topics=b"", inbox_limit=10, inbox_drops=policy) as sub:  # type: ignore[arg-type]
        await connect(pub, sub)
        await pub.send_many([b"%d" % number for number in range(100)])
        await trio.sleep(1)
        assert [await sub.receive() for _ in range(10)] == [b"%d" % number for number in kept]
        assert sub.statistics().dropped == {"inbox full": 90}


@pytest.mark.slow
async def test_a_burst_is_no_loss_for_an_application_that_receives(name: str, autojump_clock: trio.testing.MockClock) -> None:
    async with sp.Pub0(listen=name, outbox_limit=10_000) as pub, sp.Sub0(topics=b"", inbox_limit=10) as sub:
        await connect(pub, sub)
        await pub.send_many([b"%d" % number for number in range(5000)])
        for number in range(5000):
            await trio.sleep(0.001)
            assert await sub.receive() == b"%d" % number
        assert sub.statistics().dropped == pub.statistics().dropped == {}


@pytest.mark.slow
@network_only
@pytest.mark.parametrize("policy", ["oldest", "newest"])
async def test_a_subscriber_that_does_not_read_misses_messages_and_each_one_is_counted(url: str, policy: str) -> None:
    async with (
        sp.Pub0(listen=url, tls=server_tls(url), outbox_drops=policy, outbox_limit=16) as pub,  # type: ignore[arg-type]
        sp.Sub0(topics=b"") as good,
        await connect_as(pub.url, SUB) as stuck,
    ):
        await connect(pub, good)
        await pub.wait_for_peers(2)
        body = bytes(100_000)
        for number in range(300):
            await pub.send(b"%03d" % number + body)
            assert (await good.receive())[:3] == b"%03d" % number  # no other peer notices
        dropped = pub.statistics().dropped[sp.DropReason.PEER_FULL]
        assert dropped > 0
        assert sum(pipe.outbox for pipe in pub.statistics().pipes) <= 16 + 1
        received = b""
        numbers: list[int] = []
        while len(numbers) < 300 - dropped:
            while len(received) < 8 + 3 + len(body):
                received += await stuck.receive_some(1 << 20)
            numbers.append(int(received[8:11]))
            received = received[8 + 3 + len(body) :]
        assert numbers == sorted(set(numbers))
        assert (299 in numbers) == (policy == "oldest")


async def test_messages_without_a_peer_are_counted(name: str) -> None:
    async with sp.Pub0(listen=name) as pub:
        await pub.send_many([b"x"] * 3)
        pub.send_nowait(b"y")
        assert pub.statistics().dropped == {"no peer": 4}


@network_only
async def test_a_subscriber_that_sends_is_hung_up_on(url: str) -> None:
    async with sp.Pub0(listen=url, tls=server_tls(url)) as pub:
        events = pub.events()
        async with await wire.connect(pub.url) as peer:
            await peer.send_all(greeting(SUB) + frame(b"x"))
            assert await receive_exactly(peer, 8) == greeting(PUB)
            assert await peer.receive_some(1) == b""
        kinds = [(await anext(events)) for _ in range(2)]
        assert [event.kind for event in kinds] == [sp.EventKind.ATTACHED, sp.EventKind.DETACHED]
        assert isinstance(kinds[1].error, sp.MalformedMessage)


async def test_batches_are_sent_and_received_in_order(url: str) -> None:
    async with sp.Pub0(listen=url, tls=server_tls(url), outbox_limit=5000) as pub, sp.Sub0(topics=b"") as sub:
        await connect(pub, sub)
        bodies = [b"%d" % number for number in range(3000)]
        received: list[bytes] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pub.send_many, bodies)
            while len(received) < len(bodies):
                batch = await sub.receive_many(50)
                assert 1 <= len(batch) <= 50
                received += batch
        assert received == bodies
        with pytest.raises(ValueError, match="at least 1"):
            await sub.receive_many(0)
