"""The one resize: its matrix, its fast form, its torch form, and `hkmap resize`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkmap.errors import MapError
from hkmap.maps.resize import normalise_map, resize_map, resize_matrix

SIZES = [
    ((224, 224), (14, 14)), ((375, 500), (14, 14)), ((224, 224), (23, 23)), ((100, 100), (99, 99)), ((48, 48), (3, 3)),
    ((14, 14), (224, 224)), ((7, 7), (23, 31)), ((1, 1), (5, 5)), ((1, 5), (3, 2)), ((224, 10), (14, 100)),
    ((10, 224), (100, 14)), ((13, 17), (13, 5)), ((13, 17), (40, 17)), ((9, 9), (9, 9)), ((600, 500), (1, 1)),
]


def random_map(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(size).astype(np.float32)


def matrix_form(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (resize_matrix(n_in, n_out) for n_in, n_out in zip(values.shape, size, strict=True))
    return rows @ values.astype(np.float64) @ columns.T


def slow_area(line: list[float], n_out: int) -> list[float]:
    """The mean over each cell, by cutting every sample into n_out equal crumbs."""
    crumbs = [value for value in line for _ in range(n_out)]
    return [float(np.mean(crumbs[cell * len(line) : (cell + 1) * len(line)])) for cell in range(n_out)]


def slow_linear(line: list[float], n_out: int) -> list[float]:
    centres = (np.arange(n_out) + 0.5) / n_out
    return list(np.interp(centres, (np.arange(len(line)) + 0.5) / len(line), line))


@pytest.mark.parametrize(("n_in", "n_out"), [(6, 3), (7, 3), (10, 9), (5, 1), (375, 14), (224, 23)])
def test_where_a_line_shrinks_each_cell_is_the_mean_of_what_it_covers(n_in: int, n_out: int) -> None:
    line = np.random.default_rng(n_in).random(n_in)
    assert resize_matrix(n_in, n_out) @ line == pytest.approx(slow_area(list(line), n_out), abs=1e-12)


@pytest.mark.parametrize(("n_in", "n_out"), [(3, 6), (3, 7), (9, 10), (1, 5), (14, 375), (5, 5)])
def test_where_a_line_grows_it_is_linear_between_centres_and_flat_beyond(n_in: int, n_out: int) -> None:
    line = np.random.default_rng(n_in).random(n_in)
    assert resize_matrix(n_in, n_out) @ line == pytest.approx(slow_linear(list(line), n_out), abs=1e-12)


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_the_matrix_keeps_constants_and_mirrors(before: tuple[int, int], after: tuple[int, int]) -> None:
    matrix = resize_matrix(before[0], after[0])
    assert matrix.dtype == np.float64
    assert matrix.sum(axis=1) == pytest.approx(1, abs=1e-12)
    assert matrix == pytest.approx(matrix[::-1, ::-1], abs=1e-12)


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_the_fast_form_is_the_matrix_form(before: tuple[int, int], after: tuple[int, int]) -> None:
    values = random_map(before)
    resized = resize_map(values, after)
    assert resized.dtype == np.float32
    assert resized.shape == after
    assert np.abs(resized - matrix_form(values, after)).max() <= 1e-6


@pytest.mark.parametrize(("before", "after"), [pair for pair in SIZES if np.all(np.array(pair[0]) >= pair[1])])
def test_the_mean_stays_where_both_sides_shrink(before: tuple[int, int], after: tuple[int, int]) -> None:
    values = random_map(before)
    assert resize_map(values, after).mean(dtype=float) == pytest.approx(values.mean(dtype=float), abs=1e-6)


@pytest.mark.parametrize("after", [(14, 14), (224, 224), (1, 1)])
def test_large_images_are_as_exact_as_small_ones(after: tuple[int, int]) -> None:
    """Where float32 sums drift most: nearly equal values all over, of the size of IDRiD's images."""
    values = random_map((2848, 4288)) * np.float32(0.01) + np.float32(0.83)
    values[:100, :100] = 0
    resized = resize_map(values, after)
    assert np.abs(resized - matrix_form(values, after)).max() <= 1e-6
    assert values.min() <= resized.min()
    assert resized.max() <= values.max()


SIDES = st.integers(1, 400)


@pytest.mark.parametrize(("before", "after"), [
    ((1, 67), (1, 70)), ((61, 1), (64, 1)), ((1, 9), (70, 70)), ((1, 1), (3, 5)),
])
def test_a_line_of_cells(before: tuple[int, int], after: tuple[int, int]) -> None:
    for seed in range(20):
        values = random_map(before, seed)
        resized = resize_map(values, after)
        assert resized.shape == after
        assert np.abs(resized - matrix_form(values, after)).max() <= 3e-7


@settings(max_examples=60, deadline=None)
@given(before=st.tuples(SIDES, SIDES), after=st.tuples(SIDES, SIDES), level=st.floats(0, 1, width=32), seed=SIDES,
       spread=st.sampled_from([0.0, 1e-6, 1.0]))
def test_any_size_of_any_map(before, after, level, seed, spread) -> None:
    noise = random_map(before, seed)
    values = np.clip(np.float32(level) + np.float32(spread) * (noise - np.float32(0.5)), 0, 1)
    resized = resize_map(values, after)
    assert resized.dtype == np.float32
    assert np.abs(resized - matrix_form(values, after)).max() <= 1e-6
    assert values.min() <= resized.min()
    assert resized.max() <= values.max()


def test_a_dab_of_the_brush_is_never_lost() -> None:
    for position in range(224):
        values = np.zeros((224, 224), np.float32)
        values[position, 223 - position] = 1
        assert resize_map(values, (14, 14)).sum() == pytest.approx(1 / 256)


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_the_torch_form_is_the_same(before: tuple[int, int], after: tuple[int, int]) -> None:
    curves = pytest.importorskip("hkmap.engine.resize")
    torch = pytest.importorskip("torch")
    batch = np.stack([random_map(before, seed) for seed in range(3)])
    resized = curves.resize_maps(torch.from_numpy(batch)[:, None], after)
    assert tuple(resized.shape) == (3, 1, *after)
    expected = np.stack([resize_map(values, after) for values in batch])
    assert np.abs(resized[:, 0].numpy() - expected).max() <= 1e-6


def test_the_input_is_left_alone() -> None:
    values = random_map((20, 20))
    before = values.copy()
    normalise_map(resize_map(values, (20, 20)), "max")[:] = 0
    assert (values == before).all()


@pytest.mark.parametrize(("how", "peak"), [("none", 0.5), ("max", 1.0), ("minmax", 1.0), ("sum", 2 / 3)])
def test_normalise(how: str, peak: float) -> None:
    values = np.array([[0, 0.5], [0.25, 0]], np.float32)
    normalised = normalise_map(values, how)
    assert normalised.dtype == np.float32
    assert normalised.max() == pytest.approx(peak)
    assert normalised[1, 0] == pytest.approx(peak / 2)
    assert (normalise_map(np.zeros((2, 2), np.float32), how) == 0).all()


def test_minmax_takes_the_range_to_0_and_1() -> None:
    values = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
    assert normalise_map(values, "minmax").tolist() == [[0, 1], [0.5, 0.5]]
    assert normalise_map(np.full((2, 2), 0.3, np.float32), "minmax").tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_a_map_without_cells_is_an_error(size: tuple[int, int]) -> None:
    with pytest.raises(MapError, match="expected sides of at least 1"):
        resize_map(np.ones((3, 3), np.float32), size)
