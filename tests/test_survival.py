"""Runs that end in the middle, by kill -9 or a signal to end, and go on from their last saved step, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_shard

from hkmap.engine.runs import load_model

SMALL = ["--arch", "resnet8+abn", "--stem", "small", "--width", 4, "--image-size", 16, "--batch-size", 4]
#: 12 records in batches of 4 are 3 steps an epoch; each of them is followed by a checkpoint.
TUNING = [
    "--augment", "mirror", "--precision", "bfloat16", "--cache-features", "--epochs", 4, "--batch-size", 4,
    "--ema", 0.9, "--optimizer", "adamw", "--lr", 0.001, "--checkpoint-every", 1e-9,
]
STEPS = 12


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a shard, a trained run, and a fine-tuned one that nothing happened to."""
    folder = tmp_path_factory.mktemp("survival")
    write_shard(folder / "train.h5", 12)
    for command in (
        ["train", "train.h5", *SMALL, "--epochs", 1, "--out", "run"],
        ["finetune", "train.h5", "--from", "run", *TUNING, "--out", "whole"],
    ):
        done = hkmap(folder, *command)
        assert done.returncode == 0, done.stderr
    return folder


def hkmap(
    folder: Path, *arguments: object, signal_at: tuple[str, int] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run hkmap in a process of its own, which may send itself a signal at a step."""
    killed = ROOT / "tests" / "killed_training.py"
    program = ["-m", "hkmap"] if signal_at is None else [str(killed), *map(str, signal_at)]
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False,
        timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def weights(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_model(run / f"{name}.safetensors").network.state_dict()


def assert_as_if_nothing_had_happened(whole: Path, broken: Path) -> None:
    for name in ("last", "best"):
        first, second = weights(whole, name), weights(broken, name)
        assert all(torch.equal(value, second[key]) for key, value in first.items())
    logs = [(run / "log.jsonl").read_text() for run in (whole, broken)]
    assert logs[0] == logs[1]
    first, second = (json.loads((run / "summary.json").read_text()) | {"seconds": 0} for run in (whole, broken))
    assert first == second
    assert not list(broken.glob("*cache*"))


def killed_and_resumed(whole: Path, number: str, step: int, out: str) -> subprocess.CompletedProcess[str]:
    command = ["finetune", "train.h5", "--from", "run", *TUNING, "--out", out]
    broken = hkmap(whole, *command, signal_at=(number, step))
    # before the first step nothing has been saved
    way = "--resume" if (whole / out / "state.pt").exists() else "--overwrite"
    assert (way == "--resume") == (step > 1 or number != "SIGKILL")
    resumed = hkmap(whole, *command, way)
    assert resumed.returncode == 0, resumed.stderr
    assert_as_if_nothing_had_happened(whole / "whole", whole / out)
    return broken


@pytest.mark.parametrize("step", [5, 9])
def test_a_run_that_is_killed_goes_on_bit_for_bit(whole: Path, step: int) -> None:
    assert killed_and_resumed(whole, "SIGKILL", step, f"killed{step}").returncode == -signal.SIGKILL


@pytest.mark.parametrize(("number", "step", "code", "word"), [
    ("SIGTERM", 5, 143, "terminated"), ("SIGINT", 8, 130, "interrupted"),
])
def test_a_signal_to_end_saves_the_step_that_was_under_way(
    whole: Path, number: str, step: int, code: int, word: str
) -> None:
    broken = killed_and_resumed(whole, number, step, number)
    assert (broken.returncode, broken.stderr.splitlines()[-1]) == (code, word)
    lines = (whole / number / "log.jsonl").read_text().splitlines()
    assert len(lines) == STEPS


@pytest.mark.soak
@pytest.mark.parametrize("step", sorted(random.Random(0).sample(range(1, 1000), 20)))
def test_kill_9_at_any_step(whole: Path, step: int) -> None:
    """Twenty steps drawn over the whole training, some of them the same: where in a step the signal comes differs."""
    number = 1 + step % STEPS
    assert killed_and_resumed(whole, "SIGKILL", number, f"soak{step}").returncode == -signal.SIGKILL


def test_a_run_goes_on_to_more_epochs(whole: Path) -> None:
    """With a constant rate, as the other schedules depend on the number of epochs."""
    options = ["finetune", "train.h5", "--from", "run", *TUNING, "--schedule", "constant"]
    epochs = options.index("--epochs") + 1
    longer, shorter = [*options], [*options]
    longer[epochs], shorter[epochs] = 3, 2
    assert hkmap(whole, *longer, "--out", "long").returncode == 0
    assert hkmap(whole, *shorter, "--out", "short").returncode == 0
    resumed = hkmap(whole, *longer, "--out", "short", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_as_if_nothing_had_happened(whole / "long", whole / "short")


def test_a_finished_run_that_is_resumed_keeps_its_summary(whole: Path) -> None:
    before = (whole / "whole/summary.json").read_text()
    resumed = hkmap(whole, "finetune", "train.h5", "--from", "run", *TUNING, "--out", "whole", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert (whole / "whole/summary.json").read_text() == before
    assert json.loads(resumed.stdout)["seconds"] == json.loads(before)["seconds"]
