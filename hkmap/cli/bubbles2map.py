"""hkmap bubbles2map: bubbles or gaze points become maps."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import IO, TYPE_CHECKING

import click

from hkmap.cli._densities import Density, density_options, emit_densities
from hkmap.cli._drawing import worker_options
from hkmap.cli._stream import StreamCommand, error_options, map_output_options, records_argument
from hkmap.parallel.cluster import Workers
from hkmap.records import Rejects

if TYPE_CHECKING:
    from hkmap.files.maps import MapWriter


@click.command("bubbles2map", cls=StreamCommand)
@records_argument
@density_options
@map_output_options
@worker_options
@error_options
def bubbles2map(
    records: IO[bytes],
    density: Density,
    writer: AbstractContextManager[MapWriter],
    rejects: Rejects,
    workers: Workers,
) -> None:
    """Draw a map of where people looked from a record's bubbles; from its gaze points where it has no bubbles.

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
      cv       the sigma under which the bubbles best foretell each other
               (leave-one-out likelihood), out of 57 from 1/256 to 1/2 of
               sqrt(width * height), eight to a doubling. Bubbles on one
               spot count as one; fewer than 3 spots are drawn as `fixed`.
               For bubbles and fixations: the raw samples of a tracker
               foretell each other along its path, so sigma is too small.
      NUMBER   sigma in pixels of the image.

    With all but scott a sigma is at least half a pixel of the map, so that no bubble is lost between the
    map's pixels. Bubbles of weight 0 count for nothing. If all bubbles lie far off the image, or all weights are 0,
    the record is an error. The records come out with `map`, a reference to what was saved.

    \b
    Example:
      hkmap cub CUB_200_2011 --bubbles bubbles.csv \\
        | hkmap bubbles2map --bandwidth scott --out maps/ > maps.jsonl
    """
    emit_densities(records, writer, density, ("bubbles", "points"), rejects, workers)
