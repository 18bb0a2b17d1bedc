"""The contact sheet: what is drawn where, and `hkmap show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hkmap.errors import RecordError
from hkmap.report.sheets import COLOURS, Entry, annotated, contact_sheet, draw_tile, overlay

GREY = np.full((90, 120, 3), 128, np.uint8)


def record(**annotations: Any) -> dict[str, Any]:
    return {"id": "7", "size": [240, 180], **annotations}


def changed(picture: np.ndarray, before: np.ndarray = GREY) -> np.ndarray:
    return (picture != before).any(axis=2)


def extent(marked: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom edge of the marked pixels, in continuous pixels."""
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


# what is drawn where: the frame is twice the picture, and a line three pixels thick


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({"bubbles": [{"x": 100, "y": 60, "radius": 20}]}, (40, 20, 60, 40)),
        ({"boxes": [{"x": 40, "y": 20, "width": 60, "height": 30}]}, (20, 10, 50, 25)),
        ({"polygons": [{"points": [[40, 20], [100, 20], [40, 50]]}]}, (20, 10, 50, 25)),
        ({"points": [{"x": 101, "y": 61}]}, (44.5, 24.5, 56.5, 36.5)),      # a dot of radius 5 with a rim of 1
    ],
)
def test_annotations_lie_where_the_record_says(annotations: dict, expected: tuple[float, ...]) -> None:
    drawn = extent(changed(annotated(GREY, record(**annotations), {})))
    assert drawn == pytest.approx(expected, abs=4.01)      # cv2's soft edges
    left, top, right, bottom = drawn
    assert (left + right) / 2 == pytest.approx((expected[0] + expected[2]) / 2, abs=0.51)
    assert (top + bottom) / 2 == pytest.approx((expected[1] + expected[3]) / 2, abs=0.51)


def test_a_dot_on_a_pixels_centre_is_drawn_round_that_pixel() -> None:
    marked = changed(annotated(GREY, {"id": "7", "points": [{"x": 40.5, "y": 30.5}]}, {}))
    left, top, right, bottom = extent(marked)
    assert (left + right, top + bottom) == (81, 61)


def test_the_drawing_turns_with_the_image() -> None:
    plain = {"bubbles": [{"x": 70, "y": 60, "radius": 30}], "points": [{"x": 200, "y": 50, "weight": 2}]}
    mirrored = {"bubbles": [{"x": 170, "y": 60, "radius": 30}], "points": [{"x": 40, "y": 50, "weight": 2}]}
    one, two = (annotated(GREY, record(**annotations), {}) for annotations in (plain, mirrored))
    assert np.abs(one[:, ::-1].astype(int) - two).mean() < 0.2
    assert changed(one).sum() == pytest.approx(changed(two).sum(), abs=12)


def test_a_dots_area_follows_its_weight() -> None:
    def area(weight: float) -> int:
        dots = [{"x": 60, "y": 60, "weight": weight}, {"x": 200, "y": 60, "weight": 9}]
        return int(changed(annotated(GREY, record(points=dots), {}))[:, :60].sum())

    assert area(0) < area(1) < area(9)


def test_a_small_dot_is_drawn_over_a_large_one() -> None:
    dots = [{"x": 100, "y": 60, "weight": 1}, {"x": 100, "y": 60, "weight": 9}]
    one, two = (annotated(GREY, record(points=points), {}) for points in (dots, dots[::-1]))
    assert (one == two).all()
    assert len(np.unique(one[29:31, 44:56].reshape(-1, 3), axis=0)) > 2      # the small one's rim shows


def test_annotations_off_the_image_and_empty_ones_draw_nothing() -> None:
    off = {"bubbles": [{"x": 1e12, "y": -1e12, "radius": 5}], "points": [{"x": -500, "y": 9e9}]}
    assert not changed(annotated(GREY, record(**off), {})).any()
    empty: dict[str, Any] = {"bubbles": [], "points": [], "boxes": [], "polygons": []}
    assert not changed(annotated(GREY, record(**empty), {})).any()


def test_a_mask_is_outlined_and_named_even_where_it_is_a_pixel() -> None:
    mask = np.zeros((900, 1200), bool)
    mask[500, 700] = True
    picture = annotated(GREY, record(), {"EX": mask})
    assert changed(picture)[50, 70]
    assert changed(picture)[:20, :30].any()
    assert not changed(picture)[20:45].any()


