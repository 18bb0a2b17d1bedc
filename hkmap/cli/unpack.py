"""hkmap unpack: shards are a source again."""

from __future__ import annotations

from pathlib import Path

import click

from hkmap.cli.stream import EXISTING, OUTPUT, StreamCommand, emit, overwrite_option


@click.command("unpack", cls=StreamCommand)
@click.argument("shards", type=EXISTING, nargs=-1, required=True, metavar="SHARD...")
@click.option("--out", type=OUTPUT, metavar="DIR",
              help="Write the images to DIR/images, as the files they were, and the maps to DIR/maps as .npy; the map "
                   "of one annotator as ID@NAME.npy.")
@overwrite_option
def unpack(shards: tuple[Path, ...], out: Path | None, overwrite: bool) -> None:
    """Print the records of shards, with all the keys they were packed with.

    Without --out nothing is copied: a record's image and map are references into its shard ("train.h5#17" is record
    17, counted from 0, and "train.h5#17@NAME" the map of one of its annotators), which every command reads as it reads
    files. Each record's checksum is checked on the way.

    \b
    Example:
      set -o pipefail
      hkmap unpack train.h5 | jq -c 'select(.label == 3)' | hkmap pack three.h5
    """
    from hkmap.storage.packing import unpack_files, unpack_records

    emit(unpack_files(shards, out, overwrite=overwrite) if out else unpack_records(shards))
