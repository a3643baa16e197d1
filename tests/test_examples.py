"""Every example runs, and so does every program in the documents."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import sp
from tests.tls.strict import strict_handshake

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run(*arguments: str, cwd: Path = ROOT) -> str:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as the documents have it."""
    directory = tmp_path_factory.mktemp("certificates")
    run("-m", "examples.certificates", str(directory))
    return directory


def test_the_demo_shows_a_service_its_clients_and_two_subscribers() -> None:
    shown = run("-m", "examples.demo")
    assert re.search(r"service +listening on tls\+tcp://127\.0\.0\.1:\d+\n", shown)
    assert "the certificate of the service is for DNS:localhost, IP:127.0.0.1, IP:::1: verified" in shown
    assert re.search(r"answer +'you asked: what is the answer\?'", shown)
    assert re.search(r"[\d,]+ round trips/s", shown)
    assert re.search(r"stranger +cannot dial 'tls.*certificate required", shown)
    assert re.search(r"new client +first answer after [\d.]+ ms, with a full handshake", shown)
    assert re.search(r"reconnect +first answer after [\d.]+ ms, with a resumed session", shown)
    assert re.search(r"subscriber 1 +temperature 20, temperature 21, temperature 22, temperature 23, temperature 24\n", shown)
    assert re.search(r"subscriber 2 +humidity 40, humidity 42, humidity 44, humidity 46, humidity 48\n", shown)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
@pytest.mark.parametrize("client", ["client.pem", "other.pem"])
def test_the_certificates_are_good_enough_for_strict_clients(name: str, client: str, certificates: Path) -> None:
    strict_handshake(certificates / "ca.pem", certificates / "server.pem", certificates / client, name=name)


@pytest.mark.parametrize("scheme", ["tcp", "tls+tcp"])
def test_the_client_gets_ten_answers(scheme: str, certificates: Path) -> None:
    tls = [str(certificates)] if scheme == "tls+tcp" else []
    with subprocess.Popen(
        [sys.executable, "-m", "examples.service", f"{scheme}://127.0.0.1:0", *tls], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as service:
        try:
            assert service.stdout is not None
            url = service.stdout.readline().split()[-1]
            assert sorted(run("-m", "examples.client", url, *tls).splitlines()) == [f"you asked: question {number}" for number in range(10)]
        finally:
            service.kill()


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(document: Path) -> list[str]:
    """Return the Python programs in *document*."""
    return re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)


def file_name(code: str) -> str:
    """Return the name of the file that *code* is to be saved as: its first line, ``# NAME.py``."""
    named = re.match(r"# (\w+\.py)\n", code)
    return "" if named is None else named[1]


def expected(code: str) -> list[str]:
    """Return the lines that *code* prints, according to its comments."""
    return [line.partition("# -> ")[2] for line in code.splitlines() if "# -> " in line]


def programs() -> Iterator[object]:
    """Find each program that runs by itself, and each module of tests."""
    for document in documents():
        for number, code in enumerate(blocks(document), 1):
            if file_name(code) not in ("server.py", "client.py"):
                yield pytest.param(code, id=f"{document.name}-{number}")


def conversations() -> Iterator[object]:
    """Find each server.py that is followed by a client.py."""
    for document in documents():
        codes = blocks(document)
        named = [file_name(code) for code in codes]
        for number, name in enumerate(named):
            if name == "server.py":
                assert named[number + 1] == "client.py", f"{document.name}: a server.py without its client.py"
                yield pytest.param(codes[number], codes[number + 1], id=f"{document.name}-{number + 1}")


@pytest.mark.parametrize("code", list(programs()))
def test_a_program_in_the_documents_runs_as_it_stands(code: str, certificates: Path, tmp_path: Path) -> None:
    assert "sleep(" not in code, "no example needs to sleep"
    if file_name(code).startswith("test_"):
        (tmp_path / file_name(code)).write_text(code)
        run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path))
    else:
        assert run("-W", "error", "-c", code, cwd=certificates).splitlines() == expected(code)


@pytest.mark.parametrize(("server", "client"), list(conversations()))
def test_two_programs_in_the_documents_talk_with_each_other(server: str, client: str, certificates: Path, tmp_path: Path) -> None:
    # The port of the documents may be taken here, so the programs meet at a socket file.
    url = "tcp://127.0.0.1:5555"
    assert url in server
    assert url in client
    server, client = (code.replace(url, f"ipc://{tmp_path}/s") for code in (server, client))
    with subprocess.Popen([sys.executable, "-W", "error", "-c", server], cwd=certificates, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert run("-W", "error", "-c", client, cwd=certificates).splitlines() == expected(client)
            process.terminate()
            shown, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert shown.splitlines() == expected(server)
    assert process.returncode == (0 if "SIGTERM" in server else -signal.SIGTERM)


def test_the_guide_on_proxies_shows_their_files_as_they_are() -> None:
    shown = re.findall(r"```(?!python)\w+\n(.*?)```", (ROOT / "docs" / "proxies.md").read_text(), re.DOTALL)
    files = sorted((ROOT / "examples" / "proxies").iterdir())
    assert sorted(shown) == sorted(file.read_text() for file in files)


async def test_the_browser_s_service_publishes_and_answers_to_its_page(certificates: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "examples.browser", str(certificates), "0", "0", "0.01"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as program:
        try:
            assert program.stdout is not None
            page, service = program.stdout.readline().removeprefix("open ").strip().split("/?service=")
            for name in ("", "app.js"):
                with urllib.request.urlopen(f"{page}/{name}") as answer:
                    assert answer.read() == (ROOT / "examples" / "browser" / (name or "index.html")).read_bytes()
            tls = sp.TLSClientConfig(ca=certificates / "ca.pem")
            http = sp.WSClientConfig(headers={"Origin": page}, proxy=None)
            async with sp.Sub0(topics=b"tick ", tls=tls, ws=http) as sub, sp.Req0(tls=tls, ws=http) as req:
                await sub.dial(f"{service}/ticks")
                assert re.fullmatch(rb"tick \d+", await sub.receive())
                await req.dial(f"{service}/questions")
                assert await req.request(b"who?") == b"you asked: who?"
                elsewhere = sp.WSClientConfig(headers={"Origin": "http://elsewhere.example"}, proxy=None)
                with pytest.raises(sp.DialError, match="403 Forbidden"):
                    await req.dial(f"{service}/questions", ws=elsewhere)
        finally:
            program.kill()
