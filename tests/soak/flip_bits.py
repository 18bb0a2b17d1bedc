"""Damage a shard again and again and read it whole: `python flip_bits.py SHARD SCRATCH SEED COUNT`.

A process of its own, as what could go wrong is a crash or a hang. Prints how often the damage was met by an error and
how often it lay where nothing is read; dies with an AssertionError, and the damage's description, on anything else.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

from hkmap.errors import HkmapError
from hkmap.storage.packing import describe_shard
from hkmap.storage.shards import ShardReader


def contents(path: Path) -> list[Any]:
    """Everything that a reader gives, as values that compare."""
    reader = ShardReader(path)
    found: list[Any] = [reader.classes, reader.ids]
    for index in range(len(reader)):
        sample = reader.read(index)
        parts = [None if part is None else part.tobytes() for part in (sample.map, sample.weight)]
        found.append((sample.record, sample.image_bytes, *parts, sample.label))
    return found


def damage(data: bytearray, dice: random.Random) -> str:
    """Change the data in place; say how."""
    kind = dice.choice(["bit", "bit", "bit", "byte", "zeros", "cut", "swap"])
    place = dice.randrange(len(data)) if dice.random() < 0.7 else dice.randrange(4096)      # the structure is in front
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
    return f"{kind} at {place}"


def main() -> None:
    shard, scratch, dice = Path(sys.argv[1]), Path(sys.argv[2]), random.Random(int(sys.argv[3]))
    whole, before = contents(shard), shard.read_bytes()
    refused = unread = 0
    for _ in range(int(sys.argv[4])):
        data = bytearray(before)
        what = damage(data, dice)
        scratch.write_bytes(data)
        try:
            same = contents(scratch) == whole
        except HkmapError as error:
            said, same = str(error), None
        assert same is not False, f"{what}: other data, and no error"
        assert same or str(scratch) in said, f"{what}: names no place: {said}"
        refused, unread = refused + (same is None), unread + bool(same)
        try:
            describe_shard(scratch)
        except HkmapError:
            continue
        assert data == before or bytes(data[512:]) == before[512:], f"{what}: `hkmap info` finds nothing wrong"
    print(refused, unread)


if __name__ == "__main__":
    main()
