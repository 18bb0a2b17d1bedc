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
@format_options
@records_argument
@error_options
def join(path: Path, source: Format, records: IO[bytes], rejects: Rejects) -> None:
    """Add the annotations of a file to the records of a stream.

    PATH is a file or folder in any format that `hkmap annotations` reads. Its image names are compared with a record's
    id, and with its image's path, file name and stem. A record keeps its annotations: you can join several files.

    Records without an annotation in the file pass unchanged. A warning counts them, and names annotations that match no
    record. An annotation that matches two, or an image of another size than annotated, is an error.

    \b
    Example:
      hkmap cub CUB_200_2011 | hkmap join Fixation_run1.txt | hkmap join Fixation_run2.txt > gaze.jsonl
      hkmap folder photos/ | hkmap join clicks.csv --columns x=left,y=top | hkmap show --out sheet.png
    """
    from hkmap.sources.annotations import joined_records

    emit(joined_records(read(records, rejects), path, source=source, rejects=rejects))
