"""`hkmap folder`: a source."""

from __future__ import annotations

from pathlib import Path

import click

from hkmap.cli._options import FOLDER, root_argument
from hkmap.cli._stream import emit, error_options
from hkmap.records import Rejects


@click.command("folder")
@root_argument
@click.option("--masks", type=FOLDER, metavar="DIR",
              help="Masks under the same paths as their images but for the suffix: DIR/cat/007.png for "
                   "ROOT/cat/007.jpg.")
@click.option("--unknown", type=FOLDER, metavar="DIR",
              help="Likewise, masks of where nobody knows; see `hkmap certainty`.")
@click.option("--dont-look", type=FOLDER, metavar="DIR",
              help="Likewise, masks of where one should not look; see `hkmap certainty`.")
@error_options
def folder(root: Path, rejects: Rejects, **masks: Path | None) -> None:
    """Print the images of a folder as records.

    Each folder in ROOT that holds an image, itself or further down, is a class; labels count from 0 in natural
    order (2 before 10). Images directly in ROOT have no label. The id is the path below ROOT without the
    suffix. Hidden files are passed over; other files that are no images are named in a warning, and so are
    masks without an image. An image without a mask is printed without masks: not annotated.

    \b
    Example:
      hkmap folder busi/images --masks busi/masks | hkmap masks2map --out maps/
    """
    from hkmap.sources.folder import folder_records

    given = {key: path for key, path in masks.items() if path is not None}
    emit(folder_records(root, masks=given, rejects=rejects))
