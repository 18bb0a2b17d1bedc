"""hkmap bubbles2map: bubbles or gaze points become maps."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from hkmap.choices import table
from hkmap.cli._drawing import NO_ANNOTATION, Drawing, drawing_options, empty_option
from hkmap.cli._options import Named, missing_option, normalise_option, size_option
from hkmap.records import Bubble, Record, bubbles_of, passed_on, without_maps

if TYPE_CHECKING:
    from hkmap.files.maps import Drawn
    from hkmap.maps.check import Map

EMPTY = "expected a bubble; --empty zeros draws a map of zeros, --empty pass draws none"


class Bandwidth(Named):
    """The name of a bandwidth, or a sigma."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | float:
        choices = table(self.table)
        if value in choices:
            return str(value)
        try:
            sigma = float(value)
        except ValueError:
            sigma = 0.0
        if not 0 < sigma < float("inf"):
            self.fail(f"{choices.unknown(value)}, or a number of image pixels above 0.", param, ctx)
        return sigma

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"{super().get_metavar(param, ctx)}|NUMBER"


@click.command("bubbles2map")
@click.option("--key", type=click.Choice(["bubbles", "points"]),
              help="What to draw of a record.  [default: its bubbles, or its points where it has no bubbles]")
@click.option("--bandwidth", type=Bandwidth("bandwidths"), default="scott",
              help="The spread of the Gaussians: a rule, or sigma in pixels of the image. See `hkmap list bandwidths`.")
@click.option("--equal-users", is_flag=True,
              help="Divide the weights of each `user` by their sum, so that each has an equal say however much they "
                   "marked. What has no user counts as one user's.")
@normalise_option("max")
@click.option("--per-annotator", is_flag=True,
              help="Save the map of each `user` alone beside the joint one, drawn by the same rules, and name them "
                   "under `annotator_maps`; in a folder, ID@USER.npy. What has no user is then an error.")
@size_option("--size", default="224", help="The map's sides; it covers the whole image.")
@missing_option("the annotation (nobody was asked)", "without a map")
@empty_option("error", "A record with an empty list (nobody marked anything)")
@drawing_options
def bubbles2map(
    drawing: Drawing, key: str | None, size: tuple[int, int], per_annotator: bool, missing: str, empty: str, **how: Any
) -> None:
    """Draw a map of where people looked from a record's bubbles, or from its gaze points where it has no bubbles.

    A Gaussian is put on every bubble or point, with its `weight` (1 if it has none; of a fixation the duration); the
    sum at the centres of the map's pixels, divided by its maximum, is the map. With --normalise none it is the sum,
    where each Gaussian peaks at its weight; a map that passes 1 is then an error. All lengths are pixels of the image
    (the record's `size`).

    scott and cv draw fewer than 3 bubbles, or bubbles on one spot, as fixed does; scott also those on one line. For
    fixations a sigma of one degree of the visual field is usual. With all but scott it is at least half a pixel of the
    map, so that no bubble is lost between the map's pixels. Bubbles of weight 0 count for nothing. If all bubbles lie
    far off the image, or all weights are 0, the record is an error.

    \b
    Example:
      hkmap cub CUB_200_2011 --bubbles bubbles.csv \\
        | hkmap bubbles2map --bandwidth scott --out maps/ > maps.jsonl
      hkmap bubbles2map gaze.jsonl --key points --bandwidth 24 --equal-users --out maps/ > maps.jsonl
    """
    keys = (key,) if key else ("bubbles", "points")
    draw = partial(
        _draw, keys=keys, size=size, per_annotator=per_annotator, missing=missing, empty=empty, how=how
    )
    drawing.emit(draw, reads_files=False)


def _draw(
    record: Record, *, keys: tuple[str, ...], size: tuple[int, int], per_annotator: bool, missing: str, empty: str,
    how: dict[str, Any],
) -> Drawn | Record:
    from hkmap.files.maps import Drawn
    from hkmap.maps.annotators import maps_by_user

    key = next((key for key in keys if record.get(key) is not None), None)
    if key is None:
        return passed_on(record, missing, f"has no {' and no '.join(keys)}", NO_ANNOTATION)
    bubbles = bubbles_of(record, key)
    if not bubbles and empty != "zeros":
        return passed_on(record, empty, "its annotation is empty, nobody marked anything", EMPTY)
    draw = partial(_map, record, size=size, how=how)
    people = maps_by_user(record, bubbles, draw) if per_annotator else None
    return Drawn(without_maps(record), draw(bubbles), annotators=people)


def _map(record: Record, bubbles: list[Bubble], *, size: tuple[int, int], how: dict[str, Any]) -> Map:
    import numpy as np

    from hkmap.maps.kde import bubbles_map

    return bubbles_map(record, bubbles, size, **how) if bubbles else np.zeros(size, np.float32)
