"""The maps of single annotators in a shard: end to end, with offsets between the records, and the annotators' names.

Record i has the maps from annotator_maps/offsets[i] up to, not including, offsets[i + 1]. Map j belongs to the name
between annotator_maps/names/offsets[j] and [j + 1].
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from hkmap.errors import ShardError
from hkmap.maps.check import Map
from hkmap.storage.hdf5 import ContiguousFile, Parts

MAPS, OFFSETS, NAMES = "annotator_maps/maps", "annotator_maps/offsets", "annotator_maps/names"
COLUMNS = (MAPS, OFFSETS, f"{NAMES}/bytes", f"{NAMES}/offsets")


class AnnotatorParts:
    """The annotators' maps of a shard in the making, from its record number ``records`` on; the ones before have none.

    All maps have ``shape`` (height, width).
    """

    def __init__(self, parts: Parts, shape: tuple[int, ...], records: int) -> None:
        self._maps = parts.add(MAPS, "<f4", shape)
        self._offsets = parts.add(OFFSETS, "<u8")
        self._names = parts.add_strings(NAMES)
        for _ in range(records + 1):
            self._offsets.append(0)

    def append(self, annotators: Mapping[str, Map]) -> None:
        """Add the maps of one record, by the annotators' names; it may have none."""
        for name, values in annotators.items():
            self._maps.append(values)
            self._names.append(name.encode())
        self._offsets.append(self._maps.rows)


class AnnotatorMaps:
    """Reads the annotators' maps of a shard whose columns were checked; raises ShardError where offsets do not rise."""

    def __init__(self, file: ContiguousFile) -> None:
        self._file = file
        self.count = file.columns[MAPS].shape[0]
        self._offsets = checked_offsets(file, OFFSETS, self.count)
        self._names = checked_offsets(file, f"{NAMES}/offsets", file.columns[f"{NAMES}/bytes"].shape[0])
        if len(self._names) != self.count + 1:
            raise ShardError(
                f"{file.path}: {len(self._names) - 1} names for {self.count} annotators' maps: damaged; copy it again"
            )

    def of(self, record: int) -> dict[str, Map]:
        """Return the maps of one record, (height, width) each, by the annotators' names."""
        start, stop = (int(offset) for offset in self._offsets[record : record + 2])
        rows = np.asarray(self._file.rows(MAPS, start, stop), dtype=np.float32)
        return {self._name(start + index): values for index, values in enumerate(rows)}

    def _name(self, row: int) -> str:
        content = self._file.read(f"{NAMES}/bytes", int(self._names[row]), int(self._names[row + 1]))
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            place = f"{self._file.path}: an annotator's name"
            raise ShardError(f"{place} is no UTF-8 text; the file is damaged, copy it again") from error


def open_annotators(file: ContiguousFile) -> AnnotatorMaps | None:
    """Return the reader of the annotators' maps; None where the shard, or another file, has none."""
    return AnnotatorMaps(file) if all(name in file.columns for name in COLUMNS) else None


def checked_offsets(file: ContiguousFile, name: str, end: int) -> npt.NDArray[np.uint64]:
    """Return the dataset ``name`` of offsets; raise ShardError unless they rise from 0 to ``end``."""
    offsets = file.whole(name)
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != end or (offsets[1:] < offsets[:-1]).any():
        falls = offsets[1:] < offsets[:-1]
        place = f" (record {falls.argmax()})" if falls.any() else ""
        raise ShardError(f"{file.path}: {name} do not rise from 0 to {end}{place}: damaged; copy it again")
    return np.asarray(offsets, dtype=np.uint64)
