"""Kernel density maps: Scott's rule against scipy, the other bandwidths against the plain sum, the policies."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import gaussian_kde

from hkmap.errors import MapError
from hkmap.maps import bandwidths, kde
from hkmap.maps.bandwidths import SHARES, likely, scott
from hkmap.maps.kde import equal_say, kde_map, pixel_centres, slanted_sum

FRAME, SIZE = (500, 375), (30, 40)
SPREAD = np.array([[120.0, 200], [300, 90], [310, 180], [200, 300], [420, 20]])


def estimate(centres: np.ndarray, grid: kde.Grid, weights: np.ndarray | None) -> np.ndarray:
    """scipy's estimate at the pixel centres."""
    x, y = np.meshgrid(grid.x, grid.y)
    values = gaussian_kde(centres.T, bw_method="scott", weights=weights)(np.stack([x.ravel(), y.ravel()]))
    return values.reshape(x.shape)


def oracle(centres: np.ndarray, grid: kde.Grid, weights: np.ndarray | None) -> np.ndarray:
    values = estimate(centres, grid, weights)
    return values / values.max()


def plain_sum(centres: np.ndarray, sigmas: np.ndarray, weights: np.ndarray) -> np.ndarray:
    x, y = np.meshgrid(*pixel_centres(FRAME, SIZE))
    total = np.zeros(SIZE)
    for (x_i, y_i), sigma, weight in zip(centres, sigmas, weights, strict=True):
        total += weight * np.exp(-((x - x_i) ** 2 + (y - y_i) ** 2) / (2 * sigma**2))
    return total / total.max()


def scott_kernel(centres: np.ndarray, grid: kde.Grid, weights: np.ndarray) -> np.ndarray | None:
    factor = scott(centres, weights, None, FRAME)
    return None if factor is None else slanted_sum(centres, grid, factor, weights)


def random_case(seed: int) -> tuple[np.ndarray, tuple[int, int], tuple[int, int], np.ndarray | None]:
    """Bubbles of any shape of covariance, axis-parallel or slanted, round the frame, its border and beyond it."""
    random = np.random.default_rng(seed)
    count = int(random.integers(3, 60)) if seed % 8 else int(random.integers(60, 401))
    frame = tuple(int(side) for side in random.integers(40, 800, 2))
    size = tuple(int(side) for side in random.integers(5, 60, 2))
    angle = random.uniform(0, np.pi) * (seed % 3 > 0)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shape = random.standard_normal((count, 2)) * [1, 10 ** random.uniform(-3, 0)]
    centres = shape @ turn * random.uniform(0.01, 0.5) * max(frame) + random.uniform(-0.1, 1.1, 2) * frame
    weights = random.random(count) ** 3 * (random.random(count) < 0.9) if seed % 2 else None
    return centres, frame, size, weights


def condition(centres: np.ndarray, weights: np.ndarray) -> float:
    return float(np.linalg.cond(np.cov(centres.T, aweights=weights)))


@pytest.mark.parametrize("block", range(10))
def test_scott_is_scipys_estimate(block: int) -> None:
    compared = 0
    for seed in range(block * 40, block * 40 + 40):
        centres, frame, size, weights = random_case(seed)
        given = np.ones(len(centres)) if weights is None else weights
        grid, some = pixel_centres(frame, size), given > 0
        if some.sum() < 3 or condition(centres[some], given[some]) >= 1e6:
            continue
        density = scott_kernel(centres[some], grid, given[some])
        if density is None:      # float64 ends before the thin ridge reaches a pixel's centre
            assert estimate(centres, grid, weights).max() < 1e-285
            continue
        assert density.dtype == np.float64
        expected = oracle(centres, grid, weights)
        assert np.abs(density / density.max() - expected).max() <= 1e-10, seed
        if np.all((centres.mean(axis=0) >= 0) & (centres.mean(axis=0) <= frame)):
            values = kde_map(centres, frame, size, weights=weights)
            assert values.dtype == np.float32
            assert values.max() == 1
            assert np.abs(values - expected).max() <= 1e-6, seed
        compared += 1
    assert compared > 20


@pytest.mark.parametrize("correlation", [0, 0.5, 0.9, -0.99, 0.999, -0.9999, 0.99998])
@pytest.mark.parametrize("count", [3, 30, 400])
def test_scott_with_correlated_bubbles(correlation: float, count: int) -> None:
    covariance = np.array([[1, correlation], [correlation, 1]]) * 3000
    centres = np.random.default_rng(7).multivariate_normal([250, 190], covariance, count)
    grid = pixel_centres(FRAME, SIZE)
    assert condition(centres, np.ones(count)) < 1e6
    density = scott_kernel(centres, grid, np.ones(count))
    assert density is not None
    assert np.abs(density / density.max() - oracle(centres, grid, None)).max() <= 1e-10


