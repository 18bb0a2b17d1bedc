"""Read the structure of an HDF5 file without libhdf5, where it has the plain form that hkmap writes.

That is: a superblock of version 0, groups as trees of symbol tables, contiguous datasets without filters or external
storage, numbers of six types, and attributes that are whole numbers or text. The numbers of bytes, names and messages
are bounded, so whatever the file holds, the answer comes in milliseconds: what is in it, or that it has another form.
The names of the fields are those of the HDF5 file format specification, version 3.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

MOST_TEXT = 1 << 22       # bytes of an attribute: room for the names of 99,999 classes, 40 bytes each
MOST_NAMES = 256          # datasets and groups; a shard has 20 at most
_BUDGET = 1 << 24         # bytes that are read in all
_MOST_MESSAGES = 1 << 10  # of one object
_NOWHERE = (1 << 64) - 1
_SIGNATURE = b"\x89HDF\r\n\x1a\n"

# messages of an object header
_SPACE, _TYPE, _LAYOUT, _ATTRIBUTE, _CONTINUATION, _TABLE = 0x01, 0x03, 0x08, 0x0C, 0x10, 0x11
_OF_NO_WEIGHT = {0x00, 0x04, 0x05, 0x0E, 0x12}      # nil, fill values, times

# the datatype message of each type, and of HDF5's text of any length in ASCII or UTF-8
_TYPES = {
    bytes.fromhex(code): np.dtype(kind)
    for kind, code in {
        "u1": "100000000100000000000800",
        "<u4": "100000000400000000002000",
        "<u8": "100000000800000000004000",
        "<i8": "100800000800000000004000",
        "<f4": "11201f000400000000002000170800177f000000",
        "?": "180200000100000010080000010000000000080046414c534500000054525545000000000001",
    }.items()
}
_TEXT = b"\x19"


class _OtherFormError(Exception):
    """The file is damaged, or made in another way."""


@dataclass(frozen=True)
class Column:
    """Where a dataset lies in the file, in bytes, and what it holds; a chunked one lies nowhere before it is placed."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunked: bool = False

    @cached_property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def total_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Structure:
    """The attributes of a file and its datasets by name ("images/bytes"), none of which reaches beyond the end."""

    attributes: dict[str, object]
    columns: dict[str, Column]


def parse_structure(path: Path, size: int) -> Structure | None:
    """Return the structure of a file of ``size`` bytes; None where it is not in the plain form, or damaged."""
    try:
        with path.open("rb") as file:
            return _File(file, size).structure()
    except (_OtherFormError, struct.error, ValueError, IndexError):
        return None


Messages = list[tuple[int, bytes]]


