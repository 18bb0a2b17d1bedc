"""Read and write shards: self-contained HDF5 files of images, maps and labels."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from hkmap.errors import OutputError, RecordError, ShardError
from hkmap.maps.check import Map
from hkmap.records import Record, dump_record, label_of, parse_record
from hkmap.storage.annotators import checked_offsets, open_annotators
from hkmap.storage.atomic import refuse_existing, replacing
from hkmap.storage.hdf5 import ContiguousFile, replace_attribute, version_of, written_as
from hkmap.storage.images import Pixels, decode_image
from hkmap.storage.layout import (
    Sample,
    ShardBuilder,
    annotator_bytes,
    check_columns,
    check_header,
    checksum,
    dump_classes,
    map_bytes,
    parse_classes,
    weight_bytes,
)
from hkmap.storage.samples import checked_sample, refuse_turned
from hkmap.storage.userblock import file_digest

logger = logging.getLogger("hkmap")

# What differs between two copies of the same content: where its parts lie.
PATH_KEYS = frozenset({"image", "map", "masks", "unknown", "dont_look", "weights", "annotator_maps"})
_MAX_LABEL = 99_999      # every number up to the largest label takes a place in the list of classes


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


@dataclass
class WrittenShard:
    """A shard that is complete, though it has its name only when the writer's context has ended."""

    path: Path
    beside: Path
    classes: list[str]
    count: int
    digest: str


class ShardWriter:
    """Writes records into one shard or, with ``shard_size``, into shards of so many records each.

    One shard is ``path``; several are NAME-00000.h5, NAME-00001.h5, and so on. All get their names when the
    context ends well; anything else leaves nothing behind. ``classes`` are the names of the labels from 0; without
    them they are learnt from the records. ``overwrite`` replaces a former series of shards whole, so that none of
    its files stays among the new ones. Raises OutputError where something is in the way.
    """

    def __init__(
        self, path: Path, *, classes: list[str] | None = None, shard_size: int | None = None, overwrite: bool = False
    ) -> None:
        if path.suffix != ".h5":
            raise OutputError(f"{path}: a shard's name ends in .h5; call it {path.stem}.h5")
        self._path = path
        self._shard_size = shard_size
        self._overwrite = overwrite
        self._classes = _Classes(classes)
        self._ids: set[str] = set()
        self.map_size: tuple[int, ...] = ()
        self.map_count = 0
        self.annotator_map_count = 0
        self.written: list[WrittenShard] = []
        self._stack = ExitStack()

    def __enter__(self) -> ShardWriter:
        self._former = _series(self._path) if self._shard_size else [self._path]
        for path in self._former:
            refuse_existing(path, overwrite=self._overwrite)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            if not self.count:
                raise RecordError(f"{self._path}: no record left to pack; see the warnings before this")
            self._finish()
            self._agree_on_classes()
        self._remove_former()

    @property
    def count(self) -> int:
        """How many records were added."""
        return len(self._ids)

    @property
    def classes(self) -> list[str]:
        """The names of the labels so far, "" where one is not known."""
        return self._classes.names()

    def add(
        self, record: Record, image: bytes, values: Map | None, weight: Map | None = None, *,
        annotators: Mapping[str, Map] | None = None,
    ) -> None:
        """Append a record with its encoded image, its map and the map's weights, both (height, width), or None.

        ``annotators`` are the maps of single annotators by their names, as large as the map.
        Everything is checked first, and a record that raises leaves no trace: RecordError, ImageError (also for an
        image that does not decode), MapError, ShardError for a label without a class, OutputError for a map of
        another size than the first.
        """
        place = f'record "{record["id"]}"'
        if record["id"] in self._ids:
            raise RecordError(f"{place}: this id comes twice; every record needs its own")
        text = dump_record(record).rstrip(b"\n")
        refuse_turned(record, decode_image(image, f"{place}: image {record.get('image', '')}"))
        bare = Sample(record, image, values, weight, label_of(record), annotators or {})
        sample = checked_sample(bare, self.map_size)
        self._classes.learn(record, sample.label)
        self._keep(sample, text)

    def _keep(self, sample: Sample, text: bytes) -> None:
        if self._builder.count == self._shard_size:
            self._finish()
            self._begin()
        with written_as(self._path):
            self._builder.add(sample, text)
        self._ids.add(sample.record["id"])
        if sample.map is not None:
            self.map_size = sample.map.shape
            self.map_count += 1
        self.annotator_map_count += len(sample.annotators)

    def _begin(self) -> None:
        self._builder = ShardBuilder(self._path.parent)
        self._stack.callback(self._builder.close)

    def _finish(self) -> None:
        path = _numbered(self._path, len(self.written)) if self._shard_size else self._path
        beside = self._stack.enter_context(replacing(path, overwrite=self._overwrite, durable=True))
        with written_as(self._path):
            digest = self._builder.write(beside, self.classes)
        self.written.append(WrittenShard(path, beside, self.classes, self._builder.count, digest))

    def _agree_on_classes(self) -> None:
        """A label that came late has its name in the earlier shards too."""
        for shard in self.written:
            if shard.classes != self.classes:
                shard.digest = replace_attribute(shard.beside, "classes", dump_classes(self.classes))

    def _remove_former(self) -> None:
        for path in set(self._former) - {shard.path for shard in self.written}:
            logger.warning("%s: removed, as it belonged to the shards that were replaced", path)
            path.unlink()


class _Classes:
    """The names of the labels: given once for all, or learnt from the records."""

    def __init__(self, given: list[str] | None) -> None:
        self._given = given
        self._names = dict(enumerate(given or []))
        self._count = len(self._names)

    def names(self) -> list[str]:
        return [self._names.get(label, "") for label in range(self._count)]

    def learn(self, record: Record, label: int) -> None:
        place = f'record "{record["id"]}"'
        name = record.get("class")
        if name is not None and not isinstance(name, str):
            raise RecordError(f"{place}: class is {str(name)[:60]}; expected a name")
        if self._given is not None and label >= len(self._given):
            raise ShardError(f"{place}: label {label} is beyond the {len(self._given)} classes, counted from 0")
        if label > _MAX_LABEL:
            raise ShardError(f"{place}: label {label}, expected at most {_MAX_LABEL}; number the classes from 0")
        if label < 0:
            return
        if name and self._names.setdefault(label, name) != name:
            raise ShardError(
                f'{place}: label {label} is class "{name}", but it was "{self._names[label]}" before; '
                "one label has one name: renumber one of the sources"
            )
        self._count = max(self._count, label + 1)


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


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number:05d}.h5")


def _series(path: Path) -> list[Path]:
    pattern = re.compile(re.escape(path.stem) + r"-[0-9]{5}\.h5")
    return sorted(other for other in path.parent.glob("*.h5") if pattern.fullmatch(other.name))
