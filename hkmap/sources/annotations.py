"""Files of annotations, of whatever format: as records of their images, or joined to the records of a stream."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from hkmap.errors import RecordError, SourceError
from hkmap.files.images import image_size
from hkmap.records import Record, Rejects, each, reference_of
from hkmap.sources.formats import FORMATS, Format, recognised
from hkmap.sources.frames import SHAPES, fit_record
from hkmap.sources.images import few
from hkmap.sources.matching import ImageFolder, PathIndex
from hkmap.sources.tables import Table, table_records
from hkmap.stream.references import image_frame

logger = logging.getLogger("hkmap")

OWN = {"id", "image", "size", "frame"}      # what is the file's view of the image, and no annotation
MASKS = ("masks", "unknown", "dont_look")


def choose_format(path: Path, name: str | None, table: Table | None) -> Format:
    """Return the format called ``name``, else the one that the content tells; a ``table`` says itself how it is read.

    Raises ChoiceError where there is no such format, SourceError where the content is in none or more than one.
    """
    if table is None:
        return FORMATS[name] if name else recognised(path)
    return Format("table", "", lambda path: True, lambda path, rejects: table_records(table, rejects))


def annotation_records(path: Path, images: Path, *, source: Format, rejects: Rejects) -> Iterator[Record]:
    """Yield a record for each image that the file at ``path`` is about, found in the folder ``images`` or below.

    The id is the image's path below that folder without its suffix. Raises SourceError where nothing was yielded; an
    image that is not there, is ambiguous, or has another size than was annotated goes to ``rejects``.
    """
    folder = ImageFolder(images)
    seen: dict[Path, str] = {}

    def placed(record: Record) -> Record:
        name = _name(record, source)
        image = folder.find(name)
        if image in seen:
            raise SourceError(f'{path}: "{name}" and "{seen[image]}" are both {image}; expected each image once')
        seen[image] = name
        fitted = fit_record(record, image_size(image), str(image))
        own = {"id": folder.identifier(image), "image": str(image), "size": fitted["size"]}
        return own | {key: value for key, value in fitted.items() if key not in OWN}

    count = lines = 0
    for record in each(source.read(path, rejects), placed, rejects):
        count, lines = count + 1, lines + ("lines" in record)
        yield record
    _warn_of_lines(path, lines)
    if not count and not rejects.count:
        raise SourceError(f"{path}: read as {source.name}, no annotation in it; say another --format if that is wrong")


def joined_records(records: Iterable[Record], path: Path, *, source: Format, rejects: Rejects) -> Iterator[Record]:
    """Yield the ``records`` with the annotations of the file at ``path`` added to those that it is about.

    What the file calls its image is compared with a record's id, and with its image's path, file name and stem.
    Annotations are appended to what a record has. Records that the file is not about go on as they are; a warning
    counts them, and names the annotations that were left over. Raises SourceError where nothing fits at all.
    """
    join = _Join(path, list(source.read(path, rejects)), source)
    count = missed = 0
    for record in each(records, join.add, rejects):
        count, missed = count + 1, missed + (not join.hit)
        yield record
    left = [name for name in join.annotations if name not in join.used]
    if not join.used and not rejects.count:
        names = few(map(str, join.annotations), 3) or "nothing"
        raise SourceError(f"{path}: none of its images ({names}) is one of the {count} records; compare their names")
    _warn_of_lines(path, sum("lines" in join.annotations[name] for name in join.used))
    if missed:
        logger.warning("%s: has nothing about %d of %d records", path, missed, count)
    if left:
        logger.warning("%s: annotations of %d images fit no record: %s", path, len(left), few(left))


class _Join:
    """The annotations of a file by the names of their images, and which of them were used."""

    def __init__(self, path: Path, annotations: Iterable[Record], source: Format) -> None:
        self.path = path
        self.annotations: dict[str, Record] = {}
        for annotation in annotations:
            name = _name(annotation, source)
            if name in self.annotations:
                raise SourceError(f'{path}: "{name}" is annotated twice; expected each image once')
            self.annotations[name] = annotation
        self.index = PathIndex(self.annotations)
        self.used: dict[str, str] = {}
        self.hit = False

    def add(self, record: Record) -> Record:
        found = self._find(record)
        self.hit = bool(found)
        if not found:
            return record
        [name] = found
        if name in self.used:
            raise SourceError(
                f'{self.path}: "{name}" fits the records "{self.used[name]}" and "{record["id"]}"; '
                "expected an image to be one record"
            )
        self.used[name] = record["id"]
        annotation = fit_record(self.annotations[name], image_frame(record), f'record "{record["id"]}"')
        return _merged(record, annotation, self.path)

    def _find(self, record: Record) -> set[str]:
        image = reference_of(record, "image")
        found = set(self.index.find(image)) if image else set()
        if record["id"] in self.annotations:
            found.add(record["id"])
        if len(found) > 1:
            raise SourceError(
                f'{self.path}: record "{record["id"]}" ({image}) may be {few(sorted(found), 3)}; '
                "expected one of them, give the images different names"
            )
        return found


def _name(record: Record, source: Format) -> str:
    name = record.get("image")
    if not isinstance(name, str) or not name or not isinstance(record.get("id"), str):
        raise SourceError(f"the format {source.name} gave a record without the texts id and image; mend its reader")
    return name


def _warn_of_lines(path: Path, count: int) -> None:
    if count:
        logger.warning("%s: lines on %d images are kept under the key lines, which no filter draws", path, count)


def _merged(record: Record, annotation: Record, path: Path) -> Record:
    """Append the shapes, add the masks under new names, and what the record does not say yet."""
    merged = {**record, "size": annotation["size"]}
    for key in annotation.keys() - OWN:
        before, value = record.get(key), annotation[key]
        if before is None or (before == value and key not in SHAPES):
            merged[key] = value
        elif key in SHAPES and isinstance(before, list):
            merged[key] = before + value
        elif key in MASKS and isinstance(before, dict) and before | value == value | before:
            merged[key] = before | value
        else:
            raise RecordError(
                f'record "{record["id"]}": {path} says something else under "{key}"; '
                "expected nothing there, or new names"
            )
    return merged
