"""The example's page in a real browser (examples/browser)."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio

from examples.certificates import make_certificates
from interop.browser import browser
from interop.partners import running

pytestmark = pytest.mark.needs("chromium")

ROOT: Final = Path(__file__).parents[1]
SECONDS: Final = "0.05"
"""Seconds between two ticks."""
ANSWERED: Final = r"asked: after \d+ ticks and [1-9]\d* answers"
"""The page's question once an answer has come back."""


class Service:
    """The example's service, and its output."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._rest = b""
        self.page = ""
        """The page's URL."""

    async def end(self) -> None:
        self._process.kill()
        await self._process.wait()

    async def next_line(self) -> str:
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            more = await self._process.stdout.receive_some()
            assert more, "the service has ended"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    async def says(self, pattern: str) -> str:
        """Wait for a line with *pattern*, and return it."""
        while not re.search(pattern, line := await self.next_line()):
            pass
        return line


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    make_certificates(directory)
    return directory


@asynccontextmanager
async def service(certificates: Path, page_port: int = 0, port: int = 0) -> AsyncIterator[Service]:
    command = (sys.executable, "-m", "examples.browser", str(certificates), str(page_port), str(port), SECONDS)
    async with running(*command, cwd=ROOT) as process:
        started = Service(process)
        started.page = (await started.says("open ")).removeprefix("open ")
        yield started


def artifacts(tmp_path: Path) -> Path:
    """Return the directory where a screenshot is kept."""
    directory = Path(os.environ.get("SP_ARTIFACTS", tmp_path))
    directory.mkdir(parents=True, exist_ok=True)
    return directory


async def test_a_page_gets_what_is_published_and_an_answer_over_wss(certificates: Path, tmp_path: Path) -> None:
    async with (
        service(certificates) as started,
        browser(started.page, tmp_path, [(certificates / "server.pem").read_bytes()]) as opened,
    ):
        assert (await started.says("asked:")) == "asked: after 3 ticks and 0 answers: are you there?"
        await started.says(ANSWERED)
        await opened.enter("grüße?")
        await started.says(r"asked: grüße\?")
        await opened.screenshot(artifacts(tmp_path) / "browser.png")
        shown = await opened.text()
        assert shown.count("\nconnected\n") == 2
        assert "\ntick " in shown
        assert "\nyou asked: " in shown


async def test_a_page_comes_back_when_the_service_was_restarted(certificates: Path, tmp_path: Path) -> None:
    async with service(certificates) as first:
        page = first.page
        ports = [int(part.rpartition(":")[2]) for part in page.split("/?")]
        async with browser(page, tmp_path, [(certificates / "server.pem").read_bytes()]):
            await first.says(ANSWERED)
            await first.end()
            async with service(certificates, *ports) as second:
                await second.says("attached")
                await second.says("ticks and ")
                await second.says("ticks and ")


async def test_a_page_of_another_origin_is_refused(certificates: Path, tmp_path: Path) -> None:
    async with service(certificates) as started:
        # The same page, but not the same origin.
        elsewhere = started.page.replace("http://localhost:", "http://127.0.0.1:")
        origin = elsewhere.partition("/?")[0]
        async with browser(elsewhere, tmp_path, [(certificates / "server.pem").read_bytes()]) as opened:
            for _ in range(2):
                line = await started.says("refused ")
                assert f"HTTP 403: origin '{origin}' is not among the allowed origins" in line
            shown = await opened.text()
            assert "\nconnected\n" not in shown
            assert "no answer yet" in shown
