"""Take the pictures of the editor for the docs: digits with a decoy, which a network looks at and a person corrects.

    PYTHONPATH=.:tests:examples python docs/screenshots.py docs/editor        # make screenshots

The images are scikit-learn's, as `examples/decoy_digits.py` shows them. Of those that the network gets wrong the
pictures show one that it gets right once a person has removed the decoy from its map and added the digit.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import decoy_digits
import numpy as np
from browser import launched
from decoy_digits import CANVAS, PATCH
from PIL import Image, ImageOps
from served_editor import Served

from hkmap.editor.live import LiveNetwork
from hkmap.editor.session import EditSession
from hkmap.engine.runs import load_model, pick_device
from hkmap.maps.certainty import Weighted
from hkmap.maps.strokes import Stroke, paint
from hkmap.stream.references import load_map

ENLARGED = 8        # the images, so that a picture shows digits and not pixels
SIDE = ENLARGED * CANVAS
BITS = 6            # of a colour, which keep a picture small
SETTLED = 1500      # milliseconds until all answers are there, and while a frame of the film is seen:
FIRST_FRAME, FRAME, LAST_FRAME = 1200, 120, 4000
SCENES: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1200, "height": 750}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1200, "height": 750}, "color_scheme": "dark"},
    "small": {"viewport": {"width": 1024, "height": 640}, "color_scheme": "light"},
    "tablet": {"viewport": {"width": 768, "height": 1024}, "color_scheme": "light", "has_touch": True},
    "drag": {"viewport": {"width": 1024, "height": 640}, "color_scheme": "light"},
}
PREPARED = r"""
set -euo pipefail
for split in train test; do
    hkmap cub digits --bubbles digits/bubbles.csv --split $split --absolute \
        | hkmap bubbles2map --bandwidth radius --size 32 --out $PWD/maps-$split \
        | hkmap resize --size 16 --normalise max --out $PWD/maps16-$split > $split.jsonl
done
hkmap pack train.h5 train.jsonl
hkmap train train.h5 --arch resnet8+abn --stem small --width 16 --gate product --image-size 32 --epochs 15 --out run
hkmap predict test.jsonl --from run --out $PWD/attention \
    | hkmap select --only misclassified --sort confidence > wrong.jsonl
"""


def prepare(folder: Path) -> None:
    """Write the images, the records that a network gets wrong, and the network."""
    digits = folder / "digits"
    decoy_digits.write(digits, 0, 600, 400)
    for path in digits.glob("images/*/*.png"):
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))
    with open(digits / "bubbles.csv") as file:
        rows = list(csv.DictReader(file))
    with open(digits / "bubbles.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {name: ENLARGED * float(row[name]) for name in ("x", "y", "radius")})
    (digits / "classes.txt").write_text("".join(f"{label + 1} digit {label}\n" for label in range(10)))
    subprocess.run(["bash", "-c", PREPARED], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def strokes_for(record: dict[str, Any]) -> list[Stroke]:
    """Return what a person would paint: the decoy's corner away, and along the digit, from its top on."""
    corner = [(float(ENLARGED * x), float(ENLARGED * y)) for y in range(0, PATCH + 2, 3) for x in (0, PATCH)]
    grey = cv2.imread(record["image"], cv2.IMREAD_GRAYSCALE)
    image = cv2.resize(grey, (CANVAS, CANVAS), interpolation=cv2.INTER_AREA)
    looked_at = cv2.resize(load_map(record["map"]), (CANVAS, CANVAS)) > 0.2
    ink = [(ENLARGED * (x + 0.5), ENLARGED * (y + 0.5)) for y, x in np.argwhere((image > 110) & looked_at)[::2]]
    way = [ink.pop(0)]
    while ink:
        way.append(ink.pop(int(np.hypot(*(np.array(ink) - way[-1]).T).argmin())))
    return [Stroke("remove", tuple(corner), radius=24), Stroke("add", tuple(way), radius=12)]


def corrected(folder: Path) -> int:
    """Return the number of the record whose answer a person's strokes mend most."""
    records = [json.loads(line) for line in (folder / "wrong.jsonl").read_text().splitlines()]
    network = LiveNetwork(load_model(folder / "run"), pick_device("cpu"))
    session = EditSession(records, folder / "tried", network=network)

    def mended(number: int) -> float:
        record, seen = records[number], session.seen(number)
        after = network.answer(seen, paint(strokes_for(record), Weighted(seen.attention, None), (SIDE, SIDE)))
        return float(after[record["label"]] - seen.before[record["label"]])

    return max(range(len(records)), key=mended)


def paint_with_mouse(page: Any, strokes: list[Stroke]) -> Iterator[None]:
    """Paint the strokes place by place; the last button stays down, as the answers follow."""
    (left, top), (right, _) = page.evaluate("[editor.view.toImage(0, 0), editor.view.toImage(100, 100)]")
    scale = 100 / (right - left)
    for stroke in strokes:
        page.keyboard.press({"add": "a", "remove": "r"}[stroke.tool])
        page.evaluate("(radius) => editor.controls.set({radius})", stroke.radius)
        places = [((x - left) * scale, (y - top) * scale) for x, y in stroke.points]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=3)
            yield
        if stroke is not strokes[-1]:
            page.mouse.up()


def taken(page: Any, wait: int = SETTLED, **options: Any) -> Image.Image:
    """Return a picture of the page."""
    page.wait_for_timeout(wait)
    return Image.open(io.BytesIO(page.screenshot(**options))).convert("RGB")


def film(page: Any, strokes: list[Stroke], path: Path) -> None:
    """Write an animation of the image and the answers while the strokes are painted."""
    image, panel = (page.locator(place).bounding_box() for place in ("main", "aside"))
    clip = {"x": image["x"], "y": image["y"], "height": image["height"], "width": image["width"] + panel["width"]}
    frames = [taken(page, clip=clip)]
    frames += [taken(page, 2 * FRAME, clip=clip) for _ in paint_with_mouse(page, strokes)]
    frames.append(taken(page, clip=clip))
    durations = [FIRST_FRAME, *[FRAME] * (len(frames) - 2), LAST_FRAME]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=60, method=6)


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, launched() as chromium:
        folder = Path(name)
        prepare(folder)
        number = corrected(folder)
        record = json.loads((folder / "wrong.jsonl").read_text().splitlines()[number])
        for scene, options in SCENES.items():
            given = ["--from", "run", "--start", "attention", "--out", f"edited-{scene}", "--user", "ana"]
            with Served(folder, "wrong.jsonl", *given) as editor:
                page = chromium.new_page(**options)
                page.goto(f"{editor.link}#n={number}")
                page.locator("#opacity").fill("0.35")
                page.locator("#hints button").click()
                page.locator("#answers .answer").first.wait_for()
                if scene == "drag":
                    film(page, strokes_for(record), out / "drag.webp")
                else:
                    for _ in paint_with_mouse(page, strokes_for(record)):
                        pass
                    ImageOps.posterize(taken(page), BITS).save(out / f"{scene}.png", optimize=True)
                page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
