"""Masks to maps: the union by weight, and the two poolings, against plain loops."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from hkmap.errors import MapError
from hkmap.maps.masks import masks_map
from hkmap.maps.resize import resize_matrix


def random_masks(shape: tuple[int, int], count: int, density: float = 0.05) -> list[np.ndarray]:
    return list(np.random.default_rng(sum(shape)).random((count, *shape)) < density)


def heaviest(masks: list[np.ndarray], weights: list[float]) -> np.ndarray:
    layers = [mask * weight for mask, weight in zip(masks, weights, strict=True)]
    return np.max(layers, axis=0)


def slow_maximum(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    (height, width), (rows, columns) = values.shape, size
    return np.array([
        [
            max(
                values[y, x]
                for y in range(height) if y * rows < (i + 1) * height and (y + 1) * rows > i * height
                for x in range(width) if x * columns < (j + 1) * width and (x + 1) * columns > j * width
            )
            for j in range(columns)
        ]
        for i in range(rows)
    ])


@pytest.mark.parametrize("size", [(14, 14), (23, 31), (70, 100), (1, 1), (90, 14), (14, 130), (200, 300)])
@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], [0.3, 1.0, 0.5], [0.25, 0.5]])
def test_the_mean_is_the_mean_of_the_heaviest_lesions(size: tuple[int, int], weights: list[float]) -> None:
    masks = random_masks((70, 100), len(weights))
    pixels = heaviest(masks, weights)
    expected = resize_matrix(70, size[0]) @ pixels @ resize_matrix(100, size[1]).T
    values = masks_map(iter(masks), weights, size, "mean")
    assert values.dtype == np.float32
    assert values == pytest.approx(expected, abs=1e-6)


def test_the_mean_over_many_bands_of_rows() -> None:
    masks = random_masks((1100, 60), 2)
    expected = resize_matrix(1100, 23) @ heaviest(masks, [1, 0.5]) @ resize_matrix(60, 14).T
    assert masks_map(masks, [1, 0.5], (23, 14), "mean") == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [(14, 14), (6, 7), (1, 1), (20, 30), (27, 64), (40, 14)])
def test_the_maximum_is_over_every_pixel_that_a_cell_touches(size: tuple[int, int]) -> None:
    weights = [0.3, 1.0, 0.5]
    masks = random_masks((20, 30), 3)
    expected = slow_maximum(heaviest(masks, weights), size)
    assert masks_map(masks, weights, size, "max") == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("height", "width", "side"), [(285, 429, 14), (64, 48, 23), (30, 30, 7)])
def test_no_pixel_of_a_lesion_is_lost(height: int, width: int, side: int) -> None:
    for place in np.random.default_rng(0).integers(0, height * width, 60):
        y, x = divmod(int(place), width)
        mask = np.zeros((height, width), bool)
        mask[y, x] = True
        cell = math.floor((y + 0.5) * side / height), math.floor((x + 0.5) * side / width)
        mean = masks_map([mask], [1.0], (side, side), "mean")
        assert mean[cell] > 0
        assert mean.sum(dtype=float) == pytest.approx(side * side / (height * width), rel=1e-4)
        assert masks_map([mask], [1.0], (side, side), "max")[cell] == 1


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_the_order_of_the_masks_does_not_matter_and_they_are_left_alone(pooling: str) -> None:
    masks, weights = random_masks((40, 50), 3), [0.5, 1.0, 0.25]
    before = [mask.copy() for mask in masks]
    values = masks_map(masks, weights, (14, 14), pooling)
    assert (masks_map(masks[::-1], weights[::-1], (14, 14), pooling) == values).all()
    assert all((mask == copy).all() for mask, copy in zip(masks, before, strict=True))


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_full_mask_is_a_map_of_its_weight_and_an_empty_one_of_zeros(pooling: str) -> None:
    full = np.ones((37, 53), bool)
    assert (masks_map([full], [0.5], (14, 14), pooling) == np.float32(0.5)).all()
    assert (masks_map([~full], [0.5], (14, 14), pooling) == 0).all()


def test_masks_may_be_read_only_views() -> None:
    mask = np.asfortranarray(random_masks((30, 40), 1)[0])[::2, ::-1]
    mask.setflags(write=False)
    assert masks_map([mask], [1], (3, 4), "mean") == pytest.approx(
        cv2.resize(np.ascontiguousarray(mask, dtype=np.float32), (4, 3), interpolation=cv2.INTER_AREA), abs=1e-6
    )


@pytest.mark.parametrize(("count", "weights", "message"), [
    (0, [], "no masks, expected at least one"),
    (1, [0.0], "weights 0: expected each above 0 and up to 1"),
    (2, [1.0, 1.5], "weights 1, 1.5: expected each above 0 and up to 1"),
    (1, [float("nan")], "expected each above 0"),
    (256, list(np.arange(1, 257) / 256), "256 different weights, expected at most 255"),
])
def test_what_cannot_be_drawn_is_an_error(count: int, weights: list[float], message: str) -> None:
    with pytest.raises(MapError, match=message):
        masks_map([np.ones((4, 4), bool)] * count, weights, (2, 2), "mean")


def test_masks_of_two_sizes_are_an_error() -> None:
    with pytest.raises(MapError, match="a mask of 5x4 pixels beside one of 4x4"):
        masks_map([np.ones((4, 4), bool), np.ones((4, 5), bool)], [1, 1], (2, 2), "mean")
