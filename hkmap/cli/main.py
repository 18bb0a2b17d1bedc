"""The group `hkmap` and the list of its commands."""

from __future__ import annotations

import logging
import os

import click

from hkmap import __version__
from hkmap.cli._stream import StreamGroup
from hkmap.cli.agreement import agreement
from hkmap.cli.annotations import print_annotations
from hkmap.cli.boxes2map import boxes2map
from hkmap.cli.bubbles2map import bubbles2map
from hkmap.cli.certainty import certainty
from hkmap.cli.crop import crop
from hkmap.cli.cub import cub
from hkmap.cli.dogs import dogs
from hkmap.cli.eval import evaluate
from hkmap.cli.finetune import finetune
from hkmap.cli.folder import folder
from hkmap.cli.idrid import idrid
from hkmap.cli.info import info
from hkmap.cli.join import join
from hkmap.cli.masks2map import masks2map
from hkmap.cli.merge import merge
from hkmap.cli.pack import pack
from hkmap.cli.points2map import points2map
from hkmap.cli.predict import predict
from hkmap.cli.resize import resize
from hkmap.cli.sample import sample
from hkmap.cli.show import show
from hkmap.cli.split import split
from hkmap.cli.train import train
from hkmap.cli.unpack import unpack
from hkmap.cli.validate import validate
from hkmap.cli.verify import verify
from hkmap.cli.webdataset import webdataset


class _StderrHandler(logging.Handler):
    """Warnings for people, on whatever stderr is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"{record.levelname.lower()}: {record.getMessage()}", err=True)


@click.group(cls=StreamGroup, context_settings={"auto_envvar_prefix": "HKMAP", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hkmap")
def hkmap() -> None:
    """Turn what people know about where to look into attention maps, and train networks that look there.

    Commands pass records, one JSON object a line: sources print them, filters change them, sinks keep them.

    \b
    Example:
      set -o pipefail
      hkmap cub CUB_200_2011 --bubbles bubbles.csv --split train \\
        | hkmap bubbles2map --out maps/ | hkmap resize --size 14 --out maps14/ \\
        | hkmap pack train.h5
      hkmap train train.h5 --arch resnet18+abn --out run/
      hkmap finetune train.h5 --from run/ --gamma 1 --out run-ft/
      hkmap eval test.h5 --from run-ft/ --metric top1 --metric insertion
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")      # what it says of a damaged image, our sentence says better
    logger = logging.getLogger("hkmap")
    logger.handlers[:] = [_StderrHandler()]
    logger.setLevel(logging.WARNING)
    logger.propagate = False


COMMANDS: tuple[click.Command, ...] = (
    cub, dogs, folder, idrid, print_annotations, webdataset,
    join,
    bubbles2map, points2map, boxes2map, masks2map, certainty, crop, resize, sample, predict,
    pack, unpack, merge, split, info, verify, show, agreement, validate,
    train, finetune, evaluate,
)

for command in COMMANDS:
    hkmap.add_command(command)
