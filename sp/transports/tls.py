"""tls+tcp: SP over TLS over TCP.

A TLSLink encrypts what it is given, and keeps what the kernel does not take.  Framing and
connecting are the same as for tcp.  To save round trips, a server sends its greeting with its first
flight.  A client sends its Finished, its greeting and its first message together: encrypted data is
not written before a task has to wait for the peer.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable
from typing import Final

import trio

from sp.address import Address
from sp.errors import PeerClosed, PeerError, TLSError
from sp.tls.config import TLSClientConfig, TLSServerConfig
from sp.tls.info import TLSInfo
from sp.tls.openssl import BUFFER_SIZE
from sp.tls.session import TLSSession
from sp.transports.contract import Acceptor, DialerConfig, ListenerConfig, Newcomer
from sp.transports.link import READ_SIZE, SocketLink, receive_first, wait_for_either
from sp.transports.proxy_protocol import ProxyInfo
from sp.transports.stream import StreamConnection
from sp.transports.tcp import connect_link, listen_link

_ALERT: Final = b"\x15\x03\x01\x00\x02\x02\x46"
"""A fatal alert (protocol version) in plain text, for a peer that does not speak TLS."""
_HANDSHAKE: Final = 0x16
_RECORD_HEADER: Final = 5
_LARGE_READ_SIZE: Final = 128 * 1024
"""The size of a read after one that came back full.

With twice as much, the bytes would no longer be in the processor's cache when they are decrypted.
"""
_WRITE_SIZE: Final = 128 * 1024
"""The most bytes that are encrypted before the kernel takes them, in full records."""


async def connect(address: Address, endpoint: DialerConfig) -> Newcomer:
    """Connect to *address*, as tcp does.  The TLS handshake is part of the greeting."""
    config = endpoint.tls
    assert config is not None
    return StreamConnection(TLSLink(await connect_link(address, endpoint), config, host=address.host, port=address.port), endpoint)


async def listen(address: Address, endpoint: ListenerConfig) -> list[Acceptor]:
    """Bind *address*, as tcp does."""
    config = endpoint.tls
    assert config is not None
    return await listen_link(address, endpoint, lambda link: StreamConnection(TLSLink(link, config), endpoint))


class _Turnstile:
    """Lets one step of one handshake through in each round of trio's scheduler.

    A step takes up to a millisecond, so many at once would hold up all other tasks.  A task that
    finds the turnstile free does not wait.
    """

    def __init__(self) -> None:
        self._free = True
        self._waiting = trio.lowlevel.ParkingLot()
        self._idle: trio.lowlevel.Task | None = None  # the task of _run, while it has nothing to do
        trio.lowlevel.spawn_system_task(self._run)

    def pass_nowait(self) -> bool:
        """Pass if the turnstile is free.  False: it is not."""
        if not self._free:
            return False
        self._free = False
        task, self._idle = self._idle, None
        if task is not None:
            trio.lowlevel.reschedule(task)
        return True

    async def wait(self) -> None:
        """Wait for a turn."""
        await self._waiting.park()

    async def _run(self) -> None:
        """Let the next task through in each round."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._idle = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            if self._free:
                self._idle = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)
            while self._waiting:
                self._waiting.unpark()
                await trio.lowlevel.checkpoint()
            self._free = True


_turnstile: trio.lowlevel.RunVar[_Turnstile] = trio.lowlevel.RunVar("sp.transports.tls")


def _the_turnstile() -> _Turnstile:
    try:
        return _turnstile.get()
    except LookupError:
        turnstile = _Turnstile()
        _turnstile.set(turnstile)
        return turnstile


