"""Read shards: self-contained HDF5 files of images, maps and labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from hkmap.errors import ShardError
from hkmap.maps.check import Map
from hkmap.records import Record, parse_record
from hkmap.storage.annotators import checked_offsets, open_annotators
from hkmap.storage.descriptors import version_of
from hkmap.storage.hdf5 import ContiguousFile
from hkmap.storage.images import Pixels
from hkmap.storage.layout import (
    PIXELS,
    Sample,
    check_columns,
    check_header,
    checksum,
    parse_classes,
    pixel_size_of,
)


class ShardReader:
    """Reads a shard by record number, from 0; usable from many threads, and picklable.

    Opening checks the layout, so that no damaged number is trusted later; raises ShardError. Whatever touches
    a record's image checks the record's checksum. ``pixel_size`` is (height, width) where it holds decoded pixels,
    None where it holds image files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = ContiguousFile(path)
        check_header(self._file)
        self._count = check_columns(self._file)
        self.classes = parse_classes(path, self._file.attributes.get("classes"))
        self.labels: npt.NDArray[np.int64] = self._file.whole("labels")
        self.has_map: npt.NDArray[np.bool_] = self._file.whole("has_map").view(np.uint8) != 0
        self.pixel_size = pixel_size_of(self._file)
        strings = ("ids", "records") if self.pixel_size else ("images", "ids", "records")
        self._offsets = {name: self._checked_offsets(name) for name in strings}
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
        """How many bytes the images take together, as they are stored."""
        return int(self.image_sizes.sum())

    @property
    def image_sizes(self) -> npt.NDArray[np.uint64]:
        """How many bytes each image takes, as it is stored, (records,)."""
        if self.pixel_size:
            return np.full(self._count, self._file.columns[PIXELS].row_bytes, np.uint64)
        return np.diff(self._offsets["images"])

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
        return [self._id(index, content[start:stop]) for index, (start, stop) in enumerate(self._spans("ids"))]

    @cached_property
    def maps(self) -> npt.NDArray[np.float32]:
        """(records, height, width), in memory from the first use on; zeros where has_map is False."""
        return np.asarray(self._file.whole("maps"), dtype=np.float32)

    def read(self, index: int) -> Sample:
        """Return record ``index`` whole; raise ShardError where its checksum does not fit."""
        bare, text = self._checked(index, None)
        record = parse_record(text, self._place(index))
        if record["id"] != self.ids[index]:
            raise ShardError(f"{self._place(index)}: the record calls itself {record['id']!r}; the file is damaged")
        return replace(bare, record=record)

    def read_bare(self, index: int, into: Pixels | None = None) -> Sample:
        """Like read, but the sample's record is empty: its JSON is checked and not parsed.

        Where the shard holds pixels of the size of ``into``, (height, width, 3) uint8 and contiguous, they are read
        to it, and the sample's image is a view of it.
        """
        return self._checked(index, into)[0]

    def image_bytes(self, index: int) -> bytes:
        """Return the encoded image, as it was packed; a PNG of it where pixels were packed."""
        return self.read(index).image_file()

    def image(self, index: int) -> Pixels:
        """Return the decoded image, (height, width, 3) RGB."""
        return self.read(index).image(f"{self.path}#{index}")

    def map(self, index: int) -> Map | None:
        """Return the map, (height, width); None where the record has none."""
        return self.read(index).map

    def text(self, index: int) -> bytes:
        """Return the record's JSON as it was packed; nothing else is read, so its checksum is not compared."""
        return self._string("records", index)

    def record(self, index: int) -> Record:
        """Return the record as it was packed."""
        return self.read(index).record

    def _checked(self, index: int, into: Pixels | None) -> tuple[Sample, bytes]:
        """Return a record's parts and its JSON, whose checksum fits."""
        if not 0 <= index < self._count:
            raise IndexError(f"record {index} of {self._count}")
        image, text = self._image(index, into), self._string("records", index)
        weight = self._row("weights", index) if self.has_weights else None
        annotators = self._annotators.of(index) if self._annotators else {}
        has_map = bool(self.has_map[index])
        values = self._row("maps", index) if has_map else None
        sample = Sample({}, image, values, weight, int(self.labels[index]), annotators, self.pixel_size)
        if checksum(sample, text) != self._checksums[index]:
            raise ShardError(f"{self._place(index)}: its checksum does not fit, so the file is damaged; copy it again")
        return sample if has_map or weight is None else replace(sample, weight=None), text

    def _place(self, index: int) -> str:
        return f'{self.path}#{index} (record "{self.ids[index]}")'

    def _id(self, index: int, content: bytes) -> str:
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            place = f"{self.path}#{index}"
            raise ShardError(f"{place}: its id is no UTF-8 text, so the file is damaged; copy it again") from error

    def _row(self, name: str, index: int) -> Map:
        return np.asarray(self._file.row(name, index), dtype=np.float32)

    def _image(self, index: int, into: Pixels | None) -> bytes:
        if self.pixel_size is None:
            return self._string("images", index)
        if into is None or into.shape[:2] != self.pixel_size:
            return self._file.read(PIXELS, index, index + 1)
        buffer = into.reshape(-1).data
        self._file.read_into(PIXELS, index, buffer)
        return cast("bytes", buffer)      # it is summed and viewed as bytes are

    def _string(self, name: str, index: int) -> bytes:
        start, stop = self._offsets[name][index : index + 2].tolist()
        return self._file.read(f"{name}/bytes", start, stop)

    def _spans(self, name: str) -> Iterator[tuple[int, int]]:
        offsets = self._offsets[name].tolist()
        return pairwise(offsets)

    def _checked_offsets(self, name: str) -> npt.NDArray[np.uint64]:
        return checked_offsets(self._file, f"{name}/offsets", self._file.columns[f"{name}/bytes"].shape[0])

    def _check_values(self) -> None:
        wrong = (self.labels < -1) | (self.labels >= len(self.classes))
        if wrong.any():
            index = int(wrong.argmax())
            raise ShardError(
                f"{self._place(index)}: label {self.labels[index]} for {len(self.classes)} classes; the file is "
                "damaged, copy it again"
            )
        if self.has_map.any() and 0 in self.map_size:
            place, size = self._place(int(self.has_map.argmax())), self.map_size
            raise ShardError(f"{place}: has a map, but maps are {size}; the file is damaged, copy it again")


def open_shard(path: Path) -> ShardReader:
    """Open ``path``, or return the open reader if it is among the last few and has not been replaced since."""
    return _recent(path.absolute(), version_of(path))


@lru_cache(maxsize=8)
def _recent(path: Path, version: tuple[int, ...]) -> ShardReader:
    return ShardReader(path)
