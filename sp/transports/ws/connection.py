"""A WebSocket of ws, wss or ws+unix that carries messages: frames, pings, and its end."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio

from sp.errors import PeerClosed, PeerError, PeerSilent, PipeRefused
from sp.http.message import HTTPInfo
from sp.message import Message
from sp.transports.contract import DialerConfig, ListenerConfig
from sp.transports.link import READ_SIZE, Link, wait_for_either
from sp.transports.stream import LARGE_READ_SIZE, MAX_PARTS, WRITE_SIZE, LinkConnection
from sp.transports.ws.frames import ENDED, WebSocket
from sp.transports.ws.handshake import Pings

_LAST_WORDS: Final = 1.0
"""How many seconds a peer has to read why the connection ends.

Closing at once could destroy these words on their way (RST).
"""
NORMAL, GOING_AWAY, _PROTOCOL_ERROR, _POLICY, _GONE = 1000, 1001, 1002, 1008, 1011
"""Codes of a Close (RFC 6455, 7.4.1)."""


class WSConnection(LinkConnection):
    """A WebSocket, of either side."""

    __slots__ = (
        "_code",
        "_config",
        "_control",
        "_heard",
        "_keeping",
        "_lingered",
        "_more",
        "_pings",
        "_says_close",
        "_waiting",
        "_websocket",
        "http",
    )

    def __init__(
        self,
        link: Link,
        endpoint: DialerConfig | ListenerConfig,
        websocket: WebSocket,
        http: HTTPInfo,
        pings: Pings,
        *,
        code: int = NORMAL,
        says_close: bool = True,
    ) -> None:
        """At a normal end, the peer gets a Close with *code*, or no Close if not *says_close*."""
        super().__init__(link, endpoint)
        self.http = http
        self._config = endpoint.ws
        self._websocket = websocket
        self._pings = pings
        self._code = code
        self._says_close = says_close
        # Frames to send between messages: a ping, the answer to a ping, a Close.
        self._control = b""
        self._heard = False  # whether anything has come since the last ping
        self._waiting = False  # whether we wait for the peer, having read all that it sent
        self._more = False  # the last read was full, so there is probably more to read
        self._lingered = False  # the peer has had its time to read our last words
        self._keeping: trio.CancelScope | None = None

    def send_answer(self, answer: bytes) -> None:
        """Send the *answer* to the request, which comes before all frames.  Raises OSError."""
        self._control = answer
        self.send_nowait(deque())

    # Writing.

    def send_nowait(self, outbox: deque[Message]) -> bool:
        if not super().send_nowait(outbox):
            return False
        return not self._take_control() or super().send_nowait(outbox)

    def _take_control(self) -> bool:
        """Make the control frames the next thing to write.  False: there are none."""
        if not self._control:
            return False
        self._unwritten, self._sizes = [self._control], []
        self._control = b""
        return True

    def _encode(self, outbox: deque[Message]) -> list[bytes | memoryview]:
        websocket = self._websocket
        if self._take_control():
            return self._unwritten
        parts: list[bytes | memoryview] = []
        sizes: list[int] = []
        size = 0
        while outbox and size < WRITE_SIZE and len(parts) < MAX_PARTS:
            frames = websocket.encode(outbox[0])
            outbox.popleft()
            length = sum(map(len, frames))
            parts += frames
            sizes.append(length)
            size += length
        self._sizes = sizes
        return parts if size >= WRITE_SIZE else [b"".join(parts)]

    def _say(self, data: bytes) -> None:
        """Write *data* between messages, soon.

        It replaces what could not be written yet: of several pings, only the last needs an answer.
        """
        if data:
            self._control = data
            self._flush()

    def _flush(self) -> None:
        try:
            self.send_nowait(deque())
        except OSError:
            pass  # the next read reports it

    # Reading.

    async def receive_batch(self) -> list[Message]:
        websocket = self._websocket
        self._interrupted = False
        while websocket.error is None:
            self._check_open()
            if self._interrupted:
                raise trio.ClosedResourceError
            if websocket.has_more:
                await trio.lowlevel.checkpoint()
                data = b""
            elif websocket.ended:
                await trio.lowlevel.checkpoint()
                raise PeerClosed(websocket.ended, silent=websocket.ended == ENDED)
            else:
                if self._more:
                    await trio.lowlevel.checkpoint()
                else:
                    await self._wait_readable()
                size = LARGE_READ_SIZE if self._more else READ_SIZE
                try:
                    data = self._link.recv(size)
                except BlockingIOError:
                    self._more = False
                    continue
                self._heard = True
                if not data:
                    # nanomsg and mangos end a connection without a Close.
                    if websocket.in_message:
                        raise PeerClosed("the peer closed the connection in the middle of a message")
                    return []
                self._more = len(data) == size
            messages = websocket.receive_data(data)
            self._say(websocket.data_to_send())
            if messages:
                return messages
        await self.linger_close(websocket.error)
        raise websocket.error

    async def _wait_readable(self) -> None:
        link = self._link
        self._waiting = True
        try:
            if (self._unwritten or self._control) and link.writer is None:
                await wait_for_either(link, link.wait_readable)
                self._flush()
            else:
                await link.wait_readable()
        except trio.ClosedResourceError:
            if self.closed or self._websocket.error is None:
                raise
        finally:
            self._waiting = False

    async def linger_close(self, error: Exception | None = None) -> None:
        """Say why the WebSocket ends, and give the peer a moment to read it."""
        if self._lingered or self.closed:
            return
        self._lingered = True
        try:
            self._say_goodbye(error)
            self._flush()
        except PeerError:
            return  # TLS failed, so the peer cannot read it
        await linger(self._link)

    # Keeping alive.

    @property
    def keep_alive(self) -> Callable[[], Awaitable[None]] | None:
        config = self._config
        if config.ping_interval is None or (self._pings is Pings.NONE and not config.ping_everyone):
            return None
        return partial(self._keep_alive, config.ping_interval)

    @trio.lowlevel.enable_ki_protection
    async def _keep_alive(self, interval: float) -> None:
        """Ping the peer every *interval* seconds; end the connection if nothing comes back."""
        timeout = self._config.ping_timeout
        is_judged = self._pings is Pings.ANSWERED or self._config.ping_everyone
        due = trio.current_time() + interval
        deadline = math.inf
        with trio.CancelScope() as self._keeping:
            while not self.closed:
                await self._write_until(min(due, deadline))
                now = trio.current_time()
                if now >= deadline:
                    # If this process was paused, let the reader see what has come meanwhile.
                    for _ in range(2):
                        await trio.lowlevel.checkpoint()
                try:
                    # A ping on its way is data in flight, even if the peer need not answer it.
                    self.check_silence(now)
                    if self._heard:
                        deadline = math.inf
                    elif now >= deadline:
                        if self._waiting:
                            raise PeerSilent(f"the peer did not answer a ping within {timeout:g} s, and sent nothing else")
                        # We do not read now, because the application receives too slowly.
                        deadline = now + timeout
                except PeerSilent as error:
                    self._give_up(error)
                    return
                if now >= due:
                    due = now + interval
                    ping = b"" if self._control else self._websocket.ping()
                    if ping and deadline == math.inf and is_judged:
                        self._heard, deadline = False, now + timeout
                    self._say(ping)

    async def _write_until(self, time: float) -> None:
        """Wait until *time*.  Meanwhile, write what the kernel did not take at once."""
        with trio.move_on_at(time):
            while (self._unwritten or self._control) and not self.closed:
                try:
                    await self._link.wait_writable()
                except trio.ClosedResourceError:
                    # The connection was closed, or the reader was interrupted.
                    await trio.lowlevel.checkpoint()
                else:
                    self._flush()
            await trio.sleep_forever()

    def _give_up(self, error: PeerSilent) -> None:
        websocket = self._websocket
        websocket.error = error
        self._say(websocket.close(_GONE, "no answer to a ping"))
        self._lingered = True
        self._link.interrupt()

    # The end.

    def finish(self) -> bool:
        if self._says_close:
            self._say(self._websocket.close(self._code))
        if self._unwritten or self._control:
            return False
        if not self._says_close:
            self._link.finish()
        return True

    def close(self, error: Exception | None = None) -> None:
        if self.closed:
            return
        self.closed = True
        if self._keeping is not None:
            self._keeping.cancel()
        self._say_goodbye(error)
        self._websocket.forget()
        self._link.close()

    def _say_goodbye(self, error: Exception | None) -> None:
        websocket = self._websocket
        if isinstance(error, PeerError) and not isinstance(error, PeerClosed):
            self._say(websocket.close(_PROTOCOL_ERROR, str(error)))
        elif isinstance(error, PipeRefused):
            self._say(websocket.close(_POLICY, str(error)))
        elif not isinstance(error, OSError) and self._says_close:
            self._say(websocket.close(self._code))


async def linger(link: Link) -> None:
    """Give the peer a moment to read what we have sent, and to end the connection."""
    try:
        link.finish()
        with trio.move_on_after(_LAST_WORDS):
            while True:
                await link.wait_readable()
                try:
                    if not link.recv(READ_SIZE):
                        return
                except BlockingIOError:
                    pass
    except (OSError, PeerError, trio.ClosedResourceError):
        pass


async def send_all(link: Link, data: bytes) -> None:
    """Send *data*, which belongs to the handshake.

    Raises PeerError, OSError or ClosedResourceError.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[link.send(rest) :]
        except BlockingIOError:
            await link.wait_writable()
