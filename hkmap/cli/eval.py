from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hkmap.cli._options import (
    ANYTHING,
    OUTPUT,
    RESAMPLES,
    SEED,
    ending_in,
    fold_options,
    named_option,
    network_options,
    overwrite_option,
    shards_argument,
    warn_of_control,
)
from hkmap.cli._stream import print_result, show_table, track
from hkmap.cli._strict import section
from hkmap.cli._training import taken
from hkmap.records import text_of

if TYPE_CHECKING:
    import torch

    from hkmap.cli._options import Load
    from hkmap.engine.data import Numbers
    from hkmap.engine.runs import TrainedModel
    from hkmap.evaluation.evaluate import EvaluationOptions
    from hkmap.shards.folds import Folding
    from hkmap.shards.sequence import ShardSequence


@dataclass(frozen=True)
class Outputs:
    """What is written beside the report on stdout."""

    out: Path | None
    resume: bool
    per_record: Path | None
    plot: Path | None
    overwrite: bool

    def check(self, metrics: tuple[str, ...]) -> None:
        """Refuse what could not be written, before the ``metrics`` are measured."""
        from hkmap.evaluation.metrics import METRICS
        from hkmap.files.atomic import refuse_existing
        from hkmap.report.tables import check_table
        from hkmap.results.folder import check_free

        if self.resume and (self.out is None or self.overwrite):
            raise click.UsageError("--resume goes on with the results in --out; give --out, and omit --overwrite.")
        if self.out is not None:
            check_free(self.out, resume=self.resume, overwrite=self.overwrite)
        if self.per_record is not None:
            check_table(self.per_record, overwrite=self.overwrite or self.resume)
        if self.plot is not None:
            if not any(METRICS[name].curve for name in metrics):
                raise click.UsageError("--plot draws curves; measure some, as by --metric insertion,deletion.")
            refuse_existing(self.plot, overwrite=self.overwrite or self.resume)


