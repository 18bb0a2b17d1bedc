"""HDF5 files whose data lie end to end: libhdf5 lays them out, plain file I/O writes and reads them.

Every dataset is contiguous. The file is made with room for its data but without them; the bytes are then
copied to the datasets' offsets, so a full disk is an ordinary OSError and memory stays small. A reader asks
libhdf5 for the offsets once and fetches bytes by itself.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import numpy.typing as npt

from hkmap.errors import OutputError, ShardError
from hkmap.storage.userblock import USER_BLOCK, holes_of, refuse_damaged_structure, seal

_SLACK = 1 << 16      # libhdf5's own structures, more than they ever take, attributes aside

Attributes = Mapping[str, str | int]


@dataclass
class Part:
    """One dataset in the making: ``rows`` rows of ``shape``, their bytes spooled in a file without a name."""

    dtype: npt.DTypeLike
    spool: IO[bytes]
    shape: tuple[int, ...] = ()
    rows: int = 0

    def append(self, values: npt.ArrayLike) -> None:
        """Add one row."""
        self.spool.seek(self.rows * self._row_bytes)      # rows that were skipped are a hole, read as zeros
        self.spool.write(np.asarray(values, dtype=self.dtype).tobytes())
        self.rows += 1

    def skip(self) -> None:
        """Add one row of zeros, whose shape may still be unknown."""
        self.rows += 1

    @property
    def full_shape(self) -> tuple[int, ...]:
        return (self.rows, *self.shape)

    def finished_bytes(self) -> int:
        """Return how many bytes the dataset takes, all of them spooled."""
        self.spool.flush()
        return self.spool.truncate(self.rows * self._row_bytes)

    @property
    def _row_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


@dataclass
class Parts:
    """The datasets in the making of one file, by name ("images/bytes"), spooled in the folder of the file."""

    folder: Path
    by_name: dict[str, Part] = field(default_factory=dict)

    def add(self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...] = ()) -> Part:
        """Open a dataset of rows of ``shape``."""
        spool = tempfile.TemporaryFile(dir=self.folder)      # noqa: SIM115  (close() does)
        self.by_name[name] = Part(dtype, spool, shape)
        return self.by_name[name]

    def add_strings(self, name: str) -> Strings:
        """Open a pair of datasets, bytes end to end and the offsets between them."""
        return Strings(self.add(f"{name}/bytes", "u1"), self.add(f"{name}/offsets", "<u8"))

    def close(self) -> None:
        """Drop the spools."""
        for part in self.by_name.values():
            with suppress(OSError):      # a full disk, once more: what was not written yet is dropped anyway
                part.spool.close()


class Strings:
    """Byte strings of any length, end to end; string i lies between offsets i and i + 1."""

    def __init__(self, content: Part, offsets: Part) -> None:
        self.content = content
        self.offsets = offsets
        offsets.append(0)

    def append(self, text: bytes) -> None:
        self.content.spool.write(text)
        self.content.rows += len(text)
        self.offsets.append(self.content.rows)


@contextmanager
def spooling(folder: Path) -> Iterator[Parts]:
    """Yield an empty set of parts; their spools vanish at the end, however it comes."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = Parts(folder)
    try:
        yield parts
    finally:
        parts.close()


def fill_file(path: Path, parts: Parts, attributes: Attributes) -> str:
    """Assemble the parts into the HDF5 file ``path``, an empty temporary one, and return its digest.

    Raises OSError where the disk is full.
    """
    _refuse_full_disk(path, parts)
    offsets = _lay_out(path, parts, attributes)
    with path.open("r+b") as file:
        for name, part in parts.by_name.items():
            file.seek(offsets[name])
            part.spool.seek(0)
            shutil.copyfileobj(part.spool, file, 1 << 20)
    ends = [(offsets[name], offsets[name] + part.finished_bytes()) for name, part in parts.by_name.items()]
    return seal(path, ends)


@contextmanager
def written_as(path: Path) -> Iterator[None]:
    """Name ``path``, not a spool without a name, in the OSError of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        said = f"{os.strerror(error.errno)}; nothing is left of it, as it needs room twice while it is written"
        raise OSError(error.errno, said, str(path)) from error


def replace_attribute(path: Path, name: str, value: str) -> str:
    """Change one attribute of a file that has no final name yet; return its new digest."""
    holes = holes_of(path)
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    return seal(path, holes)


@dataclass(frozen=True)
class Column:
    """Where a dataset lies in the file, in bytes, and what it holds."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])


