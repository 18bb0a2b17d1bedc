"""What masks2map and boxes2map draw of a record: kinds, names and annotators, and what they leave out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest

from hkmap.maps.boxes import boxes_map
from hkmap.maps.polygons import coverage, polygons_map
from hkmap.stream.references import load_annotators, load_map

pytestmark = pytest.mark.usefixtures("here")
Hk = Callable[..., Any]

# In a map of 4x4 cells of 10x10 pixels: a mask on cell (0, 0), a polygon on (1, 1), a box on (2, 2).
FRAME, SIZE = (40, 40), (4, 4)
CORNERS = [[10, 10], [20, 10], [20, 20], [10, 20]]


def record(**more: Any) -> dict[str, Any]:
    mask = np.zeros((40, 40), np.uint8)
    mask[:10, :10] = 255
    cv2.imwrite("EX.png", mask)
    return {
        "id": "7", "size": [40, 40], "masks": {"EX": "EX.png"}, "mask_users": {"EX": "ann"},
        "polygons": [{"points": CORNERS, "label": "SE", "user": "bob"}],
        "boxes": [{"x": 20, "y": 20, "width": 10, "height": 10, "label": "EX", "user": 3}], **more,
    }


def cells(values: np.ndarray) -> list[tuple[int, int, float]]:
    return [(int(y), int(x), round(float(values[y, x]), 6)) for y, x in np.argwhere(values)]


@pytest.mark.parametrize(("options", "expected"), [
    ([], [(0, 0, 1), (1, 1, 1)]),
    (["--from", "masks"], [(0, 0, 1)]),
    (["--from", "boxes, polygons"], [(1, 1, 1), (2, 2, 1)]),
    (["--from", "polygons,boxes,masks"], [(0, 0, 1), (1, 1, 1), (2, 2, 1)]),
    (["--from", "masks,polygons,boxes", "--pooling", "max"], [(0, 0, 1), (1, 1, 1), (2, 2, 1)]),
    (["--from", "masks,polygons,boxes", "--lesion", "EX=0.5"], [(0, 0, 0.5), (2, 2, 0.5)]),
])
def test_one_map_comes_from_the_kinds_that_are_named(hk: Hk, options: list[str], expected: list) -> None:
    result = hk("masks2map", "--size", 4, "--out", "m", *options, stdin=[record()])
    assert (result.exit_code, result.stderr) == (0, "")
    assert cells(load_map("m/7.npy")) == expected


def test_where_two_kinds_meet_the_larger_value_counts(hk: Hk) -> None:
    boxes = [{"x": 10, "y": 15, "width": 10, "height": 10, "label": "half"}]
    hk("masks2map", "--from", "polygons,boxes", "--lesion", "SE=0.5", "--lesion", "half", "--size", 4, "--out", "m",
       stdin=[record(boxes=boxes)])
    assert cells(load_map("m/7.npy")) == [(1, 1, 0.5), (2, 1, 0.5)]


@pytest.mark.parametrize(("value", "sentence"), [
    ("mask", "kind of annotation 'mask' is unknown; did you mean 'masks'? expected one of masks, polygons, boxes"),
    ("masks,bubbles", "kind of annotation 'bubbles' is unknown;"),
    ("", "kind of annotation '' is unknown;"),
])
def test_an_unknown_kind_is_refused(hk: Hk, value: str, sentence: str) -> None:
    result = hk("masks2map", "--from", value, "--out", "m", stdin=[record()])
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_boxes_from_masks2map_are_those_of_boxes2map(hk: Hk) -> None:
    boxes = [{"x": 3.3, "y": -4, "width": 21.1, "height": 30}, {"x": 20, "y": 20, "width": 0, "height": 9}]
    for command, options in (("masks2map", ["--from", "boxes"]), ("boxes2map", [])):
        hk(command, *options, "--size", 4, "--out", command, stdin=[record(boxes=boxes)])
    assert load_map("masks2map/7.npy") == pytest.approx(load_map("boxes2map/7.npy"), abs=1e-6)
    assert load_map("boxes2map/7.npy").max() == 1


# annotators


@pytest.mark.parametrize(("command", "expected"), [
    (["masks2map"], {"ann": [(0, 0, 1)], "bob": [(1, 1, 1)]}),
    (["masks2map", "--from", "masks,polygons,boxes"], {"ann": [(0, 0, 1)], "bob": [(1, 1, 1)], "3": [(2, 2, 1)]}),
    (["masks2map", "--lesion", "EX=0.25"], {"ann": [(0, 0, 0.25)], "bob": []}),
    (["masks2map", "--lesion", "EX=0.25", "--normalise", "max"], {"ann": [(0, 0, 1)], "bob": []}),
    (["boxes2map"], {"3": [(2, 2, 1)]}),
])
def test_each_annotator_has_the_map_of_their_own_marks(hk: Hk, command: list[str], expected: dict) -> None:
    """Who marked something that is not drawn has a map of zeros: annotated, and nothing there."""
    result = hk(*command, "--per-annotator", "--size", 4, "--out", "m", stdin=[record()])
    assert (result.exit_code, result.stderr) == (0, "")
    assert {user: cells(values) for user, values in load_annotators(result.records[0]).items()} == expected
    joint = hk(*command, "--size", 4, "--out", "joint", stdin=[record()]).records[0]
    assert (load_map("m/7.npy") == load_map(joint["map"])).all()
    assert "annotator_maps" not in joint


def test_two_annotators_of_one_mask_or_box_name(hk: Hk) -> None:
    boxes = [{"x": 10 * place, "y": 0, "width": 10, "height": 10, "label": "a", "user": user}
             for place, user in enumerate(("ann", "bob", "ann"))]
    hk("boxes2map", "--per-annotator", "--size", 4, "--out", "m.h5", stdin=[record(boxes=boxes)])
    found = hk("boxes2map", "--per-annotator", "--size", 4, "--out", "m", stdin=[record(boxes=boxes)]).records[0]
    own = load_annotators(found)
    assert (own["ann"] == boxes_map([(0, 0, 10, 10), (20, 0, 10, 10)], [1, 1], FRAME, SIZE, edge="filled")).all()
    assert (own["bob"] == boxes_map([(10, 0, 10, 10)], [1], FRAME, SIZE, edge="filled")).all()
    assert list(own) == ["ann", "bob"]


def test_a_mask_goes_by_its_name_without_its_user(hk: Hk) -> None:
    """As the formats with annotators write them: EX@ann and EX@bob are two masks of one lesion."""
    given = record(masks={"EX@ann": "EX.png", "EX@bob": "EX.png"}, mask_users={"EX@ann": "ann", "EX@bob": "bob"})
    options = ["--lesion", "EX", "--from", "masks", "--per-annotator"]
    result = hk("masks2map", *options, "--size", 4, "--out", "m", stdin=[given])
    assert result.exit_code == 0, result.stderr
    assert {user: cells(own) for user, own in load_annotators(result.records[0]).items()} == {
        "ann": [(0, 0, 1)], "bob": [(0, 0, 1)],
    }


@pytest.mark.parametrize(("change", "sentence"), [
    ({"mask_users": {}}, 'record "7": mask "EX" has no user, expected one for each; name the users, or omit'),
    ({"mask_users": None}, 'record "7": mask "EX" has no user'),
    ({"mask_users": ["ann"]}, "mask_users is ['ann']; expected names of masks and users, such as"),
    ({"polygons": [{"points": CORNERS, "user": "a"}, {"points": CORNERS}]}, 'record "7": polygons[1] has no user'),
])
def test_a_mark_of_nobody_is_an_error(hk: Hk, change: dict, sentence: str) -> None:
    result = hk("masks2map", "--per-annotator", "--out", "m", stdin=[record(**change)])
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert hk("masks2map", "--out", "n", stdin=[record(**change)]).exit_code == int("expected names" in sentence)


# what is left out


@pytest.mark.parametrize(("command", "found"), [
    (["masks2map"], "has no masks and no polygons, but it has boxes; expected an annotation; --missing pass lets"),
    (["masks2map", "--from", "polygons"], "has no polygons, but it has boxes; expected"),
])
def test_what_a_record_has_instead_is_said(hk: Hk, command: list[str], found: str) -> None:
    result = hk(*command, "--out", "m", stdin=[record(masks=None, polygons=None)])
    assert f'record "7": {found}' in result.stderr


@pytest.mark.parametrize(("command", "change", "counted"), [
    (["masks2map"], {}, 0), (["masks2map", "--lesion", "EX"], {}, 0),
    (["masks2map"], {"masks": {}, "polygons": []}, 1),      # its box is not drawn
    (["masks2map"], {"masks": {}, "polygons": [], "boxes": []}, 0),      # annotated, and nothing there
    (["masks2map", "--lesion", "EX"], {"masks": {}}, 1),
    (["masks2map", "--lesion", "EX"], {"masks": {}, "boxes": []}, 1),
    (["boxes2map"], {"boxes": []}, 1), (["boxes2map", "--missing", "pass"], {"boxes": None}, 0),
])
def test_records_whose_marks_are_all_left_out_are_counted(hk: Hk, command: list, change: dict, counted: int) -> None:
    given = [record(id="whole"), record(**change)]
    result = hk(*command, "--size", 4, "--out", "m", stdin=given)
    assert result.exit_code == 0
    sentence = f"{counted} records have masks, polygons or boxes, but none that is to be drawn, so they count as empty;"
    assert (sentence in result.stderr) == bool(counted), result.stderr
    assert load_map("m/whole.npy").any()


@pytest.mark.parametrize("label", ["MA", "OD", "disc"])
def test_no_name_is_left_out_unasked(hk: Hk, label: str) -> None:
    corners = [[10, 20], [50, 20], [50, 60], [10, 60]]
    given = {"id": "7", "size": [100, 80], "polygons": [{"points": corners, "label": label}]}
    assert hk("masks2map", "--size", "100x80", "--out", "m", stdin=[given]).stderr == ""
    assert load_map("m/7.npy").mean() == pytest.approx(0.2)


def test_a_hole_made_by_a_seam_is_a_hole(hk: Hk) -> None:
    ring, hole = [[10, 10], [90, 10], [90, 70], [10, 70], [10, 10]], [[30, 30], [70, 30], [70, 50], [30, 50], [30, 30]]
    given = {"id": "7", "size": [100, 80], "polygons": [{"points": [*ring, *hole, [10, 10]]}]}
    hk("masks2map", "--size", "100x80", "--out", "m", stdin=[given])
    values = load_map("m/7.npy")
    assert (values.mean(), values[40, 50]) == pytest.approx((0.5, 0), abs=1e-6)


def test_a_tangled_polygon_is_named(hk: Hk) -> None:
    corners = (np.random.default_rng(0).random((900, 2)) * 40).tolist()
    result = hk("masks2map", "--out", "m", stdin=[{"id": "7", "size": [40, 40], "polygons": [{"points": corners}]}])
    assert result.exit_code == 1
    assert 'record "7": a polygon whose edges pass each other' in result.stderr


# what lies far off


FAR = 1e12


@pytest.mark.parametrize(("command", "marks", "expected"), [
    (["bubbles2map", "--bandwidth", "radius"], {"bubbles": [{"x": 20, "y": 20, "radius": 1e8}]}, 1),
    (["bubbles2map", "--bandwidth", "fixed"], {"bubbles": [{"x": 20, "y": 20, "radius": FAR}]}, None),
    (["boxes2map"], {"boxes": [{"x": -FAR / 2, "y": -FAR / 2, "width": FAR, "height": FAR}]}, 1),
    (["boxes2map"], {"boxes": [{"x": -FAR, "y": -FAR, "width": 1, "height": FAR}]}, 0),
    (["masks2map"], {"polygons": [{"points": [[-FAR, -FAR], [FAR, -FAR], [FAR, FAR], [-FAR, FAR]]}]}, 1),
    (["masks2map"], {"polygons": [{"points": [[FAR, FAR], [FAR, 0], [0, FAR]]}]}, 0),
    (["masks2map", "--from", "boxes"], {"boxes": [{"x": -FAR / 2, "y": -5, "width": FAR, "height": FAR}]}, 1),
])
def test_lengths_of_any_size_are_drawn(hk: Hk, command: list[str], marks: dict, expected: float | None) -> None:
    result = hk(*command, "--size", 4, "--out", "m", stdin=[{"id": "7", "size": [40, 40], **marks}])
    assert result.exit_code == 0, result.stderr
    values = load_map("m/7.npy")
    assert np.isfinite(values).all()
    assert expected is None or values == pytest.approx(np.full((4, 4), expected), abs=1e-3)


def test_polygons_and_boxes_are_one_thing() -> None:
    box = boxes_map([(5, 5, 20, 20)], [1], FRAME, SIZE, edge="filled")
    outline = [(5, 5), (25, 5), (25, 25), (5, 25)]
    assert polygons_map([outline], [1], FRAME, SIZE, "mean") == pytest.approx(box, abs=1e-6)


def test_a_map_of_many_cells_is_not_cut_into_parts() -> None:
    """At 5,792 x 5,792 the parts took 13 GB."""
    triangle = [(10.0, 10.0), (90.0, 10.0), (50.0, 70.0)]
    values = polygons_map([triangle], [1.0], (100, 80), (2_049, 2_050), "mean")
    assert np.array_equal(values, coverage(triangle, (100, 80), (2_049, 2_050)).astype(np.float32))
    assert values.mean() == pytest.approx(80 * 60 / 2 / 8_000, abs=1e-6)
