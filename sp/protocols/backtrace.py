"""The backtrace: a stack of 32-bit words before the body, ended by the request id.

Each hop pushes the id of the pipe that a request came by, high bit clear; the request id at the bottom has its high bit set,
and so marks the end of the header (request/reply draft, section 4).  Surveys have the same.

The ttl is the number of words that a request or survey may arrive with, its id among them (nanomsg, nng and mangos count so, but for
mangos' raw respondent, which takes one less): 8 lets it through 7 devices.  nng cannot be told more than 15, here and in the others it
is 255.  What has more is dropped and counted, as everywhere.
"""

from __future__ import annotations

from collections.abc import Container
from random import Random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sp.message import Message
    from sp.protocols.engine import EnginePipe

WORD: Final = 4
MAX_WORDS: Final = 256
"""The longest header that is looked at: a ttl of 255, and the word that a raw REP or RESPONDENT puts in front."""
_HIGH_BIT: Final = 0x8000_0000


class Ids:
    """32-bit ids of requests and surveys as they are on the wire: with the high bit set, from a random start."""

    __slots__ = ("_last",)

    def __init__(self, random: Random) -> None:
        self._last = random.getrandbits(31)

    def take(self, used: Container[bytes]) -> bytes:
        """Return the next id that is not in *used*."""
        while True:
            self._last = (self._last + 1) & (_HIGH_BIT - 1)
            header = (self._last | _HIGH_BIT).to_bytes(WORD, "big")
            if header not in used:
                return header


def backtrace_end(data: bytes, start: int, stop: int) -> int:
    """Return where the body begins: behind the first word with its high bit set.  -1: there is none."""
    position = start
    last = min(stop, start + WORD * MAX_WORDS) - WORD
    while position <= last:
        if data[position] & 0x80:
            return position + WORD
        position += WORD
    return -1


def request_id_end(_data: bytes, start: int, stop: int) -> int:
    """Return where the body of a reply to a cooked REQ begins: behind one word, whatever it is.  -1: it is shorter than that."""
    return start + WORD if stop - start >= WORD else -1


def word_of(pipe: EnginePipe) -> bytes:
    """Return the word that stands for *pipe* in a backtrace."""
    return pipe.id.to_bytes(WORD, "big")


def check_header(message: Message) -> None:
    """Raise ValueError unless the header of *message*, which a raw socket is to send, is a backtrace."""
    header = message.header
    if backtrace_end(header, 0, len(header)) != len(header):
        given = header[:64].hex() or "empty"
        raise ValueError(f"the header must be a backtrace, 32-bit words of which the last one alone has its high bit set, not {given}")
