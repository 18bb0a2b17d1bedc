"""Shards in, records out, with or without the files they refer to: what `hkmap unpack` does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hkmap.errors import HkmapError, OutputError
from hkmap.records import Record, Rejects, accepted, attempt, with_annotators
from hkmap.storage.atomic import replacing
from hkmap.storage.filenames import file_name
from hkmap.storage.images import image_suffix
from hkmap.storage.layout import Sample
from hkmap.storage.mapfiles import MapWriter, open_writer
from hkmap.storage.references import annotator_reference
from hkmap.storage.samples import given_weight, labelled_record
from hkmap.storage.shards import ShardReader


def unpack_records(paths: Iterable[Path]) -> Iterator[Record]:
    """Yield the records of shards; their images and maps are references to rows of the shards."""
    for reference, sample in _samples(paths):
        record = _record(sample, reference, reference, reference)
        yield with_annotators(record, {name: annotator_reference(reference, name) for name in sample.annotators})


def unpack_files(paths: Iterable[Path], out: Path, *, overwrite: bool) -> Iterator[Record]:
    """Like unpack_records, with the parts written as files: OUT/images, OUT/maps and OUT/weights (.npy).

    The maps of single annotators lie in OUT/maps too, as ID@NAME.npy.
    """
    with open_files(out, overwrite=overwrite) as files:
        for sample in samples_of(paths):
            yield files.save(sample)


def saved_records(
    samples: Iterable[Sample | HkmapError], out: Path, *, overwrite: bool, rejects: Rejects
) -> Iterator[Record]:
    """Yield the records of samples, whose parts are written to ``out`` as by unpack_files; errors go to ``rejects``."""
    with open_files(out, overwrite=overwrite) as files:
        yield from accepted((attempt(files.save, sample) for sample in samples), rejects)


def samples_of(paths: Iterable[Path]) -> Iterator[Sample]:
    """Yield the records of shards, whole, in order."""
    return (sample for _, sample in _samples(paths))


@contextmanager
def open_files(out: Path, *, overwrite: bool) -> Iterator[SampleFiles]:
    """Yield a writer of samples' parts into the folder ``out``."""
    with ExitStack() as stack:
        yield SampleFiles(out, stack, overwrite)


class SampleFiles:
    """Writes what belongs to samples as files: OUT/images, OUT/maps and OUT/weights; an id may come once."""

    def __init__(self, out: Path, stack: ExitStack, overwrite: bool) -> None:
        self._out = out
        self._stack = stack
        self._overwrite = overwrite
        self._writers: dict[Path, MapWriter] = {}
        self._seen: set[tuple[str, str]] = set()

    def save(self, sample: Sample, folder: str = "", name: str | None = None) -> Record:
        """Write the parts of a sample and return its record, which refers to them.

        They are called as its id, or ``name``, quoted as in a URL, and lie in a ``folder`` of each of the three.
        Raises OutputError for a name that is there already.
        """
        called = sample.record["id"] if name is None else name
        if (folder, called) in self._seen:
            raise OutputError(f'record "{sample.record["id"]}": its files are there already, of another record with '
                              "this id; unpack the two into a folder each")
        self._seen.add((folder, called))
        maps, weight = self._writer("maps", folder), given_weight(sample)
        record = _record(
            sample,
            self._save_image(sample, folder, called),
            maps.save(called, sample.map) if sample.map is not None else "",
            self._writer("weights", folder).save(called, weight) if weight is not None else "",
        )
        return with_annotators(
            record, {user: maps.save(called, values, user) for user, values in sample.annotators.items()}
        )

    def _writer(self, kind: str, folder: str) -> MapWriter:
        path = self._out / kind / folder
        if path not in self._writers:
            self._writers[path] = self._stack.enter_context(open_writer(path, overwrite=self._overwrite))
        return self._writers[path]

    def _save_image(self, sample: Sample, folder: str, name: str) -> str:
        shown = re.sub(r"^\.", "%2E", file_name(name))      # a hidden file is no image to those who read folders
        data = sample.image_file()
        path = self._out / "images" / folder / f"{shown}.{image_suffix(data)}"
        with replacing(path, overwrite=self._overwrite) as beside:
            beside.write_bytes(data)
        return str(path)


def _samples(paths: Iterable[Path]) -> Iterator[tuple[str, Sample]]:
    for path in paths:
        reader = ShardReader(path)
        for index in range(len(reader)):
            yield f"{path}#{index}", reader.read(index)


def _record(sample: Sample, image: str, values: str, weights: str) -> Record:
    """The record as it was packed, its parts found where they are now."""
    record = {**labelled_record(sample), "image": image}
    if sample.map is not None:
        record["map"] = values
    if given_weight(sample) is not None:
        record["weights"] = weights
    return record
