"""From a TLS configuration to OpenSSL contexts: reads the files, says what is wrong with them, keeps the sessions."""

from __future__ import annotations

import datetime
import logging
import os
import threading
from collections import OrderedDict, deque
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

from sp.errors import TLSConfigError
from sp.tls.config import TLSClientConfig, TLSServerConfig
from sp.tls.openssl import begin_no_sessions
from sp.tls.pem import Pem, quietly

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from sp.tls.config import Source
    from sp.tls.session import TLSSession

log = logging.getLogger("sp")

_VERSIONS: Final = {"TLSv1.2": SSL.TLS1_2_VERSION, "TLSv1.3": SSL.TLS1_3_VERSION}
_GROUPS: Final = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
_CIPHERS: Final = "@SECLEVEL=2:ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20:!aNULL:!eNULL:!aDSS:!PSK:!SRP"
"""For TLS 1.2: forward secrecy and authenticated encryption, which all have had for many years."""
HTTP_1_1: Final = b"http/1.1"
"""What wss says in ALPN, and nothing else: WebSocket over HTTP/2 is another protocol."""
_SESSIONS_PER_SERVER: Final = 8
"""Tickets kept for one server: as many dialers can resume at once."""
_RELEASE_BUFFERS: Final = 0x10
"""SSL_MODE_RELEASE_BUFFERS: an idle connection does not keep 34 KiB for records.  pyOpenSSL has no name for it."""
_PARTIAL_WRITE: Final = 0x01
"""SSL_MODE_ENABLE_PARTIAL_WRITE, which pyOpenSSL sets: a write would stop after each record."""


