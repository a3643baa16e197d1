"""Counters, as frozen snapshots."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import attrs


class DropReason(enum.StrEnum):
    """Why a message was dropped.  A member is equal to the text that is its value."""

    NO_PEER = "no peer"
    """PUB, BUS and SURVEYOR sent it while no peer was attached."""
    PEER_FULL = "peer full"
    """The outbox of a peer was full.  Counted once for each peer that missed the message."""
    PEER_GONE = "peer gone"
    """PAIR1 with ``poly`` was to send it to a peer that has left."""
    REQUESTER_GONE = "requester gone"
    """REP or RESPONDENT had a reply for a peer that has left."""
    INBOX_FULL = "inbox full"
    """The application did not receive fast enough: SUB, BUS and SURVEYOR drop then."""
    UNREAD = "unread"
    """A reply or an answer came in time, but was not received.

    A new request or survey, or ``close``, came first.
    """
    STALE_REPLY = "stale reply"
    """REQ got a reply to a request that is over, or that it never made."""
    LATE_ANSWER = "late answer"
    """SURVEYOR got an answer to a survey that is over, or that it never made."""
    UNEXPECTED = "unexpected"
    """PUSH received a message, though its peers should not send any."""
    TTL = "ttl"
    """REP, RESPONDENT or PAIR1 received it through more devices than ``ttl`` allows."""
    TOO_LARGE = "too large"
    """It was larger than ``max_message_size``; the pipe that it came by was closed."""
    UNDELIVERED = "undelivered"
    """The inbox had no room for it before its pipe ended or the socket closed."""
    PIPE_CLOSED = "pipe closed"
    """It was accepted for a pipe that ended before it was written.

    (A REQ sends it again instead.)
    """
    SOCKET_CLOSED = "socket closed"
    """It was accepted, but the socket was closed before it was written."""


@attrs.frozen(kw_only=True)
class PipeStatistics:
    """What one pipe has sent and received.

    Bytes count headers and bodies, without framing.
    """

    id: int
    url: str
    remote_address: str
    messages_sent: int
    bytes_sent: int
    messages_received: int
    bytes_received: int
    outbox: int
    """Messages that wait to be written."""


@attrs.frozen(kw_only=True)
class DialerStatistics:
    """What happened to one dialer."""

    url: str
    attempts: int
    attached: int
    failures: Mapping[str, int]
    """Failed attempts and lost pipes by the name of the error's class."""
    tls_handshakes: Mapping[str, int]
    """TLS handshakes of pipes that were attached: ``full`` and ``resumed``."""


@attrs.frozen(kw_only=True)
class ListenerStatistics:
    """What happened to one listener."""

    url: str
    accepted: int
    attached: int
    in_handshake: int
    """Connections whose handshake is under way."""
    failures: Mapping[str, int]
    """Connections that never became a pipe, by the name of the error's class."""
    tls_handshakes: Mapping[str, int]
    """TLS handshakes of pipes that were attached: ``full`` and ``resumed``."""


@attrs.frozen(kw_only=True)
class SocketStatistics:
    """A snapshot of a socket: the totals of all pipes that it ever had, and what it has now."""

    protocol: str
    messages_sent: int
    bytes_sent: int
    messages_received: int
    bytes_received: int
    dropped: Counter[DropReason]
    """Messages that were lost, by reason; 0 for a reason that did not occur.

    Each message is counted once, where it was lost.
    """
    inbox: int
    """Messages that wait for ``receive``."""
    pipes: tuple[PipeStatistics, ...]
    dialers: tuple[DialerStatistics, ...]
    listeners: tuple[ListenerStatistics, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain dicts, tuples, strings and numbers, for a metrics exporter."""
        return attrs.asdict(self, value_serializer=_plain)


def _plain(_: object, __: object, value: Any) -> Any:
    return {str(key): count for key, count in cast("Mapping[str, int]", value).items()} if isinstance(value, Mapping) else value
