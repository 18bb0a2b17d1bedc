"""Where an editor keeps what people did: a small file per person and record, written anew after each stroke.

    OUT/strokes/USER/ID.jsonl     a line of a script for `hkmap edit --script`
    OUT/start/ID.npy              the network's map that strokes start from, where the record names none
    OUT/ID.npy, ID+certainty.npy  the finished map, and with several people ID@USER.npy
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from hkmap.editor.work import Brief, Work, brief_of, from_line, to_line
from hkmap.errors import OutputError, RecordError
from hkmap.files.atomic import remove_leftovers, replacing
from hkmap.files.maps import load_map_file, npy_bytes
from hkmap.files.opening import file_content
from hkmap.files.references import file_name
from hkmap.maps.check import Map
from hkmap.records import Record, dump_record, parse_record


class WorkFolder:
    """The work of all people on all records, in a folder; a person's name and a record's id are quoted in file names.
    """

    def __init__(self, out: Path) -> None:
        if out.exists() and not out.is_dir():
            raise OutputError(f"{out}: a file; expected a folder for maps and strokes")
        self.out = out
        for folder in (out, out / "start", *(out / "strokes").glob("*")):
            if folder.is_dir():
                remove_leftovers(folder, r".*\.(npy|jsonl)")        # of a killed editor

    def path(self, user: str, identifier: str) -> Path:
        """Return where a person's work on a record is, or will be; raise OutputError for a name that no folder has."""
        check_person(user)
        return self.out / "strokes" / file_name(user) / f"{file_name(identifier)}.jsonl"

    def read(self, user: str, identifier: str) -> Work | None:
        """Return a person's work on a record, None where there is none; raise RecordError for a damaged file."""
        path = self.path(user, identifier)
        line = _line(path, identifier)
        return None if line is None else from_line(line, str(path))

    def briefs(self, identifiers: Iterable[str]) -> dict[tuple[str, str], Brief]:
        """Return how far all work on some records is, by person and record; raise RecordError for a damaged file."""
        names = {f"{file_name(identifier)}.jsonl": identifier for identifier in identifiers}
        found = {}
        for user in self.people():
            for path in sorted((self.out / "strokes" / file_name(user)).glob("*.jsonl")):
                if (identifier := names.get(path.name)) and (line := _line(path, identifier)):
                    found[user, identifier] = brief_of(line, str(path))
        return found

    def write(self, user: str, identifier: str, work: Work) -> None:
        """Keep a person's work on a record: all of it, or, where this fails, what was there before."""
        with replacing(self.path(user, identifier), overwrite=True) as beside:
            beside.write_bytes(dump_record(to_line(work, identifier, user)))

    def people(self) -> list[str]:
        """Return the names of all who have worked here, in order."""
        return sorted(unquote(folder.name) for folder in (self.out / "strokes").glob("*") if folder.is_dir())

    def start_map(self, identifier: str) -> Map | None:
        """Return the network's map that was kept for a record."""
        path = self.start_path(identifier)
        return load_map_file(path) if path.exists() else None

    def keep_start(self, identifier: str, values: Map) -> None:
        """Keep the network's map that a record's strokes start from."""
        path = self.start_path(identifier)
        if not path.exists():
            with replacing(path) as beside:
                beside.write_bytes(npy_bytes(values))

    def start_path(self, identifier: str) -> Path:
        return self.out / "start" / f"{file_name(identifier)}.npy"


def _line(path: Path, identifier: str) -> Record | None:
    """Return the line of a file of work, None where there is none; raise RecordError for one of something else."""
    try:
        line = parse_record(file_content(path), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}; expected the strokes of a person") from error
    if line["id"] != identifier:
        raise RecordError(f'{path}: is of record "{line["id"]}", expected "{identifier}"; give the file its name')
    return line


def check_person(user: str) -> None:
    """Raise OutputError for a name that cannot be that of a folder and be read off it again."""
    whole = user.encode(errors="ignore").decode() == user
    if not whole or user in ("", ".", "..") or unquote(file_name(user)) != user:
        raise OutputError(f"the person {user!a}: no folder can have this name; give a shorter or plainer --user")
