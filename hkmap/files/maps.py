"""Save and load maps: .npy files, 16-bit grey .png files, or rows of one .h5 file."""

from __future__ import annotations

import io
import os
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from hkmap import __version__
from hkmap.errors import ImageError, MapError, OutputError, ShardError
from hkmap.files.atomic import replacing
from hkmap.files.headers import read_header
from hkmap.files.hearing import heard
from hkmap.files.opening import file_content, open_file
from hkmap.files.references import file_name
from hkmap.maps.check import Map, check_map
from hkmap.records import Record, with_annotators

if TYPE_CHECKING:
    from hkmap.files.hdf5 import Columns, Parts

FORMAT = "hkmap-maps"

# numpy parses a header by `ast`, which in two threads at once may end in a SystemError (seen with Python 3.11.7)
PARSING = threading.Lock()


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

    def save_certainty(self, identifier: str, certainty: Map) -> str:
        """Like save, for the certainty of the record's map: ID+certainty.npy in a folder, a row in an .h5."""


class Drawn(NamedTuple):
    """A record, the map that it is to have, and what lies beside it: its certainty, its annotators' maps by name."""

    record: Record
    map: Map
    certainty: Map | None = None
    annotators: Mapping[str, Map] | None = None


def save_drawn(maps: MapWriter, drawn: Drawn | Record) -> Record:
    """Save what was drawn and return the record with its references; a record without a drawing, as it is.

    Raises MapError for what is no map, OutputError for a second record of the same id.
    """
    if not isinstance(drawn, Drawn):
        return drawn
    identifier = drawn.record["id"]
    saved = {**drawn.record, "map": maps.save(identifier, drawn.map)}
    if drawn.certainty is not None:
        saved["certainty"] = maps.save_certainty(identifier, drawn.certainty)
    people = drawn.annotators or {}
    return with_annotators(saved, {name: maps.save(identifier, own, name) for name, own in people.items()})


@contextmanager
def open_writer(out: Path, *, suffix: str = "npy", overwrite: bool = False) -> Iterator[MapWriter]:
    """Yield a writer into the folder ``out`` (a file of kind ``suffix``, npy or png, a map), or of one ``NAME.h5``.

    The .h5 file gets its name when the context ends well. Raises OutputError where something is in the way.
    """
    if out.suffix != ".h5":
        yield _FolderWriter(out, suffix, overwrite)
        return
    from hkmap.files.hdf5 import Parts, written_as  # h5py is slow to load

    attributes: dict[str, str | int] = {"format": FORMAT, "version": 1, "created_with": f"hkmap {__version__}"}
    out.parent.mkdir(parents=True, exist_ok=True)
    with closing(Parts(out.parent)) as parts, replacing(out, overwrite=overwrite) as beside:
        yield _RowWriter(out, parts, beside)
        with written_as(out, "nothing is left of it, make room for all of its maps"):
            parts.write_around(beside, attributes)      # each row has a checksum


def load_map_file(path: Path) -> Map:
    """Load and check a map in a .npy or grey .png file: an 8-bit PNG is divided by 255, a 16-bit one by 65535.

    Raises MapError.
    """
    if path.suffix == ".npy":
        return check_map(_load_npy(path), str(path))
    if path.suffix == ".png":
        return check_map(_load_png(path), str(path))
    raise MapError(f"{path}: expected a map in a .npy or .png file, or a row of an .h5 file (maps.h5#17)")


def load_map_row(file: Columns, row: int) -> Map:
    """Load and check row ``row`` of the dataset `maps` of an .h5 file; raise MapError."""
    place = f"{file.path}#{row}"
    if "maps" not in file.by_name or len(file.by_name["maps"].shape) != 3:
        raise MapError(f"{file.path}: has no dataset `maps` (rows, height, width); expected maps or a shard")
    count = file.by_name["maps"].shape[0]
    if row >= count:
        raise MapError(f"{place}: the file has {count} rows, counted from 0")
    try:
        values = file.rows("maps", row, row + 1)[0]
        sums = file.rows("crc32", row, row + 1) if "crc32" in file.by_name else None
    except ShardError as error:
        raise MapError(str(error)) from error
    if sums is not None and zlib.crc32(values.tobytes()) not in sums:
        raise MapError(f"{place}: its checksum does not fit, so the file is damaged; make it again")
    return check_map(values, place)


def _load_npy(path: Path) -> npt.NDArray[np.generic]:
    try:
        # Mapped, a header that promises more than the file holds is an error before memory is asked for.
        with open_file(path), PARSING:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        return np.array(mapped)
    except OSError as error:
        raise MapError(f"{path}: {error.strerror or error}; expected a .npy file") from error
    except Exception as error:      # a damaged header fails in ast, tokenize, mmap or numpy, each in its own way
        raise MapError(f"{path}: no plain .npy array ({error}); save it with numpy.save, without pickle") from error


