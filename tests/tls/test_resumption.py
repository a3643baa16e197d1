"""Resumed sessions: each ticket is used once, and a useless ticket costs only a full handshake."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import attrs
import pytest
import trio
from OpenSSL import SSL

import sp
from sp.tls import openssl
from sp.tls.session import TLSSession
from sp.tls.session_cache import SessionCache
from tests.faults.scripts import start_script
from tests.tls.authority import Authority
from tests.tls.test_session import End, converse, end_all, records
from tests.transports.wire import REP, REQ, expect, greeting, until

Version = Literal["TLSv1.2", "TLSv1.3"]
URL = "tls+tcp://127.0.0.1:0"
MUTUAL = pytest.mark.parametrize("mutual", [False, True], ids=["server only", "mutual"])
PSK, TICKET = 41, 35
"""Extensions of a ClientHello with what is to be resumed, under 1.3 and under 1.2."""


@pytest.fixture(params=["TLSv1.2", "TLSv1.3"])
def version(request: pytest.FixtureRequest) -> Version:
    return cast("Version", request.param)


def configs(authority: Authority, version: Version, *, mutual: bool = False) -> tuple[sp.TLSServerConfig, sp.TLSClientConfig]:
    server = authority.server(client_ca=authority.pem) if mutual else authority.server()
    client = authority.client(maximum_version=version, **({"certificate": authority.issue("client-7")} if mutual else {}))
    return server, client


# In memory.


def meet(
    server: sp.TLSServerConfig, client: sp.TLSClientConfig, *, host: str = "localhost", port: int = 5555, hellos: list[bytes] | None = None
) -> bool:
    """Connect once, exchange data and close.

    Return whether a session was resumed; both sides agree.
    """
    ends = (
        End(TLSSession(client.contexts.current, host=host, port=port), REQ, b"ping"),
        End(TLSSession(server.contexts.current), REP, b"pong"),
    )
    ends[0].take(b"")
    hello = ends[0].drain()
    if hellos is not None:
        hellos.append(hello)
    ends[1].take(hello)
    converse(*ends)
    assert [end.received for end in ends] == [greeting(REP) + b"pong", greeting(REQ) + b"ping"]
    infos = [end.session.info for end in ends]
    for end in ends:
        end.session.close()
    assert infos[0] is not None
    assert infos[1] is not None
    assert infos[0].resumed is infos[1].resumed
    return infos[0].resumed


def extensions(hello: bytes) -> dict[int, bytes]:
    """Return the extensions of the ClientHello in the record *hello*."""
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]  # the session's id
    at += 2 + int.from_bytes(hello[at : at + 2], "big")  # ciphers
    at += 1 + hello[at]  # compression
    rest = hello[at + 2 :]
    found: dict[int, bytes] = {}
    while rest:
        kind, size = struct.unpack(">HH", rest[:4])
        found[kind] = rest[4 : 4 + size]
        rest = rest[4 + size :]
    return found


def ticket_in(hello: bytes) -> bytes:
    """Return the ticket that a client offers.  Empty: none."""
    found = extensions(hello)
    if PSK not in found:
        return found.get(TICKET, b"")
    size = int.from_bytes(found[PSK][2:4], "big")
    return found[PSK][4 : 4 + size]


def cache_of(client: sp.TLSClientConfig) -> SessionCache:
    cache = client.contexts.current.sessions
    assert cache is not None
    return cache


def server_key(client: sp.TLSClientConfig) -> str:
    (key,) = cache_of(client)._sessions
    return key


def rewrite(session: SSL.Session, change: Callable[[bytes], bytes]) -> SSL.Session:
    """Return *session* with its DER changed by *change*."""
    inside: Any = SSL
    lib, ffi = inside._lib, inside._ffi
    old: Any = session
    room = ffi.new("unsigned char[]", lib.i2d_SSL_SESSION(old._session, ffi.NULL))
    size = lib.i2d_SSL_SESSION(old._session, ffi.new("unsigned char **", room))
    der = ffi.from_buffer(change(bytes(ffi.buffer(room, size))))
    made: Any = SSL.Session.__new__(SSL.Session)
    if hasattr(old, "_context"):  # pyOpenSSL 26.3 and newer
        made._context = old._context
    made._session = ffi.gc(lib.d2i_SSL_SESSION(ffi.NULL, ffi.new("const unsigned char **", der), size), lib.SSL_SESSION_free)
    assert made._session
    return cast("SSL.Session", made)


@MUTUAL
def test_every_connection_after_the_first_resumes(authority: Authority, version: Version, mutual: bool) -> None:
    server, client = configs(authority, version, mutual=mutual)
    assert [meet(server, client) for _ in range(20)] == [False] + [True] * 19


def test_no_ticket_is_shown_twice(authority: Authority) -> None:
    server, client = configs(authority, "TLSv1.3")
    hellos: list[bytes] = []
    for _ in range(20):
        meet(server, client, hellos=hellos)
    first, *later = [ticket_in(hello) for hello in hellos]
    assert first == b""
    assert all(len(ticket) > 100 for ticket in later)
    assert len(set(later)) == 19


def test_two_connections_at_once_do_not_share_a_ticket(authority: Authority) -> None:
    server, client = configs(authority, "TLSv1.3")
    meet(server, client)
    sessions = [TLSSession(client.contexts.current, host="localhost", port=5555) for _ in range(2)]
    tickets: list[bytes] = []
    for session in sessions:
        session.handshake(b"", b"")
        tickets.append(ticket_in(bytes(session.data_to_send())))
        session.close()
    assert tickets[0]
    assert not tickets[1]


@MUTUAL
@pytest.mark.parametrize("place", [0, 15, 16, 40, -40, -1], ids=["name", "name's end", "iv", "content", "digest", "end"])
def test_a_forged_ticket_costs_a_full_handshake_and_nothing_else(authority: Authority, version: Version, mutual: bool, place: int) -> None:
    server, client = configs(authority, version, mutual=mutual)
    hellos: list[bytes] = []
    meet(server, client)
    assert meet(server, client, hellos=hellos)
    key = server_key(client)
    session = cache_of(client).take(key)
    assert session is not None

    def offered(changed: SSL.Session) -> bytes:
        """Return the ticket that a client would offer, from a hello that is not sent."""
        cache_of(client).put(key, changed)
        probe = TLSSession(client.contexts.current, host="localhost", port=5555)
        probe.handshake(b"", b"")
        ticket = ticket_in(bytes(probe.data_to_send()))
        probe.close()
        return ticket

    ticket = offered(rewrite(session, bytes))
    assert len(ticket) > 100
    forged = bytearray(ticket)
    forged[place] ^= 0x01
    cache_of(client).put(key, rewrite(session, lambda der: der.replace(ticket, bytes(forged))))
    hellos.clear()
    assert not meet(server, client, hellos=hellos)
    assert ticket_in(hellos[0]) == forged
    assert meet(server, client)
    # The genuine ticket still works, so the forged ones failed for the reason that they should.
    cache_of(client).take(key)
    cache_of(client).put(key, rewrite(session, bytes))
    assert meet(server, client)


@MUTUAL
def test_a_replayed_ticket_does_no_harm(authority: Authority, version: Version, mutual: bool) -> None:
    server, client = configs(authority, version, mutual=mutual)
    meet(server, client)
    key = server_key(client)
    session = cache_of(client).take(key)
    assert session is not None
    for _ in range(3):
        cache_of(client).put(key, rewrite(session, bytes))
        meet(server, client)
    assert meet(server, client)


@MUTUAL
def test_a_replayed_hello_gets_nowhere(authority: Authority, version: Version, mutual: bool) -> None:
    server, client = configs(authority, version, mutual=mutual)
    hellos: list[bytes] = []
    meet(server, client)
    meet(server, client, hellos=hellos)
    thief = End(TLSSession(server.contexts.current), REP)
    thief.take(hellos[0])
    assert greeting(REP) not in thief.drain()
    with pytest.raises(sp.TLSError):
        thief.take(hellos[0])
    assert not thief.session.established
    thief.session.close()
    assert meet(server, client)


@pytest.mark.slow
@MUTUAL
def test_an_expired_ticket_costs_a_full_handshake_and_nothing_else(authority: Authority, mutual: bool) -> None:
    begun = time.monotonic()
    kept: list[tuple[sp.TLSServerConfig, sp.TLSClientConfig, str, SSL.Session]] = []
    for version in ("TLSv1.2", "TLSv1.3"):
        server, client = configs(authority, version, mutual=mutual)
        server.contexts.current.context.set_timeout(1)  # the shortest there is
        meet(server, client)
        key = server_key(client)
        session = cache_of(client).take(key)
        assert session is not None
        kept.append((server, client, key, session))
    for server, client, key, session in kept:
        while True:  # OpenSSL has its own clock
            cache_of(client).put(key, rewrite(session, bytes))
            if not meet(server, client):
                break
            assert time.monotonic() < begun + 5
        assert meet(server, client)


def test_a_ticket_of_last_year_costs_a_full_handshake_and_nothing_else(authority: Authority) -> None:
    server, client = configs(authority, "TLSv1.3")
    meet(server, client)
    key = server_key(client)
    session = cache_of(client).take(key)
    assert session is not None

    def age(der: bytes) -> bytes:
        at = der.index(b"\xa1\x06\x02\x04") + 4
        return der[:at] + (int.from_bytes(der[at : at + 4], "big") - 366 * 86_400).to_bytes(4, "big") + der[at + 4 :]

    cache_of(client).put(key, rewrite(session, age))
    assert [meet(server, client) for _ in range(3)] == [False, True, True]


@MUTUAL
def test_a_server_with_a_new_context_takes_no_older_ticket_and_gives_new_ones(authority: Authority, version: Version, mutual: bool) -> None:
    server, client = configs(authority, version, mutual=mutual)
    assert [meet(server, client) for _ in range(2)] == [False, True]
    server.reload()
    hellos: list[bytes] = []
    assert not meet(server, client, hellos=hellos)
    assert ticket_in(hellos[0])
    assert [meet(server, client) for _ in range(2)] == [True, True]


def test_a_client_with_a_new_context_has_forgotten_all_sessions(authority: Authority, version: Version) -> None:
    server, client = configs(authority, version)
    assert [meet(server, client) for _ in range(2)] == [False, True]
    client.reload()
    hellos: list[bytes] = []
    assert not meet(server, client, hellos=hellos)
    assert not ticket_in(hellos[0])
    assert meet(server, client)


@pytest.mark.parametrize("who", ["server", "client", "both"])
def test_without_session_reuse_nothing_is_resumed_and_nothing_fails(authority: Authority, version: Version, who: str) -> None:
    server = authority.server(session_reuse=who == "client")
    client = authority.client(session_reuse=who == "server", maximum_version=version)
    hellos: list[bytes] = []
    assert [meet(server, client, hellos=hellos) for _ in range(4)] == [False] * 4
    if who != "server":
        assert client.contexts.current.sessions is None
        assert not any(ticket_in(hello) for hello in hellos)


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("own_context", [True, False])
def test_a_server_without_session_reuse_sends_no_tickets_where_that_can_be_said(
    own_context: bool, reuse: bool, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[int] = []

    class Binding:
        """That of pyOpenSSL, with the call that it does not have."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def SSL_CTX_set_num_tickets(self, context: object, number: int) -> int:  # noqa: N802  # OpenSSL's name
            numbers.append(number)
            return 1

    real: Any = openssl._lib
    monkeypatch.setattr(openssl, "_lib", Binding())
    if own_context:
        sp.TLSServerConfig(context=SSL.Context(SSL.TLS_METHOD), session_reuse=reuse)
    else:
        authority.server(session_reuse=reuse)
    assert numbers == ([] if reuse else [0])


