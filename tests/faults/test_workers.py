"""Workers in processes of their own that are killed at work."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

import sp
from tests.transports.wire import expect, until

from .scripts import start_script

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills as POSIX systems do")

_WORKER = """
import sys, sp, trio

async def main():
    async with sp.Pull0(dial=sys.argv[1], inbox_limit=2) as pull:
        async for body in pull:
            print(body[:10].decode(), flush=True)

trio.run(main)
"""

_RESPONDENT = """
import sys, sp, trio

async def main():
    async with sp.Respondent0(dial=sys.argv[1]) as respondent:
        print("ready", flush=True)
        async for survey in respondent.surveys():
            print("asked", flush=True)
            if survey.body != b"die":
                await survey.reply(b"alive")

trio.run(main)
"""

_DEVICE = """
import sys, sp, trio

async def main():
    async with sp.raw.Rep0(listen=sys.argv[1]) as front, sp.raw.Req0(listen=sys.argv[2]) as back:
        print("ready", flush=True)
        await sp.device.device(front, back)

trio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["tcp", "ipc", "ws"])
async def test_a_killed_worker_costs_what_it_had_and_the_others_get_all_the_rest(scheme: str, tmp_path: Path) -> None:
    url = f"ipc://{tmp_path}/s" if scheme == "ipc" else f"{scheme}://127.0.0.1:0"
    async with sp.Push0(listen=url, outbox_limit=4) as push, sp.Pull0(inbox_limit=2) as steady, trio.open_nursery() as nursery:
        url = push.url
        events = push.events()
        count = 600
        sent = 0
        got: list[int] = []

        async def send() -> None:
            nonlocal sent
            for number in range(count):
                await push.send(b"%010d" % number + bytes(20_000))
                sent += 1

        async def receive() -> None:
            while True:
                got.append(int((await steady.receive())[:10]))

        with trio.fail_after(30):
            await steady.dial(url)
            async with start_script(_WORKER, url) as worker:
                await push.wait_for_peers(2)
                killed = push.pipes[1]
                nursery.start_soon(send)
                nursery.start_soon(receive)
                await worker.hear(f"{11:010}")
                # So that it certainly has something on its way.
                os.kill(worker.process.pid, signal.SIGSTOP)
                await until(lambda: killed.unsent >= 4 or sent == count)
                os.kill(worker.process.pid, signal.SIGKILL)
                detached = await expect(events, sp.EventKind.DETACHED)
                assert detached.pipe is killed
                assert detached.reason
            await until(lambda: sent == count)
            lost = push.statistics().dropped[sp.DropReason.PIPE_CLOSED]
            await until(lambda: len(got) + killed.statistics().messages_sent + lost == count)
            assert got == sorted(set(got))
            assert push.statistics().dropped.keys() <= {"pipe closed"}
            assert lost <= 4 + 4  # its outbox, and what one write took over

            async with start_script(_WORKER, url) as another:
                await push.wait_for_peers(2)
                for _ in range(2):
                    await push.send(b"%010d" % count)
                await another.hear(f"{count:010}")
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_survey_goes_on_with_the_others_when_a_respondent_is_killed_in_its_middle() -> None:
    async with (
        sp.Surveyor0(listen="tcp://127.0.0.1:0", deadline=20) as surveyor,
        sp.Respondent0() as steady,
        trio.open_nursery() as nursery,
    ):
        url = surveyor.url
        with trio.fail_after(30):
            await steady.dial(url)
            async with start_script(_RESPONDENT, url) as script:
                await surveyor.wait_for_peers(2)

                async def answer() -> None:
                    async for survey in steady.surveys():
                        await survey.reply(b"steady")

                nursery.start_soon(answer)
                survey = surveyor.survey(b"x")
                assert {await anext(survey), await anext(survey)} == {b"alive", b"steady"}
                survey.close()
                await surveyor.send(b"die")
                await script.hear("asked\nasked")
                script.process.kill()
                assert await surveyor.receive() == b"steady"
                await until(lambda: len(surveyor.pipes) == 1)
                with pytest.raises(trio.WouldBlock):
                    surveyor.receive_nowait()
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_killed_device_is_one_that_the_next_one_takes_the_place_of(tmp_path: Path) -> None:
    front, back = f"ipc://{tmp_path}/front", f"ipc://{tmp_path}/back"
    options = {"redial_min": 0.01, "redial_max": 0.05}
    async with sp.Req0(dial=front, **options) as req, sp.Rep0(dial=back, **options) as rep, trio.open_nursery() as nursery:  # type: ignore[arg-type]
        with trio.fail_after(30):
            for turn in range(2):
                async with start_script(_DEVICE, front, back) as device:
                    await device.hear("ready")
                    if turn:
                        # The request that the first one has taken with it.
                        await rep.send(await rep.receive())
                        assert await req.receive() == b"survives"
                    await req.send(b"%d" % turn)
                    await rep.send(await rep.receive())
                    assert await req.receive() == b"%d" % turn
                    if not turn:
                        await req.send(b"survives")
                        assert await rep.receive() == b"survives"
                    device.process.kill()
                    await until(lambda: not req.pipes and not rep.pipes)
        nursery.cancel_scope.cancel()
