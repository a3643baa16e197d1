"""Addresses: what a URL says, and what is wrong with it."""

from __future__ import annotations

import pytest

from sp.address import MAX_SOCKET_PATH, Address
from sp.errors import AddressError


@pytest.mark.parametrize("scheme", ["tcp", "tcp4", "tcp6", "tls+tcp", "tls+tcp4", "tls+tcp6"])
@pytest.mark.parametrize(
    ("rest", "host", "port"),
    [
        ("127.0.0.1:5555", "127.0.0.1", 5555),
        ("localhost:1", "localhost", 1),
        ("a-b_c.example.:65535", "a-b_c.example.", 65535),
        ("[::1]:80", "::1", 80),
        ("[::ffff:127.0.0.1]:80", "::ffff:127.0.0.1", 80),
        ("[fe80::1%lo]:80", "fe80::1%lo", 80),
        ("*:80", "", 80),
        (":80", "", 80),
        ("localhost:0", "localhost", 0),
        ("localhost:00080", "localhost", 80),
    ],
)
def test_a_tcp_url_has_a_host_and_a_port(scheme: str, rest: str, host: str, port: int) -> None:
    url = f"{scheme}://{rest}"
    assert Address.parse(url) == Address(url, scheme, host=host, port=port)


@pytest.mark.parametrize("path", ["/tmp/a.sock", "a.sock", "./a b%20.sock", "x:y", "//", "/tmp/ü"])
def test_an_ipc_url_has_a_path_as_it_stands(path: str) -> None:
    assert Address.parse(f"ipc://{path}") == Address(f"ipc://{path}", "ipc", path=path)


@pytest.mark.parametrize(
    ("name", "path"),
    [("name", b"\0name"), ("a%00b%2f%FF", b"\0a\0b/\xff"), ("%zz", b"\0%zz"), ("ü", "\0ü".encode()), ("a b", b"\0a b"), ("+", b"\0+")],
)
def test_an_abstract_url_has_a_percent_encoded_name(name: str, path: bytes) -> None:
    assert Address.parse(f"abstract://{name}") == Address(f"abstract://{name}", "abstract", path=path)


@pytest.mark.parametrize("name", ["a", "a/b:c", "%00", "tcp://x", "ü"])
def test_an_inproc_url_has_a_name_as_it_stands(name: str) -> None:
    assert Address.parse(f"inproc://{name}") == Address(f"inproc://{name}", "inproc", path=name)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "expected SCHEME://"),
        ("localhost:80", "expected SCHEME://"),
        ("tcp:localhost:80", "expected SCHEME://"),
        ("tcp:/localhost:80", "expected SCHEME://"),
        ("://localhost:80", "expected one of abstract, inproc, ipc, tcp, tcp4, tcp6"),
        ("http://localhost:80", "unknown scheme 'http', expected one of abstract"),
        ("TCP://localhost:80", "unknown scheme 'TCP'"),
        ("tcp://", "has no port, expected tcp://HOST:PORT"),
        ("tcp://localhost", "has no port, expected tcp://HOST:PORT"),
        ("tcp4://localhost", "expected tcp4://HOST:PORT"),
        ("tcp6://localhost", "expected tcp6://HOST:PORT"),
        ("tls+tcp://localhost", "has no port, expected tls+tcp://HOST:PORT"),
        ("tls+tcp4://localhost:x", "'x' is no port from 0 to 65535, expected tls+tcp4://HOST:PORT"),
        ("tls+tcp6://::1:80", "in brackets, as in tls+tcp6://[::1]:80"),
        ("tls://localhost:80", "unknown scheme 'tls', expected one of"),
        ("tls+ipc:///tmp/s", "unknown scheme 'tls+ipc', expected one of"),
        ("tcp://[::1]", "has no port"),
        ("tcp://[::1", "has no port"),
        ("tcp://::1]:80", "has no port"),
        ("tcp://localhost:", "'' is no port from 0 to 65535, expected tcp://HOST:PORT"),
        ("tcp://localhost:65536", "'65536' is no port"),
        ("tcp://localhost:-1", "'-1' is no port"),
        ("tcp://localhost:+1", "'+1' is no port"),
        ("tcp://localhost:abc", "'abc' is no port"),
        ("tcp://localhost:8_0", "'8_0' is no port"),
        ("tcp://localhost: 80", "' 80' is no port"),
        ("tcp://localhost:80/", "'80/' is no port"),
        ("tcp://localhost:000080", "'000080' is no port"),
        pytest.param("tcp://localhost:" + "9" * 5000, "is no port", id="thousands of digits"),
        ("tcp://localhost:٨٠", "is no port"),
        ("tcp://localhost:²", "is no port"),
        ("tcp://::1:80", "in brackets, as in tcp://[::1]:80"),
        ("tcp6://fe80::1:80", "in brackets, as in tcp6://[::1]:80"),
        ("tcp://[]:80", "'' is no IPv6 address, expected tcp://HOST:PORT"),
        ("tcp://[127.0.0.1]:80", "'127.0.0.1' is no IPv6 address"),
        ("tcp://[::g]:80", "'::g' is no IPv6 address"),
        ("tcp://[fe80::1%]:80", "'fe80::1%' is no IPv6 address"),
        ("tcp://a b:80", "'a b' is no host name or address, expected tcp://HOST:PORT"),
        ("tcp://user@host:80", "'user@host' is no host name"),
        ("tcp://host\n:80", "is no host name"),
        ("tcp://a/b:80", "'a/b' is no host name"),
        ("tcp://**:80", "'**' is no host name"),
        ("tcp://a..b:80", "'a..b' is no host name"),
        ("tcp://.a:80", "'.a' is no host name"),
        ("tcp://.:80", "'.' is no host name"),
        ("tcp://127.0.0.1%lo:80", "'127.0.0.1%lo' is no host name"),
        ("ipc://", "nothing follows the scheme, expected ipc://PATH"),
        ("abstract://", "nothing follows the scheme, expected abstract://NAME"),
        ("inproc://", "nothing follows the scheme, expected inproc://NAME"),
        ("ipc:///tmp/a\0b", "cannot hold a zero byte"),
    ],
)
def test_a_bad_url_is_shown_with_what_was_expected(url: str, expected: str) -> None:
    with pytest.raises(AddressError) as caught:
        Address.parse(url)
    assert repr(url) in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize(("good", "bad"), [("x" * 63, "x" * 64), ("x." * 126 + "x", "x." * 127)])
