"""Cut a box out of an image, with its maps, masks and annotations, as a record of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hkmap.errors import ImageError, OutputError, RecordError
from hkmap.files.atomic import replacing
from hkmap.files.headers import MAX_PIXELS
from hkmap.files.images import Mask, Pixels
from hkmap.files.maps import MapWriter
from hkmap.files.masks import read_fitting_mask
from hkmap.files.references import file_name
from hkmap.maps.certainty import Weighted
from hkmap.maps.check import Map
from hkmap.maps.geometry import PADDING, Box, View, box_view, cut_image, move_annotations, reaches_out, view_map
from hkmap.records import Record, masks_of, reference_of, with_annotators
from hkmap.stream.references import (
    frame_beside,
    is_scaled,
    load_annotators,
    load_certainty_of,
    load_map,
    read_image,
)

Chooser = Callable[[tuple[int, int]], Box]      # an image's (height, width) → the box of it that is seen

JPEG_SIDE = 65_500      # OpenCV's limit
MASKS = ("masks", "unknown", "dont_look")


class PictureWriter:
    """Writes images to OUT/images and masks to OUT/masks, OUT/unknown and OUT/dont_look; an id may come once.

    Images are PNG files, or JPEG files of a ``quality`` from 1 to 100; masks are PNG files of 0 and 255.
    """

    def __init__(self, out: Path, *, quality: int | None = None, overwrite: bool = False) -> None:
        self._out = out
        self._quality = quality
        self._overwrite = overwrite
        self._seen: set[str] = set()

    def save_image(self, identifier: str, image: Pixels) -> str:
        """Write an image (height, width, 3), grey where no pixel has a colour, and return its path."""
        if identifier in self._seen:
            raise OutputError(f'record "{identifier}": comes twice, and {self._out} holds one image per id; '
                              "make the ids unique")
        self._seen.add(identifier)
        grey = (image == image[:, :, :1]).all()
        pixels = image[:, :, 0] if grey else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        flags = [] if self._quality is None else [cv2.IMWRITE_JPEG_QUALITY, self._quality]
        suffix = "png" if self._quality is None else "jpg"
        return self._save(self._out / "images" / f"{file_name(identifier)}.{suffix}", pixels, flags)

    def save_mask(self, key: str, identifier: str, name: str, mask: Mask) -> str:
        """Write a mask of the record's ``key`` and return its path, OUT/KEY/ID@NAME.png."""
        path = self._out / key / f"{file_name(identifier)}@{file_name(name)}.png"
        return self._save(path, mask.astype(np.uint8) * np.uint8(255), [])

    def _save(self, path: Path, pixels: Any, flags: list[int]) -> str:
        if path.suffix == ".jpg" and max(pixels.shape) > JPEG_SIDE:
            size = f"{pixels.shape[1]}x{pixels.shape[0]}"
            raise OutputError(f"{path}: {size} pixels, a JPEG has at most {JPEG_SIDE:,} per side; omit --jpeg")
        data = cv2.imencode(path.suffix, pixels, flags)[1]
        with replacing(path, overwrite=self._overwrite) as beside:
            beside.write_bytes(data.tobytes())
        return str(path)


def crop_record(
    record: Record,
    choose: Chooser,
    pictures: PictureWriter,
    maps: MapWriter,
    attention: MapWriter,
    *,
    map_size: tuple[int, int] | None = None,
) -> Record:
    """Return the record of what is seen of its image: new image, size, annotations, masks and maps, saved.

    ``map_size`` (height, width) is that of the new maps; None keeps each map's own. Where the box reaches beyond the
    image, pixels are PADDING, the map is 0 with certainty 0, and ``unknown`` has a mask called "padding".

    Raises ImageError or RecordError where the box, the frame or a mask does not fit the image; MapError.
    """
    image = framed_image(record)
    size = image.shape[0], image.shape[1]
    box = _chosen(record, choose, size)
    view = box_view(box, size)
    moved = move_annotations(record, box, size[::-1])
    masks = {key: found for key in MASKS if (found := _masks(record, key, box, size))}
    seen, own = _maps(record, view, map_size)
    identifier = record["id"]
    moved["image"] = pictures.save_image(identifier, cut_image(image, box, PADDING))
    for key, named in masks.items():
        moved[key] = {name: pictures.save_mask(key, identifier, name, mask) for name, mask in named.items()}
    save: dict[str, Callable[[str, Map], str]] = {
        "map": maps.save, "certainty": maps.save_certainty, "attention": attention.save,
    }
    moved |= {key: save[key](identifier, values) for key, values in seen.items()}
    return with_annotators(moved, {user: maps.save(identifier, values, user) for user, values in own.items()})


