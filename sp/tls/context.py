"""Builds the OpenSSL context of a TLS configuration, and says what is wrong with its files."""

from __future__ import annotations

import datetime
import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

from sp.errors import TLSConfigError
from sp.tls.openssl import begin_no_sessions
from sp.tls.pem import Pem, quietly
from sp.tls.session_cache import SessionCache
from sp.tls.settings import ClientSettings, ServerSettings, Source

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

log = logging.getLogger("sp")

_VERSIONS: Final = {"TLSv1.2": SSL.TLS1_2_VERSION, "TLSv1.3": SSL.TLS1_3_VERSION}
_GROUPS: Final = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
_CIPHERS: Final = "@SECLEVEL=2:ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20:!aNULL:!eNULL:!aDSS:!PSK:!SRP"
"""For TLS 1.2: only forward secrecy and authenticated encryption, which all peers support."""
HTTP_1_1: Final = b"http/1.1"
"""The only protocol that wss offers by ALPN: WebSocket over HTTP/2 is another protocol."""
_RELEASE_BUFFERS: Final = 0x10
"""SSL_MODE_RELEASE_BUFFERS, not defined in pyOpenSSL.  It saves an idle connection 34 KiB."""
_PARTIAL_WRITE: Final = 0x01
"""SSL_MODE_ENABLE_PARTIAL_WRITE, which pyOpenSSL sets.

With it, a write would stop after each record.
"""


class Handshake(Protocol):
    """What the callbacks of a context expect as the app data of a connection."""

    problem: Exception | None

    @property
    def http(self) -> bool: ...

    def certificate_checked(self, certificate: crypto.X509, error: int, depth: int, ok: bool) -> bool: ...


class TLSContext:
    """One OpenSSL context, which the connections of an endpoint share.  It never changes."""

    def __init__(self, config: ServerSettings | ClientSettings) -> None:
        self.is_server = isinstance(config, ServerSettings)
        self.ready_made = config.context is not None
        self.sessions: SessionCache | None = None
        if isinstance(config, ClientSettings) and config.session_reuse:
            self.sessions = SessionCache(config.session_cache_size)
        self.server_name = config.server_name if isinstance(config, ClientSettings) else None
        self.context = _ready_made(config) if config.context is not None else _build(config)
        mode = self.context.get_verify_mode()
        self.verifies = bool(mode & SSL.VERIFY_PEER)
        """Whether the peer's certificate is verified."""


