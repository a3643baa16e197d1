"""The subjects of the suite, and the commands that start them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs

from interop.conformance.wire import ROLES

ANSWERING: Final = ("rep", "respondent")
ASKING: Final = ("req", "surveyor")
SENDING: Final = ("pub", "push")
RECEIVING: Final = ("rep", "respondent", "pull", "sub", "bus", "pair0", "pair1")
"""Roles that show that a message was delivered: they answer it or print it."""
STREAMS: Final = ("tcp", "ipc")
TRANSPORTS: Final = (*STREAMS, "ws")

DATA: Final = b"conformance"
"""What the known programs send."""
TOPIC: Final = b"news:"
"""What their SUB is subscribed to."""
LIMIT: Final = 1 << 20
"""Their largest message."""

Arguments = Callable[[str, str, bool, bool], Sequence[str]]
"""Makes a command of a role, a URL, whether it listens, and whether a REQ asks only once."""


@attrs.frozen(kw_only=True)
class Subject:
    """An implementation, and what is known about the program that stands for it."""

    name: str
    command: Arguments | None = None
    """None: it is running already, at *url*."""
    url: str = ""
    roles: tuple[str, ...] = tuple(ROLES)
    transports: tuple[str, ...] = TRANSPORTS
    dials: bool = True
    prints: bool = True
    """Whether it prints each message that it receives on a line of its own, in quotes or not."""
    limit: int | None = LIMIT
    """Its largest message; None: there is none."""
    data: bytes | None = DATA
    """What it sends; None: unknown."""
    topic: bytes = TOPIC
    """What its SUB is subscribed to."""


def _tool(tool: Sequence[str], verbs: tuple[str, str], intervals: Mapping[str, str], names: Mapping[str, str] | None = None) -> Arguments:
    """Return the arguments that nngcat, nanocat and our program have in common.

    *intervals* has the seconds between two messages by role; ``""`` is the default.
    """

    def arguments(role: str, url: str, listens: bool, once: bool) -> Sequence[str]:
        command = [*tool, f"--{(names or {}).get(role, role)}", verbs[0] if listens else verbs[1], url]
        if role not in SENDING:
            command.append("--quoted")
        if role == "sub":
            command += ["--subscribe", TOPIC.decode()]
        elif role != "pull":
            command += ["--data", DATA.decode()]
        if role not in ("sub", "pull", *ANSWERING) and not (once and role == "req"):
            command += ["--interval", intervals.get(role, intervals[""])]
        return command

    return arguments


# A survey of nngcat and nanocat takes a second and should be over before the next one begins.  A
# REQ of
# nanocat waits a second for its answer.  nngcat exits if its first message waits longer for a peer
# than
# the interval.
_nngcat = _tool(
    ["nngcat", "--async", "--recv-maxsz", str(LIMIT)],
    ("--listen", "--dial"),
    {"": "1", "surveyor": "2", "req": "3", "pair0": "3", "pair1": "3"},
)
_nanocat = _tool(["nanocat"], ("--bind", "--connect"), {"": "0.3", "req": "1", "surveyor": "1.5"}, {"pair0": "pair"})
_ours = _tool([sys.executable, "-m", "interop.conformance.ours"], ("--listen", "--dial"), {"": "0.3"})

SUBJECTS: Final = {
    subject.name: subject
    for subject in (
        Subject(name="ours", command=_ours),
        Subject(name="nngcat", command=_nngcat),
        Subject(name="nanocat", command=_nanocat, roles=tuple(role for role in ROLES if role != "pair1")),
    )
}


def templates(listening: str, dialing: str | None) -> Arguments:
    """Return the arguments of two commands, with ``{url}``, ``{role}`` and ``{data}`` replaced."""

    def arguments(role: str, url: str, listens: bool, _: bool) -> Sequence[str]:
        command = shlex.split(listening if listens or dialing is None else dialing)
        for place, value in (("{url}", url), ("{role}", role), ("{data}", DATA.decode())):
            command = [argument.replace(place, value) for argument in command]
        return command

    return arguments
