"""Engines: any event in any order."""

from __future__ import annotations

import math
from random import Random
from typing import Any, ClassVar, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

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
prefixes = st.sampled_from([b"", b"\0", b"\x80", b"\x80\0"])
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

    def pick_pipe(self, pick: int) -> StrictPipe:
        return self.pipes[pick % len(self.pipes)]

    def pick_context(self, pick: int) -> Any:
        return self.contexts[pick % len(self.contexts)]

    # Pipes

    @rule(room=rooms)
    def attach(self, room: int | None) -> None:
        pipe = StrictPipe(room)
        self.engine.pipe_attached(pipe)
        self.pipes.append(pipe)

    @precondition(lambda self: self.pipes)
    @rule(pick=picks)
    def detach(self, pick: int) -> None:
        pipe = self.pick_pipe(pick)
        self.pipes.remove(pipe)
        pipe.attached = False
        resumed = pipe.resumed
        self.engine.pipe_detached(pipe)
        assert pipe.resumed == resumed

    @precondition(lambda self: self.pipes)
    @rule(pick=picks, room=rooms)
    def room(self, pick: int, room: int | None) -> None:
        pipe = self.pick_pipe(pick)
        pipe.room = room
        if room != 0:
            self.engine.pipe_has_room(pipe)

    # Messages from peers

    def deliver(self, pipe: StrictPipe, data: bytes) -> None:
        """Let *data* arrive, unless the pipe reads no more or does not get it past its header."""
        body = self.engine.split(data, 0, len(data)) if self.engine.split else 0
        if pipe.held is None and pipe.error is None and body >= 0:
            self.offer(pipe, Message(data[body:], data[:body], cast("Pipe", pipe)))

    def offer(self, pipe: StrictPipe, message: Message) -> None:
        pipe.resumed = 0
        pipe.held = None if self.engine.message_received(pipe, message) else message

    @precondition(lambda self: self.pipes)
    @rule(pick=picks, data=small)
    def anything_arrives(self, pick: int, data: bytes) -> None:
        self.deliver(self.pick_pipe(pick), data)

    @precondition(lambda self: self.pipes)
    @rule(pick=picks, data=small, times=st.integers(1, 5))
    def something_sensible_arrives(self, pick: int, data: bytes, times: int) -> None:
        for _ in range(times):
            self.deliver(self.pick_pipe(pick), b"\x80\0\0\1" + data)

    @precondition(lambda self: any(pipe.taken for pipe in self.pipes))
    @rule(pick=picks, which=picks)
    def what_was_sent_comes_back(self, pick: int, which: int) -> None:
        taken = [message for pipe in self.pipes for message in pipe.taken]
        message = taken[which % len(taken)]
        self.deliver(self.pick_pipe(pick), message.header + message.body)

    @precondition(lambda self: any(pipe.held and pipe.resumed for pipe in self.pipes))
    @rule()
    def what_was_held_comes_again(self) -> None:
        for pipe in self.pipes:
            if pipe.held is not None and pipe.resumed:
                self.offer(pipe, pipe.held)

    @precondition(lambda self: self.engine.patience < math.inf and any(pipe.held for pipe in self.pipes))
    @rule()
    def patience_is_over(self) -> None:
        for pipe in self.pipes:
            if pipe.held is not None:
                self.offer(pipe, pipe.held)
            if pipe.held is not None:
                self.engine.message_overdue(pipe, pipe.held)
                pipe.held = None

    # What the application does

    @precondition(lambda self: self.many and len(self.contexts) < 4)
    @rule()
    def open_context(self) -> None:
        self.contexts.append(self.engine.open_context())

    @precondition(lambda self: self.many and self.contexts)
    @rule(pick=picks)
    def close_context(self, pick: int) -> None:
        context = self.pick_context(pick)
        self.contexts.remove(context)
        context.close()

    @precondition(lambda self: self.contexts and hasattr(self.contexts[0], "send"))
    @rule(pick=picks, body=small)
    def send(self, pick: int, body: bytes) -> None:
        try:
            assert isinstance(self.pick_context(pick).send(Message(body)), bool)
        except self.errors:
            pass

    @precondition(lambda self: self.contexts and hasattr(self.contexts[0], "receive"))
    @rule(pick=picks)
    def receive(self, pick: int) -> None:
        try:
            message = self.pick_context(pick).receive()
        except self.errors:
            pass
        else:
            assert message is None or isinstance(message, Message)

    @precondition(lambda self: self.contexts and hasattr(self.contexts[0], "receive"))
    @rule(pick=picks)
    def wait(self, pick: int) -> None:
        context = self.pick_context(pick)

        def wake() -> None:
            try:
                if context.receive() is not None:
                    context.mailbox.wake = None
            except self.errors:
                context.mailbox.wake = None

        context.mailbox.wake = wake

    @rule(seconds=st.sampled_from([0.0, 1.0, 59.0, 60.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.engine.deadline_reached(self.now)
        deadline = self.engine.next_deadline()
        assert deadline is None or deadline > self.now, "what was due is done"

    # What must hold

    @invariant()
    def queues_are_bounded(self) -> None:
        queues = len(self.contexts) if isinstance(self.engine, SubEngine) else 1
        assert self.engine.queued() <= queues * OPTIONS.inbox_limit
        assert all(count > 0 for count in self.engine.dropped.values())

    @invariant()
    def only_a_waiting_message_is_held(self) -> None:
        held = [pipe for pipe in self.pipes if pipe.held is not None]
        assert self.engine.queued() or not held or any(pipe.resumed for pipe in held)

    def teardown(self) -> None:
        """Take all there is: nobody may be held back for ever."""
        while self.contexts and any(pipe.held for pipe in self.pipes):
            for pick in range(len(self.contexts) * OPTIONS.inbox_limit):
                self.receive(pick)
            assert any(pipe.resumed for pipe in self.pipes if pipe.held is not None)
            self.what_was_held_comes_again()
        while self.pipes:
            self.detach(0)
        while self.many and self.contexts:
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

    @precondition(lambda self: self.contexts)
    @rule(pick=picks, prefix=prefixes)
    def subscribe(self, pick: int, prefix: bytes) -> None:
        context: SubContext = self.pick_context(pick)
        context.subscribe(prefix)

    @precondition(lambda self: self.contexts)
    @rule(pick=picks, prefix=prefixes)
    def unsubscribe(self, pick: int, prefix: bytes) -> None:
        context: SubContext = self.pick_context(pick)
        context.unsubscribe(prefix)


TestReq = ReqMachine.TestCase
TestReqOnce = ReqOnceMachine.TestCase
TestRep = RepMachine.TestCase
TestPub = PubMachine.TestCase
TestBus = BusMachine.TestCase
TestSub = SubMachine.TestCase
