"""HTTP values: the configurations, how a response is encoded, and the client behind a proxy."""

from __future__ import annotations

import http.client
import io
import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from sp.http.config import WSClientConfig, WSServerConfig
from sp.http.connect_proxy import ConnectProxy
from sp.http.forwarding import Client, client_of
from sp.http.message import HTTPHeaders, HTTPInfo, HTTPResponse, retry_after

Config = Callable[..., WSServerConfig | WSClientConfig]

SECRET = "s3cret"

both = pytest.mark.parametrize("config", [WSServerConfig, WSClientConfig])


# Pings.


@both
def test_pings_are_sent_every_twenty_seconds_unless_told_otherwise(config: Config) -> None:
    made = config()
    assert (made.ping_interval, made.ping_timeout, made.ping_everyone) == (20, 20, False)
    assert config(ping_interval=None).ping_interval is None
    assert config(ping_interval=0.5, ping_timeout=3, ping_everyone=True).ping_interval == 0.5


@both
@pytest.mark.parametrize("name", ["ping_interval", "ping_timeout"])
@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("20", TypeError, "must be a number of seconds, not '20'"),
        (True, TypeError, "must be a number of seconds, not True"),
        ([], TypeError, "must be a number of seconds, not []"),
        (0, ValueError, "must be a positive number of seconds, not 0"),
        (-1.5, ValueError, "must be a positive number of seconds, not -1.5"),
        (math.inf, ValueError, "must be a positive number of seconds, not inf"),
        (math.nan, ValueError, "must be a positive number of seconds, not nan"),
    ],
)
def test_a_time_is_a_positive_number_of_seconds(config: Config, name: str, value: object, kind: type[Exception], expected: str) -> None:
    with pytest.raises(kind) as caught:
        config(**{name: value})
    # Which ping_timeout does not take.
    assert f"{name} {expected}" in str(caught.value).replace(" or None", "")


@both
def test_without_a_timeout_there_is_no_telling_that_a_peer_is_gone(config: Config) -> None:
    with pytest.raises(TypeError, match="ping_timeout must be a number of seconds, not None: set ping_interval=None to send no pings"):
        config(ping_timeout=None)


@both
@pytest.mark.parametrize("value", [1, 0, None, "yes"])
def test_a_flag_is_true_or_false(config: Config, value: object) -> None:
    with pytest.raises(TypeError) as caught:
        config(ping_everyone=value)
    assert str(caught.value) == f"ping_everyone must be True or False, not {value!r}"


@both
def test_a_configuration_is_made_by_keywords_and_cannot_be_changed(config: Config) -> None:
    with pytest.raises(TypeError):
        config(20)
    with pytest.raises(TypeError, match="no_such_field"):
        config(no_such_field=1)
    with pytest.raises(AttributeError):
        config().ping_interval = 1  # type: ignore[misc]


# Headers that are added.

headers_of = pytest.mark.parametrize(("config", "name"), [(WSServerConfig, "response_headers"), (WSClientConfig, "headers")])


@headers_of
def test_headers_are_given_as_a_mapping_or_as_pairs(config: Config, name: str) -> None:
    for given in ({"X-One": "1", "x-two": ""}, [("X-One", "1"), ("x-two", "")], HTTPHeaders([("X-One", "1"), ("x-two", "")])):
        assert getattr(config(**{name: given}), name) == (("X-One", "1"), ("x-two", ""))
    assert getattr(config(**{name: [("Set-Cookie", "a"), ("Set-Cookie", "b")]}), name) == (("Set-Cookie", "a"), ("Set-Cookie", "b"))
    assert getattr(config(), name) == ()


@headers_of
@pytest.mark.parametrize("value", ["X-One: 1", b"X-One: 1", 5, None, [1], ["X-One"], [("a", "b", "c")], ("Authorization", SECRET)])
def test_headers_that_are_neither_a_mapping_nor_pairs_are_refused_and_not_shown(config: Config, name: str, value: object) -> None:
    with pytest.raises(TypeError, match="headers must be a mapping or pairs of name and value") as caught:
        config(**{name: value})
    assert SECRET not in str(caught.value)


