"""Time the editor in Chromium, from the pointer's event to the painted answer; print JSON.

The command runs in a process of its own, as people start it, with networks of random weights. A hand moves 60 times a
second. `editor_probe.js` is in the page and takes the times; a frame counts when it is over.

    PYTHONPATH=.:tests python benchmarks/editor.py [--quick]
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from browser import launched
from playwright.sync_api import Browser, Page
from served_editor import Served

from hkmap.editor.work import Work, to_line
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.runs import new_model, save_model
from hkmap.maps.strokes import Stroke
from hkmap.networks.backbone import Architecture

PROBE = Path(__file__).with_name("editor_probe.js")
WINDOW = {"width": 1280, "height": 800}
RATE = 60               # moves of a hand, a second
CLASSES = 200


class Sizes(NamedTuple):
    networks: dict[str, int]        # the milliseconds that a p95 may have
    moves: int
    strokes: int                    # that the moves are parts of
    sides: tuple[int, ...]
    opened: int
    undone: int
    records: int


FULL = Sizes({"resnet18+abn": 50, "resnet50+abn": 100, "resnet152+abn": 100}, 500, 10, (224, 2000), 20, 200, 10_000)
QUICK = Sizes({"resnet8+abn": 50}, 20, 2, (224,), 2, 5, 50)


# what is edited


def write_records(folder: Path, side: int, count: int) -> str:
    """Write ``count`` records of four photographs' size and noise, and return their file's name."""
    rng = np.random.default_rng(side)
    for number in range(4):
        coarse = rng.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{side}-{number}.jpg"), cv2.resize(coarse, (side, side)))
    name = f"{side}x{count}.jsonl"
    with open(folder / name, "w") as file:
        for number in range(count):
            record = {"id": f"{side}-{number}", "image": f"{side}-{number % 4}.jpg", "label": number % CLASSES}
            file.write(json.dumps(record) + "\n")
    return name


def write_network(folder: Path, name: str) -> str:
    path = folder / f"{name}.safetensors"
    if not path.exists():
        names = [f"class {number}" for number in range(CLASSES)]
        save_model(path, new_model(Architecture(name, CLASSES), Preprocessing(224, 224), names, 0))
    return path.name


@contextmanager
def opened(
    browser: Browser, folder: Path, records: str, network: str | None, out: str
) -> Iterator[tuple[Page, float, float]]:
    """Yield the page of an editor with the first record open, and the seconds until the link and until then."""
    given = ["--from", write_network(folder, network)] if network else []
    began = time.perf_counter()
    with Served(folder, records, *given, "--out", out, "--user", "ana") as editor:
        linked = time.perf_counter() - began
        page = browser.new_page(viewport=WINDOW, bypass_csp=True)     # Playwright waits by `eval`
        page.add_init_script(path=PROBE)
        page.goto(editor.link)
        shown = "document.querySelectorAll('#answers .answer').length" if network else "window.editor?.painting"
        page.wait_for_function(shown)
        yield page, linked, time.perf_counter() - began
        page.close()


# a hand


def drag(page: Page, moves: int) -> None:
    """Draw one stroke of so many moves over the middle of the image, never twice the same way."""
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    middle, reach = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2), min(box["width"], box["height"]) / 4

    def place(step: int) -> tuple[float, float]:
        return middle[0] + reach * math.sin(0.11 * step), middle[1] + reach * math.cos(0.17 * step)

    page.mouse.move(*place(0))
    page.mouse.down()
    due = time.perf_counter()
    for step in range(1, moves + 1):
        due = max(due + 1 / RATE, time.perf_counter())
        time.sleep(max(0.0, due - time.perf_counter()))      # the pace of a hand, which never catches up
        page.mouse.move(*place(step))
    page.mouse.up()


def shares(values: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile, in milliseconds."""
    ordered = sorted(values)
    return {"p50": round(statistics.median(ordered), 1), "p95": round(ordered[math.ceil(0.95 * len(ordered)) - 1], 1)}


def judged(values: list[float], target: float) -> dict[str, Any]:
    found = shares(values)
    met = found["p95"] <= target
    return {"p50": found["p50"], "value": found["p95"], "target": f"at most {target:g}", "met": met}


# figures


