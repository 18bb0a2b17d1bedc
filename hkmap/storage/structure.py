"""Where the datasets of an HDF5 file lie, and its attributes: all that is asked of HDF5 when a file is read.

libhdf5 may hang, crash or take all memory where a file is damaged or meant to do harm, and a digest in the file tells
nothing about who wrote it. So libhdf5 never opens a file to be read in this process: what has the plain form of a
shard is parsed (parsing.py), and about everything else a process of its own asks libhdf5, with little time and
memory, and hands back numbers, which are checked here.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hkmap.errors import ShardError
from hkmap.storage.apart import limit_memory, limit_this_process, run_apart
from hkmap.storage.parsing import MOST_NAMES, MOST_TEXT, Column, Structure, parse_structure

_MOST_ATTRIBUTES = 64
_CPU_SECONDS = 0.6            # of libhdf5; a structure takes it a few milliseconds
_WALL_SECONDS = 30.0          # a slow disk is no crime
_MEMORY = 1 << 26             # bytes, beyond what Python and libhdf5 take before they open anything
_LEAST_UNPACKED = 1 << 24     # bytes of chunked datasets that a file of any size may have,
_MOST_TIMES = 16              # and so many for each of its own bytes; image files in a shard hardly shrink at all


def read_structure(path: Path, size: int) -> Structure:
    """Return the structure of a file of ``size`` bytes.

    Raises ShardError where the file is no whole HDF5 file, where it has more names or attributes than any shard, where
    a dataset is a soft or external link, is kept in another file, or reaches beyond the end, or where the chunked ones
    take more than most_unpacked.
    """
    return parse_structure(path, size) or _ask_apart(path, size)


def _ask(path: Path, size: int) -> Structure:
    """Ask libhdf5; in a process of its own."""
    try:
        with h5py.File(path, "r") as file:
            return Structure(_attributes(file, path), dict(_columns(file, path, size)))
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError) as error:
        raise ShardError(_unreadable(path, size, error)) from error


def _ask_apart(path: Path, size: int) -> Structure:
    """Have libhdf5 asked in a process of its own."""
    question = [str(path.absolute()), str(path), size]
    try:
        done = run_apart(f"{__name__}.{answer_apart.__name__}", question, seconds=_WALL_SECONDS)
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise ShardError(f"{path}: damaged HDF5, on which libhdf5 hangs or crashes; copy it again") from error
    if "refused" in answer:
        raise ShardError(answer["refused"])
    columns = {
        name: _checked(Column(offset, tuple(shape), np.dtype(kind), chunked), name, path, size)
        for name, (offset, shape, kind, chunked) in answer["columns"].items()
    }
    _refuse_bomb(columns.values(), path, size)
    return Structure(answer["attributes"], columns)


def answer(path: Path, name: str, size: int) -> dict[str, Any]:
    """What the process of its own says of the file at ``path``, which its user calls ``name``."""
    try:
        found = _ask(path, size)
    except ShardError as error:
        return {"refused": str(error).replace(str(path), name, 1)}
    columns = {
        key: (column.offset, column.shape, column.dtype.str, column.chunked) for key, column in found.columns.items()
    }
    return {"attributes": found.attributes, "columns": columns}


def answer_apart() -> None:
    """What the process of its own does: read a file's path, name and size on its stdin, answer on its stdout."""
    limit_this_process(_CPU_SECONDS)
    limit_memory(_MEMORY)
    with open(0, "rb") as question, open(1, "w", encoding="ascii") as out:
        path, name, size = json.load(question)
        json.dump(answer(Path(path), name, size), out)


def most_unpacked(size: int) -> int:
    """Return how many bytes the chunked datasets of a file of ``size`` bytes may take; more would be a bomb."""
    return _LEAST_UNPACKED + _MOST_TIMES * size


