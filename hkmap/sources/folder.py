"""A folder of images: a class folder a class, masks under the same names in a folder beside it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hkmap.errors import SourceError
from hkmap.records import Record, Rejects, each
from hkmap.sources.images import IMAGE_SUFFIXES, few, list_folder, sized

logger = logging.getLogger("hkmap")


@dataclass
class _Walk:
    """Walks a folder, but not into those ``apart``, and keeps the names of files that are no images."""

    root: Path
    apart: Collection[Path]
    others: list[str] = field(default_factory=list)

    def images(self, folder: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[str, Path]]:
        """Yield (path below the root without suffix, path) of every image, inner folders last."""
        here = folder.resolve()
        if here in above:
            raise SourceError(f"{folder}: a link to a folder above it, so the images never end; remove the link")
        listing = list_folder(folder)
        self.others += [path.relative_to(self.root).as_posix() for path in listing.others]
        for path in listing.images.values():
            yield path.relative_to(self.root).with_suffix("").as_posix(), path
        for inner in listing.folders:
            if inner.resolve() not in self.apart:
                yield from self.images(inner, (*above, here))


class _Masks:
    """The masks of a folder that go under one ``key`` of the records."""

    def __init__(self, key: str, root: Path, folder: Path, apart: Collection[Path]) -> None:
        self.key = key
        self._folder = folder
        self._paths = _fitting_masks(root, folder, apart)
        self._unused = set(self._paths)

    def add(self, record: Record) -> None:
        identifier = record["id"]
        if identifier in self._paths:
            self._unused.discard(identifier)
            record[self.key] = {"mask": str(self._paths[identifier])}

    def warn(self) -> None:
        if self._unused:
            logger.warning("%s: %d masks have no image: %s", self._folder, len(self._unused), few(sorted(self._unused)))


def folder_records(root: Path, *, masks: Mapping[str, Path] | None = None, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each image below ``root``, its own ones first, then class by class, in natural order.

    The folders directly in ``root`` are the classes, counted from 0; images outside them have no label.
    ``masks`` gives folders by the key of a record, "masks", "unknown" or "dont_look": each holds a mask for an image
    under the same path but for the suffix. Raises SourceError where there is no image, no mask of a folder fits any,
    or two files would share an id.
    """
    apart = [folder.resolve() for folder in (masks or {}).values()]
    walk = _Walk(root, apart)
    found = [_Masks(key, root, folder, apart) for key, folder in (masks or {}).items()]
    empty = True
    for record in each(_images(walk), sized, rejects):
        empty = False
        for own in found:
            own.add(record)
        yield record
    if walk.others:
        logger.warning("%s: %d files are no images: %s", root, len(walk.others), few(walk.others))
    for own in found:
        own.warn()
    if empty and not rejects.count:
        raise SourceError(f"{root}: no image here; expected files with the suffixes {' '.join(sorted(IMAGE_SUFFIXES))}")


def _images(walk: _Walk) -> Iterator[Record]:
    classes: dict[str, int] = {}
    for identifier, path in walk.images(walk.root):
        record: Record = {"id": identifier, "image": str(path)}
        if "/" in identifier:
            name = identifier.split("/", 1)[0]
            record |= {"label": classes.setdefault(name, len(classes)), "class": name}
        yield record


def _fitting_masks(root: Path, folder: Path, apart: Collection[Path]) -> dict[str, Path]:
    """Return {path below the folder without suffix: mask}, at least one of which has an image."""
    walk = _Walk(folder, [])
    masks = dict(walk.images(folder))
    if walk.others:
        logger.warning("%s: %d files are no images: %s", folder, len(walk.others), few(walk.others))
    images = _Walk(root, apart)
    if not any(identifier in masks for identifier, _ in images.images(root)):
        example = next(iter(masks), None)
        raise SourceError(
            f"{folder}: none of its {len(masks)} masks has an image in {root}"
            + (f" (the first: {example})" if example else "")
            + "; expected the same path but for the suffix"
        )
    return masks
