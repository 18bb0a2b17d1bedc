"""Boxes become a map: the heaviest box on each spot, averaged over the map's cells without a detour over pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from hkmap.maps.check import Map

Array = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]     # left, top, width, height
Edge = Literal["filled", "soft", "gaussian"]

SOFT_SHARE = 1 / 4          # of a box's side: as far as a soft edge takes from 0 to 1
SIGMA_SHARE = 1 / 4         # of a box's side, as sigma is half a bubble's radius


def boxes_map(
    boxes: Sequence[Box], weights: Sequence[float], frame: tuple[int, int], size: tuple[int, int], *, edge: Edge
) -> Map:
    """Return a map of ``size`` (height, width) of ``boxes`` in pixels of an image of ``frame`` (width, height).

    ``weights`` in (0, 1], one for each box. What lies off the image is cut away. ``edge`` is one of

    - "filled": a box is 1, and 0 beyond it; a cell is the mean, over its area, of the heaviest box on each spot;
    - "soft": along each axis 1 in the middle three quarters of the box, from there straight down to 0 an eighth of its
      side beyond it, so 1/2 on its edge; the two axes multiplied;
    - "gaussian": exp(-d^2 / (2 sigma^2)) of the distance to the middle along each axis, sigma a quarter of the side;
      the two axes multiplied.

    Of the last two a cell is the exact mean of each box over its area, times its weight, and then the largest of all.
    """
    if edge == "filled":
        return _filled(boxes, weights, frame, size)
    profile = {"soft": _soft_integral, "gaussian": _gaussian_integral}[edge]
    cells = np.zeros(size)
    for (left, top, width, height), weight in zip(boxes, weights, strict=True):
        down = np.diff(profile(_edges(frame[1], size[0]), top, height)) * size[0] / frame[1]
        across = np.diff(profile(_edges(frame[0], size[1]), left, width)) * size[1] / frame[0]
        np.maximum(cells, weight * np.outer(down, across), out=cells)
    return _map(cells)


def _filled(boxes: Sequence[Box], weights: Sequence[float], frame: tuple[int, int], size: tuple[int, int]) -> Map:
    """Cut the image along every edge of a cell or box: on each of the pieces the heaviest box is one number."""
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
    return _map(sums / (frame[0] / size[1] * frame[1] / size[0]))


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


def _map(cells: Array) -> Map:
    return np.asarray(np.clip(cells, 0, 1), dtype=np.float32)       # a sum of shares may round beyond 1
