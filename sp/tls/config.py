"""TLS: how the two sides are configured, and what a pipe shows of it.

OpenSSL is imported when the first configuration is built, so that ``import sp`` does not pay for it.
"""

from __future__ import annotations

import os
import re
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal, cast, final

import attrs

from sp.address import absolute, is_host
from sp.checks import choice, count, flag, optional, seconds_or_none
from sp.errors import TLSConfigError

if TYPE_CHECKING:
    from cryptography import x509
    from OpenSSL import SSL

    from sp.tls.context import ContextSource, TLSContext

Source = str | os.PathLike[str] | bytes
"""A path, or the content itself as PEM bytes."""
TLSVersion = Literal["TLSv1.2", "TLSv1.3"]
Group = Literal["P-256", "P-384", "P-521"]

_CONTENT = re.compile(r"-----BEGIN|[\r\n]|^M[A-Za-z0-9+/]{59,}={0,2}$")
"""What a str has in it that is no path but the content of a file, or base64 of it.

The shortest key has 64 characters.
"""
_VERSIONS = ("TLSv1.2", "TLSv1.3")
_GROUPS = ("P-256", "P-384", "P-521")
_FILES = ("certificate", "private_key", "revoked", "client_ca", "ca", "key_log_file")


def _source(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str | os.PathLike | bytes):
        raise TypeError(f"{attribute.name} must be a path (str or PathLike) or PEM bytes, not {type(value).__name__}")
    if not value:
        raise TLSConfigError(f"{attribute.name} is empty; for none of it, leave it out")  # as a path it would be the current directory
    if isinstance(value, str) and _CONTENT.search(value):
        raise TLSConfigError(f"{attribute.name} is PEM text in a str, which would be a path: give it as bytes")  # and never show a key


