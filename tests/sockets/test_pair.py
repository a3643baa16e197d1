from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import sp
from tests.transports.conftest import new_url, scheme
from tests.transports.ends import dial, listen
from tests.transports.web import upgrade, ws_frame
from tests.transports.wire import expect, until

from .conftest import Background, connect
from .kinds import Kind, Talk, each, gone, talking

__all__ = ["new_url", "scheme"]
NewUrl = Callable[[], str]
TAKEN = "this PAIR already has a peer"
HINT = "a PAIR that already has a peer hangs up like this"

PAIRS = [Kind(sp.Pair0), Kind(sp.Pair1), Kind(sp.Pair0, raw=True), Kind(sp.Pair1, raw=True)]
every_pair = each(PAIRS)
cooked_pairs = each(PAIRS[:2])


@pytest.mark.slow
async def test_two_peers_talk_both_ways_at_once(url: str) -> None:
    for kind in (Kind(sp.Pair0), Kind(sp.Pair1)):
        async with talking(kind, url) as talk, trio.open_nursery() as nursery:

            async def run(ours: sp.Pair0, letter: bytes, other: bytes) -> None:
                async with trio.open_nursery() as inner:
                    inner.start_soon(ours.send_many, [letter + b"%d" % number for number in range(500)])
                    got: list[bytes] = []
                    while len(got) < 500:
                        got += await ours.receive_many()
                assert got == [other + b"%d" % number for number in range(500)]

            nursery.start_soon(run, talk.front, b"f", b"b")
            nursery.start_soon(run, talk.back, b"b", b"f")


@every_pair
async def test_nothing_is_dropped_whichever_side_is_slow(kind: Kind, name: str, autojump_clock: MockClock) -> None:
    async with talking(kind, name, inbox_limit=2, outbox_limit=2, peer={"inbox_limit": 2}) as talk, trio.open_nursery() as nursery:

        async def send() -> None:
            for number in range(1000):
                await talk.send(b"%d" % number)

        nursery.start_soon(send)
        await trio.sleep(1000)
        assert talk.back.statistics().inbox == 2
        assert talk.front.statistics().pipes[0].outbox == 2
        assert [await talk.back.receive() for _ in range(1000)] == [b"%d" % number for number in range(1000)]
        assert talk.front.statistics().dropped == talk.back.statistics().dropped == {}


# The second peer.


@every_pair
async def test_a_second_peer_is_refused_with_a_reason_on_both_sides_and_the_first_goes_on(kind: Kind, scheme: str, new_url: NewUrl) -> None:
    async with kind() as pair, kind.peer() as first, kind.peer() as second:
        with trio.fail_after(10):
            url = (await listen(pair, new_url())).url
            await connect(pair, first)
            told, heard = pair.events(), second.events()
            with pytest.raises(sp.DialError, match=TAKEN if scheme.startswith("ws") else HINT) as caught:
                await dial(second, url)
            refused = await expect(told, sp.EventKind.REFUSED)
            assert TAKEN in refused.reason
            assert isinstance(refused.error, sp.PipeRefused)
            failed = await expect(heard, sp.EventKind.DIAL_FAILED)
            assert failed.reason == str(caught.value.__cause__)
            if scheme.startswith("ws"):
                assert isinstance(failed.error, sp.UpgradeRefused)
                assert failed.error.response.status == 503
            assert second.pipes == second.dialers == ()
            assert len(pair.pipes) == len(first.pipes) == 1
            figures = pair.statistics().listeners[0]
            assert (figures.accepted, figures.attached, sum(figures.failures.values())) == (2, 1, 1)
            talk = Talk(pair, first)
            assert await talk.ask(b"still there?") == b"still there?"
            assert await talk.answer(b"yes") == b"yes"


