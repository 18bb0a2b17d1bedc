"""The examples in their smallest form: every script runs through, keeps its splits apart, and leaves its products."""

from __future__ import annotations

import json
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Result
from PIL import Image

from hkmap.maps.check import Map
from hkmap.shards.reader import ShardReader
from hkmap.stream.references import load_map

EXAMPLES = ROOT / "examples"
METRICS = {"top1", "top5", "mse", "mse_of_zeros", "insertion", "deletion"}
NETWORK = "--arch resnet8+abn --stem small --width 4 --image-size 32"
SMALL = {"EPOCHS": "1", "FINETUNE_EPOCHS": "1", "NETWORK": NETWORK, "OUT": "out"}
HEAD = {"beak", "crown", "forehead", "nape", "throat", "left eye", "right eye"}
TURNS: dict[str, Callable[[Map], Map]] = {
    "as it is": lambda values: values,
    "mirrored": lambda values: values[:, ::-1],
    "upside down": lambda values: values[::-1],
    "transposed": lambda values: values.T,
}

Shell = Callable[..., Result]
Record = dict[str, Any]


@pytest.fixture(scope="module")
def fast_hkmap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an `hkmap` that need not load torch each time it is started."""
    folder = tmp_path_factory.mktemp("fast")
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forking_hkmap.py")), str(folder)], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield folder
    assert process.returncode == 0


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
    network = f"{NETWORK} --gate product"
    result = run_example(fast_shell, "demo.sh", EPOCHS="1", DIGITS="--train 60 --test 20", SEEDS="0", NETWORK=network)
    for arm in ("no map loss", "human maps", "shuffled maps"):
        assert arm in result.stdout
    out = tmp_path / "demo" / "seed0"
    for arm in ("labels", "human", "shuffled"):
        found = json.loads((out / "results" / f"{arm}.json").read_text())
        assert all(math.isfinite(found["metrics"][name]) for name in ("top1", "mse", "insertion"))
        assert found["control"] == ("shuffled" if arm == "shuffled" else "none")
    with Image.open(out / "sheet.png") as picture:
        picture.load()


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


@pytest.mark.parametrize(
    ("name", "folder"), [("cub_gaze", "cub10"), ("agreement", "cub10"), ("busi", "busi"), ("idrid", "idrid")]
)
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

    def test_existing_out(self, shell: Shell, tmp_path: Path, name: str, folder: str) -> None:
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "runs" / name).mkdir(parents=True)
        result = shell(f'bash "{EXAMPLES / name}.sh"', HKMAP_DATA="data")
        assert result.exit_code == 2
        assert result.stderr == f"runs/{name}: exists already; remove it, or choose another OUT\n"

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
