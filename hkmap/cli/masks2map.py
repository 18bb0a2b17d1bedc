from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from hkmap.choices import Choices
from hkmap.cli._drawing import Shapes, drawing_options, shape_options
from hkmap.cli._options import named_option
from hkmap.records import Record, boxes_of, frame_of, labels_of, masks_of, polygons_of

if TYPE_CHECKING:
    from hkmap.maps.check import Map

Corners = list[tuple[float, float]]

KINDS = Choices("kind of annotation", {"masks": "masks", "polygons": "polygons", "boxes": "boxes"})


def _kinds(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """Read KIND,..., each once; they come in our order."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)
    for name in names:
        if name not in KINDS:
            raise click.BadParameter(f"{KINDS.unknown(name)}.")
    return tuple(kind for kind in KINDS if kind in names)


@click.command("masks2map")
@click.option("--from", "kinds", type=_kinds, metavar="KIND,...", default="masks,polygons",
              help="What to draw of masks, polygons and boxes, separated by commas; if a record has several, the "
                   "largest value counts.")
@named_option("--pooling", table="poolings", default="mean",
              help="A map pixel's value: the mean over its area, or the maximum over the image pixels it touches.")
@click.option("--threshold", type=click.IntRange(1, 65535), metavar="[1..65535]",
              help="Use what is at least so bright in a mask's file, and so JPEGs too.  [default: all but 0]")
@shape_options("--lesion", what="A mask to use", default="all")
@drawing_options
def masks2map(kinds: tuple[str, ...], pooling: str, threshold: int | None, shapes: Shapes, **drawing: Any) -> None:
    """Draw a map of each record's lesion masks and polygons, and of its boxes if you say so.

    A pixel of the image has the largest weight of the chosen masks that mark it, else 0; these are pooled to the map's
    size. Small marks are faint in a map of means: a microaneurysm has at most 0.002 at 14x14. --pooling max keeps it at
    its weight, and --normalise max makes the brightest pixel of every map 1.

    Masks must have the size of their image. A polygon (or box) counts as a mask with the name of its `label`, and each
    map pixel gets the exact share of its area that lies inside; a ring within a ring is a hole. A lesion that no record
    has is an error at the end of the stream; a warning counts records whose marks --lesion leaves out altogether.

    With --per-annotator the annotator of a polygon or box is its `user`, that of a mask the value of its name in
    `mask_users`, {NAME: USER}; a mask NAME@USER then counts as NAME.

    \b
    Example:
      hkmap idrid IDRiD/ | hkmap masks2map --lesion EX --lesion SE=0.5 --out maps/ > maps.jsonl
      hkmap annotations cvat.xml --images photos/ \\
        | hkmap masks2map --from polygons,boxes --per-annotator --out maps/ > maps.jsonl
    """
    parts: dict[str, Callable[..., Map]] = {
        "masks": partial(_masks, threshold=threshold),
        "polygons": partial(_outlines, key="polygons", outlines_of=polygons_of),
        "boxes": partial(_outlines, key="boxes", outlines_of=_box_outlines),
    }
    shapes.draw_records({kind: partial(parts[kind], shapes=shapes, pooling=pooling) for kind in kinds}, **drawing)


def _masks(record: Record, *, shapes: Shapes, pooling: str, threshold: int | None) -> Map:
    import numpy as np

    from hkmap.files.masks import read_fitting_mask
    from hkmap.maps.masks import masks_map
    from hkmap.stream.references import image_frame

    references, weights = shapes.chosen(labels_of(record, "masks"), masks_of(record).values())
    if not references:
        return np.zeros(shapes.size, np.float32)
    frame = image_frame(record)
    masks = (read_fitting_mask(reference, frame, threshold) for reference in references)      # one at a time in memory
    return masks_map(masks, weights, shapes.size, pooling)


def _outlines(
    record: Record, *, key: str, outlines_of: Callable[[Record], list[Corners]], shapes: Shapes, pooling: str
) -> Map:
    from hkmap.maps.polygons import polygons_map

    polygons, weights = shapes.chosen(labels_of(record, key), outlines_of(record))
    return polygons_map(polygons, weights, frame_of(record), shapes.size, pooling)


def _box_outlines(record: Record) -> list[Corners]:
    return [
        [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
        for left, top, width, height in boxes_of(record)
    ]