@cooked_pairs
@pytest.mark.parametrize("family", ["tcp", "ipc"])
async def test_a_second_peer_that_is_refused_before_its_greeting_has_left_is_told_why(
    kind: Kind, family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listener = socket.socket(socket.AF_INET if family == "tcp" else socket.AF_UNIX)
    listener.bind(("127.0.0.1", 0) if family == "tcp" else f"{tmp_path}/s")
    listener.listen()

    class Meanwhile(logging.Handler):
        """The listener closes between two steps of the dialer, as another process may."""

        def emit(self, record: logging.LogRecord) -> None:
            if "connected to" in record.getMessage():
                listener.accept()[0].close()

    caplog.set_level(logging.DEBUG, "sp")
    handler = Meanwhile()
    logging.getLogger("sp").addHandler(handler)
    try:
        async with kind() as pair:
            url = f"tcp://127.0.0.1:{listener.getsockname()[1]}" if family == "tcp" else f"ipc://{tmp_path}/s"
            with pytest.raises(sp.DialError, match=HINT):
                await pair.dial(url)
    finally:
        logging.getLogger("sp").removeHandler(handler)
        listener.close()


@cooked_pairs
async def test_what_the_second_peer_sends_waits_until_it_takes_over_and_arrives(kind: Kind, new_url: NewUrl) -> None:
    async with (
        kind() as pair,
        kind(redial_min=0.005, redial_max=0.005) as first,
        kind(redial_min=0.005, redial_max=0.005) as second,
        trio.open_nursery() as nursery,
    ):
        with trio.fail_after(10):
            url = (await listen(pair, new_url())).url
            await connect(pair, first)
            told = pair.events()
            dialer = await dial(second, url, wait=False)
            sending = Background(nursery, lambda: second.send_many([b"%d" % number for number in range(10)]))
            for _ in range(3):  # it is refused again and again, and has never got anywhere
                await expect(told, sp.EventKind.REFUSED)
            await until(lambda: dialer.error is not None)
            assert TAKEN in str(dialer.error) or HINT in str(dialer.error)
            await first.send(b"from the first")
            assert await pair.receive() == b"from the first"
            assert second.statistics().messages_sent == 0
            await first.aclose()
            assert [await pair.receive() for _ in range(10)] == [b"%d" % number for number in range(10)]
            await sending.done()
            await pair.send(b"welcome")
            assert await second.receive() == b"welcome"
            assert second.statistics().dropped == pair.statistics().dropped == {}


@pytest.mark.slow
@cooked_pairs
async def test_of_two_that_come_at_the_same_moment_one_stays_and_the_other_is_told_why(kind: Kind, new_url: NewUrl) -> None:
    for _ in range(5):
        async with kind() as pair, kind() as one, kind() as two, trio.open_nursery() as nursery:
            with trio.fail_after(10):
                url = (await listen(pair, new_url())).url
                told = pair.events()
                heard = {dialing: dialing.events() for dialing in (one, two)}
                dials = {dialing: Background(nursery, partial(dial, dialing, url)) for dialing in (one, two)}
                refused = await expect(told, sp.EventKind.REFUSED)
                assert TAKEN in refused.reason
                failures = {}
                for dialing, call in dials.items():
                    try:
                        await call.done()
                    except sp.DialError as error:
                        failures[dialing] = str(error)
                await pair.wait_for_peers()
                if failures:
                    (loser,) = failures
                else:  # its greeting was answered before that of the other had come
                    await until(lambda: not one.pipes or not two.pipes)
                    loser = two if one.pipes else one
                    failures[loser] = (await expect(heard[loser], sp.EventKind.DETACHED)).reason
                assert TAKEN in failures[loser] or HINT in failures[loser]
                winner = two if loser is one else one
                await pair.send(b"to the winner")
                assert await winner.receive() == b"to the winner"
                nursery.cancel_scope.cancel()


@pytest.mark.slow
@cooked_pairs
async def test_of_two_that_come_at_the_same_moment_neither_loses_a_message(kind: Kind, new_url: NewUrl) -> None:
    for _ in range(5):
        quick = {"redial_min": 0.005, "redial_max": 0.005}
        async with kind() as pair, kind(**quick) as one, kind(**quick) as two, trio.open_nursery() as nursery:
            with trio.fail_after(5):
                url = (await listen(pair, new_url())).url
                told = pair.events()
                for peer, body in ((one, b"one"), (two, b"two")):
                    nursery.start_soon(peer.send, body)
                    await dial(peer, url, wait=False)
                first = await pair.receive()
                winner = one if first == b"one" else two
                await expect(told, sp.EventKind.REFUSED)
                await winner.aclose()
                assert {first, await pair.receive()} == {b"one", b"two"}
                nursery.cancel_scope.cancel()


@cooked_pairs
async def test_the_second_dialer_of_a_socket_that_has_its_peer_is_told_so_and_takes_over_later(kind: Kind, new_url: NewUrl) -> None:
    async with kind() as first, kind() as second, kind(redial_min=0.005, redial_max=0.005) as pair:
        with trio.fail_after(10):
            one, two = [(await listen(peer, new_url())).url for peer in (first, second)]
            await dial(pair, one)
            told = second.events()
            with pytest.raises(sp.DialError, match=TAKEN) as caught:
                await dial(pair, two)
            assert isinstance(caught.value.__cause__, sp.PipeRefused)
            refused = await expect(told, sp.EventKind.REFUSED)
            assert refused.reason
            assert pair.dialers[0].url == one
            assert len(pair.pipes) == len(first.pipes) == 1
            assert second.pipes == ()

            heard = pair.events()
            await dial(pair, two, wait=False)
            assert TAKEN in (await expect(heard, sp.EventKind.DIAL_FAILED)).reason
            await pair.send(b"to the first")
            assert await first.receive() == b"to the first"
            await first.aclose()
            await pair.send(b"to the second")
            assert await second.receive() == b"to the second"


@pytest.mark.slow
@cooked_pairs
async def test_a_socket_that_dials_two_at_the_same_moment_takes_one_and_loses_nothing_of_either(kind: Kind, new_url: NewUrl) -> None:
    for _ in range(5):
        async with kind() as one, kind() as two, kind(redial_min=0.005, redial_max=0.005) as pair, trio.open_nursery() as nursery:
            with trio.fail_after(5):
                heard = pair.events()
                for peer, body in ((one, b"one"), (two, b"two")):
                    url = (await listen(peer, new_url())).url
                    nursery.start_soon(peer.send, body)
                    await dial(pair, url, wait=False)
                first = await pair.receive()
                winner = one if first == b"one" else two
                assert TAKEN in (await expect(heard, sp.EventKind.DIAL_FAILED)).reason
                await winner.aclose()
                assert {first, await pair.receive()} == {b"one", b"two"}
                nursery.cancel_scope.cancel()


@cooked_pairs
async def test_a_listener_beside_a_dialer_that_is_attached_refuses_as_well(kind: Kind, new_url: NewUrl) -> None:
    async with kind() as far, kind() as pair, kind() as late:
        with trio.fail_after(10):
            await dial(pair, (await listen(far, new_url())).url)
            told = pair.events()
            url = (await listen(pair, new_url())).url
            with pytest.raises(sp.DialError, match=f"{TAKEN}|{HINT}"):
                await dial(late, url)
            assert TAKEN in (await expect(told, sp.EventKind.REFUSED)).reason


@cooked_pairs
@pytest.mark.parametrize("seed", range(5))
async def test_two_that_dial_each_other_come_together(kind: Kind, seed: int, name: str, autojump_clock: MockClock) -> None:
    async with kind(listen=name + "-1") as one, kind(listen=name + "-2") as two:
        await one.dial(name + "-2", wait=False)
        await two.dial(name + "-1", wait=False)
        with trio.fail_after(60):
            for number in range(20):
                await one.send(b"%d" % number)
                await two.send(b"%d" % number)
                assert await one.receive() == await two.receive() == b"%d" % number
        assert len(one.pipes) == len(two.pipes) == 1


async def test_a_peer_that_ended_makes_place_for_the_next_and_nothing_goes_to_it_meanwhile(new_url: NewUrl) -> None:
    async with sp.Pair0() as pair, trio.open_nursery() as nursery:
        with trio.fail_after(20):
            url = (await listen(pair, new_url())).url
            for number in range(20):
                async with sp.Pair0() as peer:
                    await dial(peer, url)
                    await pair.wait_for_peers()
                    await peer.send(b"%d" % number)
                    assert await pair.receive() == b"%d" % number
                await gone(pair)
            waiting = Background(nursery, lambda: pair.send(b"waits for the next"))
            await wait_all_tasks_blocked()
            async with sp.Pair0() as peer:
                await dial(peer, url)
                assert await peer.receive() == b"waits for the next"
                await waiting.done()


async def test_a_peer_that_authorize_refuses_does_not_take_the_slot(new_url: NewUrl) -> None:
    welcome = False
    async with sp.Pair0(authorize=lambda _: welcome) as pair, sp.Pair0() as one, sp.Pair0() as two:
        with trio.fail_after(10):
            url = (await listen(pair, new_url())).url
            told = pair.events()
            await dial(one, url, wait=False)
            assert "authorize said no" in (await expect(told, sp.EventKind.REFUSED)).reason
            welcome = True
            await dial(two, url)
            await two.send(b"x")
            assert await pair.receive() == b"x"


# Storms.


@pytest.mark.slow
async def test_a_storm_of_second_peers_is_slowed_down_by_the_back_off_and_the_pair_goes_on(name: str, autojump_clock: MockClock) -> None:
    async with sp.Pair1(listen=name) as pair, sp.Pair1() as good, trio.open_nursery() as nursery:
        await connect(pair, good)
        others = [sp.Pair1(dial=name, redial_min=0.001) for _ in range(200)]

        async def live(other: sp.Pair1) -> None:
            async with other:
                await trio.sleep_forever()

        for other in others:
            nursery.start_soon(live, other)
        rounds = 0
        while rounds < 120:
            await trio.sleep(0.5)
            before = trio.current_time()
            await good.send(b"ping")
            await pair.send(await pair.receive())
            assert await good.receive() == b"ping"
            assert trio.current_time() - before < 0.01
            rounds += 1
        attempts = [other.statistics().dialers[0].attempts for other in others]
        assert max(attempts) < 40  # in a minute; without back-off it would be 60,000
        assert sum(other.statistics().dialers[0].attached for other in others) == 0
        assert len(pair.pipes) == 1
        assert pair.statistics().listeners[0].in_handshake == 0
        assert pair.statistics().dropped == {}

        await good.aclose()
        await pair.send(b"who is next?")
        with trio.fail_after(61):
            while not sum(other.statistics().inbox for other in others):
                await trio.sleep(1)
        nursery.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["tcp", "ipc", "ws"])
