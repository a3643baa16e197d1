"""The page for those who come from pynng names only what pynng has, and what we have."""

from __future__ import annotations

import builtins
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pynng
import pytest
import trio

import sp
from sp.options import SocketKeywords

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "from-pynng.md"
EVERYDAY = {"await", "async", "for", "in", "with", "message", "messages", "socket", "pipe", "body", "url", "seconds", "event", "__cause__"}
"""Words in the code of the page that are no names of a library."""


def rows() -> Iterator[tuple[str, str]]:
    """Give both cells of each row in the tables of names."""
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `"):
            theirs, ours = line.strip("| ").split(" | ")
            yield theirs, ours


def names_in(cell: str) -> set[str]:
    """Return the names in the code of *cell*."""
    code = " ".join(re.findall(r"`([^`]*)`", cell))
    return set(re.findall(r"[A-Za-z_]\w{2,}", code)) - EVERYDAY - set(dir(builtins))


def names_of(*things: object) -> set[str]:
    """Return the names that *things* have, and those of the parameters of their functions."""
    names: set[str] = set()
    for thing in things:
        for name in dir(thing):
            value = inspect.getattr_static(thing, name)
            names.add(name)
            if inspect.isfunction(value):
                names |= set(inspect.signature(value).parameters)
    return names


PYNNG = names_of(pynng, pynng.Dialer, pynng.Listener, pynng.Pipe, pynng.Message, pynng.TLSConfig, pynng.sockaddr) | {"SockAddr"}
PYNNG |= names_of(pynng.Req0, pynng.Rep0, pynng.Pub0, pynng.Sub0, pynng.Surveyor0, pynng.Pair1, pynng.Context)
OURS = names_of(sp, sp.Req0, sp.Rep0, sp.Sub0, sp.Surveyor0, sp.Respondent0, sp.Pair1, sp.Message, sp.Pipe) | set(
    SocketKeywords.__annotations__
)
OURS |= set(dir(trio)) | {"trio"}


@pytest.mark.parametrize(("theirs", "ours"), list(rows()))
def test_every_name_exists(theirs: str, ours: str) -> None:
    assert names_in(theirs) <= PYNNG
    assert names_in(ours) <= OURS


def test_the_defaults_are_those_of_pynng() -> None:
    buffers = {(kind().recv_buffer_size, kind().send_buffer_size) for kind in (pynng.Pair0, pynng.Req0, pynng.Sub0, pynng.Bus0, pynng.Pub0)}
    assert {received for received, _ in buffers} == {0, 1, 16, 128}
    assert {sent for _, sent in buffers} == {0, 16}
    with pynng.Rep0() as rep:
        assert (rep.reconnect_time_min, rep.reconnect_time_max, rep.recv_max_size, rep.ttl_max) == (1000, 0, 0, 8)
        assert (rep.tcp_keepalive, rep.tcp_nodelay) == (False, True)