@headers_of
@pytest.mark.parametrize(
    ("header", "content", "kind", "expected"),
    [
        (5, "x", TypeError, "must be str, not int and str"),
        ("X-One", 5, TypeError, "must be str, not str and int"),
        (b"X-One", b"x", TypeError, "must be str, not bytes and bytes"),
        ("X-One", None, TypeError, "must be str, not str and NoneType"),
        ("", "x", ValueError, "'' is not a header name"),
        ("X One", "x", ValueError, "'X One' is not a header name"),
        ("X-One:", "x", ValueError, "'X-One:' is not a header name"),
        ("X-One\r\nX-Two", "x", ValueError, "is not a header name"),
        ("X-Ünö", "x", ValueError, "is not a header name"),
        ("X-One\n", "x", ValueError, "is not a header name"),
        ("Connection", "close", ValueError, "header 'Connection' belongs to the handshake and cannot be set"),
        ("UPGRADE", "h2c", ValueError, "header 'UPGRADE' belongs to the handshake"),
        ("content-length", "5", ValueError, "header 'content-length' belongs to the handshake"),
        ("Transfer-Encoding", "chunked", ValueError, "belongs to the handshake"),
        ("Sec-WebSocket-Key", "x", ValueError, "belongs to the handshake"),
        ("sec-websocket-extensions", "permessage-deflate", ValueError, "belongs to the handshake"),
        ("Sec-WebSocket-Protocol", "chat", ValueError, "belongs to the handshake"),
        ("X-One", f"{SECRET}\r\nX-Two: x", ValueError, "the value of header 'X-One' has a line break"),
        ("X-One", f"{SECRET}\n", ValueError, "the value of header 'X-One' has a line break"),
        ("X-One", f"{SECRET}\r", ValueError, "the value of header 'X-One' has a line break"),
        ("X-One", f"{SECRET}\0", ValueError, "another control character"),
        ("X-One", f"{SECRET}\x7f", ValueError, "another control character"),
        ("X-One", f" {SECRET}", ValueError, "blanks at its ends"),
        ("X-One", f"{SECRET}\t", ValueError, "blanks at its ends"),
        ("X-One", f"{SECRET}€", ValueError, "the value of header 'X-One'"),
    ],
)
def test_a_header_that_would_break_the_handshake_is_refused_and_its_value_not_shown(
    config: Config, name: str, header: object, content: object, kind: type[Exception], expected: str
) -> None:
    with pytest.raises(kind) as caught:
        config(**{name: [(header, content)]})
    assert expected in str(caught.value)
    assert SECRET not in str(caught.value)


@headers_of
def test_headers_added_to_a_handshake_are_not_shown(config: Config, name: str) -> None:
    assert SECRET not in repr(config(**{name: {"Authorization": f"Bearer {SECRET}"}}))


@headers_of
def test_a_value_may_have_blanks_inside_and_latin_letters(config: Config, name: str) -> None:
    assert getattr(config(**{name: {"X-One": "a\tb ü"}}), name) == (("X-One", "a\tb ü"),)


@pytest.mark.parametrize("headers", [[("Host", "a.example"), ("host", "b.example")], {"Host": ""}, {"Host": "a b"}])
def test_there_is_one_host_and_it_is_a_name(headers: Any) -> None:
    with pytest.raises(ValueError, match="headers: expected one Host, a name or an address with or without a port, not "):
        WSClientConfig(headers=headers)


def test_a_client_may_set_host_origin_and_user_agent() -> None:
    WSClientConfig(headers={"Host": "other.example", "Origin": "https://app.example", "User-Agent": "mine", "Cookie": "a=b"})


# Origins.


@pytest.mark.parametrize(
    ("listed", "sent"),
    [
        ("https://app.example", "https://app.example"),
        ("HTTPS://App.Example", "https://app.example"),
        ("https://app.example", "HTTPS://APP.EXAMPLE"),
        ("https://app.example:443", "https://app.example"),
        ("http://app.example:80", "http://app.example"),
        ("http://app.example:443", "http://app.example:443"),
        ("https://app.example:8443", "https://app.example:8443"),
        ("https://[::1]:443", "https://[::1]"),
        ("https://[::1]:1", "https://[::1]:1"),
        ("null", "null"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("*", "https://anything.example"),
        ("*", "null"),
        ("*", ""),
    ],
)
def test_an_origin_is_recognized_as_browsers_send_it(listed: str, sent: str) -> None:
    assert WSServerConfig(origins=listed).allows_origin(sent)
    assert WSServerConfig(origins=["https://other.example", listed]).allows_origin(sent)


@pytest.mark.parametrize(
    "sent",
    ["", "null", "*", "https://app.example.evil", "http://app.example", "https://app.example:1", "https://app.example/", "https://evil"],
)
def test_an_origin_that_is_not_listed_is_not_allowed(sent: str) -> None:
    assert not WSServerConfig(origins="https://app.example").allows_origin(sent)
    assert not WSServerConfig().allows_origin(sent)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "app.example",
        "https://",
        "https://app.example/",
        "https://app.example/page",
        "https://app.example?x",
        "https://app.example#x",
        "https://app.example:port",
        "https://app.example:99999",
        f"https://user:{SECRET}@app.example",
        "https://[::1",
        "**",
        "*.example",
        "NULL",
    ],
)
def test_the_error_for_a_bad_origin_says_what_was_expected(value: str) -> None:
    with pytest.raises(ValueError, match='expected SCHEME://HOST or SCHEME://HOST:PORT, "null", or "\\*" for all') as caught:
        WSServerConfig(origins=[value])
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", ["origins", "trusted_proxies"])
@pytest.mark.parametrize(
    ("value", "given"), [(5, "int"), (None, "NoneType"), (b"10.0.0.0/8", "int"), ([None], "NoneType"), ([b"*"], "bytes")]
)
def test_a_list_of_names_is_a_str_or_several(name: str, value: object, given: str) -> None:
    with pytest.raises(TypeError, match=f"expected a str or several, not ({given}|bytes)"):
        WSServerConfig(**{name: value})  # type: ignore[arg-type]


