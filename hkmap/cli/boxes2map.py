from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from hkmap.cli._drawing import Shapes, drawing_options, shape_options
from hkmap.cli._options import named_option
from hkmap.records import Record, boxes_of, frame_of, labels_of

if TYPE_CHECKING:
    from hkmap.maps.check import Map


@click.command("boxes2map")
@named_option("--edge", table="edges", default="filled", help="What a box of weight 1 looks like.")
@shape_options("--label", what="The label of boxes to use", default="every box")
@drawing_options
def boxes2map(edge: str, shapes: Shapes, **drawing: Any) -> None:
    """Draw a map of each record's boxes.

    Where boxes overlap, the largest value counts. A pixel of the map is the exact mean over the area that it covers,
    however small a box is. All lengths are in pixels of the image (the record's `size`); what lies outside is cut. A
    box goes by its `label`; a label that no record has is an error at the end of the stream. To draw boxes with masks
    and polygons in one map, use `hkmap masks2map --from masks,polygons,boxes`.

    \b
    Example:
      hkmap boxes2map boxes.jsonl --label head --label beak=0.5 --out maps/ \\
        > maps.jsonl
    """
    shapes.draw_records({"boxes": partial(_boxes, shapes=shapes, edge=edge)}, **drawing)


def _boxes(record: Record, *, shapes: Shapes, edge: str) -> Map:
    from hkmap.maps.boxes import boxes_map

    boxes, weights = shapes.chosen(labels_of(record, "boxes"), boxes_of(record))
    return boxes_map(boxes, weights, frame_of(record), shapes.size, edge=edge)
