"""Polygons become a map: the exact share of each cell that lies inside, computed along the edges, without pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from hkmap.maps.check import Map
from hkmap.maps.masks import POOLINGS, Pooling
from hkmap.maps.resize import resize_map

Array = npt.NDArray[np.float64]
Polygon = Sequence[tuple[float, float]]

# Polygons that meet inside a part of a cell count there by the larger share, so the parts are small.
PARTS = 4           # of a cell's side, at least
ACROSS = 224        # of the whole map's side, at least


def polygons_map(
    polygons: Sequence[Polygon],
    weights: Sequence[float],
    frame: tuple[int, int],
    size: tuple[int, int],
    pooling: Pooling,
) -> Map:
    """Return a map of ``size`` (height, width) of ``polygons`` in pixels of an image of ``frame`` (width, height).

    A polygon is the list of its corners (x, y); the last is joined to the first, and a spot is inside where the polygon
    winds round it. ``weights`` in (0, 1], one for each; parts off the image are ignored. With "mean" a cell is the mean
    over its parts (16 or more) of the heaviest polygon there, by the exact share of the part that is inside; with "max"
    it is the largest weight of the polygons that reach into it.
    """
    if POOLINGS.row(pooling).whole:
        shares = (coverage(polygon, frame, size) > 1e-9 for polygon in polygons)      # rounding leaves 1e-16
        return _heaviest(shares, weights, size)
    fine = _fine(size[0]), _fine(size[1])
    return resize_map(_heaviest((coverage(polygon, frame, fine) for polygon in polygons), weights, fine), size)


def _fine(cells: int) -> int:
    return cells * max(PARTS, -(-ACROSS // cells))


def coverage(polygon: Polygon, frame: tuple[int, int], size: tuple[int, int]) -> Array:
    """Return the share of each cell of a grid of ``size`` (height, width) that lies inside the polygon.

    The trapezoids between each edge and the image's right side are added, with one sign for downward edges and the
    other for upward ones; the sum is how often the polygon winds round each spot.

    >>> coverage([(0, 0), (3, 0), (3, 2), (0, 2)], (4, 2), (1, 2)).tolist()
    [[1.0, 0.5]]
    """
    height, width = size
    corners = np.array(polygon, dtype=np.float64) * [width / frame[0], height / frame[1]]
    sums = np.zeros((height, width + 2))
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        _add_edge(sums, start, end)
    winding: Array = np.cumsum(sums, axis=1)[:, :width]
    return np.clip(np.abs(winding), 0, 1)


def _add_edge(sums: Array, start: Array, end: Array) -> None:
    """Add to each cell what the edge changes there, compared with the cell to its left."""
    height, width = sums.shape[0], sums.shape[1] - 2
    pieces = _cut(start, end, (width, height))
    middles, drops = (pieces[1:] + pieces[:-1]) / 2, np.diff(pieces[:, 1])
    seen = (middles[:, 1] > 0) & (middles[:, 1] < height)
    x, drops = np.clip(middles[seen, 0], 0, width), drops[seen]
    rows, columns = middles[seen, 1].astype(int), x.astype(int)
    np.add.at(sums, (rows, columns), drops * (columns + 1 - x))
    np.add.at(sums, (rows, columns + 1), drops * (x - columns))


def _cut(start: Array, end: Array, sides: tuple[int, int]) -> Array:
    """Cut an edge where it crosses a line of the grid; return the points (n, 2) in order, both ends among them."""
    places = [np.array([0.0, 1.0])]
    for first, last, side in zip(start, end, sides, strict=True):
        low, high = sorted((first, last))
        lines = np.arange(max(0, np.ceil(low)), min(side, np.floor(high)) + 1)
        if low < high:
            places.append((lines - first) / (last - first))
    shares = np.unique(np.clip(np.concatenate(places), 0, 1))
    points: Array = start + shares[:, None] * (end - start)
    return points


def _heaviest(shares: Iterable[npt.NDArray[np.generic]], weights: Sequence[float], size: tuple[int, int]) -> Map:
    cells = np.zeros(size, np.float32)
    for share, weight in zip(shares, weights, strict=True):
        np.maximum(cells, np.float32(weight) * share.astype(np.float32), out=cells)
    return cells
