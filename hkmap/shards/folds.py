"""Cut records into folds and parts: the one definition, of `hkmap split` and of --fold in train, finetune and eval.

A fold depends on the ids, labels and groups of all records, on which images are the same, and on the seed, not on the
records' order or on how they lie in shards. Folds count from 1.
"""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from hkmap.errors import RecordError
from hkmap.records import Record, shown
from hkmap.shards.duplicates import same_images
from hkmap.shards.sequence import ShardSequence

logger = logging.getLogger("hkmap")

_MOST_FOLDS = 100      # that shares are cut into
_FAR = 0.05            # from the share that was asked for: such parts are not what somebody takes them for

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Folding:
    """How records are cut into folds.

    ``group`` is a key of the records, the values of which no two folds share. Without ``stratify`` the labels are
    not looked at. With ``duplicates`` the records of one image are in one fold.
    """

    folds: int
    seed: int = 0
    group: str | None = None
    stratify: bool = True
    duplicates: bool = True


def fold_of(ids: Sequence[str], labels: Numbers, groups: Sequence[str] | None, *, folds: int, seed: int) -> Numbers:
    """Return the fold (n,) of each record, from 1 to ``folds``.

    Each fold has about as many records of each label (n,), exactly so but for one where there are no ``groups``. All
    records of a group, one name a record, are in one fold. Labels that are all alike give folds that are drawn at
    random. By scikit-learn's StratifiedKFold and StratifiedGroupKFold, shuffled by the seed, over the records in the
    order of their ids. Raises RecordError where there are too few records, of every label, or groups.

    >>> fold_of("abcdef", np.array([0, 0, 0, 1, 1, 1]), None, folds=3, seed=0).tolist()
    [3, 2, 1, 3, 1, 2]
    """
    _refuse_too_few(labels, groups, folds)
    found = _cut(ids, labels, groups, folds=folds, seed=seed)
    empty = set(range(1, folds + 1)) - set(found.tolist())
    if empty:
        raise RecordError(f"fold {min(empty)} of {folds} would have no record: some groups are large; ask for fewer")
    _warn_of_rare(labels, folds)
    return found


def part_of(
    ids: Sequence[str], labels: Numbers, groups: Sequence[str] | None, shares: Mapping[str, Fraction], *, seed: int
) -> Numbers:
    """Return the part (n,) of each record, numbered from 0 in the order of the ``shares``, which add up to 1.

    The records are cut into the fewest folds of which each part takes a whole number, so a share is as exact as folds
    are equal. Where so many cannot be had, they are as many as come nearest to the shares; a warning says so. Raises
    RecordError where there are fewer records, of every label, or groups than parts.
    """
    _refuse_too_few(labels, groups, len(shares))
    counts = _folds_each(list(shares.values()), min(_MOST_FOLDS, _most_folds(labels, groups)))
    if any(Fraction(count, sum(counts)) != share for count, share in zip(counts, shares.values(), strict=True)):
        told = ", ".join(f"{name} {count}" for name, count in zip(shares, counts, strict=True))
        logger.warning("the parts take, of %d folds: %s; more cannot be had for nearer shares", sum(counts), told)
    parts = np.array(list(_spread(counts)))
    found: Numbers = parts[_cut(ids, labels, groups, folds=sum(counts), seed=seed) - 1]
    for number, name in enumerate(shares):
        if not (found == number).any():
            raise RecordError(f'part "{name}" would have no record: some groups are large; give it more')
    _warn_of_far(found, shares)
    return found


def folds_of(shards: ShardSequence, folding: Folding) -> Numbers:
    """Return the fold (n,) of each record of shards, from 1."""
    labels = shards.labels if folding.stratify else np.zeros_like(shards.labels)
    groups = groups_of(shards, folding.group, folding.duplicates)
    return fold_of(ids_of(shards), labels, groups, folds=folding.folds, seed=folding.seed)


def parts_of(
    shards: ShardSequence, shares: Mapping[str, Fraction], *, seed: int, group: str | None, stratify: bool,
    duplicates: bool = True,
) -> Numbers:
    """Return the part (n,) of each record of shards, numbered from 0 in the order of the ``shares``."""
    labels = shards.labels if stratify else np.zeros_like(shards.labels)
    return part_of(ids_of(shards), labels, groups_of(shards, group, duplicates), shares, seed=seed)


def ids_of(shards: ShardSequence) -> list[str]:
    """Return the ids of all records, in order."""
    return [identifier for shard in shards.shards for identifier in shard.read_ids()]


@lru_cache(maxsize=2)      # a run cuts its shards twice: for the fold, and for validation
def groups_of(shards: ShardSequence, key: str | None, duplicates: bool) -> list[str] | None:
    """Return each record's group, the text or number under ``key``; None where every record is on its own.

    With ``duplicates`` groups that share an image, byte for byte, are one; a warning counts such images. Every record
    is read, as its JSON is under its checksum. Raises RecordError where one has no group.
    """
    groups = None if key is None else [_group(shards.read(index).record, key) for index in range(len(shards))]
    starts = np.cumsum([0, *(len(shard) for shard in shards.shards)])
    images = same_images(shards.shards) if duplicates else []
    sets = [[int(starts[number]) + row for number, row in places] for places in images]
    if not sets:
        return groups
    ids = ids_of(shards)
    logger.warning(
        '%d images stand in more than one record (%d records), such as "%s" and "%s"; they are kept on one side',
        len(sets), sum(map(len, sets)), *(ids[index] for index in sets[0][:2]),
    )
    return joined_groups(ids if groups is None else groups, sets)


