"""The documents: every link leads somewhere, and every file that is named exists."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("interop/**/*.md")]
NAMED = re.compile(r"`((?:sp|tests|interop|bench|examples|docs)/[\w/.-]*)`")

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@cache
def headings(document: Path) -> set[str]:
    """Return the names by which a link reaches the headings of *document*, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@every_document
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if link.startswith("https://"):
            continue
        target, _, heading = link.partition("#")
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), link
        assert not heading or heading in headings(path), link


@every_document
def test_every_file_that_is_named_exists(document: Path) -> None:
    for name in NAMED.findall(document.read_text()):
        if "NAME" not in name:
            assert (ROOT / name).exists(), name
