"""Intervals that hold what they say, permutation tests against all permutations, Holm against closed tests."""

from __future__ import annotations

import tracemalloc
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from hkmap import statistics
from hkmap.cli._options import RESAMPLES
from hkmap.errors import ChoiceError
from hkmap.statistics import Resampling, holm, interval, mean_intervals, sign_flip, wilson

SETS, RECORDS, DRAWS = 1000, 200, 300      # what the simulations have


def names(numbers):
    return [f"patient {number}" for number in numbers]


def mean_interval(values, resampling):
    return mean_intervals(values[:, None], resampling)[0]


def auroc(positive, scores):
    """The AUROC as a figure of weights (draws, n): the share of pairs in the right order."""
    right = (scores[positive][:, None] > scores[~positive]).astype(float)

    def figure(weights):
        of, against = weights[:, positive], weights[:, ~positive]
        with np.errstate(invalid="ignore"):
            return ((of @ right) * against).sum(axis=1) / (of.sum(axis=1) * against.sum(axis=1))

    return figure


# how records are drawn


def test_a_draw_has_as_many_records_as_there_are():
    drawn = np.concatenate(list(Resampling(7, resamples=500).weights()))
    assert drawn.shape == (500, 7)
    assert set(drawn.sum(axis=1)) == {7}
    assert drawn.mean(axis=0) == pytest.approx(np.ones(7), abs=0.2)
    assert drawn.var() == pytest.approx(6 / 7, abs=0.1)           # multinomial


def test_groups_are_drawn_whole():
    groups = ["a", "b", "a", "c", "b", "a"]
    drawn = np.concatenate(list(Resampling(6, groups=groups, resamples=200).weights()))
    for name in "abc":
        columns = drawn[:, [place for place, group in enumerate(groups) if group == name]]
        assert (columns == columns[:, :1]).all()
    assert set(drawn[:, [0, 1, 3]].sum(axis=1)) == {3}             # three of three groups


def test_draws_depend_on_the_seed_and_not_on_memory(monkeypatch):
    def drawn(seed):
        return np.concatenate(list(Resampling(9, resamples=50, seed=seed).weights()))

    whole = drawn(1)
    assert not np.array_equal(whole, drawn(2))
    monkeypatch.setattr(statistics, "_BLOCK", 9 * 7)
    assert np.array_equal(whole, drawn(1))


def test_memory_does_not_grow_with_the_draws():
    values = np.random.default_rng(0).normal(size=10_000)
    tracemalloc.start()
    try:
        assert mean_interval(values, Resampling(10_000, resamples=2000)) is not None
        assert tracemalloc.get_traced_memory()[1] < 80e6           # all draws at once are 160 MB
    finally:
        tracemalloc.stop()


def test_too_few_draws_are_refused():
    with pytest.raises(ChoiceError, match=r"resamples is 19; expected 20 or more, 2000 for figures to publish"):
        Resampling(9, resamples=19)
    assert RESAMPLES.min == statistics.LEAST


# intervals


def test_the_interval_is_scipys():
    """scipy's has no correction for few records; of 150 it is 1 % of the width."""
    values = np.random.default_rng(4).exponential(1, 150)
    expected = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=1).confidence_interval
    found = mean_interval(values, Resampling(150, resamples=20_000))
    assert found == pytest.approx(expected, abs=0.03 * (expected.high - expected.low))


def test_a_figure_of_all_records_has_scipys_interval_too():
    random = np.random.default_rng(5)
    scores, other = random.normal(size=150), random.normal(size=150)
    other += scores

    def correlation(weights):
        first, second = ((values - weights @ values[:, None] / 150) for values in (scores, other))
        products = (weights * first * second).sum(axis=1)
        return products / np.sqrt((weights * first**2).sum(axis=1) * (weights * second**2).sum(axis=1))

    expected = stats.bootstrap(
        (scores, other), lambda x, y, axis: stats.pearsonr(x, y, axis=axis).statistic, paired=True, method="BCa",
        n_resamples=4000, rng=1,
    ).confidence_interval
    found = interval(correlation, Resampling(150, resamples=20_000))
    assert found == pytest.approx(expected, abs=0.06 * (expected.high - expected.low))


def test_of_two_groups_the_ends_are_the_groups():
    assert mean_interval(np.array([0.0, 0, 1, 1]), Resampling(4, groups=["a", "a", "b", "b"])) == (0, 1)


