"""The layout of a shard (docs/shards.md has the table). No other module knows it, but for the names that it gives.

Encoded images, JSON records and ids end to end with offsets between them; maps, their certainty, labels, has_map and a
checksum a record as plain arrays. The maps of single annotators lie end to end too: record i has the maps from
annotator_maps/offsets[i] up to, not including, offsets[i + 1]; map j belongs to the name between
annotator_maps/names/offsets[j] and [j + 1]. Version 1 differs in two names alone: certainty was called weights, as a
dataset and as a key of the records.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hkmap import __version__
from hkmap.errors import ShardError
from hkmap.files.hdf5 import MOST_TEXT, SLACK, Columns, Parts, Strings
from hkmap.files.headers import MAX_PIXELS
from hkmap.files.images import Pixels, decode_image, encode_png
from hkmap.maps.check import Map
from hkmap.records import Record

FORMAT = "hkmap-shard"
VERSION = 2

IMAGES, PIXELS, CERTAINTY = "images", "images/pixels", "certainty"
MAPS, OFFSETS, NAMES = "annotator_maps/maps", "annotator_maps/offsets", "annotator_maps/names"
_CERTAINTY_1 = "weights"      # what version 1 calls it

# dataset → (kind of number, number of dimensions, rows beyond one a record; None: any number)
_Form = tuple[str, int, int | None]
_FILES: dict[str, _Form] = {"images/bytes": ("u1", 1, None), "images/offsets": ("<u8", 1, 1)}
_PIXELS: dict[str, _Form] = {PIXELS: ("u1", 4, 0)}
_LAYOUT: dict[str, _Form] = {
    "maps": ("<f4", 3, 0),
    "has_map": ("?", 1, 0),
    "labels": ("<i8", 1, 0),
    "ids/bytes": ("u1", 1, None),
    "ids/offsets": ("<u8", 1, 1),
    "records/bytes": ("u1", 1, None),
    "records/offsets": ("<u8", 1, 1),
    "crc32": ("<u4", 1, 0),
}
_CERTAIN: dict[str, _Form] = {CERTAINTY: ("<f4", 3, 0)}
_ANNOTATORS: dict[str, _Form] = {
    MAPS: ("<f4", 3, None),
    OFFSETS: ("<u8", 1, 1),
    f"{NAMES}/bytes": ("u1", 1, None),
    f"{NAMES}/offsets": ("<u8", 1, None),
}
_ROW_BYTES = 8 + 1 + 4 + 3 * 8      # of a record: label, has_map, checksum, and where image, id and JSON end


@dataclass(frozen=True)
class Sample:
    """One record of a shard, whole: ``map`` and ``certainty`` are (height, width); None where there is none.

    ``image_bytes`` is the image's file; or its pixels, (height, width) = ``pixel_size``, RGB, row by row.
    ``annotators`` holds the maps of single annotators, as large as ``map``, by the annotators' names.
    """

    record: Record
    image_bytes: bytes
    map: Map | None
    certainty: Map | None
    label: int
    annotators: Mapping[str, Map] = field(default_factory=dict)
    pixel_size: tuple[int, int] | None = None

    def image(self, place: str) -> Pixels:
        """Return the decoded image, (height, width, 3) RGB as displayed; raise ImageError, naming ``place``."""
        if self.pixel_size is None:
            return decode_image(self.image_bytes, place)
        return np.frombuffer(self.image_bytes, np.uint8).reshape(*self.pixel_size, 3)

    def image_file(self) -> bytes:
        """Return an image file's bytes: the ones that were packed, or a PNG of the pixels."""
        return self.image_bytes if self.pixel_size is None else encode_png(self.image("pixels"))


def labelled_record(sample: Sample) -> Record:
    """Return a shard's record with its label; one of another writer may have it in the column alone."""
    if sample.label < 0 or sample.record.get("label") is not None:
        return sample.record
    return {**sample.record, "label": sample.label}


def given_certainty(sample: Sample) -> Map | None:
    """Return the certainty a record came with; the others in a shard with certainty have 1 everywhere."""
    if sample.certainty is None or (not sample.record.get("certainty") and (sample.certainty == 1).all()):
        return None
    return sample.certainty


def stored_as(pixel_size: tuple[int, int] | None) -> str:
    """Return how a shard holds its images, for messages."""
    return "image files" if pixel_size is None else f"pixels of {pixel_size[1]}x{pixel_size[0]}"


# writing


