"""Which of our sockets talks with which partner over which transport.

test_matrix.py runs each cell, and the table in docs/interop.md shows what came out.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import attrs
import pynng
import pytest

from interop import next_nng
from interop.partners import OURS, PAIRS, THEIRS, Pair

TRANSPORTS: Final = ("tcp", "ipc", "tls+tcp", "ws", "wss")
DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "interop.md"
BEGIN: Final = "<!-- matrix: begin -->\n"
END: Final = "<!-- matrix: end -->\n"
NONE: Final = "\N{EN DASH}"
LEGEND: Final = (
    f"{NONE}: the partner does not have it. nanomsg has neither TLS nor PAIR1; `nngcat` and nng-ssl have no poly. "
    'Where nng 2.0 dials over TLS, our listener has `maximum_version="TLSv1.2"` ([why](interop.md#take-care)).'
)


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout.decode().strip()


@attrs.frozen
class Partner:
    """A version of an implementation."""

    library: str
    version: str
    program: str | None
    """The program to run; None: it is a library."""
    transports: tuple[str, ...]
    lacks: Callable[[Pair], bool]
    """Whether it has no counterpart to our socket."""
    ask: Callable[[], str]
    """Returns the installed version; empty: unknown."""

    def __str__(self) -> str:
        return f"{self.library} {self.version}"

    def is_another(self) -> str:
        """Return the installed version if it differs from the one in the table; otherwise an empty
        string."""
        found = self.ask()
        return "" if not found or f"{found}.".startswith(f"{self.version}.") else found


NEXT_NNG: Final = Partner(
    library="nng",
    version="2.0",
    program=None,
    transports=TRANSPORTS,
    lacks=lambda pair: pair.poly,  # the library has it, the package does not
    ask=next_nng.version,
)
NEW_NNG: Final = Partner(
    library="nng",
    version="1.11",
    program=None,
    transports=TRANSPORTS,
    lacks=lambda _: False,
    ask=lambda: pynng.ffi.string(pynng.lib.nng_version()).decode(),
)
OLD_NNG: Final = Partner(
    library="nng",
    version="1.5",
    program="nngcat",
    transports=TRANSPORTS,
    lacks=lambda pair: pair.poly,  # the library has it, the program does not
    ask=lambda: _output("nngcat", "--version"),
)
NANOMSG: Final = Partner(
    library="nanomsg",
    version="1.1",
    program="nanocat",
    transports=("tcp", "ipc", "ws"),
    lacks=lambda pair: pair.theirs == "Pair1",
    # It does not say itself.
    ask=lambda: _output("dpkg-query", "--show", "--showformat", "${Version}", "libnanomsg5").partition("+")[0],
)
PARTNERS: Final = (NEXT_NNG, NEW_NNG, OLD_NNG, NANOMSG)


@attrs.frozen
class Cell:
    """One of our sockets, one partner, one transport, and the listening side."""

    partner: Partner
    pair: Pair
    transport: str
    listener: str

    def __str__(self) -> str:
        return f"{self.partner}-{self.pair}-{self.transport}-{self.listener}".replace(" ", "")


CELLS: Final = tuple(
    Cell(partner, pair, transport, listener)
    for partner, pair, transport, listener in itertools.product(PARTNERS, PAIRS, TRANSPORTS, (OURS, THEIRS))
    if transport in partner.transports and not partner.lacks(pair)
)

OUTCOMES: Final = pytest.StashKey[dict[str, bool]]()
"""The cells that a session has run, by name, and whether they passed."""


def note(config: pytest.Config, cell: str, report: pytest.TestReport) -> None:
    """Remember what *report* says about the cell of that name."""
    outcomes = config.stash.setdefault(OUTCOMES, {})
    if report.failed:
        outcomes[cell] = False
    elif report.when == "call" and report.passed:
        outcomes.setdefault(cell, True)


def check_document(config: pytest.Config) -> str | None:
    """Return a complaint if docs/interop.md does not show the result of the whole matrix.

    None: it does, or some cells did not run or failed.  With SP_WRITE_MATRIX=1 in the environment
    the table is written first.
    """
    outcomes = config.stash.get(OUTCOMES, {})
    if outcomes.keys() != set(map(str, CELLS)) or not all(outcomes.values()) or any(partner.is_another() for partner in PARTNERS):
        return None
    block = table(outcomes)
    if os.environ.get("SP_WRITE_MATRIX") == "1":
        show(block)
    return None if shown() == block else "the table in docs/interop.md is out of date: run the matrix with SP_WRITE_MATRIX=1 to write it"


def table(passed: Collection[str]) -> str:
    """Return the table for docs/interop.md with the cells of these names."""
    lines = [f"| | {' | '.join(TRANSPORTS)} |", f"|---|{'---|' * len(TRANSPORTS)}"]
    for pair in PAIRS:
        row = [f"`{pair.ours.__name__}`{', poly' if pair.poly else ''}"]
        for transport in TRANSPORTS:
            partners = []
            for partner in PARTNERS:
                cells = [cell for cell in CELLS if (cell.partner, cell.pair, cell.transport) == (partner, pair, transport)]
                if not cells:
                    partners.append(NONE)
                elif all(str(cell) in passed for cell in cells):
                    partners.append(str(partner))
            row.append(" · ".join(partners))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(["", *lines, "", LEGEND, ""])


def _parts() -> tuple[str, str, str]:
    before, begin, rest = DOCUMENT.read_text().partition(BEGIN)
    block, end, after = rest.partition(END)
    assert begin, f"docs/interop.md has no line {BEGIN!r}"
    assert end, f"docs/interop.md has no line {END!r}"
    return before, block, after


def shown() -> str:
    """Return the table that docs/interop.md shows."""
    return _parts()[1]


def show(block: str) -> None:
    """Write the table into docs/interop.md."""
    before, _, after = _parts()
    DOCUMENT.write_text(before + BEGIN + block + END + after)
