"""Damage a shard again and again, read it whole and verify it: `python flip_bits.py SHARD SCRATCH SEED COUNT KIND`.

KIND is bit (one flipped bit anywhere), cut (cut short anywhere) or any (of several kinds of damage). A process of its
own, as what could go wrong is a crash or a hang. Prints how often the damage was met by an error and how often it lay
where nothing is read; dies with an AssertionError, and the damage's description, on anything else.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

from hkmap.errors import HkmapError
from hkmap.files.hdf5 import Columns
from hkmap.shards.reader import ShardReader
from hkmap.shards.verify import verify_shard

SECONDS = 10      # that one look at a small shard may take on a busy machine


def contents(path: Path) -> list[Any]:
    """Everything that a reader gives, as values that compare."""
    reader = ShardReader(path)
    found: list[Any] = [reader.classes, reader.ids]
    for index in range(len(reader)):
        sample = reader.read(index)
        parts = [None if part is None else part.tobytes() for part in (sample.map, sample.certainty)]
        annotators = {name: values.tobytes() for name, values in sample.annotators.items()}
        found.append((sample.record, sample.image_bytes, *parts, sample.label, annotators))
    return found


def damage(data: bytearray, dice: random.Random, kind: str) -> tuple[str, int]:
    """Change the data in place; say how, and where."""
    place = dice.randrange(len(data))
    if kind == "any":
        kind = dice.choice(["bit", "bit", "bit", "byte", "zeros", "cut", "swap"])
        place = place if dice.random() < 0.7 else dice.randrange(4096)      # the structure is in front
    if kind == "bit":
        data[place] ^= 1 << dice.randrange(8)
    elif kind == "byte":
        data[place] = dice.randrange(256)
    elif kind == "zeros":
        length = min(dice.choice([8, 512, 4096]), len(data) - place)
        data[place : place + length] = bytes(length)
    elif kind == "cut":
        del data[place:]
    else:
        other = dice.randrange(len(data))
        data[place], data[other] = data[other], data[place]
    return kind, place


def owner(file: Columns, place: int) -> int | None:
    """The record whose image, map, label or JSON has this byte of the file; None where it is no record's."""
    for name in ("maps", "labels"):
        column = file.by_name[name]
        if 0 <= place - column.offset < column.shape[0] * column.row_bytes:
            return (place - column.offset) // column.row_bytes
    for name in ("images", "records"):
        column = file.by_name[f"{name}/bytes"]
        if 0 <= place - column.offset < column.shape[0]:
            return int((file.whole(f"{name}/offsets") <= place - column.offset).sum()) - 1
    return None


def main() -> None:
    shard, scratch, dice, wanted = Path(sys.argv[1]), Path(sys.argv[2]), random.Random(int(sys.argv[3])), sys.argv[5]
    whole, before, file = contents(shard), shard.read_bytes(), Columns(shard)
    refused = unread = 0
    for _ in range(int(sys.argv[4])):
        data = bytearray(before)
        kind, place = damage(data, dice, wanted)
        what, begin, said = f"{kind} at {place}", time.perf_counter(), ""
        scratch.write_bytes(data)
        problems = verify_shard(scratch)["problems"]
        assert bool(problems) == (data != before), f"{what}: `hkmap verify` finds {problems}"
        try:
            same = contents(scratch) == whole
        except HkmapError as error:
            said, same = str(error), None
        assert same is not False, f"{what}: other data, and no error"
        assert same or str(scratch) in said, f"{what}: names no place: {said}"
        record = owner(file, place) if kind == "bit" else None
        if record is not None and not same:
            place_of = f"{scratch}#{record} (record "
            assert said.startswith(place_of), f"{what}: does not name record {record}: {said}"
            assert any(problem["record"] == record for problem in problems), f"{what}: verify does not name {record}"
        assert time.perf_counter() - begin < SECONDS, f"{what}: takes too long"
        refused, unread = refused + (same is None), unread + bool(same)
    print(refused, unread)


if __name__ == "__main__":
    main()
