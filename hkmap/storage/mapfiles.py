"""Save and load maps: .npy files, 16-bit grey .png files, or rows of one .h5 file."""

from __future__ import annotations

import io
import math
import os
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from hkmap import __version__
from hkmap.errors import ImageError, MapError, OutputError, ShardError
from hkmap.maps.check import Map, check_map
from hkmap.records import Record, annotator_maps_of, reference_of
from hkmap.storage.atomic import replacing
from hkmap.storage.filenames import file_name, is_there
from hkmap.storage.images import image_suffix, refuse_damaged
from hkmap.storage.references import split_annotator, split_row

if TYPE_CHECKING:
    from hkmap.storage.hdf5 import Parts

FORMAT = "hkmap-maps"

_SYNC_BYTES = 1 << 27      # written before the disk is told to take them
_RESERVES = hasattr(os, "posix_fallocate")      # not on macOS and Windows
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

# numpy parses a header by `ast`, which in two threads at once may end in a SystemError (seen with Python 3.11.7)
_PARSING = threading.Lock()


class MapWriter(Protocol):
    """Saves maps under the names of their records."""

    @property
    def deferred(self) -> bool:
        """Whether the references hold only after the writer's context has ended."""

    def save(self, identifier: str, values: Map, annotator: str | None = None) -> str:
        """Write one map and return its reference; an identifier may come once, and once with each annotator.

        The map of an annotator lies beside that of the record: ID@NAME.npy in a folder, a row of its own in an .h5.
        Raises MapError for what is no map, OutputError for a second map of the same name.
        """

    def save_weights(self, identifier: str, weights: Map) -> str:
        """Like save, for the weights of the record's map: ID+weights.npy in a folder, a row of its own in an .h5."""


@contextmanager
def open_writer(out: Path, *, suffix: str = "npy", overwrite: bool = False) -> Iterator[MapWriter]:
    """Yield a writer into the folder ``out`` (a file of kind ``suffix``, npy or png, a map), or of one ``NAME.h5``.

    The .h5 file gets its name when the context ends well. Raises OutputError where something is in the way.
    """
    if out.suffix != ".h5":
        yield _FolderWriter(out, suffix, overwrite)
        return
    from hkmap.storage.hdf5 import fill_file, spooling, written_as  # h5py is slow to load

    attributes: dict[str, str | int] = {"format": FORMAT, "version": 1, "created_with": f"hkmap {__version__}"}
    with spooling(out.parent) as parts, replacing(out, overwrite=overwrite, durable=True) as beside:
        writer = _RowWriter(out, parts)
        with written_as(out):
            parts.write_in_place("maps", beside, attributes)
        with writer:
            yield writer
        with written_as(out):
            fill_file(beside, parts, attributes, digest=False)


def load_map(reference: str) -> Map:
    """Load and check the map at ``reference``: a .npy or grey .png file, "FILE.h5#ROW", or "SHARD.h5#ROW@ANNOTATOR".

    An 8-bit PNG is divided by 255, a 16-bit one by 65535. Raises MapError.
    """
    return check_map(_load(reference, "maps"), reference)


def load_annotators(record: Record) -> dict[str, Map]:
    """Load the maps of single annotators that the record refers to, by their names; raise RecordError or MapError."""
    return {name: load_map(reference) for name, reference in annotator_maps_of(record).items()}


def load_weights(reference: str) -> Map:
    """Like load_map, but a row of a shard that has weights gives the weights of that row."""
    return check_map(_load(reference, "weights"), reference)


def load_weights_of(record: Record, values: Map) -> Map | None:
    """Load the weights that the record refers to, None where it has none.

    Raises RecordError or MapError, the latter also where they are not as large as ``values``, the record's map.
    """
    reference = reference_of(record, "weights")
    if reference is None:
        return None
    weights = load_weights(reference)
    if weights.shape != values.shape:
        raise MapError(
            f'record "{record["id"]}": weights of {weights.shape} beside a map of {values.shape}, expected the same '
            "(height, width); make them anew with `hkmap weights`"
        )
    return weights


def _load(reference: str, dataset: str) -> npt.NDArray[np.generic]:
    annotator = split_annotator(reference)
    if annotator is not None and dataset == "maps":
        return _load_annotator(reference, *annotator)
    row = split_row(reference)
    if row is not None:
        return _load_row(reference, *row, dataset)
    path = Path(reference)
    if path.suffix == ".npy":
        return _load_npy(path)
    if path.suffix == ".png":
        return _load_png(path)
    raise MapError(f"{reference}: expected a map in a .npy or .png file, or a row of an .h5 file (maps.h5#17)")