def test_few_tiles_and_many_and_the_direct_sum_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    centres = np.random.default_rng(1).multivariate_normal([250, 190], [[3000, 2000], [2000, 3000]], 20)
    grid, weights = pixel_centres(FRAME, SIZE), np.ones(20)
    maps = []
    for largest in (150, 2, 0.01):
        monkeypatch.setattr(kde, "LARGEST_CROSS_TERM", largest)
        maps.append(scott_kernel(centres, grid, weights))
    assert maps[1] == pytest.approx(maps[0], rel=1e-9)
    assert maps[2] == pytest.approx(maps[0], rel=1e-9)


def test_the_peak_lies_where_the_bubble_does() -> None:
    values = kde_map(np.array([[81.5, 301.0]]), FRAME, (75, 100), bandwidth=20.0)
    assert np.unravel_index(values.argmax(), values.shape) == (301 // 5, 81 // 5)


def test_radius_draws_each_bubble_by_half_its_radius_and_with_its_weight_as_peak() -> None:
    radii, weights = np.array([30.0, 80, 60, 44, 55]), np.array([1, 2, 0.5, 3, 1])
    values = kde_map(SPREAD, FRAME, SIZE, bandwidth="radius", radii=radii, weights=weights)
    assert values == pytest.approx(plain_sum(SPREAD, radii / 2, weights), abs=1e-6)


@pytest.mark.parametrize(("bandwidth", "sigma"), [("fixed", np.sqrt(500 * 375) / 14), (40.0, 40)])
def test_fixed_and_a_number_are_one_sigma_in_pixels_of_the_image(bandwidth: str | float, sigma: float) -> None:
    values = kde_map(SPREAD, FRAME, SIZE, bandwidth=bandwidth)
    assert values == pytest.approx(plain_sum(SPREAD, np.full(5, sigma), np.ones(5)), abs=1e-6)


@pytest.mark.parametrize("centres", [
    [[100, 200]],
    [[100, 200], [300, 100]],
    [[50, 50], [150, 100], [350, 200]],
    [[50, 50], [150, 100.00001], [350, 200]],
    [[80, 90]] * 5,
    [[100, 50], [100, 60], [100, 300]],
    [[80, 90], [80 + 1e-7, 90], [80, 90 + 1e-7]],        # a spread far below any pixel
], ids=["one", "two", "on a line", "almost on a line", "on one spot", "on a column", "almost on one spot"])
def test_where_scotts_rule_says_nothing_the_bubbles_are_drawn_as_fixed(centres: list[list[float]]) -> None:
    points = np.array(centres, float)
    assert (kde_map(points, FRAME, SIZE) == kde_map(points, FRAME, SIZE, bandwidth="fixed")).all()


def test_bubbles_of_weight_0_count_for_nothing() -> None:
    more, weights = np.vstack([SPREAD, [[10.0, 10]]]), np.array([1.0, 1, 1, 1, 1, 0])
    assert kde_map(more, FRAME, SIZE, weights=weights) == pytest.approx(kde_map(SPREAD, FRAME, SIZE), abs=1e-6)
    two = np.array([1.0, 1, 0, 0, 0])
    expected = kde_map(SPREAD[:2], FRAME, SIZE, bandwidth="fixed")
    assert (kde_map(SPREAD, FRAME, SIZE, weights=two) == expected).all()


def test_one_bubble_that_has_all_the_weight_is_drawn_as_fixed() -> None:
    weights = np.array([1.0, 1e-30, 1e-30, 1e-30, 1e-30])
    values = kde_map(SPREAD, FRAME, SIZE, weights=weights)
    assert values == pytest.approx(kde_map(SPREAD[:1], FRAME, SIZE, bandwidth="fixed"), abs=1e-6)


@pytest.mark.parametrize("x", np.linspace(0, 500, 17))
def test_a_tiny_bubble_is_not_lost_between_the_pixels(x: float) -> None:
    centres = np.array([[250.0, 187.5], [x, 20.0]])
    values = kde_map(centres, FRAME, (14, 14), bandwidth="radius", radii=np.array([100, 0.5]))
    assert values[0].max() > 0.3


def test_a_scott_ridge_thinner_than_the_pixels_is_still_scipys() -> None:
    centres = np.array([[100, 40.0], [200, 41.5], [330, 39.0], [400, 40.0]])
    frame, size = (500, 400), (20, 25)
    density = scott_kernel(centres, pixel_centres(frame, size), np.ones(4))
    assert density is not None
    assert density.max() < 1e-20
    assert np.abs(density / density.max() - oracle(centres, pixel_centres(frame, size), None)).max() <= 1e-10
    assert kde_map(centres, frame, size)[4:].max() == 0


def test_no_value_is_subnormal() -> None:
    for bandwidth in ("scott", 3.0):
        values = kde_map(SPREAD / 20, FRAME, (224, 224), bandwidth=bandwidth)
        assert values[values > 0].min() >= np.finfo(np.float32).tiny


@pytest.mark.parametrize("bandwidth", ["scott", "radius", "fixed", 3.0])
def test_bubbles_far_off_the_image_are_an_error(bandwidth: str | float) -> None:
    with pytest.raises(MapError, match=r"all 5 bubbles lie far off the image of 500x375 pixels.*is the frame right\?"):
        kde_map(SPREAD + 3000, FRAME, SIZE, bandwidth=bandwidth, radii=np.full(5, 9.0))


def test_a_bubble_just_beyond_the_border_is_drawn() -> None:
    values = kde_map(np.array([[-10.0, 100]]), FRAME, SIZE)
    assert values.argmax() == 7 * 40 + 0 or values.argmax() == 8 * 40 + 0


@pytest.mark.parametrize(("arguments", "message"), [
    ({"centres": np.zeros((0, 2))}, "no bubbles, expected at least one"),
    ({"weights": np.array([1, 1, -1, 1, 1.0])}, r"weights span \[-1, 1\], expected finite numbers from 0"),
    ({"weights": np.array([1, 1, np.inf, 1, 1.0])}, "expected finite numbers from 0"),
    ({"weights": np.zeros(5)}, "all 5 bubbles have weight 0"),
    ({"bandwidth": "radius"}, "needs a radius above 0 for every bubble; use scott, fixed or a number"),
    ({"bandwidth": "radius", "radii": np.array([1, 1, 0, 1, 1.0])}, "needs a radius above 0"),
    ({"bandwidth": 0.0}, "expected a sigma above 0, in pixels"),
    ({"bandwidth": float("nan")}, "expected a sigma above 0, in pixels"),
])
def test_what_cannot_be_drawn_is_an_error(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(MapError, match=message):
        kde_map(**{"centres": SPREAD, "frame": FRAME, "size": SIZE, **arguments})


# the bandwidth by leave-one-out likelihood


GRID_SEARCH = """
import json, sys
import numpy as np
from sklearn.model_selection import GridSearchCV, LeaveOneOut
from sklearn.neighbors import KernelDensity

cases, sigmas = json.load(sys.stdin)
search = GridSearchCV(KernelDensity(rtol=1e-12), {"bandwidth": sigmas}, cv=LeaveOneOut())
json.dump([search.fit(np.array(centres)).best_params_["bandwidth"] for centres in cases], sys.stdout)
"""


def test_cv_chooses_as_scikit_learn_does() -> None:
    """In a process of its own: scikit-learn and torch each bring an OpenMP, and both in one have corrupted the heap."""
    shapes = [(3, 90), (4, 10), (9, 40), (20, 4), (15, 120), (25, 60), (12, 0.1), (5, 2000)]
    cases = [
        np.random.default_rng(seed).normal([250, 190], spread, (count, 2))
        for seed, (count, spread) in enumerate(shapes)
    ]
    question = json.dumps([[centres.tolist() for centres in cases], (SHARES * np.sqrt(500 * 375)).tolist()])
    command = [sys.executable, "-c", GRID_SEARCH]
    done = subprocess.run(command, input=question, capture_output=True, text=True, check=True)
    assert [likely(centres, np.full(len(centres), 0.3), None, FRAME) for centres in cases] == json.loads(done.stdout)


def slow_likelihood(centres: np.ndarray, weights: np.ndarray, sigma: float) -> float:
    total = 0.0
    for i, (x, y) in enumerate(centres):
        others = [
            weights[j] * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
            for j, (u, v) in enumerate(centres) if j != i
        ]
        total += weights[i] * np.log(sum(others) / (weights.sum() - weights[i]))
    return total


@pytest.mark.parametrize("seed", range(4))
def test_cv_respects_weights(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(seed)
    clusters = random.normal([120, 100], 3, (6, 2)), random.normal([330, 220], 60, (7, 2))
    centres, weights = np.concatenate(clusters), np.repeat([seed + 0.1, 1], [6, 7])
    sigmas = SHARES[24:] * np.sqrt(500 * 375)      # below them, the literal likelihood is the logarithm of 0
    expected = sigmas[np.argmax([slow_likelihood(centres, weights, sigma) for sigma in sigmas])]
    monkeypatch.setattr(bandwidths, "SHARES", SHARES[24:])
    monkeypatch.setattr(bandwidths, "PAIRS_AT_A_TIME", 30)
    assert likely(centres, weights, None, FRAME) == expected


def test_cv_counts_bubbles_on_one_spot_as_one() -> None:
    weights = np.array([1.0, 1, 2, 1, 1])
    twice = np.concatenate([SPREAD, SPREAD[2:3]])
    assert likely(twice, np.ones(6), None, FRAME) == likely(SPREAD, weights, None, FRAME)
    doubled = np.concatenate([SPREAD, SPREAD])
    assert likely(doubled, np.ones(10), None, FRAME) == likely(SPREAD, np.ones(5), None, FRAME)


@pytest.mark.parametrize("centres", [SPREAD[:1], SPREAD[:2], np.repeat(SPREAD[:2], 4, axis=0)])
def test_with_fewer_than_three_spots_cv_draws_as_fixed(centres: np.ndarray) -> None:
    assert likely(centres, np.ones(len(centres)), None, FRAME) is None
    values = kde_map(centres, FRAME, SIZE, bandwidth="cv")
    assert (values == kde_map(centres, FRAME, SIZE, bandwidth="fixed")).all()


@pytest.mark.parametrize(
    ("centres", "share"), [(SPREAD[0] + np.eye(3, 2) * 1e-3, SHARES[0]), (SPREAD * 50, SHARES[-1])]
)
def test_cv_ends_at_the_ends_of_its_grid(centres: np.ndarray, share: float) -> None:
    assert likely(centres, np.ones(len(centres)), None, FRAME) == share * np.sqrt(500 * 375)
    uneven = np.r_[np.ones(len(centres) - 1), 1e-300]
    assert likely(centres, uneven, None, FRAME) is not None


# what becomes of the sum


@pytest.mark.parametrize("bandwidth", ["scott", "radius", "fixed", "cv", 25.0])
def test_normalise(bandwidth: str | float) -> None:
    radii, weights = np.array([9.0, 30, 50, 14, 20]), np.array([1, 2, 0.5, 1.5, 1]) / 6

    def draw(normalise: str, factor: float = 1) -> np.ndarray:
        return kde_map(
            SPREAD, FRAME, SIZE, bandwidth=bandwidth, radii=radii, weights=weights * factor, normalise=normalise
        ).astype(np.float64)

    plain = draw("none")
    assert plain.dtype == np.float64
    assert 0.2 < plain.max() <= 1
    assert draw("none", 0.5) == pytest.approx(plain / 2, abs=1e-7)
    assert draw("max") == pytest.approx(plain / plain.max(), abs=1e-6)
    assert draw("minmax") == pytest.approx((plain - plain.min()) / np.ptp(plain), abs=1e-6)
    assert draw("sum") == pytest.approx(plain / plain.sum(), abs=1e-7)
    for normalise in ("max", "minmax", "sum"):
        assert draw(normalise, 2) == pytest.approx(draw(normalise), abs=1e-6)


@pytest.mark.parametrize("bandwidth", ["scott", "fixed", 25.0])
def test_without_normalising_a_bubble_peaks_at_its_weight(bandwidth: str | float) -> None:
    centres, pixel = np.vstack([SPREAD * 0.01 + 1e-3, [[306.25, 206.25]]]), (16, 24)
    weights = np.r_[np.full(5, 1e-9), 0.7]
    values = kde_map(centres, FRAME, SIZE, bandwidth=bandwidth, weights=weights, normalise="none")
    assert values[pixel] == pytest.approx(0.7, rel=1e-4)


@pytest.mark.parametrize("bandwidth", ["scott", "fixed"])
def test_a_sum_above_1_is_refused(bandwidth: str) -> None:
    message = r"the sum of the bubbles reaches \d.*, expected at most 1 .*; lower their weights, or divide by the max"
    with pytest.raises(MapError, match=message):
        kde_map(SPREAD, FRAME, SIZE, bandwidth=bandwidth, weights=np.full(5, 9.0), normalise="none")
    spot, weights = np.array([[6.25, 6.25]] * 7), np.full(7, 1 / 7)
    whole = kde_map(spot, FRAME, SIZE, bandwidth=9.0, weights=weights, normalise="none")
    assert whole.max() == 1


def test_an_equal_say_for_every_user() -> None:
    weights = equal_say(np.array([1.0, 0, 3, 5, 0]), ["ada", "eve", "ada", "ben", "eve"])
    assert weights.tolist() == [0.25, 0, 0.75, 1, 0]
