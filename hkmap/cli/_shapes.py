"""What the commands share that fill shapes, boxes2map and masks2map: the choice by name, options, the drawing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import click

from hkmap.cli._drawing import Parsed, emit_drawn
from hkmap.cli._stream import drawing_options
from hkmap.errors import HkmapError, RecordError
from hkmap.parallel.cluster import Workers
from hkmap.records import Record, Rejects, labels_of, passed_on, without_maps

if TYPE_CHECKING:
    from hkmap.files.maps import Drawn, MapWriter
    from hkmap.maps.check import Map
    from hkmap.maps.resize import Normalisation

Function = Callable[..., Any]
Drawings = Mapping[str, "Callable[[Record], Map]"]      # functions that pickle can name


class Weighted(click.ParamType):
    """NAME or NAME=WEIGHT."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        name, equals, number = str(value).partition("=")
        try:
            weight = float(number) if equals else 1.0
        except ValueError:
            weight = 0.0
        if not name or not 0 < weight <= 1:
            self.fail(f"{value!r}: expected NAME or NAME=WEIGHT with a weight above 0 and up to 1.", param, ctx)
        return name, weight


@dataclass(frozen=True)
class Choice:
    """Which names are drawn, and how heavily: those named by ``option``; without any, all but those left out."""

    option: str
    named: tuple[tuple[str, float], ...]
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(dict(self.named)) < len(self.named):
            names = ", ".join(name for name, _ in self.named)
            raise click.UsageError(f"{self.option}: {names}; expected each name once.")

    def weight(self, name: str) -> float:
        """Return the weight of what is called ``name``, 0 where it is not drawn."""
        if not self.named:
            return float(name not in self.left_out)
        return dict(self.named).get(name, 0.0)

    def watched(self, stream: Parsed, keys: tuple[str, ...]) -> Parsed:
        """Pass a stream through; raise RecordError at its end where a chosen name never came under the ``keys``."""
        seen: set[str] = set()
        for item in stream:
            if not isinstance(item, HkmapError):
                seen.update(_names(item, keys))
            yield item
        if unseen := sorted({name for name, _ in self.named} - seen):
            known = ", ".join(sorted(seen - {""})) or "none"
            raise RecordError(f"{self.option} {', '.join(unseen)}: no record has such a one; their names are {known}")


@dataclass(frozen=True)
class Shapes:
    """What is drawn and how; ``missing`` and ``empty`` say what becomes of a record with nothing to draw."""

    choice: Choice
    size: tuple[int, int]
    normalise: Normalisation
    missing: str
    empty: str


def shape_options(option: str, *, what: str, default: str, left_out: tuple[str, ...] = ()) -> Callable[..., Any]:
    """Add the ``option`` that chooses by name, --size, --normalise, --missing and --empty, joined into ``shapes``."""

    def decorate(function: Function) -> Function:
        @click.option(option, "named", type=Weighted(), multiple=True, metavar="NAME[=WEIGHT]",
                      help=f"{what} and its weight, above 0 and up to 1 (the default); repeatable.  "
                           f"[default: {default}]")
        @click.option("--normalise", type=click.Choice(["none", "max", "minmax", "sum"]), default="none",
                      show_default=True,
                      help="max: divide each map by its maximum. minmax: stretch it from 0 to 1. sum: divide it by "
                           "its sum. A map of zeros stays one.")
        @drawing_options
        @click.option("--empty", type=click.Choice(["zeros", "pass", "error"]), default="zeros", show_default=True,
                      help="A record on whose image nothing chosen is marked (annotated, nothing there): a map of "
                           "zeros, passed on without a map, or an error.")
        @functools.wraps(function)
        def wrapper(*args: Any, named: tuple[tuple[str, float], ...], size: tuple[int, int], normalise: Normalisation,
                    missing: str, empty: str, **kwargs: Any) -> Any:
            shapes = Shapes(Choice(option, named, left_out), size, normalise, missing, empty)
            return function(*args, shapes=shapes, **kwargs)

        return wrapper

    return decorate


def emit_shapes(
    stream: IO[bytes],
    writer: AbstractContextManager[MapWriter],
    shapes: Shapes,
    drawings: Drawings,
    rejects: Rejects,
    workers: Workers,
) -> None:
    """Read records, draw what each has, write them with their maps; ``drawings`` says how, by the record's key.

    Where a record has several of these keys, the largest value counts.
    """
    keys = tuple(drawings)
    draw = partial(_draw, shapes=shapes, drawings=drawings)
    emit_drawn(
        stream, writer, draw, rejects, workers, reads_files="masks" in keys,
        watch=lambda found: shapes.choice.watched(found, keys),
    )


def _draw(record: Record, *, shapes: Shapes, drawings: Drawings) -> Drawn | Record:
    import numpy as np

    from hkmap.files.maps import Drawn
    from hkmap.maps.resize import normalise_map

    parts = [draw(record) for key, draw in drawings.items() if record.get(key) is not None]
    if not parts:
        remedy = "expected an annotation; --missing pass lets such records go on without a map"
        return passed_on(record, shapes.missing, f"has no {' and no '.join(drawings)}", remedy)
    values = np.maximum.reduce(parts)
    if shapes.empty != "zeros" and not values.any():
        remedy = "expected a mark; --empty zeros makes a map of zeros, --empty pass none"
        return passed_on(record, shapes.empty, f"nothing is marked by its {' or '.join(drawings)}", remedy)
    return Drawn(without_maps(record), normalise_map(values, shapes.normalise))


def _names(record: Record, keys: tuple[str, ...]) -> Iterator[str]:
    """What the record's shapes are called; one that is not as it should be is refused where it is drawn."""
    for key in keys:
        found = record.get(key)
        if isinstance(found, dict):
            yield from found
        elif isinstance(found, list) and all(isinstance(item, dict) for item in found):
            yield from labels_of(record, key)
