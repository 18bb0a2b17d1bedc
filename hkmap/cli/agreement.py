"""hkmap agreement: how far people agree."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import click

from hkmap.cli._stream import (
    OUTPUT,
    StreamCommand,
    error_options,
    overwrite_option,
    print_result,
    read,
    records_argument,
)
from hkmap.records import Record, Rejects, dump_record, each

if TYPE_CHECKING:
    from hkmap.maps.agreement import Array
    from hkmap.maps.check import Map

SEED = click.IntRange(min=0)
COUNT = click.IntRange(min=1)


class Annotated(NamedTuple):
    """A record, and the maps of its annotators by their names."""

    record: Record
    maps: dict[str, Map]


@click.command("agreement", cls=StreamCommand)
@records_argument
@click.option("--per-image", type=OUTPUT, metavar="FILE.jsonl",
              help="Write the records that were measured, each with its own figures under `agreement`.")
@click.option("--picture", type=OUTPUT, metavar="FILE.png",
              help="Draw agreement, null and uniform with their intervals.")
@click.option("--repeats", type=COUNT, default=20, show_default=True,
              help="Random halves an image, for split_half, and other images that each meets, for the null.")
@click.option("--resamples", type=COUNT, default=2000, show_default=True, help="Draws of the bootstrap.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Fixes the halves, the null and the bootstrap.")
@overwrite_option
@error_options
def agreement(
    records: IO[bytes], per_image: Path | None, picture: Path | None, repeats: int, resamples: int, seed: int,
    overwrite: bool, rejects: Rejects,
) -> None:
    """Measure how far annotators agree: the ceiling for a network that is compared with people.

    Reads records with `annotator_maps` (hkmap bubbles2map --per-annotator, or a shard through hkmap unpack), all of
    one size (hkmap resize). Images with fewer than two annotators are left out and counted on stderr. All maps are
    held in memory.

    \b
    leave_one_out  each annotator's map against the mean of the others'
    split_half     a random half of the annotators against the rest
    \b
    mse            mean square difference (lower is closer)
    spearman       rank correlation, ties averaged; 0 for a constant map
                   (higher)
    iou            intersection over union of the highest tenth of the
                   cells; cells tied for the last places share them
                   (higher)
    kl             Kullback-Leibler divergence of the second from the
                   first, in nats; 0.1 % of the mass is spread evenly
                   (lower)
    \b
    agreement      within an image
    null           against other images' people: chance, with what
                   people do on every image (look at its centre)
    uniform        against a map of one value, the mean of all maps
    null_minus_uniform  the centre bias

    Prints one JSON object: for each method and measure the mean over the images of each of these and its 95 %
    interval (bootstrap over images). Agreement outside the null's interval says that people agree about the image.
    A table goes to stderr.

    \b
    Example:
      set -o pipefail
      hkmap cub CUB_200_2011 --gaze gaze1.txt --gaze gaze2.txt --gaze gaze3.txt \\
        | hkmap bubbles2map --bandwidth fixed --per-annotator --out maps/ \\
        | hkmap resize --size 14 --out maps14/ | hkmap agreement
    """
    import numpy as np

    from hkmap.files.atomic import refuse_existing
    from hkmap.maps.agreement import agreement_figures, summary
    from hkmap.stream.references import load_annotators

    for path in filter(None, (per_image, picture)):
        refuse_existing(path, overwrite=overwrite)
    found = list(each(read(records, rejects), lambda record: Annotated(record, load_annotators(record)), rejects))
    images = [image for image in found if len(image.maps) > 1]
    _say_left_out(len(found) - len(images), len(found))
    random = np.random.default_rng(seed)
    figures = agreement_figures([image.maps for image in images], repeats=repeats, random=random)
    result = {**_counts(images, len(found)), "seed": seed, **summary(figures, resamples=resamples, random=random)}
    if per_image:
        _write_figures(per_image, images, figures, overwrite=overwrite)
    if picture:
        _draw(picture, result, overwrite=overwrite)
    _show(result)
    print_result(result)


def _say_left_out(count: int, total: int) -> None:
    if count:
        logging.getLogger("hkmap").warning(
            "%d of %d images have fewer than two annotators and are left out", count, total
        )


def _counts(images: Sequence[Annotated], total: int) -> dict[str, Any]:
    counts = [len(image.maps) for image in images]
    height, width = next(iter(images[0].maps.values())).shape
    return {
        "images": len(images),
        "left_out": total - len(images),
        "maps": sum(counts),
        "annotators": [min(counts), max(counts)],
        "map_size": [height, width],
    }


def _write_figures(path: Path, images: Sequence[Annotated], figures: Array, *, overwrite: bool) -> None:
    from hkmap.files.atomic import replacing
    from hkmap.maps.agreement import named_figures

    with replacing(path, overwrite=overwrite) as beside, beside.open("wb") as file:
        for image, own in zip(images, figures, strict=True):
            file.write(dump_record({**image.record, "agreement": named_figures(own)}))


def _draw(path: Path, result: dict[str, Any], *, overwrite: bool) -> None:
    from PIL import Image

    from hkmap.files.atomic import replacing
    from hkmap.report.intervals import draw_agreement

    with replacing(path, overwrite=overwrite) as beside:
        Image.fromarray(draw_agreement(result)).save(beside, format="PNG")


def _show(result: dict[str, Any]) -> None:
    if logging.getLogger("hkmap").getEffectiveLevel() >= logging.ERROR:      # under -q
        return
    from rich.console import Console
    from rich.table import Table

    from hkmap.maps.agreement import KINDS, MEASURES, METHODS

    table = Table("method", "measure", *KINDS, title=f"{result['images']} images, mean and 95 % interval")
    for method in METHODS:
        for measure in MEASURES:
            entry = result[method][measure]
            cells = (f"{entry[kind]:.3f} [{', '.join(f'{end:.3f}' for end in entry[f'{kind}_interval'])}]"
                     for kind in KINDS)
            table.add_row(method, measure, *cells)
    Console(stderr=True, width=110).print(table)
