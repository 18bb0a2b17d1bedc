"""What the filters share that draw or change maps: their options, the way of a record through them, and shapes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import click

from hkmap.cli._options import map_output_options, missing_option, normalise_option, size_option
from hkmap.cli._stream import Function, Lines, emit_when_saved, error_options, readable, records_argument
from hkmap.errors import HkmapError, RecordError
from hkmap.parallel.cluster import Workers, open_pool
from hkmap.parallel.threads import Pool
from hkmap.records import Record, Rejects, accepted, attempt, labels_of, parsed, passed_on, without_maps

if TYPE_CHECKING:
    from hkmap.files.maps import Drawn, MapWriter
    from hkmap.maps.check import Map

Parsed = Iterator[Record | HkmapError]


# the way of a record


@dataclass(frozen=True)
class Drawing:
    """What a filter that draws is told: where records come from, where maps go, who draws, what may be skipped."""

    stream: IO[bytes]
    writer: AbstractContextManager[MapWriter]
    workers: Workers
    rejects: Rejects

    def emit(
        self,
        function: Callable[[Record], Drawn | Record],
        *,
        reads_files: bool,
        watch: Callable[[Parsed], Parsed] = iter,
    ) -> None:
        """Read records, draw by ``function`` in the workers, save the maps, write the records; all in order.

        ``function`` is one that pickle can name: of a module, or a partial of such a one. ``reads_files`` says whether
        it opens what records name. ``watch`` sees what is read, and may refuse it at its end.
        """
        from hkmap.files.maps import save_drawn

        name = readable(self.stream)

        def attempts(pool: Pool | None) -> Iterator[Drawn | Record | HkmapError]:
            if pool is None:
                return (attempt(function, record) for record in watch(parsed(self.stream, name)))
            lines = Lines(self.stream)
            return pool.attempts(function, watch(parsed(lines, name)), lines.ready)

        def saved(maps: MapWriter) -> Iterator[Record]:
            return accepted((attempt(partial(save_drawn, maps), item) for item in drawn), self.rejects)

        with open_pool(self.workers, reads_files=reads_files) as pool:
            drawn = attempts(pool)
            emit_when_saved(self.writer, saved)


def _jobs(value: Any) -> int:
    """Read a number of threads from 1, or -1 for one per core."""
    if not re.fullmatch("-1|0*[1-9][0-9]*", str(value)):
        raise click.BadParameter(f"{value!r}: expected a number of threads from 1, or -1 for all cores.")
    return int(value)


def drawing_options(function: Function) -> Function:
    """Add RECORDS, and the options of the output, the workers and errors, joined into the argument ``drawing``."""

    @records_argument
    @map_output_options()
    @click.option("--jobs", type=_jobs, metavar="N",
                  help="Draw in N threads, -1 for one per core; the output is the same. With --backend dask, use N "
                       "threads of the cluster at a time.  [default: 1; of a cluster, all]")
    @click.option("--backend", type=click.Choice(["threads", "dask"]), default="threads",
                  help="Where the threads are: on this machine, or on an existing Dask cluster (pip install "
                       "'hkmap[dask]'), whose workers have this hkmap. If records name files, the workers must find "
                       "them under the same names: they change to this command's current folder.")
    @click.option("--scheduler", metavar="ADDRESS",
                  help="With --backend dask: the address of its scheduler, such as tcp://host:8786.")
    @error_options
    @functools.wraps(function)
    def wrapper(
        *args: Any, records: IO[bytes], writer: AbstractContextManager[MapWriter], jobs: int | None, backend: str,
        scheduler: str | None, rejects: Rejects, **kwargs: Any,
    ) -> Any:
        if (backend == "dask") != (scheduler is not None):
            raise click.UsageError("--backend dask and --scheduler ADDRESS go together; give both, or neither.")
        workers = Workers(jobs or (1 if scheduler is None else -1), scheduler)
        return function(*args, drawing=Drawing(records, writer, workers, rejects), **kwargs)

    return wrapper


def empty_option(default: str, what: str) -> Callable[[Function], Function]:
    """Add --empty: what becomes of a record that is annotated, with nothing there."""
    return click.option("--empty", type=click.Choice(["zeros", "pass", "error"]), default=default,
                        help=f"{what}: a map of zeros, passed on without a map, or an error.")


# shapes: boxes2map and masks2map


def _weighted(value: str) -> tuple[str, float]:
    """Read NAME or NAME=WEIGHT."""
    name, equals, number = value.partition("=")
    try:
        weight = float(number) if equals else 1.0
    except ValueError:
        weight = 0.0
    if not name or not 0 < weight <= 1:
        raise click.BadParameter(f"{value!r}: expected NAME or NAME=WEIGHT with a weight above 0 and up to 1.")
    return name, weight


@dataclass(frozen=True)
class Shapes:
    """What is drawn and how: the names given by ``option`` with their weights; without any, all but ``left_out``.

    ``missing`` and ``empty`` say what becomes of a record with nothing to draw.
    """

    option: str
    named: tuple[tuple[str, float], ...]
    left_out: tuple[str, ...]
    size: tuple[int, int]
    normalise: str
    missing: str
    empty: str

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
            raise RecordError(f"{self.option} {', '.join(unseen)}: no record has this name; the names are {known}")

    def emit(self, drawing: Drawing, drawings: Mapping[str, Callable[[Record], Map]]) -> None:
        """Draw what each record has; ``drawings`` says how, by the record's key, in functions that pickle can name.

        Where a record has several of these keys, the largest value counts.
        """
        keys = tuple(drawings)
        draw = partial(_draw_shapes, shapes=self, drawings=drawings)
        drawing.emit(draw, reads_files="masks" in keys, watch=lambda found: self.watched(found, keys))


def shape_options(option: str, *, what: str, default: str, left_out: tuple[str, ...] = ()) -> Callable[..., Any]:
    """Add the ``option`` that chooses by name, --normalise, --size, --missing and --empty, joined into ``shapes``."""

    def decorate(function: Function) -> Function:
        @click.option(option, "named", type=_weighted, multiple=True, metavar="NAME[=WEIGHT]",
                      help=f"{what} and its weight, above 0 and up to 1 (the default); repeatable.  "
                           f"[default: {default}]")
        @normalise_option("none")
        @size_option("--size", default="224", help="The map's sides; it covers the whole image.")
        @missing_option("the annotation (nobody was asked)", "without a map")
        @empty_option("zeros", "A record on whose image nothing chosen is marked (annotated, nothing there)")
        @functools.wraps(function)
        def wrapper(*args: Any, named: tuple[tuple[str, float], ...], **kwargs: Any) -> Any:
            if len(dict(named)) < len(named):
                raise click.UsageError(f"{option}: {', '.join(name for name, _ in named)}; expected each name once.")
            own = {name: kwargs.pop(name) for name in ("size", "normalise", "missing", "empty")}
            return function(*args, shapes=Shapes(option, named, left_out, **own), **kwargs)

        return wrapper

    return decorate


def _draw_shapes(record: Record, *, shapes: Shapes, drawings: Mapping[str, Callable[[Record], Map]]) -> Drawn | Record:
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
    """Yield what the record's shapes are called; one that is not as it should be is refused where it is drawn."""
    for key in keys:
        found = record.get(key)
        if isinstance(found, dict):
            yield from found
        elif isinstance(found, list) and all(isinstance(item, dict) for item in found):
            yield from labels_of(record, key)
