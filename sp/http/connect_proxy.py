"""What a dialer needs to know about a proxy that it uses by CONNECT (RFC 9110, 9.3.6)."""

from __future__ import annotations

import base64
import ipaddress
import urllib.request
from typing import Literal
from urllib.parse import unquote, urlsplit

import attrs

from sp.address import Address, bracketed, host_port, is_host, plain_zone, without_zone
from sp.errors import AddressError


@attrs.frozen
class ConnectProxy:
    """The address of the proxy, and our credentials for it."""

    host: str
    port: int
    username: str | None = attrs.field(default=None, repr=False)
    password: str = attrs.field(default="", repr=False)

    @property
    def address(self) -> str:
        """Host and port without the credentials, for error messages."""
        return host_port(self.host, self.port)

    @classmethod
    def parse(cls, url: str) -> ConnectProxy:
        """Return the proxy that *url* names.

        Raises ValueError, which does not show *url*: it may hold a password.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            raise ValueError("proxy: not a URL, expected http://[USER:PASSWORD@]HOST:PORT") from None
        if parts.scheme != "http":
            raise ValueError(f"proxy: {parts.scheme}:// is not supported, expected http://[USER:PASSWORD@]HOST:PORT")
        if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("proxy: expected http://[USER:PASSWORD@]HOST:PORT and nothing more")
        if port == 0 or not _is_proxy_host(parts.hostname):
            raise ValueError(
                "proxy: expected a host name or an IP address, and a port from 1 to 65535, in http://[USER:PASSWORD@]HOST:PORT"
            )
        username = None if parts.username is None else unquote(parts.username)
        return cls(parts.hostname, port or 80, username, unquote(parts.password or ""))

    def request(self, authority: str) -> bytes:
        """Return the request for a connection to *authority*, ``host:port``."""
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        if self.username is not None:
            credentials = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
            lines.append(f"Proxy-Authorization: Basic {credentials}")
        return "\r\n".join([*lines, "", ""]).encode()


def proxy_for(address: Address, setting: str | Literal[True] | None) -> ConnectProxy | None:
    """Return the proxy through which *address* is dialed, None for no proxy.

    *setting* is ``WSClientConfig.proxy``: True follows the environment.  Raises AddressError if the
    environment names no usable proxy.
    """
    if setting is None:
        return None
    if isinstance(setting, str):
        return ConnectProxy.parse(setting)
    kind = "https" if address.is_encrypted else "http"
    url = urllib.request.getproxies().get(kind)
    if not url or _is_local(address.host) or urllib.request.proxy_bypass(f"{bracketed(address.host)}:{address.port}"):
        return None
    try:
        return ConnectProxy.parse(url)
    except ValueError as error:
        raise AddressError(f"{kind.upper()}_PROXY in the environment: {error}") from None


def _is_local(host: str) -> bool:
    """Whether *host* is this machine, which a proxy cannot reach for us.

    As in Go, the proxy of the environment is not used then.
    """
    if without_zone(host) != host:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _is_proxy_host(host: str) -> bool:
    try:
        return is_host(plain_zone(host.encode("idna").decode()))
    except UnicodeError:
        return False
