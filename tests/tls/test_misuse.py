"""Mistakes of users, and surprises for them."""

from __future__ import annotations

import datetime
import logging
import os
from pathlib import Path
from typing import Self

import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL, crypto

import sp
from tests.tls.authority import DAY, NOW, Authority
from tests.transports.wire import expect

URL = "tls+tcp://127.0.0.1:0"


async def first_reply(url: str, tls: sp.TLSClientConfig) -> bool:
    """Ask once; return whether the session was resumed."""
    async with sp.Req0(tls=tls) as req:
        await req.dial(url)
        assert await req.request(b"?") == b"!"
        info = req.pipes[0].tls
        assert info is not None
        return info.resumed


async def answer(rep: sp.Rep0) -> None:
    async for request in rep.requests():
        await request.reply(b"!")


@pytest.mark.parametrize("reuse", [True, False])
async def test_a_ready_made_server_that_asks_for_certificates_serves_clients_that_reconnect(authority: Authority, reuse: bool) -> None:
    pem = authority.issue("127.0.0.1")
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_privatekey(serialization.load_pem_private_key(pem, None))  # type: ignore[arg-type]
    context.use_certificate(x509.load_pem_x509_certificate(pem[pem.index(b"-----BEGIN CERT") :]))
    store = context.get_cert_store()
    assert store is not None
    store.add_cert(crypto.X509.from_cryptography(authority.certificate))
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    client = authority.client(certificate=authority.issue("client-7"))
    with trio.fail_after(10):
        async with sp.Rep0(listen=URL, tls=sp.TLSServerConfig(context=context, session_reuse=reuse)) as rep, trio.open_nursery() as nursery:
            nursery.start_soon(answer, rep)
            assert [await first_reply(rep.url, client) for _ in range(3)] == [False, reuse, reuse]
            nursery.cancel_scope.cancel()


def test_a_context_that_was_used_before_is_reported(authority: Authority) -> None:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    SSL.Connection(context)
    with pytest.raises(sp.TLSConfigError, match="was used before"):
        sp.TLSServerConfig(context=context)


async def test_an_intermediate_that_is_revoked_ends_all_below_it() -> None:
    root = Authority()
    child = root.ca.create_child_ca()
    pem = child.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.bytes()
    lists = [_empty_list(child)]
    for revoked, accepted in ((root.revoke(), True), (root.revoke(child.cert_pem.bytes()), False)):
        client = sp.TLSClientConfig(ca=root.pem, revoked=b"".join([*lists, revoked]))
        async with sp.Rep0(listen=URL, tls=sp.TLSServerConfig(certificate=pem)) as rep, sp.Req0(tls=client) as req:
            with trio.fail_after(10):
                if accepted:
                    await req.dial(rep.url)
                else:
                    with pytest.raises(sp.DialError, match="certificate revoked"):
                        await req.dial(rep.url)


def _empty_list(ca: trustme.CA) -> bytes:
    key = serialization.load_pem_private_key(ca.private_key_pem.bytes(), None)
    issuer = x509.load_pem_x509_certificate(ca.cert_pem.bytes()).subject
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer).last_update(NOW - DAY).next_update(NOW + DAY)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]


async def test_a_certificate_with_a_common_name_and_no_other_is_refused_as_a_bad_one_on_both_sides() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    pem = certificate + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    client = sp.TLSClientConfig(ca=certificate, server_name="localhost")
    async with sp.Rep0(listen=URL, tls=sp.TLSServerConfig(certificate=pem)) as rep, sp.Req0(tls=client) as req:
        events = rep.events()
        with trio.fail_after(10):
            with pytest.raises(sp.DialError, match="subjectAltName") as caught:
                await req.dial(rep.url)
            assert isinstance(caught.value.__cause__, sp.AuthenticationError)
            event = await expect(events, sp.EventKind.REFUSED)
        assert isinstance(event.error, sp.AuthenticationError)
        assert "the client refused our certificate: tls alert bad certificate" in event.reason


def test_skipped_verification_is_logged_once_for_each_configuration(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem)
    with caplog.at_level(logging.WARNING, "sp"):
        config = sp.TLSClientConfig(ca=ca, insecure_skip_verification=True)
        config.reload()
        sp.TLSClientConfig(context=SSL.Context(SSL.TLS_CLIENT_METHOD), insecure_skip_verification=True)
    assert caplog.text.count("insecure_skip_verification") == 2


async def test_every_socket_that_shares_a_configuration_tells_of_its_reloads(
    authority: Authority, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "server.pem"
    path.write_bytes(authority.issue("127.0.0.1"))
    tls = sp.TLSServerConfig(certificate=path, watch_files=10)
    async with sp.Rep0(listen=URL, tls=tls) as rep, sp.Pub0(listen=URL, tls=tls) as pub:
        streams = rep.events(), pub.events()
        for content, kind in ((b"half", sp.EventKind.RELOAD_FAILED), (authority.issue("127.0.0.1"), sp.EventKind.RELOADED)):
            path.write_bytes(content)
            with trio.fail_after(60):
                for events in streams:
                    assert (await anext(events)).kind is kind


def test_a_reload_that_has_failed_is_tried_again_although_no_file_has_changed(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "server.pem"
    path.write_bytes(authority.issue("127.0.0.1"))
    tls = sp.TLSServerConfig(certificate=path)
    path.write_bytes(authority.issue_flawed("127.0.0.1", begins=NOW + DAY / 2))
    tls.contexts.check_files()
    assert "is not valid before" in tls.contexts.status[1]
    old = tls.contexts.current

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Self:
            return cls.fromtimestamp((NOW + DAY * 0.75).timestamp(), tz)

    monkeypatch.setattr(datetime, "datetime", Tomorrow)
    tls.contexts.check_files()
    assert tls.contexts.status == (2, "")
    assert tls.contexts.current is not old


async def test_connections_succeed_again_when_the_key_log_works_again(authority: Authority, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    client = authority.client(key_log_file=folder / "log")
    async with sp.Rep0(listen=URL, tls=authority.server()) as rep:
        with trio.fail_after(10):
            events = rep.events()
            (folder / "log").unlink()
            folder.rmdir()
            async with sp.Req0(tls=client) as req:
                with pytest.raises(sp.DialError, match="key_log_file: cannot write"):
                    await req.dial(rep.url)
            assert (await anext(events)).kind is sp.EventKind.REFUSED
            folder.mkdir()
            for _ in range(3):
                async with sp.Req0(tls=client) as req:
                    await req.dial(rep.url)


def test_revocation_lists_beside_no_verification_are_refused(authority: Authority) -> None:
    with pytest.raises(sp.TLSConfigError, match="revoked has no effect with insecure_skip_verification"):
        authority.client(insecure_skip_verification=True, revoked=authority.revoke())


def test_a_file_of_the_same_size_and_a_revocation_list_are_seen_to_change(authority: Authority, tmp_path: Path) -> None:
    ca, revoked = tmp_path / "ca.pem", tmp_path / "revoked.pem"
    ca.write_bytes(authority.pem)
    revoked.write_bytes(authority.revoke())
    tls = sp.TLSServerConfig(certificate=authority.issue("localhost"), client_ca=ca, revoked=revoked)
    tls.contexts.check_files()
    assert tls.contexts.status == (1, "")
    os.utime(ca, ns=(0, ca.stat().st_mtime_ns + 1))
    tls.contexts.check_files()
    assert tls.contexts.status == (2, "")
    revoked.write_bytes(authority.revoke(authority.issue("somebody")))
    tls.contexts.check_files()
    assert tls.contexts.status == (3, "")