def _load_png(path: Path) -> npt.NDArray[np.generic]:
    try:
        data = file_content(path)
        header = read_header(data, str(path))
        values, said = heard(lambda: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
    except OSError as error:
        raise MapError(f"{path}: {error.strerror}; expected a grey .png file") from error
    except ImageError as error:
        raise MapError(str(error)) from error
    except cv2.error as error:
        raise MapError(f"{path}: cannot be decoded ({str(error.err)[:100]}); write the map again") from error
    if values is None or said or header.suffix != "png":
        raise MapError(f"{path}: not a PNG that can be decoded{said and f' ({said})'}; write the map again")
    if values.ndim != 2:
        raise MapError(f"{path}: a colour PNG, expected a grey one of 8 or 16 bits; keep the one channel that counts")
    most = np.float32(65535 if values.dtype == np.uint16 else 255)
    return np.asarray(np.divide(values, most, dtype=np.float32))      # rounded as by way of float64


class _FolderWriter:
    deferred = False

    def __init__(self, folder: Path, suffix: str, overwrite: bool) -> None:
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise OutputError(f"{folder}: a file; expected a folder for the maps, or NAME.h5")
        self._folder = folder
        self._suffix = suffix
        self._overwrite = overwrite
        self._seen: set[str] = set()

    def save(self, identifier: str, values: Map, annotator: str | None = None) -> str:
        return self._save(identifier, _name(identifier, annotator), values)

    def save_certainty(self, identifier: str, certainty: Map) -> str:
        return self._save(identifier, f"{file_name(identifier)}+certainty", certainty)      # + is quoted in ids too

    def _save(self, identifier: str, name: str, values: Map) -> str:
        checked = _checked(identifier, values, name in self._seen, self._folder)
        path = self._folder / f"{name}.{self._suffix}"
        with replacing(path, overwrite=self._overwrite) as beside:
            beside.write_bytes(npy_bytes(checked) if self._suffix == "npy" else _png(checked))
        self._seen.add(name)
        return str(path)


class _RowWriter:
    deferred = True

    def __init__(self, out: Path, parts: Parts, beside: Path) -> None:
        self._out = out
        self._maps = parts.add_in_place("maps", "<f4", (0, 0), beside)
        self._ids = parts.add_strings("ids")
        self._checksums = parts.add("crc32", "<u4")
        self._seen: set[str] = set()

    def save(self, identifier: str, values: Map, annotator: str | None = None) -> str:
        name = _name(identifier, annotator)
        return self._save(identifier, name, identifier if annotator is None else name, values)

    def save_certainty(self, identifier: str, certainty: Map) -> str:
        name = f"{file_name(identifier)}+certainty"
        return self._save(identifier, name, name, certainty)

    def _save(self, identifier: str, name: str, row_name: str, values: Map) -> str:
        from hkmap.files.hdf5 import refuse_two_sizes, written_as

        checked = _checked(identifier, values, name in self._seen, self._out)
        row = self._maps.rows
        self._maps.shape = self._maps.shape if row else checked.shape
        refuse_two_sizes(checked.shape, self._maps.shape, f'map of "{identifier}"')
        with written_as(self._out):
            self._maps.append(checked)
            self._ids.append(row_name.encode())
            self._checksums.append(zlib.crc32(np.ascontiguousarray(checked, "<f4").data))
        self._seen.add(name)
        return f"{self._out}#{row}"


def _name(identifier: str, annotator: str | None) -> str:
    """The name of a map in its folder; @ is quoted in ids, so no two are alike."""
    name = file_name(identifier)
    return name if annotator is None else f"{name}@{file_name(annotator)}"


def _checked(identifier: str, values: Map, again: bool, out: Path) -> Map:
    if again:
        raise OutputError(f'record "{identifier}": comes twice, and {out} holds one map of a name; make the ids unique')
    return check_map(values, f'map of "{identifier}"')


def npy_bytes(values: Map) -> bytes:
    """Return a map as a .npy file has it."""
    buffer = io.BytesIO()       # where numpy writes to the disk itself, a full one has no errno
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _png(values: Map) -> bytes:
    # float64: in float32, v * 65535 is not exact enough to round
    levels = np.rint(values.astype(np.float64) * 65535).astype(np.uint16)
    levels[(levels == 0) & (values > 0)] = 1      # a small lesion's faint cell is not an empty one
    written, data = cv2.imencode(".png", levels)
    assert written      # encoding to memory has no input that can fail
    return data.tobytes()


