from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from hkmap.cli._options import root_argument, split_option
from hkmap.cli._stream import emit, error_options
from hkmap.records import Rejects


@click.command("idrid")
@root_argument
@split_option
@click.option("--part", type=click.Choice(["segmentation", "grading"]),
              help="Which part to print.  [default: segmentation if it exists, else grading]")
@click.option("--lesion", "lesions", type=click.Choice(["MA", "HE", "EX", "SE", "OD"]), multiple=True,
              default=("HE", "EX", "SE"),
              help="A lesion whose masks to print; repeatable.  [default: HE, EX and SE, which the paper uses]")
@click.option("--binary", is_flag=True, help="Print diseased and healthy images from both parts.")
@error_options
@click.pass_context
def idrid(
    ctx: click.Context, root: Path, split: str, part: str | None, lesions: tuple[str, ...], binary: bool,
    rejects: Rejects,
) -> None:
    """Print the images of the Indian Diabetic Retinopathy Image Dataset as records.

    ROOT holds "A. Segmentation", "B. Disease Grading", or both, also nested as in some zips, or with %20 for the blank.

    The segmentation part has masks (MA microaneurysms, HE haemorrhages, EX hard exudates, SE soft exudates, OD optic
    disc) and no label; a missing file means that the image has no such lesion. The grading part has the label 0 to 4
    and, if the table has it, edema (0 to 2); ids of its testing set begin with "test-". Never join the parts by id.

    --binary is the paper's task. Label 1, "diseased": images of the segmentation part with haemorrhages, hard or soft
    exudates; one with only microaneurysms is in neither class. Label 0, "healthy": grade 0 of the grading part, with no
    masks: the map is empty, not unknown. Ids begin with "seg-" and "grade-". A warning names dropped duplicates.

    \b
    Example:
      hkmap idrid IDRiD --split train | hkmap masks2map --out maps/
      hkmap idrid IDRiD --binary > binary.jsonl
      hkmap idrid IDRiD --lesion MA --lesion OD > others.jsonl
    """
    from hkmap.sources.idrid import binary_records, idrid_records

    if binary and part:
        raise click.UsageError("--binary uses both parts; omit --part.")
    if part == "grading" and ctx.get_parameter_source("lesions") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--lesion chooses masks, and the grading part has none; omit it.")
    if binary:
        emit(binary_records(root, split=split, lesions=lesions, rejects=rejects))
    else:
        emit(idrid_records(root, part=part, split=split, lesions=lesions, rejects=rejects))