def test_servers_with_one_configuration_resume_each_others_sessions_and_others_do_not(authority: Authority, version: Version) -> None:
    pem = authority.issue("localhost")
    server, other = sp.TLSServerConfig(certificate=pem), sp.TLSServerConfig(certificate=pem)
    client = authority.client(maximum_version=version)
    assert [meet(server, client), meet(server, client)] == [False, True]
    assert not meet(other, client)
    assert meet(other, client)
    assert not meet(attrs.evolve(other), client)  # an equal one is another one


def test_clients_with_another_configuration_do_not_share_sessions(authority: Authority, version: Version) -> None:
    server, client = configs(authority, version)
    meet(server, client)
    hellos: list[bytes] = []
    assert not meet(server, attrs.evolve(client), hellos=hellos)
    assert not ticket_in(hellos[0])
    assert meet(server, client)


def test_sessions_are_kept_apart_by_host_port_and_expected_name(authority: Authority, version: Version) -> None:
    server, client = configs(authority, version)
    places = [("localhost", 1), ("localhost", 2), ("127.0.0.1", 1), ("127.0.0.1", 2)]
    assert [meet(server, client, host=host, port=port) for host, port in places] == [False] * 4
    assert len(cache_of(client)) == 4
    assert [meet(server, client, host=host, port=port) for host, port in places] == [True] * 4
    named = authority.client(server_name="localhost", maximum_version=version)
    assert [meet(server, named, host=host, port=port) for host, port in places] == [False] * 4
    assert len(cache_of(named)) == 4


