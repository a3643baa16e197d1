"""Configurations: what cannot work is an error when they are made, with file and reason."""

from __future__ import annotations

import datetime
import logging
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

import sp
import sp.transports.tls  # makes a context of its own, which is not to be counted below
from tests.tls.authority import DAY, NOW, Authority

BOTH = pytest.mark.parametrize("kind", [sp.TLSServerConfig, sp.TLSClientConfig])
HOUR = datetime.timedelta(hours=1)


@pytest.fixture(scope="module")
def good(authority: Authority) -> bytes:
    """Key and certificate, as PEM."""
    return authority.issue("localhost")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes, name: str = "file.pem") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def split(pem: bytes) -> tuple[bytes, bytes]:
    """Return key and certificate of a PEM that has both."""
    start = pem.index(b"-----BEGIN CERT")
    return pem[:start], pem[start:]


def encrypt(pem: bytes, style: serialization.PrivateFormat, password: bytes) -> bytes:
    """Return the same key and certificate with the key encrypted."""
    key, certificate = split(pem)
    loaded = serialization.load_pem_private_key(key, None)
    return loaded.private_bytes(serialization.Encoding.PEM, style, serialization.BestAvailableEncryption(password)) + certificate


def ready_made(*, verify: bool = True) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    if verify:
        context.set_verify(SSL.VERIFY_PEER)
    return context


# Types and values.


@BOTH
@pytest.mark.parametrize("field", ["certificate", "private_key", "revoked"])
@pytest.mark.parametrize("value", [5, True, ["a.pem"], bytearray(b"x")])
def test_a_source_is_a_path_or_pem_bytes(kind: Any, field: str, value: object, good: bytes) -> None:
    with pytest.raises(TypeError, match=rf"{field} must be a path \(str or PathLike\) or PEM bytes, not {type(value).__name__}"):
        kind(**{"certificate": good, field: value})


@pytest.mark.parametrize("value", [5, False, ("ca.pem",)])
def test_ca_and_client_ca_are_paths_or_pem_bytes_too(value: object, good: bytes) -> None:
    with pytest.raises(TypeError, match="client_ca must be a path"):
        sp.TLSServerConfig(certificate=good, client_ca=value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ca must be a path"):
        sp.TLSClientConfig(ca=value)  # type: ignore[arg-type]


@BOTH
@pytest.mark.parametrize("value", [5, ["secret"], True])
def test_a_password_is_str_or_bytes_and_is_not_shown(kind: Any, value: object, good: bytes) -> None:
    with pytest.raises(TypeError, match=f"password must be str or bytes, not {type(value).__name__}$"):
        kind(certificate=good, password=value)


@BOTH
@pytest.mark.parametrize("value", [5, 1.5, b"keys", ["keys"], True])
def test_a_key_log_is_a_path(kind: Any, value: object, good: bytes) -> None:
    with pytest.raises(TypeError, match="key_log_file"):
        kind(certificate=good, key_log_file=value)


@BOTH
@pytest.mark.parametrize("value", [1.0, True, "3", None])
def test_the_depth_of_a_chain_is_an_int(kind: Any, value: object, good: bytes) -> None:
    with pytest.raises(TypeError, match="max_chain_depth must be an int, not "):
        kind(certificate=good, max_chain_depth=value)


@BOTH
@pytest.mark.parametrize("value", [-1, 101])
def test_the_depth_of_a_chain_has_bounds(kind: Any, value: int, good: bytes) -> None:
    with pytest.raises(ValueError, match=f"max_chain_depth must be from 0 to 100, not {value}"):
        kind(certificate=good, max_chain_depth=value)


@BOTH
@pytest.mark.parametrize("depth", [0, 100])
def test_the_bounds_of_the_depth_are_good(kind: Any, depth: int, good: bytes) -> None:
    assert kind(certificate=good, max_chain_depth=depth).max_chain_depth == depth


@BOTH
@pytest.mark.parametrize("field", ["minimum_version", "maximum_version"])
@pytest.mark.parametrize("value", ["TLSv1.1", "SSLv3", "1.3", "tlsv1.3", b"TLSv1.3", 1.3, 0x304])
def test_a_version_is_one_of_two(kind: Any, field: str, value: object, good: bytes) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be \"TLSv1.2\" or \"TLSv1.3\", not {value!r}"):
        kind(certificate=good, **{field: value})


@BOTH
@pytest.mark.parametrize("value", ["X25519", "p-256", "", 256])
def test_a_group_is_one_of_three(kind: Any, value: object, good: bytes) -> None:
    with pytest.raises(ValueError, match=f'group must be "P-256", "P-384" or "P-521", not {value!r}'):
        kind(certificate=good, group=value)


