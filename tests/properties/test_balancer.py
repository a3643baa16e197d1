"""Balancer against a list that is searched from the beginning each time."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sp.message import Message
from sp.protocols.balancer import Balancer
from sp.testing import FakePipe

picks = st.integers(0, 1000)
rooms = st.sampled_from([None, 0, 1, 2, 5])


class Pipe(FakePipe):
    asked = 0

    def offer(self, message: Message) -> bool:
        self.asked += 1
        return super().offer(message)


class Model:
    """All pipes in one line, the next in turn first; a pipe that takes a message, or finds room
    again, goes to the end.
    """

    def __init__(self) -> None:
        self.line: list[Pipe] = []
        self.left_out: list[Pipe] = []

    def offer(self) -> Pipe | None:
        for pipe in sorted(self.line, key=lambda pipe: pipe.priority):
            self.line.remove(pipe)
            if pipe.room != 0:
                self.line.append(pipe)
                return pipe
            self.left_out.append(pipe)
        return None

    def has_room(self, pipe: Pipe) -> None:
        if pipe in self.left_out:
            self.left_out.remove(pipe)
            self.line.append(pipe)

    def remove(self, pipe: Pipe) -> None:
        (self.line if pipe in self.line else self.left_out).remove(pipe)


class BalancerMachine(RuleBasedStateMachine):
    """Pipes come, go, fill and empty; the model knows each time whose turn it is."""

    @initialize(levels=st.integers(1, 3))
    def begin(self, levels: int) -> None:
        self.levels = [8, 1, 16][:levels]
        self.balancer, self.model = Balancer(), Model()
        self.pipes: list[Pipe] = []

    @precondition(lambda self: len(self.pipes) < 6)
    @rule(room=rooms, pick=picks)
    def add(self, room: int | None, pick: int) -> None:
        pipe = Pipe(room, self.levels[pick % len(self.levels)])
        self.pipes.append(pipe)
        self.balancer.add(pipe)
        self.model.line.append(pipe)

    @precondition(lambda self: self.pipes)
    @rule(pick=picks)
    def remove(self, pick: int) -> None:
        pipe = self.pipes.pop(pick % len(self.pipes))
        self.balancer.remove(pipe)
        self.model.remove(pipe)

    @precondition(lambda self: self.pipes)
    @rule(pick=picks, room=rooms, told=st.booleans())
    def room(self, pick: int, room: int | None, told: bool) -> None:
        pipe = self.pipes[pick % len(self.pipes)]
        pipe.room = room
        if told:
            self.balancer.has_room(pipe)
            self.model.has_room(pipe)

    @rule(times=st.integers(1, 7))
    def offer(self, times: int) -> None:
        for _ in range(times):
            asked = sum(pipe.asked for pipe in self.pipes)
            left_out = len(self.model.left_out)
            taker = self.model.offer()
            assert self.balancer.offer(Message(b"")) is taker
            turned_down = len(self.model.left_out) - left_out
            assert sum(pipe.asked for pipe in self.pipes) - asked == turned_down + (taker is not None), "nobody is asked in vain"

    @rule(count=st.integers(0, 7))
    def offer_many(self, count: int) -> None:
        before = {pipe: len(pipe.taken) for pipe in self.pipes}
        rooms = {pipe: pipe.room for pipe in self.pipes}
        messages = [Message(b"%d" % number) for number in range(count)]
        takers: dict[Pipe, list[bytes]] = {}
        for message in messages:
            taker = self.model.offer()
            if taker is None:
                break
            takers.setdefault(taker, []).append(message.body)
            if taker.room is not None:
                taker.room -= 1
        for pipe, room in rooms.items():
            pipe.room = room
        assert self.balancer.offer_many(messages) == sum(map(len, takers.values()))
        assert {pipe: pipe.bodies[before[pipe] :] for pipe in self.pipes if len(pipe.taken) > before[pipe]} == takers

    @invariant()
    def nobody_who_was_left_out_is_asked(self) -> None:
        assert sorted(map(id, self.model.line + self.model.left_out)) == sorted(map(id, self.pipes))

    def teardown(self) -> None:
        for pipe in self.pipes:
            pipe.room = None
            self.balancer.has_room(pipe)
            self.model.has_room(pipe)
        self.offer(2 * len(self.pipes))
        best = [pipe for pipe in self.pipes if pipe.priority == min(pipe.priority for pipe in self.pipes)]
        before = {pipe: len(pipe.taken) for pipe in self.pipes}
        self.offer(3 * len(best))
        assert {pipe: len(pipe.taken) - before[pipe] for pipe in self.pipes if len(pipe.taken) > before[pipe]} == dict.fromkeys(best, 3)


TestBalancer = BalancerMachine.TestCase
TestBalancer.settings = settings(max_examples=80, deadline=None)
