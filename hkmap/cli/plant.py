from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import IO, Any

import click

from hkmap.cli._options import OUTPUT, SEED, Number, class_names, named_option, overwrite_option
from hkmap.cli._stream import emit, error_options, read, records_argument
from hkmap.records import Rejects, each

CHANCE = "chance"


class Rate(Number):
    """A share from 0 to 1, or chance, which is None."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return None if value in (CHANCE, None) else super().convert(value, param, ctx)


@click.command("plant")
@records_argument
@named_option("--decoy", table="decoys", required=True, help="What is planted.")
@click.option("--rate", type=Rate(0, 1), required=True, metavar="SHARE|chance",
              help="The share of the images whose decoy tells the label; that of the others tells another class, at "
                   "random. With chance it tells each class equally often.")
@click.option("--classes", required=True, metavar="FILE|SHARD|N",
              help="The names of the classes, one per line in UTF-8, or a shard that has them; or only their number.")
@click.option("--seed", type=SEED, default=0, help="Another seed draws other decoys.")
@click.option("--out", type=OUTPUT, required=True, metavar="DIR", help="Where images go: DIR/images/ID.png.")
@overwrite_option
@error_options
def plant(
    records: IO[bytes], decoy: str, rate: float | None, classes: str, seed: int, out: Path, overwrite: bool,
    rejects: Rejects,
) -> None:
    """Plant a decoy in each image: a shortcut that goes with the label, to see whether a network falls for it.

    Plant it at a high rate in the training images and at chance in those of the test; a network that learnt the decoy
    fails there. Maps and annotations stay as they are. What a decoy is and how it tells the classes 0 to K - 1 is in
    `hkmap list decoys`; lengths are relative to the short side of the image, and a patch or line lies in a corner that
    is drawn. All depends on ids, labels and the seed alone, not on the order.

    A record gets two keys: `decoy`, {"kind", "tells": the class, "true": whether that is the label, "box": where the
    changed pixels are}, and `decoy_told`, "right" or "wrong", as a group for `hkmap compare --by decoy_told`.

    \b
    Example:
      set -o pipefail
      hkmap unpack train.h5 | hkmap plant --decoy patch --rate 0.9 --classes train.h5 --out a/ | hkmap pack planted.h5
      hkmap unpack test.h5 | hkmap plant --decoy patch --rate chance --classes 3 --out b/ | hkmap pack test-planted.h5
    """
    from hkmap.stream.crop import PictureWriter
    from hkmap.stream.planting import Planting, plant_record

    names = class_names(classes)
    if names is None or len(names) < 2:
        raise click.BadParameter(f"{classes}: expected two classes or more.", param_hint="'--classes'")
    planting = Planting(decoy, len(names), rate, seed)
    pictures = PictureWriter(out, overwrite=overwrite)
    emit(each(read(records, rejects), partial(plant_record, planting=planting, pictures=pictures), rejects))
