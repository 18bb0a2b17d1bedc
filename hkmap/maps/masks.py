"""Lesion masks become a map: the heaviest lesion on each pixel, pooled to the size of the map."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from hkmap.choices import Choices
from hkmap.errors import MapError
from hkmap.maps.check import Map
from hkmap.maps.resize import resize_map, resize_matrix

Mask = npt.NDArray[np.bool_]
Levels = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pool:
    """How the pixels under a cell become its value.

    ``pool`` takes the levels of the pixels (H, W), a table (256,) of the weight of each level, and the size of the map.
    ``whole``: a polygon that covers a part of a cell counts as if it covered the whole cell.
    """

    title: str
    pool: Callable[[Levels, Weights, tuple[int, int]], Map]
    whole: bool


Pooling = str | Pool        # a name in POOLINGS, or such a row


def masks_map(masks: Iterable[Mask], weights: Sequence[float], size: tuple[int, int], pooling: Pooling) -> Map:
    """Return a map of ``size`` (height, width) of the union of ``masks``, each (H, W) and True on the lesion.

    A pixel's value is the largest of the ``weights`` (in (0, 1], one for each mask) of the masks that cover it.
    ``pooling`` is a name in POOLINGS; "mean" follows ``resize_map``, so a map larger than the masks is interpolated.
    The masks are taken one at a time: give an iterator that reads them as it goes, and memory stays small.

    Raises MapError without masks, for a weight outside (0, 1], and for masks of different shapes.
    """
    pool = POOLINGS.row(pooling).pool
    _check_weights(weights)
    levels = sorted(set(weights))
    rest = iter(masks)
    canvas: Levels | None = None
    for weight in weights:      # no name here holds a mask, so it is freed before the next one is read
        canvas = _painted(canvas, next(rest), np.uint8(1 + levels.index(weight)))
    assert canvas is not None, "there is a weight, so there is a mask"
    table = np.zeros(256)
    table[1 : len(levels) + 1] = levels
    return pool(canvas, table, size)


def _painted(canvas: Levels | None, mask: Mask, level: np.uint8) -> Levels:
    if canvas is None:
        canvas = np.zeros(mask.shape, np.uint8)
    if mask.shape != canvas.shape:
        raise MapError(f"a mask of {_size(mask)} pixels beside one of {_size(canvas)}, expected the same size")
    layer = mask.view(np.uint8) if level == 1 else mask.view(np.uint8) * level
    return np.asarray(np.maximum(canvas, layer, out=canvas))


def _mean(canvas: Levels, table: Weights, size: tuple[int, int]) -> Map:
    """Return the cells' means of ``table[canvas]``, row of cells by row of cells: no whole image is float at once."""
    if size[0] >= len(canvas):
        return resize_map(cv2.LUT(canvas, table).astype(np.float32), size)
    shares = resize_matrix(len(canvas), size[0])
    rows = np.zeros((size[0], canvas.shape[1]), np.float32)
    for row, part in enumerate(_touched(len(canvas), size[0])):
        if canvas[part].any():      # most of a picture is free of lesions
            rows[row] = shares[row, part] @ cv2.LUT(canvas[part], table)
    return resize_map(rows, size)


def _highest(canvas: Levels, table: Weights, size: tuple[int, int]) -> Map:
    """Return the cells' largest values of ``table[canvas]``; a pixel on an edge between cells counts in both."""
    rows = np.stack([canvas[part].max(axis=0) for part in _touched(canvas.shape[0], size[0])])
    cells = np.stack([rows[:, part].max(axis=1) for part in _touched(canvas.shape[1], size[1])], axis=1)
    return cv2.LUT(cells, table).astype(np.float32)


def _touched(pixels: int, cells: int) -> list[slice]:
    """Return the pixels that each cell touches, in whole numbers so that no edge is lost to rounding."""
    return [slice(cell * pixels // cells, -(-(cell + 1) * pixels // cells)) for cell in range(cells)]


def _check_weights(weights: Sequence[float]) -> None:
    if not weights:
        raise MapError("no masks, expected at least one")
    if not all(0 < weight <= 1 for weight in weights):
        raise MapError(f"weights {', '.join(f'{weight:g}' for weight in weights)}: expected each above 0 and up to 1")
    if len(set(weights)) > 255:
        raise MapError(f"{len(set(weights))} different weights, expected at most 255; give some lesions the same one")


def _size(mask: npt.NDArray[np.generic]) -> str:
    height, width = mask.shape
    return f"{width}x{height}"


POOLINGS = Choices("pooling", {
    "mean": Pool("A cell is the mean over the part of the image under it.", _mean, whole=False),
    "max": Pool("A cell is the largest of the pixels that it touches.", _highest, whole=True),
})
