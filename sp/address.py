"""Parsed URLs."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

import attrs

from sp.errors import AddressError

_EXPECTED: Final = {
    "tcp": "tcp://HOST:PORT",
    "tcp4": "tcp4://HOST:PORT",
    "tcp6": "tcp6://HOST:PORT",
    "tls+tcp": "tls+tcp://HOST:PORT",
    "tls+tcp4": "tls+tcp4://HOST:PORT",
    "tls+tcp6": "tls+tcp6://HOST:PORT",
    "ipc": "ipc://PATH",
    "abstract": "abstract://NAME",
    "inproc": "inproc://NAME",
    "ws": "ws://HOST[:PORT][/PATH]",
    "ws4": "ws4://HOST[:PORT][/PATH]",
    "ws6": "ws6://HOST[:PORT][/PATH]",
    "wss": "wss://HOST[:PORT][/PATH]",
    "wss4": "wss4://HOST[:PORT][/PATH]",
    "wss6": "wss6://HOST[:PORT][/PATH]",
    "ws+unix": "ws+unix://FILE[:/PATH]",
}
_WITH_PORT: Final = frozenset(scheme for scheme, form in _EXPECTED.items() if ":PORT" in form)
_WITH_TARGET: Final = frozenset(scheme for scheme in _EXPECTED if scheme.startswith("ws"))
_WITH_FILE: Final = frozenset({"ipc", "ws+unix"})
_LABEL: Final = r"[A-Za-z0-9_\-]{1,63}"
_HOST_NAME: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")
_MAX_HOST_NAME: Final = 253
_IPV6: Final = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9_.~\-]+)?")
MAX_SOCKET_PATH: Final = 107
"""Bytes of a path in Linux's ``sockaddr_un``, less the final zero."""
ANY_NAME: Final = b"\0"
"""The first byte of every abstract name.  Alone, it means any free name."""


