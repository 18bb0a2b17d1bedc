from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from hkmap.cli._options import OUTPUT, RESAMPLES, SEED, overwrite_option
from hkmap.cli._stream import error_options, print_result, read, records_argument, show_table
from hkmap.records import Record, Rejects, dump_record, each

if TYPE_CHECKING:
    from hkmap.maps.agreement import Array
    from hkmap.maps.check import Map

Annotated = tuple[Record, "dict[str, Map]"]     # a record, and its annotators' maps by name


@click.command("agreement")
@records_argument
@click.option("--per-image", type=OUTPUT, metavar="FILE.jsonl",
              help="Write the measured records, each with its own figures under `agreement`.")
@click.option("--picture", type=OUTPUT, metavar="FILE.png",
              help="Draw agreement, null and uniform with their intervals.")
@click.option("--repeats", type=click.IntRange(1, 10_000), default=20,
              help="Random halves per image, for split_half, and other images per image, for the null.")
@click.option("--resamples", type=RESAMPLES, default=2000, help="Draws of the bootstrap.")
@click.option("--seed", type=SEED, default=0, help="Determines the halves, the null and the bootstrap.")
@overwrite_option
@error_options
def agreement(
    records: IO[bytes], per_image: Path | None, picture: Path | None, repeats: int, resamples: int, seed: int,
    overwrite: bool, rejects: Rejects,
) -> None:
    """Measure how far annotators agree: the ceiling for a network that is compared with people.

    Reads records with `annotator_maps` of equal size (hkmap bubbles2map --per-annotator, then hkmap resize), and holds
    all maps in memory. Images with fewer than two annotators are skipped, with a warning. Who marked nothing on an
    image (a map of zeros) counts in mse alone: the other measures need a mark, and compare the rest.

    \b
    leave_one_out  each annotator's map against the mean of the others
    split_half     a random half of the annotators against the rest
    \b
    agreement      within an image
    null           against people on other images: chance, including what
                   people do on every image (look at its centre)
    uniform        against a map of one value, the mean of all maps
    null_minus_uniform  the centre bias

    Prints one JSON object, and a table on stderr: for each method and measure (`hkmap list similarities`) the mean over
    the images and its 95 % interval (bootstrap). People agree if agreement is outside the null's interval.

    \b
    Example:
      set -o pipefail
      hkmap cub CUB_200_2011 --gaze gaze1.txt --gaze gaze2.txt --gaze gaze3.txt \\
        | hkmap bubbles2map --bandwidth fixed --per-annotator --out maps/ \\
        | hkmap resize --size 14 --out maps14/ | hkmap agreement
    """
    import numpy as np

    from hkmap.files.atomic import refuse_existing, replacing
    from hkmap.maps.agreement import agreement_figures, summary
    from hkmap.report.intervals import agreement_figure
    from hkmap.stream.references import load_annotators

    for path in filter(None, (per_image, picture)):
        refuse_existing(path, overwrite=overwrite)
    found = list(each(read(records, rejects), lambda record: (record, load_annotators(record)), rejects))
    images = [(record, maps) for record, maps in found if len(maps) > 1]
    figures = agreement_figures(
        [maps for _, maps in images], repeats=repeats, random=np.random.default_rng(seed)
    )
    result = {**_counts(images, len(found)), "seed": seed, **summary(figures, resamples=resamples, seed=seed)}
    if per_image:
        _write_figures(per_image, images, figures, overwrite=overwrite)
    if picture:
        with replacing(picture, overwrite=overwrite) as beside:
            agreement_figure(result).savefig(beside, format="png")
    _show(result)
    print_result(result)


def _counts(images: Sequence[Annotated], total: int) -> dict[str, Any]:
    if left_out := total - len(images):
        message = "%d of %d images have fewer than two annotators and are omitted"
        logging.getLogger("hkmap").warning(message, left_out, total)
    counts = [len(maps) for _, maps in images]
    marks = [sum(bool(values.any()) for values in maps.values()) for _, maps in images]
    marked = sum(count > 1 for count in marks)
    if empty := sum(counts) - sum(marks):
        message = (
            "%d of %d maps mark nothing: they count in mse alone; the other measures compare those who marked "
            "something, on %d of %d images"
        )
        logging.getLogger("hkmap").warning(message, empty, sum(counts), marked, len(images))
    size = list(next(iter(images[0][1].values())).shape)
    return {"images": len(images), "left_out": left_out, "maps": sum(counts), "empty_maps": empty,
            "marked_images": marked, "annotators": [min(counts), max(counts)], "map_size": size}


def _write_figures(path: Path, images: Sequence[Annotated], figures: Array, *, overwrite: bool) -> None:
    from hkmap.files.atomic import replacing
    from hkmap.maps.agreement import named_figures

    with replacing(path, overwrite=overwrite) as beside, beside.open("wb") as file:
        for (record, _), own in zip(images, figures, strict=True):
            file.write(dump_record({**record, "agreement": named_figures(own)}))


def _show(result: dict[str, Any]) -> None:
    from hkmap.maps.agreement import KINDS, MEASURES, METHODS
    from hkmap.report.intervals import counted

    rows = []
    for method, measure in product(METHODS, MEASURES):
        entry = result[method][measure]
        cells = ("{:.3f} [{:.3f}, {:.3f}]".format(entry[kind], *entry[f"{kind}_interval"]) for kind in KINDS)
        rows.append((method, measure, *cells))
    title = f"{counted(result)}, mean and 95 % interval"
    show_table(("method", "measure", *KINDS), rows, title=title, width=110)
