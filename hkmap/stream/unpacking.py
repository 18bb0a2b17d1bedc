"""Shards in, records out, with or without the files they refer to: what `hkmap unpack` does.

A tree of images with a folder per class, as torchvision's ImageFolder reads it, has the rest in trees of its own:
OUT/images/CLASS/ID.jpg, OUT/maps/CLASS/ID.npy, OUT/certainty/CLASS/ID.npy, and OUT/records.jsonl, whose paths are
relative to OUT, so that the tree can be moved.
"""

from __future__ import annotations

import io
import logging
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hkmap.errors import HkmapError, OutputError, RecordError
from hkmap.files.atomic import refuse_existing, replacing
from hkmap.files.headers import image_suffix
from hkmap.files.maps import MapWriter, npy_bytes, open_writer
from hkmap.files.references import annotator_reference, file_name
from hkmap.maps.check import Map
from hkmap.records import Record, Rejects, accepted, annotator_maps_of, attempt, dump_record, with_annotators
from hkmap.shards.layout import Sample, given_certainty, labelled_record
from hkmap.shards.reader import ShardReader
from hkmap.shards.sequence import ShardSequence
from hkmap.shards.writer import numbered, series_of

logger = logging.getLogger("hkmap")

RECORDS = "records.jsonl"
FOLDERS = {"map": "maps", "certainty": "certainty"}


def unpack_records(paths: Iterable[Path]) -> Iterator[Record]:
    """Yield the records of shards; their images and maps are references to rows of the shards."""
    for path in paths:
        for index, sample in enumerate(samples_of([path])):
            row = f"{path}#{index}"
            record = {**labelled_record(sample), "image": row} | dict.fromkeys(_maps(sample), row)
            yield with_annotators(record, {name: annotator_reference(row, name) for name in sample.annotators})


def unpack_files(paths: Iterable[Path], out: Path, *, overwrite: bool) -> Iterator[Record]:
    """Like unpack_records, with the parts written as files: OUT/images, OUT/maps and OUT/certainty (.npy).

    The maps of single annotators lie in OUT/maps too, as ID@NAME.npy.
    """
    return saved_records(samples_of(paths), out, overwrite=overwrite, rejects=Rejects())


def saved_records(
    samples: Iterable[Sample | HkmapError], out: Path, *, overwrite: bool, rejects: Rejects
) -> Iterator[Record]:
    """Yield the records of samples, whose parts are written to ``out`` as by unpack_files; errors go to ``rejects``."""
    with SampleFiles(out, overwrite) as files:
        yield from accepted((attempt(files.save, sample) for sample in samples), rejects)


def samples_of(paths: Iterable[Path]) -> Iterator[Sample]:
    """Yield the records of shards, whole, in order."""
    for path in paths:
        reader = ShardReader(path)
        yield from map(reader.read, range(len(reader)))


class SampleFiles(ExitStack):
    """Writes what belongs to samples as files: OUT/images, OUT/maps and OUT/certainty; an id may come once."""

    def __init__(self, out: Path, overwrite: bool) -> None:
        super().__init__()
        self._out = out
        self._overwrite = overwrite
        self._writers: dict[Path, MapWriter] = {}
        self._seen: set[tuple[str, str]] = set()

    def save(self, sample: Sample, folder: str = "", name: str | None = None) -> Record:
        """Write the parts of a sample and return its record, which refers to them.

        Their name is its id, or ``name``, quoted as in a URL; they lie in a ``folder`` of each of the three.
        Raises OutputError for a name that is there already.
        """
        name = sample.record["id"] if name is None else name
        if (folder, name) in self._seen:
            raise OutputError(f'record "{sample.record["id"]}": its files are there already, of another record with '
                              "this id; unpack the two into a folder each")
        self._seen.add((folder, name))
        record = {**labelled_record(sample), "image": self._save_image(sample, folder, name)}
        for key, values in _maps(sample).items():
            record[key] = self._writer(FOLDERS[key], folder).save(name, values)
        maps = self._writer("maps", folder)
        return with_annotators(
            record, {user: maps.save(name, values, user) for user, values in sample.annotators.items()}
        )

    def _writer(self, kind: str, folder: str) -> MapWriter:
        path = self._out / kind / folder
        if path not in self._writers:
            self._writers[path] = self.enter_context(open_writer(path, overwrite=self._overwrite))
        return self._writers[path]

    def _save_image(self, sample: Sample, folder: str, name: str) -> str:
        shown = re.sub(r"^\.", "%2E", file_name(name))      # who reads a folder of images skips hidden files
        data = sample.image_file()
        path = self._out / "images" / folder / f"{shown}.{image_suffix(data)}"
        with replacing(path, overwrite=self._overwrite) as beside:
            beside.write_bytes(data)
        return str(path)


def _maps(sample: Sample) -> dict[str, Map]:
    """Return the map and the certainty of a sample, those that it has."""
    maps = {"map": sample.map, "certainty": given_certainty(sample)}
    return {key: values for key, values in maps.items() if values is not None}


