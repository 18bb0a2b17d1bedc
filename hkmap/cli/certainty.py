"""hkmap certainty: how well each cell of a map is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import IO, TYPE_CHECKING

import click

from hkmap.cli._drawing import emit_drawn, worker_options
from hkmap.cli._stream import (
    StreamCommand,
    error_options,
    map_output_options,
    missing_map_option,
    records_argument,
)
from hkmap.parallel.cluster import Workers
from hkmap.records import Record, Rejects, masks_of, passed_on, reference_of

if TYPE_CHECKING:
    from hkmap.files.maps import Drawn, MapWriter
    from hkmap.maps.certainty import Mask

MISSING = "expected the reference of one; --missing pass lets such records go on unchanged"


@click.command("certainty", cls=StreamCommand)
@records_argument
@click.option("--default", type=click.Choice(["known", "unknown"]), default="known", show_default=True,
              help="What a cell is that nobody marked: known (there is nothing to look at) or unknown (nobody says).")
@click.option("--above", type=click.FloatRange(min=0, max=1, max_open=True), default=0, show_default=True,
              help="With --default unknown: a cell is marked where the map is above this value, from 0 to 1.")
@missing_map_option
@map_output_options
@worker_options
@error_options
def certainty(
    records: IO[bytes],
    default: str,
    above: float,
    missing: str,
    writer: AbstractContextManager[MapWriter],
    rejects: Rejects,
    workers: Workers,
) -> None:
    """Say how well each cell of a record's map is known, from its keys `unknown` and `dont_look`.

    Both keys are objects of names and masks, like `masks`: `unknown` marks where nobody knows (the void of Pascal VOC,
    the border of a trimap), `dont_look` where somebody says that one should not look. Where both mark a pixel, it is
    `dont_look`. The certainty, from 0 to 1, is a second map: `hkmap resize`, `pack` and `unpack` carry it along, and a
    cell of certainty 0 is left out of the map loss and of the map MSE.

    \b
      certainty  the share of the cell's area that is known.
      map        as it was, times the share of the cell's area that is not
                 `dont_look`; 0 where the certainty is 0.

    So where one should not look the map is 0 with certainty 1. With --default unknown a cell is known only where the
    map is above --above, or `dont_look` marks it. That is for masks and boxes: a density is above 0 nearly everywhere,
    and needs a limit such as --above 0.05.

    Say it while maps are large, and resize them then: in a small cell, half of which is unknown, the map has been
    thinned out already. Without either key, and with --default known, a record goes on as it is.

    \b
    Example:
      hkmap masks2map voc.jsonl --lesion cat --out maps/ \\
        | hkmap certainty --out certain/ \\
        | hkmap resize --size 14 --out certain14/ > maps14.jsonl
    """
    function = partial(_weigh, default=default, above=above, missing=missing)
    emit_drawn(records, writer, function, rejects, workers, reads_files=True)


def _weigh(record: Record, *, default: str, above: float, missing: str) -> Drawn | Record:
    from hkmap.files.maps import Drawn
    from hkmap.maps.certainty import weigh_map
    from hkmap.stream.references import load_map

    reference = reference_of(record, "map")
    if reference is None:
        return passed_on(record, missing, "has no map", MISSING)
    if default == "known" and record.get("unknown") is None and record.get("dont_look") is None:
        return record
    values, known = load_map(reference), default == "known"
    unknown, dont_look = _masks(record, "unknown"), _masks(record, "dont_look")
    weighed, shares = weigh_map(values, unknown, dont_look, default_known=known, above=above)
    return Drawn(record, weighed, shares)


def _masks(record: Record, key: str) -> Iterator[Mask]:
    from hkmap.files.masks import read_fitting_mask
    from hkmap.stream.references import image_frame

    references = masks_of(record, key) if record.get(key) is not None else {}
    frame = image_frame(record) if references else (0, 0)
    return (read_fitting_mask(reference, frame) for reference in references.values())      # one at a time in memory
