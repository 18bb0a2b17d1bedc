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
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hkmap.errors import ShardError
from hkmap.storage.parsing import MOST_NAMES, MOST_TEXT, Column, Structure, parse_structure

_MOST_ATTRIBUTES = 64
_CPU_SECONDS = 0.6            # of libhdf5; a structure takes it a few milliseconds
_WALL_SECONDS = 30.0          # a slow disk is no crime
_MEMORY = 1 << 26             # bytes, beyond what Python and libhdf5 take before they open anything


def read_structure(path: Path, size: int) -> Structure:
    """Return the structure of a file of ``size`` bytes.

    Raises ShardError where the file is no whole HDF5 file, where it has more names or attributes than any shard, or
    where a dataset is a soft or external link, is chunked, kept in another file, or reaches beyond the end.
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
    # Our own path for modules: Python's would begin with the current folder, which may be the stranger's.
    program = f"import sys; sys.path[:] = {sys.path!r}; from hkmap.storage import structure; structure.answer_apart()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], input=json.dumps([str(path.absolute()), str(path), size]).encode(),
            capture_output=True, check=False, timeout=_WALL_SECONDS,
        )
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise ShardError(f"{path}: damaged HDF5, on which libhdf5 hangs or crashes; copy it again") from error
    if "refused" in answer:
        raise ShardError(answer["refused"])
    columns = {
        name: _checked(Column(offset, tuple(shape), np.dtype(kind)), name, path, size)
        for name, (offset, shape, kind) in answer["columns"].items()
    }
    return Structure(answer["attributes"], columns)


def answer(path: Path, name: str, size: int) -> dict[str, Any]:
    """What the process of its own says of the file at ``path``, which its user calls ``name``."""
    try:
        found = _ask(path, size)
    except ShardError as error:
        return {"refused": str(error).replace(str(path), name, 1)}
    columns = {key: (column.offset, column.shape, column.dtype.str) for key, column in found.columns.items()}
    return {"attributes": found.attributes, "columns": columns}


def answer_apart() -> None:
    """What the process of its own does: read a file's path, name and size on its stdin, answer on its stdout."""
    _limit_this_process()
    with open(0, "rb") as question, open(1, "w", encoding="ascii") as out:
        path, name, size = json.load(question)
        json.dump(answer(Path(path), name, size), out)


def _limit_this_process() -> None:
    """Let the process die, rather than the machine; where a limit is unknown (macOS) the others have to do."""
    import resource
    import signal

    signal.setitimer(signal.ITIMER_PROF, _CPU_SECONDS)      # processor time; SIGPROF ends a process
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


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
    if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_external_count():
        raise ShardError(f"{path}: {name} is chunked or kept elsewhere, expected one contiguous dataset in the file")
    if dataset.dtype.kind not in "biuf" or not dataset.shape:
        raise ShardError(f"{path}: {name} holds {dataset.dtype} {dataset.shape}, expected rows of plain numbers")
    offset = dataset.id.get_offset() if math.prod(dataset.shape) else 0
    return Column(-1 if offset is None else offset, dataset.shape, dataset.dtype)


def _checked(column: Column, name: str, path: Path, size: int) -> Column:
    if column.offset < 0 or column.offset + column.dtype.itemsize * math.prod(column.shape) > size:
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
