"""The PROXY protocol: the same result however a header is cut, and no byte beyond it is read."""

from __future__ import annotations

import ipaddress
import struct
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sp.errors import GreetingError, printable
from sp.guess import PROXY_HINT
from sp.transports.proxy_protocol import MAX_V2, SIGNATURE, ProxyDecoder, ProxyInfo

BEHIND = b"\x16\x03\x01 and whatever else may follow"
LOCAL, PROXY = 0x20, 0x21
UNSPEC, TCP4, UDP4, TCP6, UNIX = 0x00, 0x11, 0x12, 0x21, 0x31
ADDRESSES4 = bytes([203, 0, 113, 7, 192, 0, 2, 1]) + struct.pack(">HH", 4711, 443)
ADDRESSES6 = ipaddress.ip_address("2a00::7").packed + ipaddress.ip_address("2001:db8::1").packed + struct.pack(">HH", 4711, 443)
LINE4 = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n"


def v2(kind: int, rest: bytes = b"", *, command: int = PROXY, size: int | None = None) -> bytes:
    return SIGNATURE + bytes([command, kind]) + struct.pack(">H", len(rest) if size is None else size) + rest


def tlv(kind: int, value: bytes, *, size: int | None = None) -> bytes:
    return struct.pack(">BH", kind, len(value) if size is None else size) + value


def read(data: bytes, *, most: int = 1 << 16) -> tuple[ProxyInfo | GreetingError | None, int]:
    """Feed *data* as asked for, at most *most* bytes at once.

    Return the result, and how much was taken.
    """
    decoder = ProxyDecoder()
    taken = 0
    while decoder.info is None and taken < len(data):
        missing = decoder.missing
        assert missing > 0
        part = data[taken : taken + min(missing, most)]
        taken += len(part)
        try:
            decoder.receive_data(part)
        except GreetingError as error:
            return error, taken
    return decoder.info, taken


def decode(data: bytes) -> ProxyInfo:
    """Return what the header *data* says, and check that no byte beyond it is taken."""
    found = [read(data), read(data, most=1), read(data + BEHIND), read(data + BEHIND, most=1), read(data + BEHIND, most=5)]
    for info, taken in found:
        assert isinstance(info, ProxyInfo), info
        assert info == found[0][0]
        assert taken == len(data)
    assert read(data[:-1]) == (None, len(data) - 1)
    info = found[0][0]
    assert isinstance(info, ProxyInfo)
    return info


def refuse(data: bytes) -> str:
    """Return why *data* is refused, whole and byte by byte."""
    error, _ = read(data)
    slow, taken = read(data, most=1)
    assert isinstance(error, GreetingError), error
    assert isinstance(slow, GreetingError), slow
    assert taken <= len(data)
    return str(error)


# Version 1.


