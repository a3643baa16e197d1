"""Why this side turns a new pipe away, and what it may answer."""

from __future__ import annotations

from enum import Enum


class RefusalKind(Enum):
    """Why this side turned a new pipe away."""

    NOT_AUTHORIZED = "not authorized"
    """``authorize`` did not return True."""
    NO_ROOM = "no room"
    """A PAIR already has a peer, or is about to get one.  The same pipe may be welcome later."""


class RefusalResponse:
    """The base of what ``authorize`` may return to say more than False does.

    ``HTTPResponse`` is the only subclass.  The core passes it on to the transport without knowing
    HTTP.
    """

    __slots__ = ()

    status: int
