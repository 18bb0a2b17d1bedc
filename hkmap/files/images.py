"""Decode images and masks, and refuse those that are damaged, cut short or too large."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from hkmap.errors import ImageError
from hkmap.files.headers import MAX_PIXELS, PILLOW_ERRORS, Header, read_header, too_large
from hkmap.files.hearing import heard
from hkmap.files.opening import file_content, open_file

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Levels = npt.NDArray[np.int32]

FAINT = 16       # levels that compression leaves where there were none
LABELS = 48      # where the level of most light is less, levels are numbers of regions
_ORIENTATION = 0x0112
_NOISE = (
    "whose noise would count as lesion; give `hkmap masks2map --threshold 128`, 1 if every level counts (PATH#>=128 in "
    "a record), or save it as PNG with two values"
)
_COLOURS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")      # Pillow converts them to RGB
_LEVELS = ("1", "L", "LA", "P", "PA", "I", "I;16")
_MASKS = (*_LEVELS, "F", "RGB", "RGBA", "RGBX")


def encode_png(pixels: Pixels) -> bytes:
    """Return a PNG of (height, width, 3) RGB pixels, which decode_image gives back unchanged."""
    written, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert written      # encoding to memory has no input that can fail
    return data.tobytes()


def decode_image(data: bytes, place: str) -> Pixels:
    """Decode an image file's bytes: (height, width, 3) RGB, turned as its EXIF says; the first picture of several.

    Alpha is dropped, grey becomes three equal channels, 16 bits become 8 by round(v / 257).
    Raises ImageError, naming ``place``, for what is damaged, cut short or no image, is of a kind whose colours no
    decoder delivers right, or is too large (``headers.read_header``).
    """
    header = read_header(data, place)
    if header.numbers:
        raise ImageError(
            f"{place}: has {header.numbers} pixels, expected 8 or 16 bits a channel without a sign; convert it to PNG"
        )
    if not header.opencv:
        return _rgb(_by_pillow(data, place), header, place)
    pixels = _to_8_bits(_by_opencv(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, place))
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels), dtype=np.uint8)


def _to_8_bits(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # by OpenCV, without a copy of more bits; float32 is exact enough, as no v / 257 is within 0.5 / 257 of a half
    return pixels if pixels.dtype == np.uint8 else np.asarray(cv2.convertScaleAbs(pixels, alpha=1 / 257))


def _rgb(image: Image.Image, header: Header, place: str) -> Pixels:
    if image.mode.startswith("I;16"):
        return np.asarray(cv2.cvtColor(_to_8_bits(np.asarray(image)), cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    if image.mode not in _COLOURS:
        raise ImageError(f"{place}: a picture of Pillow's mode {image.mode}, expected grey or RGB; save it as PNG")
    if header.premultiplied and image.getchannel(image.getbands()[-1]).getextrema()[0] != 255:
        raise ImageError(f"{place}: its colours were multiplied by alpha, which loses some; save it without alpha")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) in pixels as displayed, read from the header alone; ImageError beyond 2^28 pixels."""
    try:
        with open_file(path) as file:
            return _displayed_size(str(path), file)
    except OSError as error:
        raise _unopened(path, error) from error


def encoded_size(data: bytes, place: str) -> tuple[int, int]:
    """Like image_size, for an image file's bytes."""
    return _displayed_size(place, io.BytesIO(data))


def _displayed_size(place: str, source: BinaryIO) -> tuple[int, int]:
    with _opened(place, source) as image:
        # Some versions of Pillow turn the size of a TIFF themselves and some do not: its tags say.
        tags = getattr(image, "tag_v2", None)
        width, height = (int(tags[256]), int(tags[257])) if tags else image.size
        if width * height > MAX_PIXELS:
            raise too_large(place, f"{width}x{height}")
        try:      # a broken EXIF block turns nothing, in OpenCV neither
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        except PILLOW_ERRORS:
            turned = False
    return (height, width) if turned else (width, height)


