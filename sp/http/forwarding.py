"""Who stands behind a proxy, as the proxy says in a header of HTTP: ``X-Forwarded-For`` or ``Forwarded`` (RFC 7239)."""

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
"""The client of a trusted proxy that does not say, or not so that it could be read (RFC 7239, 6.2); never the proxy's own address."""
_MAX_HOPS: Final = 64
_MAX_FORWARDED: Final = 8192


def parse_ip(text: str) -> tuple[IPAddress, str] | None:
    """Return the address in *text* and its port, empty when there is none; ``[v6]``, ``[v6]:port``, ``v4:port``.  None: no address."""
    text = text.strip(" \t")
    port = ""
    if "%" in text:  # a zone says something on the proxy's own machine only, and may be any text
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
    """Return ``host:port``, with IPv6 in brackets; without a port the address alone."""
    if not port:
        return str(address)
    return host_port(str(address), port)


_ZONE: Final = re.compile(r"%[^\]]*")
_SCHEMES: Final = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_ELEMENT: Final = re.compile(r'\s*([-!#$%&\'*+.^_`|~0-9A-Za-z]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;,"\s]*))\s*')


def _parse_forwarded(value: str) -> list[dict[str, str]]:
    """Return the elements of a ``Forwarded`` header (RFC 7239, 4); what cannot be read ends it with an element that says nothing."""
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
                # Nobody knows where the broken part ends, so all of it says nothing; what is to the left of it is not to be believed.
                return [{}]
            quoted = match[2]
            elements[-1].setdefault(match[1].lower(), match[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
            place = match.end()
            continue
        place += 1
    return elements


@attrs.frozen
class Client:
    """Who a request comes from."""

    address: str
    """``host:port`` or ``host``."""
    scheme: str
    via: bool
    """Whether a trusted proxy has passed it on."""


def client_of(config: WSServerConfig, headers: HTTPHeaders, peer: str, scheme: str, *, unix: bool) -> Client:
    """Return who is behind *peer*: the right-most address that no trusted proxy has, as the trusted ones say.

    Without such a header it is *peer* itself; where one cannot be read, ``unknown``.
    """
    found = None if unix else parse_ip(_ZONE.sub("", peer))  # a zone here is one of our machine's
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
        # One proxy that sets the header for all, or each one adding its own.
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
