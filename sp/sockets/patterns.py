"""The sockets: an engine each, and the verbs that its protocol allows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import SystemRandom
from typing import TypeVar, Unpack, cast

import trio

from sp.checks import check_choice, check_flag, check_seconds, check_seconds_or_none, check_ttl
from sp.core.core import Core
from sp.errors import StateError
from sp.interrupts import uninterrupted
from sp.message import BytesLike, Message, to_body
from sp.options import DROP_POLICIES, DropPolicy, SocketKeywords
from sp.protocols.bus import BusEngine, RawBusEngine
from sp.protocols.engine import Sender
from sp.protocols.pair0 import Pair0Engine
from sp.protocols.pair1 import Pair1Engine, PolyPair1Engine, RawPair1Engine
from sp.protocols.pub import PubEngine
from sp.protocols.pull import PullEngine
from sp.protocols.push import PushEngine
from sp.protocols.rep import RawRepEngine, RepEngine
from sp.protocols.req import RawReqEngine, ReqEngine
from sp.protocols.respondent import RawRespondentEngine, RespondentEngine
from sp.protocols.sub import SubEngine
from sp.protocols.surveyor import RawSurveyorEngine, SurveyorEngine
from sp.sockets.base import Socket, options_from
from sp.sockets.context import Rep0Context, Req0Context, Request, Respondent0Context, Sub0Context, Surveyor0Context
from sp.sockets.verbs import ReceiveManyVerbs, ReceiveVerbs, SendManyVerbs, SendVerbs

_Engine = TypeVar("_Engine")


def _cooked(engine: _Engine | None, what: str) -> _Engine:
    """Return *engine*, or say that a raw socket has no *what*."""
    if engine is None:
        raise StateError(f"a raw socket has no {what}: its messages bring their headers with them")
    return engine


@uninterrupted
class Req0(Socket, SendVerbs, ReceiveVerbs, trio.abc.Channel[bytes]):
    """Asks a question and waits for the answer; several peers share the questions in turn.

    ``send`` waits while no peer has room.  A request whose pipe dies is sent again at once, to another peer if there is one, and one
    without an answer after *resend_after* seconds (None: never; then a lost pipe raises RequestLost in ``receive``).
    ``send`` and ``receive`` are one conversation, where a new request replaces the old; ``request`` and ``context`` make others.
    A cancelled ``receive`` leaves the request under way (nanomsg does so; nng and mangos give it up).

    *raw*: ``send_message`` takes, and ``receive_message`` returns, messages with their backtrace; there are no conversations.
    """

    def __init__(self, *, resend_after: float | None = 60.0, raw: bool = False, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "resend_after", "raw")
        seconds = check_seconds_or_none("resend_after", resend_after)
        self._engine: ReqEngine | None = None
        if check_flag("raw", raw):
            engine = RawReqEngine(keywords)
            super().__init__(engine, keywords, raw=True)
            self._sender, self._receiver = engine, engine
            self._receivers = self._core.receivers(engine.mailbox)
        else:
            self._engine = ReqEngine(seconds, SystemRandom(), trio.current_time)
            super().__init__(self._engine, keywords)
            self._sender = self._receiver = conversation = self._engine.open_context()
            self._receivers = self._core.receivers(conversation.mailbox, exclusive=True)

    async def request(self, value: BytesLike) -> bytes:
        """Send *value* and return the body of the reply, in a conversation of its own: any number of tasks may do so at once.

        Cancelled, the request is given up; whether the peer has seen it, nobody knows.
        """
        context = self.context()
        try:
            await context.send(value)
            return await context.receive()
        finally:
            context.drop()

    def context(self) -> Req0Context:
        """Open another conversation."""
        self._check_open()
        return Req0Context(self._core, self._budget, _cooked(self._engine, "conversations").open_context())


@uninterrupted
class RequestStream:
    """An async iterator over the requests of a REP socket or the surveys of a RESPONDENT, each one a conversation of its own."""

    def __init__(self, socket: Rep0 | Respondent0, core: Core) -> None:
        self._socket = socket
        self._core = core

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> Request:
        """Wait for the next one; the iteration ends as that over a socket does.

        Cancelled, none is lost.
        """
        try:
            context = self._socket.context()
            return Request(context, await context.receive_message())
        except trio.ClosedResourceError:
            if not self._core.closed_in_order:
                raise
            raise StopAsyncIteration from None


@uninterrupted
class Rep0(Socket, SendVerbs, ReceiveVerbs, trio.abc.Channel[bytes]):
    """Receives questions and answers them.

    ``receive`` and ``send`` are one conversation, a question at a time, where a question that was not answered is given up by the next
    ``receive``; ``requests`` and ``context`` make others.  ``send`` waits while the requester does not read, so a service for
    strangers should use ``requests``, where that holds up one answer and not the service.
    Requests that come through *ttl* devices or more (1 to 255) are dropped and counted.

    *raw*: ``receive_message`` returns messages whose header begins with the id of their pipe, and ``send_message`` takes it off again.
    Replies to nobody, or to somebody without room, are dropped and counted.
    """

    def __init__(self, *, ttl: int = 8, raw: bool = False, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "ttl", "raw")
        self._engine: RepEngine | None = None
        if check_flag("raw", raw):
            engine = RawRepEngine(keywords, check_ttl(ttl))
            super().__init__(engine, keywords, raw=True)
            self._sender, self._receiver = engine, engine
            self._receivers = self._core.receivers(engine.mailbox)
        else:
            self._engine = RepEngine(keywords, check_ttl(ttl))
            super().__init__(self._engine, keywords)
            self._sender = self._receiver = self._engine.open_context()
            self._receivers = self._core.receivers(self._engine.inbox)

    def requests(self) -> RequestStream:
        """Return an async iterator over requests that can be answered in any order, by any task."""
        _cooked(self._engine, "conversations")
        return RequestStream(self, self._core)

    def context(self) -> Rep0Context:
        """Open another conversation."""
        self._check_open()
        return Rep0Context(self._core, self._budget, _cooked(self._engine, "conversations").open_context(), self._receivers)


@uninterrupted
class Survey:
    """An async iterator over the answers to one survey, in a conversation of its own; it ends with the survey's time.

    The survey is sent when the iteration begins, and forgotten when its time is up or by ``close``, whatever comes first.
    """

    def __init__(self, context: Surveyor0Context, value: bytes) -> None:
        self._context = context
        self._value: bytes | None = value
        self._over = False

    def __aiter__(self) -> Survey:
        return self

    async def __anext__(self) -> bytes:
        """Wait for the next answer and return its body.  Cancelled, none is lost, and the survey may be under way."""
        if self._over:
            await trio.lowlevel.checkpoint()
            raise StopAsyncIteration
        value, self._value = self._value, None
        if value is not None:
            try:
                await self._context.send(value)
            except BaseException:
                self._value = value
                raise
        try:
            return await anext(self._context)
        except StopAsyncIteration:
            self.close()
            raise

    def close(self) -> None:
        """End the survey: further answers are late.  A second time does nothing."""
        self._context.close()
        self._over = True

    async def aclose(self) -> None:
        """Do as ``close``, for ``contextlib.aclosing``."""
        self.close()
        await self._context.aclose()

    def __repr__(self) -> str:
        return f"<Survey {'over' if self._over else 'not begun' if self._value is not None else 'under way'}>"


@uninterrupted
class Surveyor0(Socket, SendVerbs, ReceiveVerbs, trio.abc.Channel[bytes]):
    """Asks everybody and takes the answers that come in time.

    ``send`` begins a survey of *deadline* seconds, and ends the one before; it never waits, and who has no room misses the survey.
    ``receive`` returns an answer, and raises trio.EndOfChannel when the time is up and no answer is left, so that ``async for`` ends.
    ``survey`` and ``context`` make conversations beside that one.  An application that does not receive holds its respondents back for a
    tenth of a second; then their newest answers are dropped and counted.

    *raw*: ``send_message`` takes, and ``receive_message`` returns, messages with their backtrace; there is no deadline.
    """

    def __init__(self, *, deadline: float = 1.0, raw: bool = False, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "deadline", "raw")
        self._deadline = check_seconds("deadline", deadline)
        self._engine: SurveyorEngine | None = None
        if check_flag("raw", raw):
            engine = RawSurveyorEngine(keywords)
            super().__init__(engine, keywords, raw=True)
            self._sender, self._receiver = engine, engine
            self._receivers = self._core.receivers(engine.mailbox)
        else:
            self._engine = SurveyorEngine(keywords, SystemRandom(), trio.current_time, trio.EndOfChannel)
            super().__init__(self._engine, keywords)
            self._sender = self._receiver = conversation = self._engine.open_context(self._deadline)
            self._receivers = self._core.receivers(conversation.mailbox)

    def survey(self, value: BytesLike, *, deadline: float | None = None) -> Survey:
        """Return an async iterator that sends *value* to everybody and gives the bodies of the answers.

        It is sent when the iteration begins, and ends *deadline* seconds later (None: as the socket has it).  Any number may be under
        way at once.  Leaving the loop early, ``close`` it, or its answers go on taking room until then.
        Raises TypeError and ValueError for a *value* or *deadline* that cannot be, StateError for a raw socket, ClosedResourceError.
        """
        return Survey(self.context(deadline=deadline), to_body(value))

    def context(self, *, deadline: float | None = None) -> Surveyor0Context:
        """Open another conversation, whose surveys take *deadline* seconds (None: as the socket has it)."""
        self._check_open()
        seconds = self._deadline if deadline is None else check_seconds("deadline", deadline)
        return Surveyor0Context(self._core, self._budget, _cooked(self._engine, "conversations").open_context(seconds))


@uninterrupted
class Respondent0(Socket, SendVerbs, ReceiveVerbs, trio.abc.Channel[bytes]):
    """Receives surveys and answers them.

    ``receive`` and ``send`` are one conversation, a survey at a time, where one that was not answered is given up by the next
    ``receive``; ``surveys`` and ``context`` make others.  ``send`` waits while the surveyor does not read.
    Surveys that come through *ttl* devices or more (1 to 255) are dropped and counted.

    *raw*: as with :class:`Rep0`.
    """

    def __init__(self, *, ttl: int = 8, raw: bool = False, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "ttl", "raw")
        self._engine: RespondentEngine | None = None
        if check_flag("raw", raw):
            engine = RawRespondentEngine(keywords, check_ttl(ttl))
            super().__init__(engine, keywords, raw=True)
            self._sender, self._receiver = engine, engine
            self._receivers = self._core.receivers(engine.mailbox)
        else:
            self._engine = RespondentEngine(keywords, check_ttl(ttl))
            super().__init__(self._engine, keywords)
            self._sender = self._receiver = self._engine.open_context()
            self._receivers = self._core.receivers(self._engine.inbox)

    def surveys(self) -> RequestStream:
        """Return an async iterator over surveys that can be answered in any order, by any task, or not at all."""
        _cooked(self._engine, "conversations")
        return RequestStream(self, self._core)

    def context(self) -> Respondent0Context:
        """Open another conversation."""
        self._check_open()
        return Respondent0Context(self._core, self._budget, _cooked(self._engine, "conversations").open_context(), self._receivers)


@uninterrupted
class Push0(Socket, SendManyVerbs):
    """Hands each message to one of its peers, in turn; ``send`` waits while none has room.

    ``dial`` and ``listen`` take a priority.  *raw*: the same, for a device.
    """

    def __init__(self, *, raw: bool = False, **options: Unpack[SocketKeywords]) -> None:
        engine = PushEngine()
        super().__init__(engine, options_from(options, "raw"), raw=check_flag("raw", raw))
        self._sender = self._batch_sender = engine


@uninterrupted
class Pull0(Socket, ReceiveManyVerbs):
    """Receives the messages of its PUSH peers, from all of them alike.  Who is not received from is held back; nothing is dropped.

    *raw*: the same, for a device.
    """

    def __init__(self, *, raw: bool = False, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "raw")
        engine = PullEngine(keywords)
        super().__init__(engine, keywords, raw=check_flag("raw", raw))
        self._receiver = self._batches = engine
        self._receivers = self._core.receivers(engine.mailbox)


@uninterrupted
class Pair0(Socket, SendManyVerbs, ReceiveManyVerbs, trio.abc.Channel[bytes]):
    """Talks with one peer, both ways; ``send`` waits while it has no room, or is not there.  Nothing is dropped.

    The first peer stays until it leaves; another one is refused, with an event that says so, and can dial again later.
    *raw*: the same, for a device.
    """

    def __init__(self, *, raw: bool = False, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "raw")
        engine = Pair0Engine(keywords)
        super().__init__(engine, keywords, raw=check_flag("raw", raw))
        self._sender = self._batch_sender = engine
        self._receiver = self._batches = engine
        self._receivers = self._core.receivers(engine.mailbox)


@uninterrupted
class Pair1(Socket, SendManyVerbs, ReceiveManyVerbs, trio.abc.Channel[bytes]):
    """Talks with one peer, like :class:`Pair0`, and through devices.

    What comes through *ttl* devices or more (1 to 255) is dropped and counted.

    *poly*: with any number of peers.  ``receive_message`` tells by its ``pipe`` who has sent a message, ``send_message`` takes one with
    the ``pipe`` that it is to go to (``sp.Message(body, pipe=pipe)``), and ``send`` takes the peer that has been there for longest.
    *raw*: messages have their hops in the header; not together with *poly*.
    """

    def __init__(self, *, ttl: int = 8, poly: bool = False, raw: bool = False, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "ttl", "poly", "raw")
        if check_flag("poly", poly) and check_flag("raw", raw):
            raise ValueError("poly and raw cannot both be True: a raw socket has one peer")
        kind = PolyPair1Engine if poly else RawPair1Engine if check_flag("raw", raw) else Pair1Engine
        engine = kind(keywords, check_ttl(ttl))
        super().__init__(engine, keywords, raw=raw)
        self._sender = self._batch_sender = engine
        self._receiver = self._batches = engine
        self._receivers = self._core.receivers(engine.mailbox)
        self._poly = engine if isinstance(engine, PolyPair1Engine) else None

    def _sender_for(self, message: Message) -> Sender:
        if self._poly is None or message.pipe is None:
            return self._sender
        return self._poly.lane_to(self._core.task_of(message.pipe))


@uninterrupted
class Pub0(Socket, SendManyVerbs):
    """Sends each message to all subscribers that are there.

    Never waits: who does not keep up misses messages, the oldest of its outbox or the newest, as *outbox_drops* says.
    ``statistics().dropped`` counts them, and those that were sent to nobody.  *raw*: the same, for a device.
    """

    def __init__(self, *, outbox_drops: DropPolicy = "oldest", raw: bool = False, **options: Unpack[SocketKeywords]) -> None:
        engine = PubEngine(check_choice("outbox_drops", outbox_drops, DROP_POLICIES))
        super().__init__(engine, options_from(options, "outbox_drops", "raw"), raw=check_flag("raw", raw))
        self._sender = self._batch_sender = engine


@uninterrupted
class Sub0(Socket, ReceiveManyVerbs):
    """Receives the messages of publishers whose body begins with one of its topics; without a topic, none.

    An application that does not receive holds the publisher back for a tenth of a second; then messages are dropped, the oldest
    of the inbox or the newest, as *inbox_drops* says, and counted.

    ``context`` makes queues with topics of their own: those of the socket itself are not for them,
    nor theirs for it.  A call that receives without topics, while others of the socket have some,
    gets nothing, and the log a warning, once.

    *raw*: it receives everything, and has neither topics nor contexts.
    """

    def __init__(
        self,
        *,
        topics: BytesLike | Sequence[BytesLike] = (),
        inbox_drops: DropPolicy = "oldest",
        raw: bool = False,
        **options: Unpack[SocketKeywords],
    ) -> None:
        keywords = options_from(options, "topics", "inbox_drops", "raw")
        engine = SubEngine(keywords, check_choice("inbox_drops", inbox_drops, DROP_POLICIES))
        super().__init__(engine, keywords, raw=check_flag("raw", raw))
        self._engine = None if raw else engine
        self._receiver = self._batches = self._subscriptions = engine.open_context()
        self._receivers = self._core.receivers(self._subscriptions.mailbox)
        if raw:
            self._subscriptions.subscribe(b"")
        if isinstance(topics, str | bytes | bytearray | memoryview):
            topics = (cast("BytesLike", topics),)
        if not isinstance(topics, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"topics must be a prefix or several, each bytes, not {topics!r}")
        for topic in topics:
            self.subscribe(topic)

    def subscribe(self, prefix: BytesLike) -> None:
        """Receive messages whose body begins with *prefix*, from now on; ``b""`` is all.  A second time changes nothing."""
        self._core.check_caller()
        _cooked(self._engine, "topics")
        self._subscriptions.subscribe(to_body(prefix, "a subscription"))

    def unsubscribe(self, prefix: BytesLike) -> None:
        """End that subscription, and forget queued messages that no other one matches.  ValueError when there is none."""
        self._core.check_caller()
        _cooked(self._engine, "topics")
        if not self._subscriptions.unsubscribe(to_body(prefix, "a subscription")):
            raise ValueError(f"not subscribed to {bytes(prefix)!r}")

    def context(self) -> Sub0Context:
        """Open another queue, with subscriptions of its own."""
        self._check_open()
        return Sub0Context(self._core, self._budget, _cooked(self._engine, "topics").open_context())


@uninterrupted
class Bus0(Socket, SendManyVerbs, ReceiveManyVerbs, trio.abc.Channel[bytes]):
    """Sends each message to all directly connected peers; receives theirs.  Nothing is forwarded.

    Never waits to send: a peer that does not keep up misses the newest messages.  An application that does not receive holds its peers back
    for a tenth of a second; then messages are dropped, the newest or the oldest of the inbox, as *inbox_drops* says.  All are counted.

    *raw*: the header of a received message is the id of its pipe, and what is sent goes to everybody but the pipe in its header.
    """

    def __init__(self, *, inbox_drops: DropPolicy = "newest", raw: bool = False, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "inbox_drops", "raw")
        kind = RawBusEngine if check_flag("raw", raw) else BusEngine
        engine = kind(keywords, check_choice("inbox_drops", inbox_drops, DROP_POLICIES))
        super().__init__(engine, keywords, raw=raw)
        self._sender = self._batch_sender = engine
        self._receiver = self._batches = engine
        self._receivers = self._core.receivers(engine.mailbox)
