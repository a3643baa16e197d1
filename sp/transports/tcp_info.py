"""What Linux says of a TCP connection (``TCP_INFO``), and whether that means that the peer is gone.

While data is on its way the kernel asks no peer whether it is still there (keepalive rests), and
sends again for a quarter of an hour.  TCP_USER_TIMEOUT would end that sooner, but also a living
peer that reads nothing for as long: its window is full, and it is asked for room (probed) every two
minutes at last.  So the sign of a peer that is gone is not age, but that it answers nothing more.
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

from sp.errors import PeerSilent

# struct tcp_info of linux/tcp.h, of which only the end ever grows: its first part, and
# tcpi_notsent_bytes.
_FIRST: Final = struct.Struct("=2xBB20xI24xII")
_ACKNOWLEDGED: Final = struct.Struct("=120xQ")  # tcpi_bytes_acked
_UNSENT: Final = struct.Struct("=144xI")
SIZE: Final = _UNSENT.size
_UNANSWERED: Final = 2
"""Packets after which a peer that answers none may be gone: the answer to one may be coming."""


@attrs.frozen
class TCPInfo:
    """The state of a connection at one moment."""

    in_flight: bool
    """Whether anything was sent that is not acknowledged, or waits in the kernel to be sent."""
    repeated: int
    """How often the kernel has sent the same data again, or asked for room, without an answer."""
    heard: float
    """Seconds since the peer has sent or acknowledged anything."""


def decode(raw: bytes) -> TCPInfo | None:
    """Return what the kernel says in *raw*; None: this kernel is too old."""
    if len(raw) < SIZE:
        return None
    retransmits, probes, unacknowledged, last_data, last_acknowledgement = _FIRST.unpack_from(raw)
    (unsent,) = _UNSENT.unpack_from(raw)
    return TCPInfo(
        in_flight=unacknowledged > 0 or unsent > 0,
        repeated=retransmits + probes,
        heard=min(last_data, last_acknowledgement) / 1000,
    )


def acknowledged(raw: bytes) -> int:
    """Return how many bytes the peer has acknowledged; 0: this kernel is too old to tell."""
    return int(_ACKNOWLEDGED.unpack_from(raw)[0]) if len(raw) >= SIZE else 0


class Silence:
    """The time in which data is in flight and the peer says nothing."""

    __slots__ = ("_before", "_since")

    def __init__(self, info: TCPInfo, now: float) -> None:
        self._since = now
        self._before = info.repeated

    def check(self, info: TCPInfo, now: float, limit: float) -> None:
        """Raise PeerSilent when it has lasted *limit* seconds and nothing repeated was answered."""
        age = now - self._since
        if info.heard < age:
            self._since, self._before = now, info.repeated
        elif age >= limit and info.repeated >= self._before + _UNANSWERED:
            raise PeerSilent(f"the peer has acknowledged nothing for {age:.3g} s, and what was sent again meanwhile was not answered")
