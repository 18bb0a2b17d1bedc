"""Records in, shards out, and back: what `hkmap pack` and `hkmap unpack` do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from hkmap.errors import HkmapError, OutputError, RecordError
from hkmap.parallel.threads import threads
from hkmap.records import Record, Rejects, accepted, attempt, label_of, reference_of, with_annotators
from hkmap.storage.atomic import replacing
from hkmap.storage.images import image_bytes, image_suffix
from hkmap.storage.layout import Sample
from hkmap.storage.mapfiles import MapWriter, load_annotators, load_map, load_weights, open_writer
from hkmap.storage.references import annotator_reference
from hkmap.storage.samples import Ready, given_weight, labelled_record
from hkmap.storage.shards import ShardReader
from hkmap.storage.writing import ShardWriter


class _Task(NamedTuple):
    """A record that is to be packed; ``awaited``: the writer awaits others, so it ought to be refused."""

    record: Record
    awaited: bool


class _Outcome(NamedTuple):
    ready: Ready
    awaited: bool


def pack_records(
    writer: ShardWriter, records: Iterable[Record | HkmapError], rejects: Rejects,
    waiting: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """Pack records with the images, maps, weights and annotators' maps that they refer to; yield as each is in.

    All but the image may be missing. Files are read and checked ahead, in threads. What is wrong with a record, or was
    when it was parsed, goes to ``rejects``, in order. ``waiting`` tells whether the next record can be had at once.
    """
    with threads() as pool:
        outcomes = pool.attempts(partial(_prepared, writer), _tasks(writer, records), waiting)
        for _ in accepted(_kept(writer, outcomes), rejects):
            yield


def _tasks(writer: ShardWriter, records: Iterable[Record | HkmapError]) -> Iterator[_Task | HkmapError]:
    for record in records:
        if isinstance(record, HkmapError):
            yield record
        elif not writer.passes_over(record):
            yield _Task(record, writer.awaits)


def _kept(writer: ShardWriter, outcomes: Iterable[_Outcome | HkmapError]) -> Iterator[HkmapError | None]:
    """Write what is ready; a record that the run before did not pack ends the run, whatever ``rejects`` says."""
    for outcome in outcomes:
        checked = attempt(lambda item: writer.check(item.ready), outcome)
        if checked is None and isinstance(outcome, _Outcome):
            writer.keep(outcome.ready, awaited=outcome.awaited)
        yield checked


def _prepared(writer: ShardWriter, task: _Task) -> _Outcome:
    record = task.record
    image, values, weights = (reference_of(record, key) for key in ("image", "map", "weights"))
    if image is None:
        raise RecordError(f'record "{record["id"]}": has no image; expected the path of its image under "image"')
    sample = Sample(
        record, image_bytes(image), load_map(values) if values else None, load_weights(weights) if weights else None,
        label_of(record), load_annotators(record),
    )
    return _Outcome(writer.prepare(sample), task.awaited)


def check_count(writer: ShardWriter, expected: int | None) -> None:
    """Raise RecordError if another number of records was packed than ``expected``."""
    if expected is not None and writer.count != expected:
        raise RecordError(f"{writer.count} records packed, expected {expected}; no shard is left, see what came before")


def summary_of(writer: ShardWriter) -> dict[str, Any]:
    """Return what was written, once the writer's context has ended; map_size is [height, width]."""
    return {
        "shards": [
            {"path": str(shard.path), "records": shard.count, "sha256": shard.digest} for shard in writer.written
        ],
        "records": writer.count,
        "maps": writer.map_count,
        "annotator_maps": writer.annotator_map_count,
        "map_size": list(writer.map_size) or None,
        "classes": writer.classes,
    }


