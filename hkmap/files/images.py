"""Decode images and masks, and refuse those that are damaged, cut short or too large."""

from __future__ import annotations

import io
import re
import struct
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from hkmap.errors import ImageError

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Levels = npt.NDArray[np.int32]

# The first bytes of a file tell what it is; the suffix is the one an unpacked image gets.
MAGIC = (
    (re.compile(rb"\xff\xd8\xff"), "jpg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "png"),
    (re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), "tif"),
    (re.compile(rb"BM"), "bmp"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "webp"),
    (re.compile(rb"GIF8"), "gif"),
    (re.compile(rb"\0\0\0\x0cjP  "), "jp2"),
    (re.compile(rb"P[1-6]\s"), "pnm"),
)

# An image of more is refused before a byte of it is unpacked: a header of 30 bytes can promise any size.
MAX_PIXELS = 1 << 28
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2      # Pillow warns from here and refuses from the double

# A large image is no attack here, and broken EXIF turns nothing. Once for all: `catch_warnings` is not for threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

# In a JPEG's coded data ff is followed by 00 (a plain ff), 01 or d0 to d7 (restart); everything else is a marker. More
# ff may come before it; a pattern that said so would not begin with a plain byte, and take sixteen times as long.
_JPEG_MARKER = re.compile(rb"\xff([^\xff\x00\x01\xd0-\xd8])", re.DOTALL)
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PLAIN_MARKERS = frozenset(range(0xC0, 0xFF)) - frozenset(range(0xD0, 0xD9))
_SEGMENT = struct.Struct(">BBH")      # 0xFF, the marker, the length of what follows it, of the length itself too
_SCAN, _END = 0xDA, 0xD9
_ORIENTATION = 0x0112
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, MemoryError, struct.error, Image.DecompressionBombError)


def encode_png(pixels: Pixels) -> bytes:
    """Return a PNG of (height, width, 3) RGB pixels, which decode_image gives back unchanged."""
    written, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert written      # encoding to memory has no input that can fail
    return data.tobytes()


def decode_image(data: bytes, place: str) -> Pixels:
    """Decode an image file's bytes: (height, width, 3) RGB, turned as its EXIF says.

    Alpha is dropped, grey becomes three equal channels, 16 bits become 8 by round(v / 257).
    Raises ImageError, naming ``place``, for what is damaged, cut short or no image, or has more than 2^28 pixels.
    """
    refuse_damaged(data, place)
    pixels = _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, place)
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ImageError(f"{place}: has {pixels.dtype} pixels, expected 8 or 16 bits a channel; convert it to PNG")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels), dtype=np.uint8)


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) in pixels as displayed, read from the header alone; ImageError beyond 2^28 pixels."""
    return _displayed_size(path, path)


def encoded_size(data: bytes, place: str) -> tuple[int, int]:
    """Like image_size, for an image file's bytes."""
    return _displayed_size(Path(place), io.BytesIO(data))


def _displayed_size(path: Path, source: io.BytesIO | Path) -> tuple[int, int]:
    with _opened(path, source) as image:
        # Some versions of Pillow turn the size of a TIFF themselves and some do not: its tags say.
        tags = getattr(image, "tag_v2", None)
        width, height = (int(tags[256]), int(tags[257])) if tags else image.size
        if width * height > MAX_PIXELS:
            raise _too_large(str(path), f"{width}x{height}")
        try:      # a broken EXIF block turns nothing, in OpenCV neither
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        except _PILLOW_ERRORS:
            turned = False
    return (height, width) if turned else (width, height)


def read_mask(path: Path) -> Mask:
    """Return (height, width), True where there is a lesion: any colour channel or palette index other than 0.

    Alpha is dropped. Raises ImageError; a JPEG is refused, since its noise would count as lesion.
    """
    place = str(path)
    data = _mask_bytes(path)
    with _opened(path, io.BytesIO(data)) as image:
        if image.mode in ("P", "PA", "LA", "RGBA"):     # OpenCV loses the palette's indices and mixes in alpha
            values = _pillow_values(image, place)
        else:
            values = _decode(data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH, place)
    if values.dtype == np.uint8 and values.ndim == 2 and values.flags.writeable:
        mask: Mask = values.view(np.bool_)
        np.not_equal(values, 0, out=mask)       # in place: fresh memory for a large mask takes longer
        return mask
    return np.asarray(values != 0 if values.ndim == 2 else (values != 0).any(axis=2), dtype=np.bool_)


def read_levels(path: Path) -> Levels:
    """Return (height, width): the grey values of an image, or the indices of its palette; alpha is dropped.

    Raises ImageError; a colour image is refused, as its pixels are no numbers.
    """
    with _opened(path, io.BytesIO(_mask_bytes(path))) as image:
        if image.mode not in ("1", "L", "LA", "P", "PA", "I", "I;16"):
            raise ImageError(f"{path}: a picture of mode {image.mode}, expected grey values or a palette; convert it")
        values = _pillow_values(image, str(path))
    return np.asarray(values if values.ndim == 2 else values[..., 0], dtype=np.int32)


