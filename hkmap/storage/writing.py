"""Write shards: records in, self-contained HDF5 files out, which have their names only when all is well."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from hkmap.errors import OutputError, RecordError, ShardError
from hkmap.maps.check import Map
from hkmap.records import Record, label_of
from hkmap.storage.atomic import refuse_existing, replacing
from hkmap.storage.hdf5 import refuse_two_sizes, replace_attribute, written_as
from hkmap.storage.images import MAX_PIXELS
from hkmap.storage.layout import Sample, ShardBuilder, dump_classes
from hkmap.storage.samples import Ready, ready_sample

logger = logging.getLogger("hkmap")

_MAX_LABEL = 99_999      # every number up to the largest label takes a place in the list of classes


@dataclass(frozen=True)
class WriterOptions:
    """What is not asked for every day: ``pixel_size`` = (height, width) stores decoded pixels, not the image files."""

    pixel_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        height, width = self.pixel_size or (1, 1)
        if height * width > MAX_PIXELS:
            raise OutputError(f"images of {height}x{width} pixels, expected at most {MAX_PIXELS:,} in all; say less")


PLAIN = WriterOptions()


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
        self, path: Path, *, classes: list[str] | None = None, shard_size: int | None = None, overwrite: bool = False,
        options: WriterOptions = PLAIN,
    ) -> None:
        if path.suffix != ".h5":
            raise OutputError(f"{path}: a shard's name ends in .h5; call it {path.stem}.h5")
        self._path = path
        self._shard_size = shard_size
        self._overwrite = overwrite
        self._options = options
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
        self.append(self.prepare(Sample(record, image, values, weight, label_of(record), annotators or {})))

    def prepare(self, sample: Sample) -> Ready:
        """Check a sample, as far as it can be without those before it, for ``append``; from any thread."""
        return ready_sample(sample, self._options.pixel_size)

    def append(self, ready: Ready) -> None:
        """Write what ``prepare`` has returned, once it was compared with the records before it."""
        record = ready.sample.record
        place = f'record "{record["id"]}"'
        if record["id"] in self._ids:
            raise RecordError(f"{place}: this id comes twice; every record needs its own")
        if ready.sample.map is not None:
            refuse_two_sizes(ready.sample.map.shape, self.map_size or ready.sample.map.shape, place)
        self._classes.learn(record, ready.sample.label)
        self._keep(ready)

    def _keep(self, ready: Ready) -> None:
        if self._builder.count == self._shard_size:
            self._finish()
            self._begin()
        with written_as(self._path):
            self._builder.add(*ready)
        sample = ready.sample
        self._ids.add(sample.record["id"])
        if sample.map is not None:
            self.map_size = sample.map.shape
            self.map_count += 1
        self.annotator_map_count += len(sample.annotators)

    def _begin(self) -> None:
        self._builder = ShardBuilder(self._path.parent, self._options.pixel_size)
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


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number:05d}.h5")


def _series(path: Path) -> list[Path]:
    pattern = re.compile(re.escape(path.stem) + r"-[0-9]{5}\.h5")
    return sorted(other for other in path.parent.glob("*.h5") if pattern.fullmatch(other.name))
