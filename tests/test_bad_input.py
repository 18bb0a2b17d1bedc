"""Bad input, one item after the other, by the whole command line: the exit code, and a sentence that helps.

Each sentence names the place, what was found or expected, and what to do. What a reader or a writer makes of each
variant of these is in the tests of its module; here every kind stands once, as a user meets it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from PIL import Image

from hkmap.files.atomic import replacing
from hkmap.shards.reader import ShardReader

Here = Path
BUBBLES = [{"x": 3, "y": 3, "radius": 2}, {"x": 9, "y": 4, "radius": 2}, {"x": 5, "y": 12, "radius": 3}]
ORIENTATION = 0x0112


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def image(name: str, *, size: tuple[int, int] = (16, 20), seed: int = 0) -> str:
    """Write a picture of noise of (height, width) and return its path."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(name, np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))
    return name


def array(name: str, values: object) -> str:
    np.save(name, np.asarray(values))
    return name


def photos(count: int = 4) -> list[dict[str, Any]]:
    """Records of that many images, in two classes."""
    images = [image(f"{number}.png", seed=number) for number in range(count)]
    return [
        {"id": str(number), "image": path, "label": number % 2, "class": "ab"[number % 2]}
        for number, path in enumerate(images)
    ]


def assert_refused(result: Any, *parts: str, exit_code: int = 1) -> None:
    """Exit code, no traceback, all parts in one sentence on stderr, and an error record where stdout is a pipe."""
    said = re.sub(r"\s+", " ", result.stderr.replace("│", ""))
    assert result.exit_code == exit_code, said
    assert "Traceback" not in said
    for part in parts:
        assert part in said
    if exit_code == 1:
        error = json.loads(result.stdout.splitlines()[-1])["error"]
        assert all(part in f"Error: the stage before failed: {error}" for part in parts if "skipped" not in part)


# a missing file


def test_missing_file_of_records(hk, here: Here) -> None:
    result = hk("resize", "maps.jsonl", "--size", 7, "--out", "m")
    assert_refused(result, "'maps.jsonl': No such file or directory", exit_code=2)


