"""One TLS connection without I/O: pyOpenSSL over memory buffers.

The caller feeds what came from the network, reads until OpenSSL wants more, and then drains what is
to be sent.  After a failure, the alert for the peer is left to drain.  Every failure is a TLSError
or its subclass AuthenticationError.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Final

from OpenSSL import SSL

from sp.errors import AuthenticationError, TLSError, printable
from sp.guess import guess_protocol
from sp.tls.certificate_names import packed_address, wrong_name
from sp.tls.context import HTTP_1_1, TLSContext, explain
from sp.tls.info import TLSInfo
from sp.tls.openssl import EarlyGreeting, bytes_of, expect_name, is_same_session, reason_of, verification_of, was_resumed

if TYPE_CHECKING:
    from OpenSSL import crypto

_ALERT: Final = b"\x15"
_HANDSHAKE: Final = b"\x16"
_SHOWN: Final = 8
_READS_WATCHED: Final = 8
"""A server that has sent no ticket after so many reads will send none."""
_WRONG_NAME: Final = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
_ABOUT_CERTIFICATES: Final = ("certificate", "unknown ca", "access denied", "decrypt error")
"""Parts of OpenSSL's names for the alerts that refuse a certificate (RFC 8446, 6.2)."""


class TLSSession:
    """The state of one connection."""

    def __init__(self, context: TLSContext, *, peer: str = "", host: str = "", port: int = 0, http: bool = False) -> None:
        """Prepare a connection of *context*.

        *peer* names the other side in errors.  A client gives the *host* and *port* that it
        connected to: they determine which name to verify and which session to resume.  *http*: HTTP
        will be spoken, which the handshake announces (ALPN, RFC 7301).  SP has no name for ALPN.
        """
        self.http = http
        self.established = False
        self.greeted = False
        """Whether the greeting was sent with the handshake, so that it need not be written."""
        self._context = context
        self._peer = peer
        self._first = b""  # the peer's first bytes, until the handshake is complete
        self._refusal = ""  # why we refused the peer's certificate
        self.problem: Exception | None = None
        """What went wrong in a callback.  OpenSSL does not pass exceptions of callbacks on."""
        self.is_not_tls = False
        """Whether the peer does not speak TLS.  OpenSSL then has no alert for it."""
        self._failed = False
        self._info: TLSInfo | None = None
        connection = SSL.Connection(context.context)
        self._connection = connection
        self.bytes = bytes_of(connection, self._failure)
        """Moves the bytes; knows whether the peer has ``ended`` and whether more can be read."""
        # Every message passes through these, so they are bound here without another call in
        # between.
        self.receive_data = self.bytes.feed
        """Take what came from the network, after the handshake."""
        self.read = self.bytes.read
        """Return at most so many decrypted bytes.

        Empty: more must be received first, or the peer has ended.  Raises TLSError."""
        self.write = self.bytes.write
        """Encrypt all of what is given.  Raises TLSError."""
        self.data_to_send = self.bytes.drain
        """Return some of what is to be sent.

        Empty: nothing is to be sent.  The result is valid until the next call of any session."""
        self._early: EarlyGreeting | None = None
        self._name = self._server = ""
        self._session: SSL.Session | None = None  # the newest known
        self._reads_watched = 0
        self._heard = False  # the peer has sent something, so it did not refuse us
        if not context.ready_made:
            connection.set_app_data(self)  # for callbacks
        if context.is_server:
            connection.set_accept_state()
            if EarlyGreeting.possible and not context.ready_made:
                self._early = EarlyGreeting(connection)
        else:
            self._begin_client(connection, host, port)

    def _begin_client(self, connection: SSL.Connection, host: str, port: int) -> None:
        """Set the name to expect, and resume a session with that server if there is one."""
        context = self._context
        connection.set_connect_state()
        if self.http:
            connection.set_alpn_protos([HTTP_1_1])
        self._name = (context.server_name or host).rstrip(".").partition("%")[0]
        address = packed_address(self._name)
        if address is None:
            connection.set_tlsext_host_name(self._name.encode("ascii"))
        if context.verifies:
            expect_name(connection, self._name, address)
        self._server = f"{self._name} {host}:{port}"
        session = context.sessions.take(self._server) if context.sessions is not None else None
        if session is not None:
            connection.set_session(session)

    @property
    def info(self) -> TLSInfo | None:
        """What ``pipe.tls`` shows.  None until the connection is established."""
        return self._info if self.established else None

    def handshake(self, data: bytes, greeting: bytes) -> bool:
        """Take *data* from the network and go on with the handshake.

        True: the connection is established.

        A server sends *greeting* with its first flight if it can, see ``greeted``.  Raises
        TLSError.
        """
        if len(self._first) < _SHOWN:
            self._first += data[: _SHOWN - len(self._first)]
        self.receive_data(data)
        try:
            self._handshake(greeting)
        except SSL.WantReadError:
            self._raise_problem()
            return False
        except Exception as error:
            raise self._failure(error) from error
        self._raise_problem()
        return True

    def finish(self) -> None:
        """Tell the peer that nothing more will be sent.

        If a connection is freed without this, OpenSSL thinks that it was cut off, and makes its
        session useless, in our cache too.
        """
        if self.established and not self._failed:
            try:
                self._connection.shutdown()
            except SSL.Error:
                pass  # the connection has already failed

    def close(self) -> None:
        """Finish, and release all references.  What is left to send can still be drained."""
        self.finish()
        if self._heard and not self._failed:
            self._remember()
        self._connection.set_app_data(None)
        self.read = self.bytes.read
        self.bytes.close(_closed)

    def _handshake(self, greeting: bytes) -> None:
        connection = self._connection
        if self._early is not None:
            self._early.step()
            early, self._early = self._early, None
            # A client that was asked for a certificate gets no greeting before the certificate is
            # verified, so a greeting always means that the client was accepted.  In a resumed
            # session it was verified before.  If the client was asked for another hello, there is
            # no cipher yet, and the greeting would be sent in plain text.
            has_keys = connection.get_protocol_version() == SSL.TLS1_3_VERSION and connection.get_cipher_name() is not None
            may_greet = has_keys and (not self._context.verifies or self._resumed_validly())
            if may_greet and greeting:
                early.write(greeting)
                self.greeted = True
        connection.do_handshake()
        self.established = True
        self.bytes.has_more = True  # data may have come with the end of the handshake
        self._first = b""
        if self._info is None:
            self._info = TLSInfo(connection, verifies=self._context.verifies, resumed=was_resumed(connection))
            if self._context.verifies and self._info.resumed:
                self._check_dates(self._info)
            elif self._context.verifies and self._context.ready_made and not self._context.is_server:
                self._check_name(self._info)
        if not self._context.is_server:
            self._reads_watched = _READS_WATCHED
            self.read = self._read_and_watch
            if connection.get_protocol_version() == SSL.TLS1_3_VERSION:
                # Tickets come later.  This session cannot be resumed; it is kept to recognize a new
                # one.
                self._session = connection.get_session()

    def _resumed_validly(self) -> bool:
        if not was_resumed(self._connection):
            return False
        self._info = TLSInfo(self._connection, verifies=self._context.verifies, resumed=True)
        self._check_dates(self._info)
        return True

    def _check_name(self, info: TLSInfo) -> None:
        """Check the name for a ready-made context, which does not check names itself."""
        certificate = info.peer_certificate
        reason = "it sent none" if certificate is None else wrong_name(certificate, self._name)
        if reason:
            raise AuthenticationError(self._describe(f"the server's certificate was refused: {reason}"))

    def _check_dates(self, info: TLSInfo) -> None:
        """Check the dates, which OpenSSL does not do when it resumes.

        The name need not be checked, because the cache is by name.
        """
        certificate = info.peer_certificate
        if certificate is not None and not certificate.not_valid_before_utc <= _now() <= certificate.not_valid_after_utc:
            raise AuthenticationError(self._describe("the peer's certificate was refused: it has expired since the resumed session began"))

    def certificate_checked(self, certificate: crypto.X509, error: int, depth: int, ok: bool) -> bool:
        """Decide about a certificate of the peer's chain.

        OpenSSL says *ok*, or gives the number of its *error*.
        """
        if ok and depth:
            return True
        reason = "" if ok else reason_of(error)
        subject = "one that cannot be read"
        try:
            readable = certificate.to_cryptography()
            if not self._context.is_server and (ok or error in _WRONG_NAME):
                reason = wrong_name(readable, self._name) or reason
            if reason:
                subject = printable(readable.subject.rfc4514_string()) or "one without a subject"
        except Exception as unreadable:
            # OpenSSL accepts more than cryptography can parse, and we need the names.
            reason = reason or f"it cannot be read: {printable(str(unreadable))}"
        if reason and not self._refusal:
            expected = "" if self._context.is_server else f"; expected a certificate for {self._name!r}"
            self._refusal = f"{reason} (of {subject}{expected})"
        return not reason

    def _read_and_watch(self, size: int) -> bytes:
        """Read, and look for a new ticket.

        Once a ticket has come, or none is expected any more, later reads do not look.
        """
        data = self.bytes.read(size)
        if data:
            self._heard = True
            self._reads_watched -= 1
            if self._remember() or not self._reads_watched:
                self.read = self.bytes.read
        return data

    def _remember(self) -> bool:
        """Keep the newest session for the next connection.  False: there is no new one."""
        session = self._connection.get_session()
        if self._context.sessions is None or session is None or is_same_session(session, self._session):
            return False
        self._session = session
        self._context.sessions.put(self._server, session)
        return True

    def _raise_problem(self) -> None:
        if self.problem is not None:
            self._failed = True
            self._drop_output()
            raise TLSError(self._describe(str(self.problem))) from self.problem

    def _drop_output(self) -> None:
        """Drop what is left to send.

        OpenSSL saw nothing wrong, so this would report success to the peer.
        """
        while self.bytes.drain():
            pass

    def _describe(self, reason: str) -> str:
        stage = "TLS" if self.established else "TLS handshake"
        return f"{stage}{f' with {self._peer}' if self._peer else ''}: {reason}"

    def _failure(self, error: Exception) -> TLSError:
        """Return the TLSError that says what *error* means."""
        self._failed = True
        if not self._heard and self._context.sessions is not None:
            # The server may have refused the resumed session, and may refuse the other ones too.
            self._context.sessions.forget(self._server)
        if isinstance(error, TLSError):
            self._drop_output()
            return error
        if not isinstance(error, SSL.Error):
            return TLSError(self._describe(f"a callback raised {error!r}"))
        side = "client" if self._context.is_server else "server"
        if isinstance(error, SSL.ZeroReturnError):
            return TLSError(self._describe(f"the {side} ended the connection"))
        reason = explain(error)
        if self._refusal:
            return AuthenticationError(self._describe(f"the {side}'s certificate was refused: {self._refusal}"))
        if "certificate verify failed" in reason:  # by a ready-made context
            expected = f"; expected a certificate for {self._name!r}" if self._name else ""
            refusal = f"{verification_of(self._connection)}{expected}"
            return AuthenticationError(self._describe(f"the {side}'s certificate was refused: {refusal}"))
        if "alert" in reason:
            return self._alerted(side, reason)
        if "bad record mac" in reason and self.established and not (self._context.is_server or self._heard):
            # libnng (mbedTLS) encrypts its alerts with the keys of the handshake, which are no
            # longer in use.  Perhaps it refused our certificate, perhaps it only gave up.  So a
            # dialer tries again as after any error.
            hint = f"its alert cannot be decrypted, as with libnng ({reason})"
            return TLSError(self._describe(f"the server refused us or gave up: {hint}"))
        if "did not return a certificate" in reason:
            return AuthenticationError(self._describe("the client sent no certificate, and one is required"))
        if self._first and self._first[:1] not in (_ALERT, _HANDSHAKE):
            self.is_not_tls = True
            plain = guess_protocol(self._first, "wss" if self.http else "tls+tcp")
            return TLSError(self._describe(f"the {side} does not speak TLS: it began with {self._first!r}{plain} ({reason})"))
        return TLSError(self._describe(reason))

    def _alerted(self, side: str, reason: str) -> TLSError:
        """Return what an alert means.  The peer is the *side*, and *reason* is OpenSSL's text."""
        about_certificates = any(word in reason for word in _ABOUT_CERTIFICATES) or self._lacked_certificate(reason)
        # An alert before the peer's hello cannot be about a certificate, and anyone on the way can
        # send it.
        if not about_certificates or not (self.established or self._first[:1] == _HANDSHAKE):
            return TLSError(self._describe(f"the {side} ended the connection: {reason}"))
        wants = "" if self._context.is_server else ", or requires one"
        # Before the handshake is complete the alert is plain text, and anyone on the way can send
        # it. They must not be able to delay the dialer's next attempt.
        is_known = self.established and self._context.verifies and not self._context.is_server
        return AuthenticationError(self._describe(f"the {side} refused our certificate{wants}: {reason}"), permanent=is_known)

    def _lacked_certificate(self, reason: str) -> bool:
        """Whether the server wants a certificate and we have none.

        TLS 1.2 has no alert for that (RFC 5246, 7.4.6).
        """
        connection = self._connection
        return (
            not self._context.is_server
            and "handshake failure" in reason
            and bool(connection.get_client_ca_list())
            and connection.get_certificate() is None
        )


def _closed(error: Exception) -> TLSError:
    return TLSError(f"TLS: the connection is closed: {explain(error)}")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
