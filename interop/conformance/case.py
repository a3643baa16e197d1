"""A case: what a subject must do, where that is written, and which subjects it applies to."""

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
"""Drives a subject.  Returns the choice that the subject made, where several choices conform."""


@attrs.frozen(kw_only=True)
class Case:
    """What a subject must do, whatever its implementation."""

    name: str
    sentence: str
    source: str
    """The document that says so, or the implementations that agree on it."""
    roles: tuple[str, ...]
    every: bool = False
    """True: try each of the roles.  False: try the first one that the subject has."""
    transports: tuple[str, ...] = ()
    """Empty: any transport will do, so the first one of the subject is used."""
    sides: tuple[bool, ...] = (True,)
    """Whether the subject listens."""
    shown: bool = False
    """Whether the case has to see what the subject receives."""
    limited: bool = False
    """Whether the case needs a subject with a largest message."""
    once: bool = False
    """Whether a REQ asks only once, instead of again and again."""
    lives: bool = True
    """Whether the subject must still work on a new connection afterwards."""
    function: Function = attrs.field(repr=False)


CASES: Final[list[Case]] = []
"""All cases, in the order of the table."""


def case(source: str, **options: Any) -> Callable[[Function], Function]:
    """Make a case of a function; the first line of its docstring is the sentence."""

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
    """None: the subject has none of the roles of the case."""

    @property
    def place(self) -> str:
        """What distinguishes it from other trials of the same case."""
        role = str(self.role) if self.case.every else ""
        return " ".join(filter(None, (self.transport if self.case.transports else "", "" if self.listens else "dialing", role)))

    @property
    def key(self) -> str:
        return f"{self.case.name} {self.place}".rstrip()

    @property
    def why_not(self) -> str | None:
        """Say why the case does not apply; None: it does."""
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
    """Return all trials of *subject*, including those that do not apply, so that all subjects have
    the same ones."""
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
