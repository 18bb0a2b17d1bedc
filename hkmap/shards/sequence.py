"""Several shards as one sequence of records, and the shards that a name stands for."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hkmap.errors import ShardError
from hkmap.files.images import Pixels
from hkmap.shards.layout import Sample
from hkmap.shards.reader import ShardReader

_RANGE = re.compile(r"\{([0-9]{1,18})\.\.([0-9]{1,18})\}")
_MOST = 100_000      # shards of one name


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
        if len(paths) > 1:
            self._refuse_duplicates()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def map_size(self) -> tuple[int, int] | None:
        """(height, width) of the maps of the first shard that has some; None where no record has a map."""
        return next((shard.map_size for shard in self.shards if shard.has_map.any()), None)

    @property
    def annotator_map_count(self) -> int:
        """How many maps of single annotators the shards hold."""
        return sum(shard.annotator_map_count for shard in self.shards)

    def read(self, index: int) -> Sample:
        """Return record ``index`` whole; raise ShardError where its checksum does not fit."""
        shard, row = self._find(index)
        return shard.read(row)

    def read_bare(self, index: int, into: Pixels | None = None) -> Sample:
        """Like read, as ShardReader.read_bare: the sample's record is empty."""
        shard, row = self._find(index)
        return shard.read_bare(row, into)

    def text(self, index: int) -> bytes:
        """Return a record's JSON alone, as ShardReader.text does."""
        shard, row = self._find(index)
        return shard.text(row)

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
        hashes = np.concatenate([np.fromiter(map(hash, shard.read_ids()), np.int64) for shard in self.shards])
        seen: dict[str, Path] = {}
        for shard in self.shards if len(np.unique(hashes)) < len(self) else []:      # a set of ids is large
            for identifier in shard.read_ids():
                if identifier in seen:
                    other = seen[identifier]
                    raise ShardError(f'{shard.path}: record "{identifier}" is in {other} too; name each shard once')
                seen[identifier] = shard.path


def open_shards(*names: str | Path) -> ShardSequence:
    """Return the shards that ``names`` stand for, as find_shards has it, as one sequence."""
    return ShardSequence(find_shards([str(name) for name in names]))


def find_shards(names: Sequence[str]) -> list[Path]:
    """Return the files that ``names`` stand for, in order.

    A name is a file; a folder, for all its ``*.h5``; a range, ``train-{00000..00007}.h5``, for all of these files; or
    a pattern, ``train-*.h5``, ``**`` and ``[ab]`` included, for those that it matches. Folders and patterns give files
    in the order of their names. Raises ShardError where a file is missing, and where none is found.
    """
    return [path for name in names for path in _find(name)]


def _find(name: str) -> list[Path]:
    path = Path(name)
    if os.path.isdir(path):
        return _some(sorted(path.glob("*.h5")), f"{name}: a folder without any *.h5")
    if os.path.exists(path) or not (_RANGE.search(name) or has_magic(name)):
        return [_present(path)]
    if _RANGE.search(name):
        counts = [int(last) - int(first) + 1 for first, last in _RANGE.findall(name)]
        if min(counts) < 1 or math.prod(counts) > _MOST:
            raise ShardError(f"{name}: expected ranges from low to high, of at most {_MOST:,} files in all")
        return [_present(Path(one)) for one in _in_range(name)]
    found = sorted(map(Path, glob(name, recursive=True)))      # noqa: PTH207  (Path.glob takes no absolute pattern)
    return _some(found, f"{name}: no file has a name of this pattern")


def _in_range(name: str) -> list[str]:
    """Return the names in a range; the numbers have as many digits as its first.

    >>> _in_range("a-{08..10}.h5")
    ['a-08.h5', 'a-09.h5', 'a-10.h5']
    """
    found = _RANGE.search(name)
    if found is None:
        return [name]
    numbers = (str(number).zfill(len(found[1])) for number in range(int(found[1]), int(found[2]) + 1))
    return [one for number in numbers for one in _in_range(name[: found.start()] + number + name[found.end() :])]


def _present(path: Path) -> Path:
    if not os.path.isfile(path):
        what = "not a plain file" if os.path.exists(path) else "no such file"
        raise ShardError(f"{path}: {what}; expected a shard, a folder of shards, a range or a pattern")
    return path


def _some(paths: list[Path], none: str) -> list[Path]:
    if not paths:
        raise ShardError(f"{none}; expected shards, as `hkmap pack` writes them")
    return paths
