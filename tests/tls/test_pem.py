"""PEM in the forms in which people have it.

Copies that gained blank lines and spaces are read, and no error about a source shows a key.
"""

from __future__ import annotations

import logging
import re
import ssl
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

import sp
from tests.tls.authority import DAY, NOW, Authority
from tests.transports.wire import expect

BOTH = pytest.mark.parametrize("kind", [sp.TLSServerConfig, sp.TLSClientConfig])
PASSWORD = b"open sesame"
RUN = 12

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
KEYS: dict[str, PrivateKey] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "rsa": rsa.generate_private_key(65537, 2048),
    "ec": ec.generate_private_key(ec.SECP256R1()),
}
STYLES = {"PKCS8": serialization.PrivateFormat.PKCS8, "traditional": serialization.PrivateFormat.TraditionalOpenSSL}


def self_signed(key: PrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pem")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    signed = builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def key_pem(key: PrivateKey, style: serialization.PrivateFormat, *, encrypted: bool) -> bytes:
    encryption = serialization.BestAvailableEncryption(PASSWORD) if encrypted else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, style, encryption)


PAIRS = {
    f"{name} {style}{' encrypted' if encrypted else ''}": (key_pem(key, STYLES[style], encrypted=encrypted), self_signed(key))
    for name, key in KEYS.items()
    for style in STYLES
    for encrypted in (False, True)
    if not (name == "ed25519" and style == "traditional")
}
PAIR = pytest.mark.parametrize("pair", PAIRS)
PLAIN = pytest.mark.parametrize("pair", [pair for pair in PAIRS if "encrypted" not in pair])

COPIES: dict[str, Callable[[bytes], bytes]] = {
    "blank lines": lambda pem: pem.replace(b"\n", b"\n\n"),
    "blank lines with spaces in them": lambda pem: pem.replace(b"\n", b"\n \t \n"),
    "ends of lines as of Windows": lambda pem: pem.replace(b"\n", b"\r\n"),
    "blank lines as of Windows": lambda pem: pem.replace(b"\n", b"\r\n\r\n"),
    "ends of lines as of an old Mac": lambda pem: pem.replace(b"\n", b"\r"),
    "spaces at the ends": lambda pem: pem.replace(b"\n", b"  \t\n"),
    "indented": lambda pem: b"    " + pem.replace(b"\n", b"\n    "),
    "other lengths of lines": lambda pem: re.sub(rb"(?m)^([A-Za-z0-9+/]{7})([A-Za-z0-9+/]+)$", rb"\1\n\2", pem),
    "spaces within lines": lambda pem: re.sub(rb"(?m)^([A-Za-z0-9+/]{7})([A-Za-z0-9+/]+)$", rb"\1 \2", pem),
    "text around, and a mark of the byte order": lambda pem: b"\xef\xbb\xbfBag Attributes: none\n" + pem + b"and that is all\n",
}
COPY = pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)


@pytest.mark.slow
@BOTH
@COPY
@PAIR
def test_copies_of_keys_and_certificates_are_read(kind: Any, copy: Callable[[bytes], bytes], pair: str) -> None:
    key, certificate = PAIRS[pair]
    kind(certificate=copy(certificate), private_key=copy(key), password=PASSWORD)
    kind(certificate=copy(certificate + key), password=PASSWORD)


@COPY
def test_copies_of_authorities_and_revocation_lists_are_read(copy: Callable[[bytes], bytes], authority: Authority) -> None:
    trusted, revoked = copy(authority.pem + Authority().pem), copy(authority.revoke() + Authority().revoke())
    sp.TLSClientConfig(ca=trusted, revoked=revoked)
    sp.TLSServerConfig(certificate=authority.issue("localhost"), client_ca=trusted, revoked=revoked)


# What errors show.


def secret_runs(key: bytes) -> set[str]:
    """Return every run of the base64 of *key*."""
    body = "".join(line for line in key.decode().splitlines() if line and "-----" not in line and ":" not in line)
    return {body[at : at + RUN] for at in range(len(body) - RUN + 1)}


def related(error: BaseException | None) -> Iterator[BaseException]:
    """Yield *error* and everything attached to it, including what a traceback leaves out."""
    if error is not None:
        yield error
        yield from related(error.__cause__)
        yield from related(error.__context__)