@pytest.mark.parametrize(
    ("line", "source", "destination"),
    [
        (LINE4, "203.0.113.7:4711", "192.0.2.1:443"),
        (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255:65535", "255.255.255.255:65535"),
        (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", "0.0.0.0:0", "0.0.0.0:0"),
        (b"PROXY TCP6 2a00::7 2001:db8::1 4711 443\r\n", "[2a00::7]:4711", "[2001:db8::1]:443"),
        (b"PROXY TCP6 2A00:0:0:0:0:0:0:7 ::1 1 2\r\n", "[2a00::7]:1", "[::1]:2"),
        (
            b"PROXY TCP6 %s %s 65535 65535\r\n" % ((b"ffff:" * 8)[:-1], (b"ffff:" * 8)[:-1]),
            f"[{('ffff:' * 8)[:-1]}]:65535",
            f"[{('ffff:' * 8)[:-1]}]:65535",
        ),
    ],
)
def test_a_line_names_both_ends(line: bytes, source: str, destination: str) -> None:
    assert decode(line) == ProxyInfo(version=1, source=source, destination=destination)


@pytest.mark.parametrize("rest", [b"", b" ", b" ffff:f...f:ffff 65535 65535", b" anything \x00\xff but a line end"])
def test_an_unknown_line_says_nothing_whatever_stands_in_it(rest: bytes) -> None:
    assert decode(b"PROXY UNKNOWN" + rest + b"\r\n") == ProxyInfo(version=1)


def test_the_longest_line_has_107_bytes() -> None:
    line = b"PROXY UNKNOWN ".ljust(105, b"x") + b"\r\n"
    assert len(line) == 107
    assert decode(line) == ProxyInfo(version=1)
    assert "must end within 107 bytes" in refuse(b"x".join((line[:50], line[50:])))
    _, taken = read(b"PROXY " + b"x" * 1000, most=1)
    assert taken == 107


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4711\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443 5\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443 \r\n",
        b"PROXY TCP4  203.0.113.7 192.0.2.1 4711 443\r\n",
        b"PROXY TCP4 203.0.113.256 192.0.2.1 4711 443\r\n",
        b"PROXY TCP4 203.0.113 192.0.2.1 4711 443\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 65536 443\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 -1 443\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 a 443\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 123456 443\r\n",
        b"PROXY TCP4 2a00::7 2001:db8::1 4711 443\r\n",
        b"PROXY TCP4 host.example 192.0.2.1 4711 443\r\n",
        b"PROXY TCP6 203.0.113.7 192.0.2.1 4711 443\r\n",
        b"PROXY TCP6 2a00::7%lo ::1 4711 443\r\n",
        b"PROXY TCP6 2a00:::7 ::1 4711 443\r\n",
        b"PROXY TCP5 203.0.113.7 192.0.2.1 4711 443\r\n",
        b"PROXY tcp4 203.0.113.7 192.0.2.1 4711 443\r\n",
        b"PROXY UNKNOWN\n",
        b"PROXY unknown\r\n",
        b"PROXY TCP4 \xb2.0.113.7 192.0.2.1 4711 443\r\n",
    ],
)
def test_a_line_that_cannot_be_read_is_refused_and_shown(line: bytes) -> None:
    reason = refuse(line)
    assert "this version 1 header cannot be read" in reason
    assert repr(line[:10])[:-1] in reason


# Version 2.


@pytest.mark.parametrize(
    ("kind", "addresses", "source", "destination"),
    [
        (TCP4, ADDRESSES4, "203.0.113.7:4711", "192.0.2.1:443"),
        (UDP4, ADDRESSES4, "203.0.113.7:4711", "192.0.2.1:443"),
        (TCP6, ADDRESSES6, "[2a00::7]:4711", "[2001:db8::1]:443"),
        (UNIX, b"/tmp/client".ljust(108, b"\0") + b"/tmp/server".ljust(108, b"\0"), "unix:/tmp/client", "unix:/tmp/server"),
        (UNIX, b"c" * 108 + b"s" * 108, "unix:" + "c" * 108, "unix:" + "s" * 108),
        (UNIX, bytes(216), "", ""),
        (UNSPEC, b"", "", ""),
    ],
)
def test_a_header_names_both_ends(kind: int, addresses: bytes, source: str, destination: str) -> None:
    assert decode(v2(kind, addresses)) == ProxyInfo(version=2, source=source, destination=destination)


@pytest.mark.parametrize("path", [b"/tmp/\xff\xfe", b"\x1b[31m", b"a\nb"])
def test_any_bytes_can_be_the_path_of_a_unix_socket_and_none_of_them_harms_a_log(path: bytes) -> None:
    source = decode(v2(UNIX, path.ljust(216, b"\0"))).source
    assert source.isprintable()
    assert source == "unix:" + printable(path.decode(errors="replace"))


