"""The hidden folder beside a shard where it is made: what a killed run has finished waits there, and nothing else does.

It holds, from the beginning to the end of a run:

- ``lock``: locked while a run is at work; the lock goes with the process, however that ends
- ``journal.json``: what was asked for and, once all is well, the list of the files that are to get their names
- the finished shards under their final names, and those in the making under names that end in .part
- ``undo``: what stood where a finished shard is being changed
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hkmap.errors import OutputError
from hkmap.storage.atomic import replacing, sync_file, sync_folder
from hkmap.storage.userblock import holes_of, stretches_around

logger = logging.getLogger("hkmap")

Journal = dict[str, Any]

_JOURNAL, _LOCK, _UNDO = "journal.json", "lock", "undo"


class WorkFolder:
    """The folder of one target; between ``open`` and ``close`` no other process has it."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f".{target.name[:240]}.pack")
        self._target = target
        self._lock = -1

    def part(self, name: str) -> Path:
        """Return where the shard of this name is made."""
        return self.path / f"{name}.part"

    def open(self) -> None:
        """Make the folder, or take over the one that a dead run has left; raise OutputError where a run is alive."""
        if self.path.is_dir() and not (self.path / _LOCK).exists() and any(self.path.iterdir()):
            raise OutputError(f"{self.path}: a folder of somebody else, where hkmap pack would work; move it away")
        while self._lock < 0:
            self.path.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):      # the run before has just removed it
                self._lock = self._locked(os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666))

    def close(self, *, keep: bool) -> None:
        """Let another run in; remove the folder unless its finished shards are to be kept."""
        if keep:
            self.drop_unfinished()
        else:
            shutil.rmtree(self.path)
        os.close(self._lock)
        self._lock = -1

    def clear(self) -> None:
        """Remove what a run has left."""
        for path in self.path.iterdir():
            if path.name != _LOCK:
                path.unlink()

    def drop_unfinished(self) -> None:
        """Remove what neither a finished shard is nor needed to go on."""
        journal = self.read_journal() or {}
        kept = {_LOCK, _JOURNAL, _UNDO, *(self.part(name).name for name in journal.get("files", []))}
        for path in self.path.iterdir():
            if path.name not in kept and path.suffix != ".h5":
                path.unlink()

    def read_journal(self) -> Journal | None:
        """Return the journal; None where the run that left the folder had not begun one, or it is none of ours."""
        try:
            journal = json.loads((self.path / _JOURNAL).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return journal if isinstance(journal, dict) and journal.keys() >= {"settings", "first", "overwrite"} else None

    def write_journal(self, journal: Mapping[str, Any]) -> None:
        """Replace the journal, so that after a crash it is the old or the new one."""
        with replacing(self.path / _JOURNAL, overwrite=True, durable=True) as beside:
            beside.write_text(json.dumps(journal), encoding="utf-8")
        sync_folder(self.path)

    def finish(self, name: str) -> None:
        """Keep a shard in the making, whose bytes are on the disk, as a finished one."""
        self.part(name).replace(self.path / name)
        sync_folder(self.path)

    def change(self, path: Path, change: Callable[[Path], str]) -> str:
        """Have the structure of a finished shard changed; a run that dies meanwhile leaves the means to undo it."""
        pieces = []
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for start, stop in [(0, 512), *stretches_around(holes_of(path), size)]:
                file.seek(start)
                pieces.append([start, file.read(stop - start).hex()])
        with replacing(self.path / _UNDO, overwrite=True, durable=True) as beside:
            beside.write_text(json.dumps({"name": path.name, "size": size, "pieces": pieces}))
        sync_folder(self.path)
        digest = change(path)
        sync_file(path)
        (self.path / _UNDO).unlink()
        return digest

    def undo(self) -> None:
        """Take back the change that a run was at when it died, if any."""
        if not (self.path / _UNDO).exists():
            return
        before = json.loads((self.path / _UNDO).read_text())
        path = self.path / before["name"]
        with path.open("r+b") as file:
            file.truncate(before["size"])
            for start, content in before["pieces"]:
                file.seek(start)
                file.write(bytes.fromhex(content))
        sync_file(path)
        (self.path / _UNDO).unlink()

    def place_of(self, final: Path) -> Path:
        """Return where a finished shard is now: here, or under its final name already."""
        inside = self.path / final.name
        return inside if inside.exists() else final

    def _locked(self, descriptor: int) -> int:
        """Return the descriptor, locked; -1 where the file was removed before."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(f"{self._target}: another hkmap pack is writing it; wait, or choose a name") from error
        except OSError as error:
            logger.info("%s: %s; so keep other runs away from it yourself", self._target, error.strerror)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)
        return -1