async def test_two_hundred_dialers_over_a_network_do_not_disturb_the_pair(new_url: NewUrl) -> None:
    async with sp.Pair0() as pair, sp.Pair0() as good, trio.open_nursery() as nursery:
        url = (await listen(pair, new_url())).url
        await connect(pair, good)
        others = [sp.Pair0(redial_min=0.01, redial_max=0.5) for _ in range(200)]

        async def live(other: sp.Pair0) -> None:
            async with other:
                await dial(other, url, wait=False)
                await trio.sleep_forever()

        began = trio.current_time()
        for other in others:
            nursery.start_soon(live, other)
        with trio.fail_after(30):
            while pair.statistics().listeners[0].accepted < 600:
                with trio.fail_after(5):
                    await good.send(b"ping")
                    await pair.send(await pair.receive())
                    assert await good.receive() == b"ping"
        passed = trio.current_time() - began
        attempts = sum(other.statistics().dialers[0].attempts for other in others)
        assert attempts <= 200 * (8 + 2 * passed / 0.25)
        assert len(pair.pipes) == 1
        assert not any(other.pipes for other in others)
        nursery.cancel_scope.cancel()


# PAIR1 and its hops.


@pytest.mark.parametrize(
    ("ttl", "hops", "taken"), [(8, 0, True), (8, 8, True), (8, 9, False), (1, 1, True), (1, 2, False), (255, 255, True)]
)
@each([Kind(sp.Pair1), Kind(sp.Pair1, {"poly": True}), Kind(sp.Pair1, raw=True)])
async def test_messages_with_more_hops_than_the_ttl_are_dropped_and_counted(
    ttl: int, hops: int, taken: bool, kind: Kind, name: str
) -> None:
    async with kind(listen=name, ttl=ttl) as pair, sp.raw.Pair1() as other:
        await connect(pair, other)
        if hops:  # a raw socket's message has made one hop more than its header says
            await other.send_message(sp.Message(b"body", bytes([0, 0, 0, hops - 1])))
        else:
            other._core.pipes[other.pipes[0].id].offer(sp.Message(b"body", bytes(4)))
        await other.send_message(sp.Message(b"last", bytes(4)))
        message = await pair.receive_message()
        if taken:
            assert message.body == b"body"
            assert message.header == bytes([0, 0, 0, hops])
            message = await pair.receive_message()
        assert message.body == b"last"
        assert message.header == b"\0\0\0\1"
        assert pair.statistics().dropped == ({} if taken else {"ttl": 1})


