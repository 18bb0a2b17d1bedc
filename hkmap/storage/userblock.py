"""The user block of an HDF5 file, its first 512 bytes, which libhdf5 leaves alone.

It holds, as text, the size of the file, the sha256 of all that follows, and the sha256 of its structure: what
follows without the large datasets. libhdf5 may hang or crash on a damaged structure, so a reader compares that one,
a few kilobytes, before it lets libhdf5 open the file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from hkmap.errors import ShardError

USER_BLOCK = 512
_LARGE = 1 << 16      # bytes; smaller datasets count as structure
_PADDING = 8          # less lies between two neighbours; more might be structure
_MOST_HOLES = 6
_DIGEST_LINE = re.compile(rb"^sha256 ([0-9a-f]{64})$", re.MULTILINE)
_STRUCTURE_LINE = re.compile(rb"^size ([0-9]+) structure ([0-9a-f]{64}) without ([0-9+,]*)$", re.MULTILINE)

Hole = tuple[int, int]      # where a large dataset begins and ends in the file


class _Stated(NamedTuple):
    size: int
    structure: str
    holes: list[Hole]


def seal(path: Path, data: list[Hole]) -> str:
    """Write the user block of a file that is complete but for it; return the file's digest.

    ``data`` says where the datasets lie; the large ones are left out of the structure.
    """
    holes = _large(data)
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        structure = _digest(file, _around(holes, size))
        digest = _digest(file, [(USER_BLOCK, size)])
        without = ",".join(f"{start}+{stop - start}" for start, stop in holes)
        text = f"HDF5 of hkmap, from byte {USER_BLOCK} on\nsha256 {digest}\n"
        text += f"size {size} structure {structure} without {without}\n"
        file.seek(0)
        file.write(text.encode().ljust(USER_BLOCK - 1) + b"\n")
    return digest


def holes_of(path: Path) -> list[Hole]:
    """Return where the large datasets of a sealed file lie."""
    with path.open("rb") as file:
        stated = _stated(file.read(USER_BLOCK))
    return stated.holes if stated else []


def refuse_damaged_structure(path: Path) -> None:
    """Raise ShardError where a sealed file is cut short, or its structure is not the one that was sealed.

    A file of another program has no seal and passes: libhdf5 has to cope with it.
    """
    with path.open("rb") as file:
        stated = _stated(file.read(USER_BLOCK))
        if stated is None:
            return
        size = file.seek(0, os.SEEK_END)
        if size < stated.size:
            raise ShardError(f"{path}: cut short at {size} of {stated.size} bytes; copy it again")
        if _digest(file, _around(stated.holes, stated.size)) != stated.structure:
            raise ShardError(f"{path}: its structure does not have the sha256 it states: damaged; copy it again")


def file_digest(path: Path) -> tuple[str, str]:
    """Return (the sha256 that the user block states, the sha256 that the bytes have); without libhdf5.

    Raises ShardError where the user block states none.
    """
    with path.open("rb") as file:
        stated = _DIGEST_LINE.search(file.read(USER_BLOCK))
        if stated is None:
            raise ShardError(f"{path}: its first {USER_BLOCK} bytes hold no sha256; expected a file that hkmap wrote")
        return stated[1].decode(), _digest(file, [(USER_BLOCK, file.seek(0, os.SEEK_END))])


def _stated(user_block: bytes) -> _Stated | None:
    line = _STRUCTURE_LINE.search(user_block)
    if line is None:
        return None
    pairs = [pair.partition(b"+") for pair in line[3].split(b",") if pair]
    holes = [(int(start or b"0"), int(start or b"0") + int(length or b"0")) for start, _, length in pairs]
    return _Stated(int(line[1]), line[2].decode(), holes)


def _large(data: list[Hole]) -> list[Hole]:
    """The largest stretches of the file that are data, neighbours joined, in order; few, as the user block is small."""
    joined: list[Hole] = []
    for start, stop in sorted(hole for hole in data if hole[1] - hole[0] >= _LARGE):
        before = joined.pop() if joined and start - joined[-1][1] < _PADDING else (start, stop)
        joined.append((before[0], stop))
    return sorted(sorted(joined, key=lambda hole: hole[0] - hole[1])[:_MOST_HOLES])


def _around(holes: list[Hole], size: int) -> Iterator[Hole]:
    """What lies between the holes, from the end of the user block to the end of the file."""
    begin = USER_BLOCK
    for start, stop in holes:
        if begin <= start <= stop <= size:      # else the user block itself is damaged: nothing will fit its digest
            yield begin, start
            begin = stop
    yield begin, size


def _digest(file: IO[bytes], stretches: Iterable[Hole]) -> str:
    digest = hashlib.sha256()
    for start, stop in stretches:
        file.seek(start)
        while start < stop and (piece := file.read(min(stop - start, 1 << 20))):
            digest.update(piece)
            start += len(piece)
    return digest.hexdigest()
