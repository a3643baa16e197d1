"""One step of one handshake at a time, and no handshake is stuck."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from sp.transports.link import SocketLink
from sp.transports.tls import TLSLink
from tests.tls.authority import Authority
from tests.tls.test_stream import encrypted, links


def dialing(authority: Authority, inner: SocketLink) -> TLSLink:
    return TLSLink(inner, authority.client(), host="localhost", port=1)


async def test_a_link_that_is_closed_while_it_waits_for_its_turn_says_so(authority: Authority) -> None:
    pairs = [links() for _ in range(3)]
    waiting = [dialing(authority, pair[0]) for pair in pairs]
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for link in waiting[:2]:
                nursery.start_soon(link.open, b"")

            async def last() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await waiting[2].open(b"")
                nursery.cancel_scope.cancel()

            nursery.start_soon(last)
            await trio.lowlevel.checkpoint()
            waiting[2].close()
    for pair in pairs:
        for end in pair:
            end.close()


async def test_a_hundred_that_wait_let_others_run_between_them(authority: Authority) -> None:
    pairs = [links() for _ in range(100)]
    passes = 0
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for pair in pairs:
                nursery.start_soon(dialing(authority, pair[0]).open, b"")
            for pair in pairs:
                while True:
                    try:
                        assert pair[1].recv(10_000)
                        break
                    except BlockingIOError:
                        passes += 1
                        await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert passes >= 50, "each pass of the loop lets one through, or two while it wakes up"
    for pair in pairs:
        for end in pair:
            end.close()


def test_a_handshake_may_begin_while_trio_shuts_down(authority: Authority) -> None:
    steps = []

    async def late() -> None:
        try:
            await trio.sleep_forever()
        finally:
            inner, other = links()
            with trio.move_on_after(0.1, shield=True):
                await dialing(authority, inner).open(b"")
            inner.close()
            other.close()
            steps.append("late")

    async def main() -> None:
        trio.lowlevel.spawn_system_task(late)
        for end in await encrypted(authority.server(), authority.client()):
            await end.aclose()

    trio.run(main)
    assert steps == ["late"]


async def test_a_client_that_has_not_sent_a_whole_record_takes_no_turn(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    monkeypatch.setattr(TLSLink, "_step", lambda *_: steps.append(1))
    inner, other = links()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(TLSLink(inner, authority.server()).open, b"")
            for piece in (b"\x16", b"\x03\x01\x02", b"\x00" + bytes(511)):
                other.send(piece)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not steps
            nursery.cancel_scope.cancel()
    inner.close()
    other.close()
