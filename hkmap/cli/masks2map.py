"""hkmap masks2map: lesion masks and polygons become maps."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import IO, TYPE_CHECKING

import click

from hkmap.cli._drawing import worker_options
from hkmap.cli._shapes import Choice, Shapes, emit_shapes, shape_options
from hkmap.cli._stream import StreamCommand, error_options, map_output_options, records_argument
from hkmap.parallel.cluster import Workers
from hkmap.records import Record, Rejects, frame_of, labels_of, masks_of, polygons_of

if TYPE_CHECKING:
    from hkmap.files.maps import MapWriter
    from hkmap.maps.check import Map
    from hkmap.maps.masks import Pooling

LEFT_OUT = ("MA", "OD")     # the paper takes haemorrhages, hard and soft exudates


@click.command("masks2map", cls=StreamCommand)
@records_argument
@click.option("--pooling", type=click.Choice(["mean", "max"]), default="mean", show_default=True,
              help="A map pixel's value: the mean over the area that it covers, or the largest image pixel that it "
                   "touches.")
@shape_options("--lesion", what="A mask to use", left_out=LEFT_OUT,
               default="every mask of the record but MA and OD, which of IDRiD's leaves the paper's HE, EX and SE")
@map_output_options
@worker_options
@error_options
def masks2map(
    records: IO[bytes],
    pooling: Pooling,
    shapes: Shapes,
    writer: AbstractContextManager[MapWriter],
    rejects: Rejects,
    workers: Workers,
) -> None:
    """Make a map of each record's lesion masks and polygons.

    A pixel of the image has the largest weight of the chosen masks that mark it, 0 where none does; these are
    pooled to the map's size in floating point, so that a lesion of one pixel still shows. What is small in the image
    is faint in a map of means: a microaneurysm has at most 0.002 at 14x14. --pooling max keeps it at its weight, and
    --normalise max makes the brightest pixel of every map 1.

    Masks must have the size of their image. A polygon counts like a mask that is called after the polygon's `label`;
    its corners, in pixels of the image, need not be whole numbers, and each map pixel gets the exact share of its area
    that lies inside. A lesion that no record has is an error at the end of the stream.

    \b
    Example:
      hkmap idrid IDRiD/ | hkmap masks2map --lesion EX --lesion SE=0.5 --out maps/ > maps.jsonl
    """
    drawings = {
        key: partial(draw, choice=shapes.choice, size=shapes.size, pooling=pooling)
        for key, draw in (("masks", _masks), ("polygons", _polygons))
    }
    emit_shapes(records, writer, shapes, drawings, rejects, workers)


def _masks(record: Record, *, choice: Choice, size: tuple[int, int], pooling: Pooling) -> Map:
    import numpy as np

    from hkmap.files.masks import read_fitting_mask
    from hkmap.maps.masks import masks_map
    from hkmap.stream.references import image_frame

    weights = {name: choice.weight(name) for name in masks_of(record)}
    chosen = [(reference, weights[name]) for name, reference in masks_of(record).items() if weights[name]]
    if not chosen:
        return np.zeros(size, np.float32)
    frame = image_frame(record)
    masks = (read_fitting_mask(reference, frame) for reference, _ in chosen)      # one at a time in memory
    return masks_map(masks, [weight for _, weight in chosen], size, pooling)


def _polygons(record: Record, *, choice: Choice, size: tuple[int, int], pooling: Pooling) -> Map:
    from hkmap.maps.polygons import polygons_map

    weights = [choice.weight(label) for label in labels_of(record, "polygons")]
    chosen = [(polygon, weight) for polygon, weight in zip(polygons_of(record), weights, strict=True) if weight]
    polygons, weights = [polygon for polygon, _ in chosen], [weight for _, weight in chosen]
    return polygons_map(polygons, weights, frame_of(record), size, pooling)
