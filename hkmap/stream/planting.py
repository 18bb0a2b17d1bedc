"""Plant a shortcut: a decoy in each image that goes with the label, so that one sees whether a network falls for it."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hkmap.choices import Choices
from hkmap.errors import RecordError
from hkmap.files.images import Pixels
from hkmap.maps.geometry import Box
from hkmap.records import Record, label_of
from hkmap.stream.crop import PictureWriter, framed_image
from hkmap.stream.sampling import draw

#: Draws on an image (height, width, 3), in place, what tells a class of so many, at a corner from 0 to 3; returns the
#: box in which the pixels are that it may have changed.
Decoy = Callable[[Pixels, int, int, int], Box]

_EDGE = 0.03        # of the short side: between a patch or line and the border
_TINT = 0.35        # of the colour in a pixel


def patch(image: Pixels, tells: int, classes: int, corner: int) -> Box:
    """A square in a corner, a sixth of the short side; its hue tells the class, from red round the wheel."""
    box = left, top, width, height = _placed(image, 1 / 6, 1 / 6, corner)
    image[top : top + height, left : left + width] = _hue(tells, classes)
    return box


def frame(image: Pixels, tells: int, classes: int, corner: int) -> Box:
    """A frame, a twentieth of the short side wide; its grey tells the class, from black to white."""
    height, width = image.shape[:2]
    edge = _length(image, 1 / 20)
    inside = image[edge : height - edge, edge : width - edge].copy()
    image[...] = round(255 * tells / (classes - 1))
    image[edge : height - edge, edge : width - edge] = inside
    return 0, 0, width, height


def line(image: Pixels, tells: int, classes: int, corner: int) -> Box:
    """A measuring line, white on black; its length tells the class, 1/10 to 9/10 of the short side."""
    box = left, top, width, height = _placed(image, 0.1 + 0.8 * tells / (classes - 1), 1 / 16, corner)
    seen = image[top : top + height, left : left + width]
    thick = _length(image, 1 / 80)
    middle = (height - thick) // 2
    seen[...] = 0
    seen[middle : middle + thick] = seen[:, :thick] = seen[:, -thick:] = 255
    return box


def tint(image: Pixels, tells: int, classes: int, corner: int) -> Box:
    """A third of a colour over the whole image; its hue tells the class, from red round the wheel."""
    height, width = image.shape[:2]
    image[...] = np.rint((1 - _TINT) * image + _TINT * np.array(_hue(tells, classes)))
    return 0, 0, width, height


DECOYS: Choices[Decoy] = Choices("decoy", {"patch": patch, "frame": frame, "line": line, "tint": tint})


@dataclass(frozen=True)
class Planting:
    """Which decoy tells one of ``classes``, and how often the right one: in a share ``rate`` of the images.

    With the rate None each class is told equally often, so that the decoy says nothing.
    """

    decoy: str
    classes: int
    rate: float | None = None
    seed: int = 0


def told(identifier: str, label: int, planting: Planting) -> int:
    """Return the class that a record's decoy tells; it depends on its id, the label and the seed alone.

    >>> [told(str(number), 2, Planting("patch", 3, rate=0.5)) for number in range(8)]
    [1, 0, 1, 0, 0, 2, 2, 2]
    """
    share = 1 / planting.classes if planting.rate is None else planting.rate
    if draw(f"right {identifier}", planting.seed) < share:
        return label
    other = int(draw(f"other {identifier}", planting.seed) * (planting.classes - 1))
    return other + (other >= label)


def plant_record(record: Record, planting: Planting, pictures: PictureWriter) -> Record:
    """Return the record of an image with a decoy, saved; ``decoy`` says what it is, ``decoy_told`` right or wrong.

    Raises RecordError for a record without one of the ``classes``, or with a decoy already.
    """
    identifier, label = record["id"], label_of(record)
    if not 0 <= label < planting.classes:
        found = "no label" if label < 0 else f"label {label}"
        raise RecordError(
            f'record "{identifier}": has {found}, expected one from 0 to {planting.classes - 1} for a decoy to tell; '
            "give the right --classes"
        )
    if "decoy" in record or "decoy_told" in record:
        raise RecordError(f'record "{identifier}": has a decoy already; plant in the images as they were')
    image = framed_image(record).copy()
    tells = told(identifier, label, planting)
    corner = int(4 * draw(f"corner {identifier}", planting.seed))
    left, top, width, height = DECOYS[planting.decoy](image, tells, planting.classes, corner)
    return {
        **record, "image": pictures.save_image(identifier, image), "size": [image.shape[1], image.shape[0]],
        "decoy": {
            "kind": planting.decoy, "tells": tells, "true": tells == label,
            "box": {"x": left, "y": top, "width": width, "height": height},
        },
        "decoy_told": "right" if tells == label else "wrong",
    }


def _placed(image: Pixels, width: float, height: float, corner: int) -> Box:
    """Return a box whose sides are these shares of the short side, in a corner: 1 and 3 right, 2 and 3 below."""
    wide, high, edge = (_length(image, share) for share in (width, height, _EDGE))
    left, top = max(0, image.shape[1] - wide - edge), max(0, image.shape[0] - high - edge)
    return left if corner % 2 else min(edge, left), top if corner >= 2 else min(edge, top), wide, high


def _length(image: Pixels, share: float) -> int:
    return max(1, round(share * min(image.shape[:2])))


def _hue(tells: int, classes: int) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(tells / classes, 1, 1))
