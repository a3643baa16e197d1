"""The exception tree: sorted by whose mistake it was.

From trio and reused as they are: ``ClosedResourceError`` (you closed it), ``BusyResourceError`` (two tasks wait on
one REQ context), ``WouldBlock`` (the ``_nowait`` calls) and ``EndOfChannel``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sp.refusal import RefusalKind

if TYPE_CHECKING:
    from sp.http.message import HTTPResponse
    from sp.refusal import RefusalResponse


class Error(Exception):
    """The base of everything that this library raises of its own."""

    permanent: bool = False
    """Whether trying again soon is pointless: a dialer then waits as long as it ever does.

    Where TLS was asked for, only what comes from a verified peer can be permanent.
    Nobody else is to keep a dialer away.
    """


class StateError(Error):
    """Your call came at the wrong moment (for example a REQ receives before it has sent)."""


class RequestReplaced(Error):
    """A newer request on the same context took the place of the one that you were waiting for."""


class RequestLost(Error):
    """The pipe that carried your request is gone, and resending was switched off."""


class AddressError(Error, ValueError):
    """A URL that cannot be meant; the message shows it and what was expected."""


class TLSConfigError(Error, ValueError):
    """A TLS configuration that cannot work; the message names the file and the reason."""


class DialError(Error):
    """The first attempt of a dial failed; ``__cause__`` is the reason."""


class PipeRefused(Error):
    """This side turned a new pipe away: ``authorize`` said no, or the protocol has no room for it."""

    def __init__(self, reason: str, response: RefusalResponse | None = None, *, kind: RefusalKind = RefusalKind.NOT_AUTHORIZED) -> None:
        super().__init__(reason)
        self.kind = kind
        self.permanent = kind is not RefusalKind.NO_ROOM
        self.response = response
        """The ``HTTPResponse`` that ``authorize`` has chosen for a peer that came by HTTP; None: the one that fits ``kind``."""


class PeerError(Error):
    """What the other side did.  It ends one pipe and never comes out of ``send`` or ``receive``."""


class PeerClosed(PeerError):
    """The peer ended the connection: the normal end of a pipe."""

    def __init__(self, reason: str, *, silent: bool = False) -> None:
        super().__init__(reason)
        self.silent = silent
        """Whether it left without a word on why.

        Before its greeting: without a byte, as balancers do to see whether somebody listens.
        """


class GreetingError(PeerError):
    """The peer does not speak SP, not our version of it, or did not greet in time."""


_SAME_AGAIN = frozenset((400, 401, 403, 405, 407, 410, 426, 501, 505))
"""Statuses of HTTP that find fault with the request itself.

Not 404, 502, 503, 504: proxies say so while they are set up anew.
"""


class UpgradeRefused(GreetingError):
    """An HTTP server, or a proxy on the way to it, answered with something else than a WebSocket."""

    def __init__(self, reason: str, response: HTTPResponse) -> None:
        super().__init__(reason)
        self.response = response
        """The answer: ``status``, ``headers`` and the beginning of ``body``."""
        self.permanent = response.status in _SAME_AGAIN
        self.retry_after = 0.0
        """Seconds for which a busy server (429, 503) wants to be left alone; 0: it has not said.

        0 as well where TLS was asked for and the server that answered is not verified.
        """

    def __reduce__(self) -> tuple[type[UpgradeRefused], tuple[str, HTTPResponse], dict[str, object]]:
        """Let another process have it: an error that cannot be unpickled breaks a pool of processes."""
        return type(self), (str(self), self.response), self.__dict__


class PeerSilent(PeerError):
    """The peer, or the way to it, is gone.

    It left a ping unanswered and said nothing else, or it acknowledged nothing of what was sent.
    """


class PeerStalled(PeerError):
    """The peer has asked for more replies than may wait for it, and has read none for a minute."""


class TLSError(PeerError):
    """TLS with the peer failed: it does not speak it, nothing in common was found, or what it sent was not genuine."""


class AuthenticationError(TLSError):
    """A certificate was refused, the peer's by us or ours by the peer.

    It is permanent only where a verified server refuses ours: anybody on the way can show a wrong
    certificate.
    """

    def __init__(self, reason: str, *, permanent: bool = False) -> None:
        super().__init__(reason)
        self.permanent = permanent


class WrongProtocol(PeerError):
    """The peer speaks SP, but is not the counterpart of our protocol."""

    permanent = True


class MessageTooLarge(PeerError):
    """The peer announced a message beyond ``max_message_size``."""


class MalformedMessage(PeerError):
    """A broken frame or backtrace."""


_MOST: Final = 500
"""The most characters of a peer's that an error shows."""


def printable(text: str) -> str:
    """Return the beginning of a peer's *text* for an error.

    What would move a terminal's cursor or begin a line of its own in a log is escaped.
    """
    shown = text if len(text) <= _MOST else f"{text[:_MOST]}..."
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in shown)
