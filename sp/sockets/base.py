"""What all sockets, and all contexts, have in common."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import NoReturn, Protocol, Self, cast

import trio

from sp.address import Address
from sp.checks import check_flag, check_int
from sp.core.accepting import ListenerTask
from sp.core.budget import CheckpointBudget
from sp.core.core import Core
from sp.core.dialing import DialerTask
from sp.core.forks import end_child
from sp.core.receivers import Receivers
from sp.dialer import Dialer
from sp.errors import DialError, StateError
from sp.events import Event, EventKind, EventStream
from sp.http.config import WSClientConfig, WSServerConfig
from sp.interrupts import uninterrupted
from sp.listener import Listener
from sp.options import DEFAULT_PRIORITY, SocketKeywords, SocketOptions
from sp.pipe import Pipe
from sp.protocols.engine import Engine, Receiver, Sender
from sp.sockets.endpoint_config import config_to_dial, config_to_listen
from sp.sockets.verbs import Verbs
from sp.statistics import SocketStatistics
from sp.tls.config import TLSClientConfig, TLSServerConfig
from sp.transports import transport_for


@uninterrupted
class Socket(Verbs, trio.abc.AsyncResource):
    """The base of all sockets; use ``Req0``, ``Sub0`` and so on.

    A socket is open inside its ``async with`` block, and any task of the trio run may use it there.
    At the end of the block it is closed as if by ``aclose``, and loops over it in other tasks end.
    If an exception or a cancellation leaves the block, the socket is closed at once, as if by
    ``close``, and those loops raise ClosedResourceError.
    """

    _module = ""  # what ``repr`` puts before the name of the class

    def __init__(self, engine: Engine, options: SocketOptions) -> None:
        """Make the socket.  It does nothing until its ``async with`` block is entered.

        All arguments are by keyword.  The class describes its own; *options* are those that every
        socket has, such as ``dial``, ``listen``, ``tls`` and ``max_message_size``, and
        docs/reference.md describes them.  Raises TypeError or ValueError for an argument that
        cannot be used.
        """
        self._options = options
        self._core = Core(engine, options)
        self._budget = CheckpointBudget()
        self._manager: AbstractAsyncContextManager[trio.Nursery, bool | None] | None = None

    async def __aenter__(self) -> Self:
        """Open the socket, listen on the URLs of ``listen`` and begin to dial those of ``dial``."""
        self._core.enter()
        manager = trio.open_nursery()
        nursery = await manager.__aenter__()
        self._manager = manager
        try:
            await nursery.start(self._core.run)
            for url in self._options.listen:
                await self.listen(url)
            for url in self._options.dial:
                await self.dial(url, wait=False)
        except BaseException as error:
            if not await self._leave(error):
                raise
        return self

    async def __aexit__(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]  # trio types its own as None
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Close the socket: as ``aclose`` does, or at once if there is an exception."""
        # With GeneratorExit, the garbage collector may be ending the block, outside of any task.
        if not isinstance(error, GeneratorExit) and not self._core.may_close():
            end_child(error)
        if self._manager is None:
            raise StateError("the socket is not in a block: its 'async with' has not begun, or has already ended")
        if error is not None:
            return await self._leave(error)
        try:
            await self.aclose()
        except BaseException as raised:
            if not await self._leave(raised):
                raise
        else:
            await self._leave(None)
        return None

    async def _leave(self, error: BaseException | None) -> bool:
        """Close now and end the nursery.  True: *error* was the nursery's own cancellation."""
        try:
            self._core.close()
        finally:
            # Even if a log handler raises: a nursery that stays open ends in a TrioInternalError.
            swallowed = await self._end_nursery(error)
        return swallowed

    async def _end_nursery(self, error: BaseException | None) -> bool:
        manager, self._manager = self._manager, None
        assert manager is not None
        # Show the nursery a cancellation, which may be its own, and no other error: it would wrap
        # that.
        seen = error if _has_cancelled(error) else None
        try:
            swallowed = await manager.__aexit__(type(seen) if seen else None, seen, seen.__traceback__ if seen else None)
        except BaseExceptionGroup as group:
            rest = plain(group)
            if rest is None:
                return False  # an outer scope was cancelled
            raise rest from error
        return bool(swallowed) and seen is not None

    async def aclose(self) -> None:
        """Close the socket in order.

        It stops dialing and listening, delivers messages for up to ``linger`` seconds, and ends the
        pipes.  Messages that could not be delivered are dropped and counted
        (``DropReason.SOCKET_CLOSED``), and the log has a warning.  If the call is cancelled, the
        socket is closed at once.  Does nothing the second time.

        If ``authorize`` or ``health`` calls it, it returns while the socket is still delivering:
        they run in tasks of the socket, and those have to end first.
        """
        await self._core.aclose()

    def close(self) -> None:
        """Close the socket at once.

        Messages that were accepted and not yet written are dropped and counted.
        """
        if self._core.may_close():
            self._core.close()

    async def dial(
        self,
        url: str,
        *,
        wait: bool = True,
        priority: int | None = None,
        tls: TLSClientConfig | None = None,
        ws: WSClientConfig | None = None,
    ) -> Dialer:
        """Connect to *url*, and connect again whenever the connection is lost.

        - *wait* (default True): return once a pipe is attached.  If the first attempt fails, raise
          DialError, whose ``__cause__`` says why, and do not try again.  False: return at once and
          keep trying in the background; events and ``dialer.error`` say what happens.
        - *priority* (PUSH and REQ; 1, the best, to 16; None: 8): the peer gets messages only while
          no peer with a better priority has room.
        - *tls* (for ``tls+tcp`` and ``wss``; None: the socket's, or else the system's CAs).
        - *ws* (for ``ws``, ``wss``, ``ws+unix``; None: the socket's, or else the defaults).

        If the call is cancelled, the dialer is closed.  Raises AddressError for a URL that cannot
        be dialed, TLSConfigError if *tls* does not fit the URL, TypeError or ValueError for another
        argument that cannot be used, ClosedResourceError when the socket is closed.
        """
        address = Address.parse(url).settled()
        address.check_dialable()
        check_flag("wait", wait)
        rank = self._rank(priority)
        endpoint = config_to_dial(self._core.endpoint_config, address, tls, ws)
        # Before anything else can run: in a forked child, that would be the parent's tasks.
        self._core.check_open()
        await trio.lowlevel.checkpoint()
        self._core.check_open()
        dialer = DialerTask(self._core, address, endpoint, rank, once=wait)
        self._core.dialers.append(dialer)
        self._core.spawn(dialer.run)
        if wait:
            try:
                error = await dialer.decided()
            except BaseException:
                dialer.close_unchecked()
                raise
            self._core.check_open()
            if error is not None:
                raise DialError(f"cannot dial {url!r}: {error}") from error
        return dialer.handle

    async def listen(
        self,
        url: str,
        *,
        priority: int | None = None,
        tls: TLSServerConfig | None = None,
        ws: WSServerConfig | None = None,
        proxy_protocol: bool | None = None,
    ) -> Listener:
        """Listen on *url* and accept connections.

        ``listener.url`` has the port, or the abstract name, that was bound.  Several sockets of a
        trio run may share a host and port of ``ws`` or ``wss``, each with a path of its own.

        - *priority* (PUSH and REQ; 1, the best, to 16; None: 8): the priority of all peers that
          connect here, as with ``dial``.
        - *tls* (for ``tls+tcp`` and ``wss``, where a certificate is needed; None: the socket's).
        - *ws* (for ``ws``, ``wss``, ``ws+unix``; None: the socket's, or else the defaults).
        - *proxy_protocol* (not for ``ipc``, ``abstract`` and ``inproc``; None: the socket's
          option): whether each connection begins with a PROXY protocol header.

        If the call is cancelled, nothing stays bound.  Raises AddressError for a URL that cannot be
        listened on, TLSConfigError if *tls* does not fit the URL, OSError if the system refuses,
        for example because the address is in use, and ClosedResourceError when the socket is
        closed.
        """
        address = Address.parse(url).settled()
        address.check_listenable()
        rank = self._rank(priority)
        endpoint = config_to_listen(self._core.endpoint_config, address, tls, ws, proxy_protocol)
        self._core.check_open()
        acceptors = await transport_for(address).listen(address, endpoint)
        if not self._core.open:
            for acceptor in acceptors:
                acceptor.close()
            self._core.check_open()
        listener = ListenerTask(self._core, acceptors, endpoint.tls, rank)
        self._core.listeners.append(listener)
        self._core.spawn(listener.run)
        self._core.emit(Event(kind=EventKind.LISTENING, url=listener.url))
        return listener.handle

    def _rank(self, priority: int | None) -> int:
        if priority is None:
            return DEFAULT_PRIORITY
        if not self._core.engine.balances:
            raise ValueError(f"priority is for sockets that pick a peer for each message, PUSH and REQ, not for {self._core.name}")
        return check_int("priority", priority, 1, 16)

    async def wait_for_peers(self, n: int = 1) -> None:
        """Wait until the socket has at least *n* pipes.

        A PUB's next message then goes to that many subscribers.
        """
        check_int("n", n, 0)
        self._core.check_open()
        await trio.lowlevel.checkpoint()
        self._core.check_open()
        while len(self._core.pipes) < n:
            await self._core.changed()
            self._core.check_open()

    @property
    def pipes(self) -> Sequence[Pipe]:
        """The connections that the socket has now."""
        # In one step, since the caller may be another thread.
        tasks = tuple(self._core.pipes.values())
        handles: list[Pipe | None] = [getattr(task, "handle", None) for task in tasks]
        return tuple(handle for handle in handles if handle is not None)

    @property
    def dialers(self) -> Sequence[Dialer]:
        """The dialers that have not stopped."""
        return tuple(dialer.handle for dialer in tuple(self._core.dialers))

    @property
    def listeners(self) -> Sequence[Listener]:
        """The listeners that have not stopped."""
        return tuple(listener.handle for listener in tuple(self._core.listeners))

    @property
    def url(self) -> str:
        """The URL of the only listener, with the port or the abstract name that was bound.

        Raises StateError when the socket has no listener, or several: then use ``listeners``.
        """
        # In one step, since the caller may be another thread.
        listeners = list(self._core.listeners)
        if not listeners:
            raise StateError("the socket has no listener, so it has no url: listen first")
        if len(listeners) > 1:
            raise StateError(f"the socket has {len(listeners)} listeners: use the url of each one in socket.listeners")
        return listeners[0].url

    def events(self) -> EventStream:
        """Return an async iterator over the events of pipes, dialers and listeners from now on."""
        return self._core.events()

    def statistics(self) -> SocketStatistics:
        """Return a snapshot of the counters.

        This also works after the socket is closed, and in any thread.
        """
        return self._core.statistics()

    def __reduce__(self) -> NoReturn:
        """Raise TypeError: a copy, or another process, cannot have the connections."""
        raise TypeError(f"{type(self).__name__} cannot be pickled or copied: pass on its URL, and make a new socket for it")

    def __repr__(self) -> str:
        core = self._core
        return f"<{self._module}{type(self).__name__} {core.state} pipes={len(core.pipes)} inbox={core.engine.queued()}>"

    def __del__(self) -> None:
        if getattr(self, "_manager", None) is not None:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)


