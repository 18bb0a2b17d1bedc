"""Files to read from: kept open while they are few, opened anew for each read where they are many.

A process may have some thousand open files, often only 256, and a data set may have more shards than that.
"""

from __future__ import annotations

import os
import stat
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO

from hkmap.errors import ShardError

Version = tuple[int, ...]


class ReadFile:
    """A file that is read by its place in the file, from any thread; raises ShardError if it is missing.

    ``size`` is in bytes; ``version`` tells it from another file that takes its name later.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        descriptor = _open(path)
        status = os.fstat(descriptor)
        self.size = status.st_size
        self.version = _version(status)
        self._kept = nullcontext(descriptor) if _claim() else None
        if self._kept is None:
            os.close(descriptor)
        else:
            weakref.finalize(self, _release, descriptor)

    def opened(self) -> AbstractContextManager[int]:
        """Return a context whose value is the file's descriptor; raise ShardError where the file was replaced."""
        return self._kept or self._opened_anew()

    @contextmanager
    def _opened_anew(self) -> Iterator[int]:
        descriptor = _open(self.path)
        try:
            self._refuse_other(_version(os.fstat(descriptor)))
            yield descriptor
        finally:
            os.close(descriptor)

    def refuse_replaced(self) -> None:
        """Raise ShardError where another file has taken its name."""
        self._refuse_other(version_of(self.path))

    def _refuse_other(self, version: Version) -> None:
        if version != self.version:
            raise ShardError(f"{self.path}: another file than when it was opened, somebody replaced it; begin anew")


class NamelessFile:
    """A temporary file without a name, to read as a ReadFile: it stays open, as nothing could open it again."""

    def __init__(self, file: IO[bytes]) -> None:
        descriptor = os.dup(file.fileno())
        with _kept.lock:
            _kept.count += 1
        self._kept = nullcontext(descriptor)
        weakref.finalize(self, _release, descriptor)

    def opened(self) -> AbstractContextManager[int]:
        """Return a context whose value is the file's descriptor."""
        return self._kept


def version_of(path: Path) -> Version:
    """Return what tells this file from another that takes its name later; raise ShardError if it is missing."""
    try:
        return _version(path.stat())
    except OSError as error:
        raise _unreadable(path, error) from error


def _open(path: Path) -> int:
    try:
        if not stat.S_ISREG(path.stat().st_mode):      # a pipe would be waited for
            raise ShardError(f"{path}: not a plain file; expected an HDF5 file")
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise _unreadable(path, error) from error


def _version(status: os.stat_result) -> Version:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _unreadable(path: Path, error: OSError) -> ShardError:
    return ShardError(f"{path}: {error.strerror}; expected an HDF5 file")


class _Kept:
    """How many files are kept open."""

    def __init__(self) -> None:
        self.count = 0
        self.lock = threading.RLock()      # a file may be released, by the garbage collector, while one is claimed


_kept = _Kept()


def _claim() -> bool:
    with _kept.lock:
        if _kept.count >= _most():
            return False
        _kept.count += 1
        return True


def _release(descriptor: int) -> None:
    os.close(descriptor)
    with _kept.lock:
        _kept.count -= 1


def _most() -> int:
    """Return a half of the files that this process may have open; the other half is for others."""
    try:
        import resource
    except ImportError:     # Windows
        return 128
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
