"""Maps against the human map, and annotators against each other, by the same measures (`hkmap.maps.similarity`).

Cells of certainty 0 have no part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hkmap.engine.data import Batch, ShardExamples, view_of
from hkmap.engine.resize import resize_maps
from hkmap.evaluation.sets import ratio
from hkmap.maps.agreement import others
from hkmap.maps.certainty import Weighted
from hkmap.maps.geometry import view_map
from hkmap.maps.similarity import marked

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

OF_PEOPLE = "_of_people"      # ends the names of the annotators' figures
BITS = 20                     # of a cell's value: float32's noise breaks no tie, and faint cells keep their order


@dataclass(frozen=True)
class Likeness:
    """A measure of two rows of cells, and the human rows that it applies to.

    ``similarity`` takes a person's rows (n, cells) and others, and gives a figure of each (n,); ``exists`` takes the
    person's alone. With ``weighted`` the similarity takes the certainty of the cells as well.
    """

    similarity: Callable[..., Any]
    exists: Callable[[Array], Flags]
    weighted: bool = False

    def of_maps(self, maps: Tensor, batch: Batch) -> Tensor:
        """Return the figure (B,) of maps (B, 1, h, w)."""
        human, certainty = _human_rows(batch)
        rows = _rows(resize_maps(maps.float(), (batch.maps.shape[2], batch.maps.shape[3])))
        return torch.from_numpy(self.compare(human, rows, certainty))

    def applies(self, batch: Batch) -> Tensor:
        """Return the samples (B,) that it applies to."""
        human, certainty = _human_rows(batch)
        return torch.from_numpy(_over_known(self.exists, certainty, human) > 0).to(batch.maps.device)

    def of_people(self, people: Sequence[Array], batch: Batch) -> list[float | None]:
        """Return each sample's agreement between its annotators: each against the mean of the others, averaged.

        ``people`` are the maps (annotators, cells) of each sample. It is of those who marked something; None where
        there are fewer than two, or it applies to no map of theirs.
        """
        found: list[float | None] = []
        for maps, known in zip(people, _human_rows(batch)[1], strict=False):       # a batch may be filled up
            rows = _settled(maps[marked(maps)])
            certainty = np.tile(known, (len(rows), 1))
            there = _over_known(self.exists, certainty, rows) > 0
            several = len(rows) > 1 and there.any()
            found.append(float(self.compare(rows, others(rows), certainty)[there].mean()) if several else None)
        return found

    def compare(self, human: Array, rows: Array, certainty: Array) -> Array:
        """Compare rows (n, cells) over the cells that are known: (n,), 0 where none is."""
        return _over_known(self.similarity, certainty, human, rows, *([certainty] if self.weighted else []))


def anything(human: Array) -> Flags:
    """Apply to every row (n,) of which a cell is known."""
    return np.ones(len(human), np.bool_)


def maps_of_people(examples: ShardExamples, number: int) -> Array:
    """Return the maps (annotators, cells) of a record's annotators as the network sees them."""
    sample, size = examples.shards.read_bare(number), examples.map_size
    view, padded = view_of(examples.shards, number, examples.preprocessing), examples.preprocessing.padding is not None
    people = [Weighted(own, sample.certainty) for own in sample.annotators.values()]
    seen = np.array([view_map(own, view, size, padded=padded).map for own in people], np.float64)
    return seen.reshape(len(people), size[0] * size[1])


def share_of_people(own: Array, people: Array, weights: Array, *, higher: bool | None) -> Array:
    """Return a figure as a share of the annotators' agreement (draws,): 1 is as close as people are to each other.

    It is the mean of ``own`` (n,) over that of ``people`` (n,), NaN where a record has none, both over the records that
    have both; the inverse unless ``higher`` is better. ``weights`` (draws, n) are how often each record counts. NaN
    where there is no such record, or it would divide by 0 or less.

    >>> share_of_people(np.array([1, 2, np.nan]), np.array([4.0, 2, 1]), np.ones((1, 3)), higher=True).tolist()
    [0.5]
    """
    both = ~np.isnan(own + people)
    part, whole = (weights[:, both] @ values[both] for values in ((own, people) if higher else (people, own)))
    return ratio(part, whole)


def _over_known(figure: Callable[..., Any], certainty: Array, *rows: Array) -> Array:
    """Return a figure of rows (n, cells) over the cells whose certainty is above 0: (n,), 0 where there is none."""
    known, found = certainty > 0, np.zeros(len(certainty))
    whole = known.all(axis=1)
    if whole.any():
        found[whole] = figure(*(each[whole] for each in rows))
    for row in np.flatnonzero(known.any(axis=1) & ~whole):
        found[row] = figure(*(each[row : row + 1, known[row]] for each in rows))[0]
    return found


def _human_rows(batch: Batch) -> tuple[Array, Array]:
    """Return the human maps and their certainty (B, cells)."""
    return _rows(batch.maps), batch.certainty.flatten(1).double().cpu().numpy()


def _rows(maps: Tensor) -> Array:
    return _settled(maps.detach().flatten(1).double().cpu().numpy())


def _settled(rows: Array) -> Array:
    """Return rows (n, cells) whose values have 20 bits as shares of the highest, so that equal cells tie."""
    highest = np.abs(rows).max(axis=1, keepdims=True)
    digits, powers = np.frexp(rows / np.where(highest > 0, highest, 1))
    settled: Array = np.ldexp(np.round(digits * 2**BITS), powers - BITS) * highest
    return settled
