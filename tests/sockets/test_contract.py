"""What holds for every socket."""

from __future__ import annotations

import copy
import gc
import json
import math
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import sp
from tests.transports.ends import dial, listen, server_tls

from .conftest import Background
from .kinds import ALL, BACKS, COOKED, ID, RAW, Kind, Talk, each, everything, gone, talking

every_socket = each(ALL)
every_cooked_socket = each(COOKED)
every_raw_socket = each(RAW)
every_sender = each([kind for kind in ALL if kind.sends])
every_receiver = each([kind for kind in ALL if kind.receives])
with_ttl = each([kind for kind in ALL if kind.socket in (sp.Rep0, sp.Respondent0, sp.Pair1)])
without_ttl = each([kind for kind in ALL if kind.socket not in (sp.Rep0, sp.Respondent0, sp.Pair1)])
with_priority = each([kind for kind in ALL if kind.socket in (sp.Push0, sp.Req0)])
without_priority = each([kind for kind in ALL if kind.socket not in (sp.Push0, sp.Req0)])

SEND = {"send", "send_nowait", "send_message"}
RECEIVE = {"receive", "receive_nowait", "receive_message"}
VERBS: dict[type, set[str]] = {
    sp.Req0: SEND | RECEIVE | {"request", "context"},
    sp.Rep0: SEND | RECEIVE | {"requests", "context"},
    sp.Surveyor0: SEND | RECEIVE | {"survey", "context"},
    sp.Respondent0: SEND | RECEIVE | {"surveys", "context"},
    sp.Push0: SEND | {"send_many"},
    sp.Pull0: RECEIVE | {"receive_many"},
    sp.Pub0: SEND | {"send_many"},
    sp.Sub0: RECEIVE | {"receive_many", "subscribe", "unsubscribe", "context"},
    sp.Bus0: SEND | RECEIVE | {"send_many", "receive_many"},
    sp.Pair0: SEND | RECEIVE | {"send_many", "receive_many"},
    sp.Pair1: SEND | RECEIVE | {"send_many", "receive_many"},
    sp.Req0Context: SEND | RECEIVE,
    sp.Rep0Context: SEND | RECEIVE,
    sp.Surveyor0Context: SEND | RECEIVE,
    sp.Respondent0Context: SEND | RECEIVE,
    sp.Sub0Context: RECEIVE | {"receive_many", "subscribe", "unsubscribe"},
}


@pytest.mark.parametrize("kind", VERBS, ids=lambda kind: kind.__name__)
def test_what_a_protocol_cannot_do_is_absent_from_its_class(kind: type) -> None:
    every = set().union(*VERBS.values())
    assert {verb for verb in every if hasattr(kind, verb)} == VERBS[kind]
    assert issubclass(kind, trio.abc.SendChannel) == (VERBS[kind] >= SEND)
    assert issubclass(kind, trio.abc.ReceiveChannel) == (VERBS[kind] >= RECEIVE)
    assert issubclass(kind, trio.abc.Channel) == (VERBS[kind] >= SEND | RECEIVE)


@every_socket
async def test_an_unknown_option_is_named(kind: Kind) -> None:
    with pytest.raises(TypeError, match="unknown option 'recieve_limit', expected one of .*inbox_limit"):
        kind(recieve_limit=3)


@every_socket
async def test_a_socket_must_be_entered_before_it_is_used(kind: Kind) -> None:
    socket = kind()
    with pytest.raises(sp.StateError, match="async with"):
        await socket.dial("inproc://x")
    with pytest.raises(sp.StateError, match="async with"):
        await socket.wait_for_peers()
    await socket.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await socket.listen("inproc://x")


@every_socket
async def test_a_socket_can_be_entered_once(kind: Kind) -> None:
    async with kind() as socket:
        pass
    with pytest.raises(sp.StateError, match="once"):
        async with socket:
            raise AssertionError("entered")


@every_socket
async def test_a_block_that_has_not_begun_cannot_end_nor_can_one_twice(kind: Kind, name: str) -> None:
    socket = kind(listen=name)
    with pytest.raises(sp.StateError, match="not in a block"):
        await socket.__aexit__(None, None, None)
    async with socket:
        assert len(socket.listeners) == 1
    with pytest.raises(sp.StateError, match="not in a block"):
        await socket.__aexit__(None, None, None)


@pytest.mark.parametrize("wrong", ["no", 0, None])
async def test_dial_is_told_by_true_or_false_whether_it_waits(wrong: object, name: str) -> None:
    async with sp.Pub0() as pub:
        with pytest.raises(TypeError, match="wait must be True or False, not"):
            await pub.dial(name, wait=wrong)  # type: ignore[arg-type]
        assert pub.dialers == ()


@pytest.mark.parametrize("wrong", ["1", 1.5, None, True])
async def test_wait_for_peers_wants_a_whole_number(wrong: object) -> None:
    async with sp.Pub0() as pub:
        with pytest.raises(TypeError, match="n must be an int, not"):
            await pub.wait_for_peers(wrong)  # type: ignore[arg-type]


