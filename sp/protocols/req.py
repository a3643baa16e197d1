"""REQ: sends a request, and repeats it if necessary, until its reply comes.

Each context has one request at a time.

The header is a 32-bit request id with its high bit set.  Ids start at random.  The peer sends the
id back unchanged.

A request goes to the next pipe in turn that has room.  If that pipe ends, the request is sent again
as soon as another pipe has room.  It is also sent again if no reply has come for ``resend_after``
seconds.  A reply is accepted only from a pipe that carried its request: ids are consecutive, so
another peer could guess one.  Other replies are dropped and counted.  A reply of fewer than four
bytes ends the pipe, as in nng.

A raw REQ sends messages that have their backtrace already, once, to the next pipe in turn that has
room.  It receives all replies; the header is their whole backtrace, as in nng.  (In nanomsg and
mangos it is the first word.  On the wire there is no difference.)
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable
from itertools import takewhile
from random import Random

from sp.errors import Error, RequestLost, RequestReplaced, StateError
from sp.message import Message
from sp.options import SocketOptions
from sp.protocol_numbers import REP, REQ
from sp.protocols.backtrace import Ids, backtrace_end, check_header, request_id_end
from sp.protocols.balancer import Balancer
from sp.protocols.engine import Engine, EnginePipe, Mailbox
from sp.protocols.inbox import InboxEngine
from sp.statistics import DropReason


class _State(enum.Enum):
    IDLE = "idle"
    UNSENT = "unsent"
    """Its pipe has ended, and no other pipe has had room yet."""
    SENT = "sent"
    ANSWERED = "answered"


# These are looked up for every message, and looking up a member of an enum is slow.
_IDLE, _UNSENT, _SENT, _ANSWERED = _State.IDLE, _State.UNSENT, _State.SENT, _State.ANSWERED


class ReqContext:
    """One conversation: at most one request is under way."""

    __slots__ = ("_engine", "deadline", "earlier", "error", "mailbox", "pipe", "reply", "request", "state")

    def __init__(self, engine: ReqEngine) -> None:
        self._engine = engine
        self.mailbox = Mailbox()
        self.state = _IDLE
        self.request: Message | None = None
        self.pipe: EnginePipe | None = None  # the one that carried it last
        self.earlier: tuple[EnginePipe, ...] = ()  # those that carried it before and have not ended
        self.deadline = 0.0
        self.reply: Message | None = None
        self.error: Error | None = None

    def send(self, message: Message) -> bool:
        """Begin a request.

        It replaces the current one: a task that waits for that reply gets RequestReplaced.
        """
        return self._engine.start(self, message)

    def pipe_for(self, message: Message) -> EnginePipe | None:
        return None

    def receive(self) -> Message | None:
        """Return the reply, once; None: it has not come yet."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if self.state is _IDLE:
            raise StateError("REQ has no request under way: send one first")
        reply = self.reply
        if reply is not None:
            self.reply = None
            self.state = _IDLE
        return reply

    def close(self) -> None:
        """Give up the request, if there is one."""
        self._engine.abandon(self)


