"""Two sessions joined in memory: whatever happens to the bytes, only TLSError is raised."""

from __future__ import annotations

import gc
import shutil
import ssl
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

import sp
from sp.tls import openssl
from sp.tls import session as tls_session
from sp.tls.openssl import EarlyGreeting
from sp.tls.session import TLSSession
from tests.tls.authority import Authority
from tests.transports.wire import REP, REQ, greeting

Version = Literal["TLSv1.2", "TLSv1.3"]
ALERT, APPLICATION_DATA = 21, 23
RECORD = 16 * 1024

MUTUAL = pytest.mark.parametrize("mutual", [False, True], ids=["server only", "mutual"])
MOVERS = [openssl.DirectBytes, openssl.PlainBytes]


@pytest.fixture(params=MOVERS, ids=["direct", "plain"], autouse=True)
def mover(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How bytes get into and out of OpenSSL."""
    monkeypatch.setattr(tls_session, "bytes_of", request.param)


@pytest.fixture(params=["TLSv1.2", "TLSv1.3"], scope="module")
def version(request: pytest.FixtureRequest) -> Version:
    return cast("Version", request.param)


class End:
    """One side: a session, the data it has read, and its error."""

    def __init__(self, session: TLSSession, number: int, said: bytes = b"", size: int = 65536) -> None:
        self.session = session
        self.greeting = greeting(number)
        self.said = said
        """The data that it writes after its greeting, as soon as it can."""
        self.size = size
        """How many bytes it asks for at once."""
        self.received = b""
        self.errors: list[sp.TLSError] = []

    def take(self, data: bytes) -> None:
        """Do what a link does with *data* from the network."""
        session = self.session
        if session.established:
            session.receive_data(data)
        elif session.handshake(data, self.greeting):
            session.write((b"" if session.greeted else self.greeting) + self.said)
        if session.established:
            self.read()

    def read(self) -> None:
        more = True
        while more and not self.ended:
            self.received += self.session.read(self.size)
            more = self.session.bytes.has_more

    @property
    def ended(self) -> bool:
        """Whether the other side will send no more."""
        return self.session.bytes.ended

    def drain(self) -> bytes:
        data = b""
        while more := self.session.data_to_send():
            data += more
        return data

    def try_(self, step: Callable[[], None]) -> None:
        """Do *step*, which may only raise TLSError.

        Keep a copy of the error, without its traceback.
        """
        try:
            step()
        except sp.TLSError as error:
            text = str(error)
            assert text
            assert "[(" not in text, text
            assert not any(word in text for word in ("OpenSSL", "a callback raised", "ReturnError", "SysCallError", "Want")), text
            self.errors.append(type(error)(text))


class Config:
    """A server and a client that match."""

    def __init__(self, authority: Authority, version: Version, *, mutual: bool = False, **options: Any) -> None:
        server_options: dict[str, Any] = {"client_ca": authority.pem} if mutual else {}
        client_options: dict[str, Any] = {"certificate": authority.issue("client-7")} if mutual else {}
        self.server = authority.server("localhost", **server_options, **options)
        self.client = authority.client(maximum_version=version, **client_options, **options)

    def ends(self, *, said: tuple[bytes, bytes] = (b"", b""), size: int = 65536) -> tuple[End, End]:
        """Return a new client and a new server."""
        client = TLSSession(self.client.contexts.current, peer="10.0.0.1:5555", host="localhost", port=5555)
        server = TLSSession(self.server.contexts.current)
        return End(client, REQ, said[0], size), End(server, REP, said[1], size)


def move(source: End, target: End, size: int = 0) -> bool:
    """Carry over what *source* has to send, in pieces of *size* bytes.  False: it had nothing."""
    data = source.drain()
    for start in range(0, len(data), size or max(1, len(data))):
        target.take(data[start : start + (size or len(data))])
    return bool(data)


def converse(client: End, server: End, size: int = 0) -> None:
    """Do the handshake if necessary, and carry over all that either side has to send."""
    if not client.session.established:
        client.take(b"")
    while move(client, server, size) | move(server, client, size):
        pass


def established(config: Config, **options: Any) -> tuple[End, End]:
    client, server = config.ends(**options)
    converse(client, server)
    assert client.session.established
    assert server.session.established
    assert (client.received[:8], server.received[:8]) == (greeting(REP), greeting(REQ))
    return client, server


def forget(*ends: End) -> None:
    for end in ends:
        end.received = b""


def end_all(*ends: End) -> None:
    for end in ends:
        end.session.close()


def records(stream: bytes) -> list[bytes]:
    """Cut *stream* into records, by their headers; the last one may be incomplete."""
    found: list[bytes] = []
    while stream:
        size = 5 + int.from_bytes(stream[3:5], "big")
        found.append(stream[:size])
        stream = stream[size:]
    return found


# Pieces.


@MUTUAL
@pytest.mark.parametrize("size", [0, 1, 7, 1000])
def test_bytes_may_come_in_any_pieces(authority: Authority, version: Version, mutual: bool, size: int) -> None:
    config = Config(authority, version, mutual=mutual)
    client, server = config.ends(said=(b"from the client" * 100, b"from the server" * 100))
    converse(client, server, size)
    assert client.received == greeting(REP) + b"from the server" * 100
    assert server.received == greeting(REQ) + b"from the client" * 100
    for end in (client, server):
        assert end.session.info is not None
        assert end.session.info.version == version
        assert not end.ended
    end_all(client, server)


@MUTUAL
def test_data_in_the_same_piece_as_the_end_of_the_handshake_is_read(authority: Authority, version: Version, mutual: bool) -> None:
    config = Config(authority, version, mutual=mutual)
    client, server = config.ends(said=(b"at once", b""))
    client.take(b"")
    while not client.session.established:
        move(client, server)
        move(server, client)
    tail = client.drain()  # under 1.3 with the client's last words of the handshake in front
    if version == "TLSv1.3":
        assert not server.session.established
    server.take(tail)
    assert server.session.established
    assert server.received == greeting(REQ) + b"at once"
    end_all(client, server)


def test_a_session_says_nothing_about_itself_before_it_is_established(authority: Authority, version: Version) -> None:
    client, server = Config(authority, version).ends()
    client.take(b"")
    flight = client.drain()
    assert client.session.info is None
    server.take(flight[:-1])
    assert not server.drain()
    assert server.session.info is None
    end_all(client, server)


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1, 2, RECORD - 1, RECORD, RECORD + 1, 65536, 100_000, 131_072, 200_000])
def test_data_of_any_size_arrives_both_ways(authority: Authority, version: Version, size: int) -> None:
    client, server = established(Config(authority, version))
    data = bytes(range(251)) * (size // 251 + 1)
    for source, target in ((client, server), (server, client)):
        for sent in (data[:size], memoryview(data)[:size], bytes(reversed(data[:size]))):
            forget(target)
            source.session.write(sent)
            move(source, target, 4099)
            assert target.received == sent
            forget(target)
            source.session.write(sent)
            move(source, target)
            assert target.received == sent
    end_all(client, server)


@pytest.mark.parametrize("size", [1, 8, RECORD, RECORD + 1, 65536])
def test_data_is_read_in_any_portions(authority: Authority, version: Version, size: int) -> None:
    client, server = established(Config(authority, version))
    server.size = size
    sent = bytes(range(256)) * (40 if size < RECORD else 600)
    forget(server)
    client.session.write(sent)
    server.session.receive_data(client.drain())
    portion = server.session.read(size)
    assert 0 < len(portion) <= size
    server.received = portion
    server.read()
    assert server.received == sent
    end_all(client, server)


def test_many_small_records_are_read_at_once_and_none_is_forgotten(authority: Authority, version: Version) -> None:
    client, server = established(Config(authority, version))
    forget(server)
    for number in range(1000):
        client.session.write(b"%d," % number)
    move(client, server)
    assert server.received == b"".join(b"%d," % number for number in range(1000))
    end_all(client, server)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_records_are_filled(authority: Authority, version: Version, count: int) -> None:
    client, server = established(Config(authority, version))
    for end in (client, server):
        end.session.write(bytes(count * RECORD))
        written = records(end.drain())
        assert [record[0] for record in written] == [APPLICATION_DATA] * count
        assert all(RECORD < int.from_bytes(record[3:5], "big") <= RECORD + 256 for record in written)
        end.session.write(b"x")
        assert len(records(end.drain())) == 1
    end_all(client, server)


# The early greeting.


def first_flights(client: End, server: End) -> None:
    """A hello, and the server's answer."""
    client.take(b"")
    move(client, server)
    assert not server.session.established
    move(server, client)


def test_a_server_that_asks_for_nothing_greets_in_its_first_flight(authority: Authority) -> None:
    client, server = Config(authority, "TLSv1.3").ends()
    first_flights(client, server)
    assert server.session.greeted
    assert client.session.established
    assert client.received == greeting(REP)
    converse(client, server)
    assert server.session.established
    assert (client.received, server.received) == (greeting(REP), greeting(REQ))
    end_all(client, server)


def test_nothing_is_early_before_1_3(authority: Authority) -> None:
    client, server = Config(authority, "TLSv1.2").ends()
    first_flights(client, server)
    assert not server.session.greeted
    assert client.received == b""
    converse(client, server)
    assert not server.session.greeted
    assert client.received == greeting(REP)
    end_all(client, server)


def test_a_server_that_asks_for_a_certificate_greets_only_after_it_has_verified_it(authority: Authority) -> None:
    config = Config(authority, "TLSv1.3", mutual=True)
    client, server = config.ends()
    first_flights(client, server)
    assert not server.session.greeted
    assert client.session.established
    assert client.received == b""
    converse(client, server)
    assert client.received == greeting(REP)
    end_all(client, server)

    client, server = config.ends()
    first_flights(client, server)
    assert server.session.greeted
    assert client.received == greeting(REP)
    converse(client, server)
    assert server.session.info is not None
    assert server.session.info.resumed
    assert server.session.info.names == ("DNS:client-7",)
    end_all(client, server)


@MUTUAL
@pytest.mark.parametrize("size", [0, 1])
def test_where_nothing_can_be_early_the_greeting_follows_the_handshake(
    authority: Authority, version: Version, mutual: bool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EarlyGreeting, "possible", False)
    config = Config(authority, version, mutual=mutual)
    for resumed in (False, True):
        client, server = config.ends(said=(b"hello", b"welcome"))
        converse(client, server, size)
        assert not server.session.greeted
        assert client.received == greeting(REP) + b"welcome"
        assert server.received == greeting(REQ) + b"hello"
        assert server.session.info is not None
        assert server.session.info.resumed is resumed
        end_all(client, server)


# The end.


def test_each_side_tells_the_other_that_it_has_finished(authority: Authority, version: Version) -> None:
    for swap in (False, True):
        ends = established(Config(authority, version))
        first, last = reversed(ends) if swap else ends
        forget(first, last)
        first.session.finish()
        assert move(first, last)
        assert (first.ended, last.ended) == (False, True)
        assert last.session.read(100) == b""  # and it stays so
        last.session.write(b"one more thing")
        move(last, first)
        assert first.received == b"one more thing"
        last.session.finish()
        move(last, first)
        assert first.ended
        end_all(first, last)
        assert not first.drain()  # nothing is said twice
        assert not last.drain()


@pytest.mark.parametrize("size", [0, 1, 65536, 200_000])
def test_data_and_the_end_may_arrive_in_one_piece(authority: Authority, version: Version, size: int) -> None:
    for swap in (False, True):
        ends = established(Config(authority, version))
        first, last = reversed(ends) if swap else ends
        forget(first, last)
        first.session.write(bytes(size))
        first.session.finish()
        last.take(first.drain())
        assert last.received == bytes(size)
        assert last.ended
        end_all(first, last)


def test_closing_finishes(authority: Authority, version: Version) -> None:
    client, server = established(Config(authority, version))
    server.session.write(b"the last words")
    server.session.close()
    server.session.close()
    forget(client)
    client.take(server.drain())
    assert client.received == b"the last words"
    assert client.ended
    client.session.close()


def test_closing_during_the_handshake_sends_nothing_and_raises_nothing(authority: Authority, version: Version) -> None:
    client, server = Config(authority, version).ends()
    client.session.close()
    assert not client.drain()
    server.session.close()
    assert not server.drain()
    client, server = Config(authority, version).ends()
    client.take(b"")
    move(client, server)
    for end in (client, server):
        end.session.finish()
        end.session.close()


# Forged and damaged data.


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "does not speak TLS: it began with b'GET / HT'"),
        (greeting(REQ), "that is SP without TLS: one side says tcp://, the other tls+tcp://"),
        (bytes(100), "does not speak TLS"),
        (b"\xff" * 100, "does not speak TLS"),
        (b"\x16\x03\x01\x00\x05hello", "TLS handshake"),
        (b"\x16\x03\x01\xff\xff" + bytes(0xFFFF), "TLS handshake"),
        (b"\x17\x03\x03\x00\x20" + bytes(32), "does not speak TLS"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "TLS handshake"),
        (b"\x15\x03\x03\x00\x02\x01\x00", "TLS handshake"),
        (b"\x15\x03\x03\x00\x02\x02\xc8", "TLS handshake"),
    ],
    ids=["http", "SP", "zeros", "ones", "a broken hello", "a long record", "data", "an alert", "an end", "an unknown alert"],
)
def test_garbage_instead_of_a_handshake_is_reported_as_what_it_is(authority: Authority, version: Version, said: bytes, words: str) -> None:
    for which in (0, 1):
        end = Config(authority, version).ends()[which]
        end.take(b"")
        with pytest.raises(sp.TLSError) as caught:
            end.take(said)
        assert words in str(caught.value)
        assert "ReturnError" not in str(caught.value)
        assert "[(" not in str(caught.value)
        assert str(caught.value).startswith(("TLS handshake with 10.0.0.1:5555: ", "TLS handshake: ")[which])
        end.session.close()


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x17\x03\x03\x00\x20" + bytes(32), b"\x16\x03\x03\x00\x01\x00"]
)
def test_garbage_after_the_handshake_ends_the_session_and_the_peer_is_told(authority: Authority, version: Version, garbage: bytes) -> None:
    for swap in (False, True):
        ends = established(Config(authority, version))
        one, other = reversed(ends) if swap else ends
        one.session.write(b"before")
        forget(other)
        with pytest.raises(sp.TLSError, match=r"^TLS( with 10\.0\.0\.1:5555)?: \w"):
            other.take(one.drain() + garbage)
        assert other.received == b"before"
        with pytest.raises(sp.TLSError, match="ended the connection: .*alert"):
            one.take(other.drain())
        with pytest.raises(sp.TLSError):  # it does not come back to life
            other.take(b"")
        end_all(one, other)


