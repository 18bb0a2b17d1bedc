"""A shard that a killed program had open for writing: every command says so, and what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

KILLED = "import h5py, os, sys; file = h5py.File(sys.argv[1], 'r+'); os._exit(1)"
SENTENCE = (
    "train.h5: a program that was killed has left its mark that it is being written; if nobody writes it, run "
    "`h5clear -s train.h5` (of the HDF5 tools), then `hkmap check train.h5`; a copy has it too"
)


@pytest.fixture
def left(make_shard, here: Path) -> Path:
    shard: Path = make_shard("train.h5")
    subprocess.run([sys.executable, "-c", KILLED, str(shard)], check=False, timeout=60)
    return shard


@pytest.mark.parametrize("command", [
    ["info", "train.h5"], ["unpack", "train.h5"], ["merge", "out.h5", "train.h5", "train.h5"],
    ["split", "train.h5", "--folds", "2", "--out", "parts"], ["train", "train.h5", "--epochs", "1", "--out", "run"],
])
def test_every_command_names_the_mark(command: list[str], left: Path, hk) -> None:
    done = hk(*command)
    assert done.exit_code == 1
    assert SENTENCE in done.stderr


@pytest.mark.parametrize("key", ["image", "map"])
def test_so_does_who_reads_a_row(key: str, left: Path, hk) -> None:
    command = ["resize", "--size", 4, "--out", "m"] if key == "map" else ["show", "--out", "s.png"]
    done = hk(*command, stdin=[{"id": "1", key: "train.h5#0"}])
    assert done.exit_code == 1
    assert SENTENCE in done.stderr


def test_check_names_nothing_else(left: Path, hk) -> None:
    done = hk("check", "train.h5")
    assert done.exit_code == 3 or done.exit_code == 1
    assert done.stderr == f"error: {SENTENCE}\n"
