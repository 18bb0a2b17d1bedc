"""Boxes become a map: the heaviest box on each spot, averaged over the map's cells, exactly and without pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from hkmap.choices import Choices
from hkmap.maps.check import Map

Array = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]     # left, top, width, height
Boxes = Sequence[Box]
Size = tuple[int, int]
Fill = Callable[[Boxes, Sequence[float], Size, Size], Array]     # boxes_map's arguments → the cells
Edge = str | Fill                           # a name in EDGES, or such a function

SOFT_SHARE = 1 / 4          # of a box's side: as far as a soft edge takes from 0 to 1
SIGMA_SHARE = 1 / 4         # of a box's side, as sigma is half a bubble's radius


def boxes_map(boxes: Boxes, weights: Sequence[float], frame: Size, size: Size, *, edge: Edge) -> Map:
    """Return a map of ``size`` (height, width) of ``boxes`` in pixels of an image of ``frame`` (width, height).

    ``weights`` in (0, 1], one for each box. Parts off the image are ignored. ``edge`` is a name in EDGES.
    """
    cells = EDGES.row(edge)(boxes, weights, frame, size)
    return np.asarray(np.clip(cells, 0, 1), dtype=np.float32)       # a sum of shares may round beyond 1


def filled(boxes: Boxes, weights: Sequence[float], frame: Size, size: Size) -> Array:
    """1 in a box and 0 beyond it; a cell is the mean, over its area, of the heaviest box on each spot."""
    # cut along every edge of a cell or box: on each of the pieces the heaviest box is one number
    table = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    left, top = np.clip(table[:, :2], 0, frame).T
    right, bottom = np.clip(table[:, :2] + table[:, 2:], 0, frame).T
    rows, columns = _edges(frame[1], size[0]), _edges(frame[0], size[1])
    y, x = np.unique(np.r_[rows, top, bottom]), np.unique(np.r_[columns, left, right])
    pieces = np.zeros((len(y) - 1, len(x) - 1))
    spans = (np.searchsorted(lines, side) for lines, side in ((y, top), (y, bottom), (x, left), (x, right)))
    for first, last, start, end, weight in zip(*spans, weights, strict=True):
        piece = pieces[first:last, start:end]
        np.maximum(piece, weight, out=piece)
    pieces *= np.outer(np.diff(y), np.diff(x))
    sums = np.add.reduceat(np.add.reduceat(pieces, np.searchsorted(y, rows[:-1])), np.searchsorted(x, columns[:-1]), 1)
    means: Array = sums / (frame[0] / size[1] * frame[1] / size[0])
    return means


def soft(boxes: Boxes, weights: Sequence[float], frame: Size, size: Size) -> Array:
    """1 in the middle of a box, down to 0 in a straight line over a quarter of its side, 1/2 on its edge.

    Along each axis; the two are multiplied. A cell is the largest of the boxes' means over it, each times its weight.
    """
    return _products(_soft_integral, boxes, weights, frame, size)


def gaussian(boxes: Boxes, weights: Sequence[float], frame: Size, size: Size) -> Array:
    """A Gaussian in the middle of a box, sigma a quarter of its side.

    exp(-d^2 / (2 sigma^2)) of the distance along each axis; the two are multiplied. Cells are as in soft.
    """
    return _products(_gaussian_integral, boxes, weights, frame, size)


EDGES: Choices[Fill] = Choices("edge", {"filled": filled, "soft": soft, "gaussian": gaussian})


def _products(
    integral: Callable[[Array, float, float], Array], boxes: Boxes, weights: Sequence[float], frame: Size, size: Size
) -> Array:
    """Fill each box with the product of its two profiles; ``integral`` is their exact integral up to given places."""
    cells = np.zeros(size)
    for (left, top, width, height), weight in zip(boxes, weights, strict=True):
        down = np.diff(integral(_edges(frame[1], size[0]), top, height)) * size[0] / frame[1]
        across = np.diff(integral(_edges(frame[0], size[1]), left, width)) * size[1] / frame[0]
        np.maximum(cells, weight * np.outer(down, across), out=cells)
    return cells


def _edges(length: int, cells: int) -> Array:
    return np.arange(cells + 1) * length / cells


def _soft_integral(places: Array, start: float, side: float) -> Array:
    """The integral, up to each of the places, of a profile that rises and falls in a straight line over the edges."""
    ramp = side * SOFT_SHARE
    return _ramp_integral(places - start, ramp) - _ramp_integral(places - start - side, ramp)


def _ramp_integral(places: Array, ramp: float) -> Array:
    """The integral of what is 0 up to -ramp / 2, 1 from ramp / 2, and a straight line between."""
    if ramp == 0:
        return np.maximum(places, 0)
    within = np.clip(places + ramp / 2, 0, ramp)
    integral: Array = within**2 / (2 * ramp) + np.maximum(places - ramp / 2, 0)
    return integral


def _gaussian_integral(places: Array, start: float, side: float) -> Array:
    if side == 0:
        return np.zeros_like(places)
    sigma = side * SIGMA_SHARE
    scaled = (places - start - side / 2) / (sigma * math.sqrt(2))
    return sigma * math.sqrt(math.pi / 2) * np.array([math.erf(value) for value in scaled])