def in_steps(
    config: Config, spoil: Callable[[int, bytes], bytes], said: tuple[bytes, bytes] = (b"to the server", b"to the client")
) -> list[End]:
    """Let two ends exchange data, which *spoil* changes on the way.  Check what is delivered.

    *spoil* gets each flight with its number.
    """
    ends = list(config.ends(said=said))
    ends[0].try_(partial(ends[0].take, b""))
    silent = flight = 0
    while silent < 2:
        source, target = ends[flight % 2], ends[1 - flight % 2]
        data = source.drain()
        silent = 0 if data else silent + 1
        data = spoil(flight, data)
        if not target.errors:
            target.try_(partial(target.take, data))
        flight += 1
    for end, (number, words) in zip(ends, ((REP, said[1]), (REQ, said[0])), strict=True):
        assert (greeting(number) + words).startswith(end.received)
        end.try_(end.session.close)
    return ends


@MUTUAL
def test_one_bit_turned_over_in_any_record_is_noticed(authority: Authority, version: Version, mutual: bool) -> None:
    config = Config(authority, version, mutual=mutual, session_reuse=False)
    seen: list[tuple[int, int, int]] = []

    def look(flight: int, data: bytes) -> bytes:
        seen.extend((flight, index, len(record)) for index, record in enumerate(records(data)))
        return data

    assert [end.errors for end in in_steps(config, look)] == [[], []]
    assert len(seen) >= 6
    for flight, index, size in seen:
        for place in {5, 5 + (size - 5) // 2, size - 1}:
            ends = in_steps(config, partial(turn_over, flight, index, place))
            assert ends[0].errors or ends[1].errors, (flight, index, place)


def test_a_certificate_that_cannot_be_read_is_refused_like_any_other(authority: Authority) -> None:
    config = Config(authority, "TLSv1.2", session_reuse=False)

    def spoil(flight: int, data: bytes) -> bytes:
        place = data.find(b"Z", data.find(b"Z") + 1) if flight == 1 else -1
        # The seconds of the day on which it ends.
        return data if place < 0 else data[: place - 2] + b"//" + data[place:]

    client, _ = in_steps(config, spoil)
    assert client.errors
    assert isinstance(client.errors[0], sp.AuthenticationError)
    assert "the server's certificate was refused" in str(client.errors[0])


def turn_over(wanted: int, index: int, place: int, flight: int, data: bytes) -> bytes:
    """Turn one bit over, of the byte at *place* of one record."""
    found = records(data)
    if flight == wanted and index < len(found):
        place = min(place, len(found[index]) - 1)  # signatures differ in length
        found[index] = found[index][:place] + bytes([found[index][place] ^ 0x10]) + found[index][place + 1 :]
    return b"".join(found)


changes = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 40_000), st.sampled_from(("flip", "insert", "cut"))), min_size=1, max_size=3)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(plan=changes, noise=st.binary(max_size=40))
@MUTUAL
def test_whatever_is_changed_on_the_way_only_a_tls_error_comes_out(
    authority: Authority, version: Version, mutual: bool, plan: list[tuple[int, int, str]], noise: bytes
) -> None:
    """Flip a bit (the low three bits tell which), insert bytes, or cut off the rest."""
    config = fixed(authority, version, mutual)

    def spoil(flight: int, stream: bytes) -> bytes:
        for wanted, number, how in plan:
            if flight == wanted and stream:
                place = (number >> 3) % len(stream)
                turned = bytes([stream[place] ^ (1 << (number & 7))])
                stream = stream[:place] + {"flip": turned + stream[place + 1 :], "insert": noise + stream[place:], "cut": b""}[how]
        return stream

    in_steps(config, spoil)


