"""One TLS connection without I/O: bytes from the network in, bytes for the network out, by pyOpenSSL over memory buffers.

The order is that of any user of memory buffers: feed, read until OpenSSL wants more, then drain; what a failure leaves to drain is
the alert that tells the peer.  Whatever goes wrong comes out as TLSError or its subclass AuthenticationError.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Final

from OpenSSL import SSL

from sp.errors import AuthenticationError, TLSError, printable
from sp.guess import guess_protocol
from sp.tls.certificate_names import packed_address, wrong_name
from sp.tls.config import TLSInfo
from sp.tls.context import HTTP_1_1, TLSContext, explain
from sp.tls.openssl import EarlyGreeting, bytes_of, expect_name, is_same_session, reason_of, verification_of, was_resumed

if TYPE_CHECKING:
    from OpenSSL import crypto

_ALERT: Final = b"\x15"
_HANDSHAKE: Final = b"\x16"
_SHOWN: Final = 8
_READS_WATCHED: Final = 8
"""Reads after which a server that has sent no ticket will send none."""
_WRONG_NAME: Final = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
_ABOUT_CERTIFICATES: Final = ("certificate", "unknown ca", "access denied", "decrypt error")
"""What OpenSSL's names of alerts have in common that refuse a certificate (RFC 8446, 6.2)."""