def everything_about(error: BaseException) -> str:
    """Return all text that *error* can show."""
    parts = [*traceback.format_exception(error)]
    for one in related(error):
        parts += [str(one), repr(one), repr(one.args), repr(vars(one)), *getattr(one, "__notes__", [])]
    return "\n".join(parts)


def assert_shows_nothing(shown: str, key: bytes) -> None:
    compact = re.sub(r"\\[nr]|\s", "", shown)
    runs = secret_runs(key)
    # Look up each run of the shorter text once.
    assert not [at for at in range(len(compact)) if compact[at : at + RUN] in runs]


def given_as(field: str, broken: bytes, certificate: bytes) -> list[Callable[[], object]]:
    """Return the calls that get *broken*, which contains a key, as *field*."""
    if field == "certificate":
        both = (certificate + broken, broken + certificate, broken)
        return [lambda pem=pem: sp.TLSServerConfig(certificate=pem, password="wrong") for pem in both]  # type: ignore[misc]
    if field == "private_key":
        return [
            lambda: sp.TLSServerConfig(certificate=certificate, private_key=broken),
            lambda: sp.TLSClientConfig(certificate=certificate, private_key=broken, password="wrong"),
        ]
    if field == "ca":
        return [lambda: sp.TLSClientConfig(ca=broken + certificate), lambda: sp.TLSClientConfig(ca=broken)]
    if field == "client_ca":
        own = b"".join(PAIRS["ec PKCS8"])
        return [lambda: sp.TLSServerConfig(certificate=own, client_ca=certificate + broken)]
    return [lambda: sp.TLSClientConfig(revoked=broken)]


