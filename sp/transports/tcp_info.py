"""What Linux says about a TCP connection (``TCP_INFO``), and whether the peer is gone.

While data is in flight, the kernel sends no keepalive probes; it repeats the data for a quarter of
an hour.  TCP_USER_TIMEOUT would end that sooner, but it would also end a connection to a living
peer that does not read.  The window of such a peer is full, and in the end the kernel asks it for
room (probes it) only every two minutes.  So the test for a peer is not how old the data is, but
whether the peer still answers.
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

from sp.errors import PeerSilent

# Parts of struct tcp_info in linux/tcp.h, which only ever grows at its end.
_FIRST: Final = struct.Struct("=2xBB20xI24xII")
_ACKNOWLEDGED: Final = struct.Struct("=120xQ")  # tcpi_bytes_acked
_UNSENT: Final = struct.Struct("=144xI")
SIZE: Final = _UNSENT.size
_UNANSWERED: Final = 2
"""A peer may be gone after this many unanswered packets.  One answer may still be on its way."""


@attrs.frozen
class TCPInfo:
    """The state of a connection at one moment."""

    in_flight: bool
    """Whether any data is not acknowledged yet, or waits in the kernel to be sent."""
    repeated: int
    """How often the kernel has repeated data, or probed for room, without getting an answer."""
    heard: float
    """Seconds since the peer last sent or acknowledged anything."""


def decode(raw: bytes) -> TCPInfo | None:
    """Return what *raw* says.  None: the kernel is too old to say this."""
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
    """Return how many bytes the peer has acknowledged.

    0: none, or the kernel is too old to tell.
    """
    return int(_ACKNOWLEDGED.unpack_from(raw)[0]) if len(raw) >= SIZE else 0


class Silence:
    """How long data has been in flight while the peer has sent nothing."""

    __slots__ = ("_before", "_since")

    def __init__(self, info: TCPInfo, now: float) -> None:
        self._since = now
        self._before = info.repeated

    def check(self, info: TCPInfo, now: float, limit: float) -> None:
        """Raise PeerSilent after *limit* seconds of silence, if repeated data got no answer."""
        age = now - self._since
        if info.heard < age:
            self._since, self._before = now, info.repeated
        elif age >= limit and info.repeated >= self._before + _UNANSWERED:
            raise PeerSilent(f"the peer has acknowledged nothing for {age:.3g} s, and has not answered repeated data")
