"""Records, tables and values of options that somebody has changed at random: a result or one sentence, never a bug.

The seeds are fixed, so that every run makes the same changes. What hangs ends by the alarm, what grows by the limit.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import pytest

from hkmap.cli.main import OURS, load
from hkmap.editor.messages import read_message
from hkmap.errors import HkmapError

pytestmark = pytest.mark.soak

SEEDS = range(8)
EACH = 600              # changes per seed and subject
SECONDS = 60            # for one command; it takes a hundredth of one
MORE = 2 * 10**9        # bytes

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e-320, 1e12, 1e13, 1e308, 10**18, 10**19, 10**30, 2**63, -(2**63), "",
    " ", "x", "0", "nan", "\0", "\x1b[2J", "\u202e", "é", "e\u0301", "x" * 300, "x" * 5000, "a/b", "../a", "/", ".",
    "#", "@", "x.png", "x.png#1", "m.npy", "s.h5#0", "s.h5#99", "s.h5#-1", "fifo", "zero", "folder", [], {}, [[]],
    [0], [1, 1], [-1, 1], [10**9] * 2, {"a": "x.png"}, {"": ""}, {"a": None}, [{}], [None], [{"x": 1, "y": 1}], [[1,
    1]] * 3, {"size": [2, 2], "counts": "04"}, {"size": [10**6, 10**6], "counts": "04"},
]
WORDS = [
    "", " ", "0", "-0", "-1", "1", "2", "3.5", "1e9", "1e400", "nan", "inf", "-inf", "9" * 30, "9" * 5000, "0x10",
    "1_0", "²", "٣", "é", "x", "a,b", "a=b", "a=", "=b", "=", ",", "a=0.5,b=0.5", "x" * 300, "\x1b[2J", "../x", "/",
    ".", "fifo", "zero", "folder", "m.npy", "x.png", "s.h5", "r.jsonl", "t.csv", "{0..9}", "{9..0}",
    "x-{0..99999}{0..99999}.h5", "*", "**", "[", "None", "auto", "1x1", "1x", "x1", "3x3", "99999x1", "1/2", "1/1",
    "0/5", "5/1", "1:1", "1:0", "1000:1", "0,0,1,1", "1KB", "1GiB", "9TB",
]
RECORD: dict[str, Any] = {
    "id": "1", "image": "x.png", "size": [32, 24], "label": 1, "class": "a", "map": "m.npy", "certainty": "m.npy",
    "bubbles": [{"x": 3, "y": 4, "radius": 5, "weight": 1, "user": "u"}, {"x": 9, "y": 9, "radius": 2, "user": "v"}],
    "points": [{"x": 1, "y": 2}], "boxes": [{"x": 1, "y": 2, "width": 5, "height": 6, "label": "a"}],
    "polygons": [{"points": [[1, 1], [9, 1], [9, 9]], "label": "a"}], "lines": [{"points": [[1, 1], [9, 9]]}],
    "masks": {"a": "k.png"}, "unknown": {"b": "k.png"}, "dont_look": {"c": "k.png#1"},
    "annotator_maps": {"u": "m.npy", "v": "m.npy"}, "prediction": 1, "confidence": 0.5, "attention": "m.npy",
}
FILTERS = (
    "resize --size 3 --out OUT", "bubbles2map --size 9 --out OUT",
    "bubbles2map --size 9 --key points --bandwidth cv --out OUT", "boxes2map --size 9 --out OUT",
    "masks2map --size 9 --out OUT", "certainty --out OUT", "certainty --default unknown --out OUT",
    "crop --letterbox 1 --out OUT", "crop --crop 0,0,9,9 --map-size 3 --out OUT", "sample 1 --per-class", "check",
    "plant --decoy line --rate 0.5 --classes 3 --out OUT",
    "agreement", "pack OUT.h5", "pack OUT.h5 --store pixels --size 4",
    "show --cell 32 --map map --map attention --out OUT.png",
)
_BRUSH = {"tool": "add", "points": [[1, 2], [3, 4]], "radius": 5, "strength": 0.5, "softness": 1}
MESSAGES: list[dict[str, Any]] = [
    {"do": "open", "n": 0}, {"do": "draw", "n": 1, "tick": 3, "stroke": _BRUSH}, {"do": "lift", "n": 2}, {"do": "done"},
    {"do": "draw", "n": 1, "tick": 4, "points": [[1, 2]]}, {"do": "paint", "n": 0, "revision": 0, "stroke": _BRUSH},
    {"do": "undo", "n": 0, "revision": 1}, {"do": "start", "n": 0, "revision": 1, "start": "empty"},
    {"do": "mark", "n": 0, "revision": 1, "state": "skipped"},
]
TABLES = {
    "bubbles.csv": "image,x,y,radius,user,weight,label\nx.png,3,4,5,u,1,a\nx.png,9,9,2,v,0.5,b\n",
    "boxes.csv": "filename;x;y;width;height\nx.png;1;2;3;4\n", "points.jsonl": '{"image": "x", "x": 1, "y": 2}\n',
    "corners.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\nx.png,32,24,bird,1,2,9,8\n",
}
READERS = ("annotations {} --images .", "annotations {} --images . --format table", "join {} r.jsonl",
           "annotations {} --images . --origin 1 --frame 64x48")

LINES = {             # of each command, one that lacks nothing
    "cub": ".", "dogs": ".", "idrid": ".", "folder": "folder", "annotations": "t.csv --images .",
    "webdataset": "x.tar --out o", "join": "t.csv", "sample": "1", "bubbles2map": "--out o",
    "boxes2map": "--out o", "masks2map": "--out o", "certainty": "--out o", "crop": "--letterbox 1 --out o",
    "resize": "--size 3 --out o", "edit": "--script t.csv --out o", "pack": "o.h5", "unpack": "s.h5",
    "merge": "o.h5 s.h5", "split": "s.h5 --out o", "info": "s.h5", "train": "s.h5 --out o",
    "finetune": "s.h5 --from folder --out o", "predict": "--from folder",
    "eval": "s.h5 --from folder --metric top1", "show": "--out o.png", "check": "", "agreement": "", "list": "",
    "env": "", "plant": "--decoy patch --rate 0.5 --out o", "select": "", "import": "t.csv --out o",
    "export": "folder --to safetensors --out o",
    "plot": "folder --out o.png", "compare": "folder folder", "report": "folder --out o.html",
}
assert set(LINES) == set(OURS)      # also where only the quick tests are collected


@pytest.fixture
def workplace(here: Path) -> Path:
    rng = np.random.default_rng(0)
    assert cv2.imwrite("x.png", rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    assert cv2.imwrite("k.png", np.eye(24, 32, dtype=np.uint8) * 255)
    np.save("m.npy", np.ones((4, 4), np.float32))
    Path("r.jsonl").write_text(json.dumps(RECORD) + "\n")
    Path("t.csv").write_text(TABLES["bubbles.csv"])
    Path("s.h5").write_bytes(b"\x89HDF")
    os.mkfifo("fifo")
    Path("zero").symlink_to("/dev/zero")
    Path("folder").mkdir()
    return here


@pytest.fixture
def run(hk: Callable[..., Any], workplace: Path) -> Iterator[Callable[..., None]]:
    """Run one line; whatever comes is a result or a sentence."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status").read_text()
    used = int(status.partition("VmData:")[2].split()[0]) * 1024

    def hang(*_: object) -> None:
        raise AssertionError(f"no end after {SECONDS} seconds")

    def once(line: list[str], stdin: bytes = b"") -> None:
        signal.alarm(SECONDS)
        result = hk(*line, stdin=stdin)
        signal.alarm(0)
        assert result.exit_code in (0, 1, 2, 3), line
        assert result.exit_code in (0, 3) or result.stderr.count("Error: ") == 1, (line, result.stderr)
        assert "\x1b" not in result.stderr

    before = signal.signal(signal.SIGALRM, hang)
    resource.setrlimit(resource.RLIMIT_DATA, (used + MORE, hard))
    yield once
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def changed_value(value: Any, dice: random.Random) -> Any:
    """Change one thing somewhere in a JSON value."""
    if isinstance(value, dict | list) and value and dice.random() < 0.8:
        key = dice.choice(list(value) if isinstance(value, dict) else range(len(value)))
        copy = dict(value) if isinstance(value, dict) else list(value)
        if dice.random() < 0.1:
            del copy[key]
        else:
            copy[key] = changed_value(value[key], dice)
        return copy
    return dice.choice(VALUES)


