"""Write shards: records in, self-contained HDF5 files out, which have their names only when all is well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from hkmap.errors import OutputError, RecordError
from hkmap.maps.check import Map
from hkmap.records import Record, dump_record, label_of
from hkmap.storage.classes import ClassNames
from hkmap.storage.hdf5 import refuse_two_sizes, written_as
from hkmap.storage.images import MAX_PIXELS
from hkmap.storage.layout import Sample, ShardBuilder
from hkmap.storage.progress import Plan, Progress, WrittenShard
from hkmap.storage.samples import Ready, ready_sample


@dataclass(frozen=True)
class WriterOptions:
    """What is not asked for every day.

    ``shard_bytes`` begins another shard before one would take more; a record that alone takes more has its own.
    ``pixel_size`` = (height, width) stores decoded pixels, not the image files. ``append`` adds shards to a series.
    ``resume`` goes on where a run with the same options was broken off.
    """

    shard_bytes: int | None = None
    pixel_size: tuple[int, int] | None = None
    append: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        height, width = self.pixel_size or (1, 1)
        if height * width > MAX_PIXELS:
            raise OutputError(f"images of {height}x{width} pixels, expected at most {MAX_PIXELS:,} in all; say less")


PLAIN = WriterOptions()


class ShardWriter:
    """Writes records into one shard or, with ``shard_size``, into shards of so many records each.

    One shard is ``path``; several are NAME-00000.h5, NAME-00001.h5, and so on. All get their names when the
    context ends well; anything else leaves nothing behind but, with ``options.resume`` or if the process is killed,
    the finished shards in a hidden folder beside, for a run that resumes. ``classes`` are the names of the labels from
    0; without them they are learnt from the records. ``overwrite`` replaces a former series of shards whole, so that
    none of its files stays among the new ones. Raises OutputError where something is in the way.

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
        self._plan = Plan(classes, shard_size, options.shard_bytes, options.pixel_size, options.append)
        self._resume = options.resume
        self._progress = Progress(path, self._plan, overwrite=overwrite, resume=options.resume)
        self._builder: ShardBuilder | None = None
        self._begun = 0
        self._background = ThreadPoolExecutor(1, thread_name_prefix="hkmap-finish")
        self._finishing: Future[None] | None = None
        self._ids: set[str] = set()
        self._rows: Iterator[bytes] = iter(())
        self._row: bytes | None = None
        self.map_size: tuple[int, ...] = ()
        self.map_count = 0
        self.annotator_map_count = 0

    def __enter__(self) -> ShardWriter:
        with self._room():
            self._progress.open()
        try:
            self._take_up()
        except BaseException as error:
            self._progress.close(error)
            raise
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
            self._background.shutdown()
            if self._builder is not None:
                self._builder.close()
            self._progress.close(error)

    @property
    def count(self) -> int:
        """How many records were added."""
        return len(self._ids)

    @property
    def classes(self) -> list[str]:
        """The names of the labels so far, "" where one is not known."""
        return self._classes.names()

    @property
    def written(self) -> list[WrittenShard]:
        """The shards of this run that are complete."""
        return self._progress.finished

    @property
    def awaits(self) -> bool:
        """Whether records are still to come that the run before this one has packed, and no others."""
        return self._row is not None or self._progress.complete

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
        self.add_sample(Sample(record, image, values, weight, label_of(record), annotators or {}))

    def add_sample(self, sample: Sample) -> None:
        """Like add, for a sample, such as one of another shard; its label is that of its record."""
        if self.passes_over(sample.record):
            return
        awaited = self.awaits
        ready = self.prepare(sample)
        self.check(ready)
        self.keep(ready, awaited=awaited)

    def passes_over(self, record: Record) -> bool:
        """Return whether a record is the next of those that the run before this one has packed; then it is in."""
        if self._row is None or _text(record) != self._row:
            return False
        self._ids.add(record["id"])
        self._classes.learn(record, label_of(record))
        self._row = next(self._rows, None)
        return True

    def prepare(self, sample: Sample) -> Ready:
        """Check a sample, as far as it can be without those before it; from any thread."""
        return ready_sample(sample, self._plan.pixel_size)

    def check(self, ready: Ready) -> None:
        """Compare what ``prepare`` has returned with the records before it, and learn the name of its class."""
        record, values = ready.sample.record, ready.sample.map
        place = f'record "{record["id"]}"'
        if record["id"] in self._ids:
            raise RecordError(f"{place}: this id comes twice; every record needs its own")
        if record["id"] in self._progress.earlier.ids:
            raise RecordError(f"{place}: this id is in the series already; every record needs its own")
        if values is not None:
            refuse_two_sizes(values.shape, self.map_size or values.shape, place)
        self._classes.learn(record, ready.sample.label)

    def keep(self, ready: Ready, *, awaited: bool) -> None:
        """Write what was checked. ``awaited`` says that it was read while others were awaited: RecordError."""
        sample = ready.sample
        if awaited:
            raise RecordError(
                f'record "{sample.record["id"]}": the run that was broken off did not pack it here; --resume needs the '
                "same records in the same order, or begin anew with --overwrite alone"
            )
        with self._room():
            self._open_shard(ready).add(*ready)
        self._ids.add(sample.record["id"])
        if sample.map is not None:
            self.map_size = sample.map.shape
            self.map_count += 1
        self.annotator_map_count += len(sample.annotators)

    def _open_shard(self, ready: Ready) -> ShardBuilder:
        """Return the shard in which there is room for one more."""
        if self._builder is not None and self._is_full(self._builder, ready):
            self._wait()
            self._finishing = self._background.submit(self._finish, self._builder, self.classes, last=False)
            self._builder = None
        if self._builder is None:
            self._builder = ShardBuilder(self._progress.begin(self._begun), self.classes, self._plan.pixel_size)
            self._begun += 1
        return self._builder

    def _wait(self) -> None:
        """Wait for the shard that is being finished, if any, and raise what was wrong with it."""
        if self._finishing is not None:
            self._finishing.result()
            self._finishing = None

    def _is_full(self, builder: ShardBuilder, ready: Ready) -> bool:
        if builder.count == self._plan.shard_size:
            return True
        limit = self._plan.shard_bytes
        return limit is not None and builder.bytes_with(ready.sample, ready.text) > limit

    def _finish(self, builder: ShardBuilder, classes: list[str], *, last: bool) -> None:
        """Complete a shard: in another thread, as its digest and the disk take their time; one at a time."""
        try:
            digest = builder.write(classes)
        finally:
            builder.close()
        self._progress.finish(classes, builder.count, digest, last=last)

    def _take_up(self) -> None:
        """Begin with what is there: shards to add to, and those of a run that was broken off."""
        earlier = self._progress.earlier
        self._classes = ClassNames(self._plan.classes, earlier.classes)
        self.map_size = earlier.map_size
        self._begun = len(self._progress.finished)
        for shard in self._progress.readers():
            self.map_size = shard.map_size if shard.has_map.any() else self.map_size
            self.map_count += int(shard.has_map.sum())
            self.annotator_map_count += shard.annotator_map_count
        self._rows = (shard.text(index) for shard in self._progress.readers() for index in range(len(shard)))
        self._row = next(self._rows, None)

    def _end(self) -> None:
        if self._row is not None:
            raise RecordError(
                f"{self._path}: the records end after {self.count}, and the run that was broken off had packed more; "
                "--resume needs the same records, or begin anew with --overwrite alone"
            )
        if not self.count:
            raise RecordError(f"{self._path}: no record left to pack; see the warnings before this")
        self._wait()
        if self._builder is not None:
            self._finish(self._builder, self.classes, last=True)
        self._progress.publish(self.classes)

    def _room(self) -> AbstractContextManager[None]:
        """Say in the error of a full disk what is left."""
        left = "finished shards wait for --resume" if self._resume else "nothing is left of it"
        return written_as(self._path, f"{left}, make room")


def _text(record: Record) -> bytes | None:
    """Return a record as it is packed, None where it cannot be."""
    try:
        return dump_record(record).rstrip(b"\n")
    except RecordError:
        return None
