"""RESPONDENT: receives surveys and answers them, one at a time in each context.

Surveys are treated as REP treats requests: the answer carries the backtrace back, the ttl counts in
the same way, and a survey without the end of its header ends the pipe.  An answer for a surveyor
that does not read waits, as in nng and mangos.
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
