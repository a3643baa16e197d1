"""Against libnng 1.11 of pynng, whose TLS is mbedTLS, in our own process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import pynng
import pytest

import sp
from interop.partners import (
    LIMIT,
    OURS,
    REDIAL,
    THEIRS,
    Arrivals,
    Pair,
    Version,
    body_of,
    connect,
    crowd,
    dial_as_crowd,
    each_listener,
    exchange,
    listen_partner,
    next_event,
    open_partner,
    our_client,
    our_server,
    pair_of,
    records,
    refused_by_partner,
    refused_by_us,
    relay,
    their_client,
    their_server,
    tls_ends,
)
from tests.tls.authority import Authority

pytestmark = pytest.mark.libnng

TLS: Final = "tls+tcp"
URL: Final = f"{TLS}://127.0.0.1:0"
CROWD: Final = 100
GREETING_RECORD: Final = 8 + 1 + 16
"""Bytes of a TLS 1.3 record with a greeting in it: with its type and the cipher's tag."""

each_pair = pytest.mark.parametrize("pair", [pair_of(sp.Req0), pair_of(sp.Bus0)], ids=str)
each_identification = pytest.mark.parametrize("mutual", [False, True], ids=["anonymous", "certificate"])


@pytest.fixture(params=["TLSv1.2", "TLSv1.3"])
def version(request: pytest.FixtureRequest) -> Version:
    return cast("Version", request.param)


@asynccontextmanager
async def connected(
    pair: Pair, listener: str, authority: Authority, version: Version, *, mutual: bool = False
) -> AsyncIterator[tuple[Any, pynng.Socket, Arrivals]]:
    """The two, connected; our side speaks nothing newer than *version*."""
    tls, tls_config = tls_ends(listener, authority, mutual=mutual, maximum_version=version)
    async with pair.open(tls=tls) as ours:
        with pair.open_partner(tls_config=tls_config) as theirs:
            yield ours, theirs, await connect(ours, theirs, TLS, listener, Path())


@each_identification
@each_listener
@each_pair
async def test_bodies_of_every_size_arrive_unchanged(
    pair: Pair, listener: str, mutual: bool, version: Version, authority: Authority
) -> None:
    async with connected(pair, listener, authority, version, mutual=mutual) as (ours, theirs, _):
        for size in (0, 1, 65_535, 65_536, LIMIT - pair.header, 0):
            await exchange(ours, theirs, pair.turns, body_of(size))
        (pipe,) = ours.pipes
        assert pipe.tls.version == version
        assert not pipe.tls.resumed
        if listener == OURS:
            assert pipe.tls.names == (("DNS:theirs.example",) if mutual else ())
        else:
            assert pipe.tls.names == ("DNS:localhost", "IP:127.0.0.1")
        (endpoint,) = ours.listeners or ours.dialers
        assert endpoint.statistics().tls_handshakes == {"full": 1}
    assert not ours.statistics().dropped


@each_listener
@pytest.mark.parametrize("pair", [*map(pair_of, (sp.Req0, sp.Rep0, sp.Sub0, sp.Bus0))], ids=str)
async def test_one_byte_over_the_limit_ends_the_pipe_and_the_next_pipe_works(
    pair: Pair, listener: str, version: Version, authority: Authority
) -> None:
    async with connected(pair, listener, authority, version) as (ours, theirs, arrivals):
        events = ours.events()
        if pair.ours is sp.Req0:
            await ours.send(b"question")
            assert await theirs.arecv() == b"question"
        await theirs.asend(bytes(LIMIT - pair.header + 1))
        event = await next_event(events, sp.EventKind.DETACHED)
        assert isinstance(event.error, sp.MessageTooLarge)
        assert str(LIMIT + 1) in event.reason
        await arrivals.wait(2)
        await ours.wait_for_peers()  # it may be the later one of the two
        if pair.ours is sp.Req0:
            assert await theirs.arecv() == b"question", "the request is sent again to the next pipe"
            await theirs.asend(b"answer")
            assert await ours.receive() == b"answer"
        await exchange(ours, theirs, pair.turns, b"next")
        (endpoint,) = ours.listeners or ours.dialers
        assert set(endpoint.statistics().tls_handshakes) == {"full"}


# A crowd.