def test_a_host_name_is_as_long_as_the_domain_name_system_allows(good: str, bad: str) -> None:
    assert Address.parse(f"tcp://{good}:80").host == good
    with pytest.raises(AddressError, match="is no host name or address"):
        Address.parse(f"tcp://{bad}:80")


@pytest.mark.parametrize("url", ["tcp://:80", "tcp4://*:80", "tcp6://localhost:0", "tcp://:0"])
def test_all_interfaces_or_any_port_can_be_listened_on_but_not_dialed(url: str) -> None:
    with pytest.raises(AddressError, match="can be listened on but not dialed: expected tcp.?://HOST:PORT, with a port above 0") as caught:
        Address.parse(url).check_dialable()
    assert repr(url) in str(caught.value)


@pytest.mark.parametrize("url", ["tcp://localhost:80", "tcp6://[::1]:1", "ipc://a", "abstract://a", "inproc://a"])
def test_an_address_with_a_host_and_a_port_or_a_path_can_be_dialed(url: str) -> None:
    Address.parse(url).check_dialable()


@pytest.mark.parametrize(("scheme", "unit"), [("ipc", "x"), ("abstract", "x"), ("abstract", "%00")])
def test_a_path_may_have_107_bytes_and_not_one_more(scheme: str, unit: str) -> None:
    assert MAX_SOCKET_PATH == 107
    Address.parse(f"{scheme}://{unit * 107}")
    with pytest.raises(AddressError, match="108 bytes long, expected at most 107"):
        Address.parse(f"{scheme}://{unit * 108}")


@pytest.mark.parametrize("scheme", ["ipc", "abstract"])
def test_the_bytes_of_a_path_are_counted_and_not_its_characters(scheme: str) -> None:
    Address.parse(f"{scheme}://{'ü' * 53}")
    with pytest.raises(AddressError, match="108 bytes long"):
        Address.parse(f"{scheme}://{'ü' * 54}")


@pytest.mark.parametrize("scheme", ["ipc", "abstract"])
def test_a_character_that_no_encoding_has_is_an_address_error(scheme: str) -> None:
    with pytest.raises(AddressError):
        Address.parse(f"{scheme}://\ud800")


def test_a_path_of_undecodable_bytes_from_the_command_line_is_good() -> None:
    assert Address.parse("ipc:///tmp/\udcff").path == "/tmp/\udcff"


@pytest.mark.parametrize("value", [b"tcp://localhost:80", None, 80, ["tcp://localhost:80"]])
def test_only_a_str_can_be_a_url(value: object) -> None:
    with pytest.raises(TypeError, match="a URL must be a str, not"):
        Address.parse(value)  # type: ignore[arg-type]


def test_a_bad_url_is_a_value_error() -> None:
    assert issubclass(AddressError, ValueError)


@pytest.mark.parametrize(
    ("url", "bound"),
    [
        ("tcp://localhost:0", "tcp://localhost:7"),
        ("tcp://[::1]:0", "tcp://[::1]:7"),
        ("tcp6://[fe80::1%lo]:0", "tcp6://[fe80::1%lo]:7"),
        ("tcp4://*:0", "tcp4://*:7"),
        ("tcp://:0", "tcp://*:7"),
    ],
)
def test_the_port_that_was_bound_takes_the_place_of_zero(url: str, bound: str) -> None:
    address = Address.parse(url).with_port(7)
    assert address.url == bound
    assert address == Address.parse(bound)
