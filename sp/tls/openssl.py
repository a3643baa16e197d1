"""What goes below pyOpenSSL's public surface, all of it, each with a plain way of doing without.

Why: moving bytes through ``Connection.recv`` and its kin costs three times as much for a small message (an allocation and two
Python frames for each call, one record a call); and there is no other way to ask whether a session was resumed, nor to send the
greeting in the server's first flight.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from OpenSSL import SSL

BUFFER_SIZE: Final = 256 * 1024
"""The most that is read at once, encrypted or not."""

_lib: Any = getattr(SSL, "_lib", None)
_ffi: Any = getattr(SSL, "_ffi", None)
_STRICT_NAMES: Final = 0x20 | 0x04
"""X509_CHECK_FLAG_NEVER_CHECK_SUBJECT and X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS."""
_FUNCTIONS: Final = ("SSL_read", "SSL_write", "SSL_get_error", "BIO_read", "BIO_write", "BIO_get_mem_data")
_CONNECTION: Final = ("_ssl", "_into_ssl", "_from_ssl", "_raise_ssl_error")


def _is_capable() -> bool:
    if not all(hasattr(_lib, name) for name in _FUNCTIONS):
        return False
    probe = SSL.Connection(SSL.Context(SSL.TLS_METHOD))
    return all(hasattr(probe, name) for name in _CONNECTION)


Failure = Callable[[Exception], Exception]
"""Makes the error to raise of pyOpenSSL's."""


class PlainBytes:
    """Moves bytes into and out of a connection, as pyOpenSSL has it."""

    __slots__ = ("_connection", "ended", "failure", "has_more", "output")

    def __init__(self, connection: SSL.Connection, failure: Failure) -> None:
        self._connection = connection
        self.failure = failure
        self.has_more = False
        """Whether ``read`` may return more before anything else is fed."""
        self.ended = False
        """Whether the peer has said that it will send no more."""
        self.output = 1
        """Bytes that the last read has found waiting for ``drain``; here, not known: 1.  A peer may ask for answers without end."""

    def feed(self, ciphertext: bytes) -> None:
        """Take what came from the network."""
        if ciphertext:
            self._connection.bio_write(ciphertext)

    def drain(self) -> bytes | memoryview:
        """Return what is to go to the network, a bounded part of it, good until the next call of this kind; empty: nothing."""
        try:
            return self._connection.bio_read(BUFFER_SIZE)
        except SSL.WantReadError:
            return b""

    def read(self, size: int) -> bytes:
        """Return at most *size* bytes of what was decrypted; empty: more must be fed first, or the peer has ``ended``."""
        try:
            data = self._connection.recv(size)
        except SSL.WantReadError:
            data = b""
        except SSL.ZeroReturnError:
            self.ended = True
            data = b""
        except Exception as error:
            raise self.failure(error) from error
        self.has_more = bool(data) or self.ended  # a call returns no more than a record
        return data

    def write(self, plaintext: bytes | memoryview) -> None:
        """Encrypt all of *plaintext*."""
        try:
            self._connection.sendall(plaintext)
        except Exception as error:
            raise self.failure(error) from error

    def close(self, failure: Failure) -> None:
        """Hold on to nobody any more: errors are made by *failure* from now on."""
        self.failure = failure


class _Buffer(threading.local):
    """One for each thread: the calls below release the interpreter's lock while they fill it."""

    def __init__(self) -> None:
        self.cdata = _ffi.new("char[]", BUFFER_SIZE)
        self.view = memoryview(_ffi.buffer(self.cdata))
        self.start = _ffi.new("char **")


class DirectBytes:
    """The same without pyOpenSSL's frames: many records a call, into the buffer of the thread that it is made in, and stays in."""

    __slots__ = (
        "_cdata",
        "_connection",
        "_failed",
        "_from_ssl",
        "_into_ssl",
        "_ssl",
        "_start",
        "_view",
        "ended",
        "failure",
        "has_more",
        "output",
    )

    def __init__(self, connection: SSL.Connection, failure: Failure) -> None:
        self._cdata, self._view, self._start = _buffer.cdata, _buffer.view, _buffer.start
        inside: Any = connection
        self._connection: Any = connection
        self.failure = failure
        self._ssl: Any = inside._ssl
        self._into_ssl: Any = inside._into_ssl
        self._from_ssl: Any = inside._from_ssl
        self._failed: Exception | None = None  # after data that was returned first
        self.has_more = False
        self.ended = False
        self.output = 0

    def feed(self, ciphertext: bytes) -> None:
        size = len(ciphertext)
        if size and _BIO_write(self._into_ssl, ciphertext, size) != size:
            raise MemoryError("OpenSSL has no memory for what was received")  # nothing else makes it say no

    def drain(self) -> bytes | memoryview:
        size = _BIO_read(self._from_ssl, self._cdata, BUFFER_SIZE)
        return self._view[:size] if size > 0 else b""

    def read(self, size: int) -> bytes:
        if self._failed is not None:
            raise self.failure(self._failed) from self._failed
        into, start, at = self._into_ssl, self._start, self._cdata
        if size > BUFFER_SIZE:  # noqa: PLR1730  # min() costs five times as much
            size = BUFFER_SIZE
        done = 0
        while done < size:
            result = _SSL_read(self._ssl, at, size - done)
            if result <= 0:
                self._stopped(result, done)
                break
            done += result
            if _BIO_get_mem_data(into, start) <= 0:
                break  # that was the last record: asking for another one costs as much as this one did
            at += result
        self.output = _BIO_get_mem_data(self._from_ssl, start)
        self.has_more = done == size or self.ended or self._failed is not None
        data: bytes = _unpack(self._cdata, done)
        return data

    def _stopped(self, result: int, done: int) -> None:
        """Find out why no more can be read.  A failure is raised, once what was read before it has been returned."""
        try:
            self._connection._raise_ssl_error(self._ssl, result)
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.ended = True
        except Exception as error:
            if not done:
                raise self.failure(error) from error
            self._failed = error

    def write(self, plaintext: bytes | memoryview) -> None:
        left = len(plaintext)
        while left:  # once, unless a ready-made context lets it stop after each record
            result = _SSL_write(self._ssl, plaintext if type(plaintext) is bytes else _ffi.from_buffer(plaintext), left)
            if result <= 0:
                try:
                    self._connection._raise_ssl_error(self._ssl, result)
                except Exception as error:
                    raise self.failure(error) from error
            left -= result
            if left:
                plaintext = memoryview(plaintext)[result:]

    def close(self, failure: Failure) -> None:
        self.failure = failure
        self._failed = None


