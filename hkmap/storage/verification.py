"""Tell whether a shard is as it was written, and which of its records are not: what `hkmap verify` does."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hkmap.errors import HkmapError, ShardError
from hkmap.maps.check import Map, check_map
from hkmap.parallel.threads import thread_pool
from hkmap.records import parse_record
from hkmap.storage.annotators import MAPS, NAMES, OFFSETS
from hkmap.storage.hdf5 import ContiguousFile
from hkmap.storage.layout import PIXELS, Sample, check_columns, check_header, checksum, parse_classes, pixel_size_of
from hkmap.storage.userblock import file_digest, is_intact, is_stale

Depth = Literal["quick", "records", "full"]
_AT_ONCE = 256      # records in the hands of the threads; more would only wait in memory


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; ``record`` (from 0) and ``id`` are None where it is not one record's."""

    sentence: str
    record: int | None = None
    id: str | None = None


def verify_shard(path: Path, *, depth: Depth = "records") -> dict[str, Any]:
    """Check a shard and return what was looked at and every problem that was found.

    "quick" checks the user block, the structure and the numbers that say where things lie; "records" before that the
    digest of the whole file and after it the checksum of each record; "full" also decodes every image and looks at
    every value of a map. The digest comes first, and libhdf5 is never asked about a structure that is damaged.
    The result has "path", "ok", "checked" (names of checks), "records" (their number, None where it is unknown) and
    "problems", each with "sentence", "record" and "id". Raises OSError where the file cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    checked = ["user-block"] if depth == "quick" else ["user-block", "digest"]
    problems = list(_seal_problems(path, depth))
    count = None
    try:
        checked.append("structure")
        shard = _Shard(path)
    except HkmapError as error:
        problems.append(Problem(str(error)))
    else:
        count = shard.count
        problems += shard.problems(depth)
        checked += {"quick": [], "records": ["checksums"], "full": ["checksums", "images"]}[depth]
    return {
        "path": str(path), "ok": not problems, "checked": checked, "records": count,
        "problems": [asdict(problem) for problem in problems],
    }


def unread(path: Path, error: OSError) -> dict[str, Any]:
    """Return what verify_shard would, for a file that could not be read: nothing was checked."""
    sentence = f"{path}: {error.strerror or error}; expected a shard"
    return {"path": str(path), "ok": False, "checked": [], "records": None, "problems": [asdict(Problem(sentence))]}


def verify_digest(path: Path) -> str:
    """Return the sha256 of everything after the first 512 bytes; raise ShardError if the file states another.

    This asks nothing of libhdf5, which may hang or crash on a damaged file: call it first.
    """
    stated, found = file_digest(path)
    if not stated:
        raise ShardError(f"{path}: its first 512 bytes hold no sha256; expected a file that hkmap wrote")
    if stated != found:
        raise ShardError(_other_digest(path, stated, found))
    return found


def _seal_problems(path: Path, depth: Depth) -> Iterator[Problem]:
    if is_stale(path):
        yield Problem(
            f"{path}: another program wrote it anew, below the digests of the file it was made from, so nobody knows "
            "what it ought to be; pack it anew"
        )
        return
    intact = is_intact(path)
    if not intact:
        yield Problem(f"{path}: its first 512 bytes are not as hkmap writes them; copy it again, or pack it anew")
    if depth == "quick":
        return
    stated, found = file_digest(path)
    if stated and stated != found:
        yield Problem(_other_digest(path, stated, found))
    if intact and not stated:
        yield Problem(f"{path}: states no sha256 of its bytes, as every shard of `hkmap pack` does; pack it anew")


def _other_digest(path: Path, stated: str, found: str) -> str:
    return f"{path}: its bytes have the sha256 {found[:12]}…, expected {stated[:12]}…; copy it again"


class _Shard:
    """A shard whose numbers are not trusted: what does not fit is a problem of its record, not the end.

    Raises ShardError where not even the structure fits.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = ContiguousFile(path)
        check_header(self._file)
        self.count = check_columns(self._file)
        self._classes = len(parse_classes(path, self._file.attributes.get("classes")))
        self._labels: npt.NDArray[np.int64] = self._file.whole("labels")
        self._has_map: npt.NDArray[np.bool_] = self._file.whole("has_map").view(np.uint8) != 0
        self._checksums = self._file.whole("crc32")
        self._ids, self._records = (_Strings(self._file, name) for name in ("ids", "records"))
        self._pixel_size = pixel_size_of(self._file)
        self._images = None if self._pixel_size else _Strings(self._file, "images")
        self._annotators = _Annotators(self._file) if MAPS in self._file.columns else None
        parts = (self._ids, self._records, self._images, self._annotators)
        self._offsets: list[_Offsets] = [part for part in parts if part is not None]
        self._misplaced = self._find_misplaced()

    def problems(self, depth: Depth) -> list[Problem]:
        """Return what is wrong with the records, in their order; each is named with the first thing found."""
        if depth == "quick":
            return [self._named(int(index), self._place_problem(int(index))) for index in self._misplaced.nonzero()[0]]
        look = self._data_problem if depth == "records" else self._content_problem
        found: list[Problem] = []
        with thread_pool(os.cpu_count() or 1) as pool:
            for start in range(0, self.count, _AT_ONCE):
                numbers = range(start, min(start + _AT_ONCE, self.count))
                for index, sentence in zip(numbers, pool.map(look, numbers), strict=True):
                    found += [self._named(index, sentence)] if sentence else []
        return found

    def _named(self, index: int, sentence: str) -> Problem:
        identifier = self._ids.read(index).decode(errors="replace")
        return Problem(f'{self._path}#{index} (record "{identifier}"): {sentence}', index, identifier)

    def _find_misplaced(self) -> npt.NDArray[np.bool_]:
        wrong = (self._labels < -1) | (self._labels >= self._classes)
        if 0 in self._file.columns["maps"].shape[1:]:
            wrong |= self._has_map
        for offsets in self._offsets:
            wrong |= offsets.misplaced
        return np.asarray(wrong, dtype=np.bool_)

    def _place_problem(self, index: int) -> str:
        """What is wrong with the numbers that say where the record's parts lie, or with its label."""
        for offsets in self._offsets:
            if offsets.misplaced[index]:
                return f"{offsets.name}/offsets do not rise to the end of its data here: damaged; copy it again"
        if not -1 <= self._labels[index] < self._classes:
            return f"label {self._labels[index]} for {self._classes} classes: damaged; copy it again"
        return "has a map, but maps have no size: damaged; copy it again"

    def _data_problem(self, index: int) -> str | None:
        """What is wrong with the record's parts, image and map not being looked at."""
        if self._misplaced[index]:
            return self._place_problem(index)
        sample, text = self._sample(index), self._records.read(index)
        if sample is None or checksum(sample, text) != self._checksums[index]:
            return "its checksum does not fit, so the file is damaged; copy it again"
        try:
            identifier = parse_record(text, "the record")["id"]
        except HkmapError as error:
            return str(error)
        if identifier.encode() != self._ids.read(index):
            return f"the record calls itself {identifier!r}: damaged; copy it again"
        return None

    def _content_problem(self, index: int) -> str | None:
        """What is wrong with the record, image and maps included."""
        sentence = self._data_problem(index)
        sample = self._sample(index)
        if sentence is not None or sample is None:
            return sentence
        try:
            sample.image("its image")
            for name, values in self._maps(sample):
                check_map(values, name)
        except HkmapError as error:
            return str(error)
        return None

    def _maps(self, sample: Sample) -> Iterator[tuple[str, Map]]:
        if sample.map is not None:
            yield "its map", sample.map
        if sample.weight is not None:
            yield "its weights", sample.weight
        for name, values in sample.annotators.items():
            yield f'its map of annotator "{name}"', values

    def _sample(self, index: int) -> Sample | None:
        """The record's parts as they are summed; None where an annotator's name is no text."""
        image = self._images.read(index) if self._images else self._file.read(PIXELS, index, index + 1)
        weight = self._row("weights", index) if "weights" in self._file.columns else None
        values = self._row("maps", index) if self._has_map[index] else None
        try:
            annotators = self._annotators.read(index) if self._annotators else {}
        except UnicodeDecodeError:
            return None
        return Sample({}, image, values, weight, int(self._labels[index]), annotators, self._pixel_size)

    def _row(self, name: str, index: int) -> Map:
        return np.asarray(self._file.row(name, index), dtype=np.float32)


