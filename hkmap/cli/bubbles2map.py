"""hkmap bubbles2map: bubbles or gaze points become maps."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import IO, TYPE_CHECKING, Any

import click

from hkmap.cli.stream import (
    MAP_SIZE,
    StreamCommand,
    emit_with_maps,
    error_options,
    map_output_options,
    records_argument,
)
from hkmap.records import Bubble, Record, Rejects, bubbles_of, passed_on

if TYPE_CHECKING:
    from hkmap.storage.mapfiles import MapWriter

MISSING = "expected an annotation; --missing pass lets such records go on without a map"
EMPTY = "expected a bubble; --empty zeros makes a map of zeros, --empty pass none"


class Bandwidth(click.ParamType):
    """scott, radius, fixed, or a sigma."""

    name = "bandwidth"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | float:
        if value in ("scott", "radius", "fixed"):
            return str(value)
        try:
            sigma = float(value)
        except ValueError:
            sigma = 0
        if not 0 < sigma < float("inf"):
            self.fail(f"{value!r}: expected scott, radius, fixed, or a number of image pixels above 0.", param, ctx)
        return sigma


@click.command("bubbles2map", cls=StreamCommand)
@records_argument
@click.option("--bandwidth", type=Bandwidth(), default="scott", show_default=True, metavar="scott|radius|fixed|NUMBER",
              help="The spread of the Gaussians, see above.")
@click.option("--size", type=MAP_SIZE, default="224", show_default=True, metavar="N|HEIGHTxWIDTH",
              help="Pixels of the map, which always covers the whole image.")
@click.option("--key", type=click.Choice(["bubbles", "points"]),
              help="The annotation to draw.  [default: bubbles where the record has them, else points]")
@click.option("--missing", type=click.Choice(["error", "pass"]), default="error", show_default=True,
              help="A record without the annotation (nobody was asked): an error, or passed on without a map.")
@click.option("--empty", type=click.Choice(["error", "pass", "zeros"]), default="error", show_default=True,
              help="A record with an empty list (nobody marked anything): an error, passed on without a map, "
                   "or a map of zeros.")
@map_output_options
@error_options
def bubbles2map(
    records: IO[bytes],
    bandwidth: str | float,
    size: tuple[int, int],
    key: str | None,
    missing: str,
    empty: str,
    writer: AbstractContextManager[MapWriter],
    rejects: Rejects,
) -> None:
    """Draw a map of where people looked from a record's bubbles, or its gaze points.

    A Gaussian is put on every bubble, with the bubble's weight (1 if it has none); the sum at the centres of the
    map's pixels, divided by its maximum, is the map. All lengths are pixels of the image (the record's `size`).

    \b
    --bandwidth says how wide the Gaussians are:
      scott    one covariance for all bubbles, by Scott's rule, as
               scipy.stats.gaussian_kde has it; the radius is not used.
               Fewer than 3 bubbles, or bubbles on one spot or one line
               (condition number from 1e6), are drawn as `fixed`.
      radius   sigma is half the bubble's radius.
      fixed    sigma is sqrt(width * height) / 14: one attention cell.
      NUMBER   sigma in pixels of the image.

    With radius, fixed and NUMBER a sigma is at least half a pixel of the map, so that no bubble is lost between the
    map's pixels. Bubbles of weight 0 count for nothing. If all bubbles lie far off the image, or all weights are 0,
    the record is an error. The records come out with `map`, a reference to what was saved.

    \b
    Example:
      hkmap cub CUB_200_2011 --bubbles bubbles.csv \\
        | hkmap bubbles2map --bandwidth scott --out maps/ > maps.jsonl
    """
    import numpy as np

    from hkmap.maps.kde import bubbles_map

    def draw(record: Record, maps: MapWriter) -> Record:
        bubbles = _annotation(record, key)
        if bubbles is None:
            return passed_on(record, missing, f"has no {key or 'bubbles and no points'}", MISSING)
        if not bubbles and empty != "zeros":
            return passed_on(record, empty, "its annotation is empty, nobody marked anything", EMPTY)
        values = bubbles_map(record, bubbles, size, bandwidth=bandwidth) if bubbles else np.zeros(size, np.float32)
        return {**record, "map": maps.save(record["id"], values)}

    emit_with_maps(records, writer, draw, rejects)


def _annotation(record: Record, key: str | None) -> list[Bubble] | None:
    names = (key,) if key else ("bubbles", "points")
    found = next((name for name in names if record.get(name) is not None), None)
    return None if found is None else bubbles_of(record, found)
