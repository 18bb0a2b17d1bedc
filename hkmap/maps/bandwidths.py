"""How wide the Gaussian of a bubble is: a number, or a rule that looks at the bubbles."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hkmap.choices import Choices
from hkmap.errors import MapError

Array = npt.NDArray[np.float64]

#: The ``centres`` (n, 2) in pixels of the image, their ``weights`` (n,) above 0, their ``radii`` (n,), or None, and the
#: ``frame`` (width, height) of the image → sigma in pixels: one for all, one for each (n,), or, as a (2, 2) matrix, the
#: lower Cholesky factor of one covariance for all. None where the rule does not apply: then "fixed" is used.
Rule = Callable[[Array, Array, Array | None, tuple[int, int]], Array | float | None]

#: The sigmas that are tried, in units of sqrt(width * height): from 1/256 to 1/2, eight to a doubling.
SHARES: Array = 2.0 ** (np.arange(-64, -7) / 8)
PAIRS_AT_A_TIME = 1 << 15    # they stay in the cache
FIXED_SIGMAS_A_SIDE = 14      # the paper's maps are 14x14: `fixed` is one attention cell wide
CONDITION_LIMIT = 1e6         # above it the centres count as collinear


def sigma_of(
    bandwidth: str | float | Rule, centres: Array, weights: Array, radii: Array | None, frame: tuple[int, int]
) -> Array | float:
    """Return sigma by the name of a rule, by a rule, or the number itself; Rule lists the forms that it may have."""
    sigma: Array | float | None
    if isinstance(bandwidth, str) or callable(bandwidth):
        sigma = BANDWIDTHS.row(bandwidth)(centres, weights, radii, frame)
    else:
        sigma = bandwidth
    if sigma is None:
        return fixed(centres, weights, radii, frame)
    widths = np.diagonal(sigma) if np.ndim(sigma) == 2 else np.asarray(sigma)
    if not ((widths > 0) & (widths < math.inf)).all():
        name = getattr(bandwidth, "__name__", bandwidth)
        raise MapError(f"bandwidth {name}: expected a sigma above 0, in pixels of the image")
    return sigma


def scott(centres: Array, weights: Array, radii: Array | None, frame: tuple[int, int]) -> Array | None:
    """One covariance for all by Scott's rule, as scipy's gaussian_kde chooses it.

    The covariance of the weighted centres times n^(-1/3), with n = sum(w)^2 / sum(w^2) the effective number (Scott,
    Multivariate Density Estimation, 1992, in two dimensions). None for fewer than three centres, and for collinear or
    coincident ones, where the condition number reaches 1e6.
    """
    weights = weights / weights.sum()
    concentration = float(weights @ weights)
    if len(centres) < 3 or 1 - concentration < 1e-12:
        return None
    # np.cov, np.linalg.cond and cholesky give the same, but take as long as half of all Gaussians
    apart = centres - weights @ centres
    covariance = (weights[:, None] * apart).T @ apart / (1 - concentration)
    (xx, xy), (_, yy) = covariance.tolist()
    largest = (xx + yy + math.hypot(xx - yy, 2 * xy)) / 2                # the eigenvalues; their product is the
    determinant = xx * yy - xy * xy                                      # determinant, their ratio the condition number
    if not largest**2 < CONDITION_LIMIT * determinant:
        return None
    first = math.sqrt(xx)
    mixed = xy / first
    factor: Array = np.array([[first, 0], [mixed, math.sqrt(yy - mixed**2)]]) * concentration ** (1 / 6)
    return factor


def radius(centres: Array, weights: Array, radii: Array | None, frame: tuple[int, int]) -> Array:
    """Sigma is half of each bubble's radius; its weight is its peak."""
    if radii is None or not radii.min() > 0:
        raise MapError("bandwidth radius: needs a radius above 0 for every bubble; use scott, fixed or a number")
    return radii / 2


def fixed(centres: Array, weights: Array, radii: Array | None, frame: tuple[int, int]) -> float:
    """Sigma is one cell of the usual attention map: sqrt(width * height) / 14."""
    return math.sqrt(frame[0] * frame[1]) / FIXED_SIGMAS_A_SIDE


def likely(centres: Array, weights: Array, radii: Array | None, frame: tuple[int, int]) -> float | None:
    """One sigma for all, under which the bubbles best predict each other (leave-one-out likelihood).

    The largest of sum_i w_i log sum_(j != i) w_j N(x_i; x_j, sigma^2) (Habbema et al. 1974; Duin 1976), over SHARES of
    sqrt(width * height); the smaller where two are equal. With equal weights scikit-learn's
    GridSearchCV(KernelDensity(), ..., cv=LeaveOneOut()) chooses the same.

    Centres on one spot count as one with the sum of their weights: else ever narrower Gaussians would predict them ever
    better. None for fewer than three spots. The time grows with the square of their number (1,000: 0.3 s).
    """
    spots, spot_of = np.unique(centres, axis=0, return_inverse=True)
    if len(spots) < 3:
        return None
    sums = np.bincount(spot_of.reshape(-1), weights / weights.max()).astype(np.float64)
    sigmas = SHARES * math.sqrt(frame[0] * frame[1])
    step = max(1, PAIRS_AT_A_TIME // len(spots))
    parts = [_likelihoods(spots, sums, slice(start, start + step), sigmas) for start in range(0, len(spots), step)]
    return float(sigmas[np.argmax(np.sum(parts, axis=0))])


def _likelihoods(spots: Array, weights: Array, part: slice, sigmas: Array) -> Array:
    """Return the terms of the spots in ``part``, summed, for each of the ``sigmas``; constants are omitted."""
    squares = np.square(spots[part, None] - spots[None]).sum(axis=2)      # (part, n)
    own = np.arange(len(spots))[part]
    squares[np.arange(len(own)), own] = math.inf
    nearest = squares.min(axis=1)
    further = squares - nearest[:, None]
    exponents = 0.5 / sigmas**2
    # at least e^-345, where the nearest spot has 1: subnormals would take many times longer
    sums = np.stack([np.exp(np.maximum(-exponent * further, -345)) @ weights for exponent in exponents])
    logarithms = np.log(np.maximum(sums, 1e-300)) - np.outer(exponents, nearest) - 2 * np.log(sigmas)[:, None]
    likelihoods: Array = logarithms @ weights[part]
    return likelihoods


BANDWIDTHS: Choices[Rule] = Choices(
    "bandwidth", {"scott": scott, "radius": radius, "fixed": fixed, "cv": likely}, group="hkmap.bandwidths"
)
