"""Images that a decoder takes with a warning, or that take much memory or time: each is an error that names it."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from hkmap.errors import ImageError, MapError
from hkmap.files import opening
from hkmap.files.images import decode_image, read_levels, read_mask
from hkmap.files.maps import load_map_file
from hkmap.shards.reader import ShardReader

SMOOTH = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8), (9, 9), 0)
END = b"\xff\xd9"


def encoded(kind: str, pixels: np.ndarray[Any, Any] = SMOOTH, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(content: bytes, *before: bytes, width: int = 128, height: int = 96, bits: int = 8) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *before, chunk(b"IDAT", content), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


JPEG, PROGRESSIVE = encoded("JPEG", quality=90), encoded("JPEG", progressive=True)
ROWS = b"".join(b"\0" + row.tobytes() for row in SMOOTH)


def promising(width: int, height: int, data: bytes = JPEG) -> bytes:
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]


DAMAGED = {
    "half a scan": (JPEG[: len(JPEG) // 2] + END, "Corrupt JPEG data: premature end of data segment"),
    "a scan without its last bytes": (JPEG[:-4] + END, "Corrupt JPEG data"),
    "half the scans": (PROGRESSIVE[: len(PROGRESSIVE) // 2] + END, "Corrupt JPEG data"),
    "something between": (JPEG[:-2] + bytes(20) + END, "Corrupt JPEG data: [0-9]+ extraneous bytes before marker 0xd9"),
    "few bytes that promise much": (promising(16384, 16383), "bytes cannot hold 16384x16383 pixels; copy it again$"),
    "rows that are missing": (png(zlib.compress(ROWS[: len(ROWS) // 2])), "libpng error: Not enough image data"),
    "rows too many": (png(zlib.compress(ROWS * 2)), "libpng warning: IDAT: Too much image data"),
    "a cut stream": (png(zlib.compress(ROWS)[:-40]), "libpng error: Not enough image data"),
    "a damaged stream": (png(flipped(zlib.compress(ROWS), 400)), "libpng error: "),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_a_decoder_complains_of_is_an_error(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data, sentence = DAMAGED[name]
    with pytest.raises(ImageError, match=f"^here: damaged.*{sentence}"):
        decode_image(data, "here")
    assert capfd.readouterr() == ("", "")


def test_words_about_colour_profiles_are_not_heard(capfd: pytest.CaptureFixture[str]) -> None:
    data = png(zlib.compress(ROWS), chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile" * 20)))
    assert np.array_equal(decode_image(data, "here"), SMOOTH)
    assert capfd.readouterr() == ("", "")


def test_threads_do_not_hear_each_others_words() -> None:
    half, wrong = DAMAGED["half a scan"][0], []

    def work(first: int) -> None:
        for number in range(first, first + 40):
            damaged = number % 5 == 0
            try:
                decode_image(half if damaged else JPEG, "here")
                wrong.extend([number] * damaged)
            except ImageError:
                wrong.extend([number] * (not damaged))

    workers = [threading.Thread(target=work, args=(first,)) for first in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_forked_child_hears_too() -> None:
    child = os.fork()
    if not child:
        try:
            decode_image(DAMAGED["half a scan"][0], "here")
        except ImageError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_pack_names_the_damaged_file(shell, tmp_path: Path) -> None:
    words = chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile" * 20))
    files = {"whole.jpg": JPEG, "half.jpg": DAMAGED["half a scan"][0], "words.png": png(zlib.compress(ROWS), words)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"id": "{name}", "image": "{name}"}}\n' for name in files))
    done = shell("hkmap pack x.h5 in.jsonl --on-error skip --max-errors 1")
    skipped, counted = done.stderr.splitlines()
    assert skipped.startswith('warning: skipped: record "half.jpg": image half.jpg: damaged (Corrupt JPEG data: premat')
    assert counted == "warning: 1 skipped"
    assert ShardReader(tmp_path / "x.h5").ids == ["whole.jpg", "words.png"]


# --- many scans ---------------------------------------------------------------------------------------------------


def test_a_jpeg_of_many_scans_is_refused() -> None:
    scan = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match=r"^here: a JPEG of more than 100 scans; save it as PNG"):
        decode_image(PROGRESSIVE[:-2] + scan * 3000 + END, "here")


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE], ids=["baseline", "progressive"])
def test_scans_that_are_not_read_do_not_count(data: bytes) -> None:
    """Behind the end, as cameras append pictures; or behind the only one."""
    expected, scan = decode_image(data, "here"), data[data.rindex(b"\xff\xda") : -2]
    more = [data + scan * 200, data + scan * 200 + END] + [data[:-2] + scan * 200 + END] * (data == JPEG)
    for longer in more:
        assert np.array_equal(decode_image(longer, "here"), expected)


# --- the limit on what decoding takes -----------------------------------------------------------------------------


def large(kind: str, side: int) -> bytes:
    """A small file that promises side x side pixels, of 16 bits where the kind says so."""
    if kind.startswith("PNG"):
        return png(zlib.compress(bytes(100)), width=side, height=side, bits=16 if kind.endswith("16") else 8)
    data = bytearray(encoded(kind.split()[0], SMOOTH if kind != "TIFF 16" else SMOOTH[..., 0].astype(np.uint16)))
    if kind == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif kind == "JPEG2000":
        place = data.index(b"ihdr") + 4
        data[place : place + 8] = struct.pack(">II", side, side)
    else:
        for tag in (256, 257):
            place = data.index(struct.pack("<HHI", tag, 4, 1)) + 8
            data[place : place + 4] = struct.pack("<I", side)
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG 16", "TIFF 16", "TIFF", "BMP", "GIF", "JPEG2000"])
def test_more_than_the_limit_is_refused_before_it_is_decoded(kind: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(large(kind, 16383))
    sentence = r"an image of 16383x16383 pixels, [0-9,]+ bytes to decode it, expected at most 1,073,741,824; scale it "
    for read in (read_mask, read_levels, lambda path: decode_image(path.read_bytes(), str(path))):
        with pytest.raises(ImageError, match=sentence):
            read(tmp_path / "x.png")
    if kind.startswith("PNG"):
        with pytest.raises(MapError, match=sentence):
            load_map_file(tmp_path / "x.png")


@pytest.mark.parametrize(("size", "bytes_allowed"), [
    ("36863", 36863), ("36kB", 36_000), ("36KiB", 36_864), ("1 GiB", 1 << 30), ("2MB", 2_000_000), ("4GiB", 1 << 32),
])
def test_the_limit_is_an_option(size: str, bytes_allowed: int, hk, here: Path) -> None:
    (here / "x.jpg").write_bytes(JPEG)      # 96 x 128 x 3 = 36,864 bytes
    result = hk("--max-image-bytes", size, "pack", "x.h5", stdin=[{"id": "1", "image": "x.jpg"}])
    assert opening.max_image_bytes == bytes_allowed
    assert result.exit_code == (bytes_allowed < 36_864)
    if result.exit_code:
        assert ("x.jpg: an image of 128x96 pixels, 36,864 bytes to decode it, expected at most "
                f"{bytes_allowed:,}; scale it down, or give `hkmap --max-image-bytes 36864 COMMAND`") in result.stderr
    behind = hk("pack", "y.h5", "--max-image-bytes", size, stdin=[{"id": "1", "image": "x.jpg"}])
    assert (behind.exit_code, behind.stderr) == (result.exit_code, result.stderr)
    assert hk("list", "metrics").exit_code == 0
    assert opening.max_image_bytes == 1 << 30      # the default is in force again


@pytest.mark.parametrize("size", ["0", "-1", "1.5GB", "much", "", "1001TB", "9" * 16])
def test_a_limit_that_is_none_is_refused(size: str, hk) -> None:
    result = hk("--max-image-bytes", size, "list")
    assert result.exit_code == 2
    assert "expected a number of bytes such as 500000, 500MB or 2GiB" in result.stderr
