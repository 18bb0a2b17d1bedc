"""How far a run of `hkmap pack` has come, kept on the disk: begun anew, or taken up where one was broken off."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hkmap import __version__
from hkmap.errors import OutputError
from hkmap.storage.atomic import refuse_existing, sync_file, sync_folder
from hkmap.storage.hdf5 import replace_attribute
from hkmap.storage.layout import dump_classes
from hkmap.storage.series import NOTHING, number_of, numbered, read_earlier, series_of
from hkmap.storage.shards import ShardReader
from hkmap.storage.userblock import stated_digest
from hkmap.storage.workfolder import Journal, WorkFolder

logger = logging.getLogger("hkmap")


@dataclass(frozen=True)
class Plan:
    """What a run is asked for; one that goes on with another must be asked for the same.

    A shard has at most ``shard_size`` records and ``shard_bytes`` bytes. ``pixel_size`` = (height, width) stores
    decoded pixels, not the image files. ``append`` adds shards to a series.
    """

    classes: list[str] | None = None
    shard_size: int | None = None
    shard_bytes: int | None = None
    pixel_size: tuple[int, int] | None = None
    append: bool = False

    @property
    def in_series(self) -> bool:
        return self.append or self.shard_size is not None or self.shard_bytes is not None

    def settings(self) -> dict[str, Any]:
        """Return what the files' bytes depend on, as JSON gives it back, by the names of the options."""
        return {
            "--classes": self.classes, "--shard-size": self.shard_size, "--shard-bytes": self.shard_bytes,
            "--size": list(self.pixel_size) if self.pixel_size else None, "--append": self.append,
            "the version of hkmap": __version__,
        }


@dataclass
class WrittenShard:
    """A shard that is complete, though it has its name only when the writer's context has ended."""

    path: Path
    classes: list[str]
    count: int
    digest: str


