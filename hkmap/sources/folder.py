"""A folder of images: a class folder a class, masks under the same names in a folder beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hkmap.errors import SourceError
from hkmap.records import Record, Rejects, each
from hkmap.sources.images import IMAGE_SUFFIXES, few, list_folder, sized

logger = logging.getLogger("hkmap")


@dataclass
class _Walk:
    """Walks a folder, but not into ``skipped``, and keeps the names of files that are no images."""

    root: Path
    skipped: Path | None
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
            if inner.resolve() != self.skipped:
                yield from self.images(inner, (*above, here))


def folder_records(root: Path, *, masks: Path | None = None, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each image below ``root``, its own ones first, then class by class, in natural order.

    The folders directly in ``root`` are the classes, counted from 0; images outside them have no label.
    ``masks`` holds a mask for an image under the same path but for the suffix. Raises SourceError where there
    is no image, no mask fits any, or two files would share an id.
    """
    walk = _Walk(root, masks.resolve() if masks else None)
    mask_of = _masks(root, masks) if masks else {}
    unused = set(mask_of)
    empty = True
    for record in each(_images(walk), sized, rejects):
        empty = False
        if record["id"] in mask_of:
            unused.discard(record["id"])
            record["masks"] = {"mask": str(mask_of[record["id"]])}
        yield record
    _warn(root, walk, masks, unused)
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


def _masks(root: Path, folder: Path) -> dict[str, Path]:
    """Return {path below the folder without suffix: mask}, at least one of which has an image."""
    walk = _Walk(folder, None)
    masks = dict(walk.images(folder))
    if walk.others:
        logger.warning("%s: %d files are no images: %s", folder, len(walk.others), few(walk.others))
    images = _Walk(root, folder.resolve())
    if not any(identifier in masks for identifier, _ in images.images(root)):
        example = next(iter(masks), None)
        raise SourceError(
            f"{folder}: none of its {len(masks)} masks has an image in {root}"
            + (f" (the first: {example})" if example else "")
            + "; expected the same path but for the suffix"
        )
    return masks


def _warn(root: Path, walk: _Walk, masks: Path | None, unused: set[str]) -> None:
    if walk.others:
        logger.warning("%s: %d files are no images: %s", root, len(walk.others), few(walk.others))
    if unused:
        logger.warning("%s: %d masks have no image: %s", masks, len(unused), few(sorted(unused)))
