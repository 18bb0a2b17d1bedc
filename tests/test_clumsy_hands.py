"""Clumsy and hostile hands: every line of a table ends soon, in little memory, with one sentence and no traceback.

A row is a kind of mistake in one command: what is written for {} is each of the values that follow. All run in forks
of one process (see forking_hkmap.py), with at most 2 GB of data and 60 seconds, which guard against growth and hanging
and measure nothing.
"""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Result, lines

from hkmap.cli.main import OURS

MEMORY, SECONDS = 2 * 10**9, 60
WRONG = (1, 2)      # the data or the run failed; called wrongly

#: Files that are no regular files: a pipe, a device without an end, a link to it, a folder.
NO_FILES = ("fifo", "/dev/zero", "zero", "folder")
RESIZE, PACK = "resize --size 3 --out OUT", "pack OUT.h5"
#: Each command that reads records, with what else it needs.
READERS = (
    RESIZE, PACK, "bubbles2map --out OUT", "boxes2map --out OUT", "masks2map --out OUT", "certainty --out OUT",
    "crop --letterbox 1 --out OUT", "plant --decoy tint --rate chance --classes 2 --out OUT", "sample 3",
    "show --out OUT.png", "agreement", "check", "predict --from run",
)
TRAIN = "train s.h5 --device cpu --arch resnet8 --stem small --width 4 --image-size 32 --epochs 1 --out OUT"
FINETUNE = "finetune s.h5 --device cpu --epochs 1 --out OUT --from"
SHARDS = ("info", "unpack", "merge OUT.h5", "split --folds 2 --out OUT", TRAIN.replace(" s.h5", ""),
          "finetune --from run --out OUT", "eval --from run --metric top1")
HUGE = ("0", "-1", "1" + "0" * 30, "9" * 5000)
NO_NUMBERS = ("nan", "inf", "-inf", "1e400")

