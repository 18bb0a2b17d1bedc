"""How wide the Gaussian of a bubble should be, judged from the bubbles alone."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: The sigmas that are tried, in units of sqrt(width * height): from 1/256 to 1/2, eight to a doubling.
SHARES: Array = 2.0 ** (np.arange(-64, -7) / 8)
HALVING = 4                 # steps of the grid that halve the variance
PAIRS_AT_A_TIME = 1 << 15    # they stay in the cache


def likely_sigma(centres: Array, weights: Array, frame: tuple[int, int]) -> float | None:
    """Return the sigma under which the ``centres`` (n, 2) best foretell each other; all in pixels of the image.

    The largest of sum_i w_i log sum_(j != i) w_j N(x_i; x_j, sigma^2), the leave-one-out likelihood (Habbema et al.
    1974; Duin 1976), over SHARES of sqrt(width * height) of the ``frame``; the smaller where two are equal. With
    equal weights scikit-learn's GridSearchCV(KernelDensity(), ..., cv=LeaveOneOut()) chooses the same.

    Centres on one spot count as one with the sum of their ``weights`` (n,), all above 0: each would foretell the
    other the better the narrower the Gaussian, without an end. None where there are fewer than three spots. The time
    grows with the square of their number (1,000: 0.1 s).
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
    """Return the terms of the spots in ``part``, summed, for each of the ``sigmas``; constants are left out."""
    squares = np.square(spots[part, None] - spots[None]).sum(axis=2)      # (part, n)
    own = np.arange(len(spots))[part]
    squares[np.arange(len(own)), own] = math.inf
    nearest = squares.min(axis=1)
    further = squares - nearest[:, None]
    exponents = 0.5 / sigmas**2
    sums = np.empty((len(sigmas), len(own)))
    for phase in range(HALVING):        # down from the widest: half the variance is the square of the Gaussian
        gaussians = np.empty_like(further)
        for number in range(len(sigmas) - 1 - phase, -1, -HALVING):
            if number == len(sigmas) - 1 - phase:
                np.exp(-exponents[number] * further, out=gaussians)
            else:
                np.square(gaussians, out=gaussians)
            np.maximum(gaussians, 1e-150, out=gaussians)        # its square is no subnormal; the nearest spot has 1
            sums[number] = gaussians @ weights
    logarithms = np.log(np.maximum(sums, 1e-300)) - np.outer(exponents, nearest) - 2 * np.log(sigmas)[:, None]
    likelihoods: Array = logarithms @ weights[part]
    return likelihoods
