from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hkmap.cli._options import epochs_options, from_option, shards_argument, training_options
from hkmap.cli._stream import StreamCommand
from hkmap.cli._training import carry_out, optimisation_options


@click.command("finetune", cls=StreamCommand)
@shards_argument()
@from_option
@click.option("--gamma", type=click.FloatRange(min=0), default=1.0, show_default=True,
              help="Scale of the map loss, gamma * ||M' - M||. The norm grows with the map's side: 1 at 14 x 14 is "
                   "about 0.6 at 23 x 23. The paper gives no value; the default is ours. 0: labels alone.")
@click.option("--update", type=click.Choice(["both", "attention"]), default="both", show_default=True,
              help="What learns: attention and perception branch, or the attention branch alone. Never the extractor.")
@click.option("--control", type=click.Choice(["none", "shuffled"]), default="none", show_default=True,
              help="shuffled: the sham control. Every image gets another image's human map; a gain that this run "
                   "shows too does not come from where people look.")
@epochs_options(epochs=30, learning_rate=0.01)
@training_options
def finetune(
    shards: tuple[Path, ...], source: Path, gamma: float, update: str, control: str, **options: Any
) -> None:
    """Fine-tune a network so that it looks where people look (the paper's step 4).

    The feature extractor is frozen, its batch-norm statistics too. Samples without a map train on their label alone.

    \b
    Example:
      hkmap finetune train.h5 --val val.h5 --from run/ --gamma 1 --out run-ft/
    """
    from dataclasses import replace

    from hkmap.engine.runs import load_model

    model = replace(load_model(source), control=control, state={})
    optimisation = optimisation_options(options, gamma=gamma, update=update)
    carry_out(model, optimisation, shards=shards, pretrained=True, **options)