class _File:
    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._size = size
        self._budget = _BUDGET
        self._names = 0
        self._base = 0

    def structure(self) -> Structure:
        root = self._messages(self._root())
        attributes = dict(self._attribute(body) for kind, body in root if kind == _ATTRIBUTE)
        return Structure(attributes, dict(self._members(root, "")))

    def _root(self) -> int:
        """Return the address of the root group's header."""
        self._base = next((base for base in (0, 512) if self._at(base, 8) == _SIGNATURE), 0)
        block = self._at(0, 96)
        base, _, end, driver, _, header = struct.unpack_from("<6Q", block, 24)
        _expect(block[:8] == _SIGNATURE and block[8:16] == bytes([0, 0, 0, 0, 0, 8, 8, 0]))
        _expect(base == self._base and end == self._size and driver == _NOWHERE)
        return int(header)

    def _at(self, address: int, count: int) -> bytes:
        place = self._base + address
        self._budget -= count
        _expect(count >= 0 and place + count <= self._size and self._budget >= 0)
        self._file.seek(place)
        return self._file.read(count)

    def _messages(self, address: int) -> Messages:
        """Return an object's messages (kind, body)."""
        version, _, count, _, length = struct.unpack("<BBHII", self._at(address, 12))
        _expect(version == 1 and count <= _MOST_MESSAGES)
        found: Messages = []
        blocks = [(address + 16, length)]
        for start, size in blocks:      # it grows while it is walked
            for kind, body in _split(self._at(start, size)):
                if kind == _CONTINUATION:
                    blocks.append(struct.unpack_from("<QQ", body))
                found.append((kind, body))
            _expect(len(found) <= count and len(blocks) <= count)
        return found

    def _members(self, messages: Messages, prefix: str) -> Iterator[tuple[str, Column]]:
        tree, heap = struct.unpack_from("<QQ", _only(messages, _TABLE))
        signature, _, size, _, content = struct.unpack("<4sIQQQ", self._at(heap, 32))
        _expect(signature == b"HEAP")
        names = self._at(content, size)
        for place, header in self._entries(tree):
            self._names += 1
            stop = names.find(b"\0", place)
            _expect(self._names <= MOST_NAMES and place < stop)
            name = prefix + names[place:stop].decode()
            member = self._messages(header)
            if any(kind == _TABLE for kind, _ in member):
                # a shard's groups are two deep at most; a hard link may make a circle
                yield from self._members(member, f"{name}/") if prefix.count("/") < 2 else ()
            else:
                yield name, self._column(member)

    def _entries(self, node: int, depth: int = 0) -> Iterator[tuple[int, int]]:
        """Yield (place of the name, address of the header) of all symbols below a node of the tree."""
        signature, kind, _, count = struct.unpack("<4sBBH", self._at(node, 8))
        _expect(count <= MOST_NAMES and depth < 4)
        if signature == b"SNOD":
            for entry in struct.iter_unpack("<QQI20x", self._at(node + 8, 40 * count)):
                _expect(entry[2] in (0, 1))      # 2 is a soft link
                yield entry[0], entry[1]
            return
        _expect(signature == b"TREE" and kind == 0)
        keys = struct.unpack(f"<{2 * count}Q", self._at(node + 32, 16 * count))
        for child in keys[::2]:
            yield from self._entries(child, depth + 1)

    def _column(self, messages: Messages) -> Column:
        _expect({kind for kind, _ in messages} <= {_SPACE, _TYPE, _LAYOUT, _ATTRIBUTE, _CONTINUATION} | _OF_NO_WEIGHT)
        shape, dtype = _shape(_only(messages, _SPACE)), _number(_only(messages, _TYPE))
        version, layout, address = struct.unpack_from("<BBQ", _only(messages, _LAYOUT))
        length = dtype.itemsize * math.prod(shape)
        _expect((version, layout) == (3, 1) and bool(shape))
        place = self._base + address if length else 0
        _expect(place + length <= self._size)
        return Column(place, shape, dtype)

    def _attribute(self, body: bytes) -> tuple[str, object]:
        version, _, name, kind, space = struct.unpack_from("<BBHHH", body)
        _expect(version in (1, 3))
        place, sizes = 8 + (version == 3), [name, kind, space]
        parts = []
        for size in sizes:
            parts.append(body[place : place + size])
            place += -(-size // 8) * 8 if version == 1 else size
        _expect(_shape(parts[2]) == ())
        identifier = parts[0].rstrip(b"\0").decode()
        if parts[1][:1] == _TEXT and parts[1][1] & 15 == 1:
            return identifier, self._text(body[place:])
        values = np.frombuffer(body[place:], _number(parts[1]), 1)
        return identifier, values[0].item()

    def _text(self, body: bytes) -> str:
        """Follow a reference into a global heap."""
        length, heap, wanted = struct.unpack_from("<IQI", body)
        signature, _, size = struct.unpack("<4sIQ", self._at(heap, 16))
        _expect(signature == b"GCOL" and length <= MOST_TEXT and size <= 2 * MOST_TEXT)
        place, content = 16, self._at(heap, size)
        while place + 16 <= len(content):
            index, _, held = struct.unpack_from("<HH4xQ", content, place)
            _expect(index != 0)
            if index == wanted:
                _expect(length <= held and place + 16 + length <= len(content))
                return content[place + 16 : place + 16 + length].decode()
            place += 16 + -(-held // 8) * 8
        raise _OtherFormError


def _split(block: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place + 8 <= len(block):
        kind, size, flags = struct.unpack_from("<HHB", block, place)
        _expect(not flags & 2 and place + 8 + size <= len(block))      # 2: kept elsewhere
        yield kind, block[place + 8 : place + 8 + size]
        place += 8 + size


def _only(messages: Messages, wanted: int) -> bytes:
    bodies = [body for kind, body in messages if kind == wanted]
    _expect(len(bodies) == 1)
    return bodies[0]


def _shape(body: bytes) -> tuple[int, ...]:
    version, rank = struct.unpack_from("<BB", body)
    _expect(version in (1, 2) and rank <= 4 and (version == 1 or body[3] == (1 if rank else 0)))
    return struct.unpack_from(f"<{rank}Q", body, 8 if version == 1 else 4)


def _number(body: bytes) -> np.dtype[Any]:
    for code, dtype in _TYPES.items():
        if body.startswith(code):
            return dtype
    raise _OtherFormError


def _expect(holds: bool) -> None:
    """Raise _OtherFormError unless it holds."""
    if not holds:
        raise _OtherFormError
