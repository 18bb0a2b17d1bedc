"""The Indian Diabetic Retinopathy Image Dataset: lesion masks (A. Segmentation) and grades (B. Disease Grading).

Folders are found however the zip was unpacked: nested twice, or with %20 for a blank.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

from hkmap.errors import SourceError
from hkmap.records import Record, Rejects, each
from hkmap.sources.documents import text_lines
from hkmap.sources.images import few, list_folder, sized
from hkmap.sources.matching import stem_of

logger = logging.getLogger("hkmap")

SEGMENTATION = "A. Segmentation"
GRADING = "B. Disease Grading"
IMAGES = "1. Original Images"
MASKS = "2. All Segmentation Groundtruths"
GRADES = "2. Groundtruths"
SPLITS = {"train": "a. Training Set", "test": "b. Testing Set"}
LESIONS = {
    "MA": "1. Microaneurysms", "HE": "2. Haemorrhages", "EX": "3. Hard Exudates", "SE": "4. Soft Exudates",
    "OD": "5. Optic Disc",
}
HIGHEST_GRADE = 4
HIGHEST_EDEMA = 2

# The paper calls an image diseased that has haemorrhages, hard or soft exudates (arXiv 1905.03540);
# the optic disc is no lesion and microaneurysms are not named.
DISEASED_LESIONS = frozenset({"HE", "EX", "SE"})

# Pictures of the grading part's training set that are also in the segmentation part, under another number
# (grading id: segmentation id). Found by correlating the pixels of the segmentation images 01 to 20 with every
# grading image; correlations 0.998 to 1. The other four of the twenty are not in the grading training set.
ALSO_SEGMENTED = {
    "IDRiD_102": "IDRiD_01", "IDRiD_366": "IDRiD_02", "IDRiD_369": "IDRiD_03", "IDRiD_082": "IDRiD_05",
    "IDRiD_196": "IDRiD_06", "IDRiD_029": "IDRiD_07", "IDRiD_207": "IDRiD_08", "IDRiD_224": "IDRiD_10",
    "IDRiD_231": "IDRiD_13", "IDRiD_232": "IDRiD_14", "IDRiD_236": "IDRiD_15", "IDRiD_237": "IDRiD_16",
    "IDRiD_239": "IDRiD_17", "IDRiD_132": "IDRiD_18", "IDRiD_242": "IDRiD_19", "IDRiD_245": "IDRiD_20",
}
# Byte-identical files inside the grading part's training set, later: earlier.
TWICE = {
    "IDRiD_391": "IDRiD_021", "IDRiD_327": "IDRiD_028", "IDRiD_333": "IDRiD_045", "IDRiD_375": "IDRiD_073",
    "IDRiD_279": "IDRiD_079",
}
# A file of the training set that is byte-identical with one of the grading part's testing set.
ALSO_TESTED = "IDRiD_118"
# What shows the same picture as an image of the grading part's training set.
TWINS = {
    **{grading: f"{segmentation} of the segmentation part" for grading, segmentation in ALSO_SEGMENTED.items()},
    **{later: f"{earlier} of the grading part" for later, earlier in TWICE.items()},
    ALSO_TESTED: "one of the grading part's testing set",
}


def idrid_records(
    root: Path, *, part: str | None = None, split: str = "all", lesions: Collection[str] = DISEASED_LESIONS,
    rejects: Rejects,
) -> Iterator[Record]:
    """Yield the records of one part: "segmentation" (with masks of ``lesions``) or "grading" (with grades 0 to 4).

    None takes the segmentation where it is there. ``split`` is train, test or all. Raises SourceError where the
    folder is not laid out as the release; an image that is missing or unreadable goes to ``rejects``.
    """
    if part is None and not _inside(root, SEGMENTATION) and not _inside(root, GRADING):
        raise SourceError(f'{root}: holds neither "{SEGMENTATION}" nor "{GRADING}"; give the folder of IDRiD')
    if part == "segmentation" or (part is None and _inside(root, SEGMENTATION)):
        records = _with_lesions(_segmentation(root, split), lesions)
    else:
        records = _grading(root, split, rejects, warn_of_twins=True)
    yield from each(records, sized, rejects)


def binary_records(
    root: Path, *, split: str = "all", lesions: Collection[str] = DISEASED_LESIONS, rejects: Rejects
) -> Iterator[Record]:
    """Yield the paper's task: label 1, "diseased", the segmentation part; label 0, "healthy", grade 0.

    A segmentation image without haemorrhages, hard or soft exudates is neither, and pictures known to be in
    the data twice are used once: warnings name what is omitted, and a difference in resolution.
    """
    sizes: list[list[int]] = []
    for record in each(_with_lesions(_diseased(root, split), lesions), sized, rejects):
        sizes.append(record["size"])
        yield record
    for record in each(_healthy(root, split, rejects), sized, rejects):
        if sizes and record["size"] not in sizes:
            logger.warning(
                "the diseased images have %dx%d pixels and the healthy ones %dx%d: a network could tell them apart by "
                "the resolution alone; bring both to one size before you judge its accuracy",
                *sizes[0], *record["size"],
            )
            sizes.clear()       # once is enough
        yield record


def _with_lesions(records: Iterable[Record], lesions: Collection[str]) -> Iterator[Record]:
    """Yield the records with the masks of ``lesions``; warn, at the end, of those that lose all they have."""
    emptied = 0
    for record in records:
        masks = {lesion: path for lesion, path in record["masks"].items() if lesion in lesions}
        emptied += bool(record["masks"] and not masks)
        yield {**record, "masks": masks}
    if emptied:
        logger.warning(
            "%d images have masks, but none of %s, so they count as free of them; --lesion chooses others",
            emptied, ", ".join(sorted(lesions)),
        )


def _diseased(root: Path, split: str) -> Iterator[Record]:
    for record in _segmentation(root, split):
        if not DISEASED_LESIONS.isdisjoint(record["masks"]):
            yield {**record, "id": f"seg-{record['id']}", "label": 1, "class": "diseased"}
            continue
        logger.warning(
            "%s left out: it has none of %s, so it is neither diseased nor healthy",
            record["id"], ", ".join(sorted(DISEASED_LESIONS)),
        )


def _healthy(root: Path, split: str, rejects: Rejects) -> Iterator[Record]:
    for record in _grading(root, split, rejects, warn_of_twins=False):
        identifier = record["id"]
        if record["label"] == 0 and identifier in TWINS:
            logger.warning("grading image %s left out: the same picture as %s", identifier, TWINS[identifier])
        elif record["label"] == 0:
            yield {**record, "id": f"grade-{identifier}", "class": "healthy", "masks": {}}


def _segmentation(root: Path, split: str) -> Iterator[Record]:
    part = _need(root, SEGMENTATION)
    images, masks = _need(part, IMAGES), _need(part, MASKS)
    seen: set[str] = set()
    for name, folder in _split_folders(images, split):
        found = _masks(_need(masks, SPLITS[name]))
        listed = list_folder(folder).by_stem()
        if not listed:
            raise SourceError(f"{folder}: no image here; unpack the segmentation part again")
        stray = [path.name for stem in found.keys() - listed.keys() for path in found[stem].values()]
        if stray:
            logger.warning("%s: masks without an image in %s: %s", masks, folder, few(sorted(stray)))
        for stem, path in listed.items():
            if stem in seen:
                raise SourceError(f"{path}: {stem} is in the training and in the testing set; choose one by --split")
            seen.add(stem)
            lesions = {lesion: str(mask) for lesion, mask in sorted(found.get(stem, {}).items())}
            yield {"id": stem, "image": str(path), "split": name, "masks": lesions}


def _masks(folder: Path) -> dict[str, dict[str, Path]]:
    """Return {image: {lesion: path}}; an image without a lesion has no file of it."""
    masks: dict[str, dict[str, Path]] = {}
    lesions = {lesion: _inside(folder, name) for lesion, name in LESIONS.items()}
    absent = [LESIONS[lesion] for lesion, inner in lesions.items() if inner is None]
    if len(absent) == len(LESIONS):
        raise SourceError(f"{folder}: no folder of masks here; expected {', '.join(LESIONS.values())}")
    if absent:
        logger.warning("%s: no folder %s; every image counts as free of them", folder, " nor ".join(absent))
    for lesion, inner in lesions.items():
        for path in list_folder(inner).by_stem().values() if inner else ():
            match = re.fullmatch(rf"(.+)_{lesion}", path.stem)
            if match is None:
                raise SourceError(f"{path}: expected a name that ends in _{lesion}.tif, as the release writes it")
            masks.setdefault(match[1], {})[lesion] = path
    return masks


def _grading(root: Path, split: str, rejects: Rejects, *, warn_of_twins: bool) -> Iterator[Record]:
    part = _need(root, GRADING)
    images, tables = _need(part, IMAGES), _need(part, GRADES)
    for name, folder in _split_folders(images, split):
        table = _grade_table(tables, name)
        grades = _read_grades(table)
        listed = list_folder(folder).by_stem()
        ungraded = sorted(listed.keys() - grades.keys())
        if ungraded:
            logger.warning(
                "%s: %d images are not in %s and left out: %s", folder, len(ungraded), table.name, few(ungraded)
            )
        if warn_of_twins and name == "train":
            _warn_of_twins(grades)
        absent = few(stem for stem in grades if stem not in listed)
        for stem, values in grades.items():
            if stem not in listed:
                rejects.reject(SourceError(f"{table}: {stem} has no image in {folder} (without one: {absent})"))
                continue
            # The testing set counts from 001 again, so its ids need a word of their own.
            identifier = stem if name == "train" else f"test-{stem}"
            yield {"id": identifier, "image": str(listed[stem]), "split": name, **values}


def _grade_table(folder: Path, split: str) -> Path:
    word = "training" if split == "train" else "testing"
    found = [path for path in list_folder(folder).others if path.suffix.lower() == ".csv" and word in path.name.lower()]
    if len(found) != 1:
        raise SourceError(
            f"{folder}: {len(found)} tables of the {word} labels; expected one .csv with {word.title()} in its name"
        )
    return found[0]


def _read_grades(path: Path) -> dict[str, Record]:
    """Return {image: label, class and, where it is known, edema}."""
    grades: dict[str, Record] = {}
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(text_lines(path, "a table, saved as UTF-8"))]
    except csv.Error as error:
        raise SourceError(f"{path}: not CSV ({error}); expected the table of the release") from error
    header = [name.lower() for name in rows[0]] if rows else []
    for name in ("image name", "retinopathy grade"):
        if name not in header:
            raise SourceError(f'{path}: no column "{name}" in the first line; expected the header of the release')
    for number, row in enumerate(rows[1:], start=2):
        if not any(row):
            continue
        values = dict(zip(header, row, strict=False))
        stem = stem_of(values["image name"])
        if stem in grades:
            raise SourceError(f"{path} line {number}: {stem} comes a second time; expected one line per image")
        grades[stem] = _grade(values, f"{path} line {number}")
    if not grades:
        raise SourceError(f"{path}: no line under the header; expected one line per image")
    return grades


def _grade(values: dict[str, str], place: str) -> Record:
    grade = _level(values.get("retinopathy grade", ""), HIGHEST_GRADE, "Retinopathy grade", place)
    edema = values.get("risk of macular edema")
    known = {"edema": _level(edema, HIGHEST_EDEMA, "Risk of macular edema", place)} if edema else {}
    return {"label": grade, "class": f"grade {grade}", **known}


def _level(text: str, highest: int, column: str, place: str) -> int:
    if text not in {str(level) for level in range(highest + 1)}:
        raise SourceError(f'{place}: {column} is "{text}"; expected a whole number from 0 to {highest}')
    return int(text)


def _warn_of_twins(grades: dict[str, Record]) -> None:
    pairs = [
        f"{earlier} = {later} ({grades[earlier]['class']} and {grades[later]['label']})"
        for later, earlier in TWICE.items() if earlier in grades and later in grades
    ]
    if ALSO_TESTED in grades:
        pairs.append(f"{ALSO_TESTED} = one of the testing set")
    if pairs:
        logger.warning("the same picture twice: %s; keep both on one side of any split", ", ".join(pairs))


def _split_folders(folder: Path, split: str) -> list[tuple[str, Path]]:
    """Return the (split, folder) that are asked for, and at least one."""
    wanted = {name: spelt for name, spelt in SPLITS.items() if split in ("all", name)}
    found = [(name, inner) for name, spelt in wanted.items() if (inner := _inside(folder, spelt))]
    if not found:
        raise SourceError(f'{folder}: no folder "{" or ".join(wanted.values())}"; choose another --split')
    return found


def _need(folder: Path, name: str) -> Path:
    found = _inside(folder, name)
    if found is None:
        raise SourceError(f'{folder}: no folder "{name}" here; expected the release\'s own layout')
    return found


def _inside(folder: Path, name: str) -> Path | None:
    """Return the folder called ``name``: ``folder`` itself, its child, or that child's child of the same name."""
    child = next((path for path in list_folder(folder).folders if _plain(path.name) == _plain(name)), None)
    if child is not None:
        return _inside(child, name)
    return folder if _plain(folder.absolute().name) == _plain(name) else None


def _plain(name: str) -> str:
    return " ".join(unquote(name).replace("_", " ").lower().split())
