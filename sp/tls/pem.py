"""PEM as people have it: certificates, private keys, revocation lists, and what is wrong with them.

A source may hold a private key, whatever it was given as, and parsers quote what they stumble over.
So nothing that a parser says reaches an error of ours, its cause or its context.
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

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from sp.tls.config import Source

T = TypeVar("T")

_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----([^-]*(?:-(?!----)[^-]*)*)-----END \1-----")
"""Looks ahead at dashes only: at each byte of a large revocation list it would cost a hundred times its size."""
_KEY: Final = re.compile(rb"(?:([A-Z0-9]+) )?PRIVATE KEY")
_WIDTH: Final = 64


@attrs.frozen
class Pem:
    """The content of a source, and what to call it in errors."""

    data: bytes = attrs.field(repr=False)
    name: str

    @classmethod
    def read(cls, source: Source, field: str) -> Pem:
        """Return what *source* holds, which was given as *field*."""
        if isinstance(source, bytes):
            return cls(source, f"{field} (PEM bytes)")
        name = f"{field} {os.fspath(source)!r}"
        try:
            return cls(Path(source).read_bytes(), name)
        except (OSError, ValueError) as error:
            raise TLSConfigError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error

    @property
    def has_certificate(self) -> bool:
        """Whether a certificate begins in it."""
        return b"-----BEGIN CERTIFICATE-----" in self.data

    @property
    def has_key(self) -> bool:
        """Whether there seems to be a private key in it."""
        return b"PRIVATE KEY-----" in self.data

    def certificates(self) -> list[x509.Certificate]:
        """Return all certificates, of which there has to be one at least."""
        if not self.has_certificate:
            raise TLSConfigError(f"{self.name} has no certificate in it: expected PEM, with a line -----BEGIN CERTIFICATE-----")
        begun = self.data.count(b"-----BEGIN CERTIFICATE-----")
        blocks = self._blocks("CERTIFICATE")
        if len(blocks) != begun:
            raise TLSConfigError(f"{self.name} is cut off: {len(blocks)} of {begun} certificates are whole")
        return self._parse(blocks, x509.load_pem_x509_certificate, "certificate")

    def revocation_lists(self) -> list[x509.CertificateRevocationList]:
        """Return all revocation lists, of which there has to be one at least."""
        begun = self.data.count(b"-----BEGIN X509 CRL-----")
        if not begun:
            raise TLSConfigError(f"{self.name} has no revocation list in it: expected PEM, with a line -----BEGIN X509 CRL-----")
        blocks = self._blocks("X509 CRL")
        if len(blocks) != begun:
            raise TLSConfigError(f"{self.name} is cut off: {len(blocks)} of {begun} revocation lists are whole")
        return self._parse(blocks, x509.load_pem_x509_crl, "revocation list")

    def key(self, password: str | bytes | None) -> PrivateKeyTypes:
        """Return the first private key, decrypted with *password* if it is encrypted."""
        if not self.has_key:
            raise TLSConfigError(f"{self.name} has no private key in it: expected PEM, with a line -----BEGIN PRIVATE KEY-----")
        found = next((block for block in _BLOCK.finditer(self.data) if _KEY.fullmatch(block[1])), None)
        if found is None:
            raise TLSConfigError(f"{self.name} has a broken private key in it: its BEGIN or its END line is missing or is not whole")
        if found[1].startswith(b"OPENSSH"):
            raise TLSConfigError(f"{self.name} has a key in OpenSSH's own format: convert it with ssh-keygen -p -m PEM")
        encrypted = b"ENCRYPTED" in found[0]  # in the BEGIN line or in a header
        if encrypted and password is None:
            raise TLSConfigError(f"{self.name} is encrypted: give password=")
        key = quietly(serialization.load_pem_private_key, _tidy(found), _secret(password) if encrypted else None)
        if key is None:
            broken = "has a broken private key in it: it cannot be parsed, or is of a kind that is not known"
            what = "cannot be decrypted: wrong password, or it is broken" if encrypted else broken
            raise TLSConfigError(f"{self.name} {what}")
        return key

    def _blocks(self, label: str) -> list[bytes]:
        return [_tidy(block) for block in _BLOCK.finditer(self.data) if block[1] == label.encode()]

    def _parse(self, blocks: list[bytes], parse: Callable[..., T], what: str) -> list[T]:
        found: list[T] = []
        for number, block in enumerate(blocks, 1):
            parsed = quietly(parse, block)
            if parsed is None:
                raise TLSConfigError(f"{self.name} has a broken {what} in it: number {number} of {len(blocks)} cannot be parsed")
            found.append(parsed)
        return found


def quietly(call: Callable[..., T], *arguments: Any) -> T | None:
    """Return what *call* does; None: it has raised something, which may quote a secret."""
    try:
        return call(*arguments)
    except Exception:
        return None


def _secret(password: str | bytes | None) -> bytes | None:
    if not isinstance(password, str):
        return password
    secret = quietly(password.encode, "utf-8", "surrogateescape")
    if secret is None:
        raise TLSConfigError("password has a character that UTF-8 has no bytes for: give it as bytes")
    return secret


def _tidy(block: re.Match[bytes]) -> bytes:
    """Return *block* as parsers want it: a copy may have gained blank lines and spaces."""
    lines = [line.strip() for line in block[2].splitlines()]
    headers = [line for line in lines if b":" in line]  # RFC 1421; base64 has no colon
    body = b"".join(b"".join(line.split()) for line in lines if b":" not in line)
    folded = [body[at : at + _WIDTH] for at in range(0, len(body), _WIDTH)]
    return b"\n".join([b"-----BEGIN %b-----" % block[1], *headers, *([b""] if headers else []), *folded, b"-----END %b-----\n" % block[1]])