#: A command line, what its sentence has, and the values of {}. A line with a | has a record before it.
ROWS: list[tuple[str, str, tuple[str, ...]]] = [
    # files that are no files, in every place where a file may stand
    *((f"{command} {{}}", "expected a", NO_FILES[:2]) for command in READERS),
    ("sample 3 {}", "expected a", NO_FILES[2:]),
    *((f"{command} {{}}", "expected", NO_FILES[:2]) for command in SHARDS),
    ('{"image": "{}"} | ' + PACK, "expected", NO_FILES),
    ('{"image": "{}"} | show --out OUT.png', "expected", NO_FILES),
    ('{"image": "{}"} | crop --letterbox 1 --out OUT', "expected", NO_FILES),
    ('{"image": "{}"} | predict --from run --device cpu', "expected", NO_FILES),
    ('{"map": "{}"} | ' + PACK, "expected", NO_FILES),
    ('{"map": "{}"} | ' + RESIZE, "expected", NO_FILES),
    ('{"map": "{}"} | show --out OUT.png', "expected", NO_FILES),
    ('{"map": "{}"} | certainty --default unknown --out OUT', "expected", NO_FILES),
    ('{"certainty": "{}"} | ' + RESIZE, "expected", NO_FILES),
    ('{"masks": {"a": "{}"}} | masks2map --out OUT', "expected", NO_FILES),
    ('{"masks": {"a": "{}#2"}} | masks2map --out OUT', "expected", NO_FILES),
    ('{"masks": {"a": "{}"}} | show --out OUT.png', "expected", NO_FILES),
    ('{"unknown": {"a": "{}"}} | certainty --out OUT', "expected", NO_FILES),
    ("annotations {} --images .", "", ("fifo", "/dev/zero", "zero")),
    ("annotations {} --images . --format coco", "", ("fifo", "/dev/zero", "zero")),
    ("join {} r.jsonl", "", ("fifo", "/dev/zero", "zero")),
    ("cub . --bubbles {}", "", NO_FILES),
    ("cub . --gaze {}", "", NO_FILES),
    ("webdataset {} --out OUT", "", NO_FILES),
    (PACK + " r.jsonl --classes {}", "", NO_FILES),
    (TRAIN + " --config {}", "", NO_FILES),
    (TRAIN + " --weights {}", "", NO_FILES),
    (FINETUNE + " {}", "", NO_FILES),
    ("predict r.jsonl --from {}", "", NO_FILES),
    ("eval s.h5 --metric top1 --from {}", "", NO_FILES),
    # numbers without bounds
    ("resize r.jsonl --out OUT --size {}", "expected", ("100000000x1", "8192", *HUGE)),
    *((f"{command} r.jsonl --size {{}}", "expected", ("50000", "1x100000000")) for command in (
        "resize --out OUT", "bubbles2map --out OUT", "boxes2map --out OUT", "masks2map --out OUT",
        PACK + " --store pixels")),
    ("crop r.jsonl --letterbox 1 --out OUT --map-size {}", "expected", ("50000", "9" * 5000)),
    ("crop r.jsonl --out OUT --letterbox {}", "expected", ("1e9", "nan", "9" * 5000)),
    ("crop r.jsonl --out OUT --crop 0,0,{},5", "expected", ("0", "1" + "0" * 30, "9" * 5000)),
    (RESIZE + " r.jsonl --jobs {}", "from 1 to 128", ("1000", "0", "9" * 5000)),
    (RESIZE + " r.jsonl --max-errors {}", "", ("-1", "1" + "0" * 30, "9" * 5000)),
    (PACK + " r.jsonl --shard-size {}", "", HUGE),
    (PACK + " r.jsonl --shard-bytes {}", "expected a number of bytes", HUGE),
    (PACK + " r.jsonl --expect {}", "", HUGE),
    ("unpack s.h5 --to webdataset --out OUT.tar --shard-size {}", "", HUGE),
    ("merge OUT.h5 s.h5 --shard-size {}", "", HUGE),
    ("split s.h5 --out OUT --folds {}", "", ("1000000000", *HUGE)),
    ("split s.h5 --out OUT --folds 2 --seed {}", "", ("-1", "18446744073709551616", "9" * 5000)),
    ("split s.h5 --out OUT --shares a=0.{}1,b=0.9", "", ("0" * 6000,)),
    (TRAIN + " --fold 1/{}", "expected fold I of K", ("1000000000", "9" * 5000)),
    ("sample -- {} r.jsonl", "expected a number of records", HUGE),
    ("show r.jsonl --out OUT.png --columns {}", "", HUGE),
    ("show r.jsonl --out OUT.png --cell {}", "", HUGE),
    ("show r.jsonl --out OUT.png --limit {}", "", HUGE),
    ("check r.jsonl --ids {}", "", HUGE),
    ("agreement r.jsonl --repeats {}", "", ("1000000000", *HUGE)),
    ("agreement r.jsonl --resamples {}", "", ("1000000000", *HUGE)),
    ("certainty r.jsonl --out OUT --above={}", "", NO_NUMBERS),
    ("bubbles2map r.jsonl --out OUT --bandwidth={}", "expected", ("1e300", *NO_NUMBERS)),
    ("masks2map r.jsonl --out OUT --lesion=a={}", "expected", NO_NUMBERS),
    ("cub . --bubbles t.csv --frame {}", "", ("1x100000000", "9" * 5000)),
    ("info {}", "of at most 100,000 files", ("'x-{0..99999}{0..99999}.h5'", "'x-{0..999999999}.h5'")),
    ("info {}", "no such file", ("'x-{0..99999}.h5'", "'x-{0.." + "9" * 5000 + "}.h5'")),
    ('{"label": {}, "image": "x.png"} | ' + PACK, "label is", ("1" + "0" * 30, "100000", "-2")),
    ('{"label": {}, "image": "x.png"} | sample 1 --per-class', "label is", ("1" + "0" * 30,)),
    ('{"size": [{}, 3], "boxes": []} | boxes2map --out OUT', "size", ("-1", "1" + "0" * 400)),
    (TRAIN + " --seed {}", "", ("18446744073709551616", "-1")),
    (TRAIN + " --lr={}", "", ("1e308", "0", *NO_NUMBERS)),
    (TRAIN + " --epochs {}", "", HUGE),
    (TRAIN + " --width {}", "", ("1000000", *HUGE)),
    (TRAIN + " --image-size {}", "", ("100000", *HUGE)),
    (TRAIN + " --batch-size {}", "", ("1000000000000", *HUGE)),
    (TRAIN + " --val-share={}", "", ("1", *NO_NUMBERS)),
    (TRAIN + " --momentum={}", "", NO_NUMBERS),
    (TRAIN + " --weight-decay={}", "", NO_NUMBERS),
    (FINETUNE + " run --gamma={}", "", NO_NUMBERS),
    ("eval s.h5 --from run --device cpu --metric insertion --step {}", "", HUGE),
    # devices
    (TRAIN + " --device {}", "--device", ("xla", "meta", "fpga", "cuda:-1", "cuda:99", "cpu:x")),
    ("predict r.jsonl --from run --device {}", "--device", ("xla", "meta", "fpga")),
    # images that are damaged, or claim to be large
    *((f'{{"image": "{{}}"}} | {command}', "", ("half.jpg", "claims.jpg", "claims.png", "huge.png", "empty.png"))
      for command in (PACK, "show --out OUT.png", "crop --letterbox 1 --out OUT", "predict --from run --device cpu")),
    ('{"masks": {"a": "{}"}} | masks2map --out OUT', "", ("claims.png", "huge.png", "empty.png")),
    ('{"map": "{}"} | ' + RESIZE, "", ("claims.png", "huge.png", "empty.png", "large.npy", "pickle.npy")),
    # records
    (RESIZE + " {}", "", ("deep.jsonl", "digits.jsonl", "binary.jsonl", "error.jsonl", "empty.jsonl")),
    (PACK + " {}", "", ("deep.jsonl", "digits.jsonl", "binary.jsonl", "error.jsonl", "empty.jsonl")),
    ('{"id": {}} | ' + RESIZE, '"id"', ("7", "null", "[[[[[[[]]]]]]]", '"\\ud800"')),
    ('{"bubbles": [{"x": {}, "y": 1, "radius": 1}], "size": [9, 9]} | bubbles2map --out OUT', "",
     ("1e999", "1" + "0" * 400, '"1"', "null")),
    ('{"polygons": [{"points": [[{}, 1], [2, 3], [1, 9]]}], "size": [9, 9]} | masks2map --out OUT', "",
     ("1e999", "1" + "0" * 400)),
    # run folders and configs that somebody has changed
    *((f"{command} {{}}", "", ("cut.pt", "empty.png", "s.h5", "keys.pt", "classes.pt", "minus.pt", "billion.pt",
                             "other.pt"))
      for command in (FINETUNE, "predict r.jsonl --device cpu --from")),
    (TRAIN + " --config {}", "", ("deep.toml", "digits.toml", "types.toml", "typo.toml", "binary.jsonl")),
    # places
    (RESIZE.replace("OUT", "{}") + " r.jsonl", "expected", ("x" * 300, "x.png/y", "x" * 300 + ".h5")),
    (PACK.replace("OUT.h5", "{}") + " r.jsonl", "", ("nowhere.h5", "folder.h5", "/dev/null", "x" * 300 + ".h5")),
    (PACK.replace("OUT.h5", "{}") + " r.jsonl --overwrite", "", ("folder.h5", "fifo.h5", "zero.h5")),
    ("show r.jsonl --out {}", "", ("nowhere.png", "x" * 300 + ".png")),
    ("merge {} s.h5", "", ("nowhere.h5", "s.h5")),
]