def read_classes(path: Path) -> list[str]:
    """Read class names, UTF-8, one a line in the order of the labels; raise RecordError for a blank or repeated one."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not UTF-8 text ({error}); expected one class name a line") from error
    for number, name in enumerate(names, start=1):
        if not name or name in names[: number - 1]:
            raise RecordError(f"{path} line {number}: {name or 'blank'!r}, expected one class name a line, each once")
    return names


def unpack_records(paths: Iterable[Path]) -> Iterator[Record]:
    """Yield the records of shards; their images and maps are references to rows of the shards."""
    for reference, sample in _samples(paths):
        record = _record(sample, reference, reference, reference)
        yield with_annotators(record, {name: annotator_reference(reference, name) for name in sample.annotators})


def unpack_files(paths: Iterable[Path], out: Path, *, overwrite: bool) -> Iterator[Record]:
    """Like unpack_records, with the parts written as files: OUT/images, OUT/maps and OUT/weights (.npy).

    The maps of single annotators lie in OUT/maps too, as ID@NAME.npy.
    """
    with open_files(out, overwrite=overwrite) as files:
        for sample in samples_of(paths):
            yield files.save(sample)


def saved_records(
    samples: Iterable[Sample | HkmapError], out: Path, *, overwrite: bool, rejects: Rejects
) -> Iterator[Record]:
    """Yield the records of samples, whose parts are written to ``out`` as by unpack_files; errors go to ``rejects``."""
    with open_files(out, overwrite=overwrite) as files:
        yield from accepted((attempt(files.save, sample) for sample in samples), rejects)


def samples_of(paths: Iterable[Path]) -> Iterator[Sample]:
    """Yield the records of shards, whole, in order."""
    return (sample for _, sample in _samples(paths))


@contextmanager
def open_files(out: Path, *, overwrite: bool) -> Iterator[SampleFiles]:
    """Yield a writer of samples' parts into the folder ``out``."""
    with ExitStack() as stack:
        yield SampleFiles(out, stack, overwrite)


class SampleFiles:
    """Writes what belongs to samples as files: OUT/images, OUT/maps and OUT/weights; an id may come once."""

    def __init__(self, out: Path, stack: ExitStack, overwrite: bool) -> None:
        self._out = out
        self._stack = stack
        self._overwrite = overwrite
        self._writers: dict[Path, MapWriter] = {}
        self._seen: set[tuple[str, str]] = set()

    def save(self, sample: Sample, folder: str = "", name: str | None = None) -> Record:
        """Write the parts of a sample and return its record, which refers to them.

        They are called as its id, or ``name``, quoted as in a URL, and lie in a ``folder`` of each of the three.
        Raises OutputError for a name that is there already.
        """
        called = sample.record["id"] if name is None else name
        if (folder, called) in self._seen:
            raise OutputError(f'record "{sample.record["id"]}": its files are there already, of another record with '
                              "this id; unpack the two into a folder each")
        self._seen.add((folder, called))
        maps, weight = self._writer("maps", folder), given_weight(sample)
        record = _record(
            sample,
            self._save_image(sample, folder, called),
            maps.save(called, sample.map) if sample.map is not None else "",
            self._writer("weights", folder).save(called, weight) if weight is not None else "",
        )
        return with_annotators(
            record, {user: maps.save(called, values, user) for user, values in sample.annotators.items()}
        )

    def _writer(self, kind: str, folder: str) -> MapWriter:
        path = self._out / kind / folder
        if path not in self._writers:
            self._writers[path] = self._stack.enter_context(open_writer(path, overwrite=self._overwrite))
        return self._writers[path]

    def _save_image(self, sample: Sample, folder: str, name: str) -> str:
        shown = re.sub(r"^\.", "%2E", quote(name, safe=""))      # a hidden file is no image to those who read folders
        data = sample.image_file()
        path = self._out / "images" / folder / f"{shown}.{image_suffix(data)}"
        with replacing(path, overwrite=self._overwrite) as beside:
            beside.write_bytes(data)
        return str(path)


def _samples(paths: Iterable[Path]) -> Iterator[tuple[str, Sample]]:
    for path in paths:
        reader = ShardReader(path)
        for index in range(len(reader)):
            yield f"{path}#{index}", reader.read(index)


def _record(sample: Sample, image: str, values: str, weights: str) -> Record:
    """The record as it was packed, its parts found where they are now."""
    record = {**labelled_record(sample), "image": image}
    if sample.map is not None:
        record["map"] = values
    if given_weight(sample) is not None:
        record["weights"] = weights
    return record