@click.command("eval")
@shards_argument
@section(
    "What is measured",
    named_option("--metric", "metrics", table="metrics", multiple=True, required=True,
                 help="What to measure: top1 (accuracy), mse (the attention map against the human map), insertion, "
                      "deletion (RISE's area under the curve) or another; repeatable, or with commas."),
    click.option("--maps", default="attention", metavar="NAME|KEY|PATH",
                 help="Where the maps come from: attention, cam, gradcam or another; a key of the records with a map "
                      "reference; or a folder or NAME.h5 of maps by id. See `hkmap list explanations`."),
    click.option("--layer", metavar="NAME",
                 help="Of which layer cam and gradcam are.  [default: the last with places]"),
)
@section(
    "The records",
    fold_options("Measure only on this fold, which train and finetune held out.", grouped_intervals=True),
    click.option("--only", type=click.Choice(["misclassified"]),
                 help="Measure only the records that the network misclassifies, with its own maps."),
    click.option("--baseline", type=ANYTHING, metavar="RUN|RESULTS",
                 help="With --only: those that this network misclassifies instead, so that several networks are "
                      "measured on one set; a run, or the --out of its evaluation."),
)
@section(
    "Insertion and deletion",
    click.option("--step", type=click.IntRange(1, 2**26), metavar="PIXELS",
                 help="Pixels that insertion and deletion change per step.  [default: a 28th of the image; 1792 at "
                      "224]"),
    named_option("--blur", table="blurs", default="rise",
                 help="What insertion begins with: rise, the image blurred as RISE does; gaussian, by a true Gaussian "
                      "of 5 pixels; or zeros, the mean colour, with which deletion ends."),
    click.option("--target", type=click.Choice(["predicted", "label"]),
                 help="The class whose curves are drawn: the one predicted for the whole image, or the label, of "
                      "records that have one.  [default: predicted; with --only label]"),
    named_option("--dtype", table="dtypes", default="float32",
                 help="The type of number that insertion and deletion compute with; bfloat16 is about twice as fast "
                      "where the device has units for it."),
    click.option("--compile", is_flag=True,
                 help="Compile the network for insertion and deletion with torch.compile: slow to start."),
    click.option("--hold-attention", is_flag=True,
                 help="In insertion and deletion keep the whole image's map instead of a new one per step."),
)
@section("The network", network_options(batch_size=None))
@section(
    "Results",
    click.option("--resamples", type=RESAMPLES, default=2000, help="Draws of the bootstrap, for the intervals."),
    click.option("--seed", type=SEED, default=0, help="Determines these draws."),
    click.option("--out", type=OUTPUT, metavar="RESULTS",
                 help="Also write a folder of results, which compare and report read: RUN/eval stands for RUN there."),
    click.option("--resume", is_flag=True,
                 help="Go on with an evaluation in --out that was broken off, with the same options; the results are "
                      "those of an unbroken one."),
    click.option("--per-record", type=OUTPUT, metavar="FILE",
                 help="Also write a table with a row per record: its answer and every figure. FILE ends in .csv, "
                      ".jsonl or .parquet (pip install 'hkmap[parquet]')."),
    click.option("--plot", type=OUTPUT, callback=ending_in(".png", ".svg", ".pdf"), metavar="FILE.png|svg|pdf",
                 help="Also draw the curves of insertion and deletion, with bands of their 95 % intervals."),
    overwrite_option,
)
def evaluate(
    shards: tuple[Path, ...], source: Path, load: Load, device: str, fold: tuple[int, Folding] | None,
    only: str | None, baseline: Path | None, **options: Any,
) -> None:
    """Measure a network on shards: how often it is right, and how honest its attention maps are.

    Prints one JSON object; a table goes to stderr. Each metric is the mean over the samples that it applies to, or a
    figure of all of them together, and is printed with their number and its 95 % interval: Wilson's for a share, else
    a bootstrap over the records, or over groups of them (--group). Insertion (higher is better) and deletion (lower is
    better) follow RISE: the score is the probability of the class predicted for the whole image, deleted pixels get the
    mean colour, the blur is RISE's.

    With --use-maps, a figure of the answer is printed for the network's own map too, as NAME_before. With --only, the
    object says how many records were measured, and the score is the probability of the label.

    \b
    Example:
      hkmap eval test.h5 --from run-ft/ --metric top1,insertion,deletion,mse --out run-ft/eval/
      hkmap eval test.h5 --from run-ft/ --metric error,top5_error --use-maps --only misclassified
      hkmap eval test.h5 --model my_package.networks:make --image-size 256 --metric top1,log_loss
    """
    from hkmap.engine.ranks import joined
    from hkmap.engine.runs import within_memory
    from hkmap.evaluation.evaluate import EvaluationOptions
    from hkmap.shards.sequence import ShardSequence

    outputs = taken(options, Outputs)
    outputs.check(options["metrics"])
    options["target"] = options["target"] or ("label" if only else "predicted")
    reader, measured = ShardSequence(shards), EvaluationOptions(**options)
    model = load(reader.classes)
    with joined(device) as on, within_memory(model, measured.images_at_once, on):
        numbers, about = _chosen(reader, fold, only, baseline, model, measured, on)
        report = _measured(source, model, reader, measured, on, numbers, about, outputs)
    if report is not None:
        warn_of_control(model)
        _show(report, text_of(source))
        print_result(report)


