"""Engines: any event in any order.

No message vanishes, none is doubled, and nothing is kept of pipes that are gone.
"""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from types import FunctionType, ModuleType
from typing import Any, ClassVar, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sp.errors import PeerError, PipeRefused, RequestLost, RequestReplaced, StateError
from sp.message import Message
from sp.options import DropPolicy, SocketOptions
from sp.pipe import Pipe
from sp.protocols.backtrace import word_of
from sp.protocols.bus import BusEngine, RawBusEngine
from sp.protocols.engine import Engine
from sp.protocols.pair0 import Pair0Engine
from sp.protocols.pair1 import Pair1Engine, PolyPair1Engine, RawPair1Engine
from sp.protocols.pub import PubEngine
from sp.protocols.pull import PullEngine
from sp.protocols.push import PushEngine
from sp.protocols.rep import RawRepEngine, RepEngine
from sp.protocols.req import RawReqEngine, ReqContext, ReqEngine
from sp.protocols.respondent import RawRespondentEngine, RespondentEngine
from sp.protocols.sub import SubContext, SubEngine
from sp.protocols.surveyor import RawSurveyorEngine, SurveyorContext, SurveyorEngine
from sp.statistics import DropReason
from sp.testing import FakePipe

OPTIONS = SocketOptions(inbox_limit=3, inbox_bytes=20)
ID = b"\x80\0\0\1"

picks = st.integers(0, 1000)
rooms = st.sampled_from([None, 0, 1, 3])
prefixes = st.sampled_from([b"", b"\0", b"\x80", b"\x80\0"])
small = st.lists(st.sampled_from(b"\0\1\2a\x80\xff"), max_size=12).map(bytes)


class Over(Exception):
    """The time of a survey is up."""


class StrictPipe(FakePipe):
    """A pipe that is offered nothing after its end, and reads nothing until it is resumed."""

    def __init__(self, room: int | None, priority: int) -> None:
        super().__init__(room, priority)
        self.attached = True
        self.held: Message | None = None
        self.accepted = self.discarded = 0
        self.refused = False
        """Whether it has refused an offer and not reported room since."""

    def offer(self, message: Message) -> bool:
        assert self.attached
        taken = self.error is None and not self.broken and super().offer(message)
        self.accepted += taken
        self.refused = self.refused or not taken
        return taken

    def discard_oldest(self) -> bool:
        discarded = super().discard_oldest()
        self.discarded += discarded
        return discarded

    def hang_up(self, error: PeerError) -> None:
        assert isinstance(error, PeerError)
        super().hang_up(error)


def keeps(roots: list[Any], pipe: StrictPipe) -> bool:
    """Whether *pipe* can be reached from *roots*, other than as the origin of a message that waits."""
    seen: dict[int, Any] = {}
    reached = list(roots)
    while reached:
        thing = reached.pop()
        if id(thing) in seen or isinstance(thing, (Message, type, ModuleType, FunctionType, Random, str, bytes, SocketOptions)):
            continue
        if thing is pipe:
            return True
        seen[id(thing)] = thing
        if not isinstance(thing, StrictPipe):
            reached += gc.get_referents(thing)
    return False


