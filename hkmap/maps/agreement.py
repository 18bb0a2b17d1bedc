"""How far annotators agree: the human ceiling, beside a null and a uniform map, with bootstrap intervals.

A network cannot be asked to agree with people more than people agree with each other. Arrays of maps are
(maps, height, width); inside, a map is a row of its cells.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hkmap.errors import MapError
from hkmap.maps.check import Map
from hkmap.maps.similarity import SIMILARITIES
from hkmap.statistics import Resampling, mean_intervals

Array = npt.NDArray[np.float64]
Generator = np.random.Generator

MEASURES = tuple(SIMILARITIES)
WITHOUT_A_MARK = frozenset({"mse"})      # the measures that also compare a map of zeros with another
METHODS = ("leave_one_out", "split_half")
KINDS = ("agreement", "null", "uniform")


def measure(first: Array, second: Array) -> Array:
    """Return all MEASURES of rows against rows, averaged over the rows: (4,)."""
    return np.array([similarity(first, second).mean() for similarity in SIMILARITIES.values()])


def others(maps: Array) -> Array:
    """Return, for each of n rows, the mean of the others (n, cells)."""
    # not the sum less the row: where the others are tiny beside it, their order would be lost
    return np.stack([np.delete(maps, index, axis=0).mean(axis=0) for index in range(len(maps))])


def halves(maps: Array, orders: npt.NDArray[np.intp]) -> tuple[Array, Array]:
    """Return the means of two halves of n rows, (draws, cells) each, in each of the ``orders`` (draws, n) of the rows.

    Of an odd number, the second half has one more.
    """
    middle = len(maps) // 2
    return maps[orders[:, :middle]].mean(axis=1), maps[orders[:, middle:]].mean(axis=1)


def partners_of(count: int, repeats: int, random: Generator) -> npt.NDArray[np.intp]:
    """Return other images for each of ``count`` images, none its own: the next ones in a random order.

    (count, partners), as many as ``repeats`` or as there are others; each column is a derangement.
    """
    order = random.permutation(count)
    partners = np.empty((count, min(repeats, count - 1)), np.intp)
    for column in range(partners.shape[1]):
        partners[order, column] = np.roll(order, -1 - column)
    return partners


def agreement_figures(images: Sequence[Mapping[str, Map]], *, repeats: int, random: Generator) -> Array:
    """Measure how far the annotators of each image agree, and how far they would by chance.

    An image is the maps of two annotators or more by their names, all (height, width). The figures are (images,
    methods, kinds, measures), in the order of METHODS, KINDS and MEASURES:

    - leave_one_out: each annotator's map against the mean of the others', averaged over the annotators;
    - split_half: the mean of a random half of them against that of the rest, averaged over ``repeats`` draws.

    The null compares with ``repeats`` other images (all, if there are fewer). Their means omit the same person (or
    somebody else, where that person did not mark them), and a half is compared with a half, so the other side is a mean
    of as many maps as in the agreement. It keeps what people do on every image, above all the centre bias. The uniform
    map has the mean value of all maps in each cell.

    A map of zeros, of somebody who marked nothing, is compared by the measures of WITHOUT_A_MARK alone. The others
    compare those who marked something; they are NaN for an image with fewer than two such people.

    Raises MapError for fewer than two images, or two with two people who marked something, and for maps of different
    sizes.
    """
    _check(images, "two annotators or more")
    marked = [{name: values for name, values in image.items() if values.any()} for image in images]
    as_before = copy.deepcopy(random)
    figures = _figures(images, repeats, random)
    if list(map(len, marked)) == list(map(len, images)):
        return figures
    places = [place for place, image in enumerate(marked) if len(image) > 1]
    of_marked = [marked[place] for place in places]
    _check(of_marked, "two annotators or more who marked something")
    cells = [MEASURES.index(name) for name in MEASURES if name not in WITHOUT_A_MARK]
    figures[..., cells] = np.nan
    figures[np.ix_(places, range(len(METHODS)), range(len(KINDS)), cells)] = (
        _figures(of_marked, repeats, as_before)[..., cells]
    )
    return figures


def _figures(images: Sequence[Mapping[str, Map]], repeats: int, random: Generator) -> Array:
    stacks = [np.stack([values.ravel() for values in image.values()]).astype(np.float64) for image in images]
    names = [list(image) for image in images]
    flat = np.full((1, stacks[0].shape[1]), np.mean([rows.mean() for rows in stacks]))
    partners = partners_of(len(images), repeats, random)
    orders = [random.permuted(np.tile(np.arange(len(rows)), (repeats, 1)), axis=1) for rows in stacks]
    rest_of = [others(rows) for rows in stacks]
    figures = np.empty((len(images), len(METHODS), len(KINDS), len(MEASURES)))
    for index, own in enumerate(partners):
        one, (half, rest) = stacks[index], halves(stacks[index], orders[index])
        elsewhere = [rest_of[partner][_places(names[index], names[partner])] for partner in own]
        null = measure(np.tile(one, (len(own), 1)), np.concatenate(elsewhere))
        figures[index, 0] = measure(one, rest_of[index]), null, measure(one, flat)
        meets = [(own[draw % len(own)], draw) for draw in range(repeats)]
        other = np.concatenate([halves(stacks[partner], orders[partner][[draw]])[1] for partner, draw in meets])
        figures[index, 1] = measure(half, rest), measure(half, other), measure(half, flat)
    return figures


def named_figures(figures: Array) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return one image's figures (methods, kinds, measures) by their names: method, measure, kind; None for NaN."""
    return {
        method: {
            name: {kind: _number(figures[row, column, cell]) for column, kind in enumerate(KINDS)}
            for cell, name in enumerate(MEASURES)
        }
        for row, method in enumerate(METHODS)
    }


