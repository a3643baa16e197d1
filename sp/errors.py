"""The exceptions of the library, grouped by whose mistake they report.

Four exceptions of trio are used as they are: ``ClosedResourceError`` (the socket or context was
closed), ``BusyResourceError`` (two tasks wait for a reply on one REQ context), ``WouldBlock`` (from
the ``_nowait`` calls) and ``EndOfChannel`` (a survey is over).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sp.refusal import RefusalKind, RefusalResponse

if TYPE_CHECKING:
    from sp.http.message import HTTPResponse


class Error(Exception):
    """The base of all exceptions of this library."""

    permanent: bool = False
    """Whether it is pointless to try again soon.  If so, a dialer waits ``redial_max``.

    With TLS, only a verified peer can cause such an error.  No one else can keep a dialer away.
    """


class StateError(Error):
    """The call came at the wrong moment, for example a ``receive`` of a REQ before any ``send``."""


class RequestReplaced(Error):
    """A newer request on the same context replaced the one whose reply you were waiting for."""


class RequestLost(Error):
    """The pipe that carried the request ended, and ``resend_after=None`` forbids resending."""


class AddressError(Error, ValueError):
    """The URL makes no sense or does not fit the call.

    The text shows it and says what was expected.
    """


class TLSConfigError(Error, ValueError):
    """The TLS configuration cannot work.

    The text names the file and the reason, and shows no key.
    """


class DialError(Error):
    """The first attempt of ``dial`` failed.  ``__cause__`` is the reason."""


class PipeRefused(Error):
    """This side refused a new connection.

    ``authorize`` did not return True, or the protocol has no room for another peer.
    """

    def __init__(self, reason: str, response: RefusalResponse | None = None, *, kind: RefusalKind = RefusalKind.NOT_AUTHORIZED) -> None:
        super().__init__(reason)
        self.kind = kind
        self.permanent = kind is not RefusalKind.NO_ROOM
        self.response = response
        """The ``HTTPResponse`` that ``authorize`` chose.

        None: a peer that came by HTTP gets the one that fits ``kind``.
        """


class PeerError(Error):
    """The peer did something wrong, or left.

    Such an error ends one pipe.  ``send`` and ``receive`` never raise it: ``pipe.error``, events
    and DialError show it.
    """


class PeerClosed(PeerError):
    """The peer closed the connection: the normal end of a pipe."""

    def __init__(self, reason: str, *, silent: bool = False) -> None:
        super().__init__(reason)
        self.silent = silent
        """Whether it gave no reason.

        Before the handshake: whether it sent no byte at all.  Load balancers connect like this to
        see whether the port is open.
        """


class GreetingError(PeerError):
    """The peer does not speak SP.

    Or it speaks another version of SP, or did not complete the handshake in time.
    """


_SAME_AGAIN = frozenset((400, 401, 403, 405, 407, 410, 426, 501, 505))
"""HTTP statuses that find a fault in the request itself, so the next one would get the same.

404, 502, 503 and 504 are not among them: proxies answer that while a service restarts.
"""


class UpgradeRefused(GreetingError):
    """The HTTP server, or a proxy on the way to it, did not agree to the WebSocket handshake."""

    def __init__(self, reason: str, response: HTTPResponse) -> None:
        super().__init__(reason)
        self.response = response
        """The answer: ``status``, ``headers`` and the beginning of ``body``."""
        self.permanent = response.status in _SAME_AGAIN
        self.retry_after = 0.0
        """Seconds until a busy server (429, 503) wants to be asked again.  0: it has not said.

        With TLS it is also 0 unless the server is verified.
        """

    def __reduce__(self) -> tuple[type[UpgradeRefused], tuple[str, HTTPResponse], dict[str, object]]:
        """Support pickling: an error that cannot be unpickled breaks a pool of processes."""
        return type(self), (str(self), self.response), self.__dict__


class PeerSilent(PeerError):
    """The peer, or the network on the way to it, is gone.

    A ping got no answer and nothing else came (WebSocket), or nothing that was sent was
    acknowledged (tcp).
    """


class PeerStalled(PeerError):
    """The peer has read nothing for a minute, and too many replies wait for it.

    There are more than ``reply_limit`` or ``reply_bytes`` allows.
    """


class TLSError(PeerError):
    """TLS with the peer failed.

    It does not speak TLS, or has no version or cipher in common with us, or sent data that is not
    genuine.
    """


class AuthenticationError(TLSError):
    """A certificate was refused: the peer's by us, or ours by the peer.

    It is permanent only if a verified server refuses ours.  Anyone on the way can show a wrong
    certificate.
    """

    def __init__(self, reason: str, *, permanent: bool = False) -> None:
        super().__init__(reason)
        self.permanent = permanent


class WrongProtocol(PeerError):
    """The peer speaks SP, but a protocol that ours cannot talk to."""

    permanent = True


class MessageTooLarge(PeerError):
    """The peer sent, or announced, a message larger than ``max_message_size``."""


class MalformedMessage(PeerError):
    """The peer sent a broken frame or header."""


_MOST: Final = 500
"""Characters of a text from a peer that an error shows."""


def printable(text: str) -> str:
    """Return the beginning of *text*, which comes from a peer, for an error.

    Characters that would move the cursor of a terminal or begin a new line in a log are escaped.
    """
    shown = text if len(text) <= _MOST else f"{text[:_MOST]}..."
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in shown)
