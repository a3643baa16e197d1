"""What is peculiar to nng 2.0, which is not released yet, built with Mbed TLS 4."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

import sp
from interop.next_nng import next_partner
from interop.partners import answer, body_of, our_server
from interop.tools import credentials_in
from tests.tls.authority import Authority

pytestmark = pytest.mark.needs("nng")


@pytest.mark.parametrize("scheme", ["tls+tcp", "wss"])
async def test_its_dialer_gets_no_answer_where_tls_1_3_has_tickets_and_every_answer_by_tls_1_2(
    scheme: str, tmp_path: Path, authority: Authority
) -> None:
    credentials = credentials_in(tmp_path, authority)
    async with sp.Rep0() as ours, next_partner("Req0") as theirs, trio.open_nursery() as nursery:
        listener = await ours.listen(f"{scheme}://127.0.0.1:0", tls=our_server(authority))
        await theirs.dial(listener.url, credentials)
        nursery.start_soon(answer, ours)
        # It hangs up and dials again, for ever; or keeps the connection, and does not hear what comes.
        with trio.move_on_after(1) as silence:
            await theirs.asend(b"question")
            await theirs.arecv()
        assert silence.cancelled_caught
        nursery.cancel_scope.cancel()
    async with sp.Rep0() as ours, next_partner("Req0") as theirs:
        listener = await ours.listen(f"{scheme}://127.0.0.1:0", tls=our_server(authority, maximum_version="TLSv1.2"))
        await theirs.dial(listener.url, credentials)
        for _ in range(3):
            await theirs.asend(b"question")
            assert await ours.receive() == b"question"
            await ours.send(body_of(100_000))
            assert await theirs.arecv() == body_of(100_000)
