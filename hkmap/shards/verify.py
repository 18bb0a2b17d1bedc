"""Tell whether a shard is as it was written, and which of its records are not: what `hkmap check` does with shards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from hkmap.errors import HkmapError
from hkmap.files.hdf5 import file_digest, is_sealed, version_of
from hkmap.maps.check import check_map
from hkmap.parallel.threads import thread_pool
from hkmap.shards.layout import Sample
from hkmap.shards.reader import ShardReader

Depth = Literal["quick", "records", "full"]
_AT_ONCE = 256      # records in the hands of the threads; more would only wait in memory
Problem = dict[str, Any]


def verify_shard(path: Path, *, depth: Depth = "records") -> dict[str, Any]:
    """Check a shard and return what was looked at and every problem found.

    "quick" checks the user block, the structure and the numbers that say where things lie; "records" before that the
    digest of the whole file and after it the checksum of each record; "full" also decodes every image and looks at
    every value of a map.
    The result has "path", "ok", "checked" (names of checks), "records" (their number, None where it is unknown) and
    "problems", each with "sentence", "record" (from 0) and "id"; the last two are None where it is not one record's.
    """
    checked: list[str] = []
    problems: list[Problem] = []
    count = None
    try:
        version_of(path)        # what is no plain file is not opened
        problems += _seal_problems(path, depth)
        checked += ["user-block"] if depth == "quick" else ["user-block", "digest"]
        checked.append("structure")
        reader = ShardReader(path, strict=False)
    except HkmapError as error:
        if "h5clear" in str(error):      # the mark of a writer is what changed the digest
            problems.clear()
        problems.append(_problem(str(error)))
    except OSError as error:
        problems.append(_problem(f"{path}: {error.strerror or error}; expected a shard"))
    else:
        count = len(reader)
        problems += _record_problems(reader, depth)
        checked += {"quick": [], "records": ["checksums"], "full": ["checksums", "images"]}[depth]
    return {"path": str(path), "ok": not problems, "checked": checked, "records": count, "problems": problems}


def _problem(sentence: str, record: int | None = None, identifier: str | None = None) -> Problem:
    return {"sentence": sentence, "record": record, "id": identifier}


def _seal_problems(path: Path, depth: Depth) -> Iterator[Problem]:
    if not is_sealed(path):
        yield _problem(f"{path}: its first 512 bytes are not as hkmap writes them; copy it again, or pack it again")
    if depth == "quick":
        return
    stated, found = file_digest(path)
    if not stated:
        yield _problem(f"{path}: states no sha256 of its bytes, as every shard of `hkmap pack` does; pack it again")
    elif stated != found:
        yield _problem(
            f"{path}: its bytes have the sha256 {found[:12]}…, expected {stated[:12]}…; copy it again, or, where "
            "another program such as h5repack rewrote it, pack it again"
        )


def _record_problems(reader: ShardReader, depth: Depth) -> Iterator[Problem]:
    """Yield what is wrong with the records, in their order; each is named with the first thing found."""
    if depth == "quick":
        for index, sentence in sorted(reader.misplaced.items()):
            identifier = reader.id_of(index)
            yield _problem(f'{reader.path}#{index} (record "{identifier}"): {sentence}', index, identifier)
        return
    look: Callable[[int], HkmapError | None] = partial(_record_error, reader, full=depth == "full")
    with thread_pool(os.cpu_count() or 1) as pool:
        for start in range(0, len(reader), _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, len(reader)))
            for index, error in zip(numbers, pool.map(look, numbers), strict=True):
                if error is not None:
                    yield _problem(str(error), index, reader.id_of(index))


def _record_error(reader: ShardReader, index: int, *, full: bool) -> HkmapError | None:
    try:
        sample = reader.read(index)
        if full:
            _look_at(sample, f'{reader.path}#{index} (record "{reader.id_of(index)}"): ')
    except HkmapError as error:
        return error
    return None


def _look_at(sample: Sample, place: str) -> None:
    """Raise ImageError or MapError where the image does not decode, or a map holds what no map may."""
    sample.image(f"{place}its image")
    maps = {"its map": sample.map, "its certainty": sample.certainty}
    people = {f'its map of annotator "{name}"': own for name, own in sample.annotators.items()}
    for name, values in {**maps, **people}.items():
        if values is not None:
            check_map(values, place + name)
