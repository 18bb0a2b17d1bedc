"""The measures of agreement against slow, literal oracles, and what the agreement says of planted data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from hkmap.errors import MapError
from hkmap.maps import agreement, similarity
from hkmap.maps.check import Map

Array = npt.NDArray[np.float64]
RANDOM = np.random.default_rng(3)
ROWS = RANDOM.random((5, 37))
TIED = RANDOM.integers(0, 4, (5, 37)).astype(float)


def blob(x: float, y: float, *, side: int = 12, sigma: float = 2.0) -> Map:
    grid = np.arange(side) + 0.5
    across, down = np.exp(-((grid - x) ** 2) / (2 * sigma**2)), np.exp(-((grid - y) ** 2) / (2 * sigma**2))
    return np.outer(down, across).astype(np.float32)


def figures(images: list[dict[str, Map]], *, repeats: int = 4, seed: int = 0) -> Array:
    return agreement.agreement_figures(images, repeats=repeats, random=np.random.default_rng(seed))


# the measures


@pytest.mark.parametrize(("first", "second"), [(ROWS, ROWS[::-1]), (TIED, ROWS), (TIED, TIED[::-1])])
def test_spearman_is_scipys(first: Array, second: Array) -> None:
    expected = [stats.spearmanr(one, other).statistic for one, other in zip(first, second, strict=True)]
    assert similarity.spearman(first, second) == pytest.approx(expected, abs=1e-12)


def test_a_constant_map_orders_nothing() -> None:
    assert similarity.spearman(np.full((1, 9), 0.3), RANDOM.random((1, 9))) == [0]
    assert similarity.spearman(np.zeros((1, 9)), np.zeros((1, 9))) == [0]


@pytest.mark.parametrize(("cells", "places"), [(1, 1), (10, 1), (11, 2), (70, 7), (196, 20)])
def test_the_top_tenth_is_rounded_up(cells: int, places: int) -> None:
    values = RANDOM.permutation(cells)[None].astype(float)
    assert similarity.top_cells(values).sum() == places
    assert set(np.flatnonzero(similarity.top_cells(values)[0])) == set(np.argsort(-values[0])[:places])


def test_the_overlap_without_ties_is_the_plain_one() -> None:
    for one, other in zip(ROWS, ROWS[::-1], strict=True):
        first, second = (set(np.argsort(-values)[:4]) for values in (one, other))
        assert similarity.iou(one[None], other[None]) == pytest.approx(len(first & second) / len(first | second))


def test_cells_that_tie_share_the_last_places() -> None:
    """The share of a cell is how often it is chosen if the ties are broken at random, over and over."""
    chosen = np.zeros(37)
    for _ in range(4000):
        chosen[np.lexsort((RANDOM.random(37), -TIED[0]))[:4]] += 1 / 4000
    assert similarity.top_cells(TIED[:1])[0] == pytest.approx(chosen, abs=0.03)
    assert similarity.top_cells(TIED).sum(axis=1) == pytest.approx(4)


def test_a_uniform_map_overlaps_as_chance_does() -> None:
    one = RANDOM.permutation(200)[None].astype(float)
    by_chance = []
    for _ in range(2000):
        common = len(set(np.argsort(-one[0])[:20]) & set(RANDOM.choice(200, 20, replace=False)))
        by_chance.append(common / (40 - common))
    assert similarity.iou(one, np.ones((1, 200))) == pytest.approx(np.mean(by_chance), abs=0.005)


def test_kl_is_the_textbooks_over_smoothed_shares() -> None:
    p = 0.999 * ROWS / ROWS.sum(axis=1, keepdims=True) + 0.001 / 37
    q = 0.999 * TIED / TIED.sum(axis=1, keepdims=True) + 0.001 / 37
    assert similarity.kl(ROWS, TIED) == pytest.approx([stats.entropy(p[i], q[i]) for i in range(5)])
    assert similarity.kl(ROWS, ROWS * 0.01) == pytest.approx(np.zeros(5), abs=1e-12)


def test_kl_stays_finite_where_nothing_is_common() -> None:
    one, other = np.eye(100)[:1], np.eye(100)[1:2]
    assert 0 < similarity.kl(one, other)[0] < np.log(100 / similarity.EPSILON)
    assert similarity.kl(np.zeros((1, 100)), np.ones((1, 100))) == pytest.approx(0, abs=1e-12)


def test_a_map_agrees_with_itself() -> None:
    assert agreement.measure(ROWS, ROWS) == pytest.approx((0, 1, 1, 0), abs=1e-12)


# who is compared with whom


def test_the_others_leave_one_out() -> None:
    maps = RANDOM.random((4, 6))
    for index, mean in enumerate(agreement.others(maps)):
        assert mean == pytest.approx(sum(maps[other] for other in range(4) if other != index) / 3)


def test_small_values_of_the_others_keep_their_order() -> None:
    maps = np.array([[1.0, 1.0, 1.0], [1e-20, 2e-20, 3e-20]])
    assert agreement.others(maps)[0].tolist() == [1e-20, 2e-20, 3e-20]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_halves_part_everyone(count: int) -> None:
    maps = np.eye(count)
    orders = RANDOM.permuted(np.tile(np.arange(count), (50, 1)), axis=1)
    first, second = agreement.halves(maps, orders)
    small, large = count // 2, count - count // 2
    assert set(np.count_nonzero(first, axis=1)) == {small}
    assert np.array_equal(first > 0, second == 0)
    assert first.max() == 1 / small
    assert second.max() == 1 / large
    assert (first.mean(axis=0) > 0).all()           # everyone is in it sometimes


@pytest.mark.parametrize("count", [2, 3, 10])
def test_no_image_is_its_own_partner(count: int) -> None:
    for seed in range(20):
        partners = agreement.partners_of(count, 4, np.random.default_rng(seed))
        assert partners.shape == (count, min(4, count - 1))
        for column in partners.T:
            assert sorted(column) == list(range(count))
            assert (column != np.arange(count)).all()
        for row in partners:
            assert len(set(row)) == len(row)        # each partner once


def test_leave_one_out_by_hand() -> None:
    """Two images with three and two people: every comparison written out."""
    images = [{name: RANDOM.random((2, 3), dtype=np.float32) for name in names} for names in ("abc", "xb")]
    found = figures(images)
    first, second = ({name: values.astype(np.float64) for name, values in image.items()} for image in images)
    own = [(first[name], sum(first[other] for other in "abc" if other != name) / 2) for name in "abc"]
    # a stands first, so it meets the mean without the first (x); b without b; c, the third of two, without x again
    elsewhere = [(first["a"], second["b"]), (first["b"], second["x"]), (first["c"], second["b"])]
    level = (np.mean([*first.values()]) + np.mean([*second.values()])) / 2
    flat = [(first[name], np.full((2, 3), level)) for name in "abc"]
    for kind, pairs in enumerate((own, elsewhere, flat)):
        measured = [agreement.measure(one.reshape(1, -1), other.reshape(1, -1)) for one, other in pairs]
        assert found[0, 0, kind] == pytest.approx(np.mean(measured, axis=0)), agreement.KINDS[kind]


def test_split_half_of_two_is_one_against_the_other() -> None:
    images = [{"a": blob(2, 3), "b": blob(4, 5)}, {"a": blob(8, 3), "b": blob(9, 9)}]
    found = figures(images)[:, 1, 0, :3]            # all but the divergence, which has a direction
    for image, row in zip(images, found, strict=True):
        one, other = (values.reshape(1, -1).astype(float) for values in image.values())
        assert row == pytest.approx(agreement.measure(one, other)[:3])


def test_people_who_agree_stand_out_from_chance_and_the_centre_bias_is_found() -> None:
    """Each image has its own place, at some distance from the centre; people point near it."""
    def person(x: float, y: float) -> Map:
        return blob(x + RANDOM.normal(0, 0.5), y + RANDOM.normal(0, 0.5))

    places = RANDOM.normal(6, 1.5, (40, 2))
    images = [{name: person(x, y) for name in "abcd"} for x, y in places]
    found = agreement.summary(figures(images), resamples=500, seed=0)
    for method in agreement.METHODS:
        for name, higher in (("mse", False), ("spearman", True), ("iou", True), ("kl", False)):
            entry = found[method][name]
            low, high = entry["null_interval"]
            assert (entry["agreement"] > high) if higher else (entry["agreement"] < low), (method, name)
            assert entry["null_minus_uniform"] == pytest.approx(entry["null"] - entry["uniform"])
        assert found[method]["spearman"]["null_minus_uniform_interval"][0] > 0      # all look near the centre
        assert found[method]["iou"]["null_minus_uniform_interval"][0] > 0


def test_people_who_do_not_agree_are_no_better_than_chance() -> None:
    images = [{name: blob(*RANDOM.uniform(1, 11, 2)) for name in "abc"} for _ in range(60)]
    found = agreement.summary(figures(images), resamples=500, seed=0)
    for method in agreement.METHODS:
        for name in agreement.MEASURES:
            one, other = found[method][name]["agreement_interval"], found[method][name]["null_interval"]
            assert one[0] < other[1], (method, name)
            assert other[0] < one[1], (method, name)


def test_a_seed_fixes_everything_and_another_does_not() -> None:
    images = [{name: blob(*RANDOM.uniform(1, 11, 2)) for name in "abc"} for _ in range(5)]
    assert np.array_equal(figures(images), figures(images))
    assert not np.array_equal(figures(images), figures(images, seed=1))


# who marked nothing


def spot(place: int) -> Map:
    """One marked cell of ten: it is the highest tenth."""
    return np.eye(10, dtype=np.float32)[None, place]


NOTHING = np.zeros((1, 10), np.float32)


def test_who_marked_nothing_has_no_part_in_what_needs_a_mark() -> None:
    """By hand: a and b mark the same cell of the first image and c none; a and b the same cell of the second.

    mse of the first image: a and b lie 0.5 in one cell of ten from the mean of the other and c, 0.25 / 10; c lies 1 in
    one cell from the mean of a and b, 1 / 10; the mean of the three is 0.05. spearman, iou and kl compare a with b
    alone, who are equal: 1, 1 and 0. A flat map holds a tenth of each cell, so it shares 0.1 of the one cell that a
    person marked, out of 1 + 9 * 0.1: 1 / 19. Other images have no cell in common.
    """
    found = figures([{"a": spot(0), "b": spot(0), "c": NOTHING}, {"a": spot(1), "b": spot(1)}])
    assert found[0, 0, 0] == pytest.approx((0.05, 1, 1, 0), abs=1e-9)
    assert found[1, 0, 0] == pytest.approx((0, 1, 1, 0), abs=1e-9)
    iou = agreement.MEASURES.index("iou")
    assert found[:, :, :, iou] == pytest.approx(np.tile([1, 0, 1 / 19], (2, 2, 1)))


def test_two_who_marked_nothing_are_no_agreement_about_a_place() -> None:
    """By hand: of three images the first is empty for both, and in the second the two mark other cells.

    The first has an mse of 0, and no other figure. iou of the second is 0, of the third 1: their mean is 0.5.
    """
    images = [{"a": NOTHING, "b": NOTHING}, {"a": spot(0), "b": spot(3)}, {"a": spot(5), "b": spot(5)}]
    found = figures(images)
    assert found[0, 0, 0, 0] == 0
    assert np.isnan(found[0, :, :, 1:]).all()
    assert not np.isnan(found[1:]).any()
    entry = agreement.summary(found, resamples=50, seed=0)["leave_one_out"]
    assert entry["iou"]["agreement"] == 0.5
    assert entry["iou"]["uniform"] == pytest.approx(1 / 19)
    assert entry["mse"]["agreement"] == pytest.approx((0 + 2 / 10 + 0) / 3)
    assert agreement.named_figures(found[0])["split_half"]["kl"] == {"agreement": None, "null": None, "uniform": None}


def test_a_uniform_map_is_no_better_than_chance_however_many_marked_nothing() -> None:
    """Counted as if it looked everywhere, an empty map made the uniform map better than people."""
    images = [{"a": blob(3, 3), "b": blob(4, 3), "c": 0 * blob(0, 0), "d": 0 * blob(0, 0)} for _ in range(4)]
    images += [{"a": blob(9, 8), "b": blob(8, 9)} for _ in range(4)]
    for method in agreement.summary(figures(images), resamples=50, seed=0).values():
        assert method["iou"]["uniform"] < 0.06 < method["iou"]["agreement"]


def test_too_few_who_marked_something() -> None:
    images = [{"a": spot(0), "b": spot(0)}, {"a": spot(1), "b": NOTHING}]
    with pytest.raises(MapError, match="1 images with two annotators or more who marked something, expected at least"):
        figures(images)


# errors


def test_too_few_images_for_an_interval() -> None:
    """agreement_figures refuses one image; from elsewhere it has no interval rather than none of any width."""
    one_known = np.full((5, 2, 3, 4), np.nan)
    one_known[0] = 0.5
    with pytest.raises(MapError, match="too few of 5 images have a figure for an interval of 20 draws; give more imag"):
        agreement.summary(one_known, resamples=20, seed=0)


def test_one_image_has_no_null() -> None:
    sentence = r"1 images with two annotators or more, .*; draw the maps with `hkmap bubbles2map --per-annotator`"
    with pytest.raises(MapError, match=sentence):
        figures([{"a": blob(1, 1), "b": blob(2, 2)}])


def test_maps_of_two_sizes() -> None:
    with pytest.raises(MapError, match=r"maps are 12x12 and 14x14 .*`hkmap resize` first"):
        figures([{"a": blob(1, 1), "b": blob(2, 2)}, {"a": blob(1, 1), "b": blob(2, 2, side=14)}])


def test_the_null_is_the_mean_over_the_partners() -> None:
    """With three images and two partners each, leave_one_out's null meets all pairs of images."""
    images = [{name: RANDOM.random((2, 3), dtype=np.float32) for name in "abc"} for _ in range(3)]
    found = figures(images, repeats=2)
    rows = [np.stack([values.ravel() for values in image.values()]).astype(float) for image in images]
    for index in range(3):
        pairs = [agreement.measure(rows[index], agreement.others(rows[other])) for other in range(3) if other != index]
        assert found[index, 0, 1] == pytest.approx(np.mean(pairs, axis=0))


