"""The contract between engines and the rest of the library.

An engine is a protocol without I/O: events come in as method calls, answers go out as return values, as messages offered to
pipes and as messages left in a mailbox.  It never awaits, reads no clock and sees no byte stream.
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
"""Seconds that a dropping protocol holds a pipe back before it starts to drop, so that a burst is not a loss."""


class EnginePipe(Protocol):
    """A pipe as an engine may use it.  None of these calls comes back into the engine before it returns."""

    @property
    def id(self) -> int: ...

    @property
    def handle(self) -> object:
        """What ``message.pipe`` is for the messages that come by this pipe."""
        ...

    @property
    def priority(self) -> int:
        """1 (the best) to 16, for protocols that pick a pipe for each message."""
        ...

    @property
    def broken(self) -> bool:
        """Whether nothing can be written any more; ``pipe_detached`` follows."""
        ...

    @property
    def progress(self) -> int:
        """A count that grows whenever a peer that kept us waiting has read something."""
        ...

    def offer(self, message: Message, /) -> bool:
        """Queue *message* to be written.  False: the outbox is full, and ``pipe_has_room`` will tell when it no longer is."""
        ...

    def offer_many(self, messages: list[Message], /) -> int:
        """Do as ``offer`` with each of *messages* until one is not taken; return how many were."""
        ...

    def discard_oldest(self) -> bool:
        """Drop the oldest message that waits to be written.  False: none waits."""
        ...

    def resume(self) -> None:
        """Go on reading after ``message_received`` said False."""
        ...

    def hang_up(self, error: PeerError) -> None:
        """End the pipe for what the peer did.  ``pipe_detached`` follows later, never from within this call."""
        ...


class Mailbox:
    """Where a context's messages turn up, and who waits for them: both calls are None while nobody does."""

    __slots__ = ("fail", "wake")

    def __init__(self) -> None:
        self.wake: Callable[[], None] | None = None
        """Called when ``receive`` is worth a try.  It may call that before it returns, so who calls it has its state in order."""
        self.fail: Callable[[Callable[[], Exception]], None] | None = None
        """Called with what makes the error for those who wait, when what they wait for will not come."""


class Sender(Protocol):
    """The sending half of a context."""

    def send(self, message: Message) -> bool:
        """Take *message*, whose header it may set in any case.  False: not now, try again when a pipe is attached or has room.

        A wrong moment raises StateError.
        """
        ...

    def pipe_for(self, message: Message) -> EnginePipe | None:
        """Return the pipe whose room *message* needs; None: that of any pipe.

        A reply is bound by this to the request that it answers now: once the application has
        received another one instead, ``send`` raises StateError.  A wrong moment raises StateError.
        """
        ...


class BatchSender(Sender, Protocol):
    """The sending half of a socket whose messages need no answer."""

    def send_batch(self, messages: list[Message]) -> int:
        """Do as ``send`` with each of *messages* until one is not taken; return how many were."""
        ...


def send_each(send: Callable[[Message], bool], messages: list[Message]) -> int:
    """Give *send* each of *messages* until one is not taken; return how many were: the batch of those that have no better way."""
    for taken, message in enumerate(messages):
        if not send(message):
            return taken
    return len(messages)


class Receiver(Protocol):
    """The receiving half of a context."""

    @property
    def mailbox(self) -> Mailbox: ...

    def receive(self) -> Message | None:
        """Return the next message, or None when there is none yet.  A wrong moment raises StateError."""
        ...


class RawReceiver(Receiver, Protocol):
    """The receiving half of a raw socket."""

    def put_back(self, message: Message) -> None:
        """Take *message* back, which was received last and has gone nowhere: it is received next."""
        ...


class BatchReceiver(Receiver, Protocol):
    """The receiving half of a context whose messages need no answer."""

    def receive_more(self, limit: int | None) -> list[bytes]:
        """Return the bodies of the messages that wait, at most *limit*; None: all."""
        ...


