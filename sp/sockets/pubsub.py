"""PUB and SUB: messages for all that subscribe to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Unpack, cast

from sp.checks import check_choice
from sp.core.budget import CheckpointBudget
from sp.core.core import Core
from sp.interrupts import uninterrupted
from sp.message import BytesLike, to_body
from sp.options import DROP_POLICIES, DropPolicy, SocketKeywords
from sp.protocols.pub import PubEngine
from sp.protocols.sub import SubContext, SubEngine
from sp.sockets.base import Context, Socket, options_from
from sp.sockets.verbs import ReceiveManyVerbs, SendManyVerbs


@uninterrupted
class Pub0(Socket, SendManyVerbs):
    """Sends each message to all subscribers.

    ``send`` never waits.  A subscriber that does not keep up misses messages.  A message without
    any subscriber is dropped.  ``statistics().dropped`` counts both.  Filtering happens at the
    subscribers, so each one is sent all messages.

    *outbox_drops* (``"oldest"`` or ``"newest"``, default ``"oldest"``): which message a full
    subscriber misses, the oldest that waits for it or the new one.
    """

    def __init__(self, *, outbox_drops: DropPolicy = "oldest", **options: Unpack[SocketKeywords]) -> None:
        engine = PubEngine(check_choice("outbox_drops", outbox_drops, DROP_POLICIES))
        super().__init__(engine, options_from(options, "outbox_drops"))
        self._sender = self._batch_sender = engine


@uninterrupted
class Sub0Context(ReceiveManyVerbs, Context):
    """Topics and a queue of its own.

    The topics of the socket and of its other contexts have no effect here.
    """

    def __init__(self, core: Core, budget: CheckpointBudget, conversation: SubContext) -> None:
        super().__init__(core, budget, conversation, core.receivers(conversation.mailbox))
        self._receiver = self._batch_receiver = self._subscriptions = conversation

    def subscribe(self, prefix: BytesLike) -> None:
        """Receive messages whose body begins with *prefix* from now on; ``b""`` matches all.

        Does nothing if that subscription exists.
        """
        self._check_open()
        self._subscriptions.subscribe(to_body(prefix, "a subscription"))

    def unsubscribe(self, prefix: BytesLike) -> None:
        """End the subscription, and drop queued messages that no other subscription matches.

        Raises ValueError if there is no such subscription.
        """
        self._check_open()
        if not self._subscriptions.unsubscribe(to_body(prefix, "a subscription")):
            raise ValueError(f"not subscribed to {bytes(prefix)!r}")


@uninterrupted
class Sub0(Socket, ReceiveManyVerbs):
    """Receives the messages of PUB peers whose body begins with one of its topics.

    Without a topic it receives nothing.  ``subscribe`` and ``unsubscribe`` change the topics at any
    time.  ``context`` opens further queues, each with topics of its own.  A queue without topics
    gets nothing.  If a call waits on it while another queue of the socket has topics, the log warns
    once.

    *topics* (bytes, or a sequence of them; default none): what to subscribe to at first; ``b""``
    matches all messages.  *inbox_drops* (``"oldest"`` or ``"newest"``, default ``"oldest"``): which
    message to drop when the inbox stays full, the oldest in it or the new one.

    When the application falls behind, publishers are slowed down for 0.1 s; then messages are
    dropped and counted.  If ``receive`` is cancelled, no message is lost.
    """

    def __init__(
        self,
        *,
        topics: BytesLike | Sequence[BytesLike] = (),
        inbox_drops: DropPolicy = "oldest",
        **options: Unpack[SocketKeywords],
    ) -> None:
        keywords = options_from(options, "topics", "inbox_drops")
        self._engine = SubEngine(keywords, check_choice("inbox_drops", inbox_drops, DROP_POLICIES))
        super().__init__(self._engine, keywords)
        self._receiver = self._batch_receiver = self._subscriptions = self._engine.open_context()
        self._receivers = self._core.receivers(self._subscriptions.mailbox)
        if isinstance(topics, str | bytes | bytearray | memoryview):
            topics = (cast("BytesLike", topics),)
        if not isinstance(topics, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"topics must be a prefix or several, each bytes, not {topics!r}")
        for topic in topics:
            self.subscribe(topic)

    def subscribe(self, prefix: BytesLike) -> None:
        """Receive messages whose body begins with *prefix* from now on; ``b""`` matches all.

        Does nothing if that subscription exists.
        """
        self._core.check_caller()
        self._subscriptions.subscribe(to_body(prefix, "a subscription"))

    def unsubscribe(self, prefix: BytesLike) -> None:
        """End the subscription, and drop queued messages that no other subscription matches.

        Raises ValueError if there is no such subscription.
        """
        self._core.check_caller()
        if not self._subscriptions.unsubscribe(to_body(prefix, "a subscription")):
            raise ValueError(f"not subscribed to {bytes(prefix)!r}")

    def context(self) -> Sub0Context:
        """Open another queue, with topics of its own."""
        self._check_open()
        return Sub0Context(self._core, self._budget, self._engine.open_context())
