"""Several shards as one sequence of records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hkmap.errors import ShardError
from hkmap.storage.images import Pixels
from hkmap.storage.layout import Sample
from hkmap.storage.shards import ShardReader


class ShardSequence:
    """Reads shards, in the order given, as if they were one; record numbers run on from shard to shard.

    ``labels`` (n,) and ``has_map`` (n,) are of all records; ``classes`` is the longest list of names, with which the
    others must agree. Raises ShardError where they do not, where an id stands in two shards, and without any shard.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise ShardError("no shard was named, and so there is no record to read; name one or more")
        self.shards = [ShardReader(path) for path in paths]
        self.name = ", ".join(str(path) for path in paths)
        self.labels: npt.NDArray[np.int64] = np.concatenate([shard.labels for shard in self.shards])
        self.has_map: npt.NDArray[np.bool_] = np.concatenate([shard.has_map for shard in self.shards])
        self.classes = self._joined_classes()
        self._starts = np.cumsum([0, *(len(shard) for shard in self.shards)])
        self._refuse_duplicates()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def map_size(self) -> tuple[int, int] | None:
        """(height, width) of the maps of the first shard that has some; None where no record has a map."""
        return next((shard.map_size for shard in self.shards if shard.has_map.any()), None)

    def read(self, index: int) -> Sample:
        """Return record ``index`` whole; raise ShardError where its checksum does not fit."""
        shard, row = self._find(index)
        return shard.read(row)

    def read_bare(self, index: int, into: Pixels | None = None) -> Sample:
        """Like read, as ShardReader.read_bare: the sample's record is empty."""
        shard, row = self._find(index)
        return shard.read_bare(row, into)

    def place(self, index: int) -> str:
        """Return a reference to record ``index``, such as train-00001.h5#17."""
        shard, row = self._find(index)
        return f"{shard.path}#{row}"

    def _find(self, index: int) -> tuple[ShardReader, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.shards[number], index - int(self._starts[number])

    def _joined_classes(self) -> list[str]:
        longest = max((shard.classes for shard in self.shards), key=len)
        joined = list(longest)
        for shard in self.shards:
            for label, name in enumerate(shard.classes):
                joined[label] = joined[label] or name
                if name not in ("", joined[label]):
                    raise ShardError(
                        f'{shard.path}: label {label} is "{name}", in another shard "{joined[label]}"; '
                        "pack all shards with the same --classes"
                    )
        return joined

    def _refuse_duplicates(self) -> None:
        seen: dict[str, Path] = {}
        for shard in self.shards if len(self.shards) > 1 else []:
            for identifier in shard.ids:
                if identifier in seen:
                    other = seen[identifier]
                    raise ShardError(f'{shard.path}: record "{identifier}" is in {other} too; name each shard once')
                seen[identifier] = shard.path
