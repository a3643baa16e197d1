"""The PROXY protocol, versions 1 and 2: what a proxy that passes bytes on says of its client, in front of everything else.

Sans-IO, after HAProxy's proxy-protocol.txt (sections 2.1, 2.2).  A header tells its own length early, so not a byte beyond it is asked for.
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
"""The longest header of version 1, its line end included."""
_FIRST: Final = 12
"""Bytes that both versions have at the least, so that they can be read before it is known which one it is."""
_V2_HEAD: Final = 16
MAX_V2: Final = 8192
"""The most that a header of version 2 may announce behind its head: enough for a client certificate."""
_LINE: Final = re.compile(rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) ([0-9]{1,5}) ([0-9]{1,5})\r\n")
_ALPN, _AUTHORITY, _UNIQUE_ID, _SSL = 0x01, 0x02, 0x05, 0x20
_SSL_VERSION, _SSL_CN, _SSL_CIPHER, _SSL_CERTIFICATE = 0x21, 0x22, 0x23, 0x28
_IS_SSL, _CERTIFICATE_NOW, _CERTIFICATE_BEFORE = 0x01, 0x02, 0x04


@attrs.frozen(kw_only=True)
class ProxyInfo:
    """What a PROXY header says.  It is as true as whoever can reach the listener is honest."""

    version: int
    """1 or 2."""
    source: str = ""
    """The client, as ``host:port``, or ``unix:`` and the path of a socket; empty when the proxy speaks for itself, as in a health check."""
    destination: str = ""
    """What the client had connected to."""
    tlvs: Mapping[int, bytes] = attrs.field(default=MappingProxyType({}), repr=False)
    """All that version 2 adds, by type; of a type that stands there twice, the last."""
    ssl: ProxiedTLSInfo | None = None
    """What the client's TLS with the proxy was; None: there was none, or the proxy does not say."""

    @property
    def alpn(self) -> bytes:
        """What the client and the proxy agreed on."""
        return self.tlvs.get(_ALPN, b"")

    @property
    def authority(self) -> str:
        """The server name that the client asked for."""
        return self.tlvs.get(_AUTHORITY, b"").decode(errors="replace")

    @property
    def unique_id(self) -> bytes:
        """The proxy's name for the connection."""
        return self.tlvs.get(_UNIQUE_ID, b"")


@attrs.frozen(kw_only=True)
class ProxiedTLSInfo:
    """A client's TLS with a proxy (proxy-protocol.txt, 2.2.5)."""

    has_certificate: bool
    """Whether the client has shown a certificate, now or in the session that it resumed."""
    verified: bool
    """Whether it has shown one and the proxy has found it good."""
    version: str
    """For example ``TLSv1.3``."""
    cipher: str
    common_name: str
    """Of the certificate's subject."""
    certificate: bytes = attrs.field(repr=False)
    """The certificate itself, DER; empty unless the proxy sends it."""


class ProxyDecoder:
    """Reads one header: feed it ``missing`` bytes at a time until ``info`` is there."""

    __slots__ = ("_data", "info")

    def __init__(self) -> None:
        self._data = b""
        self.info: ProxyInfo | None = None

    @property
    def missing(self) -> int:
        """Bytes that surely belong to the header and have not come yet; of version 1, where that cannot be known, one."""
        data = self._data
        if len(data) < _FIRST:
            return _FIRST - len(data)
        if data.startswith(_V1):
            return 1
        if len(data) < _V2_HEAD:
            return _V2_HEAD - len(data)
        return _V2_HEAD + int.from_bytes(data[14:16], "big") - len(data)

    def receive_data(self, data: bytes) -> None:
        """Take at most ``missing`` bytes.  Raises GreetingError at the first byte that is wrong."""
        self._data = data = self._data + data
        if not data.startswith((_V1[: len(data)], SIGNATURE[: len(data)])):
            raise GreetingError(f"no PROXY protocol header, which this listener requires: the connection began with {data[:16]!r}")
        if data.startswith(_V1):
            if b"\n" in data:
                self.info = _parse_v1(data)
            elif len(data) >= _MAX_V1:
                raise GreetingError(f"PROXY protocol: a header of version 1 ends within {_MAX_V1} bytes: {data[:40]!r}...")
        elif len(data) >= _V2_HEAD:
            size = int.from_bytes(data[14:16], "big")
            if size > MAX_V2:
                raise GreetingError(f"PROXY protocol: the header announces {size} bytes, at most {MAX_V2} are accepted")
            if len(data) == _V2_HEAD + size:
                self.info = _parse_v2(data)


def _parse_v1(line: bytes) -> ProxyInfo:
    if line.startswith(b"PROXY UNKNOWN") and line.endswith(b"\r\n"):
        return ProxyInfo(version=1)  # whatever else stands there says nothing
    match = _LINE.fullmatch(line)
    try:
        if match is None:
            raise ValueError
        kind = ipaddress.IPv4Address if match[1] == b"TCP4" else ipaddress.IPv6Address
        ends = [_end(kind(match[part].decode()), int(match[part + 2])) for part in (2, 3)]
    except ValueError:
        raise GreetingError(f"PROXY protocol: a header of version 1 that cannot be read: {line!r}") from None
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
        return ProxyInfo(version=2)  # the proxy speaks for itself; what stands there is to be skipped
    family, transport, rest = data[13] >> 4, data[13] & 0x0F, data[_V2_HEAD:]
    if family > 3 or transport > 2:
        raise GreetingError(f"PROXY protocol: family and transport 0x{data[13]:02x} are unknown")
    size = {0: 0, 1: 12, 2: 36, 3: 216}[family]
    if len(rest) < size:
        raise GreetingError(f"PROXY protocol: {len(rest)} bytes of addresses, expected {size}")
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
        raise GreetingError(f"PROXY protocol: {len(value)} bytes about TLS, expected 5 and more")
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
