"""Every format of annotations: one table of ours, and what other distributions add to it.

A distribution adds a format by an entry point of the group ``hkmap.sources`` whose value is a Format:

    [project.entry-points."hkmap.sources"]
    mine = "my_package.annotations:FORMAT"

Its name is the entry point's. It is asked whether it knows a file when none of ours does, or named by --format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hkmap.choices import Choices
from hkmap.errors import ChoiceError, SourceError
from hkmap.files.opening import open_file
from hkmap.records import Record, Rejects
from hkmap.sources.coco import coco_records, is_coco, like_coco
from hkmap.sources.cvat import cvat_records, is_cvat
from hkmap.sources.documents import head, read_json
from hkmap.sources.gaze import gaze_records, is_gaze, like_gaze
from hkmap.sources.images import few
from hkmap.sources.label_studio import is_label_studio, label_studio_records
from hkmap.sources.labelme import is_labelme, labelme_records, like_labelme
from hkmap.sources.salicon import is_salicon, salicon_records
from hkmap.sources.tables import Table, is_table, like_table, table_records
from hkmap.sources.trimaps import is_trimaps, trimap_records
from hkmap.sources.via import is_via, via_records
from hkmap.sources.voc import is_voc, like_voc, voc_records
from hkmap.sources.yolo import is_yolo, like_yolo, yolo_records


@dataclass(frozen=True)
class Format:
    """A format of annotations.

    ``recognise`` decides by its content whether a file or folder is of the format, and raises nothing. ``read`` yields
    a record for each image: ``image`` as the file calls it, with or without folders and suffix, ``names`` if it may be
    called something else too, an ``id`` for messages, ``size`` [width, height] where the file states it (it is compared
    with the image's), or ``frame`` [width, height] where the coordinates count in another (they are scaled), and the
    annotations. What cannot be read it raises as a SourceError, or hands to ``rejects`` where the rest can still be
    read. ``resembles`` decides more generously: what no format recognises is read as the first that it resembles, so
    that its reader says what is wrong.
    """

    name: str
    title: str
    recognise: Callable[[Path], bool]
    read: Callable[[Path, Rejects], Iterator[Record]]
    resembles: Callable[[Path], bool] | None = None


OURS = (
    Format("coco", "COCO instances (JSON)", is_coco, coco_records, like_coco),
    Format("voc", "Pascal VOC (XML)", is_voc, voc_records, like_voc),
    Format("labelme", "labelme (JSON)", is_labelme, labelme_records, like_labelme),
    Format("via", "VGG image annotator (JSON, CSV)", is_via, via_records),
    Format("cvat", "CVAT for images 1.1 (XML)", is_cvat, cvat_records),
    Format("label-studio", "Label Studio (JSON)", is_label_studio, label_studio_records),
    Format("yolo", "YOLO boxes (one text file per image)", is_yolo, yolo_records, like_yolo),
    Format("trimaps", "Oxford trimaps (PNG)", is_trimaps, trimap_records),
    Format("salicon", "SALICON fixations (JSON)", is_salicon, salicon_records),
    Format("gaze", "CUB-GHA gaze (text)", is_gaze, gaze_records, like_gaze),
    Format(
        "table", "points, boxes or bubbles (CSV, JSON Lines)", is_table,
        lambda path, rejects: table_records(Table(path), rejects), like_table,
    ),
)

FORMATS: Choices[Format] = Choices("format", {one.name: one for one in OURS}, group="hkmap.sources", kind=Format)


def recognised(path: Path) -> Format:
    """Return the format of what is at ``path``, by its content, or else the one that it resembles.

    Raises SourceError where no format knows it, or more than one.
    """
    problems: list[str] = []
    if not path.is_dir():
        open_file(path).close()         # what is no file has its sentence
    found = [known for known in OURS if known.recognise(path)]
    found = found or [other for other in _others(problems) if other.recognise(path)]
    found = found or [known for known in OURS if known.resembles and known.resembles(path)][:1]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(known.name for known in found)
        raise SourceError(f"{path}: looks like {names}; choose one by --format")
    if path.suffix.lower() == ".json" and path.is_file():
        read_json(path)       # raises where it is damaged, which is the better message
    tried = ", ".join(f"{known.name} ({known.title})" for known in OURS)
    unknown = f"{path}: in no known format ({_content(path)}), tried {tried}"
    raise SourceError("; ".join([unknown, *problems, "name one by --format"]))


def _content(path: Path) -> str:
    """Say in a few words what is at a path that no format knows."""
    if path.is_dir():
        suffixes = sorted({file.suffix.lower() or "none" for file in path.rglob("*") if file.is_file()})
        return f"a folder of files with the endings {few(suffixes)}" if suffixes else "an empty folder"
    text = head(path).strip()
    if not path.stat().st_size:
        return "an empty file"
    return f'a text that begins with "{text.splitlines()[0][:40]}"' if text else "no text"


def _others(problems: list[str]) -> Iterator[Format]:
    """Yield the formats of other distributions; ``problems`` gets what is wrong with those that cannot be loaded."""
    for name in list(FORMATS)[len(OURS) :]:
        try:
            yield FORMATS[name]
        except ChoiceError as error:
            problems.append(str(error))
