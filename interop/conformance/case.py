"""A case: what is to be seen of a subject, where that is written, and whom it applies to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import attrs

from interop.conformance.subjects import ANSWERING, Subject
from interop.conformance.target import Target
from interop.conformance.wire import ROLES

ANY: Final = tuple(ROLES)
BOTH: Final = (True, False)
DIALS: Final = (False,)

AGREED: Final = "nng, nanomsg and mangos agree"
NNG_AND_MANGOS: Final = "nng and mangos agree"
TCP: Final = "SP TCP mapping"
IPC: Final = "SP IPC mapping"
REQREP: Final = "SP request/reply"
SURVEY: Final = "SP surveyor/respondent"
WS: Final = "SP WebSocket mapping"
RFC6455: Final = "RFC 6455"

Function = Callable[[Target], Awaitable[str | None]]
"""Drives a subject; what it returns is the choice that the subject has made, where several conform."""


@attrs.frozen(kw_only=True)
class Case:
    """What a subject must do, whatever its implementation."""

    name: str
    sentence: str
    source: str
    """The document that says so, or who agrees on it."""
    roles: tuple[str, ...]
    every: bool = False
    """Whether each of the roles is examined, and not only the first one that the subject has."""
    transports: tuple[str, ...] = ()
    """Empty: it is all the same to the case, and the first one that the subject has will do."""
    sides: tuple[bool, ...] = (True,)
    """Whether the subject listens."""
    shown: bool = False
    """Whether it must be seen what the subject receives."""
    limited: bool = False
    """Whether it is about the largest message."""
    once: bool = False
    """Whether a REQ asks once only, instead of again and again."""
    lives: bool = True
    """Whether afterwards the subject must do its work on a new connection."""
    function: Function = attrs.field(repr=False)


CASES: Final[list[Case]] = []
"""All of them, in the order of the table."""


def case(source: str, **options: Any) -> Callable[[Function], Function]:
    """Make a case of a function, whose docstring is the sentence."""

    def make(function: Function) -> Function:
        sentence = (function.__doc__ or "").partition("\n")[0]
        CASES.append(Case(name=function.__name__, sentence=sentence, source=source, function=function, **options))
        return function

    return make


@attrs.frozen
class Trial:
    """A case for one subject, at one place."""

    case: Case
    subject: Subject
    transport: str
    listens: bool
    role: str | None
    """None: the subject has none of those that it is about."""

    @property
    def place(self) -> str:
        """What tells it from other trials of the same case."""
        role = str(self.role) if self.case.every else ""
        return " ".join(filter(None, (self.transport if self.case.transports else "", "" if self.listens else "dialing", role)))

    @property
    def key(self) -> str:
        return f"{self.case.name} {self.place}".rstrip()

    @property
    def why_not(self) -> str | None:
        """Say why it does not apply; None: it does."""
        subject = self.subject
        if self.transport not in subject.transports:
            return f"no {self.transport}"
        if not self.listens and not subject.dials:
            return "it does not dial"
        if self.case.limited and subject.limit is None:
            return "no largest message"
        if self.role is None or self.role not in subject.roles:
            return "no such role"
        if self.case.shown and not subject.prints and self.role not in ANSWERING:
            return "it does not print what it receives"
        return None


def trials(subject: Subject) -> list[Trial]:
    """Return all trials of *subject*, those that do not apply as well, so that all subjects have the same."""
    return [
        Trial(case, subject, transport, listens, role)
        for case in CASES
        for transport in case.transports or subject.transports[:1]
        for listens in case.sides
        for role in (case.roles if case.every else (_first(case, subject),))
    ]


def _first(case: Case, subject: Subject) -> str | None:
    seen = (role for role in case.roles if role in subject.roles and (not case.shown or subject.prints or role in ANSWERING))
    return next(seen, None)
