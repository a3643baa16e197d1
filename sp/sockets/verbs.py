"""The methods of sockets and contexts that send and receive messages.

Each async call is a cancel point.  If it is cancelled, nothing was sent or received.  It is a
schedule point when it blocks, and every 16th time when it does not (``sp.core.budget``).  Any
number of tasks may call at once, except for REQ's ``receive``; each message goes to one of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from threading import get_ident
from typing import Final

import trio
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled, current_task

from sp.checks import check_int
from sp.core.budget import EVERY, CheckpointBudget
from sp.core.core import Core
from sp.core.receivers import Receivers
from sp.interrupts import uninterrupted
from sp.message import BytesLike, Message, to_body
from sp.pipe import Pipe
from sp.protocols.engine import BatchReceiver, BatchSender, Receiver, Sender
from sp.unique import Unique

_MANY: Final = 64
"""After this many messages of one ``send_many``, other tasks run."""


@uninterrupted
class Verbs(Unique):
    """What the methods of all sockets and contexts have in common."""

    _core: Core
    _budget: CheckpointBudget
    _closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the context is closed")
        self._core.check_open()

    async def _begin(self) -> None:
        """Be a cancel point, and raise unless calls are accepted.

        ``send`` and ``receive`` repeat this code, which saves a call for each message.
        """
        core = self._core
        try:
            await checkpoint_if_cancelled()
        except RuntimeError:  # there is no task
            core.check_caller()
            raise
        if core.open_in != get_ident() or self._closed:
            self._check_open()

    @property
    def _is_over(self) -> bool:
        """Whether loops end without an error.

        They do if the context was closed, or the socket was closed in order.
        """
        return self._closed or self._core.closed_in_order


@uninterrupted
class SendMessageVerbs(Verbs):
    """Sending messages that have a header or name a pipe.

    Some raw sockets can send nothing else.
    """

    _sender: Sender

    async def send_message(self, message: Message) -> None:
        """Send *message*; wait while there is no room for it.

        A raw socket sends its header as well.  ``Pair1(poly=True)`` sends it to its ``pipe``.

        Other sockets send only the body, like ``send``, so a message that was received can be
        passed on.  With *poly*, a message for a pipe that has ended is dropped and counted
        (``peer gone``).  Waits, and can be cancelled, like ``send``.  Raises ValueError for a
        header that the protocol cannot have and for a pipe of another socket, and the errors of
        ``send``.
        """
        await self._begin()
        if not isinstance(message, Message):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"send_message takes an sp.Message, not {type(message).__name__}: use send(body), or sp.Message(body)")
        core = self._core
        header = to_body(message.header, "a message header")
        if message.pipe is not None and not isinstance(message.pipe, Pipe):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"the pipe of a message must be an sp.Pipe or None, not {type(message.pipe).__name__}")
        sender = self._sender_for(message)
        message = Message(to_body(message.body), header if core.engine.takes_headers else b"")
        senders = core.senders
        if (senders.lines and senders.must_wait(sender, message)) or not sender.send(message):
            await senders.wait(sender, message)
            return
        if core.timer_idle:
            core.wake_timer()
        if self._budget.due():
            await cancel_shielded_checkpoint()

    def _sender_for(self, _message: Message) -> Sender:
        return self._sender


@uninterrupted
class SendVerbs(SendMessageVerbs, trio.abc.SendChannel[bytes]):
    """Sending one body at a time."""

    async def send(self, value: BytesLike) -> None:
        """Send *value* as one message; wait while there is no room for it.

        *value* is bytes, bytearray or memoryview.  Returns when the message is queued or written.
        If the call is cancelled, the message was not sent.  Raises TypeError for other types,
        ClosedResourceError when the socket or context is closed, and StateError if the protocol
        does not allow sending now, for example a REP without a request.
        """
        core = self._core
        try:
            await checkpoint_if_cancelled()
        except RuntimeError:
            core.check_caller()
            raise
        if core.open_in != get_ident() or self._closed:
            self._check_open()
        message = Message(value if type(value) is bytes else to_body(value))
        sender, senders = self._sender, core.senders
        if (senders.lines and senders.must_wait(sender, message)) or not sender.send(message):
            await senders.wait(sender, message)
            return
        if core.timer_idle:
            core.wake_timer()
        budget = self._budget  # CheckpointBudget.due, written out
        budget.left -= 1
        if not budget.left:
            budget.left = EVERY
            await cancel_shielded_checkpoint()

    def send_nowait(self, value: BytesLike) -> None:
        """Send *value* like ``send``, or raise trio.WouldBlock if that would wait."""
        core, sender = self._core, self._sender
        senders = core.senders
        if core.open_in != get_ident() or self._closed:
            self._check_open()
        try:
            current_task()
        except RuntimeError:
            core.check_caller()
        message = Message(to_body(value))
        if (senders.lines and senders.must_wait(sender, message)) or not sender.send(message):
            raise trio.WouldBlock("no peer has room for the message" if core.pipes else "no peer is attached")
        if core.timer_idle:
            core.wake_timer()


@uninterrupted
class SendManyVerbs(SendVerbs):
    """Sending in batches, for protocols in which sending and receiving do not alternate."""

    _batch_sender: BatchSender

    async def send_many(self, values: Iterable[BytesLike]) -> None:
        """Send each of *values* in order, as ``send`` does, at a fraction of its cost.

        If the call is cancelled or fails, the messages before some point were sent and the others
        were not.  If *values* is an iterator, the last value taken from it was not sent.  Raises as
        ``send`` does.
        """
        await self._begin()
        if isinstance(values, bytes | bytearray | memoryview | str):
            raise TypeError("send_many takes several bodies, not one: use send, or put it into a list")
        sender, senders = self._batch_sender, self._core.senders
        is_list = isinstance(values, list | tuple)
        rest = iter(values)
        count = 0
        # Take one body at a time from an iterator: a body that is taken but not sent would be lost.
        while messages := [Message(value if type(value) is bytes else to_body(value)) for value in islice(rest, _MANY if is_list else 1)]:
            if count and count % _MANY == 0:
                await checkpoint()
                self._check_open()
            taken = 0
            while taken < len(messages):
                if not (senders.lines and senders.must_wait(sender, messages[taken])):
                    taken += sender.send_batch(messages[taken:] if taken else messages)
                if taken < len(messages):
                    await senders.wait(sender, messages[taken])
                    taken += 1
            count += len(messages)
        if self._budget.due():
            await cancel_shielded_checkpoint()


@uninterrupted
class ReceiveVerbs(Verbs, trio.abc.ReceiveChannel[bytes]):
    """Receiving one message at a time."""

    _receiver: Receiver
    _receivers: Receivers

    async def receive(self) -> bytes:
        """Wait for the next message and return its body.

        If the call is cancelled, no message is lost: the next call gets it.  Raises
        ClosedResourceError when the socket or context is closed, and StateError if the protocol
        does not allow receiving now, for example a REQ without a request.
        """
        # This repeats receive_message, which saves three calls for each message.
        core = self._core
        try:
            await checkpoint_if_cancelled()
        except RuntimeError:
            core.check_caller()
            raise
        if core.open_in != get_ident() or self._closed:
            self._check_open()
        message = self._receiver.receive()
        if message is None:
            message = await self._receivers.wait(self._receiver)
        else:
            budget = self._budget
            budget.left -= 1
            if not budget.left:
                budget.left = EVERY
                await cancel_shielded_checkpoint()
        return message.body

    async def __anext__(self) -> bytes:
        """Do the same as ``receive``.

        The iteration ends when the socket is closed in order, by ``aclose`` or at the end of its
        block.  It raises ClosedResourceError when the socket is closed at once, since messages may
        then be missing.
        """
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        except trio.ClosedResourceError:
            if not self._is_over:
                raise
            raise StopAsyncIteration from None

    async def receive_message(self) -> Message:
        """Return the next message as a ``Message``, which has its pipe; else like ``receive``."""
        await self._begin()
        message = self._receiver.receive()
        if message is None:
            return await self._receivers.wait(self._receiver)
        if self._budget.due():
            await cancel_shielded_checkpoint()
        return message

    def receive_nowait(self) -> bytes:
        """Return the body of a message that has arrived already, or raise trio.WouldBlock."""
        if self._core.open_in != get_ident() or self._closed:
            self._check_open()
        try:
            current_task()
        except RuntimeError:
            self._core.check_caller()
        message = self._receiver.receive()
        if message is None:
            raise trio.WouldBlock("no message has arrived")
        return message.body


@uninterrupted
class ReceiveManyVerbs(ReceiveVerbs):
    """Receiving in batches, for protocols in which sending and receiving do not alternate."""

    _batch_receiver: BatchReceiver

    async def receive_many(self, max_messages: int | None = None) -> list[bytes]:
        """Wait for a message; return the bodies of all that have arrived.

        It returns at most *max_messages* (None: no limit), and otherwise behaves like ``receive``.
        """
        if max_messages is not None:
            check_int("max_messages", max_messages, 1)
        bodies = [(await self.receive_message()).body]
        bodies += self._batch_receiver.receive_more(None if max_messages is None else max_messages - 1)
        return bodies
