"""YOLO: a text file for each image, a line ``class x y width height`` for each box, relative to the image.

x and y are the box's centre; all four numbers are fractions of the image's width and height, from 0 to 1, and are
scaled to its pixels. A line of more pairs, ``class x y x y x y ...``, is a polygon. Where data.yaml says ``kpt_shape``
each line is a pose: a box, and that many keypoints, which become points; those that are not visible are left out. An
empty file means that nothing is there. The names of the classes come from classes.txt, names.txt, obj.names or
data.yaml, in the folder or one of the two above; without them a label is the class's number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from hkmap.errors import SourceError
from hkmap.records import Record, Rejects, each, mismatch
from hkmap.sources.documents import as_label, files_below, head, text_lines
from hkmap.sources.images import path_below

FORMAT = "lines of class x y width height, relative to the image (0 to 1)"
LISTS = ("classes.txt", "names.txt", "obj.names")
YAMLS = ("data.yaml", "dataset.yaml", "data.yml")
SAMPLE = 20         # files that are read to recognise the format
SLACK = 0.01        # by which rounding may carry a number over the edge

_LINE = re.compile(r"\s*\d{1,9}(\s+[-+.\deE]+){4,}\s*")


@dataclass(frozen=True)
class _DataSet:
    """What a data set says of its lines: the names of the classes, and how many keypoints of how many numbers."""

    names: dict[int, str]
    keypoints: tuple[int, int] | None = None


def is_yolo(path: Path) -> bool:
    """Whether it is such a file or a folder of such files; the first that is not empty decides."""
    return all(_LINE.fullmatch(line) and _is_relative(line.split()[1:5]) for line in _sample(path)[:1] or [""])


def like_yolo(path: Path) -> bool:
    """Whether half of the lines in the first file that is not empty have a class and four numbers or more."""
    lines = _sample(path)
    return bool(lines) and 2 * sum(bool(_LINE.fullmatch(line)) for line in lines) >= len(lines)


def yolo_records(path: Path, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each text file below a folder, in natural order, in the frame of 1x1."""
    folder = path if path.is_dir() else path.parent
    yield from each(_files(path), partial(_record, folder=folder, data=_data_set(folder)), rejects)


def _files(path: Path) -> list[Path]:
    found = [file for file in files_below(path, ".txt") if file.name not in LISTS and file.suffix.lower() == ".txt"]
    return [file for file in found if "labels" in file.relative_to(path).parts[:-1]] or found


def _sample(path: Path) -> list[str]:
    """Return the lines that are not empty of the first file that has any."""
    files = islice(_files(path), SAMPLE)
    return next(filter(None, ([line for line in head(file).splitlines() if line.strip()] for file in files)), [])


def _is_relative(cells: list[str]) -> bool:
    try:
        return all(-SLACK <= float(cell) <= 1 + SLACK for cell in cells)
    except ValueError:
        return False


def _record(file: Path, folder: Path, data: _DataSet) -> Record:
    name = path_below(folder, file)
    before, labels, after = f"/{name}".rpartition("/labels/")
    if labels:      # the images lie in a folder of that name beside it
        name = f"{before}/images/{after}".removeprefix("/")
    record: Record = {"id": name, "image": name, "frame": [1, 1]}
    for number, line in enumerate(text_lines(file, FORMAT), start=1):
        if line.strip():
            for key, shape in _shapes(line.split(), data, f"{file} line {number}"):
                record.setdefault(key, []).append(shape)
    return record if {"boxes", "polygons"} & set(record) else record | {"boxes": []}


def _shapes(cells: list[str], data: _DataSet, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the key of a record and what goes there, of a line."""
    line, (count, each_of) = " ".join(cells), data.keypoints or (0, 2)
    numbers, expected = cells[1:], FORMAT
    if data.keypoints:
        expected = f"class x y width height and {count} keypoints of {each_of} numbers, as kpt_shape says"
    is_whole = len(numbers) == 4 + count * each_of if data.keypoints else len(numbers) % 2 == 0
    places = [cell for index, cell in enumerate(numbers) if index < 4 or (index - 4) % each_of < 2]
    if not _LINE.fullmatch(line) or not is_whole or not _is_relative(places):
        raise SourceError(f'{place}: "{line[:60]}"; expected {expected}')
    label = {"label": _label(cells[0], data.names, place)}
    values = [float(cell) for cell in numbers]
    if len(values) > 4 and not data.keypoints:
        yield "polygons", {"points": list(map(list, zip(values[::2], values[1::2], strict=True)))} | label
        return
    x, y, width, height = values[:4]
    if width < 0 or height < 0:
        raise SourceError(f'{place}: "{line[:60]}"; expected {expected}')
    yield "boxes", {"x": x - width / 2, "y": y - height / 2, "width": width, "height": height} | label
    for index in range(count):
        point = values[4 + index * each_of :][:each_of]
        if point[2:] != [0]:
            yield "points", {"x": point[0], "y": point[1], "keypoint": index} | label


def _label(cell: str, names: dict[int, str], place: str) -> str:
    number = int(cell)
    if names and number not in names:
        raise SourceError(f"{place}: the class {number} is none of the {len(names)} that have a name; expected one")
    return names.get(number, str(number))


def _data_set(folder: Path) -> _DataSet:
    """Return what the data set around a folder says; nothing where no file says anything."""
    absolute = folder.absolute()
    files = [place / name for place in (absolute, *absolute.parents[:2]) for name in (*LISTS, *YAMLS)]
    found = [file for file in files if file.is_file()]
    yamls = [(file, _yaml(file)) for file in found if file.name in YAMLS]
    keypoints = next((_keypoints(content, file) for file, content in yamls if "kpt_shape" in content), None)
    if found and found[0].name in LISTS:
        lines = text_lines(found[0], "the names of the classes")
        return _DataSet({number: line.strip() for number, line in enumerate(lines) if line.strip()}, keypoints)
    return _DataSet(_names(yamls[0][1], yamls[0][0]) if yamls else {}, keypoints)


def _yaml(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load("\n".join(text_lines(path, "YAML")))
    except (yaml.YAMLError, ValueError, RecursionError) as error:       # ValueError: a date such as 2026-02-30
        reason = " ".join(str(error).split())[:160]
        raise SourceError(f"{path}: not YAML ({reason}); expected the names of the classes, mend it") from error
    return content if isinstance(content, dict) else {}


def _names(content: dict[Any, Any], path: Path) -> dict[int, str]:
    found = content.get("names")
    items = list(found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ())
    if not items:
        raise SourceError(
            f"{path}: no names under \"names\"; expected those of the classes, such as names: [cat, dog]; "
            "or list them in classes.txt"
        )
    if not all(re.fullmatch(r"\d{1,9}", str(number)) for number, _ in items):
        raise SourceError(f"{path}: names {mismatch(found, 'a list, or a name for each number')}")
    names = {int(number): as_label(name, f"{path}: the name of class {number}") for number, name in items}
    if isinstance(content.get("nc"), int) and content["nc"] != len(names):
        raise SourceError(f"{path}: nc is {content['nc']}, but there are {len(names)} names; expected as many")
    return names


def _keypoints(content: dict[Any, Any], path: Path) -> tuple[int, int]:
    shape = content["kpt_shape"]
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(side) is int for side in shape)
            and 0 < shape[0] < 10_000 and shape[1] in (2, 3)):
        raise SourceError(f"{path}: kpt_shape {mismatch(shape, '[keypoints, 2 or 3], such as [17, 3]')}")
    return shape[0], shape[1]
