"""How alike two maps are: the same measures between people, and between a network and a person.

Maps are rows of cells (n, cells); each row of one argument is compared with the same row of the other: (n,).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hkmap.choices import Choices

Array = npt.NDArray[np.float64]

TOP_PART = 10         # the highest tenth of the cells, for the IoU
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


def iou(first: Array, second: Array) -> Array:
    """Intersection over union of the highest 10 % of the cells (rounded up); higher is closer.

    Cells that tie for the last places share them equally: a constant row holds 10 % of every cell, and its overlap is
    that of a random choice of cells. Without ties this is the plain intersection over union.
    """
    one, other = top_cells(first), top_cells(second)
    found: Array = np.minimum(one, other).sum(axis=-1) / np.maximum(one, other).sum(axis=-1)
    return found


def kl(first: Array, second: Array) -> Array:
    """Kullback-Leibler divergence, sum p log(p / q) in nats; lower is closer.

    p of the first row, q of the second: each row is divided by its sum, and a thousandth of its mass is then spread
    evenly, so that no cell is 0; a row of zeros is spread whole.
    """
    p, q = distribution(first), distribution(second)
    found: Array = (p * np.log(p / q)).sum(axis=-1)
    return found


SIMILARITIES = Choices("similarity", {"mse": mse, "spearman": spearman, "iou": iou, "kl": kl})


def top_cells(rows: Array) -> Array:
    """Return how much of each cell of rows (n, cells) belongs to the highest 10 %, from 0 to 1; see iou.

    >>> top_cells(np.array([[5.0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]]))[0, :3].tolist()
    [1.0, 0.1111111111111111, 0.1111111111111111]
    """
    cells = rows.shape[-1]
    places = -(-cells // TOP_PART)
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
