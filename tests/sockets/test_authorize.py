from __future__ import annotations

import pytest
import trio

import sp
from tests.transports.ends import dial, server_tls


def refuse(pipe: sp.Pipe) -> bool:
    return False


async def refuse_later(pipe: sp.Pipe) -> bool:
    await trio.lowlevel.checkpoint()
    return False


def forget(pipe: sp.Pipe) -> bool:
    return None  # type: ignore[return-value]


def fail(pipe: sp.Pipe) -> bool:
    raise LookupError("no such user")


@pytest.mark.parametrize(
    ("authorize", "reason"),
    [
        (refuse, "authorize said no"),
        (refuse_later, "authorize said no"),
        (forget, "authorize returned None, expected True, False or an HTTPResponse"),
        (fail, "no such user"),
    ],
)
async def test_a_listener_that_says_no_delivers_nothing_and_says_why(authorize: object, reason: str, url: str) -> None:
    async with sp.Bus0(listen=url, tls=server_tls(url), authorize=authorize) as bus:  # type: ignore[arg-type]
        events = bus.events()
        async with sp.Bus0() as peer:
            await dial(peer, bus.url, wait=False)
            await peer.send(b"let me in")
            event = await anext(events)
            assert event.kind is sp.EventKind.REFUSED
            assert isinstance(event.error, sp.PipeRefused)
            assert reason in event.reason
            while peer.pipes:
                await trio.lowlevel.checkpoint()
            peer.close()
        assert bus.statistics().listeners[0].failures == {"PipeRefused": 1}
        assert bus.statistics().messages_received == 0
        with pytest.raises(trio.WouldBlock):
            bus.receive_nowait()


async def test_a_dialer_that_says_no_reports_it_to_the_call(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0(authorize=refuse) as req:
        with pytest.raises(sp.DialError, match="authorize said no") as caught:
            await dial(req, rep.url)
        assert isinstance(caught.value.__cause__, sp.PipeRefused)
        with pytest.raises(trio.WouldBlock):
            req.send_nowait(b"it never counted as attached")
        assert req.dialers == ()


async def test_it_sees_the_pipe_and_says_yes(url: str) -> None:
    seen = []

    async def look(pipe: sp.Pipe) -> bool:
        await trio.lowlevel.checkpoint()
        seen.append((pipe.peer_protocol, pipe.url, pipe.remote_address, pipe.local_address))
        return True

    async with sp.Rep0(listen=url, tls=server_tls(url), authorize=look) as rep, sp.Req0() as req:
        address = rep.url
        await dial(req, address)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(req.request, b"x")
            request = await anext(rep.requests())
            await request.reply(b"y")
        assert [(protocol, url) for protocol, url, _, _ in seen] == [("REQ", address)]
        _, _, remote, local = seen[0]
        assert (remote, local) == (rep.pipes[0].remote_address, rep.pipes[0].local_address)
        scheme, _, place = address.partition("://")
        if scheme in ("tcp", "tls+tcp", "ws", "wss"):
            assert local == place.partition("/")[0]
            assert remote.startswith("127.0.0.1:")


async def test_one_that_never_decides_ends_at_the_greeting_deadline(name: str, autojump_clock: trio.testing.MockClock) -> None:
    async def ponder(pipe: sp.Pipe) -> bool:
        await trio.sleep_forever()
        return True

    async with sp.Rep0(listen=name, authorize=ponder, handshake_timeout=3) as rep, sp.Req0() as req:
        events = rep.events()
        await req.dial(name)
        began = trio.current_time()
        event = await anext(events)
        assert trio.current_time() - began == pytest.approx(3)
        assert event.kind is sp.EventKind.REFUSED
        assert isinstance(event.error, sp.GreetingError)
        assert "3 s" in event.reason
