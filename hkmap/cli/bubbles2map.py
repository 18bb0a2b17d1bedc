from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from hkmap.choices import table
from hkmap.cli._drawing import NO_ANNOTATION, draw_records, drawing_options, empty_option, per_annotator_option
from hkmap.cli._options import Named, missing_option, normalise_option, size_option
from hkmap.records import Record, bubbles_of, passed_on, without_maps

if TYPE_CHECKING:
    from hkmap.files.maps import Drawn
    from hkmap.maps.check import Map

WIDEST = 1e6      # pixels of a sigma: each map is of one value long before
EMPTY = "expected a bubble; --empty zeros draws a map of zeros, --empty pass draws none"


class Bandwidth(Named):
    """The name of a bandwidth, or a sigma."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | float:
        choices = table(self.table)
        if value in choices:
            return str(value)
        with suppress(ValueError):
            if 0 < (sigma := float(value)) <= WIDEST:
                return sigma
        expected = f"{choices.unknown(value)}, or a number of image pixels above 0, up to a million."
        raise click.BadParameter(expected, ctx, param)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"{super().get_metavar(param, ctx)}|NUMBER"


@click.command("bubbles2map")
@click.option("--key", type=click.Choice(["bubbles", "points"]),
              help="What to draw.  [default: a record's bubbles, or its points if it has no bubbles]")
@click.option("--bandwidth", type=Bandwidth("bandwidths"), default="scott",
              help="The spread of the Gaussians: a rule, or sigma in pixels of the image, up to a million. See `hkmap "
                   "list bandwidths`.")
@click.option("--equal-users", is_flag=True,
              help="Let all users count equally: divide the weights of each `user` by their sum. Marks without a user "
                   "count as one user's.")
@normalise_option("max")
@per_annotator_option
@size_option("--size", default="224", help="The map's size; it covers the whole image.")
@missing_option("the annotation (not annotated)", "without a map")
@empty_option("error", "a record with an empty list (nobody marked anything)")
@drawing_options
def bubbles2map(
    key: str | None, bandwidth: str | float, equal_users: bool, normalise: str, per_annotator: bool,
    size: tuple[int, int], missing: str, empty: str, **drawing: Any,
) -> None:
    """Draw a map of where people looked from a record's bubbles, or from its gaze points if it has no bubbles.

    The map is a sum of Gaussians, one per bubble or point, times its `weight` (default 1; a fixation's duration),
    divided by its maximum. With --normalise none each Gaussian peaks at its weight, and a map that exceeds 1 is an
    error. All lengths are in pixels of the image (the record's `size`).

    scott and cv draw fewer than 3 bubbles, or bubbles on one spot, as fixed does; scott also those on one line. For
    fixations a sigma of one degree of the visual field is usual. Except with scott, sigma is at least half a pixel of
    the map, so that no bubble is lost between pixels. If all bubbles are outside, or all weights 0, that is an error.

    \b
    Example:
      hkmap cub CUB_200_2011 --bubbles bubbles.csv \\
        | hkmap bubbles2map --bandwidth scott --out maps/ > maps.jsonl
      hkmap bubbles2map gaze.jsonl --key points --bandwidth 24 --equal-users --out maps/ > maps.jsonl
    """
    draw = partial(
        _draw, keys=(key,) if key else ("bubbles", "points"), per_annotator=per_annotator, size=size, missing=missing,
        empty=empty, bandwidth=bandwidth, equal_users=equal_users, normalise=normalise,
    )
    draw_records(draw, reads_files=False, **drawing)


def _draw(
    record: Record, *, keys: tuple[str, ...], per_annotator: bool, size: tuple[int, int], missing: str, empty: str,
    **how: Any,
) -> Drawn | Record:
    import numpy as np

    from hkmap.files.maps import Drawn
    from hkmap.maps.annotators import maps_by_user
    from hkmap.maps.kde import bubbles_map

    def draw(own: Record) -> Map:
        bubbles = bubbles_of(own, key)
        return bubbles_map(record, bubbles, size, **how) if bubbles else np.zeros(size, np.float32)

    key = next((key for key in keys if record.get(key) is not None), "")
    if not key:
        return passed_on(record, missing, f"has no {' and no '.join(keys)}", NO_ANNOTATION)
    if not bubbles_of(record, key) and empty != "zeros":
        return passed_on(record, empty, "its annotation is empty, nobody marked anything", EMPTY)
    people = maps_by_user(record, [key], draw) if per_annotator else None
    return Drawn(without_maps(record), draw(record), annotators=people)
