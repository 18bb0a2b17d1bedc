"""Read shards: self-contained HDF5 files of images, maps and labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hkmap.errors import ShardError
from hkmap.maps.check import Map
from hkmap.records import Record, parse_record
from hkmap.storage.annotators import checked_offsets, open_annotators
from hkmap.storage.hdf5 import ContiguousFile, version_of
from hkmap.storage.images import Pixels, decode_image
from hkmap.storage.layout import (
    Sample,
    annotator_bytes,
    check_columns,
    check_header,
    checksum,
    map_bytes,
    parse_classes,
    weight_bytes,
)
from hkmap.storage.userblock import file_digest

# What differs between two copies of the same content: where its parts lie.
PATH_KEYS = frozenset({"image", "map", "masks", "unknown", "dont_look", "weights", "annotator_maps"})


class ShardReader:
    """Reads a shard by record number, from 0; usable from many threads, and picklable.

    Opening checks the layout, so that no damaged number is trusted later; raises ShardError. Whatever touches
    a record's image checks the record's checksum.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = ContiguousFile(path)
        check_header(self._file)
        self._count = check_columns(self._file)
        self.classes = parse_classes(path, self._file.attributes.get("classes"))
        self.labels: npt.NDArray[np.int64] = self._file.whole("labels")
        self.has_map: npt.NDArray[np.bool_] = self._file.whole("has_map").view(np.uint8) != 0
        self._offsets = {name: self._checked_offsets(name) for name in ("images", "ids", "records")}
        self._annotators = open_annotators(self._file)
        self._checksums = self._file.whole("crc32")
        self._check_values()

    def __len__(self) -> int:
        return self._count

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardReader, (self.path,)

    @property
    def attributes(self) -> dict[str, Any]:
        """The file's attributes: format, version, created_with."""
        return dict(self._file.attributes)

    @property
    def map_size(self) -> tuple[int, int]:
        """(height, width) of the maps; (0, 0) where no record has one."""
        height, width = self._file.columns["maps"].shape[1:]
        return height, width

    @property
    def image_total(self) -> int:
        """How many bytes the encoded images take together."""
        return self._file.columns["images/bytes"].shape[0]

    @property
    def has_weights(self) -> bool:
        return "weights" in self._file.columns

    @property
    def annotator_map_count(self) -> int:
        """How many maps of single annotators it holds."""
        return self._annotators.count if self._annotators else 0

    @cached_property
    def ids(self) -> list[str]:
        """The ids of all records, in order."""
        content = self._file.read("ids/bytes", 0, self._file.columns["ids/bytes"].shape[0])
        try:
            return [content[start:stop].decode() for start, stop in self._spans("ids")]
        except UnicodeDecodeError as error:
            raise ShardError(f"{self.path}: an id is no UTF-8 text; the file is damaged, copy it again") from error

    @cached_property
    def maps(self) -> npt.NDArray[np.float32]:
        """(records, height, width), in memory from the first use on; zeros where has_map is False."""
        return np.asarray(self._file.whole("maps"), dtype=np.float32)

    def read(self, index: int) -> Sample:
        """Return record ``index`` whole; raise ShardError where its checksum does not fit."""
        if not 0 <= index < self._count:
            raise IndexError(f"record {index} of {self._count}")
        image, text = self._string("images", index), self._string("records", index)
        weight = self._row("weights", index) if self.has_weights else None
        annotators = self._annotators.of(index) if self._annotators else {}
        has_map = bool(self.has_map[index])
        values = self._row("maps", index) if has_map else None
        bare = Sample({}, image, values, weight, int(self.labels[index]), annotators)
        if checksum(bare, text) != self._checksums[index]:
            raise ShardError(f"{self._place(index)}: its checksum does not fit, so the file is damaged; copy it again")
        record = parse_record(text, self._place(index))
        if record["id"] != self.ids[index]:
            raise ShardError(f"{self._place(index)}: the record calls itself {record['id']!r}; the file is damaged")
        return Sample(record, image, values, weight if has_map else None, bare.label, annotators)

    def image_bytes(self, index: int) -> bytes:
        """Return the encoded image, as it was packed."""
        return self.read(index).image_bytes

    def image(self, index: int) -> Pixels:
        """Return the decoded image, (height, width, 3) RGB."""
        return decode_image(self.image_bytes(index), f"{self.path}#{index}")

    def map(self, index: int) -> Map | None:
        """Return the map, (height, width); None where the record has none."""
        return self.read(index).map

    def record(self, index: int) -> Record:
        """Return the record as it was packed."""
        return self.read(index).record

    def _place(self, index: int) -> str:
        return f'{self.path}#{index} (record "{self.ids[index]}")'

    def _row(self, name: str, index: int) -> Map:
        return np.asarray(self._file.rows(name, index, index + 1)[0], dtype=np.float32)

    def _string(self, name: str, index: int) -> bytes:
        offsets = self._offsets[name]
        return self._file.read(f"{name}/bytes", int(offsets[index]), int(offsets[index + 1]))

    def _spans(self, name: str) -> Iterator[tuple[int, int]]:
        offsets = self._offsets[name].tolist()
        return pairwise(offsets)

    def _checked_offsets(self, name: str) -> npt.NDArray[np.uint64]:
        return checked_offsets(self._file, f"{name}/offsets", self._file.columns[f"{name}/bytes"].shape[0])

    def _check_values(self) -> None:
        if self._count and not -1 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ShardError(
                f"{self.path}: labels from {self.labels.min()} to {self.labels.max()} for {len(self.classes)} classes; "
                "the file is damaged, copy it again"
            )
        if self.has_map.any() and 0 in self.map_size:
            raise ShardError(f"{self.path}: some records have maps, but maps are {self.map_size}; the file is damaged")


def open_shard(path: Path) -> ShardReader:
    """Open ``path``, or return the open reader if it is among the last few and has not been replaced since."""
    return _recent(path.absolute(), version_of(path))


@lru_cache(maxsize=8)
def _recent(path: Path, version: tuple[int, ...]) -> ShardReader:
    return ShardReader(path)


def verify_digest(path: Path) -> str:
    """Return the sha256 of everything after the first 512 bytes; raise ShardError if the file states another.

    This asks nothing of libhdf5, which may hang or crash on a damaged file: call it first.
    """
    stated, found = file_digest(path)
    if stated != found:
        raise ShardError(f"{path}: its bytes have the sha256 {found[:12]}…, expected {stated[:12]}…; copy it again")
    return found


def content_digest(reader: ShardReader) -> str:
    """Return a sha256 over what the shard holds, paths aside: a shard unpacked and packed again has the same."""
    digest = hashlib.sha256()
    for index in range(len(reader)):
        sample = reader.read(index)
        record = {key: value for key, value in sample.record.items() if key not in PATH_KEYS}
        text = json.dumps(record, sort_keys=True).encode()
        pieces = (text, sample.image_bytes, map_bytes(sample), weight_bytes(sample))
        for piece in (*pieces, annotator_bytes(sample)) if sample.annotators else pieces:
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)
        digest.update(sample.label.to_bytes(8, "little", signed=True))
    return digest.hexdigest()
