"""A pipe by itself, over a connection that does what the test says."""

from __future__ import annotations

import math
import socket
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import sp
from sp.core.pipe_task import PipeTask
from sp.core.writer import Writer
from sp.message import Message
from sp.options import SocketOptions
from tests.transports.wire import connect_as, frame, socket_of, until

if TYPE_CHECKING:
    from sp.core.core import Core
    from sp.transports.contract import Connection, Greeted


PAIR0 = 0x10


class Wire:
    """A connection that takes *room* messages, and then no more."""

    peer_number = 0x10
    unsent = 0
    detects_silence = False

    def __init__(self, room: float = math.inf) -> None:
        self.room = room
        self.error: OSError | None = None
        """What writing raises."""
        self.writable = trio.Event()
        self.attempts = self.finished = 0
        self.taken: list[bytes] = []

    def send_nowait(self, outbox: deque[Message]) -> bool:
        self.attempts += 1
        if self.error is not None:
            raise self.error
        while outbox and self.room > 0:
            self.room -= 1
            self.taken.append(outbox.popleft().body)
        return not outbox

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()
        await self.writable.wait()

    def finish(self) -> bool:
        self.finished += 1
        return True

    def close(self, _: Exception | None = None) -> None:
        pass


class Tasks:
    """What a pipe needs from its socket."""

    def __init__(self, nursery: trio.Nursery, **options: Any) -> None:
        self.options = SocketOptions(**options)
        self.spawn = nursery.start_soon
        self.writer = Writer(None)
        self.had_room: list[PipeTask] = []
        self.pipe_has_room = self.had_room.append


def attached(nursery: trio.Nursery, wire: Wire, **options: Any) -> PipeTask:
    pipe = PipeTask(cast("Core", Tasks(nursery, **options)), cast("Greeted", wire), "inproc://x", 8)
    pipe.attach(cast("Connection", wire))
    return pipe


def message(size: int) -> Message:
    return Message(bytes(size))


async def test_what_is_dropped_makes_room_in_bytes() -> None:
    async with trio.open_nursery() as nursery:
        pipe = attached(nursery, Wire(0), outbox_bytes=1000)
        assert [pipe.offer(message(100)) for _ in range(11)] == [True] * 10 + [False]
        for _ in range(50):
            assert pipe.discard_oldest()
            assert pipe.offer(message(100))
            assert not pipe.offer(message(1))
        assert pipe.unsent == 10
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("blocked", [False, True])
async def test_a_batch_is_taken_as_far_as_there_is_room_in_bytes(blocked: bool) -> None:
    async with trio.open_nursery() as nursery:
        wire = Wire(0 if blocked else 1)
        pipe = attached(nursery, wire, outbox_bytes=1000)
        assert pipe.offer(message(300))
        assert len(wire.taken) == (0 if blocked else 1)
        assert pipe.offer_many([message(300) for _ in range(20)]) == (2 if blocked else 3)
        assert pipe.unsent == 3
        assert pipe.offer_many([message(100), message(1)]) == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("end", [PipeTask.finish, PipeTask.leave])
async def test_a_pipe_that_leaves_while_nothing_can_be_written_writes_all_later_and_takes_its_leave_once(end: Any) -> None:
    async with trio.open_nursery() as nursery:
        wire = Wire(1)
        pipe = attached(nursery, wire)
        for number in range(4):
            assert pipe.offer(Message(b"%d" % number))
        pipe.outbox.write_due()
        await wait_all_tasks_blocked()
        wire.room = math.inf
        attempts = wire.attempts
        end(pipe)
        assert (wire.attempts, wire.finished) == (attempts, 0), "the task that waits for room does that"
        wire.writable.set()
        await wait_all_tasks_blocked()
        assert (wire.taken, wire.finished) == ([b"0", b"1", b"2", b"3"], 1)
        assert not nursery.child_tasks


@pytest.mark.parametrize("end", [PipeTask.finish, PipeTask.leave, PipeTask.close_unchecked])
async def test_a_pipe_that_leaves_or_has_ended_takes_nothing(end: Any) -> None:
    async with trio.open_nursery() as nursery:
        wire = Wire()
        pipe = attached(nursery, wire)
        end(pipe)
        assert not pipe.offer(message(1))
        assert pipe.offer_many([message(1)]) == 0
        assert (pipe.unsent, wire.taken) == (0, [])
        assert pipe.broken is (pipe.error is not None)