@every_socket
async def test_a_socket_cannot_be_pickled_or_copied(kind: Kind, name: str) -> None:
    async with kind(listen=name) as socket:
        for make in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=f"{kind.socket.__name__} cannot be pickled or copied: pass on its URL"):
                make(socket)


@every_socket
async def test_nothing_works_after_the_end_but_looking_back(kind: Kind) -> None:
    async with kind() as socket:
        await socket.aclose()
        await socket.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await socket.dial("inproc://x")
        with pytest.raises(trio.ClosedResourceError):
            await socket.wait_for_peers(0)
    assert socket.statistics().pipes == ()
    assert [event async for event in socket.events()] == []
    assert "closed" in repr(socket)


@every_sender
async def test_sending_after_the_end_is_refused(kind: Kind) -> None:
    async with kind() as socket:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await socket.send_message(sp.Message(b"", kind.header))
    if kind.sends_bodies:
        with pytest.raises(trio.ClosedResourceError):
            await socket.send(b"")
        with pytest.raises(trio.ClosedResourceError):
            socket.send_nowait(b"")


@every_receiver
async def test_receiving_after_the_end_is_refused(kind: Kind) -> None:
    async with kind() as socket:
        pass
    for call in (socket.receive, socket.receive_message):
        with pytest.raises(trio.ClosedResourceError):
            await call()
    with pytest.raises(trio.ClosedResourceError):
        socket.receive_nowait()


@pytest.mark.slow
@each([kind for kind in ALL if kind.sends_bodies])
@pytest.mark.parametrize("wrong", ["text", 7, None, [b"x"]])
async def test_a_body_must_be_bytes(kind: Kind, wrong: object) -> None:
    async with kind() as socket:
        with pytest.raises(TypeError, match="must be bytes"):
            await socket.send(wrong)
        with pytest.raises(TypeError, match="must be bytes"):
            socket.send_nowait(wrong)


@every_socket
@pytest.mark.parametrize("error", [ValueError("mine"), ExceptionGroup("mine", [KeyError(1)]), KeyboardInterrupt(), trio.TooSlowError()])
async def test_an_exception_of_the_block_comes_out_as_itself(kind: Kind, error: BaseException, name: str) -> None:
    with pytest.raises(type(error)) as caught:
        async with kind(listen=name) as socket, kind.peer() as peer:
            await peer.dial(name)
            raise error
    assert caught.value is error
    assert "closed" in repr(socket)


@every_socket
async def test_a_cancelled_block_closes_at_once(kind: Kind, name: str) -> None:
    with trio.CancelScope() as scope:
        async with kind(listen=name) as socket, kind.peer() as peer:
            await peer.dial(name)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert socket.pipes == peer.pipes == ()


@every_socket
async def test_closing_in_a_cancelled_scope_does_not_block(kind: Kind, name: str) -> None:
    async with kind(listen=name) as socket, kind.peer(dial=name) as peer:
        await socket.wait_for_peers()
        with trio.CancelScope() as scope:
            scope.cancel()
            await socket.aclose()
        assert "closed" in repr(socket)
        assert socket.listeners == ()
        await peer.aclose()


@every_socket
async def test_closing_by_another_task_leaves_the_block_running(kind: Kind, name: str) -> None:
    async with trio.open_nursery() as nursery, kind(listen=name) as socket:
        nursery.start_soon(socket.aclose)
        await trio.testing.wait_all_tasks_blocked()
        await trio.lowlevel.checkpoint()
        assert "closed" in repr(socket)


@every_socket
async def test_a_url_that_cannot_be_meant_comes_out_of_the_constructor_block(kind: Kind) -> None:
    with pytest.raises(sp.AddressError, match="carrier-pigeon"):
        async with kind(listen="carrier-pigeon://roof"):
            raise AssertionError("entered")
    with pytest.raises(sp.AddressError, match="has no port"):
        async with kind(dial=["tcp://localhost"]):
            raise AssertionError("entered")


@every_socket
async def test_repr_and_statistics_show_what_is_there(kind: Kind, name: str) -> None:
    async with kind(listen=name) as socket, kind.peer() as peer:
        await peer.dial(name)
        await socket.wait_for_peers()
        assert repr(socket) == f"<{'sp.raw.' if kind.raw else ''}{kind.name} open pipes=1 inbox=0>"
        assert repr(peer.dialers[0]) == f"<Dialer {name} attached>"
        assert repr(socket.listeners[0]) == f"<Listener {name} 1 pipes>"
        assert repr(socket.pipes[0]) == f"<Pipe {socket.pipes[0].id} attached {kind.peer_protocol} {name}>"
        counters = json.loads(json.dumps(socket.statistics().as_dict()))
        assert counters["protocol"] == kind.protocol
        assert counters["listeners"] == [
            {"url": name, "accepted": 1, "attached": 1, "in_handshake": 0, "failures": {}, "tls_handshakes": {}}
        ]
        assert counters["pipes"][0]["id"] == socket.pipes[0].id
        assert peer.statistics().as_dict()["dialers"] == (
            {"url": name, "attempts": 1, "attached": 1, "failures": {}, "tls_handshakes": {}},
        )