def _refuse_bomb(columns: Iterable[Column], path: Path, size: int) -> None:
    total = sum(column.total_bytes for column in columns if column.chunked)
    if total > most_unpacked(size):
        raise ShardError(
            f"{path}: its chunked datasets take {total:,} bytes unpacked, expected at most {most_unpacked(size):,} for "
            f"a file of {size:,} bytes; if you trust it, unpack it with `h5repack -l CONTI`"
        )


def _attributes(file: h5py.File, path: Path) -> dict[str, object]:
    """The attributes that are numbers or text."""
    if len(file.attrs) > _MOST_ATTRIBUTES:
        raise ShardError(f"{path}: has {len(file.attrs)} attributes, a shard has 4; it is none")
    found: dict[str, object] = {}
    for name in file.attrs:
        there = h5py.h5a.open(file.id, name.encode())
        stored = there.get_space().get_select_npoints() * there.get_type().get_size()      # without the text itself
        value = _plain(file.attrs[name]) if stored <= MOST_TEXT else ""
        if stored > MOST_TEXT or len(str(value)) > MOST_TEXT:
            raise ShardError(f"{path}: its attribute {name} takes more than {MOST_TEXT} bytes; it is no shard")
        found[name] = value
    return found


def _plain(value: object) -> object:
    """The value as JSON has it, None where JSON has none."""
    plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    return plain if isinstance(plain, str | int | float) else None


def _columns(file: h5py.File, path: Path, size: int) -> Iterator[tuple[str, Column]]:
    for number, (name, item) in enumerate(_walk(file, "", path)):
        if number >= MOST_NAMES:
            raise ShardError(f"{path}: holds more than {MOST_NAMES} groups and datasets; it is no shard")
        if isinstance(item, h5py.Dataset):
            yield name, _checked(_column(item, name, path), name, path, size)


def _walk(group: h5py.Group, prefix: str, path: Path) -> Iterator[tuple[str, object]]:
    if len(group) > MOST_NAMES:
        raise ShardError(f"{path}: holds more than {MOST_NAMES} groups and datasets; it is no shard")
    for key in group:
        name = f"{prefix}{key}"
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise ShardError(f"{path}: {name} is a soft or external link; a shard holds its own data")
        item = group[key]
        yield name, item
        if isinstance(item, h5py.Group) and prefix.count("/") < 2:      # a shard's groups are two deep at most;
            yield from _walk(item, f"{name}/", path)                    # a hard link may make a circle


def _column(dataset: h5py.Dataset, name: str, path: Path) -> Column:
    plist = dataset.id.get_create_plist()
    layout = plist.get_layout()
    if layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED) or plist.get_external_count():
        raise ShardError(f"{path}: {name} is kept elsewhere, expected a contiguous or chunked dataset in the file")
    if dataset.dtype.kind not in "biuf" or not dataset.shape:
        raise ShardError(f"{path}: {name} holds {dataset.dtype} {dataset.shape}, expected rows of plain numbers")
    if layout == h5py.h5d.CHUNKED:
        return Column(0, dataset.shape, dataset.dtype, chunked=True)
    offset = dataset.id.get_offset() if math.prod(dataset.shape) else 0
    return Column(-1 if offset is None else offset, dataset.shape, dataset.dtype)


def _checked(column: Column, name: str, path: Path, size: int) -> Column:
    if column.offset < 0 or (column.offset + column.total_bytes > size and not column.chunked):
        raise ShardError(f"{path}: {name} was never written, or lies beyond the file's {size} bytes; copy it again")
    return column


def _unreadable(path: Path, size: int, error: Exception) -> str:
    if "truncated" in str(error):
        return f"{path}: cut short at {size} bytes (its header says more); copy it again"
    if size == 0:
        return f"{path}: empty (0 bytes), expected an HDF5 file; copy it again"
    if "file signature" in str(error):
        return f"{path}: {size} bytes without the signature of HDF5; expected a file that hkmap wrote, and whole"
    return f"{path}: damaged HDF5 ({str(error)[:100]}); copy it again"
