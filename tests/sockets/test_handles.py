"""The handles that an application holds: one object for each pipe, dialer and listener, wherever it
comes from.
"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import trio

import sp
from tests.transports.ends import client_tls, server_tls
from tests.transports.wire import expect, until


async def test_a_pipe_is_the_same_object_wherever_it_comes_from(url: str) -> None:
    asked: list[sp.Pipe] = []

    def authorize(pipe: sp.Pipe) -> bool:
        asked.append(pipe)
        return True

    async with sp.Rep0(listen=url, tls=server_tls(url), authorize=authorize) as rep, sp.Req0(tls=client_tls(url)) as req:
        events = rep.events()
        dialer = await req.dial(rep.url)
        assert dialer.pipe is req.pipes[0]
        await req.send(b"question")
        message = await rep.receive_message()
        attached = await expect(events, sp.EventKind.ATTACHED)
        await rep.send(b"answer")
        reply = await req.receive_message()
        assert reply.pipe is dialer.pipe
        (pipe,) = rep.pipes
        dialer.close()
        detached = await expect(events, sp.EventKind.DETACHED)
        assert all(other is pipe for other in (*asked, message.pipe, attached.pipe, detached.pipe))


async def test_dial_and_listen_return_the_objects_that_the_socket_lists(url: str) -> None:
    async with sp.Rep0(tls=server_tls(url)) as rep, sp.Req0(tls=client_tls(url)) as req:
        listener = await rep.listen(url)
        dialer = await req.dial(listener.url)
        assert rep.listeners[0] is listener
        assert req.dialers[0] is dialer


async def test_a_pipe_can_be_read_after_its_end(url: str) -> None:
    async with sp.Rep0(listen=url, tls=server_tls(url)) as rep, sp.Req0(tls=client_tls(url)) as req:
        await req.dial(rep.url)
        await req.send(b"question")
        pipe = (await rep.receive_message()).pipe
        assert pipe is not None
        before = {name: getattr(pipe, name) for name in ("id", "url", "peer_protocol", "remote_address", "priority")}
        counts = pipe.statistics()
        pipe.close()
        await until(lambda: not rep.pipes)
        assert {name: getattr(pipe, name) for name in before} == before
        assert pipe.statistics() == counts
        assert (pipe.reason, pipe.unsent) == ("the pipe was closed by the application", 0)
        assert repr(pipe) == f"<Pipe {pipe.id} ended REQ {pipe.remote_address}>"


async def test_a_pipe_whose_peer_has_left_needs_no_garbage_collector(url: str) -> None:
    gc.collect()
    gc.disable()
    try:
        async with sp.Pull0(listen=url, tls=server_tls(url)) as pull:
            async with sp.Push0(tls=client_tls(url)) as push:
                await push.dial(pull.url)
                await push.send(b"message")
                assert await pull.receive() == b"message"
                pipe = weakref.ref(pull.pipes[0])
            await until(lambda: pipe() is None)
    finally:
        gc.enable()


async def test_what_belongs_to_a_socket_cannot_be_pickled_or_copied() -> None:
    async with sp.Rep0(listen="inproc://rep") as rep, sp.Req0() as req, sp.Surveyor0() as surveyor:
        dialer = await req.dial(rep.url)
        requests = rep.requests()
        await req.send(b"question")
        request = await anext(requests)
        assert repr(requests) == "<RequestStream of REP open>"
        things = (request.pipe, dialer, rep.listeners[0], rep.events(), req.context(), requests, request, surveyor.survey(b"who?"))
        for thing in things:
            for make in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match=f"{type(thing).__name__} cannot be pickled or copied: it belongs to one socket"):
                    make(thing)


async def test_a_pipe_that_has_ended_keeps_the_number_of_unsent_messages_and_not_the_messages() -> None:
    async with sp.Push0(listen="tcp://127.0.0.1:0", outbox_bytes=4 << 20) as push, sp.Pull0(inbox_limit=1) as pull:
        await pull.dial(push.url)
        body = bytes(1 << 20)
        with pytest.raises(trio.WouldBlock):
            while True:
                push.send_nowait(body)
        (pipe,) = push.pipes
        pipe.close()
        await until(lambda: not push.pipes)
        assert pipe.unsent == pipe.statistics().outbox == push.statistics().dropped[sp.DropReason.PIPE_CLOSED] > 1
        gc.collect()
        assert not [thing for thing in gc.get_objects() if isinstance(thing, sp.Message) and thing.body is body]


@pytest.mark.parametrize("kind", [sp.Pipe, sp.Dialer, sp.Listener])
def test_a_handle_has_no_state_of_its_own(kind: type) -> None:
    assert set(vars(kind)["__slots__"]) == {"__weakref__", "_worker"}
