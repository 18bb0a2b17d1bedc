"""Damage a shard again and again, read it whole and verify it: `python flip_bits.py SHARD SEED COUNT KIND`.

KIND is bit (one flipped bit anywhere), cut (cut short anywhere) or any (of several kinds of damage). As a program, a
crash or a hang is an answer too. Prints how often the damage was met by an error and how often it lay where nothing is
read; dies with an AssertionError, and the damage's description, on anything else.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

from hkmap.errors import HkmapError
from hkmap.files.hdf5 import Columns
from hkmap.shards.reader import ShardReader
from hkmap.shards.verify import verify_shard


def contents(path: Path) -> list[Any]:
    """Everything that a reader gives of the records, as values that compare."""
    reader = ShardReader(path)
    found: list[Any] = [reader.ids]
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


def check_damage(shard: Path, seed: int, count: int, wanted: str) -> tuple[int, int]:
    """Damage the shard so many times; return how often that was refused, and how often nothing of it is read."""
    scratch, dice = shard.with_name("damaged.h5"), random.Random(seed)
    whole, before, file = contents(shard), shard.read_bytes(), Columns(shard)
    refused = unread = 0
    for _ in range(count):
        data = bytearray(before)
        kind, place = damage(data, dice, wanted)
        what, said = f"{kind} at {place}", ""
        scratch.write_bytes(data)
        problems = verify_shard(scratch)["problems"]
        assert bool(problems) == (data != before), f"{what}: `hkmap check` finds {problems}"
        try:
            same = contents(scratch) == whole
        except HkmapError as error:
            said, same = str(error), None
        assert same is not False, f"{what}: other data, and no error"
        assert same or str(scratch) in said, f"{what}: names no place: {said}"
        record = owner(file, place) if kind == "bit" else None
        if record is not None and not same:
            assert said.startswith(f"{scratch}#{record} (record "), f"{what}: does not name record {record}: {said}"
            assert any(problem["record"] == record for problem in problems), f"{what}: record {record} is not named"
        refused, unread = refused + (same is None), unread + bool(same)
    return refused, unread


if __name__ == "__main__":
    print(*check_damage(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