class EngineMachine(RuleBasedStateMachine):
    """What the shell may do to an engine, within the engine's contract and no other order."""

    errors: ClassVar[tuple[type[Exception], ...]] = ()
    """What may come out."""
    places: ClassVar[float] = math.inf
    """Pipes that it takes."""
    sensible: ClassVar[bytes] = ID
    """A header that a peer might send."""
    queues: ClassVar[bool] = False
    """Whether each context has an inbox of its own."""
    gives_up: ClassVar[bool] = False
    """Whether what waits for ``receive`` can be given up."""
    counts_unread: ClassVar[bool] = False
    """Whether that is counted."""

    engine: Any

    def make(self, choice: int) -> Engine:
        raise NotImplementedError

    @initialize(choice=picks)
    def begin(self, choice: int) -> None:
        self.now = 0.0
        self.pipes: list[StrictPipe] = []
        self.past: list[StrictPipe] = []
        self.engine = self.make(choice)
        self.contexts: list[Any] = []
        self.most_contexts = 0
        self.tags = itertools.count(1)
        # The bodies that the engine has taken, and who brought them.
        self.taken: dict[bytes, StrictPipe] = {}
        self.copies = 0  # of them, one for each context that gets it
        self.turned_away = self.hung_up = self.given_up = 0
        self.delivered: dict[int, list[bytes]] = {}  # by the id of a context
        self.delivered_before: list[list[bytes]] = []  # to contexts that are gone
        self.targets = 0  # copies that were to be sent
        self.many = hasattr(self.engine, "open_context")
        if self.many:
            self.open_context(choice)
        else:
            self.contexts.append(self.engine)

    def pick_pipe(self, pick: int) -> StrictPipe:
        return self.pipes[pick % len(self.pipes)]

    def pick_context(self, pick: int) -> Any:
        return self.contexts[pick % len(self.contexts)]

    @contextmanager
    def giving_up(self, *, counted: bool = True) -> Iterator[None]:
        """What no longer waits for ``receive`` afterwards, and was not received, has been given up
        by the application.
        """
        before, unread = self.waiting() + self.received(), self.engine.dropped[DropReason.UNREAD]
        yield
        given_up = before - self.waiting() - self.received()
        assert given_up == 0 or (given_up > 0 and self.gives_up)
        assert self.engine.dropped[DropReason.UNREAD] - unread == (given_up if counted and self.counts_unread else 0)
        self.given_up += given_up

    def sent_and_dropped(self) -> int:
        """Count what was dropped on its way out."""
        return int(self.engine.dropped.total() - self.turned_away - self.engine.dropped[DropReason.UNREAD])

    # Pipes

    @rule(room=rooms, priority=st.sampled_from([8, 8, 8, 1, 16]))
    def attach(self, room: int | None, priority: int) -> None:
        pipe = StrictPipe(room, priority)
        if len(self.pipes) < self.places:
            self.engine.check_can_attach()
            self.engine.pipe_attached(pipe)
            self.pipes.append(pipe)
            return
        with pytest.raises(PipeRefused):
            self.engine.check_can_attach()
        with pytest.raises(PipeRefused):
            self.engine.pipe_attached(pipe)
        assert not keeps([self.engine], pipe)

    @precondition(lambda self: self.pipes)
    @rule(pick=picks)
    def detach(self, pick: int) -> None:
        pipe = self.pick_pipe(pick)
        self.pipes.remove(pipe)
        self.past.append(pipe)
        pipe.attached, pipe.broken = False, True
        resumed = pipe.resumed
        self.engine.pipe_detached(pipe)
        assert pipe.resumed == resumed
        assert not keeps([self.engine, *self.contexts], pipe)

    @precondition(lambda self: self.pipes)
    @rule(pick=picks, room=rooms, unasked=st.booleans())
    def room(self, pick: int, room: int | None, unasked: bool) -> None:
        pipe = self.pick_pipe(pick)
        pipe.room = 0 if pipe.broken else room
        if pipe.room != 0 and (pipe.refused or unasked):
            pipe.refused = False
            self.engine.pipe_has_room(pipe)

    @precondition(lambda self: self.pipes)
    @rule(pick=picks)
    def it_breaks(self, pick: int) -> None:
        pipe = self.pick_pipe(pick)
        pipe.broken, pipe.room = True, 0  # and so it stays

    # Messages from peers

    def decode(self, pipe: StrictPipe, data: bytes) -> Message | None:
        """Return the message that *data* is; None: it is none."""
        start = self.engine.find_body(data, 0, len(data)) if self.engine.find_body else 0
        body = data[max(start, 0) :] + next(self.tags).to_bytes(2, "big")  # no two are alike
        return None if start < 0 else Message(body, data[:start], cast("Pipe", pipe))

    def deliver(self, pipe: StrictPipe, data: bytes) -> None:
        """Let *data* arrive, unless the pipe reads no more or does not get it past its header."""
        message = self.decode(pipe, data)
        if pipe.held is None and pipe.error is None and message is not None:
            self.offer(pipe, message)

    def offer(self, pipe: StrictPipe, message: Message) -> None:
        pipe.resumed = 0
        copies, dropped = self.copies_of(message), self.engine.dropped.total()
        pipe.held = message
        self.taken[message.body] = pipe
        if self.engine.message_received(pipe, message):
            pipe.held = None
            self.copies += copies
        self.turned_away += self.engine.dropped.total() - dropped
        self.hung_up += pipe.error is not None
        assert pipe.held is None or self.engine.dropped.total() == dropped

    def copies_of(self, message: Message) -> int:
        """How often *message* is to be received."""
        return 1

    @precondition(lambda self: self.pipes and self.engine.takes_batches)
    @rule(pick=picks, batch=st.lists(small, max_size=6))
    def a_batch_arrives(self, pick: int, batch: list[bytes]) -> None:
        pipe = self.pick_pipe(pick)
        if pipe.held is None:
            messages = [message for message in (self.decode(pipe, data) for data in batch) if message is not None]
            pipe.resumed = 0
            self.taken.update((message.body, pipe) for message in messages)
            before = self.engine.dropped.total()
            taken = self.engine.messages_received(pipe, messages)
            self.copies += sum(self.copies_of(message) for message in messages[:taken])
            self.turned_away += self.engine.dropped.total() - before
            pipe.held = messages[taken] if taken < len(messages) else None

    @precondition(lambda self: self.pipes)
    @rule(pick=picks, data=small)
    def anything_arrives(self, pick: int, data: bytes) -> None:
        self.deliver(self.pick_pipe(pick), data)

    @precondition(lambda self: self.pipes)
    @rule(pick=picks, data=small, times=st.integers(1, 5))
    def something_sensible_arrives(self, pick: int, data: bytes, times: int) -> None:
        for _ in range(times):
            self.deliver(self.pick_pipe(pick), self.sensible + data)

    @precondition(lambda self: any(pipe.taken for pipe in self.pipes))
    @rule(pick=picks, which=picks, times=st.integers(1, 5))
    def what_was_sent_comes_back(self, pick: int, which: int, times: int) -> None:
        taken = [message for pipe in self.pipes for message in pipe.taken]
        message = taken[-1 - which % len(taken)]
        for _ in range(times):
            self.deliver(self.pick_pipe(pick), message.header)

    @precondition(lambda self: any(pipe.held and pipe.resumed for pipe in self.pipes))
    @rule()
    def what_was_held_comes_again(self) -> None:
        for pipe in self.pipes:
            if pipe.held is not None and pipe.resumed:
                self.offer(pipe, pipe.held)

    @precondition(lambda self: self.engine.hold_time < math.inf and any(pipe.held for pipe in self.pipes))
    @rule()
    def hold_time_is_over(self) -> None:
        for pipe in self.pipes:
            if pipe.held is not None:
                self.offer(pipe, pipe.held)
            if pipe.held is not None:
                copies = self.copies_of(pipe.held)
                self.engine.force_message(pipe, pipe.held)
                self.copies += copies
                pipe.held = None

    # What the application does

    def open(self, pick: int) -> Any:
        return self.engine.open_context()

    @precondition(lambda self: self.many and len(self.contexts) < 4)
    @rule(pick=picks)
    def open_context(self, pick: int) -> None:
        self.contexts.append(self.open(pick))
        self.most_contexts += 1

    @precondition(lambda self: self.many and self.contexts)
    @rule(pick=picks)
    def close_context(self, pick: int) -> None:
        context = self.pick_context(pick)
        context.mailbox.wake = context.mailbox.fail = None
        dropped = self.engine.inbox_dropped()
        with self.giving_up():
            context.close()
            self.leave(context)
        assert self.engine.inbox_dropped() == dropped, "what was dropped before stays counted"

    def leave(self, context: Any) -> None:
        self.contexts.remove(context)
        self.delivered_before.append(self.delivered.pop(id(context), []))

    def header(self, pick: int, data: bytes) -> bytes:
        """A header for a message to be sent; raw engines take any."""
        return b""

    def is_legal(self, header: bytes) -> bool:
        """Whether a raw engine may send *header*."""
        return True

    def targets_of(self, header: bytes) -> int:
        """How many copies are sent of a message, or counted."""
        return 1

    def written(self) -> int:
        """The copies that pipes have, or that were dropped and counted instead."""
        return sum(pipe.accepted - pipe.discarded for pipe in (*self.pipes, *self.past)) + self.sent_and_dropped()

    @precondition(lambda self: self.contexts and hasattr(self.contexts[0], "send"))
    @rule(pick=picks, body=small, header=small)
    def send(self, pick: int, body: bytes, header: bytes) -> None:
        header = self.header(pick, header)
        self.send_by(self.pick_context(pick).send, Message(body, header))

    def send_by(self, send: Callable[[Message], bool], message: Message) -> None:
        header = message.header
        before = self.written()
        if not self.is_legal(header):
            for refuse in (send, self.engine.check_message):
                with pytest.raises(ValueError, match=header[:64].hex() or "empty"):
                    refuse(message)
            assert self.written() == before
            return
        self.engine.check_message(message)
        try:
            with self.giving_up():
                taken = send(message)
        except self.errors:
            assert self.written() == before
            return
        assert taken in (True, False)
        self.targets += self.targets_of(header) if taken else 0
        assert self.written() - before == (self.targets_of(header) if taken else 0)
        if not taken:
            assert all(pipe.refused for pipe in self.pipes) or not self.engine.balances

    @precondition(lambda self: hasattr(self.engine, "send_batch"))
    @rule(pick=picks, bodies=st.lists(small, max_size=5), header=small)
    def send_batch(self, pick: int, bodies: list[bytes], header: bytes) -> None:
        header = self.header(pick, header)
        if self.is_legal(header):
            before = self.written()
            taken = self.engine.send_batch([Message(body, header) for body in bodies])
            self.targets += taken * self.targets_of(header)
            assert self.written() - before == taken * self.targets_of(header)
            assert taken == len(bodies) or all(pipe.refused for pipe in self.pipes) or not self.engine.balances

    @precondition(lambda self: self.contexts and hasattr(self.contexts[0], "receive"))
    @rule(pick=picks)
    def receive(self, pick: int) -> None:
        self.receive_in(self.pick_context(pick))

    def receive_in(self, context: Any) -> bool:
        """Receive; True: there is none yet."""
        try:
            message = context.receive()
        except self.errors:
            return False
        if message is not None:
            self.delivered.setdefault(id(context), []).append(message.body)
        return message is None

    @precondition(lambda self: self.contexts and hasattr(self.contexts[0], "receive"))
    @rule(pick=picks)
    def wait(self, pick: int) -> None:
        context = self.pick_context(pick)

        def rest() -> None:
            context.mailbox.wake = context.mailbox.fail = None

        def wake() -> None:
            if not self.receive_in(context):
                rest()

        def fail(error: Callable[[], Exception]) -> None:
            assert isinstance(error(), self.errors)
            rest()

        if self.receive_in(context):
            context.mailbox.wake, context.mailbox.fail = wake, fail

    @precondition(lambda self: self.contexts and hasattr(self.contexts[0], "put_back"))
    @rule(pick=picks)
    def put_back(self, pick: int) -> None:
        context = self.pick_context(pick)
        message = context.receive()
        if message is not None:
            context.put_back(message)
            assert context.receive() is message
            context.put_back(message)

    @precondition(lambda self: self.contexts and hasattr(self.contexts[0], "receive_more"))
    @rule(pick=picks, limit=st.sampled_from([None, 0, 1, 2]))
    def receive_more(self, pick: int, limit: int | None) -> None:
        context = self.pick_context(pick)
        bodies = context.receive_more(limit)
        assert limit is None or len(bodies) <= limit
        self.delivered.setdefault(id(context), []).extend(bodies)

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 59.0, 60.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        with self.giving_up(counted=False):
            self.engine.deadline_reached(self.now)
        deadline = self.engine.next_deadline()
        assert deadline is None or deadline > self.now, "what was due is done"
        assert deadline is None or self.engine.timed

    # What must hold

    def waiting(self) -> int:
        """Count what waits for ``receive``."""
        return int(self.engine.queued())

    def received(self) -> int:
        return sum(map(len, (*self.delivered.values(), *self.delivered_before)))

    @invariant()
    def nothing_that_was_received_vanishes_or_is_doubled(self) -> None:
        accounts = self.received() + self.waiting() + self.engine.inbox_dropped() + self.turned_away + self.hung_up
        assert accounts + self.given_up == self.copies
        for bodies in self.delivered.values():
            assert len(bodies) == len(set(bodies))
            by_pipe: dict[StrictPipe, list[bytes]] = {}
            for body in bodies:
                by_pipe.setdefault(self.taken[body], []).append(body[-2:])
            assert all(tags == sorted(tags) for tags in by_pipe.values()), "what came by one pipe keeps its order"

    @invariant()
    def nothing_is_sent_that_nobody_sends(self) -> None:
        assert self.written() == self.targets

    @invariant()
    def queues_are_bounded(self) -> None:
        assert self.engine.queued() <= (self.most_contexts if self.queues else 1) * OPTIONS.inbox_limit
        assert all(count > 0 for count in self.engine.dropped.values())

    @invariant()
    def only_a_waiting_message_is_held(self) -> None:
        held = [pipe for pipe in self.pipes if pipe.held is not None]
        assert self.engine.queued() or not held or any(pipe.resumed for pipe in held)

    def teardown(self) -> None:
        """Take all there is: no pipe may be held back for ever."""
        while self.contexts and any(pipe.held for pipe in self.pipes):
            for context in self.contexts:
                for _ in range(OPTIONS.inbox_limit):
                    self.receive_in(context)
            self.time_passes(100.0)  # for surveys from which no task receives
            assert any(pipe.resumed for pipe in self.pipes if pipe.held is not None)
            self.what_was_held_comes_again()
        while self.pipes:
            self.detach(0)
        while self.many and self.contexts:
            self.close_context(0)
        self.nothing_that_was_received_vanishes_or_is_doubled()


