"""Verification over real sockets: every flaw of a certificate, and the error on either side."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeVar, cast

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL, crypto

import sp
from sp.tls import context as tls_context
from sp.tls import session as tls_session
from sp.tls.session import TLSSession
from tests.tls.authority import CLIENT, DAY, NOW, SERVER, Authority
from tests.tls.test_session import End, converse, end_all
from tests.transports.wire import REP, REQ, expect, until

URL = "tls+tcp://127.0.0.1:0"
HOUR = datetime.timedelta(hours=1)
Version = Literal["TLSv1.2", "TLSv1.3"]
Config = TypeVar("Config", sp.TLSServerConfig, sp.TLSClientConfig)


@pytest.fixture(params=["TLSv1.2", "TLSv1.3"])
def version(request: pytest.FixtureRequest) -> Version:
    return cast("Version", request.param)


@pytest.fixture(scope="module")
def stranger() -> Authority:
    """An authority that neither side trusts."""
    return Authority()


def to(host: str, listener: sp.Listener) -> str:
    """Return the URL of *listener* with another host."""
    return f"tls+tcp://{host}:{listener.url.rpartition(':')[2]}"


@asynccontextmanager
async def meeting(
    server: sp.TLSServerConfig, client: sp.TLSClientConfig, host: str = "127.0.0.1", **options: Any
) -> AsyncIterator[tuple[sp.Pipe, sp.Pipe]]:
    """Yield the two ends of a pipe, the dialer's first.  *options* are for the listening socket."""
    with trio.fail_after(10):
        async with sp.Rep0(listen=URL, tls=server, **options) as rep, sp.Req0(tls=client) as req:
            await req.dial(to(host, rep.listeners[0]))
            await rep.wait_for_peers()
            await exchange(req, rep)
            yield req.pipes[0], rep.pipes[0]


async def exchange(req: sp.Req0, rep: sp.Rep0) -> None:
    """Send one request and one reply.  The client has then read its ticket."""
    await req.send(b"ping")
    assert await rep.receive() == b"ping"
    await rep.send(b"pong")
    assert await req.receive() == b"pong"


async def refused(
    server: sp.TLSServerConfig, client: sp.TLSClientConfig, host: str = "127.0.0.1"
) -> tuple[sp.AuthenticationError, sp.AuthenticationError]:
    """Dial in vain.  Return the errors of the two sides, the dialer's first."""
    with trio.fail_after(10):
        async with sp.Rep0(listen=URL, tls=server) as rep, sp.Req0(tls=client) as req:
            events = rep.events()
            with pytest.raises(sp.DialError) as caught:
                await req.dial(to(host, rep.listeners[0]))
            with trio.fail_after(1):
                event = await expect(events, sp.EventKind.REFUSED)
            cause = caught.value.__cause__
            assert isinstance(cause, sp.AuthenticationError), repr(cause)
            assert isinstance(event.error, sp.AuthenticationError), repr(event.error)
            assert str(cause) in str(caught.value)
            assert str(event.error) in event.reason
            assert rep.statistics().listeners[0].failures == {"AuthenticationError": 1}
            assert (req.pipes, rep.pipes, req.dialers) == ((), (), ())
            return cause, event.error


async def refused_by_dialer(server: sp.TLSServerConfig, client: sp.TLSClientConfig) -> sp.AuthenticationError:
    """Dial in vain a server whose certificate OpenSSL accepts.

    So its alert does not say what is wrong.
    """
    with trio.fail_after(10):
        async with sp.Rep0(listen=URL, tls=server) as rep, sp.Req0(tls=client) as req:
            with pytest.raises(sp.DialError) as caught:
                await req.dial(rep.url)
            assert isinstance(caught.value.__cause__, sp.AuthenticationError)
            return caught.value.__cause__


def leaf(pem: bytes) -> bytes:
    """Return the key and the first certificate of *pem*."""
    end = b"-----END CERTIFICATE-----\n"
    return pem[: pem.index(end) + len(end)]


def certificate_of(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem[pem.index(b"-----BEGIN CERT") :])


def ready_made(pem: bytes, *, ca: bytes | None = None) -> SSL.Context:
    """A ready-made context with a certificate, which trusts *ca*."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_session_id(b"test")
    context.use_certificate(certificate_of(pem))
    context.use_privatekey(serialization.load_pem_private_key(pem, None))  # type: ignore[arg-type]
    if ca is not None:
        store = context.get_cert_store()
        assert store is not None
        store.add_cert(crypto.X509.from_cryptography(x509.load_pem_x509_certificate(ca)))
    return context


def clock(moment: datetime.datetime) -> Any:
    """Return a substitute for the module ``datetime`` whose time is *moment*."""

    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return moment.astimezone(tz)

    return SimpleNamespace(datetime=Stopped, UTC=datetime.UTC)


def at(moment: datetime.datetime, make: Callable[[], Config]) -> Config:
    """Return what *make* makes at the time *moment*.

    A configuration with an expired certificate could not be made now.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tls_context, "datetime", clock(moment))
        return make()