def test_a_full_cache_forgets_the_server_unused_for_longest(authority: Authority, version: Version) -> None:
    server = authority.server()
    client = authority.client(session_cache_size=2, maximum_version=version)
    assert [meet(server, client, port=port) for port in (1, 2, 1)] == [False, False, True]
    assert not meet(server, client, port=3)  # 2 is forgotten
    assert len(cache_of(client)) == 2
    assert meet(server, client, port=1)
    assert not meet(server, client, port=2)  # and 3
    assert not meet(server, client, port=3)
    assert len(cache_of(client)) == 2


def test_of_one_server_eight_sessions_are_kept_and_the_newest_is_used_first() -> None:
    cache = SessionCache(3)
    made: Any = [object() for _ in range(10)]
    for session in made:
        cache.put("a", session)
    assert [cache.take("a") for _ in range(9)] == [*reversed(made[2:]), None]
    assert len(cache) == 0


def test_taking_a_session_counts_as_use() -> None:
    cache = SessionCache(2)
    made: Any = [object() for _ in range(4)]
    cache.put("a", made[0])
    cache.put("a", made[1])
    cache.put("b", made[2])
    assert cache.take("a") is made[1]
    cache.put("c", made[3])
    assert cache.take("b") is None
    assert cache.take("a") is made[0]
    assert cache.take("c") is made[3]


