"""Engines: any event in any order."""

from __future__ import annotations

import math
from random import Random
from typing import Any, ClassVar, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sp.engine import Engine
from sp.errors import Error, PeerError, RequestLost, RequestReplaced, StateError
from sp.message import Message
from sp.options import SocketOptions
from sp.pipe import Pipe
from sp.protocols.bus import BusEngine
from sp.protocols.pub import PubEngine
from sp.protocols.rep import RepEngine
from sp.protocols.req import ReqEngine
from sp.protocols.sub import SubContext, SubEngine
from sp.testing import FakePipe

OPTIONS = SocketOptions(inbox_limit=3, inbox_bytes=20)

picks = st.integers(0, 1000)
rooms = st.sampled_from([None, 0, 1, 3])
small = st.lists(st.sampled_from(b"\0a\x80\xff"), max_size=12).map(bytes)


class StrictPipe(FakePipe):
    """A pipe that is offered nothing after its end, and reads nothing until it is resumed."""

    attached = True
    held: Message | None = None

    def offer(self, message: Message) -> bool:
        assert self.attached
        return self.error is None and super().offer(message)

    def hang_up(self, error: PeerError) -> None:
        assert isinstance(error, PeerError)
        super().hang_up(error)


class EngineMachine(RuleBasedStateMachine):
    """What the shell may do to an engine, within the engine's contract and no other order."""

    errors: ClassVar[tuple[type[Error], ...]] = ()
    """What may come out."""

    engine: Any

    def make(self, choice: int) -> Engine:
        raise NotImplementedError

    @initialize(choice=picks)
    def begin(self, choice: int) -> None:
        self.now = 0.0
        self.pipes: list[StrictPipe] = []
        self.engine = self.make(choice)
        self.contexts: list[Any] = []
        self.many = hasattr(self.engine, "open_context")
        if self.many:
            self.open_context()
        else:
            self.contexts.append(self.engine)

    def pick_pipe(self, pick: int) -> StrictPipe | None:
        return self.pipes[pick % len(self.pipes)] if self.pipes else None

    def pick_context(self, pick: int) -> Any:
        return self.contexts[pick % len(self.contexts)] if self.contexts else None

    # Pipes

    @rule(room=rooms)
    def attach(self, room: int | None) -> None:
        pipe = StrictPipe(room)
        self.engine.pipe_attached(pipe)
        self.pipes.append(pipe)

    @rule(pick=picks)
    def detach(self, pick: int) -> None:
        pipe = self.pick_pipe(pick)
        if pipe is not None:
            self.pipes.remove(pipe)
            pipe.attached = False
            resumed = pipe.resumed
            self.engine.pipe_detached(pipe)
            assert pipe.resumed == resumed

    @rule(pick=picks, room=rooms)
    def room(self, pick: int, room: int | None) -> None:
        pipe = self.pick_pipe(pick)
        if pipe is not None:
            pipe.room = room
            if room != 0:
                self.engine.pipe_has_room(pipe)

    # Messages from peers

    @rule(pick=picks, data=small)
    def arrive(self, pick: int, data: bytes) -> None:
        pipe = self.pick_pipe(pick)
        body = self.engine.split(data, 0, len(data)) if self.engine.split else 0
        if pipe is not None and pipe.held is None and pipe.error is None and body >= 0:
            self.deliver(pipe, Message(data[body:], data[:body], cast("Pipe", pipe)))

    @rule(pick=picks, which=picks)
    def echo(self, pick: int, which: int) -> None:
        pipe = self.pick_pipe(pick)
        if pipe is not None and pipe.taken:
            message = pipe.taken[which % len(pipe.taken)]
            self.arrive(pick, message.header + message.body)

    def deliver(self, pipe: StrictPipe, message: Message) -> None:
        pipe.resumed = 0
        pipe.held = None if self.engine.message_received(pipe, message) else message

    @rule(pick=picks)
    def again(self, pick: int) -> None:
        pipe = self.pick_pipe(pick)
        if pipe is not None and pipe.held is not None and pipe.resumed:
            self.deliver(pipe, pipe.held)

    @rule(pick=picks)
    def overdue(self, pick: int) -> None:
        pipe = self.pick_pipe(pick)
        if pipe is not None and pipe.held is not None and self.engine.patience < math.inf:
            self.deliver(pipe, pipe.held)
            if pipe.held is not None:
                self.engine.message_overdue(pipe, pipe.held)
                pipe.held = None

    # What the application does

    @rule()
    def open_context(self) -> None:
        if self.many:
            self.contexts.append(self.engine.open_context())

    @rule(pick=picks)
    def close_context(self, pick: int) -> None:
        context = self.pick_context(pick)
        if self.many and context is not None:
            self.contexts.remove(context)
            context.close()

    @rule(pick=picks, body=small)
    def send(self, pick: int, body: bytes) -> None:
        context = self.pick_context(pick)
        if hasattr(context, "send"):
            try:
                assert isinstance(context.send(Message(body)), bool)
            except self.errors:
                pass

    @rule(pick=picks)
    def receive(self, pick: int) -> None:
        context = self.pick_context(pick)
        if hasattr(context, "receive"):
            try:
                message = context.receive()
                assert message is None or isinstance(message, Message)
            except self.errors:
                pass

    @rule(pick=picks)
    def wait(self, pick: int) -> None:
        context = self.pick_context(pick)
        if not hasattr(context, "receive"):
            return

        def wake() -> None:
            try:
                if context.receive() is not None:
                    context.mailbox.wake = None
            except self.errors:
                context.mailbox.wake = None

        context.mailbox.wake = wake

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        deadline = self.engine.next_deadline()
        self.engine.deadline_reached(self.now)
        if deadline is not None and deadline <= self.now:
            assert self.engine.next_deadline() > self.now - 1e-9, "what was due is done"

    # What must hold

    @invariant()
    def queues_are_bounded(self) -> None:
        queues = len(self.contexts) if isinstance(self.engine, SubEngine) else 1
        assert self.engine.queued() <= queues * OPTIONS.inbox_limit
        assert all(count > 0 for count in self.engine.dropped.values())

    @invariant()
    def only_a_waiting_message_is_held(self) -> None:
        assert self.engine.queued() or all(pipe.resumed for pipe in self.pipes if pipe.held is not None)

    def teardown(self) -> None:
        """Take all there is: nobody may be held back for ever."""
        while self.pipes:
            for pick in range(len(self.contexts)):
                for _ in range(OPTIONS.inbox_limit):
                    self.receive(pick)
            for pick, pipe in enumerate(self.pipes):
                assert pipe.held is None or pipe.resumed or not self.contexts
                self.again(pick)
            if all(pipe.held is None for pipe in self.pipes) or not self.contexts:
                break
        for _ in range(len(self.pipes)):
            self.detach(0)
        for _ in range(len(self.contexts)):
            self.close_context(0)


