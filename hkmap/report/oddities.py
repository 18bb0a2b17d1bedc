"""What is odd about a stream of records: each kind of oddity has a name and a count of records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from hkmap.choices import Choices
from hkmap.errors import HkmapError, RecordError
from hkmap.files.images import Pixels
from hkmap.files.masks import read_fitting_mask, read_referred_mask
from hkmap.records import Record, boxes_of, bubbles_of, frame_of, label_of, masks_of, polygons_of, reference_of
from hkmap.stream.references import is_scaled, load_annotators, load_certainty, load_map, read_image

Frame = tuple[int, int]
Place = tuple[float, float]
Odd = dict[str, str]       # of one record: an example in words per name of an oddity

OUTSIDE = 1.0       # pixels: data sets that count from 1, or round up, exceed the edge by less
FLAT = 0.01         # of the map's maximum
IMBALANCE = 10      # the most frequent label over the rarest


class Oddity(NamedTuple):
    """What is odd about a record. With ``of_two`` an example names two records, and the report gives all of them."""

    title: str
    of_two: bool = False


#: In the order of a report.
ODDITIES = Choices("finding", {
    "bad-record": Oddity("a key does not hold what it should"),
    "no-annotation": Oddity("neither an annotation nor a map"),
    "empty-annotation": Oddity("annotated, but nothing is marked: an empty list, black masks"),
    "empty-box": Oddity("a box without area: its width or height is 0"),
    "off-image": Oddity(f"a bubble's or point's centre or a shape's corner is over {OUTSIDE:g} pixel off the frame"),
    "size-mismatch": Oddity("the record's size differs from its image's, as displayed"),
    "bad-image": Oddity("the image is missing or does not decode"),
    "bad-mask": Oddity("a mask is missing, does not decode, or differs in size from its image"),
    "bad-map": Oddity("a map or certainty is missing or invalid, or the two differ in size"),
    "empty-map": Oddity("the map is 0 everywhere"),
    "flat-map": Oddity(f"the map is above 0 and its values differ by at most {FLAT:.0%} of its maximum"),
    "empty-certainty": Oddity("the map's certainty is 0 everywhere, so the map does not count"),
    "duplicate-id": Oddity("an earlier record has the same id"),
    "duplicate-image": Oddity("an earlier image has the same pixels", of_two=True),
    "duplicate-other-label": Oddity("an earlier image has the same pixels and another label", of_two=True),
    "split-leak": Oddity("an earlier image has the same pixels and is in another split", of_two=True),
    "label-missing": Oddity("no label, while other records have one"),
    "label-without-class": Oddity("a label without a class name"),
    "label-two-classes": Oddity("an earlier record has the same label and another class"),
    "class-two-labels": Oddity("an earlier record has the same class and another label"),
    "label-imbalance": Oddity(f"the rarest label; the most frequent has over {IMBALANCE} times as many records"),
})


@dataclass
class Sightings:
    """The records of one oddity: their number, and ids and examples of the first ``limit``."""

    limit: int
    count: int = 0
    ids: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    def add(self, identifier: str, example: str = "") -> None:
        """Count one more record."""
        self.count += 1
        if len(self.ids) < self.limit:
            self.ids.append(identifier)
            self.examples.append(example)


class Findings:
    """Collects what is odd, record by record; of an image only a hash is kept.

    ``limit`` is how many ids each finding lists.
    """

    def __init__(self, *, limit: int = 5) -> None:
        self.records = 0
        self._limit = limit
        self._found = {name: Sightings(limit) for name in ODDITIES}
        self._ids: set[str] = set()
        self._images: dict[bytes, tuple[str, int, object]] = {}     # id, label and split of the first with these pixels
        self._labels: dict[int, Sightings] = {}     # -1 are the records without a label
        self._class_of: dict[int, str] = {}
        self._label_of: dict[str, int] = {}

    def add(self, record: Record) -> None:
        """Look at one record, its image, masks and map. What is wrong with them is counted and raises no error."""
        odd: Odd = {}
        image = _image(record, odd)
        _check_annotations(record, _frame(record, image, odd), odd)
        _check_map(record, odd)
        with _noting(odd, "bad-record"):
            label = label_of(record)
            self._check_names(record, label, odd)
            self._check_image(record, label, image, odd)
        if record["id"] in self._ids:
            odd["duplicate-id"] = ""
        self._ids.add(record["id"])
        self.records += 1
        for name, example in odd.items():
            self._found[name].add(record["id"], example)

    def report(self, ignored: Collection[str] = ()) -> list[dict[str, Any]]:
        """Return the findings except ``ignored``: objects with name, count (of records), ids and a sentence."""
        found = self._found | self._of_labels()
        return [
            {"name": name, "count": seen.count, "ids": seen.ids, "sentence": self._sentence(name, seen)}
            for name, seen in found.items()
            if seen.count and name not in ignored
        ]

    def _sentence(self, name: str, seen: Sightings) -> str:
        told = seen.examples if ODDITIES[name].of_two else seen.examples[:1]
        such = "; such as " + "; ".join(told) if told[0] else ""
        sentence = f"{seen.count} of {self.records} records: {ODDITIES[name].title}{such}"
        return sentence.encode(errors="backslashreplace").decode()      # JSON can hold half a surrogate pair

    def _check_names(self, record: Record, label: int, odd: Odd) -> None:
        """Compare the label and the class with those of earlier records."""
        self._labels.setdefault(label, Sightings(self._limit)).add(record["id"])
        name = record.get("class")
        if label < 0:
            return
        if not isinstance(name, str) or not name:
            odd["label-without-class"] = f"label {label}"
            return
        if self._class_of.setdefault(label, name) != name:
            odd["label-two-classes"] = f'label {label} is "{self._class_of[label]}" and "{name}"'
        if self._label_of.setdefault(name, label) != label:
            odd["class-two-labels"] = f'"{name}" is label {self._label_of[name]} and label {label}'

    def _check_image(self, record: Record, label: int, image: Pixels | None, odd: Odd) -> None:
        """Compare the pixels with those of earlier images, by a hash of 16 bytes."""
        if image is None:
            return
        digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(image).data)
        split = record.get("split")
        own = record["id"], label, split
        first = self._images.setdefault(digest.digest(), own)
        if first is own:
            return
        first_id, first_label, first_split = first
        pair = f'"{record["id"]}" and "{first_id}"'
        if min(label, first_label) >= 0 and label != first_label:
            odd["duplicate-other-label"] = f"{pair} (labels {label} and {first_label})"
        else:
            odd["duplicate-image"] = pair
        if split and first_split and split != first_split:
            odd["split-leak"] = f"{pair} (in {split} and {first_split})"

    def _of_labels(self) -> dict[str, Sightings]:
        """Return the oddities that only the whole stream shows."""
        labels = {label: seen for label, seen in self._labels.items() if label >= 0}
        if not labels:
            return {}
        found = {"label-missing": self._labels.get(-1, Sightings(self._limit))}
        rare, frequent = (choose(labels, key=lambda label: labels[label].count) for choose in (min, max))
        if labels[frequent].count > IMBALANCE * labels[rare].count:
            example = f"label {rare} with {labels[rare].count} beside label {frequent} with {labels[frequent].count}"
            found["label-imbalance"] = Sightings(self._limit, labels[rare].count, labels[rare].ids, [example])
        return found


@contextmanager
def _noting(odd: Odd, name: str) -> Iterator[None]:
    """Note an error under ``name``, or as "bad-record" if the record itself is at fault."""
    try:
        yield
    except RecordError as error:
        odd.setdefault("bad-record", str(error))
    except HkmapError as error:
        odd.setdefault(name, str(error))


def _image(record: Record, odd: Odd) -> Pixels | None:
    with _noting(odd, "bad-image"):
        reference = reference_of(record, "image")
        if reference is not None:
            return read_image(reference)
        odd["bad-image"] = f'record "{record["id"]}": has no image'
    return None


def _frame(record: Record, image: Pixels | None, odd: Odd) -> Frame | None:
    """Return (width, height) of the record's coordinates: its size, else its image's; None if neither is known."""
    own = frame = None if image is None else (image.shape[1], image.shape[0])
    with _noting(odd, "bad-record"):
        if record.get("size") is not None:
            frame = frame_of(record)
        if own and frame and own != frame and not is_scaled(record["image"]):
            sizes = "{}x{}, its image {}x{} pixels".format(*frame, *own)
            odd["size-mismatch"] = f'record "{record["id"]}" says {sizes}'
    return frame


def _check_annotations(record: Record, frame: Frame | None, odd: Odd) -> None:
    marks: list[bool] = []
    with _noting(odd, "bad-record"):
        for key, places in _places(record).items():
            marks.append(bool(places))
            outside = [place for place in places if frame and _is_outside(place, frame)]
            if frame and outside:
                where = "({:g}, {:g}) in {}x{}".format(*outside[0], *frame)
                odd.setdefault("off-image", f'record "{record["id"]}", {key}: {where} pixels')
        empty = [box for box in boxes_of(record) if not (box[2] and box[3])] if record.get("boxes") is not None else []
        if empty:
            odd["empty-box"] = f'record "{record["id"]}": ' + "{2:g}x{3:g} pixels at ({0:g}, {1:g})".format(*empty[0])
        for key in ("masks", "unknown", "dont_look"):
            if record.get(key) is not None:
                marked = _is_marked(record, key, frame, odd)
                marks += [marked] if key == "masks" else []
        if not marks and record.get("map") is None:
            odd["no-annotation"] = ""
        if marks and not any(marks):
            odd["empty-annotation"] = ""


def _places(record: Record) -> dict[str, list[Place]]:
    """Return the points that should lie inside the frame, centres and corners (x, y), per key."""
    read: dict[str, Callable[[], list[Place]]] = {
        "bubbles": lambda: [(bubble.x, bubble.y) for bubble in bubbles_of(record, "bubbles")],
        "points": lambda: [(point.x, point.y) for point in bubbles_of(record, "points")],
        "boxes": lambda: [
            corner for left, top, width, height in boxes_of(record)
            for corner in ((left, top), (left + width, top + height))
        ],
        "polygons": lambda: [corner for polygon in polygons_of(record) for corner in polygon],
    }
    return {key: places() for key, places in read.items() if record.get(key) is not None}


def _is_outside(place: Place, frame: Frame) -> bool:
    return any(not -OUTSIDE <= value <= side + OUTSIDE for value, side in zip(place, frame, strict=True))


def _is_marked(record: Record, key: str, frame: Frame | None, odd: Odd) -> bool:
    """Read all masks under ``key``; return whether any marks anything. One that cannot be read counts as if it did."""
    marked = False
    for reference in masks_of(record, key).values():
        own = True
        with _noting(odd, "bad-mask"):
            mask = read_referred_mask(reference) if frame is None else read_fitting_mask(reference, frame)
            own = bool(mask.any())
        marked = marked or own
    return marked


def _check_map(record: Record, odd: Odd) -> None:
    """Load the map, its certainty and the maps of single annotators."""
    shape = None
    with _noting(odd, "bad-map"):
        if reference := reference_of(record, "map"):
            values = load_map(reference)
            shape = values.shape
            low, high = float(values.min()), float(values.max())
            if high == 0:
                odd["empty-map"] = reference
            elif high - low <= FLAT * high:
                odd["flat-map"] = f"{reference}, from {low:.3g} to {high:.3g}"
    with _noting(odd, "bad-map"):
        if reference := reference_of(record, "certainty"):
            certainty = load_certainty(reference)
            if not certainty.any():
                odd["empty-certainty"] = reference
            if shape and certainty.shape != shape:
                sizes = "{}x{} cells for a map of {}x{}".format(*certainty.shape[::-1], *shape[::-1])
                odd.setdefault("bad-map", f"{reference}: certainty of {sizes}")
    with _noting(odd, "bad-map"):
        load_annotators(record)
