"""Imports point down: values <- engines <- shell, and values <- codecs <- transports <- shell."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sp

ROOT = Path(sp.__file__).parent
VALUES = {
    "errors",
    "protocol_numbers",
    "message",
    "options",
    "address",
    "engine",
    "turns",
    "http",
    "forwarding",
    "statistics",
}
CODECS = {
    "certificate_names",
    "framing",
    "pem",
    "proxy_protocol",
    "tls",
    "tls_context",
    "openssl",
    "transports.tcp_info",
    "transports.tls_session",
    "transports.websocket",
    "transports.ws_answer",
    "transports.ws_handshake",
}
OPENSSL = {Path("certificate_names.py"), Path("openssl.py"), Path("pem.py"), Path("tls_context.py"), Path("transports/tls_session.py")}
"""Imported on first use, by nobody's import of the package."""
IO = {"trio", "socket", "ssl", "time", "asyncio", "select", "threading", "subprocess"}
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def layer(module: str) -> int:
    """The height of a module; it may import what is not higher, except its own kind beside it."""
    name = module.removeprefix("sp.") if module != "sp" else "__init__"
    if name in VALUES:
        return 0
    if name in CODECS or name.startswith("protocols"):
        return 1
    if name.startswith("transports"):
        return 2
    return 4 if name == "__init__" else 3


def imports(path: Path) -> list[str]:
    """What a module imports when it runs: what stands under TYPE_CHECKING is for the type checker alone."""
    tree = ast.parse((ROOT / path).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.append(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_import_points_up(path: Path) -> None:
    module = "sp." + ".".join(path.with_suffix("").parts)
    module = module.removesuffix(".__init__")
    for imported in imports(path):
        if imported.split(".")[0] == "sp":
            assert layer(imported) <= layer(module), f"{module} imports {imported}"
            kinds = {module.split(".")[1] if "." in module else "", imported.split(".")[1] if "." in imported else ""}
            assert kinds != {"protocols", "transports"}, "engines and transports do not know each other"


@pytest.mark.parametrize("path", [path for path in MODULES if layer("sp." + ".".join(path.with_suffix("").parts)) <= 1], ids=str)
def test_values_engines_and_codecs_do_no_input_or_output(path: Path) -> None:
    used = IO & {imported.split(".")[0] for imported in imports(path)}
    assert used <= ({"threading"} if path in OPENSSL else set()), "a buffer for each thread and a lock are all that is needed"


@pytest.mark.slow
def test_five_modules_alone_import_openssl() -> None:
    for path in MODULES:
        if path not in OPENSSL:
            assert not {"OpenSSL", "cryptography", "service_identity"} & {imported.split(".")[0] for imported in imports(path)}


@pytest.mark.slow
def test_importing_the_package_does_not_import_openssl() -> None:
    code = "import sys, sp; assert not {'OpenSSL', 'cryptography', 'service_identity'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