# Health.


@pytest.mark.parametrize("value", ["/", "/healthz", "/a/b.c~d", "/%20", "/a:b@c"])
def test_a_health_path_is_a_path(value: str) -> None:
    assert WSServerConfig(health_path=value).health_path == value


@pytest.mark.parametrize("value", ["", "healthz", "/a b", "/ü", "/a?b", "/a#b", "/%2", "/a\n", "http://h/a"])
def test_the_error_for_a_bad_path_says_what_was_expected(value: str) -> None:
    with pytest.raises(ValueError, match="health_path must be a path like /healthz, not ") as caught:
        WSServerConfig(health_path=value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [5, b"/healthz", True])
def test_a_health_path_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=f"health_path must be a str, not {type(value).__name__}"):
        WSServerConfig(health_path=value)  # type: ignore[arg-type]


def test_health_is_callable_and_needs_a_path() -> None:
    WSServerConfig(health_path="/healthz", health=lambda: True)
    with pytest.raises(TypeError, match="health must be a function or None, not 'ok'"):
        WSServerConfig(health_path="/healthz", health="ok")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="health is never called without health_path"):
        WSServerConfig(health=lambda: True)


# Proxies in front of a listener.


@pytest.mark.parametrize("value", ["10.0.0.0/8", "10.1.2.3", "2001:db8::/32", "::1", "unix", ["unix", "10.0.0.0/8"], []])
def test_a_proxy_is_trusted_by_network_address_or_unix(value: str | list[str]) -> None:
    assert len(WSServerConfig(trusted_proxies=value).trusted_proxies) == (1 if isinstance(value, str) else len(value))


@pytest.mark.parametrize("value", ["", "proxy.example", "10.0.0.0/33", "10.0.0.1/8", "10.0.0", "UNIX", "10.0.0.1:80", "*"])
def test_the_error_for_a_bad_network_says_what_was_expected(value: str) -> None:
    with pytest.raises(ValueError, match='is not a network like 10.0.0.0/8 or 2001:db8::7, and not "unix"') as caught:
        WSServerConfig(trusted_proxies=value)
    assert f"trusted_proxies: {value!r}" in str(caught.value)


@pytest.mark.parametrize("value", ["x-forwarded-for", "X-Real-IP", "", None, 5, ["Forwarded"]])
def test_there_are_two_headers_that_name_a_client(value: object) -> None:
    with pytest.raises(ValueError) as caught:
        WSServerConfig(forwarded_header=value)  # type: ignore[arg-type]
    assert str(caught.value) == f'forwarded_header must be "X-Forwarded-For" or "Forwarded", not {value!r}'


# Proxies that a dialer goes through.


