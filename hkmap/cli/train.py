from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hkmap.cli._options import EXISTING, image_size_option, named_option, shards_argument, sides
from hkmap.cli._strict import section
from hkmap.cli._training import RunOptions, carry_out, taken, training_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hkmap.engine.runs import TrainedModel
    from hkmap.networks.backbone import Architecture
    from hkmap.training.optimisation import TrainingOptions


def _one_of(pretrained: bool, weights: Path) -> tuple[bool, Path | None]:
    """Return the one that the command line gives, where the other is a recipe's or a config's."""
    ctx = click.get_current_context()
    typed = [
        name for name in ("pretrained", "weights") if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if len(typed) != 1:
        raise click.UsageError("--pretrained downloads weights, --weights reads them from a file; give one of them.")
    found = (pretrained, None) if typed == ["pretrained"] else (False, weights)
    ctx.params["pretrained"], ctx.params["weights"] = found      # for the run's config
    return found


@click.command("train")
@shards_argument
@section(
    "Network",
    named_option("--arch", table="architectures", default="resnet18+abn",
                 help="The network, such as resnet50, or timm/NAME; +abn adds the attention branch."),
    named_option("--stem", table="stems", default="standard",
                 help="The first layers; small keeps the full resolution, for images of 32 to 64 pixels."),
    click.option("--width", type=click.IntRange(1, 4096), default=64, help="Channels in the first stage."),
    named_option("--gate", table="gates", default="residual", help="How the map weights the features."),
    image_size_option,
    named_option("--fit", table="fits", default="squash", help="How to bring an image to the input's shape."),
    click.option("--pretrained", is_flag=True,
                 help="Start from published ImageNet weights, torchvision's or, for timm/NAME, timm's; they are "
                      "downloaded once."),
    click.option("--weights", type=EXISTING,
                 help="Start from a checkpoint: torchvision's, the ABN authors' (.pth.tar, .pt), timm's, ours, "
                      ".safetensors. A backbone's last stage starts both branches; a warning names the parts that "
                      "start fresh."),
)
@training_options(epochs=90, select="top1 with validation data, else last", update="all")
def train(
    shards: tuple[Path, ...], arch: str, stem: str, width: int, gate: str, image_size: int | str, fit: str,
    pretrained: bool, weights: Path | None, **options: Any,
) -> None:
    """Train a network on images and labels, without their maps.

    Writes a run folder to --out: config.toml, best.safetensors, last.safetensors, state.pt (to --resume), run.json,
    log.jsonl (one line per step) and summary.json; prints the summary. Several processes: torchrun --nproc-per-node N
    -m hkmap train ...

    \b
    Example:
      hkmap train train.h5 --val val.h5 --arch resnet18+abn --epochs 30 --out run/
    """
    from hkmap.networks.backbone import Architecture
    from hkmap.shards.sequence import ShardSequence
    from hkmap.training.optimisation import TrainingOptions

    if pretrained and weights:
        pretrained, weights = _one_of(pretrained, weights)
    if options["select"] is None:
        options["select"] = "top1" if options["val"] or options["val_share"] else "last"
    optimisation, run = taken(options, TrainingOptions, learning_rate="lr"), taken(options, RunOptions)
    classes = ShardSequence(shards).classes
    architecture = Architecture(arch, len(classes), stem=stem, width=width, gate=gate)
    model = _begun(architecture, classes, optimisation, sides(image_size), fit=fit, device=options["device"])
    model = _loaded(model, pretrained=pretrained, weights=weights)
    carry_out(model, optimisation, run, shards=shards, start={"weights": weights}, **options)


def _begun(
    architecture: Architecture, classes: Sequence[str], optimisation: TrainingOptions, size: tuple[int, int], *,
    fit: str, device: str,
) -> TrainedModel:
    """Return an untrained network for images of ``size`` (width, height), if it can be trained in the memory there."""
    from hkmap.engine.inputs import Preprocessing
    from hkmap.engine.runs import check_memory, new_model, pick_device
    from hkmap.networks.pretrained import preprocessing_of

    preprocessing = Preprocessing(size[1], size[0], fit, *(preprocessing_of(architecture) or ()))
    check_memory(architecture, preprocessing, optimisation.batch_size, device=pick_device(device), training=True)
    return new_model(architecture, preprocessing, classes, optimisation.seed)


def _loaded(model: TrainedModel, *, pretrained: bool, weights: Path | None) -> TrainedModel:
    """Load the weights to start from, if any; those of a sham remain a sham."""
    from dataclasses import replace

    from hkmap.engine.checkpoints import control_of
    from hkmap.networks.pretrained import load_pretrained
    from hkmap.networks.weights import load_weights

    if pretrained:
        load_pretrained(model.network, model.architecture, progress=sys.stderr.isatty())
    if weights is None:
        return model
    load_weights(model.network, weights, model.architecture)
    return replace(model, control=control_of(weights))
