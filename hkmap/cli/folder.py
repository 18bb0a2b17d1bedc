from __future__ import annotations

from pathlib import Path

import click

from hkmap.cli._options import FOLDER, root_argument
from hkmap.cli._stream import emit, error_options
from hkmap.records import Rejects


@click.command("folder")
@root_argument
@click.option("--masks", type=FOLDER, metavar="DIR",
              help="Masks with the paths of their images except the suffix: DIR/cat/007.png for ROOT/cat/007.jpg.")
@click.option("--unknown", type=FOLDER, metavar="DIR",
              help="Likewise, masks of unknown areas; see `hkmap certainty`.")
@click.option("--dont-look", type=FOLDER, metavar="DIR",
              help="Likewise, masks of areas not to look at; see `hkmap certainty`.")
@error_options
def folder(root: Path, rejects: Rejects, **masks: Path | None) -> None:
    """Print the images of a folder as records.

    Each folder in ROOT with an image in it or in its subfolders is a class; labels count from 0 in natural order (2
    before 10). Images directly in ROOT have no label. The id is the path below ROOT without the suffix. A warning names
    visible files that are not images, and masks without an image. An image without a mask counts as not annotated.

    \b
    Example:
      hkmap folder busi/images --masks busi/masks | hkmap masks2map --out maps/
    """
    from hkmap.sources.folder import folder_records

    given = {key: path for key, path in masks.items() if path is not None}
    emit(folder_records(root, masks=given, rejects=rejects))
