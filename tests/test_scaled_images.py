"""Images that a shard holds in another size than their record's: annotations and masks follow the record's `size`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hkmap.files.masks import read_mask
from hkmap.stream.references import load_map, read_image

pytestmark = pytest.mark.usefixtures("here")
Hk = Callable[..., Any]

SQUARE = np.zeros((80, 100), bool)
SQUARE[20:60, 10:50] = True
MARKS: dict[str, Any] = {
    "masks": {"a": "mask.png"}, "unknown": {"a": "mask.png"}, "dont_look": {"a": "mask.png"},
    "polygons": [{"points": [[10, 20], [50, 20], [50, 60], [10, 60]], "label": "a"}],
    "boxes": [{"x": 10, "y": 20, "width": 40, "height": 40, "label": "a"}],
    "bubbles": [{"x": 30, "y": 40, "radius": 20}], "points": [{"x": 30, "y": 40}],
}


@pytest.fixture
def shard(hk: Hk) -> Callable[..., str]:
    """Pack one picture of 100x80 pixels, red in a square, as 40x30 pixels; return what `unpack` prints."""

    def packed(**record: Any) -> str:
        cv2.imwrite("x.png", SQUARE[..., None] * np.uint8([0, 0, 255]))
        cv2.imwrite("mask.png", SQUARE * np.uint8(255))
        given = {"id": "x", "image": "x.png", "size": [100, 80], "label": 0, "class": "red", **record}
        given = {key: value for key, value in given.items() if value is not None}
        assert hk("pack", "x.h5", "--store", "pixels", "--size", "40x30", "--overwrite", stdin=[given]).exit_code == 0
        return str(hk("unpack", "x.h5").stdout)

    return packed


@pytest.mark.parametrize("key", MARKS)
def test_show_draws_them_where_the_picture_has_them(hk: Hk, shard: Callable[..., str], key: str) -> None:
    """In a cell of 100 pixels the picture is that of the record: 100x80, not 100x75."""
    for name, mark in (("plain", {}), ("marked", {key: MARKS[key]})):
        unpacked = shard(**mark)
        assert hk("show", "--cell", 100, "--out", f"{name}.png", stdin=unpacked).exit_code == 0
    plain, marked = (cv2.imread(f"{name}.png")[19:99, :100].astype(int) for name in ("plain", "marked"))
    y, x = np.nonzero((plain != marked).any(axis=2) & (np.arange(80) >= 17)[:, None])       # below the name of a mask
    assert ((x.min() + x.max()) / 2, (y.min() + y.max()) / 2) == pytest.approx((30, 40), abs=1.5)
    assert np.ptp(x) == pytest.approx(40 if key != "points" else 13, abs=4)


@pytest.mark.parametrize("key", MARKS)
def test_check_finds_nothing_odd(hk: Hk, shard: Callable[..., str], key: str) -> None:
    ignored = ("--ignore", "no-annotation")
    assert hk("check", *ignored, stdin=shard(**{key: MARKS[key]})).records == [{"records": 1, "findings": []}]


def test_crop_brings_the_picture_back_to_the_size_of_its_annotations(hk: Hk, shard: Callable[..., str]) -> None:
    np.save("map.npy", np.zeros((8, 10), np.float32))
    unpacked = shard(map="map.npy", **MARKS)
    result = hk("crop", "--crop", "5,10,60,70", "--out", "c", stdin=unpacked)
    assert result.exit_code == 0, result.stderr
    (found,) = result.records
    assert found["size"] == [60, 70]
    seen = SQUARE[10:80, 5:65]
    for key in ("masks", "unknown", "dont_look"):
        assert (read_mask(Path(found[key]["a"])) == seen).all()
    assert found["boxes"] == [{"x": 5, "y": 10, "width": 40, "height": 40, "label": "a"}]
    image = read_image(found["image"])
    assert image.shape == (70, 60, 3)
    assert ((image[..., 0] > 127) != seen).mean() < 0.06       # its edge is soft
    assert load_map(found["map"]).shape == (8, 10)
    assert hk("check", "--ignore", "empty-map", stdin=result.stdout).records == [{"records": 1, "findings": []}]


def test_masks2map_compares_them_with_the_records_size(hk: Hk, shard: Callable[..., str]) -> None:
    unpacked = shard(masks=MARKS["masks"], polygons=MARKS["polygons"])
    hk("masks2map", "--size", "100x80", "--out", "m", stdin=unpacked)
    assert (load_map("m/x.npy") == SQUARE).all()


@pytest.mark.parametrize("command", [["show", "--out", "a.png"], ["crop", "--center-crop", "1", "--out", "c"]])
def test_coordinates_without_a_size_are_refused(hk: Hk, shard: Callable[..., str], command: list[str]) -> None:
    """They are those of the picture before it was packed, which nobody knows any more."""
    unpacked = shard(size=None, bubbles=MARKS["bubbles"])
    result = hk(*command, stdin=unpacked)
    assert result.exit_code == 1
    assert 'record "x": bubbles without a size, beside an image that was scaled when it was packed' in result.stderr
    assert hk(*command, stdin=shard(size=None)).exit_code == 0


def test_a_size_beyond_any_image_is_refused(hk: Hk, shard: Callable[..., str]) -> None:
    result = hk("crop", "--center-crop", 1, "--out", "c", stdin=shard(size=[100_000, 80_000]))
    assert result.exit_code == 1
    assert 'record "x": its size is 100000x80000, expected at most 268,435,456 pixels in all' in result.stderr
