"""A folder of images: a folder per class, and masks of the same names in a folder beside it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from hkmap.errors import SourceError
from hkmap.records import Record, Rejects, each
from hkmap.sources.images import IMAGE_SUFFIXES, few, list_folder, path_below, sized

logger = logging.getLogger("hkmap")


def folder_records(root: Path, *, masks: Mapping[str, Path] | None = None, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each image below ``root``, its own ones first, then class by class, in natural order.

    The folders directly in ``root`` are the classes, counted from 0; images outside them have no label.
    ``masks`` gives folders by the key of a record, "masks", "unknown" or "dont_look": each holds a mask for an image
    at the same path but for the suffix. Raises SourceError where there is no image, no mask of a folder fits any,
    or two files would share an id.
    """
    apart = [folder.resolve() for folder in (masks or {}).values()]
    found = {key: _masks(root, folder, apart) for key, folder in (masks or {}).items()}
    others: list[Path] = []
    empty = True
    for record in each(_images(root, apart, others), sized, rejects):
        empty = False
        for key, paths in found.items():
            if record["id"] in paths:
                record[key] = {"mask": str(paths.pop(record["id"]))}
        yield record
    _warn_of_others(root, others)
    for key, paths in found.items():
        if paths:
            logger.warning("%s: %d masks have no image: %s", (masks or {})[key], len(paths), few(sorted(paths)))
    if empty and not rejects.count:
        raise SourceError(f"{root}: no image here; expected files with the suffixes {' '.join(sorted(IMAGE_SUFFIXES))}")


def _walk(folder: Path, apart: Collection[Path], others: list[Path], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the images in a folder, then in its inner folders except ``apart``; ``others`` gets the other files."""
    here = folder.resolve()
    if here in above:
        raise SourceError(f"{folder}: a link to a folder above it, so the images never end; remove the link")
    listing = list_folder(folder)
    others += listing.others
    yield from listing.images.values()
    for inner in listing.folders:
        if inner.resolve() not in apart:
            yield from _walk(inner, apart, others, (*above, here))


def _images(root: Path, apart: Collection[Path], others: list[Path]) -> Iterator[Record]:
    classes: dict[str, int] = {}
    for path in _walk(root, apart, others):
        identifier = path_below(root, path)
        record: Record = {"id": identifier, "image": str(path)}
        if "/" in identifier:
            name = identifier.split("/", 1)[0]
            record |= {"label": classes.setdefault(name, len(classes)), "class": name}
        yield record


def _masks(root: Path, folder: Path, apart: Collection[Path]) -> dict[str, Path]:
    """Return {path below the folder without suffix: mask}, at least one of which has an image."""
    others: list[Path] = []
    masks = {path_below(folder, path): path for path in _walk(folder, [], others)}
    _warn_of_others(folder, others)
    if not any(path_below(root, path) in masks for path in _walk(root, apart, [])):
        example = f" (the first: {next(iter(masks))})" if masks else ""
        raise SourceError(
            f"{folder}: none of its {len(masks)} masks has an image in {root}{example}; "
            "expected the same path but for the suffix"
        )
    return masks


def _warn_of_others(folder: Path, others: list[Path]) -> None:
    if others:
        names = few(path.relative_to(folder).as_posix() for path in others)
        logger.warning("%s: %d files are no images: %s", folder, len(others), names)
