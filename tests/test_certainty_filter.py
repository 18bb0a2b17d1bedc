"""Certainty beside a map: what is unknown, where not to look, and how it travels from the masks to the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkmap.errors import MapError
from hkmap.files.maps import open_writer
from hkmap.maps.certainty import Weighted, change_weighted, normalise_weighted, weigh_map
from hkmap.maps.resize import resize_map
from hkmap.stream.references import load_certainty, load_map

few = settings(max_examples=60, deadline=None)
RANDOM = np.random.default_rng(0)
VALUES = RANDOM.random((4, 6)).astype(np.float32)
MASKS = RANDOM.random((4, 40, 60)) < 0.3
MASKS[:, 0:10, 0:10] = True         # a whole cell


def shares(mask: np.ndarray) -> np.ndarray:
    return mask.reshape(4, 10, 6, 10).mean(axis=(1, 3))


# the rule


@pytest.mark.parametrize("default_known", [True, False])
def test_the_certainty_is_the_known_share_and_the_map_falls_where_one_should_not_look(default_known: bool) -> None:
    void, shunned = MASKS[0] | MASKS[1], MASKS[2] | MASKS[3]
    values = np.where(VALUES > 0.5, VALUES, 0)
    made, certainty = weigh_map(values, iter(MASKS[:2]), iter(MASKS[2:]), default_known=default_known)
    expected = 1 - shares(void & ~shunned)
    if not default_known:
        expected = np.where(values > 0, expected, shares(shunned))
    assert made.dtype == certainty.dtype == np.float32
    assert certainty == pytest.approx(expected, abs=1e-6)
    assert made == pytest.approx(values * (1 - shares(shunned)), abs=1e-6)
    assert (made[0, 0], certainty[0, 0]) == (0, 1)       # "do not look here" wins over "I do not know"


def test_what_nobody_knows_is_zero_in_the_map() -> None:
    made, certainty = weigh_map(VALUES, MASKS[:1], [], default_known=True)
    assert (made[0, 0], certainty[0, 0]) == (0, 0)
    assert (made.ravel()[1:] == VALUES.ravel()[1:]).all()
    _, all_known = weigh_map(VALUES, [], [], default_known=True)
    assert (all_known == 1).all()


@pytest.mark.parametrize("above", [0, 0.25, 0.5])
def test_by_default_unknown_is_what_no_mark_passes(above: float) -> None:
    made, certainty = weigh_map(VALUES, [], [], default_known=False, above=above)
    marked = np.greater(VALUES, above)
    assert (certainty == marked).all()
    assert (made == VALUES * marked).all()


@pytest.mark.parametrize("split", [1, 2])
def test_masks_of_two_shapes_are_an_error(split: int) -> None:
    masks = [np.ones((4, 4), bool), np.ones((4, 5), bool)]
    with pytest.raises(MapError, match=r"a mask of \(4, 5\) beside one of \(4, 4\), expected the same"):
        weigh_map(VALUES, masks[:split], masks[split:], default_known=True)


# resizing


sides = st.integers(1, 30)


def slow_mean(values: np.ndarray, certainty: np.ndarray, rows: slice, columns: slice) -> float:
    pairs = [
        (float(value), float(weight))
        for value, weight in zip(values[rows, columns].ravel(), certainty[rows, columns].ravel(), strict=True)
    ]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else 0.0


def test_a_cell_is_the_mean_of_what_is_known_in_it() -> None:
    values = RANDOM.random((12, 20)).astype(np.float32)
    certainty = (RANDOM.random((12, 20)) * (RANDOM.random((12, 20)) < 0.6)).astype(np.float32)
    certainty[0:4, 0:5] = 0
    made, known = change_weighted(Weighted(values, certainty), lambda cells: resize_map(cells, (3, 4)))
    for row in range(3):
        for column in range(4):
            place = slice(4 * row, 4 * row + 4), slice(5 * column, 5 * column + 5)
            assert made[row, column] == pytest.approx(slow_mean(values, certainty, *place), abs=1e-6)
            assert known[row, column] == pytest.approx(certainty[place].mean(), abs=1e-6)
    assert (made[0, 0], known[0, 0]) == (0, 0)


@few
@given(before=st.tuples(sides, sides), after=st.tuples(sides, sides), seed=st.integers(0, 2**32 - 1))
def test_resizing_keeps_the_range_and_the_mean_under_the_certainty(before, after, seed) -> None:
    random = np.random.default_rng(seed)
    values = random.uniform(0.25, 0.75, before).astype(np.float32)
    certainty = (random.random(before) * (random.random(before) < 0.5)).astype(np.float32)
    made, known = change_weighted(Weighted(values, certainty), lambda cells: resize_map(cells, after))
    assert 0 <= known.min() <= known.max() <= 1
    assert ((made == 0) | (values.min() <= made)).all()
    assert made.max() <= values.max()
    assert ((made == 0) == (known == 0)).all()
    if after[0] <= before[0] and after[1] <= before[1]:
        assert (made * known).mean(dtype=float) == pytest.approx((values * certainty).mean(dtype=float), abs=1e-6)


def test_with_every_cell_known_certainty_changes_nothing() -> None:
    plain = resize_map(VALUES, (3, 9))
    ones = np.ones_like(VALUES)
    for certainty in (None, ones):
        made, known = change_weighted(Weighted(VALUES, certainty), lambda cells: resize_map(cells, (3, 9)))
        assert (made == plain).all()
        assert known is None if certainty is None else (known == 1).all()


def test_what_is_unknown_does_not_change_what_is_known() -> None:
    certainty = (RANDOM.random((4, 6)) < 0.5).astype(np.float32)
    other = np.where(certainty > 0, VALUES, 1 - VALUES)
    first, second = (change_weighted(Weighted(map_, certainty), lambda cells: resize_map(cells, (2, 2))).map
                     for map_ in (VALUES, other))
    assert first == pytest.approx(second, abs=1e-6)


@pytest.mark.parametrize(("how", "expected"), [("max", [0, 1, 0.5]), ("minmax", [0, 1, 0]), ("none", [0, 0.4, 0.2])])
def test_only_known_cells_are_normalised(how: str, expected: list[float]) -> None:
    values, certainty = np.array([[0, 0.4, 0.2]], np.float32), np.array([[0, 1, 0.1]], np.float32)
    assert normalise_weighted(Weighted(values, certainty), how).map == pytest.approx(np.array([expected]))
    assert (normalise_weighted(Weighted(values, np.zeros_like(certainty)), how).map == values).all()
    assert normalise_weighted(Weighted(values, None), "max").map.max() == 1


# in files


@pytest.mark.parametrize(("out", "names"), [
    ("maps", ["maps/a%2Bcertainty.npy", "maps/a%2Bcertainty+certainty.npy", "maps/a.npy", "maps/a+certainty.npy"]),
    ("maps.h5", ["maps.h5#0", "maps.h5#1", "maps.h5#2", "maps.h5#3"]),
])
def test_certainty_lies_beside_their_map(tmp_path: Path, out: str, names: list[str]) -> None:
    layers = RANDOM.random((4, 4, 6)).astype(np.float32)
    with open_writer(tmp_path / out) as writer:
        references = [
            writer.save("a+certainty", layers[0]), writer.save_certainty("a+certainty", layers[1]),
            writer.save("a", layers[2]), writer.save_certainty("a", layers[3]),
        ]
    assert references == [str(tmp_path / name) for name in names]
    for reference, values in zip(references, layers, strict=True):
        assert (load_certainty(reference) == values).all()


# the commands


@pytest.fixture
def record(here: Path) -> dict[str, Any]:
    """A palette image of the kind of Pascal VOC: 1 is marked, 255 is void; a mask of where not to look."""
    levels = np.zeros((40, 60), np.uint8)
    levels[10:30, 10:30] = 1
    levels[10:30, 30:35] = 255
    cv2.imwrite("levels.png", levels)
    cv2.imwrite("shunned.png", np.pad(np.full((10, 15), 255, np.uint8), ((30, 0), (0, 45))))
    np.save("map.npy", resize_map((levels == 1).astype(np.float32), (4, 6)))
    return {
        "id": "7", "size": [60, 40], "map": "map.npy", "unknown": {"void": "levels.png#255"},
        "dont_look": {"text": "shunned.png"}, "note": "kept",
    }


def test_certainty_comes_from_the_masks_of_the_record(hk, record: dict[str, Any]) -> None:
    result = hk("certainty", "--out", "out", stdin=[record])
    assert result.exit_code == 0
    assert result.records == [{**record, "map": "out/7.npy", "certainty": "out/7+certainty.npy"}]
    expected = np.ones((4, 6))
    expected[1:3, 3] = 0.5
    assert load_certainty("out/7+certainty.npy") == pytest.approx(expected, abs=1e-6)
    assert (load_map("out/7.npy") == load_map("map.npy")).all()


def test_certainty_by_default_unknown(hk, record: dict[str, Any]) -> None:
    made = hk("certainty", "--default", "unknown", "--out", "out.h5", stdin=[record]).records[0]
    assert (made["map"], made["certainty"]) == ("out.h5#0", "out.h5#1")
    expected = np.zeros((4, 6))
    expected[1:3, 1:3] = 1
    expected[3, 0:2] = [1, 0.5]
    assert load_certainty(made["certainty"]) == pytest.approx(expected, abs=1e-6)
    del record["unknown"], record["dont_look"]
    plain = hk("certainty", "--default", "unknown", "--above", 0.999, "--out", "b", stdin=[record]).records[0]
    assert (load_certainty(plain["certainty"]) == (load_map("map.npy") > 0.999)).all()


def test_certainty_of_nothing_said(hk, record: dict[str, Any]) -> None:
    silent = {"id": "8", "map": "map.npy"}
    empty = {"id": "9", "map": "map.npy", "unknown": {}}
    bare = {"id": "10"}
    result = hk("certainty", "--out", "out", "--missing", "pass", stdin=[silent, empty, bare])
    assert result.records == [silent, {**empty, "map": "out/9.npy", "certainty": "out/9+certainty.npy"}, bare]
    assert (load_certainty("out/9+certainty.npy") == 1).all()


@pytest.mark.parametrize(("more", "message"), [
    ({"map": None}, 'record "7": has no map; expected one; --missing pass'),
    ({"unknown": ["levels.png"]}, "unknown is ['levels.png']; expected an object of names and paths"),
    ({"dont_look": {"x": 4}}, "dont_look is {'x': 4}; expected an object of names and paths"),
    ({"size": [40, 60]}, "a mask of 60x40 pixels for an image of 40x60"),
    ({"unknown": {"x": "gone.png"}}, "gone.png"),
])
def test_what_cannot_be_weighed_is_an_error(hk, record: dict[str, Any], more: dict[str, Any], message: str) -> None:
    result = hk("certainty", "--out", "out", stdin=[{**record, **more}])
    assert result.exit_code == 1
    assert message in result.stderr
    assert not Path("out").exists()


def test_certainty_of_another_size_is_an_error(hk, here: Path) -> None:
    np.save("map.npy", VALUES)
    np.save("certainty.npy", VALUES[:3])
    record = {"id": "7", "map": "map.npy", "certainty": "certainty.npy"}
    result = hk("resize", "--size", 2, "--out", "out", stdin=[record])
    assert result.exit_code == 1
    assert 'record "7": a certainty of (3, 6) beside a map of (4, 6), expected the same (height' in result.stderr


# in the engine


SMALL = ("--arch", "resnet8+abn", "--stem", "small", "--width", 4, "--image-size", 16, "--batch-size", 4)


def tuned(hk, name: str, unknown: float, *, weighted: bool = True) -> tuple[dict[str, Any], float]:
    """Fine-tune and evaluate on maps whose left half holds ``unknown``; the network's tensors and the map MSE."""
    load_model = pytest.importorskip("hkmap.engine.runs").load_model
    np.save("half.npy", np.repeat([[0, 0, 0, 0, 1, 1, 1, 1]], 8, axis=0).astype(np.float32))
    records = []
    for number in range(4):
        random = np.random.default_rng(number)
        cv2.imwrite(f"{number}.png", random.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        values = random.random((8, 8)).astype(np.float32)
        values[:, :4] = unknown
        np.save(f"{name}{number}.npy", values)
        records.append({"id": str(number), "image": f"{number}.png", "label": number % 2, "map": f"{name}{number}.npy"})
    given = [{**record, "certainty": "half.npy"} if weighted else record for record in records]
    assert hk("pack", f"{name}.h5", stdin=given).exit_code == 0
    options = ("--epochs", 2, "--batch-size", 4, "--gamma", 5, "--augment", "crop", "--augment", "rotate")
    if not Path("run").exists():
        assert hk("train", f"{name}.h5", *SMALL, "--epochs", 1, "--out", "run").exit_code == 0
    done = hk("finetune", f"{name}.h5", "--from", "run", *options, "--out", f"run-{name}")
    assert done.exit_code == 0, done.stderr
    result = hk("eval", f"{name}.h5", "--from", f"run-{name}", "--metric", "mse")
    return load_model(Path(f"run-{name}")).network.state_dict(), result.records[0]["metrics"]["mse"]


def test_what_stands_in_unknown_cells_changes_nothing_that_is_learnt_or_measured(hk, here: Path) -> None:
    """No gradient flows from a cell of certainty 0, nor through crops, turns and the average to the network's size."""
    first, first_error = tuned(hk, "zeros", 0)
    second, second_error = tuned(hk, "ones", 1)
    assert all((first[name] == second[name]).all() for name in first)
    assert first_error == second_error
    known, _ = tuned(hk, "known", 1, weighted=False)
    assert any((first[name] != known[name]).any() for name in first)