def changed_bytes(text: bytes, dice: random.Random) -> bytes:
    """Flip, drop, repeat or insert some bytes."""
    for _ in range(dice.randint(1, 3)):
        start = dice.randrange(len(text) + 1)
        end = min(len(text), start + dice.choice([0, 1, 1, 2, 9]))
        word = dice.choice(WORDS).encode()
        new = dice.choice([b"", bytes([dice.randrange(256)]), text[start:end] * 2, word, b"\n", b'"', b","])
        text = text[:start] + new + text[end:]
    return text


@pytest.mark.parametrize("seed", SEEDS)
def test_records(run: Callable[..., None], tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    for number in range(EACH):
        record = RECORD
        for _ in range(dice.choice([1, 1, 2, 3])):
            record = changed_value(record, dice)
        line = json.dumps(record).encode()
        if dice.random() < 0.3:
            line = changed_bytes(line, dice)
        command = dice.choice(FILTERS).replace("OUT", f"out-{number % 9}")
        overwrite = [] if command.split()[0] in ("sample", "check", "agreement") else ["--overwrite"]
        run([*shlex.split(command), *overwrite], line + b"\n")


@pytest.mark.parametrize("seed", SEEDS)
def test_messages_of_pages(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(20 * EACH):
        message = dice.choice(MESSAGES)
        for _ in range(dice.choice([1, 1, 2, 3])):
            message = changed_value(message, dice)
        text = json.dumps(message).encode()
        if dice.random() < 0.3:
            text = changed_bytes(text, dice)
        with suppress(HkmapError, ValueError):
            read = read_message(text.decode(errors="replace"), 3)
            assert -1 <= read.number < 3


@pytest.mark.parametrize("seed", SEEDS)
def test_tables(run: Callable[..., None], seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(EACH):
        name = dice.choice(list(TABLES))
        rows = [line.split(",") for line in TABLES[name].splitlines()]
        for _ in range(dice.choice([0, 1, 1, 2])):
            row = dice.choice(rows)
            row[dice.randrange(len(row))] = dice.choice(WORDS)
        text = "\n".join(map(",".join, rows)).encode() + b"\n"
        Path(name).write_bytes(changed_bytes(text, dice) if dice.random() < 0.6 else text)
        run(shlex.split(dice.choice(READERS).format(name)))


def lines_of_options() -> list[tuple[list[str], click.Option]]:
    """Each option of each command, and a line that lacks nothing else."""
    return [
        ([name, *LINES[name].split()], option) for name in OURS for option in load(name).params
        if isinstance(option, click.Option) and option.name not in ("help", "opening", "scheduler")
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_values_of_options(run: Callable[..., None], seed: int) -> None:
    dice, lines = random.Random(seed), lines_of_options()
    stdin = (json.dumps(RECORD) + "\n").encode()
    for _ in range(EACH):
        line, option = dice.choice(lines)
        flag = dice.choice([*option.opts, *option.secondary_opts])
        given = [flag] if option.is_flag or option.count else [flag, dice.choice(WORDS)]
        kept = [word for at, word in enumerate(line) if flag not in (word, line[at - 1] if at else "")]
        run([*kept, *given], b"" if line[0] in ("list", "env") else stdin)