def written(kind: str, content: bytes) -> bytes:
    named = kind.encode() + content
    return struct.pack(">I", len(content)) + named + struct.pack(">I", zlib.crc32(named))


def png_claiming(side: int, bits: int, colour: int) -> bytes:
    """A PNG of a few bytes whose header claims a square of that side."""
    header = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    parts = ("IHDR", header), ("IDAT", zlib.compress(b"\0" * 99)), ("IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(written(*part) for part in parts)


def checkpoints() -> None:
    """An untrained network's run folder, and copies of its checkpoint that were changed."""
    import torch

    from hkmap.engine.checkpoints import read_model, write_model
    from hkmap.engine.inputs import Preprocessing
    from hkmap.engine.runs import BEST, new_model, save_model
    from hkmap.networks.backbone import Architecture

    Path("run").mkdir()
    architecture = Architecture("resnet8+abn", 2, stem="small", width=4, gate="residual")
    best = Path("run") / BEST
    save_model(best, new_model(architecture, Preprocessing(16, 16), ("0", "1"), 0))
    whole = best.read_bytes()
    Path("cut.pt").write_bytes(whole[: len(whole) // 2])
    content = read_model(best)
    for name, change in {
        "keys": {"weights": {}}, "classes": {"class_names": 7},
        **{name: {"architecture": {**content["architecture"], "classes": count}}
           for name, count in (("minus", -3), ("billion", 10**9))},
        "other": {"weights": {"a": torch.zeros(3)}},
    }.items():
        changed = {**content, **change}
        write_model(Path(f"{name}.pt"), changed.pop("weights"), changed)


def shard() -> None:
    from hkmap.shards.writer import ShardWriter

    with ShardWriter(Path("s.h5")) as writer:
        for number in range(4):
            record = {"id": str(number), "image": "x.png", "label": number % 2, "class": str(number % 2)}
            writer.add(record, Path("x.png").read_bytes(), np.ones((4, 4), np.float32), None)


def images() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert cv2.imwrite("x.png", pixels)
    whole = cv2.imencode(".jpg", pixels)[1].tobytes()
    Path("half.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    sizes = whole.index(b"\xff\xc0") + 5
    claim = struct.pack(">HH", 16383, 16384)
    Path("claims.jpg").write_bytes(whole[:sizes] + claim + whole[sizes + 4 : -40] + b"\xff\xd9")
    Path("claims.png").write_bytes(png_claiming(16383, 16, 2))
    Path("huge.png").write_bytes(png_claiming(2**31 - 1, 8, 0))
    Path("empty.png").touch()


def texts() -> None:
    for name, text in {
        "r.jsonl": '{"id": "1", "image": "x.png", "map": "m.npy", "size": [64, 64], "label": 0}\n',
        "deep.jsonl": '{"id": "1", "a": ' + "[" * 10**5 + "]" * 10**5 + "}\n",
        "digits.jsonl": '{"id": "1", "a": ' + "9" * 5000 + "}\n", "error.jsonl": '{"error": "' + "x" * 10**6 + '"}\n',
        "empty.jsonl": "\n", "t.csv": "image,x,y,radius\nx.png,1,1,1\n",
        "deep.toml": "a = " + "[" * 10**5 + "]" * 10**5, "digits.toml": "epochs = " + "9" * 5000,
        "types.toml": 'epochs = ["a"]\nlr = {a = 1}\n', "typo.toml": "epoch = 3\n",
    }.items():
        Path(name).write_text(text)
    Path("binary.jsonl").write_bytes(bytes(range(256)) * 9)


def arrays() -> None:
    np.save("m.npy", np.ones((4, 4), np.float32))
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000, 100000), }".ljust(117) + b"\n"
    Path("large.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 99)
    np.save("pickle.npy", np.array([{}], dtype=object), allow_pickle=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the rows name."""
    folder, before = tmp_path_factory.mktemp("hands"), Path.cwd()
    os.chdir(folder)
    try:
        for make in (images, texts, arrays, shard, checkpoints):
            make()
        for name in ("fifo", "fifo.h5"):
            os.mkfifo(name)
        for name in ("zero", "zero.h5"):
            Path(name).symlink_to("/dev/zero")
        for name in ("nowhere.h5", "nowhere.png"):
            Path(name).symlink_to("gone/away")
        for name in ("folder", "folder.h5"):
            Path(name).mkdir()
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def limited(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Result]]:
    """Run hkmap in that folder, in little memory and for a limited time; without an exit code it has died or hung."""
    folder = tmp_path_factory.mktemp("fork")
    environment = {**os.environ, "HKMAP_TEST_MEMORY": str(MEMORY), "HKMAP_TEST_SECONDS": str(SECONDS)}

    def run(*arguments: str, stdin: bytes = b"") -> Result:
        with (
            tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err,
            socket.socket(socket.AF_UNIX) as server,
        ):
            given.write(stdin)
            given.seek(0)
            server.connect(str(folder / "socket"))
            asked = json.dumps([arguments, str(place), environment]).encode()
            socket.send_fds(server, [len(asked).to_bytes(8, "little")], [given.fileno(), out.fileno(), err.fileno()])
            server.sendall(asked)
            code = server.recv(1)
            out.seek(0)
            err.seek(0)
            return Result(code[0] if code else -1, out.read().decode(), err.read().decode())

    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forking_hkmap.py")), str(folder)], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield run


def short(value: object) -> str:
    return str(value)[:90]


@pytest.mark.parametrize(
    ("line", "said"), [(line.replace("{}", value), said) for line, said, values in ROWS for value in values], ids=short,
)
def test_a_wrong_line_is_one_sentence_soon_and_in_little_memory(
    limited: Callable[..., Result], place: Path, tmp_path: Path, line: str, said: str
) -> None:
    record, _, command = line.rpartition(" | ")
    whole = {"id": "1", "image": "x.png", "size": [64, 64]}
    stdin = b"" if not record else lines([whole | json.loads(record)]).encode() if said != '"id"' else record.encode()
    before = {path.name for path in place.iterdir()}
    result = limited(*shlex.split(command.replace("OUT", str(tmp_path / "out"))), stdin=stdin)
    sentence = result.stderr.rpartition("Error: ")[2]
    assert result.exit_code in WRONG, result
    assert "Traceback" not in result.stderr
    assert result.stderr.count("Error: ") == 1
    assert sentence.count("\n") == 1
    assert len(sentence) > 20
    assert said in sentence
    assert {path.name for path in place.iterdir()} == before
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]


def test_the_table_has_enough_rows() -> None:
    assert sum(len(values) for _, _, values in ROWS) >= 150


# descriptors: real processes, each of which ends before it has anything to do


def python_hkmap(line: str, folder: Path, **environment: str) -> Result:
    """Run a line of bash in which hkmap is this Python's."""
    command = f'hkmap() {{ "{sys.executable}" -m hkmap "$@"; }}\n{line}'
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, check=False, env=variables, timeout=SECONDS,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize("command", [*OURS, "--help", "--version"])
def test_a_closed_stdout_is_a_sentence(tmp_path: Path, command: str) -> None:
    result = python_hkmap(f"hkmap {command} >&-", tmp_path)
    said = "Error: stdout is closed; expected a file, a pipe or a terminal\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", said)


@pytest.mark.parametrize(("command", "where"), [
    ("--help", ""), ("--version", ""), ("pack --help", ""), ("train --help", ""), ("list", "stdout: "),
    ("list metrics", "stdout: "), ("sample 1 r.jsonl", "stdout: "), ("info s.h5", "stdout: "),
])
def test_a_full_stdout_is_a_sentence(place: Path, command: str, where: str) -> None:
    result = python_hkmap(f"hkmap {command} > /dev/full", place)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"Error: {where}No space left on device\n")


@pytest.mark.parametrize(("command", "closed"), [
    *((command, "<&-") for command in READERS if not command.startswith("predict")),
    *((command, closed) for command in READERS[:2] for closed in ("<&- 2>&-", "< /dev/null 2> /dev/full")),
])
def test_a_closed_stdin_is_an_empty_one_and_a_closed_stderr_a_silent_one(
    place: Path, tmp_path: Path, command: str, closed: str
) -> None:
    result = python_hkmap(f"hkmap {command.replace('OUT', str(tmp_path / 'out'))} {closed}", place)
    said = "stdin: no records; expected one JSON object per line, as `hkmap folder` prints them"
    assert result.exit_code == 1
    assert result.stdout in ("", json.dumps({"error": said}) + "\n")       # check passes nothing on
    assert result.stderr == ("" if "2>" in closed else f"Error: {said}\n")


def test_no_file_gets_the_number_of_a_closed_descriptor(place: Path, tmp_path: Path) -> None:
    """Or what is said would be written into the shard."""
    command = f"hkmap pack {tmp_path}/x.h5 r.jsonl -vv <&- 2>&- && hkmap check {tmp_path}/x.h5 <&- 2>&-"
    result = python_hkmap(command, place)
    assert result.exit_code == 0
    assert json.loads(result.stdout.splitlines()[-1])["ok"]


# signals


LATE = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{name})

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.meta_path.insert(0, Finder())
from hkmap.cli import main
sys.argv = ["hkmap", *sys.argv[1:]]
main()
"""
ENDS = [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated"), ("SIGHUP", 129, "hung up")]


@pytest.mark.parametrize(("module", "name", "code", "word"), [
    *(("numpy", *end) for end in ENDS),
    *((module, *ENDS[0]) for module in ("click", "hkmap.cli._stream", "hkmap.cli.pack", "cv2", "h5py")),
])
def test_a_signal_while_importing_is_a_word(tmp_path: Path, module: str, name: str, code: int, word: str) -> None:
    line = [sys.executable, "-c", LATE.format(module=module, name=name), "pack", "x.h5"]
    done = subprocess.run(line, cwd=tmp_path, input=b'{"id": "1"}\n', capture_output=True, check=False, timeout=SECONDS,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert (done.returncode, done.stderr.decode()) == (code, f"{word}\n")
    assert done.stdout in (b"", b'{"error": "%s"}\n' % word.encode())


@pytest.mark.parametrize(("name", "code", "word"), ENDS)
@pytest.mark.parametrize("command", ["pack {}/x.h5 --shard-size 1", "resize --size 3 --out {}/x.h5"])
def test_a_signal_leaves_nothing_behind_and_a_second_one_does_not_break_that(
    place: Path, tmp_path: Path, command: str, name: str, code: int, word: str
) -> None:
    line = [sys.executable, "-m", "hkmap", *command.format(tmp_path).split()]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        line, cwd=place, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True,
        preexec_fn=lambda: [signal.signal(getattr(signal, one), signal.SIG_DFL) for one, _, _ in ENDS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        for number in range(3):
            process.stdin.write(lines([{"id": str(number), "image": "x.png", "map": "m.npy", "label": 0}]).encode())
            process.stdin.flush()
        while len([*tmp_path.iterdir()]) < 2:       # a lock and a shard, or a file in the making
            if command.startswith("resize") and [*tmp_path.iterdir()]:
                break
        for _ in range(3):
            process.send_signal(getattr(signal, name))
        said = process.communicate(timeout=SECONDS)[1].decode()
    assert (process.returncode, said) == (code, f"{word}\n")
    assert [*tmp_path.iterdir()] == []


DROPPED = """
import signal, sys
from hkmap.cli import _process, main
from hkmap.records import parsed

class Lost:        # as if it had come where nobody hears of it
    def __getattr__(self, name):
        return getattr(sys.__stdin__.buffer, name)

    def read1(self, size):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            pass
        return sys.__stdin__.buffer.read1(size)

sys.stdin = type("Text", (), {"buffer": Lost(), "fileno": sys.__stdin__.fileno, "isatty": sys.__stdin__.isatty})()
sys.argv = ["hkmap", *sys.argv[1:]]
main()
"""


def test_a_signal_that_a_library_swallows_still_ends_the_command(place: Path, tmp_path: Path) -> None:
    """It went on, to exit code 0."""
    done = subprocess.run(
        [sys.executable, "-c", DROPPED, "pack", str(tmp_path / "x.h5")], cwd=place, capture_output=True, check=False,
        input=lines([{"id": "1", "image": "x.png", "label": 0}]).encode(), timeout=SECONDS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr.decode()) == (143, "terminated\n")
    assert [*tmp_path.iterdir()] == []


# places


LOCALES = ["LC_ALL=C", "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0", "PYTHONIOENCODING=ascii"]


@pytest.mark.parametrize("locale", LOCALES)
def test_names_beyond_ascii_work_in_every_locale(place: Path, tmp_path: Path, locale: str) -> None:
    (tmp_path / "épée").mkdir()
    (tmp_path / "épée/ñ.png").write_bytes((place / "x.png").read_bytes())
    line = "hkmap folder épée | hkmap pack ü.h5 > /dev/null && hkmap unpack ü.h5 && hkmap info gone-ü.h5"
    result = python_hkmap(f"export {locale}; {line}", tmp_path)
    (record,) = (json.loads(line) for line in result.stdout.splitlines() if "error" not in line)
    assert (record["id"], record["image"]) == ("ñ", "ü.h5#0")
    assert result.exit_code == 2
    assert "gone-ü.h5" in result.stderr or r"gone-\xfc.h5" in result.stderr       # as that terminal can show it


@pytest.mark.parametrize("command", [RESIZE, PACK, "show --out OUT.png", "check", "agreement"])
@pytest.mark.parametrize("code", ["\x1b[2J", "\x9b2J", "\r", "\n", "\u202e"])
def test_what_steers_a_terminal_is_spelt_out(hk: Callable[..., Result], here: Path, command: str, code: str) -> None:
    record = {"id": f"a{code}b", "image": f"gone{code}.png", "map": f"gone{code}.npy",
              "annotator_maps": {"a": f"gone{code}.npy", "b": "x"}}
    result = hk(*command.replace("OUT", "out").split(), stdin=[record])
    assert result.exit_code in (1, 3)
    assert not {*code} & {*result.stderr} - {*"[2J\n"}
    assert code.encode("unicode_escape").decode() in "".join(result.stderr.split())


def test_a_terminal_gets_no_codes_from_records(here: Path) -> None:
    Path("r.jsonl").write_text('{"id": "a\x9b2J\u202eb"}')
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "hkmap", "sample", "1", "r.jsonl"]
    subprocess.run(line, stdout=theirs, check=True, timeout=SECONDS,
                   env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert os.read(ours, 999) == rb'{"id": "a\u009b2J\u202eb"}' + b"\r\n"
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("out", ["x.h5", "x.png", "maps/1.npy"])
@pytest.mark.parametrize("target", ["gone", "precious"])
def test_a_link_is_never_written_through(
    hk: Callable[..., Result], here: Path, place: Path, out: str, target: str
) -> None:
    command = {"x.h5": "pack x.h5", "x.png": "show --out x.png", "maps/1.npy": "resize --size 3 --out maps"}[out]
    record = {"id": "1", "image": str(place / "x.png"), "map": str(place / "m.npy")}
    Path("precious").write_text("precious")
    Path(out).parent.mkdir(exist_ok=True)
    Path(out).symlink_to(here / target)
    refused = hk(*command.split(), stdin=[record])
    assert refused.exit_code == 1
    assert f"{out}: exists already" in refused.stderr
    assert Path(out).is_symlink()
    assert hk(*command.split(), "--overwrite", stdin=[record]).exit_code == 0
    assert stat.S_ISREG(Path(out).lstat().st_mode)
    assert Path("precious").read_text() == "precious"
    assert not Path("gone").exists()


def test_a_link_in_the_place_of_a_lock_is_not_followed(hk: Callable[..., Result], here: Path, place: Path) -> None:
    Path(".x.h5.lock").symlink_to(here / "gone")
    result = hk("pack", "x.h5", stdin=[{"id": "1", "image": str(place / "x.png")}])
    assert result.exit_code == 1
    assert ".x.h5.lock: Too many levels of symbolic links; expected no link in its place" in result.stderr
    assert not Path("gone").exists()


def test_a_signal_that_python_drops_is_sent_again(tmp_path: Path) -> None:
    """As h5py's objects end, Python prints an exception and goes on; the command must end all the same."""
    code = """
import os, signal, time
from hkmap.cli._process import Stopped, signals

class Ending:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

signals.handle()
try:
    Ending()
    time.sleep(60)
except Stopped as stop:
    print(stop.word, stop.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=SECONDS,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert (done.stdout, done.stderr) == ("terminated 143\n", "")
