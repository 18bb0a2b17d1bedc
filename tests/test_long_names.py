"""Names that no file can have, over 255 bytes: a sentence from every command, and never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

LONG = pytest.mark.parametrize("long", ["x" * 300, "x" * 5_000], ids=["300", "5000"])


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    assert cv2.imwrite("a.png", np.full((8, 8, 3), 9, np.uint8))
    np.save("m.npy", np.ones((4, 4), np.float32))
    assert cv2.imwrite("k.png", np.eye(8, dtype=np.uint8))
    return {"id": "r7", "image": "a.png", "size": [8, 8], "map": "m.npy", "masks": {"a": "k.png"}}


def said(result: Any) -> str:
    """The one sentence of a command that failed."""
    assert result.exit_code == 1
    (sentence,) = result.stderr.splitlines()
    return sentence


@LONG
@pytest.mark.parametrize(("key", "end", "command"), [
    ("image", "", "pack s.h5"), ("image", ".png", "show --out s.png"), ("image", ".h5#0", "crop --letterbox 1 --out v"),
    ("map", ".npy", "pack s.h5"), ("map", ".png", "resize --size 2 --out r"), ("map", ".h5#0", "show --out s.png"),
    ("map", ".h5#0@u", "resize --size 2 --out r"),
    ("masks", "", "masks2map --out k"), ("masks", "#2", "masks2map --out k"), ("masks", ".png#2", "show --out s.png"),
    ("masks", ".mat#v", "crop --letterbox 1 --out v"), ("unknown", "#1", "certainty --out w"),
])
def test_a_record_names_it(hk, record: dict[str, Any], long: str, key: str, end: str, command: str) -> None:
    name = long + end
    named = record | {key: {"a": name} if key in ("masks", "unknown") else name}
    sentence = said(hk(*command.split(), stdin=[named]))
    assert long in sentence
    assert "File name too long" in sentence
    assert "expected" in sentence
    skipped = hk(*command.split(), "--on-error", "skip", "--max-errors", 1, stdin=[named, record])
    assert skipped.exit_code == 0, skipped.stderr


@LONG
@pytest.mark.parametrize("mark", ["", "#2"])
def test_check_counts_a_mask_of_it(hk, record: dict[str, Any], long: str, mark: str) -> None:
    result = hk("check", stdin=[record | {"masks": {"a": long + mark}}])
    assert result.exit_code == 3
    assert "bad-mask" in [finding["name"] for finding in json.loads(result.stdout)["findings"]]


@LONG
@pytest.mark.parametrize(("file", "text"), [
    ("a.json", '{"images": [{"id": 1, "file_name": "LONG.png", "width": 8, "height": 8}], "annotations": []}'),
    ("b.json", '{"shapes": [], "imagePath": "LONG.png", "imageWidth": 8, "imageHeight": 8}'),
    ("c.json", '{"k": {"filename": "LONG.png", "regions": []}}'),
    ("d.xml", "<annotation><filename>LONG.png</filename></annotation>"),
    ("e.csv", "image,x,y\nLONG.png,1,1\n"),
])
def test_a_file_of_annotations_names_it(hk, record: dict[str, Any], long: str, file: str, text: str) -> None:
    Path(file).write_text(text.replace("LONG", long))
    assert "no image" in said(hk("annotations", file, "--images", "."))


@LONG
def test_a_data_set_lists_it(hk, record: dict[str, Any], long: str) -> None:
    texts = {"images": f"1 b/{long}.jpg", "image_class_labels": "1 1", "classes": "1 b", "train_test_split": "1 1"}
    Path("images/b").mkdir(parents=True)
    Path("a.png").rename("images/b/a.png")
    for name, text in texts.items():
        Path(f"{name}.txt").write_text(text)
    assert "File name too long" in said(hk("cub", "."))


@LONG
def test_a_class_has_it(hk, record: dict[str, Any], long: str) -> None:
    """The outline of a bird is looked for in a folder of the class's name, and is not there."""
    texts = {"images": "1 b/a.png", "image_class_labels": "1 1", "classes": f"1 {long}", "train_test_split": "1 1"}
    Path("images/b").mkdir(parents=True)
    Path("a.png").rename("images/b/a.png")
    for name, text in texts.items():
        Path(f"{name}.txt").write_text(text)
    (found,) = hk("cub", ".").records
    assert found["class"] == long
    assert "masks" not in found


@LONG
@pytest.mark.parametrize(("command", "exit_code"), [
    ("info {}.h5", 2), ("check {}.h5", 1), ("unpack {}-[ab].h5", 2), ("info {}-{{0..3}}.h5", 2),
])
def test_an_argument_names_no_shard(hk, long: str, command: str, exit_code: int) -> None:
    """Like any shard that is not there."""
    result = hk(*command.format(long).split())
    assert result.exit_code == exit_code
    assert long in result.stderr
    assert "expected" in result.stderr


@LONG
@pytest.mark.parametrize("command", [
    "pack {}.h5", "show --out {}.png", "resize --size 2 --out {}.h5", "resize --size 2 --out {}",
])
def test_an_output_cannot_have_it(hk, record: dict[str, Any], long: str, command: str) -> None:
    sentence = said(hk(*command.format(long).split(), stdin=[record]))
    assert "File name too long" in sentence
    assert long in sentence
