from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hkmap.cli._options import (
    OUTPUT,
    RESAMPLES,
    SEED,
    ending_in,
    fold_options,
    named_option,
    network_options,
    overwrite_option,
    shards_argument,
    text_of,
    warn_of_control,
)
from hkmap.cli._stream import print_result, show_table, track

if TYPE_CHECKING:
    from hkmap.evaluation.evaluate import EvaluationOptions
    from hkmap.shards.folds import Folding


@click.command("eval")
@shards_argument
@named_option("--metric", "metrics", table="metrics", multiple=True, required=True,
              help="What to measure: top1 (accuracy), mse (the attention map against the human map), insertion, "
                   "deletion (RISE's area under the curve) or another; repeatable, or with commas.")
@click.option("--maps", default="attention", metavar="NAME|KEY|PATH",
              help="Where the maps come from: attention, cam, gradcam or another; a key of the records with a map "
                   "reference; or a folder or NAME.h5 of maps by id. See `hkmap list explanations`.")
@click.option("--layer", metavar="NAME", help="Of which layer cam and gradcam are.  [default: the last with places]")
@fold_options("Measure only on this fold, which train and finetune held out.", grouped_intervals=True)
@click.option("--resamples", type=RESAMPLES, default=2000, help="Draws of the bootstrap, for the intervals.")
@click.option("--seed", type=SEED, default=0, help="Determines these draws.")
@click.option("--step", type=click.IntRange(1, 2**26), metavar="PIXELS",
              help="Pixels that insertion and deletion change per step.  [default: a 28th of the image; 1792 at 224]")
@named_option("--blur", table="blurs", default="rise", help="What insertion begins with.")
@click.option("--target", type=click.Choice(["predicted", "label"]), default="predicted",
              help="The class whose curves are drawn: the one predicted for the whole image, or the label.")
@named_option("--dtype", table="dtypes", default="float32", help="The type of number that frames are computed with.")
@click.option("--compile", is_flag=True, help="Compile the network with torch.compile: slow to start.")
@click.option("--hold-attention", is_flag=True,
              help="In insertion and deletion keep the whole image's map instead of a new one per step.")
@network_options(batch_size=32)
@click.option("--plot", "picture", type=OUTPUT, callback=ending_in(".png", ".svg", ".pdf"),
              metavar="FILE.png|svg|pdf",
              help="Also draw the curves of insertion and deletion, with bands of their 95 % intervals.")
@overwrite_option
def evaluate(
    shards: tuple[Path, ...], source: Path, device: str, fold: tuple[int, Folding] | None, picture: Path | None,
    overwrite: bool, **options: Any,
) -> None:
    """Measure a network on shards: how often it is right, and how honest its attention maps are.

    Prints one JSON object; a table goes to stderr. Each metric is the mean over the samples that it applies to, or a
    figure of all of them together, and is printed with their number and its 95 % interval: Wilson's for a share, else
    a bootstrap over the records, or over groups of them (--group). Insertion (higher is better) and deletion (lower is
    better) follow RISE: the score is the probability of the class predicted for the whole image, deleted pixels get the
    mean colour, the blur is RISE's.

    \b
    Example:
      hkmap eval test.h5 --from run-ft/ --metric top1 --metric insertion --metric deletion --metric mse
    """
    from hkmap.engine.ranks import current, joined
    from hkmap.engine.runs import check_fold, check_memory, hold_out, load_model, memory_errors
    from hkmap.evaluation.evaluate import EvaluationOptions, evaluate
    from hkmap.evaluation.summary import summarise
    from hkmap.shards.folds import groups_of
    from hkmap.shards.sequence import ShardSequence

    reader, model, measured = ShardSequence(shards), load_model(source), EvaluationOptions(**options)
    _check_picture(picture, measured, overwrite=overwrite)
    kind = (model.architecture, model.preprocessing, measured.batch_size)
    with joined(device) as on, memory_errors(*kind, device=on):
        check_memory(*kind, device=on, training=False)
        held_out = hold_out(reader, *fold) if fold else None
        check_fold(model, held_out)
        rows = evaluate(model, reader, measured, on, held_out=held_out)
        if not current().first:
            deque(rows, maxlen=0)
            return
        groups = groups_of(reader, measured.group, False) if measured.group else None
        shown = track(rows, "evaluating", total=int(held_out.inside.sum()) if held_out else len(reader))
        report = summarise(shown, model, measured, on, held_out=held_out, groups=groups)
    _draw(picture, report, text_of(source), overwrite=overwrite)
    warn_of_control(model)
    _show(report, text_of(source))
    print_result({"shards": [text_of(shard) for shard in shards], "run": text_of(source), **report})


def _check_picture(path: Path | None, options: EvaluationOptions, *, overwrite: bool) -> None:
    """Refuse a picture that could not be drawn, before anything is measured."""
    from hkmap.files.atomic import refuse_existing

    if path is None:
        return
    if not any(metric.unit == "area" for metric in options.of_samples().values()):
        raise click.UsageError("--plot draws curves; measure some, as by --metric insertion,deletion.")
    refuse_existing(path, overwrite=overwrite)


def _draw(path: Path | None, report: dict[str, Any], name: str, *, overwrite: bool) -> None:
    """Draw the curves of a report, if a picture is asked for."""
    from hkmap.evaluation.page import curve_panels
    from hkmap.files.atomic import replacing
    from hkmap.report.charts import curves_figure, figure_bytes

    if path is None:
        return
    figure = curves_figure(curve_panels([report]), [report["control"] != "none"], [name])
    with replacing(path, overwrite=overwrite) as beside:
        beside.write_bytes(figure_bytes(figure, path.suffix[1:].lower()))


def _show(report: dict[str, Any], title: str) -> None:
    """Show the figures and their intervals to people."""
    figures, counts = dict(report["metrics"]), dict(report["counts"])
    if "attention_mean" in report:
        figures["attention_mean"], counts["attention_mean"] = report["attention_mean"], report["samples"]
    lines = []
    for name, figure in figures.items():
        ends = report["intervals"][name]
        shown = "none applies" if figure is None else f"{figure:.4f}"
        lines.append((name, shown, "-" if ends is None else "{:.4f} to {:.4f}".format(*ends), str(counts[name])))
    show_table(("metric", "figure", "95 % interval", "samples"), lines, title=title)
