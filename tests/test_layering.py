"""Imports point down, and there are no circles, not even of imports under TYPE_CHECKING.

sockets and the rest of the public face  ->  core  ->  transports  ->  tls, http
                                             core  ->  protocols
all of them  ->  values (errors, message, options ...)
"""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sp

ROOT = Path(sp.__file__).parent
HEIGHTS = {"protocols": 1, "http": 1, "tls": 2, "transports": 3, "core": 4, "sockets": 5}
"""By folder; values are at the bottom and the rest of the public face is at the top."""
VALUES = {
    "address",
    "checks",
    "dialer",
    "errors",
    "events",
    "guess",
    "interrupts",
    "listener",
    "message",
    "options",
    "pipe",
    "protocol_numbers",
    "refusal",
    "statistics",
    "unique",
}
WITHOUT_IO = {
    *VALUES - {"guess", "interrupts"},
    "core.budget",
    "transports.framing",
    "transports.proxy_protocol",
    "transports.tcp_info",
    "transports.ws.answer",
    "transports.ws.frames",
    "transports.ws.handshake",
}
OPENSSL = {"tls.certificate_names", "tls.context", "tls.openssl", "tls.pem", "tls.session"}
"""Imported on first use, and never by an import of the package."""
IO = {"trio", "socket", "ssl", "time", "asyncio", "select", "threading", "subprocess"}


def _names() -> list[str]:
    paths = (path.relative_to(ROOT).with_suffix("") for path in ROOT.rglob("*.py"))
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)


MODULES = _names()


def source(name: str) -> str:
    path = ROOT.joinpath(*name.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


def height(name: str) -> int:
    folder = name.split(".", maxsplit=1)[0]
    return 0 if folder in VALUES else HEIGHTS.get(folder, 6)


def imports(name: str, *, for_types: bool = True) -> set[str]:
    """Return the modules that *name* imports; without *for_types*, only those that it imports when
    it runs.
    """
    tree = ast.parse(source(name))
    if not for_types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = [ast.Pass()]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            found |= {
                f"{module}.{alias.name}" if f"{module}.{alias.name}".removeprefix("sp.") in MODULES else module for alias in node.names
            }
    return found


def ours(name: str, *, for_types: bool = True) -> set[str]:
    """Return those of them that are in the package."""
    return {found.removeprefix("sp.") for found in imports(name, for_types=for_types) if found.split(".")[0] == "sp"}


def test_imports_make_no_circle_even_those_for_types() -> None:
    # The modules of core share the state of one socket and may name each other, so they count as
    # one.
    def node(name: str) -> str:
        return "core" if name.startswith("core.") else name

    graph: dict[str, set[str]] = {}
    for name in MODULES:
        graph.setdefault(node(name), set()).update({node(imported) for imported in ours(name)} - {node(name)})
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules of a circle


@pytest.mark.parametrize("name", MODULES)
def test_no_import_points_up(name: str) -> None:
    for imported in ours(name, for_types=False):
        assert height(imported) <= height(name), f"{name} imports {imported}"
        assert {name.split(".", maxsplit=1)[0], imported.split(".")[0]} != {"protocols", "transports"}, "they do not know each other"


def reached(name: str) -> set[str]:
    """Return the modules of the package that are imported when *name* is, itself among them."""
    found, left = {name}, [name]
    while left:
        new = {imported for imported in ours(left.pop(), for_types=False) if imported in MODULES} - found
        found |= new
        left += new
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_an_import_for_types_alone_could_not_be_a_plain_one(name: str) -> None:
    for imported in ours(name) - ours(name, for_types=False):
        through = reached(imported)
        points_up = height(imported) > height(name)
        knows_http = name.startswith("core.") and imported.startswith("http.")
        assert points_up or knows_http or name in through or OPENSSL & through, f"{name}: import {imported} without TYPE_CHECKING"


@pytest.mark.parametrize("name", [name for name in MODULES if name in WITHOUT_IO or name.split(".")[0] in ("protocols", "http", "tls")])
def test_values_engines_and_codecs_do_no_input_or_output(name: str) -> None:
    used = IO & {imported.split(".")[0] for imported in imports(name, for_types=False)}
    assert used <= ({"threading"} if name in ("tls.openssl", "tls.session_cache") else set()), "a buffer for each thread, and a lock"


@pytest.mark.slow
def test_five_modules_alone_import_openssl() -> None:
    for name in MODULES:
        if name not in OPENSSL:
            assert not {"OpenSSL", "cryptography", "service_identity"} & {
                imported.split(".")[0] for imported in imports(name, for_types=False)
            }


@pytest.mark.slow
def test_importing_the_package_does_not_import_openssl() -> None:
    code = "import sys, sp; assert not {'OpenSSL', 'cryptography', 'service_identity'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith(("core.", "protocols."))])
def test_core_and_engines_know_no_http(name: str) -> None:
    assert not {imported for imported in ours(name, for_types=False) if imported.startswith("http.")}