class ReqEngine(Engine):
    """The state behind a REQ socket."""

    number = REQ
    peer_number = REP
    find_body = staticmethod(request_id_end)
    timed = True
    balances = True

    def __init__(self, resend_after: float | None, random: Random, clock: Callable[[], float]) -> None:
        super().__init__()
        self._resend_after = resend_after
        self.sends_again = resend_after is not None
        self._clock = clock
        self._ids = Ids(random)
        self._balancer = Balancer()
        # By the id as it is on the wire; the request that was sent first comes first.
        self._under_way: dict[bytes, ReqContext] = {}
        # Contexts whose pipe has ended, in the order of their requests.
        self._unsent: OrderedDict[ReqContext, None] = OrderedDict()

    def open_context(self) -> ReqContext:
        return ReqContext(self)

    def start(self, context: ReqContext, message: Message) -> bool:
        """Send *message* as a new request for *context*.  False: no pipe has room for it."""
        message.header = self._ids.take(self._under_way)
        pipe = self._balancer.offer(message)
        if pipe is None:
            return False
        if context.mailbox.fail is not None and context.request is not None:
            context.mailbox.fail(lambda: RequestReplaced("a newer request on this context replaced the one you were waiting for"))
        self._forget(context)
        context.request = message
        context.error = None
        context.earlier = ()
        self._sent(context, pipe)
        return True

    def abandon(self, context: ReqContext) -> None:
        """Give up the request of *context*.  Its reply will be dropped."""
        self._forget(context)
        context.request = context.pipe = context.error = None
        context.earlier = ()

    def pipe_attached(self, pipe: EnginePipe) -> None:
        self._balancer.add(pipe)
        self._send_unsent()

    def pipe_has_room(self, pipe: EnginePipe) -> None:
        self._balancer.has_room(pipe)
        self._send_unsent()

    def pipe_detached(self, pipe: EnginePipe) -> None:
        self._balancer.remove(pipe)
        for context in [c for c in self._under_way.values() if c.pipe is pipe or pipe in c.earlier]:
            context.earlier = tuple(other for other in context.earlier if other is not pipe)
            if context.pipe is not pipe:
                continue
            context.pipe = None
            context.state = _UNSENT
            self._unsent[context] = None
            if self._resend_after is None:
                self._lose(context)
        self._send_unsent()

    def message_received(self, pipe: EnginePipe, message: Message) -> bool:
        context = self._under_way.get(message.header)
        if context is None or (context.pipe is not pipe and pipe not in context.earlier):
            self.dropped[DropReason.STALE_REPLY] += 1
            return True
        self._forget(context)
        context.state = _ANSWERED
        context.reply = message
        context.request = context.pipe = None
        context.earlier = ()
        if context.mailbox.wake is not None:
            context.mailbox.wake()
        return True

    def socket_closed(self) -> None:
        for context in list(self._under_way.values()):
            self.abandon(context)

    def next_deadline(self) -> float | None:
        for context in self._under_way.values():
            return context.deadline if self._resend_after is not None else None
        return None

    def deadline_reached(self, now: float) -> None:
        if self._resend_after is None:
            return
        due = list(takewhile(lambda context: context.deadline <= now, self._under_way.values()))
        for context in due:
            assert context.request is not None
            pipe = self._balancer.offer(context.request)
            if pipe is None:
                # No pipe has room: the request still waits in an outbox, or there is no pipe.
                self._stamp(context)
            else:
                if context.pipe is not None and context.pipe not in context.earlier:
                    context.earlier = (*context.earlier, context.pipe)
                self._sent(context, pipe)

    def _forget(self, context: ReqContext) -> None:
        """Expect no reply for *context* any more, and drop a reply that was not received."""
        if context.request is not None:
            self._under_way.pop(context.request.header, None)
        if context.reply is not None:
            self.dropped[DropReason.UNREAD] += 1
            context.reply = None
        if context.state is _UNSENT:
            del self._unsent[context]
        context.state = _IDLE

    def _sent(self, context: ReqContext, pipe: EnginePipe) -> None:
        if context.state is _UNSENT:
            del self._unsent[context]
        context.state = _SENT
        context.pipe = pipe
        self._stamp(context)

    def _stamp(self, context: ReqContext) -> None:
        """Set a new deadline for *context*, and put it after all others."""
        assert context.request is not None
        header = context.request.header
        if header in self._under_way:
            del self._under_way[header]
        self._under_way[header] = context
        if self._resend_after is not None:
            context.deadline = self._clock() + self._resend_after

    def _send_unsent(self) -> None:
        while self._unsent:
            context = next(iter(self._unsent))
            assert context.request is not None
            pipe = self._balancer.offer(context.request)
            if pipe is None:
                return
            self._sent(context, pipe)

    def _lose(self, context: ReqContext) -> None:
        """Give up the request of *context*.

        RequestLost goes to the task that waits, or else to the next ``receive``.
        """
        self.abandon(context)
        if context.mailbox.fail is not None:
            context.mailbox.fail(_request_lost)
        else:
            context.error = _request_lost()


def _request_lost() -> RequestLost:
    return RequestLost("the pipe that carried the request is gone, and resending is switched off")


class RawReqEngine(InboxEngine):
    """The state behind a raw REQ socket.

    It matches nothing, has no deadlines and sends nothing again.
    """

    number = REQ
    peer_number = REP
    find_body = staticmethod(backtrace_end)
    balances = True
    takes_headers = True

    def __init__(self, options: SocketOptions) -> None:
        super().__init__(options)
        self._balancer = Balancer()

    def pipe_attached(self, pipe: EnginePipe) -> None:
        self._balancer.add(pipe)

    def pipe_detached(self, pipe: EnginePipe) -> None:
        self._balancer.remove(pipe)
        super().pipe_detached(pipe)

    def pipe_has_room(self, pipe: EnginePipe) -> None:
        self._balancer.has_room(pipe)

    def check_message(self, message: Message) -> None:
        check_header(message)

    def send(self, message: Message) -> bool:
        """Offer *message* to the peers in turn.  False: none has room."""
        check_header(message)
        return self._balancer.offer(message) is not None