async def test_a_raw_message_that_has_made_255_hops_is_not_sent_on(name: str) -> None:
    async with sp.Pair1(listen=name, ttl=255) as pair, sp.raw.Pair1() as other:
        await connect(pair, other)
        await other.send_message(sp.Message(b"too far", b"\0\0\0\xff"))
        await other.send_message(sp.Message(b"far", b"\0\0\0\xfe"))
        assert await pair.receive() == b"far"
        assert other.statistics().dropped == {"ttl": 1}


async def test_a_message_that_was_received_can_be_sent_on_as_it_is(name: str) -> None:
    async with sp.Pair1(listen=name + "1") as left, sp.raw.Pair1() as front, sp.raw.Pair1() as back, sp.Pair1() as right:
        await connect(left, front)
        await back.listen(name + "2")
        await connect(back, right)
        for _ in range(3):
            await left.send(b"x")
            await back.send_message(await front.receive_message())
            message = await right.receive_message()
            assert (message.header, message.body) == (b"\0\0\0\2", b"x")
            await right.send_message(message)  # a cooked socket makes its own header
            message = await back.receive_message()
            assert (message.header, message.body) == (b"\0\0\0\1", b"x")


# Several peers.


@pytest.mark.slow
async def test_each_peer_of_a_poly_pair_gets_its_own_answers(new_url: NewUrl) -> None:
    async with sp.Pair1(poly=True) as pair, trio.open_nursery() as nursery:
        url = (await listen(pair, new_url())).url
        done = 0

        async def ask(number: int) -> None:
            nonlocal done
            async with sp.Pair1(poly=bool(number % 2)) as peer:
                await dial(peer, url)
                for turn in range(5):
                    await peer.send(b"%d-%d" % (number, turn))
                    assert await peer.receive() == b"re: %d-%d" % (number, turn)
            done += 1

        async def answer() -> None:
            async for _ in iter_messages(pair):
                await pair.send_message(sp.Message(b"re: " + _.body, pipe=_.pipe))

        nursery.start_soon(answer)
        with trio.fail_after(20):
            async with trio.open_nursery() as asking:
                for number in range(20):
                    asking.start_soon(ask, number)
            assert done == 20
            await gone(pair)
        assert pair.statistics().dropped == {}
        nursery.cancel_scope.cancel()


