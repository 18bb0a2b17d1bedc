"""The references of a record that point into an HDF5 file: ``train.h5#17`` is row 17 of train.h5."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote


def split_row(reference: str) -> tuple[Path, int] | None:
    """Return the file and the row of ``FILE.h5#ROW``; None for a plain path.

    >>> split_row("maps/train.h5#17")[1]
    17
    >>> split_row("photos/bird #2.jpg") is None
    True
    """
    path, mark, row = reference.rpartition("#")
    if mark and path.endswith(".h5") and row.isdecimal() and row.isascii():
        return Path(path), int(row)
    return None


def annotator_reference(row: str, name: str) -> str:
    """Return the reference of an annotator's own map in a row of a shard; the name is quoted as in a URL.

    >>> annotator_reference("train.h5#17", "Dr. Who")
    'train.h5#17@Dr.%20Who'
    """
    return f"{row}@{quote(name, safe='')}"


def split_annotator(reference: str) -> tuple[Path, int, str] | None:
    """Return the file, the row and the annotator's name of ``FILE.h5#ROW@NAME``; None for any other reference.

    >>> split_annotator("train.h5#17@Dr.%20Who")[1:]
    (17, 'Dr. Who')
    >>> split_annotator("maps/17@3.npy") is None
    True
    """
    row, mark, name = reference.rpartition("@")
    place = split_row(row)
    return None if not mark or place is None else (*place, unquote(name))
