from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from hkmap.cli._options import OUTPUT, overwrite_option, size_option
from hkmap.cli._stream import emit_when_saved, error_options, read, records_argument
from hkmap.records import Record, Rejects, each

if TYPE_CHECKING:
    from hkmap.files.maps import MapWriter
    from hkmap.maps.geometry import Box
    from hkmap.stream.crop import Chooser

EXTREME = 1000      # of an aspect; beyond it a picture is a line


def _box(value: str) -> Box:
    """Read X,Y,W,H, a box in whole pixels."""
    if not re.fullmatch("[0-9]{1,9},[0-9]{1,9},0*[1-9][0-9]{0,8},0*[1-9][0-9]{0,8}", value):
        raise click.BadParameter(f"{value!r}: expected X,Y,W,H in whole pixels, W and H from 1, such as 10,0,200,150.")
    left, top, width, height = map(int, value.split(","))
    return left, top, width, height


def _aspect(value: str) -> float:
    """Read width over height: W:H, or a number."""
    width, colon, height = value.partition(":")
    try:
        sides = float(width), float(height) if colon else 1.0
    except ValueError:
        sides = (0.0, 1.0)
    if min(sides) <= 0 or not 1 / EXTREME <= sides[0] / sides[1] <= EXTREME:
        raise click.BadParameter(f"{value!r}: expected W:H, such as 4:3, or width / height, 1/{EXTREME} to {EXTREME}.")
    return sides[0] / sides[1]


@click.command("crop")
@records_argument
@click.option("--crop", type=_box, metavar="X,Y,W,H",
              help="The W x H pixels right of X and below Y, as displayed; a box that exceeds an image is an error.")
@click.option("--center-crop", type=_aspect, metavar="ASPECT",
              help="The largest central part with this width over height: W:H, or a number.")
@click.option("--letterbox", type=_aspect, metavar="ASPECT",
              help="The whole image, padded on two sides to this width over height.")
@size_option("--map-size", help="The size of the new maps.  [default: each map's own]")
@click.option("--jpeg", "quality", type=click.IntRange(1, 100), metavar="QUALITY",
              help="Write images as JPEG of this quality, 1 to 100.  [default: PNG, without loss]")
@click.option("--out", type=OUTPUT, required=True, metavar="DIR",
              help="Where files go: images to DIR/images, maps and certainty to DIR/maps and DIR/attention (.npy), "
                   "masks to DIR/masks, DIR/unknown and DIR/dont_look, as ID@NAME.png.")
@overwrite_option
@error_options
def crop(
    records: IO[bytes], map_size: tuple[int, int] | None, quality: int | None, out: Path, overwrite: bool,
    rejects: Rejects, **ways: Any,
) -> None:
    """Crop or pad each image, with everything that belongs to it, in one of three ways.

    Pixels are copied, not interpolated, so boxes are rounded to whole pixels. `hkmap train --fit crop` and --fit
    letterbox see exactly what --center-crop and --letterbox with the network's aspect write here.

    \b
      image            as displayed (EXIF orientation applied), 8 bits per channel;
                       one of a shard of pixels is first scaled to its `size`
      bubbles, points  all kept, also those outside: their density reaches in,
                       and Scott's bandwidth is computed from all
      boxes            cut at the edges; dropped if nothing remains
      polygons, lines  moved; dropped if their bounding box lies outside
      all masks        cut or padded like the image; an empty one stays
      all maps         resized over what is known

    Padding has ImageNet's mean colour, nearly 0 to a network. There the map and its certainty are 0, so that the map
    loss ignores it, and a mask `padding` under `unknown` tells `hkmap certainty`. Other keys stay as they are.

    \b
    Example:
      hkmap crop maps.jsonl --letterbox 1:1 --out square/ | hkmap pack square.h5
      hkmap crop maps.jsonl --crop 20,0,300,200 --jpeg 95 --out part/ > part.jsonl
    """
    from hkmap.files.maps import open_writer
    from hkmap.stream.crop import PictureWriter, crop_record

    def cropped(maps: MapWriter) -> Iterator[Record]:
        def one(record: Record) -> Record:
            return crop_record(record, choose, pictures, maps, attention, map_size=map_size)

        return each(read(records, rejects), one, rejects)

    choose = _chooser(**ways)
    pictures = PictureWriter(out, quality=quality, overwrite=overwrite)
    with open_writer(out / "attention", overwrite=overwrite) as attention:
        emit_when_saved(open_writer(out / "maps", overwrite=overwrite), cropped)


def _chooser(crop: Box | None, center_crop: float | None, letterbox: float | None) -> Chooser:
    from hkmap.maps import geometry
    from hkmap.stream.crop import checked_crop

    ways: list[tuple[Any, Any]] = [
        (checked_crop, crop), (geometry.center_crop, center_crop), (geometry.letterbox, letterbox)
    ]
    given: list[Chooser] = [partial(way, value) for way, value in ways if value is not None]
    if len(given) != 1:
        raise click.UsageError(f"{len(given)} ways given; give one of --crop, --center-crop and --letterbox.")
    return given[0]
