"""The queue of received messages, and the base of engines that have just one."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice

from sp.message import Message
from sp.options import DropPolicy, SocketOptions
from sp.protocols.engine import Engine, EnginePipe, Mailbox


class Inbox(Mailbox):
    """A queue of received messages, bounded in messages and in bytes.

    When it is full, it holds pipes back.  With a *policy*, it drops messages after
    ``start_dropping``, until half of it is free again.  Without a policy, it never drops.
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
        # An ordered set: the pipe that has waited longest comes first.  (In a plain dict the first
        # key is slow to find after many were deleted.)
        self._held: OrderedDict[EnginePipe, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._messages)

    def has_room(self, message: Message) -> bool:
        """Whether ``offer`` would take *message*, perhaps by dropping one."""
        messages = self._messages
        return not messages or self._dropping or (len(messages) < self._limit and self._bytes + len(message.body) <= self._byte_limit)

    def hold(self, pipe: EnginePipe) -> None:
        """Resume *pipe* when there is room."""
        self._held[pipe] = None

    def offer(self, pipe: EnginePipe, message: Message) -> bool:
        """Take *message*.  False: there is no room, and *pipe* is held."""
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
        """Offer *batch* in order until a message is refused; return how many were taken."""
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
        """Drop messages from now on: the application did not keep up."""
        self._dropping = True

    def take(self) -> Message | None:
        """Return the oldest message; None: there is none."""
        if not self._messages:
            return None
        message = self._messages.popleft()
        self._bytes -= len(message.body)
        if self._held or self._dropping:
            self._relax()
        return message

    def take_bodies(self, limit: int | None) -> list[bytes]:
        """Return the bodies of the oldest messages, at most *limit* (None: all)."""
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
        """Take back *message*, which was taken last, even if the inbox is full."""
        self._messages.appendleft(message)
        self._bytes += len(message.body)
        if self.wake is not None:
            self.wake()

    def release(self) -> None:
        """Resume all pipes that are held."""
        held, self._held = self._held, OrderedDict()
        for pipe in held:
            pipe.resume()

    def purge(self, keep: Callable[[Message], bool]) -> None:
        """Remove the messages for which *keep* returns False."""
        kept = [message for message in self._messages if keep(message)]
        if len(kept) < len(self._messages):
            self._messages = deque(kept)
            self._bytes = sum(len(message.body) for message in kept)
        # Resume all pipes.  The messages that they hold may be dropped too, and then nothing would
        # resume the others.
        self._relax(all_pipes=True)

    def forget_bodies(self) -> None:
        """Release all messages; ``len`` stays."""
        self._messages = deque([Message(b"")]) * len(self._messages)
        self._bytes = 0

    def forget(self, pipe: EnginePipe) -> None:
        """*pipe* has ended.  It need not be resumed, but the pipe behind it may have to be."""
        if self._held or self._dropping:
            self._held.pop(pipe, None)
            self._relax()

    def _make_room(self, size: int) -> bool:
        """Drop messages by the policy to make room for *size* bytes.

        False: drop the new message.
        """
        if self._policy == "newest":
            self.dropped += 1
            return False
        messages = self._messages
        while messages and (len(messages) >= self._limit or self._bytes + size > self._byte_limit):
            self._bytes -= len(messages.popleft().body)
            self.dropped += 1
        return True

    def _relax(self, *, all_pipes: bool = False) -> None:
        if len(self._messages) > self._low or self._bytes > self._byte_limit // 2:
            return
        self._dropping = False
        # Resume only as many pipes as there are places.  Otherwise the first to run could take all
        # places, and the others would have to queue again.
        for pipe in list(islice(self._held, None if all_pipes else self._limit - len(self._messages))):
            del self._held[pipe]
            pipe.resume()


class InboxEngine(Engine):
    """An engine with one inbox for all that it receives.  With a *policy*, the inbox drops."""

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
        """Return the oldest message; None: there is none."""
        return self._inbox.take()

    def receive_more(self, limit: int | None) -> list[bytes]:
        """Return the bodies of the oldest messages, at most *limit* (None: all)."""
        return self._inbox.take_bodies(limit)

    def put_back(self, message: Message) -> None:
        """Take back *message*, which was received last."""
        self._inbox.put_back(message)

    def socket_closed(self) -> None:
        self._inbox.forget_bodies()

    def queued(self) -> int:
        return len(self._inbox)

    def inbox_dropped(self) -> int:
        return self._inbox.dropped
