from __future__ import annotations

import json
from pathlib import Path

import click

from hkmap import __version__
from hkmap.cli._options import ANYTHING, OUTPUT, named_option, overwrite_option, warn_of_control
from hkmap.cli._stream import print_result
from hkmap.records import text_of


@click.command("export")
@click.argument("run", type=ANYTHING, metavar="RUN")
@named_option("--to", table="exports", required=True, help="The kind of file.")
@click.option("--out", type=OUTPUT, required=True, metavar="FILE", help="The file to write.")
@overwrite_option
def export(run: Path, to: str, out: Path, overwrite: bool) -> None:
    """Write a trained network as a file for other programs.

    RUN is a run folder (its best network), or one checkpoint of it. The exported network takes images, float32
    (B, 3, height, width) of any number B, as RGB in [0, 1] from which the mean was subtracted and that were divided by
    the standard deviation. It gives logits (B, classes), without softmax, and attention (B, 1, h, w) in [0, 1]; a
    network without attention branch gives logits alone. The file's metadata say what the images need (input [height,
    width], fit, mean, std) and name the classes, each a JSON text: safetensors' metadata, ONNX's metadata_props,
    TorchScript's extra files.

    The file is read back and asked about random images; the result says by what it was checked, and the largest
    difference. ONNX needs pip install 'hkmap[onnx]'.

    \b
    Example:
      hkmap export run/ --to onnx --out birds.onnx
    """
    from hkmap.engine.folders import describe
    from hkmap.engine.runs import check_memory, load_model, pick_device
    from hkmap.networks.export import export as write

    model = load_model(run)
    check_memory(model.architecture, model.preprocessing, 3, device=pick_device("cpu"), training=False)
    warn_of_control(model)
    about = {"hkmap": __version__, **describe(model)}
    metadata = {name: json.dumps(value, ensure_ascii=False) for name, value in about.items()}
    found = write(
        model.network, model.architecture, model.preprocessing.size, to=to, path=out, metadata=metadata,
        overwrite=overwrite,
    )
    print_result({"export": text_of(out), **found})
