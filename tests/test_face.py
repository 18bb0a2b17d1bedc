"""`import hkmap`: a dozen names, light, and a page that runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import hkmap

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


def test_the_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    scope: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/python.md", "exec"), scope)
    assert 0 <= float(scope["auc"](scope["curve"])) <= 1      # type: ignore[operator]


def test_every_name_is_there_and_on_the_page() -> None:
    for name in hkmap.__all__:
        assert getattr(hkmap, name) is not None
        assert name == "__version__" or name in dir(hkmap)
    on_the_page = set(re.findall(r"hkmap\.([a-zA-Z_]+)\(", PAGE))
    assert on_the_page <= set(hkmap.__all__)
    assert set(hkmap.__all__) - on_the_page <= {"__version__", "boxes_map", "deletion"}      # each like another one


def test_a_wrong_name_lists_the_names() -> None:
    with pytest.raises(AttributeError, match="its names are kde_map, boxes_map"):
        hkmap.kdemap  # noqa: B018


def test_the_import_is_light() -> None:
    program = "import sys, hkmap; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"numpy", "cv2", "torch", "click", "h5py"} & set(done.stdout.split())
