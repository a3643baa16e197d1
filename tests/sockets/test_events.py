from __future__ import annotations

import logging

import pytest
import trio

import sp
from sp.events import EVENT_LIMIT
from tests.transports.ends import dial, listen, server_tls

from .conftest import connect

K = sp.EventKind


async def take(events: sp.EventStream, count: int) -> list[sp.Event]:
    return [await anext(events) for _ in range(count)]


async def test_every_step_of_a_pipes_life_is_an_event_on_both_sides(url: str) -> None:
    async with sp.Rep0() as rep, sp.Req0() as req:
        told, heard = rep.events(), req.events()
        listener = await listen(rep, url)
        dialer = await dial(req, listener.url)
        await rep.wait_for_peers()
        pipe = rep.pipes[0]
        pipe.close()
        listening, attached, detached = await take(told, 3)
        assert [event.kind for event in (listening, attached, detached)] == [K.LISTENING, K.ATTACHED, K.DETACHED]
        assert attached.pipe is detached.pipe is pipe
        assert detached.reason == pipe.reason == str(detached.error) == "the pipe was closed by the application"
        lost = await take(heard, 3)
        assert [event.kind for event in lost] == [K.DIALING, K.ATTACHED, K.DETACHED]
        assert {event.url for event in lost} == {listener.url}
        assert isinstance(lost[2].error, sp.PeerClosed)
        dialer.close()
        listener.close()
        assert (await anext(told)).kind is K.STOPPED
        assert [event.kind for event in await take(heard, 1)] == [K.STOPPED]
        assert (rep.listeners, req.dialers) == ((), ())


async def test_failed_attempts_are_reported_with_their_reason(name: str, autojump_clock: trio.testing.MockClock) -> None:
    async with sp.Req0() as req:
        events = req.events()
        dialer = await req.dial(name, wait=False)
        for _ in range(3):
            dialing, failed = await take(events, 2)
            assert (dialing.kind, failed.kind) == (K.DIALING, K.DIAL_FAILED)
            assert isinstance(failed.error, ConnectionRefusedError)
            assert name in failed.reason
            assert dialer.error is failed.error
        assert req.statistics().dialers[0].failures == {"ConnectionRefusedError": 3}


