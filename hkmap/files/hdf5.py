"""HDF5 files whose datasets are contiguous: laid out by libhdf5, written and read by plain file I/O.

A writer spools each dataset in a nameless file (a large one, where it will lie in the file itself), has libhdf5 lay
out room for all of them, and copies their bytes there; so a full disk is an ordinary OSError and memory stays small. A
reader asks libhdf5 once where they lie, closes the file, and reads by itself; so it forks, pickles and threads. Chunked
datasets of other programs are read by h5py. The metadata carry HDF5's own checksums (``libver`` v110); a shard's user
block, the first 512 bytes, holds a sha256 of all that follows. No file crafted to attack libhdf5 is defended against.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import numpy.typing as npt

from hkmap.errors import OutputError, ShardError
from hkmap.files.opening import open_file

MOST_TEXT = 1 << 22            # bytes of an attribute: room for the names of 99,999 classes, 40 bytes each
_MOST_NAMES = 256              # datasets and groups, or attributes; a shard has 20 at most
_LEAST_UNPACKED = 1 << 24      # bytes of chunked datasets that a file of any size may have,
_MOST_TIMES = 16               # and so many for each of its own bytes; image files in a shard hardly shrink at all
_MOST_CHUNKS = 4096            # of a dataset, and one for 256 bytes of the file; libhdf5 takes 7 KB for each it reads
_MOST_AT_ONCE = 1 << 30        # bytes of one system call, which reads less than 2 GiB
_MOST_OPEN = 32                # files; a data set may have thousands of shards, and a process few descriptors
_USER_BLOCK = 512
_METADATA = 1 << 14            # bytes that libhdf5 is told to reserve for its structures ahead of a dataset in place
_TITLE = f"HDF5 of hkmap, from byte {_USER_BLOCK} on\n"
_DIGEST = re.compile(rb"^sha256 ([0-9a-f]{64})$", re.MULTILINE)
#: What hkmap writes there; the third line is that of shards of version 1, of no use any more.
_SEAL = re.compile(
    _TITLE.encode() + rb"(sha256 [0-9a-f]{64}\n)?(size [0-9]+ structure [0-9a-f]{64} without [0-9+,]*\n)? *\n"
)
SLACK = 1 << 14                # bytes: libhdf5's own structures, more than they ever take, attributes aside

Attributes = Mapping[str, str | int]
Version = tuple[int, ...]


# writing


@dataclass
class Part:
    """One dataset in the making: ``rows`` rows of ``shape``, spooled from byte ``begin`` of a file."""

    dtype: npt.DTypeLike
    spool: IO[bytes]
    shape: tuple[int, ...] = ()
    begin: int = 0
    rows: int = 0
    skipped: bool = False

    def append(self, values: npt.ArrayLike) -> None:
        """Add one row."""
        if self.skipped:
            self.spool.seek(self.begin + self.rows * self.row_bytes)      # what is skipped is a hole of zeros
            self.skipped = False
        self.spool.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.rows += 1

    def skip(self) -> None:
        """Add one row of zeros, whose shape may still be unknown."""
        self.rows += 1
        self.skipped = True

    def finished_bytes(self) -> int:
        """Return how many bytes the dataset takes, all of them spooled."""
        self.spool.flush()
        return self.spool.truncate(self.begin + self.rows * self.row_bytes) - self.begin

    @property
    def row_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


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

    def add_in_place(self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...], path: Path) -> Part:
        """Open the first and largest dataset; its rows are spooled in the file that write_around will complete."""
        self.by_name[name] = part = Part(dtype, path.open("r+b"), shape, begin=_USER_BLOCK + _METADATA)
        part.spool.seek(part.begin)
        return part

    def add_strings(self, name: str) -> Strings:
        """Open a pair of datasets, bytes end to end and the offsets between them."""
        return Strings(self.add(f"{name}/bytes", "u1"), self.add(f"{name}/offsets", "<u8"))

    def write(self, path: Path, attributes: Attributes) -> str:
        """Write the HDF5 file ``path``, an empty temporary one, and return the sha256 that it states."""
        self._write(path, attributes)
        return _seal(path, file_digest(path)[1])

    def write_around(self, path: Path, attributes: Attributes) -> None:
        """Complete the HDF5 file ``path``, which holds the rows of the first dataset; it states no sha256."""
        first = next(iter(self.by_name.values()))
        end = first.begin + first.finished_bytes()
        with tempfile.NamedTemporaryFile(dir=self.folder) as frame, path.open("r+b") as file:
            if self._write(Path(frame.name), attributes) == first.begin:
                file.write(frame.read(first.begin))
                file.seek(frame.seek(end))
            shutil.copyfileobj(frame, file)
            file.truncate()
        _seal(path, "")

    def _write(self, path: Path, attributes: Attributes) -> int:
        """Write all but what is in its place already, and return where the first dataset begins."""
        _reserve(path, sum(part.begin + part.finished_bytes() for part in self.by_name.values()) + SLACK)
        offsets = _lay_out(path, self.by_name, attributes)
        with path.open("r+b") as file:
            for name, part in self.by_name.items():
                if offsets[name] != part.begin:
                    file.seek(offsets[name])
                    part.spool.seek(part.begin)
                    shutil.copyfileobj(part.spool, file, 1 << 20)
        return next(iter(offsets.values()))

    def close(self) -> None:
        """Drop the spools."""
        for part in self.by_name.values():
            with suppress(OSError):      # a full disk, once more: what was not written yet is dropped anyway
                part.spool.close()


@contextmanager
def written_as(path: Path, remedy: str = "nothing is left of it, make room") -> Iterator[None]:
    """Name ``path``, not a temporary file, in the OSError of a full disk, with the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        raise OSError(error.errno, f"{os.strerror(error.errno)}; {remedy}", str(path)) from error