# REQ and REP


class ReqMachine(EngineMachine):
    errors: ClassVar[tuple[type[Exception], ...]] = (StateError, RequestReplaced)
    gives_up = counts_unread = True
    contexts: list[ReqContext]

    def make(self, choice: int) -> Engine:
        return ReqEngine(60.0, Random(choice), lambda: self.now)

    def waiting(self) -> int:
        return sum(context.reply is not None for context in self.contexts)

    @invariant()
    def nothing_is_sent_that_nobody_sends(self) -> None:
        assert self.written() >= self.targets, "a request may be sent again"


class ReqOnceMachine(ReqMachine):
    errors = (StateError, RequestReplaced, RequestLost)

    def make(self, choice: int) -> Engine:
        return ReqEngine(None, Random(choice), lambda: self.now)

    @invariant()
    def nothing_is_sent_twice(self) -> None:
        sent = [message.header for pipe in self.pipes for message in pipe.taken]
        assert len(sent) == len(set(sent))
        assert self.written() == self.targets


class RepMachine(EngineMachine):
    errors = (StateError,)

    def make(self, choice: int) -> Engine:
        return RepEngine(OPTIONS, ttl=choice % 2 + 1)


class RespondentMachine(EngineMachine):
    errors = (StateError,)

    def make(self, choice: int) -> Engine:
        return RespondentEngine(OPTIONS, ttl=choice % 2 + 1)


