"""Read masks that belong to an image, and refuse those that do not fit it."""

from __future__ import annotations

from pathlib import Path

from hkmap.errors import ImageError, RecordError
from hkmap.records import Record, frame_of, reference_of
from hkmap.storage.images import Mask, image_size, read_image, read_mask
from hkmap.storage.references import split_row


def read_fitting_mask(path: Path, frame: tuple[int, int]) -> Mask:
    """Read the mask of an image of ``frame`` (width, height); (height, width), True on the lesion.

    Raises ImageError, naming both sizes, for a mask of another size.
    """
    mask = read_mask(path)
    height, width = mask.shape
    if (width, height) != frame:
        raise ImageError(
            f"{path}: a mask of {width}x{height} pixels for an image of {frame[0]}x{frame[1]}, expected the same size; "
            "scale the mask, without smoothing, to its image"
        )
    return mask


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
