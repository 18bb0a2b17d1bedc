from __future__ import annotations

from typing import IO

import click

from hkmap.cli._options import COUNT
from hkmap.cli._stream import emit, error_options, read, records_argument
from hkmap.records import Rejects


@click.command("select")
@records_argument
@click.option("--only", type=click.Choice(["misclassified", "correct"]),
              help="Only records whose prediction is not, or is, their label.")
@click.option("--sort", metavar="KEY", help="Sort by the number under this key, such as confidence, the lowest first.")
@click.option("--descending", is_flag=True, help="With --sort: the highest first.")
@click.option("--first", type=COUNT, metavar="N", help="Only the first N of what the other options leave.")
@error_options
def select(
    records: IO[bytes], only: str | None, sort: str | None, descending: bool, first: int | None, rejects: Rejects
) -> None:
    """Pass on the records that were misclassified, or the first of them by a number.

    --only compares what `hkmap predict` adds: prediction with label, and predicted_class with class; one of the two is
    enough. --sort reads all records before it prints one, and holds them in memory, with --first only N of them. Equal
    ones keep their order. Without --sort records are passed on at once, and after the first N no more are read. A
    warning says if there are fewer than N.

    The paper draws maps of the misclassified training samples, those of the lowest confidence first.

    \b
    Example:
      set -o pipefail
      hkmap unpack train.h5 | hkmap predict --from run/ \\
        | hkmap select --only misclassified --sort confidence --first 100 | hkmap pack to_draw.h5
    """
    from hkmap.stream.selecting import select_correct, select_first, sort_records

    if not (only or sort or first):
        raise click.UsageError("Nothing says which records; give --only, --sort or --first.")
    if descending and not sort:
        raise click.UsageError("--descending says how to sort; give --sort too.")
    chosen = read(records, rejects)
    if only:
        chosen = select_correct(chosen, only == "correct", rejects)
    if sort:
        chosen = sort_records(chosen, sort, rejects, descending=descending, count=first)
    emit(select_first(chosen, first) if first else chosen)
