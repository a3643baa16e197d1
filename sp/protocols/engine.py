"""The contracts between engines and the shell, and the queue that most engines end in.

An engine is a protocol without I/O: events come in as method calls, answers go out as return values, as messages offered to
pipes and as messages left in a mailbox.  It never awaits, reads no clock and sees no byte stream.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection
from itertools import islice
from typing import Protocol

from sp.errors import PeerError
from sp.message import FindBody, Message
from sp.options import DropPolicy, SocketOptions
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

    def offer(self, message: Message) -> bool:
        """Queue *message* to be written.  False: the outbox is full, and ``pipe_has_room`` will tell when it no longer is."""
        ...

    def offer_many(self, messages: list[Message]) -> int:
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


class Inbox(Mailbox):
    """A queue of received messages, bounded in messages and in bytes.

    Full, it holds the pipes back.  With a *policy* it drops once ``start_dropping`` was called, until half of it is free again;
    without one it never drops.
    """

    __slots__ = ("_byte_limit", "_bytes", "_dropping", "_held", "_limit", "_low", "_messages", "_policy", "dropped")

    def __init__(self, options: SocketOptions, policy: DropPolicy | None = None) -> None:
        super().__init__()
        self.dropped = 0
        self._messages: deque[Message] = deque()
        self._bytes = 0
        self._limit = options.inbox_limit
        self._byte_limit = options.inbox_bytes
        self._low = options.inbox_limit // 2
        self._policy = policy
        self._dropping = False
        # An ordered set: a pipe that has waited longer comes first.  (The first of a plain dict is
        # slow to find once many have left.)
        self._held: OrderedDict[EnginePipe, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._messages)

    def has_room(self, message: Message) -> bool:
        """Whether ``offer`` would take *message*, be it by dropping one."""
        messages = self._messages
        return not messages or self._dropping or (len(messages) < self._limit and self._bytes + len(message.body) <= self._byte_limit)

    def hold(self, pipe: EnginePipe) -> None:
        """Remember to resume *pipe* when there is room."""
        self._held[pipe] = None

    def offer(self, pipe: EnginePipe, message: Message) -> bool:
        """Take *message* from *pipe*, or hold the pipe and return False."""
        messages = self._messages
        size = len(message.body)
        if messages and (len(messages) >= self._limit or self._bytes + size > self._byte_limit):
            if not self._dropping:
                self._held[pipe] = None
                return False
            if not self._make_room(size):
                return True
        messages.append(message)
        self._bytes += size
        if self.wake is not None:
            self.wake()
        return True

    def offer_many(self, pipe: EnginePipe, batch: list[Message]) -> int:
        """Do as ``offer`` with each of *batch* until one is not taken; return how many were."""
        messages = self._messages
        first = batch[: max(0, self._limit - len(messages))]
        size = sum([len(message.body) for message in first])
        taken = 0
        if first and self._bytes + size <= self._byte_limit:
            messages.extend(first)
            self._bytes += size
            if self.wake is not None:
                self.wake()
            taken = len(first)
        for message in batch[taken:]:
            if not self.offer(pipe, message):
                break
            taken += 1
        return taken

    def start_dropping(self) -> None:
        """The application has not kept up: drop from now on."""
        self._dropping = True

    def take(self) -> Message | None:
        """Return the oldest message, or None."""
        if not self._messages:
            return None
        message = self._messages.popleft()
        self._bytes -= len(message.body)
        if self._held or self._dropping:
            self._relax()
        return message

    def take_bodies(self, limit: int | None) -> list[bytes]:
        """Return the bodies of the oldest messages, at most *limit*; None: of all."""
        messages = self._messages
        if limit is None or limit >= len(messages):
            bodies = [message.body for message in messages]
            messages.clear()
            self._bytes = 0
        else:
            bodies = [messages.popleft().body for _ in range(limit)]
            self._bytes -= sum(map(len, bodies))
        if self._held or self._dropping:
            self._relax()
        return bodies

    def put_back(self, message: Message) -> None:
        """Take back the message that was taken last, whatever the bounds say."""
        self._messages.appendleft(message)
        self._bytes += len(message.body)
        if self.wake is not None:
            self.wake()

    def release(self) -> None:
        """Hold nobody back any more."""
        held, self._held = self._held, OrderedDict()
        for pipe in held:
            pipe.resume()

    def purge(self, keep: Callable[[Message], bool]) -> None:
        """Forget the messages that *keep* does not want."""
        kept = [message for message in self._messages if keep(message)]
        if len(kept) < len(self._messages):
            self._messages = deque(kept)
            self._bytes = sum(len(message.body) for message in kept)
        self._relax(everybody=True)  # what they hold may be unwanted as well, and then nobody would wake the rest

    def forget_bodies(self) -> None:
        """Let go of all messages, but for their number."""
        self._messages = deque([Message(b"")]) * len(self._messages)
        self._bytes = 0

    def forget(self, pipe: EnginePipe) -> None:
        """*pipe* is gone and needs no resuming; the one behind it may."""
        if self._held or self._dropping:
            self._held.pop(pipe, None)
            self._relax()

    def _make_room(self, size: int) -> bool:
        """Drop by the policy; False: it is the new message that goes."""
        if self._policy == "newest":
            self.dropped += 1
            return False
        messages = self._messages
        while messages and (len(messages) >= self._limit or self._bytes + size > self._byte_limit):
            self._bytes -= len(messages.popleft().body)
            self.dropped += 1
        return True

    def _relax(self, *, everybody: bool = False) -> None:
        if len(self._messages) > self._low or self._bytes > self._byte_limit // 2:
            return
        self._dropping = False
        # No more than there are places, so that the first to run cannot take them all and leave the rest to the end of the line again.
        for pipe in list(islice(self._held, None if everybody else self._limit - len(self._messages))):
            del self._held[pipe]
            pipe.resume()


class InboxEngine(Engine):
    """An engine with one inbox, which all that it receives ends in; with a *policy*, one that drops."""

    def __init__(self, options: SocketOptions, policy: DropPolicy | None = None) -> None:
        super().__init__()
        self._inbox = Inbox(options, policy)

    @property
    def mailbox(self) -> Mailbox:
        return self._inbox

    def pipe_detached(self, pipe: EnginePipe) -> None:
        self._inbox.forget(pipe)

    def message_received(self, pipe: EnginePipe, message: Message) -> bool:
        return self._inbox.offer(pipe, message)

    def messages_received(self, pipe: EnginePipe, messages: list[Message]) -> int:
        return self._inbox.offer_many(pipe, messages)

    def force_message(self, pipe: EnginePipe, message: Message) -> None:
        self._inbox.start_dropping()
        self.message_received(pipe, message)

    def receive(self) -> Message | None:
        """Return the oldest message, or None."""
        return self._inbox.take()

    def receive_more(self, limit: int | None) -> list[bytes]:
        """Return the bodies of the oldest messages, at most *limit*; None: of all."""
        return self._inbox.take_bodies(limit)

    def put_back(self, message: Message) -> None:
        """Take back the message that was received last."""
        self._inbox.put_back(message)

    def socket_closed(self) -> None:
        self._inbox.forget_bodies()

    def queued(self) -> int:
        return len(self._inbox)

    def inbox_dropped(self) -> int:
        return self._inbox.dropped