_fixed: dict[tuple[str, bool], Config] = {}


def fixed(authority: Authority, version: Version, mutual: bool) -> Config:
    """Return the same pair for each example, which may use the sessions of the one before."""
    key = version, mutual
    if key not in _fixed:
        _fixed[key] = Config(authority, version, mutual=mutual)
    return _fixed[key]


def record(kind: int, body: bytes) -> bytes:
    return bytes([kind, 3, 3]) + len(body).to_bytes(2, "big") + body


noises = st.one_of(st.binary(max_size=300), st.builds(record, st.integers(20, 25), st.binary(max_size=300)))


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(pieces=st.lists(noises, max_size=5))
def test_any_bytes_from_a_stranger_lead_to_a_tls_error_or_to_nothing(authority: Authority, version: Version, pieces: list[bytes]) -> None:
    for end in fixed(authority, version, False).ends():
        end.try_(partial(end.take, b""))
        for piece in pieces:
            end.try_(partial(end.take, piece))
            end.drain()
        assert not end.session.established
        end.try_(end.session.close)


def test_a_record_that_is_cut_off_is_not_delivered(authority: Authority, version: Version) -> None:
    client, server = established(Config(authority, version))
    for source, target in ((client, server), (server, client)):
        forget(target)
        source.session.write(b"whole")
        source.session.write(b"half of it")
        stream = source.drain()
        target.take(stream[:-1])
        assert target.received == b"whole"
        assert not target.ended
        target.take(stream[-1:])
        assert target.received == b"wholehalf of it"
    end_all(client, server)


