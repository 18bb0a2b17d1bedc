"""Runs under torchrun that lose a process, or are told to end, go on to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hkmap.engine.runs import load_model

pytestmark = pytest.mark.soak
SMALL = ["--arch", "resnet8+abn", "--stem", "small", "--width", 4, "--image-size", 16, "--augment", "mirror"]
EPOCHS = 40
COUNT = 4
OFTEN = ["--checkpoint-every", 1e-4]        # minutes, a few steps


def started(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(COUNT), "-m", "hkmap"]
    return subprocess.Popen([*command, *map(str, arguments)], stderr=subprocess.PIPE, text=True)


def rank_of(process: Path) -> str | None:
    environment = (process / "environ").read_bytes().split(b"\0")
    return next((entry[5:].decode() for entry in environment if entry.startswith(b"RANK=")), None)


def process_of(parent: int, rank: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return next(int(child) for child in children if rank_of(Path("/proc", child)) == str(rank))


@pytest.mark.parametrize("ended", ["rank 0", "rank 3", "torchrun"])
def test_a_run_of_several_processes_goes_on(make_shard, tmp_path, ended):
    shard = make_shard("train.h5", 21)
    command = ["train", shard, *SMALL, "--batch-size", 8, "--epochs", EPOCHS, "--device", "cpu", "--out"]
    assert started(*command, tmp_path / "whole").wait() == 0
    running = started(*command, tmp_path / "run", *OFTEN)
    log = tmp_path / "run" / "log.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < 8:
        assert running.poll() is None, "the training ended before it was to be ended"
        time.sleep(0.05)
    if ended == "torchrun":
        running.terminate()
    else:
        os.kill(process_of(running.pid, int(ended[-1])), signal.SIGKILL)
    running.communicate()         # what the others say is in test_ranks.py: torchrun may end them before
    assert running.returncode != 0
    assert started(*command, tmp_path / "run", "--resume").wait() == 0
    ours, theirs = (load_model(tmp_path / name).network.state_dict() for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
