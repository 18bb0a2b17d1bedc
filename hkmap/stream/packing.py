"""Records in, shards out, with what the records refer to: what `hkmap pack` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from hkmap.errors import HkmapError, RecordError
from hkmap.parallel.threads import threads
from hkmap.records import Record, Rejects, accepted, attempt, label_of, reference_of
from hkmap.shards.layout import Sample
from hkmap.shards.writer import Ready, ShardWriter
from hkmap.stream.references import image_bytes, load_annotators, load_certainty, load_map


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
    """Pack records with the images, maps, certainty and annotators' maps that they refer to; yield as each is in.

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
    """Write what is ready; a record that finished shards do not hold ends the run, whatever ``rejects`` says."""
    for outcome in outcomes:
        checked = attempt(lambda item: writer.check(item.ready), outcome)
        if checked is None and isinstance(outcome, _Outcome):
            writer.keep(outcome.ready, awaited=outcome.awaited)
        yield checked


def _prepared(writer: ShardWriter, task: _Task) -> _Outcome:
    record = task.record
    image, values, certainty = (reference_of(record, key) for key in ("image", "map", "certainty"))
    if image is None:
        raise RecordError(f'record "{record["id"]}": has no image; expected the path of its image under "image"')
    sample = Sample(
        record, image_bytes(image), load_map(values) if values else None,
        load_certainty(certainty) if certainty else None, label_of(record), load_annotators(record),
    )
    return _Outcome(writer.prepare(sample), task.awaited)


def check_count(writer: ShardWriter, expected: int | None) -> None:
    """Raise RecordError if another number of records was packed than ``expected``."""
    if expected is not None and writer.count != expected:
        raise RecordError(f"{writer.count} records packed, expected {expected}; no shard is left, see what came before")


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
