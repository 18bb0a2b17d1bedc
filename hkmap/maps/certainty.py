"""How well each cell of a map is known: its certainty, from 0 (nobody knows) to 1, beside the map.

A cell of certainty 0 is always 0 in the map too: nothing is known there, so no value must show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hkmap.errors import MapError
from hkmap.maps.check import Map
from hkmap.maps.resize import Normalisation, normalise_map, resize_map

Mask = npt.NDArray[np.bool_]


class Weighted(NamedTuple):
    """A map and its certainty, both (height, width); None is a certainty of 1 everywhere."""

    map: Map
    certainty: Map | None


def weigh_map(
    values: Map, unknown: Iterable[Mask], dont_look: Iterable[Mask], *, default_known: bool, above: float = 0
) -> tuple[Map, Map]:
    """Return the map with its certainty, from masks (H, W) of the image that are True where they apply.

    The certainty of a cell is the share of its area that is known: not ``unknown``, or ``dont_look``, which wins over
    unknown. The map is reduced by the share that is ``dont_look``, so a cell where nobody should look is 0 with
    certainty 1. Without ``default_known``, the certainty of a cell that nobody marked (its value is at most ``above``)
    is its share of ``dont_look`` alone.

    Raises MapError for masks of different shapes.
    """
    void, shunned = _union(unknown), _union(dont_look)
    if void is not None and shunned is not None:
        _refuse_two_shapes(void, shunned)
        void = void & ~shunned
    unknown_share, shunned_share = (_share(mask, values.shape) for mask in (void, shunned))
    certainty = 1 - unknown_share
    if not default_known:
        certainty = np.where(values > above, certainty, shunned_share)
    return _settled(values * (1 - shunned_share), certainty)


def change_weighted(weighted: Weighted, change: Callable[[Map], Map]) -> Weighted:
    """Return the map and its certainty after a ``change`` that averages cells: resizing, or what a view shows.

    The new certainty is change(certainty); the new map is change(certainty * map) / change(certainty), the mean over
    what is known, so unknown cells do not dilute their neighbours. Where both sides shrink, the mean of
    certainty * value over the cells does not change.
    """
    values, certainty = weighted
    if certainty is None:
        return Weighted(change(values), None)
    changed = change(certainty)
    sums = change(np.asarray(certainty * values, dtype=np.float32))
    means = np.divide(sums, changed, out=np.zeros_like(sums), where=changed > 0)
    known = certainty > 0
    low, high = values.min(where=known, initial=1), values.max(where=known, initial=0)
    return Weighted(*_settled(np.clip(means, low, high), changed))


def normalise_weighted(weighted: Weighted, how: Normalisation) -> Weighted:
    """Like normalise_map, over the cells whose certainty is above 0."""
    values, certainty = weighted
    if certainty is None:
        return Weighted(normalise_map(values, how), None)
    normalised, known = values.copy(), certainty > 0
    if known.any():
        normalised[known] = normalise_map(values[known], how)
    return Weighted(normalised, certainty)


def at_one_size(maps: Sequence[Weighted]) -> list[Weighted]:
    """Return the maps at the size of the smallest, averaged over areas; one of this size as it is."""
    size = min((one.map.shape for one in maps), key=lambda shape: shape[0] * shape[1])
    change = partial(resize_map, size=size)
    return [one if one.map.shape == size else change_weighted(one, change) for one in maps]


def mean_weighted(maps: Sequence[Weighted]) -> Weighted:
    """Return the mean of maps of one size over what each of them knows, and of their certainty; one map as it is.

    >>> one, other = Weighted(np.float32([[1, 1]]), None), Weighted(np.float32([[0, 0]]), np.float32([[1, 0]]))
    >>> [values.tolist() for values in mean_weighted([one, other])]
    [[[0.5, 1.0]], [[1.0, 0.5]]]
    """
    if len(maps) == 1:
        return maps[0]
    weights = np.stack([np.ones_like(one.map) if one.certainty is None else one.certainty for one in maps])
    values = np.stack([one.map for one in maps])
    total = weights.sum(0)
    mean = np.clip((weights * values).sum(0) / np.where(total > 0, total, 1), values.min(0), values.max(0))
    told = any(one.certainty is not None for one in maps)
    return Weighted(mean, weights.mean(0) if told else None)


def _settled(values: npt.NDArray[np.floating], certainty: npt.NDArray[np.floating]) -> tuple[Map, Map]:
    certainty = np.asarray(np.clip(certainty, 0, 1), dtype=np.float32)
    return np.asarray(np.where(certainty > 0, values, 0), dtype=np.float32), certainty


def _union(masks: Iterable[Mask]) -> Mask | None:
    union: Mask | None = None
    for mask in masks:
        if union is not None:
            _refuse_two_shapes(union, mask)
        union = mask if union is None else union | mask
    return union


def _refuse_two_shapes(mask: Mask, other: Mask) -> None:
    if mask.shape != other.shape:
        raise MapError(f"a mask of {other.shape} beside one of {mask.shape}, expected the same (height, width)")


def _share(mask: Mask | None, size: tuple[int, ...]) -> Map:
    """Return the share of each cell that the mask marks."""
    height, width = size
    if mask is None:
        return np.zeros((height, width), np.float32)
    return resize_map(mask.astype(np.float32), (height, width))
