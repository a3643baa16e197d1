"""Makes certificates to try things out: ``python -m examples.certificates DIRECTORY``.

It writes four files:

- ``ca.pem``, the certificate of an authority, which the others are checked with;
- ``server.pem``, certificate and key of a server at localhost;
- ``client.pem`` and ``other.pem``, certificates and keys of the clients client-7 and client-8.

The keys are not encrypted, the key of the authority is thrown away, and the certificates expire
after a month.
"""

import datetime
import ipaddress
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

MONTH = datetime.timedelta(days=30)
LOCALHOST = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.IPAddress(ipaddress.ip_address("::1")))


def common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def key_usage(*, of_authority: bool) -> x509.KeyUsage:
    """Allow an authority to sign certificates and revocation lists, and others to sign in a
    handshake.
    """
    return x509.KeyUsage(
        digital_signature=not of_authority,
        key_cert_sign=of_authority,
        crl_sign=of_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def certificate(
    subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, issuer_key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    """Begin a certificate with all that strict clients want, for example Python 3.13."""
    now = datetime.datetime.now(datetime.UTC)
    is_authority = key is issuer_key
    return (
        x509.CertificateBuilder()
        .subject_name(common_name(subject))
        .issuer_name(common_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + MONTH)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
        .add_extension(key_usage(of_authority=is_authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def write(path: Path, signed: x509.Certificate, key: ec.EllipticCurvePrivateKey | None = None) -> None:
    pem = signed.public_bytes(serialization.Encoding.PEM)
    path.unlink(missing_ok=True)  # an old file would keep its mode
    path.touch(mode=0o644 if key is None else 0o600)
    if key is not None:
        pem += key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(pem)


def make_certificates(directory: Path) -> None:
    """Write all four files to *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = certificate("Example CA", "Example CA", ca_key, ca_key)
    write(directory / "ca.pem", ca.sign(ca_key, hashes.SHA256()))
    for name, names, purpose in (
        ("server", LOCALHOST, ExtendedKeyUsageOID.SERVER_AUTH),
        ("client", (x509.DNSName("client-7"),), ExtendedKeyUsageOID.CLIENT_AUTH),
        ("other", (x509.DNSName("client-8"),), ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        signed = (
            certificate(name, "Example CA", key, ca_key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        write(directory / f"{name}.pem", signed, key)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m examples.certificates DIRECTORY")
    make_certificates(Path(sys.argv[1]))
