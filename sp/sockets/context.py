"""Context: one conversation on a socket, beside others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from sp.errors import StateError
from sp.interrupts import uninterrupted
from sp.message import BytesLike, Message, to_body
from sp.protocols.rep import RepContext
from sp.protocols.req import ReqContext
from sp.protocols.sub import SubContext
from sp.protocols.surveyor import SurveyorContext
from sp.sockets.verbs import ReceiveManyVerbs, ReceiveVerbs, SendVerbs, Verbs

if TYPE_CHECKING:
    from sp.core.budget import CheckpointBudget
    from sp.core.core import Core
    from sp.core.receivers import Receivers
    from sp.pipe import Pipe


@uninterrupted
class Context(Verbs, trio.abc.AsyncResource):
    """One conversation.  Made by ``socket.context()``, closed with it, by ``close`` or at the end of its ``async with`` block."""

    def __init__(
        self,
        core: Core,
        budget: CheckpointBudget,
        conversation: ReqContext | RepContext | SubContext | SurveyorContext,
        receivers: Receivers,
    ) -> None:
        self._core = core
        self._budget = budget
        self._conversation = conversation
        self._receivers = receivers

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._closed else self._core.state}>"

    def close(self) -> None:
        """End the conversation.  A second time does nothing.

        A call that waits in it gets ClosedResourceError; a loop over it ends.
        """
        if self._core.may_close():
            self.drop()

    def drop(self) -> None:
        """Do as ``close``; for the library."""
        if not self._closed:
            self._closed = True
            self._conversation.close()
            self._receivers.fail(_closed, self._conversation)
            if not isinstance(self._conversation, SubContext):
                self._core.senders.fail(self._conversation, _closed)

    async def aclose(self) -> None:
        """Do as ``close``."""
        if self._core.may_close():
            self.drop()
            await trio.lowlevel.checkpoint()


def _closed() -> Exception:
    return trio.ClosedResourceError("the context is closed")


class Req0Context(SendVerbs, ReceiveVerbs, Context, trio.abc.Channel[bytes]):
    """A REQ conversation: send, receive, and again.  What the socket's own ``send`` and ``receive`` do, any number side by side."""

    def __init__(self, core: Core, budget: CheckpointBudget, conversation: ReqContext) -> None:
        super().__init__(core, budget, conversation, core.receivers(conversation.mailbox, exclusive=True))
        self._sender = self._receiver = conversation


class Rep0Context(SendVerbs, ReceiveVerbs, Context, trio.abc.Channel[bytes]):
    """A REP conversation: receive, send, and again.  All contexts of a socket take requests from the same queue."""

    def __init__(self, core: Core, budget: CheckpointBudget, conversation: RepContext, receivers: Receivers) -> None:
        super().__init__(core, budget, conversation, receivers)
        self._sender = self._receiver = conversation


class Respondent0Context(Rep0Context):
    """A RESPONDENT conversation: receive a survey, answer it, and again.  All contexts of a socket take surveys from the same queue."""


class Surveyor0Context(SendVerbs, ReceiveVerbs, Context, trio.abc.Channel[bytes]):
    """A SURVEYOR conversation, which sends a survey and receives answers: what the socket's own verbs do, any number side by side."""

    def __init__(self, core: Core, budget: CheckpointBudget, conversation: SurveyorContext) -> None:
        super().__init__(core, budget, conversation, core.receivers(conversation.mailbox))
        self._sender = self._receiver = conversation


@uninterrupted
class Sub0Context(ReceiveManyVerbs, Context):
    """Subscriptions of its own, and a queue of its own for what they match.

    Those of the socket itself do not count here.
    """

    def __init__(self, core: Core, budget: CheckpointBudget, conversation: SubContext) -> None:
        super().__init__(core, budget, conversation, core.receivers(conversation.mailbox))
        self._receiver = self._batches = self._subscriptions = conversation

    def subscribe(self, prefix: BytesLike) -> None:
        """Receive messages whose body begins with *prefix*, from now on; ``b""`` is all.  A second time changes nothing."""
        self._check_open()
        self._subscriptions.subscribe(to_body(prefix, "a subscription"))

    def unsubscribe(self, prefix: BytesLike) -> None:
        """End that subscription, and forget queued messages that no other one matches.  ValueError when there is none."""
        self._check_open()
        if not self._subscriptions.unsubscribe(to_body(prefix, "a subscription")):
            raise ValueError(f"not subscribed to {bytes(prefix)!r}")


@uninterrupted
class Request:
    """A request or a survey, and the way back.

    It may be answered once, by any task, or be left unanswered: a requester then asks again, a surveyor hears from the others.
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
        """The pipe that it came by, and that the reply will go."""
        return self._message.pipe

    async def reply(self, value: BytesLike) -> None:
        """Answer; wait while the requester does not read.  A requester that is gone is no error: the reply is dropped and counted.

        Cancelled, nothing was sent and the request can still be answered.  Raises StateError when it was answered already.
        """
        try:
            await self._context.send(value)
        except StateError:
            raise StateError("this request was answered already") from None

    def __repr__(self) -> str:
        return f"<Request {len(self.body)} bytes from {self.pipe!r}>"