@BOTH
@pytest.mark.parametrize("field", ["ciphers", "ciphersuites"])
@pytest.mark.parametrize("value", ["", "TLS_\N{SNOWMAN}", b"HIGH", 5])
def test_ciphers_are_text(kind: Any, field: str, value: object, good: bytes) -> None:
    with pytest.raises(TypeError, match=f"{field} must be a non-empty ASCII str, not "):
        kind(certificate=good, **{field: value})


@pytest.mark.parametrize("value", [b"localhost", 5])
def test_a_server_name_is_text(value: object) -> None:
    with pytest.raises(TypeError, match="server_name must be a str, not "):
        sp.TLSClientConfig(server_name=value)  # type: ignore[arg-type]


NO_NAMES = [
    "",
    "b\N{LATIN SMALL LETTER U WITH DIAERESIS}ro.example",
    "localhost:3",
    "tls+tcp://localhost",
    "[::1]",
    "*.example.org",
    "a\0b",
    "a" * 300,
]


@pytest.mark.parametrize("value", NO_NAMES)
def test_a_server_name_is_a_name_or_an_address_and_nothing_else(value: str) -> None:
    with pytest.raises(sp.TLSConfigError, match="server_name must be a host name or an IP address, without scheme, port or brackets"):
        sp.TLSClientConfig(server_name=value)


@pytest.mark.parametrize("value", ["localhost", "a.example.", "my_host", "10.0.0.1", "::1", "fe80::1%eth0"])
def test_a_server_name_may_be(value: str) -> None:
    assert sp.TLSClientConfig(server_name=value).server_name == value


@BOTH
@pytest.mark.parametrize("field", ["certificate", "private_key", "revoked"])
@pytest.mark.parametrize("value", ["", b""])
def test_an_empty_source_is_no_source(kind: Any, field: str, value: str | bytes, good: bytes) -> None:
    with pytest.raises(sp.TLSConfigError, match=f"{field} is empty"):
        kind(**{"certificate": good, field: value})


@pytest.mark.parametrize(("kind", "field"), [(sp.TLSServerConfig, "client_ca"), (sp.TLSClientConfig, "ca")])
def test_an_empty_authority_is_not_the_current_directory(kind: Any, field: str, good: bytes) -> None:
    with pytest.raises(sp.TLSConfigError, match=f"{field} is empty"):
        kind(certificate=good, **{field: ""})


@BOTH
def test_pem_in_a_str_is_reported_and_not_shown(kind: Any, good: bytes) -> None:
    with pytest.raises(sp.TLSConfigError, match="private_key is PEM text in a str, .*: give the text as bytes") as caught:
        kind(certificate=good, private_key=split(good)[0].decode())
    assert "BEGIN" not in str(caught.value)
    with pytest.raises(TypeError) as wrong:
        sp.Req0(tls=split(good)[0].decode())  # type: ignore[arg-type]
    assert "BEGIN" not in str(wrong.value)


@pytest.mark.parametrize("field", ["session_reuse", "insecure_skip_verification"])
@pytest.mark.parametrize("value", [None, 0, 1, "no"])
def test_a_switch_of_a_client_is_true_or_false(field: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{field} must be True or False, not {value!r}"):
        sp.TLSClientConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"), [("session_reuse", None), *((f, v) for f in ("session_reuse", "require_client_certificate") for v in (0, 1, "no"))]
)
def test_a_switch_of_a_server_is_true_or_false(field: str, value: object, good: bytes) -> None:
    with pytest.raises(TypeError, match=f"{field} must be True or False, not {value!r}"):
        sp.TLSServerConfig(certificate=good, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), (1.5, TypeError), (None, TypeError)])
def test_a_client_remembers_one_server_at_least(value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="session_cache_size must be "):
        sp.TLSClientConfig(session_cache_size=value)  # type: ignore[arg-type]


@BOTH
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1, ValueError), (float("inf"), ValueError), ("60", TypeError), (True, TypeError)]
)
def test_files_are_looked_at_every_so_many_seconds(kind: Any, value: object, error: type[Exception], good: bytes) -> None:
    with pytest.raises(error, match="watch_files must be a "):
        kind(certificate=good, watch_files=value)


@BOTH
@pytest.mark.parametrize("value", [5, "context", object(), SSL.Context])
def test_a_ready_made_context_is_one_of_pyopenssl(kind: Any, value: object) -> None:
    with pytest.raises((TypeError, sp.TLSConfigError), match="context must be an OpenSSL.SSL.Context, not "):
        kind(context=value)


@BOTH
def test_fields_have_names_and_known_ones_only(kind: Any, good: bytes) -> None:
    with pytest.raises(TypeError):
        kind(good)
    with pytest.raises(TypeError, match="verify"):
        kind(certificate=good, verify=True)


@BOTH
def test_a_configuration_cannot_be_changed(kind: Any, good: bytes) -> None:
    config = kind(certificate=good)
    for field in attrs.fields(kind):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(config, field.name, None)


