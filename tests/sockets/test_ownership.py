"""A socket belongs to the tasks of the trio run that entered it.

Any other caller is told what to do, and does no harm.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import outcome
import pytest
import trio
import trio.testing

import sp
from tests.sockets.conftest import name
from tests.sockets.kinds import COOKED, RAW, Kind, Talk, each, talking
from tests.test_exports import INTERNAL

__all__ = ["name"]

# What an application may call, by name, and with what.
CALLS: dict[str, tuple[Any, ...]] = {
    "__aenter__": (),
    "__aexit__": (None, None, None),
    "__anext__": (),
    "aclose": (),
    "close": (),
    "context": (),
    "dial": ("inproc://nobody",),
    "drain": (),
    "events": (),
    "listen": ("inproc://nobody-else",),
    "receive": (),
    "receive_many": (),
    "receive_message": (),
    "receive_nowait": (),
    "reload": (),
    "reply": (b"a reply from elsewhere",),
    "request": (b"a request from elsewhere",),
    "send": (b"from elsewhere",),
    "send_many": ([b"from elsewhere"],),
    "send_message": (sp.Message(b"from elsewhere", b"\x80\0\0\7"),),
    "send_nowait": (b"from elsewhere",),
    "subscribe": (b"elsewhere",),
    "survey": (b"a survey from elsewhere",),
    "unsubscribe": (b"",),
    "wait_for_peers": (5,),
}
READERS = {"statistics", "__aiter__", "__repr__", "requests", "surveys"}
"""They change nothing.