def read_mask(path: Path, threshold: int | None = None) -> Mask:
    """Return (height, width), True where there is a lesion: any colour channel or palette index other than 0.

    With a ``threshold``: any channel of at least so much, in the file's own numbers. Alpha is dropped. Raises
    ImageError; without a threshold also for a mask with the noise of lossy compression, which would count as lesion,
    and for one whose alpha marks other pixels than its colours.
    """
    data = file_bytes(path)
    header = read_header(data, str(path))
    if header.lossy and threshold is None:
        raise ImageError(f"{path}: a {_lossy(header)}, {_NOISE}")
    values = _values(data, header, str(path))
    if threshold is None:
        mask = _marked(values, str(path))
    else:
        mask = np.asarray(values.levels >= threshold, dtype=np.bool_)
        if not (header.lossy or mask.any()) and values.levels.any():
            highest = values.levels.max()
            raise ImageError(f"{path}: its highest value is {highest}, below the threshold {threshold}; give less")
    if values.alpha is not None and values.alpha.min() != values.alpha.max():
        _refuse_other_alpha(values.alpha, mask, path)
    return mask


class _Values(NamedTuple):
    """What a mask's file holds, (height, width): the highest of the channels, alpha if any, or indices of a palette."""

    levels: npt.NDArray[Any]
    alpha: npt.NDArray[Any] | None = None
    indexed: bool = False


def _values(data: bytes, header: Header, place: str) -> _Values:
    if header.opencv and not header.indirect and header.suffix != "webp":
        return _Values(_highest(_by_opencv(data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH, place)))
    image = _by_pillow(data, place)
    _refuse_other(image, header, _MASKS, place)
    values = np.asarray(image)
    if image.mode == "1":
        return _Values(values * np.uint8(255))
    if image.mode == "P":
        clear = "transparency" in image.info
        return _Values(values, np.asarray(image.convert("RGBA").getchannel("A")) if clear else None, indexed=True)
    if image.mode in ("LA", "PA", "RGBA"):
        return _Values(_highest(values[..., :-1]), values[..., -1], image.mode == "PA")
    return _Values(_highest(values[..., :3]) if values.ndim == 3 else values)      # an RGBX has a channel of no use


