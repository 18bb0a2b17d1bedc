"""What a record may refer to as a mask: a path, the pixels of one value, a variable, COCO's run lengths."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_masks

from hkmap.errors import ImageError, RecordError
from hkmap.files.masks import decode_rle, merge_rles, read_fitting_mask, read_referred_mask, read_variable
from hkmap.records import masks_of

VALUES = np.array([[0, 1, 2, 2], [3, 0, 255, 2], [0, 0, 0, 2]], np.uint8)


@pytest.fixture
def level_image(tmp_path: Path) -> Path:
    Image.fromarray(VALUES).save(tmp_path / "levels.png")
    return tmp_path / "levels.png"


@pytest.mark.parametrize("value", [0, 2, 255, 77])
def test_a_value_selects_its_pixels(level_image: Path, value: int) -> None:
    assert np.array_equal(read_fitting_mask(f"{level_image}#{value}", (4, 3)), np.equal(VALUES, value))


def test_a_plain_path_is_all_that_is_not_black(level_image: Path) -> None:
    assert np.array_equal(read_referred_mask(str(level_image)), VALUES != 0)


def test_a_file_with_a_mark_in_its_name_is_a_file(level_image: Path, tmp_path: Path) -> None:
    odd = level_image.rename(tmp_path / "levels.png#2")
    assert np.array_equal(read_referred_mask(str(odd)), VALUES != 0)
    assert np.array_equal(read_referred_mask(f"{odd}#2"), VALUES == 2)


@pytest.mark.parametrize(("reference", "sentence"), [
    ("{}/gone.png#2", r"gone\.png: No such file"), ("{}/levels.png#two", r"levels\.png#two: No such file"),
    ("{}/levels.png#-2", r"levels\.png#-2: No such file"), ("#2", "#2: No such file"),
    ("{}/gone.mat#seg", r"gone\.mat: No such file or directory; expected an image file"),
])
def test_a_reference_to_nothing_is_named(level_image: Path, reference: str, sentence: str) -> None:
    with pytest.raises(ImageError, match=sentence):
        read_referred_mask(reference.format(level_image.parent))


def test_a_mask_of_another_size_is_named_by_its_reference(level_image: Path) -> None:
    with pytest.raises(ImageError, match=r"levels\.png#2: a mask of 4x3 pixels for an image of 3x4, expected the same"):
        read_fitting_mask(f"{level_image}#2", (3, 4))
    rle = {"size": [1, 2], "counts": [1, 1]}
    with pytest.raises(ImageError, match="run lengths: a mask of 2x1 pixels for an image of 3x4"):
        read_fitting_mask(merge_rles([rle]), (3, 4))


# .mat files


def test_a_variable_of_a_mat_file_is_a_mask(tmp_path: Path) -> None:
    for compressed in (False, True):
        path = tmp_path / f"{compressed}.mat"
        scipy.io.savemat(path, {"seg": VALUES, "bbox": {"left": 1.0}, "name": "bird"}, do_compression=compressed)
        assert np.array_equal(read_referred_mask(f"{path}#seg"), VALUES != 0)
        assert read_variable(path, "bbox") == {"left": 1.0}
    for name, sentence in {
        "eye": r'no variable "eye"; expected one of seg, bbox, name', "bbox": '"bbox" is no picture; expected numbers',
        "name": '"name" is no picture',
    }.items():
        with pytest.raises(ImageError, match=sentence):
            read_referred_mask(f"{path}#{name}")


def cells(*values: object) -> np.ndarray[Any, Any]:
    found = np.empty((len(values), 1), object)
    found[:, 0] = values
    return found


@pytest.mark.parametrize("compressed", [False, True])
def test_variables_have_the_plainest_form(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "x.mat"
    plain = {"number": 7.25, "text": "Großer Ani", "row": [1, 2, 3], "many": [{"a": 1.0}, {"a": 2.0}]}
    nested = {"files": cells("a/1.jpg", "b/22.jpg", "é"), "box": {"left": 1.0, "name": "x", "in": {"side": [1, 2]}}}
    scipy.io.savemat(path, {**plain, **nested, "image": VALUES}, do_compression=compressed)
    assert {name: read_variable(path, name) for name in ("number", "text", "many")} == {
        name: value for name, value in plain.items() if name != "row"}
    assert read_variable(path, "row").tolist() == [1, 2, 3]
    assert list(read_variable(path, "files")) == ["a/1.jpg", "b/22.jpg", "é"]
    box = read_variable(path, "box")
    assert (box["left"], box["name"], box["in"]["side"].tolist()) == (1.0, "x", [1, 2])
    assert np.array_equal(read_variable(path, "image"), VALUES)


@pytest.mark.parametrize("data", [b"", b"text", bytes(300), b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"])
def test_what_is_no_mat_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.mat"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"x\.mat: no \.mat file \(.+\); expected MATLAB's version 4 to 7, save it"):
        read_variable(path, "seg")


def test_a_mat_file_of_other_contents_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    for value in (np.eye(2) * 1j, scipy.sparse.eye(3), {"a": {"a": 1.0}}, np.zeros((2, 3, 4))):
        scipy.io.savemat(path, {"seg": value})
        with pytest.raises(ImageError, match=r'x\.mat: "seg" is no picture; expected numbers in rows and columns'):
            read_referred_mask(f"{path}#seg")
    scipy.io.savemat(path, {"seg": VALUES})
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ImageError, match=r"x\.mat: no \.mat file"):
        read_variable(path, "seg")


def test_a_mat_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.mat"
    scipy.io.savemat(path, {"seg": np.zeros((3000, 3000), np.uint8)}, do_compression=True)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr("hkmap.files.masks.MAX_PIXELS", 1_000_000)
    with pytest.raises(ImageError, match=r"no \.mat file \(seg has 9,000,000 numbers\)"):
        read_variable(path, "seg")


# run lengths


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0, 0.02, 0.5, 0.98, 1]))
def test_decoding_is_that_of_pycocotools(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    encoded = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    rle = {"size": [height, width], "counts": encoded["counts"].decode()}
    assert np.array_equal(decode_rle(rle), mask)
    assert np.array_equal(decode_rle(rle), coco_masks.decode(encoded) > 0)
    assert merge_rles([rle, rle]) == rle


def test_long_runs_are_read(level_image: Path) -> None:
    mask = np.zeros((4000, 5000), np.uint8, order="F")
    mask[7, 4321] = mask[-1, -1] = 1
    rle = coco_masks.encode(mask)
    assert np.array_equal(decode_rle({"size": [4000, 5000], "counts": rle["counts"].decode()}), mask > 0)


@pytest.mark.parametrize(("rle", "sentence"), [
    ({"size": [3], "counts": "1"}, r"run lengths of the size \[3\]; expected \[height, width\]"),
    ({"size": [3, True], "counts": "1"}, "run lengths of the size"), ({"size": [3, 0], "counts": "1"}, "of the size"),
    ({"size": [60_000, 60_000], "counts": "1"}, "of 60000x60000 pixels; expected at most 268,435,456 in all"),
    ({"size": [3, 4], "counts": ""}, 'run lengths ""; expected the text of a COCO mask'),
    ({"size": [3, 4], "counts": "é"}, "expected the text of a COCO mask"),
    ({"size": [3, 4], "counts": "oooooooo1"}, "one longer than any image"),
    ({"size": [3, 4], "counts": "Q"}, 'run lengths "Q"; expected the text of a COCO mask'),
    ({"size": [3, 4], "counts": "6"}, "run lengths for 6 pixels of 4x3; expected to fill them exactly"),
    ({"size": [3, 4], "counts": [13, -1]}, r"lengths \[13, -1\]; expected a text, or a list of whole numbers from 0"),
    ({"size": [3, 4], "counts": [1.5]}, "expected a text, or a list"),
    ({"size": [3, 4], "counts": None}, "run lengths None; expected a text, or a list"),
    ({"size": [3, 4], "counts": [10**30]}, "expected a text, or a list"),
])
def test_run_lengths_that_would_not_fit_never_reach_the_decoder(rle: dict[str, Any], sentence: str) -> None:
    for function in (decode_rle, lambda one: merge_rles([one])):
        with pytest.raises(ImageError, match=sentence):
            function(rle)


def test_masks_of_two_sizes_are_not_merged() -> None:
    with pytest.raises(ImageError, match=r"run lengths of \[2, 1\] beside \[1, 2\]; expected one \[height, width\]"):
        merge_rles([{"size": [1, 2], "counts": [2]}, {"size": [2, 1], "counts": [2]}])


def test_without_pycocotools_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ImageError, match=r"need pycocotools; pip install 'hkmap\[coco\]'"):
        merge_rles([{"size": [1, 2], "counts": [2]}])


# in a record


def test_a_record_may_hold_references_of_every_kind() -> None:
    masks = {"a": "x.png", "b": "x.png#3", "c": "x.mat#seg", "d": {"size": [3, 4], "counts": "<"}}
    assert masks_of({"id": "7", "masks": masks}) == masks
    assert masks_of({"id": "7", "unknown": masks}, "unknown") == masks
    for wrong in ({"size": [3, 4]}, {"counts": "1"}, ["x.png"], 7, {"size": [3, 4], "counts": [12]}):
        with pytest.raises(RecordError, match=r'record "7": unknown is .*; expected an object of names and paths'):
            masks_of({"id": "7", "unknown": {"a": wrong}}, "unknown")
