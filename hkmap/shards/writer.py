"""Records in, shards out: self-contained HDF5 files, which have their names when they are whole."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from hkmap.errors import ImageError, OutputError, RecordError, ShardError
from hkmap.files.atomic import locked, refuse_existing, remove_leftovers, replacing, sync_folder
from hkmap.files.hdf5 import file_digest, refuse_two_sizes, written_as
from hkmap.files.images import MAX_PIXELS, Pixels
from hkmap.maps.check import Map, check_map
from hkmap.maps.geometry import WHOLE, view_image
from hkmap.records import Record, dump_record, frame_of, label_of
from hkmap.shards.layout import Sample, ShardBuilder, checksum, stored_as
from hkmap.shards.reader import ShardReader
from hkmap.shards.sequence import ShardSequence

logger = logging.getLogger("hkmap")

# what a sample must be before it enters a shard


class Ready(NamedTuple):
    """A sample that may enter a shard, its record as JSON, and the checksum of both."""

    sample: Sample
    text: bytes
    checksum: int


def ready_sample(sample: Sample, pixel_size: tuple[int, int] | None = None) -> Ready:
    """Check a sample as far as it can be without those before it, its image decoded; this may be done in any thread.

    With ``pixel_size`` = (height, width) its image becomes pixels of this size, the whole image squashed into it: area
    averages where it shrinks, bilinear where it grows, as the engine sees it; without it, a file.
    """
    record = sample.record
    text = dump_record(record).rstrip(b"\n")
    pixels = sample.image(f'record "{record["id"]}": image {record.get("image", "")}')
    refuse_turned(record, pixels)
    stored = checked_sample(sample)
    if pixel_size is not None:
        squashed = view_image(pixels, WHOLE, pixel_size)
        stored = replace(stored, image_bytes=squashed.tobytes(), pixel_size=pixel_size)
    elif sample.pixel_size is not None:
        stored = replace(stored, image_bytes=sample.image_file(), pixel_size=None)
    return Ready(stored, text, checksum(stored, text))


def checked_sample(sample: Sample) -> Sample:
    """Return the sample with its maps checked, and those of its annotators in the order of their names.

    Raises MapError, OutputError for maps of two sizes, and RecordError for certainty or annotators' maps without a map.
    """
    place = f'record "{sample.record["id"]}"'
    if sample.map is None:
        if sample.certainty is not None:
            raise RecordError(f"{place}: has certainty but no map; certainty says which cells of a map count")
        if sample.annotators:
            raise RecordError(f"{place}: has maps of single annotators but no map; add the map of all of them")
        return sample
    values = check_map(sample.map, f"{place}: map")

    def checked(other: Map, name: str) -> Map:
        found = check_map(other, f"{place}: {name}")
        refuse_two_sizes(found.shape, values.shape, f"{place}: {name}")
        return found

    certainty = None if sample.certainty is None else checked(sample.certainty, "certainty")
    annotators = {name: checked(own, f'map of annotator "{name}"') for name, own in sorted(sample.annotators.items())}
    return replace(sample, map=values, certainty=certainty, annotators=annotators)


def refuse_turned(record: Record, pixels: Pixels) -> None:
    """Raise ImageError for a frame that lies the other way round than the image; another scale of it is all right."""
    if record.get("size") is None:
        return
    (width, height), (rows, columns) = frame_of(record), pixels.shape[:2]
    if _alike(width / height, rows / columns) and not _alike(width / height, columns / rows):
        raise ImageError(
            f'record "{record["id"]}": its size is {width}x{height} (width x height), but the image is '
            f"{columns}x{rows} once turned as its EXIF says; give the coordinates in the image as it is displayed"
        )


def _alike(one: float, other: float) -> bool:
    return abs(one / other - 1) < 0.01      # a scaled frame is rounded to whole pixels


class ClassNames:
    """The names of the labels: given once for all, or learnt from the records; ``known`` are those of other shards.

    Raises ShardError where what is given contradicts what is known.
    """

    def __init__(self, given: list[str] | None, known: Sequence[str] = ()) -> None:
        self._given = given
        self._names = dict(enumerate(given or []))
        self._count = max(len(self._names), len(known))
        for label, name in enumerate(known):
            if given is not None and label >= len(given):
                raise ShardError(f'{len(given)} classes given, but label {label} is "{name}" already; give them all')
            self._learn(label, name, "the series")

    def names(self) -> list[str]:
        """Return the names from label 0, "" where one is not known."""
        return [self._names.get(label, "") for label in range(self._count)]

    def learn(self, record: Record, label: int) -> None:
        """Take a record's "class" for the name of its label; raise RecordError or ShardError where that cannot be."""
        place = f'record "{record["id"]}"'
        name = record.get("class")
        if name is not None and not isinstance(name, str):
            raise RecordError(f"{place}: class is {str(name)[:60]}; expected a name")
        if self._given is not None and label >= len(self._given):
            raise ShardError(f"{place}: label {label} is beyond the {len(self._given)} classes, counted from 0")
        if label >= 0:
            self._learn(label, name or "", place)
            self._count = max(self._count, label + 1)

    def _learn(self, label: int, name: str, place: str) -> None:
        if name and self._names.setdefault(label, name) != name:
            raise ShardError(
                f'{place}: label {label} is class "{name}", but it was "{self._names[label]}" before; '
                "one label has one name: renumber one of the sources"
            )