def checked_crop(box: Box, image_size: tuple[int, int]) -> Box:
    """Return the box; raise ImageError where it does not lie within an image of (height, width)."""
    left, top, width, height = box
    if min(box) < 0 or left + width > image_size[1] or top + height > image_size[0]:
        raise ImageError(
            f"a crop of {width}x{height} pixels from ({left}, {top}) does not lie in the image of "
            f"{image_size[1]}x{image_size[0]} as displayed; give one that does"
        )
    return box


def framed_image(record: Record) -> Pixels:
    """Read the record's image in the frame of its coordinates; raise RecordError where it has none, or another size."""
    reference = reference_of(record, "image")
    if reference is None:
        raise RecordError(f'record "{record["id"]}": has no image; expected the path of one, to change its pixels')
    image = read_image(reference)
    height, width = image.shape[:2]
    frame = frame_beside(record, reference, image)
    if frame != (width, height) and is_scaled(reference):
        return _scaled_back(image, frame, f'record "{record["id"]}"')
    if frame != (width, height):
        stated = "{}x{}".format(*frame)
        raise RecordError(
            f'record "{record["id"]}": its size is {stated}, but its image has {width}x{height} pixels as displayed; '
            "give size and coordinates in the image's own pixels"
        )
    return image


def _scaled_back(image: Pixels, frame: tuple[int, int], place: str) -> Pixels:
    """Return an image that a shard holds in its own size in that of its record's ``frame``, (width, height)."""
    if frame[0] * frame[1] > MAX_PIXELS:
        raise ImageError(f"{place}: its size is {frame[0]}x{frame[1]}, expected at most {MAX_PIXELS:,} pixels in all")
    return np.asarray(cv2.resize(image, frame, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _chosen(record: Record, choose: Chooser, size: tuple[int, int]) -> Box:
    try:
        box = choose(size)
    except ImageError as error:
        raise ImageError(f'record "{record["id"]}": {error}') from error
    if box[2] * box[3] > MAX_PIXELS:
        raise ImageError(
            f'record "{record["id"]}": {box[2]}x{box[3]} pixels with the padding, expected at most {MAX_PIXELS:,} in '
            "all; choose an aspect closer to the image's"
        )
    return box


def _masks(record: Record, key: str, box: Box, size: tuple[int, int]) -> dict[str, Mask]:
    found = masks_of(record, key) if record.get(key) is not None else {}
    moved = {
        name: cut_image(read_fitting_mask(reference, size[::-1]), box, False) for name, reference in found.items()
    }
    if key == "unknown" and reaches_out(box_view(box, size)):
        padding = cut_image(np.zeros(size, np.bool_), box, True)
        moved["padding"] = padding | moved["padding"] if "padding" in moved else padding
    return moved


def _maps(
    record: Record, view: View, map_size: tuple[int, int] | None
) -> tuple[dict[str, Map], dict[str, Map]]:
    """Return what is seen of the record's maps: by their keys, and those of annotators by their names."""

    def seen(values: Map, certainty: Map | None = None) -> Weighted:
        height, width = map_size or values.shape
        return view_map(Weighted(values, certainty), view, (height, width), padded=True)

    found: dict[str, Map] = {}
    if (reference := reference_of(record, "map")) is not None:
        values = load_map(reference)
        found["map"], certainty = seen(values, load_certainty_of(record, values))
        found |= {"certainty": certainty} if certainty is not None else {}
    if (reference := reference_of(record, "attention")) is not None:
        found["attention"] = seen(load_map(reference)).map
    return found, {name: seen(values).map for name, values in load_annotators(record).items()}
