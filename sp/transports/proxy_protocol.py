"""The PROXY protocol, versions 1 and 2: the header in which a proxy names its client.

There is no I/O here.  The source is HAProxy's proxy-protocol.txt (sections 2.1 and 2.2).  A header
gives its own length early, so the decoder never asks for a byte beyond it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

from sp.errors import GreetingError, printable
from sp.http.forwarding import format_ip

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V1: Final = b"PROXY "
_MAX_V1: Final = 107
"""The longest header of version 1, including its line end."""
_FIRST: Final = 12
"""Every header has more bytes than this, so these can be read before the version is known."""
_V2_HEAD: Final = 16
MAX_V2: Final = 8192
"""The most bytes after the head of a version 2 header: enough for a client certificate."""
_LINE: Final = re.compile(rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) ([0-9]{1,5}) ([0-9]{1,5})\r\n")
_ALPN, _AUTHORITY, _UNIQUE_ID, _SSL = 0x01, 0x02, 0x05, 0x20
_SSL_VERSION, _SSL_CN, _SSL_CIPHER, _SSL_CERTIFICATE = 0x21, 0x22, 0x23, 0x28
_IS_SSL, _CERTIFICATE_NOW, _CERTIFICATE_BEFORE = 0x01, 0x02, 0x04


@attrs.frozen(kw_only=True)
class ProxyInfo:
    """What a PROXY protocol header says, as ``pipe.proxy``.

    Anyone who can reach the listener directly can claim anything in it.
    """

    version: int
    """The version of the protocol, 1 or 2."""
    source: str = ""
    """The client's address: ``host:port``, or ``unix:`` and the path of a socket.

    Empty if the proxy speaks for itself, as in a health check, or does not say."""
    destination: str = ""
    """The address that the client connected to, in the same form."""
    tlvs: Mapping[int, bytes] = attrs.field(default=MappingProxyType({}), repr=False)
    """All additional fields of version 2, by type.  If a type occurs twice, the last one counts."""
    ssl: ProxiedTLSInfo | None = None
    """The client's TLS connection with the proxy.

    None: there was none, or the proxy does not say."""

    @property
    def alpn(self) -> bytes:
        """The application protocol that the client and the proxy agreed on; empty if unknown."""
        return self.tlvs.get(_ALPN, b"")

    @property
    def authority(self) -> str:
        """The server name that the client asked for (SNI); empty if unknown."""
        return self.tlvs.get(_AUTHORITY, b"").decode(errors="replace")

    @property
    def unique_id(self) -> bytes:
        """The proxy's identifier of the connection; empty if it has none."""
        return self.tlvs.get(_UNIQUE_ID, b"")


@attrs.frozen(kw_only=True)
class ProxiedTLSInfo:
    """A client's TLS connection with a proxy, as ``pipe.proxy.ssl`` (proxy-protocol.txt, 2.2.5)."""

    has_certificate: bool
    """Whether the client sent a certificate, now or in the session that it resumed."""
    verified: bool
    """Whether the client sent a certificate and the proxy verified it."""
    version: str
    """The TLS version, for example ``TLSv1.3``."""
    cipher: str
    """The cipher, for example ``TLS_AES_256_GCM_SHA384``; empty if the proxy does not send it."""
    common_name: str
    """The common name in the certificate's subject; empty if the proxy does not send it."""
    certificate: bytes = attrs.field(repr=False)
    """The certificate in DER; empty if the proxy does not send it."""


class ProxyDecoder:
    """Decodes one header.  Feed it ``missing`` bytes at a time until ``info`` is set."""

    __slots__ = ("_data", "info")

    def __init__(self) -> None:
        self._data = b""
        self.info: ProxyInfo | None = None

    @property
    def missing(self) -> int:
        """How many more bytes certainly belong to the header.

        In version 1 this is one byte at a time, because the header does not give its length.
        """
        data = self._data
        if len(data) < _FIRST:
            return _FIRST - len(data)
        if data.startswith(_V1):
            return 1
        if len(data) < _V2_HEAD:
            return _V2_HEAD - len(data)
        return _V2_HEAD + int.from_bytes(data[14:16], "big") - len(data)

    def receive_data(self, data: bytes) -> None:
        """Take at most ``missing`` bytes.  Raises GreetingError at the first wrong byte."""
        self._data = data = self._data + data
        if not data.startswith((_V1[: len(data)], SIGNATURE[: len(data)])):
            raise GreetingError(f"no PROXY protocol header, which this listener requires: the connection began with {data[:16]!r}")
        if data.startswith(_V1):
            if b"\n" in data:
                self.info = _parse_v1(data)
            elif len(data) >= _MAX_V1:
                raise GreetingError(f"PROXY protocol: a version 1 header must end within {_MAX_V1} bytes, this one begins {data[:40]!r}")
        elif len(data) >= _V2_HEAD:
            size = int.from_bytes(data[14:16], "big")
            if size > MAX_V2:
                raise GreetingError(f"PROXY protocol: the header announces {size} bytes, but at most {MAX_V2} are accepted")
            if len(data) == _V2_HEAD + size:
                self.info = _parse_v2(data)