@every_socket
async def test_the_url_of_a_socket_is_that_of_its_only_listener(kind: Kind, name: str) -> None:
    async with kind() as socket:
        with pytest.raises(sp.StateError, match="no listener, so it has no url: listen first"):
            _ = socket.url
        listener = await socket.listen("tcp://127.0.0.1:0")
        assert socket.url == listener.url != "tcp://127.0.0.1:0"
        await socket.listen(name)
        with pytest.raises(sp.StateError, match="has 2 listeners: use the url of each one"):
            _ = socket.url
        listener.close()
        assert socket.url == name


@pytest.mark.slow
async def test_a_socket_that_was_never_closed_warns() -> None:
    async def forget() -> None:
        socket = sp.Rep0()
        manager = trio.open_nursery()
        async with manager:
            # As a class that enters the socket and forgets to leave it.
            await socket.__aenter__()
            nursery = socket._manager
            assert nursery is not None
            socket.close()
            # Keeps trio in order; the socket itself does not know.
            await nursery.__aexit__(None, None, None)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await forget()
        gc.collect()
    assert [str(warning.message) for warning in caught if warning.category is ResourceWarning] == [
        "<Rep0 closed pipes=0 inbox=0> was never closed"
    ]


@pytest.mark.parametrize("call", ["send", "receive"])
async def test_others_run_after_each_sixteen_calls_that_do_not_block(call: str, name: str) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with sp.Bus0(listen=name, inbox_limit=1000) as one, sp.Bus0(outbox_limit=1000) as two, trio.open_nursery() as nursery:
        await two.dial(name)
        await one.wait_for_peers()
        if call == "receive":
            await two.send_many([b"x"] * 500)
            with trio.fail_after(5):
                while one.statistics().inbox < 500:
                    await trio.lowlevel.checkpoint()
        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        step: Callable[[], object] = {"send": lambda: two.send(b"x"), "receive": one.receive}[call]
        for _ in range(320):
            await step()  # type: ignore[misc]
        assert 320 // 16 - 1 <= turns <= 320 // 16 + 1  # and no more often, which would be slow
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("method", ["send", "receive"])
async def test_every_call_is_a_cancel_point(method: str, name: str) -> None:
    async with sp.Bus0(listen=name) as one, sp.Bus0() as two:
        await two.dial(name)
        await one.wait_for_peers()
        await two.send(b"kept")
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await (one.receive() if method == "receive" else two.send(b"never"))
        assert scope.cancelled_caught
        assert await one.receive() == b"kept"
        await two.send(b"last")
        assert await one.receive() == b"last"


@every_socket
async def test_entering_a_socket_a_second_time_does_no_harm_to_the_first_block(kind: Kind, name: str) -> None:
    async with kind(listen=name) as socket:
        with pytest.raises(sp.StateError, match="once"):
            async with socket:
                raise AssertionError("entered")
        assert len(socket.listeners) == 1
        async with kind.peer() as peer:
            await peer.dial(name)


@pytest.mark.parametrize("url", ["tcp://*:5", "tcp://:5", "tcp://localhost:0", "tcp6://[::1]:0"])
async def test_what_cannot_be_dialed_is_said_at_once(url: str) -> None:
    async with sp.Req0() as req:
        for wait in (True, False):
            with pytest.raises(sp.AddressError, match="can be listened on but not dialed"):
                await req.dial(url, wait=wait)
        assert req.dialers == ()


@pytest.mark.parametrize("host", ["a..b", ".a", "x" * 64, "x." * 130 + "x", "-" * 64])
async def test_a_host_name_that_no_resolver_takes_is_an_address_error(host: str) -> None:
    async with sp.Req0() as req:
        with pytest.raises(sp.AddressError, match="is not a host name"):
            await req.dial(f"tcp://{host}:5555")
        with pytest.raises(sp.AddressError, match="is not a host name"):
            await req.listen(f"tcp://{host}:5555")


async def test_an_error_of_listen_names_the_url(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Rep0() as other:
        address = rep.url
        with pytest.raises(OSError, match="(?i)address (already )?in use") as caught:
            await listen(other, address)
        assert address in str(caught.value)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"dial": None}, "dial and listen take a URL or several"),
        ({"listen": 5}, "dial and listen take a URL or several"),
        ({"dial": b"tcp://a:1"}, "dial and listen take a URL or several"),
        ({"topics": 5}, "topics must be a prefix or several"),
        ({"topics": "a"}, "a subscription must be bytes, not str"),
        ({"topic": b"a"}, "expected one of .*topics"),
    ],
)
def test_a_wrong_argument_is_named(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        sp.Sub0(**keywords)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("3", TypeError, "must be an int, not '3'"),
        (1.5, TypeError, "must be an int, not 1.5"),
        (0, ValueError, "must be at least 1, not 0"),
        (-1, ValueError, "must be at least 1, not -1"),
    ],
)
async def test_receive_many_wants_a_whole_number(wrong: Any, error: type[Exception], message: str, name: str) -> None:
    async with sp.Bus0(listen=name) as bus:
        with pytest.raises(error, match=f"max_messages {message}"):
            await bus.receive_many(wrong)


