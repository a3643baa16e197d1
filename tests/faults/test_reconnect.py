"""Peers that are absent, come late, go and return, or will never do: in virtual time, over inproc."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import sys

import pytest
import trio
from trio.testing import MockClock

import sp
from tests.transports.wire import expect

_names = itertools.count(1)


@pytest.fixture
def url() -> str:
    return f"inproc://reconnect-{next(_names)}"


async def times_of_attempts(events: sp.EventStream, count: int) -> list[float]:
    """When the next *count* attempts began.

    Read as they happen: no other task runs before the time is taken.
    """
    times: list[float] = []
    for _ in range(count):
        await expect(events, sp.EventKind.DIALING)
        times.append(trio.current_time())
    return times


def differences(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


# Absent.


async def test_while_the_listener_is_absent_attempts_are_few_and_each_cause_is_recorded(url: str, autojump_clock: MockClock) -> None:
    async with sp.Req0(dial=url) as req:
        (dialer,) = req.dialers
        await trio.sleep(60)
        figures = dialer.statistics()
        assert 4 <= figures.attempts <= 30
        assert figures.failures == {"ConnectionRefusedError": figures.attempts}
        assert figures.attached == 0
        assert isinstance(dialer.error, ConnectionRefusedError)
        assert url in str(dialer.error)


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
async def test_attempts_over_tcp_leave_no_descriptors_and_no_tasks(autojump_clock: MockClock) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        async with sp.Req0(dial=f"tcp://127.0.0.1:{reserved.getsockname()[1]}", redial_min=0.1, redial_max=0.1) as req:
            await trio.sleep(1)
            before = len(os.listdir("/proc/self/fd")), trio.lowlevel.current_statistics().tasks_living
            await trio.sleep(60)
            assert (len(os.listdir("/proc/self/fd")), trio.lowlevel.current_statistics().tasks_living) == before
            assert req.dialers[0].statistics().attempts > 500
            assert isinstance(req.dialers[0].error, ConnectionRefusedError)


async def test_waits_are_drawn_at_random_between_a_floor_and_a_ceiling_that_doubles(url: str, autojump_clock: MockClock) -> None:
    rounds = []
    for _ in range(100):
        async with sp.Req0() as req:
            events = req.events()
            await req.dial(url, wait=False)
            rounds.append(differences(await times_of_attempts(events, 8)))
    for step, waits in enumerate(zip(*rounds, strict=True), 1):
        ceiling = 0.1 * 2**step
        assert all(0.1 <= wait <= ceiling + 1e-6 for wait in waits)
        assert max(waits) - min(waits) > (ceiling - 0.1) / 2  # really drawn


async def test_waits_never_pass_the_longest(url: str, autojump_clock: MockClock) -> None:
    async with sp.Req0(redial_min=1, redial_max=3) as req:
        events = req.events()
        await req.dial(url, wait=False)
        assert all(1 <= wait <= 3 + 1e-6 for wait in differences(await times_of_attempts(events, 100)))


async def test_with_the_shortest_equal_to_the_longest_the_interval_is_constant(url: str, autojump_clock: MockClock) -> None:
    async with sp.Req0(redial_min=2, redial_max=2) as req:
        events = req.events()
        await req.dial(url, wait=False)
        assert differences(await times_of_attempts(events, 20)) == pytest.approx([2] * 19)


# Coming late, going, and returning.


async def test_a_dialer_that_starts_offline_connects_within_the_longest_wait_of_going_online(url: str, autojump_clock: MockClock) -> None:
    async with sp.Req0(dial=url, redial_max=5) as req, sp.Rep0() as rep:
        events = req.events()
        await trio.sleep(300)
        pipes = req.pipes
        assert pipes == ()
        failed = await expect(events, sp.EventKind.DIAL_FAILED)
        assert isinstance(failed.error, ConnectionRefusedError)
        await rep.listen(url)
        with trio.fail_after(5 + 1e-6):
            await req.wait_for_peers()
        (dialer,) = req.dialers
        assert dialer.error is None
        assert dialer.pipe is req.pipes[0]
        await req.send(b"hello")
        assert await rep.receive() == b"hello"


async def test_a_success_begins_the_waits_anew(url: str, autojump_clock: MockClock) -> None:
    async with sp.Req0(dial=url) as req, sp.Rep0() as rep:
        (dialer,) = req.dialers
        await trio.sleep(1_000)
        listener = await rep.listen(url)
        with trio.fail_after(61):
            await req.wait_for_peers()
        await trio.sleep(10)
        before = dialer.statistics().attempts
        listener.close()
        await trio.sleep(0.2 + 1e-6)
        assert dialer.statistics().attempts >= before + 1
        await trio.sleep(1)
        assert dialer.statistics().attempts >= before + 2


async def test_a_listener_that_hangs_up_at_once_is_not_dialed_at_full_speed(url: str, autojump_clock: MockClock) -> None:
    async with sp.Rep0(listen=url, authorize=lambda _: False), sp.Req0(dial=url) as req:
        await trio.sleep(60)
        assert 4 <= req.dialers[0].statistics().attempts <= 30


async def test_a_request_waits_for_a_peer_and_outlives_a_lost_one(url: str, autojump_clock: MockClock) -> None:
    async with sp.Req0(dial=url, redial_max=1) as req, trio.open_nursery() as nursery:

        async def ask() -> None:
            with trio.fail_after(10):
                assert await req.request(b"anybody?") == b"me"

        nursery.start_soon(ask)
        await trio.sleep(2)
        async with sp.Rep0(listen=url) as deserter:
            assert await deserter.receive() == b"anybody?"
        async with sp.Rep0(listen=url) as rep:
            assert await rep.receive() == b"anybody?"
            await rep.send(b"me")
            await req.wait_for_peers()
            await trio.testing.wait_all_tasks_blocked()


async def test_a_dialer_that_is_closed_while_it_waits_stops_at_once(url: str, autojump_clock: MockClock) -> None:
    async with sp.Req0(dial=url) as req:
        (dialer,) = req.dialers
        events = req.events()
        await trio.sleep(100)
        attempts = dialer.statistics().attempts
        dialer.close()
        began = trio.current_time()
        await expect(events, sp.EventKind.STOPPED)
        assert trio.current_time() == began
        assert req.dialers == ()
        await trio.sleep(100)
        assert dialer.statistics().attempts == attempts


# Never.


async def test_a_permanent_error_is_raised_at_once_by_a_dial_that_waits(url: str, autojump_clock: MockClock) -> None:
    async with sp.Pub0(listen=url), sp.Req0() as req:
        began = trio.current_time()
        with pytest.raises(sp.DialError, match="wrong protocol: the peer is PUB, expected REP") as caught:
            await req.dial(url)
        assert isinstance(caught.value.__cause__, sp.WrongProtocol)
        assert trio.current_time() == began
        await trio.testing.wait_all_tasks_blocked()
        assert req.dialers == ()


async def test_after_a_permanent_error_the_background_waits_the_longest_time(url: str, autojump_clock: MockClock) -> None:
    async with sp.Pub0(listen=url), sp.Req0(redial_max=7) as req:
        events = req.events()
        await req.dial(url, wait=False)
        assert differences(await times_of_attempts(events, 4)) == pytest.approx([7] * 3)
        assert isinstance(req.dialers[0].error, sp.WrongProtocol)


async def test_a_cancelled_dial_leaves_nothing_behind(url: str, autojump_clock: MockClock) -> None:
    async def never(_: sp.Pipe) -> bool:
        await trio.sleep_forever()
        return True

    async with sp.Rep0(listen=url), sp.Req0(authorize=never) as req:
        with trio.move_on_after(3) as scope:
            await req.dial(url)
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        assert req.dialers == ()
        assert req.pipes == ()


async def test_the_redial_hook_sees_each_reason_and_ends_the_dialer_by_saying_no(url: str, autojump_clock: MockClock) -> None:
    asked: list[Exception] = []

    def should_redial(error: Exception) -> bool:
        asked.append(error)
        return len(asked) < 3

    async with sp.Req0(dial=url, should_redial=should_redial) as req:
        events = req.events()
        (dialer,) = req.dialers
        event = await expect(events, sp.EventKind.STOPPED)
        assert event.url == url
        assert isinstance(event.error, ConnectionRefusedError)
        assert event.error is dialer.error is asked[2]
        assert [type(error) for error in asked] == [ConnectionRefusedError] * 3
        assert dialer.statistics().attempts == 3
        assert req.dialers == ()


async def test_the_redial_hook_is_asked_when_a_pipe_is_lost(url: str, autojump_clock: MockClock) -> None:
    asked: list[Exception] = []
    async with sp.Req0(should_redial=asked.append) as req, sp.Rep0(listen=url) as rep:  # type: ignore[arg-type]  # append returns None: no
        dialer = await req.dial(url)
        events = req.events()
        await rep.wait_for_peers()
        rep.pipes[0].close()
        await expect(events, sp.EventKind.DETACHED)
        await expect(events, sp.EventKind.STOPPED)
        assert [type(error) for error in asked] == [sp.PeerClosed]
        assert req.dialers == ()
        assert dialer.statistics().attempts == 1


async def test_the_redial_hook_can_tell_hopeless_errors_from_others(url: str, autojump_clock: MockClock) -> None:
    def should_redial(error: Exception) -> bool:
        return not getattr(error, "permanent", False)

    async with sp.Req0(dial=url, should_redial=should_redial) as req:
        events = req.events()
        await trio.sleep(10)
        assert len(req.dialers) == 1
        async with sp.Pub0(listen=url):
            event = await expect(events, sp.EventKind.STOPPED)
        assert isinstance(event.error, sp.WrongProtocol)


async def test_an_address_that_cannot_be_meant_is_an_error_of_the_call_and_not_of_the_background() -> None:
    async with sp.Req0() as req:
        for wait in (True, False):
            with pytest.raises(sp.AddressError):
                await req.dial("tcp://nowhere", wait=wait)
        assert req.dialers == ()


async def test_an_address_in_use_is_an_os_error_with_its_number(url: str) -> None:
    async with sp.Rep0(listen=url) as rep:
        with pytest.raises(OSError, match="in use") as caught:
            await rep.listen(url)
        assert caught.value.errno == errno.EADDRINUSE
