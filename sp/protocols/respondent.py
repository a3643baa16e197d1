"""RESPONDENT: receives surveys and answers them, each context one at a time.

What holds for REP and its requests holds here for surveys: the header is a backtrace that the answer carries back, the ttl counts
in the same way, and a survey without the end of its header ends the pipe.  An answer whose surveyor does not read waits (nng, mangos).
"""

from __future__ import annotations

from sp.protocol_numbers import RESPONDENT, SURVEYOR
from sp.protocols.rep import RawRepEngine, RepEngine


class RespondentEngine(RepEngine):
    """The state behind a RESPONDENT socket."""

    number = RESPONDENT
    peer_number = SURVEYOR
    nothing_asked = "RESPONDENT has no survey to answer: receive one first"


class RawRespondentEngine(RawRepEngine):
    """The state behind a raw RESPONDENT socket."""

    number = RESPONDENT
    peer_number = SURVEYOR
