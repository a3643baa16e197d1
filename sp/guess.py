"""Guesses what a peer speaks when it is not what was expected."""

from __future__ import annotations

from typing import Final

PROXY_HINT: Final = "that is a PROXY protocol header: the listener needs proxy_protocol=True"
_PROXY: Final = (b"PROXY ", b"\r\n\r\n\0\r\nQ")
_SP: Final = b"\0SP\0"
_HTTP: Final = (b"GET ", b"HTTP", b"HEAD", b"POST")
_OTHERS: Final = (
    # The first byte of an alert and of a handshake (RFC 8446, 5.1).
    ("TLS", (b"\x15", b"\x16"), {"tcp": "tls+tcp", "ws": "wss"}),
    ("HTTP", _HTTP, {"tcp": "ws"}),
    ("SP without HTTP", (_SP,), {"ws": "tcp"}),
    ("HTTP", _HTTP, {"tls+tcp": "ws", "wss": "ws"}),
    ("SP without TLS", (_SP[:3],), {"tls+tcp": "tcp", "wss": "tcp"}),
)
_OVER_TLS: Final = {"tcp": "tls+tcp", "ws": "wss"}


def guess_protocol(data: bytes, expected: str, *, over_tls: bool = False) -> str:
    """Return a hint at what the peer speaks instead of *expected*, a scheme.  Empty: no guess.

    *data* is the beginning of what the peer sent.  *over_tls*: it came through TLS, so the hint
    names ``tls+tcp`` or ``wss``.
    """
    if data.startswith(_PROXY):
        return f"; {PROXY_HINT}"
    for what, beginnings, others in _OTHERS:
        if data.startswith(beginnings) and expected in others:
            schemes = expected, others[expected]
            one, another = sorted((_OVER_TLS.get(scheme, scheme) for scheme in schemes) if over_tls else schemes, key=len)
            return f"; that is {what}: one side says {one}://, the other {another}://"
    return ""
