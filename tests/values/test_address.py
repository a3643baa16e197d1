"""Addresses: what a URL says, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import attrs
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
        ("[fe80::1%25lo]:80", "fe80::1%lo", 80),  # as a URL has it (RFC 6874, 2)
        ("[fe80::1%25]:80", "fe80::1%25", 80),  # the number of an interface
        ("[fe80::1%2525]:80", "fe80::1%25", 80),
        ("[fe80::1%2]:80", "fe80::1%2", 80),
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


@pytest.mark.parametrize("path", ["a.sock", "./../b", "/tmp/a", "x y"])
def test_the_file_of_a_settled_address_is_the_same_in_any_working_directory(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in (f"ipc://{path}", f"ws+unix://{path}:/a"):
        address = Address.parse(url)
        settled = address.settled()
        assert settled.path == (path if path.startswith("/") else f"{tmp_path}/{path}")
        assert settled == attrs.evolve(address, path=settled.path)  # the URL stays as it was given


@pytest.mark.parametrize("url", ["inproc://a", "abstract://a", "tcp://h:80", "ws://h/a"])
def test_an_address_without_a_file_is_settled_as_it_is(url: str) -> None:
    assert Address.parse(url).settled() == Address.parse(url)


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
        ("://localhost:80", "expected one of abstract, inproc, ipc"),
        ("http://localhost:80", "unknown scheme 'http', expected one of abstract"),
        ("TCP://localhost:80", "unknown scheme 'TCP'"),
        ("tcp://", "has no port, expected tcp://HOST:PORT"),
        ("tcp://localhost", "has no port, expected tcp://HOST:PORT"),
        ("tcp4://localhost", "expected tcp4://HOST:PORT"),
        ("tcp6://localhost", "expected tcp6://HOST:PORT"),
        ("tls+tcp://localhost", "has no port, expected tls+tcp://HOST:PORT"),
        ("tls+tcp4://localhost:x", "'x' is not a port from 0 to 65535, expected tls+tcp4://HOST:PORT"),
        ("tls+tcp6://::1:80", "in brackets, as in tls+tcp6://[::1]:80"),
        ("tls://localhost:80", "unknown scheme 'tls', expected one of"),
        ("tls+ipc:///tmp/s", "unknown scheme 'tls+ipc', expected one of"),
        ("tcp://[::1]", "has no port"),
        ("tcp://[::1", "has no port"),
        ("tcp://::1]:80", "has no port"),
        ("tcp://localhost:", "'' is not a port from 0 to 65535, expected tcp://HOST:PORT"),
        ("tcp://localhost:65536", "'65536' is not a port"),
        ("tcp://localhost:-1", "'-1' is not a port"),
        ("tcp://localhost:+1", "'+1' is not a port"),
        ("tcp://localhost:abc", "'abc' is not a port"),
        ("tcp://localhost:8_0", "'8_0' is not a port"),
        ("tcp://localhost: 80", "' 80' is not a port"),
        ("tcp://localhost:80/", "'80/' is not a port"),
        ("tcp://localhost:000080", "'000080' is not a port"),
        pytest.param("tcp://localhost:" + "9" * 5000, "is not a port", id="thousands of digits"),
        ("tcp://localhost:٨٠", "is not a port"),
        ("tcp://localhost:²", "is not a port"),
        ("tcp://::1:80", "in brackets, as in tcp://[::1]:80"),
        ("tcp6://fe80::1:80", "in brackets, as in tcp6://[::1]:80"),
        ("tcp://[]:80", "'' is not an IPv6 address, expected tcp://HOST:PORT"),
        ("tcp://[127.0.0.1]:80", "'127.0.0.1' is not an IPv6 address"),
        ("tcp://[::g]:80", "'::g' is not an IPv6 address"),
        ("tcp://[1:2:3]:80", "'1:2:3' is not an IPv6 address"),
        ("tcp://[1:2:3%25lo]:80", "'1:2:3%25lo' is not an IPv6 address"),
        ("tcp://[...]:80", "'...' is not an IPv6 address"),
        ("tcp://[fe80::1%]:80", "'fe80::1%' is not an IPv6 address"),
        ("tcp://a b:80", "'a b' is not a host name or address, expected tcp://HOST:PORT"),
        ("tcp://user@host:80", "'user@host' is not a host name"),
        ("tcp://host\n:80", "is not a host name"),
        ("tcp://a/b:80", "'a/b' is not a host name"),
        ("tcp://**:80", "'**' is not a host name"),
        ("tcp://a..b:80", "'a..b' is not a host name"),
        ("tcp://.a:80", "'.a' is not a host name"),
        ("tcp://.:80", "'.' is not a host name"),
        ("tcp://127.0.0.1%lo:80", "'127.0.0.1%lo' is not a host name"),
        ("ipc://", "nothing follows the scheme: expected ipc://PATH"),
        ("inproc://", "nothing follows the scheme: expected inproc://NAME"),
        ("ipc:///tmp/a\0b", "cannot hold a zero byte"),
        ("ws+unix://:/path", "no file follows the scheme: expected ws+unix://FILE"),
        ("ws+unix:///tmp/s:path", "after the file and a colon, a path must follow: expected ws+unix://FILE"),
    ],
)
def test_a_bad_url_is_shown_with_what_was_expected(url: str, expected: str) -> None:
    with pytest.raises(AddressError) as caught:
        Address.parse(url)
    assert repr(url) in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize("scheme", ["tcp", "tls+tcp"])
def test_credentials_have_no_place_in_a_tcp_url_and_are_not_shown(scheme: str) -> None:
    with pytest.raises(AddressError, match="this URL takes no credentials: expected") as caught:
        Address.parse(f"{scheme}://user:secret@localhost:80")
    assert f"'{scheme}://...@localhost:80'" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("good", "bad"), [("x" * 63, "x" * 64), ("x." * 126 + "x", "x." * 127)])
def test_a_host_name_is_as_long_as_the_domain_name_system_allows(good: str, bad: str) -> None:
    assert Address.parse(f"tcp://{good}:80").host == good
    with pytest.raises(AddressError, match="is not a host name or address"):
        Address.parse(f"tcp://{bad}:80")


@pytest.mark.parametrize("url", ["tcp://:80", "tcp4://*:80", "tcp6://localhost:0", "tcp://:0"])
def test_all_interfaces_or_any_port_can_be_listened_on_but_not_dialed(url: str) -> None:
    with pytest.raises(AddressError, match="can be listened on but not dialed: expected tcp.?://HOST:PORT, with a port above 0") as caught:
        Address.parse(url).check_dialable()
    assert repr(url) in str(caught.value)


def test_any_abstract_name_can_be_listened_on_but_not_dialed() -> None:
    address = Address.parse("abstract://")
    assert (address.path, address.with_name(b"\0a /\xff")) == (b"\0", Address.parse("abstract://a%20/%FF"))
    address.check_listenable()
    with pytest.raises(AddressError, match="'abstract://' can be listened on but not dialed: expected abstract://NAME"):
        address.check_dialable()


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
        ("tcp6://[fe80::1%25lo]:0", "tcp6://[fe80::1%lo]:7"),
        ("tcp6://[fe80::1%2525gbe0]:0", "tcp6://[fe80::1%2525gbe0]:7"),
        ("tcp4://*:0", "tcp4://*:7"),
        ("tcp://:0", "tcp://*:7"),
    ],
)
def test_the_port_that_was_bound_takes_the_place_of_zero(url: str, bound: str) -> None:
    address = Address.parse(url).with_port(7)
    assert address.url == bound
    assert address == Address.parse(bound)


# Over HTTP.

WEB = ["ws", "ws4", "ws6", "wss", "wss4", "wss6"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", WEB)
@pytest.mark.parametrize(
    ("rest", "host", "port", "target"),
    [
        ("localhost:8080", "localhost", 8080, "/"),
        ("localhost:8080/", "localhost", 8080, "/"),
        ("localhost:8080/a/b", "localhost", 8080, "/a/b"),
        ("localhost:0/a", "localhost", 0, "/a"),
        ("localhost", "localhost", None, "/"),
        ("localhost/a", "localhost", None, "/a"),
        ("[::1]", "::1", None, "/"),
        ("[::1]/a", "::1", None, "/a"),
        ("[::1]:8080/a", "::1", 8080, "/a"),
        ("[fe80::1%lo]:80", "fe80::1%lo", 80, "/"),
        ("127.0.0.1:80", "127.0.0.1", 80, "/"),
        ("*:80/a", "", 80, "/a"),
        ("*/a", "", None, "/a"),
        (":80/a", "", 80, "/a"),
        ("h/a?b=c", "h", None, "/a?b=c"),
        ("h?b=c", "h", None, "/?b=c"),
        ("h:1?b=/c:d@e", "h", 1, "/?b=/c:d@e"),
        ("h/a:b", "h", None, "/a:b"),
        ("h/a@b", "h", None, "/a@b"),
        ("h/%5B::1%5D:80", "h", None, "/%5B::1%5D:80"),
        ("h//a//", "h", None, "//a//"),
        ("h/%C3%BC%2F-._~!$&'()*+,;=", "h", None, "/%C3%BC%2F-._~!$&'()*+,;="),
    ],
)
def test_a_ws_url_has_a_host_perhaps_a_port_and_a_target(scheme: str, rest: str, host: str, port: int | None, target: str) -> None:
    url = f"{scheme}://{rest}"
    default = 443 if scheme.startswith("wss") else 80
    assert Address.parse(url) == Address(url, scheme, host=host, port=default if port is None else port, target=target)


@pytest.mark.parametrize(
    ("rest", "path", "target"),
    [
        ("/tmp/s", "/tmp/s", "/"),
        ("/tmp/s:", "/tmp/s", "/"),
        ("/tmp/s:/", "/tmp/s", "/"),
        ("/tmp/s:/a/b", "/tmp/s", "/a/b"),
        ("s:/a:b?c=d", "s", "/a:b?c=d"),
        ("./a b%20?x", "./a b%20?x", "/"),
        ("/tmp/ü@h:/a", "/tmp/ü@h", "/a"),
    ],
)
def test_a_ws_unix_url_has_a_file_and_behind_a_colon_a_target(rest: str, path: str, target: str) -> None:
    assert Address.parse(f"ws+unix://{rest}") == Address(f"ws+unix://{rest}", "ws+unix", path=path, target=target)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ws:", "expected SCHEME://"),
        ("WS://h", "unknown scheme 'WS'"),
        ("ws5://h", "unknown scheme 'ws5', expected one of"),
        ("ws+tcp://h", "unknown scheme 'ws+tcp'"),
        ("wss+unix:///tmp/s", "unknown scheme 'wss+unix'"),
        ("ws://h:", "'' is not a port from 0 to 65535, expected ws://HOST[:PORT][/PATH]"),
        ("ws://h:/a", "'' is not a port"),
        ("wss://h:x/a", "'x' is not a port from 0 to 65535, expected wss://HOST[:PORT][/PATH]"),
        ("ws4://h:65536", "'65536' is not a port from 0 to 65535, expected ws4://HOST[:PORT][/PATH]"),
        ("ws://h:-1/", "'-1' is not a port"),
        ("ws://h:٨٠/", "is not a port"),
        ("ws://::1/a", "an IPv6 address must be in brackets"),
        ("ws6://fe80::1:80/a", "in brackets, as in ws6://[::1]:80"),
        ("ws://[::1/a", "no port"),
        ("ws://[]/a", "'' is not an IPv6 address"),
        ("ws://[::g]/a", "'::g' is not an IPv6 address"),
        ("ws://[127.0.0.1]/a", "'127.0.0.1' is not an IPv6 address"),
        ("ws://a b/c", "'a b' is not a host name or address, expected ws://HOST[:PORT][/PATH]"),
        ("ws://a\\b/c", "is not a host name or address"),
        ("ws://a\r\nb/c", "is not a host name or address"),
        ("ws://a%41/c", "is not a host name or address"),
        ("ws://a..b/c", "is not a host name or address"),
        ("ws://h/a b", "'/a b' is not a path of a URL, expected ASCII with %XX for anything else"),
        ("ws://h/ü", "'/ü' is not a path of a URL"),
        ("ws://h/a\r\nHost: x", "is not a path of a URL"),
        ("ws://h/a\n", "is not a path of a URL"),
        ("ws://h/a\0", "is not a path of a URL"),
        ("ws://h/%", "is not a path of a URL"),
        ("ws://h/%4", "is not a path of a URL"),
        ("ws://h/%zz", "is not a path of a URL"),
        ('ws://h/"a"', "is not a path of a URL"),
        ("ws://h/<a>", "is not a path of a URL"),
        ("ws://h/a\\b", "is not a path of a URL"),
        ("ws://h/[a]", "is not a path of a URL"),
        ("ws://h/{a}|^`", "is not a path of a URL"),
        ("ws://h?a b", "is not a path of a URL"),
        ("ws://h/a#b", "a fragment (#) has no meaning here: leave it out"),
        ("ws://h#b", "a fragment (#) has no meaning here: leave it out"),
        ("ws://h/a?b#", "a fragment (#) has no meaning here: leave it out"),
        ("ws+unix://", "no file follows the scheme: expected ws+unix://FILE[:/PATH]"),
        ("ws+unix://:/a", "no file follows the scheme"),
        ("ws+unix:///tmp/s:/a b", "'/a b' is not a path of a URL"),
        ("ws+unix:///tmp/s:/a#b", "a fragment (#) has no meaning here: leave it out"),
        ("ws+unix:///tmp/a\0b:/c", "cannot hold a zero byte"),
    ],
)
def test_a_bad_ws_url_is_shown_with_what_was_expected(url: str, expected: str) -> None:
    with pytest.raises(AddressError) as caught:
        Address.parse(url)
    assert repr(url) in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize("scheme", WEB)
@pytest.mark.parametrize(
    "rest",
    [
        "user:s3cret@h",
        "s3cret@h",
        "user:s3cret@h:80/a",
        "user:s3cret@[::1]:80/a?b",
        "user:s3cret@h/a@b",
        "us@er:s3cret@h/a",
        "user:s3cret%2Fmore@h/a",
        "user:s3cret@",
        "user:s3cret@h#f",
        "user:s3cret@h/a b",
        # What must be escaped in credentials often is not.
        "user:s3cret/more@h",
        "user:s3cret?more@h",
        "user:s3cret#more@h",
        "user:more/s3cret@h/a",
    ],
)
def test_credentials_in_a_ws_url_are_refused_and_not_shown(scheme: str, rest: str) -> None:
    with pytest.raises(AddressError) as caught:
        Address.parse(f"{scheme}://{rest}")
    assert "s3cret" not in str(caught.value)
    assert scheme in str(caught.value)


def test_credentials_are_refused_with_a_word_on_where_they_belong() -> None:
    with pytest.raises(AddressError, match="takes no credentials: give them as a header in ws=") as caught:
        Address.parse("wss://user:s3cret@h:80/a")
    assert "'wss://...@h:80/a'" in str(caught.value)


def test_the_file_of_a_ws_unix_url_is_as_long_as_that_of_ipc() -> None:
    Address.parse(f"ws+unix://{'x' * 107}:/{'a' * 1000}")
    with pytest.raises(AddressError, match="108 bytes long, expected at most 107"):
        Address.parse(f"ws+unix://{'x' * 108}:/a")


@pytest.mark.parametrize(
    ("url", "header"),
    [
        ("ws://h", "h"),
        ("ws://h:80/a", "h"),
        ("ws4://h:80/a", "h"),
        ("ws://h:443", "h:443"),
        ("ws://h:8080", "h:8080"),
        ("wss://h", "h"),
        ("wss://h:443/a", "h"),
        ("wss6://h:443/a", "h"),
        ("wss://h:80", "h:80"),
        ("ws://[::1]", "[::1]"),
        ("ws://[::1]:81", "[::1]:81"),
        ("ws://[fe80::1%25lo]:81", "[fe80::1]:81"),
        # A zone means nothing on another machine (RFC 6874, 4).
        ("ws://[fe80::1%lo]:81", "[fe80::1]:81"),
        ("ws+unix:///tmp/s:/a", "localhost"),
    ],
)
def test_a_host_header_has_the_port_unless_it_is_the_schemes_own(url: str, header: str) -> None:
    assert Address.parse(url).host_header == header


@pytest.mark.parametrize(
    ("url", "bound"),
    [
        ("ws://localhost:0", "ws://localhost:7"),
        ("ws://localhost:0/", "ws://localhost:7"),
        ("wss://localhost:0/a/b", "wss://localhost:7/a/b"),
        ("ws6://[::1]:0/a", "ws6://[::1]:7/a"),
        ("ws4://*:0/a", "ws4://*:7/a"),
        ("ws://:0", "ws://*:7"),
        ("ws://h", "ws://h:7"),
    ],
)
def test_the_port_that_was_bound_stands_before_the_path(url: str, bound: str) -> None:
    address = Address.parse(url).with_port(7)
    assert address.url == bound
    assert address == Address.parse(bound)


@pytest.mark.parametrize("url", ["ws://h/a?b", "wss://h?b", "ws+unix:///tmp/s:/a?b", "ws://h/?"])
def test_a_query_can_be_dialed_and_not_listened_on(url: str) -> None:
    address = Address.parse(url)
    address.check_dialable()
    with pytest.raises(AddressError, match="can be dialed but not listened on: a query belongs to a request") as caught:
        address.check_listenable()
    assert repr(url) in str(caught.value)


@pytest.mark.parametrize("url", ["ws://:80/a", "wss://*", "ws6://*:80/a", "ws://h:0/a"])
def test_all_interfaces_or_any_port_can_be_listened_on_but_not_dialed_over_http(url: str) -> None:
    Address.parse(url).check_listenable()
    with pytest.raises(AddressError, match="can be listened on but not dialed"):
        Address.parse(url).check_dialable()


@pytest.mark.parametrize(
    ("url", "encrypted", "http", "network"),
    [
        ("ws://h", False, True, True),
        ("ws6://h", False, True, True),
        ("wss://h", True, True, True),
        ("wss4://h", True, True, True),
        ("ws+unix://s", False, True, False),
        ("tcp://h:1", False, False, True),
        ("tls+tcp://h:1", True, False, True),
        ("ipc://s", False, False, False),
        ("inproc://s", False, False, False),
    ],
)
def test_a_scheme_is_encrypted_http_and_of_the_network_or_not(url: str, encrypted: bool, http: bool, network: bool) -> None:
    address = Address.parse(url)
    assert (address.is_encrypted, address.is_http, address.is_network) == (encrypted, http, network)
