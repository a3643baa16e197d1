"""SURVEYOR: asks all respondents at once and takes their answers until its time is up; each context one survey at a time.

The 32-bit survey id before the body has its high bit set and starts at random; respondents give it back unchanged (surveyor draft).
A respondent without room misses the survey, as in nanomsg, nng and mangos.  An answer counts until the deadline, whatever pipe it
comes by, since a device passes on those of many; later ones, and those to no survey of ours, are dropped and counted, as everywhere.
What came in time can still be received afterwards (nng forgets it).  An answer of fewer than four bytes ends the pipe, as in nng.
An application that does not receive holds the respondents back for a moment, then their newest answers are dropped (mangos).
"""

from __future__ import annotations

import enum
import math
import weakref
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from random import Random
from typing import TYPE_CHECKING, Final

from sp.errors import StateError
from sp.message import Message
from sp.protocol_numbers import RESPONDENT, SURVEYOR
from sp.protocols.backtrace import Ids, backtrace_end, check_header, request_id_end
from sp.protocols.engine import HOLD_TIME, Engine, EnginePipe, Mailbox
from sp.protocols.inbox import Inbox, InboxEngine
from sp.statistics import DropReason

if TYPE_CHECKING:
    from sp.options import SocketOptions

_SPARE: Final = 64
"""Deadlines of surveys that ended before their time, which are kept until there are more of them than of others."""


class _State(enum.Enum):
    IDLE = "idle"
    OPEN = "open"
    OVER = "over"


class SurveyorContext:
    """One conversation: at most one survey is under way."""

    __slots__ = ("__weakref__", "_engine", "_seconds", "deadline", "header", "inbox", "state")

    def __init__(self, engine: SurveyorEngine, inbox: Inbox, seconds: float) -> None:
        self._engine = engine
        self._seconds = seconds
        self.inbox = inbox
        self.state = _State.IDLE
        self.header = b""
        self.deadline = math.inf

    @property
    def mailbox(self) -> Mailbox:
        return self.inbox

    def send(self, message: Message) -> bool:
        """Begin a survey, and end the one before.  Always taken: a respondent without room misses it."""
        self._engine.start(self, message, self._seconds)
        return True

    def pipe_for(self, message: Message) -> EnginePipe | None:
        return None

    def receive(self) -> Message | None:
        """Return the next answer.  Raises what *over* of the engine makes once the time is up and no answer is left."""
        answer = self.inbox.take()
        if answer is None and self.state is not _State.OPEN:
            if self.state is _State.IDLE:
                raise StateError("SURVEYOR has no survey under way: send one first")
            raise self._engine.over("the survey is over: its time is up")
        return answer

    def close(self) -> None:
        """End the survey, if there is one; its answers will be late."""
        self._engine.end(self)
        self.state = _State.IDLE
        self._engine.empty(self.inbox)