@pytest.mark.parametrize("kind", [UNSPEC, TCP4, TCP6, UNIX, 0x44, 0xFF])
@pytest.mark.parametrize("rest", [b"", b"x", ADDRESSES4, bytes(300), tlv(1, b"cut off", size=100)])
def test_a_proxy_that_speaks_for_itself_says_nothing_and_all_else_is_skipped(kind: int, rest: bytes) -> None:
    # Section 2.2: with LOCAL the receiver discards the block "including the family which is
    # ignored".
    assert decode(v2(kind, rest, command=LOCAL)) == ProxyInfo(version=2)


def test_a_health_check_without_a_family_is_good() -> None:
    assert decode(v2(UNSPEC, command=LOCAL)) == ProxyInfo(version=2)
    assert decode(v2(TCP4, ADDRESSES4, command=LOCAL)) == ProxyInfo(version=2)


@pytest.mark.parametrize("command", [0x00, 0x01, 0x10, 0x11, 0x22, 0x2F, 0x30, 0x31, 0xF1, 0xFF])
def test_another_version_or_command_is_refused(command: int) -> None:
    assert f"version and command 0x{command:02x} are unknown, expected 0x20 or 0x21" in refuse(v2(TCP4, ADDRESSES4, command=command))


@pytest.mark.parametrize("kind", [0x13, 0x1F, 0x41, 0x44, 0xF1, 0xFF])
def test_another_family_or_transport_is_refused(kind: int) -> None:
    assert f"family and transport 0x{kind:02x} are unknown" in refuse(v2(kind, bytes(300)))


@pytest.mark.parametrize(("kind", "size"), [(TCP4, 12), (TCP6, 36), (UNIX, 216)])
def test_addresses_that_are_cut_off_are_refused(kind: int, size: int) -> None:
    for there in (0, 1, size - 1):
        assert f"{there} bytes of addresses, expected {size}" in refuse(v2(kind, bytes(there)))
    decode(v2(kind, bytes(size)))


def test_a_header_may_be_as_long_as_a_certificate_and_not_longer() -> None:
    rest = ADDRESSES4 + tlv(0xE0, b"x" * (MAX_V2 - 12 - 3))
    assert len(rest) == MAX_V2 == 8192
    assert len(decode(v2(TCP4, rest)).tlvs[0xE0]) == MAX_V2 - 15


@pytest.mark.parametrize("size", [MAX_V2 + 1, 0x8000, 0xFFFF])
@pytest.mark.parametrize("command", [LOCAL, PROXY])
def test_an_absurd_length_is_refused_before_anything_of_it_has_come(size: int, command: int) -> None:
    tracemalloc.start()
    reason = refuse(v2(TCP4, size=size, command=command))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert f"announces {size} bytes, but at most 8192" in reason
    assert peak < 64 << 10


# Fields of version 2.


def test_fields_are_there_by_type_and_those_with_a_name_by_name() -> None:
    fields = {0x01: b"h2", 0x02: b"sp.example", 0x03: b"crc.", 0x04: b"", 0x05: b"id-1\xff", 0x30: b"netns", 0xEA: b"\x01vpce-1"}
    info = decode(v2(TCP4, ADDRESSES4 + b"".join(tlv(kind, value) for kind, value in fields.items())))
    assert info.tlvs == fields
    assert (info.alpn, info.authority, info.unique_id, info.ssl) == (b"h2", "sp.example", b"id-1\xff", None)
    assert decode(v2(UNSPEC, tlv(5, b"id"))).unique_id == b"id"


def test_without_fields_the_names_are_empty() -> None:
    info = decode(v2(TCP4, ADDRESSES4))
    assert (dict(info.tlvs), info.alpn, info.authority, info.unique_id, info.ssl) == ({}, b"", "", b"", None)
    info = decode(LINE4)
    assert (dict(info.tlvs), info.alpn, info.authority, info.unique_id, info.ssl) == ({}, b"", "", b"", None)


def test_of_a_type_that_stands_there_twice_the_last_counts() -> None:
    assert decode(v2(TCP4, ADDRESSES4 + tlv(2, b"first") + tlv(2, b"last"))).authority == "last"


