"""What a peer can do to harm others, and must not."""

from __future__ import annotations

import os
import socket
import tracemalloc
from pathlib import Path

import pytest
import trio

import sp
from sp.transports.framing import FrameDecoder, frame_prefix
from tests.transports.ends import dial, network_only, server_tls
from tests.transports.wire import REQ, connect_as, frame, reset


async def echo(rep: sp.Rep0) -> None:
    while True:
        await rep.send(await rep.receive())


@network_only
async def test_clients_that_ask_much_and_leave_do_not_hang_a_service_that_answers_one_after_the_other(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as honest, trio.open_nursery() as nursery:
        with trio.fail_after(20):
            hostile = await connect_as(rep.url, REQ)
            await hostile.send_all(frame(b"\x80\0\0\1x") * 300)
            while rep.statistics().inbox < 128:
                await trio.lowlevel.checkpoint()
            reset(hostile)
            nursery.start_soon(echo, rep)
            await dial(honest, rep.url)
            assert await honest.request(b"still there?") == b"still there?"
            nursery.cancel_scope.cancel()


async def test_a_client_that_cannot_be_written_to_does_not_hang_a_service(tmp_path: Path) -> None:
    async with sp.Rep0(listen=f"ipc://{tmp_path}/s", linger=0.1) as rep, sp.Req0() as honest, trio.open_nursery() as nursery:
        with trio.fail_after(20):
            hostile = await trio.open_unix_socket(f"{tmp_path}/s")
            await hostile.send_all(b"\0SP\0\0\x30\0\0" + (b"\1" + frame(b"\x80\0\0\1x")) * 2)
            await hostile.receive_some(8)
            hostile.socket.shutdown(socket.SHUT_RD)
            nursery.start_soon(echo, rep)
            await honest.dial(f"ipc://{tmp_path}/s")
            assert await honest.request(b"still there?") == b"still there?"
            while len(rep.pipes) > 1:  # it is ended although it goes on living
                await trio.lowlevel.checkpoint()
            await hostile.aclose()
            nursery.cancel_scope.cancel()


@pytest.mark.slow
@network_only
async def test_a_quiet_requester_is_served_beside_those_that_flood(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0() as quiet, trio.open_nursery() as nursery:
        served = 0

        async def serve() -> None:
            nonlocal served
            async for request in rep.requests():
                served += 1
                await request.reply(request.body)

        async def flood() -> None:
            async with await connect_as(rep.url, REQ) as stream, trio.open_nursery() as inner:

                async def swallow() -> None:
                    while await stream.receive_some(1 << 20):
                        pass

                inner.start_soon(swallow)
                while True:
                    await stream.send_all(frame(b"\x80\0\0\1x") * 1000)

        nursery.start_soon(serve)
        for _ in range(10):
            nursery.start_soon(flood)
        with trio.fail_after(20):
            while served < 1000:
                await trio.lowlevel.checkpoint()
            await dial(quiet, rep.url)
            for _ in range(3):
                before = served
                await quiet.request(b"me too")
                # A few turns of each of the ten, and what was read before.
                assert served - before < 20_000
        nursery.cancel_scope.cancel()


def test_a_message_that_trickles_in_costs_little_more_than_its_bytes() -> None:
    decoder = FrameDecoder(None, 1 << 20, typed=False)
    decoder.receive_data(frame_prefix(1 << 20, typed=False))
    tracemalloc.start()
    for number in range(50_000):
        decoder.receive_data(bytes([number & 255]))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 200_000


@pytest.mark.slow
@network_only
async def test_a_pipe_that_has_ended_keeps_nothing_of_a_message_that_was_cut_off(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep:
        events = rep.events()  # no task takes them, and each refers to its pipe
        tracemalloc.start()
        for _ in range(20):
            async with await connect_as(rep.url, REQ) as stream:
                await stream.send_all((1 << 20).to_bytes(8, "big") + bytes(900_000))
            with trio.fail_after(10):
                while rep.statistics().listeners[0].attached == 0 or rep.pipes or rep.statistics().listeners[0].in_handshake:
                    await trio.lowlevel.checkpoint()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert held < 4_000_000
        assert events.missed == 0


@network_only
async def test_a_newcomer_evicted_while_it_is_authorized_never_becomes_a_pipe(url: str) -> None:
    gate = trio.Event()

    async def wait(pipe: sp.Pipe) -> bool:
        await gate.wait()
        return True

    async with sp.Rep0(listen=url, tls=server_tls(url), max_handshakes=1, authorize=wait) as rep:
        events = rep.events()
        with trio.fail_after(10):
            first = await connect_as(rep.url, REQ)
            second = await connect_as(rep.url, REQ)
            assert await first.receive_some(1) == b""
            gate.set()
            kinds = {(await anext(events)).kind for _ in range(2)}
            assert kinds == {sp.EventKind.REFUSED, sp.EventKind.ATTACHED}
            assert rep.statistics().listeners[0].attached == 1
            await first.aclose()
            await second.aclose()


@pytest.mark.skipif(os.name != "posix", reason="UNIX socket files are a matter of POSIX systems")
@pytest.mark.parametrize("how", ["exit", "close", "raise"])
async def test_a_socket_file_that_cannot_be_removed_is_no_trouble_for_the_socket(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    async def live() -> None:
        async with sp.Rep0(listen=f"ipc://{tmp_path}/s") as rep, sp.Req0() as req:
            await req.dial(f"ipc://{tmp_path}/s")
            monkeypatch.setattr(os, "unlink", refuse)
            if how == "close":
                rep.close()
            elif how == "raise":
                raise LookupError("the application's own")

    with trio.fail_after(10):
        if how == "raise":
            with pytest.raises(LookupError, match="the application's own"):
                await live()
        else:
            await live()
    assert "the socket file cannot be removed" in caplog.text


async def test_a_dial_that_fails_in_an_unexpected_way_costs_its_attempt_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_thread(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    async with sp.Rep0(listen="tcp://127.0.0.1:0") as rep, sp.Req0() as req:
        url = rep.url.replace("127.0.0.1", "localhost")  # a name needs a thread, an address none
        monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
        with pytest.raises(sp.DialError, match="can't start new thread"):
            await req.dial(url)
        monkeypatch.undo()
        await req.dial(url)