@pytest.mark.parametrize(
    ("url", "address", "username", "password"),
    [
        ("http://proxy.example:3128", "proxy.example:3128", None, ""),
        ("http://proxy.example:3128/", "proxy.example:3128", None, ""),
        ("http://proxy.example", "proxy.example:80", None, ""),
        ("proxy.example:3128", "proxy.example:3128", None, ""),
        ("http://[::1]:3128", "[::1]:3128", None, ""),
        ("http://[::1]", "[::1]:80", None, ""),
        (f"http://user:{SECRET}@proxy:1", "proxy:1", "user", SECRET),
        (f"user:{SECRET}@proxy:1", "proxy:1", "user", SECRET),
        ("http://user@proxy:1", "proxy:1", "user", ""),
        ("http://:@proxy:1", "proxy:1", "", ""),
        ("http://[::1]:1", "[::1]:1", None, ""),
        ("http://[fe80::1%25eth0]:1", "[fe80::1%25eth0]:1", None, ""),
        ("http://b\xfcro.example:1", "b\xfcro.example:1", None, ""),
        ("http://u%40x:p%3A%2F%25@proxy:1", "proxy:1", "u@x", "p:/%"),
        ("HTTP://PROXY:1", "proxy:1", None, ""),
    ],
)
def test_the_url_of_a_proxy_has_a_host_and_perhaps_a_port_and_credentials(
    url: str, address: str, username: str | None, password: str
) -> None:
    proxy = ConnectProxy.parse(url)
    assert (proxy.address, proxy.username, proxy.password) == (address, username, password)
    assert SECRET not in repr(proxy)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        f"https://user:{SECRET}@proxy:1",
        f"socks5://user:{SECRET}@proxy:1",
        f"http://user:{SECRET}@proxy:port",
        f"http://user:{SECRET}@proxy:99999",
        f"http://user:{SECRET}@proxy:1/path",
        f"http://user:{SECRET}@proxy:1?query",
        f"http://user:{SECRET}@proxy:1#fragment",
        f"http://user:{SECRET}@[::1",
        f"http://user:{SECRET}@",
        f"http://user:{SECRET}/rest@proxy:1",
        f"http://user:{SECRET}?rest@proxy:1",
        f"http://user:{SECRET}#rest@proxy:1",
        f"http://user:{SECRET}[rest@proxy:1",
        f"http://user:{SECRET}\u2100@proxy:1",
        f"user:{SECRET}/rest@proxy:1",
        f"http://user:{SECRET}@a..b:1",
        f"http://user:{SECRET}@{'a' * 64}.example:1",
        f"http://user:{SECRET}@\xfc..b:1",
        f"http://user:{SECRET}@two words:1",
        f"http://user:{SECRET}@\x1b[2Jproxy:1",
        f"http://user:{SECRET}@\x01proxy:1",
        f"http://user:{SECRET}@%41:1",
        f"http://user:{SECRET}@proxy:0",
    ],
)
def test_a_bad_proxy_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match="^proxy: ") as caught:
        ConnectProxy.parse(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    with pytest.raises(ValueError, match="^proxy: ") as caught:
        WSClientConfig(proxy=url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("value", [False, 1, 0, b"http://proxy:1", ["http://proxy:1"]])
def test_a_proxy_is_a_url_or_true_or_none(value: object) -> None:
    with pytest.raises(TypeError, match=f"proxy must be a URL, True or None, not {type(value).__name__}"):
        WSClientConfig(proxy=value)  # type: ignore[arg-type]


def test_the_credentials_of_a_proxy_are_not_shown() -> None:
    shown = repr(WSClientConfig(proxy=f"http://user:{SECRET}@proxy:3128"))
    assert SECRET not in shown
    assert "user" not in shown
    assert "http://proxy:3128" in shown
    assert "proxy=True" in repr(WSClientConfig())
    assert "proxy=None" in repr(WSClientConfig(proxy=None))


# Headers as they came.


def test_headers_are_looked_up_in_any_case_and_joined() -> None:
    headers = HTTPHeaders([("X-One", "1"), ("Accept", "a"), ("x-oNE", "2")])
    assert headers["x-one"] == headers["X-ONE"] == headers.get("X-One") == "1, 2"
    assert "ACCEPT" in headers
    assert "X-Two" not in headers
    assert headers.get("X-Two") is None
    assert dict(headers) == {"x-one": "1, 2", "accept": "a"}
    assert len(headers) == 2
    assert headers.raw == (("X-One", "1"), ("Accept", "a"), ("x-oNE", "2"))
    with pytest.raises(KeyError):
        headers["X-Two"]


def test_headers_show_their_names_and_not_their_values() -> None:
    headers = HTTPHeaders([("Authorization", f"Bearer {SECRET}"), ("Cookie", SECRET)])
    assert repr(headers) == "<HTTPHeaders authorization, cookie>"


def test_what_a_pipe_shows_of_its_handshake_hides_query_and_headers() -> None:
    info = HTTPInfo(path="/a", query=f"token={SECRET}", headers=HTTPHeaders([("Cookie", SECRET)]))
    assert SECRET not in repr(info)
    assert SECRET not in str(info)


# Responses.


class _Wire:
    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def makefile(self, mode: str) -> io.BytesIO:
        return self._file


def parsed(data: bytes, method: str = "GET") -> tuple[http.client.HTTPResponse, bytes, bytes]:
    """Return the response, its body, and the bytes after it, as the standard library reads them."""
    wire = _Wire(data)
    response = http.client.HTTPResponse(wire, method=method)  # type: ignore[arg-type]
    response.begin()
    file = wire._file
    body = response.read()
    return response, body, file.read() if not file.closed else b""


@pytest.mark.parametrize("body", [b"", b"no\n", "ü", bytes(range(256)), b"x" * 100_000])
@pytest.mark.parametrize("status", [200, 301, 404, 418, 503, 599])
def test_an_answer_is_what_it_says_it_is(status: int, body: bytes | str) -> None:
    response = HTTPResponse(status, body, {"X-One": "1"})
    read, content, _ = parsed(response.encode())
    assert (read.status, read.version, content) == (status, 11, response.body)
    assert response.body == (body.encode() if isinstance(body, str) else body)
    assert read.reason == response.reason
    assert read.getheader("Content-Length") == str(len(response.body))
    assert read.getheader("Connection") == "close"
    assert read.getheader("X-One") == "1"
    assert read.getheader("Content-Type") == "text/plain; charset=utf-8"


def test_the_answer_to_head_has_the_same_headers_and_no_body() -> None:
    response = HTTPResponse(404, "no socket listens here\n")
    assert response.encode(with_body=False) + response.body == response.encode()
    _, content, _ = parsed(response.encode(with_body=False), "HEAD")
    assert content == b""


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_content_has_none(status: int) -> None:
    # RFC 9112, 6.3: it ends with its head, so anything more would be the next response.
    data = HTTPResponse(status, b"not to be sent").encode()
    assert data.endswith(b"\r\n\r\n")
    if status == 204:
        assert b"content-length" not in data.lower()  # RFC 9110, 8.6


def test_a_content_type_of_ones_own_takes_the_place_of_text() -> None:
    data = HTTPResponse(200, b"{}", {"content-type": "application/json"}).encode()
    assert data.lower().count(b"content-type:") == 1
    assert b"application/json" in data


def test_headers_of_one_name_stay_apart() -> None:
    data = HTTPResponse(200, b"", [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]).encode()
    assert b"\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n" in data


@pytest.mark.parametrize(("status", "words"), [(200, "OK"), (404, "Not Found"), (431, "Request Header Fields Too Large"), (599, "")])
def test_the_reason_is_the_standards(status: int, words: str) -> None:
    assert HTTPResponse(status).reason == words
    assert HTTPResponse(status).encode().startswith(f"HTTP/1.1 {status} {words}\r\n".encode())


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        ("200", TypeError, "status must be an int, not '200'"),
        (True, TypeError, "status must be an int, not True"),
        (200.0, TypeError, "status must be an int, not 200.0"),
        (None, TypeError, "status must be an int, not None"),
        (101, ValueError, "status must be from 200 to 599, not 101"),
        (199, ValueError, "status must be from 200 to 599, not 199"),
        (600, ValueError, "status must be from 200 to 599, not 600"),
        (-1, ValueError, "status must be from 200 to 599, not -1"),
    ],
)
def test_a_status_is_a_final_one(status: object, kind: type[Exception], expected: str) -> None:
    with pytest.raises(kind) as caught:
        HTTPResponse(status)  # type: ignore[arg-type]
    assert str(caught.value) == expected


