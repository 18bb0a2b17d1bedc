"""The references of a record that point into an HDF5 file: ``train.h5#17`` is row 17 of train.h5."""

from __future__ import annotations

from pathlib import Path


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
