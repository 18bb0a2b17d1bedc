"""Trimaps of the Oxford-IIIT pets: a grey image for each photograph, 1 foreground, 2 background, 3 border.

The foreground becomes a mask; where in the border the animal ends was not annotated, so that is ``unknown``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hkmap.errors import ImageError, SourceError
from hkmap.files.images import read_levels
from hkmap.records import Record, Rejects, each
from hkmap.sources.images import files_of, nfc
from hkmap.sources.releases import find_folder

FOREGROUND, BACKGROUND, BORDER = 1, 2, 3


def is_trimaps(path: Path) -> bool:
    """Whether it is a trimap, a folder of trimaps, or a folder with the folder trimaps."""
    first = next(iter(_files(path)), None)
    try:
        return first is not None and first.suffix.lower() == ".png" and bool(_levels(first))
    except (ImageError, SourceError):
        return False


def trimap_records(path: Path, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each trimap, in natural order."""
    yield from each(_files(path), _record, rejects)


def _files(path: Path) -> list[Path]:
    places = (find_folder(path, "trimaps"), find_folder(find_folder(path, "annotations"), "trimaps"))
    folder = next((inner for inner in places if inner.is_dir()), path)
    return files_of(folder, ".png")


def _record(file: Path) -> Record:
    levels = _levels(file)
    record: Record = {"id": nfc(file.stem), "image": nfc(file.stem), "masks": {"foreground": f"{file}#{FOREGROUND}"}}
    return record | ({"unknown": {"border": f"{file}#{BORDER}"}} if BORDER in levels else {})


def _levels(file: Path) -> set[int]:
    levels = {int(level) for level in np.unique(read_levels(file))}
    if not levels <= {FOREGROUND, BACKGROUND, BORDER}:
        raise SourceError(f"{file}: has the values {sorted(levels)[:6]}; expected 1 foreground, 2 background, 3 border")
    return levels
