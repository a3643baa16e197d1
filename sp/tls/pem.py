"""Reads certificates, keys and revocation lists from PEM, and says what is wrong with them.

Any source may hold a private key, and a parser's error may quote what it could not parse.  So no
text of a parser gets into an error of ours, or into its cause or context.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from sp.errors import TLSConfigError
from sp.tls.settings import Source

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

T = TypeVar("T")

_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----([^-]*(?:-(?!----)[^-]*)*)-----END \1-----")
"""The lookahead is only at dashes.

A lookahead at every byte would make a large revocation list a hundred times slower.
"""
_KEY: Final = re.compile(rb"(?:([A-Z0-9]+) )?PRIVATE KEY")
_WIDTH: Final = 64


@attrs.frozen
class Pem:
    """The content of a source, and its name in errors."""

    data: bytes = attrs.field(repr=False)
    name: str

    @classmethod
    def read(cls, source: Source, field: str) -> Pem:
        """Return the content of *source*, which was given as *field*.  Raises TLSConfigError."""
        if isinstance(source, bytes):
            return cls(source, f"{field} (PEM bytes)")
        name = f"{field} {os.fspath(source)!r}"
        try:
            return cls(Path(source).read_bytes(), name)
        except (OSError, ValueError) as error:
            raise TLSConfigError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error

    @property
    def has_certificate(self) -> bool:
        """Whether it contains the beginning of a certificate."""
        return b"-----BEGIN CERTIFICATE-----" in self.data

    @property
    def has_key(self) -> bool:
        """Whether it seems to contain a private key."""
        return b"PRIVATE KEY-----" in self.data

    def certificates(self) -> list[x509.Certificate]:
        """Return all certificates, at least one.  Raises TLSConfigError."""
        if not self.has_certificate:
            raise TLSConfigError(f"{self.name} contains no certificate: expected PEM with a line -----BEGIN CERTIFICATE-----")
        begun = self.data.count(b"-----BEGIN CERTIFICATE-----")
        blocks = self._blocks("CERTIFICATE")
        if len(blocks) != begun:
            raise TLSConfigError(f"{self.name} is cut off: {len(blocks)} of {begun} certificates are complete")
        return self._parse(blocks, x509.load_pem_x509_certificate, "certificate")

    def revocation_lists(self) -> list[x509.CertificateRevocationList]:
        """Return all revocation lists, at least one.  Raises TLSConfigError."""
        begun = self.data.count(b"-----BEGIN X509 CRL-----")
        if not begun:
            raise TLSConfigError(f"{self.name} contains no revocation list: expected PEM with a line -----BEGIN X509 CRL-----")
        blocks = self._blocks("X509 CRL")
        if len(blocks) != begun:
            raise TLSConfigError(f"{self.name} is cut off: {len(blocks)} of {begun} revocation lists are complete")
        return self._parse(blocks, x509.load_pem_x509_crl, "revocation list")

    def key(self, password: str | bytes | None) -> PrivateKeyTypes:
        """Return the first private key, decrypted with *password* if it is encrypted.

        Raises TLSConfigError.
        """
        if not self.has_key:
            raise TLSConfigError(f"{self.name} contains no private key: expected PEM with a line -----BEGIN PRIVATE KEY-----")
        found = next((block for block in _BLOCK.finditer(self.data) if _KEY.fullmatch(block[1])), None)
        if found is None:
            raise TLSConfigError(f"{self.name} contains a broken private key: its BEGIN or END line is missing or incomplete")
        if found[1].startswith(b"OPENSSH"):
            raise TLSConfigError(f"{self.name} contains a key in OpenSSH's own format: convert it with ssh-keygen -p -m PEM")
        encrypted = b"ENCRYPTED" in found[0]  # in the BEGIN line or in a header
        if encrypted and password is None:
            raise TLSConfigError(f"{self.name} is encrypted: give password=")
        key = quietly(serialization.load_pem_private_key, _tidy(found), _secret(password) if encrypted else None)
        if key is None:
            broken = "contains a broken private key: it cannot be parsed, or its type is unknown"
            what = "cannot be decrypted: the password is wrong, or the key is broken" if encrypted else broken
            raise TLSConfigError(f"{self.name} {what}")
        return key

    def _blocks(self, label: str) -> list[bytes]:
        return [_tidy(block) for block in _BLOCK.finditer(self.data) if block[1] == label.encode()]

    def _parse(self, blocks: list[bytes], parse: Callable[..., T], what: str) -> list[T]:
        found: list[T] = []
        for number, block in enumerate(blocks, 1):
            parsed = quietly(parse, block)
            if parsed is None:
                raise TLSConfigError(f"{self.name} contains a broken {what}: number {number} of {len(blocks)} cannot be parsed")
            found.append(parsed)
        return found


def quietly(call: Callable[..., T], *arguments: Any) -> T | None:
    """Return what *call* returns.

    None: it raised an exception, which is dropped because it may quote a secret.
    """
    try:
        return call(*arguments)
    except Exception:
        return None


def _secret(password: str | bytes | None) -> bytes | None:
    if not isinstance(password, str):
        return password
    secret = quietly(password.encode, "utf-8", "surrogateescape")
    if secret is None:
        raise TLSConfigError("password contains a character that UTF-8 cannot encode: give it as bytes")
    return secret


def _tidy(block: re.Match[bytes]) -> bytes:
    """Return *block* without the blank lines and spaces that copying added: parsers reject them."""
    lines = [line.strip() for line in block[2].splitlines()]
    headers = [line for line in lines if b":" in line]  # RFC 1421; base64 has no colon
    body = b"".join(b"".join(line.split()) for line in lines if b":" not in line)
    folded = [body[at : at + _WIDTH] for at in range(0, len(body), _WIDTH)]
    return b"\n".join([b"-----BEGIN %b-----" % block[1], *headers, *([b""] if headers else []), *folded, b"-----END %b-----\n" % block[1]])