async def iter_messages(pair: sp.Pair1) -> Any:
    while True:
        yield await pair.receive_message()


async def test_without_a_pipe_a_message_goes_to_the_peer_that_has_been_there_for_longest(name: str) -> None:
    async with sp.Pair1(poly=True, listen=name) as pair, sp.Pair1() as one, sp.Pair1() as two, sp.Pair1() as three:
        await connect(pair, one)
        for later in (two, three):
            await dial(later, name)
        await pair.wait_for_peers(3)
        for peer in (one, two, three):
            await pair.send(b"x")
            await pair.send_message(sp.Message(b"y"))
            assert [await peer.receive() for _ in range(2)] == [b"x", b"y"]
            await peer.aclose()
            await until(lambda peer=peer: len(pair.pipes) == [three, two, one].index(peer))


async def test_a_slow_peer_delays_only_its_own_messages(name: str, autojump_clock: MockClock) -> None:
    async with (
        sp.Pair1(poly=True, listen=name, outbox_limit=2) as pair,
        sp.Pair1(inbox_limit=1) as slow,
        sp.Pair1() as quick,
        trio.open_nursery() as nursery,
    ):
        await connect(pair, slow)
        await dial(quick, name)
        await pair.wait_for_peers(2)
        to_slow, to_quick = pair.pipes
        sent = 0

        async def flood() -> None:
            nonlocal sent
            for number in range(1000):
                await pair.send_message(sp.Message(b"%d" % number, pipe=to_slow))
                sent += 1

        nursery.start_soon(flood)
        await wait_all_tasks_blocked()
        assert 100 < sent < 500
        for number in range(200):
            await pair.send_message(sp.Message(b"%d" % number, pipe=to_quick))
            assert await quick.receive() == b"%d" % number
            await quick.send(b"x")
            assert await pair.receive() == b"x"
        assert to_slow.statistics().outbox == 2
        assert [await slow.receive() for _ in range(1000)] == [b"%d" % number for number in range(1000)]
        assert pair.statistics().dropped == {}