class Progress:
    """The shards of one run, which are finished one by one and get their names together.

    Between ``open`` and ``close`` nobody else writes them. ``finished`` are the shards so far; with ``resume`` those of
    a run that was broken off are among them, and ``complete`` says that it had packed all of its records.
    """

    def __init__(self, path: Path, plan: Plan, *, overwrite: bool, resume: bool) -> None:
        self._path = path
        self._plan = plan
        self._overwrite = overwrite
        self._resume = resume
        self._work = WorkFolder(path)
        self._first = 0
        self._keep = resume
        self.earlier = NOTHING
        self.finished: list[WrittenShard] = []
        self.complete = False

    def open(self) -> None:
        """Begin, or take up what was left; raise OutputError where something is in the way."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._work.open()
        try:
            self._open()
        except BaseException as error:
            self.close(error)
            raise

    def _open(self) -> None:
        journal = self._work.read_journal() or {}
        if self._resume and (self._left(journal) or "files" in journal):
            self._take_up(journal)
            return
        if self._left(journal) and not self._overwrite:
            self._keep = True
            raise OutputError(
                f"{self._path}: a run that was broken off has left finished shards in {self._work.path}; go on with "
                "`hkmap pack --resume`, or begin anew with --overwrite"
            )
        self._begin_anew()

    def begin(self, number: int) -> Path:
        """Return the path of an empty file in which to make the shard of this number, counted from 0 in this run."""
        part = self._work.part(self._name(number).name)
        part.write_bytes(b"")
        return part

    def finish(self, classes: list[str], count: int, digest: str, *, last: bool) -> None:
        """Keep the next shard, which was made; the ``last`` one counts only when all get their names."""
        path = self._name(len(self.finished))
        sync_file(self._work.part(path.name))
        if not last:
            self._work.finish(path.name)
        self.finished.append(WrittenShard(path, classes, count, digest))

    def _name(self, number: int) -> Path:
        return numbered(self._path, self._first + number) if self._plan.in_series else self._path

    def publish(self, classes: list[str]) -> None:
        """Give all shards the same classes, and their names."""
        if not self.complete:
            for shard in self.finished:
                if shard.classes != classes:      # a label that came late has its name in the earlier shards too
                    change = partial(replace_attribute, name="classes", value=dump_classes(classes))
                    shard.digest = self._work.change(self._work.path / shard.path.name, change)
            self._work.write_journal({**self._journal(), "files": [shard.path.name for shard in self.finished]})
            self._name_last(self.finished[-1].path.name)
        self._rename()
        sync_folder(self._path.parent)
        self._remove_former()

    def close(self, error: BaseException | None) -> None:
        """Leave nothing behind; after an error, with ``resume``, the finished shards."""
        self._work.close(keep=error is not None and self._keep and bool(self._left(self._work.read_journal() or {})))

    def _left(self, journal: Journal) -> bool:
        """Whether there are finished shards that have not got their names."""
        last = "files" in journal and self._work.part(journal["files"][-1]).exists()
        return last or (bool(journal) and any(self._work.path.glob("*.h5")))

    def _begin_anew(self) -> None:
        self._work.clear()
        if self._plan.append:
            self._earlier_than(None)
        for path in self._former():
            refuse_existing(path, overwrite=self._overwrite)
        self._work.write_journal(self._journal())

    def _journal(self) -> Journal:
        return {"settings": self._plan.settings(), "first": self._first, "overwrite": self._overwrite}

    def _earlier_than(self, number: int | None) -> None:
        """Look at the shards of the series before this number; None is the first free one."""
        paths = [path for path in series_of(self._path) if number is None or number_of(path) < number]
        if not paths:
            raise OutputError(
                f"{numbered(self._path, 0)}: not there, and --append adds to a series of shards that is; leave it away "
                "for the first"
            )
        self.earlier = read_earlier(paths, self._plan.pixel_size)
        self._first = number_of(paths[-1]) + 1

    def _take_up(self, journal: Journal) -> None:
        for name, value in self._plan.settings().items():
            if journal["settings"].get(name) != value:
                raise OutputError(
                    f"{self._path}: {name} is {_said(value)}, in the run that was broken off it was "
                    f"{_said(journal['settings'].get(name))}; say the same, or begin anew with --overwrite alone"
                )
        self._overwrite |= journal["overwrite"]
        self._first = journal["first"]
        if self._plan.append:
            self._earlier_than(self._first)
        self._work.undo()
        self.complete = "files" in journal
        if self.complete:
            self._name_last(journal["files"][-1])
        for path in self._named(journal):
            reader = ShardReader(self._work.place_of(path))
            self.finished.append(WrittenShard(path, reader.classes, len(reader), stated_digest(reader.path)))

    def _named(self, journal: Journal) -> Iterator[Path]:
        """Yield the names that the finished shards of a run that was broken off are to get."""
        if "files" in journal:
            yield from (self._path.with_name(name) for name in journal["files"])
            return
        number = self._first
        while (self._work.path / numbered(self._path, number).name).exists():
            yield numbered(self._path, number)
            number += 1

    def readers(self) -> Iterator[ShardReader]:
        """Yield readers of the finished shards."""
        return (ShardReader(self._work.place_of(shard.path)) for shard in self.finished)

    def _name_last(self, name: str) -> None:
        if self._work.part(name).exists():
            self._work.finish(name)

    def _rename(self) -> None:
        inside = {self._work.path / shard.path.name: shard.path for shard in self.finished}
        inside = {here: there for here, there in inside.items() if here.exists()}
        # What is replaced is lost: then let nothing else be.
        self._keep |= self._overwrite and any(there.exists() for there in inside.values())
        try:
            for here, there in inside.items():
                refuse_existing(there, overwrite=self._overwrite)
                here.replace(there)
        except BaseException:
            for here, there in inside.items():
                if not here.exists():
                    there.replace(here)
            raise

    def _remove_former(self) -> None:
        written = {shard.path for shard in self.finished}
        for path in self._former():
            if path not in written:
                logger.warning("%s: removed, as it belonged to the shards that were replaced", path)
                path.unlink()

    def _former(self) -> list[Path]:
        """Return the files that have names which belong to this run alone."""
        if self._plan.append:
            return []
        return series_of(self._path) if self._plan.in_series else [path for path in [self._path] if path.exists()]


def _said(value: object) -> str:
    return "not given" if value is None or value is False else "given" if value is True else str(value)[:60]
