"""The contract between transports and sockets, which every scheme must pass."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import pytest
import trio

import sp
from sp.address import Address
from sp.options import SocketOptions
from sp.sockets.endpoint_config import config_to_dial, config_to_listen
from sp.transports import transport_for
from sp.transports.contract import EndpointConfig
from tests.transports.ends import client_tls, dial, listen, server_tls
from tests.transports.wire import expect, until

NewUrl = Callable[[], str]
WITH_PORT = ("tcp", "tls+tcp", "ws", "wss")

LIMIT = 1 << 20
SIZES = [0, 1, 65_535, 65_536, LIMIT]


async def test_messages_of_any_size_up_to_the_limit_arrive_whole_and_in_order_both_ways(new_url: NewUrl) -> None:
    bodies = [os.urandom(size) for size in SIZES]
    with trio.fail_after(10):
        async with sp.Bus0(max_message_size=LIMIT) as listening, sp.Bus0(max_message_size=LIMIT) as dialing:
            await dial(dialing, (await listen(listening, new_url())).url)
            await listening.wait_for_peers()
            for sender, receiver in ((dialing, listening), (listening, dialing)):
                for body in bodies:
                    await sender.send(body)
                assert [await receiver.receive() for _ in bodies] == bodies


async def test_both_ways_at_once_nothing_is_mixed_up(new_url: NewUrl) -> None:
    async with sp.Bus0() as listening, sp.Bus0() as dialing:
        await dial(dialing, (await listen(listening, new_url())).url)
        await listening.wait_for_peers()

        async def run(name: bytes, ours: sp.Bus0) -> None:
            # Ten messages in flight always fit, so nothing may be dropped.
            got: list[bytes] = []
            for start in range(0, 300, 10):
                await ours.send_many(b"%s-%d-" % (name, number) + name * (number * 37 % 5000) for number in range(start, start + 10))
                while len(got) < start + 10:
                    got += await ours.receive_many()
            other = b"d" if name == b"l" else b"l"
            assert got == [b"%s-%d-" % (other, number) + other * (number * 37 % 5000) for number in range(300)]

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, b"l", listening)
                nursery.start_soon(run, b"d", dialing)


async def test_a_request_and_its_reply_arrive_whole_up_to_the_limit(new_url: NewUrl) -> None:
    async with sp.Rep0(max_message_size=LIMIT) as rep, sp.Req0(max_message_size=LIMIT) as req:
        await dial(req, (await listen(rep, new_url())).url)
        with trio.fail_after(10):
            # The request id takes four bytes.
            for size in [0, 1, 65_535 - 4, 65_536 - 4, 65_536, LIMIT - 4]:
                body = os.urandom(size)
                await req.send(body)
                assert await rep.receive() == body
                await rep.send(body[::-1])
                assert await req.receive() == body[::-1]


@pytest.mark.parametrize("receiving", ["listening", "dialing"])
async def test_one_byte_beyond_the_limit_ends_that_pipe_and_nothing_else(new_url: NewUrl, receiving: str) -> None:
    limits = {"listening": 1_000 if receiving == "listening" else None, "dialing": 1_000 if receiving == "dialing" else None}
    async with (
        sp.Bus0(max_message_size=limits["listening"]) as listening,
        sp.Bus0(max_message_size=limits["dialing"], redial_min=0.01, redial_max=0.01) as dialing,
    ):
        url = (await listen(listening, new_url())).url
        await dial(dialing, url)
        await listening.wait_for_peers()
        receiver, sender = (listening, dialing) if receiving == "listening" else (dialing, listening)
        events, peer_events = receiver.events(), sender.events()
        with trio.fail_after(5):
            await sender.send(b"x" * 1_000)
            await sender.send(b"y" * 1_001)
            assert await receiver.receive() == b"x" * 1_000
            event = await expect(events, sp.EventKind.DETACHED)
            assert isinstance(event.error, sp.MessageTooLarge)
            assert "message too large" in event.reason
            assert "1001" in event.reason
            assert "1000" in event.reason
            assert event.pipe is not None
            assert event.pipe.reason == event.reason
            assert (await expect(peer_events, sp.EventKind.DETACHED)).reason

            await expect(events, sp.EventKind.ATTACHED)  # the dialer's next pipe
            await expect(peer_events, sp.EventKind.ATTACHED)
            await sender.send(b"small")
            assert await receiver.receive() == b"small"


@pytest.mark.slow
async def test_a_reply_that_is_not_taken_holds_the_sender_back_and_everything_recovers(new_url: NewUrl) -> None:
    body = 64 * 1024
    requests = 600  # 38 MB, more than all the queues and kernel buffers between two sockets
    sent: list[int] = []
    answers: list[bytes] = []

    async with (
        sp.Rep0(inbox_limit=4, outbox_limit=4) as rep,
        sp.Req0(inbox_limit=4, outbox_limit=4) as req,
    ):
        await dial(req, (await listen(rep, new_url())).url)

        async def ask(number: int) -> None:
            async with req.context() as context:
                await context.send(number.to_bytes(4, "big") + bytes(body))
                sent.append(number)
                answers.append(await context.receive())

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for number in range(requests):
                    nursery.start_soon(ask, number)
                before = -1
                while len(sent) > before:
                    before = len(sent)
                    await trio.testing.wait_all_tasks_blocked(0.02)
                assert 4 <= len(sent) < requests // 2
                assert rep.statistics().inbox <= 4
                # The outbox, and the messages of one write.
                assert req.statistics().pipes[0].outbox <= 4 + 2

                asked = rep.requests()
                for _ in range(requests):
                    request = await anext(asked)
                    await request.reply(request.body[:4])
    assert sorted(answers) == [number.to_bytes(4, "big") for number in range(requests)]
    assert sorted(sent) == list(range(requests))


@pytest.mark.slow
async def test_messages_of_all_sizes_pass_through_narrow_queues_in_order_and_none_is_lost(new_url: NewUrl) -> None:
    narrow = {"inbox_limit": 2, "outbox_limit": 2}
    sizes = [number * 37 % 5000 if number % 50 else 200_000 for number in range(1000)]
    async with sp.Pull0(**narrow) as pull, sp.Push0(**narrow) as push, trio.open_nursery() as nursery:  # type: ignore[arg-type]
        await dial(push, (await listen(pull, new_url())).url)

        async def send() -> None:
            for number, size in enumerate(sizes):
                await push.send(number.to_bytes(4, "big") + bytes(size))
                assert push.statistics().pipes[0].outbox <= 2 + 64  # and the messages of one write

        nursery.start_soon(send)
        with trio.fail_after(20):
            for number, size in enumerate(sizes):
                if number % 100 == 0:
                    await trio.testing.wait_all_tasks_blocked(0.002)
                body = await pull.receive()
                assert (int.from_bytes(body[:4], "big"), len(body)) == (number, 4 + size)
                assert pull.statistics().inbox <= 2
        assert push.statistics().dropped == pull.statistics().dropped == {}


async def test_two_that_have_place_for_one_peer_each_talk_and_a_third_is_turned_away(new_url: NewUrl) -> None:
    async with sp.Pair1() as listening, sp.Pair1() as dialing, sp.Pair1() as third:
        with trio.fail_after(5):
            url = (await listen(listening, new_url())).url
            await dial(dialing, url)
            await listening.wait_for_peers()
            for body in (b"", b"x", os.urandom(65_536)):
                for sender, receiver in ((dialing, listening), (listening, dialing)):
                    await sender.send(body)
                    assert await receiver.receive() == body
            events = listening.events()
            with pytest.raises(sp.DialError, match="a PAIR that already has a peer hangs up like this|this PAIR already has a peer"):
                await dial(third, url)
            assert isinstance((await expect(events, sp.EventKind.REFUSED)).error, sp.PipeRefused)
            await listening.send(b"still there?")
            assert await dialing.receive() == b"still there?"


async def test_all_that_a_peer_sent_before_it_closed_is_received_and_then_the_pipe_ends_with_a_reason(new_url: NewUrl) -> None:
    async with sp.Bus0(inbox_limit=1_000) as receiver:
        url = (await listen(receiver, new_url())).url
        events = receiver.events()
        bodies = [b"%d" % number * 50 for number in range(100)]
        with trio.fail_after(5):
            async with sp.Bus0(dial=url, tls=client_tls(url)) as sender:
                await sender.wait_for_peers()
                await sender.send_many(bodies)
            event = await expect(events, sp.EventKind.DETACHED)
            assert isinstance(event.error, sp.PeerClosed)
            # With TLS too: it ended TLS first.
            assert event.reason == "the peer closed the connection"
            assert [await receiver.receive() for _ in bodies] == bodies
            assert receiver.pipes == ()


async def test_an_application_that_is_late_receives_all_that_a_peer_sent_before_it_closed(new_url: NewUrl) -> None:
    async with sp.Rep0(inbox_limit=2) as rep:
        url = (await listen(rep, new_url())).url
        bodies = [b"%d" % number for number in range(60)]
        got: list[bytes] = []
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:

                async def ask_and_close() -> None:
                    async with sp.Req0(linger=5) as req:
                        await dial(req, url)
                        for body in bodies:
                            await req.context().send(body)

                nursery.start_soon(ask_and_close)
                await trio.testing.wait_all_tasks_blocked(0.02)
                while len(got) < len(bodies):
                    got.append(await rep.receive())
        assert got == bodies


async def test_a_second_listener_is_told_that_the_address_is_in_use_and_the_first_keeps_working(new_url: NewUrl) -> None:
    async with sp.Rep0() as first, sp.Rep0() as second, sp.Req0() as req:
        url = (await listen(first, new_url())).url
        for sock in (second, first):
            with pytest.raises(OSError, match=r"(?i)address.* in use") as caught:
                await listen(sock, url)
            assert caught.value.errno == errno.EADDRINUSE
        assert second.listeners == ()
        with trio.fail_after(5):
            await dial(req, url)
            await req.send(b"who is there?")
            assert await first.receive() == b"who is there?"


def test_a_scheme_without_a_transport_is_not_taken_for_another_one() -> None:
    with pytest.raises(AssertionError, match="no transport for new://"):
        transport_for(Address("new://a", "new", path="a"))


async def test_an_acceptor_that_is_closed_twice_leaves_the_address_to_the_one_that_has_it_by_then(new_url: NewUrl) -> None:
    url = new_url()
    req = EndpointConfig(number=0x30, peer_number=0x31, find_body=None, options=SocketOptions())
    rep = EndpointConfig(number=0x31, peer_number=0x30, find_body=None, options=SocketOptions())
    transport = transport_for(Address.parse(url))
    config = config_to_listen(rep, Address.parse(url), server_tls(url), None, None)
    first = await transport.listen(Address.parse(url), config)
    address = Address.parse(first[0].url)
    first[0].close()
    second = await transport.listen(address, config)
    first[0].close()
    with trio.fail_after(5):
        newcomer = await transport.connect(address, config_to_dial(req, address, client_tls(url), None))
        (accepted,) = await second[0].accept()
    newcomer.close()
    accepted.close()
    for acceptor in second:
        acceptor.close()


async def test_a_failed_listen_on_entry_raises_the_plain_error(new_url: NewUrl) -> None:
    async with sp.Rep0() as first:
        url = (await listen(first, new_url())).url
        with pytest.raises(OSError, match=r"(?i)address.* in use"):
            async with sp.Rep0(listen=url, tls=server_tls(url)):
                pass


async def test_a_dial_without_a_listener_fails_at_once_with_the_real_cause(scheme: str, new_url: NewUrl) -> None:
    with socket.socket() as reserved:
        url = new_url()
        if scheme in WITH_PORT:
            reserved.bind(("127.0.0.1", 0))  # bound, but not listening
            url = f"{scheme}://127.0.0.1:{reserved.getsockname()[1]}"
        async with sp.Req0() as req:
            with trio.fail_after(5):
                with pytest.raises(sp.DialError) as caught:
                    await dial(req, url)
            assert url in str(caught.value)
            assert type(caught.value.__cause__) is (FileNotFoundError if scheme in ("ipc", "ws+unix") else ConnectionRefusedError)
            assert str(caught.value.__cause__) in str(caught.value)
            await trio.testing.wait_all_tasks_blocked()
            assert req.dialers == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("listening", "dialing", "refused_for", "failed_for"),
    [
        (sp.Pub0, sp.Req0, "the peer is REQ, expected SUB", "the peer is PUB, expected REP"),
        (sp.Push0, sp.Push0, "the peer is PUSH, expected PULL", "the peer is PUSH, expected PULL"),
        (sp.Respondent0, sp.Req0, "the peer is REQ, expected SURVEYOR", "the peer is RESPONDENT, expected REP"),
        (sp.Pair0, sp.Req0, "the peer is REQ, expected PAIR0", "the peer is PAIR0, expected REP"),
        (sp.Req0, sp.Pair0, "the peer is PAIR0, expected REP", "the peer is REQ, expected PAIR0"),
        (sp.Pair0, sp.Pair1, "the peer is PAIR1, expected PAIR0", "the peer is PAIR0, expected PAIR1"),
        (sp.Pair1, sp.Pair0, "the peer is PAIR0, expected PAIR1", "the peer is PAIR1, expected PAIR0"),
    ],
    ids=["pub req", "push push", "respondent req", "pair req", "req pair", "pair0 pair1", "pair1 pair0"],
)
async def test_a_wrong_protocol_is_named_on_both_sides(
    new_url: NewUrl, listening: type, dialing: type, refused_for: str, failed_for: str
) -> None:
    async with listening() as listener, dialing() as dialer:
        url = (await listen(listener, new_url())).url
        told, heard = listener.events(), dialer.events()
        with trio.fail_after(5):
            with pytest.raises(sp.DialError, match=failed_for) as caught:
                await dial(dialer, url)
            assert isinstance(caught.value.__cause__, sp.WrongProtocol)
            refused = await expect(told, sp.EventKind.REFUSED)
            assert isinstance(refused.error, sp.WrongProtocol)
            assert refused_for in refused.reason
            failed = await expect(heard, sp.EventKind.DIAL_FAILED)
            assert isinstance(failed.error, sp.WrongProtocol)
            assert failed_for in failed.reason
        assert listener.pipes == dialer.pipes == ()


@pytest.mark.slow
async def test_a_closed_listener_frees_the_address_and_ends_its_pipes(new_url: NewUrl) -> None:
    async with sp.Rep0() as first, sp.Rep0() as second, sp.Req0(redial_min=0.01, redial_max=0.01) as req:
        listener = await listen(first, new_url())
        await dial(req, listener.url)
        events = req.events()
        with trio.fail_after(5):
            listener.close()
            assert first.listeners == ()
            again = await listen(second, listener.url)
            assert again.url == listener.url
            await expect(events, sp.EventKind.DETACHED)
            await expect(events, sp.EventKind.ATTACHED)
            await req.send(b"hello")
            assert await second.receive() == b"hello"
            assert first.pipes == ()


async def test_a_closed_socket_frees_the_address(new_url: NewUrl) -> None:
    async with sp.Rep0() as rep:
        url = (await listen(rep, new_url())).url
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as req:
        with trio.fail_after(5):
            await dial(req, url)


async def test_a_listener_closed_before_it_ran_accepts_no_connection(new_url: NewUrl) -> None:
    async with sp.Rep0() as rep, sp.Req0() as req:
        listener = await listen(rep, new_url())
        listener.close()
        with trio.fail_after(5), pytest.raises(sp.DialError):
            await dial(req, listener.url)


@pytest.mark.slow
async def test_one_address_can_be_listened_on_a_thousand_times_in_a_row(new_url: NewUrl) -> None:
    async with sp.Rep0() as rep:
        listener = await listen(rep, new_url())
        url = listener.url
        with trio.fail_after(30):
            for number in range(1_000):
                listener.close()
                listener = await listen(rep, url)
                if number % 20 == 0:
                    async with sp.Req0() as req:
                        await dial(req, url)
                        await req.send(b"%d" % number)
                        assert await rep.receive() == b"%d" % number
        assert [each.url for each in rep.listeners] == [url]


async def test_events_tell_the_life_of_a_pipe_in_order_on_both_sides(new_url: NewUrl) -> None:
    kinds = sp.EventKind
    async with sp.Rep0() as rep, sp.Req0() as req:
        rep_events, req_events = rep.events(), req.events()
        listener = await listen(rep, new_url())
        dialer = await dial(req, listener.url)
        with trio.fail_after(5):
            await rep.wait_for_peers()
            dialer.close()
            await until(lambda: not rep.pipes and not req.dialers)
        listener.close()
        await rep.aclose()
        await req.aclose()
        assert [event.kind async for event in rep_events] == [kinds.LISTENING, kinds.ATTACHED, kinds.DETACHED, kinds.STOPPED]
        assert [event.kind async for event in req_events] == [kinds.DIALING, kinds.ATTACHED, kinds.DETACHED, kinds.STOPPED]


async def test_a_pipe_says_who_is_at_the_other_end(scheme: str, new_url: NewUrl) -> None:
    async with sp.Rep0() as rep, sp.Req0() as req:
        url = (await listen(rep, new_url())).url
        await dial(req, url)
        with trio.fail_after(5):
            await rep.wait_for_peers()
        (ours,), (theirs,) = req.pipes, rep.pipes
        assert (ours.peer_protocol, theirs.peer_protocol) == ("REP", "REQ")
        assert ours.url == theirs.url == url
        assert ours.remote_address == theirs.local_address == (url.split("/")[2] if scheme in WITH_PORT else url)
        assert ours.local_address == theirs.remote_address
        assert (ours.local_address != url) == (scheme in WITH_PORT)
        assert [pipe.tls is not None for pipe in (ours, theirs)] == [scheme in ("tls+tcp", "wss")] * 2
