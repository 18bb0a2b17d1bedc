"""Kernel density estimates of where people looked: a Gaussian on every bubble, summed, normalised.

Every sum of N Gaussians over h x w pixels is one matrix product of an (h, N) by an (N, w) matrix, Scott's full
covariance included, instead of N * h * w exponentials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from hkmap.errors import MapError
from hkmap.maps.bandwidths import Rule, fixed, sigma_of
from hkmap.maps.check import Map
from hkmap.maps.resize import NORMALISATIONS, Normalisation, as_it_is, normalise_map
from hkmap.records import Bubble, Record, frame_of

Array = npt.NDArray[np.float64]

LARGEST_CROSS_TERM = 150.0    # |b X Y| inside a tile of rows; see _fill_tile
SMALLEST_EXPONENT = -350.0    # of either factor: clamped terms stay below e^-50 and above the subnormals
ROWS_AT_A_TIME = 56           # which stay in the cache, and whose exponentials serve the rows behind them
MOST_TILES = 32               # more cost as much as the direct sum
SMALLEST_PEAK = 1e-6          # of the total weight, 5.3 sigma away: no centre near the image
EXACT_PEAK = 1e-9             # below it the clamped terms (e^-50) would show, so the direct sum takes over
LOST_PEAK = 1e-290            # below it float64 runs out

# glibc gives the memory of each map back to the system, and the pages of the next one cost more than all its
# exponentials, until it has seen a larger block freed; untouched, the block itself costs nothing.
np.empty(4 << 20, np.uint8)


class Grid(NamedTuple):
    """The centres of a map's pixels, in pixels of the image: x (w,) and y (h,)."""

    x: Array
    y: Array


class Precision(NamedTuple):
    """The inverse [[a, b], [b, c]] of a covariance."""

    a: float
    b: float
    c: float


@lru_cache(maxsize=64)
def pixel_centres(frame: tuple[int, int], size: tuple[int, int]) -> Grid:
    """Return where the pixels of a map of ``size`` (height, width) lie in an image of ``frame`` (width, height).

    >>> pixel_centres((8, 4), (2, 2))
    Grid(x=array([2., 6.]), y=array([1., 3.]))
    """
    (frame_width, frame_height), (height, width) = frame, size
    grid = Grid((np.arange(width) + 0.5) * frame_width / width, (np.arange(height) + 0.5) * frame_height / height)
    for axis in grid:
        axis.flags.writeable = False        # all maps of this size share it
    return grid


def kde_map(
    centres: Array,
    frame: tuple[int, int],
    size: tuple[int, int],
    *,
    bandwidth: str | float | Rule = "scott",
    radii: Array | None = None,
    weights: Array | None = None,
    normalise: Normalisation = "max",
) -> Map:
    """Return the density of ``centres`` (n, 2), x and y in pixels of the image, as a map.

    ``frame`` is (width, height) of the image, ``size`` (height, width) of the map; the density is taken at the
    centres of the map's pixels. ``weights`` (n,) from 0, all 1 by default; "radius" needs ``radii`` (n,) above 0.

    ``bandwidth`` is a name in BANDWIDTHS, a rule such as those, or sigma in pixels of the image. Where a rule says
    nothing, and where a spread lies so far below a pixel of the map that float64 ends before the next centre of one,
    the bubbles are drawn as "fixed". But for a rule of a covariance, no sigma is below half a pixel of the map, so that
    no bubble falls between its pixels.

    ``normalise`` is a name in NORMALISATIONS; "none" is the sum itself, in which the Gaussian of each bubble peaks at
    the bubble's weight, whatever the bandwidth.

    Raises MapError without centres, for negative or all-zero weights, a sigma that is not above 0, where no
    Gaussian reaches the image, and where the sum is not normalised and passes 1; ChoiceError for an unknown name.
    """
    if weights is None:
        weights = np.ones(len(centres))
    _check_weights(weights)
    if weights.min() == 0:
        seen = weights > 0
        centres, weights = centres[seen], weights[seen]
        radii = None if radii is None else radii[seen]
    grid = pixel_centres(frame, size)
    sigma = sigma_of(bandwidth, centres, weights, radii, frame)
    density: npt.NDArray[np.floating] | None = None
    if np.ndim(sigma) == 2:
        density, unit = slanted_sum(centres, grid, np.asarray(sigma), weights), weights.sum()
        sigma = fixed(centres, weights, radii, frame)
    if density is None:
        density, unit = _separable(centres, grid, sigma, weights / weights.max()), weights.max()
    _refuse_far_centres(density, centres, frame)
    return _normalised(density, unit, normalise)


