from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from hkmap.cli._options import named_option, overwrite_option
from hkmap.cli._stream import error_options, print_result, read, records_argument
from hkmap.errors import OutputError, RecordError
from hkmap.records import Record, Rejects, annotator_maps_of, each, masks_of, reference_of

if TYPE_CHECKING:
    from hkmap.maps.check import Map
    from hkmap.report.sheets import Entry, Tile

MOST_PIXELS = 1 << 27      # of a sheet
PATIENCE = 5      # seconds: an opener fails sooner, and a viewer may stay longer


def _png(value: str) -> Path:
    if not value.lower().endswith(".png"):
        raise click.BadParameter(f"{value}: expected a name that ends in .png.")
    return Path(value)


@click.command("show")
@records_argument
@click.option("--out", type=_png, required=True, metavar="FILE.png", help="The picture to write.")
@click.option("--map", "keys", multiple=True, default=("map",), metavar="KEY",
              help="A key that refers to a map, such as `attention`, or annotator_maps.NAME; repeatable.")
@click.option("--caption", "captions", multiple=True, metavar="KEY",
              help="A key to write below the image; repeatable.  [default: id; class, label, prediction, confidence]")
@named_option("--colour", table="colours", default="viridis", help="The maps' colours, dark for 0 and bright for 1.")
@click.option("--plain", is_flag=True, help="Draw the maps alone, not over the image: each cell is a coloured block.")
@click.option("--legend/--no-legend", default=True,
              help="Explain the colours of maps and annotations in a strip below the sheet.")
@click.option("--columns", type=click.IntRange(1, 1000), default=3, help="Records per row.")
@click.option("--cell", type=click.IntRange(min=32, max=4096), default=224,
              help="The longer side of each picture on the sheet, in pixels.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=24,
              help="Draw only the first records; a warning counts the rest.")
@click.option("--pages", is_flag=True,
              help="After every --limit records continue on FILE-2.png, FILE-3.png, and so on.")
@click.option("--open", "opening", is_flag=True,
              help="Show the (first) sheet on the desktop, with xdg-open, or open on macOS.")
@overwrite_option
@error_options
def show(
    records: IO[bytes], out: Path, keys: tuple[str, ...], legend: bool, columns: int, limit: int, pages: bool,
    opening: bool, overwrite: bool, rejects: Rejects, **style: Any,
) -> None:
    """Draw a contact sheet: each image with its annotations, and its maps beside it.

    Bubbles are drawn as circles, points as dots whose area grows with their weight, other annotations as outlines.
    Masks are named, those under `unknown` and `dont_look` with their key. Maps are drawn in colour over the grey image.
    Prints one JSON object: {"sheet": FILE, "records": how many were drawn}, with --pages also "sheets".

    \b
    Example:
      hkmap show maps.jsonl --out maps.png
      hkmap unpack test.h5 | hkmap predict --from run/ --out maps/ \\
        | hkmap show --map map --map attention --caption id --caption confidence --out both.png
      hkmap show maps.jsonl --plain --colour inferno --pages --open --out pages/maps.png
    """
    from PIL import Image

    from hkmap.files.atomic import refuse_existing, replacing
    from hkmap.report.sheets import Style, contact_sheet, draw_tile, with_legend

    refuse_existing(out, overwrite=overwrite)
    look, stream = Style(**style), read(records, rejects)
    tiles = each(stream, lambda record: draw_tile(_entry(record, keys), look), rejects)
    drawn: dict[Path, int] = {}
    with ExitStack() as sheets:     # they get their names together, at the end: a failure upstream must leave none
        for name, page in zip(_names(out, pages=pages), iter(lambda: _page(tiles, limit), []), strict=False):
            sheet = contact_sheet(page, columns)
            beside = sheets.enter_context(replacing(name, overwrite=overwrite))
            Image.fromarray(with_legend(sheet, page, look) if legend else sheet).save(beside, format="PNG")
            drawn[name] = len(page)
        _count_rest(stream, out, drawn)
    files = [str(name) for name in drawn]
    print_result({"sheet": files[0], "records": sum(drawn.values())} | ({"sheets": files} if pages else {}))
    if opening:
        _open(out)


def _page(tiles: Iterator[Tile], limit: int) -> list[Tile]:
    """Return the next tiles, at most ``limit``; raise OutputError where they are too large for one sheet."""
    page, pixels = [], 0
    for tile in islice(tiles, limit):
        page.append(tile)
        pixels += tile.pixels.shape[0] * tile.pixels.shape[1]
        if pixels > MOST_PIXELS:
            raise OutputError(f"{len(page)} pictures of over {MOST_PIXELS:,} pixels, the most of a sheet; lower --cell")
    return page


def _names(out: Path, *, pages: bool) -> Iterator[Path]:
    """Yield the names of the sheets: one, or with ``pages`` any number."""
    yield out
    if pages:
        yield from (out.with_name(f"{out.stem}-{number}{out.suffix}") for number in count(2))


def _entry(record: Record, keys: tuple[str, ...]) -> Entry:
    from hkmap.files.masks import read_fitting_mask
    from hkmap.report.sheets import Entry
    from hkmap.stream.references import read_image

    place = reference_of(record, "image")
    if place is None:
        raise RecordError(f'record "{record["id"]}": has no image to show; expected a path, or a row of a shard')
    image = read_image(place)
    frame = (image.shape[1], image.shape[0])
    maps = {key: _map(record, key) for key in keys}
    masks = {
        key: {name: read_fitting_mask(reference, frame) for name, reference in masks_of(record, key).items()}
        for key in ("masks", "unknown", "dont_look") if record.get(key) is not None
    }
    return Entry(record, image, maps, masks)


def _map(record: Record, key: str) -> Map | None:
    from hkmap.stream.references import load_certainty, load_map

    kind, _, name = key.partition(".")
    of_people = kind == "annotator_maps" and name
    reference = annotator_maps_of(record).get(name) if of_people else reference_of(record, key)
    load = load_certainty if key == "certainty" else load_map
    return load(reference) if reference else None


def _count_rest(stream: Iterator[Record], out: Path, drawn: dict[Path, int]) -> None:
    """Read the rest of the stream; warn of records that are on no sheet."""
    omitted = sum(1 for _ in stream)
    if not drawn:
        raise RecordError(f"{out}: no record could be drawn, so there is no sheet; see the warnings above")
    if omitted:
        logging.getLogger("hkmap").warning("%d records omitted; raise --limit, or use --pages, to see them", omitted)


def _open(sheet: Path) -> None:
    """Show the sheet on the desktop; a failure is only a warning, as the sheet is written."""
    name, nothing = "open" if sys.platform == "darwin" else "xdg-open", subprocess.DEVNULL      # stdout is data
    try:
        child = subprocess.Popen(
            [name, str(sheet.absolute())], stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
        )
        failure = f"{name} failed" if child.wait(PATIENCE) else ""
    except subprocess.TimeoutExpired:      # a viewer that stays
        return
    except OSError:
        failure = f"{name} cannot be run"
    if failure:
        logging.getLogger("hkmap").warning("%s: written, but not shown, as %s; open it in a viewer", sheet, failure)
