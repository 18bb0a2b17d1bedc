"""Write beside, then rename: nothing half-written ever stands under a final name."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hkmap.errors import OutputError

logger = logging.getLogger("hkmap")


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError if ``path`` is there and may not be replaced (a folder never may), or cannot be looked for."""
    mode = 0
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            mode = path.lstat().st_mode       # of a link that leads nowhere, which is there all the same
            mode = path.stat().st_mode
    except OSError as error:      # a name of over 255 bytes, a folder that may not be entered
        raise OutputError(f"{path}: {error.strerror}; expected a name that can be written to") from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"{path}: a folder, where a file is to be written; choose another name")
    if mode and not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise OutputError(f"{path}: a pipe or a device, where a file is to be written; choose another name")
    if mode and not overwrite:
        raise OutputError(f"{path}: exists already; choose another name, or use --overwrite")


@contextmanager
def replacing(path: Path, *, overwrite: bool = False, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; give it the final name if the body succeeds.

    The folder is made where it is missing. ``durable`` waits until the bytes are on the disk before the rename.
    Whatever is raised in the body, interrupts included, leaves nothing behind.
    """
    refuse_existing(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name[:100]}.{os.urandom(8).hex()}.part")
    try:      # around the making too: Ctrl-C may come between any two lines
        os.close(os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        yield beside
        if durable:
            sync_file(beside)
        refuse_existing(path, overwrite=overwrite)
        beside.chmod(0o666 & ~_umask())
        beside.replace(path)
    except OSError as error:
        # a failed write names no file, a failed rename the temporary one
        if error.filename is None or str(error.filename) == str(beside):
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other runs from writing ``path`` until the context ends; raise OutputError where one does.

    The lock, on a hidden file beside, goes with the process, however that ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name[:240]}.lock")
    descriptor = -1
    while descriptor < 0 or not os.fstat(descriptor).st_nlink:      # the run before has just removed it
        if descriptor >= 0:
            os.close(descriptor)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(f"{path}: another run is writing it; wait for its end, or choose another name") from error
        except OSError as error:      # some network file systems have no locks
            logger.info("%s: %s; so keep other runs away from it yourself", path, error.strerror)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove what killed runs have left of files whose names match the pattern ``name``; nobody may be writing them."""
    pattern = re.compile(rf"\.(?:{name})\.[0-9a-f]{{16}}\.part")
    for path in folder.iterdir():
        if pattern.fullmatch(path.name):
            path.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk; not every system can."""
    with suppress(PermissionError, IsADirectoryError):
        sync_file(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
