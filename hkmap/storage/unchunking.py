"""Unpack the chunked datasets of an HDF5 file, as h5repack and other programs write them, compressed or not.

libhdf5 does it, in a process of its own with little time and memory, and writes their bytes end to end into a file
without a name: from there they are read like contiguous ones.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import numpy.typing as npt

from hkmap.errors import ShardError
from hkmap.storage.apart import limit_memory, limit_this_process, run_apart
from hkmap.storage.descriptors import NamelessFile
from hkmap.storage.parsing import Column
from hkmap.storage.structure import most_unpacked

_CPU_SECONDS = 0.2            # of libhdf5, and one more for each of
_CPU_UNPACKED = 1 << 26       # so many bytes of datasets; it unpacks one to four times as many a second
_CPU_PACKED = 1 << 23         # so many of the file; where chunks are small, most of it is their list
_WALL_SECONDS = 30.0          # likewise on the wall: a slow disk is no crime
_WALL_BYTES = 1 << 20
_MEMORY = 1 << 26             # bytes, beyond what Python takes at first and what chunks take
_BLOCK = 1 << 22              # bytes that are read at once, or one row of chunks where that takes more;
_AT_ONCE = 1 << 12            # and so many chunks,
_MOST_BESIDE = 1 << 13        # or the chunks of one row, at most so many,
_CHUNK_MEMORY = 1 << 12       # each of which takes libhdf5 so many bytes, its content aside

_REMEDY = "copy it again, or unpack it with `h5repack -l CONTI`"
_MORE_ROOM = "set TMPDIR to a folder with more, or unpack it with `h5repack -l CONTI`"


def placed(columns: Mapping[str, Column]) -> dict[str, Column]:
    """Return the columns with the offset of each chunked one in the file that unpack makes."""
    chunked = {name: column for name, column in columns.items() if column.chunked}
    starts = accumulate((column.total_bytes for column in chunked.values()), initial=0)
    moved = zip(chunked.items(), starts, strict=False)      # where the last one ends, none begins
    return {**columns, **{name: replace(column, offset=start) for (name, column), start in moved}}


def unpack(path: Path, size: int, columns: Mapping[str, Column]) -> NamelessFile | None:
    """Return a file with the bytes of the chunked ones among the ``columns`` of a file of ``size`` bytes.

    None where they have no byte. Raises ShardError where a chunk is damaged or its filter is missing, where they take
    more time or memory than they should, and where the disk for temporary files has no room for them.
    """
    chunked = {name: column for name, column in columns.items() if column.chunked and column.total_bytes}
    total = sum(column.total_bytes for column in chunked.values())
    if not total:
        return None
    asked = [(name, column.shape, column.dtype.str) for name, column in chunked.items()]
    with _temporary(path, total) as file:
        said = _run([str(path.absolute()), size, total, asked], file)
        found = os.fstat(file.fileno()).st_size
        if said is None or said or found != total:
            crash = f"libhdf5 hangs or crashes when it unpacks its chunks ({found:,} of {total:,} bytes came)"
            raise ShardError(f"{path}: {said or f'{crash}; {_REMEDY}'}")
        return NamelessFile(file)


def _temporary(path: Path, total: int) -> IO[bytes]:
    """Open a file without a name where there is room for ``total`` bytes."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < total:
        raise ShardError(
            f"{path}: its chunked datasets take {total:,} bytes unpacked, but {folder} has room for {free:,}; "
            f"{_MORE_ROOM}"
        )
    return tempfile.TemporaryFile(dir=folder)


def _run(question: list[Any], file: IO[bytes]) -> str | None:
    """Have the ``file`` filled; return what was said against it, "" if nothing, None after a crash."""
    seconds = _WALL_SECONDS + sum(question[1:3]) / _WALL_BYTES
    try:
        done = run_apart(f"{__name__}.{unpack_apart.__name__}", question, seconds=seconds, stdout=file)
        return str(json.loads(done.stderr)["refused"]) if done.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError):
        return None


def unpack_apart() -> None:
    """What the process of its own does: read what is asked on its stdin, write the bytes to its stdout.

    What is wrong goes to its stderr, as JSON.
    """
    with open(0, "rb") as question:
        path, size, total, asked = json.load(question)
    limit_this_process(_CPU_SECONDS + total / _CPU_UNPACKED + size / _CPU_PACKED, written=total)
    limit_memory(_MEMORY)
    with suppress(OSError), open(1, "wb") as out:      # what a full disk did not take is not taken at the end either
        refused = write_unpacked(path, asked, most_unpacked(size), out)
    with open(2, "w", encoding="ascii") as say:
        json.dump({"refused": refused}, say)


def write_unpacked(path: str, asked: Sequence[tuple[str, Sequence[int], str]], most: int, out: IO[bytes]) -> str:
    """Write the bytes of datasets (name, shape, type) end to end; return what is wrong with them, "" if nothing.

    ``most`` is how many bytes a chunk may have.
    """
    name = "it"
    try:
        with h5py.File(path, "r") as file:
            for name, shape, kind in asked:
                dataset = file[name]
                if (dataset.shape, dataset.dtype) != (tuple(shape), np.dtype(kind)) or dataset.chunks is None:
                    return f"{name} is not what it was when it was opened, somebody replaced the file; begin anew"
                chunk = dataset.dtype.itemsize * math.prod(dataset.chunks)
                beside = math.prod(map(_quotient, dataset.shape[1:], dataset.chunks[1:]))
                if chunk > most or beside > _MOST_BESIDE:
                    return (
                        f"{name} has chunks of {chunk:,} bytes, {beside:,} side by side; expected at most {most:,} "
                        f"bytes and {_MOST_BESIDE:,} side by side; {_REMEDY}"
                    )
                for block in _blocks(dataset, chunk, beside):
                    out.write(block.data)
        out.flush()
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"no room in the folder for temporary files to unpack {name}; {_MORE_ROOM}"
        reason = str(error)[:150] or "out of memory"
        return f"{name} cannot be unpacked ({reason}): damaged, or packed with a filter not installed; {_REMEDY}"
    return ""


def _quotient(side: int, own: int) -> int:
    return -(-side // own)


def _blocks(dataset: h5py.Dataset, chunk: int, beside: int) -> Iterator[npt.NDArray[Any]]:
    """Yield a dataset by rows, each chunk unpacked once; one has ``chunk`` bytes, and a row ``beside`` of them."""
    deep, length = dataset.chunks[0], dataset.shape[0]
    band = min(deep, length) * dataset.dtype.itemsize * math.prod(dataset.shape[1:])
    limit_memory(_MEMORY + 2 * band + 4 * chunk + _CHUNK_MEMORY * beside)
    rows = deep * max(1, min(_BLOCK // band, _AT_ONCE // beside))
    for start in range(0, length, rows):
        yield np.ascontiguousarray(dataset[start : start + rows])