def image_suffix(data: bytes) -> str:
    """Return the suffix that the first bytes stand for ("jpg"), "" where they are no known image.

    >>> image_suffix(b"BM" + bytes(52))
    'bmp'
    """
    return next((suffix for magic, suffix in MAGIC if magic.match(data)), "")


def refuse_damaged(data: bytes, place: str) -> None:
    """Raise ImageError where the bytes are no image, a JPEG or PNG whose end is missing, or more than 2^28 pixels.

    Decoders keep silent about a missing end (OpenCV before 5 fills the rest of a JPEG with grey), and take memory for
    as many pixels as a header of 30 bytes promises.
    """
    if not data:
        raise ImageError(f"{place}: empty (0 bytes), expected an image; copy it again")
    suffix = image_suffix(data)
    if not suffix:
        raise ImageError(f"{place}: starts with {data[:8]!r}, expected an image (JPEG, PNG, TIFF, BMP, WebP or GIF)")
    if suffix == "jpg":
        found = _walk_jpeg(data)
    elif suffix == "png":
        found = _walk_png(data)
    else:
        found = _Found(*_pillow_size(data, place), ends=True)
    if not found.ends:
        end = "end marker" if suffix == "jpg" else "IEND chunk"
        raise ImageError(f"{place}: cut short at {len(data)} bytes (its {end} is missing); copy it again")
    if found.width * found.height > MAX_PIXELS:
        raise _too_large(place, f"{found.width}x{found.height}")


class _Found(NamedTuple):
    """What an image file's bytes say before they are decoded; 0 x 0 pixels where they do not tell."""

    width: int
    height: int
    ends: bool


def _pillow_size(data: bytes, place: str) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise _too_large(place, "too many") from error
    except _PILLOW_ERRORS:      # OpenCV reads some that Pillow does not, and has a limit of its own
        return 0, 0
    return width, height


def _too_large(place: str, size: str) -> ImageError:
    return ImageError(
        f"{place}: an image of {size} pixels, expected at most {MAX_PIXELS:,} in all; scale it down or cut it in parts"
    )


def _walk_jpeg(data: bytes) -> _Found:
    """Walk from marker to marker, over the segments (a thumbnail inside one has its own end), to the end marker."""
    width = height = 0
    position = 2
    while position + 4 <= len(data):
        begin, marker, length = _SEGMENT.unpack_from(data, position)
        if begin != 0xFF or marker not in _PLAIN_MARKERS:       # behind a segment there mostly is one: no search
            found = _JPEG_MARKER.search(data, position)
            if found is None:
                break
            marker, position = found[1][0], found.start()
            length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == _END:
            return _Found(width, height, ends=True)
        position += 2 + length
        if marker == _SCAN and data.endswith(b"\xff\xd9", position):      # coded data hold no end marker
            return _Found(width, height, ends=True)
        if marker in _JPEG_FRAMES and not width and len(data) >= position - length + 7:
            height, width = struct.unpack_from(">HH", data, position - length + 3)
    last = _JPEG_MARKER.search(data, position)
    return _Found(width, height, ends=last is not None and last[1][0] == _END)


def _walk_png(data: bytes) -> _Found:
    width, height = struct.unpack_from(">II", data.ljust(24, b"\0"), 16)
    position = 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == b"IEND":
            return _Found(width, height, ends=True)
        position += 12 + length     # length, type, checksum: four bytes each
    return _Found(width, height, ends=False)


def _decode(data: bytes, flags: int, place: str) -> npt.NDArray[Any]:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"{place}: cannot be decoded ({str(error.err)[:100]})") from error
    if pixels is None:
        raise ImageError(f"{place}: damaged, or of a kind that OpenCV does not decode; open it and save it as PNG")
    return np.asarray(pixels)


def _opened(path: Path, source: io.BytesIO | Path) -> Image.Image:
    try:
        return Image.open(source)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: {error.strerror}; expected an image file") from error
    except Image.DecompressionBombError as error:
        raise _too_large(str(path), "too many") from error
    except _PILLOW_ERRORS as error:
        raise ImageError(f"{path}: its header cannot be read ({error}); expected an image") from error


def _pillow_values(image: Image.Image, place: str) -> npt.NDArray[np.generic]:
    try:
        values = np.asarray(ImageOps.exif_transpose(image))
    except _PILLOW_ERRORS as error:
        raise ImageError(f"{place}: cannot be decoded ({error}); open it and save it as PNG") from error
    return values if values.ndim == 2 else values[..., :-1]


def _mask_bytes(path: Path) -> bytes:
    data = file_bytes(path)
    refuse_damaged(data, str(path))
    if image_suffix(data) == "jpg":
        raise ImageError(f"{path}: a JPEG, whose noise would count as lesion; apply a threshold and save it as PNG")
    return data


def file_bytes(path: Path) -> bytes:
    """Return the bytes of an image file; raise ImageError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}; expected an image file") from error
