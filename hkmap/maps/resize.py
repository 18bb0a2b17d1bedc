"""The one resize of maps: along each axis area averages where it shrinks, bilinear where it grows.

``resize_matrix`` is the definition; ``resize_map`` is its fast form, and the engine's torch form follows it too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from hkmap.choices import Choices
from hkmap.errors import MapError
from hkmap.maps.check import Map

Values = npt.NDArray[np.floating]
Normaliser = Callable[[Values], Map]
Normalisation = str | Normaliser        # a name in NORMALISATIONS, or such a function

MOST_AVERAGED = 8       # cells along an axis that one call of cv2 averages
CV2_ZERO = 1e-15        # cv2.normalize takes a maximum of 2e-16 for 0


def resize_matrix(n_in: int, n_out: int) -> npt.NDArray[np.float64]:
    """Return the (n_out, n_in) matrix that resizes a line of ``n_in`` cells to ``n_out``; its rows sum to 1.

    Fewer cells: each is the mean of the part of the line that it covers, fractions of cells included, so nothing is
    lost and the mean stays. More cells: linear between the centres of the cells, which lie at (j + 0.5) / n
    (``align_corners=False``), and constant beyond the outermost centres.

    >>> resize_matrix(4, 2).tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    >>> resize_matrix(2, 4).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    _check_size((n_in, n_out))
    return _area_matrix(n_in, n_out) if n_out < n_in else _linear_matrix(n_in, n_out)


def resize_map(values: Map, size: tuple[int, int]) -> Map:
    """Return the map with ``size`` = (height, width): ``resize_matrix`` applied to its rows and its columns.

    No value leaves the range of the input. A map of its own size comes back as it is.
    """
    if 1 in values.shape and values.shape != size:
        return _resized_line(values, size)
    resized: npt.NDArray[Any] = values
    for columns_and_rows, method in _steps(values.shape, size):
        resized = cv2.resize(resized, columns_and_rows, None, 0, 0, method)
    lowest, highest, _, _ = cv2.minMaxLoc(values)
    return np.clip(resized, lowest, highest, out=np.empty_like(resized))     # rounding may leave the range


def normalise_map(values: Values, how: Normalisation) -> Map:
    """Return the values as a map, normalised by a row of NORMALISATIONS; a map of zeros stays one.

    >>> normalise_map(np.array([[1.0, 2.0, 5.0]]), "minmax").tolist()
    [[0.0, 0.25, 1.0]]
    """
    return NORMALISATIONS.row(how)(values)


def by_maximum(values: Values) -> Map:
    """Divide by the maximum."""
    highest = values.max()
    if values.dtype == np.float64 and highest > CV2_ZERO:       # the same in a third of the time
        return np.asarray(cv2.normalize(values, np.empty(values.shape, np.float32), 1, 0, cv2.NORM_INF, cv2.CV_32F))
    return np.asarray(values / (highest or 1), dtype=np.float32)


def by_range(values: Values) -> Map:
    """Stretch from 0 to 1; a map that is the same everywhere is divided by its maximum."""
    lowest, highest = values.min(), values.max()
    if lowest == highest:
        return by_maximum(values)
    return np.asarray((values - lowest) / (highest - lowest), dtype=np.float32)


def by_sum(values: Values) -> Map:
    """Divide by the sum."""
    return np.asarray(values / (values.sum(dtype=np.float64) or 1), dtype=np.float32)


def as_it_is(values: Values) -> Map:
    """Change nothing."""
    return np.asarray(values, dtype=np.float32)


NORMALISATIONS: Choices[Normaliser] = Choices(
    "normalisation", {"max": by_maximum, "minmax": by_range, "sum": by_sum, "none": as_it_is}
)


@lru_cache(maxsize=64)
def _steps(before: tuple[int, ...], after: tuple[int, int]) -> list[tuple[tuple[int, int], int]]:
    """Return the sizes (width, height) on the way from ``before`` to ``after``, each with cv2's method to get there.

    cv2 uses one method for both axes, so an axis that shrinks and one that grows need a call each. An average of more
    than 8x8 cells is an average of averages: cv2 adds in float32, whose error grows with the number of terms (7e-3 for
    one mean of 2848x4288 cells; in steps it stays below 5e-7), and two calls are faster than one.
    """
    _check_size(after)
    steps = []
    smaller = min(before[0], after[0]), min(before[1], after[1])
    while before != smaller:
        before = _averaged_side(before[0], smaller[0]), _averaged_side(before[1], smaller[1])
        steps.append((before[::-1], cv2.INTER_AREA))
    if smaller != after:
        steps.append((after[::-1], cv2.INTER_LINEAR))
    return steps


def _resized_line(values: Map, size: tuple[int, int]) -> Map:
    """Double sides of one cell first: where a side is 1, cv2 is off by up to 2e-6."""
    rows, columns = (1 + (side == 1) for side in values.shape)
    thick = values.repeat(rows, axis=0).repeat(columns, axis=1)
    height, width = size
    return np.array(resize_map(thick, (max(height, rows), max(width, columns)))[:height, :width])


def _averaged_side(cells: int, goal: int) -> int:
    """Return the largest goal * 8^k below ``cells``, so that whole cells are averaged in all later steps."""
    side = goal
    while side * MOST_AVERAGED < cells:
        side *= MOST_AVERAGED
    return side


def _area_matrix(n_in: int, n_out: int) -> npt.NDArray[np.float64]:
    # In units of 1 / n_out of an input cell every edge is a whole number, so the overlaps are exact.
    starts, cells = np.arange(n_out)[:, None] * n_in, np.arange(n_in)[None, :] * n_out
    overlap = np.minimum(starts + n_in, cells + n_out) - np.maximum(starts, cells)
    matrix: npt.NDArray[np.float64] = np.maximum(overlap, 0) / n_in
    return matrix


def _linear_matrix(n_in: int, n_out: int) -> npt.NDArray[np.float64]:
    centres = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    matrix: npt.NDArray[np.float64] = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(n_in)[None, :]))
    return matrix


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < 1:
        raise MapError(f"size {size[0]}x{size[1]}: expected sides of at least 1 cell")
