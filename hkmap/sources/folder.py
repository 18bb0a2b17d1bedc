"""A folder of images: a folder per class, and masks beside the images or in a folder of their own."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from hkmap.errors import SourceError
from hkmap.files.opening import file_content
from hkmap.records import Record, Rejects, each
from hkmap.sources.images import IMAGE_SUFFIXES, by_name, few, list_folder, path_below, sized
from hkmap.sources.lookalikes import doubtful, lookalike
from hkmap.sources.mask_names import SAME_OR_USUAL, USUAL, MaskNames, Owners, Place, common_endings, mask_names

logger = logging.getLogger("hkmap")

NONE = "none"       # the pattern that takes no file beside an image for a mask


@dataclass
class _Masks:
    """The masks of a kind: by the ids of their images, with what their paths say; and those whose image is absent."""

    found: dict[str, list[tuple[Path, Place]]] = field(default_factory=dict)
    strays: list[Path] = field(default_factory=list)

    def add(self, identifier: str, path: Path, place: Place) -> None:
        others = self.found.setdefault(identifier, [])
        for other, its in others:
            if its.lesion == place.lesion and its.folders != place.folders:
                raise SourceError(
                    f'{path}: a mask of "{identifier}", as {other} is; expected those of an image in one folder, name '
                    "the folder, or {lesion} in its place, in --mask-pattern"
                )
        others.append((path, place))

    def paths(self) -> list[Path]:
        return [path for pairs in self.found.values() for path, _ in pairs] + self.strays

    def references(self, identifier: str) -> dict[str, str]:
        """Return the masks of an image by lesion, "mask" without; the second of a name is "mask#2"."""
        named: dict[str, str] = {}
        for path, place in self.found.get(identifier, ()):
            base = place.lesion or "mask"
            names = (base if number == 1 else f"{base}#{number}" for number in count(1))
            named[next(name for name in names if name not in named)] = str(path)
        return named


def folder_records(
    root: Path, *, masks: Mapping[str, Path] | None = None, pattern: str | None = None, rejects: Rejects
) -> Iterator[Record]:
    """Yield a record for each image below ``root``, its own ones first, then class by class, in natural order.

    The folders directly in ``root`` are the classes, counted from 0; images outside them have no label.
    ``masks`` gives folders by the key of a record, "masks", "unknown" or "dont_look". A mask there has the path of its
    image but for the suffix and a usual ending, such as _mask_1; it may also lie directly in that folder. Without
    "masks", files below ``root`` with such an ending beside an image without it are its masks. ``pattern`` says how
    the masks are named instead (mask_names); "none" says that there are none beside the images.

    Ids are in composed characters (NFC). Raises SourceError where there is no image, nothing fits a folder of masks or
    the pattern, a file may be a mask of two images or looks like one that nothing was said of, and where two images
    would share an id; an image whose mask is a copy of it goes to ``rejects``.
    """
    folders = masks or {}
    for key, folder in folders.items():
        if folder.resolve() == root.resolve():
            raise SourceError(
                f"{folder}: the folder of the images, given for {key} too; expected masks in a folder of their own, or "
                "name those beside the images by --mask-pattern"
            )
    others: list[Path] = []
    files = list(_walk(root, [folder.resolve() for folder in folders.values()], others))
    paths, beside = _separated(root, files, pattern, apart="masks" in folders)
    images = by_name(
        ((path_below(root, path), path) for path in paths),
        "rename one, or say which are masks, such as --mask-pattern '{stem}.png'",
    )
    found = {
        key: _apart(root, images, folder, pattern if key == "masks" and pattern != NONE else None)
        for key, folder in folders.items()
    }
    found.setdefault("masks", beside)

    def masked(record: Record) -> Record:
        record = sized(record)
        for key, kind in found.items():
            if references := kind.references(record["id"]):
                _refuse_copies(Path(record["image"]), references.values())
                record[key] = references
        return record

    yield from each(_records(images), masked, rejects)
    _warn(root, "%d files are no images", others)
    for key, kind in found.items():
        _warn(folders.get(key, root), "%d masks have no image", kind.strays)
    if not images:
        raise SourceError(f"{root}: no image here; expected files with the suffixes {' '.join(sorted(IMAGE_SUFFIXES))}")


def _records(images: Mapping[str, Path]) -> Iterator[Record]:
    classes: dict[str, int] = {}
    for identifier, path in images.items():
        record: Record = {"id": identifier, "image": str(path)}
        if "/" in identifier:
            name = identifier.split("/", 1)[0]
            record |= {"label": classes.setdefault(name, len(classes)), "class": name}
        yield record


def _walk(folder: Path, apart: Collection[Path], others: list[Path], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the images in a folder, then in its inner folders except ``apart``; ``others`` gets the other files."""
    here = folder.resolve()
    if here in above:
        raise SourceError(f"{folder}: a link to a folder above it, so the images never end; remove the link")
    listing = list_folder(folder)
    others += listing.others
    yield from listing.images
    for inner in listing.folders:
        if inner.resolve() not in apart:
            yield from _walk(inner, apart, others, (*above, here))