def test_a_name_that_is_no_text_is_shown_as_far_as_it_is() -> None:
    assert decode(v2(TCP4, ADDRESSES4 + tlv(2, b"a\xffb"))).authority == "a\ufffdb"


def test_the_fields_cannot_be_changed_and_are_not_shown() -> None:
    info = decode(v2(TCP4, ADDRESSES4 + tlv(0xE0, b"s3cret")))
    with pytest.raises(TypeError):
        info.tlvs[1] = b"x"  # type: ignore[index]
    assert "s3cret" not in repr(info)


@pytest.mark.parametrize("rest", [b"\x01", b"\x01\x00", tlv(1, b"", size=1), tlv(1, b"abc", size=4), tlv(1, b"ok") + b"\x02\xff\xff"])
def test_a_field_that_is_cut_off_is_refused(rest: bytes) -> None:
    for kind, addresses in ((TCP4, ADDRESSES4), (TCP6, ADDRESSES6), (UNIX, bytes(216)), (UNSPEC, b"")):
        assert "a field is longer than the header" in refuse(v2(kind, addresses + rest))


def ssl(flags: int, verify: int = 0, *parts: bytes) -> bytes:
    return tlv(0x20, struct.pack(">BI", flags, verify) + b"".join(parts))


def test_the_clients_tls_is_reported_in_full() -> None:
    certificate = bytes(range(256)) * 8
    parts = [tlv(0x21, b"TLSv1.3"), tlv(0x22, "Müller".encode()), tlv(0x23, b"AES"), tlv(0x24, b"SHA256"), tlv(0x28, certificate)]
    found = decode(v2(TCP4, ADDRESSES4 + tlv(1, b"sp") + ssl(0b111, 0, *parts) + tlv(5, b"id"))).ssl
    assert found is not None
    assert (found.has_certificate, found.verified) == (True, True)
    assert (found.version, found.cipher, found.common_name, found.certificate) == ("TLSv1.3", "AES", "Müller", certificate)
    assert "\\x" not in repr(found)


@pytest.mark.parametrize(
    ("flags", "verify", "has_certificate", "verified"),
    [
        (0b001, 0, False, False),
        (0b001, 1, False, False),
        (0b011, 0, True, True),  # sent now
        (0b101, 0, True, True),  # sent in the session that was resumed
        (0b111, 0, True, True),
        (0b011, 1, True, False),
        (0b101, 0x100, True, False),
        (0b111, 0x80000000, True, False),
        (0b11111001, 0, False, False),
    ],
)
def test_a_certificate_is_verified_if_there_is_one_and_it_was_found_good(
    flags: int, verify: int, has_certificate: bool, verified: bool
) -> None:
    found = decode(v2(TCP4, ADDRESSES4 + ssl(flags, verify))).ssl
    assert found is not None
    assert (found.has_certificate, found.verified) == (has_certificate, verified)
    assert (found.version, found.cipher, found.common_name, found.certificate) == ("", "", "", b"")


@pytest.mark.parametrize("flags", [0b000, 0b110, 0b11111110])
def test_a_client_without_tls_has_none_whatever_else_is_said(flags: int) -> None:
    assert decode(v2(TCP4, ADDRESSES4 + ssl(flags, 0, tlv(0x22, b"root")))).ssl is None


@pytest.mark.parametrize("size", range(5))
def test_too_little_about_tls_is_refused(size: int) -> None:
    assert f"the TLS field has {size} bytes, expected at least 5" in refuse(v2(TCP4, ADDRESSES4 + tlv(0x20, b"\x07\0\0\0\0"[:size])))


@pytest.mark.parametrize("part", [b"\x22", tlv(0x22, b"abc", size=4), tlv(0x21, b"TLSv1.3") + tlv(0x28, b"", size=0xFFFF)])
def test_a_field_about_tls_that_is_cut_off_is_refused(part: bytes) -> None:
    # It must not extend into the fields after it either.
    assert "a field is longer than the header" in refuse(v2(TCP4, ADDRESSES4 + ssl(0b111, 0, part) + tlv(5, bytes(100))))


