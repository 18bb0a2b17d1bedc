"""Processes joined by gloo as torchrun joins them: the same training as in one, and a word where one is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from hkmap.cli.main import hkmap
from hkmap.engine import ranks as ranks_module
from hkmap.engine.losses import losses
from hkmap.engine.ranks import Ranks, add_up, current, gathered, joined, reduced, shared
from hkmap.engine.runs import load_model
from hkmap.errors import RunError
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture
from hkmap.shards.loader import Shares
from hkmap.training import steps as steps_module

COUNT = 11          # records
BATCH = 8           # so the second step has three records, of which a fourth rank has none


# Children of a process that has computed can hang in its libraries' locks; those of one that has only imported do not.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch._dynamo", "hkmap.cli.main", "hkmap.training.fitting"])


def child(environment: dict[str, str], work: Callable[..., Any], arguments: tuple[Any, ...], result: Path) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    torch.save(work(*arguments), result)


@pytest.fixture
def on_ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """Call a function in a process per rank, and return what each returned; None of one that did not return."""

    def run(work: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        together |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        own = ("RANK", "LOCAL_RANK")
        files = [tmp_path / f"{rank}.pt" for rank in range(count)]
        for file in files:
            file.unlink(missing_ok=True)
        children = [
            FORKS.Process(target=child, args=({**together, **dict.fromkeys(own, str(rank))}, work, arguments, file))
            for rank, file in enumerate(files)
        ]
        for process in children:
            process.start()
        for process in children:
            process.join()
        return [torch.load(file, weights_only=False) if file.exists() else None for file in files]

    return run


# The same training


def network() -> nn.Module:
    torch.manual_seed(0)
    return build(Architecture("resnet8+abn", 3, stem="small", width=4)).double()


def samples() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    certainty = torch.rand(COUNT, 1, 8, 8).double()
    certainty[::3] = 0          # without a map
    images, maps = torch.randn(COUNT, 3, 16, 16).double(), torch.rand(COUNT, 1, 8, 8).double()
    return images, torch.arange(COUNT) % 3, maps, certainty


def trained(ranks: Ranks, *, train_mode: bool = False) -> list[tuple[torch.Tensor, ...]]:
    """The losses and gradients of each step of two epochs of SGD, from this rank's part."""
    ours = shared(network()).train(train_mode)
    images, labels, maps, certainty = samples()
    shares = Shares(COUNT, BATCH, *ranks, seed=5, least=2, split=True)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.05, momentum=0.9)
    steps = []
    for epoch in (1, 2):
        for step in range(shares.steps):
            rows, weights = shares.step(epoch, step)
            output = ours(images[rows])
            parts = losses(
                output, labels[rows], maps[rows], certainty[rows],
                weights=torch.from_numpy(weights).double(), count=shares.size(step),
            )
            optimizer.zero_grad()
            parts.total(0.5).backward()
            reduced(ours)
            figures = torch.stack([*parts]).detach()
            add_up([figures])
            gradients = torch.cat([parameter.grad.flatten() for parameter in ours.parameters()])
            optimizer.step()
            steps.append((figures, gradients))
    return [*steps, (torch.cat([values for name, values in ours.named_buffers() if "running" in name]),)]


def joined_training(train_mode: bool) -> list[tuple[torch.Tensor, ...]]:
    with joined("cpu"):
        return trained(current(), train_mode=train_mode)


@pytest.mark.parametrize("count", [2, 4])
def test_losses_and_gradients_are_those_of_one_process(on_ranks, count):
    one, found = trained(Ranks(0, 1)), on_ranks(joined_training, count, False)
    assert len(one) == 5
    for steps in found:
        for ours, theirs in zip(one, steps, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-10)
        assert all(map(torch.equal, sum(steps, ()), sum(found[0], ())))


def test_in_train_mode_each_rank_normalises_its_part_and_running_statistics_stay_alike(on_ranks):
    (*_, (one,)), found = trained(Ranks(0, 1), train_mode=True), on_ranks(joined_training, 2, True)
    (*_, (first,)), (*_, (second,)) = found
    assert torch.equal(first, second)
    assert not torch.equal(first, one)      # the difference that docs/parallel.md states


def statistics_of_norm() -> tuple[float, float, float]:
    with joined("cpu"):
        norm = nn.BatchNorm2d(1, momentum=1.0)
        norm(torch.tensor([0.0, 2.0] if current().first else [4.0, 10.0]).view(2, 1, 1, 1)).sum().backward()
        reduced(norm)
        return norm.running_mean.item(), norm.running_var.item(), norm.bias.grad.item()


def test_running_statistics_are_the_mean_of_the_ranks_own(on_ranks):
    assert on_ranks(statistics_of_norm, 2) == [((1 + 7) / 2, (2 + 18) / 2, 4.0)] * 2


def first_weights() -> torch.Tensor:
    with joined("cpu"):
        torch.manual_seed(current().rank)
        return shared(nn.Linear(3, 2)).weight.detach()


def test_all_ranks_begin_with_the_weights_of_the_first(on_ranks):
    first, second = on_ranks(first_weights, 2)
    assert torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, nn.Linear(3, 2).weight)


