from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from hkmap.cli._drawing import NO_MAP, draw_records, drawing_options
from hkmap.cli._options import Number, missing_option
from hkmap.records import Record, masks_of, passed_on, reference_of

if TYPE_CHECKING:
    from hkmap.files.maps import Drawn
    from hkmap.maps.certainty import Mask

@click.command("certainty")
@click.option("--default", type=click.Choice(["known", "unknown"]), default="known",
              help="Unmarked cells are known (there is nothing to look at) or unknown (nobody says).")
@click.option("--above", type=Number(min=0, max=1, max_open=True), default=0,
              help="With --default unknown: a cell is marked if the map is above this value, from 0 to 1.")
@missing_option("a map", "unchanged")
@drawing_options
def certainty(default: str, above: float, missing: str, **drawing: Any) -> None:
    """Compute how well each cell of a record's map is known, from its keys `unknown` and `dont_look`.

    Both keys are objects of names and masks, like `masks`: `unknown` marks where nobody knows (the void of Pascal VOC,
    the border of a trimap), `dont_look` where one should not look; it takes precedence. `hkmap resize`, `pack` and
    `unpack` carry the certainty along; a cell of certainty 0 does not count in the map loss and the map MSE.

    \b
      certainty  the share of the cell's area that is known
      map        the map times the share of the cell's area that is not
                 `dont_look`; 0 where the certainty is 0

    With --default unknown a cell is known only if the map is above --above, or `dont_look` marks it. That is for masks
    and boxes; a density is above 0 nearly everywhere, and needs a threshold such as --above 0.05. Use it before you
    resize maps: in a small one, a cell that is half unknown is already diluted.

    \b
    Example:
      hkmap masks2map voc.jsonl --lesion cat --out maps/ \\
        | hkmap certainty --out certain/ \\
        | hkmap resize --size 14 --out certain14/ > maps14.jsonl
    """
    draw_records(partial(_weigh, default=default, above=above, missing=missing), reads_files=True, **drawing)


def _weigh(record: Record, *, default: str, above: float, missing: str) -> Drawn | Record:
    from hkmap.files.maps import Drawn
    from hkmap.maps.certainty import weigh_map
    from hkmap.stream.references import load_map

    reference = reference_of(record, "map")
    if reference is None:
        return passed_on(record, missing, "has no map", NO_MAP)
    if default == "known" and record.get("unknown") is None and record.get("dont_look") is None:
        return record
    values, known = load_map(reference), default == "known"
    unknown, dont_look = _masks(record, "unknown"), _masks(record, "dont_look")
    weighed, shares = weigh_map(values, unknown, dont_look, default_known=known, above=above)
    return Drawn(record, weighed, shares)


def _masks(record: Record, key: str) -> Iterator[Mask]:
    from hkmap.files.masks import read_fitting_mask
    from hkmap.stream.references import image_frame

    references = masks_of(record, key) if record.get(key) is not None else {}
    frame = image_frame(record) if references else (0, 0)
    return (read_fitting_mask(reference, frame) for reference in references.values())      # one at a time in memory
