"""What holds for every socket."""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Callable

import pytest
import trio

import sp
from tests.transports.ends import dial, listen, server_tls

ALL = [sp.Req0, sp.Rep0, sp.Pub0, sp.Sub0, sp.Bus0]
SENDERS = [sp.Req0, sp.Rep0, sp.Pub0, sp.Bus0]
RECEIVERS = [sp.Req0, sp.Rep0, sp.Sub0, sp.Bus0]
PEERS = {sp.Req0: sp.Rep0, sp.Rep0: sp.Req0, sp.Pub0: sp.Sub0, sp.Sub0: sp.Pub0, sp.Bus0: sp.Bus0}

every_socket = pytest.mark.parametrize("kind", ALL)
every_sender = pytest.mark.parametrize("kind", SENDERS)
every_receiver = pytest.mark.parametrize("kind", RECEIVERS)


def test_who_only_sends_is_a_send_channel_and_who_only_receives_a_receive_channel() -> None:
    assert issubclass(sp.Pub0, trio.abc.SendChannel)
    assert not hasattr(sp.Pub0, "receive")
    assert issubclass(sp.Sub0, trio.abc.ReceiveChannel)
    assert not hasattr(sp.Sub0, "send")
    for both in (sp.Req0, sp.Rep0, sp.Bus0):
        assert issubclass(both, trio.abc.Channel)


@every_socket
async def test_an_unknown_option_is_named(kind: type) -> None:
    with pytest.raises(TypeError, match="unknown option 'recieve_limit', expected some of .*inbox_limit"):
        kind(recieve_limit=3)


@every_socket
async def test_a_socket_must_be_entered_before_it_is_used(kind: type) -> None:
    socket = kind()
    with pytest.raises(sp.StateError, match="async with"):
        await socket.dial("inproc://x")
    with pytest.raises(sp.StateError, match="async with"):
        await socket.wait_for_peers()
    await socket.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await socket.listen("inproc://x")


@every_socket
async def test_a_socket_can_be_entered_once(kind: type) -> None:
    async with kind() as socket:
        pass
    with pytest.raises(sp.StateError, match="once"):
        async with socket:
            raise AssertionError("entered")


@every_socket
async def test_nothing_works_after_the_end_but_looking_back(kind: type) -> None:
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
async def test_sending_after_the_end_is_refused(kind: type) -> None:
    async with kind() as socket:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await socket.send(b"")
    with pytest.raises(trio.ClosedResourceError):
        socket.send_nowait(b"")


@every_receiver
async def test_receiving_after_the_end_is_refused(kind: type) -> None:
    async with kind() as socket:
        pass
    for call in (socket.receive, socket.receive_message):
        with pytest.raises(trio.ClosedResourceError):
            await call()
    with pytest.raises(trio.ClosedResourceError):
        socket.receive_nowait()


@every_sender
@pytest.mark.parametrize("wrong", ["text", 7, None, [b"x"]])
async def test_a_body_must_be_bytes(kind: type, wrong: object) -> None:
    async with kind() as socket:
        with pytest.raises(TypeError, match="must be bytes"):
            await socket.send(wrong)
        with pytest.raises(TypeError, match="must be bytes"):
            socket.send_nowait(wrong)


@every_socket
@pytest.mark.parametrize("error", [ValueError("mine"), ExceptionGroup("mine", [KeyError(1)]), KeyboardInterrupt(), trio.TooSlowError()])
async def test_an_exception_of_the_block_comes_out_as_itself(kind: type, error: BaseException, name: str) -> None:
    with pytest.raises(type(error)) as caught:
        async with kind(listen=name) as socket, PEERS[kind]() as peer:
            await peer.dial(name)
            raise error
    assert caught.value is error
    assert "closed" in repr(socket)


@every_socket
async def test_a_cancelled_block_closes_at_once(kind: type, name: str) -> None:
    with trio.CancelScope() as scope:
        async with kind(listen=name) as socket, PEERS[kind]() as peer:
            await peer.dial(name)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert socket.pipes == peer.pipes == ()


@every_socket
async def test_closing_in_a_cancelled_scope_does_not_block(kind: type, name: str) -> None:
    async with kind(listen=name) as socket, PEERS[kind](dial=name) as peer:
        await socket.wait_for_peers()
        with trio.CancelScope() as scope:
            scope.cancel()
            await socket.aclose()
        assert "closed" in repr(socket)
        assert socket.listeners == ()
        await peer.aclose()