FIELDS = ("certificate", "private_key", "ca", "client_ca", "revoked")
MISTAKES: dict[str, Callable[[bytes], bytes]] = {
    "a letter too many": lambda pem: pem.replace(b"\nM", b"\n!M", 1),
    "a word between the lines": lambda pem: pem.replace(b"\n", b"\n# the key\n"),
    "a colon in each line": lambda pem: pem.replace(b"\n", b":\n"),
    "no line at the end": lambda pem: pem[: pem.index(b"-----END")],
    "another line at the end": lambda pem: pem.replace(b"-----END ", b"-----END OTHER "),
    "no line at the beginning": lambda pem: pem[pem.index(b"\n") + 1 :],
    "half of it": lambda pem: pem[: len(pem) // 2] + pem[pem.index(b"-----END") :],
    "one character fewer": lambda pem: pem[:60] + pem[61:],
    "called a certificate": lambda pem: re.sub(rb"(-----(?:BEGIN|END) )[A-Z ]*(?=-----)", rb"\1CERTIFICATE", pem),
    "called a certificate, with blank lines": lambda pem: re.sub(
        rb"(-----(?:BEGIN|END) )[A-Z ]*(?=-----)", rb"\1CERTIFICATE", pem.replace(b"\n", b"\n\n")
    ),
    "called a revocation list": lambda pem: re.sub(rb"(-----(?:BEGIN|END) )[A-Z ]*(?=-----)", rb"\1X509 CRL", pem),
    "called something unheard of": lambda pem: pem.replace(b"PRIVATE KEY", b"NICE PRIVATE KEY"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("field", FIELDS)
@PLAIN
def test_an_error_about_a_source_does_not_show_its_key(pair: str, field: str, mistake: Callable[[bytes], bytes]) -> None:
    key, certificate = PAIRS[pair]
    for call in given_as(field, mistake(key), certificate):
        try:
            call()
        except sp.TLSConfigError as error:
            assert_shows_nothing(everything_about(error), key)


@pytest.mark.slow
@settings(deadline=None)
@given(data=st.data(), pair=st.sampled_from(sorted(PAIRS)), field=st.sampled_from(FIELDS))
def test_no_damage_to_a_source_makes_its_key_show(data: st.DataObject, pair: str, field: str) -> None:
    key, certificate = PAIRS[pair]
    broken = bytearray(key)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(broken)))
        taken = data.draw(st.integers(0, 80))
        broken[at : at + taken] = data.draw(st.sampled_from([b"", b"\n", b"\n\n", b"-----", b":", b": ", b"=", b"\0", b"\xff", b"!", b"M"]))
    for call in given_as(field, bytes(broken), certificate):
        try:
            call()
        except sp.TLSConfigError as error:
            assert_shows_nothing(everything_about(error), key)


@PLAIN
def test_the_content_of_a_file_as_a_str_is_not_shown(pair: str) -> None:
    key, certificate = PAIRS[pair]
    body = "".join(line for line in key.decode().splitlines() if "-----" not in line and ":" not in line)
    for text in (key.decode(), key.decode().replace("-----BEGIN", "----BEGIN"), body):
        with pytest.raises(sp.TLSConfigError, match="private_key is PEM text in a str, .*: give the text as bytes") as caught:
            sp.TLSServerConfig(certificate=certificate, private_key=text)
        assert_shows_nothing(everything_about(caught.value), key)


def test_a_password_that_has_no_bytes_is_reported_and_not_shown() -> None:
    key, certificate = PAIRS["ec PKCS8 encrypted"]
    password = f"\ud800 {PASSWORD.decode()}"
    with pytest.raises(sp.TLSConfigError, match="password contains a character that UTF-8 cannot encode: give it as bytes") as caught:
        sp.TLSServerConfig(certificate=certificate, private_key=key, password=password)
    assert "sesame" not in everything_about(caught.value)


def test_a_password_may_have_bytes_that_are_no_utf_8_as_an_environment_variable_gives_them() -> None:
    secret = b"s\xe9same"
    encryption = serialization.BestAvailableEncryption(secret)
    key = KEYS["ec"].private_bytes(serialization.Encoding.PEM, STYLES["PKCS8"], encryption)
    password = secret.decode("utf-8", "surrogateescape")
    sp.TLSServerConfig(certificate=self_signed(KEYS["ec"]), private_key=key, password=password)


def with_unknown_curve(certificate: bytes) -> bytes:
    """Return *certificate* with a public key on an unknown curve, which cannot be parsed."""
    der = x509.load_pem_x509_certificate(certificate).public_bytes(serialization.Encoding.DER)
    p_256 = bytes.fromhex("06082a8648ce3d030107")
    assert der.count(p_256) == 1
    return ssl.DER_cert_to_PEM_cert(der.replace(p_256, p_256[:-1] + b"\x7f")).encode()


@BOTH
def test_a_key_of_a_kind_that_is_not_known_in_a_certificate_is_another_key(kind: Any) -> None:
    key, certificate = PAIRS["ec PKCS8"]
    odd = with_unknown_curve(certificate)
    with pytest.raises(sp.TLSConfigError, match="does not belong to the certificate"):
        kind(certificate=odd, private_key=key)
    kind(certificate=certificate + odd, private_key=key)


def test_a_large_source_costs_little_more_than_its_bytes(authority: Authority) -> None:
    megabyte = b"-----BEGIN X509 CRL-----\n" + (b"A" * 64 + b"\n") * 16_000 + b"-----END X509 CRL-----\n"
    tracemalloc.start()
    try:
        with pytest.raises(sp.TLSConfigError, match="number 1 of 1 cannot be parsed"):
            sp.TLSClientConfig(ca=authority.pem, revoked=megabyte)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(megabyte)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("separate", [True, False])
async def test_a_reload_that_fails_shows_no_key(
    separate: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    key, certificate = PAIRS["ed25519 PKCS8"]
    own, own_key = tmp_path / "own.pem", tmp_path / "own.key"
    own.write_bytes(certificate if separate else certificate + key)
    own_key.write_bytes(key)
    config = sp.TLSServerConfig(certificate=own, private_key=own_key if separate else None, watch_files=30)
    with caplog.at_level(logging.DEBUG, "sp"):
        async with sp.Rep0(listen="tls+tcp://127.0.0.1:0", tls=config) as rep:
            (listener,) = rep.listeners
            events = rep.events()
            changed = own_key if separate else own
            changed.write_bytes(changed.read_bytes().replace(b"\n", b"\n# a word\n"))
            with trio.fail_after(100):
                event = await expect(events, sp.EventKind.RELOAD_FAILED)
            with pytest.raises(sp.TLSConfigError) as caught:
                listener.reload()
    assert "broken" in event.reason
    assert_shows_nothing(f"{event!r} {event.reason} {caplog.text}", key)
    for error in (event.error, caught.value):
        if error is not None:
            assert_shows_nothing(everything_about(error), key)
