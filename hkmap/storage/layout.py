"""The layout of a shard, version 1 (docs/design.md has the table). No other module knows it.

Encoded images, JSON records and ids end to end with offsets between them; maps, weights, labels, has_map and a
checksum a record as plain arrays; everything contiguous.
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
from hkmap.maps.check import Map
from hkmap.records import Record
from hkmap.storage.annotators import COLUMNS, MAPS, NAMES, OFFSETS, AnnotatorParts
from hkmap.storage.hdf5 import ContiguousFile, Parts, Strings, fill_file
from hkmap.storage.images import MAX_PIXELS, Pixels, decode_image, encode_png
from hkmap.storage.parsing import MOST_TEXT

FORMAT = "hkmap-shard"
VERSION = 1

PIXELS = "images/pixels"

# dataset → (kind of number, number of dimensions, rows beyond one a record)
_Form = tuple[str, int, int | None]
_FILES: dict[str, _Form] = {
    "images/bytes": ("u1", 1, None),
    "images/offsets": ("<u8", 1, 1),
}
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
_OPTIONAL: dict[str, _Form] = {
    "weights": ("<f4", 3, 0),
    MAPS: ("<f4", 3, None),
    OFFSETS: ("<u8", 1, 1),
    f"{NAMES}/bytes": ("u1", 1, None),
    f"{NAMES}/offsets": ("<u8", 1, None),
}


_ROW_BYTES = 8 + 1 + 4 + 3 * 8      # of a record: label, has_map, checksum, and where image, id and JSON end


@dataclass(frozen=True)
class Sample:
    """One record of a shard, whole: ``map`` and ``weight`` are (height, width); None where there is none.

    ``image_bytes`` is the image's file; or its pixels, (height, width) = ``pixel_size``, RGB, row by row.
    ``annotators`` holds the maps of single annotators, as large as ``map``, by the annotators' names.
    """

    record: Record
    image_bytes: bytes
    map: Map | None
    weight: Map | None
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


class ShardBuilder:
    """One shard in the making; the parts are spooled on disk, so memory stays small.

    It is made in ``path``, an empty temporary file; the images are written to their place in it at once. With
    ``pixel_size`` = (height, width) it holds pixels, without it image files. ``classes`` are those known by now.
    """

    def __init__(self, path: Path, classes: list[str], pixel_size: tuple[int, int] | None = None) -> None:
        self._path = path
        self.parts = Parts(path.parent)
        self._images = (
            self.parts.add_strings("images") if pixel_size is None else self.parts.add(PIXELS, "u1", (*pixel_size, 3))
        )
        self._maps = self.parts.add("maps", "<f4", (0, 0))
        self._has_map = self.parts.add("has_map", "?")
        self._labels = self.parts.add("labels", "<i8")
        self._ids = self.parts.add_strings("ids")
        self._records = self.parts.add_strings("records")
        self._checksums = self.parts.add("crc32", "<u4")
        self._annotators: AnnotatorParts | None = None
        self.parts.write_in_place("images/bytes" if pixel_size is None else PIXELS, path, _attributes(classes))

    @property
    def count(self) -> int:
        """How many records it holds."""
        return self._labels.rows

    def add(self, sample: Sample, text: bytes, crc32: int) -> None:
        """Append a checked sample, whose record reads ``text`` as JSON, with the checksum of both."""
        self._add_weight(sample)
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
        weighted = sample.weight is not None or "weights" in parts
        stored = sum(part.rows * part.row_bytes for name, part in parts.items() if name not in ("maps", "weights"))
        new = len(sample.image_bytes) + len(text) + len(sample.record["id"].encode()) + len(annotator_bytes(sample))
        numbers = _ROW_BYTES + 8 * (rows + len(sample.annotators))      # the annotators' offsets may begin with it
        return self.parts.begin + stored + new + numbers + rows * cell * (1 + weighted)

    def write(self, classes: list[str]) -> str:
        """Complete the shard; return its digest and drop the spools."""
        digest = fill_file(self._path, self.parts, _attributes(classes))
        self.close()
        return digest

    def close(self) -> None:
        """Drop the spools."""
        self.parts.close()

    def _add_weight(self, sample: Sample) -> None:
        weights = self.parts.by_name.get("weights")
        if weights is None and sample.weight is None:
            return
        if weights is None and sample.weight is not None:
            weights = self.parts.add("weights", "<f4", sample.weight.shape)
            for _ in range(self.count):      # no weights given: every cell is known
                weights.append(np.ones(weights.shape, np.float32))
        assert weights is not None
        weights.append(np.ones(weights.shape, np.float32) if sample.weight is None else sample.weight)

    def _add_annotators(self, sample: Sample) -> None:
        if self._annotators is None and sample.annotators and sample.map is not None:
            self._annotators = AnnotatorParts(self.parts, sample.map.shape, self.count)
        if self._annotators is not None:
            self._annotators.append(sample.annotators)


def _attributes(classes: list[str]) -> dict[str, str | int]:
    return {
        "format": FORMAT, "version": VERSION, "classes": dump_classes(classes), "created_with": f"hkmap {__version__}",
    }


def dump_classes(classes: list[str]) -> str:
    """Return the attribute for the class names: JSON, as HDF5 cannot hold a list of more than 64 KiB.

    Raises ShardError where it would be longer than a reader takes.
    """
    text = json.dumps(classes, ensure_ascii=False)
    if len(text) > MOST_TEXT:
        raise ShardError(f"the classes' names take {len(text)} characters, expected at most {MOST_TEXT}; shorten them")
    return text


def checksum(sample: Sample, text: bytes) -> int:
    """Return the CRC-32 of a sample whose record reads ``text``; the record itself is not looked at."""
    value = zlib.crc32(sample.image_bytes)
    value = zlib.crc32(map_bytes(sample), value)
    if sample.weight is not None:
        value = zlib.crc32(weight_bytes(sample), value)
    if sample.annotators:
        value = zlib.crc32(annotator_bytes(sample), value)
    value = zlib.crc32(sample.label.to_bytes(8, "little", signed=True), value)
    return zlib.crc32(text, value)


def map_bytes(sample: Sample) -> bytes:
    """Return the map as it is stored and summed, nothing where there is none."""
    return b"" if sample.map is None else np.asarray(sample.map, "<f4").tobytes()


def weight_bytes(sample: Sample) -> bytes:
    """Like map_bytes; weights of 1 everywhere are what a record without weights has, so they count as none."""
    if sample.weight is None or (sample.weight == 1).all():
        return b""
    return sample.weight.astype("<f4").tobytes()


def annotator_bytes(sample: Sample) -> bytes:
    """Return the names and maps of single annotators in their order, as they are stored and summed."""
    pieces = ((name.encode(), values.astype("<f4").tobytes()) for name, values in sample.annotators.items())
    return b"".join(piece for pair in pieces for piece in pair)


def check_header(file: ContiguousFile) -> None:
    """Raise ShardError where the file is no shard, or one of a newer version."""
    if file.attributes.get("format") != FORMAT:
        raise ShardError(
            f'{file.path}: HDF5, but no shard (it lacks the attribute format = "{FORMAT}"); make one with `hkmap pack`'
        )
    version = file.attributes.get("version")
    if not isinstance(version, int) or version < 1:
        raise ShardError(f"{file.path}: version {version!r}, expected a whole number from 1; the file is damaged")
    if version > VERSION:
        raise ShardError(f"{file.path}: shard version {version}, this hkmap reads up to {VERSION}; update hkmap")


def check_columns(file: ContiguousFile) -> int:
    """Return the number of records; raise ShardError where a dataset is missing, or of another type or shape."""
    images = _PIXELS if PIXELS in file.columns else _FILES
    annotators = {name: _OPTIONAL[name] for name in COLUMNS if any(other in file.columns for other in COLUMNS)}
    missing = (images | _LAYOUT | annotators).keys() - file.columns.keys()
    if missing:
        raise ShardError(f"{file.path}: has no dataset {min(missing)}; expected a shard of `hkmap pack`, copy it again")
    count = file.columns["labels"].shape[0]
    present = {name: layout for name, layout in _OPTIONAL.items() if name in file.columns}
    for name, (kind, dimensions, extra) in (images | _LAYOUT | present).items():
        column = file.columns[name]
        expected = np.dtype(kind)
        rows = column.shape[0] if extra is None else count + extra
        if column.dtype != expected or len(column.shape) != dimensions or column.shape[0] != rows:
            raise ShardError(
                f"{file.path}: {name} is {column.dtype} {column.shape}, expected {expected} with {dimensions} "
                f"dimensions and {rows} rows; the file is damaged or foreign"
            )
    for name in present.keys() & {"weights", MAPS}:
        if file.columns[name].shape[1:] != file.columns["maps"].shape[1:]:
            raise ShardError(f"{file.path}: {name} and maps differ in size; the file is damaged or foreign")
    if images is _PIXELS:
        _check_pixels(file)
    return count


def pixel_size_of(file: ContiguousFile) -> tuple[int, int] | None:
    """Return (height, width) of the images in a file whose columns were checked; None where they are files."""
    if PIXELS not in file.columns:
        return None
    _, height, width, _ = file.columns[PIXELS].shape
    return height, width


def _check_pixels(file: ContiguousFile) -> None:
    if file.columns.keys() & _FILES.keys():
        raise ShardError(f"{file.path}: holds images both as files and as pixels; the file is damaged or foreign")
    shape = file.columns[PIXELS].shape
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
