"""Tasks that wait to send.

The cost of a call while others wait, the order in which calls go on, and how many replies may wait
for one peer.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import sp
from sp.core.senders import STALLED_AFTER
from sp.message import Message
from sp.protocols.engine import Sender
from tests.transports.ends import network_only, server_tls
from tests.transports.wire import REQ, frame, greet, receive_exactly, socket_of, until
from tests.transports.wire import connect as connect_to

from .conftest import Background, connect

WAITING = 300


class Tries:
    """Counts how often a socket's sender is asked to take a message, by body."""

    def __init__(self, sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of = Counter[bytes]()
        self._send = sender.send
        monkeypatch.setattr(type(sender), "send", lambda _, message: self._try(message))

    def _try(self, message: Message) -> bool:
        self.of[message.body] += 1
        return self._send(message)


async def wait_to_send(nursery: trio.Nursery, send: Callable[[bytes], Awaitable[object]], count: int = WAITING) -> None:
    """Start tasks that send, in order, and see all of them wait."""
    for number in range(count):
        nursery.start_soon(send, b"%d" % number)
        await wait_all_tasks_blocked()


async def test_a_call_that_finds_others_waiting_joins_them_without_a_try(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sp.Push0(listen=name) as push, sp.Pull0() as pull, trio.open_nursery() as nursery:
        tries = Tries(push._sender, monkeypatch)
        await wait_to_send(nursery, push.send)
        assert tries.of == {b"0": 1}  # the first found no peer, the others found the first waiting
        with pytest.raises(trio.WouldBlock):
            push.send_nowait(b"now")
        assert tries.of == {b"0": 1}
        await connect(push, pull)
        assert [int(await pull.receive()) for _ in range(WAITING)] == list(range(WAITING))
        # With each room that was made, all went that fitted, and one that did not.
        assert tries.of.total() < 1.2 * WAITING
        assert max(tries.of.values()) <= 3


class Asker:
    """A raw REQ that asks with numbers, and reads the answers only on demand."""

    def __init__(self, req: sp.raw.Req0) -> None:
        self._req = req

    async def ask(self, count: int, first: int = 0) -> None:
        for number in range(first, first + count):
            await self._req.send_message(Message(b"%d" % number, (number | 0x8000_0000).to_bytes(4, "big")))

    async def read(self, count: int) -> list[int]:
        return [int((await self._req.receive_message()).body.split()[0]) for _ in range(count)]


async def serve(rep: sp.Rep0 | sp.Respondent0, size: int = 0) -> None:
    """Answer each request in a task of its own, as the guide does."""
    requests = rep.requests() if isinstance(rep, sp.Rep0) else rep.surveys()
    async with trio.open_nursery() as nursery:
        async for request in requests:
            nursery.start_soon(request.reply, request.body + b" " + bytes(size))


@pytest.mark.slow
async def test_replies_that_wait_for_one_peer_are_not_tried_for_another(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        sp.Rep0(listen=name, outbox_limit=1) as rep,
        sp.raw.Req0(inbox_limit=1) as slow,
        sp.Req0() as quick,
        trio.open_nursery() as nursery,
    ):
        await connect(rep, slow, quick)
        nursery.start_soon(serve, rep)
        nursery.start_soon(Asker(slow).ask, 5 * WAITING)
        await wait_all_tasks_blocked()
        waiting = _waiting(rep)
        assert waiting > WAITING
        tries = Counter[int]()
        reply = rep._engine.reply

        def counted(request: Message, message: Message) -> bool:
            tries[request.pipe.id if request.pipe is not None else 0] += 1
            return reply(request, message)

        monkeypatch.setattr(rep._engine, "reply", counted)
        for _ in range(10):
            assert await quick.request(b"x") == b"x "
        assert tries.total() == 10
        assert _waiting(rep) == waiting
        nursery.cancel_scope.cancel()


def _waiting(socket: sp.Rep0 | sp.Respondent0) -> int:
    return sum(len(line.waiting) for line in socket._core.senders.lines.values())


async def test_requests_that_wait_go_in_the_order_of_their_calls_whatever_their_contexts(name: str) -> None:
    async with sp.Req0(listen=name) as req, sp.Rep0() as rep, trio.open_nursery() as nursery:
        await wait_to_send(nursery, req.request)
        await connect(req, rep)
        for number in range(WAITING):
            assert await rep.receive() == b"%d" % number
            await rep.send(b"")


async def test_a_cancelled_call_and_a_closed_context_leave_the_line(name: str) -> None:
    async with sp.Req0(listen=name) as req, sp.Rep0() as rep, trio.open_nursery() as nursery:
        contexts = [req.context() for _ in range(5)]
        calls: list[Background] = []
        for number, context in enumerate(contexts):
            calls.append(Background(nursery, lambda context=context, number=number: context.send(b"%d" % number)))
            await wait_all_tasks_blocked()
        calls[1].scope.cancel()
        contexts[3].close()
        with pytest.raises(trio.ClosedResourceError, match="the context is closed"):
            await calls[3].done()
        await connect(req, rep)
        assert [await rep.context().receive() for _ in range(3)] == [b"0", b"2", b"4"]
        with pytest.raises(trio.WouldBlock):
            rep.context().receive_nowait()
        assert not req._core.senders.lines
        assert not req._core.senders._by_sender


@pytest.mark.slow
async def test_a_reply_that_waits_goes_to_its_own_request_or_nowhere(name: str) -> None:
    async with (
        sp.Rep0(listen=name, outbox_limit=1) as rep,
        sp.raw.Req0(inbox_limit=1) as slow,
        sp.Req0() as quick,
        trio.open_nursery() as nursery,
    ):
        await connect(rep, slow)
        nursery.start_soon(Asker(slow).ask, 3 * WAITING)
        while True:
            request = await rep.receive_message()
            call = Background(nursery, lambda body=request.body: rep.send(body))
            await wait_all_tasks_blocked()
            if rep._core.senders.lines:
                break
        await connect(rep, quick)
        nursery.start_soon(quick.send, b"another question")
        await wait_all_tasks_blocked()
        # Each one gives up the one before, the first the one whose reply waits.
        while await rep.receive() != b"another question":
            pass
        nursery.start_soon(_read_all, slow)
        with pytest.raises(sp.StateError, match="given up while its reply waited"):
            await call.done()
        await rep.send(b"another answer")
        assert await quick.receive() == b"another answer"
        nursery.cancel_scope.cancel()


async def _read_all(req: sp.raw.Req0) -> None:
    while True:
        await req.receive_message()


@pytest.mark.slow
@pytest.mark.parametrize("bound", [{"reply_limit": 20}, {"reply_bytes": 20_000}], ids=["messages", "bytes"])
async def test_a_peer_for_which_too_many_replies_wait_is_not_read_until_it_reads(name: str, bound: dict[str, int]) -> None:
    async with (
        sp.Rep0(listen=name, outbox_limit=1, inbox_limit=4, **bound) as rep,  # type: ignore[arg-type]
        sp.raw.Req0(inbox_limit=1) as slow,
        sp.Req0() as quick,
        trio.open_nursery() as nursery,
    ):
        await connect(rep, slow, quick)
        nursery.start_soon(serve, rep, 1000)
        asker = Asker(slow)
        nursery.start_soon(asker.ask, 2000)
        await wait_all_tasks_blocked()
        assert 20 <= _waiting(rep) <= 20 + 4 + 1  # what is in the inbox is still answered
        assert (await quick.request(b"x")).startswith(b"x ")
        assert sorted(await asker.read(2000)) == list(range(2000))
        assert _waiting(rep) == 0
        assert not rep.statistics().dropped
        nursery.cancel_scope.cancel()


async def test_a_peer_that_takes_none_of_its_replies_for_a_minute_is_ended(name: str, autojump_clock: MockClock) -> None:
    async with (
        sp.Rep0(listen=name, outbox_limit=1, inbox_limit=4, reply_limit=20) as rep,
        sp.raw.Req0(inbox_limit=1) as slow,
        trio.open_nursery() as nursery,
    ):
        await connect(rep, slow)
        events = rep.events()
        nursery.start_soon(serve, rep)
        nursery.start_soon(Asker(slow).ask, 2000)
        began = trio.current_time()
        async for event in events:
            if event.kind is sp.EventKind.DETACHED:
                break
        assert trio.current_time() - began == pytest.approx(60)
        assert isinstance(event.error, sp.PeerStalled)
        assert event.reason.startswith("the peer reads nothing: 2")
        await wait_all_tasks_blocked()
        assert _waiting(rep) == 0
        assert rep.statistics().dropped[sp.DropReason.REQUESTER_GONE] >= 20
        nursery.cancel_scope.cancel()


async def test_a_peer_that_takes_one_of_its_replies_now_and_then_stays(name: str, autojump_clock: MockClock) -> None:
    async with (
        sp.Rep0(listen=name, outbox_limit=1, inbox_limit=4, reply_limit=1000) as rep,
        sp.raw.Req0(inbox_limit=1) as slow,
        trio.open_nursery() as nursery,
    ):
        await connect(rep, slow)
        nursery.start_soon(serve, rep)
        asker = Asker(slow)
        nursery.start_soon(asker.ask, 2000)
        read: list[int] = []
        with trio.fail_after(20 * STALLED_AFTER):
            while len(read) < 2000:
                await trio.sleep(0.9 * STALLED_AFTER)
                read += await asker.read(200)  # too few to bring the line to half of its bound soon
        assert sorted(read) == list(range(2000))
        assert len(rep.pipes) == 1
        nursery.cancel_scope.cancel()


async def test_a_peer_that_reads_at_first_and_then_no_more_is_ended(name: str, autojump_clock: MockClock) -> None:
    async with (
        sp.Rep0(listen=name, outbox_limit=1, inbox_limit=4, reply_limit=1000) as rep,
        sp.raw.Req0(inbox_limit=1) as slow,
        trio.open_nursery() as nursery,
    ):
        await connect(rep, slow)
        (pipe,) = rep.pipes
        nursery.start_soon(serve, rep)
        nursery.start_soon(Asker(slow).ask, 3000)
        await trio.sleep(0.5 * STALLED_AFTER)
        await Asker(slow).read(200)
        await trio.sleep(STALLED_AFTER)
        assert pipe.error is None
        await trio.sleep(STALLED_AFTER)
        assert isinstance(pipe.error, sp.PeerStalled)
        nursery.cancel_scope.cancel()


async def test_a_peer_whose_replies_were_given_up_stays(name: str, autojump_clock: MockClock) -> None:
    async with (
        sp.Rep0(listen=name, outbox_limit=1, inbox_limit=4, reply_limit=20) as rep,
        sp.raw.Req0(inbox_limit=1) as slow,
        trio.open_nursery() as nursery,
    ):
        await connect(rep, slow)
        (pipe,) = rep.pipes
        nursery.start_soon(Asker(slow).ask, 500)
        with trio.move_on_after(0.5 * STALLED_AFTER):
            await serve(rep)
            raise AssertionError("the requests do not end")
        assert _waiting(rep) == 0
        await trio.sleep(5 * STALLED_AFTER)
        assert pipe.error is None
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what a peer has acknowledged")
@network_only
async def test_a_slow_link_on_which_the_kernel_is_full_for_minutes_is_no_stalled_peer(url: str, mock_clock: MockClock) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url), reply_limit=2, linger=0) as rep, trio.open_nursery() as nursery:
        nursery.start_soon(serve, rep, 1 << 20)
        peer = await connect_to(rep.url)
        socket_of(peer).setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 1 << 16)
        await greet(peer, REQ)
        for number in range(40):
            await peer.send_all(frame((number | 0x8000_0000).to_bytes(4, "big")))
        await until(lambda: _waiting(rep) >= 2)
        (pipe,) = rep.pipes
        for _ in range(8):
            await receive_exactly(peer, 1 << 17)
            await wait_all_tasks_blocked(0.002)
            mock_clock.jump(0.6 * STALLED_AFTER)
            await wait_all_tasks_blocked(0.002)
        assert pipe.error is None
        for _ in range(3):
            mock_clock.jump(STALLED_AFTER)
            await wait_all_tasks_blocked(0.002)
        assert isinstance(pipe.error, sp.PeerStalled)
        await trio.aclose_forcefully(peer)
        nursery.cancel_scope.cancel()


