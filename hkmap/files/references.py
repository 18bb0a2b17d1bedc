"""References that point into an HDF5 file (``train.h5#17`` is row 17 of train.h5), and file names made of ids."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import quote, unquote

_LONGEST = 120      # bytes; a file system takes 255, of an id, an annotator's name and a suffix


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


def file_name(identifier: str) -> str:
    """Return the id quoted as in a URL, no slash in it; a long one's end is replaced by a digest of the whole.

    >>> file_name("owls/1 a")
    'owls%2F1%20a'
    >>> file_name("鳥" * 30)[:9], len(file_name("鳥" * 30))
    ('%E9%B3%A5', 119)
    """
    quoted = quote(identifier, safe="")
    if len(quoted) <= _LONGEST:
        return quoted
    begin = re.sub(r"%.?$", "", quoted[: _LONGEST - 17])
    return f"{begin}~{hashlib.sha256(identifier.encode()).hexdigest()[:16]}"
