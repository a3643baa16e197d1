"""Counters, as frozen snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import attrs


@attrs.frozen(kw_only=True)
class PipeStatistics:
    """What one pipe has moved.  Bytes are those of headers and bodies, without framing."""

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
    """What one dialer has been through."""

    url: str
    attempts: int
    attached: int
    failures: Mapping[str, int]
    """Failed attempts and lost pipes by the name of the error's class."""
    handshakes: Mapping[str, int]
    """TLS handshakes of pipes that were attached: ``full`` and ``resumed``."""


@attrs.frozen(kw_only=True)
class ListenerStatistics:
    """What one listener has been through."""

    url: str
    accepted: int
    attached: int
    greeting: int
    """Newcomers whose greeting is under way."""
    failures: Mapping[str, int]
    """Newcomers that never became a pipe, by the name of the error's class."""
    handshakes: Mapping[str, int]
    """TLS handshakes of pipes that were attached: ``full`` and ``resumed``."""


@attrs.frozen(kw_only=True)
class SocketStatistics:
    """A snapshot of a socket: totals over all pipes that it ever had, and what it has now."""

    protocol: str
    messages_sent: int
    bytes_sent: int
    messages_received: int
    bytes_received: int
    dropped: Mapping[str, int]
    """Messages that were lost, by reason; each one is counted once, where it was lost."""
    inbox: int
    """Messages that wait for ``receive``."""
    pipes: tuple[PipeStatistics, ...]
    dialers: tuple[DialerStatistics, ...]
    listeners: tuple[ListenerStatistics, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain dicts, tuples, strings and numbers, ready for a metrics exporter."""
        return attrs.asdict(self, value_serializer=_plain)


def _plain(_: object, __: object, value: Any) -> Any:
    return dict(cast("Mapping[str, int]", value)) if isinstance(value, Mapping) else value
