"""The backtrace: a stack of 32-bit words before the body, ended by the request id.

Each hop pushes the id of the pipe that a request came by, high bit clear; the request id at the bottom has its high bit set,
and so marks the end of the header (request/reply draft, section 4).
"""

from __future__ import annotations

from typing import Final

WORD: Final = 4
MAX_WORDS: Final = 256
"""The longest header that is looked at: a ttl of 255, and the request id."""


def split_backtrace(data: bytes, start: int, stop: int) -> int:
    """Return where the body begins: behind the first word with its high bit set.  -1: there is none."""
    position = start
    last = min(stop, start + WORD * MAX_WORDS) - WORD
    while position <= last:
        if data[position] & 0x80:
            return position + WORD
        position += WORD
    return -1


def split_reply(_data: bytes, start: int, stop: int) -> int:
    """Return where the body of a reply to a cooked REQ begins: behind one word, whatever it is.  -1: it is shorter than that."""
    return start + WORD if stop - start >= WORD else -1
