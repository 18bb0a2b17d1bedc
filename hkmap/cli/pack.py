from __future__ import annotations

from pathlib import Path
from typing import IO

import click

from hkmap.cli._options import COUNT, EXISTING, OUTPUT, overwrite_option, size_option
from hkmap.cli._stream import Lines, byte_count, error_options, print_result, readable, records_argument, track
from hkmap.records import Rejects, parsed


@click.command("pack")
@click.argument("shard", type=OUTPUT)
@records_argument
@click.option("--classes", type=EXISTING, metavar="FILE",
              help="The names of the classes, one per line in UTF-8, label 0 first; a record with a class gets its "
                   "line as label.  [default: learnt from the records]")
@click.option("--shard-size", type=COUNT, metavar="N",
              help="Begin a new shard after N records: NAME-00000.h5, NAME-00001.h5, and so on.")
@click.option("--shard-bytes", type=byte_count, metavar="SIZE",
              help="Begin a new shard before one exceeds SIZE bytes, such as 500MB or 2GiB (2^30), up to 1000TB. A "
                   "larger record gets its own. With --shard-size: whichever comes first.")
@click.option("--append", is_flag=True,
              help="Add shards to the series NAME-00000.h5, ...; an id that is in one of its shards is an error.")
@click.option("--resume", is_flag=True,
              help="Continue after the last finished shard of an interrupted run with the same options, and keep "
                   "finished shards if this run is interrupted, too. Give the same records again, from the first.")
@click.option("--expect", type=COUNT, metavar="N", help="Fail, and leave no shard, unless N records were packed.")
@click.option("--store", type=click.Choice(["files", "pixels"]), default="files",
              help="files: the image files, byte for byte. pixels: RGB pixels of --size, larger but faster to read.")
@size_option("--size",
             help="With --store pixels: the size to squash every image to, like --fit squash; if training crops or "
                  "turns images, choose a larger one.")
@overwrite_option
@error_options
def pack(
    shard: Path, records: IO[bytes], classes: Path | None, shard_size: int | None, expect: int | None,
    shard_bytes: int | None, append: bool, resume: bool, store: str, size: tuple[int, int] | None, overwrite: bool,
    rejects: Rejects,
) -> None:
    """Pack images, maps and labels into SHARD, a name that ends in .h5.

    Image files are stored unchanged (or, with --store pixels, decoded and resized); each is decoded once, to find
    damage now. Maps must have one size (hkmap resize); `certainty` and `annotator_maps` are stored with them. A record
    without a map is packed without one, which is not the same as an empty map. One with a class and no label gets the
    label of its class, and a new class the next number, as they come; one with neither gets label -1.

    A shard gets its name when it is complete. If this command or the one before it fails, or Ctrl-C stops it, no shard
    is left. If it is killed, or with --resume, finished shards stay (use --shard-size or --shard-bytes), and --resume
    continues after them: the files are byte for byte the same as without the interruption. --overwrite replaces a
    former series at the end, if all went well. Prints one JSON object: the shards with their sha256, the number of
    records and of maps, the map size [height, width], the classes.

    \b
    Example:
      set -o pipefail
      hkmap folder photos/ --masks masks/ | hkmap masks2map --size 14 --out maps/ | hkmap pack train.h5
      hkmap pack large.h5 records.jsonl --shard-bytes 2GiB --resume
    """
    from hkmap.shards.writer import ShardWriter, WriterOptions, summary_of
    from hkmap.stream.packing import check_count, pack_records, read_classes

    if (store == "pixels") != (size is not None):
        raise click.UsageError("--store pixels and --size go together; give both, or neither.")
    if overwrite and (append or resume):
        raise click.UsageError("--append and --resume keep shards, and --overwrite replaces them; give only one.")
    names, lines = read_classes(classes) if classes else None, Lines(records)
    stream = parsed(lines, readable(records))
    options = WriterOptions(shard_bytes=shard_bytes, pixel_size=size, append=append, resume=resume)
    with ShardWriter(shard, classes=names, shard_size=shard_size, overwrite=overwrite, options=options) as writer:
        for _ in track(pack_records(writer, stream, rejects, lines.ready), "packing", total=expect):
            pass
        check_count(writer, expect)
    print_result(summary_of(writer))
