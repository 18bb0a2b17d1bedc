from __future__ import annotations

from pathlib import Path

import click

from hkmap.cli._options import FOLDER, root_argument
from hkmap.cli._stream import emit, error_options
from hkmap.records import Rejects


@click.command("folder")
@root_argument
@click.option("--masks", type=FOLDER, metavar="DIR",
              help="A folder of masks, with the paths of their images except the suffix and an ending such as _mask: "
                   "DIR/cat/007.png or DIR/cat/007_mask.png for ROOT/cat/007.jpg, or directly in DIR.")
@click.option("--mask-pattern", "pattern", metavar="PATTERN",
              help="How the masks are named, such as '{stem}_{lesion}.png'; or none, if no image is another's mask.")
@click.option("--unknown", type=FOLDER, metavar="DIR",
              help="Like --masks, masks of unknown areas; see `hkmap certainty`.")
@click.option("--dont-look", type=FOLDER, metavar="DIR",
              help="Like --masks, masks of areas not to look at; see `hkmap certainty`.")
@error_options
def folder(root: Path, pattern: str | None, rejects: Rejects, **masks: Path | None) -> None:
    """Print the images of a folder as records.

    Each folder in ROOT with an image in it or in its subfolders is a class; labels count from 0 in natural order (2
    before 10). Images directly in ROOT have no label. The id is the path below ROOT without the suffix. A warning names
    visible files that are not images, and masks without an image. An image without a mask counts as not annotated.

    Masks may lie beside their images: x_mask.png, x_mask_1.png and x_segmentation.png belong to x.png or x.jpg. Where
    they are named otherwise, --mask-pattern says how: {stem} is the image's name without suffix, {lesion} the name that
    the mask gets, * anything. Folders in the pattern begin at the image's own, .. is the one above; with --masks they
    lie anywhere in DIR. A second mask of a name is called mask#2; `hkmap masks2map` draws all of them. Files that look
    like masks of other images, and that nothing was said about, are an error.

    \b
    Example:
      hkmap folder busi/images --masks busi/masks | hkmap masks2map --out maps/
      hkmap folder Dataset_BUSI_with_GT/ | hkmap masks2map --size 14 --out maps/ | hkmap pack busi.h5
      hkmap folder images/ --masks truth/ --mask-pattern '{lesion}/{stem}_*.tif' > records.jsonl
      hkmap folder COVID/ --mask-pattern '../masks/{stem}.png' > records.jsonl
    """
    from hkmap.sources.folder import folder_records

    given = {key: path for key, path in masks.items() if path is not None}
    emit(folder_records(root, masks=given, pattern=pattern, rejects=rejects))
