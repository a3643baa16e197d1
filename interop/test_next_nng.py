"""Peculiarities of nng 2.0, which is not released yet, built with Mbed TLS 4."""

from __future__ import annotations

from pathlib import Path

import pytest

import sp
from interop.next_nng import next_partner
from interop.partners import body_of, next_event, our_server
from interop.tools import credentials_in
from tests.tls.authority import Authority

pytestmark = pytest.mark.needs("nng")


async def test_its_dialer_makes_nothing_of_a_connection_with_tickets_of_tls_1_3(tmp_path: Path, authority: Authority) -> None:
    credentials = credentials_in(tmp_path, authority)
    async with sp.Rep0() as ours, next_partner("Req0") as theirs:
        events = ours.events()
        listener = await ours.listen("wss://127.0.0.1:0", tls=our_server(authority))
        await theirs.dial(listener.url, credentials)
        # Mostly it hangs up at once.  On a busy machine it may forget to, but it dials again all
        # the same.
        for _ in range(2):
            await next_event(events, sp.EventKind.ATTACHED)
        assert not ours.statistics().messages_received
        listener.close()
    async with sp.Rep0() as ours, next_partner("Req0") as theirs:
        listener = await ours.listen("wss://127.0.0.1:0", tls=our_server(authority, maximum_version="TLSv1.2"))
        await theirs.dial(listener.url, credentials)
        for _ in range(3):
            await theirs.asend(b"question")
            assert await ours.receive() == b"question"
            await ours.send(body_of(100_000))
            assert await theirs.arecv() == body_of(100_000)
