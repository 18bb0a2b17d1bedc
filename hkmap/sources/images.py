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
    """What lies directly in a folder, in natural order, hidden names left out."""

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
    for path in sorted(folder.iterdir(), key=lambda path: natural_order(path.name)):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            listing.folders.append(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            _add_image(listing.images, path)
        else:
            listing.others.append(path)
    return listing


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


def _add_image(images: dict[str, Path], path: Path) -> None:
    before = images.setdefault(path.stem, path)
    if before != path:
        raise SourceError(
            f"{path}: {before.name} in the same folder would have the same id; expected one file a name, rename one"
        )