class BacktraceMachine(EngineMachine):
    """A raw engine whose messages have a backtrace."""

    def header(self, pick: int, data: bytes) -> bytes:
        pipes = [*self.pipes, *self.past]
        word = word_of(pipes[pick % len(pipes)]) if pipes and pick % 2 else b""
        return word + data + ID * (pick % 3 == 0)

    def is_legal(self, header: bytes) -> bool:
        words = [header[place : place + 4] for place in range(0, len(header), 4)]
        return bool(words) and len(words[-1]) == 4 and [word[0] >= 0x80 for word in words] == [False] * (len(words) - 1) + [True]


class RawReqMachine(BacktraceMachine):
    def make(self, choice: int) -> Engine:
        return RawReqEngine(OPTIONS)


class RawRepMachine(BacktraceMachine):
    def make(self, choice: int) -> Engine:
        return RawRepEngine(OPTIONS, ttl=choice % 2 + 1)

    @precondition(lambda self: self.engine.queued())
    @rule()
    def an_answer_goes_the_way_that_its_request_came(self) -> None:
        message = self.engine.receive()
        self.delivered.setdefault(id(self.engine), []).append(message.body)
        pipe = cast("StrictPipe", message.pipe)
        before = pipe.accepted
        self.send_by(self.engine.send, message)
        assert pipe.accepted - before <= 1
        assert pipe.accepted == before or pipe.taken[-1].header == message.header[4:]
        assert pipe.accepted > before or pipe not in self.pipes or pipe.room == 0


