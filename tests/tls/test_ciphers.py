"""Which ciphers are used with TLS 1.2.

Those with forward secrecy and authenticated encryption, unless somebody says otherwise.
"""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import trustme

import sp
from sp.tls.session import TLSSession
from tests.tls.authority import Authority
from tests.tls.test_session import End, Foreign, shake_hands
from tests.transports.wire import REP, REQ

WEAK = {
    "key exchange by RSA": "AES256-GCM-SHA384",
    "key exchange by RSA, with CBC": "AES128-SHA256",
    "CBC with SHA-2": "ECDHE-RSA-AES256-SHA384",
    "CBC with SHA-1": "ECDHE-RSA-AES128-SHA",
    "nobody is verified": "AECDH-AES256-SHA",
    "AES-CCM": "AES256-CCM",
}
EACH = pytest.mark.parametrize("weak", WEAK.values(), ids=WEAK)
GOOD = "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384"
OFFERED = {
    *(0x1301, 0x1302, 0x1303),  # TLS 1.3
    # ECDHE with AES-GCM and with ChaCha20-Poly1305.
    *(0xC02B, 0xC02C, 0xC02F, 0xC030, 0xCCA8, 0xCCA9),
    *(0x009E, 0x009F, 0xCCAA),  # DHE with them
    0x00FF,  # no cipher: it says that renegotiation would be safe
}


@pytest.fixture(scope="module")
def rsa() -> bytes:
    """An RSA key and its certificate, which work with all these suites."""
    issued = trustme.CA(key_type=trustme.KeyType.RSA).issue_cert("localhost", key_type=trustme.KeyType.RSA)
    return issued.private_key_and_cert_chain_pem.bytes()


def foreign(ciphers: str, rsa: bytes | None = None, directory: Any = None) -> Foreign:
    """Return a peer for TLS 1.2 with *ciphers* only; with *rsa*, it is a server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if rsa is None else ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    if rsa is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        path = directory / "rsa.pem"
        path.write_bytes(rsa)
        context.load_cert_chain(path)
    return Foreign(context, is_server=rsa is not None)


def our_server(rsa: bytes, **options: Any) -> End:
    return End(TLSSession(sp.TLSServerConfig(certificate=rsa, **options).contexts.current), REP)


def our_client(**options: Any) -> End:
    config = sp.TLSClientConfig(insecure_skip_verification=True, **options)
    return End(TLSSession(config.contexts.current, host="localhost", port=5555), REQ)


def cipher_of(end: End) -> str:
    info = end.session.info
    assert info is not None
    return info.cipher


@pytest.mark.slow
@EACH
def test_a_listener_takes_no_weak_suite(weak: str, rsa: bytes) -> None:
    ours, theirs = our_server(rsa), foreign(weak)
    shake_hands(ours, theirs)
    assert ["no shared cipher" in str(error) for error in ours.errors] == [True]
    assert theirs.error is not None


@pytest.mark.parametrize("maximum", ["TLSv1.2", "TLSv1.3"])
def test_a_dialer_offers_no_weak_suite(maximum: str, authority: Authority) -> None:
    client = our_client(maximum_version=maximum)
    client.take(b"")
    hello = client.drain()
    at = 5 + 4 + 2 + 32  # the record, the message, the version, the random bytes
    at += 1 + hello[at]  # the session's id
    size = int.from_bytes(hello[at : at + 2])
    suites = {int.from_bytes(hello[start : start + 2]) for start in range(at + 2, at + 2 + size, 2)}
    assert len(suites) > 5
    assert suites <= OFFERED


@EACH
def test_a_dialer_speaks_no_weak_suite(weak: str, rsa: bytes, tmp_path: Any) -> None:
    ours, theirs = our_client(), foreign(weak, rsa, tmp_path)
    shake_hands(ours, theirs)
    assert len(ours.errors) == 1
    assert theirs.error is not None


@pytest.mark.parametrize("order", [GOOD, ":".join(reversed(GOOD.split(":")))])
def test_the_server_s_order_counts(order: str, rsa: bytes) -> None:
    ours, theirs = our_server(rsa), foreign(order)
    shake_hands(ours, theirs)
    assert (ours.errors, cipher_of(ours)) == ([], "ECDHE-RSA-AES256-GCM-SHA384")


def test_a_configuration_can_choose_other_ciphers(rsa: bytes) -> None:
    ours, theirs = our_server(rsa, ciphers="AES128-GCM-SHA256:AES256-GCM-SHA384"), foreign("AES256-GCM-SHA384:AES128-GCM-SHA256")
    shake_hands(ours, theirs)
    assert (ours.errors, cipher_of(ours)) == ([], "AES128-GCM-SHA256")
