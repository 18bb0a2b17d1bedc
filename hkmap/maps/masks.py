"""Lesion masks become a map: the heaviest lesion on each pixel, then pooled to the map's size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from hkmap.choices import Choices
from hkmap.errors import MapError
from hkmap.maps.check import Map
from hkmap.maps.resize import resize_map

Mask = npt.NDArray[np.bool_]
Levels = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pool:
    """How the pixels under a cell become its value.

    ``pool`` takes the pixels' levels (H, W), a table (256,) of the levels' weights, and the size of the map. ``whole``:
    a cell that a polygon covers in part counts as if it covered the whole cell.
    """

    title: str
    pool: Callable[[Levels, Weights, tuple[int, int]], Map]
    whole: bool


Pooling = str | Pool        # a name in POOLINGS, or what stands there


def masks_map(masks: Iterable[Mask], weights: Sequence[float], size: tuple[int, int], pooling: Pooling) -> Map:
    """Return a map of ``size`` (height, width) of the union of ``masks``, each (H, W) and True on the lesion.

    A pixel's value is the largest of the ``weights`` (in (0, 1], one for each mask) of the masks that cover it.
    ``pooling`` is a name in POOLINGS; "mean" follows ``resize_map``, so a map larger than the masks is interpolated.
    The masks are taken one at a time: an iterator that reads them as it goes holds three images of bytes in memory.

    Raises MapError without masks, for a weight outside (0, 1], and for masks of different shapes.
    """
    pool = POOLINGS.row(pooling).pool
    _check_weights(weights)
    levels = sorted(set(weights))
    numbers = [np.uint8(1 + levels.index(weight)) for weight in weights]
    layers = map(_layer, masks, numbers)
    canvas, own = next(layers), None
    for _ in weights[1:]:       # no name holds a layer for long, so it is gone when the next one is read
        canvas = own = _heavier(canvas, next(layers), out=own)
    table = np.zeros(256, np.float32)
    table[1 : len(levels) + 1] = levels
    return pool(canvas, table, size)


def _layer(mask: Mask, number: np.uint8) -> Levels:
    return mask.view(np.uint8) if number == 1 else mask.view(np.uint8) * number


def _heavier(canvas: Levels, layer: Levels, *, out: Levels | None) -> Levels:
    """Return the larger of each two pixels, in new memory the first time: the masks are somebody's."""
    if layer.shape != canvas.shape:
        raise MapError(f"a mask of {_size(layer)} pixels beside one of {_size(canvas)}, expected the same size")
    return np.maximum(canvas, layer, out=out)


def _mean(canvas: Levels, table: Weights, size: tuple[int, int]) -> Map:
    """Return the cells' means of ``table[canvas]``, the height first, so that no whole image is float."""
    if size[0] >= len(canvas):
        return resize_map(_weighted(canvas, table), size)
    low = np.empty((size[0], canvas.shape[1]), np.float32)
    for row in range(size[0]):
        low[row] = _mean_row(canvas, table, row, size[0])
    return resize_map(low, size)


def _mean_row(canvas: Levels, table: Weights, row: int, height: int) -> npt.NDArray[np.float64]:
    """Return the mean over the rows of the canvas under one of ``height`` rows, (W,), fractions of rows included."""
    # In units of 1 / height of a row of the canvas every edge is a whole number, so the fractions are exact.
    start, stop = row * len(canvas), (row + 1) * len(canvas)
    first, last = -(-start // height), stop // height       # the rows that lie wholly in it; at least one starts in it
    above, below = first * height - start, stop - last * height
    strip = canvas[first - (above > 0) : last + (below > 0)]
    if not strip.any():         # most of a picture is free of lesions
        return np.zeros(strip.shape[1])
    single = table[2] == 0      # one level, whose number is 1: its weight can wait
    weighted = strip if single else _weighted(strip, table)
    exact = cv2.CV_32F if single else cv2.CV_64F      # whole numbers fit into either
    total: npt.NDArray[np.float64] = cv2.reduce(weighted, 0, cv2.REDUCE_SUM, dtype=exact)[0].astype(np.float64)
    if above:
        total -= weighted[0] * (1 - above / height)
    if below:
        total -= weighted[-1] * (1 - below / height)
    total *= (table[1] if single else 1) * height / len(canvas)
    return total


def _weighted(canvas: Levels, table: Weights) -> Map:
    return np.asarray(cv2.LUT(canvas, table), dtype=np.float32)


def _highest(canvas: Levels, table: Weights, size: tuple[int, int]) -> Map:
    """Return the cells' largest values of ``table[canvas]``; a pixel on an edge between cells counts in both."""
    rows = np.stack([canvas[part].max(axis=0) for part in _touched(canvas.shape[0], size[0])])
    cells = np.stack([rows[:, part].max(axis=1) for part in _touched(canvas.shape[1], size[1])], axis=1)
    return _weighted(cells, table)


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
