"""hkmap boxes2map: boxes become maps."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from hkmap.cli._drawing import Drawing, Shapes, drawing_options, shape_options
from hkmap.cli._options import named_option
from hkmap.records import Record, boxes_of, frame_of, labels_of

if TYPE_CHECKING:
    from hkmap.maps.check import Map


@click.command("boxes2map")
@named_option("--edge", table="edges", default="filled", help="What a box of weight 1 looks like.")
@shape_options("--label", what="A label whose boxes to use", default="every box")
@drawing_options
def boxes2map(edge: str, shapes: Shapes, drawing: Drawing) -> None:
    """Make a map of each record's boxes.

    Where boxes overlap, the largest value counts. A pixel of the map is the mean over the area that it covers, exact
    however small a box is. All lengths are pixels of the image (the record's `size`); what lies off it is cut away.

    A box goes by its `label`. A label that no record has is an error at the end of the stream.

    \b
    Example:
      hkmap boxes2map boxes.jsonl --label head --label beak=0.5 --out maps/ \\
        > maps.jsonl
    """
    shapes.emit(drawing, {"boxes": partial(_boxes, shapes=shapes, edge=edge)})


def _boxes(record: Record, *, shapes: Shapes, edge: str) -> Map:
    from hkmap.maps.boxes import boxes_map

    weights = [shapes.weight(label) for label in labels_of(record, "boxes")]
    chosen = [(box, weight) for box, weight in zip(boxes_of(record), weights, strict=True) if weight]
    boxes, weights = [box for box, _ in chosen], [weight for _, weight in chosen]
    return boxes_map(boxes, weights, frame_of(record), shapes.size, edge=edge)
