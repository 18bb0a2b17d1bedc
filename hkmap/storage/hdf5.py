"""HDF5 files whose data lie end to end: libhdf5 lays them out, plain file I/O writes and reads them.

Every dataset is contiguous. The file is made with room for its data but without them; the bytes are then
copied to the datasets' offsets, so a full disk is an ordinary OSError and memory stays small. A reader takes the
offsets once and fetches bytes by itself; chunked datasets of other programs are unpacked to a temporary file first.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import numpy.typing as npt

from hkmap.errors import OutputError, ShardError
from hkmap.storage.descriptors import NamelessFile, ReadFile, version_of
from hkmap.storage.parsing import Column
from hkmap.storage.structure import read_structure
from hkmap.storage.unchunking import placed, unpack
from hkmap.storage.userblock import USER_BLOCK, holes_of, refuse_damaged_structure, seal

_SLACK = 1 << 16      # libhdf5's own structures, more than they ever take, attributes aside

_PIECE = 1 << 20      # bytes that are copied at once
_BUFFER = 1 << 16     # of writing one dataset, in bytes

_TOGETHER = 1 << 14   # libhdf5 lays what is not data side by side, in stretches of so many bytes, and the data after it

_MOST_AT_ONCE = 1 << 30      # bytes of one call, which reads less than 2 GiB

_PREAD, _PREADV = hasattr(os, "pread"), hasattr(os, "preadv")       # not on Windows; the second not on older macOS

Attributes = Mapping[str, str | int]


@dataclass
class Part:
    """One dataset in the making: ``rows`` rows of ``shape``, their bytes spooled from byte ``start`` of a file.

    That file has no name, and they start at 0; or it is the one that is being made, and they lie at their place.
    """

    dtype: npt.DTypeLike
    spool: IO[bytes]
    shape: tuple[int, ...] = ()
    rows: int = 0
    start: int = 0
    skipped: bool = False

    def append(self, values: npt.ArrayLike) -> None:
        """Add one row."""
        if self.skipped:
            self.spool.seek(self.start + self.rows * self.row_bytes)      # what is skipped is a hole of zeros
            self.skipped = False
        self.spool.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.rows += 1

    def skip(self) -> None:
        """Add one row of zeros, whose shape may still be unknown."""
        self.rows += 1
        self.skipped = True

    @property
    def full_shape(self) -> tuple[int, ...]:
        return (self.rows, *self.shape)

    def finished_bytes(self) -> int:
        """Return how many bytes the dataset takes, all of them spooled."""
        self.spool.flush()
        return self.spool.truncate(self.start + self.rows * self.row_bytes) - self.start

    @property
    def row_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


@dataclass
class Parts:
    """The datasets in the making of one file, by name ("images/bytes"), spooled in the folder of the file.

    ``in_place`` names the one, if any, whose rows are written to the file itself.
    """

    folder: Path
    by_name: dict[str, Part] = field(default_factory=dict)
    in_place: str | None = None

    def add(self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...] = ()) -> Part:
        """Open a dataset of rows of ``shape``."""
        spool = tempfile.TemporaryFile(dir=self.folder)      # noqa: SIM115  (close() does)
        self.by_name[name] = Part(dtype, spool, shape)
        return self.by_name[name]

    def add_strings(self, name: str) -> Strings:
        """Open a pair of datasets, bytes end to end and the offsets between them."""
        return Strings(self.add(f"{name}/bytes", "u1"), self.add(f"{name}/offsets", "<u8"))

    def write_in_place(self, name: str, path: Path, attributes: Attributes) -> None:
        """Have the rows of the first dataset written to ``path``, an empty temporary file, which fill_file completes.

        Spooled, they would be written twice. It has no row yet. libhdf5 lays the first dataset behind its description
        of them all, which takes as many bytes however many rows there will be; where it takes more in the end, as of
        datasets or long attributes that came later, fill_file moves the rows.
        """
        single = {
            key: replace(part, rows=1, shape=(1,) * len(part.shape)) for key, part in self.by_name.items()
        }
        part = self.by_name[name]
        _reserve(path, _SLACK)
        part.start = _lay_out(path, single, attributes)[name]
        part.spool.close()
        part.spool = path.open("r+b", buffering=_BUFFER)
        part.spool.seek(part.start)
        self.in_place = name

    @property
    def begin(self) -> int:
        """Where the data begin in the file that is being made, with what is known of it by now."""
        return self.by_name[self.in_place].start if self.in_place else 0

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


def fill_file(path: Path, parts: Parts, attributes: Attributes, *, digest: bool = True) -> str:
    """Assemble the parts into the HDF5 file ``path``, an empty temporary one, and return its digest.

    Without ``digest`` only its structure has one, and "" is returned: enough where each row has a checksum.
    Raises OSError where the disk is full.
    """
    _refuse_full_disk(path, parts)
    if parts.in_place is None:
        offsets = _lay_out(path, parts.by_name, attributes)
    else:
        offsets = _lay_out_around(parts.by_name[parts.in_place], path, parts, attributes)
    with path.open("r+b") as file:
        for name, part in parts.by_name.items():
            if name != parts.in_place:
                file.seek(offsets[name])
                part.spool.seek(0)
                shutil.copyfileobj(part.spool, file, 1 << 20)
    ends = [(offsets[name], offsets[name] + part.row_bytes * part.rows) for name, part in parts.by_name.items()]
    return seal(path, ends, whole=digest)


@contextmanager
def written_as(path: Path, remedy: str = "nothing is left of it, make room for all of its maps") -> Iterator[None]:
    """Name ``path``, not a temporary file, in the OSError of a full disk, and say the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        raise OSError(error.errno, f"{os.strerror(error.errno)}; {remedy}", str(path)) from error


