"""hkmap crop: crops and letterboxes of images, with everything that belongs to them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from hkmap.cli._stream import (
    MAP_SIZE,
    OUTPUT,
    StreamCommand,
    emit_with_maps,
    error_options,
    overwrite_option,
    records_argument,
)
from hkmap.records import Record, Rejects

if TYPE_CHECKING:
    from hkmap.files.maps import MapWriter
    from hkmap.maps.geometry import Box
    from hkmap.stream.crop import Chooser

EXTREME = 1000      # of an aspect; beyond it there is no picture to see


class PixelBox(click.ParamType):
    """A box in whole pixels: X,Y,W,H."""

    name = "box"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Box:
        sides = str(value).split(",")
        if len(sides) != 4 or not all(side.isascii() and side.isdecimal() for side in sides):
            self.fail(f"{value!r}: expected X,Y,W,H in whole pixels, such as 10,0,200,150.", param, ctx)
        left, top, width, height = map(int, sides)
        if not (width and height):
            self.fail(f"{value!r}: a box without a pixel, expected W and H of at least 1.", param, ctx)
        return left, top, width, height


class Aspect(click.ParamType):
    """Width over height: W:H, or a number."""

    name = "aspect"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        width, colon, height = str(value).partition(":")
        try:
            sides = float(width), float(height) if colon else 1.0
        except ValueError:
            sides = (0.0, 1.0)
        if min(sides) <= 0 or not 1 / EXTREME <= sides[0] / sides[1] <= EXTREME:
            self.fail(f"{value!r}: expected W:H, such as 4:3, or the width over the height as a number, from "
                      f"1/{EXTREME} to {EXTREME}.", param, ctx)
        return sides[0] / sides[1]


@click.command("crop", cls=StreamCommand)
@records_argument
@click.option("--crop", type=PixelBox(), metavar="X,Y,W,H",
              help="The W x H pixels from X to the right and Y down, in the image as displayed; a box that reaches "
                   "beyond an image is an error.")
@click.option("--center-crop", type=Aspect(), metavar="ASPECT",
              help="The largest middle part whose width over its height is ASPECT: W:H, or a number.")
@click.option("--letterbox", type=Aspect(), metavar="ASPECT",
              help="The whole image with padding at two sides, so that its width over its height is ASPECT.")
@click.option("--map-size", type=MAP_SIZE, metavar="N|HEIGHTxWIDTH",
              help="Pixels of the new maps.  [default: each map's own]")
@click.option("--jpeg", "quality", type=click.IntRange(1, 100), metavar="QUALITY",
              help="Write images as JPEG of this quality, from 1 to 100.  [default: PNG, without loss]")
@click.option("--out", type=OUTPUT, required=True, metavar="DIR",
              help="Where files go: images to DIR/images, maps and certainty to DIR/maps and DIR/attention (.npy), "
                   "masks to DIR/masks, DIR/unknown and DIR/dont_look, as ID@NAME.png.")
@overwrite_option
@error_options
def crop(
    records: IO[bytes],
    crop: Box | None,
    center_crop: float | None,
    letterbox: float | None,
    map_size: tuple[int, int] | None,
    quality: int | None,
    out: Path,
    overwrite: bool,
    rejects: Rejects,
) -> None:
    """Crop or pad each image, and move everything that belongs to it along. One of the three ways must be given.

    Pixels are copied, not interpolated, so boxes are rounded to whole ones. `hkmap train --fit crop` and --fit
    letterbox see exactly what --center-crop and --letterbox of the network's aspect write here.

    \b
      image        as displayed (its EXIF turn carried out), 8 bits a channel.
      bubbles,     all kept, also those outside: their density reaches in,
      points       and Scott's bandwidth is measured on all. `hkmap validate`
                   names them.
      boxes        cut at the edges; left out where nothing remains.
      polygons,    moved as they are (drawing them cuts them); left out where
      lines        the rectangle around them lies outside.
      masks,       cut or padded like the image; one that has become empty
      unknown,     stays, as "nothing there".
      dont_look
      map, certainty, annotator_maps, attention
                   area means where cells shrink, bilinear where they grow,
                   over what is known.

    Padding has ImageNet's mean colour, 124,116,104, which a network sees as nearly 0. There the map is 0 with certainty
    0, so that the map loss leaves it out, and a mask called `padding` under `unknown` says so to `hkmap certainty`, for
    maps that are drawn later. Other keys go on as they are, a prediction among them.

    \b
    Example:
      hkmap crop maps.jsonl --letterbox 1:1 --out square/ | hkmap pack square.h5
      hkmap crop maps.jsonl --crop 20,0,300,200 --jpeg 95 --out part/ > part.jsonl
    """
    from hkmap.files.maps import open_writer
    from hkmap.stream.crop import PictureWriter, crop_record

    def viewed(record: Record, maps: MapWriter) -> Record:
        return crop_record(record, choose, pictures, maps, attention, map_size=map_size)

    choose = _chooser(crop, center_crop, letterbox)
    pictures = PictureWriter(out, quality=quality, overwrite=overwrite)
    with open_writer(out / "attention", overwrite=overwrite) as attention:
        emit_with_maps(records, open_writer(out / "maps", overwrite=overwrite), viewed, rejects)


def _chooser(crop: Box | None, center_crop: float | None, letterbox: float | None) -> Chooser:
    from hkmap.maps import geometry
    from hkmap.stream.crop import checked_crop

    ways: list[Chooser] = []
    if crop is not None:
        ways.append(functools.partial(checked_crop, crop))
    if center_crop is not None:
        ways.append(functools.partial(geometry.center_crop, center_crop))
    if letterbox is not None:
        ways.append(functools.partial(geometry.letterbox, letterbox))
    if len(ways) != 1:
        raise click.UsageError(f"{len(ways)} ways given; say one of --crop, --center-crop and --letterbox.")
    return ways[0]