def _path(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{attribute.name} must be a path (str or PathLike), not {type(value).__name__}")


def _text(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not value.isascii() or not value:
        raise TypeError(f"{attribute.name} must be an ASCII str, not {value!r}")


def _host(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name} must be a str, not {type(value).__name__}")
    if not is_host(value):
        raise TLSConfigError(f"{attribute.name} must be a host name or an IP address, without scheme, port or brackets, not {value!r}")


def _password(_: object, __: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str | bytes):
        raise TypeError(f"password must be str or bytes, not {type(value).__name__}")


def _shown(value: object) -> str:
    """PEM bytes may hold a key; paths are shown as they are."""
    return f"<{len(value)} bytes of PEM>" if isinstance(value, bytes) else repr(value)


@attrs.frozen(kw_only=True, eq=False)
class _TLSConfig:
    """What both sides can be told.  Everything is read and checked when the object is made; TLSConfigError says what is wrong."""

    certificate: Source | None = attrs.field(default=None, validator=optional(_source), repr=_shown)
    """Our own certificate, then its intermediates; the private key may stand in the same file."""
    private_key: Source | None = attrs.field(default=None, validator=optional(_source), repr=_shown)
    """The key of the certificate.  None: it stands beside the certificate."""
    password: str | bytes | None = attrs.field(default=None, validator=optional(_password), repr=False)
    """What the private key is encrypted with."""
    revoked: Source | None = attrs.field(default=None, validator=optional(_source), repr=_shown)
    """Certificate revocation lists (PEM).  Given, there has to be a current one of each authority in a peer's chain."""
    max_chain_depth: int = attrs.field(default=10, validator=count(0, 100))
    """Intermediate certificates that may stand between the peer's and a trusted one."""
    minimum_version: TLSVersion = attrs.field(default="TLSv1.2", validator=choice(*_VERSIONS))
    """The oldest version spoken; nothing before 1.2 can be chosen."""
    maximum_version: TLSVersion | None = attrs.field(default=None, validator=optional(choice(*_VERSIONS)))
    """The newest version spoken.  None: the newest that OpenSSL has."""
    ciphers: str | None = attrs.field(default=None, validator=optional(_text))
    """Ciphers for TLS 1.2 in OpenSSL's notation, the best first: a server's order counts.

    None: those with forward secrecy and authenticated encryption (ECDHE or DHE with AES-GCM or
    ChaCha20)."""
    ciphersuites: str | None = attrs.field(default=None, validator=optional(_text))
    """Cipher suites for TLS 1.3, separated by colons.  None: OpenSSL's choice."""
    group: Group | None = attrs.field(default=None, validator=optional(choice(*_GROUPS)))
    """The only group for the key exchange.  None: OpenSSL's choice, X25519MLKEM768 first.  pyOpenSSL can set one of these and no list."""
    session_reuse: bool = attrs.field(default=True, validator=flag)
    """Whether a reconnect may resume an earlier session instead of a full handshake.

    False: no session is remembered or resumed.  A server still sends two tickets under TLS 1.3,
    which lead to nothing, since pyOpenSSL has no call for their number."""
    key_log_file: str | os.PathLike[str] | None = attrs.field(default=None, validator=optional(_path))
    """Where the secrets of each connection are appended, for Wireshark; whoever reads it reads the traffic.  None: nowhere."""
    watch_files: float | None = attrs.field(default=None, validator=seconds_or_none)
    """Seconds between two looks of a listener at the files, which are reloaded when one has changed; a dialer looks before it dials.

    None: only ``reload`` does."""
    context: SSL.Context | None = attrs.field(default=None)
    """A ready-made context, for what cannot be said here; it takes the place of all other fields that are about certificates and
    ciphers, and must not have been used before.  What it allows is allowed, older versions included."""
    contexts: ContextSource = attrs.field(init=False, repr=False)
    """What the library makes of it."""

    def __attrs_post_init__(self) -> None:
        for name in _FILES:
            source = getattr(self, name, None)
            # The same file at each reload, whatever the working directory is then.
            if isinstance(source, str | os.PathLike):
                object.__setattr__(self, name, absolute(os.fspath(cast("str | os.PathLike[str]", source))))
        # Not a default: attrs runs the validators after those.
        object.__setattr__(self, "contexts", _context_source(cast("TLSServerConfig | TLSClientConfig", self)))

    def reload(self) -> None:
        """Read all files again: new connections get what is there now, existing ones live on, and no older session is resumed.

        Raises TLSConfigError when something is wrong; then what was in use stays in use.
        """
        self.contexts.reload()


def _context_source(config: TLSServerConfig | TLSClientConfig) -> ContextSource:
    from sp.tls.context import ContextSource  # noqa: PLC0415  # OpenSSL, on first use

    return ContextSource(config)


@final
@attrs.frozen(kw_only=True, eq=False)
class TLSServerConfig(_TLSConfig):
    """How a listener speaks TLS.  Several listeners may share one: then they also resume each other's sessions.

    Raises TLSConfigError, with the file and the reason, for anything that cannot work.
    """

    client_ca: Source | None = attrs.field(default=None, validator=optional(_source), repr=_shown)
    """Who signs clients' certificates: a file, a directory, or PEM bytes.  None: clients are not asked for one."""
    require_client_certificate: bool | None = attrs.field(default=None, validator=optional(flag))
    """With ``client_ca``: whether a client without a certificate is refused.  None: it is."""


@final
@attrs.frozen(kw_only=True, eq=False)
class TLSClientConfig(_TLSConfig):
    """How a dialer speaks TLS.  The server's chain, name and dates are verified.

    Raises TLSConfigError, with the file and the reason, for anything that cannot work.
    """

    ca: Source | None = attrs.field(default=None, validator=optional(_source), repr=_shown)
    """Who signs the server's certificate: a file, a directory, or PEM bytes.  None: whom the system trusts."""
    server_name: str | None = attrs.field(default=None, validator=optional(_host))
    """The DNS name or IP address that the server's certificate must have.  None: the host of the URL."""
    session_cache_size: int = attrs.field(default=256, validator=count(1))
    """Servers of which a session is remembered; one more forgets the one unused for longest."""
    insecure_skip_verification: bool = attrs.field(default=False, validator=flag)
    """True: talk to anybody who answers.  Encrypted, but to whom?  ``ca`` is then not looked at."""


@cache
def default_client_config() -> TLSClientConfig:
    """Return the configuration of a dialer that was given none: the system's trust store, and no certificate of our own."""
    return TLSClientConfig()


class TLSInfo:
    """What TLS says of a pipe.  It stays readable after the pipe has ended."""

    def __init__(self, connection: SSL.Connection, context: TLSContext, *, resumed: bool) -> None:
        self._connection = connection
        self.resumed = resumed
        """Whether the handshake resumed an earlier session."""
        self._verifies = context.verifies

    @property
    def version(self) -> str:
        """The protocol version, ``TLSv1.2`` or ``TLSv1.3``."""
        return self._connection.get_protocol_version_name()

    @property
    def cipher(self) -> str:
        """The cipher in OpenSSL's words, for example ``TLS_AES_256_GCM_SHA384``."""
        return self._connection.get_cipher_name() or ""

    @property
    def group(self) -> str:
        """The group of the key exchange, for example ``X25519MLKEM768``; empty where OpenSSL does not tell."""
        try:
            return self._connection.get_group_name() or ""
        except NotImplementedError:
            return ""

    @property
    def alpn(self) -> str:
        """The protocol that was agreed on in the handshake: ``http/1.1`` with wss; empty when there was none."""
        return self._connection.get_alpn_proto_negotiated().decode(errors="replace")

    @property
    def verified(self) -> bool:
        """Whether the peer has shown a certificate and it was verified."""
        return self._verifies and self.peer_certificate is not None

    @cached_property
    def peer_certificate(self) -> x509.Certificate | None:
        """The peer's certificate; None: it has shown none, or, to who verifies nobody, one that cannot be read."""
        try:
            return self._connection.get_peer_certificate(as_cryptography=True)
        except Exception:
            return None

    @cached_property
    def peer_chain(self) -> tuple[x509.Certificate, ...]:
        """The peer's certificate and its issuers, as verified, or as it sent them; a resumed session may know the first one only."""
        try:
            chain = self._connection.get_verified_chain(as_cryptography=True) if self._verifies else None
            chain = chain or self._connection.get_peer_cert_chain(as_cryptography=True) or []
        except Exception:
            chain = []
        first = self.peer_certificate
        if first is None:
            return ()
        return tuple(chain) if chain and chain[0] == first else (first, *chain)

    @property
    def subject(self) -> str:
        """The subject of the peer's certificate (RFC 4514), for example ``CN=client 7,O=Example``; empty when there is none."""
        return "" if self.peer_certificate is None else self.peer_certificate.subject.rfc4514_string()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The subject alternative names of the peer's certificate, each with its kind: ``DNS:...``, ``IP:...``, ``URI:...``, ``email:...``.

        Empty unless the certificate was verified: an unverified name is worth nothing.
        """
        from sp.tls.certificate_names import alternative_names  # noqa: PLC0415  # OpenSSL, on first use

        if not self.verified or self.peer_certificate is None:
            return ()
        return alternative_names(self.peer_certificate)

    def __repr__(self) -> str:
        how = "resumed" if self.resumed else "full handshake"
        verified = "verified" if self.verified else "not verified"
        return f"<TLSInfo {self.version} {self.cipher} {self.group} {how} {verified} {self.subject!r}>"
