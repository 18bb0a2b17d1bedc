# ruff: noqa: N999  (the command is called so, and nothing imports it but `load`, by its name)
from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hkmap.cli._options import (
    EXISTING,
    OUTPUT,
    Colour,
    class_names,
    class_names_option,
    named_option,
    overwrite_option,
    preprocessing_options,
    sides,
    warn_of_control,
)
from hkmap.cli._stream import print_result
from hkmap.errors import RunError
from hkmap.records import text_of

if TYPE_CHECKING:
    from hkmap.networks.backbone import Architecture


@click.command("import")
@click.argument("checkpoint", type=EXISTING)
@named_option("--arch", table="architectures",
              help="The network that CHECKPOINT is of, such as resnet50+abn.  [default: told by its tensors; not of "
                   "timm's]")
@class_names_option("as the tensors tell it")
@named_option("--gate", table="gates", default="residual", help="How the map weights the features.")
@preprocessing_options("ImageNet's, or what timm states")
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
    names = class_names(classes)
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