async def test_send_many_refuses_a_single_body(name: str) -> None:
    async with sp.Bus0(listen=name) as bus:
        with pytest.raises(TypeError, match="bodies, not one"):
            await bus.send_many(b"abc")  # type: ignore[arg-type]


def test_without_trio_a_socket_says_what_it_needs() -> None:
    import asyncio

    async def main() -> None:
        async with sp.Rep0():
            raise AssertionError("entered")

    with pytest.raises(RuntimeError, match=r"trio\.run"):
        asyncio.run(main())


async def test_what_needs_not_wait_does_not_ask_the_event_loop(url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url)) as one, sp.Bus0() as two:
        await dial(two, one.url)
        await one.wait_for_peers()
        await two.send_many([b"x"] * 20)
        while one.statistics().inbox < 20:
            await trio.lowlevel.checkpoint()
        for call in (one.receive, lambda: two.send(b"y")):
            at_once = 0
            for _ in range(15):
                steps = call().__await__()
                try:
                    steps.send(None)
                except StopIteration:
                    at_once += 1
                else:  # the turn that every 16th call gives: not to be driven from here
                    steps.close()
            assert at_once >= 14


# Calls that wait.


@every_receiver
async def test_a_waiting_receive_learns_that_the_socket_was_closed(kind: Kind, name: str) -> None:
    async with talking(kind, name) as talk, trio.open_nursery() as nursery:
        if talk.ours is talk.front:
            await talk.begin()
        waiting = Background(nursery, talk.ours.receive_message)
        await trio.testing.wait_all_tasks_blocked()
        talk.ours.close()
        with pytest.raises(trio.ClosedResourceError):
            await waiting.done()


@each([kind for kind in ALL if kind.waits_for_peers])
async def test_a_send_that_waits_for_a_peer_learns_that_the_socket_was_closed(kind: Kind) -> None:
    async with kind() as socket, trio.open_nursery() as nursery:
        waiting = Background(nursery, lambda: socket.send_message(sp.Message(b"never", kind.header)))
        await trio.testing.wait_all_tasks_blocked()
        if not kind.header:
            with pytest.raises(trio.WouldBlock, match="no peer is attached"):
                socket.send_nowait(b"never")
        socket.close()
        with pytest.raises(trio.ClosedResourceError):
            await waiting.done()


@each([kind for kind in ALL if kind.socket in (sp.Pub0, sp.Bus0, sp.Surveyor0)])
async def test_a_socket_that_sends_to_all_never_waits_and_counts_what_no_peer_gets(kind: Kind) -> None:
    async with kind() as socket:
        await socket.send_message(sp.Message(b"x", kind.header))
        await socket.send_message(sp.Message(b"x", kind.header))
        figures = socket.statistics()
    assert figures.dropped == {"no peer": 2}
    assert figures.dropped[sp.DropReason.NO_PEER] == 2
    assert figures.dropped[sp.DropReason.PEER_FULL] == 0
    (reason,) = figures.as_dict()["dropped"]
    assert type(reason) is str  # a metrics exporter shows it as it is


@every_receiver
@pytest.mark.parametrize("call", ["receive", "receive_message"])
async def test_a_cancelled_receive_leaves_the_message(kind: Kind, call: str, name: str) -> None:
    async with talking(kind, name) as talk:
        if talk.ours is talk.front:
            await talk.begin()
        await talk.send_to_ours(b"kept")
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await getattr(talk.ours, call)()
        assert scope.cancelled_caught
        assert talk.ours.receive_nowait() == b"kept"


@every_sender
async def test_a_cancelled_send_has_not_happened(kind: Kind, name: str) -> None:
    async with talking(kind, name) as talk:
        if talk.ours is talk.back:
            await talk.begin()
        received = talk.theirs.statistics().messages_received
        with trio.CancelScope() as scope:
            scope.cancel()
            await talk.send_from_ours(b"never")
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        assert talk.theirs.statistics().messages_received == received
        await talk.send_from_ours(b"this time")
        assert await talk.theirs.receive() == b"this time"
        assert talk.ours.statistics().dropped == {}


