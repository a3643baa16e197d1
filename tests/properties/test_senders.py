"""Senders against a model: which calls go on when there is room, in which order, and when a pipe is
congested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import attrs
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sp.core.core import Core
from sp.core.senders import Senders
from sp.errors import StateError
from sp.message import Message
from sp.protocols.engine import Engine, EnginePipe
from sp.testing import FakePipe

PIPES = 2
LIMIT, BYTES = 4, 32


@attrs.frozen
class Call:
    """A message of *size* more bytes by one of six senders: two for any room, and two for each
    pipe's.
    """

    sender: int
    size: int


@attrs.frozen
class Cancel:
    """The one of those that wait at which a count so far ends."""

    pick: int


@attrs.frozen
class Room:
    """That for so many messages, in one pipe."""

    pipe: int
    messages: int


@attrs.frozen
class Fail:
    """A context is closed; None: the socket."""

    sender: int | None


@attrs.frozen
class Refuse:
    """From now on that message finds itself at a wrong moment."""

    pick: int


picks = st.integers(0, 12)
senders = st.integers(0, 2 * PIPES + 1)
calls = st.builds(Call, senders, st.sampled_from([0, 0, 0, 4, 6, 14, 30]))
steps = st.one_of(
    *[calls] * 6,
    *[st.builds(Cancel, picks)] * 3,
    *[st.builds(Room, st.integers(0, PIPES - 1), st.integers(1, 3))] * 2,
    st.builds(Fail, st.one_of(st.none(), senders)),
    st.builds(Refuse, picks),
)


class OneSender:
    """Sends by one pipe, or by any."""

    def __init__(self, pipe: FakePipe | None, pipes: list[FakePipe]) -> None:
        self.pipe = pipe
        self.pipes = pipes if pipe is None else [pipe]
        self.refused: set[bytes] = set()

    def send(self, message: Message) -> bool:
        if message.body in self.refused:
            raise StateError("refused")
        return any(pipe.offer(message) for pipe in self.pipes)

    def pipe_for(self, message: Message) -> EnginePipe | None:
        return self.pipe


class Reporter(Engine):
    """Writes down which pipes are congested."""

    reply_limit = LIMIT
    reply_bytes = BYTES

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, EnginePipe]] = []

    def pipe_congested(self, pipe: EnginePipe) -> None:
        self.told.append(("congested", pipe))

    def pipe_relieved(self, pipe: EnginePipe) -> None:
        self.told.append(("relieved", pipe))


class BareCore:
    """What of a core the senders use."""

    timer_idle = False

    def __init__(self) -> None:
        self.engine = Reporter()
        self.watched: list[object] = []

    def spawn(self, _function: Callable[..., object], *arguments: object) -> None:
        self.watched.append(arguments[0])


def closed() -> Exception:
    return trio.ClosedResourceError("closed")


class Model:
    """Every waiting message by its number: which sender it is of, whose room it needs, and how long
    it is.
    """

    def __init__(self, pipes: list[FakePipe], senders: list[OneSender]) -> None:
        self.pipes = pipes
        self.senders = senders
        self.waiting: dict[int, tuple[int, FakePipe | None, int]] = {}
        self.room = dict.fromkeys(pipes, 0)
        self.sent: dict[FakePipe, list[int]] = {pipe: [] for pipe in pipes}
        self.congested: set[FakePipe] = set()
        self.told: list[tuple[str, EnginePipe]] = []
        self.outcomes: dict[int, str] = {}

    def line(self, pipe: FakePipe | None) -> list[int]:
        return [number for number, (_, needed, _) in self.waiting.items() if needed is pipe]

    def load(self, pipe: FakePipe | None) -> tuple[int, int]:
        line = self.line(pipe)
        return len(line), sum(self.waiting[number][2] for number in line)

    def join(self, number: int, sender: int, size: int) -> None:
        pipe = self.senders[sender].pipe
        self.waiting[number] = (sender, pipe, size)
        count, total = self.load(pipe)
        if pipe is not None and pipe not in self.congested and (count >= LIMIT or total >= BYTES):
            self.congested.add(pipe)
            self.told.append(("congested", pipe))

    def leave(self, number: int, outcome: str) -> None:
        _, pipe, _ = self.waiting.pop(number)
        self.outcomes[number] = outcome
        count, total = self.load(pipe)
        if pipe in self.congested and count <= LIMIT // 2 and total <= BYTES // 2:
            self.congested.remove(pipe)
            self.told.append(("relieved", pipe))

    def fail(self, sender: int) -> None:
        for number in [number for number, (other, _, _) in self.waiting.items() if other == sender]:
            self.leave(number, "closed")

    def serve(self, pipe: FakePipe, refused: set[int]) -> None:
        """The longest waiting goes first of those for this pipe and those for any, until of each
        one finds no room.
        """
        lines: list[FakePipe | None] = [None, pipe]
        while firsts := [self.line(key)[0] for key in lines if self.line(key)]:
            number = min(firsts)
            needed = self.waiting[number][1]
            free = next((other for other in (self.pipes if needed is None else [needed]) if self.room[other]), None)
            if number in refused:
                self.leave(number, "refused")
            elif free is None:
                lines.remove(needed)
            else:
                self.room[free] -= 1
                self.sent[free].append(number)
                self.leave(number, "sent")


class Trial:
    """The senders and the model, side by side."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.core = BareCore()
        self.line = Senders(cast("Core", self.core))
        self.pipes = [FakePipe(0) for _ in range(PIPES)]
        self.senders = [OneSender(pipe, self.pipes) for pipe in (None, *self.pipes) for _ in range(2)]
        self.model = Model(self.pipes, self.senders)
        self.outcomes: dict[int, str] = {}
        self.scopes: list[trio.CancelScope] = []
        self.refused: set[int] = set()

    async def wait(self, number: int, sender: OneSender, message: Message) -> None:
        with self.scopes[number] as scope:
            try:
                await self.line.wait(sender, message)
                self.outcomes[number] = "sent"
            except StateError:
                self.outcomes[number] = "refused"
            except trio.ClosedResourceError:
                self.outcomes[number] = "closed"
        if scope.cancelled_caught:
            self.outcomes[number] = "cancelled"

    async def call(self, sender: int, size: int) -> None:
        number = len(self.scopes)
        body = b"%02d" % number + bytes(size)
        self.scopes.append(trio.CancelScope())
        self.nursery.start_soon(self.wait, number, self.senders[sender], Message(body))
        await trio.testing.wait_all_tasks_blocked()
        self.model.join(number, sender, len(body))

    def fail(self, sender: int) -> None:
        self.line.fail(self.senders[sender], closed)
        self.model.fail(sender)

    def fail_all(self) -> None:
        self.line.fail_all(closed)
        # In the order of the senders that wait for the longest.
        for sender in list(dict.fromkeys(sender for sender, _, _ in self.model.waiting.values())):
            self.model.fail(sender)

    def pick(self, pick: int) -> int:
        return list(self.model.waiting)[pick % len(self.model.waiting)]

    async def do(self, step: object) -> None:
        match step:
            case Call(sender, size):
                await self.call(sender, size)
            case Room(place, messages):
                pipe = self.pipes[place]
                pipe.room = self.model.room[pipe] = self.model.room[pipe] + messages
                self.line.serve(pipe)
                self.model.serve(pipe, self.refused)
            case Fail(None):
                self.fail_all()
            case Fail(int(sender)):
                self.fail(sender)
            case Cancel(pick) if self.model.waiting:
                number = self.pick(pick)
                self.scopes[number].cancel()
                self.model.leave(number, "cancelled")
            case Refuse(pick) if self.model.waiting:
                number = self.pick(pick)
                sender, _, size = self.model.waiting[number]
                self.senders[sender].refused.add(b"%02d" % number + bytes(size - 2))
                self.refused.add(number)
            case _:
                pass
        await trio.testing.wait_all_tasks_blocked()

    def check(self) -> None:
        """It is as the model says, and nothing is left behind."""
        model, line = self.model, self.line
        assert self.outcomes == model.outcomes
        assert {pipe: [int(body[:2]) for body in pipe.bodies] for pipe in self.pipes} == model.sent
        lines: dict[Any, tuple[int, int]] = {key: (len(each.waiting), each.bytes) for key, each in line.lines.items()}
        assert lines == {pipe: model.load(pipe) for pipe in (None, *self.pipes) if model.line(pipe)}
        assert {key for key, each in line.lines.items() if each.relief is not None} == model.congested
        assert self.core.engine.told == model.told
        assert self.core.watched == [pipe for what, pipe in model.told if what == "congested"]
        assert len(line._by_sender) == len({sender for sender, _, _ in model.waiting.values()})


async def run(script: Sequence[object]) -> None:
    async with trio.open_nursery() as nursery:
        trial = Trial(nursery)
        for step in script:
            await trial.do(step)
            trial.check()
        await trial.do(Fail(None))
        trial.check()
    assert not trial.line.lines


@settings(deadline=None, max_examples=200)
@example([*[Call(2, 0)] * LIMIT, *[Cancel(0)] * LIMIT])
@example([Call(2, BYTES - 2), Call(2, BYTES // 2 - 1), Cancel(0), Cancel(0)])
@given(st.lists(steps, min_size=20, max_size=60))
def test_waiting_calls_proceed_in_order_as_soon_as_there_is_room(script: list[object]) -> None:
    trio.run(run, script)
