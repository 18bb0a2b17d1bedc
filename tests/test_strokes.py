"""What a person paints: nothing small is lost, nothing untouched changes, and strokes are what JSON keeps of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkmap.errors import ChoiceError, RecordError
from hkmap.maps.certainty import Weighted
from hkmap.maps.strokes import Stroke, blank, from_json, paint

FRAME = (224, 224)
SIZES = [(14, 14), (7, 7), (23, 23), (9, 14), (56, 40), (1, 1)]


def a_map(size=(14, 14), seed=0):
    return np.random.default_rng(seed).random(size, np.float32)


def literal(strokes, base, frame, fine=16):
    """Blend pixel by pixel, on a map that is repeated, and average in the end."""
    height, width = base.shape
    pixels = np.repeat(np.repeat(base, fine, axis=0), fine, axis=1).astype(np.float64)
    for stroke in strokes:
        for i in range(height * fine):
            for j in range(width * fine):
                place = np.array([(j + 0.5) * frame[0] / (width * fine), (i + 0.5) * frame[1] / (height * fine)])
                nearest = min(
                    np.hypot(*(place - (np.array(start) + share * (np.array(end) - start))))
                    for start, end in zip(stroke.points, stroke.points[1:] or stroke.points, strict=False)
                    for share in np.linspace(0, 1, 101)
                )
                ramp = np.clip((stroke.radius - nearest) / (stroke.radius * stroke.softness), 0, 1)
                strength = stroke.strength * ramp**2 * (3 - 2 * ramp)
                target = {"add": 1, "remove": 0, "invert": 1 - pixels[i, j]}[stroke.tool]
                pixels[i, j] += strength * (target - pixels[i, j])
    return pixels.reshape(height, fine, width, fine).mean((1, 3))


def test_strokes_equal_a_blend_pixel_by_pixel():
    strokes = [
        Stroke("add", ((20.0, 10.0), (60.0, 50.0)), radius=18.0, strength=0.8),
        Stroke("remove", ((50.0, 50.0),), radius=25.0, strength=0.5, softness=1.0),
        Stroke("invert", ((90.0, 20.0), (70.0, 70.0), (20.0, 70.0)), radius=9.0),
    ]
    base, frame = a_map((3, 4)), (112, 84)      # 224 / 3 pixels a cell
    found = paint(strokes, Weighted(base, None), frame).map
    assert np.abs(found - literal(strokes, base, frame)).max() < 3e-3       # other pixels
    assert np.abs(found - base).max() > 0.2


@pytest.mark.parametrize("tool", ["add", "remove", "invert", "unknown"])
@pytest.mark.parametrize("softness", [0.0, 0.5, 1.0])
def test_a_dab_of_two_pixels_is_never_lost(tool, softness):
    base, blanked = Weighted(a_map() * 0.4 + 0.05, None), blank((14, 14), FRAME)
    for x, y in np.random.default_rng(1).random((250, 2)) * 224:
        found = blanked.painted(Stroke(tool, ((x, y),), radius=2.0, softness=softness)).of(base)
        changed = found.certainty if tool == "unknown" else found.map
        assert (changed != (1 if tool == "unknown" else base.map)).any(), (x, y)


@pytest.mark.parametrize("size", SIZES)
def test_without_a_stroke_nothing_changes(size):
    base = a_map(size)
    found = paint([], Weighted(base, None), FRAME)
    assert np.array_equal(found.map, base)
    assert found.certainty is None
    weighted = Weighted(base, a_map(size, 1))
    assert np.array_equal(paint([], weighted, FRAME).certainty, weighted.certainty)


points = st.tuples(st.floats(-20, 244), st.floats(-20, 244))
strokes = st.builds(
    Stroke, tool=st.sampled_from(["add", "remove", "invert", "unknown", "known"]),
    points=st.lists(points, min_size=1, max_size=4).map(tuple), radius=st.floats(0.5, 60), strength=st.floats(0, 1),
    softness=st.floats(0, 1),
)


@given(painted=st.lists(strokes, max_size=4), size=st.sampled_from(SIZES), seed=st.integers(0, 99))
def test_untouched_cells_keep_their_value_to_the_bit(painted, size, seed):
    base = a_map(size, seed)
    found = paint(painted, Weighted(base, None), FRAME)
    assert found.map.dtype == np.float32
    assert found.map.min() >= 0
    assert found.map.max() <= 1
    rows, columns = ((np.arange(side) + 0.5) * 224 / side for side in size)
    far = np.ones(size, bool)
    for stroke in painted:
        x, y = np.array(stroke.points).T
        near_x = (columns > x.min() - stroke.radius - 113) & (columns < x.max() + stroke.radius + 113)
        near_y = (rows > y.min() - stroke.radius - 113) & (rows < y.max() + stroke.radius + 113)
        if size[0] > 1:
            half = 112 / min(size) + 2
            near_x = (columns > x.min() - stroke.radius - half) & (columns < x.max() + stroke.radius + half)
            near_y = (rows > y.min() - stroke.radius - half) & (rows < y.max() + stroke.radius + half)
        far &= ~(near_y[:, None] & near_x)
    assert np.array_equal(found.map[far], base[far])
    if found.certainty is not None:
        assert (found.certainty[far] == 1).all()
        assert (found.map[found.certainty == 0] == 0).all()


@given(painted=st.lists(strokes, min_size=1, max_size=4))
def test_a_stroke_leaves_the_painting_before_it(painted):
    base, before = Weighted(a_map(), None), blank((14, 14), FRAME)
    steps = [before]
    for stroke in painted:
        steps.append(steps[-1].painted(stroke))
    for count, step in enumerate(steps):        # undo is a step back
        again = paint(painted[:count], base, FRAME)
        assert np.array_equal(step.of(base).map, again.map)


def test_a_stroke_is_read_from_json():
    line = '{"tool": "remove", "points": [[1, 2.5], [3, 4]], "radius": 8, "strength": 0.25, "softness": 1}'
    wanted = Stroke("remove", ((1, 2.5), (3, 4)), radius=8, strength=0.25, softness=1)
    assert from_json(json.loads(line), "x") == wanted
    assert from_json({"tool": "invert"}, "x") == Stroke("invert")
    corners = [[0, 0], [9, 0], [9, 9]]
    outline = Stroke("add", ((0, 0), (9, 0), (9, 9)), outline=True)
    assert from_json({"tool": "add", "points": corners, "outline": True}, "x") == outline


def test_whole_maps_and_outlines():
    base = Weighted(a_map(), None)
    assert np.allclose(paint([Stroke("invert")], base, FRAME).map, 1 - base.map)
    assert np.allclose(paint([Stroke("add", strength=0.25)], base, FRAME).map, 0.75 * base.map + 0.25)
    assert not paint([Stroke("remove")], base, FRAME).map.any()
    outline = Stroke("add", ((0.0, 0.0), (112.0, 0.0), (112.0, 224.0), (0.0, 224.0)), outline=True)
    found = paint([outline], base, FRAME).map
    assert (found[:, :7] == 1).all()
    assert np.array_equal(found[:, 7:], base.map[:, 7:])


def test_a_cell_is_the_mean_of_what_is_known_of_it():
    left = Stroke("unknown", ((0.0, 0.0), (8.0, 0.0), (8.0, 224.0), (0.0, 224.0)), outline=True)
    brighter = Stroke("add", ((8.0, 0.0), (16.0, 0.0), (16.0, 224.0), (8.0, 224.0)), outline=True)
    base = Weighted(np.full((14, 14), 0.5, np.float32), None)
    found = paint([left, brighter], base, FRAME)
    assert np.allclose(found.certainty[:, 0], 0.5)
    assert np.allclose(found.map[:, 0], 1)
    gone = paint([Stroke("unknown")], base, FRAME)
    assert not gone.map.any()
    assert not gone.certainty.any()
    back = paint([Stroke("unknown"), Stroke("known")], base, FRAME)
    assert np.array_equal(back.map, base.map)


@pytest.mark.parametrize(("value", "told"), [
    ([1], "expected a stroke such as"), ({"tool": "add", "size": 3}, 'has "size", which a stroke has not'),
    ({"tool": "add", "points": [[1, 2, 3]], "radius": 2}, "points is"),
    ({"tool": "add", "points": [[1, float("nan")]], "radius": 2}, "points is"),
    ({"tool": "add", "points": [[1, 2]]}, "a brush without a radius"),
    ({"tool": "add", "points": [[1, 2]], "radius": -1}, "radius is -1"),
    ({"tool": "add", "strength": 1.5}, "strength is 1.5; expected a number from 0 to 1"),
    ({"tool": "add", "softness": True}, "softness is True"),
    ({"tool": "add", "outline": True, "points": [[1, 2], [3, 4]]}, "an outline of 2 points"),
    ({"tool": "add", "outline": 1}, "outline is 1; expected true or false"),
    ({"tool": ["add"]}, "tool is ["), ({"points": []}, "has no tool"),
])
def test_what_is_no_stroke_is_a_sentence(value, told):
    with pytest.raises(RecordError, match="here: ") as error:
        from_json(value, "here")
    assert told in str(error.value)


def test_an_unknown_tool_is_named():
    with pytest.raises(ChoiceError, match="tool 'ad' is unknown; did you mean 'add'"):
        from_json({"tool": "ad"}, "here")


def test_an_outline_changes_nothing_outside_it():
    base = Weighted(a_map(), np.zeros((14, 14), np.float32))
    outline = Stroke("known", ((3.1, 2.7), (107.3, 5.2), (99.9, 110.4), (150.7, 61.3), (11.3, 88.8)), outline=True)
    edited = paint([outline], base, FRAME)
    assert edited.certainty[8:].max() == 0 == edited.map[8:].max()
    assert (edited.certainty[:, 10:] == 0).all()
    assert (edited.map[edited.certainty == 0] == 0).all()
