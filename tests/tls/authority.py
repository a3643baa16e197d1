"""Certificates for tests: good ones made by trustme, and flawed ones that trustme does not make."""

from __future__ import annotations

import datetime
import ipaddress

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import sp

DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


class Authority:
    """A certificate authority, and the configurations of the two sides that it makes."""

    def __init__(self) -> None:
        self.ca = trustme.CA()
        self.pem = self.ca.cert_pem.bytes()
        """The authority's own certificate, for those who trust it."""
        self.certificate = x509.load_pem_x509_certificate(self.pem)
        self._key = serialization.load_pem_private_key(self.ca.private_key_pem.bytes(), None)

    def issue(self, *names: str, subject: str | None = None) -> bytes:
        """Return key and certificate for *names* (DNS, IP or email) as PEM."""
        return self.ca.issue_cert(*names, common_name=subject).private_key_and_cert_chain_pem.bytes()

    def issue_flawed(
        self,
        *names: str,
        begins: datetime.datetime = NOW - DAY,
        ends: datetime.datetime = NOW + DAY,
        purpose: x509.ObjectIdentifier = SERVER,
        self_signed: bool = False,
        subject: x509.Name | None = None,
        raw_names: bytes | None = None,
    ) -> bytes:
        """Return key and certificate as PEM, with dates, purpose or issuer as asked for.

        *raw_names* is the whole extension of the names, in DER: for what nobody else would write.
        """
        alternative_names: x509.ExtensionType = x509.SubjectAlternativeName([_general_name(name) for name in names])
        if raw_names is not None:
            alternative_names = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, raw_names)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = subject or x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "flawed")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if self_signed else self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(alternative_names, critical=False)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        )
        certificate = builder.sign(key if self_signed else self._key, hashes.SHA256())  # type: ignore[arg-type]
        pkcs8 = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return pkcs8 + certificate.public_bytes(serialization.Encoding.PEM)

    def sign(self, tbs: bytes) -> bytes:
        """Return the DER of a certificate with the content *tbs*, which may be anything."""
        key = self._key
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        ecdsa_with_sha256 = bytes.fromhex("300a06082a8648ce3d040302")
        signature = b"\0" + key.sign(tbs, ec.ECDSA(hashes.SHA256()))
        content = tbs + ecdsa_with_sha256 + b"\x03" + bytes([len(signature)]) + signature
        return b"\x30\x82" + len(content).to_bytes(2, "big") + content

    def revoke(self, *pems: bytes, ends: datetime.datetime = NOW + DAY) -> bytes:
        """Return a revocation list with the first certificate of each of *pems*."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject).last_update(NOW - DAY).next_update(ends)
        for pem in pems:
            serial = x509.load_pem_x509_certificate(pem[pem.index(b"-----BEGIN CERT") :]).serial_number
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - DAY).build()
            )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]

    def server(self, *names: str, **options: object) -> sp.TLSServerConfig:
        """Return the configuration of a server with *names*, by default ``localhost``."""
        return sp.TLSServerConfig(certificate=self.issue(*(names or ("localhost", "127.0.0.1", "::1"))), **options)  # type: ignore[arg-type]

    def client(self, **options: object) -> sp.TLSClientConfig:
        """Return the configuration of a client that trusts this authority."""
        return sp.TLSClientConfig(ca=self.pem, **options)  # type: ignore[arg-type]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.RFC822Name(name) if "@" in name else x509.DNSName(name)
