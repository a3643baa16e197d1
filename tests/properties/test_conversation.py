"""REQ joined to REP by pipes that delay, duplicate and die: every answer is to the latest question, and none is missing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from random import Random
from typing import cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sp.errors import RequestLost, RequestReplaced, StateError
from sp.message import Message
from sp.options import SocketOptions
from sp.pipe import Pipe
from sp.protocols.rep import RepContext, RepEngine
from sp.protocols.req import ReqContext, ReqEngine
from sp.testing import FakePipe

picks = st.integers(0, 1000)


class Wire:
    """A pipe's two ends; what one was offered is under way to the other."""

    def __init__(self, room: int) -> None:
        self.req, self.rep = FakePipe(room), FakePipe(room)


class Asker:
    """The model of a REQ context: the question whose answer it may get, if there is one."""

    def __init__(self, context: ReqContext) -> None:
        self.context = context
        self.question: bytes | None = None
        self.carrier: FakePipe | None = None
        self.replaced = self.lost = False

    @property
    def answer(self) -> bytes | None:
        return None if self.question is None else b"re: " + self.question

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
            self.context.mailbox.fail = self.fail

    def fail(self, error: Callable[[], Exception]) -> None:
        if isinstance(error(), RequestReplaced):
            assert self.replaced
        else:
            assert isinstance(error(), RequestLost)
            assert self.lost
            self.question, self.lost = None, False
        self.context.mailbox.wake = self.context.mailbox.fail = None

    def collect(self) -> None:
        try:
            message = self.context.receive()
        except StateError:
            assert self.question is None
        except RequestLost:
            assert self.lost
            self.question, self.lost = None, False
        else:
            assert self.question is not None
            if message is None:
                return
            assert message.body == self.answer
            self.question = None
        self.context.mailbox.wake = self.context.mailbox.fail = None


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
        if self.answer is not None and self.context.send(Message(self.answer)):
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
        self.carriers: dict[bytes, Wire] = {}
        self.askers = [Asker(self.req.open_context()) for _ in range(askers)]
        self.answerers = [Answerer(self.rep.open_context()) for _ in range(answerers)]
        self.questions = count(1)

    @precondition(lambda self: len(self.wires) < 3)
    @rule(room=st.integers(1, 3))
    def connect(self, room: int) -> None:
        wire = Wire(room)
        self.wires.append(wire)
        self.rep.pipe_attached(wire.rep)
        self.req.pipe_attached(wire.req)

    @precondition(lambda self: self.wires)
    @rule(pick=picks)
    def cut(self, pick: int) -> None:
        wire = self.wires.pop(pick % len(self.wires))
        for asker in self.askers:
            asker.lost = asker.lost or (self.resend_after is None and asker.carrier is wire.req)
        self.rep.pipe_detached(wire.rep)
        self.req.pipe_detached(wire.req)

    @precondition(lambda self: any(wire.req.taken for wire in self.wires))
    @rule(pick=picks)
    def a_request_arrives(self, pick: int) -> None:
        carrying = [wire for wire in self.wires if wire.req.taken]
        wire = carrying[pick % len(carrying)]
        request = wire.req.taken[0]
        if self.rep.message_received(wire.rep, Message(request.body, request.header, cast("Pipe", wire.rep))):
            wire.req.discard_oldest()
            self.req.pipe_has_room(wire.req)

    @precondition(lambda self: any(wire.rep.taken for wire in self.wires))
    @rule(pick=picks, times=st.integers(1, 2))
    def a_reply_arrives(self, pick: int, times: int) -> None:
        carrying = [wire for wire in self.wires if wire.rep.taken]
        wire = carrying[pick % len(carrying)]
        reply = wire.rep.taken[0]
        for _ in range(times):
            assert self.req.message_received(wire.req, Message(reply.body, reply.header, cast("Pipe", wire.req)))
        wire.rep.discard_oldest()
        assert not any(asker.waits and reply.body == asker.answer for asker in self.askers), "who waits is told"

    @rule(pick=picks)
    def serve(self, pick: int) -> None:
        self.answerers[pick % len(self.answerers)].serve()

    @precondition(lambda self: self.wires)
    @rule(pick=picks)
    def ask(self, pick: int) -> None:
        self.askers[pick % len(self.askers)].ask(b"%d" % next(self.questions), self.wires)

    @precondition(lambda self: self.wires)
    @rule()
    def everybody_asks(self) -> None:
        for asker in self.askers:
            asker.ask(b"%d" % next(self.questions), self.wires)

    @rule(pick=picks)
    def collect(self, pick: int) -> None:
        self.askers[pick % len(self.askers)].collect()

    @rule(pick=picks)
    def wait(self, pick: int) -> None:
        self.askers[pick % len(self.askers)].wait()

    @rule(seconds=st.sampled_from([1.0, 30.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.req.deadline_reached(self.now)

    @invariant()
    def nothing_is_dropped_but_what_nobody_waits_for(self) -> None:
        assert self.req.dropped.keys() <= {"stale reply"}
        assert self.rep.dropped.keys() <= {"requester gone"}
        assert self.rep.queued() <= 2

    def teardown(self) -> None:
        """As long as there is a pipe, every question gets its answer, without another word from the clock."""
        if not self.wires:
            self.connect(1)
        while self.rep.queued() or any(wire.req.taken or wire.rep.taken for wire in self.wires):
            for pick in range(len(self.wires)):
                if any(wire.req.taken for wire in self.wires):
                    self.a_request_arrives(pick)
                if any(wire.rep.taken for wire in self.wires):
                    self.a_reply_arrives(pick, 1)
            for answerer in self.answerers:
                answerer.serve()
        for asker in self.askers:
            asker.collect()
            assert asker.question is None


class OnceMachine(ConversationMachine):
    """The same where a request is never sent again, and lost with its pipe."""

    resend_after = None

    @invariant()
    def nothing_is_sent_twice(self) -> None:
        for wire in self.wires:
            headers = [message.header for message in wire.req.taken]
            assert len(headers) == len(set(headers))
            assert all(self.carriers.setdefault(header, wire) is wire for header in headers)


often = settings(max_examples=200, deadline=None)
TestConversation = ConversationMachine.TestCase
TestConversationWithResendingOff = OnceMachine.TestCase
TestConversation.settings = TestConversationWithResendingOff.settings = often