def refuse_two_sizes(found: tuple[int, ...], first: tuple[int, ...], place: str) -> None:
    """Raise OutputError where a map is not as large as those before it in the same file."""
    if found != first:
        raise OutputError(
            f"{place}: {found[0]}x{found[1]} (height x width), but the file's maps are {first[0]}x{first[1]}; "
            "it holds maps of one size: pass them through `hkmap resize` first"
        )


def _reserve(path: Path, total: int) -> None:
    """Find out that the disk is full, or a limit met, before libhdf5 does, which says it in riddles."""
    if shutil.disk_usage(path.parent).free < total:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent))
    os.truncate(path, total)


def _lay_out(path: Path, parts: Mapping[str, Part], attributes: Attributes) -> dict[str, int]:
    """Make the HDF5 file without its data; return the offset of each dataset's first byte."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)      # the same content is the same file, whenever it is made
    offsets = {}
    block = _METADATA if any(part.begin for part in parts.values()) else 2048       # libhdf5's default
    with h5py.File(path, "w", userblock_size=_USER_BLOCK, libver=("v110", "v110"), meta_block_size=block) as file:
        for key, value in attributes.items():      # no text of variable length: libhdf5 hangs where that is damaged
            text = value.encode() if isinstance(value, str) else None
            dtype = None if text is None else h5py.string_dtype(length=len(text) or 1)
            file.attrs.create(key, value if text is None else text, dtype=dtype)
        for name, part in parts.items():
            group, _, _ = name.rpartition("/")
            file.require_group(group or "/")
            kind = h5py.h5t.py_create(np.dtype(part.dtype), logical=True)
            space = h5py.h5s.create_simple((part.rows, *part.shape))
            dataset = h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=plist)
            offsets[name] = dataset.get_offset() if dataset.get_storage_size() else 0
    return offsets


# the user block


def _seal(path: Path, digest: str) -> str:
    with path.open("r+b") as file:
        file.write((_TITLE + (f"sha256 {digest}\n" if digest else "")).encode().ljust(_USER_BLOCK - 1) + b"\n")
    return digest


def file_digest(path: Path) -> tuple[str, str]:
    """Return (the sha256 that the user block states, "" if none; the sha256 of all that follows it)."""
    with open_file(path) as file:
        return _stated(file), hashlib.file_digest(file, "sha256").hexdigest()


def stated_digest(path: Path) -> str:
    """Return the sha256 that the user block states, "" if none; the rest is not read."""
    with open_file(path) as file:
        return _stated(file)


def _stated(file: IO[bytes]) -> str:
    stated = _DIGEST.search(file.read(_USER_BLOCK))
    return stated[1].decode() if stated else ""


def is_sealed(path: Path) -> bool:
    """Return whether the user block is one that hkmap writes; it has no digest of its own."""
    with open_file(path) as file:
        return _SEAL.fullmatch(file.read(_USER_BLOCK).ljust(_USER_BLOCK)) is not None


# reading


@dataclass(frozen=True)
class Column:
    """A dataset of the file: where it lies, in bytes (None: in chunks), and what it holds."""

    name: str
    offset: int | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @cached_property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def total_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


class Columns:
    """Reads rows of an HDF5 file's datasets, by their names ("images/bytes"); from any thread, after fork, picklable.

    ``by_name`` says where each dataset lies; ``attributes`` holds the file's attributes that are numbers or text.
    Raises ShardError where the file is missing or no whole HDF5 file, where a dataset is a soft or external link, is
    kept in another file, or is declared larger than the file can hold; and, when reading, where somebody replaced it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version = version_of(path)
        self.attributes, self.by_name = _read_structure(path, self._version[-1])

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes of the rows from ``start`` up to, not including, ``stop``."""
        column = self.by_name[name]
        if column.offset is None:
            return self._slice(column, start, stop).tobytes()
        count, offset = (stop - start) * column.row_bytes, column.offset + start * column.row_bytes
        if count <= _MOST_AT_ONCE:      # nearly always: one call, no copy
            data = os.pread(_opened(self.path, self._version).number, count, offset)
            if len(data) == count:
                return data
        return self.rows(name, start, stop).tobytes()

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Like read, as an array of the dataset's own type and shape."""
        column = self.by_name[name]
        if column.offset is None:
            return self._slice(column, start, stop)
        values = np.empty((stop - start, *column.shape[1:]), column.dtype)
        self.read_into(name, start, values.reshape(-1).view(np.uint8).data)
        return values

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill the ``buffer``, of bytes, with the rows from ``start`` on."""
        column = self.by_name[name]
        if column.offset is None:
            buffer[:] = self.read(name, start, start + len(buffer) // column.row_bytes)
            return
        file, offset = _opened(self.path, self._version), column.offset + start * column.row_bytes
        while len(buffer):
            count = os.preadv(file.number, [buffer[:_MOST_AT_ONCE]], offset)
            if not count:
                raise ShardError(f"{self.path}: ends at byte {offset}, it was longer when it was opened; open it again")
            offset, buffer = offset + count, buffer[count:]

    def whole(self, name: str) -> npt.NDArray[Any]:
        """Return a whole dataset; its size was checked against the file's."""
        return self.rows(name, 0, self.by_name[name].shape[0])

    def _slice(self, column: Column, start: int, stop: int) -> npt.NDArray[Any]:
        try:
            return np.ascontiguousarray(_unpacker(self.path, self._version, os.getpid())[column.name][start:stop])
        except (OSError, RuntimeError, KeyError, ValueError, MemoryError) as error:
            raise ShardError(
                f"{self.path}: {column.name} cannot be unpacked ({str(error)[:150] or 'out of memory'}): damaged, or "
                "packed with a filter that is not installed; copy it again, or unpack it with `h5repack -l CONTI`"
            ) from error


