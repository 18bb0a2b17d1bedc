"""The user block of an HDF5 file, its first 512 bytes, which libhdf5 leaves alone.

It holds, as text, the size of the file, the sha256 of all that follows, and the sha256 of its structure: what
follows without the datasets' own bytes. libhdf5 may hang or crash on a damaged structure, so a reader compares that
one, a few kilobytes, before it lets libhdf5 open the file. Damage to the data is found, and named, by the checksum of
its record.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BufferedIOBase
from pathlib import Path
from typing import NamedTuple

from hkmap.errors import ShardError

USER_BLOCK = 512
_PIECE = 1 << 20      # bytes that are summed at once
_PADDING = 8          # less lies between two neighbours; more might be structure
_MOST_HOLES = 6       # what hkmap writes has one; a dataset that finds no room here counts as structure
_MOST_STRUCTURE = 1 << 24      # bytes; more takes long, and a shard has some kilobytes and its classes' names, twice
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SUPERBLOCK = 64               # bytes of it that are read
_END_PLACES = {0: 40, 1: 44, 2: 28, 3: 28}      # of the file's length in it, by its version
_DIGEST_LINE = re.compile(rb"^sha256 ([0-9a-f]{64})$", re.MULTILINE)
_STRUCTURE_LINE = re.compile(rb"^size ([0-9]+) structure ([0-9a-f]{64}) without ([0-9+,]*)$", re.MULTILINE)

Hole = tuple[int, int]      # where a large dataset begins and ends in the file


class _Stated(NamedTuple):
    size: int
    structure: str
    holes: list[Hole]


def _block(digest: str, stated: _Stated) -> bytes:
    without = ",".join(f"{start}+{stop - start}" for start, stop in stated.holes)
    text = f"HDF5 of hkmap, from byte {USER_BLOCK} on\n"
    text += f"sha256 {digest}\n" if digest else ""
    text += f"size {stated.size} structure {stated.structure} without {without}\n"
    return text.encode().ljust(USER_BLOCK - 1) + b"\n"


def seal(path: Path, data: list[Hole], *, whole: bool = True) -> str:
    """Write the user block of a file that is complete but for it; return the file's digest.

    ``data`` says where the datasets lie; they are left out of the structure. Without ``whole`` there is no digest of
    the file, only of its structure, and "" is returned.
    """
    holes = _joined(data)
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        structure = _digest(file, stretches_around(holes, size))
        digest = _whole(file, size) if whole else ""
        file.seek(0)
        file.write(_block(digest, _Stated(size, structure, holes)))
    return digest


def holes_of(path: Path) -> list[Hole]:
    """Return where the datasets of a sealed file lie, as far as they are left out of its structure."""
    with path.open("rb") as file:
        stated = _stated(file.read(USER_BLOCK))
    return stated.holes if stated else []


def refuse_damaged_structure(path: Path) -> None:
    """Raise ShardError where a sealed file is cut short, or its structure is not the one that was sealed.

    A file of another program has no seal, or a stale one, and passes: nobody knows what it ought to be.
    """
    with path.open("rb") as file:
        stated = _stated(file.read(USER_BLOCK))
        if stated is None:
            return
        size = file.seek(0, os.SEEK_END)
        if _is_anew(file, stated):
            return
        if size < stated.size:
            raise ShardError(f"{path}: cut short at {size} of {stated.size} bytes; copy it again")
        if sum(stop - start for start, stop in stretches_around(stated.holes, stated.size)) > _MOST_STRUCTURE:
            raise ShardError(f"{path}: its structure takes more than {_MOST_STRUCTURE} bytes; hkmap wrote no such file")
        if _digest(file, stretches_around(stated.holes, stated.size)) != stated.structure:
            raise ShardError(f"{path}: its structure does not have the sha256 it states: damaged; copy it again")


def is_stale(path: Path) -> bool:
    """Return whether another program wrote the file anew, as h5repack does, and copied the old one's user block."""
    with path.open("rb") as file:
        stated = _stated(file.read(USER_BLOCK))
        return stated is not None and _is_anew(file, stated)


def _is_anew(file: BufferedIOBase, stated: _Stated) -> bool:
    """Whether the file has another length than stated, and the one that HDF5's own superblock says.

    One that was cut short, or is damaged in one place, has not.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(USER_BLOCK)
    block = file.read(_SUPERBLOCK)
    if size == stated.size or len(block) < _SUPERBLOCK or block[:8] != _SIGNATURE:
        return False
    place = _END_PLACES.get(block[8], 0)
    return place > 0 and int.from_bytes(block[place : place + 8], "little") == size


def stretches_around(holes: list[Hole], size: int) -> Iterator[Hole]:
    """Yield what lies between the holes, from the end of the user block to the end of the file."""
    begin = USER_BLOCK
    for start, stop in holes:
        if begin <= start <= stop <= size:      # else the user block itself is damaged: nothing will fit its digest
            yield begin, start
            begin = stop
    yield begin, size


def stated_digest(path: Path) -> str:
    """Return the sha256 that the user block states, "" if none."""
    with path.open("rb") as file:
        stated = _DIGEST_LINE.search(file.read(USER_BLOCK))
    return stated[1].decode() if stated else ""


def file_digest(path: Path) -> tuple[str, str]:
    """Return (the sha256 that the user block states, "" if none; the sha256 that the bytes have); without libhdf5."""
    with path.open("rb") as file:
        return stated_digest(path), _digest(file, [(USER_BLOCK, file.seek(0, os.SEEK_END))])


def is_intact(path: Path) -> bool:
    """Return whether the user block is, to the byte, one that hkmap writes; it has no digest of its own."""
    with path.open("rb") as file:
        block = file.read(USER_BLOCK)
    digest, stated = _DIGEST_LINE.search(block), _stated(block)
    return stated is not None and block == _block(digest[1].decode() if digest else "", stated)


def _whole(file: BufferedIOBase, size: int) -> str:
    with ThreadPoolExecutor(1) as beside:       # the disk is as slow as the sum, and both are to be waited for
        synced = beside.submit(os.fsync, file.fileno())
        digest = _digest(file, [(USER_BLOCK, size)])
    synced.result()
    return digest


def _stated(user_block: bytes) -> _Stated | None:
    line = _STRUCTURE_LINE.search(user_block)
    if line is None:
        return None
    pairs = [pair.partition(b"+") for pair in line[3].split(b",") if pair]
    holes = [(int(start or b"0"), int(start or b"0") + int(length or b"0")) for start, _, length in pairs]
    return _Stated(int(line[1]), line[2].decode(), holes)


def _joined(data: list[Hole]) -> list[Hole]:
    """The stretches of the file that are data, neighbours joined, in order; few, as the user block is small."""
    joined: list[Hole] = []
    for start, stop in sorted(hole for hole in data if hole[1] > hole[0]):
        before = joined.pop() if joined and start - joined[-1][1] < _PADDING else (start, stop)
        joined.append((before[0], stop))
    return sorted(sorted(joined, key=lambda hole: hole[0] - hole[1])[:_MOST_HOLES])


def _digest(file: BufferedIOBase, stretches: Iterable[Hole]) -> str:
    digest = hashlib.sha256()
    piece = memoryview(bytearray(_PIECE))      # one for all: fresh memory for each takes longer than to sum it
    for start, stop in stretches:
        file.seek(start)
        while start < stop and (count := file.readinto(piece[: min(stop - start, _PIECE)])):
            digest.update(piece[:count])
            start += count
    return digest.hexdigest()