class Resolver(trio.abc.HostnameResolver):
    """Resolves every name to 127.0.0.1."""

    async def getaddrinfo(self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", int(port)))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


@pytest.fixture
async def any_name() -> AsyncIterator[None]:
    """Let all names resolve to 127.0.0.1."""
    before = trio.socket.set_custom_hostname_resolver(Resolver())
    yield
    trio.socket.set_custom_hostname_resolver(before)


# Names.


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("localhost", ["localhost"]),
        ("service.example.org", ["other.example.org", "service.example.org"]),
        ("SERVICE.example.ORG", ["service.example.org"]),
        ("service.example.org", ["*.example.org"]),
    ],
)
async def test_a_server_with_a_good_name_is_believed(
    host: str, names: list[str], version: Version, authority: Authority, any_name: None
) -> None:
    async with meeting(authority.server(*names), authority.client(maximum_version=version), host) as (pipe, other):
        assert pipe.tls is not None
        assert pipe.tls.verified
        assert pipe.tls.version == version
        assert pipe.tls.names == tuple(f"{'IP' if name[0].isdigit() else 'DNS'}:{name}" for name in names)
        assert other.tls is not None
        assert not other.tls.verified


async def test_a_server_with_a_good_ipv6_address_is_believed(version: Version, authority: Authority) -> None:
    async with sp.Rep0(tls=authority.server("::1")) as rep, sp.Req0(tls=authority.client(maximum_version=version)) as req:
        try:
            listener = await rep.listen("tls+tcp://[::1]:0")
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        with trio.fail_after(10):
            await req.dial(listener.url)
        tls = req.pipes[0].tls
        assert tls is not None
        assert (tls.verified, tls.names) == (True, ("IP:::1",))


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("127.0.0.1", "127.0.0.2"),
        ("127.0.0.1", "localhost"),
        ("127.0.0.1", "::1"),
        ("localhost", "127.0.0.1"),
        ("service.example.org", "other.example.org"),
        ("a.service.example.org", "*.example.org"),
        ("example.org", "*.example.org"),
        ("service.example.org", "service.example.org.evil.example"),
    ],
)
async def test_a_server_with_another_name_is_refused(host: str, name: str, version: Version, authority: Authority, any_name: None) -> None:
    ours, theirs = await refused(authority.server(name), authority.client(maximum_version=version), host)
    kind = "IP" if _is_address(name) else "DNS"
    assert f"the server's certificate was refused: it is for {kind}:{name}, not for '{host}'" in str(ours)
    assert "certificate" in str(theirs)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def test_a_common_name_is_no_name(version: Version, authority: Authority, any_name: None) -> None:
    server = sp.TLSServerConfig(certificate=authority.issue("other.example.org", subject="service.example.org"))
    ours, _ = await refused(server, authority.client(maximum_version=version), "service.example.org")
    assert "it is for DNS:other.example.org, not for 'service.example.org'" in str(ours)


async def test_a_certificate_without_names_is_refused(version: Version, authority: Authority) -> None:
    server = sp.TLSServerConfig(certificate=authority.issue_flawed())
    ours, _ = await refused(server, authority.client(maximum_version=version))
    assert "'127.0.0.1'" in str(ours)


async def test_the_expected_name_can_be_given(version: Version, authority: Authority) -> None:
    client = authority.client(maximum_version=version, server_name="service.example.org")
    async with meeting(authority.server("service.example.org"), client) as (pipe, _):
        assert pipe.tls is not None
        assert pipe.tls.names == ("DNS:service.example.org",)
    ours, _ = await refused(authority.server("127.0.0.1"), client)
    assert "it is for IP:127.0.0.1, not for 'service.example.org'" in str(ours)


async def test_the_expected_name_can_be_an_address(version: Version, authority: Authority) -> None:
    client = authority.client(maximum_version=version, server_name="192.0.2.7")
    async with meeting(authority.server("192.0.2.7"), client):
        pass
    ours, _ = await refused(authority.server("localhost"), client, "localhost")
    assert "it is for DNS:localhost, not for '192.0.2.7'" in str(ours)


@pytest.mark.parametrize("host", ["localhost.", "127.0.0.1"])
async def test_a_name_may_end_in_a_dot(host: str, version: Version, authority: Authority, any_name: None) -> None:
    """Certificates have the name without the dot, and so does the SNI."""
    asked: list[bytes | None] = []
    context = ready_made(authority.issue("localhost"))
    context.set_tlsext_servername_callback(lambda connection: asked.append(connection.get_servername()))
    client = authority.client(maximum_version=version, server_name=None if host.endswith(".") else "localhost.")
    async with meeting(sp.TLSServerConfig(context=context), client, host) as (pipe, _):
        assert pipe.tls is not None
        assert pipe.tls.verified
        assert asked == [b"localhost"]


def test_the_zone_of_an_address_is_no_part_of_its_name(version: Version, authority: Authority) -> None:
    server, client = authority.server("fe80::1"), authority.client(maximum_version=version)
    ends = End(TLSSession(client.contexts.current, host="fe80::1%eth0", port=5555), REQ), End(TLSSession(server.contexts.current), REP)
    converse(*ends)
    info = ends[0].session.info
    assert info is not None
    assert (info.verified, info.names) == (True, ("IP:fe80::1",))
    end_all(*ends)
    ends = End(TLSSession(client.contexts.current, host="fe80::2%eth0", port=5555), REQ), End(TLSSession(server.contexts.current), REP)
    with pytest.raises(sp.AuthenticationError, match="it is for IP:fe80::1, not for 'fe80::2'"):
        converse(*ends)
    end_all(*ends)


