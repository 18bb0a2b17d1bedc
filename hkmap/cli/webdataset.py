from __future__ import annotations

from pathlib import Path

import click

from hkmap.cli._options import EXISTING, OUTPUT, overwrite_option
from hkmap.cli._stream import emit, error_options
from hkmap.records import Rejects


@click.command("webdataset")
@click.argument("tars", type=EXISTING, nargs=-1, required=True, metavar="TAR...")
@click.option("--out", type=OUTPUT, required=True, metavar="DIR",
              help="Where the original image files go (DIR/images), and maps and certainty, if any.")
@overwrite_option
@error_options
def webdataset(tars: tuple[Path, ...], out: Path, overwrite: bool, rejects: Rejects) -> None:
    """Print the samples of WebDataset tars as records, and write their images to files.

    Consecutive files in a tar whose names agree up to the first dot are one sample: an image, and optionally cls (the
    label), json (an object whose keys become the record's), map.npy and certainty.npy, as hkmap unpack --to webdataset
    writes them. The id comes from the json, or else is the name up to that dot. A warning counts other files. Links,
    devices, names that lead out of a folder, files of more than 256 MiB and compressed tars are refused.

    \b
    Example:
      set -o pipefail
      hkmap webdataset train-00000.tar train-00001.tar --out images/ | hkmap pack train.h5
    """
    from hkmap.sources.webdataset import read_tars
    from hkmap.stream.unpacking import saved_records

    emit(saved_records(read_tars(tars), out, overwrite=overwrite, rejects=rejects))