def summary(figures: Array, *, resamples: int, seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the means over the images with their intervals by name: method, measure, kind.

    null_minus_uniform is added to the kinds: what it is worth to know how people look at any image. Images whose
    figures are NaN in a measure have no part in it.
    """
    bias = figures[:, :, 1] - figures[:, :, 2]
    columns = np.concatenate([figures, bias[:, :, None]], axis=2)          # (images, methods, kinds and bias, measures)
    means = np.nanmean(columns, axis=0)
    found = mean_intervals(columns.reshape(len(columns), -1), Resampling(len(columns), resamples=resamples, seed=seed))
    if None in found:
        raise MapError(
            f"too few of {len(columns)} images have a figure for an interval of {resamples} draws; give more images "
            "that two people marked, or --resamples 2000"
        )
    intervals = np.array(found).reshape(*means.shape, 2)
    return {
        method: {
            name: _entry(means[row, :, cell], intervals[row, :, cell]) for cell, name in enumerate(MEASURES)
        }
        for row, method in enumerate(METHODS)
    }


def _number(figure: float) -> float | None:
    return None if np.isnan(figure) else float(figure)


def _entry(means: Array, intervals: Array) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, mean, ends in zip((*KINDS, "null_minus_uniform"), means.tolist(), intervals.tolist(), strict=True):
        found[name] = mean
        found[f"{name}_interval"] = ends
    return found


def _check(images: Sequence[Mapping[str, Map]], people: str) -> None:
    if len(images) < 2:
        raise MapError(
            f"{len(images)} images with {people}, expected at least two such images, as the null compares an image "
            "with another; draw the maps with `hkmap bubbles2map --per-annotator`"
        )
    sizes = sorted({values.shape for image in images for values in image.values()})
    if len(sizes) > 1:
        (height, width), (tall, wide) = sizes[:2]
        raise MapError(
            f"the annotators' maps are {height}x{width} and {tall}x{wide} (height x width), expected one size; pass "
            "them through `hkmap resize` first"
        )


def _places(names: list[str], partner: list[str]) -> list[int]:
    """Return the places of the same people among the partner's; somebody else's for one who is missing there."""
    return [partner.index(name) if name in partner else place % len(partner) for place, name in enumerate(names)]