class SurveyorEngine(Engine):
    """The state behind a SURVEYOR socket.  *over* makes the error for those who want more answers than there are."""

    number = SURVEYOR
    peer_number = RESPONDENT
    fans_out = True
    find_body = staticmethod(request_id_end)
    timed = True
    deadlines_come_nearer = True
    hold_time = HOLD_TIME

    def __init__(self, options: SocketOptions, random: Random, clock: Callable[[], float], over: Callable[[str], Exception]) -> None:
        super().__init__()
        self.over = over
        self._options = options
        self._clock = clock
        self._ids = Ids(random)
        self._pipes: dict[EnginePipe, None] = {}
        self._under_way: dict[bytes, SurveyorContext] = {}  # by the id as it is on the wire
        self._contexts: weakref.WeakSet[SurveyorContext] = weakref.WeakSet()
        # A heap, with the ids: also of surveys that ended before their time.
        self._deadlines: list[tuple[float, bytes]] = []
        self._inbox_dropped = 0

    def open_context(self, seconds: float) -> SurveyorContext:
        """Open a conversation whose surveys take *seconds*."""
        context = SurveyorContext(self, Inbox(self._options, "newest"), seconds)
        self._contexts.add(context)
        return context

    def start(self, context: SurveyorContext, message: Message, seconds: float) -> None:
        """Send *message* to everybody as the survey of *context*."""
        if context.state is _State.OPEN:
            self._finish(context, "a new survey on this context ended the one you were waiting for")
        self.empty(context.inbox)
        message.header = context.header = self._ids.take(self._under_way)
        context.state = _State.OPEN
        context.deadline = self._clock() + seconds
        self._under_way[context.header] = context
        self._plan(context)
        self.offer_to_all(self._pipes, message)

    def end(self, context: SurveyorContext) -> None:
        """Forget the survey of *context*."""
        if self._under_way.get(context.header) is context:
            del self._under_way[context.header]

    def empty(self, inbox: Inbox) -> None:
        """Give up the answers that wait in *inbox*."""
        if len(inbox):
            self.dropped[DropReason.UNREAD] += len(inbox)
        inbox.purge(lambda _: False)

    def pipe_attached(self, pipe: EnginePipe) -> None:
        self._pipes[pipe] = None

    def pipe_detached(self, pipe: EnginePipe) -> None:
        self._pipes.pop(pipe, None)
        for context in self._under_way.values():
            context.inbox.forget(pipe)

    def message_received(self, pipe: EnginePipe, message: Message) -> bool:
        context = self._under_way.get(message.header)
        if context is None or context.deadline <= self._clock():
            self.dropped[DropReason.LATE_ANSWER] += 1
            return True
        inbox = context.inbox
        dropped = inbox.dropped
        taken = inbox.offer(pipe, message)
        self._inbox_dropped += inbox.dropped - dropped
        return taken

    def force_message(self, pipe: EnginePipe, message: Message) -> None:
        context = self._under_way.get(message.header)
        if context is not None:
            context.inbox.start_dropping()
        self.message_received(pipe, message)

    def next_deadline(self) -> float | None:
        return self._deadlines[0][0] if self._deadlines else None

    def deadline_reached(self, now: float) -> None:
        while self._deadlines:
            deadline, header = self._deadlines[0]
            context = self._under_way.get(header)
            is_open = context is not None and context.deadline == deadline
            if is_open and deadline > now:
                return
            heappop(self._deadlines)
            if context is not None and is_open:
                self._finish(context, "the survey is over: its time is up")

    def _plan(self, context: SurveyorContext) -> None:
        if len(self._deadlines) > 2 * len(self._under_way) + _SPARE:
            self._deadlines = [(context.deadline, header) for header, context in self._under_way.items()]
            heapify(self._deadlines)
        else:
            heappush(self._deadlines, (context.deadline, context.header))

    def socket_closed(self) -> None:
        for context in self._contexts:
            context.inbox.forget_bodies()

    def queued(self) -> int:
        return sum(len(context.inbox) for context in self._contexts)

    def inbox_dropped(self) -> int:
        return self._inbox_dropped

    def _finish(self, context: SurveyorContext, reason: str) -> None:
        """End the survey of *context* and tell who waits for its answers."""
        self.end(context)
        context.state = _State.OVER
        context.inbox.release()
        if context.inbox.fail is not None:
            context.inbox.fail(lambda: self.over(reason))


class RawSurveyorEngine(InboxEngine):
    """The state behind a raw SURVEYOR socket: surveys and answers bring their backtrace, and nothing is matched or timed."""

    number = SURVEYOR
    peer_number = RESPONDENT
    fans_out = True
    find_body = staticmethod(backtrace_end)
    takes_headers = True

    def __init__(self, options: SocketOptions) -> None:
        super().__init__(options)
        self._pipes: dict[EnginePipe, None] = {}

    def pipe_attached(self, pipe: EnginePipe) -> None:
        self._pipes[pipe] = None

    def pipe_detached(self, pipe: EnginePipe) -> None:
        self._pipes.pop(pipe, None)
        super().pipe_detached(pipe)

    def check_message(self, message: Message) -> None:
        check_header(message)

    def send(self, message: Message) -> bool:
        """Offer *message* to every respondent.  Always taken: one without room misses it."""
        check_header(message)
        self.offer_to_all(self._pipes, message)
        return True
