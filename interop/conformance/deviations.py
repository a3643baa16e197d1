"""Known deviations, and what the implementation does instead, so that a test notices a change in
either direction."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Final

import attrs

from interop.conformance.run import CRASHED, FAILED


@attrs.frozen
class Deviation:
    """What is observed instead of a pass."""

    kind: str
    says: str
    """A part of the line that the run prints."""
    why: str


_LEFTOVER = Deviation(
    FAILED,
    "the subject has ended the connection: expected an answer",
    "libnanomsg's dialer keeps one receive buffer for all its connections (aio/usock_posix.inc empties it in nn_usock_init only): "
    "it reads bytes of a connection that it has given up as the first bytes of the next one",
)
_REFUSED_AND_SERVED = Deviation(
    FAILED,
    "but served all the same",
    "libnanomsg answers 400 and then uses the connection anyway (transports/ws/ws_handshake.c)",
)
_NO_PONG = Deviation(
    FAILED,
    "a frame with opcode 2 has come: expected the pong",
    "libnanomsg gives a ping to the application as a message, and does not answer it (transports/ws/sws.c)",
)
_NO_REDIAL = Deviation(
    FAILED,
    "the subject does not dial (again)",
    "libnanomsg never dials a WebSocket again after it has ended with a Close or within the handshake (transports/ws/cws.c)",
)
_NO_CLOSE = Deviation(
    FAILED,
    "the subject has ended the connection: expected a Close",
    "libnng 1.5 ends the connection without an answer when it gets a Close; 1.11 answers 1000 (supplemental/websocket/websocket.c)",
)

KNOWN: Final[Mapping[tuple[str, str], Deviation]] = {
    ("nngcat", "close ws*"): _NO_CLOSE,
    ("nngcat", "fragmented_control_frame ws"): Deviation(
        FAILED, "a frame with opcode 10 came", "libnng answers a ping in fragments with a pong (supplemental/websocket/websocket.c)"
    ),
    ("nngcat", "target_of_the_request ws dialing"): Deviation(
        FAILED, "it asks for ''", "libnng 1.x writes `GET  HTTP/1.1` when the URL has no path (2.0 writes /)"
    ),
    ("nanocat", "reserved_bytes *"): Deviation(
        FAILED, "nothing came within", "libnanomsg does not look at the reserved bytes (transports/utils/streamhdr.c)"
    ),
    ("nanocat", "wrong_magic * dialing"): _LEFTOVER,
    ("nanocat", "absurd_length * dialing"): _LEFTOVER,
    ("nanocat", "type_of_an_ipc_message ipc"): Deviation(
        CRASHED, "sipc->inhdr [0] == NN_SIPC_MSG_NORMAL", "libnanomsg asserts that the type is 1 (transports/ipc/sipc.c)"
    ),
    ("nanocat", "message_to_a_sender pub"): Deviation(
        CRASHED, "xpub.c", "libnanomsg asserts that a PUB never gets a message (protocols/pubsub/xpub.c)"
    ),
    ("nanocat", "post ws"): Deviation(CRASHED, "ws_handshake.c", "libnanomsg asserts that a request begins with GET (ws_handshake.c)"),
    ("nanocat", "old_http ws"): Deviation(CRASHED, "ws_handshake.c", "libnanomsg asserts that a request is HTTP/1.1 (ws_handshake.c)"),
    ("nanocat", "name_of_another_protocol ws"): _REFUSED_AND_SERVED,
    ("nanocat", "name_of_no_protocol ws"): _REFUSED_AND_SERVED,
    ("nanocat", "no_name ws"): _REFUSED_AND_SERVED,
    ("nanocat", "several_names ws"): _REFUSED_AND_SERVED,
    ("nanocat", "no_upgrade ws"): _REFUSED_AND_SERVED,
    ("nanocat", "no_key ws"): _REFUSED_AND_SERVED,
    ("nanocat", "old_websocket ws"): _REFUSED_AND_SERVED,
    ("nanocat", "ping ws*"): _NO_PONG,
    ("nanocat", "ping_between_fragments ws*"): _NO_PONG,
    ("nanocat", "wrong_name_in_the_answer ws dialing"): Deviation(
        FAILED, "expected a Close or the end", "libnanomsg does not look at the name in the answer (transports/ws/ws_handshake.c)"
    ),
    ("nanocat", "dials_again_after_*"): _NO_REDIAL,
}
"""By subject, and a pattern for the keys of its trials."""


def known(subject: str, key: str) -> Deviation | None:
    """Return the known deviation of *subject* in the trial with *key*; None: there is none."""
    for (name, pattern), deviation in KNOWN.items():
        if name == subject and fnmatchcase(key, pattern):
            return deviation
    return None
