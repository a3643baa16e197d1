"""Against libnng 1.11 of pynng over ws and wss, in our own process: all about HTTP.

test_pynng.py has the rest of ws.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pynng
import pytest
import trio
import trio.testing

import sp
from interop.partners import (
    OURS,
    REDIAL,
    SOON,
    THEIRS,
    Arrivals,
    Pair,
    address,
    body_of,
    connect,
    crowd,
    dial_as_crowd,
    each_listener,
    each_stranger,
    exchange,
    listen_partner,
    next_event,
    our_client,
    our_server,
    pair_of,
    partner,
    port_of,
    pump,
    refused_by_partner,
    refused_by_us,
    relay,
    their_client,
    their_server,
    tls_ends,
)
from tests.tls.authority import Authority

pytestmark = pytest.mark.libnng

URL: Final = "ws://127.0.0.1:0"
CROWD: Final = 20
BOUNDARIES: Final = (125, 126, 65_535, 65_536, 65_537)
"""Sizes at which the header of a frame changes, or a second frame is needed."""
LARGE: Final = 10 << 20
PING, PONG = b"\x89\0", b"\x8a\0"
"""The frames as a server sends them."""
PINGS: Final = 100
INTERVAL: Final = 0.01

each_way = pytest.mark.parametrize("way", ["ws", "wss", "wss-mutual"])
REQ_REP, REP_REQ, BUS = map(pair_of, (sp.Req0, sp.Rep0, sp.Bus0))


@asynccontextmanager
async def connected(
    pair: Pair, way: str, listener: str, authority: Authority, partners_options: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Any, pynng.Socket, Arrivals]]:
    """The two, connected; *options* are for our side."""
    scheme, _, mutual = way.partition("-")
    tls, tls_config = tls_ends(listener, authority, mutual=bool(mutual)) if scheme == "wss" else (None, None)
    async with pair.open(tls=tls, **options) as ours, pair.partner(tls_config=tls_config, **(partners_options or {})) as theirs:
        yield ours, theirs, await connect(ours, theirs, scheme, listener, Path())


@each_way
@each_listener
@pytest.mark.parametrize("pair", [REQ_REP, BUS], ids=str)
async def test_bodies_of_every_size_arrive_unchanged(pair: Pair, listener: str, way: str, authority: Authority) -> None:
    async with connected(pair, way, listener, authority) as (ours, theirs, _):
        for size in sorted({0, 1, *BOUNDARIES, *(size - pair.header for size in BOUNDARIES), 900_000}):
            await exchange(ours, theirs, pair.turns, body_of(size))
        (pipe,) = ours.pipes
        assert (pipe.http.path, pipe.http.query) == ("/", "")
        assert pipe.http.scheme == ("http" if way == "ws" else "https")
        if way == "ws":
            assert pipe.tls is None
        elif listener == OURS:
            assert pipe.tls.names == (("DNS:theirs.example",) if way == "wss-mutual" else ())
        else:
            assert pipe.tls.names == ("DNS:localhost", "IP:127.0.0.1")
        (endpoint,) = ours.listeners or ours.dialers
        statistics = endpoint.statistics()
        assert (statistics.attached, statistics.failures) == (1, {})
    assert not ours.statistics().dropped


@pytest.mark.parametrize("way", ["ws", "wss"])
@each_listener
@pytest.mark.parametrize("pair", [REQ_REP, BUS], ids=str)
async def test_a_message_of_ten_megabytes_arrives_where_there_is_no_limit(
    pair: Pair, listener: str, way: str, authority: Authority
) -> None:
    async with connected(pair, way, listener, authority, max_message_size=None) as (ours, theirs, _):
        await exchange(ours, theirs, pair.turns, body_of(LARGE))
        await exchange(ours, theirs, pair.turns, b"and one more")
        assert len(ours.pipes) == 1


@each_listener
async def test_messages_over_wss_arrive_in_order(listener: str, authority: Authority) -> None:
    async with connected(pair_of(sp.Pub0), "wss", listener, authority, {"recv_buffer_size": 128}) as (ours, theirs, _):
        await pump(ours.send, theirs.arecv, 3000)
    assert not ours.statistics().dropped
    async with connected(pair_of(sp.Sub0), "wss", listener, authority, {"send_buffer_size": 128}) as (ours, theirs, _):
        await pump(theirs.asend, ours.receive, 3000)
    assert not ours.statistics().dropped


# A crowd.


@each_way
async def test_twenty_that_dial_us_at_once_are_all_answered(way: str, authority: Authority) -> None:
    scheme, _, mutual = way.partition("-")
    tls, tls_config = tls_ends(OURS, authority, mutual=bool(mutual)) if scheme == "wss" else (None, None)
    async with sp.Rep0(tls=tls) as ours:
        listener = await ours.listen(f"{scheme}://127.0.0.1:0")
        async with crowd(ours, listener.url, CROWD, tls_config=tls_config):
            assert len(ours.pipes) == CROWD
            assert listener.statistics().attached == CROWD


@each_way
async def test_twenty_of_ours_that_dial_at_once_are_all_answered(way: str, authority: Authority) -> None:
    scheme, _, mutual = way.partition("-")
    tls, tls_config = tls_ends(THEIRS, authority, mutual=bool(mutual)) if scheme == "wss" else (None, None)
    async with partner("Rep0", tls_config=tls_config) as theirs:
        for statistics in await dial_as_crowd(theirs, listen_partner(theirs, f"{scheme}://127.0.0.1:0"), CROWD, tls=tls):
            assert set(statistics.failures) <= {"PeerClosed", "TLSError"}
            assert statistics.attempts == 1 + sum(statistics.failures.values())


# Again.


async def test_a_request_over_wss_is_answered_by_a_server_that_died_and_came_back(authority: Authority) -> None:
    async with sp.Req0(tls=our_client(authority), **REDIAL) as ours:
        async with partner("Rep0", tls_config=their_server(authority)) as first:
            url = listen_partner(first, "wss://127.0.0.1:0/rep")
            await ours.dial(url)
            await ours.send(b"question")
            assert await first.arecv() == b"question"
        async with partner("Rep0", tls_config=their_server(authority)) as second:
            second.listen(url)
            assert await second.arecv() == b"question"
            await second.asend(b"answer")
            assert await ours.receive() == b"answer"


async def test_a_partner_s_request_over_wss_is_answered_by_our_server_that_was_closed_and_came_back(authority: Authority) -> None:
    async with partner("Req0", tls_config=their_client(authority)) as theirs:
        async with sp.Rep0(tls=our_server(authority)) as first:
            url = (await first.listen("wss://127.0.0.1:0/rep")).url
            theirs.dial(url, block=False)
            await theirs.asend(b"question")
            assert await first.receive() == b"question"
        async with sp.Rep0(listen=url, tls=our_server(authority)) as second:
            assert await second.receive() == b"question"
            await second.send(b"answer")
            assert await theirs.arecv() == b"answer"


@each_listener
async def test_a_pipe_that_we_close_is_replaced(listener: str, authority: Authority) -> None:
    async with connected(REP_REQ, "ws", listener, authority) as (ours, theirs, arrivals):
        await exchange(ours, theirs, REP_REQ.turns, b"first")
        ours.pipes[0].close()
        await arrivals.wait(2)
        await exchange(ours, theirs, REP_REQ.turns, b"second")


# Sockets that do not fit each other.


@each_stranger
async def test_a_partner_of_the_wrong_protocol_refuses_our_dialer_until_a_right_one_is_there(kind: type[Any], stranger: str) -> None:
    async with kind(**REDIAL) as ours:
        events = ours.events()
        async with partner(stranger) as wrong:
            url = listen_partner(wrong, URL)
            dialer = await ours.dial(url, wait=False)
            event = await next_event(events, sp.EventKind.DIAL_FAILED)
            assert isinstance(event.error, sp.UpgradeRefused)
            assert event.error.response.status == 400
            assert dialer.statistics().attached == 0
        async with partner(pair_of(kind).theirs) as right:
            right.listen(url)
            with trio.fail_after(SOON):
                await ours.wait_for_peers()


async def test_a_partner_of_the_wrong_protocol_is_told_which_one_would_be_right(tmp_path: Path) -> None:
    async with sp.Rep0() as ours:
        events = ours.events()
        listener = await ours.listen(address("ws", tmp_path))
        async with relay(listener.url) as (between, url), partner("Sub0") as theirs:
            theirs.dial(url, block=False)
            event = await next_event(events, sp.EventKind.REFUSED)
            await between.hear(b"expected sub-protocol rep.sp.nanomsg.org\n")
        assert "wrong protocol: the peer is SUB, expected REQ" in event.reason
        assert between.said.startswith(b"HTTP/1.1 400 ")


# Paths, queries and hosts.


@pytest.mark.parametrize(
    ("path", "dialed"),
    [("", "/"), ("/", ""), ("/a/b", "/a/b"), ("/a/b", "/a/b/"), ("/a/b", "/a/b?c=%20&d"), ("", "?c=d"), ("/a%20b", "/a%20b")],
)
async def test_a_partner_finds_our_path(path: str, dialed: str) -> None:
    async with sp.Rep0() as ours:
        listener = await ours.listen(f"{URL}{path}")
        async with partner("Req0") as theirs:
            theirs.dial(f"ws://127.0.0.1:{port_of(listener.url)}{dialed}", block=False)
            await exchange(ours, theirs, (THEIRS, OURS), b"found")
            (pipe,) = ours.pipes
        sent, _, query = dialed.partition("?")
        assert pipe.http is not None
        assert (pipe.http.path, pipe.http.query) == (sent or "/", query)


async def test_a_partner_finds_our_path_whatever_the_case_of_its_escapes() -> None:
    # RFC 3986, 6.2.2.1; libnng writes them in upper case, however they stand in its URL.
    async with sp.Rep0() as ours:
        listener = await ours.listen(f"{URL}/a%2fb")
        async with partner("Req0") as theirs:
            theirs.dial(listener.url, block=False)
            with trio.fail_after(SOON):
                await exchange(ours, theirs, (THEIRS, OURS), b"found")


@pytest.mark.parametrize(("path", "dialed"), [("", ""), ("/a/b", "/a/b"), ("/a/b", "/a/b/"), ("/a/b", "/a/b?c=%20&d"), ("", "/?c=d")])
async def test_we_find_a_partner_s_path(path: str, dialed: str) -> None:
    async with sp.Req0(**REDIAL) as ours, partner("Rep0") as theirs:
        port = port_of(listen_partner(theirs, f"{URL}{path}"))
        await ours.dial(f"ws://127.0.0.1:{port}{dialed}")
        await exchange(ours, theirs, (OURS, THEIRS), b"found")


async def test_a_partner_that_asks_for_another_path_is_answered_404() -> None:
    async with sp.Rep0() as ours:
        events = ours.events()
        listener = await ours.listen(f"{URL}/a")
        async with partner("Req0") as theirs:
            theirs.dial(listener.url.replace("/a", "/b"), block=False)
            event = await next_event(events, sp.EventKind.REFUSED)
        assert "HTTP 404: no socket listens at '/b'" in event.reason
        assert not ours.pipes


async def test_we_are_answered_404_when_we_ask_a_partner_for_another_path() -> None:
    async with partner("Rep0") as theirs:
        url = listen_partner(theirs, f"{URL}/a")
        async with sp.Req0() as ours:
            with pytest.raises(sp.DialError, match="404") as caught:
                await ours.dial(url.replace("/a", "/b"))
            assert isinstance(caught.value.__cause__, sp.UpgradeRefused)
            assert not caught.value.__cause__.permanent


async def test_partners_find_two_of_our_sockets_at_one_port() -> None:
    async with sp.Rep0() as rep, sp.Pub0() as pub:
        url = (await rep.listen(f"{URL}/rep")).url
        await pub.listen(url.replace("/rep", "/pub"))
        async with partner("Req0") as their_req, partner("Sub0") as their_sub:
            their_sub.dial(url.replace("/rep", "/pub"), block=False)
            their_req.dial(url, block=False)
            await exchange(rep, their_req, (THEIRS, OURS), b"question")
            await pub.wait_for_peers()
            await exchange(pub, their_sub, (OURS,), b"news")


async def test_we_find_two_of_a_partner_s_sockets_at_one_port() -> None:
    async with partner("Rep0") as their_rep, partner("Pub0") as their_pub:
        url = listen_partner(their_rep, f"{URL}/rep")
        their_pub.listen(url.replace("/rep", "/pub"))
        async with sp.Req0() as req, sp.Sub0(topics=b"") as sub:
            arrivals = Arrivals(their_pub)
            await sub.dial(url.replace("/rep", "/pub"))
            await req.dial(url)
            await exchange(req, their_rep, (OURS, THEIRS), b"question")
            await arrivals.wait()
            await exchange(sub, their_pub, (THEIRS,), b"news")


async def test_a_partner_may_call_our_host_as_it_likes() -> None:
    async with sp.Rep0() as ours:
        listener = await ours.listen(URL)
        async with partner("Req0") as theirs:
            theirs.dial(listener.url.replace("127.0.0.1", "localhost"), block=False)
            await exchange(ours, theirs, (THEIRS, OURS), b"found")
            (pipe,) = ours.pipes
        assert pipe.http is not None
        assert pipe.http.headers["Host"] == f"localhost:{port_of(listener.url)}"


ELSEWHERE: Final = sp.WSClientConfig(headers={"Host": "elsewhere.example"})


async def test_a_partner_that_is_called_by_another_name_refuses_us() -> None:
    async with partner("Rep0") as theirs:
        url = listen_partner(theirs, URL)
        async with sp.Req0(ws=ELSEWHERE) as ours:
            with pytest.raises(sp.DialError, match="404"):
                await ours.dial(url)


async def test_a_partner_at_a_wildcard_may_be_called_by_any_name() -> None:
    async with partner("Rep0") as theirs:
        port = port_of(listen_partner(theirs, "ws://*:0"))
        async with sp.Req0(ws=ELSEWHERE) as ours:
            await ours.dial(f"ws://127.0.0.1:{port}")
            await exchange(ours, theirs, (OURS, THEIRS), b"found")


@each_listener
async def test_the_two_meet_at_an_ipv6_address(listener: str) -> None:
    async with REQ_REP.open() as ours, REQ_REP.partner() as theirs:
        if listener == OURS:
            theirs.dial((await ours.listen("ws://[::1]:0/a")).url, block=False)
        else:
            await ours.dial(listen_partner(theirs, "ws://[::1]:0/a"))
        await exchange(ours, theirs, REQ_REP.turns, b"found")


# Pings.


@pytest.mark.parametrize("everyone", [False, True], ids=["default", "everyone"])
async def test_a_partner_that_listens_is_pinged_and_answers_and_its_idle_pipe_lives(everyone: bool) -> None:
    http = sp.WSClientConfig(ping_interval=INTERVAL, ping_timeout=PINGS * INTERVAL / 2, ping_everyone=everyone)
    async with sp.Req0(ws=http) as ours, partner("Rep0") as theirs, relay(listen_partner(theirs, URL)) as (between, url):
        await ours.dial(url)
        (pipe,) = ours.pipes
        await between.hear(PONG, PINGS)
        assert ours.pipes == (pipe,)
        await exchange(ours, theirs, (OURS, THEIRS), b"alive")


@pytest.mark.parametrize("everyone", [False, True], ids=["default", "everyone"])
async def test_a_partner_that_dials_is_pinged_only_if_everyone_is_and_its_idle_pipe_lives(everyone: bool) -> None:
    http = sp.WSServerConfig(ping_interval=INTERVAL, ping_timeout=PINGS * INTERVAL / 2, ping_everyone=everyone)
    async with sp.Rep0(ws=http) as ours, sp.Req0(ws=sp.WSClientConfig(ping_interval=None)) as witness:
        listener = await ours.listen(URL)
        async with relay(listener.url) as (between, url), relay(listener.url) as (clock, witness_url), partner("Req0") as theirs:
            theirs.dial(url, block=False)
            await ours.wait_for_peers()
            (pipe,) = ours.pipes
            await witness.dial(witness_url)  # this tells us that it is not libnanomsg
            await clock.hear(PING, PINGS)
            assert bool(between.said.count(PING)) is everyone
            if everyone:
                await between.hear(PING, PINGS)
            assert pipe in ours.pipes
            await exchange(ours, theirs, (THEIRS, OURS), b"alive")


async def test_a_partner_whose_application_is_busy_answers_no_ping_and_is_not_taken_for_gone(mock_clock: trio.testing.MockClock) -> None:
    http = sp.WSClientConfig(ping_interval=0.2, ping_timeout=0.2)
    async with sp.Req0(ws=http, resend_after=None) as ours, partner("Rep0") as theirs:
        await ours.dial(listen_partner(theirs, URL))
        (pipe,) = ours.pipes
        asked = [ours.context() for _ in range(4)]
        for context in asked:
            await context.send(b"when there is time")
        for _ in range(20):
            await trio.testing.wait_all_tasks_blocked(0.005)
            mock_clock.jump(0.2)
        assert ours.pipes == (pipe,)
        for context in asked:
            assert await theirs.arecv() == b"when there is time"
            await theirs.asend(b"now")
            assert await context.receive() == b"now"


# TLS.


async def test_a_partner_without_the_certificate_that_we_require_is_refused(authority: Authority) -> None:
    event = await refused_by_us("wss", "wss", tls=our_server(authority, mutual=True), tls_config=their_client(authority))
    assert isinstance(event.error, sp.AuthenticationError)
    assert "the client sent no certificate, and one is required" in event.reason


async def test_a_partner_of_an_unknown_authority_is_refused(authority: Authority, stranger: Authority) -> None:
    tls_config = their_client(authority, stranger.issue("theirs.example"))
    event = await refused_by_us("wss", "wss", tls=our_server(authority, mutual=True), tls_config=tls_config)
    assert isinstance(event.error, sp.AuthenticationError)
    assert "the client's certificate was refused: unable to get local issuer certificate" in event.reason


async def test_a_partner_that_does_not_trust_us_says_so(authority: Authority, stranger: Authority) -> None:
    event = await refused_by_us("wss", "wss", tls=our_server(authority), tls_config=their_client(stranger))
    assert isinstance(event.error, sp.AuthenticationError)
    assert "the client refused our certificate" in event.reason


async def test_a_server_of_an_unknown_authority_is_refused(authority: Authority, stranger: Authority) -> None:
    cause = await refused_by_partner("wss", "wss", tls_config=their_server(stranger), tls=our_client(authority))
    assert isinstance(cause, sp.AuthenticationError)
    assert "the server's certificate was refused: unable to get local issuer certificate" in str(cause)


async def test_a_server_with_another_name_is_refused(authority: Authority) -> None:
    tls = our_client(authority, server_name="other.example")
    cause = await refused_by_partner("wss", "wss", tls_config=their_server(authority), tls=tls)
    assert isinstance(cause, sp.AuthenticationError)
    assert "it is for DNS:localhost, IP:127.0.0.1, not for 'other.example'" in str(cause)


async def test_we_learn_in_time_that_a_server_wants_a_certificate(authority: Authority) -> None:
    tls_config = their_server(authority, mutual=True)
    cause = await refused_by_partner("wss", "wss", tls_config=tls_config, tls=our_client(authority))
    assert isinstance(cause, sp.TLSError)
    assert "the server refused us or gave up" in str(cause)


# The two sides mean different schemes.

ENCRYPTED: Final = ("wss", "tls+tcp")


@pytest.mark.parametrize(
    ("scheme", "dialed", "words"),
    [
        ("ws", "tcp", "one side says ws://, the other tcp://"),
        # Nobody can see what is inside.
        ("ws", "tls+tcp", "that is TLS: one side says ws://, the other wss://"),
        ("ws", "wss", "that is TLS: one side says ws://, the other wss://"),
        ("wss", "tcp", "one side says wss://, the other tcp://"),
        ("wss", "tls+tcp", "one side says wss://, the other tls+tcp://"),
        ("wss", "ws", "that is HTTP: one side says ws://, the other wss://"),
        ("tcp", "ws", "that is HTTP: one side says ws://, the other tcp://"),
        ("tls+tcp", "ws", "that is HTTP: one side says ws://, the other tls+tcp://"),
        ("tls+tcp", "wss", "one side says wss://, the other tls+tcp://"),
    ],
)
async def test_our_listener_tells_apart_what_a_partner_speaks_instead(scheme: str, dialed: str, words: str, authority: Authority) -> None:
    tls = our_server(authority) if scheme in ENCRYPTED else None
    tls_config = their_client(authority) if dialed in ENCRYPTED else None
    event = await refused_by_us(scheme, dialed, tls=tls, tls_config=tls_config)
    assert words in event.reason


@pytest.mark.parametrize(
    ("scheme", "dialed"),
    [
        ("ws", "wss"),
        ("ws", "tcp"),
        ("ws", "tls+tcp"),
        ("wss", "ws"),
        ("wss", "tcp"),
        ("wss", "tls+tcp"),
        ("tcp", "ws"),
        ("tcp", "wss"),
        ("tls+tcp", "ws"),
        ("tls+tcp", "wss"),
    ],
)
async def test_our_dialer_that_a_partner_does_not_understand_fails_in_time(scheme: str, dialed: str, authority: Authority) -> None:
    tls = our_client(authority) if dialed in ENCRYPTED else None
    tls_config = their_server(authority) if scheme in ENCRYPTED else None
    cause = await refused_by_partner(scheme, dialed, tls=tls, tls_config=tls_config)
    assert isinstance(cause, sp.PeerError)
