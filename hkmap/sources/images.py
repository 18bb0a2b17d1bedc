"""What every source asks of the files it lists."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hkmap.errors import SourceError
from hkmap.files.images import image_size
from hkmap.records import Record

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass
class Listing:
    """What lies directly in a folder, in natural order, without hidden names."""

    images: dict[str, Path] = field(default_factory=dict)      # by name without suffix
    folders: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Return a key that sorts numbers inside names by their value.

    >>> sorted(["scan10", "scan9", "scan09"], key=natural_order)
    ['scan09', 'scan9', 'scan10']
    """
    parts = re.split(r"(\d+)", name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def list_folder(folder: Path) -> Listing:
    """List a folder; SourceError where two images share a name but for the suffix."""
    listing = Listing()
    for path in _visible(folder):
        if path.is_dir():
            listing.folders.append(path)
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            listing.others.append(path)
        elif path != (before := listing.images.setdefault(path.stem, path)):
            raise SourceError(
                f"{path}: {before.name} in the same folder would have the same id; expected one file per name, "
                "rename one"
            )
    return listing


def files_of(path: Path, suffix: str) -> list[Path]:
    """Return the files with a suffix in a folder, in natural order, without hidden names; a file as it is."""
    return [path] if path.is_file() else [file for file in _visible(path) if file.suffix.lower() == suffix]


def path_below(folder: Path, path: Path) -> str:
    """Return the path of a file below a folder, without its suffix."""
    return path.relative_to(folder).with_suffix("").as_posix()


def sized(record: Record) -> Record:
    """Return the record with its image's ``size``, [width, height] in pixels as displayed.

    Raises ImageError where the image is missing or cannot be read.
    """
    return {**record, "size": list(image_size(Path(record["image"])))}


def few(names: Iterable[str], limit: int = 5) -> str:
    """Join names for a message, the first ones only where there are many.

    >>> few(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    found = list(names)
    rest = len(found) - limit
    return ", ".join(found[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _visible(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(found, key=lambda path: natural_order(path.name))
