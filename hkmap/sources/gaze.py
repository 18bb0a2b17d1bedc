"""Human gaze in the format of CUB-GHA (Rong et al., BMVC 2021): one file an annotator, no header.

A line is ``image_id,width,height`` and, for each fixation, ``x,y,duration``: pixels of the original image
and milliseconds. An id may come on several lines; not every image is in every file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from hkmap.errors import SourceError

logger = logging.getLogger("hkmap")

FORMAT = "image_id,width,height and then x,y,duration_ms for each fixation"


class GazeLine(NamedTuple):
    """What one annotator saw of one image; read only when its image comes."""

    place: str
    user: str
    cells: str


def read_gaze(files: Iterable[Path], identifiers: Collection[str]) -> dict[str, list[GazeLine]]:
    """Return the lines about every image, by its id; an annotator's name is the stem of the file.

    Lines about images that are not among ``identifiers`` are counted in a warning; SourceError where a file
    has no line about any of them, or two files have one name.
    """
    lines: dict[str, list[GazeLine]] = {}
    users: dict[str, Path] = {}
    for path in files:
        before = users.setdefault(path.stem, path)
        if before != path:
            raise SourceError(f"{path}: the annotator {path.stem} is also {before}; rename one of the files")
        _read_file(path, identifiers, lines)
    return lines


def gaze_points(lines: Iterable[GazeLine], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the fixations as points, weighted by their milliseconds, for an image of ``size`` (width, height).

    Fixations beside the image are kept, as a kernel around them may still reach it. Raises SourceError where a
    line is malformed or is about an image of another size.
    """
    return [point for line in lines for point in _points(line, size)]


def _read_file(path: Path, identifiers: Collection[str], lines: dict[str, list[GazeLine]]) -> None:
    foreign: list[str] = []
    known = 0
    for number, text in enumerate(_text_lines(path), start=1):
        if not text.strip():
            continue
        identifier, _, cells = text.partition(",")
        place = f"{path} line {number}"
        if identifier.strip() not in identifiers:
            foreign.append(f'{place}: "{identifier.strip()[:40]}"')
            continue
        known += 1
        lines.setdefault(identifier.strip(), []).append(GazeLine(place, path.stem, cells))
    first = foreign[0] if foreign else "the file is empty"
    if not known:
        raise SourceError(f"{path}: no line is about an image of the data set ({first}); expected {FORMAT}")
    if foreign:
        logger.warning("%s: %d lines are about images that the data set does not have (%s)", path, len(foreign), first)


def _text_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not a text file ({error.reason}); expected {FORMAT}") from error


def _points(line: GazeLine, size: tuple[int, int]) -> list[dict[str, Any]]:
    numbers = _numbers(line)
    if len(numbers) < 2 or len(numbers) % 3 != 2:
        raise SourceError(f"{line.place}: {len(numbers) + 1} values, the last fixation is cut; expected {FORMAT}")
    if (numbers[0], numbers[1]) != size:
        raise SourceError(
            f"{line.place}: fixations in {numbers[0]:g}x{numbers[1]:g} pixels, "
            f"but the image has {size[0]}x{size[1]}; expected pixels of the original image"
        )
    fixations = zip(*[iter(numbers[2:])] * 3, strict=True)
    return [{"x": x, "y": y, "weight": duration, "user": line.user} for x, y, duration in fixations]


def _numbers(line: GazeLine) -> list[float]:
    numbers = []
    for cell in line.cells.split(",") if line.cells.strip() else []:
        try:
            numbers.append(float(cell))
        except ValueError:
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            raise SourceError(f'{line.place}: "{cell.strip()[:40]}" is no number; expected {FORMAT}')
    if any(duration < 0 for duration in numbers[4::3]):
        raise SourceError(f"{line.place}: a duration below 0; expected {FORMAT}")
    return numbers
