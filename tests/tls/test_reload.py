"""Certificates that change while peers are connected."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from cryptography import x509
from OpenSSL import SSL
from trio.testing import MockClock

import sp
from tests.tls.authority import Authority
from tests.transports.wire import expect

URL = "tls+tcp://127.0.0.1:0"
VERSIONS = pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
INTERVAL = 30.0


def replace(path: Path, pem: bytes) -> None:
    """Replace *path* by *pem* as one should: by a rename."""
    new = path.with_suffix(".new")
    new.write_bytes(pem)
    os.replace(new, path)


def serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem[pem.index(b"-----BEGIN CERT") :]).serial_number


@pytest.fixture
def issue(authority: Authority) -> Callable[[], bytes]:
    return lambda: authority.issue("127.0.0.1")


@pytest.fixture
def path(tmp_path: Path, issue: Callable[[], bytes]) -> Path:
    """A file with key and certificate."""
    file = tmp_path / "server.pem"
    file.write_bytes(issue())
    return file


async def exchange(req: sp.Req0, rep: sp.Rep0) -> None:
    await req.send(b"ping")
    assert await rep.receive() == b"ping"
    await rep.send(b"pong")
    assert await req.receive() == b"pong"


async def served(url: str, rep: sp.Rep0, config: sp.TLSClientConfig) -> tuple[int, bool]:
    """Connect, exchange messages and close.

    Return the serial number of the server's certificate, and whether the session was resumed.
    """
    with trio.fail_after(10):
        async with sp.Req0(tls=config) as req:
            await req.dial(url)
            await exchange(req, rep)
            tls = req.pipes[0].tls
            assert tls is not None
            assert tls.verified
            assert tls.peer_certificate is not None
            return tls.peer_certificate.serial_number, tls.resumed


# Relative paths.


@pytest.mark.parametrize("wrap", [str, Path])
async def test_a_relative_path_is_the_same_file_at_each_reload(
    wrap: Callable[[str], str | Path], path: Path, authority: Authority, issue: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir()
    (path.parent / "ca").mkdir()
    (path.parent / "ca" / "ca.pem").write_bytes(authority.pem)
    (path.parent / "revoked.pem").write_bytes(authority.revoke())
    monkeypatch.chdir(path.parent)
    server = sp.TLSServerConfig(certificate=wrap(path.name), private_key=wrap(path.name), key_log_file=wrap("keys"), watch_files=INTERVAL)
    client = sp.TLSClientConfig(ca=wrap("ca"), revoked=wrap("revoked.pem"))
    picky = authority.server("127.0.0.1", client_ca=wrap("ca"))
    monkeypatch.chdir(elsewhere)
    async with sp.Rep0() as rep:
        listener = await rep.listen(URL, tls=server)
        first, _ = await served(listener.url, rep, client)
        replace(path, issue())
        listener.reload()
        client.reload()
        picky.reload()
        second, _ = await served(listener.url, rep, client)
        assert first != second
        before = server.contexts.status
        replace(path, issue())
        server.contexts.check_files()
        assert server.contexts.status == (before[0] + 1, "")
        assert (await served(listener.url, rep, client))[0] not in (first, second)
    assert list(elsewhere.iterdir()) == []
    assert f"{path}" in repr(server)


# Reloading by a call.


@VERSIONS
async def test_new_connections_get_the_new_certificate_and_no_older_session(
    version: str, path: Path, authority: Authority, issue: Callable[[], bytes]
) -> None:
    client = authority.client(maximum_version=version)
    async with sp.Rep0(listen=URL, tls=sp.TLSServerConfig(certificate=path)) as rep:
        (listener,) = rep.listeners
        events = rep.events()
        old, new = path.read_bytes(), issue()
        assert await served(listener.url, rep, client) == (serial(old), False)
        assert await served(listener.url, rep, client) == (serial(old), True)
        replace(path, new)
        assert await served(listener.url, rep, client) == (serial(old), True)
        listener.reload()
        with trio.fail_after(1):
            event = await expect(events, sp.EventKind.RELOADED)
        assert (event.url, event.error, event.reason) == (listener.url, None, "")
        assert await served(listener.url, rep, client) == (serial(new), False)
        assert await served(listener.url, rep, client) == (serial(new), True)
        assert listener.statistics().tls_handshakes == {"full": 2, "resumed": 3}
        assert listener.statistics().failures == {}


async def test_reloading_what_has_not_changed_forgets_all_sessions_too(path: Path, authority: Authority) -> None:
    client = authority.client()
    async with sp.Rep0(listen=URL, tls=sp.TLSServerConfig(certificate=path)) as rep:
        (listener,) = rep.listeners
        resumed = [(await served(listener.url, rep, client))[1] for _ in range(2)]
        listener.reload()
        resumed += [(await served(listener.url, rep, client))[1] for _ in range(2)]
        assert resumed == [False, True, False, True]


@VERSIONS
async def test_pipes_live_on_and_talk_while_certificates_change(
    version: str, path: Path, authority: Authority, issue: Callable[[], bytes]
) -> None:
    client = authority.client(maximum_version=version)
    async with sp.Rep0(listen=URL, tls=sp.TLSServerConfig(certificate=path)) as rep, sp.Req0(tls=client) as req:
        (listener,) = rep.listeners
        old = path.read_bytes()
        with trio.fail_after(10):
            await req.dial(listener.url)
            await req.send(b"asked before")
            assert await rep.receive() == b"asked before"
            pipes = req.pipes, rep.pipes
            replace(path, issue())
            listener.reload()
            await rep.send(b"answered after")
            assert await req.receive() == b"answered after"
            await exchange(req, rep)
        assert (req.pipes, rep.pipes) == pipes
        tls = req.pipes[0].tls
        assert tls is not None
        assert tls.peer_certificate is not None
        assert tls.peer_certificate.serial_number == serial(old)


@pytest.mark.parametrize("flaw", ["missing", "empty", "other key"])
async def test_a_reload_that_fails_raises_and_keeps_the_old_content(
    flaw: str, path: Path, authority: Authority, issue: Callable[[], bytes]
) -> None:
    client = authority.client()
    async with sp.Rep0(listen=URL, tls=sp.TLSServerConfig(certificate=path)) as rep:
        (listener,) = rep.listeners
        events = rep.events()
        old = path.read_bytes()
        assert await served(listener.url, rep, client) == (serial(old), False)
        if flaw == "missing":
            path.unlink()
        elif flaw == "empty":
            replace(path, b"")
        else:
            key, certificate = issue(), issue()
            replace(path, key[: key.index(b"-----BEGIN CERT")] + certificate[certificate.index(b"-----BEGIN CERT") :])
        reason = {"missing": "No such file", "empty": "contains no certificate", "other key": "does not belong to the certificate"}[flaw]
        with pytest.raises(sp.TLSConfigError, match=reason) as caught:
            listener.reload()
        assert str(path) in str(caught.value)
        assert await served(listener.url, rep, client) == (serial(old), True)
        replace(path, new := issue())
        listener.reload()
        assert await served(listener.url, rep, client) == (serial(new), False)
        rep.close()
        assert [event.kind async for event in events].count(sp.EventKind.RELOADED) == 1


async def test_authorities_and_revocation_lists_are_reloaded_too(path: Path, tmp_path: Path, authority: Authority) -> None:
    ca, revoked = tmp_path / "ca.pem", tmp_path / "crl.pem"
    other, own = Authority(), authority.issue("client-7")
    ca.write_bytes(authority.pem)
    revoked.write_bytes(authority.revoke())
    server = sp.TLSServerConfig(certificate=path, client_ca=ca, revoked=revoked)
    ours, theirs = authority.client(certificate=own), authority.client(certificate=other.issue("client-8"))
    async with sp.Rep0(listen=URL, tls=server) as rep:
        (listener,) = rep.listeners

        async def is_refused(config: sp.TLSClientConfig, reason: str) -> None:
            events = rep.events()
            with trio.fail_after(10), pytest.raises(sp.DialError):
                async with sp.Req0(tls=config) as req:
                    await req.dial(listener.url)
            with trio.fail_after(1):
                assert reason in (await expect(events, sp.EventKind.REFUSED)).reason

        await served(listener.url, rep, ours)
        await is_refused(theirs, "unable to get local issuer certificate")
        replace(ca, authority.pem + other.pem)
        replace(revoked, authority.revoke(own) + other.revoke())
        listener.reload()
        await served(listener.url, rep, theirs)
        await is_refused(ours, "certificate revoked")  # although it has a session


async def test_a_listener_without_tls_has_nothing_to_reload() -> None:
    async with sp.Rep0(listen="tcp://127.0.0.1:0") as rep:
        events = rep.events()
        with pytest.raises(sp.StateError, match="has no TLS, so there is nothing to reload"):
            rep.listeners[0].reload()
        rep.close()
        assert sp.EventKind.RELOADED not in [event.kind async for event in events]


async def test_a_listener_without_tls_on_a_socket_that_has_it_has_nothing_to_reload(path: Path) -> None:
    async with sp.Rep0(listen="inproc://tls-reload", tls=sp.TLSServerConfig(certificate=path)) as rep:
        with pytest.raises(sp.StateError, match="nothing to reload"):
            rep.listeners[0].reload()


async def test_a_ready_made_context_cannot_be_reloaded(authority: Authority) -> None:
    pem = authority.issue("127.0.0.1")
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate(x509.load_pem_x509_certificate(pem[pem.index(b"-----BEGIN CERT") :]))
    async with sp.Rep0(listen=URL, tls=sp.TLSServerConfig(context=context)) as rep:
        with pytest.raises(sp.TLSConfigError, match="a ready-made context cannot be reloaded: create a new configuration"):
            rep.listeners[0].reload()
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_verify(SSL.VERIFY_PEER)
    with pytest.raises(sp.TLSConfigError, match="a ready-made context cannot be reloaded"):
        sp.TLSClientConfig(context=context).reload()


async def test_listeners_that_share_a_configuration_change_together(path: Path, authority: Authority, issue: Callable[[], bytes]) -> None:
    config = sp.TLSServerConfig(certificate=path)
    old = path.read_bytes()
    async with (
        sp.Rep0(listen=[URL, URL], tls=config) as one,
        sp.Rep0(listen=URL, tls=config) as other,
        sp.Rep0(listen=URL, tls=sp.TLSServerConfig(certificate=path)) as apart,
    ):
        replace(path, new := issue())
        one.listeners[0].reload()
        for rep in (one, other):
            for listener in rep.listeners:
                assert await served(listener.url, rep, authority.client()) == (serial(new), False)
        assert await served(apart.url, apart, authority.client()) == (serial(old), False)


async def test_the_configuration_itself_can_be_reloaded(path: Path, authority: Authority, issue: Callable[[], bytes]) -> None:
    config = sp.TLSServerConfig(certificate=path)
    async with sp.Rep0(listen=URL, tls=config) as rep:
        replace(path, new := issue())
        config.reload()
        assert await served(rep.url, rep, authority.client()) == (serial(new), False)


@VERSIONS
async def test_a_client_that_reloads_forgets_its_sessions(version: str, path: Path, authority: Authority, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem)
    client = sp.TLSClientConfig(ca=ca, maximum_version=version)  # type: ignore[arg-type]
    async with sp.Rep0(listen=URL, tls=sp.TLSServerConfig(certificate=path)) as rep:
        (listener,) = rep.listeners
        resumed = [(await served(listener.url, rep, client))[1] for _ in range(2)]
        client.reload()
        resumed += [(await served(listener.url, rep, client))[1] for _ in range(2)]
        assert resumed == [False, True, False, True]
        replace(ca, b"")
        with pytest.raises(sp.TLSConfigError, match="contains no certificate"):
            client.reload()
        assert (await served(listener.url, rep, client))[1]


async def test_a_client_that_reloads_trusts_the_authorities_in_its_files_now(path: Path, authority: Authority, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem)
    client = sp.TLSClientConfig(ca=ca)
    async with sp.Rep0(listen=URL, tls=sp.TLSServerConfig(certificate=path)) as rep:
        await served(rep.url, rep, client)
        replace(ca, Authority().pem)
        client.reload()
        async with sp.Req0(tls=client) as req:
            with trio.fail_after(10), pytest.raises(sp.DialError, match="unable to get local issuer certificate"):
                await req.dial(rep.url)


# Watched files, in virtual time.  Only a listener runs, without connections.


def certificate_in_use(config: sp.TLSServerConfig) -> int:
    """Do a handshake in memory.  Return the serial number of the certificate of new connections."""
    server = SSL.Connection(config.contexts.current.context)
    server.set_accept_state()
    client = SSL.Connection(SSL.Context(SSL.TLS_METHOD))
    client.set_connect_state()
    for _ in range(4):
        for one, other in ((client, server), (server, client)):
            try:
                one.do_handshake()
            except SSL.WantReadError:
                pass
            try:
                other.bio_write(one.bio_read(1 << 16))
            except SSL.WantReadError:
                pass
    found = client.get_peer_certificate(as_cryptography=True)
    assert found is not None
    return found.serial_number


async def events_within(seconds: float, events: sp.EventStream) -> list[sp.Event]:
    """Return the events of that time."""
    found: list[sp.Event] = []
    with trio.move_on_after(seconds):
        while True:
            found.append(await anext(events))
    return found


async def test_a_watched_file_is_picked_up_at_the_next_look(path: Path, issue: Callable[[], bytes], autojump_clock: MockClock) -> None:
    config = sp.TLSServerConfig(certificate=path, watch_files=INTERVAL)
    async with sp.Rep0(listen=URL, tls=config) as rep:
        events = rep.events()
        assert await events_within(10 * INTERVAL + 1, events) == []
        old, new = path.read_bytes(), issue()
        replace(path, new)
        assert certificate_in_use(config) == serial(old)
        (event,) = await events_within(10 * INTERVAL, events)
        assert (event.kind, event.url, event.error) == (sp.EventKind.RELOADED, rep.url, None)
        assert certificate_in_use(config) == serial(new)


async def test_a_watched_file_is_looked_at_every_interval_and_not_before(
    path: Path, issue: Callable[[], bytes], autojump_clock: MockClock
) -> None:
    async with sp.Rep0(listen=URL, tls=sp.TLSServerConfig(certificate=path, watch_files=INTERVAL)) as rep:
        events = rep.events()
        began = trio.current_time()
        for look in (1, 2, 3):
            replace(path, issue())
            await expect(events, sp.EventKind.RELOADED)
            assert trio.current_time() - began == pytest.approx(look * INTERVAL)


async def test_a_bad_file_is_reported_once_and_the_old_one_stays_in_use(
    path: Path, issue: Callable[[], bytes], autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "sp")
    config = sp.TLSServerConfig(certificate=path, watch_files=INTERVAL)
    async with sp.Rep0(listen=URL, tls=config) as rep:
        events = rep.events()
        old, new = path.read_bytes(), issue()
        replace(path, b"half of a certifi")
        (event,) = await events_within(10 * INTERVAL, events)
        assert event.kind is sp.EventKind.RELOAD_FAILED
        assert isinstance(event.error, sp.TLSConfigError)
        assert event.url == rep.url
        assert f"certificate {str(path)!r} contains no certificate" in event.reason
        assert [event.reason in record.getMessage() for record in caplog.records] == [True]
        assert certificate_in_use(config) == serial(old)
        path.unlink()
        (event,) = await events_within(10 * INTERVAL, events)
        assert event.kind is sp.EventKind.RELOAD_FAILED
        assert "No such file" in event.reason
        replace(path, new)
        (event,) = await events_within(10 * INTERVAL, events)
        assert event.kind is sp.EventKind.RELOADED
        assert certificate_in_use(config) == serial(new)


async def test_key_and_certificate_in_two_files_may_change_one_after_the_other(
    path: Path, tmp_path: Path, issue: Callable[[], bytes], autojump_clock: MockClock
) -> None:
    def split(pem: bytes) -> tuple[bytes, bytes]:
        start = pem.index(b"-----BEGIN CERT")
        return pem[:start], pem[start:]

    old, new = issue(), issue()
    certificate, key = tmp_path / "own.pem", tmp_path / "own.key"
    key.write_bytes(split(old)[0])
    certificate.write_bytes(split(old)[1])
    config = sp.TLSServerConfig(certificate=certificate, private_key=key, watch_files=INTERVAL)
    async with sp.Rep0(listen=URL, tls=config) as rep:
        events = rep.events()
        replace(certificate, split(new)[1])
        (event,) = await events_within(INTERVAL + 1, events)
        assert event.kind is sp.EventKind.RELOAD_FAILED
        assert "does not belong to the certificate" in event.reason
        assert certificate_in_use(config) == serial(old)
        replace(key, split(new)[0])
        (event,) = await events_within(INTERVAL, events)
        assert event.kind is sp.EventKind.RELOADED
        assert certificate_in_use(config) == serial(new)


async def test_a_file_that_is_new_in_a_directory_of_authorities_is_seen(
    path: Path, tmp_path: Path, authority: Authority, autojump_clock: MockClock
) -> None:
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    (trusted / "a.pem").write_bytes(authority.pem)
    config = sp.TLSServerConfig(certificate=path, client_ca=trusted, watch_files=INTERVAL)
    async with sp.Rep0(listen=URL, tls=config) as rep:
        events = rep.events()
        (trusted / "b.pem").write_bytes(Authority().pem)
        (event,) = await events_within(10 * INTERVAL, events)
        assert event.kind is sp.EventKind.RELOADED
        (trusted / "b.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
        (event,) = await events_within(10 * INTERVAL, events)
        assert event.kind is sp.EventKind.RELOAD_FAILED
        assert "b.pem" in event.reason


async def test_a_file_that_was_reloaded_by_hand_is_not_reloaded_again(
    path: Path, issue: Callable[[], bytes], autojump_clock: MockClock
) -> None:
    async with sp.Rep0(listen=URL, tls=sp.TLSServerConfig(certificate=path, watch_files=INTERVAL)) as rep:
        events = rep.events()
        replace(path, issue())
        rep.listeners[0].reload()
        assert [event.kind for event in await events_within(10 * INTERVAL, events)] == [sp.EventKind.RELOADED]


async def test_files_are_not_looked_at_unasked_nor_after_the_listener_was_closed(
    path: Path, issue: Callable[[], bytes], autojump_clock: MockClock
) -> None:
    watched = sp.TLSServerConfig(certificate=path, watch_files=INTERVAL)
    async with sp.Rep0(listen=URL, tls=sp.TLSServerConfig(certificate=path)) as rep:
        (await rep.listen(URL, tls=watched)).close()
        events = rep.events()
        old = path.read_bytes()
        replace(path, issue())
        assert await events_within(10 * INTERVAL, events) == []
        assert certificate_in_use(watched) == serial(old)


async def test_a_dialer_looks_at_its_files_before_it_dials(path: Path, tmp_path: Path, authority: Authority) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(Authority().pem)
    client = sp.TLSClientConfig(ca=ca, watch_files=3600)
    async with sp.Rep0(listen=URL, tls=sp.TLSServerConfig(certificate=path)) as rep, sp.Req0(tls=client) as req:
        (listener,) = rep.listeners
        events = req.events()
        with trio.fail_after(10):
            with pytest.raises(sp.DialError):
                await req.dial(listener.url)
            replace(ca, authority.pem)
            await req.dial(listener.url)
            event = await expect(events, sp.EventKind.RELOADED)
            assert event.url == listener.url
            replace(ca, b"nothing")
            await req.dial(listener.url)
            event = await expect(events, sp.EventKind.RELOAD_FAILED)
            assert isinstance(event.error, sp.TLSConfigError)
            assert str(ca) in event.reason
            await req.dial(listener.url)
        assert len(req.pipes) == 3
        req.close()
        assert [event.kind async for event in events].count(sp.EventKind.RELOAD_FAILED) == 0
