"""What the commands share that fill shapes, boxes2map and masks2map: the choice by name, options, the drawing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import click

from hkmap.cli.stream import drawing_options, emit_when_saved, read
from hkmap.errors import RecordError
from hkmap.records import Record, Rejects, each, passed_on, with_new_map

if TYPE_CHECKING:
    from hkmap.maps.check import Map
    from hkmap.maps.resize import Normalisation
    from hkmap.storage.mapfiles import MapWriter

Function = Callable[..., Any]


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


class Choice:
    """Which names are drawn, and how heavily; remembers the names that it was asked for."""

    def __init__(self, option: str, named: tuple[tuple[str, float], ...], left_out: tuple[str, ...]) -> None:
        if len(dict(named)) < len(named):
            names = ", ".join(name for name, _ in named)
            raise click.UsageError(f"{option}: {names}; expected each name once.")
        self._option = option
        self._weights = dict(named)
        self._left_out = left_out
        self._seen: set[str] = set()

    def weight(self, name: str) -> float:
        """Return the weight of what is called ``name``, 0 where it is not drawn."""
        self._seen.add(name)
        if not self._weights:
            return float(name not in self._left_out)
        return self._weights.get(name, 0.0)

    def refuse_unseen(self) -> None:
        """Raise RecordError where a chosen name never came."""
        if unseen := sorted(set(self._weights) - self._seen):
            known = ", ".join(sorted(self._seen - {""})) or "none"
            raise RecordError(f"{self._option} {', '.join(unseen)}: no record has such a one; their names are {known}")


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
    keys: tuple[str, ...],
    drawn: Callable[[Record], Map],
    rejects: Rejects,
) -> None:
    """Read records, draw what each has under the ``keys`` by ``drawn``, write them with their maps."""
    from hkmap.maps.resize import normalise_map

    def draw(record: Record, maps: MapWriter) -> Record:
        if all(record.get(key) is None for key in keys):
            remedy = "expected an annotation; --missing pass lets such records go on without a map"
            return passed_on(record, shapes.missing, f"has no {' and no '.join(keys)}", remedy)
        values = drawn(record)
        if shapes.empty != "zeros" and not values.any():
            remedy = "expected a mark; --empty zeros makes a map of zeros, --empty pass none"
            return passed_on(record, shapes.empty, f"nothing is marked by its {' or '.join(keys)}", remedy)
        return with_new_map(record, maps.save(record["id"], normalise_map(values, shapes.normalise)))

    def records(maps: MapWriter) -> Iterator[Record]:
        yield from each(read(stream, rejects), lambda record: draw(record, maps), rejects)
        shapes.choice.refuse_unseen()

    emit_when_saved(writer, records)
