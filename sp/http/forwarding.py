"""The client behind a proxy, from ``X-Forwarded-For`` or ``Forwarded`` (RFC 7239)."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

import attrs

from sp.address import host_port
from sp.http.config import IPAddress, WSServerConfig
from sp.http.message import HTTPHeaders

_MAX_PORT: Final = 65535
UNKNOWN: Final = "unknown"
"""The address of a client that a trusted proxy does not report readably (RFC 7239, 6.2).

The proxy's own address is never used instead.
"""
_MAX_HOPS: Final = 64
_MAX_FORWARDED: Final = 8192


def parse_ip(text: str) -> tuple[IPAddress, str] | None:
    """Return the address and the port (or ``""``) in *text*; None if it is not an address.

    *text* is ``v4``, ``v4:port``, ``v6``, ``[v6]`` or ``[v6]:port``.
    """
    text = text.strip(" \t")
    port = ""
    if "%" in text:  # a zone means something only on the proxy's machine, and may be any text
        return None
    if text.startswith("["):
        text, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return None
        port = rest[1:]
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
    if port and not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= _MAX_PORT):
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address, port


def format_ip(address: IPAddress, port: str) -> str:
    """Return ``host:port``, with IPv6 in brackets; the address alone if *port* is empty."""
    if not port:
        return str(address)
    return host_port(str(address), port)


_ZONE: Final = re.compile(r"%[^\]]*")
_SCHEMES: Final = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_ELEMENT: Final = re.compile(r'\s*([-!#$%&\'*+.^_`|~0-9A-Za-z]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;,"\s]*))\s*')


def _parse_forwarded(value: str) -> list[dict[str, str]]:
    """Return the elements of a ``Forwarded`` header (RFC 7239, 4).  A broken header: one, empty."""
    elements: list[dict[str, str]] = [{}]
    if len(value) > _MAX_FORWARDED:
        return elements
    place = 0
    while place < len(value):
        if value[place] == ",":
            elements.append({})
        elif value[place] != ";":
            match = _ELEMENT.match(value, place)
            if match is None:
                # It is unknown where the broken part ends, and the client may have written what
                # comes before it: ignore the whole header.
                return [{}]
            quoted = match[2]
            elements[-1].setdefault(match[1].lower(), match[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
            place = match.end()
            continue
        place += 1
    return elements


@attrs.frozen
class Client:
    """The client that sent a request."""

    address: str
    """``host:port`` or ``host``."""
    scheme: str
    """``http`` or ``https``."""
    via: bool
    """Whether a trusted proxy has passed the request on."""


def client_of(config: WSServerConfig, headers: HTTPHeaders, peer: str, scheme: str, *, unix: bool) -> Client:
    """Return the client behind *peer*.

    That is the right-most address in the header that does not belong to a trusted proxy.

    It is *peer* itself if that is not a trusted proxy or if there is no header.  It is ``unknown``
    if the header cannot be read.  *scheme* is the one that *peer* uses.  *unix*: *peer* came by a
    unix socket.
    """
    # A zone in *peer* belongs to our machine.
    found = None if unix else parse_ip(_ZONE.sub("", peer))
    if not config.trusted_proxies or not config.trusts(None if unix or found is None else found[0]) or (found is None and not unix):
        return Client(peer, scheme, via=False)
    if config.forwarded_header == "Forwarded":
        value = headers.get("Forwarded", "").strip()
        elements = _parse_forwarded(value) if value else []
        hops = [(element.get("for", ""), element.get("proto", "").lower()) for element in elements]
    else:
        value = headers.get("X-Forwarded-For", "").strip()
        names = value.rsplit(",", _MAX_HOPS)[-_MAX_HOPS:] if value else []
        protocols = [part.strip().lower() for part in headers.get("X-Forwarded-Proto", "").rsplit(",", _MAX_HOPS)[-_MAX_HOPS:]]
        # Either one proxy sets the header for all of them, or each one adds its own value.
        per_hop = protocols if len(protocols) == len(names) else [protocols[-1]] * len(names)
        hops = list(zip(names, per_hop, strict=True))
    address = peer
    while hops:
        name, protocol = hops.pop()
        hop = parse_ip(name)
        scheme = _SCHEMES.get(protocol, scheme)
        if hop is None:
            address = UNKNOWN
            break
        address = format_ip(*hop)
        if not config.trusts(hop[0]):
            break
    return Client(address, scheme, via=True)