def test_a_connection_that_is_cut_off_does_not_spoil_its_session(authority: Authority, version: Version) -> None:
    server, client = configs(authority, version)
    for _ in range(2):
        ends = End(TLSSession(client.contexts.current, host="localhost", port=5555), REQ), End(TLSSession(server.contexts.current), REP)
        converse(*ends)
        ends[0].session.close()  # it has heard no end from the server
        ends[1].session.close()
    assert meet(server, client)


def ends_of(server: sp.TLSServerConfig, client: sp.TLSClientConfig) -> tuple[End, End]:
    return End(TLSSession(client.contexts.current, host="localhost", port=5555), REQ), End(TLSSession(server.contexts.current), REP)


def up_to_the_greeting(client: End, server: End) -> bytes:
    """Give *client* all that *server* sent except its greeting.  Return the greeting."""
    client.take(b"")
    rest = b""
    while not rest:
        server.take(client.drain())
        *before, rest = records(server.drain())
        if server.session.established:
            client.take(b"".join(before))
        else:
            client.take(b"".join([*before, rest]))
            rest = b""
    assert client.session.established
    assert client.received == b""
    return rest


def test_the_session_of_a_connection_on_which_the_peer_was_never_heard_is_not_kept(authority: Authority, version: Version) -> None:
    """A server that asks for certificates greets after its tickets, so it may still refuse us."""
    server, client = configs(authority, version, mutual=True)
    ends = ends_of(server, client)
    up_to_the_greeting(*ends)
    ends[0].session.close()
    assert len(cache_of(client)) == 0

    ends = ends_of(server, client)
    ends[0].take(up_to_the_greeting(*ends))
    ends[0].session.close()
    assert len(cache_of(client)) == 1


