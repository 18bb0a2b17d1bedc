"""A tree of images with a folder a class, as torchvision's ImageFolder reads it, and the rest in trees beside it.

OUT/images/CLASS/ID.jpg, OUT/maps/CLASS/ID.npy, OUT/weights/CLASS/ID.npy, and OUT/records.jsonl, whose paths are
relative to OUT, so that the tree can be moved.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hkmap.errors import OutputError
from hkmap.records import Record, annotator_maps_of, dump_record, with_annotators
from hkmap.storage.atomic import replacing
from hkmap.storage.sequence import ShardSequence
from hkmap.storage.unpacking import open_files

RECORDS = "records.jsonl"


def write_tree(shards: ShardSequence, out: Path, *, overwrite: bool) -> Iterator[Record]:
    """Write the records of shards as a tree, and yield them; they refer to the files.

    An image is called as its id, quoted as in a URL; where the id begins with the class and a slash, without these. One
    without a label lies in OUT/images itself. Raises OutputError where two labels, or two records, would share a name.
    """
    folders = _class_folders(shards)
    with (
        replacing(out / RECORDS, overwrite=overwrite) as beside,
        beside.open("wb") as lines,
        open_files(out, overwrite=overwrite) as files,
    ):
        for index in range(len(shards)):
            sample = shards.read(index)
            folder = folders.get(sample.label, "")
            identifier: str = sample.record["id"]
            record = files.save(sample, folder, identifier.removeprefix(f"{folder}/") or identifier)
            lines.write(dump_record(_moved(record, out)))
            yield record


def folder_name(name: str) -> str:
    """Return a class's name as that of one folder, which is seen and has no inner one: / and % as in a URL.

    >>> folder_name("owl/barn 50%"), folder_name("..")
    ('owl%2Fbarn 50%25', '%2E.')
    """
    return re.sub(r"[/%\x00-\x1f]|^\.", lambda found: f"%{ord(found[0]):02X}", name)


def _class_folders(shards: ShardSequence) -> dict[int, str]:
    """Return the folder of each label that some record has; a class without a name is called by its number."""
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
        key: str(Path(record[key]).relative_to(out)) for key in ("image", "map", "weights") if record.get(key)
    }
    annotators = {user: str(Path(path).relative_to(out)) for user, path in annotator_maps_of(record).items()}
    return with_annotators({**record, **own}, annotators)
