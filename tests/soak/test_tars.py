"""Whatever the headers of a tar say: samples or an HkmapError, never another exception."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from hkmap.errors import HkmapError
from hkmap.sources.webdataset import read_tars

pytestmark = pytest.mark.soak
TRIALS = 5000
PIXEL = cv2.imencode(".png", np.zeros((2, 3, 3), np.uint8))[1].tobytes()
KINDS = b"0123456789SxgLKVDMN\0"


def whole_tar(form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for key in ("a/1", "b" * 120, "ü"):
            for suffix, data in (("png", PIXEL), ("cls", b"1"), ("json", b'{"note": "x"}')):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Change some headers, their checksums made to fit, and cut some tars short."""
    changed = bytearray(data)
    headers = [place for place in range(0, len(data), 512) if data[place + 257 : place + 262] == b"ustar"]
    for _ in range(chance.randint(1, 4)):
        place = chance.choice(headers)
        kind = chance.random()
        if kind < 0.4:
            changed[place + 156] = chance.choice(KINDS)
        elif kind < 0.7:
            sizes = (b"\x80" + chance.randbytes(11), b"\xff" * 12, b"%011o\0" % chance.randint(0, 1 << 30))
            changed[place + 124 : place + 136] = chance.choice(sizes)
        else:
            changed[place + chance.randint(0, 511)] = chance.randint(0, 255)
        total = sum(changed[place : place + 148]) + 8 * 32 + sum(changed[place + 156 : place + 512])
        changed[place + 148 : place + 156] = b"%06o\0 " % total
    return bytes(changed[: chance.randint(0, len(data))] if chance.random() < 0.2 else changed)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_headers_that_say_anything(form: int, tmp_path: Path) -> None:
    chance, whole, path = random.Random(form), whole_tar(form), tmp_path / "x.tar"
    refused = 0
    for _ in range(TRIALS):
        path.write_bytes(damaged(whole, chance))
        try:
            list(read_tars([path]))
        except HkmapError:
            refused += 1
    assert refused > TRIALS / 4