@attrs.frozen
class Address:
    """A parsed URL.

    ``tcp``, ``tls+tcp``, ``ws`` and ``wss`` have a *host* (``""`` for all interfaces, IPv6 without
    its brackets) and a *port*.  ``ipc``, ``ws+unix``, ``abstract`` and ``inproc`` have a *path*: a
    file path, the bytes of an abstract name, or a name.  ``ws``, ``wss`` and ``ws+unix`` also have
    a *target*: the path of the HTTP request, and its query.
    """

    url: str
    scheme: str
    host: str = ""
    port: int = 0
    path: str | bytes = ""
    target: str = ""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Parse *url*.  Raises AddressError, which shows the URL and what was expected."""
        if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"a URL must be a str, not {type(url).__name__}")
        scheme, separator, rest = url.partition("://")
        if not separator:
            raise AddressError(f"{url!r} is not a URL: expected SCHEME://..., for example {_EXPECTED['tcp']}")
        if scheme not in _EXPECTED:
            raise AddressError(f"{url!r}: unknown scheme {scheme!r}, expected one of {', '.join(sorted(_EXPECTED))}")
        if scheme == "ws+unix":
            # A colon ends the file, since both parts have slashes.
            file, colon, target = rest.partition(":")
            if target and not target.startswith("/"):
                raise AddressError(f"{url!r}: after the file and a colon, a path must follow: expected {_EXPECTED[scheme]}")
            if not file:
                raise AddressError(f"{url!r}: no file follows the scheme: expected {_EXPECTED[scheme]}")
            return cls(url, scheme, path=_socket_path(url, file), target=_target(url, target) if colon else "/")
        if scheme in _WITH_TARGET:
            authority, target = _authority(url, scheme, rest)
            host, port = _host_and_port(url, scheme, authority)
            return cls(url, scheme, host=host, port=port, target=target)
        if scheme in _WITH_PORT:
            if ":" in rest.partition("@")[0] and "@" in rest:
                raise AddressError(
                    f"'{scheme}://...@{rest.rpartition('@')[2]}': this URL takes no credentials: expected {_EXPECTED[scheme]}"
                )
            host, port = _host_and_port(url, scheme, rest)
            return cls(url, scheme, host=host, port=port)
        if scheme == "abstract":
            return cls(url, scheme, path=_abstract_name(url, rest))
        if not rest:
            raise AddressError(f"{url!r}: nothing follows the scheme: expected {_EXPECTED[scheme]}")
        if scheme == "inproc":
            return cls(url, scheme, path=rest)
        return cls(url, scheme, path=_socket_path(url, rest))

    @property
    def is_encrypted(self) -> bool:
        """Whether the scheme uses TLS."""
        return self.scheme.startswith(("tls", "wss"))

    @property
    def is_http(self) -> bool:
        """Whether connections begin with HTTP."""
        return self.scheme in _WITH_TARGET

    @property
    def is_network(self) -> bool:
        """Whether the scheme can reach other machines."""
        return self.scheme in _WITH_PORT

    def settled(self) -> Address:
        """Return the same address with an absolute file path.

        So it still names the same file after the working directory changes.
        """
        if self.scheme not in _WITH_FILE or not isinstance(self.path, str):
            return self
        return attrs.evolve(self, path=absolute(self.path))

    def check_dialable(self) -> None:
        """Raise AddressError if this address can be listened on but not dialed."""
        if self.scheme in _WITH_PORT and not (self.host and self.port):
            raise AddressError(f"{self.url!r} can be listened on but not dialed: expected {_EXPECTED[self.scheme]}, with a port above 0")
        if self.path == ANY_NAME:
            raise AddressError(f"{self.url!r} can be listened on but not dialed: expected {_EXPECTED[self.scheme]}")

    def check_listenable(self) -> None:
        """Raise AddressError if this address can be dialed but not listened on."""
        if "?" in self.target:
            raise AddressError(f"{self.url!r} can be dialed but not listened on: a query belongs to a request")

    @property
    def host_header(self) -> str:
        """The ``Host`` header of a request, without the default port (RFC 9110, 7.2)."""
        if not self.host:
            return "localhost"
        host = bracketed(without_zone(self.host))
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"

    def with_port(self, port: int) -> Address:
        """Return the same address with the port that was bound."""
        host = bracketed(self.host) or "*"
        target = "" if self.target == "/" else self.target
        return attrs.evolve(self, url=f"{self.scheme}://{host}:{port}{target}", port=port)

    def with_name(self, path: bytes) -> Address:
        """Return the same address with the abstract name that was bound."""
        return attrs.evolve(self, url=f"{self.scheme}://{quote_from_bytes(path[1:])}", path=path)


def absolute(path: str) -> str:
    """Return *path* as an absolute path, seen from the working directory.

    A ``..`` in it stays, because only the system knows where symbolic links lead.
    """
    try:
        return os.path.join(os.getcwd(), path)
    except OSError:  # the directory is gone: using the path will raise an error that says so
        return path


def is_host(text: str) -> bool:
    """Whether *text* is a host name, or an IP address without brackets."""
    return bool(_HOST_NAME.fullmatch(text) and len(text) <= _MAX_HOST_NAME) or _is_ipv6(text)


def _is_ipv6(text: str) -> bool:
    try:
        return bool(_IPV6.fullmatch(text) and ipaddress.IPv6Address(without_zone(text)))
    except ValueError:
        return False


def plain_zone(host: str) -> str:
    """Return *host* with its zone as the system takes it.

    In a URL ``%25eth0``, as in RFC 6874, and ``%eth0`` both mean ``eth0``.
    """
    address, _, zone = host.partition("%")
    return f"{address}%{zone[2:]}" if zone.startswith("25") and zone != "25" else host


def without_zone(host: str) -> str:
    """Return *host* as other machines may see it: a zone names a network interface of this one."""
    return host.partition("%")[0]


def bracketed(host: str) -> str:
    """Return *host* in the form that a port can follow: an IPv6 address gets brackets.

    ``plain_zone`` of what is in the brackets gives it back.
    """
    if ":" not in host:
        return host
    return f"[{host}]" if plain_zone(host) == host else f"[{host.replace('%', '%25')}]"


def host_port(host: str, port: int | str) -> str:
    """Return *host* and *port* as one text for messages and headers; IPv6 gets brackets.

    Nothing is escaped.  A zone in a URL may need that: ``bracketed`` does it.
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host_and_port(url: str, scheme: str, rest: str) -> tuple[str, int]:
    expected = f"expected {_EXPECTED[scheme]}"
    host, separator, port = rest.rpartition(":")
    if not separator or host.startswith("[") != host.endswith("]"):
        raise AddressError(f"{url!r} has no port, {expected}")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise AddressError(f"{url!r}: {port!r} is not a port from 0 to 65535, {expected}")
    if host.startswith("["):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise AddressError(f"{url!r}: {host!r} is not an IPv6 address, {expected}")
        host = plain_zone(host)
    elif ":" in host:
        raise AddressError(f"{url!r}: an IPv6 address must be in brackets, as in {scheme}://[::1]:{port}")
    elif host == "*":
        host = ""
    elif host and not (_HOST_NAME.fullmatch(host) and len(host) <= _MAX_HOST_NAME):
        raise AddressError(f"{url!r}: {host!r} is not a host name or address, {expected}")
    return host, int(port)


