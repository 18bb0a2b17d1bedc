"""WebDataset tars: KEY.jpg, KEY.cls, KEY.json and so on, next to each other, are one sample.

Ours have beside the image (KEY.jpg or KEY.png) the label (KEY.cls), the record (KEY.json), the map (KEY.map.npy), its
weights (KEY.weights.npy) and the maps of single annotators (KEY.annotator-0.npy, ...; the record says whose). KEY is
the id, quoted as in a URL, dots too, since the first dot ends the key.
"""

from __future__ import annotations

import io
import json
import logging
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hkmap.errors import HkmapError, OutputError, RecordError, SourceError
from hkmap.maps.check import Map
from hkmap.records import Record, attempt, dump_record, label_of, parse_record, shown
from hkmap.storage.atomic import refuse_existing, replacing
from hkmap.storage.images import encoded_size, image_suffix
from hkmap.storage.layout import Sample
from hkmap.storage.mapfiles import npy_bytes, npy_map
from hkmap.storage.samples import given_weight, labelled_record
from hkmap.storage.series import numbered, series_of
from hkmap.storage.tarfiles import MOST_BYTES, Member, read_members

logger = logging.getLogger("hkmap")

_IMAGES = frozenset({"bmp", "gif", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp"})
_OWN = re.compile(r"cls|json|(?:map|weights|annotator-[0-9]+)\.npy")
_MOST_MEMBERS = 1000      # of one sample


def write_tars(samples: Iterable[Sample], out: Path, *, shard_size: int | None, overwrite: bool) -> dict[str, Any]:
    """Write samples into one tar or, with ``shard_size``, a series of so many samples each; return what was written.

    The bytes depend on the samples alone: no times, no owners. All tars get their names when the last one is whole.
    Raises OutputError where one is in the way, and where two samples have one id.
    """
    if out.suffix != ".tar":
        raise OutputError(f"{out}: the name of a tar ends in .tar; call it {out.stem}.tar")
    former = series_of(out) if shard_size else [out]
    for path in former:
        refuse_existing(path, overwrite=overwrite)
    iterator, seen = iter(samples), set[str]()
    written: list[dict[str, Any]] = []
    with ExitStack() as stack:
        for first in iterator:
            path = numbered(out, len(written)) if shard_size else out
            beside = stack.enter_context(replacing(path, overwrite=overwrite, durable=True))
            chunk = chain([first], islice(iterator, shard_size - 1) if shard_size else iterator)
            written.append({"path": str(path), "records": _write_tar(beside, chunk, seen)})
    if not written:
        raise RecordError("no record in the shards; nothing was written")
    for path in {*former} - {Path(tar["path"]) for tar in written}:
        logger.warning("%s: removed, as it belonged to the tars that were replaced", path)
        path.unlink()
    return {"tars": written, "records": len(seen)}


def read_tars(paths: Iterable[Path]) -> Iterator[Sample | HkmapError]:
    """Yield the samples of tars, ours or another program's; in the place of one that cannot be used, its error.

    A sample is an image, and what there is of a class (a number), JSON (an object), and maps, weights and annotators'
    maps with our names. Without an id in the JSON it is the key. What is of no use here is counted in a warning. A
    sample of another program gets its size. Raises SourceError where a tar itself is at fault.
    """
    others: Counter[str] = Counter()
    empty = True
    for path in paths:
        for group in _groups(path, others):
            empty = False
            yield attempt(_read_sample, group)
    if others:
        told = ", ".join(f"{suffix} ({count})" for suffix, count in others.most_common(5))
        logger.warning("members that are not read: %s", told)
    if empty:
        raise SourceError("no sample in the tars; expected files such as 0001.jpg and 0001.cls, as WebDataset has them")


@dataclass
class _Group:
    """The members of one sample by what follows their key."""

    path: Path
    key: str
    parts: dict[str, bytes] = field(default_factory=dict)
    members: int = 0

    @property
    def place(self) -> str:
        return f'{self.path}: "{shown(self.key)}"'

    def add(self, suffix: str, member: Member) -> None:
        if suffix in self.parts:
            raise SourceError(f"{self.place} has two members {suffix}; write the tar again")
        self.members += 1
        if member.data is not None:
            self.parts[suffix] = member.data
        if self.members > _MOST_MEMBERS or sum(map(len, self.parts.values())) > MOST_BYTES:
            raise SourceError(f"{self.place} has too many members, or more than {MOST_BYTES} bytes; leave some out")

    def member(self, suffix: str) -> str:
        """Return the name of a member, relative to the folder in which it lies."""
        return f"{self.key.rpartition('/')[2]}.{suffix}"


def _write_tar(path: Path, samples: Iterable[Sample], seen: set[str]) -> int:
    count = 0
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for sample in samples:
            identifier = sample.record["id"]
            if identifier in seen:
                raise OutputError(f'record "{identifier}": is in two of the shards; write them to a tar each')
            seen.add(identifier)
            for name, data in _members(sample):
                member = tarfile.TarInfo(name)      # its time, user and group are 0
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            tar.members.clear()  # type: ignore[attr-defined]
            count += 1
    return count


def _members(sample: Sample) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file of a sample."""
    key = quote(sample.record["id"], safe="").replace(".", "%2E")
    image = sample.image_file()
    record = {**labelled_record(sample), "image": f"{key}.{image_suffix(image)}"}
    maps = {"map": sample.map, "weights": given_weight(sample)}
    given: dict[str, Map] = {name: values for name, values in maps.items() if values is not None}
    record |= {name: f"{key}.{name}.npy" for name in given}
    names = {user: f"{key}.annotator-{number}.npy" for number, user in enumerate(sample.annotators)}
    if names:
        record["annotator_maps"] = names
    yield record["image"], image
    if sample.label >= 0:
        yield f"{key}.cls", str(sample.label).encode()
    yield f"{key}.json", dump_record(record)
    for name, values in given.items():
        yield record[name], npy_bytes(values)
    for user, values in sample.annotators.items():
        yield names[user], npy_bytes(values)


def _groups(path: Path, others: Counter[str]) -> Iterator[_Group]:
    """Yield the members of each sample, which lie next to each other."""
    group: _Group | None = None
    for member in read_members(path, lambda name: _is_read(_split(name)[1])):
        key, suffix = _split(member.name)
        if not _is_read(suffix):
            others[suffix or "without a suffix"] += 1
        if not suffix:
            continue
        if group is None or group.key != key:
            if group is not None:
                yield group
            group = _Group(path, key)
        group.add(suffix, member)
    if group is not None:
        yield group


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
        told = " and ".join(group.member(suffix) for suffix in images) or "no image"
        raise RecordError(f"{group.place} has {told}; expected one image beside it, such as {group.member('jpg')}")
    stated = _object(group)
    record: Record = {**stated, "id": _identifier(stated, group), "image": group.member(images[0])}
    image = group.parts[images[0]]
    if stated.get("image") != record["image"] and "size" not in stated:
        record["size"] = list(encoded_size(image, f"{group.path}: {record['image']}"))
    record |= _label(stated, group)
    maps = {name: _array(stated, name, group) for name in ("map", "weights")}
    record |= {name: group.member(f"{name}.npy") for name, values in maps.items() if values is not None}
    annotators = _annotators(stated, group)
    checked = parse_record(dump_record(record), group.place)      # what another program's JSON may hold and ours not
    return Sample(checked, image, maps["map"], maps["weights"], label_of(checked), annotators)


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
        raise RecordError(f"{group.place}: its cls is {text}, but its json says label {shown(stated['label'])}")
    return {"label": int(text)}


def _array(stated: dict[str, Any], name: str, group: _Group) -> Map | None:
    data = group.parts.get(f"{name}.npy")
    if data is not None:
        return npy_map(data, f"{group.path}: {group.member(f'{name}.npy')}")
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
        found[user] = npy_map(group.parts[suffix], f"{group.path}: {group.member(suffix)}")
    return found
