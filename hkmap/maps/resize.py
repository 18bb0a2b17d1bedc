"""The one resize of maps: along each axis area averages where it shrinks, bilinear where it grows.

``resize_matrix`` is the definition; ``resize_map`` is its fast form, and the engine's torch form follows it too.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from hkmap.errors import MapError
from hkmap.maps.check import Map

Normalisation = Literal["max", "minmax", "sum", "none"]


def resize_matrix(n_in: int, n_out: int) -> npt.NDArray[np.float64]:
    """Return the (n_out, n_in) matrix that takes a line of ``n_in`` cells to one of ``n_out``; its rows sum to 1.

    Fewer cells: each is the mean of the part of the line that it covers, fractions of cells included, so nothing
    between two samples is lost and the mean stays. More cells: linear between the cells' centres, which lie at
    (j + 0.5) / n (``align_corners=False``), and constant beyond the outermost centres.

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
    _check_size(size)
    rows, columns = values.shape
    height, width = size
    low, high = values.min(), values.max()
    # cv2 decides once for both axes, so an axis that shrinks and one that grows need a call each.
    # Area sums in float64: in float32 they drift by 5e-6 over large images, and cost only a little less.
    smaller = cv2.resize(
        values.astype(np.float64), (min(width, columns), min(height, rows)), interpolation=cv2.INTER_AREA
    )
    resized = cv2.resize(smaller.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.clip(resized, low, high), dtype=np.float32)


def normalise_map(values: npt.NDArray[np.floating], how: Normalisation) -> Map:
    """Divide by the maximum ("max") or the sum ("sum"), stretch the range to [0, 1] ("minmax"), or do nothing ("none").

    A map of zeros stays one; another that is the same everywhere has no range, so "minmax" divides it by its maximum.

    >>> normalise_map(np.array([[1.0, 2.0, 5.0]]), "minmax").tolist()
    [[0.0, 0.25, 1.0]]
    """
    highest = values.max()
    if how == "none" or highest == 0:
        return np.asarray(values, dtype=np.float32)
    if how == "sum":
        return np.asarray(values / values.sum(dtype=np.float64), dtype=np.float32)
    if how == "minmax" and (lowest := values.min()) < highest:
        return np.asarray((values - lowest) / (highest - lowest), dtype=np.float32)
    return np.asarray(values / highest, dtype=np.float32)


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