def test_values_without_spread_have_no_width():
    assert mean_interval(np.full(7, 0.25), Resampling(7)) == pytest.approx((0.25, 0.25))


def test_columns_have_the_same_interval_alone_and_together():
    values = np.random.default_rng(6).normal(size=(40, 3))
    values[5:, 1] = np.nan
    together = mean_intervals(values, Resampling(40))
    assert together == [pytest.approx(mean_interval(column, Resampling(40)), abs=1e-12) for column in values.T]


def test_records_without_a_value_have_no_part_in_it():
    """Those with a value are a random number of each draw, which widens nothing that can be seen of 200."""
    random = np.random.default_rng(7)
    values = np.where(random.random(400) < 0.5, random.normal(size=400), np.nan)
    known = values[~np.isnan(values)]
    found, alone = mean_interval(values, Resampling(400)), mean_interval(known, Resampling(len(known)))
    assert found == pytest.approx(alone, abs=0.02)


@pytest.mark.parametrize(("values", "groups"), [
    ([], None), ([0.5], None), ([0.5, 0.7], ["a", "a"]), ([np.nan, 0.5, np.nan], None), ([np.nan, np.nan], None),
    ([0.5, np.nan, 0.7], ["a", "b", "a"]),
])
def test_of_one_record_or_group_there_is_no_interval(values, groups):
    assert mean_interval(np.array(values, float), Resampling(len(values), groups=groups)) is None


