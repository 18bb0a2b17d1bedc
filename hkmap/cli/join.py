"""`hkmap join`: a filter."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import click

from hkmap.cli._stream import ANYTHING, StreamCommand, emit, error_options, read, records_argument
from hkmap.cli._tables import format_options
from hkmap.records import Rejects


@click.command("join", cls=StreamCommand)
@click.argument("path", type=ANYTHING)
@records_argument
@format_options
@error_options
def join(
    path: Path, records: IO[bytes], name: str | None, columns: dict[str, str], frame: tuple[int, int] | None,
    origin: str, rejects: Rejects,
) -> None:
    """Add the annotations of a file to the records of a stream.

    PATH is a file or folder of any format that `hkmap annotations` reads. What it calls an image is compared with a
    record's id, and with its image's path, file name and stem; folders must agree where the file has several.
    Annotations are added to those that a record has, so that joining a file an annotator adds them up.

    Records that the file is not about go on as they are. A warning counts them, and names annotations that fit no
    record; an annotation that fits two, or an image of another size than was annotated, is an error.

    \b
    Example:
      hkmap cub CUB_200_2011 | hkmap join Fixation_run1.txt | hkmap join Fixation_run2.txt > gaze.jsonl
      hkmap folder photos/ | hkmap join clicks.csv --columns x=left,y=top | hkmap show --out sheet.png
    """
    from hkmap.sources.annotations import choose_format, joined_records
    from hkmap.sources.tables import Table

    table = Table(path, columns, frame, int(origin)) if columns or frame or origin != "0" else None
    source = choose_format(path, name, table)
    emit(joined_records(read(records, rejects), path, source=source, rejects=rejects))