@pytest.mark.parametrize("body", [5, None, ["x"], bytearray(b"x")])
def test_a_body_is_bytes_or_str(body: object) -> None:
    with pytest.raises(TypeError, match="body must be bytes or str, not "):
        HTTPResponse(200, body)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-One", f"{SECRET}\r\n\r\n<script>"),
        ("X-One", f"{SECRET}\nSet-Cookie: a"),
        ("X-One\r\nSet-Cookie", SECRET),
        ("Content-Length", "0"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "keep-alive"),
        ("Sec-WebSocket-Accept", "x"),
    ],
)
def test_nothing_can_be_put_into_an_answer_that_ends_it_early_or_late(name: str, value: str) -> None:
    with pytest.raises(ValueError) as caught:
        HTTPResponse(200, b"", {name: value})
    assert SECRET not in str(caught.value)


def test_an_answer_shows_the_size_of_its_body_and_the_names_of_its_headers() -> None:
    shown = repr(HTTPResponse(403, SECRET, {"Set-Cookie": SECRET}))
    assert SECRET not in shown
    assert "403" in shown
    assert f"<{len(SECRET)} bytes>" in shown


def test_a_response_of_a_server_is_taken_as_it_is() -> None:
    response = HTTPResponse.received(101, b"body", [("Content-Length", "4"), ("Connection", "close"), ("X-One", " odd\x01")])
    assert (response.status, response.body, response.headers["x-one"]) == (101, b"body", " odd\x01")


# When a dialer may try again.

NINETEEN_NINETY_FOUR = 784111777.0
"""The time of RFC 9110's examples."""


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        ("007", 7),
        ("9" * 18, float("9" * 18)),
        ("9" * 19, 0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 60),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 60),
        ("Sun Nov  6 08:49:37 1994", 60),
        ("Sun, 06 Nov 1994 08:48:37 GMT", 0),
        ("Sun, 06 Nov 1994 08:48:36 GMT", 0),
        ("Sun, 06 Nov 1904 08:49:37 GMT", 0),
        ("Sun, 06 Nov 99999999999999 08:49:37 GMT", 0),
        ("", 0),
        ("-5", 0),
        ("1.5", 0),
        ("5, 6", 0),
        ("\u0665", 0),
        ("soon", 0),
        ("Sun, 06 Nov", 0),
        (", , :", 0),
    ],
)
def test_a_busy_server_may_say_when_to_come_again(status: int, value: str, seconds: float) -> None:
    answer = HTTPResponse.received(status, b"", [("Retry-After", value)])
    assert retry_after(answer, NINETEEN_NINETY_FOUR - 60) == seconds