@pytest.mark.parametrize("ready", [False, True], ids=["our context", "ready-made"])
@pytest.mark.parametrize("name", ["127.0.0.2", "localhost"])
async def test_names_are_checked_by_ourselves_where_openssl_does_not(
    name: str, ready: bool, version: Version, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the check by OpenSSL, as if pyOpenSSL lacked the calls for it."""
    monkeypatch.setattr(tls_session, "expect_name", lambda *_: None)
    client = authority.client(maximum_version=version)
    if ready:
        context = ready_made(authority.issue("client-7"), ca=authority.pem)
        context.set_max_proto_version(SSL.TLS1_2_VERSION if version == "TLSv1.2" else SSL.TLS1_3_VERSION)
        context.set_verify(SSL.VERIFY_PEER)
        client = sp.TLSClientConfig(context=context)
    ours = await refused_by_dialer(authority.server(name), client)
    assert "the server's certificate was refused: it is for" in str(ours)
    assert "not for '127.0.0.1'" in str(ours)
    async with meeting(authority.server("127.0.0.1"), client):
        pass


def last_words(client: End, server: End, error: str) -> bytes:
    """Return what *client* sends after it refused *server* because of *error*."""
    client.take(b"")
    server.take(client.drain())
    with pytest.raises(sp.AuthenticationError, match=error):
        while data := server.drain():
            client.take(data)
            server.take(client.drain())
    said = client.drain()
    end_all(client, server)
    return said + client.drain()


def test_a_client_that_refuses_a_name_by_itself_does_not_finish_the_handshake(
    version: Version, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL sees nothing wrong, and already has its last flight to send."""
    monkeypatch.setattr(tls_session, "expect_name", lambda *_: None)
    context = ready_made(authority.issue("client-7"), ca=authority.pem)
    context.set_verify(SSL.VERIFY_PEER)
    server, client = authority.server("127.0.0.1", maximum_version=version), sp.TLSClientConfig(context=context)
    ends = End(TLSSession(client.contexts.current, host="localhost", port=5555), REQ), End(TLSSession(server.contexts.current), REP)
    assert last_words(*ends, "it is for IP:127.0.0.1, not for 'localhost'") == b""


def test_a_client_that_refuses_to_resume_does_not_finish_the_handshake(
    version: Version, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = sp.TLSServerConfig(certificate=authority.issue_flawed("localhost", ends=NOW + DAY))
    client = authority.client(maximum_version=version)

    def ends() -> tuple[End, End]:
        contexts = client.contexts.current, server.contexts.current
        return End(TLSSession(contexts[0], host="localhost", port=5555), REQ), End(TLSSession(contexts[1]), REP)

    before = ends()
    converse(*before)
    end_all(*before)
    monkeypatch.setattr(tls_session, "datetime", clock(NOW + 2 * DAY))
    assert last_words(*ends(), "it has expired since the resumed session began") == b""


def unreadable(authority: Authority, folder: Path, *names: str, purpose: x509.ObjectIdentifier = SERVER) -> SSL.Context:
    """Return a context with a certificate that OpenSSL accepts and cryptography cannot parse.

    It spells out a value that DER leaves out.
    """
    pem = authority.issue_flawed(*names, purpose=purpose)
    constraints, critical = b"\x06\x03\x55\x1d\x13\x01\x01", b"\xff"
    tbs = certificate_of(pem).tbs_certificate_bytes
    assert tbs.count(constraints + critical) == 1
    der = authority.sign(tbs.replace(constraints + critical, constraints + b"\0"))
    with pytest.raises(ValueError, match="rror"):
        x509.load_der_x509_certificate(der)
    (folder / "certificate.der").write_bytes(der)
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_session_id(b"test")
    context.use_certificate_file(str(folder / "certificate.der"), crypto.FILETYPE_ASN1)
    context.use_privatekey(serialization.load_pem_private_key(pem, None))  # type: ignore[arg-type]
    return context


async def test_a_server_whose_certificate_cannot_be_read_is_refused(version: Version, authority: Authority, tmp_path: Path) -> None:
    """The authority has signed it, but its names cannot be parsed."""
    server = sp.TLSServerConfig(context=unreadable(authority, tmp_path, "127.0.0.1"))
    ours = await refused_by_dialer(server, authority.client(maximum_version=version))
    assert "the server's certificate was refused: it cannot be read: " in str(ours)
    assert "(of one that cannot be read; expected a certificate for '127.0.0.1')" in str(ours)


@pytest.mark.parametrize("required", [True, False])
async def test_a_client_whose_certificate_cannot_be_read_is_refused(
    required: bool, version: Version, authority: Authority, tmp_path: Path
) -> None:
    """Nothing would tell who the client is."""
    context = unreadable(authority, tmp_path, "client-7", purpose=CLIENT)
    context.set_max_proto_version(SSL.TLS1_2_VERSION if version == "TLSv1.2" else SSL.TLS1_3_VERSION)
    client = sp.TLSClientConfig(context=context, insecure_skip_verification=True)
    server = authority.server(client_ca=authority.pem, require_client_certificate=required)
    with trio.fail_after(10):
        async with sp.Rep0(listen=URL, tls=server) as rep, sp.Req0(tls=client) as req:
            events = rep.events()
            with pytest.raises(sp.DialError):
                await req.dial(rep.url)
            event = await expect(events, sp.EventKind.REFUSED)
    assert isinstance(event.error, sp.AuthenticationError)
    assert "the client's certificate was refused: it cannot be read: " in event.reason


@pytest.mark.parametrize(
    ("host", "server_name", "sent"),
    [
        ("service.example.org", None, b"service.example.org"),
        ("127.0.0.1", None, None),
        ("127.0.0.1", "other.example.org", b"other.example.org"),
        ("service.example.org", "192.0.2.7", None),
    ],
)
async def test_the_server_is_told_a_name_but_not_an_address(
    host: str, server_name: str | None, sent: bytes | None, version: Version, authority: Authority, any_name: None
) -> None:
    asked: list[bytes | None] = []
    context = ready_made(authority.issue(server_name or host))
    context.set_tlsext_servername_callback(lambda connection: asked.append(connection.get_servername()))
    client = authority.client(maximum_version=version, server_name=server_name)
    async with meeting(sp.TLSServerConfig(context=context), client, host):
        assert asked == [sent]


# Servers that are refused.


async def check_server(pem: bytes, client: sp.TLSClientConfig, *reasons: str, at_time: datetime.datetime = NOW) -> None:
    """Check that a server with *pem* is refused for one of *reasons*, which both sides report."""
    server = at(at_time, lambda: sp.TLSServerConfig(certificate=pem))
    ours, theirs = await refused(server, client)
    assert any(reason in str(ours) for reason in reasons), str(ours)
    assert "the server's certificate was refused" in str(ours)
    assert "'127.0.0.1'" in str(ours)
    assert "the client refused our certificate" in str(theirs)
    assert not ours.permanent  # it may be an impostor's


async def test_an_expired_server_is_refused(version: Version, authority: Authority) -> None:
    pem = authority.issue_flawed("127.0.0.1", ends=NOW - HOUR)
    await check_server(pem, authority.client(maximum_version=version), "certificate has expired", at_time=NOW - 2 * HOUR)


async def test_a_server_that_is_not_yet_valid_is_refused(version: Version, authority: Authority) -> None:
    pem = authority.issue_flawed("127.0.0.1", begins=NOW + HOUR)
    await check_server(pem, authority.client(maximum_version=version), "certificate is not yet valid", at_time=NOW + 2 * HOUR)


async def test_a_self_signed_server_is_refused(version: Version, authority: Authority) -> None:
    pem = authority.issue_flawed("127.0.0.1", self_signed=True)
    await check_server(pem, authority.client(maximum_version=version), "self-signed certificate", "self signed certificate")


async def test_a_server_of_an_unknown_authority_is_refused(version: Version, authority: Authority, stranger: Authority) -> None:
    pem = stranger.issue("127.0.0.1")
    await check_server(pem, authority.client(maximum_version=version), "unable to get local issuer certificate")


async def test_without_authorities_of_our_own_only_the_systems_count(version: Version, authority: Authority) -> None:
    pem = authority.issue("127.0.0.1")
    await check_server(pem, sp.TLSClientConfig(maximum_version=version), "unable to get local issuer certificate")


async def test_a_server_with_a_clients_certificate_is_refused(version: Version, authority: Authority) -> None:
    pem = authority.issue_flawed("127.0.0.1", purpose=CLIENT)
    await check_server(pem, authority.client(maximum_version=version), "certificate purpose")


async def test_a_revoked_server_is_refused(version: Version, authority: Authority) -> None:
    pem = authority.issue("127.0.0.1")
    await check_server(pem, authority.client(maximum_version=version, revoked=authority.revoke(pem)), "certificate revoked")
    async with meeting(authority.server("127.0.0.1"), authority.client(maximum_version=version, revoked=authority.revoke(pem))):
        pass


async def test_without_a_list_of_its_issuer_a_server_is_refused(version: Version, authority: Authority, stranger: Authority) -> None:
    pem = authority.issue("127.0.0.1")
    client = authority.client(maximum_version=version, revoked=stranger.revoke())
    await check_server(pem, client, "unable to get certificate CRL")


def long_chain(authority: Authority) -> bytes:
    """Key and certificate with two intermediate ones."""
    ca = authority.ca.create_child_ca().create_child_ca()
    return ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.bytes()


async def test_a_chain_that_is_too_long_is_refused(version: Version, authority: Authority) -> None:
    pem = long_chain(authority)
    for depth in (0, 1):
        client = authority.client(maximum_version=version, max_chain_depth=depth)
        await check_server(pem, client, "certificate chain too long", "unable to get local issuer certificate")


async def test_a_chain_as_long_as_allowed_is_good(version: Version, authority: Authority) -> None:
    client = authority.client(maximum_version=version, max_chain_depth=2)
    async with meeting(sp.TLSServerConfig(certificate=long_chain(authority)), client) as (pipe, _):
        assert pipe.tls is not None
        assert len(pipe.tls.peer_chain) == 4
        assert pipe.tls.peer_chain[-1] == authority.certificate


async def test_a_server_without_its_intermediate_certificates_is_refused(version: Version, authority: Authority) -> None:
    await check_server(leaf(long_chain(authority)), authority.client(maximum_version=version), "unable to get local issuer certificate")


# Clients' certificates.


async def check_client(server: sp.TLSServerConfig, client: sp.TLSClientConfig, *reasons: str) -> None:
    """Check that the client is refused for one of *reasons*, which both sides report."""
    ours, theirs = await refused(server, client)
    assert any(reason in str(theirs) for reason in reasons), str(theirs)
    assert "the server refused our certificate, or requires one" in str(ours)
    # Under 1.2 anyone on the way can say so.
    assert ours.permanent is (client.maximum_version == "TLSv1.3")


async def test_a_client_without_the_certificate_that_is_required_is_refused(version: Version, authority: Authority) -> None:
    server = authority.server(client_ca=authority.pem)
    await check_client(server, authority.client(maximum_version=version), "the client sent no certificate, and one is required")


@pytest.mark.parametrize("required", [True, False])
async def test_a_client_of_an_unknown_authority_is_refused(
    required: bool, version: Version, authority: Authority, stranger: Authority
) -> None:
    server = authority.server(client_ca=authority.pem, require_client_certificate=required)
    client = authority.client(maximum_version=version, certificate=stranger.issue("client-7"))
    await check_client(server, client, "the client's certificate was refused: unable to get local issuer certificate")


async def test_an_expired_client_is_refused(version: Version, authority: Authority) -> None:
    pem = authority.issue_flawed("client-7", ends=NOW - HOUR, purpose=CLIENT)
    client = at(NOW - 2 * HOUR, lambda: authority.client(maximum_version=version, certificate=pem))
    await check_client(authority.server(client_ca=authority.pem), client, "certificate has expired")


async def test_a_client_that_is_not_yet_valid_is_refused(version: Version, authority: Authority) -> None:
    pem = authority.issue_flawed("client-7", begins=NOW + HOUR, purpose=CLIENT)
    client = at(NOW + 2 * HOUR, lambda: authority.client(maximum_version=version, certificate=pem))
    await check_client(authority.server(client_ca=authority.pem), client, "certificate is not yet valid")


async def test_a_self_signed_client_is_refused(version: Version, authority: Authority) -> None:
    pem = authority.issue_flawed("client-7", purpose=CLIENT, self_signed=True)
    client = authority.client(maximum_version=version, certificate=pem)
    await check_client(authority.server(client_ca=authority.pem), client, "self-signed certificate", "self signed certificate")


async def test_a_client_that_anybody_may_be_cannot_fill_the_log_with_its_subject(version: Version, authority: Authority) -> None:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, "x" * 60)] * 100)
    pem = authority.issue_flawed("client-7", purpose=CLIENT, self_signed=True, subject=subject)
    client = authority.client(maximum_version=version, certificate=pem)
    _, theirs = await refused(authority.server(client_ca=authority.pem), client)
    assert "(of OU=xxx" in str(theirs)
    assert len(str(theirs)) < 1000


