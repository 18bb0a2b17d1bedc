"""WebDataset tars: KEY.jpg, KEY.cls, KEY.json and so on, next to each other, are one sample.

Ours (stream/unpacking.py) hold the image, the label (KEY.cls), the record (KEY.json), the map (KEY.map.npy), its
certainty (KEY.certainty.npy) and the maps of single annotators (KEY.annotator-0.npy, ...; the record has their names).
"""

from __future__ import annotations

import io
import json
import logging
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hkmap.errors import HkmapError, MapError, RecordError, SourceError
from hkmap.files.images import encoded_size
from hkmap.files.maps import PARSING
from hkmap.files.opening import open_file
from hkmap.maps.check import Map, check_map
from hkmap.records import Record, attempt, dump_record, label_of, parse_record, shown
from hkmap.shards.layout import Sample, of_version_2
from hkmap.sources.images import IMAGE_SUFFIXES

logger = logging.getLogger("hkmap")

_IMAGES = frozenset(suffix[1:] for suffix in IMAGE_SUFFIXES)
_OWN = re.compile(r"cls|json|(?:map|certainty|weights|annotator-[0-9]+)\.npy")
MOST_BYTES = 1 << 28      # of one member, and of all members of a sample that are read
_BROKEN = (tarfile.TarError, ValueError, OverflowError, IndexError, KeyError, EOFError, RecursionError)


def read_tars(paths: Iterable[Path]) -> Iterator[Sample | HkmapError]:
    """Yield the samples of tars, ours or another program's; in the place of one that cannot be used, its error.

    A sample is an image, and what there is of a class (a number), JSON (an object), and maps, certainty and annotators'
    maps with our names. Without an id in the JSON the key is the id. A warning counts the members that are not read. A
    sample of another program gets its size. Raises SourceError where a tar itself is damaged.
    """
    others: Counter[str] = Counter()
    empty = True
    for path in paths:
        for group in _groups(path, others):
            empty = False
            yield attempt(_read_sample, group)
    if others:
        counted = ", ".join(f"{suffix} ({count})" for suffix, count in others.most_common(5))
        logger.warning("members that are not read: %s", counted)
    if empty:
        raise SourceError("no sample in the tars; expected files such as 0001.jpg and 0001.cls, as WebDataset has them")


@dataclass
class _Group:
    """The members of one sample by what follows their key."""

    path: Path
    key: str
    parts: dict[str, bytes] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return f'{self.path}: "{shown(self.key)}"'

    def add(self, suffix: str, data: bytes | None) -> None:
        if suffix in self.parts:
            raise SourceError(f"{self.place} has two members {suffix}; write the tar again")
        if data is not None:
            self.parts[suffix] = data
        if sum(map(len, self.parts.values())) > MOST_BYTES:
            raise SourceError(f"{self.place} has more than {MOST_BYTES} bytes; leave some members out")

    def member(self, suffix: str) -> str:
        """Return the name of a member, relative to the folder in which it lies."""
        return f"{self.key.rpartition('/')[2]}.{suffix}"


def _groups(path: Path, others: Counter[str]) -> Iterator[_Group]:
    """Yield the members of each sample, which lie next to each other; SourceError where a key comes back."""
    seen: set[str] = set()
    for key, members in groupby(_named(path, others), itemgetter(0)):
        group = _Group(path, key)
        if key in seen:
            raise SourceError(
                f"{group.place} comes back after other samples; expected its members next to each other, write the tar "
                "again with tar --sort=name"
            )
        seen.add(key)
        for _, suffix, data in members:
            group.add(suffix, data)
        yield group


def _named(path: Path, others: Counter[str]) -> Iterator[tuple[str, str, bytes | None]]:
    """Yield the key, the suffix and the content of each member that has a suffix; count those that are not read."""
    for name, data in _read_members(path):
        key, suffix = _split(name)
        if data is None:
            others[suffix or "without a suffix"] += 1
        if suffix:
            yield key, suffix, data


def _split(name: str) -> tuple[str, str]:
    """Return the key, folders included, and what follows its first dot, in lower case; "" for a hidden file.

    >>> _split("birds/7.Map.npy")
    ('birds/7', 'map.npy')
    """
    folder, slash, base = name.rpartition("/")
    key, _, suffix = base.partition(".")
    return f"{folder}{slash}{key}", suffix.lower() if key else ""


def _is_read(suffix: str) -> bool:
    return suffix in _IMAGES or _OWN.fullmatch(suffix) is not None


def _read_sample(group: _Group) -> Sample:
    images = [suffix for suffix in group.parts if suffix in _IMAGES]
    if len(images) != 1:
        names = " and ".join(group.member(suffix) for suffix in images) or "no image"
        raise RecordError(f"{group.place} has {names}; expected one image, such as {group.member('jpg')}, "
                          "next to its other members (tar --sort=name)")
    stated = _object(group)
    if "weights.npy" in group.parts:      # what the first tars of ours called it
        group.parts["certainty.npy"] = group.parts.pop("weights.npy")
        stated = of_version_2(stated)
    record: Record = {**stated, "id": _identifier(stated, group), "image": group.member(images[0])}
    image = group.parts[images[0]]
    if stated.get("image") != record["image"] and "size" not in stated:
        record["size"] = list(encoded_size(image, f"{group.path}: {record['image']}"))
    record |= _label(stated, group)
    maps = {name: _array(stated, name, group) for name in ("map", "certainty")}
    record |= {name: group.member(f"{name}.npy") for name, values in maps.items() if values is not None}
    annotators = _annotators(stated, group)
    checked = parse_record(dump_record(record), group.place)      # what another program's JSON may hold and ours not
    return Sample(checked, image, maps["map"], maps["certainty"], label_of(checked), annotators)