# No header.


@pytest.mark.parametrize(
    "data",
    [
        b"\0SP\0\0\x30\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"proxy TCP4 203.0.113.7 192.0.2.1 4711 443\r\n",
        b"PROXZ TCP4",
        b"PROXY\tTCP4 ",
        b"PPROXY TCP4 ",
        b"\r\n\r\n\0\r\nQUIT\r\n",
        b"\r\n\r\n\r\n",
        b"\n",
        b"\xff",
    ],
)
def test_a_connection_without_a_header_is_refused_at_the_first_wrong_byte(data: bytes) -> None:
    reason = refuse(data)
    assert "no PROXY protocol header, which this listener requires: the connection began with b" in reason
    error, taken = read(data, most=1)
    assert isinstance(error, GreetingError)
    good = max(size for size in range(len(data)) if b"PROXY ".startswith(data[:size]) or SIGNATURE.startswith(data[:size]))
    assert taken == good + 1


@pytest.mark.parametrize("data", [b"", b"P", b"PROXY", b"PROXY ", b"\r", SIGNATURE, SIGNATURE + b"\x21\x11\x00"])
def test_the_beginning_of_a_header_is_not_refused(data: bytes) -> None:
    assert read(data) == (None, len(data))
    assert read(data, most=1) == (None, len(data))


def test_the_hint_for_an_unexpected_header_names_the_option() -> None:
    assert "proxy_protocol=True" in PROXY_HINT


# Any bytes.

pieces = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"PROXY ", b"TCP4 ", b"TCP6 ", b"UNKNOWN", b"1.2.3.4 ", b"::1 ", b"80 ", b"\r\n", SIGNATURE, ADDRESSES4, ADDRESSES6]),
    st.builds(tlv, st.integers(0, 255), st.binary(max_size=20), size=st.one_of(st.none(), st.integers(0, 0xFFFF))),
)
heads = st.builds(
    v2,
    st.one_of(st.sampled_from([UNSPEC, TCP4, TCP6, UNIX]), st.integers(0, 255)),
    st.lists(pieces, max_size=5).map(b"".join),
    command=st.one_of(st.sampled_from([LOCAL, PROXY]), st.integers(0, 255)),
    size=st.one_of(st.none(), st.integers(0, 0xFFFF)),
)


@pytest.mark.slow
@settings(deadline=None)
@given(st.one_of(st.lists(pieces, max_size=8).map(b"".join), heads), st.lists(st.integers(1, 40), max_size=20))
@example(LINE4, [])
@example(v2(TCP4, ADDRESSES4 + ssl(7, 0, tlv(0x22, b"cn"))), [3, 1])
def test_any_bytes_are_a_header_or_its_beginning_or_a_greeting_error(data: bytes, sizes: list[int]) -> None:
    whole, taken = read(data)
    slow, slowly_taken = read(data, most=1)
    assert type(slow) is type(whole)
    if isinstance(whole, GreetingError):
        assert slowly_taken <= taken
    else:
        assert (slow, slowly_taken) == (whole, taken)
        assert whole is not None or taken == len(data)
    # In pieces as the network delivers them, none of them larger than asked for.
    decoder = ProxyDecoder()
    edges = [0, *sorted({sum(sizes[:count]) % (taken + 1) for count in range(1, len(sizes) + 1)}), taken]
    try:
        for start, stop in pairwise(edges):
            while start < stop and decoder.info is None:
                part = data[start : min(stop, start + decoder.missing)]
                decoder.receive_data(part)
                start += len(part)
    except GreetingError:
        assert isinstance(whole, GreetingError)
    else:
        assert isinstance(whole, GreetingError) or decoder.info == whole
