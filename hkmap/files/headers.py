"""What an image file's first bytes say, and what is refused before a byte of it is decoded.

Each kind of file goes to a decoder that is known to deliver its values as they are (tests/test_image_matrix.py compares
them with arrays, pixel by pixel); what neither OpenCV nor Pillow delivers right is refused here, by name.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import Image, TiffImagePlugin

from hkmap.errors import ImageError
from hkmap.files import opening

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
MOST_SCANS = 100      # of a JPEG; a progressive one has ten or so, and each costs as much time as the whole picture
_MOST_SCANNED = 1 << 32      # pixels, over all scans
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2      # Pillow warns from here and refuses from the double

# A large image is no attack here, and broken EXIF turns nothing. Once for all: `catch_warnings` is not for threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

PILLOW_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, MemoryError, struct.error,
                 Image.DecompressionBombError)

# In a JPEG's coded data ff is followed by 00 (a plain ff), 01 or d0 to d7 (restart); everything else is a marker. More
# ff may come before it; a pattern that said so would not begin with a plain byte, and take sixteen times as long.
_JPEG_MARKER = re.compile(rb"\xff([^\xff\x00\x01\xd0-\xd8])", re.DOTALL)
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES, _ONE_SCAN = frozenset({0xC0, 0xC1, 0xC2}), frozenset({0xC0, 0xC1})      # 0xC2 is progressive
_PLAIN_MARKERS = frozenset(range(0xC0, 0xFF)) - frozenset(range(0xD0, 0xD9))
_SEGMENT = struct.Struct(">BBH")      # 0xFF, the marker, the length of what follows it, of the length itself too
_FRAME = struct.Struct(">BHHB")       # bits, height, width, channels
_SCAN, _END, _ADOBE = 0xDA, 0xD9, 0xEE

_PNG = struct.Struct(">IIBB")         # width, height, bits, kind of colours
_IHDR = struct.Struct(">IIHB")        # height, width, channels, bits - 1

# A PNM's size and its largest value (a bitmap has none), with comments between.
_GAP = rb"(?:\s|#[^\n]*\n)+"
_PNM = re.compile(rb"P[2356]%s\d+%s\d+%s(\d+)\s" % (_GAP, _GAP, _GAP))

# A TIFF's tags, and what they say.
_WIDTH, _HEIGHT, _BITS, _PACKING, _MEANING, _CHANNELS, _PLANES, _EXTRA, _NUMBERS = (
    256, 257, 258, 259, 262, 277, 284, 338, 339
)
_GREY, _RGB = 1, 2
_MEANINGS = (0, _GREY, _RGB, 3, 5, 6)      # 0: grey whose white is 0, 3: palette, 5: CMYK, 6: YCbCr
_LOSSY_PACKING = (6, 7, 33003, 33005, 34712, 34892, 50001)      # JPEG, JPEG 2000, lossy DNG, WebP
_NUMBERS_OF = {1: "unsigned", 2: "signed", 3: "float"}


class Header(NamedTuple):
    """What an image file says before it is decoded: its size in pixels, unturned, and how to read it."""

    suffix: str
    width: int = 0
    height: int = 0
    opencv: bool = False            # OpenCV decodes it, else Pillow
    deep: bool = False              # 16 bits a channel
    numbers: str = ""               # what its pixels are where they are not 8 or 16 bits without a sign
    lossy: bool = False
    indirect: bool = False          # a PNG with a palette or alpha
    premultiplied: bool = False     # its colours were multiplied by alpha
    fault: str = ""                 # why neither decoder delivers it right
    cut: str = ""                   # which part of its end is missing
    whole_scan: bytes = b""         # a JPEG's scan of so many channels is its only one; a byte

    @property
    def decoded_bytes(self) -> int:
        """What decoding to RGB takes at once, in bytes."""
        several_scans = self.suffix == "jpg" and not self.whole_scan      # their coefficients are kept
        by_opencv = 9 if several_scans else 6 if self.deep else 3
        return self.width * self.height * (by_opencv if self.opencv else 16 if self.suffix == "jp2" else 8)


def image_suffix(data: bytes) -> str:
    """Return the suffix that the first bytes stand for ("jpg"), "" where they are no known image.

    >>> image_suffix(b"BM" + bytes(52))
    'bmp'
    """
    return next((suffix for magic, suffix in MAGIC if magic.match(data)), "")


def read_header(data: bytes, place: str) -> Header:
    """Return what an image file says of itself.

    Raises ImageError where the bytes are no image, are cut short, are of a kind that no decoder delivers right, or take
    more than 2^28 pixels, or more than ``opening.max_image_bytes`` to decode. Decoders keep silent about a missing end
    (OpenCV before 5 fills the rest of a JPEG with grey), and take memory for as many pixels as a header promises.
    """
    if not data:
        raise ImageError(f"{place}: empty (0 bytes), expected an image; copy it again")
    suffix = image_suffix(data)
    if not suffix:
        raise ImageError(f"{place}: starts with {data[:8]!r}, expected an image (JPEG, PNG, TIFF, BMP, WebP or GIF)")
    try:
        header = _READERS.get(suffix, _read_by_pillow)(data, suffix)
    except Image.DecompressionBombError as error:
        raise too_large(place, "too many") from error
    except PILLOW_ERRORS as error:
        why = f"damaged, its header cannot be read ({error})"
        raise ImageError(f"{place}: {why}; expected an image, open it and save it as PNG") from error
    if header.cut:
        raise ImageError(f"{place}: cut short at {len(data)} bytes (its {header.cut} is missing); copy it again")
    _refuse_large(header, place)
    if header.fault:
        remedy = "save it as PNG, 8 or 16 bits, without alpha"
        raise ImageError(f"{place}: {header.fault}; {'copy it again' if 'damaged' in header.fault else remedy}")
    return header


def _refuse_large(header: Header, place: str) -> None:
    if header.width * header.height > MAX_PIXELS:
        raise too_large(place, f"{header.width}x{header.height}")
    if header.decoded_bytes > opening.max_image_bytes:
        raise ImageError(
            f"{place}: an image of {header.width}x{header.height} pixels, {header.decoded_bytes:,} bytes to decode it, "
            f"expected at most {opening.max_image_bytes:,}; scale it down, or give "
            f"`hkmap --max-image-bytes {header.decoded_bytes} COMMAND`"
        )


def too_large(place: str, size: str) -> ImageError:
    """Return the error for more than 2^28 pixels."""
    return ImageError(
        f"{place}: an image of {size} pixels, expected at most {MAX_PIXELS:,} in all; scale it down or cut it in parts"
    )


def _read_jpeg(data: bytes, suffix: str) -> Header:
    """Walk from marker to marker, over the segments (a thumbnail inside one has its own end), to the end marker."""
    header, adobe, scans, position = Header(suffix, opencv=True, lossy=True), False, 0, 2
    while position + 4 <= len(data):
        marker, position, length = _next_marker(data, position)
        if marker == _END:
            return header
        if marker in _JPEG_FRAMES and not header.width and len(data) >= position + 4 + _FRAME.size:
            header = _read_frame(header, data, position, adobe)
        elif marker == _ADOBE:
            adobe = adobe or data[position + 4 : position + 9] == b"Adobe"
        elif marker == _SCAN:
            scans += 1
            if scans > (most := min(MOST_SCANS, _MOST_SCANNED // (header.width * header.height or 1))):
                return header._replace(fault=f"a JPEG of more than {most} scans")
            whole = data[position + 4 : position + 5] == header.whole_scan
            if whole and data.endswith(b"\xff\xd9", position + 2 + length):      # no other scan is read
                return header       # and coded data hold no end marker
        position += 2 + length
    last = _JPEG_MARKER.search(data, position)
    return header if last is not None and last[1][0] == _END else header._replace(cut="end marker")


def _next_marker(data: bytes, position: int) -> tuple[int, int, int]:
    """Return the next marker, where it is, and the length of its segment; 0 and the end of the data if none is left."""
    begin, marker, length = _SEGMENT.unpack_from(data, position)
    if begin == 0xFF and marker in _PLAIN_MARKERS:       # behind a segment there mostly is one: no search
        return marker, position, length
    found = _JPEG_MARKER.search(data, position)
    if found is None:
        return 0, len(data), 0
    start = found.start()
    return found[1][0], start, int.from_bytes(data[start + 2 : start + 4], "big")


def _read_frame(header: Header, data: bytes, position: int, adobe: bool) -> Header:
    bits, height, width, channels = _FRAME.unpack_from(data, position + 4)
    fault = ""
    if bits != 8:
        fault = f"a JPEG of {bits} bits a channel, expected 8"
    elif channels not in (1, 3, 4):
        fault = f"a JPEG of {channels} channels, expected grey, RGB or CMYK"
    elif channels == 4 and not adobe:      # nothing says whether its numbers are ink or light
        fault = "a CMYK JPEG that does not say how (it has no Adobe segment)"
    elif data[position + 1] in _HUFFMAN_FRAMES and len(data) * 8 < width * height // 64:
        fault = f"damaged, {len(data)} bytes cannot hold {width}x{height} pixels"      # one bit a block at the least
    whole = bytes([channels]) if data[position + 1] in _ONE_SCAN else b""
    return header._replace(width=width, height=height, fault=fault, whole_scan=whole)


def _read_png(data: bytes, suffix: str) -> Header:
    width, height, bits, colours = _PNG.unpack_from(data.ljust(_PNG.size + 16, b"\0"), 16)
    header = Header(suffix, width, height, opencv=True, deep=bits == 16, indirect=colours in (3, 4, 6))
    position, still = 8, True
    while position + 12 <= len(data):
        length, chunk = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if chunk == b"IEND":
            return header
        if chunk == b"IDAT":
            still = False
        if chunk == b"acTL" and still:      # OpenCV may take another frame than the picture that stands for all
            header = header._replace(opencv=False, fault="a moving PNG of 16 bits" if header.deep else "")
        position += 12 + length     # length, type, checksum: four bytes each
    return header._replace(cut="IEND chunk")


def _read_tiff(data: bytes, suffix: str) -> Header:
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])      # 43: a BigTIFF
    source = io.BytesIO(data)
    source.seek(tags.next)
    tags.load(source)
    bits, numbers = tags.get(_BITS, (1,)), tags.get(_NUMBERS, (1,))
    kind = _NUMBERS_OF.get(numbers[0], "unknown")
    plain = kind == "unsigned" and bits[0] in (1, 2, 4, 8, 16)
    deep = plain and bits[0] == 16
    return Header(
        suffix, int(tags[_WIDTH]), int(tags[_HEIGHT]), opencv=deep or _is_black_and_white(tags), deep=deep,
        numbers="" if plain else f"{bits[0]}-bit {kind}", lossy=tags.get(_PACKING) in _LOSSY_PACKING,
        premultiplied=1 in tags.get(_EXTRA, ()), fault=_fault_of_tiff(tags, deep, len({*bits, *numbers}) > 2),
    )


def _is_black_and_white(tags: Any) -> bool:
    """Whether it has 1 bit a pixel, and 0 is black: OpenCV delivers that right, in half of Pillow's time."""
    bits, numbers = tags.get(_BITS, (1,)), tags.get(_NUMBERS, (1,))
    return (tags.get(_MEANING), tags.get(_CHANNELS, 1), numbers, bits) == (_GREY, 1, (1,), (1,))


