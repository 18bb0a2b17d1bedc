"""Find the image that a file of annotations means: by path, file name or stem, and never by guessing between two."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from hkmap.errors import SourceError
from hkmap.sources.images import IMAGE_SUFFIXES, few, is_litter, nfc


class PathIndex:
    """Finds paths by other spellings of them.

    Folders that all the paths begin with tell nothing and are ignored; the others must agree. Characters are compared
    as composed (NFC), and suffixes in lower case.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        split = {path: _parts(path) for path in paths}
        ahead = _shared(*(min(split.values()), max(split.values()))) if split else 0
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        self._folders: dict[str, list[str]] = {}
        for path, parts in split.items():
            self._by_name.setdefault(parts[-1], []).append(path)
            self._by_stem.setdefault(stem_of(parts[-1]), []).append(path)
            self._folders[path] = parts[min(ahead, len(parts) - 1) : -1][::-1]

    def find(self, path: str) -> list[str]:
        r"""Return the paths that ``path`` may stand for: with its file name, else its stem, and folders that agree.

        >>> index = PathIndex(["cat/1.jpg", "dog/1.jpg", "dog/2.jpg"])
        >>> index.find("C:\\photos\\dog\\1.jpg"), index.find("2"), index.find("1.png"), index.find("cow/1.jpg")
        (['dog/1.jpg'], ['dog/2.jpg'], ['cat/1.jpg', 'dog/1.jpg'], [])
        """
        *folders, name = _parts(path)
        found = self._by_name.get(name) or self._by_stem.get(stem_of(name)) or []
        shared = {other: _shared(self._folders[other], folders[::-1]) for other in found}
        agreeing = [other for other in found if shared[other] == min(len(self._folders[other]), len(folders))]
        return [other for other in agreeing if shared[other] == max(shared[one] for one in agreeing)]


def find_image(index: PathIndex, folder: Path, name: str) -> Path:
    """Return the path of the image called ``name`` in a folder; SourceError where there is none, or more than one.

    ``index`` is that of image_paths(folder).
    """
    found = index.find(name)
    if not found:
        raise SourceError(f'{folder}: no image "{name[:200]}" here or below; give the folder that holds it')
    if len(found) > 1:
        raise SourceError(
            f'{folder}: "{name[:200]}" may be {len(found)} images ({few(found, 3)}); '
            "give the folder that holds the images alone"
        )
    return folder / found[0]


def stem_of(name: str) -> str:
    """Return a file name without the suffix of an image.

    >>> stem_of("scan.1.PNG"), stem_of("scan.1")
    ('scan.1', 'scan.1')
    """
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and f"{dot}{suffix}".lower() in IMAGE_SUFFIXES else name


def _parts(path: str) -> list[str]:
    """Return the folders, from the root down, and the file's name with its suffix in lower case."""
    *folders, name = nfc(path).replace("\\", "/").split("/")
    stem = stem_of(name)
    return [*(folder for folder in folders if folder not in ("", ".", "..")), stem + name[len(stem) :].lower()]


def _shared(one: list[str], other: list[str]) -> int:
    """Count the items that two lists begin with in common."""
    pairs = zip(one, other, strict=False)
    return next((count for count, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))


def image_paths(folder: Path) -> list[str]:
    """Return the paths of the images below ``folder``, from there; links are followed, each folder is visited once."""
    found: list[str] = []
    visited = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place)
        visited.add(here.resolve())
        folders[:] = sorted(name for name in folders if not is_litter(name) and (here / name).resolve() not in visited)
        names = (name for name in files if not is_litter(name) and Path(name).suffix.lower() in IMAGE_SUFFIXES)
        found += [(here / name).relative_to(folder).as_posix() for name in sorted(names)]
    return found