Bytes = PlainBytes | DirectBytes

if _is_capable():
    _SSL_read, _SSL_write, _BIO_read, _BIO_write, _BIO_get_mem_data = (
        _lib.SSL_read,
        _lib.SSL_write,
        _lib.BIO_read,
        _lib.BIO_write,
        _lib.BIO_get_mem_data,
    )
    _unpack = _ffi.unpack
    _buffer = _Buffer()
    bytes_of: type[Bytes] = DirectBytes
else:
    bytes_of = PlainBytes


def was_resumed(connection: SSL.Connection) -> bool:
    """Whether *connection* resumed a session; False where that cannot be asked."""
    reused: Any = getattr(_lib, "SSL_session_reused", None)
    inside: Any = connection
    return bool(reused is not None and reused(inside._ssl))


def begin_no_sessions(context: SSL.Context) -> None:
    """Let connections of *context* begin no session that could be resumed.

    A server of TLS 1.3 still sends tickets, which lead to nothing, where their number cannot be
    set: no pyOpenSSL that is known has the call.
    """
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    set_number: Any = getattr(_lib, "SSL_CTX_set_num_tickets", None)
    if set_number is not None:
        inside: Any = context
        set_number(inside._context, 0)


def is_same_session(one: SSL.Session, other: SSL.Session | None) -> bool:
    """Whether both are one session of OpenSSL's; False where that cannot be told."""
    inside: tuple[Any, Any] = (one, other)
    first, second = (getattr(session, "_session", None) for session in inside)
    return first is not None and first == second


def reason_of(number: int) -> str:
    """Return OpenSSL's words for a verification error."""
    describe: Any = getattr(_lib, "X509_verify_cert_error_string", None)
    if describe is None:
        return f"verification error {number}"
    return str(_ffi.string(describe(number)).decode())


def verification_of(connection: SSL.Connection) -> str:
    """Return what was wrong with the peer's certificate, in OpenSSL's words."""
    result: Any = getattr(_lib, "SSL_get_verify_result", None)
    inside: Any = connection
    return "verification failed" if result is None else reason_of(int(result(inside._ssl)))


def expect_name(connection: SSL.Connection, name: str, address: bytes | None) -> None:
    """Let OpenSSL check the peer's name, or its packed IP *address*, as well: then the alert says that the certificate is a bad one."""
    names = ("SSL_get0_param", "X509_VERIFY_PARAM_set1_host", "X509_VERIFY_PARAM_set1_ip", "X509_VERIFY_PARAM_set_hostflags")
    if all(hasattr(_lib, function) for function in names):
        inside: Any = connection
        parameters: Any = _lib.SSL_get0_param(inside._ssl)
        _lib.X509_VERIFY_PARAM_set_hostflags(parameters, _STRICT_NAMES)
        if address is None:
            _lib.X509_VERIFY_PARAM_set1_host(parameters, name.encode(), len(name))
        else:
            _lib.X509_VERIFY_PARAM_set1_ip(parameters, address, len(address))


class EarlyGreeting:
    """Sends a few constant bytes in the server's first flight, beside its Finished (RFC 8446, 4.4.4 and 2: 0.5-RTT data).

    ``step`` stands in for ``do_handshake`` until it returns.
    """

    possible: Final = all(hasattr(_lib, name) for name in ("SSL_read_early_data", "SSL_write_early_data", "SSL_get_error"))

    def __init__(self, connection: SSL.Connection) -> None:
        self._connection: Any = connection
        self._ssl: Any = self._connection._ssl
        self._size: Any = _ffi.new("size_t *")
        self._room: Any = _ffi.new("char[1]")

    def step(self) -> None:
        """Take what the client has said.  Returns when its hello is complete, or, under TLS 1.2, when the handshake is.

        Raises what ``do_handshake`` does.
        """
        # 0: not yet, or an error.  Otherwise 2: the client has sent no early data, which no context of ours allows.
        if _lib.SSL_read_early_data(self._ssl, self._room, 1, self._size) == 0:
            self._connection._raise_ssl_error(self._ssl, 0)

    def write(self, data: bytes) -> None:
        """Add *data* to the flight."""
        if _lib.SSL_write_early_data(self._ssl, _ffi.from_buffer(data), len(data), self._size) != 1:
            self._connection._raise_ssl_error(self._ssl, 0)
