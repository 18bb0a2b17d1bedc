"""The images of records as a browser takes them."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from hkmap.files.headers import image_suffix, read_header
from hkmap.files.images import Pixels, decode_image, encode_png
from hkmap.stream.references import image_bytes

SIDE = 96       # pixels of a thumbnail's longer side
_PLAIN = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
_ORIENTATION = 0x0112


def picture(reference: str) -> tuple[bytes, str]:
    """Return the bytes and the media type of an image that a browser shows as it is read here.

    Files that it takes pass as they are, after all of them was decoded; others become a PNG. Raises HkmapError.
    """
    data = image_bytes(reference)
    pixels = decode_image(data, reference)
    suffix = image_suffix(data)
    if suffix == "jpg" or (suffix in _PLAIN and _is_plain(data, reference)):
        return data, _PLAIN[suffix]
    return encode_png(pixels), "image/png"


def thumbnail(pixels: Pixels) -> bytes:
    """Return a small JPEG of (height, width, 3) RGB pixels."""
    height, width = pixels.shape[:2]
    factor = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    written, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert written
    return np.asarray(data).tobytes()


def _is_plain(data: bytes, place: str) -> bool:
    """Whether it has one picture of 8 bits, neither turned nor with alpha, which browsers show in their own ways."""
    with Image.open(io.BytesIO(data)) as image:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        alpha = "A" in image.mode or "transparency" in image.info
        return not (turned or alpha or getattr(image, "n_frames", 1) > 1 or read_header(data, place).deep)