# one shard, or a series of them


def numbered(path: Path, number: int) -> Path:
    """Return the name of one file of the series that ``path`` stands for.

    >>> numbered(Path("out/train.h5"), 3).as_posix()
    'out/train-00003.h5'
    """
    return path.with_name(f"{path.stem}-{number:05d}{path.suffix}")


def series_of(path: Path) -> list[Path]:
    """Return the files that have names of the series, in their order."""
    pattern = re.compile(re.escape(path.stem) + r"-[0-9]{5}" + re.escape(path.suffix))
    return sorted(other for other in path.parent.glob(f"*{path.suffix}") if pattern.fullmatch(other.name))


@dataclass(frozen=True)
class WriterOptions:
    """What is not asked for every day.

    ``shard_bytes`` begins another shard before one would take more; a record that alone takes more has its own.
    ``pixel_size`` = (height, width) stores decoded pixels, not the image files. ``append`` adds shards to a series.
    ``resume`` goes on after the shards that a run with the same options and records has finished.
    """

    shard_bytes: int | None = None
    pixel_size: tuple[int, int] | None = None
    append: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        height, width = self.pixel_size or (1, 1)
        if height * width > MAX_PIXELS:
            raise OutputError(f"images of {width}x{height} pixels, expected at most {MAX_PIXELS:,} in all; give less")


PLAIN = WriterOptions()


class WrittenShard(NamedTuple):
    """A shard that is complete."""

    path: Path
    records: int
    digest: str


