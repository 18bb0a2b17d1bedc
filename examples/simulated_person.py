"""Write the strokes of a simulated person who edits attention maps: a script for `hkmap edit --script`.

The person sees the network's attention, and knows where the thing is, roughly: at the record's bubbles, which others
have marked. Of the map's values they know nothing. They sweep a big soft eraser over bright places off the thing, row
by row, then draw a small brush along it, from one bubble to the next. The hand trembles, and now and then overlooks a
row or a bubble.

    python examples/simulated_person.py wrong.jsonl --seed 0 > strokes.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from hkmap.stream.references import load_map

BRIGHT = 0.2            # attention that a person notices
MISSED = 0.1            # share of the rows and bubbles that they overlook
SOFTNESS = 0.5
# All lengths are shares of the image's longer side.
TREMBLE = 0.015         # standard deviation of the hand, across and down
NEAR = 0.09             # how far around a bubble's middle they take the thing to reach
ERASER, BRUSH = 0.15, 0.06      # radii
LIFT = 0.2              # a way longer than this to the next bubble is not drawn

Place = npt.NDArray[np.float64]         # (x, y) in pixels of the image, or (N, 2) of them
Line = list[Place]


def rows_off(attention: npt.NDArray[np.float32], frame: Place, bubbles: Place) -> Iterator[Line]:
    """Yield the eraser's way (start, end) along each row of bright cells off the thing, a row per radius."""
    side = frame.max()
    cells = np.array(attention.shape[::-1])
    middles = (np.stack(np.meshgrid(*(np.arange(count) for count in cells)), -1) + 0.5) * frame / cells   # (h, w, 2)
    away = np.linalg.norm(middles[:, :, None] - bubbles, axis=-1).min(-1) > NEAR * side + ERASER * side / 2
    off = (attention > BRIGHT) & away
    for row in range(0, cells[1], max(1, round(ERASER * side * cells[1] / frame[1]))):
        edges = np.flatnonzero(np.diff(np.r_[False, off[row], False]))
        for first, last in zip(edges[::2], edges[1::2] - 1, strict=True):
            yield [middles[row, first], middles[row, last]]


def lines(bubbles: Place, side: float) -> Iterator[Line]:
    """Yield the brush's ways along the thing: always to the nearest bubble that is left, lifted where that is far."""
    left = list(bubbles[np.argsort(bubbles[:, 1])])     # from the top
    line: Line = []
    while left:
        ways = [float(np.linalg.norm(place - line[-1])) if line else 0.0 for place in left]
        nearest = int(np.argmin(ways))
        if ways[nearest] > LIFT * side:
            yield line
            line = []
        line.append(left.pop(nearest))
    yield line


def strokes_of(record: dict[str, Any], marked: list[dict[str, float]], seed: int) -> list[dict[str, Any]]:
    """Return what the person paints on a record's attention, who takes the thing to be at the bubbles ``marked``."""
    rng = np.random.default_rng([seed, crc32(record["id"].encode())])
    frame = np.array(record["size"], float)
    side = float(frame.max())
    bubbles = np.array([(one["x"], one["y"]) for one in marked if rng.random() >= MISSED]).reshape(-1, 2)
    if not len(bubbles):
        return []

    def stroke(tool: str, line: Line, radius: float) -> dict[str, Any]:
        points = np.array(line) + rng.normal(0, TREMBLE * side, (len(line), 2))
        return {"tool": tool, "points": points.round(2).tolist(), "radius": radius * side, "softness": SOFTNESS}

    rows = [row for row in rows_off(load_map(record["attention"]), frame, bubbles) if rng.random() >= MISSED]
    return [
        *(stroke("remove", row, ERASER) for row in rows), *(stroke("add", line, BRUSH) for line in lines(bubbles, side))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the strokes of a simulated person on attention maps.")
    parser.add_argument("records", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blind", action="store_true", help="a sham: paint on each image what the one before needs")
    given = parser.parse_args()
    records = [json.loads(line) for line in given.records.read_text().splitlines()]
    for at, record in enumerate(records):
        marked = records[at - given.blind]["bubbles"]
        edit = {"id": record["id"], "edited_by": "simulated", "start": "attention"}
        print(json.dumps({**edit, "strokes": strokes_of(record, marked, given.seed)}))


if __name__ == "__main__":
    main()
