"""A headless Chromium that opens a page and can be asked what it shows."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import Any, Final

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

_FLAGS: Final = (
    "--headless",
    "--no-sandbox",  # it cannot have that as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--window-size=800,600",
    "--remote-debugging-pipe",
)


def key_hash(certificate: bytes) -> str:
    """Return the hash of the key in a PEM *certificate*, which makes Chromium trust it."""
    key = x509.load_pem_x509_certificate(certificate[certificate.index(b"-----BEGIN CERT") :]).public_key()
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    return base64.b64encode(digest.finalize()).decode()


class Browser:
    """A browser with one page.

    It is driven by the protocol of its developer tools: JSON, each message ended by a zero byte.
    """

    def __init__(self, commands: trio.lowlevel.FdStream, answers: trio.lowlevel.FdStream) -> None:
        self._commands = commands
        self._answers = answers
        self._data = b""
        self._number = 0
        self._session: str | None = None

    async def attach(self) -> None:
        """Find the page."""
        targets = (await self._call("Target.getTargets"))["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = (await self._call("Target.attachToTarget", targetId=page, flatten=True))["sessionId"]

    async def text(self) -> str:
        """Return the text that the page shows."""
        return str((await self._call("Runtime.evaluate", expression="document.body.innerText"))["result"]["value"])

    async def enter(self, question: str) -> None:
        """Fill in the page's form and send it."""
        script = f"document.getElementById('question').value = {json.dumps(question)}; document.getElementById('form').requestSubmit()"
        await self._call("Runtime.evaluate", expression=script)

    async def screenshot(self, path: Path) -> None:
        """Write a screenshot of the page to *path*."""
        path.write_bytes(base64.b64decode((await self._call("Page.captureScreenshot"))["data"]))

    async def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        command: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        await self._commands.send_all(json.dumps(command).encode() + b"\0")
        while True:
            answer = json.loads(await self._next())
            if answer.get("id") == self._number:
                assert "result" in answer, answer
                return answer["result"]

    async def _next(self) -> bytes:
        while b"\0" not in self._data:
            more = await self._answers.receive_some()
            assert more, "the browser has ended"
            self._data += more
        message, _, self._data = self._data.partition(b"\0")
        return message


@asynccontextmanager
async def browser(url: str, directory: Path, trusted: Sequence[bytes]) -> AsyncIterator[Browser]:
    """A browser that has *url* open, trusts the *trusted* certificates, and keeps its files in
    *directory*."""
    program = shutil.which("chromium")
    assert program is not None
    own = (f"--user-data-dir={directory}", f"--ignore-certificate-errors-spki-list={','.join(map(key_hash, trusted))}")
    commands_out, commands_in = os.pipe()
    answers_out, answers_in = os.pipe()
    async with trio.lowlevel.FdStream(commands_in) as commands, trio.lowlevel.FdStream(answers_out) as answers:
        try:
            process = await trio.lowlevel.open_process(
                # It reads commands from descriptor 3 and answers on 4.
                ("bash", "-c", f'exec "$@" 3<&{commands_out} 4>&{answers_in}', "bash", program, *_FLAGS, *own, url),
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=DEVNULL,
                pass_fds=(commands_out, answers_in),
                env={**os.environ, "HOME": str(directory)},
            )
        finally:
            os.close(commands_out)
            os.close(answers_in)
        try:
            opened = Browser(commands, answers)
            await opened.attach()
            yield opened
        finally:
            process.terminate()
            with trio.CancelScope(shield=True), trio.move_on_after(5):
                await process.wait()
            if process.poll() is None:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
