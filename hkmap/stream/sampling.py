"""Draw records out of a stream at random: what `hkmap sample` does.

Each record draws a number by a hash of its id and the seed, and the lowest numbers are taken. So a sample does
not depend on the order, a smaller one is part of a larger one, and only the records taken so far are in memory.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections.abc import Iterable, Iterator

from hkmap.records import Record, dump_record, label_of, parse_record

logger = logging.getLogger("hkmap")

# a record's number, negative so that a heap begins with the highest one; its place in the stream; its line
Drawn = tuple[float, int, bytes]


def draw(identifier: str, seed: int) -> float:
    """Return a number from 0 up to, not including, 1, that depends on the id and the seed alone.

    >>> draw("7", 0)
    0.3788525185212482
    """
    digest = hashlib.sha256(f"{seed} {identifier}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


def sample_share(records: Iterable[Record], share: float, *, seed: int) -> Iterator[Record]:
    """Yield about ``share`` of the records at once, in their order: those that draw less than it."""
    return (record for record in records if draw(record["id"], seed) < share)


def sample_count(records: Iterable[Record], count: int, *, seed: int, per_label: bool = False) -> Iterator[Record]:
    """Yield ``count`` records, or that many of each label, in their order, once all have been seen.

    Warns where there are fewer. Records without a label count as a label of their own.
    """
    taken: dict[int, list[Drawn]] = {}
    for place, record in enumerate(records):
        heap = taken.setdefault(label_of(record) if per_label else 0, [])
        drawn = (-draw(record["id"], seed), place, dump_record(record))
        if len(heap) < count:
            heapq.heappush(heap, drawn)
        else:
            heapq.heappushpop(heap, drawn)
    _warn_of_few(taken, count, per_label)
    chosen = sorted((place, line) for heap in taken.values() for _, place, line in heap)
    return (parse_record(line, f"record {place}") for place, line in chosen)


def _warn_of_few(taken: dict[int, list[Drawn]], count: int, per_label: bool) -> None:
    few = sorted((label, len(heap)) for label, heap in taken.items() if len(heap) < count)
    if few and per_label:
        label, found = few[0]
        logger.warning("%d labels have fewer than %d records; label %d has %d", len(few), count, label, found)
    elif few:
        logger.warning("%d records came, all taken; %d were asked for", few[0][1], count)