def _highest(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the maximum over the channels; values.max(axis=2) takes many times as long."""
    return values if values.ndim == 2 else functools.reduce(np.maximum, np.moveaxis(values, 2, 0))


def _refuse_other_alpha(alpha: npt.NDArray[Any], mask: Mask, path: Path) -> None:
    if not np.array_equal(mask, alpha != 0):
        raise ImageError(
            f"{path}: its alpha marks other pixels than its colours, and only one of them is the mask; save it as a "
            "grey PNG without alpha"
        )


def _lossy(header: Header) -> str:
    return {"jpg": "JPEG", "webp": "lossy WebP"}.get(header.suffix, "TIFF with lossy compression")


def _marked(values: _Values, place: str) -> Mask:
    """Return where there is a value other than 0; refuse 8-bit levels with noise."""
    levels = values.levels
    if levels.dtype != np.uint8:
        return np.asarray(levels != 0, dtype=np.bool_)
    if not values.indexed and _is_noisy(levels):
        raise ImageError(f"{place}: has scattered faint levels, as lossy compression leaves them, {_NOISE}")
    mask: Mask = levels.view(np.bool_) if levels.flags.writeable else np.empty(levels.shape, np.bool_)
    np.not_equal(levels, 0, out=mask)       # in place: fresh memory for a large mask takes longer
    return mask


def _is_noisy(levels: npt.NDArray[np.uint8]) -> bool:
    """Return whether faint levels are scattered away from the bright ones, as lossy compression leaves them.

    The levels of a smooth edge lie beside bright ones; those of numbered regions in patches, and few are faint.
    """
    if not cv2.countNonZero(cv2.inRange(levels, 1, FAINT - 1)):      # most masks: counting all levels takes longer
        return False
    counts = cv2.calcHist([levels], [0], None, [256], [0, 256]).ravel()[1:]
    main = int((counts * np.arange(1, 256)).argmax()) + 1      # the level that gives most of the light
    if np.count_nonzero(counts) < 2 or main < LABELS:
        return False
    bright = (levels >= main / 2).view(np.uint8)
    away = (levels > 0) & (cv2.dilate(bright, np.ones((5, 5), np.uint8)) == 0)
    faint = away & (levels < FAINT)
    inner = levels[:-1, :-1]
    alike = faint[:-1, :-1] & (inner == levels[1:, :-1]) & (inner == levels[:-1, 1:])
    count = np.count_nonzero(faint)
    return bool(np.count_nonzero(alike) < count * 0.9 and count * 3 > np.count_nonzero(away) * 2)


def read_levels(path: Path) -> Levels:
    """Return (height, width): the grey values of an image, or the indices of its palette; alpha is dropped.

    Raises ImageError; a colour image is refused, as its pixels are no numbers, and a JPEG, whose noise changes them.
    """
    data, place = file_bytes(path), str(path)
    header = read_header(data, place)
    if header.lossy:
        raise ImageError(f"{place}: a {_lossy(header)}, whose levels are inexact; save it as PNG")
    image = _by_pillow(data, place)
    _refuse_other(image, header, _LEVELS, place)
    values = np.asarray(image)
    return np.asarray(values if values.ndim == 2 else values[..., 0], dtype=np.int32)


def _refuse_other(image: Image.Image, header: Header, modes: tuple[str, ...], place: str) -> None:
    mode = "I;16" if image.mode.startswith("I;16") else image.mode
    if mode not in modes:
        raise ImageError(f"{place}: a picture of mode {image.mode}, expected grey values or a palette; convert it")
    if header.deep and not mode.startswith("I"):      # Pillow halves the bits of most modes
        raise ImageError(f"{place}: has 16 bits a channel and alpha, expected none; save it without alpha")


def _by_opencv(data: bytes, flags: int, place: str) -> npt.NDArray[Any]:
    try:
        pixels, said = heard(lambda: cv2.imdecode(np.frombuffer(data, np.uint8), flags))
    except cv2.error as error:
        raise ImageError(f"{place}: cannot be decoded ({str(error.err)[:100]})") from error
    if pixels is None:
        why = f" ({said})" if said else ", or of a kind that OpenCV does not decode"
        raise ImageError(f"{place}: damaged{why}; open it and save it as PNG")
    _refuse_said(said, place)
    return np.asarray(pixels)


def _by_pillow(data: bytes, place: str) -> Image.Image:
    """Return the picture in its own mode, turned as its EXIF says."""

    def load() -> Image.Image:
        image = _opened(place, io.BytesIO(data))
        ImageOps.exif_transpose(image, in_place=True)
        image.load()
        return image

    try:
        image, said = heard(load)
    except PILLOW_ERRORS as error:
        raise ImageError(f"{place}: damaged, or of a kind that is not decoded ({error}); save it as PNG") from error
    _refuse_said(said, place)
    return image


def _refuse_said(said: str, place: str) -> None:
    if said:
        raise ImageError(f"{place}: damaged ({said}); copy it again, or open it, look at it, and save it as PNG")


def _opened(place: str, source: BinaryIO) -> Image.Image:
    try:
        image = Image.open(source)
    except Image.DecompressionBombError as error:
        raise too_large(place, "too many") from error
    except PILLOW_ERRORS as error:
        why = str(error).partition(" <")[0]      # without "<_io.BytesIO object at ...>"
        raise ImageError(f"{place}: its header cannot be read ({why}); expected an image") from error
    for key in ("xmp", "XML:com.adobe.xmp", "Raw profile type exif"):      # Pillow would turn by them, OpenCV does not
        image.info.pop(key, None)
    return image


def file_bytes(path: Path) -> bytes:
    """Return the bytes of an image file; raise ImageError where it cannot be read."""
    try:
        return file_content(path)
    except OSError as error:
        raise _unopened(path, error) from error


def _unopened(path: Path, error: OSError) -> ImageError:
    return ImageError(f"{path}: {error.strerror}; expected an image file")