class SessionCache:
    """What a client remembers of servers, for one use each.  The least recently used server is forgotten first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()  # a configuration may be shared by several trio runs
        self._sessions: OrderedDict[str, deque[SSL.Session]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def take(self, server: str) -> SSL.Session | None:
        """Return the newest session with *server*, which nobody else gets; None: there is none."""
        with self._lock:
            sessions = self._sessions.get(server)
            if sessions is None:
                return None
            self._sessions.move_to_end(server)
            session = sessions.pop()
            if not sessions:
                del self._sessions[server]
            return session

    def put(self, server: str, session: SSL.Session) -> None:
        """Remember *session*."""
        with self._lock:
            self._sessions.setdefault(server, deque(maxlen=_SESSIONS_PER_SERVER)).append(session)
            self._sessions.move_to_end(server)
            if len(self._sessions) > self._size:
                self._sessions.popitem(last=False)

    def forget(self, server: str) -> None:
        """Drop what is remembered of *server*."""
        with self._lock:
            self._sessions.pop(server, None)


class TLSContext:
    """One OpenSSL context, made once and never changed: what connections of one endpoint have in common."""

    def __init__(self, config: TLSServerConfig | TLSClientConfig) -> None:
        self.is_server = isinstance(config, TLSServerConfig)
        self.ready_made = config.context is not None
        self.sessions: SessionCache | None = None
        if isinstance(config, TLSClientConfig) and config.session_reuse:
            self.sessions = SessionCache(config.session_cache_size)
        self.server_name = config.server_name if isinstance(config, TLSClientConfig) else None
        self.context = _ready_made(config) if config.context is not None else self._build(config)
        mode = self.context.get_verify_mode()
        self.verifies = bool(mode & SSL.VERIFY_PEER)
        """Whether the peer's certificate is verified: a server's always, a client's if it is asked for one."""

    def _build(self, config: TLSServerConfig | TLSClientConfig) -> SSL.Context:
        context = SSL.Context(SSL.TLS_SERVER_METHOD if self.is_server else SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(_VERSIONS[config.minimum_version])
        if config.maximum_version is not None:
            if config.maximum_version < config.minimum_version:
                raise TLSConfigError(f"maximum_version {config.maximum_version} is older than minimum_version {config.minimum_version}")
            context.set_max_proto_version(_VERSIONS[config.maximum_version])
        context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
        context.set_mode(_RELEASE_BUFFERS)
        context.clear_mode(_PARTIAL_WRITE)
        # Servers: tickets, so nothing is kept here.  Clients: the cache is ours.
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        if not config.session_reuse:
            begin_no_sessions(context)
        _set_ciphers(context, config)
        if config.certificate is not None:
            _use_certificate(context, config)
        elif config.private_key is not None or config.password is not None:
            what = "private_key" if config.private_key is not None else "password"
            raise TLSConfigError(f"{what} was given without a certificate")
        elif self.is_server:
            raise TLSConfigError("a server needs a certificate: give certificate= (and private_key=, if it is in a file of its own)")
        context.set_verify_depth(config.max_chain_depth)
        if isinstance(config, TLSServerConfig):
            context.set_session_id(_SESSION_ID)  # without one no session is ever resumed
            context.set_alpn_select_callback(_select_protocol)
            if config.client_ca is not None:
                for certificate in _trust(context, config.client_ca, "client_ca"):
                    context.add_client_ca(certificate)
                required = 0 if config.require_client_certificate is False else SSL.VERIFY_FAIL_IF_NO_PEER_CERT
                context.set_verify(SSL.VERIFY_PEER | required, _certificate_checked)
            elif config.require_client_certificate is not None:
                raise TLSConfigError("require_client_certificate says nothing without client_ca: give that as well")
        else:
            if config.ca is not None:
                _trust(context, config.ca, "ca")
            else:
                context.set_default_verify_paths()
            if not config.insecure_skip_verification:
                context.set_verify(SSL.VERIFY_PEER, _certificate_checked)
        if config.revoked is not None:
            _use_revoked(context, config.revoked)
            if isinstance(config, TLSClientConfig) and config.insecure_skip_verification:
                raise TLSConfigError("revoked says nothing beside insecure_skip_verification: nobody is verified")
            if isinstance(config, TLSServerConfig) and config.client_ca is None:
                raise TLSConfigError("revoked is about clients' certificates: give client_ca as well")
        if config.key_log_file is not None:
            self._log_keys(context, Path(config.key_log_file))
        return context

    def _log_keys(self, context: SSL.Context, path: Path) -> None:
        def append(connection: SSL.Connection, line: bytes) -> None:
            try:
                with open(path, "ab", opener=partial(os.open, mode=0o600)) as file:
                    file.write(line + b"\n")
            except OSError as error:
                connection.get_app_data().problem = TLSConfigError(f"key_log_file: cannot write {str(path)!r}: {error.strerror}")

        try:
            with open(path, "ab", opener=partial(os.open, mode=0o600)):
                pass
        except OSError as error:
            raise TLSConfigError(f"key_log_file: cannot write {str(path)!r}: {error.strerror}") from error
        log.warning("TLS: the secrets of all connections are written to %s", path)
        context.set_keylog_callback(append)


class ContextSource:
    """The context that new connections get, and how it is replaced when files change."""

    def __init__(self, config: TLSServerConfig | TLSClientConfig) -> None:
        self._config = config
        self._seen = self._signature()
        self.current = TLSContext(config)
        self._generation = 1
        self.failure: TLSConfigError | None = None
        """Why the last reload has failed; None: it has not."""
        if isinstance(config, TLSClientConfig) and config.insecure_skip_verification:
            log.warning("TLS: insecure_skip_verification is on: whoever answers is believed")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a TLS configuration cannot be pickled: make it in the process that uses it")

    def reload(self) -> None:
        """Build a new context from what the files hold now.  Raises TLSConfigError, and then the old one stays."""
        if self._config.context is not None:
            raise TLSConfigError("a ready-made context cannot be reloaded: make a new configuration")
        self._seen = self._signature()
        try:
            self.current = TLSContext(self._config)
        except TLSConfigError as error:
            self.failure = error
            raise
        self._generation += 1
        self.failure = None

    @property
    def status(self) -> tuple[int, str]:
        """How often a context was built, and why the last reload has failed, in words."""
        return self._generation, str(self.failure or "")

    def check_files(self) -> None:
        """Reload if a file has changed, or after a failure, which may be over without that; ``status`` tells how it went."""
        if self.failure is not None or self._signature() != self._seen:
            try:
                self.reload()
            except TLSConfigError:
                pass

    def _signature(self) -> tuple[object, ...]:
        config = self._config
        trusted = config.client_ca if isinstance(config, TLSServerConfig) else config.ca
        sources = (config.certificate, config.private_key, config.revoked, trusted)
        return tuple(_stamp(path) for source in sources if isinstance(source, str | os.PathLike) for path in _files(Path(source)))


def _files(path: Path) -> list[Path]:
    """Return the file at *path*, or the directory and what is in it."""
    try:
        return [path, *sorted(path.iterdir())] if path.is_dir() else [path]
    except OSError:
        return [path]


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return path, found.st_mtime_ns, found.st_size, found.st_ino


def _ready_made(config: TLSServerConfig | TLSClientConfig) -> SSL.Context:
    context = config.context
    if not isinstance(context, SSL.Context):
        raise TLSConfigError(f"context must be an OpenSSL.SSL.Context, not {type(context).__name__}")
    if isinstance(config, TLSClientConfig) and not config.insecure_skip_verification and not context.get_verify_mode() & SSL.VERIFY_PEER:
        raise TLSConfigError(
            "the ready-made context verifies nobody: call its set_verify(VERIFY_PEER), or give insecure_skip_verification=True"
        )
    set_twice = [
        field.name for field in attrs.fields(type(config)) if field.name in _ABOUT_CONTEXT and getattr(config, field.name) != field.default
    ]
    if set_twice:
        raise TLSConfigError(f"a ready-made context leaves no room for {', '.join(set_twice)}: set that on the context itself")
    try:
        if isinstance(config, TLSServerConfig):
            context.set_session_id(_SESSION_ID)  # without one, a client with a certificate that wants to resume is an error
        if not config.session_reuse:
            begin_no_sessions(context)
    except ValueError as error:
        raise TLSConfigError("the ready-made context was used before: make a new one") from error
    return context


_SESSION_ID: Final = b"trio-sp"
_ABOUT_CONTEXT: Final = {
    "certificate", "private_key", "password", "revoked", "max_chain_depth", "minimum_version", "maximum_version",
    "ciphers", "ciphersuites", "group", "key_log_file", "watch_files", "ca", "client_ca", "require_client_certificate",
}  # fmt: skip


def _use_certificate(context: SSL.Context, config: TLSServerConfig | TLSClientConfig) -> None:
    assert config.certificate is not None
    pem = Pem.read(config.certificate, "certificate")
    own, *intermediates = pem.certificates()
    key_pem = pem if config.private_key is None else Pem.read(config.private_key, "private_key")
    if config.private_key is None and not pem.has_key:
        raise TLSConfigError(f"{pem.name} has no private key beside it: give private_key=")
    key = key_pem.key(config.password)
    public = _public(key)
    if any(quietly(_public, other) == public for other in intermediates):
        raise TLSConfigError(f"{pem.name}: the certificate of the private key has to come first, before its issuers")
    if quietly(_public, own) != public:
        raise TLSConfigError(f"the private key in {key_pem.name} is not that of the certificate in {pem.name}")
    now = datetime.datetime.now(datetime.UTC)
    if now > own.not_valid_after_utc:
        raise TLSConfigError(f"{pem.name} expired on {own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if now < own.not_valid_before_utc:
        raise TLSConfigError(f"{pem.name} is not valid before {own.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
    try:
        context.use_certificate(own)
        for certificate in intermediates:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(key)  # type: ignore[arg-type]
        context.check_privatekey()
    except (SSL.Error, crypto.Error, TypeError, ValueError) as error:
        raise TLSConfigError(f"{pem.name} cannot be used: {explain(error)}") from error


def _public(holder: PrivateKeyTypes | x509.Certificate) -> bytes:
    return holder.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _trust(context: SSL.Context, source: Source, field: str) -> list[x509.Certificate]:
    """Trust the certificates of a file, of all files in a directory, or of PEM bytes; return them."""
    found: list[x509.Certificate] = []
    if not isinstance(source, bytes) and Path(source).is_dir():
        try:
            paths = sorted(Path(source).iterdir())
        except OSError as error:
            raise TLSConfigError(f"{field} {os.fspath(source)!r} cannot be read: {error.strerror or error}") from error
        for path in paths:
            if path.is_file() and (pem := Pem.read(path, field)).has_certificate:
                found += pem.certificates()
        if not found:
            raise TLSConfigError(f"{field}: no file in directory {os.fspath(source)!r} has a certificate in it")
    else:
        found = Pem.read(source, field).certificates()
    found = list(dict.fromkeys(found))
    store = context.get_cert_store()
    assert store is not None
    for certificate in found:
        store.add_cert(crypto.X509.from_cryptography(certificate))
    return found


def _use_revoked(context: SSL.Context, source: Source) -> None:
    pem = Pem.read(source, "revoked")
    store = context.get_cert_store()
    assert store is not None
    for crl in pem.revocation_lists():
        if crl.next_update_utc is not None and crl.next_update_utc < datetime.datetime.now(datetime.UTC):
            raise TLSConfigError(
                f"{pem.name}: the list of {crl.issuer.rfc4514_string()} was to be replaced by {crl.next_update_utc:%Y-%m-%d %H:%M} UTC"
            )
        store.add_crl(crl)
    store.set_flags(crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL)


def _set_ciphers(context: SSL.Context, config: TLSServerConfig | TLSClientConfig) -> None:
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    try:
        context.set_cipher_list((config.ciphers or _CIPHERS).encode())
    except SSL.Error as error:
        raise TLSConfigError(f"ciphers {config.ciphers!r}: OpenSSL knows none of them ({explain(error)})") from error
    try:
        if config.ciphersuites is not None:
            context.set_tls13_ciphersuites(config.ciphersuites.encode())
    except SSL.Error as error:
        raise TLSConfigError(f"ciphersuites {config.ciphersuites!r}: OpenSSL does not know them ({explain(error)})") from error
    if config.group is not None:
        context.set_tmp_ecdh(_GROUPS[config.group])


def _certificate_checked(connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
    """Called by OpenSSL for each certificate of the peer's chain, the root first."""
    session: TLSSession = connection.get_app_data()
    return session.certificate_checked(certificate, error, depth, bool(ok))


def _select_protocol(connection: SSL.Connection, offered: list[bytes]) -> bytes | Any:
    """Called by OpenSSL when a client offers protocols: a context may serve wss and tls+tcp."""
    session: TLSSession = connection.get_app_data()
    return HTTP_1_1 if session.http and HTTP_1_1 in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def explain(error: Exception) -> str:
    """Return OpenSSL's reasons, without its codes; never empty."""
    entries: object = error.args[0] if error.args else None
    if isinstance(entries, list):
        reasons = [reason for _, _, reason in cast("list[tuple[str, str, str]]", entries) if reason]
        return "; ".join(dict.fromkeys(reasons)) or "no reason is known"
    return str(error) or type(error).__name__