@BOTH
def test_nothing_that_is_secret_is_shown(kind: Any, authority: Authority, good: bytes) -> None:
    trust = {"client_ca" if kind is sp.TLSServerConfig else "ca": authority.pem}
    secret = encrypt(good, serialization.PrivateFormat.PKCS8, b"open sesame")
    config = kind(certificate=secret, private_key=secret, password="open sesame", revoked=authority.revoke(), **trust)
    shown = f"{config!r} {config}"
    assert "sesame" not in shown
    assert "password" not in shown
    assert "BEGIN" not in shown
    lines = [line for pem in (secret, authority.pem) for line in pem.decode().splitlines() if len(line) > 20]
    assert not [line for line in lines if line in shown]
    assert f"certificate=<{len(secret)} bytes of PEM>" in shown


def test_paths_are_shown(good: bytes, write: Callable[..., Path]) -> None:
    path = write(good)
    assert f"certificate={str(path)!r}" in repr(sp.TLSServerConfig(certificate=str(path)))


def test_an_error_in_a_configuration_is_an_error_of_the_library_and_a_value_error() -> None:
    assert issubclass(sp.TLSConfigError, sp.Error)
    assert issubclass(sp.TLSConfigError, ValueError)


# Files.


def source_fields() -> list[tuple[Any, str]]:
    server = [(sp.TLSServerConfig, field) for field in ("certificate", "private_key", "client_ca", "revoked")]
    return server + [(sp.TLSClientConfig, field) for field in ("certificate", "private_key", "ca", "revoked")]


@pytest.mark.parametrize(("kind", "field"), source_fields())
class TestEverySource:
    def check(self, kind: Any, field: str, value: object, good: bytes, *words: str) -> None:
        with pytest.raises(sp.TLSConfigError) as caught:
            kind(**{"certificate": good, field: value})
        for word in (field, *words):
            assert word in str(caught.value)

    def test_a_file_that_is_missing_is_named(self, kind: Any, field: str, good: bytes, tmp_path: Path) -> None:
        path = tmp_path / "missing.pem"
        for value in (path, str(path)):
            self.check(kind, field, value, good, repr(str(path)), "No such file or directory")

    def test_a_path_that_no_system_takes_is_named(self, kind: Any, field: str, good: bytes) -> None:
        self.check(kind, field, "a\0b.pem", good, repr(f"{os.getcwd()}/a\0b.pem"), "null")

    def test_a_file_that_cannot_be_read_is_named(
        self, kind: Any, field: str, good: bytes, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write(good, "locked.pem")
        read = Path.read_bytes

        def refuse(self: Path) -> bytes:
            if self == path:
                raise PermissionError(13, "Permission denied", str(self))
            return read(self)

        monkeypatch.setattr(Path, "read_bytes", refuse)
        self.check(kind, field, path, good, repr(str(path)), "Permission denied")

    def test_an_empty_file_has_nothing_in_it(self, kind: Any, field: str, good: bytes, write: Callable[..., Path]) -> None:
        path = write(b"", "empty.pem")
        self.check(kind, field, path, good, repr(str(path)), "contains no ", "expected PEM")

    def test_a_file_of_something_else_has_nothing_in_it(self, kind: Any, field: str, good: bytes) -> None:
        self.check(kind, field, os.urandom(500).replace(b"-", b""), good, "PEM bytes", "contains no ", "expected PEM")


@pytest.mark.parametrize("field", ["certificate", "private_key", "revoked"])
@BOTH
def test_a_directory_is_no_file(kind: Any, field: str, good: bytes, tmp_path: Path) -> None:
    with pytest.raises(sp.TLSConfigError, match=f"{field} {str(tmp_path)!r} cannot be read: Is a directory"):
        kind(**{"certificate": good, field: tmp_path})


@BOTH
def test_der_is_no_pem(kind: Any, good: bytes, write: Callable[..., Path]) -> None:
    certificate = x509.load_pem_x509_certificate(split(good)[1])
    key = serialization.load_pem_private_key(split(good)[0], None)
    der = write(certificate.public_bytes(serialization.Encoding.DER), "certificate.der")
    with pytest.raises(sp.TLSConfigError, match=r"certificate '.*certificate.der' contains no certificate: expected PEM"):
        kind(certificate=der, private_key=split(good)[0])
    der = write(key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()), "key.der")
    with pytest.raises(sp.TLSConfigError, match=r"private_key '.*key.der' contains no private key: expected PEM"):
        kind(certificate=good, private_key=der)


@BOTH
def test_a_certificate_of_broken_base64_is_reported(kind: Any, good: bytes, write: Callable[..., Path]) -> None:
    key, certificate = split(good)
    lines = certificate.splitlines(keepends=True)
    path = write(key + b"".join([lines[0], b"!!! not base64 !!!\n", *lines[2:]]), "broken.pem")
    with pytest.raises(sp.TLSConfigError, match=r"certificate '.*broken.pem' contains a broken certificate: "):
        kind(certificate=path)


