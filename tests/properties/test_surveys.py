"""SURVEYOR against a model that keeps a list of answers for each context and looks at the clock
each time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sp.errors import StateError
from sp.message import Message
from sp.options import SocketOptions
from sp.protocols.surveyor import SurveyorContext, SurveyorEngine
from sp.testing import FakePipe

LIMIT = 4

picks = st.integers(0, 1000)


class Over(Exception):
    """The time of a survey is up."""


class Small(int):
    """A supply of ids so small that it comes round."""

    def __add__(self, other: int) -> Small:
        return Small((int(self) + other) % 6)

    def __and__(self, other: int) -> Small:
        return self


class SmallRandom(Random):
    def getrandbits(self, k: int, /) -> int:
        return Small(super().getrandbits(k) % 6)


class Asker:
    """The model of a context."""

    def __init__(self, context: SurveyorContext, seconds: float) -> None:
        self.context, self.seconds = context, seconds
        self.id: bytes | None = None
        self.deadline = -math.inf
        self.answers: list[bytes] = []
        self.losing = False
        # The errors that a waiting task got; None: no task waits.
        self.told: list[str] | None = None

    def is_open(self, now: float) -> bool:
        return self.id is not None and now < self.deadline

    def wait(self) -> None:
        self.told = []
        self.context.mailbox.wake = lambda: self.tell("answer")
        self.context.mailbox.fail = self.fail

    def fail(self, error: Callable[[], Exception]) -> None:
        assert isinstance(error(), Over)
        self.tell("over")

    def tell(self, what: str) -> None:
        assert self.told is not None
        self.told.append(what)

    def rest(self) -> list[str] | None:
        told, self.told = self.told, None
        self.context.mailbox.wake = self.context.mailbox.fail = None
        return told


class SurveyMachine(RuleBasedStateMachine):
    """Surveys begin, are answered in time, late, twice and by strangers, and end."""

    @initialize(seed=picks)
    def begin(self, seed: int) -> None:
        self.now = 0.0
        self.engine = SurveyorEngine(SocketOptions(inbox_limit=LIMIT), SmallRandom(seed), lambda: self.now, Over)
        self.pipes = [FakePipe() for _ in range(3)]
        for pipe in self.pipes:
            self.engine.pipe_attached(pipe)
        self.askers: list[Asker] = []
        self.ids: list[bytes] = []
        self.late = self.lost = self.unread = 0
        self.number = 0

    def pick(self, pick: int) -> Asker:
        return self.askers[pick % len(self.askers)]

    @precondition(lambda self: len(self.askers) < 5)
    @rule(seconds=st.sampled_from([1.0, 2.0, 5.0]))
    def open(self, seconds: float) -> None:
        self.askers.append(Asker(self.engine.open_context(seconds), seconds))

    @precondition(lambda self: self.askers)
    @rule(pick=picks)
    def close(self, pick: int) -> None:
        asker = self.askers.pop(pick % len(self.askers))
        asker.rest()
        self.unread += len(asker.answers)
        asker.context.close()

    @precondition(lambda self: self.askers)
    @rule(pick=picks)
    def ask(self, pick: int) -> None:
        asker = self.pick(pick)
        was_open = asker.is_open(self.now)
        assert asker.context.send(Message(b"who?"))
        assert asker.rest() in (None, ["over"] if was_open else [])
        (header,) = {pipe.taken[-1].header for pipe in self.pipes}
        assert header[0] & 0x80
        assert header not in [other.id for other in self.askers if other is not asker and other.is_open(self.now)]
        asker.id, asker.deadline = header, self.now + asker.seconds
        self.unread += len(asker.answers)
        asker.answers, asker.losing = [], False
        self.ids.append(header)

    @precondition(lambda self: self.ids)
    @rule(which=picks, pick=picks, overdue=st.booleans(), times=st.integers(1, 5))
    def answer(self, which: int, pick: int, overdue: bool, times: int) -> None:
        header = self.ids[-1 - which % len(self.ids)]
        pipe = self.pipes[pick % 3]
        for _ in range(times):
            self.number += 1
            self.answer_once(pipe, header, b"%d" % self.number, overdue=overdue)

    def answer_once(self, pipe: FakePipe, header: bytes, body: bytes, *, overdue: bool) -> None:
        asker = next((asker for asker in self.askers if asker.id == header and asker.is_open(self.now)), None)
        taken = self.engine.message_received(pipe, Message(body, header))
        if asker is None:
            assert taken
            self.late += 1
            return
        full = len(asker.answers) == LIMIT
        assert taken is (not full or asker.losing)
        if taken and not full:
            asker.answers.append(body)
            told = asker.rest()
            assert told in (None, ["answer"])
        elif taken or overdue:
            self.lost += 1
        if not taken and overdue:
            self.engine.force_message(pipe, Message(body, header))
            asker.losing = True

    @rule(header=st.binary(min_size=4, max_size=4), pick=picks)
    def a_stranger_answers(self, header: bytes, pick: int) -> None:
        self.answer_once(self.pipes[pick % 3], header, b"", overdue=False)

    @precondition(lambda self: self.askers)
    @rule(pick=picks, times=st.integers(1, 5))
    def receive(self, pick: int, times: int) -> None:
        asker = self.pick(pick)
        for _ in range(times):
            expected: object = asker.answers.pop(0) if asker.answers else None
            if expected is None and not asker.is_open(self.now):
                expected = StateError if asker.id is None else Over
            if len(asker.answers) <= LIMIT // 2:
                asker.losing = False
            assert self.outcome(asker.context) == expected

    def outcome(self, context: SurveyorContext) -> object:
        try:
            message = context.receive()
        except (StateError, Over) as error:
            return type(error)
        return message and message.body

    @precondition(lambda self: self.askers)
    @rule(pick=picks)
    def wait(self, pick: int) -> None:
        asker = self.pick(pick)
        if asker.is_open(self.now) and not asker.answers:
            asker.wait()

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]), idle=st.booleans())
    def time_passes(self, seconds: float, idle: bool) -> None:
        were_open = [asker for asker in self.askers if asker.is_open(self.now)]
        deadline = self.engine.next_deadline()
        self.now += seconds
        if idle and (deadline is None or deadline > self.now):
            return  # the shell need not call
        self.engine.deadline_reached(self.now)
        for asker in were_open:
            if not asker.is_open(self.now):
                assert asker.rest() in (None, ["over"])
            else:
                assert not asker.told
        assert self.engine.next_deadline() == min((a.deadline for a in self.askers if a.is_open(self.now)), default=None)

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        engine = self.engine
        assert engine.queued() == sum(len(asker.answers) for asker in self.askers)
        assert engine.inbox_dropped() == self.lost
        assert +engine.dropped == +Counter({"late answer": self.late, "unread": self.unread})
        first = min((asker.deadline for asker in self.askers if asker.is_open(self.now)), default=math.inf)
        deadline = engine.next_deadline()
        assert (math.inf if deadline is None else deadline) <= first

    def teardown(self) -> None:
        self.time_passes(100.0, idle=False)
        for pick in range(len(self.askers)):
            self.receive(pick, LIMIT + 2)
        self.it_is_as_the_model_says()
        assert self.engine.next_deadline() is None


TestSurvey = SurveyMachine.TestCase
TestSurvey.settings = settings(max_examples=100, deadline=None)
