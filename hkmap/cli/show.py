"""hkmap show: a contact sheet of images, annotations and maps."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from hkmap.cli.stream import (
    OUTPUT,
    StreamCommand,
    error_options,
    overwrite_option,
    print_result,
    read,
    records_argument,
)
from hkmap.errors import RecordError
from hkmap.records import Record, Rejects, each, masks_of, reference_of

if TYPE_CHECKING:
    from hkmap.report.sheets import Entry, Pixels


@click.command("show", cls=StreamCommand)
@records_argument
@click.option("--out", type=OUTPUT, required=True, metavar="FILE.png", help="The picture to write.")
@click.option("--map", "keys", multiple=True, default=("map",), show_default=True, metavar="KEY",
              help="A key of the records whose value is the reference of a map, such as `attention`; repeatable.")
@click.option("--columns", type=click.IntRange(min=1), default=3, show_default=True, help="Records side by side.")
@click.option("--cell", type=click.IntRange(min=32, max=4096), default=224, show_default=True,
              help="Pixels of the longer side of each picture on the sheet.")
@click.option("--limit", type=click.IntRange(min=1), default=24, show_default=True,
              help="Show so many records, the first ones, and say how many were left out.")
@overwrite_option
@error_options
def show(
    records: IO[bytes],
    out: Path,
    keys: tuple[str, ...],
    columns: int,
    cell: int,
    limit: int,
    overwrite: bool,
    rejects: Rejects,
) -> None:
    """Draw a contact sheet: each image with its annotations, and beside it its maps.

    Bubbles are circles, points dots whose area follows their weight, boxes, polygons and masks outlines. A map lies
    in colour over the image in grey, dark blue for 0 and yellow for 1. The captions give id, class, label,
    prediction and confidence, where the record has them, and the map's size and range. Prints one JSON object:
    {"sheet": FILE, "records": how many were drawn}.

    \b
    Example:
      hkmap show maps.jsonl --out maps.png
      hkmap unpack test.h5 | hkmap predict --from run/ --out maps/ \\
        | hkmap show --map map --map attention --out both.png
    """
    from hkmap.report.sheets import contact_sheet, draw_tile
    from hkmap.storage.atomic import refuse_existing

    if out.suffix.lower() != ".png":
        raise click.BadParameter(f"{out}: expected a name that ends in .png.", param_hint="--out")
    refuse_existing(out, overwrite=overwrite)
    stream = read(records, rejects)
    tiles = list(each(islice(stream, limit), lambda record: draw_tile(_entry(record, keys), cell), rejects))
    if not tiles:
        raise RecordError(f"{out}: no record could be drawn, so there is no sheet; see the warnings above")
    left_out = sum(1 for _ in stream)      # read to its end first: a failure upstream must leave no sheet
    _write(out, contact_sheet(tiles, columns), overwrite=overwrite)
    if left_out:
        logging.getLogger("hkmap").warning("%d records left out of the sheet; raise --limit to see them", left_out)
    print_result({"sheet": str(out), "records": len(tiles)})


def _entry(record: Record, keys: tuple[str, ...]) -> Entry:
    from hkmap.report.sheets import Entry
    from hkmap.storage.images import read_image
    from hkmap.storage.mapfiles import load_map
    from hkmap.storage.masks import read_fitting_mask

    place = reference_of(record, "image")
    if place is None:
        raise RecordError(f'record "{record["id"]}": has no image to show; expected a path, or a row of a shard')
    image = read_image(place)
    frame = (image.shape[1], image.shape[0])
    references = {key: reference_of(record, key) for key in keys}
    masks = masks_of(record) if record.get("masks") is not None else {}
    return Entry(
        record=record,
        image=image,
        maps={key: None if reference is None else load_map(reference) for key, reference in references.items()},
        masks={name: read_fitting_mask(Path(path), frame) for name, path in masks.items()},
    )


def _write(out: Path, sheet: Pixels, *, overwrite: bool) -> None:
    from PIL import Image

    from hkmap.storage.atomic import replacing

    with replacing(out, overwrite=overwrite) as beside:
        Image.fromarray(sheet).save(beside, format="PNG")
