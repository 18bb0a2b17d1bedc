"""Polygons become a map: the exact share of each cell that lies inside, computed along the edges, without pixels.

A spot is inside where a line from it to the outside crosses the outline an odd number of times (the even-odd rule), as
COCO's tools, OpenCV and Pillow fill the same corners: a ring within a ring is a hole, whichever way round it goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from hkmap.errors import MapError
from hkmap.maps.check import Map
from hkmap.maps.masks import POOLINGS, Pooling
from hkmap.maps.resize import resize_map

Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]
Polygon = Sequence[tuple[float, float]]

# Polygons that meet inside a part of a cell count there by the larger share, so the parts are small.
PARTS = 4           # of a cell's side, at least,
LARGE = 2_048       # unless a map has more cells a side: these are small themselves, and parts of them take gigabytes
ACROSS = 224        # of the whole map's side, at least

# What a polygon is cut into, and compared; no outline of a thing comes near. The first takes some 400 MB.
MOST_PIECES, MOST_PAIRS = 4_000_000, 16_000_000


def polygons_map(
    polygons: Sequence[Polygon],
    weights: Sequence[float],
    frame: tuple[int, int],
    size: tuple[int, int],
    pooling: Pooling,
) -> Map:
    """Return a map of ``size`` (height, width) of ``polygons`` in pixels of an image of ``frame`` (width, height).

    A polygon is the list of its corners (x, y); the last is joined to the first. ``weights`` in (0, 1], one for each;
    parts off the image are ignored. With "mean" a cell is the mean over its parts (16 or more; 1 in a large map) of the
    heaviest polygon there, by the exact share of the part that is inside; with "max" it is the largest weight of the
    polygons that reach into it. Raises MapError for a polygon that is a tangle of very many edges.
    """
    if POOLINGS.row(pooling).whole:
        shares = (coverage(polygon, frame, size) > 1e-9 for polygon in polygons)      # rounding leaves 1e-16
        return _heaviest(shares, weights, size)
    fine = _fine(size[0]), _fine(size[1])
    return resize_map(_heaviest((coverage(polygon, frame, fine) for polygon in polygons), weights, fine), size)


def _fine(cells: int) -> int:
    return cells * max(1 if cells > LARGE else PARTS, -(-ACROSS // cells))


def coverage(polygon: Polygon, frame: tuple[int, int], size: tuple[int, int]) -> Array:
    """Return the share of each cell of a grid of ``size`` (height, width) that lies inside the polygon.

    The edges are cut at each other's ends, where they cross, and at the rows of the grid. On the level of a piece no
    edge then passes another: from left to right every second one is where the polygon ends again. So the trapezoids
    between the pieces and the image's right side are added with alternating signs. Raises MapError for a tangle.

    >>> coverage([(0, 0), (3, 0), (3, 2), (0, 2)], (4, 2), (1, 2)).tolist()
    [[1.0, 0.5]]
    """
    height, width = size
    corners = np.array(polygon, dtype=np.float64) * [width / frame[0], height / frame[1]]
    edges = np.stack([corners, np.roll(corners, -1, axis=0)], axis=1)      # (n, 2 ends, x and y)
    edges = np.take_along_axis(edges, np.argsort(edges[:, :, 1:], axis=1), axis=1)     # from top to bottom
    edges = edges[(edges[:, 0, 1] < height) & (edges[:, 1, 1] > 0) & (edges[:, 0, 1] < edges[:, 1, 1])]
    if not len(edges):
        return np.zeros(size)
    ends = np.clip(edges[:, :, 1], 0, height)
    levels = np.unique(np.r_[ends.ravel(), np.arange(np.ceil(ends.min()), ends.max())])
    pieces = _pieces(edges, levels)
    if len(crossings := _crossings(*pieces)):
        pieces = _pieces(edges, np.union1d(levels, crossings))
    level, left, right, top, bottom = pieces
    order = np.lexsort((left + right, level))
    starts = np.searchsorted(level[order], level[order])
    drops = np.empty(len(level))
    drops[order] = (bottom - top)[order] * (1 - 2 * ((np.arange(len(level)) - starts) % 2))
    first, last = int(levels[0]), math.ceil(levels[-1])
    shares = np.zeros(size)
    added = _added(left, right, drops, np.floor(top).astype(int) - first, (last - first, width))
    np.clip(added, 0, 1, out=shares[first:last])
    return shares


def _pieces(edges: Array, levels: Array) -> tuple[Places, Array, Array, Array, Array]:
    """Cut edges, which go from top to bottom, at the ``levels`` (sorted y).

    Return of each piece the number of the level at its top, its x there and at its bottom, and its y there and there.
    """
    firsts, lasts = (np.searchsorted(levels, np.clip(edges[:, end, 1], levels[0], levels[-1])) for end in (0, 1))
    counts = lasts - firsts
    _refuse_a_tangle(counts.sum(), MOST_PIECES)
    of = np.repeat(np.arange(len(edges)), counts)
    level = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(firsts, counts)
    (x, y), (end_x, end_y) = edges[of, 0].T, edges[of, 1].T
    top, bottom = levels[level], levels[level + 1]
    at_top, at_bottom = (x + (place - y) / (end_y - y) * (end_x - x) for place in (top, bottom))
    return level, at_top, at_bottom, top, bottom


def _crossings(level: Places, at_top: Array, at_bottom: Array, top: Array, bottom: Array) -> Array:
    """Return the y of every place where a piece crosses another of its level."""
    order = np.lexsort((at_bottom, at_top, level))
    swapped = (np.diff(at_bottom[order]) < 0) & (np.diff(level[order]) == 0)
    numbers = np.unique(level[order][1:][swapped])
    spans = np.searchsorted(level[order], [numbers, numbers + 1]).T
    _refuse_a_tangle((np.diff(spans) ** 2).sum(), MOST_PAIRS)
    found = [np.empty(0)]
    for span in spans:
        own = order[slice(*span)]
        before, after = np.subtract.outer(at_top[own], at_top[own]), np.subtract.outer(at_bottom[own], at_bottom[own])
        one, other = np.nonzero((before < 0) & (after > 0))
        share = before[one, other] / (before[one, other] - after[one, other])
        found.append(top[own[0]] + share * (bottom[own[0]] - top[own[0]]))
    return np.concatenate(found)


def _added(left: Array, right: Array, drops: Array, rows: Places, size: tuple[int, int]) -> Array:
    """Add up what is right of pieces from x ``left`` to ``right`` within one of the ``rows``; (height, width).

    ``drops`` are their heights, with a sign.
    """
    height, width = size
    low, high = np.minimum(left, right), np.maximum(left, right)
    first = np.clip(np.floor(low) + 1, 0, width + 1)                    # the grid's lines that a piece crosses
    counts = np.clip(np.ceil(high), 0, width + 1) - first
    counts = np.maximum(counts, 0).astype(int) + 1                      # the parts between them
    of = np.repeat(np.arange(len(low)), counts)
    nth = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.where(nth == 0, low[of], first[of] + nth - 1)
    ends = np.where(nth == counts[of] - 1, high[of], first[of] + nth)
    lengths = (high - low)[of]
    parts = drops[of] * np.divide(ends - starts, lengths, out=np.ones(len(of)), where=lengths > 0)
    x = np.clip((starts + ends) / 2, 0, width)
    columns = x.astype(int)
    places = rows[of] * (width + 2) + columns
    sums = np.bincount(places, parts * (columns + 1 - x), minlength=height * (width + 2))
    sums += np.bincount(places + 1, parts * (x - columns), minlength=height * (width + 2))
    return np.asarray(np.cumsum(sums.reshape(height, width + 2), axis=1)[:, :width], dtype=np.float64)


def _refuse_a_tangle(count: int, most: int) -> None:
    if count > most:
        raise MapError(
            f"a polygon whose edges pass each other {count:,} times, expected at most {most:,}; simplify it, or give "
            "it as a mask"
        )


def _heaviest(shares: Iterable[npt.NDArray[np.generic]], weights: Sequence[float], size: tuple[int, int]) -> Map:
    cells = np.zeros(size, np.float32)
    for share, weight in zip(shares, weights, strict=True):
        np.maximum(cells, np.float32(weight) * share.astype(np.float32), out=cells)
    return cells
