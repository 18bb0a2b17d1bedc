"""Records in, shards out, and back: what `hkmap pack` and `hkmap unpack` do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
from hkmap.storage.mapfiles import load_annotators, load_map, load_weights, open_writer
from hkmap.storage.references import annotator_reference
from hkmap.storage.samples import Ready
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
    seen: set[str] = set()
    with (
        open_writer(out / "maps", overwrite=overwrite) as maps,
        open_writer(out / "weights", overwrite=overwrite) as weights,
    ):
        for _, sample in _samples(paths):
            name = sample.record["id"]
            if name in seen:
                raise OutputError(f'record "{name}": is in two of the shards; unpack them into a folder each')
            seen.add(name)
            record = _record(
                sample,
                _save_image(out / "images", sample, overwrite=overwrite),
                maps.save(name, sample.map) if sample.map is not None else "",
                weights.save(name, sample.weight) if _weighted(sample) and sample.weight is not None else "",
            )
            own = {user: maps.save(name, values, user) for user, values in sample.annotators.items()}
            yield with_annotators(record, own)


def _samples(paths: Iterable[Path]) -> Iterator[tuple[str, Sample]]:
    for path in paths:
        reader = ShardReader(path)
        for index in range(len(reader)):
            yield f"{path}#{index}", reader.read(index)


def _record(sample: Sample, image: str, values: str, weights: str) -> Record:
    """The record as it was packed, its parts found where they are now."""
    record = {**sample.record, "image": image}
    if sample.map is not None:
        record["map"] = values
    if _weighted(sample):
        record["weights"] = weights
    return record


def _weighted(sample: Sample) -> bool:
    """Whether the record came with weights; the others in a shard with weights have 1 everywhere."""
    return sample.weight is not None and bool(sample.record.get("weights"))


def _save_image(folder: Path, sample: Sample, *, overwrite: bool) -> str:
    data = sample.image_file()
    path = folder / f"{quote(sample.record['id'], safe='')}.{image_suffix(data)}"
    with replacing(path, overwrite=overwrite) as beside:
        beside.write_bytes(data)
    return str(path)