def joined_groups(groups: Sequence[str], sets: Iterable[Sequence[int]]) -> list[str]:
    """Return each record's group where those that have records in one set are one group, by its first name.

    >>> joined_groups(["b", "c", "b", "a", "d"], [[0, 1], [2, 3]])
    ['a', 'a', 'a', 'a', 'd']
    """
    above = {name: name for name in groups}

    def top(name: str) -> str:
        while above[name] != name:
            above[name] = name = above[above[name]]
        return name

    for one in sets:
        tops = {top(groups[index]) for index in one}
        above.update(dict.fromkeys(tops, min(tops)))
    return [top(name) for name in groups]


def digest_of(ids: Sequence[str], folds: Numbers) -> str:
    """Return a sha256 of which record is in which fold, whatever their order."""
    lines = sorted(f"{identifier}\t{fold}\n" for identifier, fold in zip(ids, folds.tolist(), strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _cut(ids: Sequence[str], labels: Numbers, groups: Sequence[str] | None, *, folds: int, seed: int) -> Numbers:
    """Like fold_of, but a fold may be empty where there are groups."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # takes a second to load

    order = np.argsort(np.asarray(list(ids), dtype=object), kind="stable")
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(folds, shuffle=True, random_state=seed)
    ordered, grouped = labels[order], None if groups is None else np.asarray(groups, dtype=object)[order]
    if grouped is not None and len(np.unique(labels)) == 1:
        # The groups whose labels are the least even come first: of one label, that is any order, and folds differ by a
        # half. Beside a record of another label, which is in no fold in the end, it is the largest ones.
        ordered, grouped = np.append(ordered, ordered[0] + 1), np.append(grouped, "")
    found = np.zeros(len(ordered), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)      # of rare labels, of which fold_of warns by their numbers
        for number, (_, chosen) in enumerate(splitter.split(ordered, ordered, grouped), start=1):
            found[chosen] = number
    return found[np.argsort(order)]


def _most_folds(labels: Numbers, groups: Sequence[str] | None) -> int:
    """Return into how many folds scikit-learn can cut the records."""
    most = int(np.unique(labels, return_counts=True)[1].max())
    return most if groups is None else min(most, len(set(groups)))


def _refuse_too_few(labels: Numbers, groups: Sequence[str] | None, folds: int) -> None:
    if groups is not None and len(set(groups)) < folds:
        raise RecordError(f"{len(set(groups))} groups for {folds} parts, and a group is in one alone; ask for fewer")
    most = _most_folds(labels, groups)
    if most < folds:
        raise RecordError(f"no label has more than {most} records, but there are {folds} parts; ask for fewer")


def _folds_each(shares: Sequence[Fraction], most: int) -> list[int]:
    """Return how many folds each part takes: exactly its share, or as near as at most ``most`` folds come to it.

    >>> _folds_each([Fraction(7, 10), Fraction(3, 20), Fraction(3, 20)], 100)
    [14, 3, 3]
    >>> _folds_each([Fraction(7, 10), Fraction(3, 20), Fraction(3, 20)], 15)
    [9, 2, 2]
    """
    whole = math.lcm(*(share.denominator for share in shares))
    candidates = [_rounded(shares, folds) for folds in range(len(shares), min(whole, most) + 1)]
    return min(candidates, key=lambda counts: max(
        abs(Fraction(count, sum(counts)) - share) for count, share in zip(counts, shares, strict=True)
    ))


def _rounded(shares: Sequence[Fraction], folds: int) -> list[int]:
    """Return whole numbers, from 1, that add up to ``folds`` and are about its shares, largest rests first."""
    counts = [max(1, math.floor(share * folds)) for share in shares]
    while sum(counts) < folds:
        rests = [share * folds - count for share, count in zip(shares, counts, strict=True)]
        counts[rests.index(max(rests))] += 1
    while sum(counts) > folds:      # a small share took one fold more than it has
        counts[counts.index(max(counts))] -= 1
    return counts


def _warn_of_rare(labels: Numbers, folds: int) -> None:
    names, counts = np.unique(labels, return_counts=True)
    rare = names[counts < folds].tolist()
    if rare:
        told = "%d labels have fewer than %d records, the first is %d; some folds have none of them"
        logger.warning(told, len(rare), folds, rare[0])


def _warn_of_far(parts: Numbers, shares: Mapping[str, Fraction]) -> None:
    """Warn of the part whose size is furthest from its share, as large groups can make it."""
    got = {name: float(np.mean(parts == number)) for number, name in enumerate(shares)}
    name = max(got, key=lambda name: abs(got[name] - shares[name]))
    if abs(got[name] - shares[name]) > _FAR:
        logger.warning(
            'part "%s" has %.3g of the records, %.3g were asked for; nearer ones need smaller groups, or more records',
            name, got[name], float(shares[name]),
        )


def _group(record: Record, key: str) -> str:
    value = record.get(key)
    if key not in record:
        keys = ", ".join(name for name, other in record.items() if isinstance(other, str | int | float))
        raise RecordError(f'record "{record["id"]}": has no key "{key}" to group by; it has {keys}')
    # 7 and "7" are one patient in two tables; to hold them for two would put him on both sides
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        raise RecordError(
            f'record "{record["id"]}": {key} is {shown(value)}; expected a text or a number in each record to group by'
        )
    return str(value)


def _spread(counts: Sequence[int]) -> Iterator[int]:
    """Yield each part's number as often as its count says, spread evenly: neighbouring folds differ by what is left.

    >>> list(_spread([8, 1, 1]))
    [0, 0, 0, 1, 0, 0, 2, 0, 0, 0]
    """
    total, given = sum(counts), [0] * len(counts)
    for number in range(1, total + 1):
        behind = [count * number - done * total for count, done in zip(counts, given, strict=True)]
        chosen = behind.index(max(behind))
        given[chosen] += 1
        yield chosen
