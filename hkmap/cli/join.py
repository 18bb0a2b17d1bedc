from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from hkmap.cli._options import format_options
from hkmap.cli._stream import emit, error_options, read, records_argument
from hkmap.records import Rejects

if TYPE_CHECKING:
    from hkmap.sources.formats import Format


@click.command("join")
@click.option("--on", metavar="KEY", is_eager=True,
              help="PATH is a table of values: add its columns to the record that it names under KEY (image, id, ...).")
@click.option("--replace", is_flag=True, help="With --on: take the table's value where a record has another.")
@format_options
@records_argument
@error_options
def join(
    path: Path, source: Format | dict[str, str], records: IO[bytes], rejects: Rejects, on: str | None, replace: bool
) -> None:
    """Add the annotations of a file, or the columns of a table, to the records of a stream.

    PATH is a file or folder in any format that `hkmap annotations` reads. Its image names are compared with a record's
    id, and with its image's path, file name and stem. A record keeps its annotations: you can join several files.

    With --on, PATH is a table (CSV or JSON Lines) of anything else, such as class, label, split or patient: every
    column becomes a key. --on image compares names as above, --on id the id, --on patient the key patient, where one
    row may be about many records. --columns image=file,class=diagnosis says what the table calls them. A class is
    numbered by its place among the table's classes, unless there is a label. A cell left empty adds nothing.

    Records without an annotation or row in the file pass unchanged. A warning counts them, and names what matches no
    record. What matches two, an image of another size than annotated, and another value than the record's are errors.

    \b
    Example:
      hkmap cub CUB_200_2011 | hkmap join Fixation_run1.txt | hkmap join Fixation_run2.txt > gaze.jsonl
      hkmap folder photos/ | hkmap join clicks.csv --columns x=left,y=top | hkmap show --out sheet.png
      hkmap folder scans/ | hkmap join labels.csv --on image --columns image=file,class=diagnosis | hkmap pack all.h5
    """
    from hkmap.sources.annotations import joined_records
    from hkmap.sources.labels import labelled_records

    if replace and not on:
        raise click.UsageError("--replace is about the columns of a table; give --on, or omit it.")
    stream = read(records, rejects)
    if isinstance(source, dict):
        emit(labelled_records(stream, path, on=on or "", columns=source, replace=replace, rejects=rejects))
    else:
        emit(joined_records(stream, path, source=source, rejects=rejects))
