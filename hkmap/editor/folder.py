"""Where an editor keeps what people did: a small file per person and record, written anew after each stroke.

    OUT/strokes/USER/ID.jsonl     a line of a script for `hkmap edit --script`
    OUT/start/ID.npy              the network's map that strokes start from, where the record names none
    OUT/ID.npy, ID+certainty.npy  the finished map, and with several people ID@USER.npy
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from hkmap.editor.work import Work, from_line, to_line
from hkmap.errors import OutputError, RecordError
from hkmap.files.atomic import remove_leftovers, replacing
from hkmap.files.maps import load_map_file, npy_bytes
from hkmap.files.opening import file_content
from hkmap.files.references import file_name
from hkmap.maps.check import Map
from hkmap.records import dump_record, parse_record


class WorkFolder:
    """The work of all people on all records, in a folder; a person's name and a record's id are quoted in file names.
    """

    def __init__(self, out: Path) -> None:
        if out.exists() and not out.is_dir():
            raise OutputError(f"{out}: a file; expected a folder for maps and strokes")
        self.out = out
        for folder in (out / "strokes").glob("*"):
            if folder.is_dir():
                remove_leftovers(folder, r".*")     # of a killed editor

    def path(self, user: str, identifier: str) -> Path:
        """Return where a person's work on a record is, or will be."""
        return self.out / "strokes" / file_name(user) / f"{file_name(identifier)}.jsonl"

    def read(self, user: str, identifier: str) -> Work | None:
        """Return a person's work on a record, None where there is none; raise RecordError for another file."""
        path = self.path(user, identifier)
        try:
            content = file_content(path)
        except FileNotFoundError:
            return None
        line = parse_record(content, str(path))
        if line["id"] != identifier:
            raise RecordError(f'{path}: is of record "{line["id"]}", expected "{identifier}"; give the file its name')
        return from_line(line, str(path))

    def write(self, user: str, identifier: str, work: Work) -> None:
        """Keep a person's work on a record: all of it, or, where this fails, what was there before."""
        with replacing(self.path(user, identifier), overwrite=True) as beside:
            beside.write_bytes(dump_record(to_line(work, identifier, user)))

    def people(self) -> list[str]:
        """Return the names of all who have worked here, in order."""
        return sorted(unquote(folder.name) for folder in (self.out / "strokes").glob("*") if folder.is_dir())

    def start_map(self, identifier: str) -> Map | None:
        """Return the network's map that was kept for a record."""
        path = self._start(identifier)
        return load_map_file(path) if path.exists() else None

    def keep_start(self, identifier: str, values: Map) -> None:
        """Keep the network's map that a record's strokes start from."""
        path = self._start(identifier)
        if not path.exists():
            with replacing(path) as beside:
                beside.write_bytes(npy_bytes(values))

    def start_reference(self, identifier: str) -> str:
        return str(self._start(identifier))

    def _start(self, identifier: str) -> Path:
        return self.out / "start" / f"{file_name(identifier)}.npy"
