"""What happens to a test when libnng aborts its process, or hangs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFTEST = """
from interop import isolation
from interop.conftest import *

isolation._SECONDS = 0.5
isolation._PATIENCE = 0.2
"""
TEST = """
import os, signal
from pathlib import Path
import pytest

@pytest.mark.libnng
@pytest.mark.parametrize("ends", {ends})
def test_it(ends):
    tries = Path({tries!r})
    with tries.open("a") as file:
        file.write(".")
    if len(tries.read_text()) <= {lost}:
        if ends == "hangs":
            signal.pause()
        os.kill(os.getpid(), getattr(signal, ends))

@pytest.mark.libnng
def test_another():
    pass
"""


def run(directory: Path, ends: str, lost: int, *arguments: str) -> tuple[int, str, int]:
    """Run two tests; the first one is lost *lost* times.  Return status, output and tries."""
    tries = directory / "tries"
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_it.py").write_text(TEST.format(ends=[ends], tries=str(tries), lost=lost))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(directory),
        "-c",
        "/dev/null",
        *arguments,
        str(directory),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, len(tries.read_text())


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("ends", ["SIGABRT", "SIGSEGV", "hangs"])
def test_a_test_whose_process_is_lost_runs_again(tmp_path: Path, ends: str) -> None:
    status, output, tries = run(tmp_path, ends, 2, "-n0")
    assert (status, tries) == (0, 3), output
    assert "2 passed" in output
    assert "or hung, 2 times" in output


@pytest.mark.parametrize(
    ("ends", "words"), [("SIGABRT", "was ended by SIGABRT"), ("hangs", "in test_it"), ("SIGTERM", "was ended by SIGTERM")]
)
def test_a_test_that_never_comes_through_fails_and_the_next_one_runs(tmp_path: Path, ends: str, words: str) -> None:
    status, output, tries = run(tmp_path, ends, 1000, "-n1")  # its report travels between processes
    assert (status, tries) == (1, 1 if ends == "SIGTERM" else 3), output
    assert words in output
    assert "1 failed, 1 passed" in output
