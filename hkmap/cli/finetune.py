from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hkmap.cli._options import from_option, named_option, shards_argument, training_options
from hkmap.cli.train import carry_out, optimisation_options


@click.command("finetune")
@shards_argument
@from_option
@click.option("--gamma", type=click.FloatRange(min=0), default=1.0,
              help="Scale of the map loss, gamma * ||M' - M||. The norm grows with the map's side: 1 at 14 x 14 is "
                   "about 0.6 at 23 x 23. The paper gives no value; the default is ours. 0: labels alone.")
@named_option("--map-loss", table="map_losses", default="norm",
              help="How a map of the network is compared with the human one; norm is the paper's.")
@named_option("--update", table="updates", default="both", help="Which parts of the network learn.")
@named_option("--control", table="controls", default="none",
              help="shuffled: the sham control. Every image gets another image's human map; a gain that this run "
                   "shows too does not come from where people look.")
@training_options(epochs=30)
def finetune(
    shards: tuple[Path, ...], source: Path, gamma: float, map_loss: str, update: str, control: str, **options: Any
) -> None:
    """Fine-tune a network so that it looks where people look (the paper's step 4).

    What does not learn keeps its batch-norm statistics too: with the paper's --update both, the feature extractor.
    Samples without a map train on their label alone.

    \b
    Example:
      hkmap finetune train.h5 --val val.h5 --from run/ --gamma 1 --out run-ft/
    """
    from dataclasses import replace

    from hkmap.engine.runs import load_model

    model = replace(load_model(source), control=control, state={})
    optimisation = optimisation_options(options, gamma=gamma, map_loss=map_loss, update=update)
    carry_out(model, optimisation, shards=shards, pretrained=True, **options)
