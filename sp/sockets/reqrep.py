"""REQ and REP: questions and answers."""

from __future__ import annotations

from collections.abc import Callable
from random import SystemRandom
from typing import Unpack

import trio

from sp.checks import check_seconds_or_none, check_ttl
from sp.core.budget import CheckpointBudget
from sp.core.core import Core
from sp.core.receivers import Receivers
from sp.errors import StateError
from sp.interrupts import uninterrupted
from sp.message import BytesLike, Message
from sp.options import SocketKeywords
from sp.pipe import Pipe
from sp.protocols.rep import RepContext, RepEngine
from sp.protocols.req import ReqContext, ReqEngine
from sp.sockets.base import Context, Socket, drop, options_from
from sp.sockets.verbs import ReceiveVerbs, SendVerbs
from sp.unique import Unique


class Req0Context(SendVerbs, ReceiveVerbs, Context, trio.abc.Channel[bytes]):
    """A REQ conversation: send a request, receive its reply, and again.

    It does what the socket's own ``send`` and ``receive`` do.  Any number of contexts can be in use
    at once.
    """

    def __init__(self, core: Core, budget: CheckpointBudget, conversation: ReqContext) -> None:
        super().__init__(core, budget, conversation, core.receivers(conversation.mailbox, exclusive=True))
        self._sender = self._receiver = conversation


@uninterrupted
class Req0(Socket, SendVerbs, ReceiveVerbs, trio.abc.Channel[bytes]):
    """Asks a question and waits for the answer.  Several peers get the questions in turn.

    Use ``request`` for one question and its answer.  Any number of tasks may call it at once.
    ``send`` and ``receive`` are one conversation of the socket.  In it, a new request replaces the
    one before, and a task that waits for the old reply gets RequestReplaced.  ``context`` opens
    further conversations.

    *resend_after* (seconds, default 60): how long to wait for a reply before the request is sent
    again.  None: requests are never sent again, and ``receive`` raises RequestLost when the pipe
    that carried the request ends.

    ``send`` waits while no peer has room.  A request whose pipe ends is sent again at once, to
    another peer if there is one.  Replies that belong to no current request are dropped and
    counted.  If ``receive`` is cancelled, the request stays under way and the next ``receive`` gets
    its reply.  (So does nanomsg; nng and mangos give the request up.)  ``dial`` and ``listen`` take
    a priority.
    """

    def __init__(self, *, resend_after: float | None = 60.0, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "resend_after")
        self._engine = ReqEngine(check_seconds_or_none("resend_after", resend_after), SystemRandom(), trio.current_time)
        super().__init__(self._engine, keywords)
        self._sender = self._receiver = conversation = self._engine.open_context()
        self._receivers = self._core.receivers(conversation.mailbox, exclusive=True)

    async def request(self, value: BytesLike) -> bytes:
        """Send *value* and return the body of its reply.

        Each call is a conversation of its own, so any number of tasks may call this at once.  If
        the call is cancelled, the request is given up, but the peer may have seen it.  Raises the
        errors of ``send`` and ``receive``.
        """
        context = self.context()
        try:
            await context.send(value)
            return await context.receive()
        finally:
            drop(context)

    def context(self) -> Req0Context:
        """Open another conversation on this socket."""
        self._check_open()
        return Req0Context(self._core, self._budget, self._engine.open_context())


class Rep0Context(SendVerbs, ReceiveVerbs, Context, trio.abc.Channel[bytes]):
    """A REP conversation: receive a request, send its reply, and again.

    All contexts of a socket, and the socket itself, take requests from the same queue.
    """

    def __init__(self, core: Core, budget: CheckpointBudget, conversation: RepContext, receivers: Receivers) -> None:
        super().__init__(core, budget, conversation, receivers)
        self._sender = self._receiver = conversation


@uninterrupted
class Request(Unique):
    """A request of a REP, or a survey of a RESPONDENT, with a method to answer it.

    Any task may answer it, once.  It may also stay unanswered: a requester then asks again, and a
    surveyor gets the answers of the others.
    """

    __slots__ = ("_context", "_message")

    def __init__(self, context: Rep0Context, message: Message) -> None:
        self._context = context
        self._message = message

    @property
    def body(self) -> bytes:
        """What was asked."""
        return self._message.body

    @property
    def pipe(self) -> Pipe | None:
        """The pipe that the request came by.  The reply goes back by it."""
        return self._message.pipe

    async def reply(self, value: BytesLike) -> None:
        """Answer with *value*; wait while the requester does not read.

        If the requester is gone, the reply is dropped and counted, without an error.  If the call
        is cancelled, nothing was sent and the request can still be answered.  Raises StateError
        when the request was answered before, TypeError for a *value* that is not bytes-like,
        ClosedResourceError when the socket is closed.
        """
        try:
            await self._context.send(value)
        except StateError:
            raise StateError("this request has already been answered") from None

    def __repr__(self) -> str:
        return f"<Request {len(self.body)} bytes from {self.pipe!r}>"


@uninterrupted
class RequestStream(Unique):
    """An async iterator over requests or surveys.

    Each one can be answered apart from the others.
    """

    def __init__(self, open_context: Callable[[], Rep0Context], core: Core) -> None:
        self._open_context = open_context
        self._core = core

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> Request:
        """Wait for the next request.  If the call is cancelled, none is lost.

        The iteration ends when the socket is closed by ``aclose`` or at the end of its block.  It
        raises ClosedResourceError when the socket is closed at once, by ``close`` or an exception.
        """
        try:
            context = self._open_context()
            return Request(context, await context.receive_message())
        except trio.ClosedResourceError:
            if not self._core.closed_in_order:
                raise
            raise StopAsyncIteration from None

    def __repr__(self) -> str:
        return f"<RequestStream of {self._core.name} {self._core.state}>"


@uninterrupted
class Rep0(Socket, SendVerbs, ReceiveVerbs, trio.abc.Channel[bytes]):
    """Receives questions and answers them.

    Use ``requests`` to answer many at once: a requester that does not read then delays its own
    replies only.  ``receive`` and ``send`` are one conversation of the socket, with one question at
    a time.  A new ``receive`` gives up a question that was not answered.  ``context`` opens further
    conversations.

    *ttl* (1 to 255, default 8): a request that came through that many devices or more is dropped
    and counted.

    ``send`` waits while the requester does not read.  A reply to a requester that is gone is
    dropped and counted.  When the application falls behind, requesters are slowed down; requests
    are not dropped.  If ``receive`` is cancelled, no request is lost.  If ``send`` is cancelled,
    nothing was sent and the question can still be answered.
    """

    def __init__(self, *, ttl: int = 8, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "ttl")
        self._engine = RepEngine(keywords, check_ttl(ttl))
        super().__init__(self._engine, keywords)
        self._sender = self._receiver = self._engine.open_context()
        self._receivers = self._core.receivers(self._engine.inbox)

    def requests(self) -> RequestStream:
        """Return an async iterator over requests.  Any task may answer them, in any order."""
        return RequestStream(self.context, self._core)

    def context(self) -> Rep0Context:
        """Open another conversation on this socket."""
        self._check_open()
        return Rep0Context(self._core, self._budget, self._engine.open_context(), self._receivers)
