"""Addresses: any text."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sp.address import Address
from sp.errors import AddressError

anything = st.text(st.characters())  # lone surrogates as well
pieces = st.sampled_from([*"[]:*%/.0ü\0", "::1", "%00", "%lo", "80", "65535", "65536", "host", "x" * 107])
schemes = st.sampled_from(["tcp", "tcp4", "tcp6", "ipc", "abstract", "inproc"])
urls = st.one_of(anything, st.tuples(schemes, st.one_of(anything, st.lists(pieces).map("".join))).map("://".join))


@settings(deadline=None, max_examples=500)
@given(urls)
@example("ipc://\ud800")
@example("abstract://\udcff")
@example("tcp://:@")
def test_any_text_is_an_address_or_an_address_error_that_shows_it(url: str) -> None:
    try:
        address = Address.parse(url)
    except AddressError as error:
        assert repr(url) in str(error) or "@" in url  # what may be credentials is not shown
    else:
        assert address.url == url
        assert 0 <= address.port <= 65535
        assert address.scheme.startswith("tcp") or address.path


@settings(deadline=None)
@given(urls, st.integers(0, 65535))
def test_the_url_with_another_port_is_one_of_the_same_host(url: str, port: int) -> None:
    try:
        address = Address.parse(url)
    except ValueError:
        return
    if address.scheme.startswith("tcp"):
        other = Address.parse(address.with_port(port).url)
        assert (other.scheme, other.host, other.port) == (address.scheme, address.host, port)