@every_receiver
async def test_any_number_of_tasks_may_receive_at_once_unless_it_is_a_reply_that_they_wait_for(kind: Kind, name: str) -> None:
    # Which may answer one question as often as it likes.
    raw_peer = Kind(type(kind.peer()), raw=True)
    async with talking(kind, name, peer_kind=None if kind.options else raw_peer) as talk, trio.open_nursery() as nursery:
        if talk.ours is talk.front:
            await talk.begin()
        waiting = []
        for _ in range(3):
            waiting.append(Background(nursery, talk.ours.receive))
            await trio.testing.wait_all_tasks_blocked()
        if kind.socket is sp.Req0 and not kind.raw:
            for busy in waiting[1:]:
                with pytest.raises(trio.BusyResourceError, match="another task waits for the reply on this context: use request"):
                    await busy.done()
            del waiting[1:]
        if kind.raw and talk.ours is talk.front:
            del waiting[1:]  # its peer answers once
        for number, call in enumerate(waiting):
            await talk.send_to_ours(b"%d" % number)
            assert await call.done() == b"%d" % number
        nursery.cancel_scope.cancel()


@every_socket
async def test_events_tell_the_life_of_a_pipe(kind: Kind, name: str) -> None:
    kinds = sp.EventKind
    async with kind() as socket:
        events = socket.events()
        await listen(socket, name)
        async with kind.peer() as peer:
            heard = peer.events()
            await dial(peer, name)
            await socket.wait_for_peers()
            pipe = socket.pipes[0]
        await gone(socket)
    told = [event async for event in events]
    assert [event.kind for event in told] == [kinds.LISTENING, kinds.ATTACHED, kinds.DETACHED, kinds.STOPPED]
    assert told[1].pipe is told[2].pipe is pipe
    assert pipe.peer_protocol == kind.peer_protocol
    assert told[2].reason.startswith("the peer closed the connection")
    assert [event.kind async for event in heard] == [kinds.DIALING, kinds.ATTACHED, kinds.DETACHED, kinds.STOPPED]


# Limits.


# A REQ gets one reply at a time.
@each([kind for kind in ALL if kind.receives and not (kind.socket is sp.Req0 and not kind.raw)])
@pytest.mark.parametrize("limit", [1, 3])
async def test_the_inbox_takes_its_limit_and_not_one_more(kind: Kind, limit: int, name: str, autojump_clock: MockClock) -> None:
    async with talking(kind, name, peer_kind=kind.talkative_peer, inbox_limit=limit) as talk:
        if talk.ours is talk.front:
            await talk.begin()
        for number in range(limit + 1):
            await talk.send_to_ours(b"%d" % number)
        await trio.testing.wait_all_tasks_blocked()
        assert talk.ours.statistics().inbox == limit
        bodies = [talk.ours.receive_nowait() for _ in range(limit)]
        await trio.testing.wait_all_tasks_blocked()
        assert [*bodies, talk.ours.receive_nowait()] == [b"%d" % number for number in range(limit + 1)]
        assert talk.ours.statistics().dropped == {}


@each([kind for kind in ALL if kind.receives and not (kind.socket is sp.Req0 and not kind.raw)])
@pytest.mark.parametrize(("second", "waiting"), [(400, 2), (401, 1)])
async def test_the_inbox_takes_its_limit_of_bytes_and_not_one_more(
    kind: Kind, second: int, waiting: int, name: str, autojump_clock: MockClock
) -> None:
    async with talking(kind, name, peer_kind=kind.talkative_peer, inbox_bytes=1000) as talk:
        if talk.ours is talk.front:
            await talk.begin()
        await talk.send_to_ours(bytes(600))
        await talk.send_to_ours(bytes(second))
        await trio.testing.wait_all_tasks_blocked()
        assert talk.ours.statistics().inbox == waiting
        assert [len(await talk.ours.receive()) for _ in range(2)] == [600, second]
        await talk.send_to_ours(bytes(5000))  # an empty one takes any
        assert len(await talk.ours.receive()) == 5000
        assert talk.ours.statistics().dropped == {}


@pytest.mark.slow
@every_sender
@pytest.mark.parametrize("limit", [1, 3])
async def test_the_outbox_takes_its_limit_and_the_next_message_waits_or_is_dropped_and_counted(
    kind: Kind, limit: int, name: str, autojump_clock: MockClock
) -> None:
    stuck = {"inbox_limit": 1}
    async with talking(kind, name, peer_kind=kind.talkative_peer, outbox_limit=limit, peer=stuck) as talk, trio.open_nursery() as nursery:
        ours = talk.ours
        senders = [ours] * 400
        if kind.socket in (sp.Rep0, sp.Respondent0):
            for place in range(400):
                await talk.send(b"a question")
                senders[place] = ours if kind.raw else ours.context()
                talk._asked = await senders[place].receive_message()
        longest = sent = 0

        async def flood() -> None:
            nonlocal longest, sent
            for sender in senders:
                if kind.raw or kind.poly:
                    await talk.send_from_ours(b"x")
                else:
                    await (sender.context() if kind.socket is sp.Req0 else sender).send(b"x")
                longest = max(longest, ours.statistics().pipes[0].outbox)
                sent += 1
                if ours.statistics().dropped:
                    break

        nursery.start_soon(flood)
        await trio.testing.wait_all_tasks_blocked()
        assert longest == ours.statistics().pipes[0].outbox == limit
        assert ours.statistics().dropped == ({} if kind.waits_for_room else {"peer full": 1})
        assert limit + 128 < sent < 400
        nursery.cancel_scope.cancel()


