"""hkmap points2map: gaze points become maps."""

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


@click.command("points2map", cls=StreamCommand)
@records_argument
@density_options
@map_output_options
@worker_options
@error_options
def points2map(
    records: IO[bytes],
    density: Density,
    writer: AbstractContextManager[MapWriter],
    rejects: Rejects,
    workers: Workers,
) -> None:
    """Draw a map of where people looked from a record's gaze points or clicks.

    A Gaussian is put on every point, its weight the point's `weight`: the duration of a fixation, in whatever unit,
    or 1 where none is given. For the rest this is `hkmap bubbles2map`, whose help explains --bandwidth; points have no
    radius, so that --bandwidth radius is an error.

    A sigma of one degree of the visual field, the spread of the sharp part of the eye, is usual for fixations: say
    it as a NUMBER, in pixels of the image.

    \b
    Example:
      hkmap points2map gaze.jsonl --bandwidth 24 --equal-users --out maps/ \\
        > maps.jsonl
    """
    emit_densities(records, writer, density, ("points",), rejects, workers)