def replace_attribute(path: Path, name: str, value: str) -> str:
    """Change one attribute of a file that has no final name yet; return its new digest."""
    holes = holes_of(path)
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    return seal(path, holes)


class ContiguousFile:
    """Reads rows of datasets by their place in the file; usable from many threads.

    Chunked datasets, which hkmap never writes, are unpacked at the first read, all of them, to a temporary file
    without a name, and read from there. ``columns`` maps the name of each dataset to its place, in the file or in that
    one; ``attributes`` holds the file's attributes.
    Raises ShardError where the file is no whole HDF5 file, or where a dataset is a soft or external link,
    is kept in another file, reaches beyond the end, or is a bomb; reading does where a chunk cannot be unpacked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = ReadFile(path)
        self._lock = threading.Lock()
        self.size = self._file.size
        refuse_damaged_structure(path)
        structure = read_structure(path, self.size)
        self.attributes, self.columns = structure.attributes, placed(structure.columns)
        self._packed = any(column.chunked for column in self.columns.values())
        self._unpacked: NamelessFile | None = None

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes of the rows from ``start`` up to, not including, ``stop``."""
        column = self.columns[name]
        source, offset = self._source(column), column.offset + start * column.row_bytes
        count = (stop - start) * column.row_bytes
        data = self._once(source, offset, count)
        return data if len(data) == count else self._pieced(source, offset, count, data)

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Like read, as an array of the dataset's own type and shape."""
        column = self.columns[name]
        values = np.empty((stop - start, *column.shape[1:]), column.dtype)
        self.read_into(name, start, values.reshape(-1).view(np.uint8).data)
        return values

    def row(self, name: str, index: int) -> npt.NDArray[Any]:
        """Like rows, of one row and without its first axis; a small one in half the time."""
        column = self.columns[name]
        values = np.empty(column.shape[1:], column.dtype)
        with self._source(column).opened() as descriptor:
            offset = column.offset + index * column.row_bytes
            count = os.preadv(descriptor, [values.data], offset) if _PREADV else 0
        if count < values.nbytes:
            self.read_into(name, index, values.reshape(-1).view(np.uint8).data)
        return values

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill the ``buffer``, of bytes, with the rows from ``start`` on."""
        column = self.columns[name]
        source, offset = self._source(column), column.offset + start * column.row_bytes
        while True:
            count = self._fill(source, offset, buffer if len(buffer) <= _MOST_AT_ONCE else buffer[:_MOST_AT_ONCE])
            if count == len(buffer):
                return
            if not count:
                raise self._shorter(offset)
            offset, buffer = offset + count, buffer[count:]

    def whole(self, name: str) -> npt.NDArray[Any]:
        """Return a whole dataset; its size was checked against the file's."""
        return self.rows(name, 0, self.columns[name].shape[0])

    def _source(self, column: Column) -> ReadFile | NamelessFile:
        """The open file in which the column lies; the first read of anything unpacks all that is chunked."""
        if self._packed:
            with self._lock:
                if self._packed:
                    try:
                        self._unpacked = unpack(self.path, self.size, self.columns)
                    finally:      # another file may well be another HDF5 file, or none
                        self._file.refuse_replaced()
                    self._packed = False
        return self._unpacked if column.chunked and self._unpacked else self._file

    def _pieced(self, source: ReadFile | NamelessFile, offset: int, count: int, first: bytes) -> bytes:
        """Read on where one call has not read all."""
        pieces, found = [first], len(first)
        while found < count:
            piece = self._once(source, offset + found, count - found)
            if not piece:
                raise self._shorter(offset + found)
            pieces.append(piece)
            found += len(piece)
        return b"".join(pieces)

    def _once(self, source: ReadFile | NamelessFile, offset: int, count: int) -> bytes:
        count = min(count, _MOST_AT_ONCE)
        with source.opened() as descriptor:
            if _PREAD:
                return os.pread(descriptor, count, offset)
            with self._lock:
                os.lseek(descriptor, offset, os.SEEK_SET)
                return os.read(descriptor, count)

    def _fill(self, source: ReadFile | NamelessFile, offset: int, buffer: memoryview) -> int:
        if _PREADV:
            with source.opened() as descriptor:
                return os.preadv(descriptor, [buffer], offset)
        piece = self._once(source, offset, len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def _shorter(self, offset: int) -> ShardError:
        return ShardError(f"{self.path}: ends at byte {offset}, it was longer when it was opened; open it again")


def open_contiguous(path: Path) -> ContiguousFile:
    """Open ``path``, or return the open file if it is among the last few and has not been replaced since."""
    return _recent(path.absolute(), version_of(path))


@lru_cache(maxsize=8)
def _recent(path: Path, version: tuple[int, ...]) -> ContiguousFile:
    return ContiguousFile(path)


def _refuse_full_disk(path: Path, parts: Parts) -> None:
    sizes = {name: part.finished_bytes() for name, part in parts.by_name.items()}
    _reserve(path, sum(sizes.values()) + _SLACK, sizes.get(parts.in_place or "", 0))


def _reserve(path: Path, total: int, written: int = 0) -> None:
    """Find out that the disk is full, or a limit met, before libhdf5 does, which says it in riddles."""
    if shutil.disk_usage(path.parent).free < total - written:
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
    with h5py.File(path, "w", userblock_size=USER_BLOCK, meta_block_size=_TOGETHER) as file:
        file.attrs.update(attributes)
        for name, part in parts.items():
            group, _, _ = name.rpartition("/")
            file.require_group(group or "/")
            kind = h5py.h5t.py_create(np.dtype(part.dtype), logical=True)
            space = h5py.h5s.create_simple(part.full_shape)
            dataset = h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=plist)
            offsets[name] = dataset.get_offset() if dataset.get_storage_size() else 0
    return offsets