def bubbles_map(
    record: Record,
    bubbles: list[Bubble],
    size: tuple[int, int],
    *,
    bandwidth: str | float | Rule,
    normalise: Normalisation = "max",
    equal_users: bool = False,
) -> Map:
    """Return kde_map of ``bubbles``, whose coordinates lie in the record's frame; its MapError names the record.

    With ``equal_users`` the weights of each user are divided by their sum first.
    """
    table = np.array([bubble[:4] for bubble in bubbles], dtype=np.float64).reshape(-1, 4)
    x_and_y, radii, weights = table[:, :2], table[:, 2], table[:, 3]
    if equal_users:
        weights = equal_say(weights, [bubble.user for bubble in bubbles])
    frame = frame_of(record)
    try:
        return kde_map(x_and_y, frame, size, bandwidth=bandwidth, radii=radii, weights=weights, normalise=normalise)
    except MapError as error:
        raise MapError(f'record "{record["id"]}": {error}') from error


def equal_say(weights: Array, users: Sequence[str]) -> Array:
    """Return the weights (n,), those of each user divided by their sum; a user whose weights are all 0 keeps them.

    >>> equal_say(np.array([1.0, 3.0, 5.0]), ["ada", "ada", "ben"])
    array([0.25, 0.75, 1.  ])
    """
    _, user_of = np.unique(users, return_inverse=True)
    sums = np.bincount(user_of, weights)[user_of]
    return np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0)


def slanted_sum(centres: Array, grid: Grid, factor: Array, weights: Array) -> Array | None:
    """Return the sum of Gaussians of one covariance, given by its lower Cholesky ``factor``, at the pixels, (h, w).

    Their peaks are the ``weights`` (above 0) divided by their sum. None where float64 ends before it reaches a pixel.
    """
    weights = weights / weights.sum()
    density = _tiled(centres, grid, factor, weights)
    if density is not None and _peak(density) >= EXACT_PEAK:
        return density
    density = _direct(centres, grid, factor, weights)
    return density if _peak(density) > LOST_PEAK else None


def _tiled(centres: Array, grid: Grid, factor: Array, weights: Array) -> Array | None:
    """Sum tile by tile, a tile being some rows; None where a sound tile would be too thin."""
    precision = _precision(factor)
    middle = (grid.x[0] + grid.x[-1]) / 2
    x, centre_x = grid.x - middle, centres[:, 0] - middle
    row = grid.y[0] * 2                                            # the height of a pixel of the map
    cross_term = abs(precision.b) * abs(x[0]) * row / 2            # of a tile of one row more than its centre line
    rows = len(grid.y) if cross_term == 0 else int(min(len(grid.y), LARGEST_CROSS_TERM / cross_term))
    if rows * MOST_TILES < len(grid.y):
        return None
    density = np.empty((len(grid.y), len(grid.x)))
    for start in range(0, len(grid.y), rows):
        y = grid.y[start : start + rows]
        middle_y = (y[0] + y[-1]) / 2
        moved = np.stack([centre_x, centres[:, 1] - middle_y], axis=1)
        _fill_tile(density[start : start + rows], moved, Grid(x, y - middle_y), precision, weights)
    return density


def _fill_tile(tile: Array, centres: Array, grid: Grid, precision: Precision, weights: Array) -> None:
    """Sum the Gaussians over one ``tile`` (h, w) as one product; all coordinates count from the tile's middle.

    With dx = X - x_i and dy = Y - y_i the exponent -a/2 dx^2 - c/2 dy^2 - b dx dy is -b X Y (no bubble in it)
    + e_x (no Y) + e_y (no X). The tile is so low that |b X Y| <= 150. Each bubble's maximum of e_x goes over to e_y:
    then e_x <= 0 and, as no exponent is above 0, e_y <= 150, and neither needs to be told below -350: such a term
    counts at most e^(150 + 150 - 350).
    """
    a, b, c = precision
    x_i, y_i = centres[:, :1], centres[:, 1:]                                       # (n, 1)
    exponent_x = _squares(grid.x, x_i, -a / 2)              # (n, w); in place, as each pass over them costs
    exponent_x += (b * y_i) * grid.x
    highest = exponent_x.max(axis=1, keepdims=True)
    exponent_x -= highest
    exponent_y = _squares(grid.y, y_i, -c / 2)              # (n, h)
    exponent_y += (b * x_i) * grid.y
    exponent_y += highest - b * x_i * y_i
    factor_x, factor_y = _exponentials(exponent_x), _exponentials(exponent_y)
    factor_y *= weights[:, None]
    np.matmul(factor_y.T, factor_x, out=tile)               # (h, w)
    # The rows lie equally far apart, so the e^(-b X Y) of some are those of the rows before them times that of one row.
    crossed = -b * grid.x
    within = np.exp(crossed * (grid.y[:ROWS_AT_A_TIME, None] - grid.y[0]))
    for start, first in enumerate(np.exp(crossed * grid.y[::ROWS_AT_A_TIME, None])):
        rows = tile[start * ROWS_AT_A_TIME : (start + 1) * ROWS_AT_A_TIME]
        rows *= within[: len(rows)]
        rows *= first