class ShardWriter:
    """Writes records into one shard or, with ``shard_size``, into shards of so many records each.

    One shard is ``path``; several are NAME-00000.h5, NAME-00001.h5, and so on. Each gets its name when it is whole. An
    error in the context removes those of this run, unless ``options.resume`` keeps them; a killed process leaves them
    for a run that resumes. ``classes`` are the names of the labels from 0; without them they are learnt from the
    records, and a shard has those that were known when it was finished. ``overwrite`` replaces a former series whole,
    when all is well, so that none of its files stays among the new ones. Raises OutputError where something is in the
    way.

    A run that resumes is given the same records again, from the first; those that it finds in finished shards cost
    little more than the comparison. Raises RecordError where they differ.
    """

    def __init__(
        self, path: Path, *, classes: list[str] | None = None, shard_size: int | None = None, overwrite: bool = False,
        options: WriterOptions = PLAIN,
    ) -> None:
        if path.suffix != ".h5":
            raise OutputError(f"{path}: a shard's name ends in .h5; call it {path.stem}.h5")
        self._path = path
        self._given = classes
        self._shard_size = shard_size
        self._overwrite = overwrite
        self._options = options
        self._in_series = options.append or shard_size is not None or options.shard_bytes is not None
        self._lock = ExitStack()
        self._unnamed = ExitStack()      # with --overwrite shards get their names together, at the end
        self._builder: ShardBuilder | None = None
        self._classes = ClassNames(classes)
        self._ids: set[str] = set()
        self._earlier: frozenset[str] = frozenset()
        self._former: list[Path] = []
        self._taken_up = False
        self._rows: Iterator[bytes] = iter(())
        self._row: bytes | None = None
        self._number = 0
        self.written: list[WrittenShard] = []
        self.map_size: tuple[int, ...] = ()
        self.map_count = 0
        self.annotator_map_count = 0

    def __enter__(self) -> ShardWriter:
        with ExitStack() as lock, self._room():
            lock.enter_context(locked(self._path))
            self._look_around()
            self._lock = lock.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                with self._room():
                    self._end()
        except BaseException as late:
            error = late
            raise
        finally:
            with self._lock:
                self._close(error)

    @property
    def count(self) -> int:
        """How many records were added."""
        return len(self._ids)

    @property
    def classes(self) -> list[str]:
        """The names of the labels so far, "" where one is not known."""
        return self._classes.names()

    @property
    def awaits(self) -> bool:
        """Whether records are still to come that finished shards hold, and no others."""
        return self._row is not None

    def add(
        self, record: Record, image: bytes, values: Map | None, certainty: Map | None = None, *,
        annotators: Mapping[str, Map] | None = None,
    ) -> None:
        """Append a record with its encoded image, its map and the map's certainty, both (height, width), or None.

        ``annotators`` are the maps of single annotators by their names, as large as the map.
        Everything is checked first, and a record that raises leaves no trace: RecordError, ImageError (also for an
        image that does not decode), MapError, ShardError for a label without a class, OutputError for a map of
        another size than the first.
        """
        self.add_sample(Sample(record, image, values, certainty, label_of(record), annotators or {}))

    def add_sample(self, sample: Sample) -> None:
        """Like add, for a sample, such as one of another shard; its label is that of its record."""
        if self.passes_over(sample.record):
            return
        awaited = self.awaits
        ready = self.prepare(sample)
        self.check(ready)
        self.keep(ready, awaited=awaited)

    def passes_over(self, record: Record) -> bool:
        """Return whether a record is the next of those that finished shards hold; then it is in."""
        if not self._taken_up:
            self._take_up(record)
        if self._row is None or _text(record) != self._row:
            return False
        self._ids.add(record["id"])
        self._classes.learn(record, label_of(record))
        self._row = next(self._rows, None)
        return True

    def prepare(self, sample: Sample) -> Ready:
        """Check a sample, as far as it can be without those before it; from any thread."""
        return ready_sample(sample, self._options.pixel_size)

    def check(self, ready: Ready) -> None:
        """Compare what ``prepare`` has returned with the records before it, and learn the name of its class."""
        record, values = ready.sample.record, ready.sample.map
        place = f'record "{record["id"]}"'
        if record["id"] in self._ids:
            raise RecordError(f"{place}: this id comes twice; every record needs its own")
        if record["id"] in self._earlier:
            raise RecordError(f"{place}: this id is in the series already; every record needs its own")
        if values is not None:
            refuse_two_sizes(values.shape, self.map_size or values.shape, place)
        self._classes.learn(record, ready.sample.label)

    def keep(self, ready: Ready, *, awaited: bool) -> None:
        """Write what was checked. ``awaited`` says that it was read while others were awaited: RecordError."""
        sample = ready.sample
        if awaited:
            raise RecordError(
                f'record "{sample.record["id"]}": the shards that are there hold another record in its place; --resume '
                "needs the same records in the same order, or start over with --overwrite alone"
            )
        with self._room():
            self._open_shard(ready).add(*ready)
        self._ids.add(sample.record["id"])
        if sample.map is not None:
            self.map_size = sample.map.shape
            self.map_count += 1
        self.annotator_map_count += len(sample.annotators)

    def _look_around(self) -> None:
        """Find what has the names of this run and remove what killed runs left; OutputError for what is in the way."""
        path, options = self._path, self._options
        remove_leftovers(path.parent, rf"{re.escape(path.stem)}(-[0-9]{{5}})?\.h5")
        self._former = series_of(path) if self._in_series else [path] if path.exists() else []
        if options.append and not self._former:
            raise OutputError(
                f"{numbered(path, 0)}: not there, and --append adds to a series of shards that is; omit it for the "
                "first"
            )
        for former in [] if options.append or options.resume else self._former:
            if not self._overwrite and former.is_file():
                raise OutputError(
                    f"{former}: exists already; choose another name, replace it with --overwrite, or go on after it "
                    "with `hkmap pack --resume`"
                )
            refuse_existing(former, overwrite=self._overwrite)

    def _take_up(self, first: Record) -> None:
        """Begin with the shards that are there, as the ``first`` record comes: add to them, or go on after them."""
        self._taken_up = True
        options = self._options
        shards = [ShardReader(path) for path in self._former] if options.append or options.resume else []
        for shard in shards:
            if shard.pixel_size != options.pixel_size:
                raise OutputError(
                    f"{shard.path}: holds {stored_as(shard.pixel_size)}, and {stored_as(options.pixel_size)} are to be "
                    "added; a series holds one kind: give the same --store and --size"
                )
        own = 0
        if options.append:      # of a run that was killed and is resumed, the first shard begins with the same record
            starts = [shard.ids[:1] == [first["id"]] for shard in shards]
            own = starts.index(True) if options.resume and True in starts else len(shards)
        self._earlier = frozenset(identifier for shard in shards[:own] for identifier in shard.ids)
        self._classes = ClassNames(self._given, ShardSequence(self._former).classes if shards else [])
        self.map_size = next((shard.map_size for shard in shards if shard.has_map.any()), ())
        for shard in shards[own:]:
            self._refuse_other_size(shard, last=shard is shards[-1])
            self.map_count += int(shard.has_map.sum())
            self.annotator_map_count += shard.annotator_map_count
            self.written.append(WrittenShard(shard.path, len(shard), file_digest(shard.path)[0]))
        self._number = int(self._former[-1].stem[-5:]) + 1 if shards and self._in_series else 0
        self._rows = (shard.text(index) for shard in shards[own:] for index in range(len(shard)))
        self._row = next(self._rows, None)

    def _refuse_other_size(self, shard: ShardReader, *, last: bool) -> None:
        size = self._shard_size
        if size is not None and (len(shard) > size or (len(shard) < size and not last)):
            raise OutputError(
                f"{shard.path}: has {len(shard)} records, and --shard-size is {size}; --resume needs the same options, "
                "or start over with --overwrite alone"
            )

    def _open_shard(self, ready: Ready) -> ShardBuilder:
        """Return the shard in which there is room for one more."""
        if self._builder is not None and self._is_full(self._builder, ready):
            self._finish()
        if self._builder is None:
            if self.written and not self._in_series:
                raise OutputError(
                    f"{self._path}: is whole, with {self.count} records, and more come; choose another name, or "
                    "replace it with --overwrite"
                )
            self._builder = ShardBuilder(self._path.parent, self._options.pixel_size)
        return self._builder

    def _is_full(self, builder: ShardBuilder, ready: Ready) -> bool:
        if builder.count == self._shard_size:
            return True
        limit = self._options.shard_bytes
        return limit is not None and builder.bytes_with(ready.sample, ready.text) > limit

    def _finish(self) -> None:
        """Complete the shard in the making."""
        assert self._builder is not None
        path = numbered(self._path, self._number) if self._in_series else self._path
        with ExitStack() as stack:
            beside = stack.enter_context(replacing(path, overwrite=self._overwrite, durable=True))
            digest = self._builder.write(beside, self.classes)
            self.written.append(WrittenShard(path, self._builder.count, digest))      # Ctrl-C may follow its name
            if self._overwrite:
                self._unnamed.push(stack.pop_all())
        self._builder.close()
        self._builder, self._number = None, self._number + 1

    def _end(self) -> None:
        if self._row is not None:
            raise RecordError(
                f"{self._path}: the records end after {self.count}, and the shards that are there hold more; --resume "
                "needs the same records, or start over with --overwrite alone"
            )
        if not self.count:
            raise RecordError(f"{self._path}: no record left to pack; see the warnings before this")
        if self._builder is not None:
            self._finish()
        self._unnamed.close()
        sync_folder(self._path.parent)
        if self._overwrite:
            for path in {*self._former} - {shard.path for shard in self.written}:
                logger.warning("%s: removed, as it belonged to the shards that were replaced", path)
                path.unlink()

    def _close(self, error: BaseException | None) -> None:
        """Leave nothing behind; after an error, with --resume, the finished shards."""
        if self._builder is not None:
            self._builder.close()
        if error is None:
            return
        self._unnamed.__exit__(type(error), error, error.__traceback__)
        if not self._options.resume and not self._overwrite:
            for shard in self.written:
                shard.path.unlink(missing_ok=True)

    def _room(self) -> AbstractContextManager[None]:
        """Say in the error of a full disk what is left."""
        left = "finished shards wait for --resume" if self._options.resume else "nothing is left of it"
        return written_as(self._path, f"{left}, make room")


def _text(record: Record) -> bytes | None:
    """Return a record as it is packed, None where it cannot be."""
    try:
        return dump_record(record).rstrip(b"\n")
    except RecordError:
        return None


def summary_of(writer: ShardWriter) -> dict[str, Any]:
    """Return what was written, once the writer's context has ended; map_size is [height, width]."""
    return {
        "shards": [
            {"path": str(shard.path), "records": shard.records, "sha256": shard.digest} for shard in writer.written
        ],
        "records": writer.count,
        "maps": writer.map_count,
        "annotator_maps": writer.annotator_map_count,
        "map_size": list(writer.map_size) or None,
        "classes": writer.classes,
    }
