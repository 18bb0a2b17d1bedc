from __future__ import annotations

from typing import IO

import click

from hkmap.cli._options import AMOUNT, SEED
from hkmap.cli._stream import emit, error_options, read, records_argument
from hkmap.records import Rejects


@click.command("sample")
@click.argument("amount", type=AMOUNT, metavar="N|SHARE")
@records_argument
@click.option("--per-class", is_flag=True, help="Draw N records per label; those without a label count as one label.")
@click.option("--seed", type=SEED, default=0, help="Another seed draws another sample.")
@error_options
def sample(amount: int | float, records: IO[bytes], per_class: bool, seed: int, rejects: Rejects) -> None:
    """Pass on some of the records, drawn at random, in their original order.

    N, at most 999999999, is exact; output begins after the last record was read, and only the chosen ones are held in
    memory. A share such as 0.1 is approximate, also per class, and records are passed on at once. The choice depends
    only on ids and seed, and a smaller sample is part of a larger one. A warning says if there are fewer than N.

    \b
    Example:
      set -o pipefail
      hkmap unpack train.h5 | hkmap sample 100 --seed 1 | hkmap pack small.h5
      hkmap unpack train.h5 | hkmap sample 12 --per-class | hkmap show --out sheet.png
    """
    from hkmap.stream.sampling import sample_count, sample_share

    if isinstance(amount, int):
        emit(sample_count(read(records, rejects), amount, seed=seed, per_label=per_class))
        return
    if per_class:
        raise click.UsageError("A share already applies to each class; give N, or omit --per-class.")
    emit(sample_share(read(records, rejects), amount, seed=seed))
