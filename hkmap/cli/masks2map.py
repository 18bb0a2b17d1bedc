from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from hkmap.cli._drawing import Shapes, drawing_options, shape_options
from hkmap.cli._options import named_option
from hkmap.records import Record, frame_of, labels_of, masks_of, polygons_of

if TYPE_CHECKING:
    from hkmap.maps.check import Map

LEFT_OUT = ("MA", "OD")     # the paper uses haemorrhages, hard and soft exudates


@click.command("masks2map")
@named_option("--pooling", table="poolings", default="mean",
              help="A map pixel's value: the mean over its area, or the maximum over the image pixels it touches.")
@click.option("--threshold", type=click.IntRange(1, 65535), metavar="[1..65535]",
              help="Use what is at least so bright in a mask's file, and so JPEGs too.  [default: all but 0]")
@shape_options("--lesion", what="A mask to use",
               default="all but MA and OD; of IDRiD's that leaves the paper's HE, EX and SE")
@drawing_options
def masks2map(
    pooling: str, threshold: int | None, named: dict[str, float], size: tuple[int, int], normalise: str, missing: str,
    empty: str, **drawing: Any,
) -> None:
    """Draw a map of each record's lesion masks and polygons.

    A pixel of the image has the largest weight of the chosen masks that mark it, else 0; these are pooled to the map's
    size. Small marks are faint in a map of means: a microaneurysm has at most 0.002 at 14x14. --pooling max keeps it at
    its weight, and --normalise max makes the brightest pixel of every map 1.

    Masks must have the size of their image. A polygon counts as a mask with the name of its `label`, and each map pixel
    gets the exact share of its area that lies inside. A lesion that no record has is an error at the end of the stream.

    \b
    Example:
      hkmap idrid IDRiD/ | hkmap masks2map --lesion EX --lesion SE=0.5 --out maps/ > maps.jsonl
    """
    shapes = Shapes("--lesion", named, size, normalise, missing, empty, LEFT_OUT)
    chosen: dict[str, Any] = {"shapes": shapes, "pooling": pooling}
    parts = {"masks": partial(_masks, threshold=threshold, **chosen), "polygons": partial(_polygons, **chosen)}
    shapes.draw_records(parts, **drawing)


def _masks(record: Record, *, shapes: Shapes, pooling: str, threshold: int | None) -> Map:
    import numpy as np

    from hkmap.files.masks import read_fitting_mask
    from hkmap.maps.masks import masks_map
    from hkmap.stream.references import image_frame

    references, weights = shapes.chosen(masks_of(record), masks_of(record).values())
    if not references:
        return np.zeros(shapes.size, np.float32)
    frame = image_frame(record)
    masks = (read_fitting_mask(reference, frame, threshold) for reference in references)      # one at a time in memory
    return masks_map(masks, weights, shapes.size, pooling)


def _polygons(record: Record, *, shapes: Shapes, pooling: str) -> Map:
    from hkmap.maps.polygons import polygons_map

    polygons, weights = shapes.chosen(labels_of(record, "polygons"), polygons_of(record))
    return polygons_map(polygons, weights, frame_of(record), shapes.size, pooling)
