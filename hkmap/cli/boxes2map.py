"""hkmap boxes2map: boxes become maps."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import IO, TYPE_CHECKING

import click

from hkmap.cli._drawing import worker_options
from hkmap.cli._shapes import Choice, Shapes, emit_shapes, shape_options
from hkmap.cli._stream import StreamCommand, error_options, map_output_options, records_argument
from hkmap.parallel.cluster import Workers
from hkmap.records import Record, Rejects, boxes_of, frame_of, labels_of

if TYPE_CHECKING:
    from hkmap.files.maps import MapWriter
    from hkmap.maps.boxes import Edge
    from hkmap.maps.check import Map


@click.command("boxes2map", cls=StreamCommand)
@records_argument
@click.option("--edge", type=click.Choice(["filled", "soft", "gaussian"]), default="filled", show_default=True,
              help="What a box looks like, see above.")
@shape_options("--label", what="A label whose boxes to use", default="every box")
@map_output_options
@worker_options
@error_options
def boxes2map(
    records: IO[bytes],
    edge: Edge,
    shapes: Shapes,
    writer: AbstractContextManager[MapWriter],
    rejects: Rejects,
    workers: Workers,
) -> None:
    """Make a map of each record's boxes.

    Where boxes overlap, the largest value counts. A pixel of the map is the mean over the area that it covers, exact
    however small a box is. All lengths are pixels of the image (the record's `size`); what lies off it is cut away.

    \b
    --edge says what a box of weight 1 looks like:
      filled    1 inside, 0 outside.
      soft      along each axis 1 in the middle three quarters, from there
                a straight line to 0 an eighth of the side beyond the edge,
                so that the edge itself has 1/2; the axes are multiplied.
      gaussian  along each axis a Gaussian about the middle, sigma a
                quarter of the side (1 in the middle, 0.14 on the edge);
                the axes are multiplied.

    A box goes by its `label`. A label that no record has is an error at the end of the stream.

    \b
    Example:
      hkmap boxes2map boxes.jsonl --label head --label beak=0.5 --out maps/ \\
        > maps.jsonl
    """
    drawings = {"boxes": partial(_boxes, choice=shapes.choice, size=shapes.size, edge=edge)}
    emit_shapes(records, writer, shapes, drawings, rejects, workers)


def _boxes(record: Record, *, choice: Choice, size: tuple[int, int], edge: Edge) -> Map:
    from hkmap.maps.boxes import boxes_map

    weights = [choice.weight(label) for label in labels_of(record, "boxes")]
    chosen = [(box, weight) for box, weight in zip(boxes_of(record), weights, strict=True) if weight]
    boxes, weights = [box for box, _ in chosen], [weight for _, weight in chosen]
    return boxes_map(boxes, weights, frame_of(record), size, edge=edge)