async def test_a_client_with_a_servers_certificate_is_refused(version: Version, authority: Authority) -> None:
    pem = authority.issue_flawed("client-7", purpose=SERVER)
    client = authority.client(maximum_version=version, certificate=pem)
    await check_client(authority.server(client_ca=authority.pem), client, "certificate purpose")


async def test_a_revoked_client_is_refused(version: Version, authority: Authority) -> None:
    pem = authority.issue("client-7")
    server = authority.server(client_ca=authority.pem, revoked=authority.revoke(pem))
    await check_client(server, authority.client(maximum_version=version, certificate=pem), "certificate revoked")
    async with meeting(server, authority.client(maximum_version=version, certificate=authority.issue("client-8"))):
        pass


async def test_without_a_list_of_its_issuer_a_client_is_refused(version: Version, authority: Authority, stranger: Authority) -> None:
    server = authority.server(client_ca=authority.pem, revoked=stranger.revoke())
    client = authority.client(maximum_version=version, certificate=authority.issue("client-7"))
    await check_client(server, client, "unable to get certificate CRL")


async def test_a_clients_chain_that_is_too_long_is_refused(version: Version, authority: Authority) -> None:
    server = authority.server(client_ca=authority.pem, max_chain_depth=1)
    client = authority.client(maximum_version=version, certificate=long_chain(authority))
    await check_client(server, client, "certificate chain too long", "unable to get local issuer certificate")