async def test_the_wrong_protocol_is_named_on_both_sides(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Sub0() as sub:
        told, heard = rep.events(), sub.events()
        with pytest.raises(sp.DialError, match="the peer is REP, expected PUB") as caught:
            await dial(sub, rep.url)
        assert isinstance(caught.value.__cause__, sp.WrongProtocol)
        refused = await anext(told)
        assert refused.kind is K.REFUSED
        assert "the peer is SUB, expected REQ" in refused.reason
        assert [event.kind for event in await take(heard, 3)] == [K.DIALING, K.DIAL_FAILED, K.STOPPED]


async def test_a_reader_that_does_not_come_misses_the_oldest_and_knows_how_many(name: str) -> None:
    async with sp.Rep0() as rep:
        events = rep.events()
        for _ in range(EVENT_LIMIT):
            (await rep.listen(name)).close()
        assert events.missed == EVENT_LIMIT
        assert len([await anext(events) for _ in range(EVENT_LIMIT)]) == EVENT_LIMIT
        await rep.listen(name)
        assert (await anext(events)).kind is K.LISTENING


async def test_the_stream_ends_with_the_socket_and_a_cancelled_wait_loses_nothing(name: str) -> None:
    async with sp.Rep0() as rep:
        events = rep.events()
        with trio.CancelScope() as scope:
            scope.cancel()
            await anext(events)
        await rep.listen(name)
        assert (await anext(events)).kind is K.LISTENING
    assert [str(event) async for event in events] == [f"stopped {name}"]


async def test_the_log_tells_the_same_and_never_a_payload(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "sp")
    secret = b"very-secret-payload"
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as req:
        await connect(rep, req)
        for _ in range(3):
            await req.send(secret)
            await rep.send(await rep.receive())
            assert await req.receive() == secret
            assert secret.decode() not in repr(await _message(req, rep, secret))
        pipe = rep.pipes[0]
        before = len(caplog.records)
        pipe.close()
        while rep.pipes:
            await trio.lowlevel.checkpoint()
    lines = [record.getMessage() for record in caplog.records]
    assert any("attached" in line and f"pipe {pipe.id} {pipe.remote_address}" in line for line in lines)
    assert any("detached" in line and f"pipe {pipe.id}" in line and pipe.reason in line for line in lines[before:])
    assert any("the peer greets as REQ" in line for line in lines)
    assert not any(secret.decode() in line or secret.hex() in line for line in lines)
    assert all(record.levelno < logging.WARNING for record in caplog.records)
    assert before < 12  # nothing is logged per message


async def _message(req: sp.Req0, rep: sp.Rep0, body: bytes) -> sp.Message:
    await req.send(body)
    await rep.send((await rep.receive_message()).body)
    return await req.receive_message()


async def test_several_tasks_share_a_stream_and_none_is_left_behind(name: str) -> None:
    async with trio.open_nursery() as nursery:
        taken: list[sp.Event] = []

        async def take_all(events: sp.EventStream) -> None:
            taken.extend([event async for event in events])

        async with sp.Rep0() as rep:
            events = rep.events()
            for _ in range(3):
                nursery.start_soon(take_all, events)
            await trio.testing.wait_all_tasks_blocked()
            await rep.listen(name)
    assert {event.kind for event in taken} == {K.LISTENING, K.STOPPED}


async def test_a_redial_that_raises_ends_its_dialer_and_nothing_else(name: str, autojump_clock: trio.testing.MockClock) -> None:
    def should_redial(error: Exception) -> bool:
        raise ZeroDivisionError("oops")

    async with sp.Req0(should_redial=should_redial) as req:
        events = req.events()
        await req.dial(name, wait=False)
        stopped = (await take(events, 3))[2]
        assert (stopped.kind, stopped.reason) == (K.STOPPED, "should_redial raised ZeroDivisionError('oops')")
        assert isinstance(stopped.error, ZeroDivisionError)
        async with sp.Rep0(listen=name):
            await req.dial(name)


async def test_a_redial_whose_answer_has_to_be_awaited_ends_its_dialer(name: str, autojump_clock: trio.testing.MockClock) -> None:
    async def answer() -> bool:
        raise AssertionError("awaited")

    def should_redial(error: Exception) -> bool:
        return answer()  # type: ignore[return-value]

    async with sp.Req0(should_redial=should_redial) as req:
        events = req.events()
        await req.dial(name, wait=False)
        stopped = (await take(events, 3))[2]
        assert stopped.kind is K.STOPPED
        assert "should_redial must be a plain function that returns True or False, not an async one" in stopped.reason


async def test_a_message_too_large_is_warned_of_and_counted(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with sp.Sub0(topics=b"", listen=url, tls=server_tls(url), max_message_size=10) as sub, sp.Pub0() as pub:
        await connect(sub, pub)
        pipe = sub.pipes[0]
        await pub.send(b"longer than ten")
        while pipe in sub.pipes:
            await trio.lowlevel.checkpoint()
        assert sub.statistics().dropped == {"too large": 1}
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "message too large: the peer announced 15 bytes, but max_message_size is 10" in warnings[0]


async def test_an_authorize_that_closes_the_pipe_has_refused_it(url: str) -> None:
    def close(pipe: sp.Pipe) -> bool:
        pipe.close()
        return True

    async with sp.Rep0(listen=url, tls=server_tls(url), authorize=close) as rep, sp.Req0() as req:
        events = rep.events()
        await dial(req, rep.url, wait=False)
        refused = await anext(events)
        assert refused.kind is K.REFUSED
        assert isinstance(refused.error, sp.PipeRefused)
