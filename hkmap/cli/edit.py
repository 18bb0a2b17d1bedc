from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from hkmap.cli._drawing import draw_records, drawing_options
from hkmap.cli._options import EXISTING, size_option


@click.command("edit")
@click.option("--script", type=EXISTING, required=True, metavar="FILE.jsonl",
              help="The strokes of each record, one JSON object per line.")
@size_option("--size", default="14", help="The size of a map that starts from zeros.")
@drawing_options
def edit(script: Path, size: tuple[int, int], **drawing: Any) -> None:
    """Edit maps by strokes, such as a person paints with a brush, without loss.

    A line of --script is {"id": ID, "strokes": [STROKE, ...]}. Strokes start from the record's map, or from zeros where
    it has none; "start" names another key, such as attention, or empty. "edited_by" and "edited_at" are passed on, and
    the record says where its strokes are. A record without strokes passes unchanged.

    A STROKE is {"tool": "add", "points": [[x, y], ...], "radius": R}, with "strength" and "softness" from 0 to 1: a
    brush along points in pixels of the image. The tools are in `hkmap list tools`. With "outline": true the points are
    a polygon to fill; without points the whole map is meant. The map itself is never enlarged: a cell that no stroke
    touches keeps its value exactly, and a stroke smaller than a cell changes it by its area.

    \b
    Example:
      hkmap edit records.jsonl --script strokes.jsonl --out edited/ | hkmap pack edited.h5
    """
    from hkmap.stream.editing import edited, read_script, watched

    edits = read_script(script)
    draw_records(
        partial(edited, edits=edits, size=size), reads_files=True, watch=partial(watched, edits=edits, script=script),
        **drawing,
    )