# The arguments of a socket.


@with_ttl
@pytest.mark.parametrize("wrong", [True, 1.5, "8", None, b"8"])
def test_a_ttl_is_an_int(kind: Kind, wrong: object) -> None:
    with pytest.raises(TypeError, match=f"ttl must be an int, not {re.escape(repr(wrong))}"):
        kind(ttl=wrong)


@with_ttl
@pytest.mark.parametrize("wrong", [-1, 0, 256, 1 << 40])
def test_a_ttl_is_from_1_to_255(kind: Kind, wrong: int) -> None:
    with pytest.raises(ValueError, match=f"ttl must be from 1 to 255, not {wrong}"):
        kind(ttl=wrong)


@with_ttl
@pytest.mark.parametrize("ttl", [1, 2, 254, 255])
def test_a_ttl_of_1_to_255_is_taken(kind: Kind, ttl: int) -> None:
    kind(ttl=ttl).close()


@without_ttl
def test_a_socket_that_counts_no_hops_takes_no_ttl(kind: Kind) -> None:
    with pytest.raises(TypeError, match="unknown option 'ttl', expected one of .*dial"):
        kind(ttl=8)


@pytest.mark.parametrize("wrong", [1, 0, "yes", None])
@every_socket
def test_poly_is_true_or_false_and_for_pair1(kind: Kind, wrong: object) -> None:
    error = "poly must be True or False, not " + re.escape(repr(wrong))
    if kind.socket is not sp.Pair1 or kind.raw:
        error = "unknown option 'poly'"
    with pytest.raises(TypeError, match=error):
        kind.made(poly=wrong)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("1", TypeError, "deadline must be a number of seconds.*, not '1'"),
        (True, TypeError, "deadline must be a number of seconds.*, not True"),
        (None, TypeError, "deadline must be a number of seconds, not None"),
        (0, ValueError, "deadline must be a positive number of seconds.*, not 0"),
        (-1, ValueError, "deadline must be a positive number of seconds.*, not -1"),
        (math.inf, ValueError, "deadline must be a positive number of seconds.*, not inf"),
        (math.nan, ValueError, "deadline must be a positive number of seconds.*, not nan"),
    ],
    ids=repr,
)
async def test_a_deadline_is_a_positive_number_of_seconds(wrong: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sp.Surveyor0(deadline=wrong)  # type: ignore[arg-type]
    async with sp.Surveyor0() as surveyor:
        if wrong is None:  # as the socket has it
            surveyor.context(deadline=None).close()
            return
        with pytest.raises(error, match=message):
            surveyor.context(deadline=wrong)  # type: ignore[arg-type]
        with pytest.raises(error, match=message):
            surveyor.survey(b"", deadline=wrong)  # type: ignore[arg-type]


async def test_no_survey_promises_an_end_that_is_no_promise() -> None:
    with pytest.raises(TypeError) as caught:
        sp.Surveyor0(deadline="1")  # type: ignore[arg-type]
    assert "or None" not in str(caught.value)  # which is refused as well


@with_priority
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("1", TypeError, "priority must be an int, not '1'"),
        (True, TypeError, "priority must be an int, not True"),
        (1.0, TypeError, "priority must be an int, not 1.0"),
        (0, ValueError, "priority must be from 1 to 16, not 0"),
        (17, ValueError, "priority must be from 1 to 16, not 17"),
    ],
)
async def test_a_priority_is_from_1_to_16(kind: Kind, wrong: object, error: type[Exception], message: str, name: str) -> None:
    async with kind() as socket:
        for call in (socket.dial, socket.listen):
            with pytest.raises(error, match=message):
                await call(name, priority=wrong)
        assert socket.dialers == socket.listeners == ()
        for number, priority in enumerate((1, 16, None)):
            await socket.listen(f"{name}-{number}", priority=priority)
        await socket.dial("inproc://nobody", wait=False, priority=16)


@without_priority
async def test_a_socket_that_picks_no_peer_takes_no_priority(kind: Kind, name: str) -> None:
    async with kind() as socket:
        for call in (socket.dial, socket.listen):
            with pytest.raises(ValueError, match=f"priority is for sockets that pick a peer .*PUSH and REQ, not for {kind.protocol}"):
                await call(name, priority=8)
        assert socket.dialers == socket.listeners == ()


@every_sender
async def test_send_message_says_that_it_takes_a_message(kind: Kind) -> None:
    async with kind() as socket:
        for wrong in (b"body", "text", None):
            with pytest.raises(TypeError, match=f"(?i)message.*not {type(wrong).__name__}"):
                await socket.send_message(wrong)


@each([kind for kind in ALL if kind.sends and not kind.header and not (kind.socket is sp.Bus0 and kind.raw)])
async def test_a_socket_that_makes_its_own_headers_takes_the_body_of_a_message_and_nothing_else_of_it(kind: Kind, name: str) -> None:
    async with talking(kind, name) as talk:
        if talk.ours is talk.back:
            await talk.begin()
        await talk.ours.send_message(sp.Message(b"body", b"a header of something else", talk.ours.pipes[0]))
        message = await talk.theirs.receive_message()
        assert message.body == b"body"
        assert b"something else" not in message.header


