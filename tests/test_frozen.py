"""The package in a program that PyInstaller has packed.

It finds modules by their import statements alone.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import sysconfig
from modulefinder import ModuleFinder
from pathlib import Path

import pytest
import trustme

import sp

ROOT = Path(sp.__file__).parent
PROGRAM = """
import sys, sp, trio

async def main(certificate, ca, directory):
    tls = {"tls": sp.TLSServerConfig(certificate=certificate)}, {"tls": sp.TLSClientConfig(ca=ca)}
    for url in ("tcp://127.0.0.1:0", "tls+tcp://127.0.0.1:0", f"ipc://{directory}/s", "inproc://s", "ws://127.0.0.1:0", "wss://127.0.0.1:0"):
        server, client = tls if url.startswith(("tls", "wss")) else ({}, {})
        async with sp.Req0() as req, sp.Rep0() as rep, trio.open_nursery() as nursery:
            await req.dial((await rep.listen(url, **server)).url, **client)
            nursery.start_soon(req.send, b"hello")
            print(url.partition("://")[0], await rep.receive())

trio.run(main, *sys.argv[1:])
"""
unpackable = pytest.mark.skipif(
    sys.platform == "linux" and not sysconfig.get_config_var("Py_ENABLE_SHARED"), reason="PyInstaller needs a Python with a shared library"
)


@pytest.mark.slow
def test_all_modules_can_be_found_by_their_import_statements(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text("import sp\n")
    finder = ModuleFinder([str(ROOT.parent)])  # of no other package
    finder.run_script(str(script))
    modules = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__") for path in ROOT.rglob("*.py")}
    by_the_user = {"sp.device.__main__", "sp.testing"}
    assert modules - set(finder.modules) <= by_the_user


@pytest.mark.slow
def test_no_module_is_imported_by_a_name_that_is_made_at_run_time() -> None:
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [node.id] if isinstance(node, ast.Name) else []
            assert not {"importlib", "runpy", "pkgutil", "__import__"} & {name.partition(".")[0] for name in names}, path


@pytest.mark.slow
@pytest.mark.timeout(600)  # 20 seconds of work
@unpackable
def test_a_packed_program_can_use_every_transport(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    packing = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR", "--paths", str(ROOT.parent), "program.py"]
    packed = subprocess.run(packing, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert packed.returncode == 0, packed.stderr
    program = tmp_path / "dist" / "program" / "program"
    ran = subprocess.run([program, "server.pem", "ca.pem", "."], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert ran.stderr == ""
    assert ran.stdout.splitlines() == [f"{scheme} b'hello'" for scheme in ("tcp", "tls+tcp", "ipc", "inproc", "ws", "wss")]
