from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hkmap.cli._options import EXISTING, classes_option, root_argument, split_option, table_options
from hkmap.cli._stream import emit, error_options
from hkmap.records import Rejects


@click.command("cub")
@root_argument
@split_option
@click.option("--bubbles", type=EXISTING, metavar="TABLE",
              help="Bubbles, one per row: CSV, or JSON Lines (.jsonl). Columns: image, x, y, radius, [user, weight].")
@table_options
@click.option("--gaze", type=EXISTING, multiple=True, metavar="FILE",
              help="Fixations of one annotator in CUB-GHA's format, named after the file; repeatable.")
@click.option("--parts", is_flag=True, help="Print the visible parts of parts/part_locs.txt as points.")
@classes_option
@error_options
def cub(
    root: Path, split: str, bubbles: Path | None, gaze: tuple[Path, ...], parts: bool, present: bool, rejects: Rejects,
    **reading: Any,
) -> None:
    """Print the images of Caltech-UCSD Birds as records: CUB-200-2011 or CUB-200-2010.

    ROOT is the folder with images.txt (2011) or lists/train.txt (2010). The id is the data set's image number (2011) or
    the file's stem (2010); the label, from 0, is the class number minus one (2011), or the position in
    lists/classes.txt or else among the class folders (2010). Of a release unpacked in part, class folders that are
    absent are left out with a warning. Boxes come from bounding_boxes.txt, if it exists.

    A table names an image by id, file name, stem, or path below images/; a row about another image is an error. x runs
    from 0, the left edge, to the width in pixels; --origin 1 subtracts 1. With --frame, positions are scaled to the
    image, a radius by the geometric mean of both scales. Fixations are points that weigh their milliseconds. An image
    that neither table nor gaze files name is not annotated.

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
        raise click.UsageError("--columns, --frame and --origin say how to read a table; name it with --bubbles.")
    table = Table(bubbles, **reading) if bubbles else None
    emit(cub_records(root, split=split, bubbles=table, gaze=gaze, parts=parts, present=present, rejects=rejects))
