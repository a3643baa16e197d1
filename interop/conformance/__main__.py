"""The command line; README.md says more."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import attrs
import trio

from interop.conformance.case import trials
from interop.conformance.run import NOT_APPLICABLE, PASSED, run
from interop.conformance.subjects import STREAMS, SUBJECTS, TRANSPORTS, Subject, templates
from interop.conformance.table import markdown, text
from interop.conformance.target import running
from interop.conformance.wire import ROLES


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m interop.conformance",
        description="Test whether an implementation of the Scalability Protocols does what nanomsg, nng and mangos agree on.",
        epilog="The exit status is 0 only when each subject passes all that applies to it.",
    )
    add = parser.add_argument
    add("--subject", action="append", default=[], choices=SUBJECTS, help="a known program; may be given again")
    program = parser.add_mutually_exclusive_group()
    program.add_argument("--command", help="a program that listens at {url}; {role} is what it plays, {data} what it sends")
    program.add_argument("--url", help="where a program is listening already")
    add("--dial-command", help="the same program, dialing {url}; without it no case has it dial")
    add("--role", action="append", choices=ROLES, help="the role of the command or URL (default: as its greeting says)")
    add("--transport", action="append", choices=TRANSPORTS, help="what the command listens on (default: all)")
    add("--limit", type=int, default=1 << 20, help="its largest message in bytes, header included; 0: no limit (default: 1 MiB)")
    add("--topic", default="", help="what its SUB is subscribed to (default: everything)")
    add("--no-output", action="store_true", help="it does not print each message that it receives on a line of its own")
    add("--only", action="append", default=[], metavar="TEXT", help="only cases with this text in their key; may be given again")
    add("--jobs", type=int, default=6, help="trials of a subject that run at a time (default: 6); at a --url always one")
    add("--markdown", action="store_true", help="print the table as in README.md")
    options = parser.parse_args()
    if not options.subject and not options.command and not options.url:
        parser.error("give at least one of --subject, --command and --url")
    return options


async def subject_of(options: argparse.Namespace) -> Subject:
    """Return the subject that a command or a URL stands for."""
    name = options.url or os.path.basename(options.command.split()[0])
    known = Subject(
        name="command" if name in options.subject else name,
        command=None if options.url else templates(options.command, options.dial_command),
        url=options.url or "",
        transports=(options.url.partition("://")[0],) if options.url else tuple(options.transport or TRANSPORTS),
        dials=options.dial_command is not None,
        prints=not options.url and not options.no_output,
        limit=options.limit or None,
        data=None if options.url or "{data}" not in options.command else Subject(name="").data,
        topic=options.topic.encode(),
    )
    if options.role:
        return attrs.evolve(known, roles=tuple(options.role))
    if options.command and "{role}" in options.command:
        return known
    transport = next((each for each in known.transports if each in STREAMS), None)
    if transport is None:
        sys.exit("a WebSocket does not tell what it is: give --role")
    try:
        with tempfile.TemporaryDirectory(prefix="sp") as directory:
            async with running(known, "rep", transport, Path(directory), listens=True) as target:
                greeting = await (await target.connect()).receive_exactly(8, "a greeting that tells the role")
    except AssertionError as error:
        sys.exit(f"{known.name} does not tell its role, so give --role: {error}")
    number = int.from_bytes(greeting[4:6], "big")
    roles = tuple(role.name for role in ROLES.values() if role.number == number)
    if not roles:
        sys.exit(f"{known.name} greets as {number:#06x}, which is no role")
    return attrs.evolve(known, roles=roles)


async def main(options: argparse.Namespace) -> int:
    subjects = [SUBJECTS[name] for name in options.subject]
    if options.command or options.url:
        subjects.append(await subject_of(options))
    plan = [
        trial for subject in subjects for trial in trials(subject) if not options.only or any(text in trial.key for text in options.only)
    ]
    outcomes = await run(plan, jobs=1 if options.url else options.jobs)
    print((markdown if options.markdown else text)([subject.name for subject in subjects], outcomes), end="")
    kinds = {outcome.kind for outcome in outcomes.values()}
    return 0 if PASSED in kinds <= {PASSED, NOT_APPLICABLE} else 1


if __name__ == "__main__":
    if not __debug__:
        sys.exit("the cases are made of assertions: run them without -O")
    sys.exit(trio.run(main, arguments()))
