"""hkmap resize: maps of another size."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import IO, TYPE_CHECKING

import click

from hkmap.cli._drawing import emit_drawn, worker_options
from hkmap.cli._stream import (
    MAP_SIZE,
    StreamCommand,
    error_options,
    map_output_options,
    missing_map_option,
    records_argument,
)
from hkmap.parallel.cluster import Workers
from hkmap.records import Record, Rejects, passed_on, reference_of

if TYPE_CHECKING:
    from hkmap.files.maps import Drawn, MapWriter
    from hkmap.maps.check import Map
    from hkmap.maps.resize import Normalisation

MISSING = "expected the reference of one; --missing pass lets such records go on unchanged"


@click.command("resize", cls=StreamCommand)
@records_argument
@click.option("--size", type=MAP_SIZE, required=True, metavar="N|HEIGHTxWIDTH", help="Pixels of the new maps.")
@click.option("--normalise", type=click.Choice(["none", "max", "minmax", "sum"]), default="none", show_default=True,
              help="max: divide each resized map by its maximum. minmax: stretch it from 0 to 1. sum: divide it by its "
                   "sum. A map of zeros stays one.")
@missing_map_option
@map_output_options
@worker_options
@error_options
def resize(
    records: IO[bytes],
    size: tuple[int, int],
    normalise: Normalisation,
    missing: str,
    writer: AbstractContextManager[MapWriter],
    rejects: Rejects,
    workers: Workers,
) -> None:
    """Resize the map of each record, with its certainty, and the maps of its annotators where it has `annotator_maps`.

    Along each axis on its own: where it shrinks, a new pixel is the mean of the area that it covers (fractions of
    pixels included), so no small region is lost; where it grows, bilinear between the pixels' centres. Values stay
    in the range of the map. Area means lower a peak: where the peak matters, say --normalise max, once, after the
    last resize.

    `certainty` beside a map (hkmap certainty) is resized with it, and the map is then the mean over what is known,
    mean(certainty * map) / mean(certainty), so that unknown cells do not thin out their neighbours; where nothing is
    known it is 0. Maps of annotators of the same size count by the same certainty.

    \b
    Example:
      hkmap resize maps.jsonl --size 14 --out maps14/ > maps14.jsonl
    """
    function = partial(_resize, size=size, normalise=normalise, missing=missing)
    emit_drawn(records, writer, function, rejects, workers, reads_files=True)


def _resize(record: Record, *, size: tuple[int, int], normalise: Normalisation, missing: str) -> Drawn | Record:
    from hkmap.files.maps import Drawn
    from hkmap.maps.certainty import Weighted, change_weighted, normalise_weighted
    from hkmap.maps.resize import resize_map
    from hkmap.stream.references import load_annotators, load_certainty_of, load_map

    def resized(values: Map, certainty: Map | None = None) -> Weighted:
        changed = change_weighted(Weighted(values, certainty), lambda cells: resize_map(cells, size))
        return normalise_weighted(changed, normalise)

    reference = reference_of(record, "map")
    if reference is None:
        return passed_on(record, missing, "has no map", MISSING)
    values, people = load_map(reference), load_annotators(record)
    certainty = load_certainty_of(record, values)
    whole = resized(values, certainty)
    own = {
        name: resized(found, certainty if found.shape == values.shape else None).map for name, found in people.items()
    }
    return Drawn(record, whole.map, whole.certainty, own)
