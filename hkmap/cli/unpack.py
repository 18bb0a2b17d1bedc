from __future__ import annotations

from pathlib import Path

import click

from hkmap.cli._options import COUNT, OUTPUT, overwrite_option, shards_argument
from hkmap.cli._stream import emit, print_result, track


@click.command("unpack")
@shards_argument
@click.option("--out", type=OUTPUT, metavar="DIR|NAME.tar",
              help="Write the original image files to DIR/images, and maps to DIR/maps (ID.npy, ID@ANNOTATOR.npy).")
@click.option("--to", "form", type=click.Choice(["files", "imagefolder", "webdataset"]), default="files",
              help="With --out, the form. imagefolder: DIR/images/CLASS/ID.jpg, and all records in DIR/records.jsonl. "
                   "webdataset: a tar.")
@click.option("--shard-size", type=COUNT, metavar="N",
              help="With --to webdataset: begin a new tar after N records: NAME-00000.tar, NAME-00001.tar, ...")
@overwrite_option
def unpack(shards: tuple[Path, ...], out: Path | None, form: str, shard_size: int | None, overwrite: bool) -> None:
    """Print the records of shards, with all the keys they were packed with.

    Without --out nothing is copied: a record's image and map refer to its shard ("train.h5#17" is record 17, counted
    from 0, and "train.h5#17@NAME" the map of one of its annotators), and every command reads them like files.

    torchvision's ImageFolder, and hkmap folder, read DIR/images of --to imagefolder; paths in DIR/records.jsonl are
    relative to DIR. hkmap webdataset reads tars of --to webdataset (KEY.jpg, KEY.cls, KEY.json, KEY.map.npy,
    KEY.certainty.npy); for them one JSON object is printed: {"tars": [{"path", "records"}, ...], "records"}.

    \b
    Example:
      set -o pipefail
      hkmap unpack train.h5 | jq -c 'select(.label == 3)' | hkmap pack three.h5
      hkmap unpack train.h5 --to imagefolder --out tree/ > /dev/null
      (cd tree && hkmap pack ../again.h5 records.jsonl)
      hkmap unpack train.h5 --to webdataset --out tars/train.tar --shard-size 1000
    """
    from hkmap.shards.sequence import ShardSequence
    from hkmap.stream.unpacking import samples_of, unpack_files, unpack_records, write_tars, write_tree

    if form != "files" and out is None:
        raise click.UsageError(f"--to {form} writes files; give --out.")
    if shard_size is not None and form != "webdataset":
        raise click.UsageError("--shard-size is for tars; use --to webdataset, or `hkmap merge`.")
    if out is None:
        emit(unpack_records(shards))
    elif form == "files":
        emit(unpack_files(shards, out, overwrite=overwrite))
    elif form == "imagefolder":
        emit(write_tree(ShardSequence(shards), out, overwrite=overwrite))
    else:
        samples = track(samples_of(shards), "unpacking")
        print_result(write_tars(samples, out, shard_size=shard_size, overwrite=overwrite))