def test_records_that_are_repeated_or_swapped_are_not_genuine(authority: Authority, version: Version) -> None:
    for order in ((0, 0), (1, 0), (1,)):
        client, server = established(Config(authority, version))
        written: list[bytes] = []
        for word in (b"first", b"second"):
            client.session.write(word)
            written.append(client.drain())
        with pytest.raises(sp.TLSError):
            server.take(b"".join(written[index] for index in order))
        assert server.received in (greeting(REQ), greeting(REQ) + b"first")
        end_all(client, server)


# Memory.


def connection_of(end: End) -> weakref.ref[SSL.Connection]:
    return weakref.ref(end.session._connection)


steps = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from(("some", "all", "write", "finish", "close", "garbage", "read")), st.integers(1, 3000)),
    max_size=14,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(plan=steps)
@MUTUAL
def test_a_session_can_be_closed_at_any_moment_and_is_gone(
    authority: Authority, version: Version, mutual: bool, plan: list[tuple[int, str, int]]
) -> None:
    ends = list(fixed(authority, version, mutual).ends(said=(b"hello", b"welcome")))
    under_way = [b"", b""]  # to the client, to the server

    closed: set[int] = set()

    def do(which: int, what: str, size: int) -> None:
        end = ends[which]
        if which in closed:
            return
        if what in ("some", "all"):
            under_way[which] += ends[1 - which].drain()
            size = size if what == "some" else len(under_way[which])
            data, under_way[which] = under_way[which][:size], under_way[which][size:]
            end.take(data)
        elif what == "garbage":
            end.take(bytes(size))
        elif what == "read":
            if end.session.established:
                end.read()
        elif what == "write":
            if end.session.established:
                end.session.write(bytes(size))
        elif what == "finish":
            end.session.finish()
        else:
            closed.add(which)
            end.session.close()

    gc.disable()
    try:
        for which, what, size in [(0, "all", 0), *plan]:
            ends[which].try_(partial(do, which, what, size))
        connections = [connection_of(end) for end in ends]
        for end in ends:
            end.session.close()  # which raises nothing at all
            end.drain()
            assert not end.drain()
        ends.clear()
        del end
        assert [connection() for connection in connections] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("before", [b"", b"data"], ids=["at once", "behind data"])