def test_the_image_is_left_alone() -> None:
    image = GREY.copy()
    annotated(image, record(bubbles=[{"x": 100, "y": 60, "radius": 20}]), {"EX": np.ones((9, 12), bool)})
    overlay(image, np.ones((3, 3), np.float32))
    assert (image == GREY).all()


def test_the_overlay_is_brightest_where_the_map_is() -> None:
    values = np.zeros((3, 4), np.float32)
    values[0, 3] = 1
    picture = overlay(GREY, values)
    assert picture.shape == GREY.shape
    brightness = picture.sum(axis=2, dtype=int)
    assert np.unravel_index(brightness.argmax(), brightness.shape)[0] < 30
    assert np.unravel_index(brightness.argmax(), brightness.shape)[1] >= 90
    low, high = picture[80, 10].astype(int), picture[10, 110].astype(int)
    assert high[0] > high[2]      # yellow
    assert low[2] > low[1]        # dark blue


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"boxes": 5}, "boxes is 5; expected a list of objects with x, y, width and height"),
        ({"boxes": [{"x": 1, "y": 2, "width": -1, "height": 3}]}, r"boxes\[0\] is .* expected an object with the num"),
        ({"boxes": ["a"]}, r"boxes\[0\] is a; expected an object with the numbers x, y, width and height"),
        ({"polygons": {}}, "polygons is {}; expected a list of objects with points"),
        ({"polygons": [[1, 2]]}, r"polygons\[0\] is .*; expected an object with points, a list of \[x, y\]"),
        ({"polygons": [{"points": [[1, "2"]]}]}, r"polygons\[0\] is"),
        ({"points": [{"x": 1}]}, r"points\[0\].y is None"),
    ],
)
def test_an_annotation_that_is_none_is_an_error(annotations: dict, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        annotated(GREY, record(**annotations), {})


def test_tiles_of_all_shapes_make_one_sheet() -> None:
    shapes = [(90, 120), (120, 90), (4, 400), (48, 48), (300, 2)]
    values = np.zeros((7, 7), np.float32)
    maps = {"map": values, "attention": None}
    tiles = [draw_tile(Entry(record(), np.zeros((*shape, 3), np.uint8), maps, {}), 100) for shape in shapes]
    assert {tile.shape[1] for tile in tiles} == {3 * 104}
    for columns, across in ((1, 1), (2, 2), (5, 5), (9, 5)):
        sheet = contact_sheet(tiles, columns)
        assert sheet.dtype == np.uint8
        assert sheet.shape[1:] == (across * 312, 3)


# the command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("bird.png", GREY)
    cv2.imwrite("mask.png", np.eye(90, 120, dtype=np.uint8))
    np.save("map.npy", np.eye(14, dtype=np.float32))
    np.save("attention.npy", np.full((7, 7), 0.5, np.float32))
    return tmp_path


def full_record(identifier: str = "7") -> dict[str, Any]:
    return record(
        id=identifier, image="bird.png", map="map.npy", attention="attention.npy", masks={"EX": "mask.png"}, label=3,
        **{"class": "Großer Ani", "prediction": 5, "confidence": 0.875}, points=[{"x": 9, "y": 9}],
    )


def test_show_writes_a_sheet_and_says_so(hk, here: Path) -> None:
    result = hk("show", "--out", "sheets/a.png", "--cell", 60, stdin=[full_record(), full_record("8")])
    assert result.exit_code == 0
    assert result.records == [{"sheet": "sheets/a.png", "records": 2}]
    assert cv2.imread("sheets/a.png").shape[1] == 2 * 2 * 64


def test_the_image_keeps_its_colours(hk, here: Path) -> None:
    cv2.imwrite("red.png", np.full((60, 60, 3), (0, 0, 255), np.uint8))
    hk("show", "--out", "a.png", "--cell", 60, stdin=[{"id": "7", "image": "red.png"}])
    assert cv2.imread("a.png")[30, 30].tolist() == [0, 0, 255]


@pytest.mark.parametrize(("keys", "panels"), [([], 2), (["attention"], 2), (["map", "attention", "other"], 4)])
def test_one_overlay_for_each_map(hk, here: Path, keys: list[str], panels: int) -> None:
    options = [word for key in keys for word in ("--map", key)]
    assert hk("show", "--out", "a.png", "--cell", 60, *options, stdin=[full_record()]).exit_code == 0
    assert cv2.imread("a.png").shape[1] == panels * 64


def test_long_captions_are_cut(hk, here: Path) -> None:
    records = [full_record("long/" * 200), full_record("line\nbreak")]
    assert hk("show", "--out", "a.png", "--cell", 60, stdin=records).exit_code == 0
    assert cv2.imread("a.png").shape[1] == 256


def test_what_is_beyond_the_limit_is_counted(hk, here: Path) -> None:
    records = [full_record(str(number)) for number in range(5)]
    result = hk("show", "--out", "a.png", "--limit", 2, "--columns", 1, "--cell", 60, stdin=records)
    assert result.records == [{"sheet": "a.png", "records": 2}]
    assert "3 records left out of the sheet; raise --limit to see them" in result.stderr
    assert "left out" not in hk("show", "--out", "b.png", "--limit", 5, stdin=records).stderr


def test_a_failure_upstream_leaves_no_sheet(hk, here: Path) -> None:
    lines = json.dumps(full_record()) + "\n" + json.dumps(full_record("8")) + '\n{"error": "no disk"}\n'
    result = hk("show", "--out", "a.png", "--limit", 1, stdin=lines)
    assert result.exit_code == 1
    assert "the stage before failed: no disk" in result.stderr
    assert not (here / "a.png").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, 'record "7": has no image to show; expected a path, or a row of a shard'),
        ({"image": "gone.png"}, "gone.png"),
        ({"map": "gone.npy"}, "gone.npy"),
        ({"map": 7}, "map is 7; expected a path or a reference"),
        ({"masks": ["a"]}, "expected an object of names and paths"),
        ({"masks": {"EX": "small.png"}}, "small.png: a mask of 9x8 pixels for an image of 120x90"),
        ({"boxes": 5}, "boxes is 5"),
        ({"label": "x"}, "label is x"),
    ],
)
def test_what_cannot_be_shown_is_an_error(hk, here: Path, change: dict[str, Any], message: str) -> None:
    cv2.imwrite("small.png", np.zeros((8, 9), np.uint8))
    records = [full_record() | change, full_record("8")]
    result = hk("show", "--out", "a.png", stdin=records)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (here / "a.png").exists()
    skipping = hk("show", "--out", "a.png", "--on-error", "skip", "--max-errors", 1, stdin=records)
    assert skipping.records == [{"sheet": "a.png", "records": 1}]


