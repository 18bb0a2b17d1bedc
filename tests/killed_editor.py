"""An editor that paints until it is killed, and says what it has kept: python killed_editor.py RECORDS OUT SEED"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

from hkmap.editor.session import EditSession
from hkmap.editor.work import to_line
from hkmap.maps.strokes import Stroke

records = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
session, dice = EditSession(records, Path(sys.argv[2])), random.Random(sys.argv[3])


def stroke() -> Stroke:
    points = tuple((dice.uniform(0, 64), dice.uniform(0, 64)) for _ in range(dice.choice([1, 10, 100])))
    return Stroke(dice.choice(["add", "remove", "unknown"]), points, radius=6.0)


changes: list[Callable[[int], object]] = [
    *[lambda at: session.paint(at, "ana", stroke())] * 8, lambda at: session.undo(at, "ana"),
    lambda at: session.redo(at, "ana"), lambda at: session.reset(at, "ana"),
    lambda at: session.mark(at, "ana", "confirmed"),
    lambda at: session.start(at, "ana", dice.choice(["map", "empty"])),
]
while True:
    number = dice.randrange(len(records))
    dice.choice(changes)(number)
    identifier, work = records[number]["id"], session.work(number, "ana")
    print(json.dumps(to_line(work, identifier, "ana")), flush=True)
