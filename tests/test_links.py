"""Every link in the documents leads to a file that exists and, after a ``#``, to a heading in it;
every file that is named exists.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
        *(ROOT / "interop").rglob("*.md"),
    ]
)


@cache
def headings(file: Path) -> set[str]:
    """Return the headings of *file* as GitHub names them in links."""
    text = re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in DOCUMENTS])
def test_every_link_leads_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://")):
            continue
        target, _, heading = link.partition("#")
        file = (document.parent / target).resolve() if target else document
        assert file.exists(), link
        assert not heading or heading in headings(file), link


@pytest.mark.parametrize("document", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in DOCUMENTS])
def test_every_file_that_is_named_exists(document: Path) -> None:
    for name in re.findall(r"`((?:sp|tests|interop|bench|examples|docs)/[\w/.-]*)`", document.read_text()):
        if "NAME" not in name:  # a placeholder
            assert (ROOT / name).exists(), name
