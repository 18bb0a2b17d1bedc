"""hkmap pack: records in, a shard out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import IO

import click

from hkmap.cli._options import COUNT, EXISTING, OUTPUT, overwrite_option, size_option
from hkmap.cli._stream import Lines, error_options, print_result, readable, records_argument, track
from hkmap.records import Rejects, parsed

_BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def _bytes(value: str) -> int:
    """Read a number of bytes: 500000, 500MB or 2GiB."""
    found = re.fullmatch(r"([0-9]{1,12}) ?(|k|M|G|T|Ki|Mi|Gi|Ti)B?", value, re.ASCII)
    if found is None or int(found[1]) == 0:
        raise click.BadParameter(f"{value!r}: expected a number of bytes such as 500000, 500MB or 2GiB.")
    return int(found[1]) * _BYTES[found[2]]


@click.command("pack")
@click.argument("shard", type=OUTPUT)
@records_argument
@click.option("--classes", type=EXISTING, metavar="FILE",
              help="The names of the labels: UTF-8, one per line, label 0 first. A label beyond them is an error. "
                   "[default: learnt from the records]")
@click.option("--shard-size", type=COUNT, metavar="N",
              help="Begin another shard after N records: NAME-00000.h5, NAME-00001.h5, and so on.")
@click.option("--shard-bytes", type=_bytes, metavar="SIZE",
              help="Begin another shard before one would take more than SIZE bytes, such as 500MB or 2GiB (2^30); "
                   "a record that alone takes more gets a shard of its own. With --shard-size: whichever comes first.")
@click.option("--append", is_flag=True,
              help="Add shards to the series NAME-00000.h5, ..., numbered on. Those that are there stay as they are: "
                   "an id that one of them holds is an error, and a new label has its name in the new ones alone.")
@click.option("--resume", is_flag=True,
              help="Go on after the last finished shard of a run with the same options that was broken off, and keep "
                   "what this one finishes if it is broken off too. Give the same records again, from the first.")
@click.option("--expect", type=COUNT, metavar="N", help="Fail, and leave no shard, unless N records were packed.")
@click.option("--store", type=click.Choice(["files", "pixels"]), default="files",
              help="files: the image files, byte for byte. pixels: decoded RGB pixels of --size, 3 bytes each, which "
                   "are read many times faster and take more room.")
@size_option("--size",
             help="With --store pixels: the size of every image. The whole image is squashed into it, as hkmap train "
                  "--fit squash does; where training crops or turns images, store larger ones.")
@overwrite_option
@error_options
def pack(
    shard: Path, records: IO[bytes], classes: Path | None, shard_size: int | None, expect: int | None,
    shard_bytes: int | None, append: bool, resume: bool, store: str, size: tuple[int, int] | None, overwrite: bool,
    rejects: Rejects,
) -> None:
    """Pack images, maps and labels into SHARD, a name that ends in .h5.

    Images go in as the files they are, unchanged (or, with --store pixels, decoded and resized); each is decoded
    once, so that a damaged one is found now. Maps must be of one size (hkmap resize) and in [0, 1]; `certainty` and
    `annotator_maps` go in beside them. A record without a map is packed without one, which is not the same as an empty
    map. One without a label gets label -1.

    A shard has its name when it is whole. If this command or the one before it fails, or Ctrl-C stops it, none is left;
    what --on-error skip drops does not undo the rest. If it is killed, or with --resume, the shards that it had
    finished (use --shard-size or --shard-bytes) stay, and --resume goes on after them: the files are the same, byte for
    byte, as if nothing had happened. --overwrite replaces a former series at the end, when all is well. Prints one JSON
    object: the shards with their sha256, the number of records and of maps, the map size [height, width], the classes.

    \b
    Example:
      set -o pipefail
      hkmap folder photos/ --masks masks/ | hkmap masks2map --size 14 --out maps/ | hkmap pack train.h5
      hkmap pack large.h5 records.jsonl --shard-bytes 2GiB --resume
    """
    from hkmap.shards.writer import ShardWriter, WriterOptions, summary_of
    from hkmap.stream.packing import check_count, pack_records, read_classes

    if (store == "pixels") != (size is not None):
        raise click.UsageError("--store pixels needs --size, and --size belongs to it.")
    if append and overwrite:
        raise click.UsageError("--append leaves what exists as it is, and --overwrite replaces it; give one of them.")
    if resume and overwrite:
        raise click.UsageError("--resume keeps what was finished, and --overwrite replaces it; give one of them.")
    names, lines = read_classes(classes) if classes else None, Lines(records)
    stream = parsed(lines, readable(records))
    options = WriterOptions(shard_bytes=shard_bytes, pixel_size=size, append=append, resume=resume)
    with ShardWriter(shard, classes=names, shard_size=shard_size, overwrite=overwrite, options=options) as writer:
        for _ in track(pack_records(writer, stream, rejects, lines.ready), "packing", total=expect):
            pass
        check_count(writer, expect)
    print_result(summary_of(writer))
