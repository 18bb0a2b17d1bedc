"""How alike two maps are: the same measures between people, and between a network and a person.

Maps are rows of cells (n, cells); each row of one argument is compared with the same row of the other: (n,). Where the
two differ in kind, the first is a person's, by which the second is judged. Every measure is a finite number, also of a
map of zeros; `marked` and `parted` tell of which human maps it says something.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hkmap.choices import Choices

Array = npt.NDArray[np.float64]

TOP_PERCENT = 10      # of the cells, the highest ones, for the IoU
EPSILON = 1e-3        # of the mass of a map, spread evenly before the KL divergence, which is then <= log(cells / it)


def mse(first: Any, second: Any, certainty: Any = None) -> Any:
    """Mean square difference; lower is closer.

    For arrays and tensors. ``certainty`` (n, cells) weights the cells; NaN where nothing is known.
    """
    squares = (first - second) ** 2
    return squares.mean(-1) if certainty is None else (certainty * squares).sum(-1) / certainty.sum(-1)


def spearman(first: Array, second: Array) -> Array:
    """Spearman's rank correlation; higher is closer.

    Cells that tie take the mean of their ranks. A constant row orders nothing, so its correlation is 0.
    """
    from scipy.stats import rankdata  # takes most of a second to load

    middle = (first.shape[-1] + 1) / 2
    one, other = rankdata(first, axis=-1) - middle, rankdata(second, axis=-1) - middle
    norms = np.sqrt((one**2).sum(axis=-1) * (other**2).sum(axis=-1))
    found: Array = (one * other).sum(axis=-1) / np.where(norms == 0, 1, norms)
    return found


def iou(first: Array, second: Array, percent: int = TOP_PERCENT) -> Array:
    """Intersection over union of the highest 10 % of the cells (rounded up); higher is closer.

    Another ``percent`` is from 1 to 99. Cells that tie for the last places share them equally: a constant row holds
    10 % of every cell, and its overlap is that of a random choice of cells. Without ties this is the plain
    intersection over union.
    """
    one, other = top_cells(first, percent), top_cells(second, percent)
    found: Array = np.minimum(one, other).sum(axis=-1) / np.maximum(one, other).sum(axis=-1)
    return found


def kl(first: Array, second: Array) -> Array:
    """Kullback-Leibler divergence, sum p log(p / q) in nats; lower is closer.

    p of the first row, q of the second (Bylinskii et al., TPAMI 2019): each row is divided by its sum, and a thousandth
    of its mass is then spread evenly, so that no cell is 0; a row of zeros is spread whole.
    """
    p, q = distribution(first), distribution(second)
    found: Array = (p * np.log(p / q)).sum(axis=-1)
    return found


def energy(human: Array, maps: Array) -> Array:
    """Share of a map's mass that lies in the human region (Wang et al., CVPRW 2020, Score-CAM); higher is closer.

    That of a map of zeros is the region's share of the cells, as if its mass were spread evenly.
    """
    inside, mass = region(human), maps.sum(axis=-1)
    shares = (maps * inside).sum(axis=-1) / np.where(mass > 0, mass, 1)
    found: Array = np.where(mass > 0, shares, inside.mean(axis=-1))
    return found


def pointing(human: Array, maps: Array) -> Array:
    """Whether a map's highest cell lies in the human region (Zhang et al., ECCV 2016), 1 or 0; higher is closer.

    Of cells that tie it is the share that lies there. There is no margin around the region.
    """
    highest = maps == maps.max(axis=-1, keepdims=True)
    found: Array = (highest & region(human)).sum(axis=-1) / highest.sum(axis=-1)
    return found


def nss(human: Array, maps: Array) -> Array:
    """Normalised scanpath saliency (Peters et al., Vision Research 2005), in standard deviations; higher is closer.

    A map less its mean, divided by its standard deviation (of n, not n - 1), averaged over the cells with the human map
    as weights, which take the place of fixations. That of a constant map is 0.
    """
    spread = np.where(np.ptp(maps, axis=-1) > 0, maps.std(axis=-1), np.inf)
    mass = human.sum(axis=-1)
    heights = (human * (maps - maps.mean(axis=-1, keepdims=True))).sum(axis=-1)
    found: Array = heights / spread / np.where(mass > 0, mass, 1)
    return found


def auc_judd(human: Array, maps: Array) -> Array:
    """Area under the ROC curve of a map for the cells of the human region (Judd et al., ICCV 2009); higher is closer.

    It is the chance that a cell inside is higher than one outside; ties count half. Without either it is 1/2.
    """
    from scipy.stats import rankdata  # takes most of a second to load

    inside = region(human)
    count = inside.sum(axis=-1)
    above = (rankdata(maps, axis=-1) * inside).sum(axis=-1) - count * (count + 1) / 2
    pairs = count * (maps.shape[-1] - count)
    return np.where(pairs > 0, above / np.where(pairs > 0, pairs, 1), 0.5)


#: What `hkmap agreement` measures.
SIMILARITIES = Choices("similarity", {"mse": mse, "spearman": spearman, "iou": iou, "kl": kl})


def region(human: Array) -> npt.NDArray[np.bool_]:
    """Return which cells (n, cells) are the human region: those at least half as high as the highest one."""
    highest = human.max(axis=-1, keepdims=True)
    found: npt.NDArray[np.bool_] = (human >= highest / 2) & (highest > 0)
    return found


def marked(human: Array) -> npt.NDArray[np.bool_]:
    """Return in which rows (n,) somebody marked something."""
    found: npt.NDArray[np.bool_] = np.any(human, axis=-1)
    return found


def parted(human: Array) -> npt.NDArray[np.bool_]:
    """Return in which rows (n,) the human region is something, and not everything."""
    count = region(human).sum(axis=-1)
    found: npt.NDArray[np.bool_] = (count > 0) & (count < human.shape[-1])
    return found


def top_cells(rows: Array, percent: int = TOP_PERCENT) -> Array:
    """Return how much of each cell of rows (n, cells) belongs to the highest ``percent``, from 0 to 1; see iou.

    >>> top_cells(np.array([[5.0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]]))[0, :3].tolist()
    [1.0, 0.1111111111111111, 0.1111111111111111]
    """
    cells = rows.shape[-1]
    places = -(-cells * percent // 100)
    last = np.partition(rows, cells - places, axis=-1)[:, cells - places, None]
    above, tied = rows > last, rows == last
    share = (places - above.sum(axis=-1, keepdims=True)) / tied.sum(axis=-1, keepdims=True)
    found: Array = above + tied * share
    return found


def distribution(rows: Array) -> Array:
    """Return each row (n, cells) as a distribution without zeros; see kl."""
    totals = rows.sum(axis=-1, keepdims=True)
    even = 1 / rows.shape[-1]
    shares = np.where(totals > 0, rows / np.where(totals > 0, totals, 1), even)
    found: Array = (1 - EPSILON) * shares + EPSILON * even
    return found