@every_sender
async def test_the_body_of_a_message_must_be_bytes(kind: Kind) -> None:
    async with kind() as socket:
        for wrong in ("text", None, 7):
            with pytest.raises(TypeError, match=f"a message body must be bytes.*, not {type(wrong).__name__}"):
                await socket.send_message(sp.Message(wrong, kind.header))  # type: ignore[arg-type]


@each([kind for kind in RAW if kind.header or kind.socket is sp.Bus0])
async def test_the_header_of_a_message_must_be_bytes(kind: Kind) -> None:
    async with kind() as socket:
        for wrong in ("head", None, 7, [1, 2, 3, 4]):
            with pytest.raises(TypeError, match=f"header must be bytes.*, not {type(wrong).__name__}"):
                await socket.send_message(sp.Message(b"", wrong))  # type: ignore[arg-type]


@each([kind for kind in RAW if kind.header])
@pytest.mark.parametrize("view", [False, True], ids=["bytearray", "memoryview"])
async def test_a_header_may_be_changed_once_it_is_sent(kind: Kind, view: bool, name: str) -> None:
    async with talking(kind, name) as talk:
        await talk.begin()
        header = bytearray(kind.header if talk.ours is talk.front else talk._asked.header)
        given = memoryview(header) if view else header
        with trio.fail_after(5):
            await talk.ours.send_message(sp.Message(b"body", given))  # type: ignore[arg-type]
            header[:] = bytes(len(header))
            assert await talk.theirs.receive() == b"body"


@each([kind for kind in RAW if kind.socket in (sp.Req0, sp.Surveyor0, sp.Rep0, sp.Respondent0)])
@pytest.mark.parametrize("header", [b"", b"\0\0\0\1", b"\x80\0\0", ID + b"\0", ID + ID, ID + b"\0\0\0\1", bytes(5000)], ids=len)
async def test_a_header_that_is_no_backtrace_is_refused_and_shown(kind: Kind, header: bytes) -> None:
    async with kind() as socket:
        with pytest.raises(ValueError, match=f"must be a backtrace.*, not {header[:64].hex() or 'empty'}$"):
            await socket.send_message(sp.Message(b"body", header))
        assert socket.statistics().dropped == {}


@each([kind for kind in RAW if kind.header and kind.waits_for_peers])
async def test_a_wrong_header_is_refused_at_once_also_while_others_wait_and_does_them_no_harm(kind: Kind, name: str) -> None:
    async with kind() as socket, kind.peer(listen=name) as peer, trio.open_nursery() as nursery:
        calls = []
        for number in range(2):
            message = sp.Message(b"%d" % number, kind.header)
            calls.append(Background(nursery, lambda message=message: socket.send_message(message)))
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(1), pytest.raises(ValueError, match="the header must be"):
                await socket.send_message(sp.Message(b"never", b"wrong"))
        with trio.fail_after(5):
            await dial(socket, name)
            for number, call in enumerate(calls):
                await call.done()
                assert await (peer.context() if hasattr(peer, "context") else peer).receive() == b"%d" % number


@pytest.mark.parametrize("header", [b"", b"\0\0\0", b"\0\0\0\1\0", b"\0\0\1\1", b"\x80\0\0\1", bytes(8)], ids=bytes.hex)
async def test_a_raw_pair1_refuses_what_are_no_hops(header: bytes) -> None:
    async with sp.raw.Pair1() as pair:
        with pytest.raises(ValueError, match=f"must be a word with the hops, from 0 to 255, not {header.hex() or 'empty'}$"):
            await pair.send_message(sp.Message(b"body", header))


@pytest.mark.parametrize("header", [b"\0", b"\0\0\0", bytes(8)], ids=bytes.hex)
async def test_a_raw_bus_refuses_what_is_no_pipe(header: bytes) -> None:
    async with sp.raw.Bus0() as bus:
        with pytest.raises(ValueError, match=f"must be empty or the id of a pipe in 4 bytes, not {header.hex()}$"):
            await bus.send_message(sp.Message(b"body", header))


@every_raw_socket
def test_what_a_protocol_cannot_do_raw_is_absent_from_its_class(kind: Kind) -> None:
    for verb in ("context", "request", "requests", "survey", "surveys", "subscribe", "unsubscribe"):
        assert not hasattr(kind.made, verb)
    # The others need a header with each message.
    assert kind.sends_bodies is (kind.sends and not kind.header)
    for option in ("resend_after", "deadline", "topics", "poly"):
        with pytest.raises(TypeError, match=f"unknown option '{option}'"):
            kind.made(**{option: 1})


