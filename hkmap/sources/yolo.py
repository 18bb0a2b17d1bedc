"""YOLO: a text file for each image, a line ``class x y width height`` for each box, relative to the image.

x and y are the box's centre; all four numbers are fractions of the image's width and height, from 0 to 1, and are
scaled to its pixels. A line of more pairs, ``class x y x y x y ...``, is a polygon. An empty file means that nothing is
there. The names of the classes come from classes.txt, names.txt, obj.names or data.yaml, in the folder or one of the
two above; without them a label is the class's number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from hkmap.errors import SourceError
from hkmap.records import Record, Rejects, each
from hkmap.sources.documents import head, text_lines
from hkmap.sources.images import natural_order, path_below

FORMAT = "lines of class x y width height, relative to the image (0 to 1)"
LISTS = ("classes.txt", "names.txt", "obj.names")
YAMLS = ("data.yaml", "dataset.yaml")
SAMPLE = 20         # files that are read to recognise the format
SLACK = 0.01        # by which rounding may carry a number over the edge

_LINE = re.compile(r"\s*\d+((\s+[-+.\deE]+){2}){2,}\s*")
_NAMES = re.compile(r"^names:[ \t]*(?:#.*)?(.*(?:\n(?:[ \t]+.*|- .*|[ \t]*))*)", re.MULTILINE)
_INLINE = re.compile(r"\[(.*?)\]", re.DOTALL)
_ENTRY = re.compile(r"^[ \t]*(?:-|(\d+)[ \t]*:)[ \t]*(.+?)[ \t]*$", re.MULTILINE)


def is_yolo(path: Path) -> bool:
    """Whether it is such a file or a folder of such files; the first that is not empty decides."""
    for file in islice(_files(path), SAMPLE):
        first = next((line for line in head(file).splitlines() if line.strip()), None)
        if first is not None:
            return bool(_LINE.fullmatch(first)) and _is_relative(first)
    return False


def yolo_records(path: Path, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each text file below a folder, in natural order, in the frame of 1x1."""
    folder = path if path.is_dir() else path.parent
    names = _class_names(folder)
    yield from each(_files(path), lambda file: _record(file, folder, names), rejects)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".txt" else []
    found = (file for file in path.rglob("*.txt") if file.name not in LISTS and not file.name.startswith("."))
    return sorted(found, key=lambda file: natural_order(file.as_posix()))


def _is_relative(line: str) -> bool:
    try:
        return all(-SLACK <= float(cell) <= 1 + SLACK for cell in line.split()[1:])
    except ValueError:
        return False


def _record(file: Path, folder: Path, names: dict[int, str]) -> Record:
    name = path_below(folder, file)
    record: Record = {"id": name, "image": name, "frame": [1, 1]}
    for number, line in enumerate(text_lines(file, FORMAT), start=1):
        if line.strip():
            key, shape = _shape(line.split(), names, f"{file} line {number}")
            record.setdefault(key, []).append(shape)
    return record if {"boxes", "polygons"} & set(record) else record | {"boxes": []}


def _shape(cells: list[str], names: dict[int, str], place: str) -> tuple[str, dict[str, Any]]:
    line = " ".join(cells)
    if not _LINE.fullmatch(line) or not _is_relative(line) or len(cells[0]) > 9:
        raise SourceError(f'{place}: "{line[:60]}"; expected {FORMAT}')
    number = int(cells[0])
    if names and number not in names:
        raise SourceError(f"{place}: the class {number} is none of the {len(names)} that have a name; expected one")
    label = {"label": names.get(number, str(number))}
    numbers = list(map(float, cells[1:]))
    if len(numbers) > 4:
        return "polygons", {"points": list(map(list, zip(numbers[::2], numbers[1::2], strict=True)))} | label
    x, y, width, height = numbers
    if width < 0 or height < 0:
        raise SourceError(f'{place}: "{line[:60]}"; expected {FORMAT}')
    return "boxes", {"x": x - width / 2, "y": y - height / 2, "width": width, "height": height} | label


def _class_names(folder: Path) -> dict[int, str]:
    """Return the classes' names by their numbers; nothing where no file has them."""
    absolute = folder.absolute()
    for place in (absolute, absolute.parent, absolute.parent.parent):
        for name in (*LISTS, *YAMLS):
            if (place / name).is_file():
                text = "\n".join(text_lines(place / name, "the names of the classes")).strip()
                if name in YAMLS:
                    return _yaml_names(text, place / name)
                return {number: line.strip() for number, line in enumerate(text.splitlines()) if line.strip()}
    return {}


def _yaml_names(text: str, path: Path) -> dict[int, str]:
    """Read ``names: [a, b]``, or one name a line as ``- a`` or ``0: a``, out of a YAML file.

    >>> _yaml_names("nc: 2\\nnames:\\n  0: disc\\n  1: 'hard exudates'  # EX\\n", Path("data.yaml"))
    {0: 'disc', 1: 'hard exudates'}
    """
    block = _NAMES.search(text)
    if block is None:
        raise SourceError(f'{path}: no line "names:"; expected the names of the classes; or list them in classes.txt')
    inline = _INLINE.search(block[1])
    if inline:
        return dict(enumerate(_plain(name) for name in inline[1].split(",") if name.strip()))
    found = _ENTRY.findall(block[1])
    return {int(number[:9]) if number else index: _plain(name) for index, (number, name) in enumerate(found)}


def _plain(name: str) -> str:
    """Take quotes, or else a comment, off a name."""
    quoted = re.match(r"""\s*(['"])(.*?)\1""", name)
    return quoted[2] if quoted else name.partition(" #")[0].strip()
