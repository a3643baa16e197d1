from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_the_wheel_is_pure_python_and_holds_the_package_once_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)], check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {str(path.relative_to(ROOT)) for path in (ROOT / "sp").rglob("*") if path.suffix == ".py" or path.name == "py.typed"}


def test_the_links_at_the_top_show_parts_of_the_package() -> None:
    for part in ("protocols", "transports"):
        assert (ROOT / part).is_symlink()
        assert (ROOT / part).readlink() == Path("sp") / part
