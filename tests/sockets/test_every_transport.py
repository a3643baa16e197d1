"""Every protocol over every transport, cooked and raw, with either side listening: bodies up to the
limit and one byte beyond it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import trio

import sp
from tests.transports.conftest import new_url, scheme
from tests.transports.ends import dial, listen
from tests.transports.wire import expect, until

from .kinds import Kind, Talk, everything

__all__ = ["new_url", "scheme"]

LIMIT = 100_000
SIZES = [0, 1, 65_535, 65_536]
PATTERNS: dict[str, tuple[type, type, dict[str, object]]] = {
    "req": (sp.Req0, sp.Rep0, {"resend_after": None}),
    "survey": (sp.Surveyor0, sp.Respondent0, {"deadline": 1000}),
    "push": (sp.Push0, sp.Pull0, {}),
    "pub": (sp.Pub0, sp.Sub0, {}),
    "bus": (sp.Bus0, sp.Bus0, {}),
    "pair0": (sp.Pair0, sp.Pair0, {}),
    "pair1": (sp.Pair1, sp.Pair1, {}),
}
QUICK = {"redial_min": 0.005, "redial_max": 0.005}


def patterns() -> list[Any]:
    cooked = [pytest.param(front, back, options, False, id=name) for name, (front, back, options) in PATTERNS.items()]
    raw = [pytest.param(front, back, {}, True, id=f"raw {name}") for name, (front, back, _) in PATTERNS.items()]
    return [*cooked, *raw, pytest.param(sp.Pair1, sp.Pair1, {"poly": True}, False, id="poly pair1")]


@pytest.mark.slow
@pytest.mark.parametrize("front_listens", [True, False], ids=["front listens", "back listens"])
@pytest.mark.parametrize(("front_class", "back_class", "options", "raw"), patterns())
async def test_bodies_of_any_size_up_to_the_limit_arrive_and_a_larger_one_ends_its_pipe_and_nothing_else(
    new_url: Callable[[], str], front_class: type, back_class: type, options: dict[str, Any], raw: bool, front_listens: bool
) -> None:
    front_kind, back_kind = Kind(front_class, raw=raw), Kind(back_class, raw=raw)
    everywhere = {"poly": True} if "poly" in options else {}
    size = 4 if front_class in (sp.Req0, sp.Surveyor0, sp.Pair1) else 0  # of the header on the wire
    with trio.fail_after(20):
        async with (
            front_kind(**options, **QUICK, max_message_size=LIMIT) as front,
            back_kind(**everywhere, **everything(back_kind), **QUICK, max_message_size=LIMIT) as back,
        ):
            listening, dialing = (front, back) if front_listens else (back, front)
            await dial(dialing, (await listen(listening, new_url())).url)
            await listening.wait_for_peers()
            talk = Talk(front, back)
            for length in [*SIZES, LIMIT - size]:
                body = os.urandom(length)
                assert await talk.ask(body) == body
                if talk.both_ways:
                    assert await talk.answer(body[::-1]) == body[::-1]

            async def too_large(sender: Any, receiver: Any, send: Callable[[bytes], Any]) -> None:
                events, heard = receiver.events(), sender.events()
                pipe = receiver.pipes[0]
                await send(bytes(LIMIT - size + 1))
                detached = await expect(events, sp.EventKind.DETACHED)
                assert detached.pipe is pipe
                assert isinstance(detached.error, sp.MessageTooLarge)
                assert f"{LIMIT + 1} bytes" in detached.reason
                assert receiver.statistics().dropped == {"too large": 1}
                assert (await expect(heard, sp.EventKind.DETACHED)).reason
                await until(lambda: receiver.pipes and sender.pipes)
                assert await talk.ask(b"and on it goes") == b"and on it goes"

            await too_large(front, back, talk.send)
            if talk.both_ways:
                await too_large(back, front, talk.send_answer)
