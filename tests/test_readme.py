"""The README holds: its blocks run in their order on miniature data, its tables are true and narrow."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Result
from PIL import Image
from test_examples import forking

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SIDE = 32
SPECIES = ("001.Ani", "002.Auk", "003.Owl")

#: How the blocks begin that are not run.
NOT_RUN = {
    "git clone <this repository>": "a checkout is what the test runs in; tests of the demo run what `make demo` runs",
    "pip install": "the environment is there, and a test must not change it",
    "git clone https://github.com/yaorong0921/CUB-GHA": "it downloads, and so does who follows the links to the birds",
}
#: What is smaller or without hands in the test than in the README.
REPLACED = {
    "--from run/ --out edited/ --open": "--script strokes.jsonl --out edited/",
    "(224, 224)": f"({SIDE}, {SIDE})",
}
SMALL = {
    "HKMAP_TRAIN_ARCH": "resnet8+abn", "HKMAP_TRAIN_STEM": "small", "HKMAP_TRAIN_WIDTH": "4",
    "HKMAP_TRAIN_IMAGE_SIZE": str(SIDE), "HKMAP_TRAIN_PRETRAINED": "0", "HKMAP_TRAIN_EPOCHS": "1",
    "HKMAP_FINETUNE_EPOCHS": "1",
}


def photo(path: Path, number: int, kind: int) -> tuple[int, int, int, int]:
    """Write a picture with a bright part, and return the part's left, top, right and bottom."""
    left, top = 4 + 8 * kind, 6
    picture = np.random.default_rng(number).integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
    picture[top : top + 10, left : left + 10] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return left, top, left + 10, top + 10


def write_birds(folder: Path) -> None:
    """Write three species in the release's layout, their gaze in CUB-GHA's, and what a person paints on them."""
    lists: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    gaze: list[str] = []
    strokes: list[str] = []
    for number in range(1, 22):
        kind = number % 3
        name = f"{SPECIES[kind]}/{number}.jpg"
        left, top, _, _ = photo(folder / "CUB_200_2011" / "images" / name, number, kind)
        lists["images"].append(f"{number} {name}\n")
        lists["image_class_labels"].append(f"{number} {kind + 1}\n")
        lists["train_test_split"].append(f"{number} {int(number <= 12)}\n")
        gaze.append(f"{number},{SIDE},{SIDE},{left + 3},{top + 2},200,{left + 6},{top + 7},300\n")
        strokes.append(f'{{"id": "{number}", "strokes": [{{"tool": "add", "points": [[9, 9]], "radius": 4}}]}}\n')
    for title, lines in lists.items():
        (folder / "CUB_200_2011" / f"{title}.txt").write_text("".join(lines))
    (folder / "CUB_200_2011" / "classes.txt").write_text("".join(f"{n} {name}\n" for n, name in enumerate(SPECIES, 1)))
    (folder / "CUB-GHA" / "data_5runs").mkdir(parents=True)
    for run in range(1, 6):
        (folder / "CUB-GHA" / "data_5runs" / f"Fixation_run{run}.txt").write_text("".join(gaze))
    (folder / "strokes.jsonl").write_text("".join(strokes))


def write_ultrasound(folder: Path) -> None:
    """Write BUSI as it was released: the masks beside the images, a black one for what is normal."""
    for kind, name in enumerate(("benign", "malignant", "normal")):
        for number in range(1, 6):
            path = folder / "Dataset_BUSI_with_GT" / name / f"{name} ({number}).png"
            left, top, right, bottom = photo(path, 10 * kind + number, kind)
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[top:bottom, left:right] = 255 * (name != "normal")
            Image.fromarray(mask).save(path.with_name(f"{path.stem}_mask.png"))


def is_run(block: str) -> bool:
    return not block.startswith(tuple(NOT_RUN))


@pytest.fixture(scope="module")
def fast_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with forking(tmp_path_factory.mktemp("fast")) as folder:
        yield os.pathsep.join(map(str, (folder, Path(sys.executable).parent, os.environ["PATH"])))


def test_its_blocks_run_one_after_the_other(
    shell: Callable[..., Result], fast_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_birds(tmp_path)
    write_ultrasound(tmp_path)
    monkeypatch.chdir(tmp_path)
    printed = ""
    for language, block in BLOCKS:
        for written, instead in REPLACED.items():
            block = block.replace(written, instead)
        if language == "python":
            with torch.random.fork_rng():
                exec(compile(block, "README.md", "exec"), {})
        elif is_run(block):
            result = shell(f"set -e\n{block}", PATH=fast_path, **SMALL)
            assert result.exit_code == 0, f"{block}\n{result.stderr[-3000:]}"
            printed += result.stdout
    assert '"control": "shuffled"' in printed
    for product in ("sheet.png", "report.html", "all-00000.h5", "busi/test.h5", "run-edited/summary.json"):
        assert (tmp_path / product).stat().st_size, product


def test_what_is_not_run_is_named_with_its_reason() -> None:
    shells = [block for language, block in BLOCKS if language == "sh"]
    assert {language for language, _ in BLOCKS} == {"sh", "python"}
    for beginning in NOT_RUN:
        assert sum(block.startswith(beginning) for block in shells) == 1, beginning
    for block in filter(is_run, shells):
        assert not re.search(r"^(git|make|pip|torchrun) ", block, re.MULTILINE), block
    for written in REPLACED:
        assert any(written in block for _, block in BLOCKS), written


def test_code_fits_eighty_columns() -> None:
    assert not [line for _, block in BLOCKS for line in block.splitlines() if len(line) > 80]


def test_tables_are_narrow() -> None:
    rows = [line.split("|")[1:-1] for line in README.splitlines() if line.startswith("|")]
    assert rows
    assert max(map(len, rows)) <= 4


def test_the_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = re.search(r"^\| extra \|.*\n(?:\|.*\n)+", README, re.MULTILINE)
    assert table is not None
    named = {name for row in table[0].splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == project["optional-dependencies"].keys() - {"dev", "site"}