class ShardBuilder:
    """One shard in the making; its datasets are spooled in ``folder``, so memory stays small.

    With ``pixel_size`` = (height, width) it holds pixels, without it image files.
    """

    def __init__(self, folder: Path, pixel_size: tuple[int, int] | None = None) -> None:
        self.parts = Parts(folder)
        self._images = (
            self.parts.add_strings(IMAGES) if pixel_size is None else self.parts.add(PIXELS, "u1", (*pixel_size, 3))
        )
        self._maps = self.parts.add("maps", "<f4", (0, 0))
        self._has_map = self.parts.add("has_map", "?")
        self._labels = self.parts.add("labels", "<i8")
        self._ids = self.parts.add_strings("ids")
        self._records = self.parts.add_strings("records")
        self._checksums = self.parts.add("crc32", "<u4")

    @property
    def count(self) -> int:
        """How many records it holds."""
        return self._labels.rows

    def add(self, sample: Sample, text: bytes, crc32: int) -> None:
        """Append a checked sample, whose record reads ``text`` as JSON, with the checksum of both."""
        self._add_certainty(sample)
        self._add_annotators(sample)
        if sample.map is None:
            self._maps.skip()
        else:
            self._maps.shape = sample.map.shape
            self._maps.append(sample.map)
        if isinstance(self._images, Strings):
            self._images.append(sample.image_bytes)
        else:
            self._images.append(sample.image("pixels"))
        self._has_map.append(sample.map is not None)
        self._labels.append(sample.label)
        self._ids.append(sample.record["id"].encode())
        self._records.append(text)
        self._checksums.append(crc32)

    def bytes_with(self, sample: Sample, text: bytes) -> int:
        """Return how many bytes the file takes at most with one more sample, a long list of classes aside."""
        parts, rows = self.parts.by_name, self.count + 1
        cell = parts["maps"].row_bytes if sample.map is None else sample.map.nbytes
        certain = sample.certainty is not None or CERTAINTY in parts
        stored = sum(part.rows * part.row_bytes for name, part in parts.items() if name not in ("maps", CERTAINTY))
        new = len(sample.image_bytes) + len(text) + len(sample.record["id"].encode()) + len(annotator_bytes(sample))
        numbers = _ROW_BYTES + 8 * (rows + len(sample.annotators))      # the annotators' offsets may begin with it
        return SLACK + stored + new + numbers + rows * cell * (1 + certain)

    def write(self, path: Path, classes: list[str]) -> str:
        """Write the shard to ``path``, an empty temporary file, and return its digest."""
        return self.parts.write(path, {
            "format": FORMAT, "version": VERSION, "classes": dump_classes(classes),
            "created_with": f"hkmap {__version__}",
        })

    def _add_certainty(self, sample: Sample) -> None:
        certainty = self.parts.by_name.get(CERTAINTY)
        if certainty is None and sample.certainty is None:
            return
        if certainty is None and sample.certainty is not None:
            certainty = self.parts.add(CERTAINTY, "<f4", sample.certainty.shape)
            for _ in range(self.count):      # none given: every cell is known
                certainty.append(np.ones(certainty.shape, np.float32))
        assert certainty is not None
        certainty.append(np.ones(certainty.shape, np.float32) if sample.certainty is None else sample.certainty)

    def _add_annotators(self, sample: Sample) -> None:
        parts = self.parts
        if MAPS not in parts.by_name:
            if not sample.annotators or sample.map is None:
                return
            self._people = parts.add(MAPS, "<f4", sample.map.shape), parts.add(OFFSETS, "<u8"), parts.add_strings(NAMES)
            for _ in range(self.count + 1):
                self._people[1].append(0)
        maps, offsets, names = self._people
        for name, values in sample.annotators.items():
            maps.append(values)
            names.append(name.encode())
        offsets.append(maps.rows)


def dump_classes(classes: list[str]) -> str:
    """Return the attribute for the class names: JSON, as HDF5 cannot hold a list of more than 64 KiB.

    Raises ShardError where it would be longer than a reader takes.
    """
    text = json.dumps(classes, ensure_ascii=False)
    if (size := len(text.encode())) > MOST_TEXT:
        raise ShardError(f"the classes' names take {size} bytes, expected at most {MOST_TEXT}; shorten them")
    return text


def checksum(sample: Sample, text: bytes) -> int:
    """Return the CRC-32 of a sample whose record reads ``text``; the record itself is not looked at."""
    value = zlib.crc32(sample.image_bytes)
    value = zlib.crc32(map_bytes(sample), value)
    if sample.certainty is not None:
        value = zlib.crc32(certainty_bytes(sample), value)
    if sample.annotators:
        value = zlib.crc32(annotator_bytes(sample), value)
    value = zlib.crc32(sample.label.to_bytes(8, "little", signed=True), value)
    return zlib.crc32(text, value)