def test_a_session_that_has_failed_is_gone_when_it_is_closed(authority: Authority, version: Version, before: bytes) -> None:
    gc.disable()
    try:
        client, server = established(Config(authority, version))
        connections = [connection_of(client), connection_of(server)]
        client.session.write(before)
        server.try_(partial(server.take, client.drain() + b"garbage"))
        client.try_(partial(client.take, server.drain()))
        for end in (client, server):
            assert end.errors
            end.session.close()
        del end, client, server
        assert [connection() for connection in connections] == [None, None]
    finally:
        gc.enable()


@pytest.mark.slow
def test_the_info_of_a_session_stays_readable_after_its_end(authority: Authority, version: Version) -> None:
    client, server = established(Config(authority, version, mutual=True))
    infos = [client.session.info, server.session.info]
    end_all(client, server)
    del client, server
    gc.collect()
    for info, name in zip(infos, ("DNS:localhost", "DNS:client-7"), strict=True):
        assert info is not None
        assert (info.version, info.names, info.verified) == (version, (name,), True)
        assert info.cipher


@contextmanager
def collecting_all_the_time() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def test_certificates_are_checked_while_garbage_is_collected(authority: Authority, version: Version) -> None:
    config = Config(authority, version, mutual=True, session_reuse=False)
    stranger = Config(Authority(), version, mutual=True)
    with collecting_all_the_time():
        for _ in range(10):
            client, server = config.ends()
            client.take(b"")
            while move(client, server, 500) | move(server, client, 500):
                gc.collect(0)
            assert (client.received, server.received) == (greeting(REP), greeting(REQ))
            end_all(client, server)
            client, _ = stranger.ends()
            _, server = config.ends()
            with pytest.raises(sp.AuthenticationError):
                converse(client, server, 500)
            end_all(client, server)