class RawRespondentMachine(RawRepMachine):
    def make(self, choice: int) -> Engine:
        return RawRespondentEngine(OPTIONS, ttl=choice % 2 + 1)


# SURVEYOR


class SurveyorMachine(EngineMachine):
    errors = (StateError, Over)
    queues = gives_up = counts_unread = True
    contexts: list[SurveyorContext]

    def make(self, choice: int) -> Engine:
        return SurveyorEngine(OPTIONS, Random(choice), lambda: self.now, Over)

    def open(self, pick: int) -> Any:
        return self.engine.open_context([0.25, 1.0, 60.0][pick % 3])

    def targets_of(self, header: bytes) -> int:
        return max(1, len(self.pipes))

    @precondition(lambda self: len(self.contexts) > 1)
    @rule(pick=picks)
    def a_context_is_forgotten(self, pick: int) -> None:
        context = self.pick_context(pick)
        context.mailbox.wake = context.mailbox.fail = None
        with self.giving_up(counted=False):  # when it is collected, or else at its deadline
            self.leave(context)
            del context


class RawSurveyorMachine(BacktraceMachine):
    def make(self, choice: int) -> Engine:
        return RawSurveyorEngine(OPTIONS)

    def targets_of(self, header: bytes) -> int:
        return max(1, len(self.pipes))