@every_socket
async def test_closing_by_another_task_leaves_the_block_running(kind: type, name: str) -> None:
    async with trio.open_nursery() as nursery, kind(listen=name) as socket:
        nursery.start_soon(socket.aclose)
        await trio.testing.wait_all_tasks_blocked()
        await trio.lowlevel.checkpoint()
        assert "closed" in repr(socket)


@every_socket
async def test_a_url_that_cannot_be_meant_comes_out_of_the_constructor_block(kind: type) -> None:
    with pytest.raises(sp.AddressError, match="carrier-pigeon"):
        async with kind(listen="carrier-pigeon://roof"):
            raise AssertionError("entered")
    with pytest.raises(sp.AddressError, match="has no port"):
        async with kind(dial=["tcp://localhost"]):
            raise AssertionError("entered")


@every_socket
async def test_repr_and_statistics_show_what_is_there(kind: type, name: str) -> None:
    async with kind(listen=name) as socket, PEERS[kind]() as peer:
        await peer.dial(name)
        await socket.wait_for_peers()
        assert repr(socket) == f"<{kind.__name__} open pipes=1 inbox=0>"
        assert repr(peer.dialers[0]) == f"<Dialer {name} attached>"
        assert repr(socket.listeners[0]) == f"<Listener {name} 1 pipes>"
        assert repr(socket.pipes[0]) == f"<Pipe {socket.pipes[0].id} attached {PEERS[kind].__name__[:-1].upper()} {name}>"
        counters = json.loads(json.dumps(socket.statistics().as_dict()))
        assert counters["listeners"] == [{"url": name, "accepted": 1, "attached": 1, "greeting": 0, "failures": {}, "handshakes": {}}]
        assert counters["pipes"][0]["id"] == socket.pipes[0].id
        assert peer.statistics().as_dict()["dialers"] == ({"url": name, "attempts": 1, "attached": 1, "failures": {}, "handshakes": {}},)


async def test_a_socket_that_nobody_closed_warns() -> None:
    async def forget() -> None:
        socket = sp.Rep0()
        manager = trio.open_nursery()
        async with manager:
            # As a class that enters the socket and forgets to leave it.
            await socket.__aenter__()
            nursery = socket._manager
            socket.close()
            await nursery.__aexit__(None, None, None)  # keeps trio in order; the socket itself does not know

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await forget()
        gc.collect()
    assert [str(warning.message) for warning in caught if warning.category is ResourceWarning] == [
        "<Rep0 closed pipes=0 inbox=0> was never closed"
    ]


@pytest.mark.parametrize("call", ["send", "receive"])
async def test_sixteen_calls_that_do_not_block_are_the_most_before_others_run(call: str, name: str) -> None:
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
        assert turns >= 320 // 16 - 1
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
async def test_who_enters_a_socket_a_second_time_does_no_harm_to_the_first(kind: type, name: str) -> None:
    async with kind(listen=name) as socket:
        with pytest.raises(sp.StateError, match="once"):
            async with socket:
                raise AssertionError("entered")
        assert len(socket.listeners) == 1
        async with PEERS[kind]() as peer:
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
        with pytest.raises(sp.AddressError, match="no host name"):
            await req.dial(f"tcp://{host}:5555")
        with pytest.raises(sp.AddressError, match="no host name"):
            await req.listen(f"tcp://{host}:5555")


async def test_an_error_of_listen_names_the_url(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Rep0() as other:
        address = rep.listeners[0].url
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
        ({"topic": b"a"}, "expected some of .*topics"),
    ],
)
def test_a_wrong_argument_is_named(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        sp.Sub0(**keywords)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["3", 1.5, 0, -1])
async def test_receive_many_wants_a_whole_number(wrong: object, name: str) -> None:
    async with sp.Bus0(listen=name) as bus:
        with pytest.raises(ValueError, match="whole number of at least 1"):
            await bus.receive_many(wrong)  # type: ignore[arg-type]


async def test_send_many_refuses_a_single_body(name: str) -> None:
    async with sp.Bus0(listen=name) as bus:
        with pytest.raises(TypeError, match="bodies, not one body"):
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
        await dial(two, one.listeners[0].url)
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