async def test_a_message_for_a_peer_that_is_gone_is_dropped_and_counted_even_while_it_waits(name: str) -> None:
    async with sp.Pair1(poly=True, listen=name, outbox_limit=1) as pair, sp.Pair1() as other, trio.open_nursery() as nursery:
        async with sp.Pair1(inbox_limit=1) as leaving:
            await connect(pair, leaving)
            await connect_also(pair, other)
            pipe = pair.pipes[0]
            waiting = [Background(nursery, partial(pair.send_message, sp.Message(b"%d" % number, pipe=pipe))) for number in range(400)]
            await wait_all_tasks_blocked()
            stuck = sum(call._outcome is None for call in waiting)
            assert stuck > 50
            leaving.close()
        for call in waiting:
            await call.done()
        await until(lambda: len(pair.pipes) == 1)
        assert pair.statistics().dropped[sp.DropReason.PEER_GONE] == stuck
        await pair.send_message(sp.Message(b"never", pipe=pipe))
        assert pair.statistics().dropped[sp.DropReason.PEER_GONE] == stuck + 1
        assert other.statistics().messages_received == 0
        await pair.send_message(sp.Message(b"x", pipe=pair.pipes[0]))
        assert await other.receive() == b"x"


async def test_a_message_for_a_peer_that_is_gone_does_not_wait_for_other_peers(name: str) -> None:
    async with sp.Pair1(poly=True, listen=name) as pair, trio.open_nursery() as nursery:
        async with sp.Pair1() as leaving:
            await connect(pair, leaving)
            pipe = pair.pipes[0]
        await until(lambda: not pair.pipes)
        waiting = Background(nursery, partial(pair.send, b"to whoever comes"))
        await wait_all_tasks_blocked()
        with trio.fail_after(10):
            await pair.send_message(sp.Message(b"to nobody", pipe=pipe))
        assert pair.statistics().dropped == {"peer gone": 1}
        async with sp.Pair1() as other:
            await connect(pair, other)
            assert await other.receive() == b"to whoever comes"
            await waiting.done()


async def connect_also(listening: Any, dialing: Any) -> None:
    await dial(dialing, listening.url)
    await listening.wait_for_peers(2)


async def test_a_poly_pair_without_peers_waits_for_one(name: str) -> None:
    async with sp.Pair1(poly=True, listen=name) as pair, sp.Pair1() as peer, trio.open_nursery() as nursery:
        waiting = Background(nursery, lambda: pair.send(b"x"))
        await wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            pair.send_nowait(b"y")
        await connect(pair, peer)
        await waiting.done()
        assert await peer.receive() == b"x"


async def test_messages_to_one_peer_of_a_poly_pair_keep_their_order_however_they_are_sent(name: str) -> None:
    async with sp.Pair1(poly=True, listen=name, outbox_limit=1) as pair, sp.Pair1(inbox_limit=1) as peer, trio.open_nursery() as nursery:
        await connect(pair, peer)
        pipe = pair.pipes[0]

        async def send() -> None:
            for number in range(600):
                body = b"%d" % number
                await (pair.send(body) if number % 2 else pair.send_message(sp.Message(body, pipe=pipe)))

        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert [await peer.receive() for _ in range(600)] == [b"%d" % number for number in range(600)]


async def test_a_pair_that_listens_tells_a_stranger_what_it_is(new_url: NewUrl) -> None:
    async with sp.Pair0() as pair, sp.Pair1() as stranger:
        with trio.fail_after(10):
            url = (await listen(pair, new_url())).url
            with pytest.raises(sp.DialError) as caught:
                await dial(stranger, url)
    assert isinstance(caught.value.__cause__, sp.WrongProtocol)


@cooked_pairs
async def test_a_peer_that_authorize_refuses_is_told_of_a_place_only_where_that_may_be_the_reason(
    kind: Kind, scheme: str, new_url: NewUrl
) -> None:
    says_why = scheme == "inproc" or scheme.startswith("ws")
    words = "not authorized" if scheme == "inproc" else "403 Forbidden"
    expected = words if says_why else "one whose authorize refuses"
    async with kind(authorize=lambda _: False) as pair, kind() as peer:
        with trio.fail_after(10), pytest.raises(sp.DialError, match=expected) as caught:
            await dial(peer, (await listen(pair, new_url())).url)
        assert (HINT in str(caught.value)) is not says_why
    async with kind() as pair, kind(authorize=lambda _: False) as peer:
        told = pair.events()
        with trio.fail_after(10), pytest.raises(sp.DialError, match="authorize said no"):
            await dial(peer, (await listen(pair, new_url())).url)
        with trio.fail_after(10):
            reason = (await expect(told, sp.EventKind.DETACHED)).reason
        assert ("authorize said no" if scheme.startswith("ws") else "one whose authorize refuses") in reason
        assert (HINT in reason) is not scheme.startswith("ws")


