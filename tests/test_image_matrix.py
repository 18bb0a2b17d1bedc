"""Image files of every layout: each decodes to the pixels it was made of, or is refused with a sentence.

The references are the arrays themselves. TIFF, PNG, BMP and PNM files are put together byte by byte here, the others by
Pillow.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from hkmap.errors import ImageError
from hkmap.files.images import decode_image, encoded_size
from hkmap.shards.reader import ShardReader

Array = np.ndarray[Any, Any]

WIDTH, HEIGHT = 40, 24
RNG = np.random.default_rng(0)
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.dstack([COLUMNS * 6, ROWS * 10, 255 - COLUMNS * 3 - ROWS * 4]).astype(np.uint8)      # smooth, for JPEG
GREY = RGB[..., 0]
ALPHA = (COLUMNS * 5 + 20).astype(np.uint8)
RGB16 = RNG.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
GREY16 = RGB16[..., 0]
INDEX = RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
PALETTE = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
ORIENTATION = 0x0112
LOSSY = 16      # levels that JPEG may be off


def to_8(values: Array) -> Array:
    return np.rint(values / 257).astype(np.uint8)


def thrice(grey: Array) -> Array:
    return np.dstack([grey] * 3)


def turned(pixels: Array, orientation: int) -> Array:
    """What EXIF 2.32 says of each orientation: which row and column the 0th ones are."""
    if orientation in (2, 3, 6, 7):      # the 0th row or column of the file ends up at the right
        pixels = pixels[:, ::-1] if orientation in (2, 3) else pixels[::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1] if orientation in (3, 4) else pixels[:, ::-1]
    return pixels if orientation < 5 else np.swapaxes(pixels, 0, 1)


# writers


def pillow(picture: Image.Image | Array, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def packed(values: Array, bits: int) -> bytes:
    """Rows of numbers of so many bits, highest first, each row from a new byte on."""
    rows = values.reshape(len(values), -1).astype(int)
    return b"".join(np.packbits((row[:, None] >> np.arange(bits - 1, -1, -1)) & 1).tobytes() for row in rows)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(values: Array, bits: int, colours: int, *before: bytes) -> bytes:
    rows = [packed(row[None], bits) if bits < 16 else row.astype(">u2").tobytes() for row in values]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colours, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [chunk(b"IHDR", header), *before, chunk(b"IDAT", content), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(
    values: Array, bits: int, meaning: int, *, order: str = "<", planes: bool = False, numbers: int = 1,
    deflate: bool = False, tile: int = 0, tags: dict[int, list[int]] | None = None,
) -> bytes:
    """A TIFF of (height, width[, channels]) numbers; its pixels in one strip, one for each plane, or tiles."""
    pixels = values if values.ndim == 3 else values[..., None]
    height, width, channels = pixels.shape
    parts = [pixels[..., [channel]] for channel in range(channels)] if planes else [pixels]
    if tile:
        padded = np.pad(pixels, ((0, -height % tile), (0, -width % tile), (0, 0)))
        parts = [padded[y : y + tile, x : x + tile] for y in range(0, height, tile) for x in range(0, width, tile)]
    typed = f"{order}{'f' if numbers == 3 else 'u'}{bits // 8}"
    pieces = [packed(part, bits) if bits < 8 or bits == 12 else part.astype(typed).tobytes() for part in parts]
    pieces = [zlib.compress(piece) for piece in pieces] if deflate else pieces
    places, sizes = (324, 325) if tile else (273, 279)
    entries = {
        256: [width], 257: [height], 258: [bits] * channels, 259: [8 if deflate else 1], 262: [meaning],
        277: [channels], places: [0] * len(pieces), sizes: [len(piece) for piece in pieces], 284: [2 if planes else 1],
        339: [numbers] * channels, **({322: [tile], 323: [tile]} if tile else {278: [height]}), **(tags or {}),
    }
    after = 8 + 2 + 12 * len(entries) + 4
    start = after + sum(4 * len(numbers) for numbers in entries.values() if len(numbers) > 1)
    entries[places] = [start + sum(map(len, pieces[:number])) for number in range(len(pieces))]
    directory, behind = struct.pack(order + "H", len(entries)), b""
    for tag, content in sorted(entries.items()):
        text = struct.pack(f"{order}{len(content)}I", *content)
        place = text if len(content) == 1 else struct.pack(order + "I", after + len(behind))
        behind += b"" if len(content) == 1 else text
        directory += struct.pack(order + "HHI", tag, 4, len(content)) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + directory + bytes(4) + behind + b"".join(pieces)


def bmp(bits: int, content: bytes, *, palette: bytes = b"", masks: tuple[int, ...] = (), height: int = HEIGHT) -> bytes:
    """A BMP, with the five numbers and more of version 5 where it has masks."""
    size, kind = (124, 3) if masks else (40, 0)
    header = struct.pack("<IiiHHIIiiII", size, WIDTH, height, 1, bits, kind, len(content), 2835, 2835, 0, 0)
    header += struct.pack(f"<{len(masks)}I", *masks)
    header += b"BGRs" + bytes(size - len(header)) if masks else b""
    place = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", place + len(content), 0, 0, place) + header + palette + content


def pnm(kind: bytes, values: Array, largest: int) -> bytes:
    head = b"%s\n# a comment\n%d %d\n" % (kind, values.shape[1], values.shape[0])
    if kind in (b"P1", b"P4"):
        plain = b" ".join(b"%d" % value for value in values.ravel())
        return head + (plain if kind == b"P1" else packed(values, 1))
    plain = b" ".join(b"%d" % value for value in values.ravel()) + b"\n"
    binary = values.astype(">u2" if largest > 255 else "u1").tobytes()
    return head + b"%d\n" % largest + (plain if kind in (b"P2", b"P3") else binary)


def several(kind: str, first: Image.Image, second: Image.Image, **options: Any) -> bytes:
    return pillow(first, kind, save_all=True, append_images=[second], **options)


# the files


class Case(NamedTuple):
    """A file, and the pixels that it must give, or the sentence that it must get."""

    data: bytes
    pixels: Array | None = None
    off: int = 0
    sentence: str = ""


def tiff_depths() -> dict[str, Case]:
    cases = {}
    for order, bits in itertools.product("<>", (1, 2, 4, 8, 16)):
        name, lost = f"tif {order} {bits}", 16 - bits
        levels, colours = GREY16.astype(int) >> lost, RGB16.astype(int) >> lost
        grey = thrice(np.rint(levels * 255 / (2**bits - 1)).astype(np.uint8))
        rgb = np.rint(colours * 255 / (2**bits - 1)).astype(np.uint8)
        white = tiff(2**bits - 1 - levels, bits, 0, order=order)
        told = Case(white, sentence="16 bits that is not plain grey")
        cases |= {f"{name} grey": Case(tiff(levels, bits, 1, order=order), grey),
                  f"{name} white is 0": Case(white, grey) if bits < 16 else told}
        if bits < 16:
            palette = {320: (PALETTE.T[:, : 2**bits].astype(int) * 257).ravel().tolist()}
            cases[f"{name} palette"] = Case(tiff(levels, bits, 3, order=order, tags=palette), PALETTE[levels])
        if bits >= 8:
            cases |= {f"{name} grey tiles": Case(tiff(levels, bits, 1, order=order, tile=16), grey),
                      f"{name} rgb tiles": Case(tiff(colours, bits, 2, order=order, tile=16), rgb)}
        for deflate in (False, True)[: 2 * (bits >= 8)]:
            planes = tiff(colours, bits, 2, order=order, deflate=deflate, planes=True)
            told = Case(planes, sentence="16 bits with a plane for each")
            cases |= {f"{name} rgb {deflate=}": Case(tiff(colours, bits, 2, order=order, deflate=deflate), rgb),
                      f"{name} rgb planes {deflate=}": Case(planes, rgb) if bits == 8 else told}
    return cases


def tiff_colours() -> dict[str, Case]:
    cases = {}
    for bits, rgb, expected in ((8, RGB, RGB), (16, RGB16, to_8(RGB16))):
        alpha = ALPHA.astype(int) * (1 if bits == 8 else 257)
        for extra, name in ((0, "unspecified"), (2, "alpha")):
            full = np.dstack([rgb, alpha])
            cases[f"rgb {bits} {name}"] = Case(tiff(full, bits, 2, tags={338: [extra]}), expected)
        multiplied = np.dstack([np.rint(rgb * (alpha[..., None] / alpha.max())), alpha])
        cases[f"rgb {bits} multiplied"] = Case(
            tiff(multiplied, bits, 2, tags={338: [1]}), sentence="colours were multiplied by alpha"
        )
    opaque = np.dstack([RGB, ALPHA * 0 + 255])
    cases |= {
        "rgb planes alpha": Case(tiff(np.dstack([RGB, ALPHA]), 8, 2, planes=True, tags={338: [2]}), RGB),
        "opaque": Case(tiff(opaque, 8, 2, tags={338: [1]}), RGB),
        "grey alpha": Case(tiff(np.dstack([GREY, ALPHA]), 8, 1, tags={338: [2]}), thrice(GREY)),
        "grey alpha 16": Case(tiff(np.dstack([GREY16, GREY16]), 16, 1, tags={338: [2]}), sentence="not plain grey"),
        "5 channels": Case(tiff(np.dstack([RGB, ALPHA, ALPHA]), 8, 2, tags={338: [0, 0]}), RGB),
        "cmyk": Case(tiff(np.dstack([255 - RGB, RGB[..., 0] * 0]), 8, 5), RGB),
        "cmyk 16": Case(tiff(np.dstack([65535 - RGB16, GREY16 * 0]), 16, 5), sentence="not plain grey"),
        "lab": Case(tiff(RGB, 8, 8), sentence="colours are of kind 8, expected grey, RGB, a palette"),
        "grey 12": Case(tiff(GREY16 >> 4, 12, 1), sentence="a TIFF of 12 bits a channel, expected 8 or 16"),
        "rgb 12": Case(tiff(RGB16 >> 4, 12, 2), sentence="a TIFF of 12 bits a channel"),
        "float": Case(tiff(GREY / 255, 32, 1, numbers=3), sentence="has 32-bit float pixels, expected 8 or 16 bits"),
        "float rgb": Case(tiff(RGB / 255, 32, 2, numbers=3), sentence="has 32-bit float pixels"),
        "double": Case(tiff(GREY / 255, 64, 1, numbers=3), sentence="has 64-bit float pixels"),
        "32 bits": Case(tiff(GREY, 32, 1), sentence="has 32-bit unsigned pixels"),
        "signed 8": Case(tiff(GREY, 8, 1, numbers=2), sentence="a TIFF of 8 bits a channel, .* without a sign"),
        "signed 16": Case(tiff(GREY, 16, 1, numbers=2), sentence="has 16-bit signed pixels"),
        "ycbcr": Case(pillow(Image.fromarray(RGB).convert("YCbCr"), "TIFF"), RGB, 4),
        "pages": Case(several("TIFF", Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())), RGB),
    }
    for packing in ("packbits", "tiff_lzw", "tiff_adobe_deflate", "lzma", "jpeg"):
        off = LOSSY if packing == "jpeg" else 0
        cases[f"rgb {packing}"] = Case(pillow(RGB, "TIFF", compression=packing), RGB, off)
    black = Image.fromarray(GREY > 100)
    for packing in ("group3", "group4"):
        cases[f"fax {packing}"] = Case(pillow(black, "TIFF", compression=packing), thrice((GREY > 100) * np.uint8(255)))
    return {f"tif {name}": case for name, case in cases.items()}


def pngs() -> dict[str, Case]:
    cases = {}
    for bits in (1, 2, 4, 8):
        levels = GREY.astype(int) >> (8 - bits)
        grey, palette = thrice((levels * 255 // (2**bits - 1)).astype(np.uint8)), PALETTE[: 2**bits]
        clear = chunk(b"tRNS", bytes(range(2**bits)))
        cases |= {
            f"grey {bits}": Case(png(levels, bits, 0), grey),
            f"grey {bits} clear": Case(png(levels, bits, 0, chunk(b"tRNS", b"\0\1")), grey),
            f"palette {bits}": Case(png(levels, bits, 3, chunk(b"PLTE", palette.tobytes())), palette[levels]),
            f"palette {bits} clear": Case(
                png(levels, bits, 3, chunk(b"PLTE", palette.tobytes()), clear), palette[levels]
            ),
        }
    rgb16 = to_8(RGB16)
    gamma, profile = chunk(b"gAMA", struct.pack(">I", 100_000)), chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile"))
    cases |= {
        "rgb": Case(png(RGB, 8, 2), RGB), "rgb 16": Case(png(RGB16, 16, 2), rgb16),
        "grey 16": Case(png(GREY16, 16, 0), thrice(rgb16[..., 0])),
        "rgba": Case(png(np.dstack([RGB, ALPHA]), 8, 6), RGB),
        "rgba 16": Case(png(np.dstack([RGB16, GREY16]), 16, 6), rgb16),
        "grey alpha": Case(png(np.dstack([GREY, ALPHA]), 8, 4), thrice(GREY)),
        "grey alpha 16": Case(png(np.dstack([GREY16, GREY16]), 16, 4), thrice(rgb16[..., 0])),
        "rgb clear": Case(png(RGB, 8, 2, chunk(b"tRNS", struct.pack(">HHH", *map(int, RGB[3, 3])))), RGB),
        "gamma": Case(png(RGB, 8, 2, gamma), RGB), "gamma alpha": Case(png(np.dstack([RGB, ALPHA]), 8, 6, gamma), RGB),
        "background": Case(png(np.dstack([RGB, ALPHA]), 8, 6, chunk(b"bKGD", bytes(6))), RGB),
        "odd profile": Case(png(RGB, 8, 2, profile), RGB),      # libpng's words about it are of no concern
        "moving": Case(several("PNG", Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())), RGB),
        "moving behind another": Case(
            several("PNG", Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy()), default_image=True), RGB
        ),
        "moving 16": Case(png(RGB16, 16, 2, chunk(b"acTL", bytes(8))), sentence="a moving PNG of 16 bits"),
    }
    return {f"png {name}": case for name, case in cases.items()}


def jpegs() -> dict[str, Case]:
    ink = Image.fromarray(np.dstack([255 - RGB, ALPHA // 2]), "CMYK")
    cmyk = pillow(ink, "JPEG", quality=98, subsampling=0)
    adobe = cmyk.index(b"\xff\xee")
    nameless = cmyk[:adobe] + cmyk[adobe + 2 + int.from_bytes(cmyk[adobe + 2 : adobe + 4], "big") :]
    frame = pillow(RGB, "JPEG").index(b"\xff\xc0")
    deep = bytearray(pillow(RGB, "JPEG"))
    deep[frame + 4] = 12
    cases: dict[str, Case] = {
        "cmyk": Case(cmyk, np.asarray(ink.convert("RGB")), LOSSY),
        "cmyk of unknown kind": Case(nameless, sentence="a CMYK JPEG that does not say how"),
        "12 bits": Case(bytes(deep), sentence="a JPEG of 12 bits a channel, expected 8"),
        "grey": Case(pillow(GREY, "JPEG", quality=98), thrice(GREY), LOSSY),
    }
    ways: tuple[dict[str, Any], ...] = (
        {}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}, {"keep_rgb": True}
    )
    for options in ways:
        cases[f"rgb {options}"] = Case(pillow(RGB, "JPEG", quality=96, **options), RGB, LOSSY)
    return {f"jpg {name}": case for name, case in cases.items()}


def bmps() -> dict[str, Case]:
    bgra, four = np.dstack([RGB[..., ::-1], ALPHA]), INDEX & 15
    colours = np.hstack([PALETTE[:16, ::-1], np.zeros((16, 1), np.uint8)])
    fives = RGB.astype(int) >> 3
    fifteen = (fives @ [1024, 32, 1])[::-1].astype("<u2").tobytes()
    light = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)
    return {
        "bmp 24": Case(pillow(RGB, "BMP"), RGB), "bmp 8": Case(pillow(GREY, "BMP"), thrice(GREY)),
        "bmp 1": Case(pillow(Image.fromarray(GREY > 100), "BMP"), thrice((GREY > 100) * np.uint8(255))),
        "bmp 4": Case(bmp(4, packed(four[::-1], 4), palette=colours.tobytes()), PALETTE[four]),
        "bmp 15": Case(bmp(16, fifteen), np.rint(fives * (255 / 31)).astype(np.uint8), 1),
        "bmp 32": Case(bmp(32, bgra[::-1].tobytes()), RGB),
        "bmp 32 alpha": Case(bmp(32, np.dstack([RGB, ALPHA])[::-1].tobytes(), masks=light), RGB),
        "bmp from the top": Case(bmp(24, RGB[..., ::-1].tobytes(), height=-HEIGHT), RGB),
    }


def pnms() -> dict[str, Case]:
    cases = {"bits": Case(pnm(b"P4", GREY <= 100, 1), thrice((GREY > 100) * np.uint8(255))),
             "plain bits": Case(pnm(b"P1", (GREY <= 100) * 1, 1), thrice((GREY > 100) * np.uint8(255)))}
    for largest in (1, 15, 100, 200, 255, 1000, 4095, 65535):
        for kind in (b"P2", b"P3", b"P5", b"P6"):
            source = RGB16 if kind in (b"P3", b"P6") else GREY16
            values = source.astype(int) * largest // 65535
            expected = np.rint(values * 255 / largest).astype(np.uint8)
            data = pnm(kind, values, largest)
            right = Case(data, expected if expected.ndim == 3 else thrice(expected))
            told = Case(data, sentence=f"a picture of {largest} levels, expected at most 255, or 65535")
            cases[f"{kind.decode()} {largest}"] = told if largest in (1000, 4095) else right
    return {f"pnm {name}": case for name, case in cases.items()}


def others() -> dict[str, Case]:
    rgba = np.dstack([RGB, ALPHA])
    palette = Image.fromarray(INDEX, "P")
    palette.putpalette(PALETTE.tobytes())
    other = palette.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture, upside_down = Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())
    deep = pillow(GREY16, "JPEG2000")
    odd = bytearray(pillow(RGB, "JPEG2000"))
    odd[odd.index(b"ihdr") + 14] = 11
    return {
        "webp": Case(pillow(RGB, "WEBP", lossless=True), RGB),
        "webp lossy": Case(pillow(RGB, "WEBP", quality=98), RGB, LOSSY),
        "webp alpha": Case(pillow(rgba, "WEBP", lossless=True, exact=True), RGB),
        "webp lossy alpha": Case(pillow(rgba, "WEBP", quality=98, exact=True), RGB, LOSSY),
        "webp moving": Case(several("WEBP", picture, upside_down, lossless=True), RGB),
        "gif": Case(pillow(palette, "GIF"), PALETTE[INDEX]), "gif grey": Case(pillow(GREY, "GIF"), thrice(GREY)),
        "gif clear": Case(pillow(palette, "GIF", transparency=int(INDEX[0, 0])), PALETTE[INDEX]),
        "gif moving": Case(several("GIF", palette, other, duration=50), PALETTE[INDEX]),
        "gif moving clear": Case(several("GIF", palette, other, transparency=3, disposal=2), PALETTE[INDEX]),
        "jp2": Case(pillow(RGB, "JPEG2000"), RGB), "jp2 grey": Case(pillow(GREY, "JPEG2000"), thrice(GREY)),
        "jp2 alpha": Case(pillow(rgba, "JPEG2000"), RGB), "jp2 16": Case(deep, thrice(to_8(GREY16))),
        "jp2 ycc": Case(pillow(picture.convert("YCbCr"), "JPEG2000"), RGB, 4),
        "jp2 12": Case(bytes(odd), sentence="a JPEG 2000 picture of other than 8 bits a channel"),
    }


def turns() -> dict[str, Case]:
    cases = {}
    for number in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = number
        tag, right = {ORIENTATION: [number]}, turned(RGB, number)
        rgba = np.dstack([RGB, ALPHA])
        cases |= {
            f"jpg turn {number}": Case(pillow(RGB, "JPEG", exif=exif, quality=98, subsampling=0), right, LOSSY),
            f"png turn {number}": Case(pillow(RGB, "PNG", exif=exif), right),
            f"png alpha turn {number}": Case(pillow(rgba, "PNG", exif=exif), right),
            f"webp turn {number}": Case(pillow(RGB, "WEBP", exif=exif, lossless=True), right),
            f"tif turn {number}": Case(tiff(RGB, 8, 2, tags=tag), right),
            f"tif planes turn {number}": Case(tiff(RGB, 8, 2, planes=True, tags=tag), right),
            f"tif alpha turn {number}": Case(tiff(rgba, 8, 2, tags=tag | {338: [2]}), right),
            f"tif 16 turn {number}": Case(tiff(RGB16, 16, 2, tags=tag), to_8(turned(RGB16, number))),
        }
    about = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    cases["jpg turned by XMP alone"] = Case(pillow(RGB, "JPEG", quality=98, subsampling=0, xmp=about), RGB, LOSSY)
    return cases


MAKERS: tuple[Callable[[], dict[str, Case]], ...] = (
    tiff_depths, tiff_colours, pngs, jpegs, bmps, pnms, others, turns,
)
CASES = {name: case for make in MAKERS for name, case in make().items()}


def test_there_are_many() -> None:
    assert len(CASES) >= 150
    assert sum(case.pixels is None for case in CASES.values()) >= 20


@pytest.mark.parametrize("name", CASES)
def test_an_image_is_right_or_refused(name: str) -> None:
    data, pixels, off, sentence = CASES[name]
    if pixels is None:
        with pytest.raises(ImageError, match=rf"^here: .*{sentence}"):
            decode_image(data, "here")
        return
    found = decode_image(data, "here")
    assert found.shape == pixels.shape
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - pixels).max() <= off
    assert encoded_size(data, "here") == (found.shape[1], found.shape[0])


def test_pack_and_unpack_give_the_same_pixels(hk, here: Path) -> None:
    """All that are not turned, through the command, in one stream."""
    records = []
    for number, (name, case) in enumerate(CASES.items()):
        if case.pixels is None or case.pixels.shape == (HEIGHT, WIDTH, 3):
            (here / f"{number}").write_bytes(case.data)
            records.append({"id": name, "image": f"{number}"})
    shape = f"{WIDTH}x{HEIGHT}"
    result = hk("pack", "x.h5", "--store", "pixels", "--size", shape, "--on-error", "skip", "--max-errors", 99,
                stdin=records)
    assert result.exit_code == 0
    refused = {name for name, case in CASES.items() if case.pixels is None}
    shard = ShardReader(here / "x.h5")
    assert {record["id"] for record in records} - set(shard.ids) == refused
    assert sum('warning: skipped: record "' in line for line in result.stderr.splitlines()) == len(refused)
    for row, name in enumerate(shard.ids):
        assert np.abs(shard.image(row).astype(int) - CASES[name].pixels).max() <= CASES[name].off, name
