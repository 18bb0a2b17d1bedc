from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hkmap.cli._options import FOLDER, absolute_option, format_options
from hkmap.cli._stream import emit, error_options
from hkmap.records import Rejects

if TYPE_CHECKING:
    from hkmap.sources.formats import Format


@click.command("annotations")
@click.option("--images", type=FOLDER, required=True, metavar="DIR",
              help="The folder of the images, which may be in subfolders.")
@format_options
@absolute_option
@error_options
def print_annotations(path: Path, images: Path, source: Format, rejects: Rejects) -> None:
    """Print the images that a file of annotations names as records, with their annotations.

    PATH is a file or folder in a format that `hkmap list formats` names. A table (CSV or JSON Lines) holds points
    (columns image, x, y), bubbles (also radius) or boxes (also width, height; or instead image, xmin, ymin, xmax,
    ymax), and optionally user, weight and label.

    An image is found by the path, file name or stem in the file; the id is its path below DIR without the suffix.
    Coordinates are in pixels of the image, the first from 0 to 1. A missing, ambiguous or resized image is an error.

    \b
    Example:
      hkmap annotations instances.json --images val2017/ | hkmap show --out sheet.png
      hkmap annotations VOC2012/ --images VOC2012/JPEGImages/ | hkmap masks2map --out maps/
    """
    from hkmap.sources.annotations import annotation_records

    emit(annotation_records(path, images, source=source, rejects=rejects))
