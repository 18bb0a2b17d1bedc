"""Shards into other shards, record by record: what `hkmap merge` and `hkmap split` do."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hkmap.errors import OutputError, ShardError
from hkmap.files.atomic import refuse_existing
from hkmap.shards.folds import Numbers
from hkmap.shards.layout import Sample, given_certainty, labelled_record, stored_as
from hkmap.shards.sequence import ShardSequence
from hkmap.shards.writer import ShardWriter, WriterOptions

logger = logging.getLogger("hkmap")

Watch = Callable[[Iterable[int]], Iterable[int]]


def split_shards(
    shards: ShardSequence, parts: Numbers, names: Sequence[str], out: Path, *, overwrite: bool, watch: Watch = iter
) -> list[dict[str, Any]]:
    """Write a shard OUT/NAME.h5 of each part, and return what is in it.

    ``parts`` (n,) is each record's place in ``names``. All parts have the classes of all shards, and keep the
    records' order. Where it fails, no new shard is left. Raises OutputError where one is in the way, also a fold of a
    former split into more. ``watch`` may wrap the record numbers to show progress.
    """
    _refuse_former(out, names)
    paths = [out / f"{name}.h5" for name in names]
    for path in paths:
        refuse_existing(path, overwrite=overwrite)
    new = [path for path in paths if not path.exists()]
    options = WriterOptions(pixel_size=pixel_size_of(shards))
    indices, written = iter(watch(np.argsort(parts, kind="stable").tolist())), list[dict[str, Any]]()
    try:
        for number, path in enumerate(paths):
            inside = parts == number
            with ShardWriter(path, classes=shards.classes, overwrite=overwrite, options=options) as writer:
                for index in islice(indices, int(inside.sum())):
                    copy_sample(writer, shards.read(index))
            written.append(_part(shards, inside, writer))
    except BaseException:
        for path in new:      # some parts alone would look like all of them
            path.unlink(missing_ok=True)
        raise
    for path in sorted({*out.glob("*.h5")} - {*paths}):
        logger.warning("%s: in the folder too, but not of this split; it may hold records of the new parts", path)
    return written


def copy_sample(writer: ShardWriter, sample: Sample) -> None:
    """Add a record of a shard, with everything that belongs to it, to a writer, which checks it as if it were new."""
    writer.add_sample(replace(sample, record=labelled_record(sample), certainty=given_certainty(sample)))


def pixel_size_of(shards: ShardSequence) -> tuple[int, int] | None:
    """Return (height, width) of the pixels that the shards hold, None for image files; ShardError where they differ."""
    first = shards.shards[0]
    for shard in shards.shards:
        if shard.pixel_size != first.pixel_size:
            raise ShardError(
                f"{shard.path}: holds {stored_as(shard.pixel_size)}, but {first.path} {stored_as(first.pixel_size)}; "
                "expected one kind: unpack them, and pack them with the same --store and --size"
            )
    return first.pixel_size


def _part(shards: ShardSequence, inside: npt.NDArray[np.bool_], writer: ShardWriter) -> dict[str, Any]:
    (shard,) = writer.written
    return {
        "path": str(shard.path),
        "records": shard.records,
        "share": round(shard.records / len(shards), 6),
        "maps": writer.map_count,
        "classes": classes_in(shards.labels[inside], shards.classes),
        "sha256": shard.digest,
    }


def classes_in(labels: Numbers, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return how many records have which label; -1, the unlabelled, only where there are some."""
    counts = Counter(labels.tolist())
    unknown = [(-1, "")] if counts[-1] else []
    return [{"label": label, "class": name, "records": counts[label]} for label, name in [*enumerate(names), *unknown]]


def _refuse_former(out: Path, names: Sequence[str]) -> None:
    folds = re.compile(r"fold-[0-9]+")
    if not all(map(folds.fullmatch, names)) or not out.is_dir():
        return
    for path in sorted(out.glob("fold-*.h5")):
        if folds.fullmatch(path.stem) and path.stem not in names:
            raise OutputError(f"{path}: of another split, into more folds than {len(names)}; remove it first")