def latency(browser: Browser, folder: Path, network: str, sizes: Sizes) -> dict[str, Any]:
    """Return the milliseconds from a pointer's event to the frame that shows the answer to it."""
    records = write_records(folder, 224, 4)
    with opened(browser, folder, records, network, f"latency-{network}") as (page, _, _):
        drag(page, 20)      # warms up
        page.evaluate("probe.moves.length = 0")
        for _ in range(sizes.strokes):
            drag(page, sizes.moves // sizes.strokes)
            page.wait_for_function("probe.moves.every((move) => move.took)")
        moves = page.evaluate("probe.moves")
    return {**judged([move["took"] for move in moves], sizes.networks[network]), "moves": len(moves)}


def frames(browser: Browser, folder: Path, side: int, network: str | None, sizes: Sizes) -> dict[str, Any]:
    """Return the milliseconds between frames of a page that is left alone, and while a hand paints."""
    records = write_records(folder, side, 4)
    found = {}
    with opened(browser, folder, records, network, f"frames-{side}-{network}") as (page, _, _):
        for name, target in (("idle", 20), ("dragging", 33)):
            page.evaluate("probe.watch(true)")
            if name == "idle":
                page.wait_for_timeout(1000 * sizes.moves / RATE / 2)
            else:
                drag(page, sizes.moves)
            page.evaluate("probe.watch(false)")
            found[name] = judged(np.diff(page.evaluate("probe.frames")).tolist(), target)
    return found


def pressed(page: Page, key: str, times: int, awaited: str) -> list[dict[str, float]]:
    """Press a key again and again, each time until what is ``awaited`` has come; return the milliseconds of each."""
    page.evaluate("probe.keys.length = 0")
    for _ in range(times):
        page.keyboard.press(key)
        page.wait_for_function(f"probe.keys.at(-1).{awaited}")
    found: list[dict[str, float]] = page.evaluate("probe.keys")
    return found


def opening(browser: Browser, folder: Path, network: str, sizes: Sizes) -> dict[str, Any]:
    """Return the milliseconds from a key to the next record's map, and to the answer of a network that is new to it."""
    records = write_records(folder, 224, sizes.opened + 1)
    with opened(browser, folder, records, network, "opening") as (page, _, _):
        keys = pressed(page, "ArrowRight", sizes.opened, "answer")
    return {name: shares([key[name] for key in keys]) for name in ("opened", "answer")}


def undoing(browser: Browser, folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Return the milliseconds from a key to the frame without the last stroke, and until that is on the disk."""
    records = write_records(folder, 224, 4)
    work = Work("empty")
    for number in range(sizes.undone):
        work = work.painted(Stroke("add", ((number, 20), (220 - number, 200)), radius=20))
    path = folder / "undoing" / "strokes" / "ana" / "224-0.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(to_line(work, "224-0", "ana")) + "\n")
    with opened(browser, folder, records, None, "undoing") as (page, _, _):
        keys = pressed(page, "u", sizes.undone, "saved")
    return {"strokes": sizes.undone, **{name: shares([key[name] for key in keys]) for name in ("painted", "saved")}}


def start(browser: Browser, folder: Path, network: str, sizes: Sizes) -> dict[str, float]:
    """Return the seconds until the link is there, and until the first record of many is painted."""
    records = write_records(folder, 224, sizes.records)
    with opened(browser, folder, records, network, "many") as (_, linked, shown):
        return {"records": sizes.records, "link": round(linked, 1), "first_record": round(shown, 1)}


def main(*, quick: bool) -> None:
    sizes = QUICK if quick else FULL
    first = next(iter(sizes.networks))
    with tempfile.TemporaryDirectory() as name, launched() as browser:
        folder = Path(name)
        print(json.dumps({
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
                       f"Chromium {browser.version}",
            "sizes": "quick: the figures mean nothing" if quick else "full",
            "milliseconds_to_painted_answer": {
                network: latency(browser, folder, network, sizes) for network in sizes.networks
            },
            "milliseconds_between_frames": {
                f"{side}_pixels_{network or 'no_network'}": frames(browser, folder, side, network, sizes)
                for side in sizes.sides for network in (None, first)
            },
            "milliseconds_to_open": opening(browser, folder, first, sizes),
            "milliseconds_to_undo": undoing(browser, folder, sizes),
            "seconds_to_start": start(browser, folder, first, sizes),
        }, indent=2))


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