@each_identification
async def test_a_hundred_that_dial_us_at_once_are_all_answered(mutual: bool, authority: Authority) -> None:
    tls_config = their_client(authority, authority.issue("theirs.example") if mutual else None)
    async with sp.Rep0(tls=our_server(authority, mutual=mutual)) as ours:
        listener = await ours.listen(URL)
        async with crowd(ours, listener.url, CROWD, tls_config=tls_config):
            statistics = listener.statistics()
            assert len(ours.pipes) == CROWD
            assert (statistics.attached, statistics.tls_handshakes) == (CROWD, {"full": CROWD})
            # On a busy machine libnng gives up some of its own handshakes, whatever the server is,
            # with an alert ("handshake failure") or
            # without, and dials again.
            assert set(statistics.failures) <= {"PeerClosed", "TLSError"}
            assert statistics.accepted == CROWD + sum(statistics.failures.values())


@each_identification
async def test_a_hundred_of_ours_that_dial_at_once_are_all_answered(mutual: bool, authority: Authority) -> None:
    tls = our_client(authority, mutual=mutual)
    with open_partner("Rep0", tls_config=their_server(authority, mutual=mutual)) as theirs:
        for statistics in await dial_as_crowd(theirs, listen_partner(theirs, URL), CROWD, tls=tls):
            assert set(statistics.failures) <= {"PeerClosed", "TLSError"}
            assert statistics.attempts == 1 + sum(statistics.failures.values())
            assert statistics.tls_handshakes == {"full": statistics.attached}


# Again.


@each_identification
async def test_a_server_that_came_back_resumes_nothing_and_nobody_is_bothered(mutual: bool, version: Version, authority: Authority) -> None:
    async with sp.Req0(tls=our_client(authority, mutual=mutual, maximum_version=version), **REDIAL) as ours:
        with open_partner("Rep0", tls_config=their_server(authority, mutual=mutual)) as first:
            url = listen_partner(first, URL)
            dialer = await ours.dial(url)
            await exchange(ours, first, (OURS, THEIRS), b"whoever")
            await ours.send(b"question")
            assert await first.arecv() == b"question"
            lost = ours.pipes[0]
        # No other task has run since the first was closed, so there was always a listener to dial.
        with open_partner("Rep0", tls_config=their_server(authority, mutual=mutual)) as second:
            listen_partner(second, url)
            assert await second.arecv() == b"question"
            await second.asend(b"answer")
            assert await ours.receive() == b"answer"
            statistics = dialer.statistics()
            assert isinstance(lost.error, sp.PeerClosed)
            assert (statistics.attempts, statistics.failures) == (2, {"PeerClosed": 1})
            assert statistics.tls_handshakes == {"full": 2}


async def test_a_partner_dials_our_server_that_was_closed_and_came_back(version: Version, authority: Authority) -> None:
    with open_partner("Req0", tls_config=their_client(authority)) as theirs:
        async with sp.Rep0(tls=our_server(authority, maximum_version=version)) as first:
            url = (await first.listen(URL)).url
            theirs.dial(url, block=False)
            await theirs.asend(b"question")
            assert await first.receive() == b"question"
        async with sp.Rep0(listen=url, tls=our_server(authority, maximum_version=version)) as second:
            assert await second.receive() == b"question"
            await second.send(b"answer")
            assert await theirs.arecv() == b"answer"
            assert second.listeners[0].statistics().tls_handshakes == {"full": 1}


@each_identification
async def test_a_partner_whose_pipe_we_closed_dials_again(mutual: bool, version: Version, authority: Authority) -> None:
    pair = pair_of(sp.Rep0)
    async with connected(pair, OURS, authority, version, mutual=mutual) as (ours, theirs, arrivals):
        await exchange(ours, theirs, pair.turns, b"first")
        ours.pipes[0].close()
        await arrivals.wait(2)
        await exchange(ours, theirs, pair.turns, b"second")
        assert ours.listeners[0].statistics().tls_handshakes == {"full": 2}


# Refusals.


async def test_a_partner_without_the_certificate_that_we_require_is_refused(version: Version, authority: Authority) -> None:
    server = our_server(authority, mutual=True, maximum_version=version)
    event = await refused_by_us(TLS, TLS, tls=server, tls_config=their_client(authority))
    assert isinstance(event.error, sp.AuthenticationError)
    assert "the client sent no certificate, and one is required" in event.reason


async def test_a_partner_of_an_unknown_authority_is_refused(version: Version, authority: Authority, stranger: Authority) -> None:
    server = our_server(authority, mutual=True, maximum_version=version)
    event = await refused_by_us(TLS, TLS, tls=server, tls_config=their_client(authority, stranger.issue("theirs.example")))
    assert isinstance(event.error, sp.AuthenticationError)
    assert "the client's certificate was refused: unable to get local issuer certificate" in event.reason


