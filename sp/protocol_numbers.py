"""The 16-bit protocol numbers of the SP greeting, and their names.

They are ``family << 4 | role``, as in nanomsg, nng and mangos.  (The request/reply draft has 16 and
17, which no implementation uses.)
"""

from __future__ import annotations

from typing import Final

PAIR0: Final = 0x10
PAIR1: Final = 0x11
PUB: Final = 0x20
SUB: Final = 0x21
REQ: Final = 0x30
REP: Final = 0x31
PUSH: Final = 0x50
PULL: Final = 0x51
SURVEYOR: Final = 0x62
RESPONDENT: Final = 0x63
BUS: Final = 0x70

_NAMES: Final = {
    PAIR0: "PAIR0",
    PAIR1: "PAIR1",
    PUB: "PUB",
    SUB: "SUB",
    REQ: "REQ",
    REP: "REP",
    PUSH: "PUSH",
    PULL: "PULL",
    SURVEYOR: "SURVEYOR",
    RESPONDENT: "RESPONDENT",
    BUS: "BUS",
}


COUNTERPARTS: Final = {
    one: other
    for pair in ((PAIR0, PAIR0), (PAIR1, PAIR1), (PUB, SUB), (REQ, REP), (PUSH, PULL), (SURVEYOR, RESPONDENT), (BUS, BUS))
    for one, other in (pair, pair[::-1])
}
"""For each protocol number, the number of the protocol that it talks to."""


def protocol_name(number: int) -> str:
    """Return the name of a protocol, such as ``REQ``; ``protocol 0x0999`` for an unknown number."""
    return _NAMES.get(number) or f"protocol 0x{number:04x}"
