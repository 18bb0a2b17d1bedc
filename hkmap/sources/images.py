"""What every source asks of the files it lists."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hkmap.errors import SourceError
from hkmap.files.images import image_size
from hkmap.records import Record

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

# What systems and programs leave in folders, in lower case; names that begin with a dot go without saying.
LITTER = frozenset({
    "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb", "__macosx", "__pycache__",
    "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
})


@dataclass
class Listing:
    """What lies directly in a folder, in natural order, without hidden names and litter."""

    images: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    def by_stem(self) -> dict[str, Path]:
        """Return the images by their names without suffix; SourceError where two share one."""
        return by_name((nfc(path.stem), path) for path in self.images)


def nfc(name: str) -> str:
    """Return a name in composed characters, as which names are compared: macOS and its archives take them apart."""
    return unicodedata.normalize("NFC", name)


def as_stored(path: Path) -> Path:
    """Return the path of the file whose name is this one in other characters, or with its suffix in capitals."""
    names = (unicodedata.normalize(form, path.stem) for form in ("NFC", "NFD"))
    spelt = (path.with_name(name + suffix) for name in names for suffix in (path.suffix, path.suffix.upper()))
    return next((other for other in (path, *spelt) if other.is_file()), path)


def by_name(paths: Iterable[tuple[str, Path]], remedy: str = "rename one") -> dict[str, Path]:
    """Return the paths by their names; SourceError where two have the same."""
    found: dict[str, Path] = {}
    for name, path in paths:
        if path != (before := found.setdefault(name, path)):
            alike = " (the same letters, composed or not)" if nfc(str(before)) == nfc(str(path)) else ""
            raise SourceError(
                f'{path}: would have the id "{name}", as {before} has{alike}; expected one file per name, {remedy}'
            )
    return found


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Return a key that sorts numbers inside names by their value.

    >>> sorted(["scan10", "scan9", "scan09"], key=natural_order)
    ['scan09', 'scan9', 'scan10']
    """
    parts = re.split(r"(\d+)", name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def list_folder(folder: Path) -> Listing:
    """List what is directly in a folder."""
    listing = Listing()
    for path in _visible(folder):
        if path.is_dir():
            listing.folders.append(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            listing.images.append(path)
        else:
            listing.others.append(path)
    return listing


def files_of(path: Path, suffix: str) -> list[Path]:
    """Return the files with a suffix in a folder, in natural order, without hidden ones; a file as it is."""
    return [path] if path.is_file() else [file for file in _visible(path) if file.suffix.lower() == suffix]


def path_below(folder: Path, path: Path) -> str:
    """Return the path of a file below a folder, without its suffix, in composed characters."""
    return nfc(path.relative_to(folder).with_suffix("").as_posix())


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


def is_litter(name: str) -> bool:
    """Whether a name is hidden, or one that systems and programs leave in folders."""
    return name.startswith(".") or name.lower() in LITTER


def _visible(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if not is_litter(path.name))
    return sorted(found, key=lambda path: natural_order(path.name))