async def test_a_client_without_a_certificate_is_let_in_where_it_is_optional(version: Version, authority: Authority) -> None:
    server = authority.server(client_ca=authority.pem, require_client_certificate=False)
    async with meeting(server, authority.client(maximum_version=version)) as (_, pipe):
        tls = pipe.tls
        assert tls is not None
        assert (tls.verified, tls.names, tls.subject, tls.peer_chain, tls.peer_certificate) == (False, (), "", (), None)


@pytest.mark.parametrize("required", [True, False])
async def test_a_good_client_is_known_by_its_certificate(required: bool, version: Version, authority: Authority) -> None:
    pem = authority.issue("client-7", "10.0.0.7", "seven@example.org", subject="client 7")
    server = authority.server(client_ca=authority.pem, require_client_certificate=required)
    async with meeting(server, authority.client(maximum_version=version, certificate=pem)) as (_, pipe):
        tls = pipe.tls
        assert tls is not None
        assert tls.verified
        assert tls.subject == certificate_of(pem).subject.rfc4514_string()
        assert "CN=client 7" in tls.subject
        assert tls.names == ("DNS:client-7", "IP:10.0.0.7", "email:seven@example.org")
        assert tls.peer_certificate == certificate_of(pem)
        assert tls.peer_chain == (certificate_of(pem), authority.certificate)