# PUB and SUB


class PubMachine(EngineMachine):
    def make(self, choice: int) -> Engine:
        return PubEngine("oldest" if choice % 2 else "newest")

    def targets_of(self, header: bytes) -> int:
        return max(1, len(self.pipes))


class SubMachine(EngineMachine):
    queues = gives_up = True
    contexts: list[SubContext]

    def make(self, choice: int) -> Engine:
        return SubEngine(OPTIONS, "oldest" if choice % 2 else "newest")

    def copies_of(self, message: Message) -> int:
        return sum(context.subscriptions.match(message.body) for context in self.contexts)

    @precondition(lambda self: self.contexts)
    @rule(pick=picks, prefix=prefixes)
    def subscribe(self, pick: int, prefix: bytes) -> None:
        context: SubContext = self.pick_context(pick)
        context.subscribe(prefix)

    @precondition(lambda self: self.contexts)
    @rule(pick=picks, prefix=prefixes)
    def unsubscribe(self, pick: int, prefix: bytes) -> None:
        context: SubContext = self.pick_context(pick)
        with self.giving_up():
            context.unsubscribe(prefix)


# BUS


class BusMachine(EngineMachine):
    def make(self, choice: int) -> Engine:
        policy: DropPolicy = "oldest" if choice % 2 else "newest"
        return BusEngine(OPTIONS, policy)

    def targets_of(self, header: bytes) -> int:
        return max(1, len(self.pipes))


class RawBusMachine(EngineMachine):
    def make(self, choice: int) -> Engine:
        return RawBusEngine(OPTIONS, "oldest" if choice % 2 else "newest")

    def header(self, pick: int, data: bytes) -> bytes:
        return word_of(self.pick_pipe(pick)) if self.pipes and pick % 2 else data

    def is_legal(self, header: bytes) -> bool:
        return len(header) in (0, 4)

    def targets_of(self, header: bytes) -> int:
        return max(1, sum(word_of(pipe) != header for pipe in self.pipes))

    @invariant()
    def the_header_is_never_on_the_wire(self) -> None:
        assert not any(message.header for pipe in self.pipes for message in pipe.taken)


