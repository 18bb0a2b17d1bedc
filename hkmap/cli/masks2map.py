"""hkmap masks2map: lesion masks become maps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from hkmap.cli.stream import (
    MAP_SIZE,
    StreamCommand,
    emit_when_saved,
    error_options,
    map_output_options,
    read,
    records_argument,
)
from hkmap.errors import RecordError
from hkmap.records import Record, Rejects, each, masks_of, passed_on

if TYPE_CHECKING:
    from hkmap.maps.check import Map
    from hkmap.maps.masks import Pooling
    from hkmap.maps.resize import Normalisation
    from hkmap.storage.mapfiles import MapWriter

LEFT_OUT = ("MA", "OD")     # the paper takes haemorrhages, hard and soft exudates
MISSING = "expected an object of masks; --missing pass lets such records go on without a map"
EMPTY = "expected a lesion; --empty zeros makes a map of zeros, --empty pass none"


class Lesion(click.ParamType):
    """NAME or NAME=WEIGHT."""

    name = "lesion"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        name, equals, number = str(value).partition("=")
        try:
            weight = float(number) if equals else 1.0
        except ValueError:
            weight = 0.0
        if not name or not 0 < weight <= 1:
            self.fail(f"{value!r}: expected NAME or NAME=WEIGHT with a weight above 0 and up to 1.", param, ctx)
        return name, weight


@click.command("masks2map", cls=StreamCommand)
@records_argument
@click.option("--lesion", "lesions", type=Lesion(), multiple=True, metavar="NAME[=WEIGHT]",
              help="A mask to use and its weight, above 0 and up to 1 (the default); repeatable.  [default: every mask "
                   "of the record but MA and OD, which of IDRiD's leaves the paper's HE, EX and SE]")
@click.option("--pooling", type=click.Choice(["mean", "max"]), default="mean", show_default=True,
              help="A map pixel's value: the mean over the area that it covers, or the largest image pixel that it "
                   "touches.")
@click.option("--size", type=MAP_SIZE, default="224", show_default=True, metavar="N|HEIGHTxWIDTH",
              help="Pixels of the map, which always covers the whole image.")
@click.option("--normalise", type=click.Choice(["none", "max"]), default="none", show_default=True,
              help="max: divide each map by its maximum (a map of zeros stays one).")
@click.option("--missing", type=click.Choice(["error", "pass"]), default="error", show_default=True,
              help="A record without `masks` (not annotated): an error, or passed on without a map.")
@click.option("--empty", type=click.Choice(["zeros", "pass", "error"]), default="zeros", show_default=True,
              help="A record with none of the chosen masks, or only black ones (annotated, nothing there): a map of "
                   "zeros, passed on without a map, or an error.")
@map_output_options
@error_options
def masks2map(
    records: IO[bytes],
    lesions: tuple[tuple[str, float], ...],
    pooling: Pooling,
    size: tuple[int, int],
    normalise: Normalisation,
    missing: str,
    empty: str,
    writer: AbstractContextManager[MapWriter],
    rejects: Rejects,
) -> None:
    """Make a map of each record's lesion masks.

    A pixel of the image has the largest weight of the chosen masks that mark it, 0 where none does; these are
    pooled to the map's size in floating point, so that a lesion of one pixel still shows. What is small in the image
    is faint in a map of means: a microaneurysm has at most 0.002 at 14x14. --pooling max keeps it at its weight, and
    --normalise max makes the brightest pixel of every map 1.

    Masks must have the size of their image. A lesion that no record has is an error at the end of the stream.

    \b
    Example:
      hkmap idrid IDRiD/ | hkmap masks2map --lesion EX --lesion SE=0.5 --out maps/ > maps.jsonl
    """
    import numpy as np

    from hkmap.maps.resize import normalise_map

    weights, seen = _weights(lesions), set[str]()

    def draw(record: Record, maps: MapWriter) -> Record:
        if record.get("masks") is None:
            return passed_on(record, missing, "has no masks", MISSING)
        masks = masks_of(record)
        seen.update(masks)
        chosen = _chosen(masks, weights)
        values = _pooled(record, chosen, size, pooling) if chosen else np.zeros(size, np.float32)
        if empty != "zeros" and not values.any():
            return passed_on(record, empty, f"nothing is marked by its masks ({', '.join(masks) or 'none'})", EMPTY)
        return {**record, "map": maps.save(record["id"], normalise_map(values, normalise))}

    def drawn(maps: MapWriter) -> Iterator[Record]:
        yield from each(read(records, rejects), lambda record: draw(record, maps), rejects)
        _refuse_unseen(weights, seen)

    emit_when_saved(writer, drawn)


def _weights(lesions: tuple[tuple[str, float], ...]) -> dict[str, float]:
    weights = dict(lesions)
    if len(weights) < len(lesions):
        raise click.UsageError(f"--lesion: {', '.join(name for name, _ in lesions)}; expected each name once.")
    return weights


def _chosen(masks: dict[str, str], weights: dict[str, float]) -> list[tuple[str, float]]:
    """Return the paths of the chosen masks and their weights."""
    if not weights:
        return [(path, 1.0) for name, path in masks.items() if name not in LEFT_OUT]
    return [(masks[name], weight) for name, weight in weights.items() if name in masks]


def _pooled(record: Record, chosen: list[tuple[str, float]], size: tuple[int, int], pooling: Pooling) -> Map:
    from hkmap.maps.masks import masks_map
    from hkmap.storage.masks import image_frame, read_fitting_mask

    frame = image_frame(record)
    masks = (read_fitting_mask(Path(path), frame) for path, _ in chosen)      # one at a time in memory
    return masks_map(masks, [weight for _, weight in chosen], size, pooling)


def _refuse_unseen(weights: dict[str, float], seen: set[str]) -> None:
    if unseen := sorted(set(weights) - seen):
        known = ", ".join(sorted(seen)) or "none"
        raise RecordError(f"--lesion {', '.join(unseen)}: no record has such a mask; their masks are {known}")
