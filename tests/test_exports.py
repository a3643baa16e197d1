from __future__ import annotations

import inspect
import re
from pathlib import Path

import sp

INTERNAL = {
    "WSServerConfig": {"allows_origin", "trusts"},
    "HTTPResponse": {"encode"},
    "EventStream": {"put", "end"},
    **{f"{name}Context": {"drop"} for name in ("Req0", "Rep0", "Respondent0", "Surveyor0", "Sub0")},
}
"""Methods for other modules of the package."""
REFERENCE = Path(__file__).parents[1] / "docs" / "reference.md"


def test_the_public_names_are_those_that_the_package_lists() -> None:
    public = {name for name, value in vars(sp).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public == set(sp.__all__)


def test_every_public_name_has_a_docstring_of_its_own_and_so_has_every_method() -> None:
    for name in sp.__all__:
        thing = getattr(sp, name)
        assert inspect.isfunction(thing) or "__doc__" in vars(thing), name
        assert thing.__doc__, name
        for attribute, value in inspect.getmembers(thing):
            if not attribute.startswith("_") and callable(value) and (getattr(value, "__module__", "") or "").startswith("sp."):
                assert inspect.getdoc(value), f"{name}.{attribute}"


def test_every_public_name_and_method_stands_in_the_reference() -> None:
    text = REFERENCE.read_text()
    for name in sp.__all__:
        assert re.search(rf"\b{name}\b", text), name
        for attribute, value in vars(getattr(sp, name)).items():
            if not attribute.startswith("_") and inspect.isfunction(value) and attribute not in INTERNAL.get(name, ()):
                assert re.search(rf"\b{attribute}\b", text), f"{name}.{attribute}"


def test_every_option_stands_in_the_reference_with_its_default() -> None:
    from sp.options import SocketKeywords

    text = REFERENCE.read_text()
    for name in SocketKeywords.__annotations__:
        assert f"| `{name}` |" in text, name