# PUSH and PULL


class PushMachine(EngineMachine):
    def make(self, choice: int) -> Engine:
        return PushEngine()


class PullMachine(EngineMachine):
    def make(self, choice: int) -> Engine:
        return PullEngine(OPTIONS)


# PAIR


class Pair0Machine(EngineMachine):
    places = 1

    def make(self, choice: int) -> Engine:
        return Pair0Engine(OPTIONS)

    def send_by(self, send: Callable[[Message], bool], message: Message) -> None:
        room = any(pipe.room != 0 for pipe in self.pipes)
        before = self.targets
        super().send_by(send, message)
        assert self.targets - before == room or not self.is_legal(message.header) or message.header == b"\0\0\0\xff"


class Pair1Machine(Pair0Machine):
    sensible = b"\0\0\0\1"

    def make(self, choice: int) -> Engine:
        return Pair1Engine(OPTIONS, ttl=choice % 2 + 1)

    @invariant()
    def every_message_has_made_a_hop(self) -> None:
        assert all(message.header[:3] == bytes(3) and message.header[3] for pipe in self.pipes for message in pipe.taken)


class RawPair1Machine(Pair1Machine):
    def make(self, choice: int) -> Engine:
        return RawPair1Engine(OPTIONS, ttl=choice % 2 + 1)

    def header(self, pick: int, data: bytes) -> bytes:
        return bytes([0, 0, 0, pick % 256 if pick % 3 else 255]) if pick % 2 else data

    def is_legal(self, header: bytes) -> bool:
        return len(header) == 4 and header[:3] == bytes(3)


class PolyPair1Machine(EngineMachine):
    sensible = b"\0\0\0\1"

    def make(self, choice: int) -> Engine:
        return PolyPair1Engine(OPTIONS, ttl=choice % 2 + 1)

    @precondition(lambda self: self.pipes or self.past)
    @rule(pick=picks, body=small)
    def send_to(self, pick: int, body: bytes) -> None:
        pipes = [*self.pipes, *self.past]
        pipe = pipes[pick % len(pipes)]
        before = {other: other.accepted for other in pipes}
        self.send_by(self.engine.lane_to(pipe).send, Message(body))
        assert [other for other in pipes if other.accepted != before[other]] in ([], [pipe])

    def send_by(self, send: Callable[[Message], bool], message: Message) -> None:
        before = {pipe: pipe.accepted for pipe in self.pipes}
        super().send_by(send, message)
        if send == self.engine.send:
            assert [pipe for pipe in self.pipes if pipe.accepted != before[pipe]] in ([], self.pipes[:1]), "the oldest"


MACHINES = {
    "TestReq": ReqMachine,
    "TestReqOnce": ReqOnceMachine,
    "TestRawReq": RawReqMachine,
    "TestRep": RepMachine,
    "TestRawRep": RawRepMachine,
    "TestSurveyor": SurveyorMachine,
    "TestRawSurveyor": RawSurveyorMachine,
    "TestRespondent": RespondentMachine,
    "TestRawRespondent": RawRespondentMachine,
    "TestPub": PubMachine,
    "TestSub": SubMachine,
    "TestBus": BusMachine,
    "TestRawBus": RawBusMachine,
    "TestPush": PushMachine,
    "TestPull": PullMachine,
    "TestPair0": Pair0Machine,
    "TestPair1": Pair1Machine,
    "TestRawPair1": RawPair1Machine,
    "TestPolyPair1": PolyPair1Machine,
}
for name, machine in MACHINES.items():
    machine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
    globals()[name] = machine.TestCase


@pytest.mark.parametrize("kind", MACHINES.values(), ids=MACHINES)
def test_an_engine_says_whether_it_sends_by_all_pipes(kind: type[EngineMachine]) -> None:
    machine = kind()
    engine = machine.make(0)
    assert engine.fans_out is (kind.targets_of is not EngineMachine.targets_of)
