"""The names in a certificate, and whether one of them is the expected name.

The names are parsed one by one, so an odd one does not spoil the others. cryptography parses all of
them or none, and so does service-identity, which compares them here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from service_identity import CertificateError
from service_identity.hazmat import DNS_ID, DNSPattern, IPAddress_ID, IPAddressPattern

from sp.errors import printable

if TYPE_CHECKING:
    from cryptography import x509

_SEQUENCE: Final = 0x30
_EXTENSIONS: Final = 0xA3
_SUBJECT_ALTERNATIVE_NAME: Final = bytes.fromhex("551d11")
_IP: Final = 0x87
_KINDS: Final = {0x81: "email", 0x82: "DNS", 0x86: "URI", _IP: "IP"}
"""The kinds of names that we show, by their tags (RFC 5280, 4.2.1.6)."""
_OTHER_KINDS: Final = (0xA0, 0xA3, 0xA4, 0xA5, 0x88)
"""The tags of all other kinds."""
_IP_SIZES: Final = (4, 16)


def alternative_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the subject alternative names that can be parsed, each as ``KIND:NAME``."""
    return tuple(f"{kind}:{value}" for kind, value in _names(certificate))


@lru_cache(maxsize=256)
def wrong_name(certificate: x509.Certificate, name: str) -> str:
    """Return why *certificate* is not for the server *name*; empty if it is."""
    try:
        wanted = DNS_ID(name) if packed_address(name) is None else IPAddress_ID(name)
    except ValueError:
        return f"no certificate can be for {name!r}"
    names = _names(certificate)
    patterns = [pattern for kind, value in names if (pattern := _pattern(kind, value)) is not None]
    if any(wanted.verify(pattern) for pattern in patterns):
        return ""
    shown = printable(", ".join(f"{kind}:{value}" for kind, value in names))
    if patterns:
        return f"it is for {shown}, not for {name!r}"
    if names:
        return f"it has no DNS name and no IP address that can be used, only {shown}"
    return "it does not contain any subjectAltName that can be read"


def packed_address(name: str) -> bytes | None:
    """Return *name* as a packed IP address.  None: it is not an IP address."""
    try:
        return ipaddress.ip_address(name).packed
    except ValueError:
        return None


def _pattern(kind: str, value: str) -> DNSPattern | IPAddressPattern | None:
    """Return the pattern to compare a server's name with.  None: this name matches nothing."""
    if kind == "IP":
        return IPAddressPattern(ipaddress.ip_address(value))
    if kind != "DNS" or value != value.strip():  # DNSPattern would ignore the spaces
        return None
    try:
        return DNSPattern.from_bytes(value.encode())
    except CertificateError:  # the wildcard is too wide, or it is an IP address, or it is empty
        return None


def _names(certificate: x509.Certificate) -> list[tuple[str, str]]:
    try:
        found = [name for tag, content in _general_names(certificate) if (name := _name(tag, content))]
    except (IndexError, ValueError):  # this is not a list of names
        return []
    return found


def _name(tag: int, content: bytes) -> tuple[str, str] | None:
    """Return the kind and the text of a name.  None: it is of another kind, or cannot be parsed."""
    try:
        if tag != _IP:
            return _KINDS[tag], content.decode()
        return ("IP", str(ipaddress.ip_address(content))) if len(content) in _IP_SIZES else None
    except (KeyError, UnicodeDecodeError):
        return None


def _general_names(certificate: x509.Certificate) -> list[tuple[int, bytes]]:
    """Return the tag and content of each subject alternative name.

    Raises ValueError or IndexError.
    """
    ((_, fields),) = _elements(certificate.tbs_certificate_bytes)
    listed = [content for tag, content in _elements(fields) if tag == _EXTENSIONS]
    if not listed:
        return []
    ((_, extensions),) = _elements(listed[0])
    values: list[bytes] = []
    for _, extension in _elements(extensions):
        (_, identifier), *_, (_, value) = _elements(extension)
        if identifier == _SUBJECT_ALTERNATIVE_NAME:
            values.append(value)
    if not values:
        return []
    (value,) = values  # the extension must not occur twice
    ((tag, names),) = _elements(value)
    if tag != _SEQUENCE:
        raise ValueError("not a sequence of names")
    found = list(_elements(names))
    if any(tag not in _KINDS and tag not in _OTHER_KINDS for tag, _ in found):
        raise ValueError("not a list of names alone")
    return found


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the tag and the content of each element of *der* (X.690, 8.1).

    Raises ValueError or IndexError.
    """
    at = 0
    while at < len(der):
        tag, size = der[at], der[at + 1]
        at += 2
        if size > 0x80:
            octets = size - 0x80
            size = int.from_bytes(der[at : at + octets])
            if size < 0x80 or not der[at]:
                raise ValueError("DER does not allow a length in more bytes than it needs")
            at += octets
        elif size == 0x80:
            raise ValueError("DER does not allow an indefinite length")
        if at + size > len(der):
            raise ValueError("it is cut off")
        yield tag, der[at : at + size]
        at += size
