"""hkmap resize: maps of another size."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import IO, TYPE_CHECKING

import click

from hkmap.cli.stream import (
    MAP_SIZE,
    StreamCommand,
    emit_with_maps,
    error_options,
    map_output_options,
    records_argument,
)
from hkmap.records import Record, Rejects, passed_on, reference_of

if TYPE_CHECKING:
    from hkmap.maps.resize import Normalisation
    from hkmap.storage.mapfiles import MapWriter

MISSING = "expected the reference of one; --missing pass lets such records go on unchanged"


@click.command("resize", cls=StreamCommand)
@records_argument
@click.option("--size", type=MAP_SIZE, required=True, metavar="N|HEIGHTxWIDTH", help="Pixels of the new maps.")
@click.option("--normalise", type=click.Choice(["none", "max"]), default="none", show_default=True,
              help="max: divide each resized map by its maximum (a map of zeros stays one).")
@click.option("--missing", type=click.Choice(["error", "pass"]), default="error", show_default=True,
              help="A record without a map: an error, or passed on unchanged.")
@map_output_options
@error_options
def resize(
    records: IO[bytes],
    size: tuple[int, int],
    normalise: Normalisation,
    missing: str,
    writer: AbstractContextManager[MapWriter],
    rejects: Rejects,
) -> None:
    """Resize the map of each record.

    Along each axis on its own: where it shrinks, a new pixel is the mean of the area that it covers (fractions of
    pixels included), so no small region is lost; where it grows, bilinear between the pixels' centres. Values stay
    in the range of the map. Area means lower a peak: where the peak matters, say --normalise max, once, after the
    last resize.

    \b
    Example:
      hkmap resize maps.jsonl --size 14 --out maps14/ > maps14.jsonl
    """
    from hkmap.maps.resize import normalise_map, resize_map
    from hkmap.storage.mapfiles import load_map

    def change(record: Record, maps: MapWriter) -> Record:
        reference = reference_of(record, "map")
        if reference is None:
            return passed_on(record, missing, "has no map", MISSING)
        values = normalise_map(resize_map(load_map(reference), size), normalise)
        return {**record, "map": maps.save(record["id"], values)}

    emit_with_maps(records, writer, change, rejects)
