"""The names in a certificate: an odd name matches nothing, and does not spoil the others."""

from __future__ import annotations

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL, crypto

import sp
from sp.tls.certificate_names import alternative_names, wrong_name
from tests.tls.authority import Authority

URL = "tls+tcp://127.0.0.1:0"
HOSTS = ("localhost", "127.0.0.1")
OTHERS = ("other.example", "a.localhost", "printer.local", "local", "a.b.example.com", "x", "127.0.0.2", "::1", "0.0.0.0")


def element(tag: int, content: bytes) -> bytes:
    """Return *content* as an element of DER."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes(1 if size < 0x100 else 2)
    return bytes([tag, 0x80 + len(octets)]) + octets + content


def dns(name: bytes) -> bytes:
    return element(0x82, name)


def ip(packed: bytes) -> bytes:
    return element(0x87, packed)


def uri(text: bytes) -> bytes:
    return element(0x86, text)


def email(text: bytes) -> bytes:
    return element(0x81, text)


def srv(value: bytes) -> bytes:
    """Return a name of a service (RFC 4985)."""
    return element(0xA0, bytes.fromhex("06082b06010505070807") + element(0xA0, value))


def listed(*names: bytes) -> bytes:
    return element(0x30, b"".join(names))


GOOD = dns(b"localhost") + ip(bytes([127, 0, 0, 1]))
ODD = {
    "DNS:*.localhost": dns(b"*.localhost"),
    "DNS:*.local": dns(b"*.local"),
    "DNS:*": dns(b"*"),
    "DNS:*.*.example.com": dns(b"*.*.example.com"),
    "DNS:a.*.example.com": dns(b"a.*.example.com"),
    "DNS:*.example..com": dns(b"*.example..com"),
    "DNS:127.0.0.1": dns(b"127.0.0.1"),
    "DNS:127.0.0.2": dns(b"127.0.0.2"),
    "DNS:127.0.0.*": dns(b"127.0.0.*"),
    "an empty DNS name": dns(b""),
    "a DNS name of a space": dns(b" "),
    "a DNS name with spaces": dns(b" other.example "),
    "a DNS name with a zero": dns(b"other.example\0.evil.example"),
    "a DNS name in UTF-8": dns("b\N{LATIN SMALL LETTER U WITH DIAERESIS}ro.example".encode()),
    "a DNS name in Latin-1": dns(b"b\xfcro.example"),
    "URI:urn:uuid:...": uri(b"urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"),
    "URI:foo": uri(b"foo"),
    "URI:https://x:8443/": uri(b"https://x:8443/"),
    "URI:https:other.example": uri(b"https:other.example"),
    "URI:https://x:99999999/": uri(b"https://x:99999999/"),
    "an empty URI": uri(b""),
    "a SRV name without its underscore": srv(element(0x16, b"sp.other.example")),
    "an empty SRV name": srv(element(0x16, b"")),
    "a SRV name of another type": srv(element(0x0C, b"_sp.other.example")),
    "a SRV name": srv(element(0x16, b"_sp.other.example")),
    "email:a b": email(b"a b"),
    "an empty email": email(b""),
    "an IP address of five bytes": ip(b"12345"),
    "an IP address of no bytes": ip(b""),
    "a network": ip(bytes([127, 0, 0, 0, 255, 0, 0, 0])),
    "an X.400 address": element(0xA3, b""),
    "a party of EDI": element(0xA5, element(0xA1, element(0x0C, b"x"))),
    "a registered ID": element(0x88, b"\x2a\x03"),
    "a directory's name": element(0xA4, element(0x30, b"")),
}
KEY = ec.generate_private_key(ec.SECP256R1())
EACH = pytest.mark.parametrize("odd", ODD.values(), ids=ODD)


def certificate_of(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem[pem.index(b"-----BEGIN CERT") :])


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@EACH
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("first", [True, False])
def test_an_odd_name_beside_good_ones_is_passed_over(odd: bytes, host: str, first: bool, authority: Authority) -> None:
    names = listed(odd, GOOD) if first else listed(GOOD, odd)
    certificate = certificate_of(authority.issue_flawed(raw_names=names))
    assert wrong_name(certificate, host) == ""
    assert {"DNS:localhost", "IP:127.0.0.1"} <= set(alternative_names(certificate))


@EACH
def test_an_odd_name_matches_nothing(odd: bytes, authority: Authority) -> None:
    beside, alone = (certificate_of(authority.issue_flawed(raw_names=names)) for names in (listed(GOOD, odd), listed(odd)))
    for host in OTHERS:
        assert "it is for DNS:localhost, IP:127.0.0.1" in wrong_name(beside, host)
        assert wrong_name(alone, host)
    for host in HOSTS:
        assert wrong_name(alone, host)


def own_context(authority: Authority) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_verify(SSL.VERIFY_PEER)
    store = context.get_cert_store()
    assert store is not None
    store.add_cert(crypto.X509.from_cryptography(authority.certificate))
    return context


async def dialed(pem: bytes, client: sp.TLSClientConfig) -> tuple[str, ...]:
    """Dial a server with the certificate in *pem*; return the names that the dialer has seen."""
    with trio.fail_after(10):
        async with sp.Rep0(listen=URL, tls=sp.TLSServerConfig(certificate=pem)) as rep, sp.Req0(tls=client) as req:
            await req.dial(rep.url)
            tls = req.pipes[0].tls
            assert tls is not None
            return tls.names


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("host", HOSTS)
async def test_a_dialer_takes_a_certificate_with_an_odd_name(odd: bytes, host: str, authority: Authority) -> None:
    pem = authority.issue_flawed(raw_names=listed(odd, GOOD))
    for client in (authority.client(server_name=host), sp.TLSClientConfig(context=own_context(authority), server_name=host)):
        assert {"DNS:localhost", "IP:127.0.0.1"} <= set(await dialed(pem, client))


@EACH
async def test_a_dialer_refuses_a_certificate_with_odd_names_only(odd: bytes, authority: Authority) -> None:
    pem = authority.issue_flawed(raw_names=listed(odd))
    for client in (authority.client(server_name="localhost"), sp.TLSClientConfig(context=own_context(authority), server_name="localhost")):
        with pytest.raises(sp.DialError) as caught:
            await dialed(pem, client)
        assert isinstance(caught.value.__cause__, sp.AuthenticationError)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (listed(dns(b"*.local"), uri(b"foo")), "it has no DNS name and no IP address that can be used, only DNS:*.local, URI:foo"),
        (listed(dns(b"*"), uri(b"a\nb")), r"it has no DNS name and no IP address that can be used, only DNS:*, URI:a\nb"),
        (listed(ip(b"12345")), "it does not contain any subjectAltName that can be read"),
        (listed(), "it does not contain any subjectAltName that can be read"),
    ],
)
def test_the_error_says_what_is_missing(names: bytes, reason: str, authority: Authority) -> None:
    certificate = certificate_of(authority.issue_flawed(raw_names=names))
    assert [wrong_name(certificate, host) for host in HOSTS] == [reason] * 2


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*.example.com", "a.example.com", True),
        ("*.EXAMPLE.com", "A.example.COM", True),
        ("a.example.com", "a.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", "xn--bro-hoa.example.com", False),
        ("a*.example.com", "ab.example.com", False),
        ("*a.example.com", "ba.example.com", False),
        ("*.com", "example.com", False),
        ("*.example.com", "a.example.org", False),
        ("example.com", "example.com.evil.example", False),
        ("xn--bro-hoa.example.com", "xn--bro-hoa.example.com", True),
    ],
)
def test_wildcards_stand_for_one_whole_label_on_the_left(pattern: str, name: str, matches: bool, authority: Authority) -> None:
    certificate = certificate_of(authority.issue_flawed(pattern))
    assert (wrong_name(certificate, name) == "") is matches


@pytest.mark.parametrize("name", ["1234", "1_0"])
def test_a_name_that_no_certificate_can_have_is_reported(name: str, authority: Authority) -> None:
    assert wrong_name(certificate_of(authority.issue_flawed("1234.example")), name) == f"no certificate can be for {name!r}"


def test_a_name_in_the_dress_of_an_address_is_no_address(authority: Authority) -> None:
    certificate = certificate_of(authority.issue_flawed(raw_names=listed(dns(b"127.0.0.1"))))
    assert wrong_name(certificate, "127.0.0.1") == "it has no DNS name and no IP address that can be used, only DNS:127.0.0.1"


# Parsing.


def test_long_lists_are_read(authority: Authority) -> None:
    names = [f"host-{number}.example" for number in range(3000)]
    certificate = certificate_of(authority.issue_flawed(*names))
    assert alternative_names(certificate) == tuple(f"DNS:{name}" for name in names)
    assert wrong_name(certificate, names[-1]) == ""


def test_of_very_many_names_a_few_are_shown(authority: Authority) -> None:
    certificate = certificate_of(authority.issue_flawed(*(f"host-{number}.example" for number in range(3000))))
    told = wrong_name(certificate, "localhost")
    assert "it is for DNS:host-0.example, DNS:host-1.example" in told
    assert "..., not for 'localhost'" in told
    assert len(told) < 1000


def test_a_certificate_without_extensions_has_no_names(authority: Authority) -> None:
    name = authority.certificate.subject
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(authority.certificate.public_key())
    builder = builder.serial_number(1).not_valid_before(authority.certificate.not_valid_before_utc)
    certificate = builder.not_valid_after(authority.certificate.not_valid_after_utc).sign(KEY, hashes.SHA256())
    assert alternative_names(certificate) == ()
    assert "subjectAltName" in wrong_name(certificate, "localhost")


def test_a_certificate_with_other_extensions_only_has_no_names(authority: Authority) -> None:
    once = certificate_of(authority.issue_flawed("localhost"))
    builder = x509.CertificateBuilder().subject_name(once.subject).issuer_name(once.issuer).public_key(once.public_key())
    builder = builder.serial_number(1).not_valid_before(once.not_valid_before_utc).not_valid_after(once.not_valid_after_utc)
    certificate = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True).sign(KEY, hashes.SHA256())
    assert alternative_names(certificate) == ()
    assert "subjectAltName" in wrong_name(certificate, "localhost")


def test_of_two_lists_of_names_none_counts(authority: Authority) -> None:
    once = certificate_of(authority.issue_flawed("localhost"))
    builder = x509.CertificateBuilder().subject_name(once.subject).issuer_name(once.issuer).public_key(once.public_key())
    builder = builder.serial_number(1).not_valid_before(once.not_valid_before_utc).not_valid_after(once.not_valid_after_utc)
    for extension in (x509.SubjectAlternativeName([x509.DNSName("localhost")]), x509.IssuerAlternativeName([x509.DNSName("localhost")])):
        builder = builder.add_extension(extension, critical=False)
    signed = builder.sign(KEY, hashes.SHA256())
    der = signed.public_bytes(serialization.Encoding.DER)
    assert der.count(bytes.fromhex("551d12")) == 1
    twice = x509.load_der_x509_certificate(der.replace(bytes.fromhex("551d12"), bytes.fromhex("551d11")))
    assert (wrong_name(signed, "localhost"), alternative_names(twice)) == ("", ())
    assert wrong_name(twice, "localhost")


SHARED = Authority()


NAMES = st.lists(st.builds(element, st.integers(0x80, 0xBF), st.binary(max_size=20)))


@pytest.mark.slow
@settings(deadline=None)
@given(names=st.binary(max_size=200) | NAMES.map(lambda names: listed(*names)))
def test_whatever_stands_in_place_of_the_names_is_read_or_is_none(names: bytes) -> None:
    certificate = certificate_of(SHARED.issue_flawed(raw_names=names))
    found = alternative_names(certificate)
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except ValueError:
        return  # cryptography cannot say what they should be
    except x509.UnsupportedGeneralNameType:
        return
    expected = [f"DNS:{name}" for name in extension.get_values_for_type(x509.DNSName)]
    assert [name for name in found if name.startswith("DNS:")] == expected


NO_LISTS = {
    "no length": bytes.fromhex("3080") + GOOD + bytes(2),
    "more behind it": listed(GOOD) + b"\0",
    "cut off": listed(GOOD)[:-1],
    "a set": b"\x31" + listed(GOOD)[1:],
    "a length of 127 bytes": listed(b"\x82\xff" + b"x" * 20, GOOD),
    "a tag alone": listed(GOOD, b"\x82"),
    "nothing": b"",
    "a length of more bytes than it needs": b"\x30\x81" + listed(GOOD)[1:],
    "a length of a name of more bytes than it needs": listed(b"\x82\x81\x01x", GOOD),
    "a length that begins with a zero": listed(b"\x82\x82\x00\x81" + b"x" * 0x81, GOOD),
    "a text among the names": listed(element(0x16, b"x"), GOOD),
    "a name of a kind that there is not": listed(element(0x89, b"x"), GOOD),
    "a name with a tag of two bytes": listed(b"\x9f\x02\x01x", GOOD),
    "a name that is one as a whole and in parts": listed(element(0xA2, element(0x16, b"x")), GOOD),
}


@pytest.mark.parametrize("names", NO_LISTS.values(), ids=NO_LISTS)
def test_an_extension_that_is_not_a_list_of_names_has_no_names(names: bytes, authority: Authority) -> None:
    certificate = certificate_of(authority.issue_flawed(raw_names=names))
    assert alternative_names(certificate) == ()
    assert wrong_name(certificate, "localhost")
