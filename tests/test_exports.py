from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import attrs
import pytest

import sp
from sp.options import SocketOptions

SOCKETS = (sp.Req0, sp.Rep0, sp.Pub0, sp.Sub0, sp.Push0, sp.Pull0, sp.Surveyor0, sp.Respondent0, sp.Pair0, sp.Pair1, sp.Bus0)

INTERNAL = {
    "WSServerConfig": {"allows_origin", "trusts"},
    "HTTPResponse": {"encode"},
}
"""Methods for other modules of the package."""
REFERENCE = Path(__file__).parents[1] / "docs" / "reference.md"


MODULES = {name: getattr(sp, name) for name in ("device", "raw")}
THINGS = {name: getattr(sp, name) for name in sp.__all__ if name not in MODULES} | {
    f"{module}.{name}": getattr(MODULES[module], name) for module in MODULES for name in MODULES[module].__all__
}


def test_the_public_names_are_those_that_the_package_lists() -> None:
    public = {name for name, value in vars(sp).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public | set(MODULES) == set(sp.__all__)


def test_every_public_name_has_a_docstring_of_its_own_and_so_has_every_method() -> None:
    for name, thing in THINGS.items():
        assert inspect.isfunction(thing) or "__doc__" in vars(thing), name
        assert thing.__doc__, name
        for attribute, value in inspect.getmembers(thing):
            if not attribute.startswith("_") and callable(value) and (getattr(value, "__module__", "") or "").startswith("sp."):
                assert inspect.getdoc(value), f"{name}.{attribute}"


def test_the_help_of_every_socket_says_where_its_options_are_described() -> None:
    for kind in (*SOCKETS, *(getattr(sp.raw, name) for name in sp.raw.__all__)):
        assert "docs/reference.md" in (inspect.getdoc(kind.__init__) or ""), kind


def test_every_public_name_and_method_stands_in_the_reference() -> None:
    text = REFERENCE.read_text()
    for name, thing in THINGS.items():
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", text), name
        for attribute, value in vars(thing).items():
            if not attribute.startswith("_") and isinstance(value, FunctionType | property) and attribute not in INTERNAL.get(name, ()):
                assert re.search(rf"\b{attribute}\b", text), f"{name}.{attribute}"


def rows(heading: str) -> Iterator[dict[str, str]]:
    """Read the table below *heading* in the reference: for each row its cells, by the names of the
    columns.
    """
    section = REFERENCE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    names, _, *lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line.startswith("|")]
    for cells in lines:
        yield dict(zip(names, cells, strict=True))


def written(value: object) -> str:
    """Return a default as the reference writes it."""
    if value == ():
        return "none"
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"{value:,g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def defaults(kind: type) -> dict[str, str]:
    return {field.name: written(field.default) for field in attrs.fields(kind) if field.init}


def test_every_option_stands_in_the_reference_with_its_default() -> None:
    shown = {row["option"].strip("`"): row["default"] for row in rows("Options")}
    assert shown == defaults(SocketOptions)


@pytest.mark.parametrize(
    ("heading", "server", "client"),
    [
        ("TLS configuration", sp.TLSServerConfig, sp.TLSClientConfig),
        ("WebSocket configuration", sp.WSServerConfig, sp.WSClientConfig),
    ],
)
def test_every_field_of_a_configuration_stands_in_the_reference_with_its_default(heading: str, server: type, client: type) -> None:
    for side, kind in (("server", server), ("client", client)):
        shown = {row["field"].strip("`"): row["default"] for row in rows(heading) if row["of"] in (side, "both")}
        assert shown == defaults(kind)


def test_the_arguments_of_one_socket_stand_in_the_reference_with_their_defaults() -> None:
    shown = {(name, row["argument"].strip("`")): row["default"] for row in rows("Arguments of one socket") for name in of(row)}
    assert shown == {
        (kind.__name__, name): written(parameter.default)
        for kind in SOCKETS
        for name, parameter in inspect.signature(kind).parameters.items()
        if name != "options"
    }


def of(row: dict[str, str]) -> list[str]:
    return [name.strip("`") for name in row["of"].split(", ")]


def test_every_reason_for_a_drop_stands_in_the_reference() -> None:
    section = REFERENCE.read_text().partition("\n### Reasons for drops\n")[2]
    assert re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, re.MULTILINE) == [(each.name, each.value) for each in sp.DropReason]