def _load_annotator(reference: str, path: Path, row: int, name: str) -> npt.NDArray[np.generic]:
    from hkmap.storage.shards import open_shard  # h5py is slow to load

    try:
        shard = open_shard(path)
        annotators = shard.read(row).annotators if row < len(shard) else None
    except ShardError as error:
        raise MapError(str(error)) from error
    if annotators is None:
        raise MapError(f"{reference}: the file has {len(shard)} rows, counted from 0")
    if name not in annotators:
        known = ", ".join(annotators) or "none"
        raise MapError(f'{reference}: record {row} has no map of "{name}"; its annotators: {known}')
    return np.asarray(annotators[name])


def _load_npy(path: Path) -> npt.NDArray[np.generic]:
    try:
        # Mapped, a header that promises more than the file holds is an error before memory is asked for.
        with _PARSING:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        return np.array(mapped)
    except OSError as error:
        raise MapError(f"{path}: {error.strerror or error}; expected a .npy file") from error
    except Exception as error:      # a damaged header fails in ast, tokenize, mmap or numpy, each in its own way
        raise MapError(f"{path}: no plain .npy array ({error}); save it with numpy.save, without pickle") from error


def _load_png(path: Path) -> npt.NDArray[np.generic]:
    try:
        data = path.read_bytes()
        refuse_damaged(data, str(path))
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except OSError as error:
        raise MapError(f"{path}: {error.strerror}; expected a grey .png file") from error
    except ImageError as error:
        raise MapError(str(error)) from error
    except cv2.error as error:
        raise MapError(f"{path}: cannot be decoded ({str(error.err)[:100]}); write the map again") from error
    if values is None or image_suffix(data) != "png":
        raise MapError(f"{path}: not a PNG that can be decoded; write the map again")
    if values.ndim != 2:
        raise MapError(f"{path}: a colour PNG, expected a grey one of 8 or 16 bits; keep the one channel that counts")
    return np.asarray(values / (65535.0 if values.dtype == np.uint16 else 255.0))


def _load_row(reference: str, path: Path, row: int, dataset: str) -> npt.NDArray[np.generic]:
    from hkmap.storage.hdf5 import open_contiguous  # h5py is slow to load

    try:
        file = open_contiguous(path)
        name = dataset if dataset in file.columns else "maps"
        if name not in file.columns or len(file.columns[name].shape) != 3:
            raise MapError(f"{path}: has no dataset `maps` (rows, height, width); expected maps or a shard")
        count = file.columns[name].shape[0]
        if row >= count:
            raise MapError(f"{reference}: the file has {count} rows, counted from 0")
        if "has_map" in file.columns:
            return _load_sample(reference, path, row, dataset)
        values = file.row(name, row)
        sums = file.rows("crc32", row, row + 1) if file.attributes.get("format") == FORMAT else None
        if sums is not None and zlib.crc32(values.tobytes()) not in sums:
            raise MapError(f"{reference}: its checksum does not fit, so the file is damaged; make it anew")
        return values
    except ShardError as error:
        raise MapError(str(error)) from error


def _load_sample(reference: str, path: Path, row: int, dataset: str) -> Map:
    """The map or the weights of a shard's record, whose checksum is of all its parts together."""
    from hkmap.storage.shards import open_shard

    sample = open_shard(path).read(row)
    values = sample.map if dataset == "maps" or sample.weight is None else sample.weight
    if values is None:
        raise MapError(f"{reference}: this record of the shard has no map")
    return values


class _FolderWriter:
    deferred = False

    def __init__(self, folder: Path, suffix: str, overwrite: bool) -> None:
        if is_there(folder) and not folder.is_dir():
            raise OutputError(f"{folder}: a file; expected a folder for the maps, or NAME.h5")
        self._folder = folder
        self._suffix = suffix
        self._overwrite = overwrite
        self._seen: set[str] = set()

    def save(self, identifier: str, values: Map, annotator: str | None = None) -> str:
        return self._save(identifier, _name(identifier, annotator), values)

    def save_weights(self, identifier: str, weights: Map) -> str:
        return self._save(identifier, _name_of_weights(identifier), weights)

    def _save(self, identifier: str, name: str, values: Map) -> str:
        checked = _checked(identifier, values, name in self._seen, self._folder)
        path = self._folder / f"{name}.{self._suffix}"
        with replacing(path, overwrite=self._overwrite) as beside:
            beside.write_bytes(npy_bytes(checked) if self._suffix == "npy" else _png(checked))
        self._seen.add(name)
        return str(path)


