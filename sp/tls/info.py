"""What a pipe shows of its TLS connection."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509
    from OpenSSL import SSL


class TLSInfo:
    """The TLS connection of a pipe, as ``pipe.tls``.  It stays readable after the pipe has ended.

    The certificate can be inspected with the ``cryptography`` package.  Trust ``subject``,
    ``names`` and the rest of it only if ``verified`` is True.
    """

    def __init__(self, connection: SSL.Connection, *, verifies: bool, resumed: bool) -> None:
        self._connection = connection
        self.resumed = resumed
        """Whether the handshake resumed an earlier session."""
        self._verifies = verifies

    @property
    def version(self) -> str:
        """The protocol version, ``TLSv1.2`` or ``TLSv1.3``."""
        return self._connection.get_protocol_version_name()

    @property
    def cipher(self) -> str:
        """OpenSSL's name of the cipher, for example ``TLS_AES_256_GCM_SHA384``."""
        return self._connection.get_cipher_name() or ""

    @property
    def group(self) -> str:
        """The group of the key exchange, for example ``X25519MLKEM768``.

        Empty if this OpenSSL is too old to say.
        """
        try:
            return self._connection.get_group_name() or ""
        except NotImplementedError:
            return ""

    @property
    def alpn(self) -> str:
        """The application protocol agreed on (ALPN): ``http/1.1`` with wss, otherwise empty."""
        return self._connection.get_alpn_proto_negotiated().decode(errors="replace")

    @property
    def verified(self) -> bool:
        """Whether the peer sent a certificate and it was verified."""
        return self._verifies and self.peer_certificate is not None

    @cached_property
    def peer_certificate(self) -> x509.Certificate | None:
        """The peer's certificate.

        None: the peer sent none, or sent one that was not verified and cannot be parsed.
        """
        try:
            return self._connection.get_peer_certificate(as_cryptography=True)
        except Exception:
            return None

    @cached_property
    def peer_chain(self) -> tuple[x509.Certificate, ...]:
        """The peer's certificate and its issuers.

        It is the verified chain, or what the peer sent if nothing was verified.  A resumed session
        may have the peer's certificate only.  Empty if the peer sent no certificate.
        """
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
        """The subject of the peer's certificate (RFC 4514), such as ``CN=client 7,O=Example``.

        Empty if the peer sent no certificate.
        """
        return "" if self.peer_certificate is None else self.peer_certificate.subject.rfc4514_string()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The subject alternative names of the peer's certificate.

        Each begins with its kind: ``DNS:...``, ``IP:...``, ``URI:...``, ``email:...``.
        Empty unless the certificate was verified, because anyone can claim a name in a certificate
        that is not.
        """
        from sp.tls.certificate_names import alternative_names  # noqa: PLC0415  # imports OpenSSL, so only on first use

        if not self.verified or self.peer_certificate is None:
            return ()
        return alternative_names(self.peer_certificate)

    def __repr__(self) -> str:
        how = "resumed" if self.resumed else "full handshake"
        verified = "verified" if self.verified else "not verified"
        return f"<TLSInfo {self.version} {self.cipher} {self.group} {how} {verified} {self.subject!r}>"