@BOTH
def test_a_certificate_that_was_cut_off_is_reported(kind: Any, good: bytes, write: Callable[..., Path]) -> None:
    path = write(good[:-60], "half.pem")
    with pytest.raises(sp.TLSConfigError, match=r"certificate '.*half.pem' is cut off: 0 of 1 certificates are complete"):
        kind(certificate=path)


@BOTH
def test_a_key_of_broken_base64_is_reported(kind: Any, good: bytes, write: Callable[..., Path]) -> None:
    key, certificate = split(good)
    lines = key.splitlines(keepends=True)
    path = write(b"".join([lines[0], b"!!! not base64 !!!\n", *lines[2:]]), "broken.key")
    with pytest.raises(sp.TLSConfigError, match=r"private_key '.*broken.key' contains a broken private key"):
        kind(certificate=certificate, private_key=path)
    path = write(key[:40], "half.key")
    with pytest.raises(sp.TLSConfigError, match=r"private_key '.*half.key' contains a broken private key"):
        kind(certificate=certificate, private_key=path)


@BOTH
def test_text_around_the_pem_does_no_harm(kind: Any, good: bytes) -> None:
    key, certificate = split(good)
    kind(certificate=b"Subject: somebody\r\n" + certificate.replace(b"\n", b"\r\n") + b"and the key:\n" + key + b"end\n")


@BOTH
def test_a_certificate_without_its_key_asks_for_it(kind: Any, good: bytes, write: Callable[..., Path]) -> None:
    path = write(split(good)[1])
    with pytest.raises(sp.TLSConfigError, match=rf"certificate {str(path)!r} contains no private key: give private_key="):
        kind(certificate=path)


@BOTH
def test_a_key_without_a_certificate_is_reported(kind: Any, good: bytes) -> None:
    with pytest.raises(sp.TLSConfigError, match="private_key was given without a certificate"):
        kind(private_key=split(good)[0])
    with pytest.raises(sp.TLSConfigError, match="password was given without a certificate"):
        kind(password="open sesame")


@pytest.mark.parametrize("value", [True, False])
def test_to_require_client_certificates_takes_their_authority(value: bool, good: bytes) -> None:
    with pytest.raises(sp.TLSConfigError, match="require_client_certificate has no effect without client_ca"):
        sp.TLSServerConfig(certificate=good, require_client_certificate=value)


@BOTH
def test_a_file_that_is_cut_off_in_its_second_certificate_is_reported(kind: Any, authority: Authority, good: bytes) -> None:
    chain = good + authority.pem
    kind(certificate=chain)
    with pytest.raises(sp.TLSConfigError, match=r"is cut off: 1 of 2 certificates are complete"):
        kind(certificate=chain[:-40])


def test_a_list_that_is_cut_off_is_reported(authority: Authority, good: bytes) -> None:
    with pytest.raises(sp.TLSConfigError, match="is cut off: 1 of 2 revocation lists are complete"):
        sp.TLSServerConfig(certificate=good, client_ca=authority.pem, revoked=authority.revoke() + authority.revoke()[:-40])


@BOTH
def test_the_certificate_of_the_key_comes_first(kind: Any, authority: Authority, good: bytes) -> None:
    key, certificate = split(good)
    with pytest.raises(sp.TLSConfigError, match="the certificate of the private key must come first"):
        kind(certificate=authority.pem + certificate, private_key=key)


@BOTH
def test_a_key_of_openssh_is_reported_as_one(kind: Any, good: bytes) -> None:
    key = serialization.load_pem_private_key(split(good)[0], None)
    ssh = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    with pytest.raises(sp.TLSConfigError, match="OpenSSH's own format: convert it with ssh-keygen -p -m PEM"):
        kind(certificate=good, private_key=ssh)


@BOTH
def test_text_after_a_plain_key_does_not_make_it_an_encrypted_one(kind: Any, good: bytes) -> None:
    key, certificate = split(good)
    kind(certificate=certificate, private_key=key + b"# the ENCRYPTED one is elsewhere\n")


@BOTH
def test_key_and_certificate_can_stand_in_two_files(kind: Any, good: bytes, write: Callable[..., Path]) -> None:
    key, certificate = split(good)
    kind(certificate=write(certificate, "a.pem"), private_key=str(write(key, "a.key")))


@BOTH
def test_the_key_must_be_that_of_the_certificate(kind: Any, authority: Authority, good: bytes, write: Callable[..., Path]) -> None:
    certificate, key = write(split(good)[1], "own.pem"), write(split(authority.issue("localhost"))[0], "other.key")
    with pytest.raises(sp.TLSConfigError) as caught:
        kind(certificate=certificate, private_key=key)
    assert str(caught.value) == (
        f"the private key in private_key {str(key)!r} does not belong to the certificate in certificate {str(certificate)!r}"
    )


