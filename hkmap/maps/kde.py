"""Kernel density estimates of where people looked: a Gaussian on every bubble, summed, normalised.

Every sum of N Gaussians over h x w pixels is one matrix product of an (h, N) by an (N, w) matrix, Scott's full
covariance included, instead of N * h * w exponentials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hkmap.errors import MapError
from hkmap.maps.bandwidths import Rule, fixed, sigma_of
from hkmap.maps.check import Map
from hkmap.maps.resize import NORMALISATIONS, Normalisation, as_it_is, normalise_map
from hkmap.records import Bubble, Record, frame_of

Array = npt.NDArray[np.float64]

LARGEST_CROSS_TERM = 150.0    # |b X Y| inside a tile of rows; see _tile
SMALLEST_EXPONENT = -350.0    # of either factor: clamped terms stay below e^-50 and above the subnormals
MOST_TILES = 32               # more cost as much as the direct sum
SMALLEST_PEAK = 1e-6          # of the total weight, as at 5.3 sigma: no centre is near the image
EXACT_PEAK = 1e-9             # below it the clamped terms (e^-50) would show, so the direct sum takes over
LOST_PEAK = 1e-290            # below it float64 underflows

# glibc returns the memory of each map to the system until it has seen a larger block freed. Page faults would then take
# longer than all the exponentials. The untouched block costs nothing.
np.empty(4 << 20, np.uint8)


class Grid(NamedTuple):
    """The centres of a map's pixels, in pixels of the image: x (w,) and y (h,)."""

    x: Array
    y: Array


def pixel_centres(frame: tuple[int, int], size: tuple[int, int]) -> Grid:
    """Return where the pixels of a map of ``size`` (height, width) lie in an image of ``frame`` (width, height).

    >>> pixel_centres((8, 4), (2, 2))
    Grid(x=array([2., 6.]), y=array([1., 3.]))
    """
    (frame_width, frame_height), (height, width) = frame, size
    return Grid((np.arange(width) + 0.5) * frame_width / width, (np.arange(height) + 0.5) * frame_height / height)


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

    ``bandwidth`` is a name in BANDWIDTHS, a rule such as those, or sigma in pixels of the image. Bubbles are drawn as
    "fixed" where a rule gives None, and where the covariance is so small that float64 underflows before the nearest
    pixel. Any other sigma is at least half a pixel of the map, so no bubble falls between its pixels.

    ``normalise`` is a name in NORMALISATIONS; "none" is the sum itself, in which each Gaussian peaks at the weight of
    its bubble, at any bandwidth.

    Raises MapError without centres, for negative or all-zero weights, for a sigma that is not above 0, where no
    Gaussian reaches the image, and for a sum above 1 that is not normalised; ChoiceError for an unknown name.
    """
    if weights is None:
        weights = np.ones(len(centres))
    _check_weights(weights)
    seen = weights > 0
    centres, weights, radii = centres[seen], weights[seen], None if radii is None else radii[seen]
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
    """Return kde_map of ``bubbles`` in the record's frame; its MapError names the record.

    With ``equal_users`` the weights of each user are first divided by their sum.
    """
    table = np.array([bubble[:4] for bubble in bubbles], dtype=np.float64).reshape(-1, 4)
    centres, radii, weights = table[:, :2], table[:, 2], table[:, 3]
    if equal_users:
        weights = equal_say(weights, [bubble.user for bubble in bubbles])
    frame = frame_of(record)
    try:
        return kde_map(centres, frame, size, bandwidth=bandwidth, radii=radii, weights=weights, normalise=normalise)
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

    Their peaks are the ``weights`` (above 0) divided by their sum. None where float64 underflows at every pixel.
    """
    weights = weights / weights.sum()
    density = _tiled(centres, grid, factor, weights)
    if density is not None and density.max() >= EXACT_PEAK:
        return density
    density = _direct(centres, grid, factor, weights)
    return density if density.max() > LOST_PEAK else None


