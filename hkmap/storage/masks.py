"""Read masks that belong to an image, and refuse those that do not fit it.

A mask is referred to by a path (what is not 0 is marked), by ``PATH#VALUE`` (the pixels of a grey or palette image that
equal VALUE), by ``PATH.mat#NAME`` (what is not 0 in a variable), or as run lengths, COCO's {"size", "counts"}.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hkmap.errors import ImageError, RecordError
from hkmap.records import MaskReference, Record, frame_of, reference_of
from hkmap.storage.filenames import is_there
from hkmap.storage.images import Mask, image_size, read_image, read_levels, read_mask
from hkmap.storage.references import split_row


def read_fitting_mask(reference: MaskReference, frame: tuple[int, int]) -> Mask:
    """Read the mask of an image of ``frame`` (width, height); (height, width), True on the lesion.

    Raises ImageError, naming both sizes, for a mask of another size.
    """
    mask = read_referred_mask(reference)
    height, width = mask.shape
    if (width, height) != frame:
        place = reference if isinstance(reference, str) else "run lengths"
        raise ImageError(
            f"{place}: a mask of {width}x{height} pixels for an image of {frame[0]}x{frame[1]}, "
            "expected the same size; scale the mask, without smoothing, to its image"
        )
    return mask


def read_referred_mask(reference: MaskReference) -> Mask:
    """Read a mask by its reference; (height, width), True on the lesion. Raises ImageError where there is none."""
    if isinstance(reference, dict):
        from hkmap.storage.rle import decode_rle

        return decode_rle(reference)
    name, _, part = reference.rpartition("#")
    if not name or is_there(Path(reference)):        # a file whose own name has a "#" in it
        return read_mask(Path(reference))
    if name.lower().endswith(".mat"):
        return _variable(Path(name), part)
    if part.isascii() and part.isdecimal():
        return np.asarray(read_levels(Path(name)) == int(part), dtype=np.bool_)
    return read_mask(Path(reference))


def _variable(path: Path, name: str) -> Mask:
    from hkmap.storage.matfiles import read_variable

    values = np.asarray(read_variable(path, name))
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise ImageError(f'{path}: "{name}" is no picture; expected numbers in rows and columns')
    return np.asarray(values != 0, dtype=np.bool_)


def image_frame(record: Record) -> tuple[int, int]:
    """Return (width, height) of the record's image: what the record says, else what the image's header says."""
    if record.get("size") is not None:
        return frame_of(record)
    image = reference_of(record, "image")
    if image is None:
        raise RecordError(f'record "{record["id"]}": has neither size nor image; expected one, to compare its masks')
    if split_row(image) is None:
        return image_size(Path(image))
    height, width, _ = read_image(image).shape
    return width, height
