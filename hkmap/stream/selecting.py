"""Choose records by what they say, such as what a network predicted of them: what `hkmap select` does."""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Iterable, Iterator
from itertools import islice

from hkmap.errors import RecordError
from hkmap.records import Record, Rejects, dump_record, each, label_of, mismatch, parse_record, shown

logger = logging.getLogger("hkmap")


def select_correct(records: Iterable[Record], correct: bool, rejects: Rejects) -> Iterator[Record]:
    """Yield at once the records that were predicted correctly, or those that were not."""
    verdicts = each(records, lambda record: (record, is_correct(record)), rejects)
    return (record for record, verdict in verdicts if verdict == correct)


def select_first(records: Iterable[Record], count: int) -> Iterator[Record]:
    """Yield the first ``count`` records at once, and read no further; warn where there are fewer."""
    found = 0
    for record in islice(records, count):
        found += 1
        yield record
    if found < count:
        logger.warning("%d records were chosen; %d were asked for", found, count)


def sort_records(
    records: Iterable[Record], key: str, rejects: Rejects, *, descending: bool = False, count: int | None = None
) -> Iterator[Record]:
    """Yield the records by the number under ``key``, the lowest first, once all have been seen.

    Equal ones keep their order. ``count``: no more than that many will be used, so no more are held in memory.
    """
    numbers = each(records, lambda record: (number_of(record, key), record), rejects)
    sign = -1 if descending else 1
    lines = ((sign * number, place, dump_record(record)) for place, (number, record) in enumerate(numbers))
    ordered = sorted(lines) if count is None else heapq.nsmallest(count, lines)
    return (parse_record(line, f"record {place}") for _, place, line in ordered)


def is_correct(record: Record) -> bool:
    """Whether a network's prediction is the record's label, or the predicted class its class.

    Raises RecordError where there is nothing to compare, or the two comparisons disagree.

    >>> is_correct({"id": "7", "label": 2, "prediction": 2})
    True
    """
    place = f'record "{record["id"]}"'
    label, name = label_of(record), record.get("class")
    said, said_name = record.get("prediction"), record.get("predicted_class")
    if said is None and said_name is None:
        raise RecordError(f'{place}: no key "prediction" to compare with its label; run `hkmap predict` first')
    if said is not None and type(said) is not int:
        raise RecordError(f"{place}: prediction {mismatch(said, 'a whole number, as `hkmap predict` adds it')}")
    verdicts = {said == label} if said is not None and label >= 0 else set()
    if said_name is not None and name is not None:
        verdicts.add(said_name == name)
    if not verdicts:
        raise RecordError(f'{place}: no "label" or "class" to compare its prediction with; `hkmap join` can add them')
    if len(verdicts) > 1:
        numbers, names = f"label {label} is predicted as {said}", f'class "{shown(name)}" as "{shown(said_name)}"'
        raise RecordError(f"{place}: {numbers}, but {names}; number the classes as in the network's training")
    return verdicts.pop()


def number_of(record: Record, key: str) -> int | float:
    """Return the finite number under ``key``; raise RecordError where there is none."""
    found = record.get(key)
    if isinstance(found, int | float) and not isinstance(found, bool) and -math.inf < found < math.inf:
        return found
    remedy = "; run `hkmap predict` first" if key == "confidence" and found is None else ""
    what = mismatch(found, "a number") if key in record else "is missing; expected a number"
    raise RecordError(f'record "{record["id"]}": {key} {what} to sort by{remedy}')