async def test_a_partner_that_does_not_trust_us_says_so(version: Version, authority: Authority, stranger: Authority) -> None:
    event = await refused_by_us(TLS, TLS, tls=our_server(authority, maximum_version=version), tls_config=their_client(stranger))
    assert isinstance(event.error, sp.AuthenticationError)
    assert "the client refused our certificate" in event.reason
    assert "unknown ca" in event.reason


async def test_a_server_of_an_unknown_authority_is_refused(version: Version, authority: Authority, stranger: Authority) -> None:
    cause = await refused_by_partner(TLS, TLS, tls_config=their_server(stranger), tls=our_client(authority, maximum_version=version))
    assert isinstance(cause, sp.AuthenticationError)
    assert "the server's certificate was refused: unable to get local issuer certificate" in str(cause)


async def test_a_server_with_another_name_is_refused(version: Version, authority: Authority) -> None:
    cause = await refused_by_partner(
        TLS, TLS, tls_config=their_server(authority), tls=our_client(authority, server_name="other.example", maximum_version=version)
    )
    assert isinstance(cause, sp.AuthenticationError)
    assert "it is for DNS:localhost, IP:127.0.0.1, not for 'other.example'" in str(cause)


async def test_we_learn_in_time_that_a_server_does_not_trust_us(version: Version, authority: Authority, stranger: Authority) -> None:
    client = authority.client(certificate=stranger.issue("ours.example"), maximum_version=version)
    cause = await refused_by_partner(TLS, TLS, tls_config=their_server(authority, mutual=True), tls=client)
    if version == "TLSv1.2":
        assert isinstance(cause, sp.AuthenticationError)
        assert "the server refused our certificate" in str(cause)
        assert "unknown ca" in str(cause)
    else:
        # mbedTLS encrypts this alert with the keys of the handshake, although newer keys are in use
        # already: nobody can read it.
        assert isinstance(cause, sp.TLSError)
        assert "the server refused us or gave up" in str(cause)
        assert "bad record mac" in str(cause)


async def test_we_learn_in_time_that_a_server_wants_a_certificate(version: Version, authority: Authority) -> None:
    cause = await refused_by_partner(
        TLS, TLS, tls_config=their_server(authority, mutual=True), tls=our_client(authority, maximum_version=version)
    )
    if version == "TLSv1.2":
        # mbedTLS ends the connection without an alert.
        assert isinstance(cause, sp.PeerClosed)
        assert "during the TLS handshake" in str(cause)
    else:
        assert isinstance(cause, sp.TLSError)
        assert "the server refused us or gave up" in str(cause)
        assert "bad record mac" in str(cause)


# One side without TLS.


async def test_a_partner_without_tls_at_our_tls_port_is_recognized(authority: Authority) -> None:
    event = await refused_by_us(TLS, "tcp", tls=our_server(authority))
    assert type(event.error) is sp.TLSError
    assert "the client does not speak TLS" in event.reason
    assert "that is SP without TLS: one side says tcp://, the other tls+tcp://" in event.reason


async def test_a_partner_with_tls_at_our_plain_port_is_recognized(authority: Authority) -> None:
    event = await refused_by_us("tcp", TLS, tls_config=their_client(authority))
    assert isinstance(event.error, sp.GreetingError)
    assert r"the peer does not speak SP: it began with b'\x16\x03" in event.reason


async def test_our_dialer_with_tls_at_a_port_without_says_so(authority: Authority) -> None:
    cause = await refused_by_partner("tcp", TLS, tls=our_client(authority))
    assert type(cause) is sp.TLSError
    assert "the server does not speak TLS" in str(cause)
    assert "that is SP without TLS: one side says tcp://, the other tls+tcp://" in str(cause)


async def test_our_dialer_without_tls_at_a_port_with_it_fails_in_time(authority: Authority) -> None:
    cause = await refused_by_partner(TLS, "tcp", tls_config=their_server(authority))
    assert isinstance(cause, sp.PeerClosed)
    assert "after 0 of 8 bytes of its greeting" in str(cause)


# The greeting.


@each_identification
async def test_our_greeting_comes_with_the_first_flight_unless_a_certificate_is_to_follow(mutual: bool, authority: Authority) -> None:
    tls_config = their_client(authority, authority.issue("theirs.example") if mutual else None)
    async with sp.Rep0(tls=our_server(authority, mutual=mutual)) as ours:
        listener = await ours.listen(URL)
        async with relay(listener.url) as (between, url):
            with open_partner("Req0", tls_config=tls_config) as theirs:
                theirs.dial(url, block=False)
                await exchange(ours, theirs, (THEIRS, OURS), b"question")
            *_, last = records(between.first_flight)
            assert (last == (0x17, GREETING_RECORD)) is not mutual
            assert listener.statistics().tls_handshakes == {"full": 1}