# Threads.


def test_sessions_of_two_threads_do_not_mix_up_their_data(authority: Authority, version: Version) -> None:
    config = Config(authority, version)
    failures: list[object] = []
    ready = threading.Barrier(2)

    def talk(letter: bytes) -> None:
        try:
            client, server = established(config)
            ready.wait(10)
            for number in range(60):
                for source, target in ((client, server), (server, client)):
                    sent = letter * (100_000 + number)
                    forget(target)
                    source.session.write(sent)
                    move(source, target)
                    assert target.received == sent
            end_all(client, server)
        except BaseException as error:
            failures.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=talk, args=(letter,)) for letter in (b"a", b"b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(before)
    assert failures == []


# Refusals.


def refusal_of(config: Config) -> tuple[sp.AuthenticationError, sp.AuthenticationError]:
    """Connect the two sides.  Return the server's error, and the client's that follows from it."""
    client, server = config.ends()
    client.take(b"")
    with pytest.raises(sp.AuthenticationError) as theirs:
        while move(client, server) | move(server, client):
            pass
    with pytest.raises(sp.AuthenticationError) as ours:
        move(server, client)
    end_all(client, server)
    return theirs.value, ours.value


@pytest.mark.parametrize("verified", [True, False])
def test_only_a_known_server_can_refuse_for_good(authority: Authority, version: Version, verified: bool) -> None:
    """Under 1.2 the alert comes in plain text, before the server has proven who it is."""
    config = Config(authority, version)
    config.server = authority.server("localhost", client_ca=authority.pem)
    config.client = authority.client(maximum_version=version, insecure_skip_verification=not verified)
    theirs, ours = refusal_of(config)
    assert ours.permanent is (verified and version == "TLSv1.3")
    assert not theirs.permanent


# Problems in callbacks.


def keyless(authority: Authority, version: Version, folder: Path) -> tuple[sp.TLSServerConfig, sp.TLSClientConfig]:
    """Configurations whose key log can no longer be written."""
    folder.mkdir()
    configs = authority.server("localhost", key_log_file=folder / "s"), authority.client(maximum_version=version, key_log_file=folder / "c")
    shutil.rmtree(folder)
    return configs


def test_a_client_whose_callback_had_a_problem_says_nothing_that_looks_like_success(
    authority: Authority, version: Version, tmp_path: Path
) -> None:
    config = Config(authority, version)
    _, config.client = keyless(authority, version, tmp_path / "keys")
    client, server = config.ends()
    client.take(b"")
    with pytest.raises(sp.TLSError, match="key_log_file: cannot write"):
        while move(client, server) | move(server, client):
            pass
    assert not client.drain()
    assert not server.session.established
    client.session.write(b"")
    client.session.close()
    assert not client.drain()  # nor that it has come to an orderly end
    server.session.close()


def test_a_server_whose_callback_had_a_problem_says_so_at_once(authority: Authority, version: Version, tmp_path: Path) -> None:
    """Under 1.3 this happens in the middle of the handshake, where OpenSSL only wants more data."""
    config = Config(authority, version)
    config.server, _ = keyless(authority, version, tmp_path / "keys")
    client, server = config.ends()
    client.take(b"")
    if version == "TLSv1.2":
        move(client, server)
        move(server, client)
    with pytest.raises(sp.TLSError, match="key_log_file: cannot write"):
        move(client, server)
    assert not server.drain()
    assert not client.session.established
    server.session.close()
    assert not server.drain()
    client.session.close()


# Old versions.


class Foreign:
    """A peer made of the standard library, over memory buffers."""

    def __init__(self, context: ssl.SSLContext, *, is_server: bool) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self._in, self._out, server_side=is_server, server_hostname=None if is_server else "localhost")
        self.error: ssl.SSLError | None = None

    def take(self, data: bytes) -> None:
        self._in.write(data)
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = error

    def drain(self) -> bytes:
        return self._out.read()


