from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from hkmap.cli._drawing import NO_MAP, draw_records, drawing_options
from hkmap.cli._options import missing_option, normalise_option, size_option
from hkmap.records import Record, passed_on, reference_of

if TYPE_CHECKING:
    from hkmap.files.maps import Drawn
    from hkmap.maps.check import Map

@click.command("resize")
@size_option("--size", required=True, help="The size of the new maps.")
@normalise_option("none")
@missing_option("a map", "unchanged")
@drawing_options
def resize(size: tuple[int, int], normalise: str, missing: str, **drawing: Any) -> None:
    """Resize the map of each record, with its certainty and its `annotator_maps`, if any.

    Where an axis shrinks, a new pixel is the mean of the area that it covers; where it grows, values are interpolated
    linearly between the centres of the old pixels. Means lower a peak: --normalise max, after the last resize, helps.

    With `certainty` (hkmap certainty) the map becomes the mean over what is known, mean(certainty * map) /
    mean(certainty), and 0 where nothing is known. This applies to annotators' maps of the same size, too.

    \b
    Example:
      hkmap resize maps.jsonl --size 14 --out maps14/ > maps14.jsonl
    """
    draw_records(partial(_resize, size=size, normalise=normalise, missing=missing), reads_files=True, **drawing)


def _resize(record: Record, *, size: tuple[int, int], normalise: str, missing: str) -> Drawn | Record:
    from hkmap.files.maps import Drawn
    from hkmap.maps.certainty import Weighted, change_weighted, normalise_weighted
    from hkmap.maps.resize import resize_map
    from hkmap.stream.references import load_annotators, load_certainty_of, load_map

    def resized(values: Map, certainty: Map | None = None) -> Weighted:
        changed = change_weighted(Weighted(values, certainty), lambda cells: resize_map(cells, size))
        return normalise_weighted(changed, normalise)

    reference = reference_of(record, "map")
    if reference is None:
        return passed_on(record, missing, "has no map", NO_MAP)
    values, people = load_map(reference), load_annotators(record)
    certainty = load_certainty_of(record, values)
    whole = resized(values, certainty)
    own = {
        name: resized(found, certainty if found.shape == values.shape else None).map for name, found in people.items()
    }
    return Drawn(record, whole.map, whole.certainty, own)
