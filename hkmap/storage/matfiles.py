"""Read variables out of MATLAB's .mat files, as versions 5 to 7 write them.

A reader of our own, of what annotations need (numbers, texts, cells, structures): scipy's crashes the interpreter on
some damaged files, and takes the memory that a header asks for. The format: MathWorks, "MAT-File Format", level 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hkmap.errors import ImageError
from hkmap.storage.images import MAX_PIXELS

HEADER = 128
VERSION = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}      # and the order of bytes that it stands for
MATRIX, COMPRESSED = 14, 15
CELL, STRUCTURE, TEXT = 1, 2, 4
NUMBERS = range(6, 16)
COMPLEX = 0x800
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
DEEPEST = 20


@dataclass(frozen=True)
class _Element:
    kind: int
    data: memoryview


@dataclass(frozen=True)
class _Head:
    """What a matrix says before its values."""

    kind: int
    shape: tuple[int, ...]
    name: str

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def read_variable(path: Path, name: str) -> Any:
    """Return a variable: an array of numbers (one of 1x1 as a number), a text, a list of cells, a dict of fields.

    Raises ImageError where the file is no .mat file of these versions, is damaged, has no such variable, or unpacks to
    more bytes than an image may have pixels.
    """
    names = []
    try:
        for order, matrix in _variables(_bytes(path)):
            elements = _elements(matrix, order)
            head = _head(elements, order)
            if head.name == name:
                return _value(head, elements, order, 0)
            names.append(head.name)
    except (ValueError, StopIteration, struct.error, zlib.error) as error:
        raise ImageError(
            f"{path}: no .mat file ({str(error) or 'it ends too early'}); "
            "expected MATLAB's version 5 to 7, save it with -v7"
        ) from error
    raise ImageError(f'{path}: no variable "{name}"; expected one of {", ".join(names) or "some"}')


def _variables(data: bytes) -> Iterator[tuple[str, memoryview]]:
    """Yield the order of bytes and the contents of each matrix on the first level."""
    order = VERSION.get(data[124:HEADER])
    if order is None:
        raise ValueError("its header is of another version" if data[:6] == b"MATLAB" else "it has no header")
    for element in _elements(memoryview(data)[HEADER:], order):
        unpacked = _elements(_unpacked(element.data), order) if element.kind == COMPRESSED else iter([element])
        for inner in unpacked:
            if inner.kind == MATRIX:
                yield order, inner.data


def _unpacked(data: memoryview) -> memoryview:
    stream = zlib.decompressobj()
    found = stream.decompress(data, MAX_PIXELS)
    if not stream.eof and stream.unconsumed_tail:
        raise ValueError("it unpacks to more than an image may hold")
    return memoryview(found)


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    """Yield the elements of a level, each of which is filled up to eight bytes, but for compressed ones."""
    position = 0
    while position + 8 <= len(data):
        kind, length = struct.unpack_from(f"{order}II", data, position)
        start, end = position + 8, position + 8 + length
        if kind >> 16:       # a short one has its length and its data in the tag
            kind, length, start = kind & 0xFFFF, min(kind >> 16, 4), position + 4
            end = position + 8
        if end > len(data):
            raise ValueError("it is cut short")
        yield _Element(kind, data[start : start + length])
        position = end if kind == COMPRESSED else end + -end % 8


def _head(elements: Iterator[_Element], order: str) -> _Head:
    flags, sides, name = next(elements), next(elements), next(elements)
    [first] = struct.unpack_from(f"{order}I", flags.data)
    if first & COMPLEX:
        raise ValueError("it has complex numbers")
    shape = struct.unpack(f"{order}{len(sides.data) // 4}i", sides.data)
    if len(shape) < 2 or min(shape) < 0:
        raise ValueError(f"a matrix of the sides {shape[:4]}")
    return _Head(first & 0xFF, shape, bytes(name.data).decode("latin-1"))


def _value(head: _Head, elements: Iterator[_Element], order: str, depth: int) -> Any:
    if depth > DEEPEST:
        raise ValueError("it is nested too deeply")
    if head.kind == CELL:
        return _matrices(head.count, elements, order, depth)
    if head.kind == STRUCTURE:
        return _structures(head.count, elements, order, depth)
    if head.kind == TEXT:
        return _text(head, next(elements), order)
    if head.kind in NUMBERS:
        return _numbers(head, next(elements), order)
    raise ValueError(f"a matrix of the class {head.kind}")


def _matrices(count: int, elements: Iterator[_Element], order: str, depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(count):      # ends with the elements, whatever the count promises
        element = next(elements)
        if element.kind != MATRIX:
            raise ValueError("a cell that is no matrix")
        if not len(element.data):
            found.append(np.zeros((0, 0)))
            continue
        inner = _elements(element.data, order)
        found.append(_value(_head(inner, order), inner, order, depth + 1))
    return found


def _structures(count: int, elements: Iterator[_Element], order: str, depth: int) -> Any:
    """Return a dict of the fields, or a list of dicts where there is not just one."""
    [width] = struct.unpack(f"{order}i", next(elements).data)
    text = bytes(next(elements).data)
    if width < 1:
        raise ValueError(f"names of {width} characters")
    names = [text[at : at + width].partition(b"\0")[0].decode("latin-1") for at in range(0, len(text), width)]
    if not names:
        return {}
    found = [dict(zip(names, _matrices(len(names), elements, order, depth), strict=True)) for _ in range(count)]
    return found[0] if count == 1 else found


def _text(head: _Head, element: _Element, order: str) -> Any:
    """Return a text, or a list of them where there are several rows."""
    encoding = ENCODINGS.get(element.kind)
    if encoding is None:
        raise ValueError(f"a text of the type {element.kind}")
    text = bytes(element.data).decode(encoding + {"<": "-le", ">": "-be"}[order] * (encoding in ("utf-16", "utf-32")))
    rows = head.shape[0]
    return text if rows <= 1 else [text[row::rows] for row in range(min(rows, len(text)))]


def _numbers(head: _Head, element: _Element, order: str) -> Any:
    if element.kind not in STORED:
        raise ValueError(f"numbers of the type {element.kind}")
    values = np.frombuffer(element.data, np.dtype(order + STORED[element.kind]))
    return values[0].item() if head.shape == (1, 1) == (values.size, 1) else values.reshape(head.shape, order="F")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}; expected a .mat file") from error
