"""The backtrace: a stack of 32-bit words before the body.  The request id is at the bottom.

Each device pushes the id of the pipe by which the request arrived, with its high bit clear.  The
request id has its high bit set, which marks the end of the header (request/reply draft, section 4).
Surveys have the same header.

The ttl is the largest number of words, including the id, that a request or survey may arrive with.
So a ttl of 8 lets it through 7 devices.  nanomsg, nng and mangos count in the same way, except for
mangos' raw respondent, which accepts one less.  The largest ttl is 15 in nng and 255 here and in
the others.  A message with more words is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Container
from random import Random
from typing import Final

from sp.message import Message
from sp.protocols.engine import EnginePipe

WORD: Final = 4
MAX_WORDS: Final = 256
"""The longest header: 255 words (the largest ttl), and the one that a raw REP puts in front."""
_HIGH_BIT: Final = 0x8000_0000


class Ids:
    """Makes the 32-bit ids of requests and surveys.

    They start at random, and have the high bit set, as on the wire.
    """

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
    """Return where the body begins: after the first word with its high bit set.

    -1: there is no such word.
    """
    position = start
    last = min(stop, start + WORD * MAX_WORDS) - WORD
    while position <= last:
        if data[position] & 0x80:
            return position + WORD
        position += WORD
    return -1


def request_id_end(_data: bytes, start: int, stop: int) -> int:
    """Return where the body begins in a reply to a REQ that is not raw: after the first word.

    -1: the message is too short.
    """
    return start + WORD if stop - start >= WORD else -1


def word_of(pipe: EnginePipe) -> bytes:
    """Return the word for *pipe* in a backtrace."""
    return pipe.id.to_bytes(WORD, "big")


def check_header(message: Message) -> None:
    """Raise ValueError unless the header of *message*, for a raw socket, is a whole backtrace."""
    header = message.header
    if backtrace_end(header, 0, len(header)) != len(header):
        given = header[:64].hex() or "empty"
        raise ValueError(f"the header must be a backtrace, 32-bit words of which the last one alone has its high bit set, not {given}")
