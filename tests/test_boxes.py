"""Boxes and polygons to maps: exact shares of the cells, against plain counting, and the commands that draw them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkmap.errors import MapError
from hkmap.maps.boxes import boxes_map
from hkmap.maps.masks import masks_map
from hkmap.maps.polygons import coverage, polygons_map
from hkmap.maps.resize import resize_map
from hkmap.stream.references import load_map

FRAME, SIZE = (30, 20), (5, 6)
few = settings(max_examples=60, deadline=None)


def counted(inside: Any, frame: tuple[int, int], size: tuple[int, int], crumbs: int) -> np.ndarray:
    """The mean of ``inside(x, y)`` over each cell, by its values at crumbs x crumbs places in every pixel."""
    x, y = ((np.arange(side * crumbs) + 0.5) / crumbs for side in frame)
    pixels = np.asarray(inside(*np.meshgrid(x, y)), dtype=np.float64)
    rows, columns = (side * crumbs // cells for side, cells in zip(frame[::-1], size, strict=True))
    return pixels.reshape(size[0], rows, size[1], columns).mean(axis=(1, 3))


# boxes


tenths = st.integers(-60, 360).map(lambda value: value / 8)
lengths = st.integers(0, 200).map(lambda value: value / 8)
boxes_and_weights = st.lists(
    st.tuples(st.tuples(tenths, tenths, lengths, lengths), st.sampled_from([0.25, 0.5, 1.0])), max_size=6
)


@few
@given(drawn=boxes_and_weights)
def test_a_filled_cell_is_the_mean_of_the_heaviest_box_on_each_spot(drawn: list) -> None:
    def heaviest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        value = np.zeros_like(x)
        for (left, top, width, height), weight in drawn:
            within = (left <= x) & (x < left + width) & (top <= y) & (y < top + height)
            value = np.maximum(value, weight * within)
        return value

    values = boxes_map([box for box, _ in drawn], [weight for _, weight in drawn], FRAME, SIZE, edge="filled")
    assert values.dtype == np.float32
    assert values == pytest.approx(counted(heaviest, FRAME, SIZE, 8), abs=1e-6)      # the corners lie on eighths


@pytest.mark.parametrize("edge", ["filled", "soft", "gaussian"])
def test_a_box_off_the_pixels_counts_by_its_area(edge: str) -> None:
    shares = {"filled": 1, "soft": 1, "gaussian": (math.sqrt(2 * math.pi) / 4 * math.erf(math.sqrt(2) * 2)) ** 2}
    values = boxes_map([(12.3, 8.7, 0.01, 0.02)], [0.5], FRAME, SIZE, edge=edge)
    assert values.sum() * 20 == pytest.approx(0.5 * 0.01 * 0.02 * shares[edge], rel=1e-3)
    assert values[8 // 4, 12 // 5] == values.max() > 0


def soft(place: np.ndarray, start: float, side: float) -> np.ndarray:
    eighth = side / 8
    return np.interp(place, [start - eighth, start + eighth, start + 7 * eighth, start + 9 * eighth], [0, 1, 1, 0])


def gaussian(place: np.ndarray, start: float, side: float) -> np.ndarray:
    return np.exp(-((place - start - side / 2) ** 2) / (2 * (side / 4) ** 2))


@pytest.mark.parametrize(("edge", "profile"), [("soft", soft), ("gaussian", gaussian)])
def test_a_soft_box_is_the_product_of_its_profiles(edge: str, profile: Any) -> None:
    boxes, weights = [(3.25, 4.5, 11.5, 9.0), (10.0, 2.0, 30.0, 12.0)], [1.0, 0.5]
    each = [
        weight * counted(lambda x, y, box=box: profile(x, box[0], box[2]) * profile(y, box[1], box[3]), FRAME, SIZE, 40)
        for box, weight in zip(boxes, weights, strict=True)
    ]
    assert boxes_map(boxes, weights, FRAME, SIZE, edge=edge) == pytest.approx(np.maximum(*each), abs=1e-3)


@pytest.mark.parametrize("edge", ["filled", "soft", "gaussian"])
def test_boxes_turn_with_the_image_and_their_order_does_not_matter(edge: str) -> None:
    boxes, weights = [(3.2, 4.5, 11.5, 9.0), (10.0, 2.0, 30.0, 12.0), (0, 0, 4, 4)], [1.0, 0.5, 0.3]
    values = boxes_map(boxes, weights, FRAME, SIZE, edge=edge)
    assert boxes_map(boxes[::-1], weights[::-1], FRAME, SIZE, edge=edge) == pytest.approx(values, abs=1e-7)
    mirrored = [(30 - left - width, top, width, height) for left, top, width, height in boxes]
    assert boxes_map(mirrored, weights, FRAME, SIZE, edge=edge) == pytest.approx(values[:, ::-1], abs=1e-6)
    turned = [(top, left, height, width) for left, top, width, height in boxes]
    assert boxes_map(turned, weights, FRAME[::-1], SIZE[::-1], edge=edge) == pytest.approx(values.T, abs=1e-6)


@pytest.mark.parametrize("edge", ["filled", "soft", "gaussian"])
@pytest.mark.parametrize("boxes", [[], [(40.0, 5.0, 9.0, 9.0)], [(5.0, 5.0, 0.0, 9.0)]])
def test_what_covers_nothing_is_a_map_of_zeros(edge: str, boxes: list) -> None:
    values = boxes_map(boxes, [1.0] * len(boxes), FRAME, SIZE, edge=edge)
    assert values.shape == SIZE
    assert values.max() <= (1e-8 if edge == "gaussian" else 0)     # a Gaussian has no end


@pytest.mark.parametrize("edge", ["filled", "soft", "gaussian"])
def test_one_middle_is_one(edge: str) -> None:
    assert boxes_map([(0, 0, 30, 20)], [1.0], FRAME, (201, 301), edge=edge)[100, 150] == pytest.approx(1, abs=1e-3)


# polygons


POLYGONS = {
    "square": [(5.0, 4.0), (15.0, 4.0), (15.0, 12.0), (5.0, 12.0)],
    "triangle": [(3.1, 2.2), (27.7, 9.3), (8.4, 18.9)],
    "the other way round": [(8.4, 18.9), (27.7, 9.3), (3.1, 2.2)],
    "off the image": [(-10.0, -7.0), (40.0, 3.0), (12.0, 33.0)],
    "round the image": [(-50.0, -50.0), (90.0, -50.0), (90.0, 90.0), (-50.0, 90.0)],
    "hollow": [(2.0, 2.0), (28.0, 2.0), (28.0, 18.0), (15.0, 5.0), (2.0, 18.0)],
    "star": [(15.0, 1.0), (20.5, 18.5), (2.0, 7.0), (28.0, 7.0), (9.5, 18.5)],      # winds twice round its middle
    "bow tie": [(2.0, 2.0), (28.0, 18.0), (28.0, 2.0), (2.0, 18.0)],
    "hole by a seam": [
        (3.0, 2.0), (27.0, 2.0), (27.0, 18.0), (3.0, 18.0), (3.0, 2.0),
        (9.0, 6.0), (21.0, 6.0), (21.0, 14.0), (9.0, 14.0), (9.0, 6.0), (3.0, 2.0),
    ],
    "scribble": [
        (4.3, 15.1), (21.7, 3.2), (9.9, 17.3), (28.2, 9.4), (1.4, 5.5), (17.6, 19.1), (24.8, 1.7), (6.1, 1.2),
        (12.5, 12.5), (29.0, 18.8), (8.8, 8.1),
    ],
}


def crossings(polygon: list, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether a ray to the right crosses the outline an odd number of times."""
    odd = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if y0 != y1:
            odd ^= ((y0 <= y) != (y1 <= y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return odd


@pytest.mark.parametrize("name", POLYGONS)
@pytest.mark.parametrize("size", [(5, 6), (20, 30), (1, 1), (10, 3)])
def test_a_cell_is_the_share_of_it_that_lies_inside(name: str, size: tuple[int, int]) -> None:
    polygon = POLYGONS[name]
    expected = counted(lambda x, y: crossings(polygon, x, y), FRAME, size, 40)
    assert coverage(polygon, FRAME, size) == pytest.approx(expected, abs=0.02)
    values = polygons_map([polygon], [0.5], FRAME, size, "mean")
    assert values.dtype == np.float32
    assert values == pytest.approx(expected / 2, abs=0.01)


@few
@given(corners=st.lists(st.tuples(st.floats(0, 30), st.floats(0, 20)), min_size=3, max_size=3))
def test_the_shares_of_a_triangle_add_up_to_its_area(corners: list) -> None:
    (ax, ay), (bx, by), (cx, cy) = corners
    area = abs((bx - ax) * (cy - ay) - (cx - ax) * (by - ay)) / 2
    assert coverage(corners, FRAME, SIZE).sum() * 20 == pytest.approx(area, abs=1e-9)
    assert polygons_map([corners], [1.0], FRAME, SIZE, "mean").sum(dtype=float) * 20 == pytest.approx(area, abs=1e-3)


@pytest.mark.parametrize(("name", "inside", "outside", "area"), [
    ("star", (5, 15), (10, 15), None),
    ("bow tie", (10, 4), (3, 15), 26 * 16 / 2),
    ("hole by a seam", (4, 15), (10, 15), 24 * 16 - 12 * 8),
])
def test_what_an_outline_winds_round_twice_is_a_hole(name: str, inside: tuple, outside: tuple, area: float) -> None:
    """As COCO's tools, OpenCV and Pillow fill the same corners."""
    polygon, shares = POLYGONS[name], coverage(POLYGONS[name], FRAME, (20, 30))
    assert (shares[inside], shares[outside]) == pytest.approx((1, 0), abs=1e-12)
    assert shares.sum() == pytest.approx(area or shares.sum(), abs=1e-9)
    for reverse in (polygon[::-1], polygon[3:] + polygon[:3]):
        assert coverage(reverse, FRAME, (20, 30)) == pytest.approx(shares, abs=1e-12)
    drawn = np.zeros((200, 300), np.uint8)
    cv2.fillPoly(drawn, [np.rint(np.array(polygon) * 10 - 0.5).astype(np.int32)], 1)
    assert drawn.mean() == pytest.approx(shares.mean(), abs=0.02)


def test_the_same_ring_twice_is_nothing_and_three_times_is_itself() -> None:
    ring = POLYGONS["triangle"]
    once, twice, thrice = (coverage(ring * times, FRAME, SIZE) for times in (1, 2, 3))
    assert twice.max() <= 1e-9
    assert thrice == pytest.approx(once, abs=1e-9)


def test_corners_far_away_are_cut() -> None:
    half = [(-1e12, -1e12), (15.0, -1e12), (15.0, 1e12), (-1e12, 1e12)]
    assert coverage(half, FRAME, SIZE) == pytest.approx(np.repeat([[1, 1, 1, 0, 0, 0]], 5, axis=0), abs=1e-3)


@pytest.mark.parametrize("count", [1000, 9000])
def test_a_tangle_of_a_million_crossings_is_refused(count: int) -> None:
    corners = np.random.default_rng(0).random((count, 2)) * FRAME
    with pytest.raises(MapError, match=r"a polygon whose edges pass each other [0-9,]+ times, expected at most"):
        coverage(corners.tolist(), FRAME, SIZE)


def test_polygons_on_whole_pixels_are_masks() -> None:
    polygons, weights = [POLYGONS["square"], [(12, 8), (22, 8), (22, 18), (12, 18)]], [1.0, 0.5]
    masks = [np.zeros((20, 30), bool) for _ in polygons]
    masks[0][4:12, 5:15] = True
    masks[1][8:18, 12:22] = True
    for size, error in (((20, 30), 1e-6), ((10, 15), 0.02), ((5, 6), 0.02)):      # where parts of cells cut pixels
        for pooling in ("mean", "max"):
            expected = masks_map(masks, weights, size, pooling)
            assert polygons_map(polygons, weights, FRAME, size, pooling) == pytest.approx(expected, abs=error)


def test_polygons_that_meet_in_a_cell_fill_it() -> None:
    halves = [[(0, 0), (12.5, 0), (12.5, 20), (0, 20)], [(12.5, 0), (30, 0), (30, 20), (12.5, 20)]]
    assert polygons_map(halves, [1.0, 1.0], FRAME, SIZE, "mean") == pytest.approx(np.ones(SIZE), abs=0.02)


def test_a_sliver_of_a_polygon_is_not_lost() -> None:
    sliver = [[(7.3, 2.1), (7.4, 2.1), (7.35, 17.0)]]
    values = polygons_map(sliver, [1.0], FRAME, SIZE, "mean")
    assert values.sum() * 20 == pytest.approx(0.1 * 14.9 / 2, rel=1e-4)
    assert (polygons_map(sliver, [0.5], FRAME, SIZE, "max")[:, 1] == [0.5, 0.5, 0.5, 0.5, 0.5]).all()
    assert not polygons_map(sliver, [1.0], FRAME, SIZE, "max")[:, [0, 2, 3, 4, 5]].any()


@pytest.mark.parametrize("polygon", [[(3.0, 4.0)], [(3.0, 4.0), (9.0, 9.0)], [(3.0, 4.0), (3.0, 4.0), (3.0, 4.0)]])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_polygon_without_an_area_is_nothing(polygon: list, pooling: str) -> None:
    assert polygons_map([polygon], [1.0], FRAME, SIZE, pooling).max() <= 1e-9
    assert not polygons_map([], [], FRAME, SIZE, pooling).any()


# the commands


BOXES = [
    {"x": 5, "y": 4, "width": 10, "height": 8, "label": "head"}, {"x": 0, "y": 0, "width": 5, "height": 4},
    {"x": 10, "y": 8, "width": 20, "height": 12, "label": 3},
]


def box_record(**more: Any) -> dict[str, Any]:
    return {"id": "7", "size": [30, 20], "boxes": BOXES, "note": "kept", **more}


@pytest.mark.parametrize(("options", "chosen"), [
    ([], [(0, 1), (1, 1), (2, 1)]), (["--label", "head"], [(0, 1)]),
    (["--label", "3", "--label", "head=0.5"], [(0, 0.5), (2, 1)]),
])
def test_boxes2map_draws_the_chosen_boxes(hk, here: Path, options: list, chosen: list) -> None:
    result = hk("boxes2map", "--out", "maps", "--size", "6x5", *options, stdin=[box_record()])
    assert result.records == [box_record(map="maps/7.npy")]
    boxes = [tuple(BOXES[number][key] for key in ("x", "y", "width", "height")) for number, _ in chosen]
    expected = boxes_map(boxes, [weight for _, weight in chosen], FRAME, SIZE, edge="filled")
    assert (load_map("maps/7.npy") == expected).all()


def test_boxes_not_annotated_and_none_there_are_two_things(hk, here: Path) -> None:
    records = [{"id": "not annotated"}, box_record(id="none there", boxes=[])]
    arguments = ("boxes2map", "--size", 14, "--missing", "pass")
    assert hk(*arguments, "--empty", "pass", "--out", "a", stdin=records).records == records
    first, second = hk(*arguments, "--out", "b", stdin=records).records
    assert first == records[0]
    assert not load_map(second["map"]).any()
    refused = hk(*arguments, "--empty", "error", "--out", "c", stdin=records)
    assert refused.exit_code == 1
    assert 'record "none there": nothing is marked by its boxes; expected a mark; --empty zeros' in refused.stderr


@pytest.mark.parametrize(("record", "options", "message"), [
    ({"id": "7"}, [], 'record "7": has no boxes; expected an annotation; --missing pass'),
    (box_record(boxes=[{"x": 1}]), [], "boxes[0] is {'x': 1}; expected an object with the numbers x, y, width"),
    (box_record(boxes=[4]), [], "boxes[0] is 4; expected an object with"),
    (box_record(), ["--label", "tail"], "--label tail: no record has this name; the names are 3, head"),
    ({"id": "7", "size": [3, 2], "boxes": []}, ["--label", "a"], "no record has this name; the names are none"),
])
def test_what_boxes2map_cannot_draw_is_an_error(hk, here: Path, record: dict, options: list, message: str) -> None:
    result = hk("boxes2map", "--out", "maps.h5", *options, stdin=[record])
    assert result.exit_code == 1
    assert message in result.stderr
    assert not list(here.iterdir())


def test_masks2map_draws_polygons_by_label_and_masks_by_name(hk, here: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[0:4, 0:5] = 255
    cv2.imwrite("EX.png", mask)
    polygons = [{"points": POLYGONS["square"], "label": "SE"}, {"points": POLYGONS["triangle"], "label": "MA"}]
    record = {"id": "7", "size": [30, 20], "masks": {"EX": "EX.png"}, "polygons": polygons}
    square, triangle, both = (
        polygons_map(corners, [1.0] * len(corners), FRAME, SIZE, "mean")
        for corners in ([POLYGONS["square"]], [POLYGONS["triangle"]], [POLYGONS["square"], POLYGONS["triangle"]])
    )
    spot = resize_map((mask / 255).astype(np.float32), SIZE)
    cases = [
        ([], np.maximum(both, spot)), (["--lesion", "SE=0.5"], square / 2), (["--lesion", "EX"], spot),
        (["--lesion", "MA"], triangle),
    ]
    for number, (options, expected) in enumerate(cases):
        result = hk("masks2map", "--out", f"{number}", "--size", "6x5", *options, stdin=[record])
        assert load_map(result.records[0]["map"]) == pytest.approx(expected, abs=1e-6)
    del record["masks"]
    only = hk("masks2map", "--out", "only", "--size", "6x5", "--pooling", "max", stdin=[record]).records[0]
    assert set(np.unique(load_map(only["map"]))) == {0, 1}
