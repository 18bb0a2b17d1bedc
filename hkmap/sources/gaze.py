"""Human gaze in the format of CUB-GHA (Rong et al., BMVC 2021): one file per annotator, no header.

A line is ``image_id,width,height`` and, for each fixation, ``x,y,duration``: pixels of the original image
and milliseconds. An id may come on several lines; not every image is in every file. The
coordinates are taken as continuous pixels from 0.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hkmap.errors import SourceError
from hkmap.records import Record, Rejects, each
from hkmap.sources.documents import head, text_lines
from hkmap.sources.images import files_of

logger = logging.getLogger("hkmap")

FORMAT = "image_id,width,height and then x,y,duration_ms for each fixation"
SAMPLE = 1000       # lines that are read to recognise the format
_LINE = re.compile(r"[^,]+,\s*\d+\s*,\s*\d+\s*((,[\s\d.eE+-]+){3})*")


class GazeLine(NamedTuple):
    """What one annotator saw of one image; its numbers are read when the image comes."""

    place: str
    user: str
    cells: str


def read_gaze(files: Iterable[Path], identifiers: Collection[str]) -> dict[str, list[GazeLine]]:
    """Return the lines about every image, by its id; an annotator's name is the stem of the file.

    A warning counts the lines about images that are not among ``identifiers``; SourceError where a file has no line
    about any of them, or two files have one name.
    """
    lines: dict[str, list[GazeLine]] = {}
    users: dict[str, Path] = {}
    for path in files:
        before = users.setdefault(path.stem, path)
        if before != path:
            raise SourceError(f"{path}: the annotator {path.stem} is also {before}; rename one of the files")
        _read_file(path, identifiers, lines)
    return lines


def is_gaze(path: Path) -> bool:
    """Whether it is such a file, or a folder whose first text file is one."""
    lines = _sample(path)
    return bool(lines) and _LINE.fullmatch(lines[0]) is not None


def like_gaze(path: Path) -> bool:
    """Whether half of the lines in a text file, or the first of a folder, are lines of gaze."""
    lines = _sample(path) if path.is_dir() or path.suffix.lower() == ".txt" else []
    return bool(lines) and 2 * sum(bool(_LINE.fullmatch(line)) for line in lines) >= len(lines)


def gaze_records(path: Path, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each image that a file, or one of a folder of files, mentions, with the points of all."""
    lines: dict[str, list[GazeLine]] = {}
    for file in files_of(path, ".txt"):
        _read_file(file, None, lines)
    yield from each(lines.items(), lambda item: _record(*item), rejects)


def gaze_points(lines: Iterable[GazeLine], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the fixations as points, weighted by their milliseconds, for an image of ``size`` (width, height).

    Fixations outside the image are kept, as a kernel around them may still reach it. Raises SourceError where a
    line is malformed or is about an image of another size.
    """
    points: list[dict[str, Any]] = []
    for line in lines:
        numbers = _numbers(line)
        if len(numbers) < 2 or len(numbers) % 3 != 2:
            raise SourceError(f"{line.place}: {len(numbers) + 1} values, the last fixation is cut; expected {FORMAT}")
        if (numbers[0], numbers[1]) != size:
            raise SourceError(
                f"{line.place}: fixations in {numbers[0]:g}x{numbers[1]:g} pixels, "
                f"but the image has {size[0]}x{size[1]}; expected pixels of the original image"
            )
        fixations = zip(*[iter(numbers[2:])] * 3, strict=True)
        points += [{"x": x, "y": y, "weight": duration, "user": line.user} for x, y, duration in fixations]
    return points


def _sample(path: Path) -> list[str]:
    first = next(iter(files_of(path, ".txt")), None)
    return [] if first is None else [line.strip() for line in head(first).splitlines()[:SAMPLE] if line.strip()]


def _record(identifier: str, lines: list[GazeLine]) -> Record:
    size = _numbers(lines[0])[:2]
    if len(size) < 2 or not all(side >= 1 and side.is_integer() for side in size):
        raise SourceError(f"{lines[0].place}: no size of the image; expected {FORMAT}")
    width, height = map(int, size)
    points = gaze_points(lines, (width, height))
    return {"id": identifier, "image": identifier, "size": [width, height], "points": points}


def _read_file(path: Path, identifiers: Collection[str] | None, lines: dict[str, list[GazeLine]]) -> None:
    """Add the lines about ``identifiers``, None for every image."""
    foreign: list[str] = []
    known = 0
    for number, text in enumerate(text_lines(path, FORMAT), start=1):
        if not text.strip():
            continue
        identifier, _, cells = text.partition(",")
        place = f"{path} line {number}"
        if not identifier.strip() or (identifiers is not None and identifier.strip() not in identifiers):
            foreign.append(f'{place}: "{identifier.strip()[:40]}"')
            continue
        known += 1
        lines.setdefault(identifier.strip(), []).append(GazeLine(place, path.stem, cells))
    first = foreign[0] if foreign else "the file is empty"
    if not known:
        raise SourceError(f"{path}: no line is about an image of the data set ({first}); expected {FORMAT}")
    if foreign:
        logger.warning("%s: %d lines are about images that the data set does not have (%s)", path, len(foreign), first)


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
