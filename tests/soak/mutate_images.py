"""Damage encoded images again and again and decode them: `python mutate_images.py SEED COUNT`.

A process of its own, as decoders are other people's C. Prints how many were refused and how many decoded; dies on
any exception but an HkmapError that names the file, and leaves the image in the temporary folder.
"""

from __future__ import annotations

import io
import random
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from hkmap.errors import HkmapError
from hkmap.files.images import image_size, read_mask
from hkmap.shards.references import load_map, read_image

MEMORY = 8 << 30      # a header that promises a picture of gigabytes must not take the machine along


def originals() -> list[tuple[str, bytes]]:
    pixels = np.random.default_rng(0).integers(0, 256, (23, 17, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for kind, mode, options in (
        ("JPEG", "RGB", {"exif": exif}), ("JPEG", "L", {"progressive": True}), ("PNG", "RGB", {"exif": exif}),
        ("PNG", "P", {}), ("PNG", "L", {}), ("PNG", "RGBA", {}), ("PNG", "1", {}), ("TIFF", "RGB", {}),
        ("TIFF", "1", {"compression": "group4"}), ("TIFF", "RGBA", {}), ("BMP", "RGB", {}), ("GIF", "P", {}),
        ("WEBP", "RGB", {}), ("PPM", "RGB", {}), ("JPEG2000", "RGB", {}),
    ):
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
        found.append((kind, buffer.getvalue()))
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((5, 7), np.float32))
    return [*found, ("NPY", buffer.getvalue())]


def mutate(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 8])):
        place = dice.randrange(len(changed)) if dice.random() < 0.5 else dice.randrange(min(64, len(changed)))
        kind = dice.randrange(5)
        if kind == 0:
            changed[place] ^= 1 << dice.randrange(8)
        elif kind == 1:
            changed[place] = dice.choice([0, 1, 127, 128, 255])
        elif kind == 2:
            changed[place:place] = dice.randbytes(dice.choice([1, 4, 50]))
        elif kind == 3 and len(changed) > 64:
            del changed[place : place + dice.choice([1, 4, 50])]
        elif len(changed) > 64:
            del changed[dice.randrange(32, len(changed)):]
    return bytes(changed)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    dice = random.Random(int(sys.argv[1]))
    images = originals()
    refused = decoded = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(int(sys.argv[2])):
            kind, data = images[number % len(images)]
            data = mutate(data, dice)
            path = Path(folder) / ("image.npy" if kind == "NPY" else "image.png")
            path.write_bytes(data)
            for function, argument in (
                (read_image, str(path)), (image_size, path), (read_mask, path), (load_map, str(path)),
            ):
                try:
                    function(argument)
                    decoded += 1
                except HkmapError as error:
                    refused += str(path) in str(error)      # one that names no place is missing from the sum
                except Exception:
                    (Path(tempfile.gettempdir()) / "hkmap-mutated-image").write_bytes(data)
                    raise
    print(refused, decoded)


if __name__ == "__main__":
    main()