def test_a_half_meets_a_half_of_another_image() -> None:
    """Two images of two people: the first half is one person, the other image's second half one of its two."""
    images = [{name: RANDOM.random((2, 3), dtype=np.float32) for name in "ab"} for _ in range(2)]
    found = figures(images, repeats=400)[0, 1, 1]
    one, other = ([values.reshape(1, -1).astype(float) for values in image.values()] for image in images)
    pairs = [agreement.measure(mine, yours) for mine in one for yours in other]
    assert found == pytest.approx(np.mean(pairs, axis=0), abs=0.1 * np.ptp(pairs, axis=0).max() + 0.02)


@pytest.mark.parametrize("turn", [np.fliplr, np.flipud, np.transpose])
def test_turning_all_maps_changes_nothing(turn: Callable[[Map], Map]) -> None:
    images = [{name: blob(*RANDOM.uniform(1, 11, 2)) for name in "abc"} for _ in range(4)]
    turned = [{name: turn(values) for name, values in image.items()} for image in images]
    assert figures(turned) == pytest.approx(figures(images), abs=1e-6)


def test_the_order_of_the_annotators_does_not_matter() -> None:
    images = [{name: blob(*RANDOM.uniform(1, 11, 2)) for name in "abc"} for _ in range(4)]
    backwards = [dict(reversed(image.items())) for image in images]
    assert figures(backwards)[:, 0] == pytest.approx(figures(images)[:, 0])


def test_scaling_every_map_changes_the_square_error_alone() -> None:
    images = [{name: blob(*RANDOM.uniform(1, 11, 2)) for name in "abc"} for _ in range(4)]
    dim = [{name: values * np.float32(0.5) for name, values in image.items()} for image in images]
    assert figures(dim)[..., 1:] == pytest.approx(figures(images)[..., 1:], abs=1e-6)
    assert figures(dim)[..., 0] == pytest.approx(figures(images)[..., 0] / 4)