def _exponentials(exponents: Array) -> Array:
    if exponents.min() < SMALLEST_EXPONENT:         # to look takes a third of the time
        np.maximum(exponents, SMALLEST_EXPONENT, out=exponents)
    return np.exp(exponents, out=exponents)


def _squares(pixels: Array, centres: Array, factor: float) -> Array:
    squares = pixels - centres
    squares *= squares
    squares *= factor
    return squares


def _direct(centres: Array, grid: Grid, factor: Array, weights: Array) -> Array:
    """Sum bubble by bubble, for covariances so thin that their tiles would be single rows."""
    (first, _), (mixed, second) = factor
    density = np.zeros((len(grid.y), len(grid.x)))
    for (x_i, y_i), weight in zip(centres, weights, strict=True):
        u = (grid.x - x_i) / first                              # the whitened coordinates
        v = ((grid.y - y_i)[:, None] - mixed * u) / second
        density += weight * np.exp(np.maximum(-0.5 * (u * u + v * v), -700))      # e^-745 and less is subnormal
    return density


def _separable(centres: Array, grid: Grid, sigma: Array | float, weights: Array) -> Map:
    """Sum isotropic Gaussians whose peaks are ``weights``; ``sigma`` (n,) or one for all, in pixels."""
    factor_x = _gaussians(grid.x, centres[:, 0], sigma)
    factor_x *= weights[:, None].astype(np.float32)
    factor_y = _gaussians(grid.y, centres[:, 1], sigma)
    density: Map = factor_y.T @ factor_x
    return density


def _gaussians(pixels: Array, centres: Array, sigma: Array | float) -> Map:
    half_a_pixel = pixels[0]        # the first centre lies half a pixel from the border
    wide = np.maximum(sigma, half_a_pixel)
    roots = pixels - centres[:, None]
    roots *= np.reshape(math.sqrt(0.5) / wide, (-1, 1))
    exponents: Map = roots.astype(np.float32)
    exponents *= exponents
    # e^-40 is nothing beside a peak, and float32 subnormals make the product many times slower.
    np.minimum(exponents, 40, out=exponents)
    np.negative(exponents, out=exponents)
    return np.exp(exponents, out=exponents)


def _peak(density: npt.NDArray[np.floating]) -> float:
    return float(cv2.norm(density, cv2.NORM_INF))       # nothing is below 0; half the time of max()


def _refuse_far_centres(density: npt.NDArray[np.floating], centres: Array, frame: tuple[int, int]) -> None:
    if _peak(density) < SMALLEST_PEAK and not np.all((centres >= 0) & (centres <= frame), axis=1).any():
        x, y = centres[0]
        raise MapError(
            f"all {len(centres)} bubbles lie far off the image of {frame[0]}x{frame[1]} pixels, the first at "
            f"({x:g}, {y:g}); is the frame right?"
        )


def _normalised(density: npt.NDArray[np.floating], unit: float, how: Normalisation) -> Map:
    """Normalise a density in which a weight of ``unit`` peaks at 1."""
    if NORMALISATIONS.row(how) is as_it_is:
        density = _within_1(density * unit)
    values = normalise_map(density, how)
    cv2.threshold(values, 1e-30, 0, cv2.THRESH_TOZERO, dst=values)      # no subnormals for the next stage
    return values


def _within_1(density: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    highest = density.max()
    if highest > 1 + 1e-6:              # float32 may round a sum of 1 up
        raise MapError(
            f"the sum of the bubbles reaches {highest:.3g}, expected at most 1 where nothing is normalised; "
            "lower their weights, or divide by the maximum (--normalise max)"
        )
    return np.asarray(np.minimum(density, 1))


def _check_weights(weights: Array) -> None:
    if len(weights) == 0:
        raise MapError("no bubbles, expected at least one; a map of zeros says that there is nothing to look at")
    low, high = weights.min(), weights.max()        # NaN if there is one
    if not 0 <= low <= high < math.inf:
        raise MapError(f"weights span [{low:g}, {high:g}], expected finite numbers from 0")
    if high == 0:
        raise MapError(f"all {len(weights)} bubbles have weight 0, expected one above 0; leave the weights out")


def _precision(factor: Array) -> Precision:
    (first, _), (mixed, second) = factor
    slope = mixed / (first * second)
    return Precision(1 / first**2 + slope**2, -slope / second, 1 / second**2)