def gathered_rows() -> list[dict[str, Any]]:
    with joined("cpu"):
        return gathered([{"rank": current().rank, "values": [None, float(n)]} for n in range(current().rank)])


def test_items_are_gathered_in_the_order_of_the_ranks(on_ranks):
    rows = [{"rank": rank, "values": [None, value]} for rank, value in ((1, 0.0), (2, 0.0), (2, 1.0))]
    assert on_ranks(gathered_rows, 3) == [rows] * 3


def test_one_process_needs_no_other():
    layer = nn.Linear(2, 1)
    with joined("cpu") as device:
        assert (current(), device.type, gathered([1, 2])) == (Ranks(0, 1), "cpu", [1, 2])
        assert shared(layer) is layer
        layer(torch.ones(1, 2)).sum().backward()
        reduced(layer)
        assert layer.weight.grad.tolist() == [[1, 1]]


# What is lost, is said


def losing(how: str, until: Path) -> str:
    ranks_module.TIMEOUT = timedelta(seconds=60 if how == "killed" else 1)
    try:
        with joined("cpu"):
            add_up([torch.ones(3)])
            if not current().first and how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            while not (current().first or until.exists()):
                time.sleep(0.05)
            add_up([torch.ones(3)])
    except RunError as error:
        return str(error)


@pytest.mark.parametrize(("how", "seconds"), [("killed", 60), ("silent", 1)])
def test_a_rank_that_loses_another_says_so(on_ranks, tmp_path, how, seconds):
    first, second = on_ranks(losing, 2, how, tmp_path / "0.pt")
    assert first == (
        f"process 0 of 2 lost another one, which has ended or not answered for {seconds} s; see what that one says, "
        "then go on with --resume"
    )
    assert (second is None) == (how == "killed")


def command(*arguments: Any, dies_in_step: int | None = None) -> tuple[int, str, str]:
    """Run hkmap; the second process kills itself in the given step."""
    done = 0

    def dying(network: nn.Module) -> None:
        nonlocal done
        done += 1
        if done == dies_in_step and not current().first:
            os.kill(os.getpid(), signal.SIGKILL)
        reduced(network)

    steps_module.reduced = dying
    result = CliRunner().invoke(hkmap, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def dying_command(*arguments: Any) -> tuple[int, str, str]:
    return command(*arguments, dies_in_step=8)


def test_the_first_process_alone_writes_and_a_run_that_lost_one_goes_on(on_ranks, make_shard, tmp_path):
    small = ("--arch", "resnet8+abn", "--stem", "small", "--width", 4, "--image-size", 16, "--augment", "mirror")
    train = ("train", make_shard("train.h5", 13), *small, "--batch-size", 4, "--epochs", 3, "--device", "cpu", "--out")
    (code, stdout, stderr), other = on_ranks(command, 2, *train, tmp_path / "whole")
    assert (code, *other) == (0, 0, "", ""), stderr
    assert json.loads(stdout)["steps"] == 9
    assert [json.loads(line)["samples"] for line in (tmp_path / "whole" / "log.jsonl").open()] == [4, 4, 5] * 3
    saved = (tmp_path / "run", "--checkpoint-every", 1e-9)      # after each step
    (code, _, stderr), nothing = on_ranks(dying_command, 2, *train, *saved)
    assert (code, nothing) == (1, None)
    assert "process 0 of 2 lost another one" in stderr
    (code, _, stderr), _ = on_ranks(command, 2, *train, tmp_path / "run", "--resume")
    assert code == 0, stderr
    ours, theirs = (load_model(tmp_path / name).network.state_dict() for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def failing() -> str:
    try:
        with joined("cpu"):
            add_up([torch.ones(3)])
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    except RuntimeError as error:
        return str(error)


def test_other_errors_pass_through_the_ranks(on_ranks):
    assert on_ranks(failing, 2) == ["mat1 and mat2 shapes cannot be multiplied"] * 2


def test_ranks_that_cannot_meet_say_why(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    sentence = r"process 0 of 2 cannot join the others \(.* MASTER_ADDR expected, .*\); start all by one torchrun"
    with pytest.raises(RunError, match=sentence), joined("cpu"):
        pass


@pytest.mark.parametrize(("rank", "count"), [("2", "2"), ("one", "2"), ("-1", "2"), ("0", "0")])
def test_an_environment_that_is_not_torchruns(monkeypatch, rank, count):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", count)
    with pytest.raises(RunError, match=f'the environment has RANK "{rank}" and WORLD_SIZE "{count}"'):
        current()


@pytest.mark.parametrize(("device", "cards", "sentence"), [
    ("cuda:1", 4, "--device cuda:1: each process needs a device of its own"),
    ("auto", 2, "torchrun started 4 processes on a machine with 2 CUDA devices; start one per device"),
    ("cuda", 0, "--device cuda: this machine has no CUDA device"),
    ("gpu", 4, '--device "gpu" is unknown'),
])
def test_devices_that_ranks_cannot_have(monkeypatch, device, cards, sentence):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    for name, value in {"RANK": 3, "LOCAL_RANK": 3, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(RunError, match=sentence), joined(device):
        pass