class TLSLink:
    """A link that encrypts what it sends over another link."""

    def __init__(
        self, inner: SocketLink, config: TLSServerConfig | TLSClientConfig, *, host: str = "", port: int = 0, http: bool = False
    ) -> None:
        """*host* and *port* are those that a client connected to.

        *http*: HTTP will be spoken (for ALPN).
        """
        self._inner = inner
        self._recv, self._send = inner.recv, inner.send
        self._config = config
        self._host = host
        self._port = port
        self._http = http
        # Made late, so it is cheap to accept many connections at once.
        self._session: TLSSession | None = None
        self._unflushed = False  # there may be ciphertext that the kernel has not taken
        self._left: bytes = b""  # the part of it that was drained from the session
        self._owed = 0  # bytes of its plaintext that `send` has not reported as sent
        self._was_full = False  # whether the last read was full; then the next one is larger
        self._finishing = False
        self._closed = False
        self._queueing: trio.CancelScope | None = None  # the scope of the wait at the turnstile
        self._error: TLSError | None = None  # nothing can be read after it

    @property
    def local_address(self) -> str:
        return self._inner.local_address

    @property
    def remote_address(self) -> str:
        return self._inner.remote_address

    @property
    def proxy(self) -> ProxyInfo | None:
        return self._inner.proxy

    @property
    def proxy_address(self) -> str | None:
        return self._inner.proxy_address

    def set_peer_address(self, address: str) -> None:
        self._inner.set_peer_address(address)

    @property
    def stage(self) -> str:
        return "greeting" if self.tls is not None else "TLS handshake"

    @property
    def tls(self) -> TLSInfo | None:
        return self._session.info if self._session is not None else None

    async def open(self, greeting: bytes) -> None:
        """Do the handshake, and send *greeting* as early as possible."""
        await self._inner.open(b"")
        data = b"" if isinstance(self._config, TLSClientConfig) else await self._first_record()
        while (session := await self._step(data, greeting)) is None:
            data = await self._receive()
        if not greeting:
            self._flush_quietly()
        elif not session.greeted:
            # Do not flush this: the first message may follow at once.  `wait_readable` flushes.
            session.write(greeting)

    async def _first_record(self) -> bytes:
        """Return the client's first bytes: a whole record, or something other than TLS.

        While a client has sent less, it takes no turn at the turnstile.
        """
        data = bytearray()
        while (not data or data[0] == _HANDSHAKE) and len(data) < _RECORD_HEADER + int.from_bytes(data[3:_RECORD_HEADER], "big"):
            data += await self._receive(first=not data)
        return bytes(data)

    async def _receive(self, *, first: bool = False) -> bytes:
        while True:
            self._check_open()
            await self.wait_readable()
            self._check_open()
            try:
                data = receive_first(self._inner, READ_SIZE, "during the TLS handshake") if first else self._inner.recv(READ_SIZE)
            except BlockingIOError:
                continue
            if not data:
                raise PeerClosed("the peer closed the connection during the TLS handshake")
            return data

    async def _step(self, data: bytes, greeting: bytes) -> TLSSession | None:
        """Continue the handshake.  Return the session once it is established."""
        turnstile = _the_turnstile()
        if not turnstile.pass_nowait():
            with trio.CancelScope() as self._queueing:
                await turnstile.wait()
        self._check_open()
        if self._session is None:
            self._session = TLSSession(self._config.contexts.current, peer=self._peer, host=self._host, port=self._port, http=self._http)
        self._unflushed = True
        try:
            return self._session if self._session.handshake(data, greeting) else None
        except TLSError:
            if self._session.is_not_tls:
                self._left = _ALERT
            self._flush_quietly()  # the alert
            raise

    @property
    def _peer(self) -> str:
        return self.remote_address if isinstance(self._config, TLSClientConfig) else ""

    def recv(self, size: int) -> bytes:
        session = self._session
        assert session is not None
        moved = session.bytes
        if self._error is not None:
            # Another task may have seen the error first: one that read directly in place of the
            # pipe.
            raise self._error
        try:
            if moved.has_more:
                data = session.read(size)
                if data or moved.ended:
                    return data
            most = _LARGE_READ_SIZE if self._was_full else READ_SIZE
            received = self._recv(most)
            self._was_full = len(received) == most
            if not received:
                raise PeerClosed("the peer closed the connection without ending TLS: the last data it sent may be missing", silent=True)
            moved.feed(received)
            data = session.read(size)
            if moved.output:
                self._answer(moved.output)
            if data or moved.ended:
                return data
        except TLSError as error:
            self._error = error
            self._unflushed = True
            self._flush_quietly()  # the alert
            raise
        raise BlockingIOError

    def _answer(self, size: int) -> None:
        """Flush soon the *size* bytes that reading produced: a peer may ask for new keys."""
        self._unflushed = True
        if size > BUFFER_SIZE:
            raise TLSError(f"TLS: the peer asks for answers but does not read them: {size} bytes are waiting")

    def send(self, data: bytes | memoryview) -> int:
        """Encrypt and send *data* or a part of it.  Return the number of bytes.

        After a BlockingIOError it must be called with the same data again, because a part of it may
        already be encrypted.
        """
        # This also sends what was not flushed before, such as the end of a handshake.
        if self._left and not self._flush():
            raise BlockingIOError
        if self._owed:
            sent, self._owed = self._owed, 0
            return sent
        if len(data) > _WRITE_SIZE:
            data = memoryview(data)[:_WRITE_SIZE]
        sent = len(data)
        session = self._session
        assert session is not None
        try:
            session.write(data)
        except PeerError as error:
            raise BrokenPipeError(errno.EPIPE, str(error)) from error
        self._unflushed = True
        if not self._flush():
            self._owed = sent
            raise BlockingIOError
        return sent

    def send_parts(self, parts: list[bytes | memoryview]) -> int:
        """Send *parts*, joined, so that they fill their records."""
        if len(parts[0]) >= _WRITE_SIZE:
            return self.send(parts[0])
        joined: list[bytes | memoryview] = []
        size = 0
        for part in parts:
            room = _WRITE_SIZE - size
            joined.append(part if len(part) <= room else memoryview(part)[:room])
            size += len(joined[-1])
            if size == _WRITE_SIZE:
                break
        return self.send(b"".join(joined))

    def _flush(self) -> bool:
        """Send what is encrypted.

        False: the kernel does not take all of it now.  Raises OSError.
        """
        session = self._session
        while self._unflushed and session is not None:
            data = self._left or session.data_to_send()
            try:
                sent = self._send(data) if data else 0
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                self._left = bytes(data[sent:])  # the session reuses its buffer
                return False
            # If some is left, or if the buffer was full, there may be more to send.
            self._unflushed = bool(self._left) or sent == BUFFER_SIZE
            self._left = b""
        if self._finishing:
            self._inner.finish()
        return True

    def _flush_quietly(self) -> bool:
        try:
            return self._flush()
        except OSError:
            return True  # reading will report it

    def wait_readable(self) -> Awaitable[None]:
        session = self._session
        if session is not None and (session.bytes.has_more or self._error is not None):
            return trio.lowlevel.checkpoint()  # noqa: ASYNC105  # the caller awaits it
        if not self._unflushed or self._flush_quietly() or self._inner.writer is not None:
            return self._inner.wait_readable()
        return wait_for_either(self, self._inner.wait_readable)

    async def wait_writable(self) -> None:
        await self._inner.wait_writable()

    @property
    def writer(self) -> trio.Event | None:
        return self._inner.writer

    @property
    def detects_silence(self) -> bool:
        return self._inner.detects_silence

    def check_silence(self, now: float) -> bool:
        return self._inner.check_silence(now)

    def acknowledged(self) -> int:
        return self._inner.acknowledged()

    def interrupt(self) -> None:
        self._inner.interrupt()

    def finish(self) -> bool:
        if self._session is None:
            return True
        if not self._finishing:
            self._session.finish()
            self._finishing = self._unflushed = True
        return self._flush_quietly()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._error = None
            if self._queueing is not None:
                self._queueing.cancel()
            if self._session is not None:
                self._session.close()
                self._unflushed = True
                self._flush_quietly()
                self._left = b""
            self._inner.close()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError
