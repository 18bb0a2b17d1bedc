"""Files of annotations in any format: as records of their images, or joined to the records of a stream."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from hkmap.errors import RecordError, SourceError
from hkmap.files.images import image_size
from hkmap.records import Record, Rejects, each, reference_of, shown
from hkmap.sources.formats import FORMATS, Format, recognised
from hkmap.sources.frames import SHAPES, fit_record
from hkmap.sources.images import few, nfc, path_below
from hkmap.sources.matching import PathIndex, find_image, image_paths
from hkmap.sources.shapes import told_apart
from hkmap.sources.tables import Table, table_records
from hkmap.stream.references import image_frame

logger = logging.getLogger("hkmap")

OWN = {"id", "image", "names", "size", "frame"}     # what describes the image and is no annotation
MASKS = ("masks", "unknown", "dont_look", "mask_users")
FEW = 3      # names in a message


def choose_format(path: Path, name: str | None, table: Table | None) -> Format:
    """Return the format called ``name``, or else recognised by the content; with a ``table``, the format that reads it.

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
    index = PathIndex(image_paths(images))
    seen: dict[Path, str] = {}

    def placed(record: Record) -> Record:
        name = _name(record, source)
        known = next((one for one in (name, *record.get("names", ())) if index.find(one)), name)
        image = find_image(index, images, known)
        if image in seen:
            raise SourceError(f'{path}: "{name}" and "{seen[image]}" are both {image}; expected each image once')
        seen[image] = name
        fitted = fit_record(record, image_size(image), str(image))
        own = {"id": path_below(images, image), "image": str(image), "size": fitted["size"]}
        return own | {key: value for key, value in fitted.items() if key not in OWN}

    count = lines = 0
    for record in each(source.read(path, rejects), placed, rejects):
        count, lines = count + 1, lines + ("lines" in record)
        yield record
    _warn_of_lines(path, lines)
    if not count and not rejects.count:
        raise SourceError(f"{path}: read as {source.name}, no annotation in it; use another --format if that is wrong")


def joined_records(records: Iterable[Record], path: Path, *, source: Format, rejects: Rejects) -> Iterator[Record]:
    """Yield the ``records`` with the annotations of the file at ``path`` added to those that it is about.

    What the file calls its image is compared with a record's id, and with its image's path, file name and stem.
    Annotations are appended to what a record has. Records that the file is not about go on as they are; a warning
    counts them, and names the annotations that fit none. Raises SourceError where nothing fits at all.
    """
    annotations = _by_name(path, source, rejects)
    lines = 0

    def add(record: Record, name: str) -> Record:
        nonlocal lines
        lines += "lines" in annotations[name]
        return _merged(record, fit_record(annotations[name], image_frame(record), f'record "{record["id"]}"'), path)

    how = match_by_image(_spellings(annotations), path)
    yield from match(records, path, annotations, how, add, rejects)
    _warn_of_lines(path, lines)


class Match(NamedTuple):
    """How the records of a stream are compared with the names in a file.

    ``find`` returns the name that a record fits, ``told`` what of the record was compared; the other texts say what a
    name stands for. With ``once`` two records may not fit one name.
    """

    find: Callable[[Record], str | None]
    told: Callable[[Record], str]
    names: str = "images"
    unused: str = "annotations of %d images"
    once: bool = True


def match_by_image(
    spellings: Mapping[str, set[str]], path: Path, unused: str = "annotations of %d images"
) -> Match:
    """Compare names, by their ``spellings``, with a record's id, and with its image's path, file name and stem."""
    index = PathIndex(spellings)

    def find(record: Record) -> str | None:
        image = reference_of(record, "image")
        found = {name for other in (index.find(image) if image else []) for name in spellings[other]}
        found |= spellings.get(nfc(record["id"]), set())
        if len(found) > 1:
            raise SourceError(
                f'{path}: record "{record["id"]}" ({image}) may be {few(sorted(found), 3)}; '
                "expected one of them, give the images different names"
            )
        return next(iter(found), None)

    return Match(find, lambda record: reference_of(record, "image") or str(record["id"]), unused=unused)


def match(
    records: Iterable[Record], path: Path, names: Collection[str], how: Match,
    add: Callable[[Record, str], Record], rejects: Rejects,
) -> Iterator[Record]:
    """Yield the records, each with what ``add`` joins to it from the name in ``path`` that it fits.

    Records that fit none go on as they are; a warning counts them, and another counts the ``names`` without a record.
    Raises SourceError where nothing fits at all.
    """
    used: dict[str, str] = {}
    missed: list[str] = []
    told: list[str] = []

    def joined(record: Record) -> Record:
        told.extend([how.told(record)] if len(told) < FEW else [])
        name = how.find(record)
        if name is None:
            missed.append(record["id"])
            return record
        if how.once and name in used:
            raise SourceError(
                f'{path}: "{name}" fits the records "{used[name]}" and "{record["id"]}"; '
                "expected an image to be one record"
            )
        used[name] = record["id"]
        return add(record, name)

    count = 0
    for record in each(records, joined, rejects):
        count += 1
        yield record
    left = [name for name in names if name not in used]
    if not used and not rejects.count:
        raise SourceError(
            f"{path}: none of its {how.names} ({few(left, FEW) or 'nothing'}) is one of the {count} records "
            f"({few(dict.fromkeys(told))}); compare their names"
        )
    if missed:
        logger.warning("%s: has nothing about %d of %d records: %s", path, len(missed), count, few(missed))
    if left:
        logger.warning(f"%s: {how.unused} fit no record: %s", path, len(left), few(left))


def _by_name(path: Path, source: Format, rejects: Rejects) -> dict[str, Record]:
    annotations: dict[str, Record] = {}
    for annotation in source.read(path, rejects):
        name = _name(annotation, source)
        if annotations.setdefault(name, annotation) is not annotation:
            raise SourceError(f'{path}: "{name}" is annotated twice; expected each image once')
    return annotations


def _spellings(annotations: Mapping[str, Record]) -> dict[str, set[str]]:
    """Return the names of the annotated images by these names themselves, and by others that the images may have."""
    found = {name: {name} for name in annotations}
    for name, record in annotations.items():
        for other in record.get("names", ()):
            found.setdefault(other, set()).add(name)
    return found


def _name(record: Record, source: Format) -> str:
    name = record.get("image")
    if not isinstance(name, str) or not name or not isinstance(record.get("id"), str):
        raise SourceError(f"the format {source.name} gave a record without the texts id and image; mend its reader")
    return nfc(name)


def _warn_of_lines(path: Path, count: int) -> None:
    if count:
        logger.warning("%s: lines on %d images are kept under the key lines, which no filter draws", path, count)


def _merged(record: Record, annotation: Record, path: Path) -> Record:
    """Append the shapes, add the masks under new names, and add the keys that the record lacks."""
    record, annotation = told_apart(record, annotation)
    merged = {**record, "size": annotation["size"]}
    for key in annotation.keys() - OWN:
        before, value = record.get(key), annotation[key]
        if before is None or (before == value and key not in SHAPES):
            merged[key] = value
        elif key in SHAPES and isinstance(before, list):
            merged[key] = before + value
        elif key == "annotators" and isinstance(before, list):
            merged[key] = list(dict.fromkeys(before + value))
        elif key in MASKS and isinstance(before, dict) and before | value == value | before:
            merged[key] = before | value
        else:
            both = f' ("{shown(value)}", not "{shown(before)}")' if isinstance(before, str) else ""
            raise RecordError(
                f'record "{record["id"]}": {path} has something else under "{key}"{both}; '
                "expected nothing there, or new names"
            )
    return merged
