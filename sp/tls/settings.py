"""What a TLS configuration says: its fields, and the checks that need no OpenSSL."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Literal, cast

import attrs

from sp.address import absolute, is_host
from sp.checks import choice, count, flag, optional, seconds_or_none
from sp.errors import TLSConfigError

if TYPE_CHECKING:
    from OpenSSL import SSL

Source = str | os.PathLike[str] | bytes
"""A path, or the content itself as PEM bytes."""
TLSVersion = Literal["TLSv1.2", "TLSv1.3"]
Group = Literal["P-256", "P-384", "P-521"]

_CONTENT = re.compile(r"-----BEGIN|[\r\n]|^M[A-Za-z0-9+/]{59,}={0,2}$")
"""Matches a str that is the content of a file, or its base64, and not a path.

The shortest key has 64 characters.
"""
_VERSIONS = ("TLSv1.2", "TLSv1.3")
_GROUPS = ("P-256", "P-384", "P-521")
_FILES = ("certificate", "private_key", "revoked", "client_ca", "ca", "key_log_file")


def _source(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str | os.PathLike | bytes):
        raise TypeError(f"{attribute.name} must be a path (str or PathLike) or PEM bytes, not {type(value).__name__}")
    if not value:  # an empty path would mean the current directory
        raise TLSConfigError(f"{attribute.name} is empty: give a path or PEM bytes, or leave it out")
    # May be a key, so the error must not show it.
    if isinstance(value, str) and _CONTENT.search(value):
        raise TLSConfigError(f"{attribute.name} is PEM text in a str, but a str must be a path: give the text as bytes")


def _path(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{attribute.name} must be a path (str or PathLike), not {type(value).__name__}")


def _text(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not value.isascii() or not value:
        raise TypeError(f"{attribute.name} must be a non-empty ASCII str, not {value!r}")


def _host(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name} must be a str, not {type(value).__name__}")
    if not is_host(value):
        raise TLSConfigError(f"{attribute.name} must be a host name or an IP address, without scheme, port or brackets, not {value!r}")


def _password(_: object, __: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str | bytes):
        raise TypeError(f"password must be str or bytes, not {type(value).__name__}")


def _shown(value: object) -> str:
    """Return the repr of a source, without PEM bytes, which may hold a key."""
    return f"<{len(value)} bytes of PEM>" if isinstance(value, bytes) else repr(value)


@attrs.frozen(kw_only=True, eq=False)
class TLSSettings:
    """The fields that servers and clients share."""

    certificate: Source | None = attrs.field(default=None, validator=optional(_source), repr=_shown)
    """Our certificate followed by its intermediates, as a path or PEM bytes.

    The private key may be in the same place.  A server must have a certificate; a client needs one
    only for servers that ask for it.  None: no certificate."""
    private_key: Source | None = attrs.field(default=None, validator=optional(_source), repr=_shown)
    """The private key of the certificate, as a path or PEM bytes.

    None: it is in the same place as the certificate."""
    password: str | bytes | None = attrs.field(default=None, validator=optional(_password), repr=False)
    """Decrypts the private key.  A str is encoded as UTF-8.  None: the key is not encrypted."""
    revoked: Source | None = attrs.field(default=None, validator=optional(_source), repr=_shown)
    """Certificate revocation lists, as a path or PEM bytes.

    There must be a current list from every authority in a peer's chain; otherwise the peer is
    refused.  None: revocation is not checked."""
    max_chain_depth: int = attrs.field(default=10, validator=count(0, 100))
    """The most intermediate certificates in a peer's chain, from 0 to 100."""
    minimum_version: TLSVersion = attrs.field(default="TLSv1.2", validator=choice(*_VERSIONS))
    """The oldest TLS version to use.  Versions before 1.2 cannot be chosen."""
    maximum_version: TLSVersion | None = attrs.field(default=None, validator=optional(choice(*_VERSIONS)))
    """The newest TLS version to use.  None: the newest that OpenSSL has."""
    ciphers: str | None = attrs.field(default=None, validator=optional(_text))
    """Ciphers for TLS 1.2 in OpenSSL's notation, best first.  The server's order wins.

    None: those with forward secrecy and authenticated encryption (ECDHE or DHE with AES-GCM or
    ChaCha20)."""
    ciphersuites: str | None = attrs.field(default=None, validator=optional(_text))
    """Cipher suites for TLS 1.3, separated by colons.  None: OpenSSL's default."""
    group: Group | None = attrs.field(default=None, validator=optional(choice(*_GROUPS)))
    """The only group for the key exchange.  None: OpenSSL's default, X25519MLKEM768 first.

    pyOpenSSL can set one of these groups, but no list."""
    session_reuse: bool = attrs.field(default=True, validator=flag)
    """Whether a reconnect may resume an earlier session instead of making a full handshake.

    False: no session is remembered or resumed.  A server still sends two tickets under TLS 1.3,
    because pyOpenSSL has no call for their number; a client that uses one gets a full handshake."""
    key_log_file: str | os.PathLike[str] | None = attrs.field(default=None, validator=optional(_path))
    """Append the secrets of each connection to this file, for Wireshark.  None: do not.

    Anyone who can read the file can decrypt the traffic."""
    watch_files: float | None = attrs.field(default=None, validator=seconds_or_none)
    """How often a listener checks the files, in seconds, to reload them when one has changed.

    A dialer checks before each attempt.  None: only ``reload`` reads the files again."""
    context: SSL.Context | None = attrs.field(default=None)
    """A ready-made ``OpenSSL.SSL.Context``, for what the other fields cannot express.

    It must be unused.  It replaces all fields about certificates, versions and ciphers, which
    cannot be given with it.  It is used as it is, even if it allows old versions of TLS.  None: the
    context is made from the other fields."""

    def __attrs_post_init__(self) -> None:
        for name in _FILES:
            source = getattr(self, name, None)
            # Each reload reads the same file, even if the working directory has changed.
            if isinstance(source, str | os.PathLike):
                object.__setattr__(self, name, absolute(os.fspath(cast("str | os.PathLike[str]", source))))


@attrs.frozen(kw_only=True, eq=False)
class ServerSettings(TLSSettings):
    """The fields of a server."""

    client_ca: Source | None = attrs.field(default=None, validator=optional(_source), repr=_shown)
    """The authorities that sign client certificates: a file, a directory, or PEM bytes.

    None: clients are not asked for a certificate."""
    require_client_certificate: bool | None = attrs.field(default=None, validator=optional(flag))
    """Whether a client without a certificate is refused.

    Can only be given with ``client_ca``.  None: it is refused."""


@attrs.frozen(kw_only=True, eq=False)
class ClientSettings(TLSSettings):
    """The fields of a client."""

    ca: Source | None = attrs.field(default=None, validator=optional(_source), repr=_shown)
    """The authorities to trust instead of the system CAs: a file, a directory, or PEM bytes.

    None: the system CAs."""
    server_name: str | None = attrs.field(default=None, validator=optional(_host))
    """The DNS name or IP address that the server's certificate must have.

    None: the host of the URL."""
    session_cache_size: int = attrs.field(default=256, validator=count(1))
    """The most servers whose sessions are remembered.

    The least recently used server is forgotten first."""
    insecure_skip_verification: bool = attrs.field(default=False, validator=flag)
    """True: accept any server, without looking at its certificate, and ignore ``ca``.

    The connection is encrypted, but perhaps to an attacker."""