async def test_replies_that_wait_for_a_peer_are_dropped_when_it_leaves(name: str) -> None:
    async with (
        sp.Rep0(listen=name, outbox_limit=1, inbox_limit=4, reply_limit=20, linger=0) as rep,
        sp.raw.Req0(inbox_limit=1) as slow,
        trio.open_nursery() as nursery,
    ):
        await connect(rep, slow)
        nursery.start_soon(serve, rep)
        nursery.start_soon(Asker(slow).ask, 200)
        await wait_all_tasks_blocked()
        assert _waiting(rep) >= 20
        (handle,) = rep.pipes
        gone = rep._core.task_of(handle)
        slow.pipes[0].close()
        with trio.fail_after(10):
            while handle in rep.pipes:
                await trio.lowlevel.checkpoint()
        assert gone not in rep._core.senders.lines
        assert rep.statistics().dropped[sp.DropReason.REQUESTER_GONE] >= 20
        nursery.cancel_scope.cancel()


async def test_a_device_stands_in_line_as_well(name: str) -> None:
    async with (
        sp.raw.Push0(listen=name) as push,
        sp.raw.Pull0(listen=f"{name}-front") as front,
        sp.Push0() as source,
        sp.Pull0() as pull,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(push.send, b"first")
        await wait_all_tasks_blocked()
        nursery.start_soon(sp.device.device, front, push)
        await connect(front, source)
        await source.send(b"second")
        await wait_all_tasks_blocked()
        await connect(push, pull)
        assert [await pull.receive() for _ in range(2)] == [b"first", b"second"]
        nursery.cancel_scope.cancel()