async def test_a_client_shows_its_certificate_only_to_a_server_that_asks(version: Version, authority: Authority) -> None:
    client = authority.client(maximum_version=version, certificate=authority.issue("client-7"))
    async with meeting(authority.server(), client) as (_, pipe):
        assert pipe.tls is not None
        assert (pipe.tls.verified, pipe.tls.peer_certificate) == (False, None)


async def test_a_background_dialer_that_a_known_server_refuses_waits_its_longest_delay(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "sp")
    client = authority.client()
    async with (
        sp.Rep0(listen=URL, tls=authority.server(client_ca=authority.pem)) as rep,
        sp.Req0(tls=client, redial_min=0.001, redial_max=77) as req,
    ):
        events = req.events()
        dialer = await req.dial(rep.url, wait=False)
        with trio.fail_after(5):
            event = await expect(events, sp.EventKind.DIAL_FAILED)
            await until(lambda: "next attempt in" in caplog.text)
        assert isinstance(event.error, sp.AuthenticationError)
        assert event.error.permanent
        assert "next attempt in 77.00 s" in caplog.text
        assert dialer.statistics().attempts == 1
        assert dialer.statistics().attached == 0


async def test_authorize_decides_by_verified_names(version: Version, authority: Authority) -> None:
    server = authority.server(client_ca=authority.pem)
    options: dict[str, Any] = {"authorize": lambda pipe: "DNS:client-7" in pipe.tls.names}
    async with sp.Rep0(listen=URL, tls=server, **options) as rep, sp.Req0() as req:
        events = rep.events()
        with trio.fail_after(10):
            await req.dial(rep.url, tls=authority.client(maximum_version=version, certificate=authority.issue("client-7")))
            await expect(events, sp.EventKind.ATTACHED)
            other = authority.client(maximum_version=version, certificate=authority.issue("client-8"))
            await req.dial(rep.url, tls=other, wait=False)
            event = await expect(events, sp.EventKind.REFUSED)
        assert isinstance(event.error, sp.PipeRefused)
        assert len(rep.pipes) == 1


# No verification.


@pytest.mark.parametrize("flaw", ["self-signed", "stranger", "expired", "wrong name"])
async def test_without_verification_any_server_is_accepted_and_one_warning_is_logged(
    flaw: str, version: Version, authority: Authority, stranger: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    pem = {
        "self-signed": lambda: authority.issue_flawed("127.0.0.1", self_signed=True),
        "stranger": lambda: stranger.issue("127.0.0.1"),
        "expired": lambda: authority.issue_flawed("127.0.0.1", ends=NOW - HOUR),
        "wrong name": lambda: authority.issue("other.example.org"),
    }[flaw]()
    server = at(NOW - 2 * HOUR if flaw == "expired" else NOW, lambda: sp.TLSServerConfig(certificate=pem))
    caplog.set_level(logging.WARNING, "sp")
    client = authority.client(maximum_version=version, insecure_skip_verification=True)
    async with sp.Rep0(listen=URL, tls=server) as rep, sp.Req0(tls=client) as req:
        for resumed in (False, True, True):
            tls, _ = await again(req, rep)
            assert (tls.resumed, tls.verified, tls.names) == (resumed, False, ())
            assert tls.peer_certificate == certificate_of(pem)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["TLS: insecure_skip_verification is on: any server is accepted"]


# After the end of a pipe.


async def test_the_tls_info_of_a_pipe_stays_readable_after_its_end(version: Version, authority: Authority) -> None:
    pem = authority.issue("client-7", subject="client 7")
    server = authority.server(client_ca=authority.pem)
    async with meeting(server, authority.client(maximum_version=version, certificate=pem)) as pipes:
        untouched = [pipe.tls for pipe in pipes]
        running = [(tls.version, tls.cipher, tls.group, tls.resumed) for tls in untouched if tls is not None]
    for pipe in pipes:
        assert pipe.error is not None
    assert [pipe.tls for pipe in pipes] == untouched
    assert [(tls.version, tls.cipher, tls.group, tls.resumed) for tls in untouched if tls is not None] == running
    first, second = untouched
    assert first is not None
    assert second is not None
    assert first.verified
    assert first.names == ("DNS:localhost", "IP:127.0.0.1", "IP:::1")
    assert second.subject == certificate_of(pem).subject.rfc4514_string()
    assert second.peer_chain == (certificate_of(pem), authority.certificate)
    assert "not verified" not in repr(second)
    assert version in repr(second)


# Callbacks of an application.


async def fails_then_serves(
    server: sp.TLSServerConfig, client: sp.TLSClientConfig, switch: list[bool]
) -> tuple[BaseException | None, BaseException | None]:
    """Dial with the *switch* on, which fails, then with it off, which succeeds.

    Return the errors of the two sides, the dialer's first.
    """
    with trio.fail_after(10):
        async with sp.Rep0(listen=URL, tls=server) as rep, sp.Req0(tls=client) as req:
            events = rep.events()
            switch[:] = [True]
            with pytest.raises(sp.DialError) as caught:
                await req.dial(to("localhost", rep.listeners[0]))
            event = await expect(events, sp.EventKind.REFUSED)
            switch.clear()
            await req.dial(to("localhost", rep.listeners[0]))
            await exchange(req, rep)
            return caught.value.__cause__, event.error


def raising(switch: list[bool]) -> Callable[..., bool]:
    def callback(*arguments: object) -> bool:
        if switch:
            raise LookupError("the directory is down")
        return True

    return callback


async def test_a_servers_verify_callback_that_raises_ends_the_handshake_and_is_named(version: Version, authority: Authority) -> None:
    switch: list[bool] = []
    context = ready_made(authority.issue("localhost"), ca=authority.pem)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, raising(switch))
    client = authority.client(maximum_version=version, certificate=authority.issue("client-7"))
    ours, theirs = await fails_then_serves(sp.TLSServerConfig(context=context), client, switch)
    assert isinstance(theirs, sp.TLSError)
    assert "a callback raised LookupError('the directory is down')" in str(theirs)
    assert isinstance(theirs.__cause__, LookupError)
    assert isinstance(ours, sp.TLSError)


