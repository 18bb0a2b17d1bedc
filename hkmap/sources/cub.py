"""Caltech-UCSD Birds: the releases of 2011 and 2010, recognised by their files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hkmap.errors import SourceError
from hkmap.records import Record, Rejects, each, shown
from hkmap.sources.documents import text_lines
from hkmap.sources.gaze import gaze_points, read_gaze
from hkmap.sources.images import natural_order, sized
from hkmap.sources.releases import find_folder, in_folders, present_classes
from hkmap.sources.tables import Table, read_bubbles, table_bubbles

RELEASE_2011 = ("images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt")
RELEASE_2010 = ("lists/train.txt", "lists/test.txt")
SPLITS = {"0": "test", "1": "train"}


def cub_records(
    root: Path,
    *,
    split: str = "all",
    bubbles: Table | None = None,
    gaze: Sequence[Path] = (),
    parts: bool = False,
    present: bool = False,
    rejects: Rejects,
) -> Iterator[Record]:
    """Yield the records of a CUB-200-2011 or CUB-200-2010 root, in the order of its lists.

    ``split`` is train, test or all. ``bubbles`` go under "bubbles", ``gaze`` files or the visible ``parts``
    under "points"; an image that they do not mention has no such key. The box of bounding_boxes.txt (2011), and the
    box and outline of annotations-mat (2010), are added where the files are there. Images of class folders that are
    absent are left out; ``present`` numbers the other classes anew. Raises SourceError where the folder or an
    annotation is not as expected; an image that cannot be read goes to ``rejects``.
    """
    images = _read_index(root)
    path = root / "bounding_boxes.txt"
    boxes = _table(path, 5) if path.is_file() else {}
    folder = f"{find_folder(root, 'images')}/"
    names = ((image["id"], image["image"].removeprefix(folder)) for image in images)
    rows = read_bubbles(bubbles, names) if bubbles else {}
    fixations = read_gaze(gaze, {image["id"] for image in images})
    located = _parts(root) if parts else {}

    def complete(record: Record) -> Record:
        identifier = record["id"]
        record = sized(record)
        width, height = record["size"]
        if identifier in boxes:
            sides = _numbers(boxes[identifier], f"{path}: image {identifier}")
            box = dict(zip(("x", "y", "width", "height"), sides, strict=True))
            record["boxes"] = [box | {"label": record["class"]}]
        record |= _outline(root, record)
        if bubbles and identifier in rows:
            record["bubbles"] = table_bubbles(rows[identifier], bubbles, (width, height))
        if identifier in fixations:
            record["points"] = gaze_points(fixations[identifier], (width, height))
        if identifier in located:
            record["points"] = located[identifier]
        return record

    there = in_folders(images, root)
    there = present_classes(there) if present else there
    chosen = [record for record in there if split in ("all", record["split"])]
    if not chosen:
        raise SourceError(f"{root}: none of its {len(there)} images is of the split {split}; choose --split all")
    yield from each(chosen, complete, rejects)


def _read_index(root: Path) -> list[Record]:
    """Return a record for each image, without its size."""
    for mark, read in (("images.txt", _read_2011), ("lists/train.txt", _read_2010)):
        if (root / mark).is_file():
            images = read(root)
            if not images:
                raise SourceError(f"{root / mark}: lists no image; unpack the data set again")
            return images
    inner = [child.name for child in sorted(root.iterdir()) if any((child / name).is_file() for name in RELEASE_2011)]
    remedy = f"give {root / inner[0]}" if inner else "give the folder that holds one of them"
    raise SourceError(f"{root}: no CUB-200-2011 (images.txt) and no CUB-200-2010 (lists/train.txt) here; {remedy}")


def _read_2011(root: Path) -> list[Record]:
    paths, labels, classes, splits = (_table(root / name, 2) for name in RELEASE_2011)
    names = {number: name for number, (name,) in classes.items()}
    for file, table in (("image_class_labels.txt", labels), ("train_test_split.txt", splits)):
        absent = [identifier for identifier in paths if identifier not in table]
        if absent:
            raise SourceError(f"{root / file}: no line for the image {absent[0]}; expected one for each of images.txt")
    images, folder = [], find_folder(root, "images")
    for identifier, (path,) in paths.items():
        (number,), (part,) = labels[identifier], splits[identifier]
        if number not in names or not number.isdecimal() or int(number) < 1:
            raise SourceError(
                f"{root / 'image_class_labels.txt'}: image {identifier} has the class {number}, "
                f"but classes.txt has no such number; expected one of its {len(names)} classes"
            )
        if part not in SPLITS:
            raise SourceError(
                f"{root / 'train_test_split.txt'}: image {identifier} has {part}; expected 1 (train) or 0 (test)"
            )
        images.append(_image(folder, identifier, path, (int(number) - 1, names[number], SPLITS[part])))
    return images


def _read_2010(root: Path) -> list[Record]:
    labels = {name: label for label, name in enumerate(_classes_2010(root))}
    images: dict[str, Record] = {}
    below = find_folder(root, "images")
    for name in RELEASE_2010:
        for place, line in _lines(root / name):
            folder, _, file = line.rpartition("/")
            if folder not in labels:
                raise SourceError(f'{place}: "{line}" is in none of the {len(labels)} classes; expected CLASS/FILE')
            identifier = Path(file).stem
            if identifier in images:
                raise SourceError(
                    f"{place}: {line} would have the id {identifier}, as {images[identifier]['image']} has; "
                    "expected each file name once in the two lists"
                )
            images[identifier] = _image(below, identifier, line, (labels[folder], folder, Path(name).stem))
    return list(images.values())


def _classes_2010(root: Path) -> list[str]:
    """Return the classes in the order of lists/classes.txt, or of the folders of images where it is absent."""
    listed = root / "lists/classes.txt"
    if listed.is_file():
        return [line.split()[-1] for _, line in _lines(listed)]
    images = find_folder(root, "images")
    if not images.is_dir():
        raise SourceError(f"{images}: missing; CUB-200-2010 keeps a folder for each class there")
    return sorted((path.name for path in images.iterdir() if path.is_dir()), key=natural_order)


def _image(folder: Path, identifier: str, path: str, what: tuple[int, str, str]) -> Record:
    label, name, split = what
    return {"id": identifier, "image": str(folder / path), "label": label, "class": name, "split": split}


def _outline(root: Path, record: Record) -> Record:
    """Return the box and the outline of 2010, where the root has annotations-mat.

    The release does not define the box; MATLAB wrote it, so it is read as counted from 1, its last pixel included.
    """
    path = root / "annotations-mat" / record["class"] / f"{Path(record['image']).stem}.mat"
    if not os.path.isfile(path):      # False, too, for a name of over 255 bytes
        return {}
    return {"boxes": [_mat_box(path) | {"label": record["class"]}], "masks": {"bird": f"{path}#seg"}}


def _mat_box(path: Path) -> dict[str, Any]:
    from hkmap.files.masks import read_variable

    found = read_variable(path, "bbox")
    sides = [found.get(name) if isinstance(found, dict) else None for name in ("left", "top", "right", "bottom")]
    numbers = int | float | np.integer | np.floating
    left, top, right, bottom = (float(side) if isinstance(side, numbers) else np.nan for side in sides)
    if not (left <= right and top <= bottom):
        raise SourceError(f"{path}: bbox is {shown(found)}; expected the numbers left, top, right and bottom")
    return {"x": left - 1, "y": top - 1, "width": right - left + 1, "height": bottom - top + 1}


def _parts(root: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the visible parts of each image as points; the invisible ones all lie at 0 0."""
    names = {number: name for number, (name,) in _table(root / "parts/parts.txt", 2).items()}
    located: dict[str, list[dict[str, Any]]] = {}
    for place, line in _lines(root / "parts/part_locs.txt"):
        cells = line.split()
        if len(cells) != 5 or cells[1] not in names or cells[4] not in ("0", "1"):
            raise SourceError(f'{place}: "{line}"; expected IMAGE PART X Y VISIBLE, with a part of parts.txt')
        points = located.setdefault(cells[0], [])
        if cells[4] == "1":
            x, y = _numbers(cells[2:4], place)
            points.append({"x": x, "y": y, "name": names[cells[1]]})
    return located


def _table(path: Path, width: int) -> dict[str, list[str]]:
    """Read lines of ``width`` values as {first value: the others}."""
    table: dict[str, list[str]] = {}
    for place, line in _lines(path):
        first, *others = line.split(maxsplit=width - 1)
        if len(others) != width - 1:
            raise SourceError(f'{place}: "{line}"; expected {width} values with blanks between them')
        if first in table:
            raise SourceError(f"{place}: {first} comes a second time; expected it once")
        table[first] = others
    return table


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each line that is not blank."""
    if not path.is_file():
        raise SourceError(
            f"{path}: missing; CUB-200-2011 has {', '.join(RELEASE_2011)}, CUB-200-2010 {', '.join(RELEASE_2010)}"
        )
    lines = text_lines(path, "the data set's own file, unpack it again")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{path} line {number}", line.strip()


def _numbers(cells: Iterable[str], place: str) -> list[float]:
    try:
        return [float(cell) for cell in cells]
    except ValueError as error:
        raise SourceError(f"{place}: {error}; expected numbers of pixels") from error
