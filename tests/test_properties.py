"""What holds for every map, whatever is drawn: properties over generated bubbles, frames and sizes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hkmap.maps.kde import kde_map

BANDWIDTHS = ["scott", "radius", "fixed", "cv", 20.0]
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Drawing(NamedTuple):
    """Bubbles in an image whose sides differ, with a map whose sides differ."""

    centres: np.ndarray         # (n, 2), in whole eighths of a pixel, so that turned coordinates stay exact
    radii: np.ndarray
    weights: np.ndarray
    frame: tuple[int, int]
    size: tuple[int, int]

    def map(self, bandwidth: str | float, normalise: str = "max") -> np.ndarray:
        return kde_map(
            self.centres, self.frame, self.size, bandwidth=bandwidth, radii=self.radii, weights=self.weights,
            normalise=normalise,
        )


@st.composite
def drawings(draw: st.DrawFn, weight: float = 10.0) -> Drawing:
    frame = draw(st.tuples(st.integers(20, 300), st.integers(20, 300)).filter(lambda sides: sides[0] != sides[1]))
    size = draw(st.tuples(st.integers(3, 24), st.integers(3, 24)))
    count = draw(st.integers(1, 12))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)      # hypothesis draws what matters; the rest would take it seconds
    centres = np.round(random.random((count, 2)) * frame * 8) / 8
    return Drawing(centres, random.uniform(2, 60, count), random.uniform(0.1, weight, count), frame, size)


def moved(drawing: Drawing, how: str) -> Drawing:
    width, height = drawing.frame
    x, y = drawing.centres.T
    turned = {"mirror": (width - x, y), "upside down": (x, height - y), "turn": (height - y, x)}[how]
    sides = (drawing.frame[::-1], drawing.size[::-1]) if how == "turn" else (drawing.frame, drawing.size)
    return drawing._replace(centres=np.stack(turned, axis=1), frame=sides[0], size=sides[1])


MOVES = {"mirror": np.fliplr, "upside down": np.flipud, "turn": lambda values: np.rot90(values, -1)}


@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
@pytest.mark.parametrize("how", MOVES)
@few
@given(drawing=drawings())
def test_a_density_turns_and_mirrors_with_its_image(bandwidth: str | float, how: str, drawing: Drawing) -> None:
    assert moved(drawing, how).map(bandwidth) == pytest.approx(MOVES[how](drawing.map(bandwidth)), abs=1e-5)


@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
@few
@given(drawing=drawings(), seed=st.integers(0, 1000))
def test_the_order_of_the_bubbles_does_not_matter(bandwidth: str | float, drawing: Drawing, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(drawing.centres))
    other = drawing._replace(
        centres=drawing.centres[order], radii=drawing.radii[order], weights=drawing.weights[order]
    )
    assert other.map(bandwidth) == pytest.approx(drawing.map(bandwidth), abs=1e-5)


@pytest.mark.parametrize("bandwidth", ["radius", "fixed", 20.0])
@few
@given(drawing=drawings(weight=0.15), cut=st.integers(1, 11))
def test_before_normalising_a_density_is_the_sum_over_the_annotators(bandwidth, drawing, cut) -> None:
    weights = drawing.weights / 2       # 12 of them at most: the sum stays below 1
    parts = [part for part in (slice(0, cut), slice(cut, None)) if len(weights[part])]
    each = [
        Drawing(drawing.centres[part], drawing.radii[part], weights[part], drawing.frame, drawing.size)
        .map(bandwidth, "none").astype(np.float64)
        for part in parts
    ]
    assert drawing._replace(weights=weights).map(bandwidth, "none") == pytest.approx(sum(each), abs=1e-6)


@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
@pytest.mark.parametrize("normalise", ["max", "minmax", "sum"])
@few
@given(drawing=drawings())
def test_doubling_every_weight_changes_nothing(bandwidth: str | float, normalise: str, drawing: Drawing) -> None:
    doubled = drawing._replace(weights=drawing.weights * 2)
    assert doubled.map(bandwidth, normalise) == pytest.approx(drawing.map(bandwidth, normalise), abs=1e-6)