def test_the_session_of_a_connection_that_has_failed_is_not_kept(authority: Authority) -> None:
    """The first ticket arrives in one piece with a forged record."""
    server, client = configs(authority, "TLSv1.3")
    ends = ends_of(server, client)
    ends[0].take(b"")
    ends[1].take(ends[0].drain())
    ends[0].take(ends[1].drain())
    assert ends[0].received == greeting(REP)
    assert len(cache_of(client)) == 0  # as there was no ticket
    ends[1].take(ends[0].drain())
    *tickets, last = records(ends[1].drain())
    assert tickets
    with pytest.raises(sp.TLSError):
        ends[0].take(b"".join(tickets) + last[:-1] + bytes([last[-1] ^ 1]))
    ends[0].session.close()
    assert len(cache_of(client)) == 0


def test_a_failure_after_the_peer_was_heard_costs_no_other_session(authority: Authority, version: Version) -> None:
    server, client = configs(authority, version)
    both = ends_of(server, client), ends_of(server, client)
    for ends in both:
        converse(*ends)
    end_all(*both[0])
    assert meet(server, client)
    ends = ends_of(server, client)
    converse(*ends)
    assert ends[0].session.info is not None
    assert ends[0].session.info.resumed
    end_all(*both[1])
    before = len(cache_of(client))
    with pytest.raises(sp.TLSError):
        ends[0].take(b"garbage")
    end_all(*ends)
    assert len(cache_of(client)) == before == 1


def test_a_session_is_kept_once(authority: Authority, version: Version) -> None:
    server, client = configs(authority, version)
    meet(server, client)
    key = server_key(client)
    assert cache_of(client).take(key) is not None
    assert cache_of(client).take(key) is None


# Over sockets.


async def exchange(req: sp.Req0, rep: sp.Rep0) -> None:
    await req.send(b"ping")
    assert await rep.receive() == b"ping"
    await rep.send(b"pong")
    assert await req.receive() == b"pong"


def handshakes(req: sp.Req0, rep: sp.Rep0) -> tuple[dict[str, int], dict[str, int]]:
    """Return the counts of the only dialer and of the only listener."""
    return dict(req.statistics().dialers[0].tls_handshakes), dict(rep.statistics().listeners[0].tls_handshakes)


@pytest.mark.slow
@MUTUAL
async def test_of_a_hundred_connections_ninety_nine_resume(authority: Authority, version: Version, mutual: bool) -> None:
    server, client = configs(authority, version, mutual=mutual)
    with trio.fail_after(30):
        async with sp.Rep0(listen=URL, tls=server) as rep, sp.Req0(tls=client, redial_min=0.001, redial_max=0.001) as req:
            dialer = await req.dial(rep.url)
            events = rep.events()
            for number in range(100):
                await exchange(req, rep)
                if number == 99:
                    break
                (req if number % 2 else rep).pipes[0].close()
                await expect(events, sp.EventKind.DETACHED)
            assert handshakes(req, rep) == ({"full": 1, "resumed": 99}, {"full": 1, "resumed": 99})
            assert dialer.pipe is not None
            assert dialer.pipe.tls is not None
            assert dialer.pipe.tls.resumed
            assert req.statistics().as_dict()["dialers"][0]["tls_handshakes"] == {"full": 1, "resumed": 99}


@pytest.mark.parametrize("who", ["server", "client"])
async def test_reconnects_without_session_reuse_are_counted_as_full(authority: Authority, version: Version, who: str) -> None:
    server = authority.server(session_reuse=who == "client")
    client = authority.client(session_reuse=who == "server", maximum_version=version)
    with trio.fail_after(10):
        async with sp.Rep0(listen=URL, tls=server) as rep, sp.Req0(tls=client, redial_min=0.001, redial_max=0.001) as req:
            await req.dial(rep.url)
            for _ in range(4):
                await exchange(req, rep)
                rep.pipes[0].close()
            await exchange(req, rep)
            assert handshakes(req, rep) == ({"full": 5}, {"full": 5})


async def test_after_a_reload_one_full_handshake_follows(authority: Authority, version: Version) -> None:
    server, client = configs(authority, version)
    with trio.fail_after(10):
        async with sp.Rep0(listen=URL, tls=server) as rep, sp.Req0(tls=client, redial_min=0.001, redial_max=0.001) as req:
            await req.dial(rep.url)
            for number in range(6):
                await exchange(req, rep)
                if number == 2:
                    rep.listeners[0].reload()
                rep.pipes[0].close()
            await exchange(req, rep)
            assert handshakes(req, rep) == ({"full": 2, "resumed": 5}, {"full": 2, "resumed": 5})