class _Offsets:
    """Where one part of each record lies, from 0 to ``end``; what is beyond it is cut off.

    ``misplaced`` (n,) is true where the part does not lie between those before and after.
    """

    def __init__(self, file: ContiguousFile, name: str, end: int) -> None:
        self.name = name.removesuffix("/offsets")
        raw = file.whole(name)
        self._cut: npt.NDArray[np.uint64] = np.minimum(raw, np.uint64(end))
        falls = self._cut[1:] < self._cut[:-1]
        self.misplaced: npt.NDArray[np.bool_] = falls | (raw[1:] > end) | (raw[:-1] > end)
        if len(self.misplaced):
            self.misplaced[0] |= raw[0] != 0
            self.misplaced[-1] |= raw[-1] != end

    def span(self, index: int) -> tuple[int, int]:
        start, stop = (int(offset) for offset in self._cut[index : index + 2])
        return start, max(start, stop)


class _Strings(_Offsets):
    """Byte strings end to end."""

    def __init__(self, file: ContiguousFile, name: str) -> None:
        super().__init__(file, f"{name}/offsets", file.columns[f"{name}/bytes"].shape[0])
        self._file = file
        self._content = f"{name}/bytes"

    def read(self, index: int) -> bytes:
        return self._file.read(self._content, *self.span(index))


class _Annotators(_Offsets):
    """The maps of single annotators."""

    def __init__(self, file: ContiguousFile) -> None:
        super().__init__(file, OFFSETS, file.columns[MAPS].shape[0])
        self._file = file
        self._names = _Strings(file, NAMES)
        if file.columns[f"{NAMES}/offsets"].shape[0] != file.columns[MAPS].shape[0] + 1:
            raise ShardError(f"{file.path}: {NAMES} and {MAPS} differ in number; the file is damaged or foreign")
        rows = np.flatnonzero(self._names.misplaced)
        owners = np.searchsorted(self._cut, rows.astype(np.uint64), side="right") - 1
        self.misplaced[owners[owners < len(self.misplaced)]] = True

    def read(self, index: int) -> dict[str, Map]:
        start, stop = self.span(index)
        rows = np.asarray(self._file.rows(MAPS, start, stop), dtype=np.float32)
        return {self._names.read(start + number).decode(): values for number, values in enumerate(rows)}
