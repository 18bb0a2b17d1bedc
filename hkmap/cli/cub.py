"""`hkmap cub`: a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hkmap.cli._options import EXISTING, root_argument, split_option, table_options
from hkmap.cli._stream import emit, error_options
from hkmap.records import Rejects


@click.command("cub")
@root_argument
@split_option
@click.option("--bubbles", type=EXISTING, metavar="TABLE",
              help="Bubbles, one per row: CSV, or JSON Lines by the suffix .jsonl. Columns: image, x, y, radius, and "
                   "user and weight where they are; others are kept.")
@table_options
@click.option("--gaze", type=EXISTING, multiple=True, metavar="FILE",
              help="Fixations of one annotator, named by the file, in CUB-GHA's format; repeat it for more.")
@click.option("--parts", is_flag=True, help="Print the visible parts of parts/part_locs.txt as points.")
@error_options
def cub(
    root: Path, split: str, bubbles: Path | None, gaze: tuple[Path, ...], parts: bool, rejects: Rejects, **reading: Any
) -> None:
    """Print the images of Caltech-UCSD Birds as records: CUB-200-2011 or CUB-200-2010.

    ROOT is the folder with images.txt (2011) or lists/train.txt (2010). The id is the data set's number of the image
    (2011) or the file's stem (2010); the label, from 0, the class number less one (2011), or the place in
    lists/classes.txt or else among the class folders (2010). Where bounding_boxes.txt is there, its box is printed.

    A table names an image by id, file name, stem, or path below images/; a row about any other image is an error.
    Coordinates are continuous: in an image 500 pixels wide x runs from 0, the left edge, to 500. With --origin 1 one
    is taken off. With --frame, positions are scaled to the image, a radius by the geometric mean of the two scales.
    Fixations are points that weigh their milliseconds. An image that neither table nor gaze files mention is not
    annotated.

    \b
    Example:
      hkmap cub CUB_200_2011 --split train --bubbles bubbles.csv --columns image=file,radius=r
      hkmap cub CUB_200_2011 --gaze Fixation_run1.txt --gaze Fixation_run2.txt
    """
    from hkmap.sources.cub import cub_records
    from hkmap.sources.tables import Table

    if gaze and parts:
        raise click.UsageError("--gaze and --parts both fill the points of a record; choose one.")
    if bubbles is None and any(reading.values()):
        raise click.UsageError("--columns, --frame and --origin say how to read a table; name it by --bubbles.")
    table = Table(bubbles, **reading) if bubbles else None
    emit(cub_records(root, split=split, bubbles=table, gaze=gaze, parts=parts, rejects=rejects))
