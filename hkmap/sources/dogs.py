"""Stanford Dogs: photographs, a VOC annotation for each (without a suffix), and lists in .mat files.

An annotation belongs to the image of the same path: the file name inside it is often "%s". Its boxes are counted from 1
and hold their last pixel, as VOC's are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hkmap.errors import ImageError, SourceError
from hkmap.files.masks import read_variable
from hkmap.records import Record, Rejects, each, shown
from hkmap.sources.documents import read_xml
from hkmap.sources.frames import fit_record
from hkmap.sources.images import sized
from hkmap.sources.releases import find_folder, in_folders, present_classes
from hkmap.sources.voc import voc_boxes, voc_size

SPLITS = ("train", "test")


def dogs_records(
    root: Path, *, split: str = "all", present: bool = False, rejects: Rejects
) -> Iterator[Record]:
    """Yield the records of a Stanford Dogs root, in the order of its lists, with the boxes of its annotations.

    ``split`` is train, test or all. Images of class folders that are absent are left out; ``present`` numbers the other
    classes anew, of both lists. Raises SourceError where the folder is not laid out as the release; an image or
    annotation that is missing, unreadable or does not fit goes to ``rejects``.
    """
    wanted = SPLITS if split == "all" or present else (split,)
    records = in_folders([record for name in wanted for record in _listed(root, name)], root)
    records = present_classes(records) if present else records
    chosen = (record for record in records if split in ("all", record["split"]))
    annotations = find_folder(root, "Annotation", "annotations")
    yield from each(chosen, lambda record: _annotated(annotations, record), rejects)


def _listed(root: Path, split: str) -> Iterator[Record]:
    name = f"{split}_list.mat"
    path = next((place for place in (find_folder(root, "lists") / name, root / name) if place.is_file()), None)
    if path is None:
        raise SourceError(f"{root}: no lists/{split}_list.mat; expected Images, Annotation and lists, all unpacked")
    files, labels = _column(path, "file_list"), _column(path, "labels")
    images = find_folder(root, "Images")
    if len(files) != len(labels):
        raise SourceError(f"{path}: {len(files)} files and {len(labels)} labels; expected as many of both")
    for number, (file, label) in enumerate(zip(files, labels, strict=True), start=1):
        folder, _, name = str(file).rpartition("/")
        if not isinstance(file, str) or not folder or ".." in Path(file).parts or Path(file).is_absolute():
            raise SourceError(f'{path}: file_list {number} is "{shown(file)}"; expected FOLDER/FILE.jpg')
        if not isinstance(label, int | float) or not label >= 1 or label != label // 1:
            raise SourceError(f"{path}: labels {number} is {shown(label)}; expected a whole number from 1")
        image = str(images / file)
        yield {"id": Path(name).stem, "image": image, "label": int(label) - 1, "class": folder, "split": split}


def _column(path: Path, name: str) -> list[object]:
    """Return a column of numbers, or of cells with a text in each."""
    try:
        values = np.atleast_1d(np.asarray(read_variable(path, name), dtype=object))
    except ImageError as error:
        raise SourceError(str(error)) from error
    return [value.item() if isinstance(value, np.generic) else value for value in values.ravel().tolist()]


def _annotated(annotations: Path, record: Record) -> Record:
    record = sized(record)
    path = annotations / record["class"] / Path(record["image"]).stem
    if not path.is_file():
        raise SourceError(f"{path}: missing; expected an annotation for each image, under its path without a suffix")
    xml = read_xml(path)
    width, height = record["size"]
    fit_record({"id": record["id"], **voc_size(xml, str(path))}, (width, height), record["image"])
    return {**record, "boxes": voc_boxes(xml, str(path))}
