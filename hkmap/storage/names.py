"""The shards that a name on the command line, or in a program, stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from hkmap.errors import ShardError
from hkmap.storage.filenames import is_there

_RANGE = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
_MOST = 100_000      # shards of one range


def find_shards(names: Sequence[str]) -> list[Path]:
    """Return the files that ``names`` stand for, in order.

    A name is a file; a folder, for all its ``*.h5``; a range, ``train-{00000..00007}.h5``, for all of these files; or
    a pattern, ``train-*.h5``, ``**`` and ``[ab]`` included, for those that it matches. Folders and patterns give files
    in the order of their names. Raises ShardError where a file is missing, and where none is found.
    """
    return [path for name in names for path in _find(name)]


def _find(name: str) -> list[Path]:
    path = Path(name)
    there = is_there(path)
    if there and path.is_dir():
        return _some(sorted(path.glob("*.h5")), f"{name}: a folder without any *.h5")
    if there or not (_RANGE.search(name) or has_magic(name)):
        return [_present(path)]
    if _RANGE.search(name):
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
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + _MOST:
        raise ShardError(f"{name}: expected a range from a lower to a higher number, of at most {_MOST} files")
    numbers = (str(number).zfill(len(found[1])) for number in range(first, last + 1))
    return [one for number in numbers for one in _in_range(name[: found.start()] + number + name[found.end() :])]


def _present(path: Path) -> Path:
    there = is_there(path)
    if not there or not path.is_file():
        what = "not a plain file" if there else "no such file"
        raise ShardError(f"{path}: {what}; expected a shard, a folder of shards, a range or a pattern")
    return path


def _some(paths: list[Path], none: str) -> list[Path]:
    if not paths:
        raise ShardError(f"{none}; expected shards, as `hkmap pack` writes them")
    return paths
