"""Measures of a map against a human one: scikit-learn's, scipy's, or worked by hand; numbers for dark maps too."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from hkmap.maps import similarity
from hkmap.maps.similarity import auc_judd, energy, iou, kl, nss, pointing, region, spearman

RANDOM = np.random.default_rng(0)
HUMAN = RANDOM.random((6, 40)) ** 3
MAPS = RANDOM.random((6, 40))
TIED = RANDOM.integers(0, 4, (6, 40)) / 3
DARK = np.zeros((6, 40))
INSIDE = np.array([row >= row.max() / 2 for row in HUMAN])

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("maps", [MAPS, TIED])
def test_auc_judd_is_scikit_learns(maps):
    wanted = [roc_auc_score(inside, row) for inside, row in zip(INSIDE, maps, strict=True)]
    assert auc_judd(HUMAN, maps) == pytest.approx(wanted, abs=1e-12)


def test_nss_is_the_weighted_mean_of_scipys_z_scores():
    wanted = [np.average(stats.zscore(row), weights=human) for human, row in zip(HUMAN, MAPS, strict=True)]
    assert nss(HUMAN, MAPS) == pytest.approx(wanted, abs=1e-12)
    fixations = np.eye(40)[[3]]      # a single fixation: the z-score there
    assert nss(fixations, MAPS[:1])[0] == pytest.approx(stats.zscore(MAPS[0])[3])


def test_kl_has_the_human_map_as_its_reference():
    human, other = (0.999 * rows / rows.sum(1, keepdims=True) + 0.001 / 40 for rows in (HUMAN, MAPS))
    assert kl(HUMAN, MAPS) == pytest.approx([stats.entropy(p, q) for p, q in zip(human, other, strict=True)])


@pytest.mark.parametrize("percent", [1, 10, 25, 99])
def test_iou_of_the_highest_cells(percent):
    places = int(np.ceil(40 * percent / 100))
    for human, row in zip(HUMAN, MAPS, strict=True):
        one, other = ({*np.argsort(-cells)[:places]} for cells in (human, row))
        wanted = len(one & other) / len(one | other)
        assert iou(human[None], row[None], percent)[0] == pytest.approx(wanted)


def test_energy_and_pointing_worked():
    human = np.array([[1, 0.5, 0.4, 0]])                 # the region is the first two cells
    assert region(human).tolist() == [[True, True, False, False]]
    assert energy(human, np.array([[1.0, 2, 3, 4]]))[0] == pytest.approx(0.3)
    assert pointing(human, np.array([[1.0, 2, 3, 4]]))[0] == 0
    assert pointing(human, np.array([[1.0, 9, 3, 4]]))[0] == 1
    assert pointing(human, np.array([[7.0, 1, 7, 7]]))[0] == pytest.approx(1 / 3)      # three cells tie, one inside


def test_a_dark_map_has_a_number():
    shares = INSIDE.mean(axis=1)
    assert energy(HUMAN, DARK) == pytest.approx(shares)
    assert pointing(HUMAN, DARK) == pytest.approx(shares)
    assert (auc_judd(HUMAN, DARK) == 0.5).all()
    assert (nss(HUMAN, DARK) == 0).all()
    assert (spearman(HUMAN, DARK) == 0).all()
    assert np.isfinite(kl(HUMAN, DARK)).all()
    assert iou(HUMAN, DARK) == pytest.approx(4 * 0.1 / (40 * 0.1 + 4 - 4 * 0.1))      # a tenth of each cell
    assert (nss(HUMAN, DARK + 0.3) == 0).all()      # a flat one tells nothing either


@pytest.mark.parametrize("name", ["mse", "spearman", "iou", "kl", "energy", "pointing", "nss", "auc_judd"])
def test_an_empty_human_map_divides_by_nothing(name):
    for human in (DARK, DARK + 1):
        assert np.isfinite(getattr(similarity, name)(human, MAPS)).all()


def test_what_a_human_map_tells():
    rows = np.array([[0.0, 0, 0], [1, 1, 0.5], [1, 0.4, 0], [0, 0, 1e-9]])
    assert similarity.marked(rows).tolist() == [False, True, True, True]
    assert similarity.parted(rows).tolist() == [False, False, True, True]