def _default_port(scheme: str) -> int:
    return 443 if scheme.startswith("wss") else 80


def _authority(url: str, scheme: str, rest: str) -> tuple[str, str]:
    """Return host and port, and path and query."""
    end = min((place for place in map(rest.find, "/?#") if place >= 0), default=len(rest))
    authority, target = rest[:end], rest[end:]
    if "@" in authority:
        shown = f"{scheme}://...@{rest.rpartition('@')[2]}"
        raise AddressError(f"{shown!r}: a URL ends up in logs, so it takes no credentials: give them as a header in ws=")
    if "@" in rest and ":" in authority and not authority.rpartition(":")[2].isdigit() and not authority.endswith("]"):
        # Probably a password with a slash in it: what follows the slash looks like a path.
        shown = f"{scheme}://...@{rest.rpartition('@')[2]}"
        raise AddressError(f"{shown!r}: the part before @ looks like credentials: give them as a header in ws=")
    if not authority.endswith("]") and ":" in authority:
        return authority, _target(url, target)
    return f"{authority}:{_default_port(scheme)}", _target(url, target)


def _target(url: str, target: str) -> str:
    if "#" in target:
        raise AddressError(f"{url!r}: a fragment (#) has no meaning here: leave it out")
    target = target if target.startswith("/") else f"/{target}"
    if not is_path(target):
        raise AddressError(f"{url!r}: {target!r} is not a path of a URL, expected ASCII with %XX for anything else")
    return target


def _socket_path(url: str, path: str) -> str:
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError as error:
        raise AddressError(f"{url!r}: a file path cannot hold {error.object[error.start]!r}") from None
    if "\0" in path:
        raise AddressError(f"{url!r}: a file path cannot hold a zero byte")
    if size > MAX_SOCKET_PATH:
        raise AddressError(f"{url!r}: the path is {size} bytes long, expected at most {MAX_SOCKET_PATH}")
    return path


def _abstract_name(url: str, name: str) -> bytes:
    try:
        raw = unquote_to_bytes(name)
    except UnicodeEncodeError as error:
        raise AddressError(f"{url!r}: a name cannot hold {error.object[error.start]!r}, expected percent-encoded bytes") from None
    if len(raw) > MAX_SOCKET_PATH:
        raise AddressError(f"{url!r}: the name is {len(raw)} bytes long, expected at most {MAX_SOCKET_PATH}")
    return ANY_NAME + raw


_PATH: Final = re.compile(r"/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})*")


def is_path(text: str) -> bool:
    """Whether *text* is a path, perhaps with a query (RFC 3986, 3.3 and 3.4)."""
    return bool(_PATH.fullmatch(text))


def normal_path(path: str) -> str:
    """Return *path* in the form that all spellings with ``%XX`` share (RFC 3986, 6.2.2)."""
    return _ESCAPE.sub(_normal_escape, path)


def _normal_escape(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if _UNRESERVED.fullmatch(character) else match[0].upper()


_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9\-._~]")