class ContiguousFile:
    """Reads rows of contiguous datasets by their place in the file; usable from many threads.

    ``columns`` maps the name of each dataset to its place, ``attributes`` holds the file's attributes.
    Raises ShardError where the file is no whole HDF5 file, or where a dataset is a soft or external link,
    is chunked, kept in another file, or reaches beyond the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ShardError(f"{path}: {error.strerror}; expected an HDF5 file") from error
        weakref.finalize(self, os.close, self._descriptor)
        self._lock = threading.Lock()
        self.size = os.fstat(self._descriptor).st_size
        refuse_damaged_structure(path)
        try:
            with h5py.File(path, "r") as file:
                self.attributes = {name: _plain(value) for name, value in file.attrs.items()}
                self.columns = dict(_columns(file, "", path, self.size))
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise ShardError(_unreadable(path, self.size, error)) from error

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes of the rows from ``start`` up to, not including, ``stop``."""
        column = self.columns[name]
        return self._bytes(column.offset + start * column.row_bytes, (stop - start) * column.row_bytes)

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Like read, as an array of the dataset's own type and shape."""
        column = self.columns[name]
        values = np.frombuffer(bytearray(self.read(name, start, stop)), dtype=column.dtype)
        return values.reshape(stop - start, *column.shape[1:])

    def whole(self, name: str) -> npt.NDArray[Any]:
        """Return a whole dataset; its size was checked against the file's."""
        return self.rows(name, 0, self.columns[name].shape[0])

    def _bytes(self, offset: int, count: int) -> bytes:
        pieces = []
        while count > 0:
            piece = self._once(offset, count)
            if not piece:
                raise ShardError(f"{self.path}: ends at byte {offset}, it was longer when it was opened; open it again")
            pieces.append(piece)
            offset, count = offset + len(piece), count - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _once(self, offset: int, count: int) -> bytes:
        count = min(count, 1 << 30)      # one call reads less than 2 GiB
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, count, offset)
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, count)


def open_contiguous(path: Path) -> ContiguousFile:
    """Open ``path``, or return the open file if it is among the last few and has not been replaced since."""
    return _recent(path.absolute(), version_of(path))


@lru_cache(maxsize=8)
def _recent(path: Path, version: tuple[int, ...]) -> ContiguousFile:
    return ContiguousFile(path)


def version_of(path: Path) -> tuple[int, ...]:
    """Return what tells this file from another that takes its name later; raise ShardError if it is missing."""
    try:
        status = path.stat()
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; expected an HDF5 file") from error
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _refuse_full_disk(path: Path, parts: Parts) -> None:
    """Find out that the disk is full, or a limit met, before libhdf5 does, which says it in riddles."""
    total = sum(part.finished_bytes() for part in parts.by_name.values()) + _SLACK
    if shutil.disk_usage(path.parent).free < total:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent))
    os.truncate(path, total)


def _lay_out(path: Path, parts: Parts, attributes: Attributes) -> dict[str, int]:
    """Make the HDF5 file without its data; return the offset of each dataset's first byte."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    offsets = {}
    with h5py.File(path, "w", userblock_size=USER_BLOCK) as file:
        file.attrs.update(attributes)
        for name, part in parts.by_name.items():
            group, _, _ = name.rpartition("/")
            file.require_group(group or "/")
            kind = h5py.h5t.py_create(np.dtype(part.dtype), logical=True)
            space = h5py.h5s.create_simple(part.full_shape)
            dataset = h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=plist)
            offsets[name] = dataset.get_offset() if dataset.get_storage_size() else 0
    return offsets


def _columns(group: h5py.Group, prefix: str, path: Path, size: int) -> Iterator[tuple[str, Column]]:
    for key in group:
        name = f"{prefix}{key}"
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise ShardError(f"{path}: {name} is a soft or external link; a shard holds its own data")
        item = group[key]
        if isinstance(item, h5py.Dataset):
            yield name, _column(item, name, path, size)
        elif prefix.count("/") < 2:      # a shard's groups are two deep at most; a hard link may make a circle
            yield from _columns(item, f"{name}/", path, size)


def _column(dataset: h5py.Dataset, name: str, path: Path, size: int) -> Column:
    plist = dataset.id.get_create_plist()
    if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_external_count():
        raise ShardError(f"{path}: {name} is chunked or kept elsewhere, expected one contiguous dataset in the file")
    if dataset.dtype.hasobject or dataset.shape is None or not dataset.shape:
        raise ShardError(f"{path}: {name} holds {dataset.dtype} {dataset.shape}, expected rows of plain numbers")
    bytes_needed = dataset.dtype.itemsize * math.prod(dataset.shape)
    offset = dataset.id.get_offset() if bytes_needed else 0
    if offset is None or offset + bytes_needed > size:
        raise ShardError(f"{path}: {name} was never written, or lies beyond the file's {size} bytes; copy it again")
    return Column(offset, dataset.shape, dataset.dtype)


def _unreadable(path: Path, size: int, error: Exception) -> str:
    if "truncated" in str(error):
        return f"{path}: cut short at {size} bytes (its header says more); copy it again"
    if size == 0:
        return f"{path}: empty (0 bytes), expected an HDF5 file; copy it again"
    if "file signature" in str(error):
        return f"{path}: {size} bytes without the signature of HDF5; expected a file that hkmap wrote, and whole"
    return f"{path}: damaged HDF5 ({str(error)[:100]}); copy it again"


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def refuse_two_sizes(found: tuple[int, ...], first: tuple[int, ...], place: str) -> None:
    """Raise OutputError where a map is not as large as those before it in the same file."""
    if found != first:
        raise OutputError(
            f"{place}: {found[0]}x{found[1]} (height x width), but the file's maps are {first[0]}x{first[1]}; "
            "it holds maps of one size: pass them through `hkmap resize` first"
        )