def test_a_server_needs_a_certificate() -> None:
    with pytest.raises(sp.TLSConfigError, match="a server needs a certificate: give certificate="):
        sp.TLSServerConfig()


@BOTH
def test_a_certificate_of_our_own_that_has_expired_is_reported(kind: Any, authority: Authority, write: Callable[..., Path]) -> None:
    path = write(authority.issue_flawed("localhost", ends=NOW - HOUR), "old.pem")
    with pytest.raises(sp.TLSConfigError, match=rf"certificate {str(path)!r} expired on {NOW - HOUR:%Y-%m-%d %H:%M} UTC"):
        kind(certificate=path)


@BOTH
def test_a_certificate_of_our_own_that_is_not_yet_valid_is_reported(kind: Any, authority: Authority, write: Callable[..., Path]) -> None:
    path = write(authority.issue_flawed("localhost", begins=NOW + HOUR), "new.pem")
    with pytest.raises(sp.TLSConfigError, match=rf"certificate {str(path)!r} is not valid before {NOW + HOUR:%Y-%m-%d %H:%M} UTC"):
        kind(certificate=path)


# Encrypted keys.

ENCRYPTED = pytest.mark.parametrize("style", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])


@BOTH
@ENCRYPTED
class TestAnEncryptedKey:
    @pytest.fixture
    def path(self, style: serialization.PrivateFormat, authority: Authority, write: Callable[..., Path]) -> Path:
        return write(encrypt(ec_certificate(authority), style, "s\N{LATIN SMALL LETTER E WITH ACUTE}same".encode()), "encrypted.pem")

    @pytest.mark.parametrize("password", ["s\N{LATIN SMALL LETTER E WITH ACUTE}same", b"s\xc3\xa9same"])
    def test_is_opened_by_its_password(self, kind: Any, path: Path, password: str | bytes) -> None:
        kind(certificate=path, password=password)

    @pytest.mark.parametrize("password", ["wrong", b"wrong", b"\0\xff"])
    def test_is_not_opened_by_another_one(self, kind: Any, path: Path, password: str | bytes) -> None:
        with pytest.raises(sp.TLSConfigError, match=rf"certificate {str(path)!r} cannot be decrypted: the password is wrong") as caught:
            kind(certificate=path, password=password)
        assert "'wrong'" not in str(caught.value)

    def test_is_not_opened_by_an_empty_one(self, kind: Any, path: Path) -> None:
        with pytest.raises(sp.TLSConfigError, match=rf"certificate {str(path)!r} "):
            kind(certificate=path, password="")

    def test_asks_for_its_password_and_not_at_the_terminal(self, kind: Any, path: Path) -> None:
        with pytest.raises(sp.TLSConfigError, match=rf"certificate {str(path)!r} is encrypted: give password="):
            kind(certificate=path)

    def test_can_stand_in_a_file_of_its_own(self, kind: Any, path: Path, write: Callable[..., Path]) -> None:
        key, certificate = split(path.read_bytes())
        key_path = write(key, "encrypted.key")
        kind(certificate=certificate, private_key=key_path, password=b"s\xc3\xa9same")
        with pytest.raises(sp.TLSConfigError, match=rf"private_key {str(key_path)!r} is encrypted: give password="):
            kind(certificate=certificate, private_key=key_path)


def ec_certificate(authority: Authority) -> bytes:
    pem = authority.issue_flawed("localhost", ends=NOW + DAY)
    assert isinstance(serialization.load_pem_private_key(split(pem)[0], None), ec.EllipticCurvePrivateKey)
    return pem


@BOTH
def test_a_password_for_a_key_that_is_not_encrypted_does_no_harm(kind: Any, good: bytes) -> None:
    kind(certificate=good, password="unused")


# Authorities.


def trusting(kind: Any, source: object, good: bytes) -> Any:
    return kind(certificate=good, **{"client_ca" if kind is sp.TLSServerConfig else "ca": source})


@BOTH
def test_a_directory_of_authorities_needs_no_hashed_names(kind: Any, authority: Authority, good: bytes, tmp_path: Path) -> None:
    (tmp_path / "ours.crt").write_bytes(authority.pem)
    (tmp_path / "README").write_bytes(b"what this is\xff")
    (tmp_path / "below").mkdir()
    trusting(kind, tmp_path, good)
    trusting(kind, str(tmp_path), good)


@BOTH
def test_an_empty_directory_of_authorities_is_an_error(kind: Any, good: bytes, tmp_path: Path) -> None:
    with pytest.raises(sp.TLSConfigError, match=f"ca: no file in directory {str(tmp_path)!r} contains a certificate"):
        trusting(kind, tmp_path, good)
    (tmp_path / "README").write_bytes(b"nothing here")
    with pytest.raises(sp.TLSConfigError, match=f"ca: no file in directory {str(tmp_path)!r} contains a certificate"):
        trusting(kind, tmp_path, good)