class Engine:
    """What the shell calls.  The defaults here do nothing: an engine overrides the events that concern it.

    For each pipe ``pipe_attached`` comes first and ``pipe_detached`` last, each once; a pipe that was refused is never detached.
    """

    number: int
    """Our protocol number, for the greeting."""
    peer_number: int
    """The number that the peer must have."""
    find_body: FindBody | None = None
    """Where received messages are split into header and body; None: there is no header."""
    sends_again: bool = False
    """Whether what a pipe did not write is not lost with it."""
    timed: bool = False
    """Whether it ever has a deadline.  Such an engine takes no batches to send, and is not raw."""
    deadlines_come_nearer: bool = False
    """Whether a new deadline may be before those that are known."""
    hold_time: float = math.inf
    """Seconds that a pipe waits for room before ``force_message``."""
    reply_limit: float = math.inf
    """Replies that may wait for the room of one pipe before it is congested."""
    reply_bytes: float = math.inf
    """The same in bytes of headers and bodies."""
    balances: bool = False
    """Whether it picks a pipe for each message, so that a pipe's priority counts."""
    fans_out: bool = False
    """Whether it sends each message by all pipes."""
    takes_batches: bool = False
    """Whether ``messages_received`` can be called as well; a message that was held comes by ``message_received``."""
    takes_headers: bool = False
    """Whether messages to be sent bring their header with them, since the socket is raw."""
    single_peer: bool = False
    """Whether not every newcomer has a place, so that a listener greets none before it has one, and who is dialed keeps it a while."""

    def __init__(self) -> None:
        self.dropped: Counter[DropReason] = Counter()

    def check_message(self, message: Message) -> None:
        """Raise ValueError when *message* could never be sent; ``send`` does so as well."""

    def check_can_attach(self) -> None:
        """Raise PipeRefused when there is no place for another pipe, so that its greeting can be saved."""

    def pipe_attached(self, pipe: EnginePipe) -> None:
        """A pipe is ready.  May raise PipeRefused."""

    def pipe_detached(self, pipe: EnginePipe) -> None:
        """A pipe is gone."""

    def pipe_has_room(self, pipe: EnginePipe) -> None:
        """A pipe that said no to an offer would now say yes."""

    def pipe_congested(self, pipe: EnginePipe) -> None:
        """Take no more requests of *pipe*: ``reply_limit`` replies, or ``reply_bytes``, wait for it."""

    def pipe_relieved(self, pipe: EnginePipe) -> None:
        """Take requests again: no more than half of that waits, or the pipe is gone."""

    def pipe_for(self, message: Message) -> EnginePipe | None:
        """Return the pipe whose room *message* needs, as with ``Sender``."""
        return None

    def message_received(self, pipe: EnginePipe, message: Message) -> bool:
        """Take *message*.  False: not now; the pipe holds it, reads no more, and comes again after ``pipe.resume()``."""
        raise NotImplementedError

    def messages_received(self, pipe: EnginePipe, messages: list[Message]) -> int:
        """Take the first of *messages*; return how many.  Less than all: not now, as with ``message_received``."""
        raise NotImplementedError

    def force_message(self, pipe: EnginePipe, message: Message) -> None:
        """Take *message* now, whatever must be dropped for it: the pipe's patience is over.

        ``message_received`` has just said no again.
        """
        raise NotImplementedError

    def next_deadline(self) -> float | None:
        """Return the earliest time at which ``deadline_reached`` has something to do."""
        return None

    def deadline_reached(self, now: float) -> None:
        """Do what is due at *now*."""

    def socket_closed(self) -> None:
        """Let go of all messages, since nobody receives or sends any more.

        ``queued`` goes on counting those that wait.
        """

    def offer_to_all(self, pipes: Collection[EnginePipe], message: Message) -> None:
        """Offer *message* to each of *pipes*, and count those that miss it."""
        if not pipes:
            self.dropped[DropReason.NO_PEER] += 1
        for pipe in pipes:
            if not pipe.offer(message):
                self.dropped[DropReason.PEER_FULL] += 1

    def queued(self) -> int:
        """Count the messages that wait for ``receive``, in all contexts."""
        return 0

    def inbox_dropped(self) -> int:
        """Count the messages that were dropped because an inbox was full."""
        return 0
