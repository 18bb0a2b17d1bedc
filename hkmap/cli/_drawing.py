"""What the filters share that draw or change maps: their options, the way of a record through them, and shapes."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from hkmap.cli._options import Decorator, composed, map_output_options, missing_option, normalise_option, size_option
from hkmap.cli._stream import Function, Item, Lines, emit_when_saved, error_options, readable, records_argument
from hkmap.errors import HkmapError, MapError, RecordError
from hkmap.parallel.cluster import Workers, open_pool
from hkmap.records import Record, Rejects, accepted, attempt, labels_of, parsed, passed_on, without_maps

if TYPE_CHECKING:
    from hkmap.files.maps import Drawn, MapWriter
    from hkmap.maps.check import Map

MOST_JOBS = 128      # each has some images in memory

Parsed = Iterator[Record | HkmapError]

NO_ANNOTATION = "expected an annotation; --missing pass lets such records through without a map"
SHAPES = ("masks", "polygons", "boxes")
NO_MAP = "expected one; --missing pass lets such records through unchanged"


# the way of a record


def draw_records(
    function: Callable[[Record], Drawn | Record], *, reads_files: bool, watch: Callable[[Parsed], Parsed] = iter,
    records: IO[bytes], out: Path, suffix: str, overwrite: bool, jobs: int | None, backend: str, scheduler: str | None,
    rejects: Rejects,
) -> None:
    """Read records, draw by ``function`` in the workers, save the maps, write the records; all in order.

    ``function`` must be one that pickle can name. ``reads_files`` says whether it opens files that records name.
    ``watch`` sees what is read, and may refuse it at its end. The rest are the values of ``drawing_options``.
    """
    from hkmap.files.maps import open_writer, save_drawn

    if (backend == "dask") != (scheduler is not None):
        raise click.UsageError("--backend dask and --scheduler ADDRESS go together; give both, or neither.")
    workers = Workers(jobs or (1 if scheduler is None else -1), scheduler)
    lines = Lines(records)
    items = watch(parsed(lines, readable(records)))

    def saved(maps: MapWriter) -> Iterator[Record]:
        return accepted((attempt(partial(save_drawn, maps), item) for item in drawn), rejects)

    with open_pool(workers, reads_files=reads_files) as pool:
        drawn = pool.attempts(function, items, lines.ready) if pool else (attempt(function, one) for one in items)
        emit_when_saved(open_writer(out, suffix=suffix, overwrite=overwrite), saved)


def _jobs(value: Any) -> int:
    """Read a number of threads from 1, or -1 for one per core."""
    if not re.fullmatch("-1|0*[1-9][0-9]{0,2}", str(value)) or int(value) > MOST_JOBS:
        raise click.BadParameter(f"{value!r}: expected a number of threads from 1 to {MOST_JOBS}, or -1 for all cores.")
    return int(value)


#: The options for output, workers and errors.
working_options = composed(
    map_output_options(),
    click.option("--jobs", type=_jobs, metavar="N",
                 help="Draw in N threads, 1 to 128, or -1 for one per core; the output is the same. With --backend "
                      "dask, use at most N threads of the cluster.  [default: 1, or all of a cluster]"),
    click.option("--backend", type=click.Choice(["threads", "dask"]), default="threads",
                 help="Draw on this machine, or on an existing Dask cluster (pip install 'hkmap[dask]') with the same "
                      "hkmap. If records name files, the workers must see them under the same paths."),
    click.option("--scheduler", metavar="ADDRESS",
                 help="With --backend dask: the scheduler's address, such as tcp://host:8786."),
    error_options,
)

#: RECORDS and the `working_options`.
drawing_options = composed(records_argument, working_options)


def empty_option(default: str, what: str) -> Decorator:
    """Add --empty: what to do with a record that is annotated, with nothing there."""
    return click.option("--empty", type=click.Choice(["zeros", "pass", "error"]), default=default,
                        help=f"What to do with {what}: draw a map of zeros, pass it on without a map, or fail.")


per_annotator_option = click.option(
    "--per-annotator", is_flag=True,
    help="Also save one map per `user`, drawn by the same rules, and list them under `annotator_maps`; in a folder, "
         "ID@USER.npy. Marks without a user are then an error.",
)


# shapes: boxes2map and masks2map


def _weights(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """Read NAME or NAME=WEIGHT, each name once."""
    named: dict[str, float] = {}
    for value in values:
        name, equals, number = value.partition("=")
        try:
            weight = float(number) if equals else 1.0
        except ValueError:
            weight = 0.0
        if not name or not 0 < weight <= 1:
            raise click.BadParameter(f"{value!r}: expected NAME or NAME=WEIGHT with a weight above 0 and up to 1.")
        if name in named:
            raise click.BadParameter(f"{name}: expected each name once.")
        named[name] = weight
    return named


@dataclass(frozen=True)
class Shapes:
    """What is drawn and how: the names given by ``option`` with their weights; if there are none, all.

    ``missing`` and ``empty`` say what to do with a record that has nothing to draw.
    """

    option: str
    named: Mapping[str, float]
    size: tuple[int, int]
    normalise: str
    missing: str
    empty: str
    per_annotator: bool

    def chosen(self, names: Iterable[str], items: Iterable[Item]) -> tuple[list[Item], list[float]]:
        """Return the items to draw, each with a name, and their weights; EX#2, a second mask of EX, counts as EX."""
        weights = [self.named.get(name, self.named.get(_lesion(name), 0.0)) if self.named else 1.0 for name in names]
        pairs = [(item, weight) for item, weight in zip(items, weights, strict=True) if weight]
        return [item for item, _ in pairs], [weight for _, weight in pairs]

    def draw_records(self, drawings: Mapping[str, Callable[[Record], Map]], **drawing: Any) -> None:
        """Draw what each record has; ``drawings`` says how, per key of the record, in functions that pickle can name.

        If a record has several of these keys, the largest value counts.
        """
        draw, watch = partial(self._draw, drawings=drawings), partial(self._watched, keys=tuple(drawings))
        draw_records(draw, reads_files="masks" in drawings, watch=watch, **drawing)

    def _draw(self, record: Record, *, drawings: Mapping[str, Callable[[Record], Map]]) -> Drawn | Record:
        import numpy as np

        from hkmap.files.maps import Drawn
        from hkmap.maps.annotators import maps_by_user
        from hkmap.maps.resize import normalise_map

        def draw(own: Record) -> Map:
            try:
                return normalise_map(np.maximum.reduce([drawings[key](own) for key in keys]), self.normalise)
            except MapError as error:
                raise MapError(f'record "{record["id"]}": {error}') from error

        keys = [key for key in drawings if record.get(key) is not None]
        if not keys:
            others = [f"it has {key}" for key in SHAPES if record.get(key)]
            found = ", but ".join([f"has no {' and no '.join(drawings)}", *others])
            return passed_on(record, self.missing, found, NO_ANNOTATION)
        values = draw(record)
        if self.empty != "zeros" and not values.any():
            remedy = "expected a mark; --empty zeros draws a map of zeros, --empty pass draws none"
            return passed_on(record, self.empty, f"nothing is marked by its {' or '.join(drawings)}", remedy)
        people = maps_by_user(record, keys, draw) if self.per_annotator else None
        return Drawn(without_maps(record), values, annotators=people)

    def _watched(self, stream: Parsed, keys: tuple[str, ...]) -> Parsed:
        """Pass a stream through, and see which names come under the ``keys``.

        At its end raise RecordError if a chosen name never came, and warn of records of whose shapes none is chosen.
        """
        seen: set[str] = set()
        left_out = 0
        for item in stream:
            if not isinstance(item, HkmapError):
                names = set(_names(item, keys))
                nothing = names.isdisjoint(self.named) if self.named else not names
                drawn = any(item.get(key) is not None for key in keys)
                left_out += drawn and nothing and any(map(item.get, SHAPES))
                seen |= names
            yield item
        known = ", ".join(sorted(seen - {""})) or "none"
        if unseen := sorted(self.named.keys() - seen):
            raise RecordError(f"{self.option} {', '.join(unseen)}: no record has this name; the names are {known}")
        if left_out:
            logging.getLogger("hkmap").warning(
                "%d records have masks, polygons or boxes, but none that is to be drawn, so they count as empty; the "
                "names are %s", left_out, known,
            )