# a folder per class


def write_tree(shards: ShardSequence, out: Path, *, overwrite: bool) -> Iterator[Record]:
    """Write the records of shards as a tree, and yield them; they refer to the files.

    An image's name is its id, quoted as in a URL, without the class and a slash where it begins with them. An image
    without a label lies in OUT/images itself. Raises OutputError where two labels, or two records, would share a name.
    """
    folders = _class_folders(shards)
    with (
        replacing(out / RECORDS, overwrite=overwrite) as beside,
        beside.open("wb") as lines,
        SampleFiles(out, overwrite) as files,
    ):
        for index in range(len(shards)):
            sample = shards.read(index)
            folder = folders.get(sample.label, "")
            identifier: str = sample.record["id"]
            record = files.save(sample, folder, identifier.removeprefix(f"{folder}/") or identifier)
            lines.write(dump_record(_moved(record, out)))
            yield record


def folder_name(name: str) -> str:
    """Return a class's name as the name of one visible folder: / and % as in a URL.

    >>> folder_name("owl/barn 50%"), folder_name("..")
    ('owl%2Fbarn 50%25', '%2E.')
    """
    return re.sub(r"[/%\x00-\x1f]|^\.", lambda found: f"%{ord(found[0]):02X}", name)


def _class_folders(shards: ShardSequence) -> dict[int, str]:
    """Return the folder of each label that some record has; for a class without a name, its number."""
    labels: dict[str, int] = {}
    for label in sorted({*shards.labels.tolist()} - {-1}):
        name = folder_name(shards.classes[label] or str(label))
        if labels.setdefault(name, label) != label:
            raise OutputError(
                f'{shards.name}: label {labels[name]} and label {label} would share the folder "{name}"; give each '
                "class a name of its own"
            )
    return {label: name for name, label in labels.items()}


def _moved(record: Record, out: Path) -> Record:
    """The record with paths relative to ``out``, under which all its files lie."""
    own: dict[str, Any] = {
        key: str(Path(record[key]).relative_to(out)) for key in ("image", "map", "certainty") if record.get(key)
    }
    annotators = {user: str(Path(path).relative_to(out)) for user, path in annotator_maps_of(record).items()}
    return with_annotators({**record, **own}, annotators)


# WebDataset's tars


def write_tars(samples: Iterable[Sample], out: Path, *, shard_size: int | None, overwrite: bool) -> dict[str, Any]:
    """Write samples into one tar or, with ``shard_size``, a series of that many samples each; return what was written.

    The bytes depend on the samples alone: no times, no owners. All tars get their names when the last one is complete.
    Raises OutputError where a tar exists already, and where two samples have one id.
    """
    if out.suffix != ".tar":
        raise OutputError(f"{out}: the name of a tar ends in .tar; call it {out.stem}.tar")
    former = series_of(out) if shard_size else [out]
    for path in former:
        refuse_existing(path, overwrite=overwrite)
    iterator, seen = iter(samples), set[str]()
    written: list[dict[str, Any]] = []
    with ExitStack() as stack:
        for first in iterator:
            path = numbered(out, len(written)) if shard_size else out
            beside = stack.enter_context(replacing(path, overwrite=overwrite, durable=True))
            chunk = chain([first], islice(iterator, shard_size - 1) if shard_size else iterator)
            written.append({"path": str(path), "records": _write_tar(beside, chunk, seen)})
    if not written:
        raise RecordError("no record in the shards; nothing was written")
    for path in {*former} - {Path(tar["path"]) for tar in written}:
        logger.warning("%s: removed, as it belonged to the tars that were replaced", path)
        path.unlink()
    return {"tars": written, "records": len(seen)}


def _write_tar(path: Path, samples: Iterable[Sample], seen: set[str]) -> int:
    before = len(seen)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for sample in samples:
            identifier = sample.record["id"]
            if identifier in seen:
                raise OutputError(f'record "{identifier}": is in two of the shards; write them to a tar each')
            seen.add(identifier)
            for name, data in _members(sample):
                member = tarfile.TarInfo(name)      # its time, user and group are 0
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            tar.members.clear()  # type: ignore[attr-defined]
    return len(seen) - before


def _members(sample: Sample) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file of a sample."""
    key = quote(sample.record["id"], safe="").replace(".", "%2E")
    image = sample.image_file()
    record = {**labelled_record(sample), "image": f"{key}.{image_suffix(image)}"}
    maps = _maps(sample)
    record |= {name: f"{key}.{name}.npy" for name in maps}
    names = {user: f"{key}.annotator-{number}.npy" for number, user in enumerate(sample.annotators)}
    if names:
        record["annotator_maps"] = names
    yield record["image"], image
    if sample.label >= 0:
        yield f"{key}.cls", str(sample.label).encode()
    yield f"{key}.json", dump_record(record)
    for name, values in maps.items():
        yield record[name], npy_bytes(values)
    for user, values in sample.annotators.items():
        yield names[user], npy_bytes(values)