def test_a_date_counts_by_the_clock_of_the_server() -> None:
    until = ("Retry-After", "Sun, 06 Nov 1994 08:49:37 GMT")
    for date, seconds in (
        ("Sun, 06 Nov 1994 08:49:07 GMT", 30),
        ("Sun, 06 Nov 1994 08:50:07 GMT", 0),
        ("yesterday", 60),
    ):
        answer = HTTPResponse.received(503, b"", [("Date", date), until])
        assert retry_after(answer, NINETEEN_NINETY_FOUR - 60) == seconds


@pytest.mark.parametrize("status", [200, 302, 404, 500, 502])
def test_only_a_busy_server_says_when_to_try_again(status: int) -> None:
    assert retry_after(HTTPResponse.received(status, b"", [("Retry-After", "7")]), 0) == 0


# The client behind a proxy.

TRUSTED = ("10.0.0.0/8", "2001:db8::/32")


def behind(
    value: str | None,
    *,
    header: str = "X-Forwarded-For",
    peer: str = "10.0.0.1:4711",
    trusted: str | tuple[str, ...] = TRUSTED,
    more: tuple[tuple[str, str], ...] = (),
    unix: bool = False,
    scheme: str = "http",
) -> Client:
    """Return the client behind *peer*, which passes *header* on."""
    config = WSServerConfig(trusted_proxies=trusted, forwarded_header=header)  # type: ignore[arg-type]
    headers = HTTPHeaders([*(() if value is None else ((header, value),)), *more])
    return client_of(config, headers, peer, scheme, unix=unix)


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:81", "203.0.113.7:81"),
        (" 203.0.113.7\t", "203.0.113.7"),
        ("2a00::7", "2a00::7"),
        ("[2a00::7]", "2a00::7"),
        ("[2a00::7]:81", "[2a00::7]:81"),
        ("2A00:0:0:0:0:0:0:7", "2a00::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("[::ffff:203.0.113.7]:81", "203.0.113.7:81"),
        # What a client has sent itself stands further left, and is not believed.
        ("198.51.100.1, 203.0.113.7", "203.0.113.7"),
        ("10.9.9.9, 203.0.113.7", "203.0.113.7"),
        ("unknown, 203.0.113.7", "203.0.113.7"),
        ("garbage \"',;,,,203.0.113.7", "203.0.113.7"),
        # Further proxies of ours.
        ("203.0.113.7, 10.0.0.2", "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7:81, 10.0.0.3:5, [2001:db8::5]:6,::ffff:10.0.0.2", "203.0.113.7:81"),
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        # A name that cannot be read is no client, and no trusted proxy either.
        ("unknown, 10.0.0.2", "unknown"),
        ("203.0.113.7, unknown, 10.0.0.2", "unknown"),
        ("203.0.113.7, , 10.0.0.2", "unknown"),
        ("203.0.113.7:65536", "unknown"),
        ("fe80::1%\x9b31m x", "unknown"),
    ],
)
def test_the_client_is_the_rightmost_address_that_is_no_trusted_proxy(value: str, address: str) -> None:
    assert behind(value) == Client(address, "http", via=True)


@pytest.mark.parametrize("trusted", ["fe80::/10", "fe80::9"])
def test_a_trusted_proxy_may_have_a_link_local_address(trusted: str) -> None:
    assert behind("203.0.113.7", peer="[fe80::9%eth0]:4711", trusted=trusted) == Client("203.0.113.7", "http", via=True)
    assert behind(None, peer="[fe80::9%eth0]:4711", trusted=trusted) == Client("[fe80::9%eth0]:4711", "http", via=True)
    assert behind("203.0.113.7", peer="[fe80::9%eth0]:4711") == Client("[fe80::9%eth0]:4711", "http", via=False)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        " ",
        ",",
        "unknown",
        "_hidden",
        "203.0.113.7, unknown",
        "proxy.example",
        "203.0.113",
        "203.0.113.256",
        "203.0.113.7:",
        "203.0.113.7:port",
        "203.0.113.7:-1",
        "203.0.113.7:123456",
        "203.0.113.7:٨٠",
        "[2a00::7",
        "[2a00::7]81",
        "2a00::7]:81",
        "2a00::g",
        "203.0.113.7/8",
        "203.0.113.7;203.0.113.8",
        '"203.0.113.7"',
        "for=203.0.113.7",
    ],
)
def test_where_no_address_can_be_read_the_client_is_unknown_and_without_a_header_it_is_the_peer(value: str | None) -> None:
    address = behind(value).address
    if value == "203.0.113.7:":
        assert address in ("203.0.113.7", "unknown")  # an empty port may be left out
    else:
        assert address == ("unknown" if value is not None and value.strip() else "10.0.0.1:4711")