def test_no_record_that_can_be_drawn(hk, here: Path) -> None:
    result = hk("show", "--out", "a.png", "--on-error", "skip", stdin=[{"id": "7"}])
    assert result.exit_code == 1
    assert "a.png: no record could be drawn" in result.stderr


def test_the_output_is_a_png_and_is_not_replaced_unasked(hk, here: Path) -> None:
    wrong = hk("show", "--out", "a.jpg", stdin=[full_record()])
    assert wrong.exit_code == 2
    assert "a.jpg: expected a name that ends in .png" in wrong.stderr
    (here / "a.png").write_bytes(b"mine")
    refused = hk("show", "--out", "a.png", stdin=[full_record()])
    assert refused.exit_code == 1
    assert "a.png: exists already" in refused.stderr
    assert (here / "a.png").read_bytes() == b"mine"
    assert hk("show", "--out", "a.png", "--overwrite", stdin=[full_record()]).exit_code == 0


def test_kinds_of_annotation_have_colours_of_their_own() -> None:
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_gaze_lies_on_real_birds(hk, here: Path, data_root: Path) -> None:
    root = data_root / "cub10"
    found = hk("cub", root / "CUB_200_2011", "--gaze", root / "gaze" / "Fixation_run1.txt").records
    records = [item for item in found if item.get("points") and item.get("boxes")][:12]
    mapped = hk("bubbles2map", "--bandwidth", "fixed", "--size", 28, "--out", "maps", stdin=records).records
    shares = []
    for item in mapped:
        values, (width, height), box = np.load(item["map"]), item["size"], item["boxes"][0]
        columns = slice(int(box["x"] * 28 / width), -int(-(box["x"] + box["width"]) * 28 // width))
        rows = slice(int(box["y"] * 28 / height), -int(-(box["y"] + box["height"]) * 28 // height))
        inside = values[rows, columns]
        shares.append(inside.mean() / values.mean())
    assert np.median(shares) > 1.5
    assert hk("show", "--out", "a.png", "--cell", 80, stdin=mapped).records == [{"sheet": "a.png", "records": 12}]
