from __future__ import annotations

from pathlib import Path

import click

from hkmap.cli._options import COUNT, OUTPUT, overwrite_option, shards_argument
from hkmap.cli._stream import print_result, track


@click.command("merge")
@click.argument("out", type=OUTPUT, metavar="OUT.h5")
@shards_argument
@click.option("--shard-size", type=COUNT, metavar="N",
              help="Begin a new shard after N records: OUT-00000.h5, OUT-00001.h5, and so on.")
@overwrite_option
def merge(out: Path, shards: tuple[Path, ...], shard_size: int | None, overwrite: bool) -> None:
    """Join shards into one, or into a series of another size, in the order given.

    Image files are copied byte for byte; maps, certainty, annotators' maps and all keys of the records are kept. The
    shards must have the same class names and map size, and no id in common. Files get their final names when all is
    written. Prints one JSON object, as hkmap pack does.

    \b
    Example:
      hkmap merge all.h5 monday.h5 tuesday.h5
      hkmap merge part.h5 all.h5 --shard-size 10000
    """
    from hkmap.shards.copy import copy_sample, pixel_size_of
    from hkmap.shards.sequence import ShardSequence
    from hkmap.shards.writer import ShardWriter, WriterOptions, summary_of

    sequence = ShardSequence(shards)
    options = WriterOptions(pixel_size=pixel_size_of(sequence))
    with ShardWriter(
        out, classes=sequence.classes, shard_size=shard_size, overwrite=overwrite, options=options
    ) as writer:
        for index in track(range(len(sequence)), "merging", total=len(sequence)):
            copy_sample(writer, sequence.read(index))
    print_result(summary_of(writer))