def _parse_v1(line: bytes) -> ProxyInfo:
    if line.startswith(b"PROXY UNKNOWN") and line.endswith(b"\r\n"):
        return ProxyInfo(version=1)  # the rest of the line has no meaning
    match = _LINE.fullmatch(line)
    try:
        if match is None:
            raise ValueError
        kind = ipaddress.IPv4Address if match[1] == b"TCP4" else ipaddress.IPv6Address
        ends = [_end(kind(match[part].decode()), int(match[part + 2])) for part in (2, 3)]
    except ValueError:
        raise GreetingError(f"PROXY protocol: this version 1 header cannot be read: {line!r}") from None
    return ProxyInfo(version=1, source=ends[0], destination=ends[1])


def _end(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> str:
    if port > 65535:
        raise ValueError
    return format_ip(address, str(port))


def _parse_v2(data: bytes) -> ProxyInfo:
    version, command = data[12] >> 4, data[12] & 0x0F
    if version != 2 or command not in (0, 1):
        raise GreetingError(f"PROXY protocol: version and command 0x{data[12]:02x} are unknown, expected 0x20 or 0x21")
    if command == 0:
        return ProxyInfo(version=2)  # the proxy speaks for itself, and the rest must be skipped
    family, transport, rest = data[13] >> 4, data[13] & 0x0F, data[_V2_HEAD:]
    if family > 3 or transport > 2:
        raise GreetingError(f"PROXY protocol: family and transport 0x{data[13]:02x} are unknown")
    size = {0: 0, 1: 12, 2: 36, 3: 216}[family]
    if len(rest) < size:
        raise GreetingError(f"PROXY protocol: the header has {len(rest)} bytes of addresses, expected {size}")
    source = destination = ""
    if family == 1:
        source, destination = (_end(ipaddress.IPv4Address(rest[i : i + 4]), _port(rest, 8 + i // 2)) for i in (0, 4))
    elif family == 2:
        source, destination = (_end(ipaddress.IPv6Address(rest[i : i + 16]), _port(rest, 32 + i // 8)) for i in (0, 16))
    elif family == 3:
        source, destination = (_unix(rest[i : i + 108]) for i in (0, 108))
    tlvs = _parse_tlvs(rest[size:])
    ssl = _parse_ssl(tlvs[_SSL]) if _SSL in tlvs else None
    return ProxyInfo(version=2, source=source, destination=destination, tlvs=MappingProxyType(tlvs), ssl=ssl)


def _unix(path: bytes) -> str:
    name = printable(path.rstrip(b"\0").decode(errors="replace"))
    return f"unix:{name}" if name else ""


def _port(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + 2], "big")


def _parse_tlvs(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while data:
        size = int.from_bytes(data[1:3], "big")
        if len(data) < 3 + size:
            raise GreetingError("PROXY protocol: a field is longer than the header")
        found[data[0]] = data[3 : 3 + size]
        data = data[3 + size :]
    return found


def _parse_ssl(value: bytes) -> ProxiedTLSInfo | None:
    if len(value) < 5:
        raise GreetingError(f"PROXY protocol: the TLS field has {len(value)} bytes, expected at least 5")
    flags = value[0]
    if not flags & _IS_SSL:
        return None
    parts = _parse_tlvs(value[5:])
    has_certificate = bool(flags & (_CERTIFICATE_NOW | _CERTIFICATE_BEFORE))
    return ProxiedTLSInfo(
        has_certificate=has_certificate,
        verified=has_certificate and value[1:5] == bytes(4),
        version=parts.get(_SSL_VERSION, b"").decode(errors="replace"),
        cipher=parts.get(_SSL_CIPHER, b"").decode(errors="replace"),
        common_name=parts.get(_SSL_CN, b"").decode(errors="replace"),
        certificate=parts.get(_SSL_CERTIFICATE, b""),
    )