def test_a_figure_that_hangs_on_one_record_has_no_interval():
    scores = np.random.default_rng(8).normal(size=60)
    for positives, there in ((1, False), (2, True)):
        figure = auroc(np.arange(60) < positives, scores)
        assert (interval(figure, Resampling(60)) is not None) is there
    assert interval(lambda weights: np.full(len(weights), np.nan), Resampling(60)) is None
    assert interval(lambda weights: weights.mean(axis=1), Resampling(1)) is None
    assert interval(lambda weights: weights.mean(axis=1), Resampling(0)) is None


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (10, 10), (1, 2), (37, 200), (200, 201)])
def test_wilsons_interval_is_scipys(successes, count):
    expected = stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert wilson(successes, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("count", range(2, 40))
def test_wilsons_interval_holds_the_share(count):
    assert (wilson(0, count)[0], wilson(count, count)[1]) == (0, 1)


# how often intervals hold the truth


def held(truth, intervals):
    return np.mean([low <= truth <= high for low, high in intervals])


def test_intervals_of_means_hold_the_truth():
    random = np.random.default_rng(0)
    drawn = [np.stack([random.normal(2, 3, RECORDS), random.exponential(1, RECORDS)], axis=1) for _ in range(SETS)]
    found = [mean_intervals(each, Resampling(RECORDS, resamples=DRAWS, seed=seed)) for seed, each in enumerate(drawn)]
    for truth, column in zip((2, 1), zip(*found, strict=True), strict=True):
        assert 0.93 <= held(truth, column) <= 0.97


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_intervals_of_shares_hold_the_truth(share):
    successes = np.random.default_rng(1).binomial(RECORDS, share, SETS)
    assert 0.93 <= held(share, [wilson(each, RECORDS) for each in successes.tolist()]) <= 0.97


@pytest.mark.parametrize("distance", [1, 3])
def test_intervals_of_aurocs_hold_the_truth(distance):
    """Near 1 too: the AUROC of a distance of 3 is 0.983, where plain percentiles hold 0.91."""
    random, found = np.random.default_rng(2), []
    for seed in range(SETS):
        positive = random.random(RECORDS) < 0.5
        figure = auroc(positive, random.normal(size=RECORDS) + distance * positive)
        found.append(interval(figure, Resampling(RECORDS, resamples=DRAWS, seed=seed)))
    assert 0.93 <= held(stats.norm.cdf(distance / 2**0.5), found) <= 0.97


def clustered(random, groups):
    """Records of groups of 1 to 9, half of whose variance is the group's; their mean is 0."""
    group = np.repeat(np.arange(groups), random.integers(1, 10, groups))
    return names(group), random.normal(size=groups)[group] + random.normal(size=len(group))


def test_intervals_over_groups_hold_the_truth_and_those_over_records_are_too_narrow():
    random, over_groups, over_records = np.random.default_rng(3), [], []
    for seed in range(SETS):
        groups, values = clustered(random, 50)
        over_groups.append(
            mean_interval(values, Resampling(len(values), groups=groups, resamples=DRAWS, seed=seed))
        )
        if seed < 200:
            over_records.append(mean_interval(values, Resampling(len(values), resamples=DRAWS, seed=seed)))
    assert 0.93 <= held(0, over_groups) <= 0.97
    assert held(0, over_records) < 0.8
    wider = [a[1] - a[0] > b[1] - b[0] for a, b in zip(over_groups, over_records, strict=False)]
    assert np.mean(wider) > 0.95


def test_few_groups_have_a_wide_enough_interval():
    """Plain percentiles of 8 groups hold about 0.88."""
    random, found = np.random.default_rng(4), []
    for seed in range(SETS):
        values = np.repeat(random.normal(size=8), 3)
        groups = names(np.repeat(np.arange(8), 3))
        found.append(mean_interval(values, Resampling(24, groups=groups, resamples=DRAWS, seed=seed)))
    assert 0.92 <= held(0, found) <= 0.97


# permutation tests


def all_flips(sums):
    """The p of sums by every choice of signs."""
    means = [abs(sum(sign * value for sign, value in zip(signs, sums, strict=True)))
             for signs in product((1, -1), repeat=len(sums))]
    return np.mean([each >= means[0] - 1e-9 for each in means])


@pytest.mark.parametrize("seed", range(5))
def test_the_test_of_few_pairs_is_exact(seed):
    first, second = np.random.default_rng(seed).normal(size=(2, 9))
    expected = stats.permutation_test(
        (first + 0.5, second), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=np.inf,
    ).pvalue
    assert sign_flip(first + 0.5 - second) == pytest.approx(expected, abs=1e-12)
    assert sign_flip(second - first - 0.5) == pytest.approx(expected, abs=1e-12)


def test_the_signs_of_a_group_flip_together():
    differences = np.array([0.3, 0.4, -0.1, 0.2, 0.9, -0.2])
    groups = ["a", "b", "a", "c", "c", "d"]
    assert sign_flip(differences, groups=groups) == all_flips([0.2, 0.4, 1.1, -0.2])
    assert sign_flip(differences, groups=["a"] * 6) == 1


def test_differences_that_tie_count():
    wrong_and_right = np.array([1.0, 1, 1, -1, *[0] * 500])
    assert sign_flip(wrong_and_right) == all_flips([1, 1, 1, -1]) == 10 / 16
    assert sign_flip(np.array([0.1, 0.2, -0.3])) == 1               # 0.1 + 0.2 - 0.3 is not 0 in floats
    assert sign_flip(np.zeros(40)) == 1
    assert sign_flip(np.array([])) == 1


def test_the_test_of_many_pairs_is_near_the_exact_one_and_never_0():
    differences = np.random.default_rng(0).normal(0.4, 1, 14)
    assert sign_flip(differences) == pytest.approx(sign_flip(differences, resamples=2**14), abs=0.015)
    assert sign_flip(differences) == sign_flip(differences, seed=0) != sign_flip(differences, seed=1)
    assert sign_flip(np.full(40, 0.1), resamples=99) == 1 / 100


def test_without_a_difference_p_is_uniform():
    random = np.random.default_rng(0)
    found = [sign_flip(random.exponential(1, 30) - random.exponential(1, 30), resamples=499) for _ in range(500)]
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_p_of_groups_is_uniform_where_that_of_records_is_not():
    random, of_groups, of_records = np.random.default_rng(1), [], []
    for seed in range(300):
        groups, values = clustered(random, 25)
        of_groups.append(sign_flip(values, groups=groups, resamples=499, seed=seed))
        of_records.append(sign_flip(values, resamples=499, seed=seed))
    assert stats.kstest(of_groups, "uniform").pvalue > 0.01
    assert stats.kstest(of_records, "uniform").pvalue < 1e-6


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03, 0.2], [0.5, 0.5], [0.02], [], [1.0, 0.001, 0.9, 0.002, 0.002]])
def test_holm_is_the_closed_test_of_bonferronis(p_values):
    """A hypothesis is rejected where every set with it is: its p is the largest of theirs."""
    places = range(len(p_values))
    sets = [each for size in range(1, len(p_values) + 1) for each in combinations(places, size)]
    expected = [
        max(min(1.0, len(each) * min(p_values[i] for i in each)) for each in sets if place in each) for place in places
    ]
    assert holm(p_values) == pytest.approx(expected)
