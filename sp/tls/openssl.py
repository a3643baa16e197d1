"""Everything that uses OpenSSL below pyOpenSSL's public interface.

Each use has a fallback.

There are two reasons.  With ``Connection.recv`` and the like, a small message costs three times as
much: each call takes an allocation and two Python frames, and returns only one record.  And there
is no other way to learn whether a session was resumed, or to send the greeting in the server's
first flight.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from OpenSSL import SSL

BUFFER_SIZE: Final = 256 * 1024
"""The most bytes that are read at once, encrypted or not."""

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
"""Turns an exception of pyOpenSSL into the one to raise."""


class PlainBytes:
    """Moves bytes into and out of a connection through pyOpenSSL's public methods."""

    __slots__ = ("_connection", "ended", "failure", "has_more", "output")

    def __init__(self, connection: SSL.Connection, failure: Failure) -> None:
        self._connection = connection
        self.failure = failure
        self.has_more = False
        """Whether ``read`` may return data before more is fed."""
        self.ended = False
        """Whether the peer announced that it will send no more."""
        self.output = 1
        """How many bytes waited for ``drain`` after the last read; always 1 here, for "unknown".

        A peer may ask for answers without end, so the caller has to watch this."""

    def feed(self, ciphertext: bytes) -> None:
        """Take what came from the network."""
        if ciphertext:
            self._connection.bio_write(ciphertext)

    def drain(self) -> bytes | memoryview:
        """Return some of what is to be sent.  Empty: nothing is to be sent.

        The result is valid until the next call of ``drain`` or ``read`` of any connection.
        """
        try:
            return self._connection.bio_read(BUFFER_SIZE)
        except SSL.WantReadError:
            return b""

    def read(self, size: int) -> bytes:
        """Return at most *size* decrypted bytes.

        Empty: more must be fed first, or the peer has ``ended``.
        """
        try:
            data = self._connection.recv(size)
        except SSL.WantReadError:
            data = b""
        except SSL.ZeroReturnError:
            self.ended = True
            data = b""
        except Exception as error:
            raise self.failure(error) from error
        self.has_more = bool(data) or self.ended  # a call returns at most one record
        return data

    def write(self, plaintext: bytes | memoryview) -> None:
        """Encrypt all of *plaintext*."""
        try:
            self._connection.sendall(plaintext)
        except Exception as error:
            raise self.failure(error) from error

    def close(self, failure: Failure) -> None:
        """Release all references.  From now on, *failure* makes the errors."""
        self.failure = failure


class _Buffer(threading.local):
    """A buffer for each thread, since the calls that fill it release the interpreter's lock."""

    def __init__(self) -> None:
        self.cdata = _ffi.new("char[]", BUFFER_SIZE)
        self.view = memoryview(_ffi.buffer(self.cdata))
        self.start = _ffi.new("char **")


class DirectBytes:
    """The same by direct calls of OpenSSL, which return many records at once.

    It uses the buffer of the thread in which it is made, and must stay in that thread.
    """

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
        self._failed: Exception | None = None  # the next read raises it
        self.has_more = False
        self.ended = False
        self.output = 0

    def feed(self, ciphertext: bytes) -> None:
        size = len(ciphertext)
        if size and _BIO_write(self._into_ssl, ciphertext, size) != size:
            # There is no other reason to fail.
            raise MemoryError("OpenSSL has no memory for what was received")

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
                break  # that was the last record, and asking for another one would double the cost
            at += result
        self.output = _BIO_get_mem_data(self._from_ssl, start)
        self.has_more = done == size or self.ended or self._failed is not None
        data: bytes = _unpack(self._cdata, done)
        return data

    def _stopped(self, result: int, done: int) -> None:
        """Find out why no more can be read.

        A failure is raised now, or by the next read if this one has data.
        """
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
        while left:  # only one round, unless a ready-made context stops after each record
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
    """Return whether *connection* resumed a session.  False if this OpenSSL does not tell."""
    reused: Any = getattr(_lib, "SSL_session_reused", None)
    inside: Any = connection
    return bool(reused is not None and reused(inside._ssl))


def begin_no_sessions(context: SSL.Context) -> None:
    """Make connections of *context* begin no session that can be resumed.

    A TLS 1.3 server still sends tickets, which cannot be used, unless their number can be set.  No
    version of pyOpenSSL known to us can do that.
    """
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    set_number: Any = getattr(_lib, "SSL_CTX_set_num_tickets", None)
    if set_number is not None:
        inside: Any = context
        set_number(inside._context, 0)


def is_same_session(one: SSL.Session, other: SSL.Session | None) -> bool:
    """Return whether both are the same OpenSSL session.  False if that cannot be found out."""
    inside: tuple[Any, Any] = (one, other)
    first, second = (getattr(session, "_session", None) for session in inside)
    return first is not None and first == second


def reason_of(number: int) -> str:
    """Return OpenSSL's text for a verification error."""
    describe: Any = getattr(_lib, "X509_verify_cert_error_string", None)
    if describe is None:
        return f"verification error {number}"
    return str(_ffi.string(describe(number)).decode())


def verification_of(connection: SSL.Connection) -> str:
    """Return OpenSSL's text for what is wrong with the peer's certificate."""
    result: Any = getattr(_lib, "SSL_get_verify_result", None)
    inside: Any = connection
    return "verification failed" if result is None else reason_of(int(result(inside._ssl)))


def expect_name(connection: SSL.Connection, name: str, address: bytes | None) -> None:
    """Let OpenSSL check the peer's *name*, or its packed IP *address*, too.

    We check it ourselves in any case, but OpenSSL's alert then tells the peer that its certificate
    is at fault.
    """
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
    """Sends a few constant bytes in the server's first flight, after its Finished.

    This is 0.5-RTT data (RFC 8446, 2 and 4.4.4).  Call ``step`` in place of ``do_handshake`` until
    it returns.
    """

    possible: Final = all(hasattr(_lib, name) for name in ("SSL_read_early_data", "SSL_write_early_data", "SSL_get_error"))

    def __init__(self, connection: SSL.Connection) -> None:
        self._connection: Any = connection
        self._ssl: Any = self._connection._ssl
        self._size: Any = _ffi.new("size_t *")
        self._room: Any = _ffi.new("char[1]")

    def step(self) -> None:
        """Continue the handshake.

        Return when the client's hello is complete or, in TLS 1.2, when the handshake is complete.

        Raises what ``do_handshake`` raises.
        """
        # 0 means "not yet", or an error.  Otherwise it is 2, "no early data", because no context of
        # ours allows any.
        if _lib.SSL_read_early_data(self._ssl, self._room, 1, self._size) == 0:
            self._connection._raise_ssl_error(self._ssl, 0)

    def write(self, data: bytes) -> None:
        """Add *data* to the flight."""
        if _lib.SSL_write_early_data(self._ssl, _ffi.from_buffer(data), len(data), self._size) != 1:
            self._connection._raise_ssl_error(self._ssl, 0)
