"""REP: receives requests and answers them, one at a time in each context.

The header of a request is its backtrace.  The reply carries it back unchanged.  A reply for a
requester that has left is dropped.  A reply for a requester that does not read waits, as in nng and
mangos; nanomsg drops it.  While too many replies wait for one requester, its requests are not read.
A request without the end of its header ends the pipe, as in nng; one with more hops than the ttl is
dropped, as in all implementations.

A raw REP pushes the id of the pipe onto the header of each request, and takes it off each reply to
find the pipe.  A reply for a pipe that has ended or has no room is dropped and counted, as in nng:
waiting for one requester would delay all others.
"""

from __future__ import annotations

from sp.errors import StateError
from sp.message import Message
from sp.options import SocketOptions
from sp.protocol_numbers import REP, REQ
from sp.protocols.backtrace import WORD, backtrace_end, check_header, word_of
from sp.protocols.engine import Engine, EnginePipe, Mailbox
from sp.protocols.inbox import Inbox, InboxEngine
from sp.statistics import DropReason


class RepContext:
    """One conversation: the request that is to be answered, if there is one."""

    __slots__ = ("_engine", "_request")

    def __init__(self, engine: RepEngine) -> None:
        self._engine = engine
        self._request: Message | None = None

    @property
    def mailbox(self) -> Mailbox:
        return self._engine.inbox

    def receive(self) -> Message | None:
        """Return the next request.  If the one before has no answer yet, it gets none."""
        request = self._engine.inbox.take()
        if request is not None:
            self._request = request
        return request

    def send(self, message: Message) -> bool:
        """Answer the request."""
        request = self._request
        if request is None:
            raise StateError(self._engine.nothing_asked)
        if message.header and (message.header != request.header or message.pipe is not request.pipe):
            raise StateError("the request was given up while its reply waited: this context has received another one")
        if not self._engine.reply(request, message):
            return False
        self._request = None
        return True

    def pipe_for(self, message: Message) -> EnginePipe | None:
        request = self._request
        if request is None:
            raise StateError(self._engine.nothing_asked)
        message.header, message.pipe = request.header, request.pipe
        return self._engine.pipe_of(request)

    def close(self) -> None:
        self._request = None


class RepEngine(Engine):
    """The state behind a REP socket."""

    number = REP
    peer_number = REQ
    find_body = staticmethod(backtrace_end)
    nothing_asked = "REP has no request to answer: receive one first"

    def __init__(self, options: SocketOptions, ttl: int) -> None:
        super().__init__()
        self.inbox = Inbox(options)
        self.reply_limit = options.reply_limit
        self.reply_bytes = options.reply_bytes
        self._max_header = WORD * ttl
        self._pipes: dict[object, EnginePipe] = {}  # by their handles
        self._congested: set[EnginePipe] = set()

    def open_context(self) -> RepContext:
        return RepContext(self)

    def pipe_attached(self, pipe: EnginePipe) -> None:
        self._pipes[pipe.handle] = pipe

    def pipe_detached(self, pipe: EnginePipe) -> None:
        self._pipes.pop(pipe.handle, None)
        self.inbox.forget(pipe)

    def pipe_congested(self, pipe: EnginePipe) -> None:
        self._congested.add(pipe)
        self.inbox.forget(pipe)  # or it would be resumed in place of a pipe that can deliver

    def pipe_relieved(self, pipe: EnginePipe) -> None:
        self._congested.remove(pipe)
        pipe.resume()

    def message_received(self, pipe: EnginePipe, message: Message) -> bool:
        if len(message.header) > self._max_header:
            self.dropped[DropReason.TTL] += 1
            return True
        if self._congested and pipe in self._congested:
            return False
        return self.inbox.offer(pipe, message)

    def pipe_of(self, request: Message) -> EnginePipe | None:
        """Return the pipe that *request* came by; None: it has ended."""
        return self._pipes.get(request.pipe)

    def reply(self, request: Message, message: Message) -> bool:
        """Send *message* by the pipe that *request* came by.  False: it has no room now."""
        pipe = self.pipe_of(request)
        if pipe is None or pipe.broken:
            self.dropped[DropReason.REQUESTER_GONE] += 1
            return True
        message.header, message.pipe = request.header, request.pipe
        return pipe.offer(message)

    def socket_closed(self) -> None:
        self.inbox.forget_bodies()

    def queued(self) -> int:
        return len(self.inbox)


class RawRepEngine(InboxEngine):
    """The state behind a raw REP socket.

    It matches nothing, so any number of requests can be under way.
    """

    number = REP
    peer_number = REQ
    find_body = staticmethod(backtrace_end)
    takes_headers = True

    def __init__(self, options: SocketOptions, ttl: int) -> None:
        super().__init__(options)
        self._max_header = WORD * ttl
        self._pipes: dict[bytes, EnginePipe] = {}  # by their word in a backtrace

    def pipe_attached(self, pipe: EnginePipe) -> None:
        self._pipes[word_of(pipe)] = pipe

    def pipe_detached(self, pipe: EnginePipe) -> None:
        self._pipes.pop(word_of(pipe), None)
        super().pipe_detached(pipe)

    def message_received(self, pipe: EnginePipe, message: Message) -> bool:
        if len(message.header) > self._max_header:
            self.dropped[DropReason.TTL] += 1
            return True
        return self._inbox.offer(pipe, Message(message.body, word_of(pipe) + message.header, message.pipe))

    def check_message(self, message: Message) -> None:
        check_header(message)

    def send(self, message: Message) -> bool:
        """Send *message* by the pipe whose id is first in its header.  Always True."""
        check_header(message)
        header = message.header
        pipe = self._pipes.get(header[:WORD])
        if pipe is None or pipe.broken:
            self.dropped[DropReason.REQUESTER_GONE] += 1
        elif not pipe.offer(Message(message.body, header[WORD:])):
            self.dropped[DropReason.PEER_FULL] += 1
        return True
