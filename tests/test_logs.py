"""A training's steps in TensorBoard's files, read back by TensorBoard, and in a stand-in for Weights & Biases."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from test_watching import FOUND, training

from hkmap.errors import RunError
from hkmap.training.logs import LOGS, figures, logged

NAMES = {
    "loss/total": 1.25, "loss/attention": 0.75, "loss/perception": 0.5, "loss/map": 0.25, "loss/mining": 0.0,
    "accuracy": 0.5, "learning_rate": 0.01, "attention_mean": 0.5,
}
VALIDATED = {"validation/top1": 0.875, "validation/loss": 0.5, "validation/mse_of_zeros": 0.25}      # no mse there


def test_the_figures_of_a_step() -> None:
    within, last = training(1, 2, validation=FOUND)
    assert figures(within) == NAMES
    assert figures(last) == NAMES | VALIDATED
    [plain] = training(1, 1, attention_mean=None)
    assert "attention_mean" not in figures(plain)


class Kept:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def write(self, step: Any) -> None:
        self.seen.append(step.step)

    def close(self) -> None:
        self.seen.append("closed")


def test_every_log_has_a_step_before_it_is_passed_on_and_is_closed_whatever_happens() -> None:
    logs = [Kept(), Kept()]
    given = logged(training(2, 2), logs)
    assert next(given).step == 1
    assert [log.seen for log in logs] == [[1], [1]]
    with pytest.raises(KeyboardInterrupt):
        given.throw(KeyboardInterrupt)
    assert [log.seen for log in logs] == [[1, "closed"], [1, "closed"]]
    whole = Kept()
    assert [step.step for step in logged(training(1, 2), [whole])] == [1, 2]
    assert whole.seen == [1, 2, "closed"]


def write(folder: Path, name: str, steps: Any, done: int = 0) -> None:
    for _ in logged(steps, [LOGS[name](folder, {"lr": 0.01, "augmentations": ["mirror"], "val": None}, done)]):
        pass


# TensorBoard


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {name: {one.step: one.value for one in events.Scalars(name)} for name in events.Tags()["scalars"]}


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    write(tmp_path, "tensorboard", training(2, 2, validation=FOUND))
    found = scalars(tmp_path)
    assert found == {
        **{name: dict.fromkeys((1, 2, 3, 4), pytest.approx(value)) for name, value in NAMES.items()},
        **{name: dict.fromkeys((2, 4), pytest.approx(value)) for name, value in VALIDATED.items()},
    }


def test_a_resumed_run_goes_on_and_what_was_never_kept_does_not_count(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    write(tmp_path, "tensorboard", training(1, 6, loss=1.0))
    write(tmp_path, "tensorboard", training(1, 5, start=2, loss=2.0), done=2)      # the checkpoint was of step 2
    assert scalars(tmp_path)["loss/total"] == {1: 1.0, 2: 1.0, 3: 2.0, 4: 2.0, 5: 2.0}
    write(tmp_path, "tensorboard", training(1, 2, loss=3.0))                       # a new run in its place
    assert scalars(tmp_path)["loss/total"] == {1: 3.0, 2: 3.0}


# Weights & Biases


@pytest.fixture
def weights_and_biases(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A module in the place of wandb, which notes how it is called."""
    seen = SimpleNamespace(begun=[], logged=[], finished=0, error=None)
    module = ModuleType("wandb")
    module.__file__ = "wandb/__init__.py"

    class Error(Exception):
        pass

    def init(**options: Any) -> Any:
        if seen.error:
            raise Error(seen.error)
        seen.begun.append(options)
        seen.logged.append({})
        return SimpleNamespace(log=log, finish=finish)

    def log(values: dict[str, float], step: int) -> None:
        seen.logged[-1][step] = values

    def finish() -> None:
        seen.finished += 1

    vars(module).update(Error=Error, Settings=lambda **settings: settings, init=init)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return seen


def test_a_run_of_wandb(tmp_path: Path, weights_and_biases: SimpleNamespace) -> None:
    write(tmp_path / "run-1", "wandb", training(1, 2, validation=FOUND))
    write(tmp_path / "run-1", "wandb", training(2, 2, start=2), done=2)
    write(tmp_path / "run-1", "wandb", training(1, 1))      # a new run in its place
    first, second, third = weights_and_biases.begun
    assert first["id"] == second["id"] != third["id"]
    assert {key: first[key] for key in ("project", "name", "dir", "resume", "settings", "config")} == {
        "project": "hkmap", "name": "run-1", "dir": str(tmp_path / "run-1"), "resume": "allow",
        "settings": {"console": "off"}, "config": {"lr": 0.01, "augmentations": ["mirror"], "val": None},
    }
    assert weights_and_biases.logged == [{1: NAMES, 2: NAMES | VALIDATED}, {3: NAMES, 4: NAMES}, {1: NAMES}]
    assert weights_and_biases.finished == 3


def test_wandb_without_a_key_is_a_sentence(tmp_path: Path, weights_and_biases: SimpleNamespace) -> None:
    weights_and_biases.error = "No API key configured"
    sentence = r"^--log wandb cannot begin \(No API key configured\); `wandb login`, or set WANDB_MODE=offline$"
    with pytest.raises(RunError, match=sentence):
        LOGS["wandb"](tmp_path, {}, 0)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_extra_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RunError, match=rf"--log {name} needs the package {name} .*; pip install 'hkmap\[{name}\]'$"):
        LOGS[name](tmp_path, {}, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_named_wandb_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "path", sys.path[:1])
    with pytest.raises(RunError, match=r"pip install 'hkmap\[wandb\]'$"):
        LOGS["wandb"](tmp_path / "run", {}, 0)
    sys.modules.pop("wandb", None)