@BOTH
def test_a_broken_certificate_in_a_directory_is_reported_with_its_file(
    kind: Any, authority: Authority, good: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a.pem").write_bytes(authority.pem)
    (tmp_path / "b.pem").write_bytes(authority.pem[:100] + authority.pem[140:])
    with pytest.raises(sp.TLSConfigError, match=rf"ca {str(tmp_path / 'b.pem')!r} contains a broken certificate"):
        trusting(kind, tmp_path, good)


@BOTH
def test_a_directory_that_cannot_be_listed_is_named(kind: Any, good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(sp.TLSConfigError, match=f"ca.* {str(tmp_path)!r} .*Permission denied"):
        trusting(kind, tmp_path, good)


@BOTH
def test_the_same_authority_twice_is_one(kind: Any, authority: Authority, good: bytes) -> None:
    trusting(kind, authority.pem + authority.pem, good)


# Revocation lists.


@BOTH
def test_a_file_that_is_not_a_revocation_list_is_reported(kind: Any, good: bytes, write: Callable[..., Path]) -> None:
    path = write(good, "list.pem")
    with pytest.raises(sp.TLSConfigError, match=rf"revoked {str(path)!r} contains no revocation list: expected PEM"):
        kind(certificate=good, revoked=path)


@BOTH
def test_a_broken_revocation_list_is_reported(kind: Any, authority: Authority, good: bytes, write: Callable[..., Path]) -> None:
    lines = authority.revoke().splitlines(keepends=True)
    path = write(b"".join([lines[0], b"!!!\n", *lines[2:]]), "list.pem")
    with pytest.raises(sp.TLSConfigError, match=rf"revoked {str(path)!r} contains a broken revocation list"):
        kind(certificate=good, revoked=path)


@BOTH
def test_a_revocation_list_that_is_out_of_date_is_reported(
    kind: Any, authority: Authority, good: bytes, write: Callable[..., Path]
) -> None:
    path = write(authority.revoke(ends=NOW - HOUR), "list.pem")
    with pytest.raises(sp.TLSConfigError) as caught:
        kind(certificate=good, revoked=path)
    issuer = authority.certificate.subject.rfc4514_string()
    assert str(caught.value) == f"revoked {str(path)!r}: the list of {issuer} is out of date since {NOW - HOUR:%Y-%m-%d %H:%M} UTC"


@BOTH
def test_several_revocation_lists_can_stand_in_one_file(kind: Any, authority: Authority, good: bytes) -> None:
    trust = {"client_ca": authority.pem} if kind is sp.TLSServerConfig else {}
    kind(certificate=good, revoked=authority.revoke() + Authority().revoke(good), **trust)
    with pytest.raises(sp.TLSConfigError, match="is out of date since"):
        kind(certificate=good, revoked=authority.revoke() + Authority().revoke(ends=NOW - HOUR))


def test_revocation_lists_are_of_no_use_to_a_server_that_asks_for_no_certificates(authority: Authority, good: bytes) -> None:
    with pytest.raises(sp.TLSConfigError, match="give client_ca"):
        sp.TLSServerConfig(certificate=good, revoked=authority.revoke())


# Ciphers and versions.


@BOTH
def test_an_unknown_cipher_is_named(kind: Any, good: bytes) -> None:
    with pytest.raises(sp.TLSConfigError, match="ciphers 'ROT13': OpenSSL knows none of them"):
        kind(certificate=good, ciphers="ROT13")


@BOTH
def test_an_unknown_cipher_suite_is_named(kind: Any, good: bytes) -> None:
    with pytest.raises(sp.TLSConfigError, match="ciphersuites 'ROT13': OpenSSL does not know them"):
        kind(certificate=good, ciphersuites="ROT13")


@BOTH
def test_known_ciphers_and_groups_are_taken(kind: Any, good: bytes) -> None:
    kind(certificate=good, ciphers="ECDHE-ECDSA-AES256-GCM-SHA384", ciphersuites="TLS_AES_128_GCM_SHA256", group="P-384")


@BOTH
def test_the_newest_version_is_not_older_than_the_oldest(kind: Any, good: bytes) -> None:
    with pytest.raises(sp.TLSConfigError, match="maximum_version TLSv1.2 is older than minimum_version TLSv1.3"):
        kind(certificate=good, minimum_version="TLSv1.3", maximum_version="TLSv1.2")
    kind(certificate=good, minimum_version="TLSv1.3", maximum_version="TLSv1.3")
    kind(certificate=good, minimum_version="TLSv1.2", maximum_version="TLSv1.2")


# The key log.


@BOTH
@pytest.mark.parametrize(("name", "reason"), [(".", "Is a directory"), ("missing/keys", "No such file or directory")])
def test_a_key_log_that_cannot_be_written_is_named(kind: Any, name: str, reason: str, good: bytes, tmp_path: Path) -> None:
    with pytest.raises(sp.TLSConfigError, match=f"key_log_file: cannot write {str(tmp_path / name)!r}: {reason}"):
        kind(certificate=good, key_log_file=tmp_path / name)


@BOTH
def test_a_key_log_is_logged_as_a_warning_and_only_its_owner_can_read_it(
    kind: Any, good: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    with caplog.at_level(logging.WARNING, "sp"):
        kind(certificate=good, key_log_file=str(path))
    assert [record.getMessage() for record in caplog.records] == [f"TLS: the secrets of all connections are written to {path}"]
    assert path.stat().st_mode & 0o777 == 0o600


# Ready-made contexts.


@BOTH
def test_a_ready_made_context_is_used_as_it_is(kind: Any) -> None:
    context = ready_made()
    assert kind(context=context).contexts.current.context is context


def test_a_ready_made_context_of_a_client_must_verify() -> None:
    with pytest.raises(sp.TLSConfigError, match=r"the ready-made context does not verify the server: call its set_verify\(VERIFY_PEER\)"):
        sp.TLSClientConfig(context=ready_made(verify=False))
    sp.TLSClientConfig(context=ready_made(verify=False), insecure_skip_verification=True)


def test_a_ready_made_context_of_a_server_need_not_ask_for_certificates() -> None:
    sp.TLSServerConfig(context=ready_made(verify=False))


ABOUT_CONTEXT: dict[str, object] = {
    "certificate": "a.pem",
    "private_key": "a.key",
    "password": "x",
    "revoked": "crl.pem",
    "max_chain_depth": 9,
    "minimum_version": "TLSv1.3",
    "maximum_version": "TLSv1.3",
    "ciphers": "HIGH",
    "ciphersuites": "TLS_AES_128_GCM_SHA256",
    "group": "P-256",
    "key_log_file": "keys",
    "watch_files": 60,
}


@BOTH
@pytest.mark.parametrize("field", ABOUT_CONTEXT)
def test_a_ready_made_context_leaves_no_room_for_other_fields(kind: Any, field: str) -> None:
    with pytest.raises(sp.TLSConfigError, match=f"context= replaces {field}, so "):
        kind(context=ready_made(), **{field: ABOUT_CONTEXT[field]})


@pytest.mark.parametrize(("field", "value"), [("client_ca", "ca.pem"), ("require_client_certificate", False)])
def test_a_ready_made_context_of_a_server_decides_about_clients(field: str, value: object) -> None:
    with pytest.raises(sp.TLSConfigError, match=f"context= replaces {field}, so "):
        sp.TLSServerConfig(context=ready_made(), **{field: value})  # type: ignore[arg-type]


def test_a_ready_made_context_of_a_client_replaces_ca() -> None:
    with pytest.raises(sp.TLSConfigError, match="context= replaces (ca, max_chain_depth|max_chain_depth, ca), so "):
        sp.TLSClientConfig(context=ready_made(), ca="ca.pem", max_chain_depth=3)


def test_beside_a_ready_made_context_there_is_room_for_names_and_sessions() -> None:
    sp.TLSClientConfig(context=ready_made(), server_name="a.example", session_reuse=False, session_cache_size=3)


# Where tls= belongs.

PLAIN = "tcp://127.0.0.1:0"
ENCRYPTED_URL = "tls+tcp://127.0.0.1:0"
SHOWN = re.escape(repr(ENCRYPTED_URL))


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:1", "ipc:///nowhere/s", "inproc://tls-config"])
async def test_tls_for_a_call_with_an_unencrypted_url_is_refused(url: str, authority: Authority) -> None:
    async with sp.Bus0() as bus:
        with pytest.raises(sp.TLSConfigError, match=f"tls= was given to dial {url!r}, which is not encrypted: expected tls"):
            await bus.dial(url, tls=authority.client())
        with pytest.raises(sp.TLSConfigError, match=f"tls= was given to listen on {url!r}, which is not encrypted: expected tls"):
            await bus.listen(url, tls=authority.server())
        assert (bus.dialers, bus.listeners) == ((), ())


async def test_a_socket_with_tls_does_not_talk_without_over_the_network(authority: Authority) -> None:
    for config in (authority.client(), authority.server()):
        async with sp.Bus0(tls=config) as bus:
            for wait in (True, False):
                with pytest.raises(sp.TLSConfigError, match="cannot dial 'tcp://127.0.0.1:1': the socket has tls=, and this URL is not"):
                    await bus.dial("tcp://127.0.0.1:1", wait=wait)
            with pytest.raises(sp.TLSConfigError, match=f"cannot listen on {PLAIN!r}: the socket has tls=, and this URL is not encrypted"):
                await bus.listen(PLAIN)
            assert (bus.dialers, bus.listeners) == ((), ())


async def test_a_socket_made_with_tls_and_an_unencrypted_url_does_not_open(authority: Authority) -> None:
    for sock in (sp.Bus0(dial="tcp://127.0.0.1:1", tls=authority.client()), sp.Bus0(listen=PLAIN, tls=authority.server())):
        with pytest.raises(sp.TLSConfigError, match=r"'tcp://127.0.0.1:\d': the socket has tls=, and this URL is not encrypted"):
            async with sock:
                pytest.fail("it has opened")


async def test_within_the_machine_a_socket_with_tls_talks_without(authority: Authority, tmp_path: Path) -> None:
    for url in (f"ipc://{tmp_path}/s", "inproc://tls-config-within"):
        async with sp.Rep0(listen=url, tls=authority.server()) as rep, sp.Req0(tls=authority.client()) as req:
            await req.dial(url)
            await req.send(b"hello")
            assert await rep.receive() == b"hello"
            assert req.pipes[0].tls is None


async def test_listening_needs_a_certificate() -> None:
    async with sp.Rep0() as rep:
        with pytest.raises(sp.TLSConfigError, match=rf"cannot listen on {SHOWN} without a certificate: give tls=sp.TLSServerConfig"):
            await rep.listen(ENCRYPTED_URL)
    with pytest.raises(sp.TLSConfigError, match="without a certificate"):
        async with sp.Rep0(listen=ENCRYPTED_URL):
            pytest.fail("it has opened")


async def test_listening_takes_a_servers_configuration_and_dialing_a_clients(authority: Authority) -> None:
    server, client = authority.server(), authority.client()
    async with sp.Bus0() as bus:
        with pytest.raises(sp.TLSConfigError, match=rf"to listen on {SHOWN}, expected tls=sp.TLSServerConfig\(...\), not TLSClientConfig"):
            await bus.listen(ENCRYPTED_URL, tls=client)  # type: ignore[arg-type]
        with pytest.raises(
            sp.TLSConfigError, match=r"'tls.tcp://127.0.0.1:1', expected tls=sp.TLSClientConfig\(...\), not TLSServerConfig"
        ):
            await bus.dial("tls+tcp://127.0.0.1:1", tls=server)  # type: ignore[arg-type]
    async with sp.Bus0(tls=client) as bus:
        with pytest.raises(sp.TLSConfigError, match="expected tls=sp.TLSServerConfig"):
            await bus.listen(ENCRYPTED_URL)
        await bus.listen(ENCRYPTED_URL, tls=server)
        await bus.dial(bus.url)
    async with sp.Bus0(tls=server) as bus:
        with pytest.raises(sp.TLSConfigError, match="expected tls=sp.TLSClientConfig"):
            await bus.dial("tls+tcp://127.0.0.1:1")


@pytest.mark.parametrize("value", [True, {"ca": "ca.pem"}, "ca.pem", sp.TLSClientConfig])
async def test_tls_must_be_a_configuration(value: object) -> None:
    with pytest.raises(TypeError, match="tls must be a TLSServerConfig or a TLSClientConfig, not "):
        sp.Bus0(tls=value)  # type: ignore[arg-type]
    async with sp.Bus0() as bus:
        with pytest.raises(TypeError, match=rf"TLSClientConfig\(...\), not {type(value).__name__}"):
            await bus.dial("tls+tcp://127.0.0.1:1", tls=value)  # type: ignore[arg-type]


# One context.


@pytest.mark.parametrize("count", [50])
async def test_many_connections_of_a_configuration_share_one_context_and_read_nothing_again(
    count: int, authority: Authority, good: bytes, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    read: list[Path] = []
    make, read_bytes = SSL.Context.__init__, Path.read_bytes

    def counting_make(self: SSL.Context, method: int) -> None:
        made.append(self)
        make(self, method)

    def counting_read(self: Path) -> bytes:
        read.append(self)
        return read_bytes(self)

    ca, own = write(authority.pem, "ca.pem"), write(good, "own.pem")
    monkeypatch.setattr(SSL.Context, "__init__", counting_make)
    monkeypatch.setattr(Path, "read_bytes", counting_read)
    server, client = sp.TLSServerConfig(certificate=own), sp.TLSClientConfig(ca=ca, server_name="localhost")
    assert (len(made), read) == (2, [own, ca])
    ca.unlink()
    own.unlink()
    with trio.fail_after(20):
        async with sp.Rep0(listen=ENCRYPTED_URL, tls=server) as rep, sp.Req0(tls=client) as req:
            for _ in range(count):
                await req.dial(rep.url)
            await rep.wait_for_peers(count)
    assert (len(made), read) == (2, [own, ca])


def test_a_configuration_cannot_be_pickled_since_it_may_hold_keys(good: bytes) -> None:
    with pytest.raises(TypeError, match="cannot be pickled: create it in the process that uses it"):
        pickle.dumps(sp.TLSServerConfig(certificate=good))