def shape_options(option: str, *, what: str, default: str) -> Decorator:
    """Add the ``option`` that chooses by name, --normalise, --size, --missing, --empty and --per-annotator.

    They are joined into the argument ``shapes``.
    """

    def joined(function: Function) -> Function:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            own = {field.name: kwargs.pop(field.name) for field in fields(Shapes) if field.name != "option"}
            return function(*args, shapes=Shapes(option, **own), **kwargs)

        return wrapper

    return composed(
        click.option(option, "named", callback=_weights, multiple=True, metavar="NAME[=WEIGHT]",
                     help=f"{what} and its weight, above 0 and up to 1 (the default); repeatable.  "
                          f"[default: {default}]"),
        normalise_option("none"),
        per_annotator_option,
        size_option("--size", default="224", help="The map's size; it covers the whole image."),
        missing_option("the annotation (not annotated)", "without a map"),
        empty_option("zeros", "a record without a chosen mark (annotated, nothing there)"),
        joined,
    )


def _names(record: Record, keys: tuple[str, ...]) -> Iterator[str]:
    """Yield the names of the record's shapes."""
    for key in keys:
        if record.get(key) is not None:
            with suppress(RecordError):      # raised again when it is drawn
                yield from (way for name in labels_of(record, key) for way in (name, _lesion(name)))


def _lesion(name: str) -> str:
    return name.partition("#")[0]
