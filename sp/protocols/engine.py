"""The contract between engines and the rest of the library.

An engine is a protocol without I/O.  Its methods are called when something happens, and when the
application calls.  It answers with return values, offers messages to pipes, and wakes the tasks
that wait at a mailbox.  It never awaits, reads no clock and sees no byte stream.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from typing import Protocol

from sp.errors import PeerError
from sp.message import FindBody, Message
from sp.statistics import DropReason

HOLD_TIME = 0.1
"""Seconds to hold a pipe back before dropping messages, so that a burst loses nothing."""


class EnginePipe(Protocol):
    """A pipe as engines see it.  None of these methods calls the engine before it returns."""

    @property
    def id(self) -> int: ...

    @property
    def handle(self) -> object:
        """The value of ``message.pipe`` in messages that come by this pipe."""
        ...

    @property
    def priority(self) -> int:
        """From 1 (the best) to 16, for protocols that pick a pipe for each message."""
        ...

    @property
    def broken(self) -> bool:
        """Whether nothing more can be written.  ``pipe_detached`` follows."""
        ...

    @property
    def progress(self) -> int:
        """A number that grows whenever a peer that we waited for has read something."""
        ...

    def offer(self, message: Message, /) -> bool:
        """Queue *message* to be written.

        False: the outbox is full; ``pipe_has_room`` is called when it has room again.
        """
        ...

    def offer_many(self, messages: list[Message], /) -> int:
        """Offer *messages* in order until one is refused; return how many were taken."""
        ...

    def discard_oldest(self) -> bool:
        """Drop the oldest message that waits to be written.  False: there is none."""
        ...

    def resume(self) -> None:
        """Read again, after ``message_received`` returned False."""
        ...

    def hang_up(self, error: PeerError) -> None:
        """End the pipe because of *error*.

        ``pipe_detached`` is called later, never from within this call.
        """
        ...


class Mailbox:
    """Where the messages of a context arrive.

    Both attributes are None while no task waits for a message.
    """

    __slots__ = ("fail", "wake")

    def __init__(self) -> None:
        self.wake: Callable[[], None] | None = None
        """Call it when ``receive`` may succeed.

        It may call ``receive`` at once, so bring the state of the engine in order first.
        """
        self.fail: Callable[[Callable[[], Exception]], None] | None = None
        """Call it when the message that tasks wait for will never come.

        Its argument is a function that makes the error for those tasks.
        """


class Sender(Protocol):
    """The sending half of a context."""

    def send(self, message: Message) -> bool:
        """Take *message*.  False: try again when a pipe is attached or has room.

        Sets the header in either case.

        Raises StateError if the protocol does not allow sending now.
        """
        ...

    def pipe_for(self, message: Message) -> EnginePipe | None:
        """Return the pipe that must have room for *message*.  None: any pipe will do.

        This binds a reply to the current request.  If the application receives another request
        meanwhile, ``send`` raises StateError.  This method raises StateError if the protocol does
        not allow sending now.
        """
        ...


class BatchSender(Sender, Protocol):
    """The sending half of a socket that can send in batches."""

    def send_batch(self, messages: list[Message]) -> int:
        """Send *messages* in order until one is refused; return how many were taken."""
        ...


def send_each(send: Callable[[Message], bool], messages: list[Message]) -> int:
    """Call *send* with each of *messages* until one is refused; return how many were taken.

    For engines without a faster way.
    """
    for taken, message in enumerate(messages):
        if not send(message):
            return taken
    return len(messages)


class Receiver(Protocol):
    """The receiving half of a context."""

    @property
    def mailbox(self) -> Mailbox: ...

    def receive(self) -> Message | None:
        """Return the next message; None: there is none yet.

        Raises StateError if the protocol does not allow receiving now.
        """
        ...


class RawReceiver(Receiver, Protocol):
    """The receiving half of a raw socket."""

    def put_back(self, message: Message) -> None:
        """Take back *message*, which was received last.  It is the next one to be received."""
        ...


class BatchReceiver(Receiver, Protocol):
    """The receiving half of a context that can receive in batches."""

    def receive_more(self, limit: int | None) -> list[bytes]:
        """Return the bodies of the messages that wait, at most *limit* (None: all)."""
        ...


class Engine:
    """The base of all engines.

    The methods do nothing here.  An engine overrides those that it needs.

    For each pipe, ``pipe_attached`` is called first and ``pipe_detached`` last, each once.  A pipe
    that was refused is never detached.
    """

    number: int
    """The number of our protocol, for the greeting."""
    peer_number: int
    """The number of the protocol that the peer must speak."""
    find_body: FindBody | None = None
    """Finds where the body of a received message begins.  None: messages have no header."""
    sends_again: bool = False
    """Whether messages that a pipe has not written when it ends will be sent again."""
    timed: bool = False
    """Whether the engine can have a deadline.  If so, it is not raw and does not send in batches."""
    deadlines_come_nearer: bool = False
    """Whether a new deadline may be earlier than the known ones."""
    hold_time: float = math.inf
    """How many seconds a received message waits for room before ``force_message`` is called."""
    reply_limit: float = math.inf
    """How many replies may wait for one pipe before ``pipe_congested`` is called."""
    reply_bytes: float = math.inf
    """The same limit in bytes of headers and bodies."""
    balances: bool = False
    """Whether the engine picks a pipe for each message.  If so, priorities matter."""
    fans_out: bool = False
    """Whether the engine sends each message to all pipes."""
    takes_batches: bool = False
    """Whether ``messages_received`` may be called.

    A message that was held always comes by ``message_received``.
    """
    takes_headers: bool = False
    """Whether the socket is raw: messages to be sent already have their header."""
    single_peer: bool = False
    """Whether there can be only one peer.

    A listener then greets a peer only when the place is free, and keeps the place for that peer
    during its handshake.
    """

    def __init__(self) -> None:
        self.dropped: Counter[DropReason] = Counter()

    def check_message(self, message: Message) -> None:
        """Raise ValueError if *message* can never be sent.  ``send`` does the same."""

    def check_can_attach(self) -> None:
        """Raise PipeRefused if there is no place for another pipe.

        It is called before the handshake.
        """

    def pipe_attached(self, pipe: EnginePipe) -> None:
        """*pipe* can be used from now on.  May raise PipeRefused."""

    def pipe_detached(self, pipe: EnginePipe) -> None:
        """*pipe* has ended."""

    def pipe_has_room(self, pipe: EnginePipe) -> None:
        """*pipe*, which has turned an offer down, has room again."""

    def pipe_congested(self, pipe: EnginePipe) -> None:
        """Take no more requests from *pipe*, because too many replies wait for it.

        Their number has reached ``reply_limit``, or their size ``reply_bytes``.
        """

    def pipe_relieved(self, pipe: EnginePipe) -> None:
        """Take requests from *pipe* again: half of its replies are gone, or the pipe has ended."""

    def pipe_for(self, message: Message) -> EnginePipe | None:
        """Return the pipe that must have room for *message*, as ``Sender`` does."""
        return None

    def message_received(self, pipe: EnginePipe, message: Message) -> bool:
        """Take *message*.

        False: not now.  The pipe keeps it, stops reading, and tries again after ``pipe.resume()``.
        """
        raise NotImplementedError

    def messages_received(self, pipe: EnginePipe, messages: list[Message]) -> int:
        """Take as many of *messages* as possible, in order; return how many.

        The pipe keeps the others, as in ``message_received``.
        """
        raise NotImplementedError

    def force_message(self, pipe: EnginePipe, message: Message) -> None:
        """Take *message* or drop one, because ``hold_time`` is over.

        ``message_received`` has just returned False again.
        """
        raise NotImplementedError

    def next_deadline(self) -> float | None:
        """Return when ``deadline_reached`` must be called next.  None: there is no deadline."""
        return None

    def deadline_reached(self, now: float) -> None:
        """Do what is due at the time *now*."""

    def socket_closed(self) -> None:
        """Release all messages: nothing is received or sent any more.

        ``queued`` still counts the messages that were waiting.
        """

    def offer_to_all(self, pipes: Collection[EnginePipe], message: Message) -> None:
        """Offer *message* to each of *pipes*, and count the pipes that miss it."""
        if not pipes:
            self.dropped[DropReason.NO_PEER] += 1
        for pipe in pipes:
            if not pipe.offer(message):
                self.dropped[DropReason.PEER_FULL] += 1

    def queued(self) -> int:
        """Return how many messages wait for ``receive``, in all contexts."""
        return 0

    def inbox_dropped(self) -> int:
        """Return how many messages were dropped because an inbox was full."""
        return 0