class Conversation(Receiver, Protocol):
    """The engine's part of a context."""

    def close(self) -> None: ...


@uninterrupted
class Context(Verbs, trio.abc.AsyncResource):
    """One of several conversations on a socket: the base of ``Req0Context`` and so on.

    ``socket.context()`` makes one.  It ends by ``close``, at the end of its ``async with`` block,
    or with its socket.
    """

    def __init__(self, core: Core, budget: CheckpointBudget, conversation: Conversation, receivers: Receivers) -> None:
        self._core = core
        self._budget = budget
        self._conversation = conversation
        self._receivers = receivers

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._closed else self._core.state}>"

    def close(self) -> None:
        """End the conversation.  Does nothing the second time.

        A call that waits on this context gets ClosedResourceError.  An ``async for`` over it ends.
        """
        if self._core.may_close():
            self._drop()

    def _drop(self) -> None:
        """Close without checking the caller."""
        if not self._closed:
            self._closed = True
            self._conversation.close()
            self._receivers.fail(_context_closed, self._conversation)
            # A SUB has no calls that wait to send.
            self._core.senders.fail(cast("Sender", self._conversation), _context_closed)

    async def aclose(self) -> None:
        """Do the same as ``close``."""
        if self._core.may_close():
            self._drop()
            await trio.lowlevel.checkpoint()


