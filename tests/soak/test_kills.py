"""`pack` and training killed at any moment: what stands under a final name is whole, and going on loses nothing."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

from hkmap.shards.info import describe_shard

pytestmark = pytest.mark.soak
PACKS = 50
RECORDS = 300
KILLS = 6           # of one training
OFTEN = ("--checkpoint-every", 1e-4)        # minutes, a few steps
NETWORK = ("--arch", "resnet8+abn", "--stem", "small", "--width", 4, "--image-size", 16, "--device", "cpu")


def start(folder: Path, *arguments: object, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "hkmap", *map(str, arguments)], cwd=folder, stdin=stdin, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def succeed(process: subprocess.Popen[bytes]) -> bytes:
    output, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    return output


# pack


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    rng = np.random.default_rng(0)
    for number in range(10):
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 256, (60, 60, 3), dtype=np.uint8))
        np.save(folder / f"{number}.npy", rng.random((14, 14), dtype=np.float32))
    lines = [
        {"id": str(number), "image": f"{folder}/{number % 10}.png", "map": f"{folder}/{number % 10}.npy",
         "label": number // 100, "class": f"class {number // 100}"}      # classes that come late
        for number in range(RECORDS)
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "in.jsonl"


@pytest.mark.parametrize("options", [[], ["--shard-size", "70"]], ids=["one shard", "many shards"])
def test_pack_killed_at_any_moment_and_resumed(options: list[str], records: Path, tmp_path: Path) -> None:
    """Killed once or twice, then resumed: the same files, byte for byte, as those of a run that nothing happened to."""
    dice = random.Random(len(options))
    command = ("pack", "x.h5", records, *options)
    (tmp_path / "whole").mkdir()
    began = time.monotonic()
    succeed(start(tmp_path / "whole", *command))
    duration = time.monotonic() - began
    whole = files(tmp_path / "whole")
    killed = 0
    for number in range(PACKS):
        folder = tmp_path / str(number)
        folder.mkdir()
        for turn in range(dice.choice([1, 1, 2])):
            began = time.monotonic()
            alive = killed_after(start(folder, *command, "--resume"), dice.uniform(0.2, 1.05) * duration)
            killed += alive
            if not alive and turn == 0:
                duration = time.monotonic() - began     # the machine is less busy than it was
            final = {path.name: path.read_bytes() for path in folder.glob("*.h5")}
            assert final.items() <= whole.items()
        succeed(start(folder, *command, "--resume", "--expect", RECORDS))
        assert files(folder) == whole
    assert killed > PACKS / 3


def test_pack_killed_and_begun_anew(records: Path, tmp_path: Path) -> None:
    """What a killed run has left is in nobody's way."""
    dice = random.Random(7)
    command = ("pack", "x.h5", records, "--shard-size", 70, "--overwrite")
    for _ in range(10):
        killed_after(start(tmp_path, *command), dice.uniform(0.4, 2))
    succeed(start(tmp_path, *command))
    assert sorted(files(tmp_path)) == [f"x-0000{number}.h5" for number in range(5)]
    assert sum(describe_shard(path)["records"] for path in tmp_path.glob("*.h5")) == RECORDS


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed_after(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Kill a process after some time; return whether it was still at work."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def test_pack_killed_while_records_come(records: Path, tmp_path: Path) -> None:
    """Records trickle in, then SIGKILL: nothing stands under the name, and the same line works again."""
    lines = records.read_bytes().splitlines(keepends=True)
    dice = random.Random(1)
    for _ in range(15):
        process = start(tmp_path, "pack", "x.h5", stdin=subprocess.PIPE)
        for line in lines[: dice.randrange(len(lines))]:
            process.stdin.write(line)
        process.stdin.flush()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=dice.uniform(0, 1))
        os.kill(process.pid, dice.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        process.communicate()
        assert process.returncode != 0
        assert not (tmp_path / "x.h5").exists()
    succeed(start(tmp_path, "pack", "x.h5", records, "--expect", RECORDS))
    assert list(files(tmp_path)) == ["x.h5"]


# training


def equal_figures(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal_figures(value, other[key]) for key, value in one.items())
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-5)
    return one == other


def same_run(one: Path, other: Path) -> None:
    import torch

    from hkmap.engine.checkpoints import read_state
    from hkmap.engine.runs import BEST, LAST, load_model

    runs = (one, other)
    pairs = {name: [load_model(run / name).network.state_dict() for run in runs] for name in (LAST, BEST)}
    pairs["state.pt"] = [read_state(run, load_model(run).network)["weights"] for run in runs]
    for name, (first, second) in pairs.items():
        for key, value in first.items():
            assert torch.equal(second[key], value), f"{name}: {key}"
    assert (one / "config.toml").read_bytes() == (other / "config.toml").read_bytes()
    # weights are equal to the bit; a sum that is only reported may differ in its last digit between processes
    logs = [(run / "log.jsonl").read_text().splitlines() for run in runs]
    for step, resumed in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert equal_figures(step, resumed)
    assert equal_figures(*(json.loads((run / "summary.json").read_text())["best"] for run in runs))


def steps_in(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def kill_and_resume(folder: Path, command: tuple[object, ...], dice: random.Random) -> int:
    """Run the command until it is done, breaking it off KILLS times; return how often it was broken off."""
    out = folder / "broken"
    broken = 0
    while True:
        way = ["--resume"] if (out / "state.pt").exists() else ["--overwrite"]
        process = start(folder, *command, "--out", "broken", *way, *OFTEN)
        if broken == KILLS:
            succeed(process)
            return broken
        goal = steps_in(out / "log.jsonl") + dice.randrange(1, 40)
        while steps_in(out / "log.jsonl") < goal and process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.01)
        if process.poll() is not None:
            assert succeed(process)
            return broken
        chosen = dice.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
        os.killpg(process.pid, chosen)
        said = process.communicate(timeout=60)[1]
        assert b"Traceback" not in said
        if process.returncode == 0:      # it had ended before the signal came
            assert (out / "summary.json").exists()
            return broken
        assert process.returncode in (130, 143, -signal.SIGKILL), said.decode()
        broken += 1


@pytest.mark.parametrize("seed", range(2))
def test_training_broken_off_and_resumed(make_shard: Callable[..., Path], tmp_path: Path, seed: int) -> None:
    make_shard("t.h5", 24)
    shared = (*NETWORK[-2:], "--batch-size", 4, "--seed", seed, "--epochs", 60)
    train = ("train", "t.h5", *NETWORK[:-2], *shared, "--val-share", 0.25, "--augment", "crop", "--augment", "mirror")
    succeed(start(tmp_path, *train, "--out", "whole"))
    assert kill_and_resume(tmp_path, train, random.Random(seed)) > 1
    same_run(tmp_path / "broken", tmp_path / "whole")
    for path in (tmp_path / "broken").iterdir():
        path.unlink()
    (tmp_path / "whole").rename(tmp_path / "run")
    finetune = ("finetune", "t.h5", "--from", "run", *shared, "--gamma", 1, "--control", "shuffled", "--update", "both")
    succeed(start(tmp_path, *finetune, "--out", "whole"))
    assert kill_and_resume(tmp_path, finetune, random.Random(seed + 100)) > 1
    same_run(tmp_path / "broken", tmp_path / "whole")