def open_columns(path: Path) -> Columns:
    """Open ``path``, or return the open file if it is among the last few and has not been replaced since."""
    return _recent(path, version_of(path))


@lru_cache(maxsize=8)
def _recent(path: Path, version: Version) -> Columns:
    return Columns(path)


def version_of(path: Path, descriptor: int | None = None) -> Version:
    """Return what tells this file from another that takes its name later; raise ShardError if it is no plain file."""
    try:
        status = path.stat() if descriptor is None else os.fstat(descriptor)
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; expected an HDF5 file") from error
    if not stat.S_ISREG(status.st_mode):      # a pipe would be waited for
        raise ShardError(f"{path}: not a plain file; expected an HDF5 file")
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


class _Descriptor:
    """A file that is open for reading until nobody holds this object."""

    def __init__(self, path: Path) -> None:
        self._file = open_file(path)
        self.number = self._file.fileno()

    def __del__(self) -> None:
        with suppress(AttributeError):      # it could not be opened
            self._file.close()


@lru_cache(maxsize=_MOST_OPEN)
def _opened(path: Path, version: Version) -> _Descriptor:
    file = _Descriptor(path)
    _refuse_other(path, version, file.number)
    return file


@lru_cache(maxsize=8)
def _unpacker(path: Path, version: Version, _process: int) -> h5py.File:
    """A handle of h5py's, for chunked datasets, one a process."""
    _refuse_other(path, version)
    return h5py.File(path, "r", locking="best-effort")