async def test_a_clients_verify_callback_that_raises_ends_the_handshake_and_is_named(version: Version, authority: Authority) -> None:
    switch: list[bool] = []
    context = ready_made(authority.issue("client-7"), ca=authority.pem)
    context.set_verify(SSL.VERIFY_PEER, raising(switch))
    server = authority.server(maximum_version=version)
    ours, theirs = await fails_then_serves(server, sp.TLSClientConfig(context=context), switch)
    assert isinstance(ours, sp.TLSError)
    assert "a callback raised LookupError('the directory is down')" in str(ours)
    assert isinstance(ours.__cause__, LookupError)
    assert isinstance(theirs, sp.TLSError)


async def test_a_server_name_callback_that_raises_ends_the_handshake_and_is_reported(
    version: Version, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: told.append(error[1]))
    switch: list[bool] = []
    context = ready_made(authority.issue("localhost"))
    context.set_tlsext_servername_callback(cast("Callable[[SSL.Connection], None]", raising(switch)))
    client = authority.client(maximum_version=version)
    ours, theirs = await fails_then_serves(sp.TLSServerConfig(context=context), client, switch)
    assert [repr(error) for error in told] == ["LookupError('the directory is down')"]
    assert isinstance(theirs, sp.TLSError)
    assert "callback failed" in str(theirs)
    assert isinstance(ours, sp.TLSError)


async def test_a_ready_made_context_of_a_client_still_expects_the_name(version: Version, authority: Authority) -> None:
    context = ready_made(authority.issue("client-7"), ca=authority.pem)
    context.set_verify(SSL.VERIFY_PEER)
    client = sp.TLSClientConfig(context=context)
    async with meeting(authority.server("localhost", maximum_version=version), client, "localhost") as (pipe, _):
        assert pipe.tls is not None
        assert (pipe.tls.verified, pipe.tls.names) == (True, ("DNS:localhost",))
    async with sp.Rep0(listen=URL, tls=authority.server("other.example.org", maximum_version=version)) as rep, sp.Req0(tls=client) as req:
        with pytest.raises(sp.DialError, match="IP address mismatch; expected a certificate for '127.0.0.1'") as caught:
            await req.dial(rep.url)
        assert isinstance(caught.value.__cause__, sp.AuthenticationError)


# Resumed sessions.


async def again(req: sp.Req0, rep: sp.Rep0) -> tuple[sp.TLSInfo, sp.TLSInfo]:
    """Dial, exchange messages and close the pipe.

    Return its TLSInfo on both sides, the dialer's first.
    """
    with trio.fail_after(10):
        events = rep.events()
        dialer = await req.dial(rep.url)
        attached = await expect(events, sp.EventKind.ATTACHED)
        await exchange(req, rep)
        assert dialer.pipe is not None
        assert attached.pipe is not None
        ours, theirs = dialer.pipe.tls, attached.pipe.tls
        dialer.close()
        await expect(events, sp.EventKind.DETACHED)
    assert ours is not None
    assert theirs is not None
    return ours, theirs


async def test_of_a_resumed_pipe_the_same_is_known(version: Version, authority: Authority) -> None:
    client = authority.client(maximum_version=version, certificate=authority.issue("client-7", subject="client 7"))
    async with sp.Rep0(listen=URL, tls=authority.server(client_ca=authority.pem)) as rep, sp.Req0(tls=client) as req:
        full, resumed, resumed_again = [await again(req, rep) for _ in range(3)]
        for one, two, three in zip(full, resumed, resumed_again, strict=True):
            assert (one.resumed, two.resumed, three.resumed) == (False, True, True)
            for later in (two, three):
                assert later.verified
                assert later.peer_certificate == one.peer_certificate
                assert later.names == one.names != ()
                assert later.subject == one.subject != ""
                assert later.peer_chain[0] == one.peer_certificate
                assert later.version == one.version == version
        assert rep.statistics().listeners[0].tls_handshakes == {"full": 1, "resumed": 2}


