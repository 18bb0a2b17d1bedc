from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hkmap.cli._options import epochs_options, shards_argument, training_options
from hkmap.cli._stream import EXISTING, StreamCommand
from hkmap.cli._training import carry_out, optimisation_options


@click.command("train", cls=StreamCommand)
@shards_argument()
@click.option("--arch", default="resnet18+abn", show_default=True, metavar="NAME",
              help="resnet8, 18, 34, 50, 101 or 152 (resnet50, say), with +abn for the attention branch.")
@click.option("--stem", type=click.Choice(["standard", "small"]), default="standard", show_default=True,
              help="The network's beginning; small keeps the full resolution, for images of 32 to 64 pixels.")
@click.option("--width", type=click.IntRange(min=1), default=64, show_default=True, help="Channels of the first stage.")
@click.option("--gate", type=click.Choice(["residual", "product"]), default="residual", show_default=True,
              help="How the map weights the features: x * (1 + M), the paper's, or x * M, which can hide a region.")
@click.option("--image-size", type=click.IntRange(min=8), default=224, show_default=True,
              help="Side of the network's input, in pixels.")
@click.option("--fit", type=click.Choice(["squash", "crop", "letterbox"]), default="squash", show_default=True,
              help="squash: the whole image, its aspect given up. crop: its largest middle square. letterbox: the "
                   "whole image and its aspect, with padding in the mean colour, which has no part in the map loss.")
@click.option("--weights", type=EXISTING,
              help="Start from a checkpoint with torchvision's names (a ResNet) or the ABN authors' (.pth.tar, .pt). "
                   "From a ResNet, layer4 starts both branches; parts of other classes start fresh, and are named.")
@epochs_options(epochs=90, learning_rate=0.01)
@training_options
def train(
    shards: tuple[Path, ...], arch: str, stem: str, width: int, gate: str, image_size: int, fit: str,
    weights: Path | None, **options: Any,
) -> None:
    """Train a network on images and labels (without their maps), with SGD.

    Keeps the run in --out: config.toml, last.pt, best.pt, log.jsonl (a line a step) and summary.json, which is
    printed as well.

    \b
    Example:
      hkmap train train.h5 --val val.h5 --arch resnet18+abn --epochs 30 --out run/
    """
    from hkmap.engine.inputs import Preprocessing
    from hkmap.engine.resnet import Architecture
    from hkmap.engine.runs import new_model
    from hkmap.engine.weights import load_weights
    from hkmap.shards.sequence import ShardSequence

    optimisation = optimisation_options(options)
    classes = ShardSequence(shards).classes
    architecture = Architecture(arch, len(classes), stem=stem, width=width, gate=gate)
    model = new_model(architecture, Preprocessing(image_size, image_size, fit), classes, optimisation.seed)
    if weights:
        load_weights(model.network, weights)
    carry_out(model, optimisation, shards=shards, pretrained=False, **options)