@every_raw_socket
async def test_a_raw_socket_has_no_wrong_moment(kind: Kind) -> None:
    async with kind() as socket:
        if kind.receives:
            with pytest.raises(trio.WouldBlock, match="no message has arrived"):
                socket.receive_nowait()
        if kind.sends and not kind.waits_for_peers:
            await socket.send_message(sp.Message(b"x", kind.header))


def test_sp_raw_has_all_protocols() -> None:
    assert {kind.name for kind in RAW} | {"RawSocket"} == set(sp.raw.__all__)


# Counters.


@every_socket
async def test_counters_are_those_of_both_ends(kind: Kind, name: str) -> None:
    async with talking(kind, name) as talk:
        assert await talk.ask(b"x" * 10) == b"x" * 10
        if talk.both_ways:
            assert await talk.answer(b"y" * 20) == b"y" * 20
        front, back = talk.front.statistics(), talk.back.statistics()
    header = 4 if kind.socket in (sp.Req0, sp.Rep0, sp.Surveyor0, sp.Respondent0, sp.Pair1) else 0
    both = talk.both_ways
    assert (front.messages_sent, front.bytes_sent) == (back.messages_received, back.bytes_received) == (1, 10 + header)
    assert (back.messages_sent, back.bytes_sent) == (front.messages_received, front.bytes_received) == (both, (20 + header) * both)
    for figures in (front, back):
        plain = figures.as_dict()
        json.dumps(plain)
        assert plain["dropped"] == {}
        assert plain["inbox"] == 0
        assert plain["pipes"][0]["messages_sent"] == figures.messages_sent
        assert plain["pipes"][0]["outbox"] == 0


# Contexts.

with_contexts = each([Kind(socket) for socket in (sp.Req0, sp.Rep0, sp.Surveyor0, sp.Respondent0, sp.Sub0)])


@with_contexts
async def test_a_context_is_open_until_it_or_its_socket_is_closed(kind: Kind) -> None:
    async with kind() as socket:
        one, two = socket.context(), socket.context()
        assert repr(one) == f"<{kind.name}Context open>"
        async with socket.context() as three:
            assert repr(three) == f"<{kind.name}Context open>"
        one.close()
        one.close()
        await one.aclose()
        for context in (one, three):
            assert repr(context) == f"<{kind.name}Context closed>"
            with pytest.raises(trio.ClosedResourceError, match="the context is closed"):
                await context.receive()
            with pytest.raises(trio.ClosedResourceError, match="the context is closed"):
                context.receive_nowait()
            if kind.sends:
                for call in (context.send, context.send_nowait):
                    with pytest.raises(trio.ClosedResourceError, match="the context is closed"):
                        await call(b"")
                with pytest.raises(trio.ClosedResourceError, match="the context is closed"):
                    await context.send_message(sp.Message(b""))
    assert repr(two) == f"<{kind.name}Context closed>"
    with pytest.raises(trio.ClosedResourceError, match="the socket is closed"):
        await two.receive()
    with pytest.raises(trio.ClosedResourceError, match="the socket is closed"):
        socket.context()


@with_contexts
async def test_only_a_call_that_waits_in_a_context_learns_of_its_end(kind: Kind, name: str) -> None:
    async with talking(kind, name) as talk, trio.open_nursery() as nursery:
        contexts = [talk.ours.context() for _ in range(2)]
        waiting = []
        for context in contexts:
            if kind.socket in (sp.Req0, sp.Surveyor0):
                await context.send(b"a question")
            waiting.append(Background(nursery, context.receive))
        await trio.testing.wait_all_tasks_blocked()
        contexts[0].close()
        with pytest.raises(trio.ClosedResourceError, match="the context is closed"):
            await waiting[0].done()
        await trio.testing.wait_all_tasks_blocked()
        assert waiting[1]._outcome is None
        talk.ours.close()
        with pytest.raises(trio.ClosedResourceError, match="the socket is closed"):
            await waiting[1].done()


# Nothing is left.


def _things() -> int:
    # trio drops unused deadlines by the thousand.  Only then are their scopes gone.
    gc.collect()
    return sum(type(thing).__name__ not in ("CancelScope", "CancelReason", "tuple") for thing in gc.get_objects())


@pytest.mark.slow
@every_socket
async def test_peers_that_came_and_went_leave_nothing(kind: Kind, name: str) -> None:
    async with kind(**everything(kind), listen=name) as socket:

        async def cycle() -> None:
            async with kind.peer(**everything(Kind(type(kind.peer())))) as peer:
                await peer.dial(name)
                await socket.wait_for_peers()
                talk = Talk(peer, socket) if kind.socket in BACKS else Talk(socket, peer)
                assert await talk.ask(b"x") == b"x"
                if talk.both_ways:
                    assert await talk.answer(b"y") == b"y"
            await gone(socket)

        for _ in range(20):
            await cycle()
        before = _things(), trio.lowlevel.current_statistics().tasks_living
        for _ in range(60):
            await cycle()
        after = _things(), trio.lowlevel.current_statistics().tasks_living
        assert after[0] - before[0] < 30
        assert after[1] == before[1]
