# ruff: noqa: N999  (the command is called so, and nothing imports it but `load`, by its name)
from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hkmap.cli._options import (
    EXISTING,
    OUTPUT,
    image_size_option,
    named_option,
    overwrite_option,
    sides,
    text_of,
    warn_of_control,
)
from hkmap.cli._stream import print_result
from hkmap.errors import RunError

if TYPE_CHECKING:
    from hkmap.networks.backbone import Architecture

Colour = tuple[float, float, float]


def _colour(low: float, high: float) -> Callable[[Any], Colour]:
    """Return what reads R,G,B, or one number for all three, each from ``low`` to ``high``."""

    def read(value: Any) -> Colour:
        try:
            numbers = [float(number) for number in str(value).split(",")]
            red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
        except ValueError:
            red = green = blue = math.nan
        if not all(low <= channel <= high for channel in (red, green, blue)):      # NaN is not
            said = f"expected R,G,B from {low:g} to {high:g}, such as 0.485,0.456,0.406, or one number for all three."
            raise click.BadParameter(f"{value!r:.80}: {said}")
        return red, green, blue

    return read


@click.command("import")
@click.argument("checkpoint", type=EXISTING)
@named_option("--arch", table="architectures",
              help="The network that CHECKPOINT is of, such as resnet50+abn.  [default: told by its tensors; not of "
                   "timm's]")
@click.option("--classes", metavar="FILE|SHARD|N",
              help="The names of the classes, one per line in UTF-8, label 0 first; or a shard that has them; or only "
                   "their number.  [default: their number as the tensors tell it]")
@named_option("--gate", table="gates", default="residual", help="How the map weights the features.")
@image_size_option
@named_option("--fit", table="fits", default="squash", help="How to bring an image to the input's shape.")
@click.option("--mean", type=_colour(0, 1), metavar="R,G,B",
              help="What was subtracted from images in [0, 1]. The ABN authors' networks for birds have 0.5, as --std "
                   "too.  [default: ImageNet's, or what timm states]")
@click.option("--std", type=_colour(1e-3, 100), metavar="R,G,B",
              help="What they were then divided by.  [default: as of --mean]")
@click.option("--out", type=OUTPUT, required=True, metavar="RUN", help="The run folder to create.")
@overwrite_option
def import_checkpoint(
    checkpoint: Path, arch: str | None, classes: str | None, gate: str, image_size: int | str, fit: str,
    mean: Colour | None, std: Colour | None, out: Path, overwrite: bool,
) -> None:
    """Make a run of CHECKPOINT, another program's weights, to evaluate, predict with and fine-tune.

    It is a file by torchvision, by timm or by the ABN authors, .safetensors included, also where a trainer has wrapped
    it. Each of its tensors must have a place in the network, and each part of the network its tensors; `hkmap train
    --weights` takes less. Prints one JSON object.

    \b
    Example:
      hkmap import abn_resnet50_cub.pt --classes train.h5 --mean 0.5 --std 0.5 --out run/
      hkmap eval test.h5 --from run/ --metric top1
    """
    from dataclasses import replace

    from hkmap.engine import folders
    from hkmap.engine.checkpoints import is_of_run
    from hkmap.engine.inputs import Preprocessing
    from hkmap.engine.runs import BEST, import_model, pick_device, save_model
    from hkmap.networks.pretrained import preprocessing_of

    if is_of_run(checkpoint):
        raise RunError(f"{checkpoint}: a run's own file; give it, or its run folder, to --from of the other commands")
    names = _class_names(classes)
    architecture = replace(_architecture(checkpoint, arch, None if names is None else len(names)), gate=gate)
    usual = preprocessing_of(architecture) or (Preprocessing.mean, Preprocessing.std)
    width, height = sides(image_size)
    preprocessing = Preprocessing(height, width, fit, mean or usual[0], std or usual[1])
    model = import_model(checkpoint, architecture, preprocessing, names)
    warn_of_control(model)
    info, described = folders.run_info(pick_device("cpu"), checkpoint=checkpoint), folders.describe(model)
    with folders.opened_run(out, {}, info, overwrite=overwrite, resume=False) as begun:
        folders.write_run(begun, {"command": "import", **described}, info)
        save_model(begun / BEST, model)
        folders.settle(begun, out)
    print_result({"run": text_of(out), **described, "classes": architecture.classes})


def _architecture(checkpoint: Path, arch: str | None, classes: int | None) -> Architecture:
    """Return the network that a checkpoint is of; for one of timm's --arch and --classes must name it."""
    from hkmap.networks.backbone import Architecture
    from hkmap.networks.weights import recognise

    if arch is None:
        return recognise(checkpoint)
    with suppress(RunError):      # timm's are not recognised, nor are other packages' where they are no ResNets
        found = recognise(checkpoint)
        if found.name == arch:
            return found
        classes = classes or found.classes
    if classes is None:
        raise click.UsageError(f"--arch {arch} does not tell the number of classes; give --classes too.")
    return Architecture(arch, classes)


def _class_names(given: str | None) -> list[str] | None:
    """Read the names of --classes, empty ones for a number."""
    from hkmap.engine.checkpoints import MOST_CLASSES
    from hkmap.shards.reader import ShardReader
    from hkmap.stream.packing import read_classes

    if given is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", given):
        if not 1 <= int(given) <= MOST_CLASSES:
            raise click.BadParameter(f"{given}: expected from 1 to {MOST_CLASSES:,} classes.", param_hint="'--classes'")
        return [""] * int(given)
    if not Path(given).is_file():
        raise click.BadParameter(f"{given}: no such file; expected a list, a shard or a number.",
                                 param_hint="'--classes'")
    return ShardReader(Path(given)).classes if given.endswith(".h5") else read_classes(Path(given))
