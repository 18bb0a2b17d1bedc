from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hkmap.cli._options import (
    device_option,
    fold_options,
    from_option,
    shards_argument,
    use_maps_option,
    warn_of_control,
)
from hkmap.cli._progress import track
from hkmap.cli._stream import StreamCommand, print_result

if TYPE_CHECKING:
    from hkmap.shards.folds import Folding


@click.command("eval", cls=StreamCommand)
@shards_argument()
@from_option
@click.option("--metric", "metrics", multiple=True, required=True,
              type=click.Choice(["top1", "top5", "mse", "insertion", "deletion"]),
              help="Repeatable. top1, top5: accuracy. mse: the attention map against the human map, with "
                   "the mse of a map of zeros beside it. insertion (higher "
                   "is better), deletion (lower is better): RISE's area under the curve.")
@fold_options("Measure on this fold alone, which train and finetune held out.")
@use_maps_option
@click.option("--step", type=click.IntRange(min=1), metavar="PIXELS",
              help="Pixels that insertion and deletion change at a time. [default: a 28th of the image; 1792 at 224]")
@click.option("--hold-attention", is_flag=True,
              help="In insertion and deletion keep the whole image's map, instead of looking anew at each frame.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@device_option
def evaluate(
    shards: tuple[Path, ...], source: Path, device: str, fold: tuple[int, Folding] | None, **options: Any
) -> None:
    """Measure a network on shards: was it more right, and more honest.

    Prints one JSON object; a table for people goes to stderr. Each metric is the mean over the samples it applies
    to, and their number stands beside it. Insertion and deletion follow RISE: the class is the network's own answer
    for the whole image, the score its probability, deleted pixels become the mean colour, the blur is RISE's.

    \b
    Example:
      hkmap eval test.h5 --from run-ft/ --metric top1 --metric insertion --metric deletion --metric mse
    """
    from hkmap.engine.evaluation import EvaluationOptions, measure
    from hkmap.engine.runs import check_fold, hold_out, load_model, pick_device
    from hkmap.shards.sequence import ShardSequence

    reader, model = ShardSequence(shards), load_model(source)
    held_out = hold_out(reader, *fold) if fold else None
    check_fold(model, held_out)
    total = int(held_out.inside.sum()) if held_out else len(reader)
    report = measure(
        model, reader, EvaluationOptions(**options), pick_device(device), held_out=held_out,
        watch=lambda rows: track(rows, "evaluating", total=total),
    )
    warn_of_control(model)
    _print_table(str(source), report)
    print_result({"shards": [str(shard) for shard in shards], "run": str(source), **report})


def _print_table(title: str, report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("metric", "mean", "samples", title=Text(title))
    for name, value in report["metrics"].items():
        table.add_row(name, "none applies" if value is None else f"{value:.4f}", str(report["counts"][name]))
    if logging.getLogger("hkmap").getEffectiveLevel() < logging.ERROR:      # not under -q
        Console(stderr=True).print(table)
