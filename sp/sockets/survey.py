"""SURVEYOR and RESPONDENT: one question to all peers, and the answers that come in time."""

from __future__ import annotations

from random import SystemRandom
from typing import Unpack

import trio

from sp.checks import check_seconds, check_ttl
from sp.core.budget import CheckpointBudget
from sp.core.core import Core
from sp.interrupts import uninterrupted
from sp.message import BytesLike, to_body
from sp.options import SocketKeywords
from sp.protocols.respondent import RespondentEngine
from sp.protocols.surveyor import SurveyorContext, SurveyorEngine
from sp.sockets.base import Context, Socket, options_from
from sp.sockets.reqrep import Rep0Context, RequestStream
from sp.sockets.verbs import ReceiveVerbs, SendVerbs
from sp.unique import Unique


class Surveyor0Context(SendVerbs, ReceiveVerbs, Context, trio.abc.Channel[bytes]):
    """A SURVEYOR conversation: send a survey, receive answers until the time is up, and repeat.

    It does what the socket's own ``send`` and ``receive`` do.  Any number of contexts can be in use
    at once.
    """

    def __init__(self, core: Core, budget: CheckpointBudget, conversation: SurveyorContext) -> None:
        super().__init__(core, budget, conversation, core.receivers(conversation.mailbox))
        self._sender = self._receiver = conversation


@uninterrupted
class Survey(Unique):
    """An async iterator over the answers to one survey.

    The survey is sent when the iteration begins.  It ends when its time is up, or when ``close`` is
    called.
    """

    def __init__(self, context: Surveyor0Context, value: bytes) -> None:
        self._context = context
        self._value: bytes | None = value
        self._over = False

    def __aiter__(self) -> Survey:
        return self

    async def __anext__(self) -> bytes:
        """Wait for the next answer and return its body.

        If the call is cancelled, no answer is lost.  If the survey was already sent, it continues.
        """
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
        """End the survey.

        Answers that come later are dropped and counted.  Does nothing the second time.
        """
        self._context.close()
        self._over = True

    async def aclose(self) -> None:
        """Do the same as ``close``, for ``contextlib.aclosing``."""
        self.close()
        await self._context.aclose()

    def __repr__(self) -> str:
        return f"<Survey {'over' if self._over else 'not begun' if self._value is not None else 'under way'}>"


@uninterrupted
class Surveyor0(Socket, SendVerbs, ReceiveVerbs, trio.abc.Channel[bytes]):
    """Asks all peers the same question and takes the answers that come in time.

    Use ``survey`` for one question and its answers.  ``send`` and ``receive`` are one conversation
    of the socket.  ``send`` begins a survey and ends the one before.  ``receive`` returns one
    answer.  When the time is up and no answer is left, ``receive`` raises trio.EndOfChannel, and
    ``async for`` ends.  ``context`` opens further conversations.

    *deadline* (seconds, default 1): how long a survey takes answers.

    ``send`` never waits: a peer without room misses the survey, which is counted.  Answers that
    come too late are dropped and counted.  When the application falls behind, respondents are
    slowed down for 0.1 s; then their newest answers are dropped and counted.  If ``receive`` is
    cancelled, no answer is lost.
    """

    def __init__(self, *, deadline: float = 1.0, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "deadline")
        self._deadline = check_seconds("deadline", deadline)
        self._engine = SurveyorEngine(keywords, SystemRandom(), trio.current_time, trio.EndOfChannel)
        super().__init__(self._engine, keywords)
        self._sender = self._receiver = conversation = self._engine.open_context(self._deadline)
        self._receivers = self._core.receivers(conversation.mailbox)

    def survey(self, value: BytesLike, *, deadline: float | None = None) -> Survey:
        """Return an async iterator that sends *value* to all peers and yields their answers.

        The survey is sent when the iteration begins, and takes answers for *deadline* seconds
        (None: the socket's deadline).  Any number of surveys may run at once.  If you leave the
        loop early, call ``close``; otherwise the survey collects answers until its time is up.
        Raises TypeError or ValueError for a wrong argument, ClosedResourceError when the socket is
        closed.
        """
        return Survey(self.context(deadline=deadline), to_body(value))

    def context(self, *, deadline: float | None = None) -> Surveyor0Context:
        """Open another conversation; its surveys take *deadline* seconds (None: the socket's)."""
        self._check_open()
        seconds = self._deadline if deadline is None else check_seconds("deadline", deadline)
        return Surveyor0Context(self._core, self._budget, self._engine.open_context(seconds))


class Respondent0Context(Rep0Context):
    """A RESPONDENT conversation: receive a survey, send its answer, and again.

    All contexts of a socket, and the socket itself, take surveys from the same queue.
    """


@uninterrupted
class Respondent0(Socket, SendVerbs, ReceiveVerbs, trio.abc.Channel[bytes]):
    """Receives surveys and answers them.

    Use ``surveys`` to answer many at once.  ``receive`` and ``send`` are one conversation of the
    socket, with one survey at a time.  A new ``receive`` gives up a survey that was not answered.
    ``context`` opens further conversations.

    *ttl* (1 to 255, default 8): a survey that came through that many devices or more is dropped and
    counted.

    ``send`` waits while the surveyor does not read.  An answer to a surveyor that is gone is
    dropped and counted.  When the application falls behind, surveyors are slowed down; surveys are
    not dropped.  If ``receive`` is cancelled, no survey is lost.  If ``send`` is cancelled, nothing
    was sent and the survey can still be answered.
    """

    def __init__(self, *, ttl: int = 8, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "ttl")
        self._engine = RespondentEngine(keywords, check_ttl(ttl))
        super().__init__(self._engine, keywords)
        self._sender = self._receiver = self._engine.open_context()
        self._receivers = self._core.receivers(self._engine.inbox)

    def surveys(self) -> RequestStream:
        """Return an async iterator over surveys.  Any task may answer them, in any order."""
        return RequestStream(self.context, self._core)

    def context(self) -> Respondent0Context:
        """Open another conversation on this socket."""
        self._check_open()
        return Respondent0Context(self._core, self._budget, self._engine.open_context(), self._receivers)