def map_bytes(sample: Sample) -> bytes:
    """Return the map as it is stored and summed, nothing where there is none."""
    return b"" if sample.map is None else np.asarray(sample.map, "<f4").tobytes()


def certainty_bytes(sample: Sample) -> bytes:
    """Like map_bytes; 1 everywhere is what a record without certainty has, so it counts as none."""
    if sample.certainty is None or (sample.certainty == 1).all():
        return b""
    return sample.certainty.astype("<f4").tobytes()


def annotator_bytes(sample: Sample) -> bytes:
    """Return the names and maps of single annotators in their order, as they are stored and summed."""
    pieces = ((name.encode(), values.astype("<f4").tobytes()) for name, values in sample.annotators.items())
    return b"".join(piece for pair in pieces for piece in pair)


# reading


def check_layout(file: Columns) -> int:
    """Return the number of records; from here on the file's names are those of version 2.

    Raises ShardError where it is no shard, one of a newer version, or where a dataset is missing, or of another type or
    shape.
    """
    _check_header(file)
    if _CERTAINTY_1 in file.by_name and file.attributes["version"] == 1:
        file.by_name[CERTAINTY] = file.by_name.pop(_CERTAINTY_1)
    forms = (_PIXELS if PIXELS in file.by_name else _FILES) | _LAYOUT
    forms |= _CERTAIN if CERTAINTY in file.by_name else {}
    forms |= _ANNOTATORS if _ANNOTATORS.keys() & file.by_name.keys() else {}
    missing = forms.keys() - file.by_name.keys()
    if missing:
        raise ShardError(f"{file.path}: has no dataset {min(missing)}; expected a shard of `hkmap pack`, copy it again")
    count = file.by_name["labels"].shape[0]
    for name, (kind, dimensions, extra) in forms.items():
        column, expected = file.by_name[name], np.dtype(kind)
        rows = column.shape[0] if extra is None else count + extra
        if column.dtype != expected or len(column.shape) != dimensions or column.shape[0] != rows:
            raise ShardError(
                f"{file.path}: {name} is {column.dtype} {column.shape}, expected {expected} with {dimensions} "
                f"dimensions and {rows} rows; the file is damaged or foreign"
            )
    _check_sizes(file)
    return count


def _check_header(file: Columns) -> None:
    if file.attributes.get("format") != FORMAT:
        raise ShardError(
            f'{file.path}: HDF5, but no shard (it lacks the attribute format = "{FORMAT}"); make one with `hkmap pack`'
        )
    version = file.attributes.get("version")
    if not isinstance(version, int) or version < 1:
        raise ShardError(f"{file.path}: version {version!r}, expected a whole number from 1; the file is damaged")
    if version > VERSION:
        raise ShardError(f"{file.path}: shard version {version}, this hkmap reads up to {VERSION}; update hkmap")


def _check_sizes(file: Columns) -> None:
    shapes = {name: column.shape for name, column in file.by_name.items()}
    for name in shapes.keys() & {CERTAINTY, MAPS}:
        if shapes[name][1:] != shapes["maps"][1:]:
            raise ShardError(f"{file.path}: {name} and maps differ in size; the file is damaged or foreign")
    if MAPS in shapes and shapes[f"{NAMES}/offsets"][0] != shapes[MAPS][0] + 1:
        raise ShardError(f"{file.path}: {NAMES} and {MAPS} differ in number; the file is damaged or foreign")
    if PIXELS not in shapes:
        return
    shape = shapes[PIXELS]
    if shapes.keys() & _FILES.keys():
        raise ShardError(f"{file.path}: holds images both as files and as pixels; the file is damaged or foreign")
    if 0 in shape[1:] or shape[3] != 3 or shape[1] * shape[2] > MAX_PIXELS:
        raise ShardError(
            f"{file.path}: {PIXELS} is {shape}, expected (records, height, width, 3) with at most {MAX_PIXELS:,} "
            "pixels an image; the file is damaged or foreign"
        )


def parse_classes(path: Path, text: object) -> list[str]:
    """Return the class names of the attribute ``text``, which dump_classes wrote."""
    try:
        classes = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        classes = None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ShardError(f"{path}: its attribute classes is no JSON list of names; the file is damaged or foreign")
    return classes


def of_version_2(record: Record) -> Record:
    """Return a record of a version 1 shard with the names of today.

    >>> of_version_2({"id": "7", "weights": "w.npy"})
    {'id': '7', 'certainty': 'w.npy'}
    """
    return {CERTAINTY if key == _CERTAINTY_1 else key: value for key, value in record.items()}
