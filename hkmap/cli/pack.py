"""hkmap pack: records in, a shard out."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import click

from hkmap.cli.progress import track
from hkmap.cli.stream import (
    EXISTING,
    MAP_SIZE,
    OUTPUT,
    StreamCommand,
    error_options,
    overwrite_option,
    print_result,
    read,
    records_argument,
)
from hkmap.records import Rejects, each


@click.command("pack", cls=StreamCommand)
@click.argument("shard", type=OUTPUT)
@records_argument
@click.option("--classes", type=EXISTING, metavar="FILE",
              help="The names of the labels: UTF-8, one a line, label 0 first. A label beyond them is an error. "
                   "[default: learnt from the records]")
@click.option("--shard-size", type=click.IntRange(min=1), metavar="N",
              help="Begin another shard after N records: NAME-00000.h5, NAME-00001.h5, and so on.")
@click.option("--expect", type=click.IntRange(min=1), metavar="N",
              help="Fail, and leave no shard, unless N records were packed.")
@click.option("--store", type=click.Choice(["files", "pixels"]), default="files", show_default=True,
              help="files: the image files, byte for byte. pixels: decoded RGB pixels of --size, 3 bytes each, which "
                   "are read many times faster and take more room.")
@click.option("--size", type=MAP_SIZE, metavar="N|HEIGHTxWIDTH",
              help="With --store pixels: the size of every image, in pixels. The whole image is squashed into it, by "
                   "area averages where it shrinks and bilinear where it grows: what hkmap train --fit squash makes "
                   "of the file at this size, to the bit.")
@overwrite_option
@error_options
def pack(
    shard: Path, records: IO[bytes], classes: Path | None, shard_size: int | None, expect: int | None,
    store: str, size: tuple[int, int] | None, overwrite: bool, rejects: Rejects,
) -> None:
    """Pack images, maps and labels into SHARD, a name that ends in .h5.

    Images go in as the files they are, unchanged (or, with --store pixels, decoded and resized); each is decoded
    once, so that a damaged one is found now. Maps must be of one size (hkmap resize) and in [0, 1]. A record without
    a map is packed without one, which is not the same as an empty map. One without a label gets label -1. An optional
    key "weights", a map reference too, says how much each cell of the map counts, from 0 (unknown) to 1. The maps under
    "annotator_maps" go in beside the map, whose size they must have.

    The shard has its name only when it is whole: if this command or the one before it fails, none is left. While it
    is written, the disk needs room for it twice. Prints one JSON object: the shards with their sha256, the number of
    records and of maps, the map size [height, width] in map pixels, the classes.

    \b
    Example:
      set -o pipefail
      hkmap folder photos/ --masks masks/ | hkmap masks2map --size 14 --out maps/ | hkmap pack train.h5
    """
    from hkmap.storage.packing import check_count, pack_record, read_classes, summary_of
    from hkmap.storage.writing import ShardWriter, WriterOptions

    if (store == "pixels") != (size is not None):
        raise click.UsageError("--store pixels needs --size, and --size belongs to it.")
    names, options = read_classes(classes) if classes else None, WriterOptions(pixel_size=size)
    with ShardWriter(shard, classes=names, shard_size=shard_size, overwrite=overwrite, options=options) as writer:
        packed = each(read(records, rejects), lambda record: pack_record(writer, record), rejects)
        for _ in track(packed, "packing", total=expect):
            pass
        check_count(writer, expect)
    print_result(summary_of(writer))
