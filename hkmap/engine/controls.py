"""Whose maps a network trains on: its images' own, or those of a sham control.

A gain that a sham shows too does not come from where people looked at that image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hkmap.choices import Choices
from hkmap.errors import RunError
from hkmap.maps.certainty import Weighted

Generator = np.random.Generator
Numbers = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]
#: Samples with a map (m,), the class of each (m,), a seed → the sample whose map each of them gets (m,).
Owners = Callable[[Numbers, Names, int], Numbers]
#: A map with its certainty, at its own size, chance → what is trained on in its place.
Change = Callable[[Weighted, Generator], Weighted]

_AND = "+"          # between the controls of a network that was trained with one, then with another


@dataclass(frozen=True)
class Control:
    """How the training samples get their maps; ``said`` ends the sentence "this network was trained on ...".

    ``change`` is made before a map is seen through a view, so what moves with an image moves its sham too.
    """

    title: str
    said: str
    owners: Owners
    change: Change | None = None


def own(samples: Numbers, classes: Names, seed: int) -> Numbers:
    """Return the samples themselves."""
    return samples


def exchanged(samples: Numbers, classes: Names, seed: int) -> Numbers:
    """Return a neighbour of each sample in a random circle: each map is used once, and none by its own image."""
    if len(samples) < 2:
        got = f"needs two with a map, got {len(samples)}"
        raise RunError(f"--control shuffled exchanges maps between samples and {got}; pack more maps")
    circle = np.random.default_rng(seed).permutation(len(samples))
    owners = samples.copy()
    owners[circle] = samples[np.roll(circle, 1)]
    return owners


def exchanged_within(samples: Numbers, classes: Names, seed: int) -> Numbers:
    """Return a neighbour of each sample in a random circle of its class."""
    owners = samples.copy()
    for name in np.unique(classes):
        inside = classes == name
        if inside.sum() < 2:
            raise RunError(
                f'--control same-class exchanges maps within a class, and "{name}" has one training sample with a map; '
                "expected two or more in each class with maps; use --control shuffled"
            )
        owners[inside] = exchanged(samples[inside], classes[inside], seed)
    return owners


def levelled(human: Weighted, generator: Generator) -> Weighted:
    """Return the map's mean, and that of its certainty, everywhere."""
    mean, _, certainty = _level(human)
    return Weighted(np.full_like(human.map, mean), certainty)


def centred(human: Weighted, generator: Generator) -> Weighted:
    """Return a Gaussian in the middle, of the map's peak and mean."""
    return _blob(human, (0.5, 0.5))


def scattered(human: Weighted, generator: Generator) -> Weighted:
    """Return a Gaussian at a random place, of the map's peak and mean."""
    return _blob(human, (generator.random(), generator.random()))


def _blob(human: Weighted, centre: tuple[float, float]) -> Weighted:
    """Return a Gaussian about ``centre``, x and y in [0, 1], with the map's peak, and its mean by the choice of sigma.

    Sigma is the same share of both sides. Bisection finds it, as the mean grows with it from a cell's to the peak. A
    map whose mean is less than that of a single cell, or of the four around a centre between them, gets that.
    """
    mean, peak, certainty = _level(human)
    if peak == 0:
        return Weighted(np.zeros_like(human.map), certainty)
    places = [(np.arange(side) + 0.5) / side for side in human.map.shape]
    squares = [(line - place) ** 2 for line, place in zip(places, centre[::-1], strict=True)]
    down, across = (line.min() - line for line in squares)      # at most 0: the nearest cells have the peak
    wanted = mean / peak * human.map.size
    lowest, highest = 1e-3, 1e3
    for _ in range(30):
        sigma = (lowest * highest) ** 0.5
        column, row = np.exp(down / (2 * sigma**2)), np.exp(across / (2 * sigma**2))
        lowest, highest = (sigma, highest) if column.sum() * row.sum() < wanted else (lowest, sigma)
    return Weighted((peak * np.outer(column, row)).astype(np.float32), certainty)


def _level(human: Weighted) -> tuple[float, float, npt.NDArray[np.float32] | None]:
    """Return the mean and the peak of what is known of a map, and a certainty that is its mean everywhere.

    A sham must not show where people drew, and where nobody knows may show it.
    """
    values, certainty = human
    if certainty is None:
        return float(values.mean(dtype=np.float64)), float(values.max()), None
    if not certainty.any():
        return 0.0, 0.0, certainty
    mean = float(np.average(values, weights=certainty))
    return mean, float(values[certainty > 0].max()), np.full_like(certainty, certainty.mean())


CONTROLS = Choices("control", {
    "none": Control("Every image keeps its own map.", "the maps of its images", own),
    "shuffled": Control("Every image gets another image's map.", "the maps of other images", exchanged),
    "same-class": Control(
        "Every image gets the map of another image of its class.", "the maps of other images of the same class",
        exchanged_within,
    ),
    "uniform": Control("Every map becomes its mean everywhere.", "maps that are the same everywhere", own, levelled),
    "center": Control(
        "Every map becomes a Gaussian in the middle of the image, of the map's peak and mean.",
        "blobs in the middle of the images", own, centred,
    ),
    "random": Control(
        "Every map becomes a Gaussian at a random place, of the map's peak and mean.", "blobs at random places", own,
        scattered,
    ),
}, kind=Control)


def combined(before: str, now: str) -> str:
    """Return the control of a network that had the first one and is trained further with the second.

    A sham stays with a network, whatever follows.

    >>> combined("none", "none"), combined("shuffled", "none"), combined("shuffled", "center")
    ('none', 'shuffled', 'shuffled+center')
    """
    shams = [name for name in before.split(_AND) if name != "none"]
    return _AND.join(shams if now in ("none", *shams) else [*shams, now]) or "none"


def is_control(value: object) -> bool:
    """Say whether a value is what `combined` returns."""
    names = value.split(_AND) if isinstance(value, str) else [""]
    known = all(name in CONTROLS for name in names) and len({*names}) == len(names)
    return known and ("none" not in names or names == ["none"])


def told(control: str) -> str | None:
    """Return what people must be told of a network of that control, None where its maps were its images' own.

    >>> told("shuffled+center")
    'sham control: this network was trained on the maps of other images, then on blobs in the middle of the images'
    """
    if control == "none":
        return None
    said = ", then on ".join(CONTROLS[name].said for name in control.split(_AND))
    return f"sham control: this network was trained on {said}"