def _object(group: _Group) -> dict[str, Any]:
    if "json" not in group.parts:
        return {}
    try:
        found = json.loads(group.parts["json"])
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{group.place}: its json cannot be read ({error}); expected one object") from error
    if not isinstance(found, dict):
        raise RecordError(f"{group.place}: its json is {shown(found)}; expected an object")
    return found


def _identifier(stated: dict[str, Any], group: _Group) -> str:
    """The id that the JSON states as a text or a whole number; else the key."""
    found = stated.get("id")
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    return found if isinstance(found, str) and found else group.key


def _label(stated: dict[str, Any], group: _Group) -> dict[str, int]:
    if "cls" not in group.parts:
        return {}
    text = group.parts["cls"].decode(errors="replace").strip()
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise RecordError(f"{group.place}: its cls is {shown(text)!r}; expected a whole number from 0")
    if stated.get("label") not in (None, int(text)):
        raise RecordError(f"{group.place}: its cls is {text}, but its json has the label {shown(stated['label'])}")
    return {"label": int(text)}


def _array(stated: dict[str, Any], name: str, group: _Group) -> Map | None:
    data = group.parts.get(f"{name}.npy")
    if data is not None:
        return _npy_map(data, f"{group.path}: {group.member(f'{name}.npy')}")
    if stated.get(name) is not None:      # a path of another machine, or one that was chosen to be read here
        raise RecordError(f"{group.place}: its json has a {name}, but there is no {group.member(f'{name}.npy')}")
    return None


def _annotators(stated: dict[str, Any], group: _Group) -> dict[str, Map]:
    names = stated.get("annotator_maps") or {}
    if not isinstance(names, dict):
        raise RecordError(f"{group.place}: annotator_maps is {shown(names)}; expected names and members")
    found = {}
    for user, member in names.items():
        suffix = str(member).removeprefix(group.member(""))
        if not _OWN.fullmatch(suffix) or suffix not in group.parts or not suffix.startswith("annotator"):
            raise RecordError(f'{group.place}: there is no {shown(member)}, the map of annotator "{shown(user)}"')
        found[user] = _npy_map(group.parts[suffix], f"{group.path}: {group.member(suffix)}")
    return found


# tars that a stranger wrote: in order, one member at a time, and nothing is unpacked by its own name


def _read_members(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """Yield the name and the content of each file of a plain tar, in order; None for a content that is of no use here.

    Raises SourceError where it is no tar, is damaged or cut short, or holds what a data set does not need: links and
    devices, names that lead out of its own folder, members of more than 256 MiB, sparse files.
    """
    try:
        with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # they would be kept, all of them
                if not member.isdir():
                    name = _checked_name(member, path)
                    yield name, _content(tar, member, path) if _is_read(_split(name)[1]) else None
            _refuse_rest(path, tar.offset)
    except _BROKEN as error:
        why = str(error) or type(error).__name__
        raise SourceError(f"{path}: not a tar that can be read ({why}); copy it again, or decompress it") from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    file = tar.extractfile(member)
    data = b"" if file is None else file.read()
    if len(data) < member.size:
        raise SourceError(f"{path}: cut short in {ascii(member.name)[:80]}; copy it again")
    return data


def _refuse_rest(path: Path, position: int) -> None:
    """Raise SourceError unless the tar's end mark is at ``position``, from where `tarfile` read no further."""
    with open_file(path) as file:
        file.seek(position)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise SourceError(f"{path}: damaged or cut short at byte {position}; copy it again")


def _checked_name(member: tarfile.TarInfo, path: Path) -> str:
    name, told = member.name.removeprefix("./"), ascii(member.name)[:80]
    if not member.isreg() or member.issparse():
        raise SourceError(f"{path}: {told} is a link, a device or a sparse file; expected plain files and folders")
    if name.startswith("/") or ".." in name.split("/"):
        raise SourceError(f"{path}: {told} leads out of the tar's own folder; expected names below it")
    if name.encode(errors="ignore").decode() != name:
        raise SourceError(f"{path}: the name {told} is not UTF-8; rename the file and write the tar again")
    if not 0 <= member.size <= MOST_BYTES:
        raise SourceError(f"{path}: {told} has {member.size} bytes, expected at most {MOST_BYTES}; leave it out")
    return name


def _npy_map(data: bytes, place: str) -> Map:
    try:
        with PARSING:
            values: npt.NDArray[np.generic] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:      # a damaged header fails in ast, tokenize or numpy, each in its own way
        raise MapError(f"{place}: no plain .npy array ({error}); save it with numpy.save, without pickle") from error
    return check_map(values, place)