@cooked_pairs
@pytest.mark.parametrize("begun", [b"", b"\0SP\0"])
@pytest.mark.parametrize("family", ["tcp", "tls+tcp", "ws"])
@pytest.mark.parametrize("resets", [False, True], ids=["an end", "a reset"])
async def test_a_hang_up_that_no_pair_makes_is_not_explained_by_one(kind: Kind, family: str, begun: bytes, *, resets: bool) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with kind(should_redial=lambda _: False) as pair, listener:
        with trio.fail_after(10):
            heard = pair.events()
            await dial(pair, f"{family}://127.0.0.1:{listener.socket.getsockname()[1]}", wait=False)
            async with await listener.accept() as stream:
                await stream.receive_some()
                await stream.send_all(begun)
                if resets:
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            reason = (await expect(heard, sp.EventKind.DIAL_FAILED)).reason
    # A reset may have taken back what was sent before it.
    assert (HINT in reason) is (family == "tcp" and (resets or not begun)), reason


@pytest.mark.parametrize(("payload", "is_wordless"), [(b"", True), (b"\x03\xe8", True), (b"\x03\xe8later", False), (b"\x03\xf0", False)])
async def test_a_close_that_says_why_is_not_explained_by_a_place(payload: bytes, *, is_wordless: bool) -> None:
    async with sp.Pair0(listen="ws://127.0.0.1:0") as pair:
        with trio.fail_after(10):
            told = pair.events()
            async with await upgrade(pair.url, "pair.sp.nanomsg.org") as stream:
                await stream.send_all(ws_frame(8, payload))
                reason = (await expect(told, sp.EventKind.DETACHED)).reason
    assert (HINT in reason) is is_wordless, reason


async def test_a_peer_that_leaves_after_a_while_has_not_refused_us(name: str, autojump_clock: MockClock) -> None:
    async with sp.Pair0(listen=name) as pair, sp.Pair0() as peer:
        told = peer.events()
        await peer.dial(name)
        await peer.send(b"and no answer")
        assert await pair.receive() == b"and no answer"
        await trio.sleep(1.1)
        pair.close()
        assert HINT not in (await expect(told, sp.EventKind.DETACHED)).reason


@pytest.mark.parametrize("pipe", ["nonsense", 7, b"pipe"])
async def test_the_pipe_of_a_message_must_be_one(pipe: object, name: str) -> None:
    async with sp.Pair1(poly=True, listen=name) as desk, sp.Pair1(dial=name), sp.Pair1() as plain:
        await desk.wait_for_peers()
        for socket in (desk, plain):
            with pytest.raises(TypeError, match=f"the pipe of a message must be an sp.Pipe or None, not {type(pipe).__name__}"):
                await socket.send_message(sp.Message(b"x", pipe=pipe))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="a message header must be bytes"):
            await desk.send_message(sp.Message(b"x", desk.pipes[0]))  # type: ignore[arg-type]  # as in pynng


async def test_the_pipe_of_another_socket_is_refused(name: str) -> None:
    async with sp.Pair1(poly=True, listen=name) as desk, sp.Pair1(dial=name) as guest:
        await desk.wait_for_peers()
        await guest.wait_for_peers()
        with pytest.raises(ValueError, match="is a pipe of another socket"):
            await desk.send_message(sp.Message(b"x", pipe=guest.pipes[0]))


async def test_authorize_is_not_asked_about_a_peer_without_a_place(new_url: NewUrl) -> None:
    asked: list[sp.Pipe] = []

    def authorize(pipe: sp.Pipe) -> bool:
        asked.append(pipe)
        return True

    async with sp.Pair0(authorize=authorize) as pair, sp.Pair0() as one, sp.Pair0() as two:
        with trio.fail_after(10):
            url = (await listen(pair, new_url())).url
            await dial(one, url)
            with pytest.raises(sp.DialError):
                await dial(two, url)
    assert len(asked) == 1