@pytest.mark.parametrize("peer", ["192.0.2.1:4711", "11.0.0.1:4711", "[2001:db9::1]:4711", "[::ffff:192.0.2.1]:1", ""])
@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
def test_the_word_of_a_peer_that_is_not_trusted_does_not_count(peer: str, header: str) -> None:
    value = "203.0.113.7" if header == "X-Forwarded-For" else "for=203.0.113.7;proto=https"
    assert behind(value, header=header, peer=peer, more=(("X-Forwarded-Proto", "https"),)) == Client(peer, "http", via=False)


@pytest.mark.parametrize("peer", ["10.0.0.1:4711", "[2001:db8::1]:4711", "[::ffff:10.0.0.1]:4711"])
def test_a_proxy_is_trusted_by_either_family_and_in_any_notation(peer: str) -> None:
    assert behind("203.0.113.7", peer=peer) == Client("203.0.113.7", "http", via=True)


def test_by_default_no_proxy_is_trusted() -> None:
    for unix in (False, True):
        assert behind("203.0.113.7", peer="127.0.0.1:1", trusted=(), unix=unix) == Client("127.0.0.1:1", "http", via=False)


def test_a_peer_at_a_unix_socket_is_trusted_as_unix_and_by_no_network() -> None:
    url = "ws+unix:///tmp/s"
    assert behind("203.0.113.7", peer=url, trusted="unix", unix=True) == Client("203.0.113.7", "http", via=True)
    assert behind("203.0.113.7, 10.0.0.2", peer=url, trusted=("unix", *TRUSTED), unix=True) == Client("203.0.113.7", "http", via=True)
    assert behind(None, peer=url, trusted="unix", unix=True) == Client(url, "http", via=True)
    assert behind("203.0.113.7", peer=url, trusted="0.0.0.0/0", unix=True) == Client(url, "http", via=False)
    assert behind("203.0.113.7", peer="10.0.0.1:1", trusted="unix") == Client("10.0.0.1:1", "http", via=False)


def test_the_header_that_is_not_configured_is_ignored() -> None:
    more = (("Forwarded", "for=198.51.100.1;proto=https"), ("X-Real-IP", "198.51.100.1"))
    assert behind("203.0.113.7", more=more) == Client("203.0.113.7", "http", via=True)
    assert behind(None, more=more) == Client("10.0.0.1:4711", "http", via=True)
    more = (("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-Proto", "https"))
    assert behind("for=203.0.113.7", header="Forwarded", more=more) == Client("203.0.113.7", "http", via=True)
    assert behind(None, header="Forwarded", more=more) == Client("10.0.0.1:4711", "http", via=True)


def test_several_headers_of_the_name_are_one() -> None:
    assert behind("198.51.100.1", more=(("x-forwarded-for", "203.0.113.7"),)).address == "203.0.113.7"
    assert behind("for=198.51.100.1", header="Forwarded", more=(("forwarded", "for=203.0.113.7"),)).address == "203.0.113.7"


@pytest.mark.parametrize(("entry", "address"), [("10.0.0.2", "10.0.0.2"), ("203.0.113.7", "203.0.113.7"), ("unknown", "unknown")])
def test_ten_thousand_entries_take_no_time(entry: str, address: str) -> None:
    began = time.process_time()
    assert behind(", ".join([entry] * 10_000)).address == address
    # No request passes that many proxies.
    assert behind(", ".join([f"for={entry}"] * 10_000), header="Forwarded").address == "unknown"
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("value", "protocols", "scheme"),
    [
        ("203.0.113.7", "https", "https"),
        ("203.0.113.7", "HTTPS", "https"),
        ("203.0.113.7", " https ", "https"),
        ("203.0.113.7", "http", "http"),
        ("203.0.113.7", "", "http"),
        ("203.0.113.7", "gopher", "http"),
        ("203.0.113.7", "https;", "http"),
        ("203.0.113.7", "https, http", "http"),  # the right one is our proxy's
        ("203.0.113.7", "http, https", "https"),
        ("198.51.100.1, 203.0.113.7", "https, http", "http"),  # each one adds its own
        ("203.0.113.7, 10.0.0.2", "https, http", "https"),
        ("198.51.100.1, 203.0.113.7, 10.0.0.2", "http, https, http", "https"),
    ],
)
def test_what_the_client_spoke_is_what_the_trusted_proxies_say(value: str, protocols: str, scheme: str) -> None:
    assert behind(value, more=(("X-Forwarded-Proto", protocols),)).scheme == scheme


