"""Find files that are, by the look of them, masks of other images, though nobody said so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

from hkmap.errors import ImageError
from hkmap.files.images import decode_image, file_bytes
from hkmap.sources.images import nfc
from hkmap.sources.mask_names import TELLING

LOOKED_AT = 5           # files of one way of naming in a folder: any of them may be an empty mask
MOST_LOOKED_AT = 60     # files in all, decoded in some seconds
MOST_NEIGHBOURS = 5
FEW_COLOURS = 8         # of a mask: black, and one for each class
NEARLY_ALL = 0.98       # of the pixels: at its edges a mask may have more colours
BLACK = 0
SIDE = 512              # pixels along a side that are looked at


def lookalike(root: Path, images: list[Path]) -> str | None:
    """Return a sentence about a file that looks like a mask of the image that it is named after, None without one.

    That is a file of few colours, black among them, beside an image that is not so. Only files are opened that have
    the name of another one in theirs ("x_lesion" and "x"), or in another folder, or speak of masks in their name or
    that of their folder; and of each way of naming no more than a few.
    """
    colours = cache(_colours)
    seen: dict[tuple[Path, str], set[Path]] = {}
    opened: set[Path] = set()
    for path, neighbour, way in _candidates(images):
        files = seen.setdefault((path.parent, re.sub(r"\d+", "0", way)), set())
        if path not in files and len(files) == LOOKED_AT:
            continue
        files.add(path)
        opened.add(path)
        if len(opened) > MOST_LOOKED_AT:
            return None
        if _are_of_mask(colours(path)) and (theirs := colours(neighbour)) is not None and not _are_of_mask(theirs):
            return (
                f"{path}: looks like a mask of {neighbour.relative_to(root)}, and would be an image of its own; "
                f"{_remedy(path, neighbour, way)}; or say that there are no masks: --mask-pattern none"
            )
    return None


def doubtful(masks: list[Path]) -> Path | None:
    """Return one that has too many colours for a mask, of the few that are opened; None without one."""
    chosen = masks[:: -(-len(masks) // LOOKED_AT) or 1]
    return next((path for path in chosen if _colours(path) == set()), None)


def _candidates(images: list[Path]) -> Iterator[tuple[Path, Path, str]]:
    """Yield a file, an image that it may be a mask of, and its name with {stem} for that of the image.

    Those that speak of masks come first.
    """
    by_stem: dict[str, list[Path]] = {}
    plain: dict[Path, Path] = {}        # one for each folder
    for path in images:
        by_stem.setdefault(nfc(path.stem), []).append(path)
        if not _is_telling(path):
            plain.setdefault(path.parent, path)
    for path in sorted(images, key=lambda path: not _is_telling(path)):
        for name, way in _parts(nfc(path.stem)):
            yield from ((path, other, way) for other in by_stem.get(name, ())[:MOST_NEIGHBOURS] if other != path)
        if _is_telling(path):
            yield from ((path, other, "") for other in islice(plain.values(), MOST_NEIGHBOURS))


def _is_telling(path: Path) -> bool:
    return any(TELLING.fullmatch(name) for name in (path.stem, path.parent.name))


def _parts(stem: str) -> Iterable[tuple[str, str]]:
    """Yield what comes before and after each separator of a name, and the rest of the name around {stem}."""
    yield stem, "{stem}"
    for gap in re.finditer(r"[ _.-]+", stem):
        yield stem[: gap.start()], "{stem}" + stem[gap.start() :]
        yield stem[gap.end() :], stem[: gap.end()] + "{stem}"


def _remedy(path: Path, neighbour: Path, way: str) -> str:
    here, there = path.parent, neighbour.parent
    folder = {there.parent / here.name: f"../{here.name}/", there / here.name: f"{here.name}/", there: ""}.get(here)
    if not way or folder is None:
        return "give the images' folder as ROOT and that of the masks by --masks, or their names by --mask-pattern"
    return f"say how the masks are named, such as --mask-pattern '{folder}{way}{path.suffix}'"


def _are_of_mask(colours: set[int] | None) -> bool:
    return colours is not None and BLACK in colours and len(colours) > 1


def _colours(path: Path) -> set[int] | None:
    """Return the colours of a picture that has few, none where there are many, None for what cannot be read."""
    try:
        pixels = decode_image(file_bytes(path), str(path)).astype(np.int32)
    except ImageError:      # whoever needs it will say so
        return None
    pixels = pixels[:: -(-len(pixels) // SIDE), :: -(-pixels.shape[1] // SIDE)]
    if path.suffix.lower() in (".jpg", ".jpeg", ".webp"):
        pixels = np.select([pixels < 16, pixels > 239], [0, 255], pixels)
    colours, counts = np.unique(pixels @ (1 << 16, 1 << 8, 1), return_counts=True)
    chief = np.argsort(-counts)[:FEW_COLOURS]
    return set(colours[chief].tolist()) if counts[chief].sum() >= NEARLY_ALL * counts.sum() else set()
