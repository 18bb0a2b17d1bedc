from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import click

from hkmap.cli._options import MOST_FOLDS, OUTPUT, SEED, overwrite_option, shards_argument
from hkmap.cli._stream import print_result, track


def _shares(value: str) -> dict[str, Fraction]:
    """Read NAME=SHARE,... as exact numbers by their names; they add up to 1."""
    shares: dict[str, Fraction] = {}
    for pair in value.split(","):
        name, _, share = pair.strip().partition("=")
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name in shares:
            raise click.BadParameter(f'"{pair}": expected NAME=SHARE with a NAME of its own, of letters and digits.')
        if not re.fullmatch(r"[0-9]{0,9}\.?[0-9]{1,18}|[0-9]{1,9}/0*[1-9][0-9]{0,8}", share) or not Fraction(share):
            raise click.BadParameter(f'"{pair}": expected a share above 0, such as 0.8 or 1/3.')
        shares[name] = Fraction(share)
    if len(shares) < 2:
        raise click.BadParameter(f'"{value}": expected two or more parts.')
    if sum(shares.values()) != 1:
        raise click.BadParameter(f"the shares add up to {float(sum(shares.values())):g}, expected 1.")
    return shares


@click.command("split")
@shards_argument
@click.option("--shares", type=_shares, metavar="NAME=SHARE,...",
              help="One part per name: train=0.8,val=0.1,test=0.1, or a=2/3,b=1/3. Shares add up to 1.")
@click.option("--folds", type=click.IntRange(2, MOST_FOLDS), metavar="K",
              help="K equal parts, 2 to 10,000, fold-1 to fold-K; --fold I/K of train, finetune and eval holds "
                   "out fold-I.")
@click.option("--out", type=OUTPUT, required=True, metavar="DIR", help="The folder of the new shards, DIR/NAME.h5.")
@click.option("--group", metavar="KEY",
              help="A key of the records, such as patient. Records with the same value stay in one part.")
@click.option("--group-duplicates/--no-group-duplicates", "duplicates", default=True,
              help="Keep records with the same image, byte for byte, in one part, as --fold does.")
@click.option("--stratify/--no-stratify", default=True,
              help="Give each part its share of every label, as --fold does, or ignore labels.")
@click.option("--seed", type=SEED, default=0, help="Another seed makes another split.")
@overwrite_option
def split(
    shards: tuple[Path, ...], shares: dict[str, Fraction] | None, folds: int | None, out: Path, group: str | None,
    duplicates: bool, stratify: bool, seed: int, overwrite: bool,
) -> None:
    """Split shards into parts, one shard each: train, val and test, or the folds of a cross-validation.

    The split depends on the ids, labels and groups of all records and on the seed, not on their order. scikit-learn
    makes it: StratifiedKFold, or with groups StratifiedGroupKFold, which balances labels as well as it can. Shares
    consist of folds: 0.8, 0.1 and 0.1 get eight, one and one of ten. Records with the same image are a group, and join
    the groups of --group that they stand in; a warning counts such images.

    Prints one JSON object: {"records", "parts": {NAME: {"path", "records", "share", "maps", "classes": [{"label",
    "class", "records"}, ...], "sha256"}, ...}, "group", "stratified", "seed"}; share is that of the records.

    \b
    Example:
      hkmap split data.h5 --shares train=0.8,val=0.1,test=0.1 --group patient --out parts/
      hkmap split data.h5 --folds 5 --out folds/
    """
    from hkmap.shards.copy import split_shards
    from hkmap.shards.folds import Folding, folds_of, parts_of
    from hkmap.shards.sequence import ShardSequence

    if (shares is None) == (folds is None):
        raise click.UsageError("Give either --shares NAME=SHARE,... or --folds K.")
    sequence = ShardSequence(shards)
    if shares is not None:
        names = list(shares)
        chosen = parts_of(sequence, shares, group=group, stratify=stratify, seed=seed, duplicates=duplicates)
    else:
        names = [f"fold-{number + 1}" for number in range(folds or 0)]
        chosen = folds_of(sequence, Folding(len(names), seed, group, stratify, duplicates)) - 1
    parts = split_shards(
        sequence, chosen, names, out, overwrite=overwrite,
        watch=lambda rows: track(rows, "splitting", total=len(sequence)),
    )
    print_result({
        "records": len(sequence), "parts": dict(zip(names, parts, strict=True)), "group": group,
        "stratified": stratify, "seed": seed,
    })