def test_without_a_word_on_it_the_scheme_is_that_of_the_connection() -> None:
    assert behind("203.0.113.7", scheme="https").scheme == "https"
    assert behind("for=203.0.113.7", header="Forwarded", scheme="https").scheme == "https"
    assert behind("for=203.0.113.7;proto=http", header="Forwarded", scheme="https").scheme == "http"


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("for=203.0.113.7", "203.0.113.7"),
        ("For=203.0.113.7", "203.0.113.7"),
        ('for="203.0.113.7:81"', "203.0.113.7:81"),
        ('for="[2a00::7]:81"', "[2a00::7]:81"),
        ('for="[2a00::7]"', "2a00::7"),
        ('for="\\[2a00\\:\\:7]"', "2a00::7"),  # an escaped character is itself
        ("by=10.0.0.1;for=203.0.113.7;host=h;proto=https", "203.0.113.7"),
        ('host="a, for=198.51.100.1; b";for=203.0.113.7', "203.0.113.7"),
        ('host="\\", for=198.51.100.1";for=203.0.113.7', "203.0.113.7"),
        ("for=198.51.100.1, for=203.0.113.7", "203.0.113.7"),
        ("for=198.51.100.1,for=203.0.113.7,for=10.0.0.2", "203.0.113.7"),
        ("for=203.0.113.7;by=a , for=10.0.0.2;by=b", "203.0.113.7"),
        ("for=_hidden, for=203.0.113.7", "203.0.113.7"),
        ("for=203.0.113.7;for=198.51.100.1", "203.0.113.7"),
        ("for=203.0.113.7;secret=x;;", "203.0.113.7"),
        (",,for=203.0.113.7", "203.0.113.7"),
        ('for="[::ffff:203.0.113.7]"', "203.0.113.7"),
        ("for=_hidden, for=10.0.0.2", "unknown"),
        ('for="_hidden:81", for=10.0.0.2', "unknown"),
        ("for=unknown, for=10.0.0.2", "unknown"),
        ("by=203.0.113.7, for=10.0.0.2", "unknown"),
    ],
)
def test_forwarded_says_the_same_in_another_way(value: str, address: str) -> None:
    assert behind(value, header="Forwarded").address == address


@pytest.mark.parametrize(
    "value",
    [
        "",
        ",",
        "for",
        "for=",
        'for=""',
        "for=_hidden",
        "for=unknown",
        'for="_gazonk:47011"',
        "203.0.113.7",
        "for 203.0.113.7",
        'for="203.0.113.7',
        'for="203.0.113.7\\',
        'for=203.0.113.7"',
        'for="203.0.113.7"x',
        "proto=https",
        "=203.0.113.7",
        "for=203.0.113.7, for=unknown",
        # A client cannot hide what our proxy adds behind something broken, and be believed instead.
        'for=203.0.113.7;x=", for=198.51.100.1',
        'for=203.0.113.7;x=", for="[2a00::7]:1"',
        'for=203.0.113.7, ", for="[2a00::7]"',
    ],
)
def test_an_empty_forwarded_header_names_no_client(value: str) -> None:
    assert behind(value, header="Forwarded").address == ("unknown" if value.strip() else "10.0.0.1:4711")


@pytest.mark.parametrize(
    "broken", ['"', "for=", ";", "=", "for", 'x="', "\\", "for=198.51.100.1 for", "[", "a=b c", "for=198.51.100.1;;;;"]
)
def test_a_client_cannot_choose_its_address_by_a_header_of_its_own(broken: str) -> None:
    for added in ("for=203.0.113.7", 'for="203.0.113.7"', 'for="203.0.113.7";proto=http;host="h"'):
        found = behind(broken, header="Forwarded", more=(("Forwarded", added),))
        assert found.address in ("203.0.113.7", "unknown")


@pytest.mark.parametrize(
    ("value", "scheme"),
    [
        ("for=203.0.113.7;proto=https", "https"),
        ("for=203.0.113.7;proto=HTTPS", "https"),
        ('for=203.0.113.7;proto="https"', "https"),
        ("for=203.0.113.7;proto=gopher", "http"),
        ("for=198.51.100.1;proto=https, for=203.0.113.7;proto=http", "http"),
        ("for=203.0.113.7;proto=https, for=10.0.0.2;proto=http", "https"),
    ],
)
def test_forwarded_names_the_scheme_of_each_hop(value: str, scheme: str) -> None:
    assert behind(value, header="Forwarded").scheme == scheme
