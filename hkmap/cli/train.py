from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hkmap.cli._options import EXISTING, image_size_option, named_option, shards_argument, sides
from hkmap.cli._training import carry_out, optimisation_options, training_options


@click.command("train")
@shards_argument
@named_option("--arch", table="architectures", default="resnet18+abn",
              help="The network, such as resnet50; +abn adds the attention branch.")
@named_option("--stem", table="stems", default="standard",
              help="The first layers; small keeps the full resolution, for images of 32 to 64 pixels.")
@click.option("--width", type=click.IntRange(1, 4096), default=64, help="Channels in the first stage.")
@named_option("--gate", table="gates", default="residual", help="How the map weights the features.")
@image_size_option
@named_option("--fit", table="fits", default="squash", help="How to bring an image to the input's shape.")
@click.option("--weights", type=EXISTING,
              help="Start from a checkpoint by torchvision (a ResNet) or by the ABN authors (.pth.tar, .pt). A "
                   "ResNet's layer4 starts both branches; a warning names the parts that start fresh.")
@training_options(epochs=90, select="top1 with validation data, else last")
def train(
    shards: tuple[Path, ...], arch: str, stem: str, width: int, gate: str, image_size: int | str, fit: str,
    weights: Path | None, **options: Any,
) -> None:
    """Train a network on images and labels, without their maps.

    Writes config.toml, last.pt, best.pt, log.jsonl (one line per step) and summary.json to --out; prints the summary.

    \b
    Example:
      hkmap train train.h5 --val val.h5 --arch resnet18+abn --epochs 30 --out run/
    """
    from hkmap.engine.inputs import Preprocessing
    from hkmap.engine.runs import check_memory, new_model, pick_device
    from hkmap.networks.backbone import Architecture
    from hkmap.networks.weights import load_weights
    from hkmap.shards.sequence import ShardSequence

    if options["select"] is None:
        options["select"] = "top1" if options["val"] or options["val_share"] else "last"
    optimisation = optimisation_options(options)
    width_in_pixels, height = sides(image_size)
    preprocessing = Preprocessing(height, width_in_pixels, fit)
    classes = ShardSequence(shards).classes
    architecture = Architecture(arch, len(classes), stem=stem, width=width, gate=gate)
    on = pick_device(options["device"])
    check_memory(architecture, preprocessing, optimisation.batch_size, device=on, training=True)
    model = new_model(architecture, preprocessing, classes, optimisation.seed)
    if weights:
        load_weights(model.network, weights, architecture)
    carry_out(model, optimisation, shards=shards, start={"weights": weights}, **options)