def foreign(authority: Authority, version: ssl.TLSVersion, *, is_server: bool) -> Foreign:
    """Use *version* only, even if it is weak."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    if is_server:
        authority.ca.issue_cert("localhost").configure_cert(context)
    else:
        authority.ca.configure_trust(context)
    return Foreign(context, is_server=is_server)


def shake_hands(ours: End, theirs: Foreign) -> None:
    """Go on until neither side has anything to send."""
    ours.take(b"")
    theirs.take(b"")
    silent = False
    while not silent:
        theirs_said = theirs.drain()
        if not ours.errors:
            ours.try_(partial(ours.take, theirs_said))
        ours_said = ours.drain()
        theirs.take(ours_said)
        silent = not (theirs_said or ours_said)


def test_a_client_s_refusal_leaves_before_its_keys_and_a_server_by_openssl_reads_it(authority: Authority, version: Version) -> None:
    _, server = Config(authority, version).ends()
    stranger, _ = Config(Authority(), version).ends()
    stranger.try_(partial(stranger.take, b""))
    server.try_(partial(server.take, stranger.drain()))
    stranger.try_(partial(stranger.take, server.drain()))
    alert = stranger.drain()
    assert [type(error) for error in stranger.errors] == [sp.AuthenticationError]
    assert alert == bytes([ALERT, 3, 3, 0, 2, 2, 48]), "in plain text, so that other servers of TLS 1.3 see a broken record"
    server.try_(partial(server.take, alert))
    assert ["alert unknown ca" in str(error) for error in server.errors] == [True]
    for end in (server, stranger):
        end.session.close()


@pytest.mark.parametrize("is_server", [True, False], ids=["our server", "our client"])
@pytest.mark.parametrize("old", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_nothing_older_than_1_2_is_spoken(authority: Authority, version: Version, old: ssl.TLSVersion, is_server: bool) -> None:
    ours = Config(authority, version).ends()[is_server]
    theirs = foreign(authority, old, is_server=not is_server)
    shake_hands(ours, theirs)
    assert not ours.session.established
    (error,) = ours.errors
    # A server may check the ciphers first, and ours are newer than its versions.
    assert any(word in str(error) for word in ("version", "protocol", "alert handshake failure"))
    assert theirs.error is not None
    ours.session.close()


@pytest.mark.parametrize("is_server", [True, False], ids=["our server", "our client"])
def test_1_2_is_spoken_with_a_foreign_peer_and_nothing_is_compressed(authority: Authority, is_server: bool) -> None:
    ours = Config(authority, "TLSv1.3").ends()[is_server]
    theirs = foreign(authority, ssl.TLSVersion.TLSv1_2, is_server=not is_server)
    shake_hands(ours, theirs)
    assert ours.session.established
    assert ours.session.info is not None
    assert ours.session.info.version == "TLSv1.2"
    assert theirs.object.compression() is None
    inside: Any = SSL
    options = inside._lib.SSL_CTX_get_options(ours.session._connection.get_context()._context)
    assert options & SSL.OP_NO_COMPRESSION
    ours.session.close()


@pytest.mark.parametrize("is_server", [True, False], ids=["our server", "our client"])
def test_a_peer_that_wants_to_shake_hands_again_is_turned_down(authority: Authority, is_server: bool) -> None:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    pem = authority.issue("localhost")
    context.use_certificate(x509.load_pem_x509_certificate(pem[pem.index(b"-----BEGIN CERT") :]))
    context.use_privatekey(cast("Any", serialization.load_pem_private_key(pem, None)))
    theirs = SSL.Connection(context)
    (theirs.set_connect_state if is_server else theirs.set_accept_state)()
    ours = Config(authority, "TLSv1.2").ends()[is_server]

    def exchange() -> bytes:
        """Carry over what each side has to send, once.  Return what ours sent."""
        with suppress(SSL.WantReadError):
            theirs.do_handshake()
        with suppress(SSL.WantReadError):
            ours.take(theirs.bio_read(65536))
        said = ours.drain()
        if said:
            theirs.bio_write(said)
        return said

    ours.take(b"")
    while exchange():
        pass
    assert ours.session.established
    assert theirs.recv(100) == greeting(REQ if not is_server else REP)
    assert theirs.renegotiate()
    (answer,) = records(exchange())
    assert answer[0] == ALERT
    with pytest.raises(SSL.Error, match="no renegotiation"):
        theirs.recv(100)
    ours.session.close()
