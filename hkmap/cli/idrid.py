"""`hkmap idrid`: a source."""

from __future__ import annotations

from pathlib import Path

import click

from hkmap.cli._options import root_argument, split_option
from hkmap.cli._stream import emit, error_options
from hkmap.records import Rejects


@click.command("idrid")
@root_argument
@split_option
@click.option("--part", type=click.Choice(["segmentation", "grading"]),
              help="Which part to print. [default: segmentation where it is there, else grading]")
@click.option("--binary", is_flag=True, help="Print diseased against healthy images, out of both parts.")
@error_options
def idrid(root: Path, split: str, part: str | None, binary: bool, rejects: Rejects) -> None:
    """Print the images of the Indian Diabetic Retinopathy Image Dataset as records.

    ROOT holds "A. Segmentation", "B. Disease Grading", or both; either may be nested in itself, as some zips
    are, or have %20 for the blank.

    The segmentation part has masks (MA microaneurysms, HE haemorrhages, EX hard exudates, SE soft exudates, OD
    optic disc) and no label; an absent file means that the image has no such lesion. The grading part has the
    label 0 to 4 and, where the table has it, edema (0 to 2). Its testing set counts from 001 again, so its ids
    begin with "test-". The two parts number the same pictures differently: never join them by id.

    --binary is the task of the paper. Label 1, "diseased": images of the segmentation part with haemorrhages,
    hard or soft exudates; one with microaneurysms alone is in neither class. Label 0, "healthy": grade 0 of the
    grading part, with no masks, so that the map is empty and not unknown. The ids begin with "seg-" and "grade-".
    Images that come twice are used once. A warning names those that were dropped.

    \b
    Example:
      hkmap idrid IDRiD --split train | hkmap masks2map --out maps/
      hkmap idrid IDRiD --binary > binary.jsonl
    """
    from hkmap.sources.idrid import binary_records, idrid_records

    if binary and part:
        raise click.UsageError("--binary takes both parts; omit --part.")
    if binary:
        emit(binary_records(root, split=split, rejects=rejects))
    else:
        emit(idrid_records(root, part=part, split=split, rejects=rejects))