What ``requests`` and ``surveys`` return is refused when it is asked for the first one.
"""


def calls_of(thing: object) -> Iterator[str]:
    """Find the methods of *thing* that change something.

    A method that none of the lists above names fails the test.
    """
    internal = INTERNAL.get(type(thing).__name__, ())
    for method in dir(type(thing)):
        if method in internal or method in READERS or not callable(inspect.getattr_static(type(thing), method)):
            continue
        if method == "__aenter__" and not isinstance(thing, sp.Socket):
            continue  # trio's own, which returns the object
        if method in CALLS:
            yield method
        else:
            assert method.startswith("_"), f"{type(thing).__name__}.{method} is new: add it to CALLS, or to READERS if it changes nothing"


@asynccontextmanager
async def everything_of(kind: Kind, url: str) -> AsyncIterator[tuple[Talk, list[object]]]:
    """Connect a socket of *kind*, and list all objects of it that an application can get."""
    async with talking(kind, url) as talk:
        ours, theirs = talk.ours, talk.theirs
        if not kind.raw and kind.socket in (sp.Rep0, sp.Respondent0):
            await talk.ask(b"a question")
        events = ours.events()
        things: list[object] = [ours, theirs.dialers[0], *ours.pipes, *ours.listeners, events]
        if not kind.raw:
            if hasattr(ours, "context"):
                things.append(ours.context())
            if hasattr(ours, "requests"):
                await talk.ask(b"another question")
                things += [ours.requests(), sp.Request(ours.context(), talk._asked)]
            if hasattr(ours, "surveys"):
                things.append(ours.surveys())
            if hasattr(ours, "survey"):
                things.append(ours.survey(b"a survey"))
        yield talk, things
        await drained(ours)


async def drained(socket: Any) -> None:
    """Wait until all tasks have nothing to do."""
    await trio.testing.wait_all_tasks_blocked()


def finish(call: Callable[[], Any]) -> object:
    """Call without a task.  A coroutine runs until it waits for something."""
    result = call()
    if inspect.iscoroutine(result):
        try:
            cast("Coroutine[Any, Any, object]", result).send(None)
        except StopIteration as end:
            return cast("object", end.value)
        finally:
            result.close()
    return result


async def from_a_thread(call: Callable[[], Any]) -> None:
    await trio.to_thread.run_sync(finish, call)


async def from_another_run(call: Callable[[], Any]) -> None:
    async def main() -> None:
        with trio.fail_after(5):
            result = call()
            if inspect.isawaitable(result):
                await result

    await trio.to_thread.run_sync(trio.run, main)


async def from_asyncio(call: Callable[[], Any]) -> None:
    async def main() -> None:
        result = call()
        if inspect.isawaitable(result):
            await result

    await trio.to_thread.run_sync(lambda: asyncio.run(main()))


async def from_no_task(call: Callable[[], Any]) -> None:
    outcomes: list[outcome.Outcome[object]] = []

    class Between(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:
            if not outcomes:
                outcomes.append(outcome.capture(finish, call))

    instrument = Between()
    trio.lowlevel.add_instrument(instrument)
    await trio.testing.wait_all_tasks_blocked()
    trio.lowlevel.remove_instrument(instrument)
    outcomes[0].unwrap()


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [from_a_thread, from_another_run, from_asyncio, from_no_task])
@each([*COOKED, *RAW])
async def test_every_call_from_elsewhere_is_refused_says_what_to_do_and_changes_nothing(
    kind: Kind, elsewhere: Callable[[Callable[[], Any]], Coroutine[Any, Any, None]], name: str
) -> None:
    advice = "trio_token.run_sync_soon(...)" if elsewhere is from_no_task else "trio.from_thread.run_sync(...)"
    async with everything_of(kind, name) as (talk, things):
        ours, theirs = talk.ours, talk.theirs
        before = ours.statistics(), theirs.statistics(), ours.dialers, ours.listeners, [repr(thing) for thing in things]
        for thing in things:
            for method in calls_of(thing):
                with pytest.raises(RuntimeError) as caught:
                    await elsewhere(partial(getattr(thing, method), *CALLS[method]))
                assert advice in str(caught.value), f"{method} of {thing!r}"
        await drained(ours)
        after = ours.statistics(), theirs.statistics(), ours.dialers, ours.listeners, [repr(thing) for thing in things]
        assert after == before
        with trio.fail_after(5):
            if kind.socket in (sp.Rep0, sp.Respondent0) and not kind.raw:
                assert await talk.answer(b"an answer") == b"an answer"
            assert await talk.ask(b"still whole") == b"still whole"
            if talk.both_ways:
                assert await talk.answer(b"both ways") == b"both ways"


async def test_the_advice_in_the_error_works(name: str) -> None:
    token = trio.lowlevel.current_trio_token()
    async with talking(Kind(sp.Push0), name) as talk:
        push, pull = talk.ours, talk.theirs

        def in_the_thread() -> None:
            trio.from_thread.run_sync(push.send_nowait, b"run_sync")
            trio.from_thread.run(push.send, b"run")

        with trio.fail_after(5):
            await trio.to_thread.run_sync(in_the_thread)
            assert [await pull.receive(), await pull.receive()] == [b"run_sync", b"run"]

            async def hand_over() -> None:
                token.run_sync_soon(push.send_nowait, b"soon")

            await from_no_task(hand_over)
            assert await pull.receive() == b"soon"


async def test_an_asyncio_program_beside_trio_in_one_thread_is_told_what_to_do() -> None:
    refused: list[str] = []

    async def beside(push: sp.Push0) -> None:
        for call in (push.send, push.send_nowait):
            try:
                result = call(b"from asyncio")
                if inspect.isawaitable(result):
                    await result
            except RuntimeError as error:
                refused.append(str(error))

    async def host() -> None:
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def guest() -> None:
            async with sp.Push0() as push:
                token = trio.lowlevel.current_trio_token()
                finished = trio.Event()
                task = loop.create_task(beside(push))
                task.add_done_callback(lambda _: token.run_sync_soon(finished.set))
                await finished.wait()

        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=lambda _: done.set(),
        )
        await done.wait()

    await trio.to_thread.run_sync(lambda: asyncio.run(host()))
    assert len(refused) == 2
    assert all("trio_token.run_sync_soon(...)" in text for text in refused)


@pytest.mark.parametrize("elsewhere", [from_a_thread, from_another_run])
async def test_a_socket_accepts_any_caller_before_it_is_entered_and_after_its_end(
    elsewhere: Callable[[Callable[[], Any]], Coroutine[Any, Any, None]],
) -> None:
    new = sp.Sub0()
    await elsewhere(lambda: new.subscribe(b"a"))
    await elsewhere(new.close)
    async with sp.Sub0(topics=b"") as old:
        events, context = old.events(), old.context()
    for call in (old.close, context.close, lambda: old.unsubscribe(b"")):
        await elsewhere(call)
    if elsewhere is from_another_run:
        await elsewhere(old.aclose)
        with pytest.raises(StopAsyncIteration):
            await elsewhere(lambda: anext(events))


async def test_a_thread_may_look(name: str) -> None:
    async with talking(Kind(sp.Req0), name) as talk:
        req = talk.ours

        def look() -> list[object]:
            return [req.statistics(), req.pipes, req.dialers, req.listeners, repr(req), repr(req.pipes), req.pipes[0].statistics()]

        assert await trio.to_thread.run_sync(look) == look()


@pytest.mark.parametrize(("one", "other"), [(sp.Sub0, sp.Pub0), (sp.Surveyor0, sp.Respondent0)])
async def test_a_thread_may_look_while_pipes_and_contexts_come_and_go(one: type[sp.Sub0], other: type[sp.Pub0], name: str) -> None:
    over = False
    looks = 0

    def look() -> None:
        nonlocal looks
        while not over:
            _ = socket.statistics(), socket.pipes, socket.dialers, socket.listeners, repr(socket), [dialer.pipe for dialer in dialers]
            looks += 1

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        async with one() as socket, other(listen=name) as peer, trio.open_nursery() as nursery:
            dialers = [await socket.dial(name) for _ in range(10)]
            nursery.start_soon(trio.to_thread.run_sync, look)
            try:
                for _ in range(30):
                    contexts = [socket.context() for _ in range(10)]
                    for dialer in dialers:
                        dialer.close()
                    dialers = [await socket.dial(name) for _ in range(10)]
                    await peer.wait_for_peers()
                    for context in contexts:
                        context.close()
            finally:
                over = True
    finally:
        sys.setswitchinterval(before)
    assert looks