def _tiled(centres: Array, grid: Grid, factor: Array, weights: Array) -> Array | None:
    """Sum tile by tile, a tile being some rows; None where a tile would have to be too thin."""
    inverse = np.linalg.inv(factor)
    precision = inverse.T @ inverse                                # the inverse of the covariance
    middle = (grid.x[0] + grid.x[-1]) / 2
    x, centre_x = grid.x - middle, centres[:, 0] - middle
    row = grid.y[0] * 2                                            # the height of a pixel of the map
    cross_term = abs(precision[0, 1]) * abs(x[0]) * row / 2        # of a tile of one row more than its centre line
    rows = len(grid.y) if cross_term == 0 else int(min(len(grid.y), LARGEST_CROSS_TERM / cross_term))
    if rows * MOST_TILES < len(grid.y):
        return None
    tiles = []
    for start in range(0, len(grid.y), rows):
        y = grid.y[start : start + rows]
        middle = (y[0] + y[-1]) / 2
        tiles.append(_tile(centre_x, centres[:, 1] - middle, Grid(x, y - middle), precision, weights))
    return np.concatenate(tiles)


def _tile(centre_x: Array, centre_y: Array, grid: Grid, precision: Array, weights: Array) -> Array:
    """Return the sum of the Gaussians over one tile (h, w); all coordinates count from the tile's middle.

    With precision [[a, b], [b, c]], dx = X - x_i and dy = Y - y_i the exponent -a/2 dx^2 - c/2 dy^2 - b dx dy is
    -b X Y (the same for all bubbles) + e_x (no Y) + e_y (no X). The tile is so low that |b X Y| <= 150. The maximum of
    each bubble's e_x is moved to e_y: then e_x <= 0 and, as no exponent is above 0, e_y <= 150. Both are clamped at
    -350: a clamped term is at most e^(150 + 150 - 350).
    """
    (a, b), (_, c) = precision
    x_i, y_i = centre_x[:, None], centre_y[:, None]                                 # (n, 1)
    exponent_x = -a / 2 * np.square(grid.x - x_i) + b * y_i * grid.x                # (n, w)
    highest = exponent_x.max(axis=1, keepdims=True)
    exponent_y = -c / 2 * np.square(grid.y - y_i) + b * x_i * grid.y + (highest - b * x_i * y_i)        # (n, h)
    factor_x = np.exp(np.maximum(exponent_x - highest, SMALLEST_EXPONENT))
    factor_y = np.exp(np.maximum(exponent_y, SMALLEST_EXPONENT)) * weights[:, None]
    tile: Array = (factor_y.T @ factor_x) * np.exp(np.outer(grid.y, -b * grid.x))
    return tile


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
    factor_x = _gaussians(grid.x, centres[:, 0], sigma) * weights[:, None].astype(np.float32)
    density: Map = _gaussians(grid.y, centres[:, 1], sigma).T @ factor_x
    return density


def _gaussians(pixels: Array, centres: Array, sigma: Array | float) -> Map:
    wide = np.maximum(sigma, pixels[0])     # the first centre lies half a pixel from the border
    roots = (pixels - centres[:, None]) * np.reshape(math.sqrt(0.5) / wide, (-1, 1))
    # e^-40 is nothing beside a peak, and float32 subnormals make the product many times slower
    return np.exp(-np.minimum(np.square(roots.astype(np.float32)), 40))


def _refuse_far_centres(density: npt.NDArray[np.floating], centres: Array, frame: tuple[int, int]) -> None:
    if density.max() < SMALLEST_PEAK and not np.all((centres >= 0) & (centres <= frame), axis=1).any():
        x, y = centres[0]
        raise MapError(
            f"all {len(centres)} bubbles lie far off the image of {frame[0]}x{frame[1]} pixels, the first at "
            f"({x:g}, {y:g}); is the frame right?"
        )


def _normalised(density: npt.NDArray[np.floating], unit: float, how: Normalisation) -> Map:
    """Normalise a density in which a weight of ``unit`` peaks at 1."""
    if NORMALISATIONS.row(how) is as_it_is:
        density = density * unit
        if density.max() > 1 + 1e-6:        # float32 may round a sum of 1 up
            raise MapError(
                f"the sum of the bubbles reaches {density.max():.3g}, expected at most 1 where nothing is normalised; "
                "lower their weights, or divide by the maximum (--normalise max)"
            )
        density = np.minimum(density, 1)
    values = normalise_map(density, how)
    return values * (values >= 1e-30)       # no subnormals for the next stage


def _check_weights(weights: Array) -> None:
    if len(weights) == 0:
        raise MapError("no bubbles, expected at least one; for an image with nothing to look at give a map of zeros")
    low, high = weights.min(), weights.max()        # NaN if there is one
    if not 0 <= low <= high < math.inf:
        raise MapError(f"weights span [{low:g}, {high:g}], expected finite numbers from 0")
    if high == 0:
        raise MapError(f"all {len(weights)} bubbles have weight 0, expected one above 0; omit the weights")
