"""Records in, shards out, with what the records refer to: what `hkmap pack` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hkmap.errors import HkmapError, RecordError
from hkmap.files.opening import file_content
from hkmap.parallel.threads import threads
from hkmap.records import Record, Rejects, accepted, attempt, label_of, reference_of
from hkmap.shards.layout import Sample
from hkmap.shards.writer import Ready, ShardWriter, summary_of
from hkmap.stream.references import image_bytes, load_annotators, load_certainty, load_map


class _Task(NamedTuple):
    """A record to pack; ``awaited``: the writer awaits others, so the record should be refused."""

    record: Record
    awaited: bool


def pack(path: str | Path, records: Iterable[Record], *, overwrite: bool = False, **options: Any) -> dict[str, Any]:
    """Pack records, with what they refer to, into the shard ``path``; return what was written.

    ``options`` are those of ShardWriter: ``classes``, ``shard_size`` and ``options``. Raises the error of a record.
    """
    with ShardWriter(Path(path), overwrite=overwrite, **options) as writer:
        for _ in pack_records(writer, records, Rejects()):
            pass
    return summary_of(writer)


def pack_records(
    writer: ShardWriter, records: Iterable[Record | HkmapError], rejects: Rejects,
    waiting: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """Pack records with the images, maps, certainty and annotators' maps that they refer to; yield after each.

    All but the image may be missing. Files are read and checked ahead, in threads. The errors of records, those of
    parsing included, go to ``rejects``, in order. ``waiting`` tells whether the next record is there already.
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


def _kept(writer: ShardWriter, outcomes: Iterable[tuple[Ready, bool] | HkmapError]) -> Iterator[HkmapError | None]:
    """Write what is ready; a record that finished shards do not hold ends the run, even where ``rejects`` skips."""
    for outcome in outcomes:
        checked = attempt(lambda item: writer.check(item[0]), outcome)
        if checked is None and not isinstance(outcome, HkmapError):
            ready, awaited = outcome
            writer.keep(ready, awaited=awaited)
        yield checked


def _prepared(writer: ShardWriter, task: _Task) -> tuple[Ready, bool]:
    record = task.record
    image, values, certainty = (reference_of(record, key) for key in ("image", "map", "certainty"))
    if image is None:
        raise RecordError(f'record "{record["id"]}": has no image; expected the path of its image under "image"')
    sample = Sample(
        record, image_bytes(image), load_map(values) if values else None,
        load_certainty(certainty) if certainty else None, label_of(record), load_annotators(record),
    )
    return writer.prepare(sample), task.awaited


def check_count(writer: ShardWriter, expected: int | None) -> None:
    """Raise RecordError if another number of records was packed than ``expected``."""
    if expected is not None and writer.count != expected:
        raise RecordError(f"{writer.count} records packed, expected {expected}; no shard is left, see the stage before")


def read_classes(path: Path) -> list[str]:
    """Read class names, UTF-8, one per line in the order of the labels; RecordError for a blank or repeated one."""
    try:
        names = [line.strip() for line in file_content(path).decode("utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not UTF-8 text ({error}); expected one class name per line") from error
    for number, name in enumerate(names, start=1):
        if not name or name in names[: number - 1]:
            raise RecordError(f"{path} line {number}: {name or 'blank'!r}, expected one class name per line, each once")
    return names
