"""What `train` and `finetune` cannot do: one sentence each, with what to type, and no run."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import overridden, rewrite
from test_training import SMALL

from hkmap.engine import runs
from hkmap.files.atomic import locked
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture
from hkmap.training.steps import Training

TRAIN = ["--out", "new", *SMALL, "--epochs", 1, "--device", "cpu"]
TUNE = ["--out", "new", "--from", "run", "--epochs", 1, "--batch-size", 4]


def with_nan(file: h5py.File) -> None:
    values = file["maps"][:]
    values[3, 1, 2] = np.nan
    del file["maps"]
    file["maps"] = values


@pytest.fixture
def place(hk, make_shard, here) -> Path:
    """A folder with a shard, one without maps, a run, the weights of another network, and NaN in maps."""
    assert hk("train", make_shard("train.h5", 12), *overridden(TRAIN, "--out", "run")).exit_code == 0
    make_shard("bare.h5", 12, maps=0)
    rewrite(make_shard("nan.h5", 12), with_nan)
    np.save("nan.npy", np.full((4, 4), np.nan, np.float32))
    Path("nan.jsonl").write_text('{"id": "1", "image": "train.h5#0", "map": "nan.npy"}\n')
    torch.save(build(Architecture("resnet18", 2)).state_dict(), "other.pt")
    return here


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield


def out_of_memory() -> Any:
    def take(self: Training, batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return patched(Training, "take", take)


def read_only() -> Any:
    """Folders that may not be written to, whoever runs the tests, root included."""
    opened = os.open

    def refusing(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).endswith(".lock"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, *rest, **more)

    return patched(os, "open", refusing)


#: The command with its shard and options, what holds meanwhile, the exit code and the sentence.
BAD: dict[str, tuple[list[Any], Callable[[], Any], int, str]] = {
    "an unknown architecture": (
        ["train", "train.h5", *overridden(TRAIN, "--arch", "resnet19")], nullcontext, 2,
        "Invalid value for '--arch': architecture 'resnet19' is unknown; did you mean 'resnet18'? expected one of "
        "resnet8, resnet8+abn, ",
    ),
    "weights of another network": (
        ["train", "train.h5", *TRAIN, "--weights", "other.pt"], nullcontext, 1,
        "other.pt: has shape (64, 3, 7, 7) for conv1.weight, expected shape (4, 3, 3, 3); they are those of resnet18, "
        "2 classes: use --arch resnet18\n",
    ),
    "gamma without maps": (
        ["finetune", "bare.h5", *TUNE], nullcontext, 1,
        "bare.h5: no training sample has a map, which the map loss needs; use --gamma 0\n",
    ),
    "no CUDA device": (
        ["train", "train.h5", *overridden(TRAIN, "--device", "cuda")],
        lambda: patched(torch.cuda, "is_available", lambda: False), 1,
        "--device cuda: this machine has no CUDA device that torch can use; use --device cpu\n",
    ),
    "the end of the memory": (
        ["train", "train.h5", *TRAIN], out_of_memory, 1,
        "cpu ran out of memory with 4 images of 16x16 a batch; about 2 fit; give --batch-size 2 or a lower "
        "--image-size\n",
    ),
    "a batch beyond the memory": (
        ["train", "train.h5", *overridden(TRAIN, "--batch-size", 60_000)],
        lambda: patched(runs, "machine_memory", lambda: 2**30), 1,
        "resnet8+abn of width 4 with 60000 images of 16x16 takes at least 4.1 GiB, and cpu has 1.0; about "
        "7281 fit; give --batch-size 7281 or a lower --image-size\n",
    ),
    "a run folder that may not be written to": (
        ["train", "train.h5", *TRAIN], read_only, 1,
        "new: Read-only file system; expected a run folder that you may write to\n",
    ),
    "a run folder in use": (
        ["train", "train.h5", *overridden(TRAIN, "--out", "run"), "--overwrite"],
        lambda: locked(Path("run/log.jsonl")), 1,
        "run/log.jsonl: another run is writing it; wait for its end, or choose another name\n",
    ),
    "NaN in a map": (
        ["pack", "new.h5", "nan.jsonl"], nullcontext, 1,
        "nan.npy: holds NaN or infinite values, expected [0, 1]; unknown cells are 0, of certainty 0\n",
    ),
    "NaN in a map of a shard": (
        ["finetune", "nan.h5", *TUNE], nullcontext, 1,
        'nan.h5#3 (record "nan.h5-3"): its checksum does not fit, so the file is damaged; copy it again\n',
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_fault_is_one_sentence_and_no_run(hk, place, fault):
    line, during, code, sentence = BAD[fault]
    before = Path("run/state.pt").read_bytes()
    with during():
        result = hk(*line)
    said = result.stderr.rpartition("Error: ")[2]
    assert (result.exit_code, said[: len(sentence)]) == (code, sentence)
    assert (result.stderr.count("Error: "), said.count("\n")) == (1, 1)
    assert not Path("new/state.pt").exists()
    assert Path("run/state.pt").read_bytes() == before
