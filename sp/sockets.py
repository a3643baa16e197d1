"""The sockets: an engine each, and the verbs that its protocol allows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import SystemRandom
from typing import Unpack, cast

import trio

from sp.context import Rep0Context, Req0Context, Request, Sub0Context
from sp.message import BytesLike
from sp.options import DropPolicy, SocketKeywords, check_policy, check_seconds, check_ttl
from sp.protocols.bus import BusEngine
from sp.protocols.pub import PubEngine
from sp.protocols.rep import RepEngine
from sp.protocols.req import ReqEngine
from sp.protocols.sub import SubEngine
from sp.socket_base import Socket, options_from
from sp.verbs import ReceiveManyVerbs, ReceiveVerbs, SendManyVerbs, SendVerbs, prefix_of


class Req0(Socket, SendVerbs, ReceiveVerbs, trio.abc.Channel[bytes]):
    """Asks a question and waits for the answer; several peers share the questions in turn.

    ``send`` waits while no peer has room.  A request whose pipe dies is sent again at once, to another peer if there is one, and one
    without an answer after *resend_after* seconds (None: never; then a lost pipe raises RequestLost in ``receive``).
    ``send`` and ``receive`` are one conversation, where a new request replaces the old; ``request`` and ``context`` make others.
    A cancelled ``receive`` leaves the request under way (nanomsg does so; nng and mangos give it up).
    """

    def __init__(self, *, resend_after: float | None = 60.0, **options: Unpack[SocketKeywords]) -> None:
        engine = ReqEngine(check_seconds("resend_after", resend_after), SystemRandom(), trio.current_time)
        super().__init__(engine, options_from(options, "resend_after"))
        self._engine = engine
        self._sender = self._receiver = conversation = engine.open_context()
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
            context.close()

    def context(self) -> Req0Context:
        """Open another conversation."""
        self._check_open()
        return Req0Context(self._core, self._turns, self._engine.open_context())


class Requests:
    """An async iterator over the requests of a REP socket, each one a conversation of its own."""

    def __init__(self, socket: Rep0) -> None:
        self._socket = socket

    def __aiter__(self) -> Requests:
        return self

    async def __anext__(self) -> Request:
        """Wait for the next request.  Cancelled, none is lost."""
        context = self._socket.context()
        return Request(context, await context.receive_message())


class Rep0(Socket, SendVerbs, ReceiveVerbs, trio.abc.Channel[bytes]):
    """Receives questions and answers them.

    ``receive`` and ``send`` are one conversation, a question at a time, where a question that was not answered is given up by the next
    ``receive``; ``requests`` and ``context`` make others.  ``send`` waits while the requester does not read, so a service for
    strangers should use ``requests``, where that holds up one answer and not the service.
    Requests with more than *ttl* hops (1 to 255) are dropped.
    """

    def __init__(self, *, ttl: int = 8, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "ttl")
        engine = RepEngine(keywords, check_ttl(ttl))
        super().__init__(engine, keywords)
        self._engine = engine
        self._sender = self._receiver = engine.open_context()
        self._receivers = self._core.receivers(engine.inbox)

    def requests(self) -> Requests:
        """Return an async iterator over requests that can be answered in any order, by any task."""
        return Requests(self)

    def context(self) -> Rep0Context:
        """Open another conversation."""
        self._check_open()
        return Rep0Context(self._core, self._turns, self._engine.open_context(), self._receivers)


class Pub0(Socket, SendManyVerbs):
    """Sends each message to all subscribers that are there.

    Never waits: who does not keep up misses messages, the oldest of its outbox or the newest, as *outbox_drops* says.
    ``statistics().dropped`` counts them, and those that were sent to nobody.
    """

    def __init__(self, *, outbox_drops: DropPolicy = "oldest", **options: Unpack[SocketKeywords]) -> None:
        engine = PubEngine(check_policy("outbox_drops", outbox_drops))
        super().__init__(engine, options_from(options, "outbox_drops"))
        self._sender = engine


class Sub0(Socket, ReceiveManyVerbs):
    """Receives the messages of publishers whose body begins with one of its topics; without a topic, none.

    An application that does not receive holds the publisher back for a tenth of a second; then messages are dropped, the oldest
    of the inbox or the newest, as *inbox_drops* says, and counted.  ``context`` makes queues with topics of their own.
    """

    def __init__(
        self,
        *,
        topics: BytesLike | Sequence[BytesLike] = (),
        inbox_drops: DropPolicy = "oldest",
        **options: Unpack[SocketKeywords],
    ) -> None:
        keywords = options_from(options, "topics", "inbox_drops")
        engine = SubEngine(keywords, check_policy("inbox_drops", inbox_drops))
        super().__init__(engine, keywords)
        self._engine = engine
        self._receiver = self._batches = self._subscriptions = engine.open_context()
        self._receivers = self._core.receivers(self._subscriptions.mailbox)
        if isinstance(topics, str | bytes | bytearray | memoryview):
            topics = (cast("BytesLike", topics),)
        if not isinstance(topics, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"topics must be a prefix or several, each bytes, not {topics!r}")
        for topic in topics:
            self.subscribe(topic)

    def subscribe(self, prefix: BytesLike) -> None:
        """Receive messages whose body begins with *prefix*, from now on; ``b""`` is all.  A second time changes nothing."""
        self._subscriptions.subscribe(prefix_of(prefix))

    def unsubscribe(self, prefix: BytesLike) -> None:
        """End that subscription, and forget queued messages that no other one matches.  ValueError when there is none."""
        if not self._subscriptions.unsubscribe(prefix_of(prefix)):
            raise ValueError(f"not subscribed to {bytes(prefix)!r}")

    def context(self) -> Sub0Context:
        """Open another queue, with subscriptions of its own."""
        self._check_open()
        return Sub0Context(self._core, self._turns, self._engine.open_context())


class Bus0(Socket, SendManyVerbs, ReceiveManyVerbs, trio.abc.Channel[bytes]):
    """Sends each message to all directly connected peers; receives theirs.  Nothing is forwarded.

    Never waits to send: a peer that does not keep up misses the newest messages.  An application that does not receive holds its peers back
    for a tenth of a second; then messages are dropped, the newest or the oldest of the inbox, as *inbox_drops* says.  All are counted.
    """

    def __init__(self, *, inbox_drops: DropPolicy = "newest", **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "inbox_drops")
        engine = BusEngine(keywords, check_policy("inbox_drops", inbox_drops))
        super().__init__(engine, keywords)
        self._sender = self._receiver = self._batches = engine
        self._receivers = self._core.receivers(engine.mailbox)
