"""docs/interop.md: each difference is there, each has a test that holds what is done here, and what
no other test holds is held here.
"""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from pathlib import Path

import pytest

import sp
from sp.address import Address
from sp.errors import AddressError
from sp.options import SocketOptions
from sp.protocol_numbers import BUS, PAIR0, PAIR1, PUB, PULL, PUSH, REP, REQ, RESPONDENT, SUB, SURVEYOR
from sp.transports.ws.handshake import SUBPROTOCOLS, ServerHandshake
from tests.transports.web import request

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "interop.md"
DIFFERENCES = 63
REFERENCE = re.compile(r"`((?:tests|interop)/[^`]*)`")
ID = b"\x80\0\0\1"
HOP = b"\0\0\0\7"


def rows() -> list[list[str]]:
    """Return the cells of each row in the tables of tests, without their heads."""
    found: list[list[str]] = []
    head: list[str] = []
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] if line.startswith("|") else []
        if not cells or not head:
            head = cells
        elif head[-1] == "test" and set("".join(cells)) != {"-"}:
            assert len(cells) == len(head), line
            found.append(cells)
    return found


@cache
def names_in(path: str) -> set[str]:
    """Return the tests in the file *path* as pytest calls them, those of classes included."""
    found: set[str] = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        functions = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + each.name for each in functions if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


def test_every_difference_is_there_once_and_in_order() -> None:
    numbers = [int(cells[0]) for cells in rows() if cells[0].isdigit()]
    assert numbers == list(range(1, DIFFERENCES + 1))


def test_every_row_is_complete_and_names_a_test() -> None:
    for cells in rows():
        assert all(cells), cells
        assert all(REFERENCE.fullmatch(each) for each in cells[-1].split(", ")), cells


@pytest.mark.slow
def test_every_test_that_is_named_exists() -> None:
    named = REFERENCE.findall(DOCUMENT.read_text())
    assert len(named) >= DIFFERENCES
    lost = []
    for reference in named:
        path, _, name = reference.partition("::")
        if not (ROOT / path).is_file() or name not in names_in(path):
            lost.append(reference)
    assert not lost


# What no other test holds.

DEFAULTS: list[tuple[type, str, object]] = [
    (sp.Pub0, "outbox_drops", "oldest"),
    (sp.Sub0, "inbox_drops", "oldest"),
    (sp.Bus0, "inbox_drops", "newest"),
    (sp.Req0, "resend_after", 60),
    (sp.Surveyor0, "deadline", 1),
    (sp.Rep0, "ttl", 8),
    (sp.Respondent0, "ttl", 8),
    (sp.Pair1, "ttl", 8),
]


def test_the_defaults_are_those_of_the_page() -> None:
    options = SocketOptions()
    assert (options.max_message_size, options.handshake_timeout, options.linger) == (1 << 20, 10, 1)
    assert (options.redial_min, options.redial_max) == (0.1, 60)
    for kind, name, value in DEFAULTS:
        assert inspect.signature(kind).parameters[name].default == value, f"{kind.__name__}: {name}"


def test_the_numbers_are_those_of_the_others_and_not_of_the_drafts() -> None:
    assert (PAIR0, PAIR1, PUB, SUB, REQ, REP) == (16, 17, 32, 33, 48, 49)
    assert (PUSH, PULL, SURVEYOR, RESPONDENT, BUS) == (80, 81, 98, 99, 112)


def test_the_sub_protocols_of_websocket_have_the_names_of_the_others() -> None:
    names = ["pair", "pair1", "pub", "sub", "req", "rep", "push", "pull", "surveyor", "respondent", "bus"]
    numbers = [PAIR0, PAIR1, PUB, SUB, REQ, REP, PUSH, PULL, SURVEYOR, RESPONDENT, BUS]
    assert {number: f"{name}.sp.nanomsg.org" for number, name in zip(numbers, names, strict=True)} == SUBPROTOCOLS
    for number in numbers:
        handshake = ServerHandshake()
        assert handshake.receive_data(request("/", SUBPROTOCOLS[number]))
        assert handshake.check(number) == (None, None)
        assert handshake.accept([])[1]["Sec-WebSocket-Protocol"] == SUBPROTOCOLS[number]


@pytest.mark.parametrize("number", [PAIR0, PAIR1])
def test_no_sub_protocol_is_refused_by_a_pair_as_well(number: int) -> None:
    handshake = ServerHandshake()
    assert handshake.receive_data(request("/", None))
    refused, _ = handshake.check(number)
    assert refused is not None
    assert refused.status == 400


@pytest.mark.parametrize("scheme", ["udp", "udp4", "udp6", "dtls", "socket", "zt"])
def test_transports_that_only_nng_has_are_unknown(scheme: str) -> None:
    with pytest.raises(AddressError, match=f"unknown scheme '{scheme}'"):
        Address.parse(f"{scheme}://127.0.0.1:5555")
