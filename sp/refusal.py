"""Why this side turns a new pipe away, and what it may answer."""

from __future__ import annotations

from enum import Enum


class RefusalKind(Enum):
    """Why this side turned a new pipe away."""

    NOT_AUTHORIZED = "not authorized"
    """``authorize`` did not return True."""
    NO_ROOM = "no room"
    """A PAIR has its peer already, or is about to: the same pipe may be welcome later."""


class RefusalResponse:
    """The base of what ``authorize`` may return to say more than no.

    ``HTTPResponse`` is the only one: core passes it on to the transport, and does not know HTTP.
    """

    __slots__ = ()

    status: int
