from __future__ import annotations

from pathlib import Path

import click

from hkmap.cli._options import FOLDER, OUTPUT, ending_in, overwrite_option
from hkmap.cli._stream import print_result
from hkmap.records import text_of


@click.command("plot")
@click.argument("runs", type=FOLDER, nargs=-1, required=True, metavar="RUN...")
@click.option("--out", type=OUTPUT, required=True, callback=ending_in(".png", ".svg"), metavar="FILE.png|FILE.svg",
              help="The picture to draw: 1200 pixels wide, or a drawing that scales.")
@overwrite_option
def plot(runs: tuple[Path, ...], out: Path, overwrite: bool) -> None:
    """Draw the learning curves of runs, one colour per run.

    RUN is a run folder of `hkmap train` or `hkmap finetune`, which may still be going on. A panel shows one figure over
    the epochs: a solid line is the mean over an epoch's training steps, a dashed one is of the validation data.
    Prints one JSON object: {"picture": FILE, "runs": [{"run", "epochs", "steps"}, ...]}.

    \b
    Example:
      hkmap plot run-none/ run-human/ run-shuffled/ --out curves.png
    """
    from hkmap.files.atomic import refuse_existing, replacing
    from hkmap.report.learning import curves_of, learning_figure, read_log

    refuse_existing(out, overwrite=overwrite)
    curves = {text_of(run): curves_of(read_log(run)) for run in runs}
    figure = learning_figure(curves)
    with replacing(out, overwrite=overwrite) as beside:
        figure.savefig(beside, format=out.suffix[1:].lower())
    counts = [{"run": run, "epochs": len(found.epochs), "steps": found.steps} for run, found in curves.items()]
    print_result({"picture": text_of(out), "runs": counts})