def drop(context: Context) -> None:
    """Close *context* without checking the caller.  For the library."""
    context._drop()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def _context_closed() -> Exception:
    return trio.ClosedResourceError("the context is closed")


def options_from(keywords: SocketKeywords, *own: str) -> SocketOptions:
    """Turn the keyword arguments of a socket into its options.

    Raises TypeError for an unknown one, which lists the known ones and *own*.
    """
    unknown = keywords.keys() - SocketKeywords.__annotations__.keys()
    if unknown:
        known = ", ".join(sorted([*own, *SocketKeywords.__annotations__]))
        raise TypeError(f"unknown option {', '.join(map(repr, sorted(unknown)))}, expected one of {known}")
    return SocketOptions(**keywords)


def plain(error: BaseException) -> BaseException | None:
    """Return *error* without trio.Cancelled and without groups of one.

    None: it was nothing but Cancelled.
    """
    if isinstance(error, trio.Cancelled):
        return None
    if not isinstance(error, BaseExceptionGroup):
        return error
    rest = [inner for inner in map(plain, cast("BaseExceptionGroup[BaseException]", error).exceptions) if inner is not None]
    if not rest:
        return None
    return rest[0] if len(rest) == 1 else BaseExceptionGroup("several tasks of the socket failed", rest)


def _has_cancelled(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_has_cancelled, cast("BaseExceptionGroup[BaseException]", error).exceptions))
    return isinstance(error, trio.Cancelled)