class TLSSession:
    """The state of one connection."""

    def __init__(self, context: TLSContext, *, peer: str = "", host: str = "", port: int = 0, http: bool = False) -> None:
        """Begin.  *peer* is what errors call the other side; a client says where it has connected, and so whom it expects.

        *http*: what will be spoken, which is said in the handshake (ALPN, RFC 7301).  SP itself has no name there.
        """
        self.http = http
        self.established = False
        self.greeted = False
        """Whether the greeting has left with the handshake, so that it need not be written."""
        self._context = context
        self._peer = peer
        self._first = b""  # of the peer's bytes, until the handshake is complete
        self._refusal = ""
        self.problem: Exception | None = None
        """What went wrong in a callback, where OpenSSL lets no exception through."""
        self.is_stranger = False
        """Whether the peer has shown that it does not speak TLS; OpenSSL then says nothing to it."""
        self._failed = False
        self._info: TLSInfo | None = None
        connection = SSL.Connection(context.context)
        self._connection = connection
        self.bytes = bytes_of(connection, self._failure)
        """What moves them: it knows whether the peer has ``ended``, and whether there ``has_more`` to be read."""
        # Each message goes this way, so there is no frame of ours in between.
        self.receive_data = self.bytes.feed
        """Takes what came from the network, after the handshake."""
        self.read = self.bytes.read
        """Returns at most so many bytes that were decrypted; empty: more must be received first, or it has ended.  Raises TLSError."""
        self.write = self.bytes.write
        """Encrypts all that it is given.  Raises TLSError."""
        self.data_to_send = self.bytes.drain
        """Returns what is to go to the network, a bounded part of it; empty: nothing.  It is good until any session's next call."""
        self._early: EarlyGreeting | None = None
        self._name = self._server = ""
        self._session: SSL.Session | None = None  # the newest that we know of
        self._reads_watched = 0
        self._heard = False  # something of the peer, so that it has not refused us
        if not context.ready_made:
            connection.set_app_data(self)  # for callbacks
        if context.is_server:
            connection.set_accept_state()
            if EarlyGreeting.possible and not context.ready_made:
                self._early = EarlyGreeting(connection)
        else:
            self._begin_client(connection, host, port)

    def _begin_client(self, connection: SSL.Connection, host: str, port: int) -> None:
        """Say whom is expected, and resume a session with it if there is one."""
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
        """What can be said of the connection; None until it is established."""
        return self._info if self.established else None

    def handshake(self, data: bytes, greeting: bytes) -> bool:
        """Take *data* from the network and go as far as it leads.  True: the connection is established.  Raises TLSError.

        A server sends *greeting* with its first flight if it can, see ``greeted``.
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

        OpenSSL takes a connection that is freed without this for cut off, and its session for spoilt, also in our cache.
        """
        if self.established and not self._failed:
            try:
                self._connection.shutdown()
            except SSL.Error:
                pass  # it has ended by itself

    def close(self) -> None:
        """Do the same, and let go.  What is left to send can still be drained."""
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
            # A client that was asked for a certificate hears nothing before it is known who it is, which a resumed session tells.
            # So a greeting from us always means that the client was accepted.
            # There is no cipher yet when the client was asked for another hello: then a greeting would leave in plain text.
            has_keys = connection.get_protocol_version() == SSL.TLS1_3_VERSION and connection.get_cipher_name() is not None
            may_greet = has_keys and (not self._context.verifies or self._resumed_validly())
            if may_greet and greeting:
                early.write(greeting)
                self.greeted = True
        connection.do_handshake()
        self.established = True
        self.bytes.has_more = True  # what came with the end of the handshake
        self._first = b""
        if self._info is None:
            self._info = TLSInfo(connection, self._context, resumed=was_resumed(connection))
            if self._context.verifies and self._info.resumed:
                self._check_dates(self._info)
            elif self._context.verifies and self._context.ready_made and not self._context.is_server:
                self._check_name(self._info)
        if not self._context.is_server:
            self._reads_watched = _READS_WATCHED
            self.read = self._read_and_watch
            if connection.get_protocol_version() == SSL.TLS1_3_VERSION:
                # Tickets come later.  This session cannot be resumed, but held on to it tells them apart.
                self._session = connection.get_session()

    def _resumed_validly(self) -> bool:
        if not was_resumed(self._connection):
            return False
        self._info = TLSInfo(self._connection, self._context, resumed=True)
        self._check_dates(self._info)
        return True

    def _check_name(self, info: TLSInfo) -> None:
        """Look at what a ready-made context does not: OpenSSL's own checks leave out names."""
        certificate = info.peer_certificate
        reason = "it has shown no certificate" if certificate is None else wrong_name(certificate, self._name)
        if reason:
            raise AuthenticationError(self._say(f"the server's certificate was refused: {reason}"))

    def _check_dates(self, info: TLSInfo) -> None:
        """Look at what OpenSSL does not when it resumes.  The name was checked: the session was kept for that name."""
        certificate = info.peer_certificate
        if certificate is not None and not certificate.not_valid_before_utc <= _now() <= certificate.not_valid_after_utc:
            raise AuthenticationError(self._say("the peer's certificate was refused: it has expired since the session that was resumed"))

    def certificate_checked(self, certificate: crypto.X509, error: int, depth: int, ok: bool) -> bool:
        """Decide about a certificate of the peer's chain; OpenSSL says *ok*, or the number of its *error*."""
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
        except Exception as unreadable:  # OpenSSL is more tolerant than cryptography, but names have to be read
            reason = reason or f"it cannot be read: {printable(str(unreadable))}"
        if reason and not self._refusal:
            expected = "" if self._context.is_server else f"; expected a certificate for {self._name!r}"
            self._refusal = f"{reason} (of {subject}{expected})"
        return not reason

    def _read_and_watch(self, size: int) -> bytes:
        """Read, and see whether a ticket has come along; at last, read only."""
        data = self.bytes.read(size)
        if data:
            self._heard = True
            self._reads_watched -= 1
            if self._remember() or not self._reads_watched:
                self.read = self.bytes.read
        return data

    def _remember(self) -> bool:
        """Keep the newest session for the next connection, unless it is the one that we know of.  True: it was another one."""
        session = self._connection.get_session()
        if self._context.sessions is None or session is None or is_same_session(session, self._session):
            return False
        self._session = session
        self._context.sessions.put(self._server, session)
        return True

    def _raise_problem(self) -> None:
        if self.problem is not None:
            self._failed = True
            self._unsay()
            raise TLSError(self._say(str(self.problem))) from self.problem

    def _unsay(self) -> None:
        """Drop what is left to send: OpenSSL sees nothing wrong, so it would tell of a success."""
        while self.bytes.drain():
            pass

    def _say(self, reason: str) -> str:
        stage = "TLS" if self.established else "TLS handshake"
        return f"{stage}{f' with {self._peer}' if self._peer else ''}: {reason}"

    def _failure(self, error: Exception) -> TLSError:
        """Return what *error* means."""
        self._failed = True
        if not self._heard and self._context.sessions is not None:
            # If the server has refused a session, it may refuse the others as well.
            self._context.sessions.forget(self._server)
        if isinstance(error, TLSError):
            self._unsay()
            return error
        if not isinstance(error, SSL.Error):
            return TLSError(self._say(f"a callback raised {error!r}"))
        side = "client" if self._context.is_server else "server"
        if isinstance(error, SSL.ZeroReturnError):
            return TLSError(self._say(f"the {side} has ended it"))
        reason = explain(error)
        if self._refusal:
            return AuthenticationError(self._say(f"the {side}'s certificate was refused: {self._refusal}"))
        if "certificate verify failed" in reason:  # by a ready-made context
            expected = f"; expected a certificate for {self._name!r}" if self._name else ""
            return AuthenticationError(self._say(f"the {side}'s certificate was refused: {verification_of(self._connection)}{expected}"))
        if "alert" in reason:
            about_certificates = any(word in reason for word in _ABOUT_CERTIFICATES) or self._lacked_certificate(reason)
            # An alert before any hello is about no certificate, and may be anybody's on the way.
            if about_certificates and (self.established or self._first[:1] == _HANDSHAKE):
                wants = "" if self._context.is_server else ", or wants one"
                # Until the handshake is complete it may be anybody's, in plain text, and a dialer's
                # next attempt would come late.
                is_known = self.established and self._context.verifies and not self._context.is_server
                return AuthenticationError(self._say(f"the {side} has refused our certificate{wants}: {reason}"), permanent=is_known)
            return TLSError(self._say(f"the {side} has ended it: {reason}"))
        if "bad record mac" in reason and self.established and not (self._context.is_server or self._heard):
            # libnng (mbedTLS) encrypts its alerts with the keys of the handshake, which are no longer in use.  It may have refused our
            # certificate or only given up: a dialer tries again as after any error.
            return TLSError(self._say(f"the server has refused us, or given up: its first words cannot be read, as with libnng ({reason})"))
        if "did not return a certificate" in reason:
            return AuthenticationError(self._say("the client has shown no certificate, and one is required"))
        if self._first and self._first[:1] not in (_ALERT, _HANDSHAKE):
            self.is_stranger = True
            plain = guess_protocol(self._first, "wss" if self.http else "tls+tcp")
            return TLSError(self._say(f"the {side} does not speak TLS: it began with {self._first!r}{plain} ({reason})"))
        return TLSError(self._say(reason))

    def _lacked_certificate(self, reason: str) -> bool:
        """Whether a server of TLS 1.2, which has no alert of its own for that (RFC 5246, 7.4.6), misses a certificate of ours."""
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
