"""Read shards: self-contained HDF5 files of images, maps and labels."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from hkmap.errors import ShardError
from hkmap.files.hdf5 import Columns, Version, stated_digest, version_of
from hkmap.files.images import Pixels
from hkmap.maps.check import Map
from hkmap.records import Record, parse_record
from hkmap.shards.layout import (
    CERTAINTY,
    IMAGES,
    MAPS,
    NAMES,
    OFFSETS,
    PIXELS,
    Sample,
    check_layout,
    checksum,
    of_version_2,
    parse_classes,
)

Flags = npt.NDArray[np.bool_]
Offsets = npt.NDArray[np.uint64]


class ShardReader:
    """Reads a shard by record number, from 0; usable from many threads, after fork, and picklable.

    Opening checks the layout, so that no damaged number is trusted later; raises ShardError. Whatever touches
    a record's image checks the record's checksum. ``pixel_size`` is (height, width) where it holds decoded pixels,
    None where it holds image files; ``attributes`` are format, version and created_with. With ``strict`` off, a record
    that lies nowhere is no error before it is read: ``misplaced`` says what is wrong with it.
    """

    def __init__(self, path: Path, *, strict: bool = True) -> None:
        self.path = path
        self._file = Columns(path)
        self._count = check_layout(self._file)
        self.attributes: dict[str, Any] = self._file.attributes
        self.classes = parse_classes(path, self.attributes.get("classes"))
        self.labels: npt.NDArray[np.int64] = self._file.whole("labels")
        self.has_map: Flags = self._file.whole("has_map").view(np.uint8) != 0
        pixels = self._file.by_name.get(PIXELS)
        self.pixel_size = None if pixels is None else (pixels.shape[1], pixels.shape[2])      # height, width
        self._offsets: dict[str, Offsets] = {
            name: self._file.whole(f"{name}/offsets")
            for name in (IMAGES, "ids", "records", NAMES) if f"{name}/offsets" in self._file.by_name
        }
        self._people = self._file.whole(OFFSETS) if MAPS in self._file.by_name else None
        self._checksums = self._file.whole("crc32")
        self.misplaced = self._find_misplaced()
        if strict and self.misplaced:
            raise self._error(*min(self.misplaced.items()))

    def __len__(self) -> int:
        return self._count

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardReader, (self.path,)

    @property
    def map_size(self) -> tuple[int, int]:
        """(height, width) of the maps; (0, 0) where no record has one."""
        height, width = self._file.by_name["maps"].shape[1:]
        return height, width

    @property
    def image_sizes(self) -> npt.NDArray[np.uint64]:
        """How many bytes each image takes, as it is stored, (records,)."""
        if self.pixel_size:
            return np.full(self._count, self._file.by_name[PIXELS].row_bytes, np.uint64)
        return np.diff(self._offsets[IMAGES])

    @property
    def has_certainty(self) -> bool:
        return CERTAINTY in self._file.by_name

    @property
    def annotator_map_count(self) -> int:
        """How many maps of single annotators it holds."""
        return self._file.by_name[MAPS].shape[0] if self._people is not None else 0

    @cached_property
    def digest(self) -> str:
        """A sha256 that tells contents apart: the one that the file states, else one of its records' checksums."""
        return stated_digest(self.path) or hashlib.sha256(self._checksums.tobytes()).hexdigest()

    @cached_property
    def ids(self) -> list[str]:
        """The ids of all records, in order, in memory from the first use on."""
        return self.read_ids()

    def read_ids(self) -> list[str]:
        """Return the ids of all records, in order, and keep none of them."""
        content = self._file.read("ids/bytes", 0, self._file.by_name["ids/bytes"].shape[0])
        spans = pairwise(self._offsets["ids"].tolist())
        return [
            self._text(content[start:stop], f"{self.path}#{row}: its id") for row, (start, stop) in enumerate(spans)
        ]

    @cached_property
    def maps(self) -> npt.NDArray[np.float32]:
        """(records, height, width), in memory from the first use on; zeros where has_map is False."""
        return np.asarray(self._file.whole("maps"), dtype=np.float32)

    def id_of(self, index: int) -> str:
        """Return a record's id, as far as it can be read."""
        end = self._file.by_name["ids/bytes"].shape[0]
        start, stop = (min(place, end) for place in self._offsets["ids"][index : index + 2].tolist())
        return self._file.read("ids/bytes", start, max(start, stop)).decode(errors="replace")

    def read(self, index: int) -> Sample:
        """Return record ``index`` whole; raise ShardError where its checksum does not fit."""
        bare, text = self._checked(index, None)
        record = parse_record(text, self._place(index))
        if record["id"].encode() != self._string("ids", index):
            raise ShardError(f"{self._place(index)}: the record calls itself {record['id']!r}; the file is damaged")
        return replace(bare, record=of_version_2(record) if self.attributes["version"] == 1 else record)

    def read_bare(self, index: int, into: Pixels | None = None) -> Sample:
        """Like read, but the sample's record is empty: its JSON is checked and not parsed.

        Where the shard holds pixels of the size of ``into``, (height, width, 3) uint8 and contiguous, they are read
        to it, and the sample's image is a view of it.
        """
        return self._checked(index, into)[0]

    def image(self, index: int) -> Pixels:
        """Return the decoded image, (height, width, 3) RGB."""
        return self.read(index).image(f"{self.path}#{index}")

    def map(self, index: int) -> Map | None:
        """Return the map, (height, width); None where the record has none."""
        return self.read(index).map

    def text(self, index: int) -> bytes:
        """Return the record's JSON as it was packed; nothing else is read, so its checksum is not compared."""
        return self._string("records", index)

    def stored_image(self, index: int, *, middle: int | None = None) -> bytes:
        """Return an image's bytes as they are stored, or so many in their middle; no checksum is compared."""
        if self.pixel_size is not None or middle is None:
            return self._image(index, None)
        start, stop = self._offsets[IMAGES][index : index + 2].tolist()
        start = max(start, (start + stop - middle) // 2)
        return self._file.read(f"{IMAGES}/bytes", start, min(stop, start + middle))

    def record(self, index: int) -> Record:
        """Return the record as it was packed."""
        return self.read(index).record

    def _checked(self, index: int, into: Pixels | None) -> tuple[Sample, bytes]:
        """Return a record's parts and its JSON, whose checksum fits."""
        if not 0 <= index < self._count:
            raise IndexError(f"record {index} of {self._count}")
        if index in self.misplaced:
            raise self._error(index, self.misplaced[index])
        image, text = self._image(index, into), self._string("records", index)
        certainty = self._row(CERTAINTY, index) if self.has_certainty else None
        has_map = bool(self.has_map[index])
        values = self._row("maps", index) if has_map else None
        sample = Sample({}, image, values, certainty, int(self.labels[index]), self._annotators(index), self.pixel_size)
        if checksum(sample, text) != self._checksums[index]:
            raise self._error(index, "its checksum does not fit, so the file is damaged; copy it again")
        return sample if has_map or certainty is None else replace(sample, certainty=None), text

    def _place(self, index: int) -> str:
        return f'{self.path}#{index} (record "{self.id_of(index)}")'

    def _error(self, index: int, sentence: str) -> ShardError:
        return ShardError(f"{self._place(index)}: {sentence}")

    def _row(self, name: str, index: int) -> Map:
        return np.asarray(self._file.rows(name, index, index + 1)[0], dtype=np.float32)

    def _image(self, index: int, into: Pixels | None) -> bytes:
        if self.pixel_size is None:
            return self._string(IMAGES, index)
        if into is None or into.shape[:2] != self.pixel_size:
            return self._file.read(PIXELS, index, index + 1)
        buffer = into.reshape(-1).data
        self._file.read_into(PIXELS, index, buffer)
        return cast("bytes", buffer)      # it is summed and viewed as bytes are

    def _string(self, name: str, index: int) -> bytes:
        start, stop = self._offsets[name][index : index + 2].tolist()
        return self._file.read(f"{name}/bytes", start, stop)

    def _annotators(self, index: int) -> dict[str, Map]:
        if self._people is None:
            return {}
        start, stop = self._people[index : index + 2].tolist()
        maps = np.asarray(self._file.rows(MAPS, start, stop), dtype=np.float32)
        place = f"{self.path}#{index}: an annotator's name"
        return {self._text(self._string(NAMES, start + row), place): own for row, own in enumerate(maps)}

    def _text(self, content: bytes, place: str) -> str:
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise ShardError(f"{place} is no UTF-8 text, so the file is damaged; copy it again") from error

    def _find_misplaced(self) -> dict[int, str]:
        """Return what is wrong with the numbers that say where a record's parts lie, or with its label."""
        found: dict[int, str] = {}

        def add(wrong: Flags, sentence: str) -> None:
            for index in np.flatnonzero(wrong).tolist():
                told = sentence.format(label=self.labels[index])
                found.setdefault(index, f"{told}; the file is damaged, copy it again")

        for name in (IMAGES, "ids", "records"):
            if name in self._offsets:
                wrong = _misplaced(self._offsets[name], self._file.by_name[f"{name}/bytes"].shape[0])
                add(wrong, f"{name}/offsets do not rise to the end of its data here")
        if self._people is not None:
            names = _misplaced(self._offsets[NAMES], self._file.by_name[f"{NAMES}/bytes"].shape[0])
            before = np.concatenate([[0], np.cumsum(names)])      # of the maps, how many have no name
            ends = np.minimum(self._people, len(names))
            wrong = _misplaced(self._people, len(names)) | (before[ends[1:]] > before[ends[:-1]])
            add(wrong, f"{OFFSETS} do not rise to the end of its data here")
        add((self.labels < -1) | (self.labels >= len(self.classes)), f"label {{label}} for {len(self.classes)} classes")
        if 0 in self.map_size:
            add(self.has_map, f"has a map, but maps are {self.map_size}")
        return found


def _misplaced(offsets: Offsets, end: int) -> Flags:
    """Return (n,) where the parts between n + 1 offsets do not follow each other from 0 to ``end``."""
    wrong: Flags = (offsets[1:] < offsets[:-1]) | (offsets[1:] > end) | (offsets[:-1] > end)
    if len(wrong):
        wrong[0] |= offsets[0] != 0
        wrong[-1] |= offsets[-1] != end
    return wrong


def open_shard(path: Path) -> ShardReader:
    """Open ``path``, or return the open reader if it is among the last few and has not been replaced since."""
    return _recent(path, version_of(path))


@lru_cache(maxsize=8)
def _recent(path: Path, version: Version) -> ShardReader:
    return ShardReader(path)
