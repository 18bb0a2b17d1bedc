from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hkmap.cli._options import AMOUNT, Number, from_option, named_option, shards_argument
from hkmap.cli._strict import section
from hkmap.cli._training import RunOptions, carry_out, taken, training_options


@click.command("finetune")
@shards_argument
@from_option
@section(
    "Maps",
    click.option("--gamma", type=Number(0, 1e6), default=1.0,
                 help="Scale of the map loss. The l2norm ||M' - M|| grows with the map's size: 1 at 14x14 is about 0.6 "
                      "at 23x23. The paper gives no value; the default is ours. With 0 only labels count."),
    named_option("--gamma-schedule", table="gamma_schedules", default="constant",
                 help="How gamma changes over the epochs."),
    named_option("--map-loss", table="map_losses", default="l2norm",
                 help="How to compare the network's map with the human one; l2norm is the paper's."),
    click.option("--maps-for", type=AMOUNT, metavar="N|SHARE",
                 help="Use the maps of N training samples, or of this share of those with one; the others train on "
                      "their label only. Each class keeps about the same share, and --seed decides which: the same for "
                      "every --control."),
    named_option("--control", table="controls", default="none",
                 help="A sham: other maps than the images' own, such as shuffled, those of other images, or center, "
                      "blobs in the middle. A gain that such a run also shows does not come from where people looked."),
)
@training_options(epochs=30, select="last", update="both")
def finetune(
    shards: tuple[Path, ...], source: Path, control: str, **options: Any
) -> None:
    """Fine-tune a network so that it looks where people look (the paper's step 4).

    Parts that are not trained (with the paper's --update both, the feature extractor) keep their batch-norm statistics,
    too. Samples without a map train on their label only.

    \b
    Example:
      hkmap finetune train.h5 --val val.h5 --from run/ --gamma 1 --out run-ft/
    """
    from dataclasses import replace

    from hkmap.engine.controls import combined
    from hkmap.engine.runs import check_memory, load_model, model_file, pick_device
    from hkmap.training.optimisation import TrainingOptions

    options["select"] = options["select"] or "last"
    optimisation = taken(options, TrainingOptions, learning_rate="lr")
    begun, on = load_model(source), pick_device(options["device"])
    model = replace(begun, control=combined(begun.control, control))
    check_memory(model.architecture, model.preprocessing, optimisation.batch_size, device=on, training=True)
    run = taken(options, RunOptions)
    carry_out(model, optimisation, run, shards=shards, start={"source": model_file(source)}, control=control, **options)
