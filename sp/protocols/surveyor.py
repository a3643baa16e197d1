"""SURVEYOR: asks all respondents at once, and takes answers until the time is up.

Each context has one survey at a time.

The header is a 32-bit survey id with its high bit set.  Ids start at random.  Respondents send the
id back unchanged (surveyor draft).  A respondent without room misses the survey, as in nanomsg, nng
and mangos.

Answers are accepted until the deadline.  They may come by any pipe, because a device passes on the
answers of many respondents.  Later answers, and answers to other surveys, are dropped and counted.
Answers that came in time can be received after the deadline (nng forgets them).  An answer of fewer
than four bytes ends the pipe, as in nng.  If the application does not receive, respondents are held
back for ``HOLD_TIME``; then their newest answers are dropped, as in mangos.
"""

from __future__ import annotations

import enum
import math
import weakref
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from random import Random
from typing import Final

from sp.errors import StateError
from sp.message import Message
from sp.options import SocketOptions
from sp.protocol_numbers import RESPONDENT, SURVEYOR
from sp.protocols.backtrace import Ids, backtrace_end, check_header, request_id_end
from sp.protocols.engine import HOLD_TIME, Engine, EnginePipe, Mailbox
from sp.protocols.inbox import Inbox, InboxEngine
from sp.statistics import DropReason

_SPARE: Final = 64
"""How many deadlines of surveys that ended early may be kept before the heap is built anew."""


class _State(enum.Enum):
    IDLE = "idle"
    OPEN = "open"
    OVER = "over"


class SurveyorContext:
    """One conversation, with one survey at a time."""

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
        """Begin a survey, and end the one before.

        Always True: a respondent without room misses it.
        """
        self._engine.start(self, message, self._seconds)
        return True

    def pipe_for(self, message: Message) -> EnginePipe | None:
        return None

    def receive(self) -> Message | None:
        """Return the next answer.

        When the time is up and no answer is left, raise the error that ``engine.over`` makes.
        """
        answer = self.inbox.take()
        if answer is None and self.state is not _State.OPEN:
            if self.state is _State.IDLE:
                raise StateError("SURVEYOR has no survey under way: send one first")
            raise self._engine.over("the survey is over: its time is up")
        return answer

    def close(self) -> None:
        """End the survey, if there is one.  Its further answers will be dropped."""
        self._engine.end(self)
        self.state = _State.IDLE
        self._engine.empty(self.inbox)


class SurveyorEngine(Engine):
    """The state behind a SURVEYOR socket.

    *over* makes the error for a ``receive`` after the end of the survey.
    """

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
        self._contexts: weakref.WeakKeyDictionary[SurveyorContext, None] = weakref.WeakKeyDictionary()
        # A heap of deadlines and ids.  It also has those of surveys that ended early.
        self._deadlines: list[tuple[float, bytes]] = []
        self._inbox_dropped = 0

    def open_context(self, seconds: float) -> SurveyorContext:
        """Open a conversation whose surveys take answers for *seconds*."""
        context = SurveyorContext(self, Inbox(self._options, "newest"), seconds)
        self._contexts[context] = None
        return context

    def start(self, context: SurveyorContext, message: Message, seconds: float) -> None:
        """Send *message* to all respondents as the survey of *context*."""
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
        """Drop and count the answers that wait in *inbox*."""
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
        references = self._contexts.keyrefs()  # in one step, since the caller may be another thread
        return sum(len(context.inbox) for reference in references if (context := reference()) is not None)

    def inbox_dropped(self) -> int:
        return self._inbox_dropped

    def _finish(self, context: SurveyorContext, reason: str) -> None:
        """End the survey of *context*.  A task that waits for its answers gets the error."""
        self.end(context)
        context.state = _State.OVER
        context.inbox.release()
        if context.inbox.fail is not None:
            context.inbox.fail(lambda: self.over(reason))


class RawSurveyorEngine(InboxEngine):
    """The state behind a raw SURVEYOR socket.

    Messages have their backtrace.  It matches nothing and has no deadlines.
    """

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
        """Offer *message* to all respondents.  Always True: one without room misses it."""
        check_header(message)
        self.offer_to_all(self._pipes, message)
        return True