def _separated(root: Path, files: list[Path], pattern: str | None, *, apart: bool) -> tuple[list[Path], _Masks]:
    """Return the images, and the masks beside them; ``apart``: the masks that are wanted lie elsewhere."""
    if pattern == NONE:
        return files, _Masks()
    said = apart or pattern is not None
    images, masks = files, _Masks()
    if pattern is not None and not apart:
        images, masks = _beside(root, files, mask_names(pattern), given=True)
        if not masks.found or not images:
            names = few((path.name for path in files), 3)
            raise SourceError(
                f'{root}: the mask pattern "{pattern}" takes {"all" if masks.found else "none"} of its {len(files)} '
                f'files ({names}) for masks of others; expected images and their masks, "x" and "{_example(pattern)}"'
            )
    images, usual = _beside(root, images, USUAL)
    sentence = lookalike(root, images)
    if not said and sentence:
        raise SourceError(sentence)
    if not said:
        if doubt := doubtful(usual.paths()):
            logger.warning("%s: of many colours, but taken for a mask by its name; if not, --mask-pattern none", doubt)
        return images, usual
    _warn(root, "left out %d files that are masks by their names, but not those that were asked for", usual.paths())
    if sentence:
        logger.warning("%s", sentence)
    return images, masks


def _beside(root: Path, files: list[Path], names: MaskNames, *, given: bool = False) -> tuple[list[Path], _Masks]:
    """Tell masks from images by their names alone; ``given``: someone said that masks are named so.

    A file is a mask where its name is made of the name of an image that is none. Those that lack their image are no
    images either, if someone said so, if others do have theirs, or with {lesion} if another mask has the same one.
    """
    places = {path: list(names.places(path.relative_to(root).as_posix())) for path in files}
    owners = Owners(path_below(root, path) for path in files if not places[path])
    owned: dict[Path, tuple[str, Place]] = {}
    for path in sorted((path for path in files if places[path]), key=lambda path: len(path_below(root, path))):
        pairs = ((owners.beside(place, names.up), place) for place in places[path])
        pair = next(((owner, place) for owner, place in pairs if owner is not None), None)
        if pair is not None:
            owned[path] = pair
        elif not names.up:          # beyond "..", an image and its mask could change places
            owners.add(path_below(root, path))
    masks, images = _Masks(), []
    lesions = {place.lesion for _, place in owned.values()} | ({None} if given else set())
    for path in files:
        if path in owned:
            masks.add(owned[path][0], path, owned[path][1])
        elif any(place.lesion in lesions for place in places[path]):
            masks.strays.append(path)
        else:
            images.append(path)
    return images, masks


def _apart(root: Path, images: Mapping[str, Path], folder: Path, pattern: str | None) -> _Masks:
    """Find the masks in a folder of their own, at least one."""
    others: list[Path] = []
    files = {path.relative_to(folder).as_posix(): path for path in _walk(folder, [root.resolve()], others)}
    _warn(folder, "%d files are no images", others)
    for names in [SAME_OR_USUAL, *common_endings(files)] if pattern is None else [mask_names(pattern)]:
        if names.up:
            raise SourceError(f'mask pattern "{pattern}": .. leads out of {folder}; expected a path in there')
        masks, unfit = _matched(files, names, Owners(images), skip=pattern is not None)
        if masks.found:
            break
    else:
        first = f" (the first: {next(iter(files))})" if files else ""
        expected = (
            "the same path but for the suffix and an ending such as _mask, or their names by --mask-pattern, such as "
            "'{lesion}/{stem}.png'"
        )
        if pattern is not None:
            expected = f'"{_example(pattern)}" for an image "x"'
        raise SourceError(
            f"{folder}: none of its {len(files)} masks has an image in {root}{first}; expected {expected}"
        )
    _warn(folder, f'%d files do not fit the mask pattern "{pattern}"', unfit)
    by_name((path_below(folder, path), path) for paths in masks.found.values() for path, _ in paths)
    return masks


def _matched(
    files: Mapping[str, Path], names: MaskNames, owners: Owners, *, skip: bool
) -> tuple[_Masks, list[Path]]:
    """Return the masks among the files, by their paths below the folder of masks, and those that fit no name."""
    masks = _Masks()
    unfit: list[Path] = []
    for below, path in files.items():
        places = list(names.places(below))
        pairs = ((owners.apart(place, skip=skip), place) for place in places)
        owner, place = next(((found, place) for found, place in pairs if found), ([], None))
        if len(owner) > 1:
            raise SourceError(
                f"{path}: may be the mask of {len(owner)} images ({few(owner, 3)}); expected the folders of its image"
            )
        if place is not None:
            masks.add(owner[0], path, place)
        else:
            (masks.strays if places else unfit).append(path)
    return masks, unfit


def _example(pattern: str) -> str:
    """Return a name for the mask of an image "x"."""
    return pattern.replace("{stem}", "x").replace("{lesion}", "lesion").replace("*", "")


def _refuse_copies(image: Path, masks: Iterable[str]) -> None:
    for mask in map(Path, masks):
        try:
            copy = mask.stat().st_size == image.stat().st_size and file_content(mask) == file_content(image)
        except OSError as error:
            raise SourceError(f"{mask}: {error.strerror}; expected a mask") from error
        if copy:
            raise SourceError(f"{mask}: the same file as its image {image}, byte for byte; expected a mask of it")


def _warn(folder: Path, what: str, paths: Collection[Path]) -> None:
    if paths:
        names = few(path.relative_to(folder).as_posix() for path in paths)
        logger.warning(f"%s: {what}: %s", folder, len(paths), names)