@pytest.mark.parametrize(
    ("arguments", "record", "parts"),
    [
        (["pack", "x.h5"], {"image": "gone.jpg"}, ["gone.jpg: No such file", "expected an image file"]),
        (["show", "--out", "x.png"], {"image": "gone.jpg"}, ["gone.jpg: No such file", "expected an image file"]),
        (["resize", "--size", 7, "--out", "m"], {"map": "gone.npy"}, ["gone.npy: No such file", "expected a .npy"]),
        (["resize", "--size", 7, "--out", "m"], {"map": "gone.h5#3"}, ["gone.h5: No such file", "expected an HDF5"]),
        (["pack", "x.h5"], {"image": "gone.h5#3"}, ["gone.h5: No such file", "expected an HDF5 file"]),
        (
            ["masks2map", "--out", "m"], {"masks": {"EX": "gone.tif"}, "size": [9, 9]},
            ["gone.tif: No such file", "expected an image file"],
        ),
        (["pack", "x.h5"], {"image": "nul\0.png"}, ['record "7": image is', "expected a path or a reference"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_missing_file_that_a_record_names(hk, here: Here, arguments: list, record: dict, parts: list[str]) -> None:
    assert_refused(hk(*arguments, stdin=[{"id": "7", **record}]), *parts)
    assert not (here / "x.h5").exists()


def test_missing_checkpoint(hk, here: Here, make_shard: Callable[..., Path]) -> None:
    make_shard("t.h5")
    (here / "run").mkdir()
    for command in (["eval", "t.h5", "--metric", "top1"], ["finetune", "t.h5", "--out", "ft"]):
        assert_refused(hk(*command, "--from", "run"), "run/best.pt: no such checkpoint; expected a run folder")
    assert not (here / "ft").exists()


# the stream


@pytest.mark.parametrize("command", ["pack x.h5", "show --out x.png", "resize --size 7 --out x.h5"])
def test_empty_stdin(hk, here: Here, command: str) -> None:
    result = hk(*command.split())
    assert_refused(result, "stdin: no records; expected one JSON object per line, as `hkmap folder` prints them")
    assert list(here.iterdir()) == []


def test_broken_json_on_line_k(hk, here: Here) -> None:
    lines = [json.dumps(record) for record in photos(3)]
    result = hk("pack", "x.h5", stdin="\n".join([*lines[:2], "", lines[2][:-9]]))
    assert_refused(result, "stdin line 4: not a JSON object", "expected one record per line")
    (here / "in.jsonl").write_text("\n".join([lines[0], "0.png,1,2"]), encoding="utf-8")
    assert_refused(hk("pack", "x.h5", "in.jsonl"), "in.jsonl line 2: not a JSON object")
    assert not (here / "x.h5").exists()


def test_upstream_stage_that_fails_mid_stream(hk, here: Here) -> None:
    (here / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in photos(3)) + "broken")
    filtered = hk("resize", "in.jsonl", "--missing", "pass", "--size", 7, "--out", "m")
    result = hk("pack", "x.h5", "--shard-size", 2, stdin=filtered.stdout)
    assert_refused(result, "Error: the stage before failed: in.jsonl line 4: not a JSON object")
    assert not [path for path in here.iterdir() if path.suffix in (".h5", ".part")]


KILLED = "import os, sys; [print(line, end='', flush=True) for line in sys.stdin]; os.kill(os.getpid(), {signal})"


def test_upstream_stage_killed_mid_stream(hk, shell, here: Here) -> None:
    """Nobody after a killed stage can tell it from the end of the data: pipefail says so, and --expect refuses."""
    (here / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in photos(3)))
    killed = f"{sys.executable} -c \"{KILLED.format(signal=int(signal.SIGKILL))}\" < in.jsonl"
    assert shell(f"{killed} | hkmap pack seen.h5").exit_code == 128 + signal.SIGKILL
    refused = hk("pack", "refused.h5", "--expect", 4, "in.jsonl")
    assert_refused(refused, "3 records packed, expected 4; no shard is left, see the stage before")
    assert not (here / "refused.h5").exists()
    assert hk("pack", "good.h5", "--expect", 3, "in.jsonl").exit_code == 0


def test_upstream_stage_killed_in_the_middle_of_a_line(hk, here: Here) -> None:
    text = "".join(json.dumps(record) + "\n" for record in photos(3))
    assert_refused(hk("pack", "x.h5", stdin=text[:-5]), "stdin line 3: not a JSON object")
    assert not (here / "x.h5").exists()


def test_duplicate_ids(hk, here: Here) -> None:
    one, two = photos(2)
    result = hk("pack", "x.h5", stdin=[one, {**two, "id": one["id"]}])
    assert_refused(result, 'record "0": this id comes twice; every record needs its own')
    assert not (here / "x.h5").exists()
    record = {"id": "7", "size": [20, 16], "bubbles": BUBBLES}
    for out in ("maps", "maps.h5"):
        result = hk("bubbles2map", "--out", out, "--overwrite", stdin=[record, record])
        assert_refused(result, f'record "7": comes twice, and {out} holds one map of a name; make the ids unique')


# images


@pytest.fixture
def truncated(here: Here) -> str:
    assert cv2.imwrite("whole.jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    Path("cut.jpg").write_bytes(Path("whole.jpg").read_bytes()[:-2])
    return "cut.jpg"


def test_truncated_jpeg(hk, truncated: str) -> None:
    sentence = "cut short at", "bytes (its end marker is missing); copy it again"
    for command in ("pack x.h5", "show --out x.png"):
        assert_refused(hk(*command.split(), stdin=[{"id": "7", "image": truncated}]), "cut.jpg: ", *sentence)
    good = {"id": "8", "image": "whole.jpg"}
    result = hk("pack", "x.h5", "--on-error", "skip", "--max-errors", 1, stdin=[{"id": "7", "image": truncated}, good])
    assert result.exit_code == 0
    assert "warning: skipped: record \"7\": image cut.jpg: cut short at" in result.stderr
    assert ShardReader(Path("x.h5")).ids == ["8"]


def test_image_with_exif_rotation(hk, here: Here) -> None:
    """A picture is as wide as it is displayed, and a frame the other way round is refused, not transposed."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    (here / "photos/a").mkdir(parents=True)
    Image.fromarray(np.zeros((16, 40, 3), np.uint8)).save("photos/a/turned.jpg", exif=exif)
    (record,) = hk("folder", "photos").records
    assert record["size"] == [16, 40]
    assert hk("pack", "x.h5", stdin=[record]).exit_code == 0
    assert ShardReader(Path("x.h5")).image(0).shape == (40, 16, 3)
    result = hk("pack", "y.h5", stdin=[{**record, "size": [40, 16]}])
    assert_refused(result, "its size is 40x16 (width x height), but the image is 16x40 once turned as its EXIF says")


def test_four_channels_and_16_bits(hk, here: Here) -> None:
    """Both are read, by a stated rule: alpha is dropped, 16 bits become 8 by round(v / 257)."""
    colours = np.random.default_rng(0).integers(0, 65536, (8, 9, 4), dtype=np.uint16)
    cv2.imwrite("deep.png", colours)
    cv2.imwrite("alpha.png", (colours >> 8).astype(np.uint8))
    records = [{"id": name, "image": f"{name}.png"} for name in ("deep", "alpha")]
    assert hk("pack", "x.h5", stdin=records).exit_code == 0
    reader = ShardReader(Path("x.h5"))
    assert (reader.image(0) == np.rint(colours[..., 2::-1] / 257)).all()
    assert (reader.image(1) == colours[..., 2::-1] >> 8).all()
    cv2.imwrite("float.tiff", np.zeros((8, 9, 3), np.float32))
    result = hk("pack", "y.h5", stdin=[{"id": "7", "image": "float.tiff"}])
    assert_refused(result, "float.tiff: has float32 pixels, expected 8 or 16 bits a channel; convert it to PNG")


def test_the_sentence_stands_alone(shell, here: Here) -> None:
    """OpenCV has words of its own for a damaged image, which nobody should have to read (libpng's get through)."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    kinds = ("gif", "tiff", "bmp", "webp")
    for kind in kinds:
        data = cv2.imencode(f".{kind}", pixels)[1].tobytes()
        (here / f"damaged.{kind}").write_bytes(data[: len(data) // 3])
    records = "\n".join(json.dumps({"id": kind, "image": f"damaged.{kind}"}) for kind in kinds)
    (here / "in.jsonl").write_text(records)
    result = shell("hkmap pack x.h5 in.jsonl --on-error skip")
    assert result.exit_code == 1
    *skipped, last = result.stderr.splitlines()
    assert len(skipped) == len(kinds)
    assert all(re.match(r"warning: skipped: record \"\w+\": image damaged", line) for line in skipped)
    assert last.startswith("Error: x.h5: no record left to pack")


def test_no_image_at_all(hk, here: Here) -> None:
    Path("page.jpg").write_text("<html>not found</html>")
    Path("empty.jpg").write_bytes(b"")
    result = hk("pack", "x.h5", stdin=[{"id": "7", "image": "page.jpg"}])
    assert_refused(result, "page.jpg: starts with b'<html>no', expected an image")
    result = hk("pack", "x.h5", stdin=[{"id": "7", "image": "empty.jpg"}])
    assert_refused(result, "empty.jpg: empty (0 bytes), expected an image; copy it again")


def test_mask_of_another_size(hk, here: Here) -> None:
    image("photos/a/1.png", size=(16, 20))
    image("masks/a/1.png", size=(20, 16))
    records = hk("folder", "photos", "--masks", "masks").records
    sentence = "masks/a/1.png: a mask of 16x20 pixels for an image of 20x16, expected the same size; scale the mask"
    for command in (["masks2map", "--out", "m"], ["show", "--out", "x.png"]):
        assert_refused(hk(*command, stdin=records), sentence)
    assert not (here / "m").exists()


# maps and bubbles


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (np.full((4, 4), 255.0), ["values span [255, 255], expected [0, 1]; divide by the maximum"]),
        ([[0.5, -0.1]], ["values span [-0.1, 0.5], expected [0, 1]"]),
        ([[0.5, np.nan]], ["holds NaN or infinite values, expected [0, 1]; unknown cells are 0, of certainty 0"]),
        ([[0.5, np.inf]], ["holds NaN or infinite values"]),
        (np.zeros((4, 4, 3)), ["shape (4, 4, 3), expected (height, width); drop the channel or batch axis"]),
        ([["a"]], ["type <U1, expected real numbers in [0, 1]"]),
    ],
)
def test_map_outside_its_range_or_nan(hk, here: Here, values: object, parts: list[str]) -> None:
    record = {"id": "7", "image": image("1.png"), "map": array("bad.npy", values)}
    for command in ("resize --size 2 --out m", "pack x.h5", "show --out x.png"):
        assert_refused(hk(*command.split(), stdin=[record]), "bad.npy: ", *parts)
    assert sorted(path.name for path in here.iterdir()) == ["1.png", "bad.npy"]


def test_damaged_map_file(hk, here: Here) -> None:
    data = bytearray(Path(array("header.npy", np.zeros((4, 4)))).read_bytes())
    data[data.index(b"}")] = 0          # numpy meets it in tokenize
    Path("header.npy").write_bytes(data)
    array("cut.npy", np.zeros((4, 4)))
    Path("cut.npy").write_bytes(Path("cut.npy").read_bytes()[:-4])
    assert cv2.imwrite("huge.png", np.zeros((4, 4), np.uint8))
    data = bytearray(Path("huge.png").read_bytes())
    data[16:24] = (1 << 30).to_bytes(4, "big") * 2      # more than OpenCV decodes
    Path("huge.png").write_bytes(data)
    remedies = {"header.npy": "save it with numpy.save", "cut.npy": "numpy.save", "huge.png": "scale it down"}
    for name, remedy in remedies.items():
        result = hk("resize", "--size", 2, "--out", "m", stdin=[{"id": "7", "map": name}])
        assert_refused(result, f"{name}: ", remedy)


def test_nan_in_the_json(hk, here: Here) -> None:
    result = hk("bubbles2map", "--out", "m", stdin='{"id": "7", "size": [9, 9], "bubbles": [{"x": NaN, "y": 1}]}')
    assert_refused(result, "stdin line 1: not a JSON object (NaN is not JSON); expected one record per line")


def test_no_bubbles(hk, here: Here) -> None:
    record = {"id": "7", "size": [20, 16]}
    missing = hk("bubbles2map", "--out", "m", stdin=[record])
    assert_refused(missing, 'record "7": has no bubbles and no points; expected an annotation; --missing pass')
    empty = hk("bubbles2map", "--out", "m", stdin=[record | {"bubbles": []}])
    assert_refused(empty, 'record "7": its annotation is empty, nobody marked anything; expected a bubble; --empty')
    good = {**record, "id": "8", "bubbles": BUBBLES}
    skipped = hk("bubbles2map", "--out", "m", "--on-error", "skip", stdin=[record, good])
    assert (skipped.exit_code, len(skipped.records)) == (1, 1)
    assert "Error: 1 skipped, --max-errors allows 0" in skipped.stderr


# labels and shards


def test_label_beyond_the_classes(hk, here: Here, make_shard: Callable[..., Path]) -> None:
    Path("classes.txt").write_text("a\nb\n")
    one, two = photos(2)
    result = hk("pack", "x.h5", "--classes", "classes.txt", stdin=[one, {**two, "label": 2}])
    assert_refused(result, 'record "1": label 2 is beyond the 2 classes, counted from 0')
    assert not (here / "x.h5").exists()
    make_shard("two.h5", classes=2)
    make_shard("three.h5", classes=3)
    result = hk("train", "two.h5", "--val", "three.h5", *NETWORK, "--out", "run")
    assert_refused(result, "three.h5: label 2 is beyond the network's 2 classes; pack all shards with the same")
    assert not (here / "run").exists()


def test_shard_cut_in_half(hk, make_shard: Callable[..., Path], here: Here) -> None:
    data = make_shard("x.h5").read_bytes()
    Path("x.h5").write_bytes(data[: len(data) // 2])
    result = hk("train", "x.h5", *NETWORK, "--out", "run")
    assert_refused(result, f"x.h5: cut short at {len(data) // 2} bytes (its header says more); copy it again")
    for command in ("unpack x.h5", "unpack x.h5 --out files"):
        assert_refused(hk(*command.split()), "x.h5: cut short at")
    assert_refused(hk("info", "x.h5"), "x.h5: ", "copy it again")


def test_shard_of_a_newer_version(hk, here: Here) -> None:
    with h5py.File("x.h5", "w") as file:
        file.attrs.update({"format": "hkmap-shard", "version": 3})
    for command in ("unpack x.h5", "unpack x.h5 --out files"):
        assert_refused(hk(*command.split()), "x.h5: shard version 3, this hkmap reads up to 2; update hkmap")
    assert_refused(hk("train", "x.h5", *NETWORK, "--out", "run"), "x.h5: shard version 3", "update hkmap")
    assert_refused(hk("pack", "y.h5", stdin=[{"id": "7", "image": "x.h5#0"}]), "x.h5: shard version 3", "update hkmap")


def test_a_flipped_byte_in_a_shard(hk, make_shard: Callable[..., Path], here: Here) -> None:
    path = make_shard("x.h5")
    data = bytearray(path.read_bytes())
    place = data.index(b"\x89PNG") + 60
    data[place] ^= 1
    path.write_bytes(data)
    assert_refused(hk("info", "--full", "x.h5"), "x.h5#", "copy it again")
    assert_refused(hk("unpack", "x.h5", "--out", "files"), "copy it again")


# the machine


@contextmanager
def limited(size: int) -> Iterator[None]:
    """A limit on the size of files, as a full disk would be one; Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [20_000, 250_000])
def test_full_disk_during_pack(hk, here: Here, size: int) -> None:
    """Once while the images are spooled, once while the shard is put together."""
    records = [{"id": str(number), "image": image(f"{number}.png", size=(64, 64))} for number in range(20)]
    with limited(size):
        result = hk("pack", "x.h5", stdin=records)
    assert result.exit_code == 1
    assert re.search(r"^Error: .*(File too large|No space left on device)", result.stderr, re.MULTILINE)
    assert [list(record) for record in result.records] == [["error"]]
    assert not [path for path in here.iterdir() if path.suffix != ".png"]
    assert hk("pack", "x.h5", "--expect", 20, stdin=records).records[0]["records"] == 20


@pytest.mark.parametrize("out", ["maps", "maps.h5"])
def test_full_disk_while_maps_are_written(hk, here: Here, out: str) -> None:
    with limited(20_000):
        result = hk("bubbles2map", "--out", out, stdin=[{"id": "7", "size": [20, 16], "bubbles": BUBBLES}])
    assert result.exit_code == 1
    assert re.match(rf"Error: {out}.*: (File too large|No space left on device)", result.stderr)
    assert [list(record) for record in result.records] == [["error"]]
    assert not [path for path in here.rglob("*") if path.is_file()]


# Ctrl-C during training

NETWORK = ("--arch", "resnet8+abn", "--stem", "small", "--width", 4, "--image-size", 16, "--device", "cpu")
TRAIN = ("train", "t.h5", *NETWORK, "--batch-size", 4, "--val-share", 0.25, "--augment", "mirror", "--epochs", 6)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Bit-equal runs take the same number of threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_ctrl_c_during_training(
    hk, here: Here, make_shard: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at once, leaves nothing half-written, and resumes to the very weights of an unbroken run."""
    import torch

    make_shard("t.h5", 12)
    steps, step = itertools.count(1), torch.optim.SGD.step

    def interrupted(*arguments: Any) -> None:
        step(*arguments)
        if next(steps) == 7:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(torch.optim.SGD, "step", interrupted)
    result = hk(*TRAIN, "--out", "broken")
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "interrupted")
    assert result.records == [{"error": "interrupted"}]
    assert not [path for path in here.rglob("*") if path.name.endswith(".part")]
    assert not (here / "broken/summary.json").exists()
    assert torch.load(here / "broken/last.pt", weights_only=True)["state"]["epoch"] == 3
    refused = hk(*TRAIN, "--out", "broken")
    assert_refused(refused, "broken: holds a run already; choose another --out, or use --overwrite or --resume")
    assert hk(*TRAIN, "--out", "broken", "--resume").exit_code == 0
    assert hk(*TRAIN, "--out", "whole").exit_code == 0
    for name in ("last.pt", "best.pt"):
        resumed, unbroken = (torch.load(here / run / name, weights_only=True) for run in ("broken", "whole"))
        assert resumed["state"]["best"] == unbroken["state"]["best"]
        assert resumed["weights"].keys() == unbroken["weights"].keys()
        for key, value in unbroken["weights"].items():
            assert torch.equal(resumed["weights"][key], value), key
    assert (here / "broken/log.jsonl").read_text() == (here / "whole/log.jsonl").read_text()


def test_ctrl_c_just_when_a_file_is_made(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come between the lines that make a temporary file: that one is removed too."""
    close = os.close

    def interrupted(handle: int) -> None:
        close(handle)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "close", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(here / "new" / "last.pt"):
        pytest.fail("the file is not made yet")
    monkeypatch.undo()
    assert [path.name for path in here.rglob("*")] == ["new"]
