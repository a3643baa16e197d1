"""REQ joined to REP by pipes that delay, duplicate and die: every answer is to the latest question, and none is missing."""

from __future__ import annotations

from itertools import count
from random import Random
from typing import cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sp.errors import RequestLost, RequestReplaced, StateError
from sp.message import Message
from sp.options import SocketOptions
from sp.pipe import Pipe
from sp.protocols.rep import RepContext, RepEngine
from sp.protocols.req import ReqContext, ReqEngine
from sp.testing import FakePipe

ROOM = 2

picks = st.integers(0, 1000)


class Wire:
    """A pipe's two ends; what one was offered is under way to the other."""

    def __init__(self) -> None:
        self.req, self.rep = FakePipe(ROOM), FakePipe(ROOM)


class Asker:
    """The model of a REQ context: the question whose answer it may get, if there is one."""

    def __init__(self, context: ReqContext) -> None:
        self.context = context
        self.question: bytes | None = None
        self.carrier: FakePipe | None = None
        self.replaced = self.lost = False

    @property
    def waits(self) -> bool:
        return self.context.mailbox.wake is not None

    def ask(self, question: bytes, wires: list[Wire]) -> None:
        self.replaced = self.waits
        if self.context.send(Message(question)):
            assert not self.waits, "who waited was told"
            self.question, self.lost = question, False
            self.carrier = next(wire.req for wire in wires if question in wire.req.bodies)
        self.replaced = False

    def wait(self) -> None:
        self.collect()
        if self.question is not None:
            self.context.mailbox.wake = self.collect

    def collect(self) -> None:
        try:
            message = self.context.receive()
        except StateError:
            assert self.question is None
        except RequestReplaced:
            assert self.replaced
        except RequestLost:
            assert self.lost
            self.question, self.lost = None, False
        else:
            assert self.question is not None
            if message is None:
                return
            assert message.body == b"re: " + self.question
            self.question = None
        self.context.mailbox.wake = None


class Answerer:
    """A REP context, and the answer that it has not got rid of."""

    def __init__(self, context: RepContext) -> None:
        self.context = context
        self.answer: bytes | None = None

    def serve(self) -> None:
        if self.answer is None:
            request = self.context.receive()
            if request is not None:
                self.answer = b"re: " + request.body
        elif self.context.send(Message(self.answer)):
            self.answer = None


class ConversationMachine(RuleBasedStateMachine):
    """Two sockets and what may happen between them."""

    resend_after: float | None = 60.0

    @initialize(seed=picks, askers=st.integers(1, 4), answerers=st.integers(1, 3))
    def begin(self, seed: int, askers: int, answerers: int) -> None:
        self.now = 0.0
        self.req = ReqEngine(self.resend_after, Random(seed), lambda: self.now)
        self.rep = RepEngine(SocketOptions(inbox_limit=2), ttl=8)
        self.wires: list[Wire] = []
        self.askers = [Asker(self.req.open_context()) for _ in range(askers)]
        self.answerers = [Answerer(self.rep.open_context()) for _ in range(answerers)]
        self.questions = count(1)

    @rule()
    def connect(self) -> None:
        wire = Wire()
        self.wires.append(wire)
        self.rep.pipe_attached(wire.rep)
        self.req.pipe_attached(wire.req)

    @rule(pick=picks)
    def cut(self, pick: int) -> None:
        if self.wires:
            wire = self.wires.pop(pick % len(self.wires))
            self.rep.pipe_detached(wire.rep)
            for asker in self.askers:
                asker.lost = asker.lost or (self.resend_after is None and asker.carrier is wire.req)
            self.req.pipe_detached(wire.req)

    @rule(pick=picks)
    def deliver_request(self, pick: int) -> None:
        wire = self.wires[pick % len(self.wires)] if self.wires else None
        if wire is not None and wire.req.taken:
            request = wire.req.taken[0]
            if self.rep.message_received(wire.rep, Message(request.body, request.header, cast("Pipe", wire.rep))):
                wire.req.discard_oldest()
                self.req.pipe_has_room(wire.req)

    @rule(pick=picks, times=st.integers(1, 2))
    def deliver_reply(self, pick: int, times: int) -> None:
        wire = self.wires[pick % len(self.wires)] if self.wires else None
        if wire is not None and wire.rep.taken:
            for _ in range(times):
                reply = wire.rep.taken[0]
                assert self.req.message_received(wire.req, Message(reply.body, reply.header, cast("Pipe", wire.req)))
            wire.rep.discard_oldest()

    @rule(pick=picks)
    def serve(self, pick: int) -> None:
        self.answerers[pick % len(self.answerers)].serve()

    @rule(pick=picks)
    def ask(self, pick: int) -> None:
        self.askers[pick % len(self.askers)].ask(b"%d" % next(self.questions), self.wires)

    @rule(pick=picks)
    def collect(self, pick: int) -> None:
        self.askers[pick % len(self.askers)].collect()

    @rule(pick=picks)
    def wait(self, pick: int) -> None:
        self.askers[pick % len(self.askers)].wait()

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.req.deadline_reached(self.now)

    @invariant()
    def nothing_is_dropped_but_what_nobody_waits_for(self) -> None:
        assert self.req.dropped.keys() <= {"stale reply"}
        assert self.rep.dropped.keys() <= {"requester gone"}
        assert self.rep.queued() <= 2

    def teardown(self) -> None:
        """With a pipe and without another word from the clock, every question gets its answer."""
        self.connect()
        for _ in range(100):
            for pick in range(len(self.wires)):
                self.deliver_request(pick)
                self.deliver_reply(pick, 1)
            for answerer in self.answerers:
                answerer.serve()
        for asker in self.askers:
            asker.collect()
            assert asker.question is None


class OnceMachine(ConversationMachine):
    """The same where a request is never sent again, and lost with its pipe."""

    resend_after = None


TestConversation = ConversationMachine.TestCase
TestConversationWithResendingOff = OnceMachine.TestCase