def _fault_of_tiff(tags: Any, deep: bool, mixed: bool) -> str:
    bits, meaning, channels = tags.get(_BITS, (1,))[0], tags.get(_MEANING), tags.get(_CHANNELS, 1)
    if meaning not in _MEANINGS:
        return f"a TIFF whose colours are of kind {meaning}, expected grey, RGB, a palette, CMYK or YCbCr"
    if mixed or bits not in (1, 2, 4, 8, 16, 32, 64) or (bits == 8 and tags.get(_NUMBERS, (1,))[0] != 1):
        return f"a TIFF of {bits} bits a channel, expected 8 or 16, all alike and without a sign"
    if not deep:
        return ""
    if meaning not in (_GREY, _RGB) or channels == 2:
        return "a TIFF of 16 bits that is not plain grey (black is 0) or RGB"
    if tags.get(_PLANES, 1) != 1 and channels > 1:
        return "a TIFF of 16 bits with a plane for each channel"
    return "a TIFF of 16 bits whose colours were multiplied by alpha" if 1 in tags.get(_EXTRA, ()) else ""


def _read_pnm(data: bytes, suffix: str) -> Header:
    found = _PNM.match(data)
    largest = int(found[1]) if found else 1
    deep = largest == 65535
    fault = f"a picture of {largest} levels, expected at most 255, or 65535" if largest > 255 and not deep else ""
    return _read_by_pillow(data, suffix)._replace(opencv=deep, deep=deep, fault=fault)


def _read_jp2(data: bytes, suffix: str) -> Header:
    start = data.index(b"ihdr", 0, 1 << 12)
    height, width, channels, bits = _IHDR.unpack_from(data, start + 4)
    deep = (channels, bits) == (1, 15)
    fault = "" if deep or bits == 7 else "a JPEG 2000 picture of other than 8 bits a channel, or 16 in a grey one"
    return Header(suffix, width, height, deep=deep, fault=fault)


def _read_webp(data: bytes, suffix: str) -> Header:
    lossy = data[12:16] == b"VP8 " or (data[12:16] == b"VP8X" and b"VP8 " in data[: 1 << 16])
    return _read_by_pillow(data, suffix)._replace(opencv=True, lossy=lossy)


def _read_by_pillow(data: bytes, suffix: str) -> Header:
    with Image.open(io.BytesIO(data)) as image:
        return Header(suffix, *image.size)


_READERS: dict[str, Callable[[bytes, str], Header]] = {
    "jpg": _read_jpeg, "png": _read_png, "tif": _read_tiff, "jp2": _read_jp2, "webp": _read_webp, "pnm": _read_pnm,
}