async def test_the_engine_hears_of_room_once_and_not_while_the_pipe_leaves() -> None:
    async with trio.open_nursery() as nursery:
        wire = Wire(0)
        pipe = attached(nursery, wire, outbox_limit=2)
        core = cast("Tasks", pipe._core)
        for _ in range(2):
            while pipe.offer(message(1)):
                pass
            wire.room = 2
            wire.writable.set()
            await wait_all_tasks_blocked()
            wire.writable = trio.Event()
        assert core.had_room == [pipe, pipe]
        while pipe.offer(message(1)):
            pass
        pipe.leave()
        wire.room = math.inf
        wire.writable.set()
        await wait_all_tasks_blocked()
        assert core.had_room == [pipe, pipe]
        assert pipe.unsent == 0


def broken(nursery: trio.Nursery, wire: Wire, **options: Any) -> PipeTask:
    """Return a pipe that could not write what it was offered."""
    pipe = attached(nursery, wire, **options)
    wire.error = BrokenPipeError("broken")
    assert pipe.offer(message(1))
    assert pipe.broken
    return pipe


@pytest.mark.parametrize("end", [PipeTask.finish, PipeTask.leave])
async def test_a_pipe_that_cannot_be_written_to_takes_nothing_and_tries_no_more(end: Any) -> None:
    async with trio.open_nursery() as nursery:
        wire = Wire()
        pipe = broken(nursery, wire)
        assert not pipe.offer(message(1))
        assert pipe.offer_many([message(1)]) == 0
        assert pipe.unsent == 1
        end(pipe)
        assert (wire.attempts, wire.finished) == (1, 0)
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        nursery.cancel_scope.cancel()


async def test_a_pipe_that_cannot_be_written_to_ends_after_the_linger_time(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        wire = Wire()
        pipe = broken(nursery, wire, linger=5)
        await trio.sleep(4.9)
        assert pipe.error is None
        await trio.sleep(0.2)
        assert pipe.error is wire.error


async def test_the_linger_time_of_a_pipe_ends_with_the_pipe(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        pipe = broken(nursery, Wire(), linger=5)
        await wait_all_tasks_blocked()
        pipe.end(error := sp.PeerClosed("the peer closed the connection"))
    assert trio.current_time() == began
    assert pipe.error is error


async def test_the_last_words_of_a_peer_that_reads_no_more_arrive_within_the_linger_time(tmp_path: Path, mock_clock: MockClock) -> None:
    url = f"ipc://{tmp_path}/s"
    async with sp.Pair0(listen=url, linger=5) as pair, await connect_as(url, PAIR0) as peer:
        await pair.wait_for_peers()
        socket_of(peer).shutdown(socket.SHUT_RD)
        await pair.send(b"never read")
        (pipe,) = pair.pipes
        await until(lambda: pair._core.pipes[pipe.id].broken)
        with pytest.raises(trio.WouldBlock):
            pair.send_nowait(b"refused")
        await peer.send_all(frame(b"last words", typed=True))
        assert await pair.receive() == b"last words"
        # The linger time has begun: its task may be the last one of the tick.
        await wait_all_tasks_blocked()
        mock_clock.jump(4.9)
        await wait_all_tasks_blocked()
        assert pair.pipes
        mock_clock.jump(0.2)
        await until(lambda: not pair.pipes)
        assert isinstance(pipe.error, BrokenPipeError)
        assert pair.statistics().dropped == {"pipe closed": 1}


async def test_all_that_was_read_and_is_held_back_is_counted_when_its_socket_is_cancelled(name: str) -> None:
    async with sp.Push0() as push:
        with trio.CancelScope() as scope:
            async with sp.Pull0(inbox_limit=2, listen=name) as pull:
                await push.dial(name)
                await push.send_many([b"x"] * 10)
                await until(lambda: pull.statistics().messages_received == 10)
                await wait_all_tasks_blocked()
                assert pull.statistics().inbox == 2
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert pull.statistics().dropped == {"undelivered": 8}
