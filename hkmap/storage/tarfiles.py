"""Read tars that a stranger wrote: in order, one member at a time, and nothing is unpacked by its own name."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from hkmap.errors import SourceError

MOST_BYTES = 1 << 28      # a member that is read, and all that is read of one sample
_MOST_HEADER = 1 << 20      # what the tar says of one member: long names, and other programs' attributes
_BLOCK = tarfile.BLOCKSIZE
_BROKEN = (tarfile.TarError, ValueError, OverflowError, IndexError, KeyError, EOFError, RecursionError)


class Member(NamedTuple):
    """A plain file in a tar: its name, without a leading ./, and its content; None where nobody wanted that."""

    name: str
    data: bytes | None


def read_members(path: Path, wanted: Callable[[str], bool]) -> Iterator[Member]:
    """Yield the files of a plain tar in their order, with the content of those whose names are ``wanted``.

    Raises SourceError where it is no tar, is damaged or cut short, or holds what a data set does not need: links and
    devices, names that lead out of its own folder, members of more than 256 MiB, sparse files.
    """
    with path.open("rb") as file:
        guarded = _Guarded(file, path)
        try:
            with tarfile.open(fileobj=guarded, mode="r:") as tar:  # type: ignore[call-overload]
                while (member := tar.next()) is not None:
                    tar.members.clear()      # they would be kept, all of them
                    if not member.isdir():
                        name = _checked_name(member, path)
                        yield Member(name, guarded.content(member) if wanted(name) else None)
                guarded.refuse_rest(tar.offset)
        except _BROKEN as error:
            why = str(error) or type(error).__name__
            raise SourceError(f"{path}: not a tar that can be read ({why}); copy it again, or decompress it") from error


class _Guarded:
    """A tar's file, of which `tarfile` may read headers alone, and none of them without end."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._path = path
        self._left = 2 * os.fstat(file.fileno()).st_size + _MOST_HEADER      # to read in circles takes more

    def seek(self, position: int, whence: int = 0) -> int:
        return self._file.seek(position, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int) -> bytes:
        self._left -= size
        if not 0 <= size <= _MOST_HEADER or self._left < 0:
            raise SourceError(f"{self._path}: a header of {size} bytes at byte {self.tell()}, which no data set needs")
        return self._file.read(size)

    def content(self, member: tarfile.TarInfo) -> bytes:
        """Return a member's content whole."""
        self._file.seek(member.offset_data)
        data = self._file.read(member.size)
        if len(data) < member.size:
            raise SourceError(f"{self._path}: cut short in {ascii(member.name)[:80]}; copy it again")
        return data

    def refuse_rest(self, position: int) -> None:
        """Raise SourceError unless the tar's end mark is at ``position``, from where `tarfile` read no further."""
        self._file.seek(position)
        block = self._file.read(_BLOCK)
        if len(block) < _BLOCK or any(block):
            raise SourceError(f"{self._path}: damaged or cut short at byte {position}; copy it again")


def _checked_name(member: tarfile.TarInfo, path: Path) -> str:
    name, told = member.name.removeprefix("./"), ascii(member.name)[:80]
    if not member.isreg() or member.issparse():
        raise SourceError(f"{path}: {told} is a link, a device or a sparse file; expected plain files and folders")
    if name.startswith("/") or ".." in name.split("/"):
        raise SourceError(f"{path}: {told} leads out of the tar's own folder; expected names below it")
    if name.encode(errors="ignore").decode() != name:
        raise SourceError(f"{path}: the name {told} is not UTF-8; rename the file and write the tar again")
    if not 0 <= member.size <= MOST_BYTES:
        raise SourceError(f"{path}: {told} has {member.size} bytes, expected at most {MOST_BYTES}; leave it out")
    return name