def _measured(
    source: Path, model: TrainedModel, shards: ShardSequence, options: EvaluationOptions, device: torch.device,
    numbers: Numbers, about: dict[str, Any], outputs: Outputs,
) -> dict[str, Any] | None:
    """Measure the records ``numbers``, write the outputs, and return the report: of several processes, the first one.

    ``about`` is what the report and the results say of the choice of records.
    """
    from hkmap.engine.folders import warn_of_training_data, write_json
    from hkmap.engine.ranks import current
    from hkmap.evaluation.evaluate import evaluate
    from hkmap.evaluation.summary import summarise
    from hkmap.results.folder import REPORT, header_of, kept_rows, tabled
    from hkmap.shards.folds import groups_of

    if "fold" not in about:
        warn_of_training_data(source, shards)
    groups = groups_of(shards, options.group, False)
    out, table, resume = outputs.out, outputs.per_record, outputs.resume
    measure = partial(evaluate, model, shards, options, device)
    if out is None:
        rows = measure(chosen=numbers)
    else:
        header = header_of(source, model, shards, options, device, **about)
        rows = kept_rows(out, header, measure, numbers, model=model, shards=shards, resume=resume)
    if not current().first:
        deque(rows, maxlen=0)
        return None
    rows = track(rows, "evaluating", total=len(numbers))
    if table is not None:
        rows = tabled(rows, table, model, overwrite=outputs.overwrite or resume)
    report = {
        "shards": [text_of(shard.path) for shard in shards.shards], "run": text_of(source), **about,
        **summarise(rows, model, options, device, groups=groups),
    }
    if out is not None:
        write_json(out / REPORT, report)
    if outputs.plot is not None:
        _draw(outputs.plot, report, overwrite=outputs.overwrite or resume)
    return report


def _draw(path: Path, report: dict[str, Any], *, overwrite: bool) -> None:
    """Draw the curves of a report."""
    from hkmap.files.atomic import replacing
    from hkmap.report.charts import curves_figure, figure_bytes
    from hkmap.results.page import curve_panels

    figure = curves_figure(curve_panels([report]), [report["control"] != "none"], [report["run"]])
    with replacing(path, overwrite=overwrite) as beside:
        beside.write_bytes(figure_bytes(figure, path.suffix[1:].lower()))


def _chosen(
    shards: ShardSequence, fold: tuple[int, Folding] | None, only: str | None, baseline: Path | None,
    model: TrainedModel, options: EvaluationOptions, device: torch.device,
) -> tuple[Numbers, dict[str, Any]]:
    """Return the numbers of the records to measure, and what the report says about them."""
    import numpy as np

    from hkmap.engine.runs import check_fold, hold_out, load_model, named
    from hkmap.results.baseline import asked, looked_up, misclassified
    from hkmap.results.folder import RECORDS, read_results

    if baseline and not only:
        raise click.UsageError("--baseline says whose mistakes are measured; give --only misclassified too.")
    held_out = hold_out(shards, *fold) if fold else None
    check_fold(model, held_out)
    numbers = np.arange(len(shards)) if held_out is None else np.flatnonzero(held_out.inside)
    about: dict[str, Any] = {} if held_out is None else named(held_out)
    if only is None:
        return numbers, about
    if baseline is not None and (baseline / RECORDS).exists():
        predict = looked_up(read_results(baseline), shards)
    elif baseline is not None:
        other = load_model(baseline)
        check_fold(other, held_out)
        predict = asked(other, shards, device, options.images_at_once)
    else:
        predict = asked(model, shards, device, options.images_at_once)
    numbers, labelled = misclassified(shards, numbers, predict)
    about["only"] = {
        "what": only, "baseline": baseline and text_of(baseline), "records": len(numbers), "of": labelled,
    }
    return numbers, about


def _show(report: dict[str, Any], title: str) -> None:
    """Show the figures and their intervals to people."""
    if "only" in report:
        title += f", {report['only']['records']} misclassified of {report['only']['of']}"
    figures, counts = dict(report["metrics"]), dict(report["counts"])
    if "attention_mean" in report:
        figures["attention_mean"], counts["attention_mean"] = report["attention_mean"], report["samples"]
    lines = []
    for name, figure in figures.items():
        ends = report["intervals"][name]
        shown = "none applies" if figure is None else f"{figure:.4f}"
        lines.append((name, shown, "-" if ends is None else "{:.4f} to {:.4f}".format(*ends), str(counts[name])))
    show_table(("metric", "figure", "95 % interval", "samples"), lines, title=title)
