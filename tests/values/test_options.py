"""Options: every limit at its edge."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

from sp.checks import check_choice, check_seconds_or_none, check_ttl
from sp.options import DROP_POLICIES, SocketKeywords, SocketOptions
from sp.sockets.base import options_from

COUNTS = ["inbox_limit", "inbox_bytes", "outbox_limit", "outbox_bytes", "reply_limit", "reply_bytes", "max_handshakes"]
SECONDS = ["handshake_timeout", "redial_min", "redial_max", "tcp_keepalive"]


def make(**keywords: Any) -> SocketOptions:
    return SocketOptions(**keywords)


def test_the_keywords_of_a_socket_are_its_options() -> None:
    assert list(SocketKeywords.__annotations__) == [field.name for field in attrs.fields(SocketOptions)]


def test_the_defaults_are_good() -> None:
    options = SocketOptions()
    assert (options.dial, options.listen) == ((), ())
    assert options.redial_min < options.redial_max


def test_options_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        SocketOptions().linger = 2.0  # type: ignore[misc]


def test_an_unknown_keyword_is_named_and_the_known_ones_are_listed() -> None:
    with pytest.raises(TypeError, match=r"unknown option 'bogus', expected one of authorize, dial, .*redial_max"):
        options_from({"bogus": 1})  # type: ignore[typeddict-unknown-key]


def test_known_keywords_become_options() -> None:
    assert options_from({"inbox_limit": 7}) == SocketOptions(inbox_limit=7)


@pytest.mark.parametrize("name", ["dial", "listen"])
def test_one_url_or_several_can_be_given(name: str) -> None:
    assert getattr(make(**{name: "tcp://a:1"}), name) == ("tcp://a:1",)
    assert getattr(make(**{name: ["tcp://a:1", "tcp://b:1"]}), name) == ("tcp://a:1", "tcp://b:1")


@pytest.mark.parametrize("name", ["dial", "listen"])
@pytest.mark.parametrize("value", [b"tcp://a:1", 5, None])
def test_a_url_is_a_str(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"a URL or several, each a str, not {value!r}"):
        make(**{name: value})


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_one_or_more(name: str) -> None:
    assert getattr(make(**{name: 1}), name) == 1
    assert getattr(make(**{name: 1 << 80}), name) == 1 << 80
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, not {value}"):
            make(**{name: value})


@pytest.mark.parametrize("name", [*COUNTS, "max_message_size", "ipc_mode"])
@pytest.mark.parametrize("value", [1.0, True, "1", b"1", [1]])
def test_a_count_is_an_int(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{name} must be an int, not "):
        make(**{name: value})


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_has_no_off_switch(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be an int, not None"):
        make(**{name: None})


def test_the_message_size_is_zero_or_more_or_without_limit() -> None:
    assert SocketOptions(max_message_size=0).max_message_size == 0
    assert SocketOptions(max_message_size=None).max_message_size is None
    with pytest.raises(ValueError, match="max_message_size must be at least 0, not -1"):
        SocketOptions(max_message_size=-1)


def test_the_mode_of_a_socket_file_is_permission_bits_or_none() -> None:
    assert SocketOptions(ipc_mode=0).ipc_mode == 0
    assert SocketOptions(ipc_mode=0o777).ipc_mode == 0o777
    assert SocketOptions(ipc_mode=None).ipc_mode is None
    for value in (-1, 0o1000):
        with pytest.raises(ValueError, match=f"ipc_mode must be from 0 to 511, not {value}"):
            SocketOptions(ipc_mode=value)


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [0, 0.0, -1, -0.1, math.inf, -math.inf, math.nan])
def test_a_time_is_positive_and_finite(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a positive number of seconds.*, not {value}"):
        make(**{name: value})


@pytest.mark.parametrize("name", [*SECONDS, "linger"])
@pytest.mark.parametrize("value", ["1", True, b"1", 1j])
def test_a_time_is_a_number(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a number of seconds, not "):
        make(**{name: value})


@pytest.mark.parametrize("name", ["handshake_timeout", "redial_min", "redial_max", "linger"])
def test_a_time_has_no_off_switch(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a number of seconds, not None"):
        make(**{name: None})


def test_keepalive_can_be_left_to_the_kernel() -> None:
    assert SocketOptions(tcp_keepalive=None).tcp_keepalive is None
    assert SocketOptions(tcp_keepalive=1).tcp_keepalive == 1


def test_keepalive_is_a_day_at_most() -> None:
    assert SocketOptions(tcp_keepalive=86_400).tcp_keepalive == 86_400
    with pytest.raises(ValueError, match="keepalive must be a positive number of seconds of at most 86400, not 86401"):
        SocketOptions(tcp_keepalive=86_401)


def test_linger_may_be_zero() -> None:
    assert SocketOptions(linger=0).linger == 0
    for value in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="linger must be zero or a positive number of seconds, not "):
            SocketOptions(linger=value)


def test_the_longest_redial_wait_may_equal_the_shortest_and_not_be_below() -> None:
    SocketOptions(redial_min=2, redial_max=2)
    with pytest.raises(ValueError, match="redial_min must not be above redial_max: 2 is above 1.9"):
        SocketOptions(redial_min=2, redial_max=1.9)


@pytest.mark.parametrize("name", ["authorize", "should_redial"])
def test_a_hook_is_callable_or_none(name: str) -> None:
    assert getattr(make(**{name: print}), name) is print
    assert getattr(make(**{name: None}), name) is None
    with pytest.raises(TypeError, match=name):
        make(**{name: "no"})


def test_redial_is_a_plain_function() -> None:
    async def should_redial(_: Exception) -> bool:
        return True

    with pytest.raises(TypeError, match="redial must be a plain function, not an async one"):
        make(should_redial=should_redial)


@pytest.mark.parametrize("value", [1, 8, 255])
def test_a_ttl_is_from_1_to_255(value: int) -> None:
    assert check_ttl(value) == value


@pytest.mark.parametrize("value", [0, 256, -1])
def test_any_other_ttl_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=f"ttl must be from 1 to 255, not {value}"):
        check_ttl(value)


@pytest.mark.parametrize("value", [8.0, True, "8", None])
def test_a_ttl_is_an_int(value: object) -> None:
    with pytest.raises(TypeError, match="ttl must be an int, not"):
        check_ttl(value)


@pytest.mark.parametrize("value", ["oldest", "newest"])
def test_there_are_two_policies(value: str) -> None:
    assert check_choice("drops", value, DROP_POLICIES) == value


@pytest.mark.parametrize("value", ["", "Oldest", "none", None, True, b"oldest"])
def test_any_other_policy_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match='drops must be "oldest" or "newest", not'):
        check_choice("drops", value, DROP_POLICIES)


def test_a_resend_time_is_positive_or_off() -> None:
    assert check_seconds_or_none("resend_after", None) is None
    assert check_seconds_or_none("resend_after", 1) == 1.0
    for value in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="resend_after must be a positive number of seconds or None, not"):
            check_seconds_or_none("resend_after", value)
    for wrong in ("1", True, b"1"):
        with pytest.raises(TypeError, match="resend_after must be a number of seconds or None, not"):
            check_seconds_or_none("resend_after", wrong)


@pytest.mark.parametrize(("name", "kinds"), [("tls", "TLSServerConfig or a TLSClientConfig"), ("ws", "WSServerConfig or a WSClientConfig")])
def test_a_configuration_of_another_kind_is_refused(name: str, kinds: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a {kinds}, not dict"):
        SocketOptions(**{name: {}})  # type: ignore[arg-type]
