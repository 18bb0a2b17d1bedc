"""Open a file for reading: every reader of the package does it here.

Only a regular file is opened. A pipe would never end or wait for ever, a device such as /dev/zero fills the memory, and
no reader below needs either; records on stdin are the one stream, and they come from the command line.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

#: What an image may take once it is decoded, in bytes; `hkmap --max-image-bytes` sets it.
max_image_bytes = 1 << 30

_KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def open_file(path: str | Path) -> BufferedReader:
    """Open a regular file, or a link to one, for reading; the caller closes it.

    Raises OSError, whose ``strerror`` says what was found, for anything else. It never waits for a writer.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "a name with a null byte, expected a regular file", str(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "no file")
        raise OSError(errno.EINVAL, f"{kind}, expected a regular file", str(path))
    return open(path, "rb", opener=lambda *_: descriptor)      # which keeps its name, unlike fdopen


def file_content(path: str | Path) -> bytes:
    """Return the bytes of a regular file; raises OSError as open_file does."""
    with open_file(path) as file:
        return file.read()
