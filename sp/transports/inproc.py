"""inproc: messages between sockets of one trio run, without a copy.

Names belong to the run, so two runs in two threads, or two tests, never meet.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import Final

import trio

from sp.address import Address
from sp.errors import PeerClosed, PeerError, PipeRefused, WrongProtocol
from sp.message import Message
from sp.refusal import RefusalKind
from sp.transports.contract import Acceptor, Connection, DialerConfig, EndpointConfig, Greeted, ListenerConfig, Newcomer
from sp.transports.framing import broken_header, too_large

_QUEUE_LIMIT: Final = 128
"""The most messages in flight each way.

This takes the place of a kernel's buffer: a sender waits while it is full.
"""
_QUEUE_BYTES: Final = 4 << 20
"""The most bytes in flight each way."""

_listeners: trio.lowlevel.RunVar[dict[str, InprocAcceptor]] = trio.lowlevel.RunVar("sp.inproc")


def _names() -> dict[str, InprocAcceptor]:
    try:
        return _listeners.get()
    except LookupError:
        names: dict[str, InprocAcceptor] = {}
        _listeners.set(names)
        return names


async def connect(address: Address, endpoint: DialerConfig) -> Newcomer:
    """Connect to the listener with that name.

    Raises ConnectionRefusedError if there is none, as nng and mangos do.
    """
    await trio.lowlevel.checkpoint()
    acceptor = _names().get(str(address.path))
    if acceptor is None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, f"no socket listens on {address.url!r}")
    ours, theirs = InprocConnection(address.url, endpoint), InprocConnection(address.url, acceptor.endpoint)
    ours.join(theirs)
    theirs.join(ours)
    acceptor.add(theirs)
    return ours


async def listen(address: Address, endpoint: ListenerConfig) -> list[Acceptor]:
    """Take the name.  Raises OSError (address in use) if it is taken."""
    await trio.lowlevel.checkpoint()
    names = _names()
    if address.path in names:
        raise OSError(errno.EADDRINUSE, f"{address.url!r}: address in use")
    acceptor = names[str(address.path)] = InprocAcceptor(address, endpoint)
    return [acceptor]


class InprocAcceptor:
    """A name, and the connections that have not been accepted yet."""

    def __init__(self, address: Address, endpoint: EndpointConfig) -> None:
        self.url = address.url
        self.endpoint = endpoint
        self._name = str(address.path)
        self.closed = False
        self._newcomers: list[Newcomer] = []
        self._changed = trio.Event()

    def add(self, newcomer: Newcomer) -> None:
        self._newcomers.append(newcomer)
        self._changed.set()

    async def accept(self) -> list[Newcomer]:
        await self._changed.wait()
        if self.closed:
            raise trio.ClosedResourceError
        self._changed = trio.Event()
        newcomers, self._newcomers = self._newcomers, []
        return newcomers

    def drain(self) -> None:
        self.close()

    def close(self) -> None:
        if self.closed:
            return  # by now, another socket may have the name
        self.closed = True
        self._changed.set()
        _names().pop(self._name, None)
        for newcomer in self._newcomers:
            newcomer.close()


class InprocConnection:
    """One end of a connection.  What it sends goes straight into the queue of the other end."""

    def __init__(self, url: str, endpoint: EndpointConfig) -> None:
        self.local_address = self.remote_address = url
        self.unsent = 0
        self.tls = self.proxy = self.proxy_address = self.http = self.keep_alive = None
        self.stage = "greeting"
        self.detects_silence = False
        self.defers_greeting = False
        # A direct read would save less than it costs to wait for a reader that does not come back.
        self.allows_direct_read = False
        self._endpoint = endpoint
        self._peer: InprocConnection
        self._queue: deque[Message] = deque()
        self._queued_bytes = 0
        self._error: PeerError | None = None
        self._refusal = ""  # why the peer refused us, for our error
        self._ended = False  # the peer will send no more
        self.closed = False
        self._has_greeted = False
        self._greeting = trio.Event()  # our greeting was sent, or never will be
        self._readable = trio.Event()
        self._writable = trio.Event()

    def join(self, peer: InprocConnection) -> None:
        """Make *peer* the other end."""
        self._peer = peer

    async def greet(self) -> Greeted:
        peer = self._peer
        if not self.defers_greeting:
            self._send_greeting()
        await peer._greeting.wait()
        if self.closed:
            raise trio.ClosedResourceError
        if not peer._has_greeted:
            raise PeerClosed(f"the peer closed the connection before its greeting{self._refusal}", silent=not self._refusal)
        return self

    @property
    def peer_number(self) -> int:
        return self._peer._endpoint.number

    def defer_greeting(self) -> None:
        self.defers_greeting = True

    def accept(self) -> Connection:
        self._send_greeting()
        return self

    def _send_greeting(self) -> None:
        self._has_greeted = True
        self._greeting.set()

    async def reject(self, error: PipeRefused | WrongProtocol) -> None:
        if isinstance(error, WrongProtocol):
            self._send_greeting()  # it shows the peer which protocol we speak
        elif error.kind is not RefusalKind.NO_ROOM:
            # A PAIR that dials adds this to the error itself.
            self._peer._refusal = f": {error.kind.value}"

    async def linger_close(self, error: Exception | None = None) -> None:
        pass

    def check_silence(self, now: float) -> bool:
        return False

    def acknowledged(self) -> int:
        return 0

    def send_nowait(self, outbox: deque[Message]) -> bool:
        peer = self._peer
        if peer.closed:
            raise BrokenPipeError("the peer has closed the connection")
        while outbox:
            if peer._is_full():
                return False
            message = outbox.popleft()
            peer._queue.append(message)
            peer._queued_bytes += message.size
            peer._readable.set()
        return True

    def _is_full(self) -> bool:
        return len(self._queue) >= _QUEUE_LIMIT or self._queued_bytes >= _QUEUE_BYTES

    async def wait_writable(self) -> None:
        if self._peer._is_full() and not self.closed and not self._peer.closed:
            self._writable = trio.Event()
            await self._writable.wait()
        else:
            await trio.lowlevel.checkpoint()
        if self.closed:
            raise trio.ClosedResourceError

    async def receive_batch(self) -> list[Message]:
        if self._queue or self._ended or self.closed or self._error is not None:
            await trio.lowlevel.checkpoint()
        else:
            self._readable = trio.Event()
            await self._readable.wait()
        if self.closed:
            raise trio.ClosedResourceError
        if self._error is not None:
            raise self._error
        messages: list[Message] = []
        try:
            messages.extend(_as_received(message, self._endpoint) for message in self._queue)
        except PeerError as error:
            if not messages:
                raise
            self._error = error
        self._queue.clear()
        self._queued_bytes = 0
        self._peer._writable.set()
        return messages

    def interrupt(self) -> None:
        raise AssertionError("inproc allows no direct read")

    def finish(self) -> bool:
        self._peer._ended = True
        self._peer._readable.set()
        return True

    def close(self, error: Exception | None = None) -> None:
        if not self.closed:
            self.closed = True
            self._greeting.set()
            self._peer._greeting.set()
            self._queue.clear()
            self._readable.set()
            self._writable.set()
            self.finish()
            self._peer._writable.set()


def _as_received(message: Message, endpoint: EndpointConfig) -> Message:
    """Return a message for the receiver, checked and split as if it had come over a network."""
    header, body, find_body = message.header, message.body, endpoint.find_body
    limit = endpoint.options.max_message_size
    if limit is not None and message.size > limit:
        raise too_large(message.size, limit)
    if find_body is None:
        return Message(header + body if header else body)
    if header and find_body(header, 0, len(header)) == len(header):
        return Message(body, header)
    data = header + body
    start = find_body(data, 0, len(data))
    if start < 0:
        raise broken_header(len(data))
    return Message(data[start:], data[:start])
