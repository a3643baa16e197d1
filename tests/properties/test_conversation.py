"""Engines joined by pipes that delay, duplicate and die.

REQ and REP, also with a device between them: every answer is to the latest question, and none is
missing.  SURVEYOR and RESPONDENT:  every answer that comes in time is received, by who asked, and
no other.  All that count no turns: what is sent is received, once and in order, or lost with a
pipe, or dropped and counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any, ClassVar, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sp.errors import PipeRefused, RequestLost, RequestReplaced, StateError
from sp.message import Message
from sp.options import DropPolicy, SocketOptions
from sp.pipe import Pipe
from sp.protocols.backtrace import backtrace_end, word_of
from sp.protocols.bus import BusEngine, RawBusEngine
from sp.protocols.pair0 import Pair0Engine
from sp.protocols.pair1 import Pair1Engine, PolyPair1Engine, RawPair1Engine
from sp.protocols.pub import PubEngine
from sp.protocols.pull import PullEngine
from sp.protocols.push import PushEngine
from sp.protocols.rep import RawRepEngine, RepContext, RepEngine
from sp.protocols.req import RawReqEngine, ReqContext, ReqEngine
from sp.protocols.respondent import RawRespondentEngine, RespondentEngine
from sp.protocols.sub import SubEngine
from sp.protocols.surveyor import RawSurveyorEngine, SurveyorContext, SurveyorEngine
from sp.statistics import DropReason
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
        rep = RepEngine(SocketOptions(inbox_limit=2), ttl=8)
        self.rep: RepEngine | RawRepEngine = rep
        self.wires: list[Wire] = []
        self.carriers: dict[bytes, Wire] = {}
        self.askers = [Asker(self.req.open_context()) for _ in range(askers)]
        self.answerers = [Answerer(rep.open_context()) for _ in range(answerers)]
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
        assert self.req.dropped.keys() <= {"stale reply", "unread"}
        assert self.rep.dropped.keys() <= {"requester gone"}
        assert self.rep.queued() <= 2

    def teardown(self) -> None:
        """As long as there is a pipe, every question gets its answer, without another word from the
        clock.
        """
        if not self.wires:
            self.connect(1)
        while self.rep.queued() or any(wire.req.taken or wire.rep.taken for wire in self.wires) or any(a.answer for a in self.answerers):
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


class DeviceMachine(ConversationMachine):
    """The same through a device, whose raw REP drops what a requester has no room for: then the
    question is asked again in time.
    """

    @initialize(seed=picks, askers=st.integers(1, 4), answerers=st.integers(1, 3))
    def begin(self, seed: int, askers: int, answerers: int) -> None:
        super().begin(seed, askers, answerers)
        self.server = self.rep
        self.rep = self.front = RawRepEngine(SocketOptions(inbox_limit=2), ttl=8)
        self.back = RawReqEngine(SocketOptions(inbox_limit=2))
        self.back_wires: list[Wire] = []
        self.connect_back(1)

    @precondition(lambda self: len(self.back_wires) < 2)
    @rule(room=st.integers(1, 3))
    def connect_back(self, room: int) -> None:
        wire = Wire(room)
        self.back_wires.append(wire)
        self.server.pipe_attached(wire.rep)
        self.back.pipe_attached(wire.req)

    @precondition(lambda self: len(self.back_wires) > 1)
    @rule(pick=picks)
    def cut_back(self, pick: int) -> None:
        wire = self.back_wires.pop(pick % len(self.back_wires))
        self.server.pipe_detached(wire.rep)
        self.back.pipe_detached(wire.req)

    @rule()
    def the_device_passes_on(self) -> None:
        while (request := self.front.receive()) is not None:
            if not self.back.send(request):
                self.front.put_back(request)
                break
        while (reply := self.back.receive()) is not None:
            assert self.front.send(reply)

    @rule()
    def messages_arrive_behind_the_device(self) -> None:
        for wire in self.back_wires:
            for sent, by, engine in ((wire.req, wire.rep, self.server), (wire.rep, wire.req, self.back)):
                if sent.taken:
                    message = sent.taken[0]
                    data = message.header + message.body
                    start = backtrace_end(data, 0, len(data))
                    if engine.message_received(by, Message(data[start:], data[:start], cast("Pipe", by))):
                        sent.discard_oldest()
                        self.back.pipe_has_room(wire.req)

    @invariant()
    def nothing_is_dropped_but_what_nobody_waits_for(self) -> None:
        assert self.req.dropped.keys() <= {"stale reply", "unread"}
        assert self.rep.dropped.keys() <= {"requester gone", "peer full"}
        assert self.server.dropped.keys() <= {"requester gone"}
        assert not self.back.dropped
        assert max(self.rep.queued(), self.back.queued(), self.server.queued()) <= 2

    def teardown(self) -> None:
        if not self.wires:
            self.connect(1)
        for _ in range(100):
            for pick in range(len(self.wires)):
                if any(wire.req.taken for wire in self.wires):
                    self.a_request_arrives(pick)
                if any(wire.rep.taken for wire in self.wires):
                    self.a_reply_arrives(pick, 1)
            self.the_device_passes_on()
            self.messages_arrive_behind_the_device()
            for answerer in self.answerers:
                answerer.serve()
            for asker in self.askers:
                asker.collect()
            if all(asker.question is None for asker in self.askers):
                return
            self.time_passes(3.0)
        raise AssertionError("a question has no answer")


# Surveys


class Over(Exception):
    """The time of a survey is up."""


class SurveyWire:
    """A surveyor's pipe and a respondent's."""

    def __init__(self, room: int, respondent: RespondentEngine) -> None:
        self.surveyor, self.respondent = FakePipe(room), FakePipe(room)
        self.engine = respondent
        self.answerer = Answerer(respondent.open_context())
        self.is_held = False


class SurveyAsker:
    """The model of a SURVEYOR context: its question, how long that stands, and the answers that
    have come.
    """

    def __init__(self, context: SurveyorContext) -> None:
        self.context = context
        self.question: bytes | None = None
        self.deadline = 0.0
        self.answers: list[bytes] = []

    @property
    def answer(self) -> bytes | None:
        return None if self.question is None else b"re: " + self.question

    def collect(self, now: float) -> None:
        while self.answers:
            message = self.context.receive()
            assert message is not None
            assert message.body == self.answers.pop(0)
        try:
            assert self.context.receive() is None
            assert self.question is not None
            assert now < self.deadline
        except StateError:
            assert self.question is None
        except Over:
            assert now >= self.deadline


class SurveyMachine(RuleBasedStateMachine):
    """A surveyor with several conversations, and respondents that come and go."""

    @initialize(seed=picks, askers=st.integers(1, 4))
    def begin(self, seed: int, askers: int) -> None:
        self.now = 0.0
        self.surveyor = SurveyorEngine(SocketOptions(inbox_limit=2), Random(seed), lambda: self.now, Over)
        self.askers = [SurveyAsker(self.surveyor.open_context(1.0 + number)) for number in range(askers)]
        self.wires: list[SurveyWire] = []
        self.questions = count(1)
        self.late = self.unread = 0

    @precondition(lambda self: len(self.wires) < 3)
    @rule(room=st.integers(1, 3))
    def connect(self, room: int) -> None:
        wire = SurveyWire(room, RespondentEngine(SocketOptions(inbox_limit=2), ttl=1))
        self.wires.append(wire)
        wire.engine.pipe_attached(wire.respondent)
        self.surveyor.pipe_attached(wire.surveyor)

    @precondition(lambda self: self.wires)
    @rule(pick=picks)
    def cut(self, pick: int) -> None:
        wire = self.wires.pop(pick % len(self.wires))
        wire.engine.pipe_detached(wire.respondent)
        self.surveyor.pipe_detached(wire.surveyor)

    @rule(pick=picks)
    def ask(self, pick: int) -> None:
        asker = self.askers[pick % len(self.askers)]
        self.unread += len(asker.answers)
        asker.question = b"%d" % next(self.questions)
        asker.deadline, asker.answers = self.now + 1.0 + self.askers.index(asker), []
        rooms = {wire: wire.surveyor.room for wire in self.wires}
        assert asker.context.send(Message(asker.question))
        for wire, room in rooms.items():
            assert (asker.question in wire.surveyor.bodies) is (room != 0)

    @rule()
    def surveys_arrive(self) -> None:
        for wire in self.wires:
            if wire.surveyor.taken:
                survey = wire.surveyor.taken[0]
                if wire.engine.message_received(wire.respondent, Message(survey.body, survey.header, cast("Pipe", wire.respondent))):
                    wire.surveyor.discard_oldest()

    @rule()
    def serve(self) -> None:
        for wire in self.wires:
            wire.answerer.serve()

    @precondition(lambda self: any(wire.respondent.taken for wire in self.wires))
    @rule(pick=picks)
    def an_answer_arrives(self, pick: int) -> None:
        carrying = [wire for wire in self.wires if wire.respondent.taken]
        wire = carrying[pick % len(carrying)]
        answer = wire.respondent.taken[0]
        asker = next((a for a in self.askers if answer.body == a.answer and self.now < a.deadline), None)
        taken = self.surveyor.message_received(wire.surveyor, Message(answer.body, answer.header, cast("Pipe", wire.surveyor)))
        assert taken is (asker is None or len(asker.answers) < 2)
        if not taken:
            return
        wire.respondent.discard_oldest()
        if asker is None:
            self.late += 1
        else:
            asker.answers.append(answer.body)

    @rule(pick=picks)
    def collect(self, pick: int) -> None:
        self.askers[pick % len(self.askers)].collect(self.now)

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.surveyor.deadline_reached(self.now)

    @invariant()
    def only_late_and_unread_answers_are_dropped(self) -> None:
        assert (self.surveyor.dropped[DropReason.LATE_ANSWER], self.surveyor.dropped[DropReason.UNREAD]) == (self.late, self.unread)
        assert self.surveyor.dropped.keys() <= {"late answer", "unread", "peer full", "no peer"}
        assert self.surveyor.inbox_dropped() == 0
        assert not any(wire.engine.dropped for wire in self.wires)

    def teardown(self) -> None:
        """No peer is held back for ever, whichever one asked and whichever one answers."""
        while any(wire.surveyor.taken or wire.respondent.taken or wire.answerer.answer or wire.engine.queued() for wire in self.wires):
            self.surveys_arrive()
            self.serve()
            for pick in range(len(self.wires)):
                if any(wire.respondent.taken for wire in self.wires):
                    self.an_answer_arrives(pick)
            for pick in range(len(self.askers)):
                self.collect(pick)


# What counts no turns


class LinkPipe(FakePipe):
    """One end of a link; what it was offered is under way to the other."""

    def __init__(self, room: int, node: Node) -> None:
        super().__init__(room)
        self.node = node
        self.refused = self.held = False

    def offer(self, message: Message) -> bool:
        taken = not self.broken and super().offer(message)
        self.refused = self.refused or not taken
        return taken

    def resume(self) -> None:
        super().resume()
        self.held = False


class Node:
    """An engine, what its application has received, and how many copies of what it has sent are to
    be accounted for.
    """

    def __init__(self, engine: Any, receiver: Any = None) -> None:
        self.engine = engine
        self.receiver = receiver or engine
        self.pipes: list[LinkPipe] = []
        self.received: list[tuple[Pipe | None, bytes]] = []
        self.targets = 0

    def receive(self) -> Message | None:
        message: Message | None = self.receiver.receive()
        if message is not None:
            self.received.append((message.pipe, message.body))
        return message

    @property
    def dropped(self) -> int:
        return int(self.engine.dropped.total() + self.engine.inbox_dropped())


def word(hops: int) -> bytes:
    return bytes([0, 0, 0, hops])


class LinkMachine(RuleBasedStateMachine):
    """Senders and receivers, and links between them."""

    drops: ClassVar[frozenset[str]] = frozenset()
    """Why messages may be dropped."""
    headers: ClassVar[list[bytes]] = [b""]
    broadcasts: ClassVar[bool] = False
    both_ways: ClassVar[bool] = False
    """Whether all are alike, so that each may be linked to each and all send."""
    places: ClassVar[float] = math.inf

    def make(self, choice: int) -> tuple[list[Node], list[Node]]:
        """Make the ends that send, and those that receive."""
        raise NotImplementedError

    @initialize(choice=picks)
    def begin(self, choice: int) -> None:
        self.senders, self.receivers = self.make(choice)
        self.nodes = [*self.senders, *self.receivers]
        if self.both_ways:
            self.senders = self.receivers = self.nodes
        self.links: list[tuple[LinkPipe, LinkPipe]] = []
        self.numbers = count(1)
        self.lost = 0

    @precondition(lambda self: len(self.links) < 5)
    @rule(pick=picks, room=st.integers(1, 3))
    def connect(self, pick: int, room: int) -> None:
        left = self.senders[pick % len(self.senders)]
        others = [node for node in self.receivers if node is not left]
        right = others[pick // 10 % len(others)]
        if max(len(left.pipes), len(right.pipes)) >= self.places:
            with pytest.raises(PipeRefused):
                (left if len(left.pipes) >= self.places else right).engine.check_can_attach()
            return
        ends = LinkPipe(room, left), LinkPipe(room, right)
        for pipe in ends:
            pipe.node.pipes.append(pipe)
            pipe.node.engine.pipe_attached(pipe)
        self.links.append(ends)

    @precondition(lambda self: self.links)
    @rule(pick=picks)
    def cut(self, pick: int) -> None:
        for pipe in self.links.pop(pick % len(self.links)):
            self.lost += len(pipe.taken)
            pipe.broken = True
            pipe.node.pipes.remove(pipe)
            pipe.node.engine.pipe_detached(pipe)

    @rule(pick=picks, times=st.integers(1, 4))
    def send(self, pick: int, times: int) -> None:
        node = self.senders[pick % len(self.senders)]
        for _ in range(times):
            body = bytes([self.nodes.index(node)]) + next(self.numbers).to_bytes(4, "big")
            self.send_message(node, Message(body, self.headers[pick % len(self.headers)]))

    def send_message(self, node: Node, message: Message) -> None:
        if self.way(node)(message):
            node.targets += max(1, self.reached(node, message)) if self.broadcasts else 1
        else:
            assert not self.broadcasts

    def way(self, node: Node) -> Callable[[Message], bool]:
        return cast("Callable[[Message], bool]", node.engine.send)

    def reached(self, node: Node, message: Message) -> int:
        return len(node.pipes)

    @precondition(lambda self: self.links)
    @rule(pick=picks, times=st.integers(1, 4))
    def arrive(self, pick: int, times: int) -> None:
        ends = self.links[pick % len(self.links)]
        for sent, by in (ends, ends[::-1]):
            for _ in range(times):
                self.arrive_once(sent, by)

    def arrive_once(self, sent: LinkPipe, by: LinkPipe, *, overdue: bool = False) -> None:
        if not sent.taken or (by.held and not overdue):
            return
        engine = by.node.engine
        data = sent.taken[0].header + sent.taken[0].body
        start = engine.find_body(data, 0, len(data)) if engine.find_body else 0
        message = Message(data[start:], data[:start], cast("Pipe", by))
        by.held = True
        if engine.message_received(by, message):
            by.held = False
        elif overdue:
            engine.force_message(by, message)
            by.held = False
        else:
            return
        sent.discard_oldest()
        if sent.refused:
            sent.refused = False
            sent.node.engine.pipe_has_room(sent)

    @precondition(lambda self: any(pipe.held for ends in self.links for pipe in ends))
    @rule()
    def hold_time_is_over(self) -> None:
        for ends in self.links:
            for sent, by in (ends, ends[::-1]):
                if by.held and by.node.engine.hold_time < math.inf:
                    self.arrive_once(sent, by, overdue=True)

    @rule(pick=picks, times=st.integers(1, 4))
    def receive(self, pick: int, times: int) -> None:
        node = self.receivers[pick % len(self.receivers)]
        for _ in range(times):
            node.receive()

    @invariant()
    def it_adds_up(self) -> None:
        sent = sum(node.targets for node in self.nodes)
        received = sum(len(node.received) + node.engine.queued() for node in self.nodes)
        under_way = sum(len(pipe.taken) for ends in self.links for pipe in ends)
        dropped = sum(node.dropped for node in self.nodes)
        assert sent == received + under_way + dropped + self.lost
        reasons = {reason for node in self.nodes for reason in node.engine.dropped}
        assert reasons <= self.drops
        assert "inbox" in self.drops or not any(node.engine.inbox_dropped() for node in self.nodes)

    @invariant()
    def what_comes_by_a_pipe_comes_once_and_in_order(self) -> None:
        for node in self.nodes:
            by_origin: dict[tuple[Pipe | None, int], list[bytes]] = {}
            for pipe, body in node.received:
                by_origin.setdefault((pipe, body[0]), []).append(body)
            assert all(bodies == sorted(set(bodies)) for bodies in by_origin.values())

    def teardown(self) -> None:
        """When all is received nothing is left under way."""
        while any(pipe.taken for ends in self.links for pipe in ends):
            before = sum(len(pipe.taken) for ends in self.links for pipe in ends), sum(node.engine.queued() for node in self.nodes)
            for pick in range(len(self.links)):
                self.arrive(pick, 4)
            for node in self.nodes:
                while hasattr(node.receiver, "receive") and node.receive() is not None:
                    pass
            after = sum(len(pipe.taken) for ends in self.links for pipe in ends), sum(node.engine.queued() for node in self.nodes)
            assert after != before, "somebody is held back for ever"
        self.it_adds_up()
        self.what_comes_by_a_pipe_comes_once_and_in_order()


SMALL = SocketOptions(inbox_limit=3)


class PushPullMachine(LinkMachine):
    def make(self, choice: int) -> tuple[list[Node], list[Node]]:
        return [Node(PushEngine()) for _ in range(2)], [Node(PullEngine(SMALL)) for _ in range(2)]


class PubSubMachine(LinkMachine):
    broadcasts = True
    drops = frozenset({"no peer", "peer full", "inbox"})

    def make(self, choice: int) -> tuple[list[Node], list[Node]]:
        policies: list[DropPolicy] = ["oldest", "newest"]
        receivers = []
        for policy in policies:
            engine = SubEngine(SMALL, policy)
            context = engine.open_context()
            context.subscribe(b"")
            receivers.append(Node(engine, context))
        return [Node(PubEngine(policy)) for policy in policies], receivers


class BusMachine(LinkMachine):
    broadcasts = both_ways = True
    drops = frozenset({"no peer", "peer full", "inbox"})

    def make(self, choice: int) -> tuple[list[Node], list[Node]]:
        return [Node(BusEngine(SMALL, "newest"))], [Node(BusEngine(SMALL, "oldest")), Node(BusEngine(SMALL, "newest"))]


class RawBusMachine(BusMachine):
    """One of them is the device of an island with one socket: what it receives goes to all others."""

    def make(self, choice: int) -> tuple[list[Node], list[Node]]:
        return [Node(RawBusEngine(SMALL, "newest"))], [Node(BusEngine(SMALL, "oldest")) for _ in range(3)]

    @initialize(choice=picks)
    def begin(self, choice: int) -> None:
        super().begin(choice)
        self.hub = self.nodes[0]
        self.senders, self.receivers = self.nodes[1:], self.nodes[:1]

    @rule(pick=picks, times=st.integers(1, 4))
    def receive(self, pick: int, times: int) -> None:
        for node in self.nodes[1:]:
            for _ in range(times):
                node.receive()

    @precondition(lambda self: len(self.links) < 3)
    @rule(pick=picks, room=st.integers(1, 3))
    def connect(self, pick: int, room: int) -> None:
        if not self.senders[pick % 3].pipes:
            super().connect(pick, room)

    def reached(self, node: Node, message: Message) -> int:
        return sum(word_of(pipe) != message.header for pipe in node.pipes)

    @invariant()
    def nobody_hears_itself(self) -> None:
        assert not any(body[0] == place for place, node in enumerate(self.nodes) for _, body in node.received)

    @rule()
    def the_device_passes_on(self) -> None:
        while (message := self.hub.receive()) is not None:
            taken = {pipe: len(pipe.taken) for pipe in self.hub.pipes}
            self.send_message(self.hub, message)
            origin: object = message.pipe
            assert not [pipe for pipe in taken if pipe is origin and len(pipe.taken) > taken[pipe]], "not back to the origin"


class Pair0Machine(LinkMachine):
    both_ways = True
    places = 1

    def make(self, choice: int) -> tuple[list[Node], list[Node]]:
        return [Node(Pair0Engine(SMALL))], [Node(Pair0Engine(SMALL)), Node(Pair0Engine(SMALL))]


class Pair1Machine(Pair0Machine):
    def make(self, choice: int) -> tuple[list[Node], list[Node]]:
        return [Node(Pair1Engine(SMALL, 1))], [Node(Pair1Engine(SMALL, 1)), Node(Pair1Engine(SMALL, 255))]


class RawPair1Machine(Pair0Machine):
    drops = frozenset({"ttl"})
    headers: ClassVar[list[bytes]] = [word(hops) for hops in (0, 1, 2, 3, 254, 255)]

    def make(self, choice: int) -> tuple[list[Node], list[Node]]:
        return [Node(RawPair1Engine(SMALL, 3))], [Node(Pair1Engine(SMALL, 3)), Node(RawPair1Engine(SMALL, 255))]


class PolyMachine(LinkMachine):
    """One with several peers; it sends to one that it picks, to the oldest, or to one that is gone."""

    both_ways = True
    drops = frozenset({"peer gone"})

    def make(self, choice: int) -> tuple[list[Node], list[Node]]:
        return [Node(PolyPair1Engine(SMALL, 1))], [Node(PolyPair1Engine(SMALL, 1)) for _ in range(2)]

    def way(self, node: Node) -> Callable[[Message], bool]:
        pipes: list[LinkPipe | None] = [None, FakePipe(), *node.pipes]  # type: ignore[list-item]
        pipe = pipes[len(node.received) % len(pipes)]
        return cast("Callable[[Message], bool]", node.engine.send if pipe is None else node.engine.lane_to(pipe).send)


class RawReqRepMachine(LinkMachine):
    """Requests share the peers in turn; each is answered as soon as it is received."""

    drops = frozenset({"requester gone", "peer full"})
    headers: ClassVar[list[bytes]] = [b"\x80\0\0\1", b"\0\0\0\7\x80\0\0\1"]

    def make(self, choice: int) -> tuple[list[Node], list[Node]]:
        return [Node(RawReqEngine(SMALL)) for _ in range(2)], [Node(RawRepEngine(SMALL, 2)) for _ in range(2)]

    @rule(pick=picks)
    def answer(self, pick: int) -> None:
        node = self.receivers[pick % len(self.receivers)]
        message = node.receive()
        if message is not None:
            pipe = cast("LinkPipe", message.pipe)
            fits = pipe in node.pipes and pipe.room != 0
            before = len(pipe.taken)
            assert node.engine.send(message)
            node.targets += 1
            assert len(pipe.taken) == before + fits

    @rule(pick=picks)
    def receive_answers(self, pick: int) -> None:
        self.senders[pick % len(self.senders)].receive()


class RawSurveyMachine(RawReqRepMachine):
    """Surveys go to all; each is answered as soon as it is received."""

    drops = frozenset({"requester gone", "peer full", "no peer"})

    def make(self, choice: int) -> tuple[list[Node], list[Node]]:
        return [Node(RawSurveyorEngine(SMALL)) for _ in range(2)], [Node(RawRespondentEngine(SMALL, 2)) for _ in range(2)]

    def send_message(self, node: Node, message: Message) -> None:
        assert node.engine.send(message)
        node.targets += max(1, len(node.pipes))


often = settings(max_examples=120, deadline=None)
TestConversation = ConversationMachine.TestCase
TestConversationWithResendingOff = OnceMachine.TestCase
TestConversation.settings = TestConversationWithResendingOff.settings = often

MACHINES = {
    "TestThroughADevice": DeviceMachine,
    "TestSurveys": SurveyMachine,
    "TestPushPull": PushPullMachine,
    "TestPubSub": PubSubMachine,
    "TestBus": BusMachine,
    "TestRawBus": RawBusMachine,
    "TestPair0": Pair0Machine,
    "TestPair1": Pair1Machine,
    "TestRawPair1": RawPair1Machine,
    "TestPolyPair1": PolyMachine,
    "TestRawReqRep": RawReqRepMachine,
    "TestRawSurveys": RawSurveyMachine,
}
for name, machine in MACHINES.items():
    machine.TestCase.settings = settings(max_examples=40, deadline=None)
    globals()[name] = machine.TestCase
