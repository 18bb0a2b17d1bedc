"""The filters that make and change maps: `bubbles2map`, `masks2map` and `resize`, by the whole command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hkmap.maps.kde import kde_map
from hkmap.stream.references import load_map

BUBBLES = [
    {"x": 10, "y": 12, "radius": 6}, {"x": 30, "y": 9, "radius": 9, "weight": 2}, {"x": 20, "y": 30, "radius": 3},
]
TABLE = np.array([[10, 12, 6, 1], [30, 9, 9, 2], [20, 30, 3, 1]], float)


def bubble_record(identifier: str = "7", **more: Any) -> dict[str, Any]:
    return {"id": identifier, "size": [50, 40], "bubbles": BUBBLES, "note": "kept", **more}


def save_mask(path: str, *spots: tuple[int, int], size: tuple[int, int] = (60, 90)) -> str:
    mask = np.zeros(size, np.uint8)
    for y, x in spots:
        mask[y : y + 10, x : x + 10] = 255
    assert cv2.imwrite(path, mask)
    return path


@pytest.fixture
def masks(here: Path) -> dict[str, str]:
    return {
        "EX": save_mask("EX.png", (0, 0)),
        "SE": save_mask("SE.png", (0, 0), (30, 40)),
        "MA": save_mask("MA.png", (50, 80)),
        "OD": save_mask("OD.png", (20, 20)),
    }


# bubbles2map


@pytest.mark.parametrize(
    ("options", "bandwidth"),
    [([], "scott"), (["--bandwidth", "radius"], "radius"), (["--bandwidth", 4.5], 4.5)],
)
def test_bubbles2map_saves_the_density_and_refers_to_it(hk, here: Path, options: list, bandwidth: str | float) -> None:
    result = hk("bubbles2map", "--out", "maps", *options, stdin=[bubble_record()])
    assert result.exit_code == 0
    assert result.records == [bubble_record(map="maps/7.npy")]
    expected = kde_map(TABLE[:, :2], (50, 40), (224, 224), bandwidth=bandwidth, radii=TABLE[:, 2], weights=TABLE[:, 3])
    assert (load_map("maps/7.npy") == expected).all()


def test_bubbles2map_draws_bubbles_before_points(hk, here: Path) -> None:
    points = [{"x": 40, "y": 30, "weight": 300}]
    record = bubble_record(points=points)
    default = hk("bubbles2map", "--out", "a", stdin=[record]).records[0]
    assert (load_map(default["map"]) == kde_map(TABLE[:, :2], (50, 40), (224, 224), weights=TABLE[:, 3])).all()
    del record["bubbles"]
    only = hk("bubbles2map", "--out", "c", stdin=[record]).records[0]
    expected = kde_map(np.array([[40.0, 30]]), (50, 40), (224, 224))
    assert (load_map(only["map"]) == expected).all()


def test_a_gaze_point_weighs_its_duration(hk, here: Path) -> None:
    points = [{"x": 10, "y": 20, "weight": 400}, {"x": 40, "y": 20, "weight": 100}]
    record = {"id": "7", "size": [50, 40], "points": points}
    reference = hk("bubbles2map", "--out", "a", "--bandwidth", 3, "--size", "50x40", stdin=[record]).records[0]["map"]
    values = load_map(reference)
    assert values[20, 40] / values[20, 10] == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize(("record", "options", "message"), [
    ({"id": "7", "size": [50, 40]}, [], "has no bubbles and no points; expected an annotation; --missing pass"),
    (bubble_record(bubbles=[]), [], "its annotation is empty, nobody marked anything; expected a bubble; --empty"),
    ({"id": "7", "size": [50, 40], "points": []}, [], "its annotation is empty, nobody marked anything"),
    (bubble_record(bubbles=[{"x": 1}]), [], "bubbles[0].y is None; expected a number of pixels"),
    (
        {"id": "7", "size": [50, 40], "points": [{"x": 1, "y": 2}]}, ["--bandwidth", "radius"],
        'record "7": bandwidth radius: needs a radius above 0 for every bubble; use scott, fixed or a number',
    ),
    (
        bubble_record(bubbles=[{"x": 900, "y": 900, "radius": 5}]), [],
        'record "7": all 1 bubbles lie far off the image of 50x40 pixels, the first at (900, 900); is the frame',
    ),
    (
        bubble_record(bubbles=BUBBLES * 2), ["--normalise", "none"],
        "the sum of the bubbles reaches 4.06, expected at most 1 where nothing is normalised; lower their weights",
    ),
    (
        bubble_record(bubbles=[{"x": 9, "y": 9, "radius": 5, "weight": 0}]), ["--empty", "zeros"],
        'record "7": all 1 bubbles have weight 0',
    ),
])
def test_what_bubbles2map_cannot_draw_is_an_error(hk, here: Path, record: dict, options: list, message: str) -> None:
    result = hk("bubbles2map", "--out", "maps", *options, stdin=[record])
    assert result.exit_code == 1
    assert message in result.stderr
    assert message in result.records[-1]["error"]
    assert not list(here.rglob("*.npy"))


def test_not_annotated_and_nothing_marked_are_two_things(hk, here: Path) -> None:
    records = [{"id": "not annotated", "size": [50, 40]}, bubble_record("nothing marked", bubbles=[])]
    arguments = ("bubbles2map", "--size", 14, "--missing", "pass")
    assert hk(*arguments, "--empty", "pass", "--out", "a", stdin=records).records == records
    first, second = hk(*arguments, "--empty", "zeros", "--out", "b", stdin=records).records
    assert first == records[0]
    assert second == {**records[1], "map": "b/nothing%20marked.npy"}
    values = load_map(second["map"])
    assert values.shape == (14, 14)
    assert not values.any()


def test_bad_records_can_be_skipped(hk, here: Path) -> None:
    records = [bubble_record("a"), bubble_record("b", bubbles=[]), bubble_record("c")]
    result = hk("bubbles2map", "--out", "m.h5", "--on-error", "skip", "--max-errors", 1, stdin=records)
    assert result.exit_code == 0
    assert [(record["id"], record["map"]) for record in result.records] == [("a", "m.h5#0"), ("c", "m.h5#1")]
    assert 'skipped: record "b"' in result.stderr


# masks2map


def expected_map(*spots: tuple[int, int, float], size: tuple[int, int] = (6, 9)) -> np.ndarray:
    """Spots of 10x10 pixels are the cells of a 6x9 map."""
    values = np.zeros(size, np.float32)
    for y, x, value in spots:
        values[y, x] = value
    return values


@pytest.mark.parametrize(("options", "expected"), [
    ([], expected_map((0, 0, 1), (3, 4, 1), (5, 8, 1), (2, 2, 1))),
    (["--lesion", "EX"], expected_map((0, 0, 1))),
    (["--lesion", "MA", "--lesion", "EX=0.5"], expected_map((5, 8, 1), (0, 0, 0.5))),
    (["--lesion", "SE=0.25", "--lesion", "EX=0.5"], expected_map((0, 0, 0.5), (3, 4, 0.25))),
    (["--lesion", "SE=0.25", "--normalise", "max"], expected_map((0, 0, 1), (3, 4, 1))),
    (["--lesion", "SE=0.25", "--pooling", "max"], expected_map((0, 0, 0.25), (3, 4, 0.25))),
])
def test_masks2map_pools_the_chosen_lesions(hk, masks: dict[str, str], options: list, expected: np.ndarray) -> None:
    record = {"id": "7", "masks": masks, "size": [90, 60], "note": "kept"}
    result = hk("masks2map", "--out", "maps", "--size", "9x6", *options, stdin=[record])
    assert result.records == [{**record, "map": "maps/7.npy"}]
    assert load_map("maps/7.npy") == pytest.approx(expected, abs=1e-6)


def test_the_size_of_the_image_is_read_where_the_record_has_none(hk, masks: dict[str, str]) -> None:
    cv2.imwrite("good.png", np.zeros((60, 90, 3), np.uint8))
    cv2.imwrite("bad.png", np.zeros((90, 60, 3), np.uint8))
    good = hk("masks2map", "--out", "a", stdin=[{"id": "7", "image": "good.png", "masks": masks}])
    assert good.exit_code == 0
    bad = hk("masks2map", "--out", "b", stdin=[{"id": "7", "image": "bad.png", "masks": masks}])
    assert bad.exit_code == 1
    assert "EX.png: a mask of 90x60 pixels for an image of 60x90, expected the same size; turn the mask" in bad.stderr


def test_the_image_may_be_a_row_of_a_shard(hk, masks: dict[str, str]) -> None:
    cv2.imwrite("a.png", np.zeros((60, 90, 3), np.uint8))
    assert hk("pack", "shard.h5", stdin=[{"id": "7", "image": "a.png"}]).exit_code == 0
    record = {"id": "7", "image": "shard.h5#0", "masks": masks}
    assert hk("masks2map", "--out", "maps", stdin=[record]).records == [{**record, "map": "maps/7.npy"}]
    assert hk("show", "--out", "sheet.png", stdin=[record]).records == [{"sheet": "sheet.png", "records": 1}]


def test_not_annotated_and_no_lesion_are_two_things(hk, here: Path) -> None:
    black = save_mask("black.png")
    records: list[dict[str, Any]] = [
        {"id": "none", "size": [90, 60]},
        {"id": "empty", "size": [90, 60], "masks": {}},
        {"id": "black", "size": [90, 60], "masks": {"EX": black}},
    ]
    arguments = ("masks2map", "--missing", "pass", "--size", 7)
    made = hk(*arguments, "--out", "a", stdin=records).records
    assert made == [records[0], {**records[1], "map": "a/empty.npy"}, {**records[2], "map": "a/black.npy"}]
    assert not load_map("a/empty.npy").any()
    assert load_map("a/black.npy").shape == (7, 7)
    assert hk(*arguments, "--empty", "pass", "--out", "b", stdin=records).records == records
    for record in records[1:]:
        refused = hk(*arguments, "--empty", "error", "--out", "c", stdin=[record])
        assert refused.exit_code == 1
        assert "nothing is marked by its masks or polygons; expected a mark; --empty zeros draws" in refused.stderr


@pytest.mark.parametrize(("record", "message"), [
    ({"id": "7"}, 'record "7": has no masks and no polygons; expected an annotation; --missing pass'),
    ({"id": "7", "masks": {"EX": 3}}, "expected an object of names and paths"),
    ({"id": "7", "masks": {"EX": "EX.png"}}, 'record "7": has neither size nor image'),
    ({"id": "7", "masks": {"EX": "EX.png"}, "image": 4}, "image is 4; expected a path or a reference"),
    ({"id": "7", "masks": {"EX": "EX.png"}, "size": [60, 90]}, "a mask of 90x60 pixels for an image of 60x90"),
    ({"id": "7", "masks": {"EX": "gone.png"}, "size": [60, 90]}, "gone.png"),
])
def test_what_masks2map_cannot_draw_is_an_error(hk, masks: dict, here: Path, record: dict, message: str) -> None:
    result = hk("masks2map", "--out", "maps", stdin=[record])
    assert result.exit_code == 1
    assert message in result.stderr
    assert not list(here.rglob("*.npy"))


def test_a_lesion_that_no_record_has_is_an_error_at_the_end(hk, masks: dict[str, str], here: Path) -> None:
    records = [{"id": "7", "size": [90, 60], "masks": masks}, {"id": "8", "size": [90, 60], "masks": {}}]
    result = hk("masks2map", "--out", "maps.h5", "--lesion", "EX", "--lesion", "ex", stdin=records)
    assert result.exit_code == 1
    assert "--lesion ex: no record has this name; the names are EX, MA, OD, SE" in result.stderr
    assert list(result.records[-1]) == ["error"]
    assert not (here / "maps.h5").exists()


@pytest.mark.parametrize("command", ["bubbles2map", "boxes2map", "masks2map"])
def test_a_new_map_has_not_the_certainty_and_annotators_of_an_old_one(hk, here: Path, command: str) -> None:
    marked = {"bubbles": BUBBLES, "points": BUBBLES, "boxes": [], "polygons": []}
    record = {"id": "7", "size": [50, 40], "map": "old.npy", **marked, "note": "kept"}
    old = {**record, "certainty": "c.npy", "annotator_maps": {"3": "a.npy"}}
    assert hk(command, "--out", "maps", stdin=[old]).records == [{**record, "map": "maps/7.npy"}]


# resize


@pytest.mark.parametrize(("reference", "message"), [
    (5, 'record "7": map is 5; expected a path or a reference'),
    ("gone.npy", "gone.npy"),
    ("nan.npy", "nan.npy: holds NaN"),
    ("large.npy", "large.npy: values span [0, 255], expected [0, 1]"),
])
def test_a_map_that_is_none_is_an_error(hk, here: Path, reference: object, message: str) -> None:
    np.save("nan.npy", np.full((4, 4), np.nan, np.float32))
    np.save("large.npy", np.array([[0, 255]], np.float32))
    result = hk("resize", "--size", 2, "--out", "maps", stdin=[{"id": "7", "map": reference}])
    assert result.exit_code == 1
    assert message in result.stderr