async def test_a_resumed_pipe_without_a_clients_certificate_is_as_unknown_as_before(version: Version, authority: Authority) -> None:
    server = authority.server(client_ca=authority.pem, require_client_certificate=False)
    async with sp.Rep0(listen=URL, tls=server) as rep, sp.Req0(tls=authority.client(maximum_version=version)) as req:
        _, full = await again(req, rep)
        _, resumed = await again(req, rep)
        assert (full.resumed, resumed.resumed) == (False, True)
        assert (resumed.verified, resumed.names, resumed.peer_certificate) == (False, (), None)


async def refused_on_resumption(rep: sp.Rep0, req: sp.Req0) -> tuple[BaseException | None, sp.Event]:
    """Dial in vain.  Return the dialer's error and the listener's event."""
    with trio.fail_after(10):
        events = rep.events()
        with pytest.raises(sp.DialError) as caught:
            await req.dial(rep.url)
        with trio.fail_after(1):
            return caught.value.__cause__, await expect(events, sp.EventKind.REFUSED)


async def test_a_clients_certificate_that_has_expired_since_does_not_resume(
    version: Version, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = authority.issue_flawed("client-7", ends=NOW + DAY, purpose=CLIENT)
    client = authority.client(maximum_version=version, certificate=pem)
    async with sp.Rep0(listen=URL, tls=authority.server(client_ca=authority.pem)) as rep, sp.Req0(tls=client) as req:
        await again(req, rep)
        monkeypatch.setattr(tls_session, "datetime", clock(NOW + 2 * DAY))
        ours, event = await refused_on_resumption(rep, req)
        assert isinstance(event.error, sp.AuthenticationError)
        assert "the peer's certificate was refused: it has expired since the resumed session began" in event.reason
        assert isinstance(ours, sp.PeerError)
        assert rep.statistics().listeners[0].tls_handshakes == {"full": 1}


async def test_a_servers_certificate_that_has_expired_since_does_not_resume(
    version: Version, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = sp.TLSServerConfig(certificate=authority.issue_flawed("127.0.0.1", ends=NOW + DAY))
    async with sp.Rep0(listen=URL, tls=server) as rep, sp.Req0(tls=authority.client(maximum_version=version)) as req:
        await again(req, rep)
        monkeypatch.setattr(tls_session, "datetime", clock(NOW + 2 * DAY))
        with trio.fail_after(10), pytest.raises(sp.DialError, match="it has expired since the resumed session began") as caught:
            await req.dial(rep.url)
        assert isinstance(caught.value.__cause__, sp.AuthenticationError)


async def test_authorize_is_asked_again_about_a_resumed_pipe(version: Version, authority: Authority) -> None:
    allowed = {"DNS:client-7"}
    asked: list[tuple[bool, tuple[str, ...]]] = []

    def authorize(pipe: sp.Pipe) -> bool:
        assert pipe.tls is not None
        asked.append((pipe.tls.resumed, pipe.tls.names))
        return not allowed.isdisjoint(pipe.tls.names)

    client = authority.client(maximum_version=version, certificate=authority.issue("client-7"))
    server = authority.server(client_ca=authority.pem)
    async with sp.Rep0(listen=URL, tls=server, authorize=authorize) as rep, sp.Req0(tls=client) as req:
        await again(req, rep)
        allowed.clear()
        events = rep.events()
        await req.dial(rep.url, wait=False)
        with trio.fail_after(10):
            event = await expect(events, sp.EventKind.REFUSED)
        assert isinstance(event.error, sp.PipeRefused)
        assert asked == [(False, ("DNS:client-7",)), (True, ("DNS:client-7",))]


async def test_the_dialers_authorize_is_asked_again_too(version: Version, authority: Authority) -> None:
    asked: list[tuple[bool, bool]] = []

    def authorize(pipe: sp.Pipe) -> bool:
        assert pipe.tls is not None
        asked.append((pipe.tls.resumed, "DNS:localhost" in pipe.tls.names))
        return not pipe.tls.resumed

    client = authority.client(maximum_version=version)
    async with sp.Rep0(listen=URL, tls=authority.server()) as rep, sp.Req0(tls=client, authorize=authorize) as req:
        await again(req, rep)
        with trio.fail_after(10), pytest.raises(sp.DialError, match="authorize said no"):
            await req.dial(rep.url)
        assert asked == [(False, True), (True, True)]


async def test_a_session_with_one_name_is_not_resumed_for_another(version: Version, authority: Authority, any_name: None) -> None:
    client = authority.client(maximum_version=version)
    async with sp.Rep0(listen=URL, tls=authority.server("127.0.0.1")) as rep, sp.Req0(tls=client) as req:
        await again(req, rep)
        with trio.fail_after(10), pytest.raises(sp.DialError, match=r"it is for IP:127.0.0.1, not for 'service.example.org'"):
            await req.dial(to("service.example.org", rep.listeners[0]))
        ours, _ = await again(req, rep)
        assert ours.resumed  # the other name has not used up the session