async def test_several_dialers_resume_at_once(authority: Authority, version: Version) -> None:
    server, client = configs(authority, version)

    async def round_of(rep: sp.Rep0) -> None:
        async with sp.Req0(tls=client) as one, sp.Req0(tls=client) as two, sp.Req0(tls=client) as three:
            sockets = (one, two, three)
            async with trio.open_nursery() as nursery:
                for req in sockets:
                    nursery.start_soon(req.dial, rep.url)
            for req in sockets:
                await exchange(req, rep)

    with trio.fail_after(10):
        async with sp.Rep0(listen=URL, tls=server) as rep:
            await round_of(rep)
            assert rep.statistics().listeners[0].tls_handshakes == {"full": 3}
            await round_of(rep)
            await round_of(rep)
            assert rep.statistics().listeners[0].tls_handshakes == {"full": 3, "resumed": 6}


def socket_of(pipe: sp.Pipe) -> socket.socket:
    inside: Any = pipe
    return cast("socket.socket", inside._worker.connection._link._inner._socket)


@pytest.mark.parametrize("how", ["fin", pytest.param("reset", marks=pytest.mark.skipif(sys.platform != "linux", reason="as Linux has it"))])
async def test_a_session_survives_the_sudden_end_of_its_connection(authority: Authority, version: Version, how: str) -> None:
    server, client = configs(authority, version)
    with trio.fail_after(10):
        async with sp.Rep0(listen=URL, tls=server) as rep, sp.Req0(tls=client, redial_min=0.001, redial_max=0.001) as req:
            dialer = await req.dial(rep.url)
            for _ in range(5):
                await exchange(req, rep)
                events = req.events()
                sock = socket_of(rep.pipes[0])
                if how == "fin":
                    sock.shutdown(socket.SHUT_WR)
                else:
                    dissolve(sock)
                event = await expect(events, sp.EventKind.DETACHED)
                assert "without ending TLS" in event.reason or isinstance(event.error, OSError)
                await until(lambda: dialer.pipe is not None)
            await exchange(req, rep)
            assert handshakes(req, rep) == ({"full": 1, "resumed": 5}, {"full": 1, "resumed": 5})


def dissolve(sock: socket.socket) -> None:
    """Let the kernel reset the connection, even if others have copies of the socket."""
    unspecified = struct.pack("H14x", socket.AF_UNSPEC)
    assert ctypes.CDLL(None).connect(sock.fileno(), unspecified, len(unspecified)) == 0


_SERVER = """
import sys, sp, trio

async def main():
    config = sp.TLSServerConfig(certificate=sys.argv[1])
    async with sp.Rep0(listen="tls+tcp://127.0.0.1:" + sys.argv[2], tls=config) as rep:
        print(rep.url, flush=True)
        async for request in rep.requests():
            await request.reply(request.body)

trio.run(main)
"""


@pytest.mark.slow
async def test_another_process_with_the_same_certificate_costs_a_full_handshake_and_nothing_else(
    authority: Authority, version: Version, tmp_path: Path
) -> None:
    path = tmp_path / "server.pem"
    path.write_bytes(authority.issue("127.0.0.1"))
    client = authority.client(maximum_version=version)
    with trio.fail_after(30):
        server = sp.TLSServerConfig(certificate=path)
        async with sp.Req0(tls=client, redial_min=0.01, redial_max=0.01) as req:
            async with sp.Rep0(listen=URL, tls=server) as rep:
                url = rep.url
                dialer = await req.dial(url)
                for _ in range(2):
                    await exchange(req, rep)
                    rep.pipes[0].close()
                await exchange(req, rep)
            async with start_script(_SERVER, str(path), url.rpartition(":")[2]) as script:
                await script.hear(url)
                assert await req.request(b"who are you?") == b"who are you?"
                assert dialer.pipe is not None
                dialer.pipe.close()
                assert await req.request(b"and now?") == b"and now?"
                assert dialer.statistics().tls_handshakes == {"full": 2, "resumed": 3}
                assert "TLSError" not in dialer.statistics().failures