def _build(config: ServerSettings | ClientSettings) -> SSL.Context:
    is_server = isinstance(config, ServerSettings)
    context = SSL.Context(SSL.TLS_SERVER_METHOD if is_server else SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(_VERSIONS[config.minimum_version])
    if config.maximum_version is not None:
        if config.maximum_version < config.minimum_version:
            raise TLSConfigError(f"maximum_version {config.maximum_version} is older than minimum_version {config.minimum_version}")
        context.set_max_proto_version(_VERSIONS[config.maximum_version])
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_mode(_RELEASE_BUFFERS)
    context.clear_mode(_PARTIAL_WRITE)
    # A server stores nothing, because its tickets hold the sessions.  A client uses our own cache.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if not config.session_reuse:
        begin_no_sessions(context)
    _set_ciphers(context, config)
    if config.certificate is not None:
        _use_certificate(context, config, config.certificate)
    elif config.private_key is not None or config.password is not None:
        what = "private_key" if config.private_key is not None else "password"
        raise TLSConfigError(f"{what} was given without a certificate: give certificate= as well")
    elif is_server:
        raise TLSConfigError("a server needs a certificate: give certificate= (and private_key= if the key is in a file of its own)")
    context.set_verify_depth(config.max_chain_depth)
    if isinstance(config, ServerSettings):
        _set_up_server(context, config)
    else:
        _set_up_client(context, config)
    if config.revoked is not None:
        _use_revoked(context, config, config.revoked)
    if config.key_log_file is not None:
        _log_keys(context, Path(config.key_log_file))
    return context


def _set_up_server(context: SSL.Context, config: ServerSettings) -> None:
    context.set_session_id(_SESSION_ID)  # without an id, no session can be resumed
    context.set_alpn_select_callback(_select_protocol)
    if config.client_ca is not None:
        for certificate in _trust(context, config.client_ca, "client_ca"):
            context.add_client_ca(certificate)
        required = 0 if config.require_client_certificate is False else SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        context.set_verify(SSL.VERIFY_PEER | required, _certificate_checked)
    elif config.require_client_certificate is not None:
        raise TLSConfigError("require_client_certificate has no effect without client_ca: give client_ca= as well")


def _set_up_client(context: SSL.Context, config: ClientSettings) -> None:
    if config.ca is not None:
        _trust(context, config.ca, "ca")
    else:
        context.set_default_verify_paths()
    if not config.insecure_skip_verification:
        context.set_verify(SSL.VERIFY_PEER, _certificate_checked)


def _log_keys(context: SSL.Context, path: Path) -> None:
    def append(connection: SSL.Connection, line: bytes) -> None:
        try:
            with open(path, "ab", opener=partial(os.open, mode=0o600)) as file:
                file.write(line + b"\n")
        except OSError as error:
            handshake: Handshake = connection.get_app_data()
            handshake.problem = TLSConfigError(f"key_log_file: cannot write {str(path)!r}: {error.strerror}")

    try:
        with open(path, "ab", opener=partial(os.open, mode=0o600)):
            pass
    except OSError as error:
        raise TLSConfigError(f"key_log_file: cannot write {str(path)!r}: {error.strerror}") from error
    log.warning("TLS: the secrets of all connections are written to %s", path)
    context.set_keylog_callback(append)


def _ready_made(config: ServerSettings | ClientSettings) -> SSL.Context:
    context = config.context
    if not isinstance(context, SSL.Context):
        raise TLSConfigError(f"context must be an OpenSSL.SSL.Context, not {type(context).__name__}")
    if isinstance(config, ClientSettings) and not config.insecure_skip_verification and not context.get_verify_mode() & SSL.VERIFY_PEER:
        raise TLSConfigError(
            "the ready-made context does not verify the server: call its set_verify(VERIFY_PEER), or give insecure_skip_verification=True"
        )
    set_twice = [
        field.name for field in attrs.fields(type(config)) if field.name in _ABOUT_CONTEXT and getattr(config, field.name) != field.default
    ]
    if set_twice:
        raise TLSConfigError(f"context= replaces {', '.join(set_twice)}, so they cannot be given together: set them on the context itself")
    try:
        if isinstance(config, ServerSettings):
            # Without an id, a client with a certificate fails when it tries to resume.
            context.set_session_id(_SESSION_ID)
        if not config.session_reuse:
            begin_no_sessions(context)
    except ValueError as error:
        raise TLSConfigError("the ready-made context was used before: create a new one") from error
    return context


_SESSION_ID: Final = b"trio-sp"
_ABOUT_CONTEXT: Final = {
    "certificate", "private_key", "password", "revoked", "max_chain_depth", "minimum_version", "maximum_version",
    "ciphers", "ciphersuites", "group", "key_log_file", "watch_files", "ca", "client_ca", "require_client_certificate",
}  # fmt: skip


def _use_certificate(context: SSL.Context, config: ServerSettings | ClientSettings, source: Source) -> None:
    pem = Pem.read(source, "certificate")
    own, *intermediates = pem.certificates()
    key_pem = pem if config.private_key is None else Pem.read(config.private_key, "private_key")
    if config.private_key is None and not pem.has_key:
        raise TLSConfigError(f"{pem.name} contains no private key: give private_key=")
    key = key_pem.key(config.password)
    public = _public(key)
    if any(quietly(_public, other) == public for other in intermediates):
        raise TLSConfigError(f"{pem.name}: the certificate of the private key must come first, before its issuers")
    if quietly(_public, own) != public:
        raise TLSConfigError(f"the private key in {key_pem.name} does not belong to the certificate in {pem.name}")
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
    """Trust the certificates in a file, in all files of a directory, or in PEM bytes.

    Return them.
    """
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
            raise TLSConfigError(f"{field}: no file in directory {os.fspath(source)!r} contains a certificate")
    else:
        found = Pem.read(source, field).certificates()
    found = list(dict.fromkeys(found))
    store = context.get_cert_store()
    assert store is not None
    for certificate in found:
        store.add_cert(crypto.X509.from_cryptography(certificate))
    return found


def _use_revoked(context: SSL.Context, config: ServerSettings | ClientSettings, source: Source) -> None:
    pem = Pem.read(source, "revoked")
    store = context.get_cert_store()
    assert store is not None
    for crl in pem.revocation_lists():
        if crl.next_update_utc is not None and crl.next_update_utc < datetime.datetime.now(datetime.UTC):
            raise TLSConfigError(
                f"{pem.name}: the list of {crl.issuer.rfc4514_string()} is out of date since {crl.next_update_utc:%Y-%m-%d %H:%M} UTC"
            )
        store.add_crl(crl)
    store.set_flags(crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL)
    if isinstance(config, ServerSettings) and config.client_ca is None:
        raise TLSConfigError("revoked has no effect on a server without client_ca: give client_ca= as well")
    if isinstance(config, ClientSettings) and config.insecure_skip_verification:
        raise TLSConfigError("revoked has no effect with insecure_skip_verification=True: leave one of them out")


def _set_ciphers(context: SSL.Context, config: ServerSettings | ClientSettings) -> None:
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
    """OpenSSL calls this for each certificate of the peer's chain, the root first."""
    handshake: Handshake = connection.get_app_data()
    return handshake.certificate_checked(certificate, error, depth, bool(ok))


def _select_protocol(connection: SSL.Connection, offered: list[bytes]) -> bytes | Any:
    """OpenSSL calls this when a client offers protocols: wss and tls+tcp may share a context."""
    handshake: Handshake = connection.get_app_data()
    return HTTP_1_1 if handshake.http and HTTP_1_1 in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def explain(error: Exception) -> str:
    """Return OpenSSL's reasons without its codes.  Never empty."""
    entries: object = error.args[0] if error.args else None
    if isinstance(entries, list):
        reasons = [reason for _, _, reason in cast("list[tuple[str, str, str]]", entries) if reason]
        return "; ".join(dict.fromkeys(reasons)) or "no reason is given"
    return str(error) or type(error).__name__