class ReqMachine(EngineMachine):
    errors = (StateError, RequestReplaced)

    def make(self, choice: int) -> Engine:
        return ReqEngine(60.0, Random(choice), lambda: self.now)


class ReqOnceMachine(EngineMachine):
    errors = (StateError, RequestReplaced, RequestLost)

    def make(self, choice: int) -> Engine:
        return ReqEngine(None, Random(choice), lambda: self.now)

    @invariant()
    def nothing_is_sent_twice(self) -> None:
        sent = [message.header for pipe in self.pipes for message in pipe.taken]
        assert len(sent) == len(set(sent))


class RepMachine(EngineMachine):
    errors = (StateError,)

    def make(self, choice: int) -> Engine:
        return RepEngine(OPTIONS, ttl=choice % 2 + 1)


class PubMachine(EngineMachine):
    def make(self, choice: int) -> Engine:
        return PubEngine("oldest" if choice % 2 else "newest")


class BusMachine(EngineMachine):
    def make(self, choice: int) -> Engine:
        return BusEngine(OPTIONS, "oldest" if choice % 2 else "newest")


class SubMachine(EngineMachine):
    def make(self, choice: int) -> Engine:
        return SubEngine(OPTIONS, "oldest" if choice % 2 else "newest")

    @rule(pick=picks, prefix=small)
    def subscribe(self, pick: int, prefix: bytes) -> None:
        context: SubContext | None = self.pick_context(pick)
        if context is not None:
            context.subscribe(prefix[:2])

    @rule(pick=picks, prefix=small)
    def unsubscribe(self, pick: int, prefix: bytes) -> None:
        context: SubContext | None = self.pick_context(pick)
        if context is not None:
            context.unsubscribe(prefix[:2])


TestReq = ReqMachine.TestCase
TestReqOnce = ReqOnceMachine.TestCase
TestRep = RepMachine.TestCase
TestPub = PubMachine.TestCase
TestBus = BusMachine.TestCase
TestSub = SubMachine.TestCase
