"""What the commands share that draw densities, bubbles2map and points2map: their options, and the drawing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import click

from hkmap.cli._drawing import emit_drawn
from hkmap.cli._stream import drawing_options
from hkmap.parallel.cluster import Workers
from hkmap.records import Bubble, Record, Rejects, bubbles_of, passed_on, without_maps

if TYPE_CHECKING:
    from hkmap.files.maps import Drawn, MapWriter
    from hkmap.maps.check import Map
    from hkmap.maps.resize import Normalisation

RULES = ("scott", "radius", "fixed", "cv")
MISSING = "expected an annotation; --missing pass lets such records go on without a map"
EMPTY = "expected a bubble; --empty zeros makes a map of zeros, --empty pass none"


@dataclass(frozen=True)
class Density:
    """How a map is drawn; ``missing`` and ``empty`` say what becomes of a record with nothing to draw."""

    bandwidth: str | float
    normalise: Normalisation
    equal_users: bool
    size: tuple[int, int]
    per_annotator: bool
    missing: str
    empty: str


class Bandwidth(click.ParamType):
    """scott, radius, fixed, cv, or a sigma."""

    name = "bandwidth"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | float:
        if value in RULES:
            return str(value)
        try:
            sigma = float(value)
        except ValueError:
            sigma = 0
        if not 0 < sigma < float("inf"):
            self.fail(f"{value!r}: expected {', '.join(RULES)}, or a number of image pixels above 0.", param, ctx)
        return sigma


def density_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what is drawn and how, from --bandwidth to --empty, joined into ``density``."""

    @click.option("--bandwidth", type=Bandwidth(), default="scott", show_default=True,
                  metavar="scott|radius|fixed|cv|NUMBER", help="The spread of the Gaussians, see above.")
    @click.option("--equal-users", is_flag=True,
                  help="Divide the weights of each `user` by their sum, so that each has an equal say however much "
                       "they marked. What has no user counts as one user's.")
    @click.option("--normalise", type=click.Choice(["max", "minmax", "sum", "none"]), default="max", show_default=True,
                  help="max: divide each map by its maximum. minmax: stretch it from 0 to 1. sum: divide it by its "
                       "sum. none: keep the sum of the Gaussians, in which each peaks at its weight; a map that "
                       "passes 1 is then an error.")
    @click.option("--per-annotator", is_flag=True,
                  help="Save the map of each `user` alone beside the joint one, drawn by the same rules, and name them "
                       "under `annotator_maps`; in a folder, ID@USER.npy. What has no user is then an error.")
    @drawing_options
    @click.option("--empty", type=click.Choice(["error", "pass", "zeros"]), default="error", show_default=True,
                  help="A record with an empty list (nobody marked anything): an error, passed on without a map, "
                       "or a map of zeros.")
    @functools.wraps(function)
    def wrapper(*args: Any, bandwidth: str | float, normalise: Normalisation, equal_users: bool,
                size: tuple[int, int], per_annotator: bool, missing: str, empty: str, **kwargs: Any) -> Any:
        density = Density(bandwidth, normalise, equal_users, size, per_annotator, missing, empty)
        return function(*args, density=density, **kwargs)

    return wrapper


def emit_densities(
    stream: IO[bytes],
    writer: AbstractContextManager[MapWriter],
    density: Density,
    keys: tuple[str, ...],
    rejects: Rejects,
    workers: Workers,
) -> None:
    """Read records, draw the annotation under the first of the ``keys`` that each has, write them with their maps."""
    emit_drawn(stream, writer, partial(_draw, density=density, keys=keys), rejects, workers, reads_files=False)


def _draw(record: Record, *, density: Density, keys: tuple[str, ...]) -> Drawn | Record:
    from hkmap.files.maps import Drawn
    from hkmap.maps.annotators import maps_by_user

    bubbles = _annotation(record, keys)
    if bubbles is None:
        return passed_on(record, density.missing, f"has no {' and no '.join(keys)}", MISSING)
    if not bubbles and density.empty != "zeros":
        return passed_on(record, density.empty, "its annotation is empty, nobody marked anything", EMPTY)
    draw = partial(_map, record, density=density)
    values = draw(bubbles)
    people = maps_by_user(record, bubbles, draw) if density.per_annotator else None
    return Drawn(without_maps(record), values, annotators=people)


def _map(record: Record, bubbles: list[Bubble], *, density: Density) -> Map:
    import numpy as np

    from hkmap.maps.kde import bubbles_map

    if not bubbles:
        return np.zeros(density.size, np.float32)
    return bubbles_map(
        record, bubbles, density.size, bandwidth=density.bandwidth, normalise=density.normalise,
        equal_users=density.equal_users,
    )


def _annotation(record: Record, keys: tuple[str, ...]) -> list[Bubble] | None:
    found = next((key for key in keys if record.get(key) is not None), None)
    return None if found is None else bubbles_of(record, found)
