"""hkmap validate: what is odd about a stream of records."""

from __future__ import annotations

import logging
from typing import IO, Any

import click

from hkmap.cli._progress import track
from hkmap.cli._stream import StreamCommand, print_result, read, records_argument
from hkmap.records import Rejects


@click.command("validate", cls=StreamCommand)
@records_argument
@click.option("--ignore", "ignored", multiple=True, metavar="NAME",
              help="Leave out a finding of this name; repeatable.")
@click.option("--ids", "limit", type=click.IntRange(min=1), default=5, show_default=True, metavar="N",
              help="List at most N ids a finding, the first ones.")
@click.pass_context
def validate(ctx: click.Context, records: IO[bytes], ignored: tuple[str, ...], limit: int) -> None:
    """Report what is odd about records, their images, masks and maps; exit code 3 if anything is.

    Exit code 0 says that nothing was found, 1 that the stream itself cannot be read. It is a sink: no record is
    passed on. Every image, mask and map is decoded, one at a time; what is kept is an id and a hash an image.
    Prints one JSON object: {"records": N, "findings": [{"name", "count", "ids", "sentence"}, ...]}, where count
    is the number of records and ids are the first of them (of images that come twice, the later ones). A table for
    people goes to stderr. Not every finding is an error: --ignore what you meant.

    \b
    The names of the findings:
      bad-record             a key does not hold what it should
      no-annotation          neither an annotation nor a map
      empty-annotation       annotated, and nothing is marked: an empty list,
                             black masks
      off-image              the centre of a bubble or point, or the corner of a
                             box or polygon, lies more than 1 pixel off the frame
      size-mismatch          the record's size is not its image's, as displayed
      bad-image              the image is missing or does not decode
      bad-mask               a mask is missing, does not decode, or is not of its
                             image's size
      bad-map                the map, its certainty or an annotator's map is missing
                             or no map, or map and certainty differ in size
      empty-map              the map is 0 everywhere
      flat-map               the map's values differ by at most 1 % of its maximum
      empty-certainty        the map's certainty is 0 everywhere: it counts nowhere
      duplicate-id           an id comes twice
      duplicate-image        an image comes twice, by its decoded pixels
      duplicate-other-label  an image comes twice, with two labels
      split-leak             an image is in two splits, such as train and test
      label-missing          a record has no label while others have one
      label-without-class    a label without the name of its class
      label-two-classes      one label with the names of two classes
      class-two-labels       one class with two labels
      label-imbalance        the most frequent label has more than 10 times as
                             many records as the rarest, which are counted

    \b
    Example:
      hkmap idrid IDRiD --part grading | hkmap validate --ignore no-annotation
      hkmap validate maps.jsonl --ids 1000 \\
        | jq -r '.findings[] | select(.name == "empty-map").ids[]'
    """
    from hkmap.report.validation import MEANINGS, Validation

    unknown = [name for name in ignored if name not in MEANINGS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]}: expected one of {', '.join(MEANINGS)}.", param_hint="--ignore")
    validation = Validation(limit=limit)
    for record in track(read(records, Rejects()), "looking"):
        validation.add(record)
    findings = validation.findings(ignored)
    _show(findings)
    print_result({"records": validation.records, "findings": findings})
    if findings:
        ctx.exit(3)


def _show(findings: list[dict[str, Any]]) -> None:
    """Write the table; -q leaves it out."""
    if not findings or logging.getLogger("hkmap").getEffectiveLevel() >= logging.ERROR:
        return
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(Column("finding", no_wrap=True), "what it is", "ids", show_lines=True)
    for finding in findings:
        more = ", …" if finding["count"] > len(finding["ids"]) else ""
        table.add_row(*map(Text, (finding["name"], finding["sentence"], ", ".join(finding["ids"]) + more)))
    Console(stderr=True).print(table)