def _refuse_other(path: Path, version: Version, descriptor: int | None = None) -> None:
    if version_of(path, descriptor) != version:
        raise ShardError(f"{path}: another file than when it was opened, somebody replaced it; start again")


# what libhdf5 says of a file


def _read_structure(path: Path, size: int) -> tuple[dict[str, object], dict[str, Column]]:
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            attributes, columns = _attributes(file, path), dict(_columns(file, path, size))
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError) as error:
        raise ShardError(_unreadable(path, size, error)) from error
    total = sum(column.total_bytes for column in columns.values() if column.offset is None)
    if total > _most_unpacked(size):
        raise ShardError(
            f"{path}: its chunked datasets take {total:,} bytes unpacked, expected at most {_most_unpacked(size):,} "
            f"for a file of {size:,} bytes; if you trust it, unpack it with `h5repack -l CONTI`"
        )
    return attributes, columns


def _most_unpacked(size: int) -> int:
    return _LEAST_UNPACKED + _MOST_TIMES * size


def _attributes(file: h5py.File, path: Path) -> dict[str, object]:
    if len(file.attrs) > _MOST_NAMES:
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
    plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    return plain.decode() if isinstance(plain, bytes) else plain if isinstance(plain, str | int | float) else None


def _columns(group: h5py.Group, path: Path, size: int, prefix: str = "") -> Iterator[tuple[str, Column]]:
    if len(group) > _MOST_NAMES:
        raise ShardError(f"{path}: holds more than {_MOST_NAMES} groups and datasets; it is no shard")
    for key in group:
        name = f"{prefix}{key}"
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise ShardError(f"{path}: {name} is a soft or external link; a shard holds its own data")
        item = group[key]
        if isinstance(item, h5py.Dataset):
            yield name, _column(item, name, path, size)
        elif isinstance(item, h5py.Group) and prefix.count("/") < 2:      # a shard's groups are two deep at most;
            yield from _columns(item, path, size, f"{name}/")            # a hard link may make a circle


def _column(dataset: h5py.Dataset, name: str, path: Path, size: int) -> Column:
    plist = dataset.id.get_create_plist()
    layout = plist.get_layout()
    if layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED) or plist.get_external_count():
        raise ShardError(f"{path}: {name} is kept elsewhere, expected a contiguous or chunked dataset in the file")
    if dataset.dtype.kind not in "biuf" or not dataset.shape:
        raise ShardError(f"{path}: {name} holds {dataset.dtype} {dataset.shape}, expected rows of plain numbers")
    if layout == h5py.h5d.CHUNKED:
        chunk = plist.get_chunk()
        count = math.prod(-(-side // own) for side, own in zip(dataset.shape, chunk, strict=True))
        if dataset.dtype.itemsize * math.prod(chunk) > _most_unpacked(size) or count > _MOST_CHUNKS + size // 256:
            raise ShardError(
                f"{path}: {name} has chunks of {chunk} numbers, {count:,} in all, more than a file of {size:,} bytes "
                "should; if you trust it, unpack it with `h5repack -l CONTI`"
            )
        return Column(name, None, dataset.shape, dataset.dtype)
    offset = dataset.id.get_offset() if math.prod(dataset.shape) else 0
    column = Column(name, offset, dataset.shape, dataset.dtype)
    if column.offset is None or column.offset + column.total_bytes > size:
        raise ShardError(f"{path}: {name} was never written, or lies beyond the file's {size} bytes; copy it again")
    return column


def _unreadable(path: Path, size: int, error: Exception) -> str:
    reason = str(error)
    if "h5clear" in reason:
        return (f"{path}: a program that was killed has left its mark that it is being written; if nobody writes it, "
                f"run `h5clear -s {path}` (of the HDF5 tools), then `hkmap check {path}`; a copy has it too")
    if isinstance(error, OSError) and error.errno is not None:
        return f"{path}: {os.strerror(error.errno)}; expected an HDF5 file"
    if size == 0:
        return f"{path}: empty (0 bytes), expected an HDF5 file; copy it again"
    if "truncated" in reason:
        return f"{path}: cut short at {size} bytes (its header says more); copy it again"
    if "file signature" in reason:
        return f"{path}: {size} bytes without the signature of HDF5; expected a file that hkmap wrote, and whole"
    return f"{path}: damaged HDF5 ({reason[:100]}); copy it again"