def _lay_out_around(part: Part, path: Path, parts: Parts, attributes: Attributes) -> dict[str, int]:
    """Like _lay_out, but leave the rows of ``part`` in the file: lay out another, and copy what is around them."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".layout.", suffix=".part") as scratch:
        offsets = _lay_out(Path(scratch.name), parts.by_name, attributes)
        with path.open("r+b") as file:
            if part.rows:
                _move(file, part.start, part.rows * part.row_bytes, offsets[str(parts.in_place)])
                part.start = offsets[str(parts.in_place)]
            stop = part.start + part.rows * part.row_bytes
            file.truncate(scratch.seek(0, os.SEEK_END))
            for place in (scratch, file):
                place.seek(0)
            file.write(scratch.read(part.start))
            for place in (scratch, file):
                place.seek(stop)
            shutil.copyfileobj(scratch, file, 1 << 20)
    return offsets


def _move(file: IO[bytes], start: int, length: int, target: int) -> None:
    """Move a stretch of a file to ``target``, piece by piece, so that none overwrites what is still to be moved."""
    pieces = range(0, length if target != start else 0, _PIECE)
    for begin in pieces if target < start else reversed(pieces):
        file.seek(start + begin)
        piece = file.read(min(_PIECE, length - begin))
        file.seek(target + begin)
        file.write(piece)


def refuse_two_sizes(found: tuple[int, ...], first: tuple[int, ...], place: str) -> None:
    """Raise OutputError where a map is not as large as those before it in the same file."""
    if found != first:
        raise OutputError(
            f"{place}: {found[0]}x{found[1]} (height x width), but the file's maps are {first[0]}x{first[1]}; "
            "it holds maps of one size: pass them through `hkmap resize` first"
        )