class _RowWriter:
    """Writes rows, while a thread has the disk take those before, so that little is left to wait for at the end."""

    deferred = True

    def __init__(self, out: Path, parts: Parts) -> None:
        self._out = out
        self._maps = parts.add("maps", "<f4", (0, 0))
        self._ids = parts.add_strings("ids")
        self._checksums = parts.add("crc32", "<u4")
        self._seen: set[str] = set()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="hkmap-sync")
        self._synced: Future[None] | None = None
        self._unsynced = 0
        self._reserved = 0

    def __enter__(self) -> _RowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._disk.shutdown()
        if kind is None:
            self._hear_the_disk()

    def save(self, identifier: str, values: Map, annotator: str | None = None) -> str:
        name = _name(identifier, annotator)
        return self._save(identifier, name, identifier if annotator is None else name, values)

    def save_weights(self, identifier: str, weights: Map) -> str:
        name = _name_of_weights(identifier)
        return self._save(identifier, name, name, weights)

    def _save(self, identifier: str, name: str, row_name: str, values: Map) -> str:
        from hkmap.storage.hdf5 import refuse_two_sizes, written_as

        checked = _checked(identifier, values, name in self._seen, self._out)
        row = self._maps.rows
        self._maps.shape = self._maps.shape if row else checked.shape
        refuse_two_sizes(checked.shape, self._maps.shape, f'map of "{identifier}"')
        with written_as(self._out):
            self._maps.append(checked)
            self._ids.append(row_name.encode())
            self._checksums.append(zlib.crc32(np.ascontiguousarray(checked, "<f4").data))
        self._seen.add(name)
        self._unsynced += checked.nbytes
        self._sync_now_and_then()
        self._reserve_now_and_then()
        return f"{self._out}#{row}"

    def _sync_now_and_then(self) -> None:
        if self._unsynced > _SYNC_BYTES and (self._synced is None or self._synced.done()):
            self._hear_the_disk()
            self._unsynced, self._synced = 0, self._disk.submit(os.fsync, self._maps.spool.fileno())

    def _reserve_now_and_then(self) -> None:
        """Have the disk set aside as much as has been written: in one go it takes less time than page by page."""
        end = self._maps.start + self._maps.rows * self._maps.row_bytes
        if end < self._reserved or not _RESERVES:
            return
        with suppress(OSError):      # a disk that is nearly full, or cannot: the rows may still find room
            os.posix_fallocate(self._maps.spool.fileno(), end, min(end, _SYNC_BYTES))
        self._reserved = end + min(end, _SYNC_BYTES)

    def _hear_the_disk(self) -> None:
        """Raise the OSError of the last sync: the system tells it once."""
        if self._synced is not None:
            self._synced.result()


def _name(identifier: str, annotator: str | None) -> str:
    """The name of a map in its folder; @ is quoted in ids, so no two are alike."""
    name = file_name(identifier)
    return name if annotator is None else f"{name}@{file_name(annotator)}"


def _name_of_weights(identifier: str) -> str:
    """Like _name; + is quoted in ids too."""
    return f"{file_name(identifier)}+weights"


def _checked(identifier: str, values: Map, again: bool, out: Path) -> Map:
    if again:
        raise OutputError(f'record "{identifier}": comes twice, and {out} holds one map of a name; make the ids unique')
    return check_map(values, f'map of "{identifier}"')


def npy_bytes(values: Map) -> bytes:
    """Return a map as a .npy file has it."""
    buffer = io.BytesIO()       # where numpy writes to the disk itself, a full one has no errno
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def npy_map(data: bytes, place: str) -> Map:
    """Return the map that the bytes of a .npy file hold, checked; raise MapError, which names ``place``."""
    stream = io.BytesIO(data)
    try:
        with _PARSING:
            shape, _, dtype = _NPY_HEADERS[np.lib.format.read_magic(stream)](stream)
            size = math.prod(shape) * dtype.itemsize
            if size != len(data) - stream.tell() or dtype.hasobject:      # before memory is asked for
                raise ValueError(f"{dtype} {shape} in {len(data)} bytes")
            values = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:      # as in _load_npy
        raise MapError(f"{place}: no plain .npy array ({error}); save it with numpy.save, without pickle") from error
    return check_map(values, place)


def _png(values: Map) -> bytes:
    # float64: in float32, v * 65535 is not exact enough to round
    levels = np.rint(values.astype(np.float64) * 65535).astype(np.uint16)
    levels[(levels == 0) & (values > 0)] = 1      # a small lesion's faint cell is not an empty one
    written, data = cv2.imencode(".png", levels)
    assert written      # encoding to memory has no input that can fail
    return data.tobytes()
