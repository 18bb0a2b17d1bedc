"""Which image a mask belongs to, by the names of both: by a pattern that someone gave, or by the usual endings.

No file is opened here. An image is meant by its id: the path below the root without suffix, in composed characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import NamedTuple

from hkmap.errors import SourceError
from hkmap.sources.images import nfc
from hkmap.sources.matching import stem_of

MOST_STARS = 2      # in a name: each one more multiplies the ways to read it by its length

_WORD = r"(?i:masks?|seg|segm|segmentations?|gt|ground[ _-]?truth|labels?|annotations?|manual)"
_NUMBER = r"(?:[ _.-]?\(?\d+\)?)?"
_IMAGE = r"(?i:training|train|test|images?|img|sat|orig|original)"
_WORDY_IMAGE = re.compile(rf"(.+)[ _.-]{_IMAGE}|{_IMAGE}[ _.-](.+)")


class Place(NamedTuple):
    """What the path of a mask says: its folders but for those of the pattern, its image's stem, its lesion."""

    folders: tuple[str, ...]
    stem: str
    lesion: str | None


@dataclass(frozen=True)
class MaskNames:
    """How masks are named: regular expressions for the path without suffix, "{stem}" in them for the image's stem."""

    expressions: tuple[str, ...]
    suffix: str = ""        # the only one, in lower case; "" is any
    folders: int = 0        # how many the expressions have
    up: int = 0             # how many levels above its image's folder those lie
    has_lesion: bool = False

    def places(self, path: str) -> Iterator[Place]:
        """Yield what the path of a mask may say, the longest stem first."""
        *above, name = nfc(path).split("/")
        stem = stem_of(name)
        if self.suffix not in ("", name[len(stem) :].lower()):
            return
        for start in range(len(above) - self.folders + 1) if self.folders else (0,):
            end = start + self.folders
            inner, rest = "/".join([*above[start:end], stem]), (*above[:start], *above[end:])
            for expression in self.expressions:
                for length in range(len(inner), 0, -1) if _compiled(expression).fullmatch(inner) else ():
                    if found := _compiled(expression, length).fullmatch(inner):
                        yield Place(rest, found["stem"], found["lesion"] if self.has_lesion else None)


@cache
def _compiled(expression: str, length: int | None = None) -> re.Pattern[str]:
    """Return the expression for a stem of so many characters, or of any number."""
    count = "+" if length is None else f"{{{length}}}"
    return re.compile(expression.replace("{stem}", f"(?P<stem>[^/]{count})", 1).replace("{stem}", "(?P=stem)"))


#: a name that speaks of masks
TELLING = re.compile(rf"(?:.*[^A-Za-z])?{_WORD}(?:[^A-Za-z].*)?")
#: x_mask, x_mask_1, x-GT, x_seg_mask, mask_x
USUAL = MaskNames((rf"{{stem}}(?:[ _.-]{_WORD}{_NUMBER})+", rf"{_WORD}[ _.-]{{stem}}"))
#: the image's own name, else one of those
SAME_OR_USUAL = MaskNames(("{stem}", *USUAL.expressions))


def mask_names(pattern: str) -> MaskNames:
    """Read a pattern such as "{stem}_{lesion}*.png" or "../masks/{stem}.png"; SourceError where it is none.

    {stem} is the image's name without suffix, {lesion} any name, * any characters, ? a single one, and ".." at the
    beginning the folder above the image's. A pattern without a suffix takes any; capitals in a suffix do not matter.
    """
    parts = nfc(pattern).replace("\\", "/").removeprefix("./").split("/")
    up = next((number for number, part in enumerate(parts) if part != ".."), 0)
    path = "/".join(parts[up:])
    stem = stem_of(path)
    suffix, stem = path[len(stem) :].lower(), stem.removesuffix(".*")
    tokens = re.split(r"({stem}|{lesion}|\*|\?)", stem)
    braces = any("{" in token or "}" in token for token in tokens[::2])
    slow = any(part.count("*") > MOST_STARS for part in parts)
    if "{stem}" not in tokens or braces or slow or not {"", ".", ".."}.isdisjoint(parts[up:]):
        raise SourceError(
            f'mask pattern "{pattern}": expected {{stem}} in it for the name of the image, {{lesion}}, ?, at most '
            f"{MOST_STARS} * in a name, and .. at the beginning only, such as '{{stem}}_mask*.png' or "
            "'../masks/{stem}.png'"
        )
    meanings = {"{stem}": "{stem}", "*": "[^/]*", "?": "[^/]", "{lesion}": "(?P=lesion)"}
    expression = "".join(meanings[token] if number % 2 else re.escape(token) for number, token in enumerate(tokens))
    expression = expression.replace("(?P=lesion)", "(?P<lesion>[^/]+)", 1)
    return MaskNames((expression,), suffix, stem.count("/"), up, "{lesion}" in tokens)


def common_endings(paths: Iterable[str]) -> Iterator[MaskNames]:
    """Yield the names with an ending that all the masks share, the longest ending first.

    >>> [names.expressions for names in common_endings(["a_1_EX.png", "b/b_1_EX.tif"])]
    [('{stem}_1_EX',), ('{stem}_EX',)]
    """
    backwards = [stem_of(nfc(path).rpartition("/")[2])[::-1] for path in paths]
    shared = takewhile(lambda characters: len(set(characters)) == 1, zip(*backwards, strict=False))
    ending = "".join(characters[0] for characters in shared)[::-1]
    for gap in re.finditer(r"[ _.-]+", ending):
        yield MaskNames(("{stem}" + re.escape(ending[gap.start() :]),))


class Owners:
    """The images that masks may belong to."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._by_stem: dict[str, list[str]] = {}
        self._by_part: dict[str, list[str]] = {}        # 21_training under 21, as DRIVE's 21_manual1 has it; image_1
        for identifier in ids:
            self.add(identifier)

    def add(self, identifier: str) -> None:
        """Take an image in."""
        stem = identifier.rpartition("/")[2]
        self._by_stem.setdefault(stem, []).append(identifier)
        if found := _WORDY_IMAGE.fullmatch(stem):
            self._by_part.setdefault(found[1] or found[2], []).append(identifier)

    def beside(self, place: Place, up: int = 0) -> str | None:
        """Return the only image of the stem in the folders of ``place``, or ``up`` levels below; None where none is."""
        found = [one for one in self._named(place.stem) if _folders(one, up) == place.folders]
        return found[0] if len(found) == 1 else None

    def apart(self, place: Place, *, skip: bool) -> list[str]:
        """Return the images that a mask in a folder of masks may belong to.

        One in the same folders; else, for a mask in none, each of the stem; else with ``skip`` each whose folders are
        among the mask's.
        """
        same = self.beside(place)
        if same is not None:
            return [same]
        named = self._named(place.stem)
        return [one for one in named if not place.folders or (skip and _among(_folders(one), place.folders))]

    def _named(self, stem: str) -> list[str]:
        return self._by_stem.get(stem) or self._by_part.get(stem, [])


def _folders(identifier: str, up: int = 0) -> tuple[str, ...] | None:
    folders = identifier.split("/")[:-1]
    return tuple(folders[: len(folders) - up]) if len(folders) >= up else None


def _among(some: tuple[str, ...] | None, folders: tuple[str, ...]) -> bool:
    """Whether some names are among those of folders, in their order."""
    rest = iter(folders)
    return some is not None and all(one in rest for one in some)
