"""Images and masks: what is read, what is refused, and how the sentences read."""

from __future__ import annotations

import io
import re
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from hkmap.errors import ImageError
from hkmap.files.headers import image_suffix
from hkmap.files.images import decode_image, image_size, read_levels, read_mask
from hkmap.stream.references import image_bytes, read_image

RED_ABOVE_BLUE = np.zeros((40, 24, 3), np.uint8)
RED_ABOVE_BLUE[:20, :, 0] = 255
RED_ABOVE_BLUE[20:, :, 2] = 255
ORIENTATION = 0x0112


def encoded(pixels: np.ndarray[Any, Any], kind: str = "PNG", **options: Any) -> bytes:
    """What Pillow writes: an implementation other than the one that reads here."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(kind: str, orientation: int) -> bytes:
    if kind == "TIFF":
        return encoded(RED_ABOVE_BLUE, kind, tiffinfo={ORIENTATION: orientation})
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(RED_ABOVE_BLUE, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_images_come_back_in_rgb(kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(encoded(pixels, kind), "x"), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(("orientation", "red_side"), [(1, "top"), (3, "bottom"), (6, "right"), (8, "left")])
def test_exif_turns_the_image_and_its_size(kind: str, orientation: int, red_side: str, tmp_path: Path) -> None:
    path = tmp_path / "turned"
    path.write_bytes(turned(kind, orientation))
    pixels = read_image(str(path))
    corner = {"top": (2, 12), "bottom": (-3, 12), "left": (12, 2), "right": (12, -3)}[red_side]
    red, green, blue = pixels[corner].astype(int)
    assert red > 200
    assert max(green, blue) < 60
    assert image_size(path) == (pixels.shape[1], pixels.shape[0]) == ((24, 40) if orientation in (1, 3) else (40, 24))


def test_alpha_is_dropped_and_grey_becomes_three_channels() -> None:
    rgba = np.dstack([RED_ABOVE_BLUE, np.full((40, 24), 9, np.uint8)])
    assert np.array_equal(decode_image(encoded(rgba), "x"), RED_ABOVE_BLUE)
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(decode_image(encoded(grey), "x"), np.dstack([grey] * 3))
    assert np.array_equal(decode_image(encoded(np.dstack([grey, grey + 1])), "x"), np.dstack([grey] * 3))


def test_sixteen_bits_become_eight_by_the_stated_rule() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.array([round(value / 257) for value in range(65536)], np.uint8).reshape(256, 256)
    decoded = decode_image(encoded(levels), "x")
    assert np.array_equal(decoded, np.dstack([expected] * 3))
    colour = np.random.default_rng(1).integers(0, 65536, (4, 5, 4), dtype=np.uint16)
    data = cv2.imencode(".png", colour)[1].tobytes()
    assert np.array_equal(decode_image(data, "x"), np.rint(colour[..., 2::-1] / 257).astype(np.uint8))


def with_thumbnail() -> bytes:
    """A JPEG whose EXIF block holds a whole small JPEG, as cameras write it."""
    thumbnail = encoded(RED_ABOVE_BLUE[::4, ::4], "JPEG")
    segment = b"Exif\0\0" + thumbnail
    data = encoded(RED_ABOVE_BLUE, "JPEG")
    return data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]


@pytest.mark.parametrize("data", [
    encoded(RED_ABOVE_BLUE, "JPEG"), encoded(RED_ABOVE_BLUE, "JPEG", progressive=True), with_thumbnail(),
    cv2.imencode(".jpg", RED_ABOVE_BLUE, [cv2.IMWRITE_JPEG_RST_INTERVAL, 1])[1].tobytes(), encoded(RED_ABOVE_BLUE),
], ids=["baseline", "progressive", "thumbnail", "restart", "png"])
def test_an_image_that_lost_its_end_is_refused(data: bytes) -> None:
    assert decode_image(data, "x").shape == (40, 24, 3)
    assert decode_image(data + b"what some cameras append \xff\xd8\xff", "x").shape == (40, 24, 3)
    for keep in (len(data) - 1, len(data) - 2, len(data) // 2, len(data) * 3 // 4):
        with pytest.raises(ImageError, match=r"^bird\.jpg: cut short at \d+ bytes \(its (end|IEND) .*; copy it again"):
            decode_image(data[:keep], "bird.jpg")


def test_filling_bytes_before_a_marker_are_part_of_it() -> None:
    data = encoded(RED_ABOVE_BLUE, "JPEG")
    filled = data[:-2] + b"\xff\xff\xff\xd9"
    assert decode_image(filled, "x").shape == (40, 24, 3)
    with pytest.raises(ImageError, match="its end marker is missing"):
        decode_image(filled[:-1], "x")


@pytest.mark.parametrize(("data", "sentence"), [
    (b"", r"^here: empty \(0 bytes\), expected an image; copy it again$"),
    (b"id,label\n1,2\n", r"^here: starts with b'id,label', expected an image \(JPEG"),
    (encoded(RED_ABOVE_BLUE, "BMP")[:40], r"^here: damaged, its header cannot be read \(.*; expected an image, open"),
    (cv2.imencode(".tiff", np.zeros((3, 3, 3), np.float32))[1].tobytes(),
     r"^here: has 32-bit float pixels, expected 8 or 16 bits a channel without a sign; convert it to PNG"),
], ids=["empty", "text", "broken", "float"])
def test_what_is_no_image_gets_its_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(ImageError, match=sentence):
        decode_image(data, "here")


def test_a_flipped_bit_in_a_png_is_found() -> None:
    data = bytearray(encoded(np.random.default_rng(2).integers(0, 256, (20, 20, 3), dtype=np.uint8)))
    data[data.index(b"IDAT") + 300] ^= 4
    with pytest.raises(ImageError, match=r"^here: damaged"):
        decode_image(bytes(data), "here")


def promising(kind: str, side: int) -> bytes:
    """A small image file whose header promises one of ``side`` x ``side`` pixels."""
    data = bytearray(encoded(RED_ABOVE_BLUE, kind))
    if kind == "PNG":
        data[16:24] = side.to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    elif kind == "BMP":
        data[18:26] = side.to_bytes(4, "little") * 2
    elif kind == "JPEG":
        frame = data.index(b"\xff\xc0") + 5
        data[frame : frame + 4] = side.to_bytes(2, "big") * 2
    else:
        buffer = io.BytesIO()
        Image.new("1", (8, 8)).save(buffer, "TIFF", tiffinfo={256: side, 257: side})
        data = bytearray(buffer.getvalue())
        for tag in (256, 257):
            place = data.index(tag.to_bytes(2, "little") + b"\x04\0\x01\0\0\0")
            data[place + 8 : place + 12] = side.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "JPEG", "TIFF"])
@pytest.mark.parametrize("side", [16385, 60_000])
def test_a_header_that_promises_too_many_pixels_is_refused(kind: str, side: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(promising(kind, side))
    sentence = rf"bomb: an image of ({side}x{side}|too many) pixels, expected at most 268,435,456 in all; scale it down"
    for function in (image_size, read_mask, read_levels, lambda path: read_image(str(path))):
        if kind != "JPEG" or function not in (read_mask, read_levels):
            with pytest.raises(ImageError, match=sentence):
                function(path)


def test_the_largest_image_that_is_allowed_has_a_size(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(promising("PNG", 16384))
    assert image_size(tmp_path / "large.png") == (16384, 16384)


def test_levels_are_grey_values_or_palette_indices(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    palette = Image.fromarray(values, "P")
    palette.putpalette([7] * 768)
    palette.save(tmp_path / "palette.png")
    pictures = {
        "grey.png": values, "deep.png": values.astype(np.uint16) * 1000, "binary.tif": values > 5,
        "alpha.png": np.dstack([values, values]),
    }
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / name)
    for name, expected in {**pictures, "palette.png": values, "alpha.png": values}.items():
        assert np.array_equal(read_levels(tmp_path / name), expected), name
    Image.new("RGB", (3, 3)).save(tmp_path / "colour.png")
    with pytest.raises(ImageError, match=r"colour\.png: a picture of mode RGB, expected grey values or a palette"):
        read_levels(tmp_path / "colour.png")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.jpg"
    for function in (image_size, read_mask, lambda path: image_bytes(str(path))):
        with pytest.raises(ImageError, match=r"missing\.jpg: No such file or directory; expected an image file"):
            function(missing)
    with pytest.raises(ImageError, match="a folder, expected a regular file; expected an image file"):
        image_bytes(str(tmp_path))
    text = tmp_path / "text.png"
    text.write_text("no image")
    with pytest.raises(ImageError, match=r"text\.png: its header cannot be read \(cannot identify"):
        image_size(text)
    broken = tmp_path / "broken_mask.tif"
    broken.write_bytes(b"II*\0" + bytes(50))
    with pytest.raises(ImageError, match=r"broken_mask\.tif: damaged, its header cannot be read"):
        read_mask(broken)


def test_a_broken_exif_block_turns_nothing(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    for kind in ("JPEG", "PNG"):
        for exif in (b"II*\0\xff\xff\xff\x7f", b"II*\0", b"no exif"):
            path.write_bytes(encoded(RED_ABOVE_BLUE, kind, exif=b"Exif\0\0" + exif))
            assert image_size(path) == (24, 40)
            assert read_image(str(path)).shape == (40, 24, 3)


def test_opencvs_own_words_for_a_damaged_image_are_not_heard(shell, tmp_path: Path) -> None:
    """libpng's get through."""
    for kind in ("gif", "tiff", "bmp", "webp"):
        data = cv2.imencode(f".{kind}", RED_ABOVE_BLUE)[1].tobytes()
        (tmp_path / f"damaged.{kind}").write_bytes(data[: len(data) // 3])
        with (tmp_path / "in.jsonl").open("a") as stream:
            stream.write(f'{{"id": "{kind}", "image": "damaged.{kind}"}}\n')
    result = shell("hkmap pack x.h5 in.jsonl --on-error skip")
    *skipped, last = result.stderr.splitlines()
    assert len(skipped) == 4
    assert all(re.match(r'warning: skipped: record "\w+": image damaged', line) for line in skipped)
    assert last.startswith("Error: x.h5: no record left to pack")


def masks() -> dict[str, tuple[bytes, np.ndarray[Any, Any]]]:
    """Each mask file with what a person sees as lesion in it."""
    lesion = np.zeros((6, 9), bool)
    lesion[1:3, 4:8] = True
    grey = lesion.astype(np.uint8)
    faint = np.zeros((6, 9, 3), np.uint8)
    faint[lesion] = (0, 0, 1)
    rgba = np.dstack([grey * 255, grey * 0, grey * 0, np.full_like(grey, 255)])
    clear = np.dstack([grey * 9, grey * 9, grey * 9, grey * 0])
    palette = Image.fromarray(grey * 3, "P")
    palette.putpalette([255, 255, 255] * 3 + [0, 0, 0] * 253)      # the lesion is black, and index 3
    files = {"1-bit tif": (lesion, "TIFF"), "0 and 1": (grey, "PNG"), "0 and 255": (grey * 255, "PNG"),
             "0 and 76": (grey * 76, "TIFF"), "faint blue": (faint, "PNG"), "opaque alpha": (rgba, "PNG"),
             "opaque alpha tif": (rgba, "TIFF"), "clear alpha tif": (clear, "TIFF"),
             "grey and alpha": (np.dstack([grey, 255 - grey * 0]), "PNG"), "16 bits": (grey.astype(np.uint16), "PNG"),
             "float": (grey.astype(np.float32), "TIFF")}
    result = {name: (encoded(pixels, kind), lesion) for name, (pixels, kind) in files.items()}
    for kind in ("PNG", "TIFF"):
        buffer = io.BytesIO()
        palette.save(buffer, kind)
        result[f"palette {kind}"] = (buffer.getvalue(), lesion)
    return result


@pytest.mark.parametrize("name", list(masks()))
def test_any_channel_or_index_but_zero_is_lesion(name: str, tmp_path: Path) -> None:
    data, lesion = masks()[name]
    (tmp_path / "mask").write_bytes(data)
    found = read_mask(tmp_path / "mask")
    assert found.dtype == np.bool_
    assert np.array_equal(found, lesion)


def test_a_mask_is_turned_with_its_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    mask = np.zeros((4, 7), np.uint8)
    mask[0, 0] = 1
    for pixels in (mask, np.dstack([mask] * 3 + [mask * 0 + 255])):
        (tmp_path / "mask.png").write_bytes(encoded(pixels, exif=exif))
        found = read_mask(tmp_path / "mask.png")
        assert found.shape == (7, 4)
        assert np.argwhere(found).tolist() == [[0, 3]]


def test_masks_that_are_refused(tmp_path: Path) -> None:
    jpeg = tmp_path / "mask.jpg"
    jpeg.write_bytes(encoded(RED_ABOVE_BLUE, "JPEG"))
    with pytest.raises(ImageError, match=r"mask\.jpg: a JPEG, whose noise would count as lesion; give `hkmap mask"):
        read_mask(jpeg)
    cut = tmp_path / "cut.png"
    cut.write_bytes(encoded(RED_ABOVE_BLUE)[:-20])
    with pytest.raises(ImageError, match=r"cut\.png: cut short"):
        read_mask(cut)
    palette = bytearray(masks()["palette PNG"][0])
    palette[palette.index(b"IDAT") + 6] ^= 255
    cut.write_bytes(palette)
    with pytest.raises(ImageError, match=r"cut\.png: damaged, or of a kind that is not decoded"):
        read_mask(cut)


@pytest.mark.parametrize(("data", "suffix"), [
    (encoded(RED_ABOVE_BLUE, "JPEG"), "jpg"), (encoded(RED_ABOVE_BLUE), "png"),
    (encoded(RED_ABOVE_BLUE, "TIFF"), "tif"), (encoded(RED_ABOVE_BLUE, "WEBP"), "webp"),
    (encoded(RED_ABOVE_BLUE, "GIF"), "gif"), (b"text", ""),
])
def test_the_first_bytes_give_the_suffix(data: bytes, suffix: str) -> None:
    assert image_suffix(data) == suffix


def test_real_masks_and_images(data_root: Path) -> None:
    ultrasound = sorted((data_root / "busi/masks").rglob("*.png"))[::260]
    for path in [*sorted((data_root / "idrid").rglob("*_EX.tif"))[:1], *ultrasound]:
        with Image.open(path) as image:
            assert np.array_equal(read_mask(path), np.asarray(image)), path
    assert not read_mask(next((data_root / "busi/masks/normal").iterdir())).any()
    grey = [path for path in sorted((data_root / "cub10").rglob("*.jpg")) if Image.open(path).mode == "L"][:1]
    for path in sorted((data_root / "cub10").rglob("*.jpg"))[::100] + grey:
        assert read_image(str(path)).shape == (*image_size(path)[::-1], 3)
