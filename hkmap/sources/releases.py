"""Releases as they lie on people's disks: folders in other capitals, and unpacked in part."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from hkmap.errors import SourceError
from hkmap.records import Record
from hkmap.sources.images import few

logger = logging.getLogger("hkmap")


def find_folder(root: Path, *names: str) -> Path:
    """Return the folder in ``root`` with one of the names, in capitals or not; ROOT/NAME of the first where none is."""
    first, wanted = root / names[0], {name.lower() for name in names}
    if first.is_dir() or not root.is_dir():
        return first
    return next((path for path in sorted(root.iterdir()) if path.name.lower() in wanted and path.is_dir()), first)


def in_folders(records: list[Record], root: Path) -> list[Record]:
    """Return the records whose image's folder holds files; a warning counts the others, of a release unpacked in part.

    Raises SourceError where none does.
    """
    folders = {Path(record["image"]).parent for record in records}
    there = {folder: os.path.isdir(folder) and any(folder.iterdir()) for folder in folders}
    found = [record for record in records if there[Path(record["image"]).parent]]
    absent = sorted(folder.name for folder, exists in there.items() if not exists)
    if not found:
        raise SourceError(f"{root}: none of its {len(there)} image folders has a file, as {min(there)}; unpack it")
    if absent:
        logger.warning(
            "%s: %d of %d images are left out, as %d of the %d folders are absent: %s", root, len(records) - len(found),
            len(records), len(absent), len(there), few(absent, 3),
        )
    return found


def present_classes(records: list[Record]) -> list[Record]:
    """Return the records with their classes numbered anew from 0, in the order of their labels."""
    numbers = {label: number for number, label in enumerate(sorted({record["label"] for record in records}))}
    return [{**record, "label": numbers[record["label"]]} for record in records]
