"""Logs for other programs to show: each step goes to TensorBoard or Weights & Biases beside log.jsonl."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from hkmap.choices import Choices
from hkmap.errors import RunError
from hkmap.training.steps import Step

_FIGURES = {
    "loss": "loss/total", "loss_attention": "loss/attention", "loss_perception": "loss/perception",
    "loss_map": "loss/map", "loss_mining": "loss/mining", "accuracy": "accuracy", "learning_rate": "learning_rate",
    "attention_mean": "attention_mean",
}


class Log(Protocol):
    """Where the figures of a training go."""

    def write(self, step: Step) -> None:
        """Write the figures of a step."""

    def close(self) -> None:
        """Write what is left, and end."""


def figures(step: Step) -> dict[str, float]:
    """Return the figures of a step by the names that they have in a log, such as "loss/map" or "validation/top1"."""
    found = {name: getattr(step, key) for key, name in _FIGURES.items()}
    found |= {f"validation/{name}": value for name, value in (step.validation or {}).items()}
    return {name: value for name, value in found.items() if value is not None}


def logged(steps: Iterable[Step], logs: Iterable[Log]) -> Iterator[Step]:
    """Yield the steps, each once every log has it; close the logs at the end, whatever it is."""
    logs = list(logs)
    try:
        for step in steps:
            for log in logs:
                log.write(step)
            yield step
    finally:
        for log in logs:
            log.close()


class _TensorBoard:
    def __init__(self, folder: Path, config: Mapping[str, Any], done: int) -> None:
        _imported("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        # purge_step: what an older or a killed run has written of the steps to come does not count
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1, flush_secs=10)
        self._writer.add_text("config", "".join(f"    {name} = {value!r}\n" for name, value in config.items()), done)

    def write(self, step: Step) -> None:
        for name, value in figures(step).items():
            self._writer.add_scalar(name, value, step.step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A run of Weights & Biases, whose id is kept in the run folder, so that a resumed training goes on with it."""

    def __init__(self, folder: Path, config: Mapping[str, Any], done: int) -> None:
        wandb = _imported("wandb")
        kept = folder / "wandb" / "id"
        kept.parent.mkdir(parents=True, exist_ok=True)
        identity = kept.read_text(encoding="ascii") if done and kept.exists() else secrets.token_hex(8)
        try:
            self._run = wandb.init(
                project="hkmap", name=folder.name, dir=str(folder), config=dict(config), id=identity, resume="allow",
                settings=wandb.Settings(console="off"),      # stdout is ours
            )
        except wandb.Error as error:
            raise RunError(f"--log wandb cannot begin ({error}); `wandb login`, or set WANDB_MODE=offline") from error
        kept.write_text(identity, encoding="ascii")

    def write(self, step: Step) -> None:
        self._run.log(figures(step), step=step.step)

    def close(self) -> None:
        self._run.finish()


def tensorboard(folder: Path, config: Mapping[str, Any], done: int) -> Log:
    """TensorBoard's event files, in the run folder's tensorboard/."""
    return _TensorBoard(folder, config, done)


def wandb(folder: Path, config: Mapping[str, Any], done: int) -> Log:
    """A run of Weights & Biases, project hkmap; WANDB_MODE=offline keeps it in the run folder."""
    return _WandB(folder, config, done)


#: Rows open a log: the run folder, the options in force, and the steps that are done already.
LOGS: Choices[Callable[[Path, Mapping[str, Any], int], Log]] = Choices(
    "log", {"tensorboard": tensorboard, "wandb": wandb}
)


def _imported(package: str) -> Any:
    """Import the package of an extra; raise RunError where it is not installed."""
    try:
        module = importlib.import_module(package)
        if module.__file__ is None:      # a folder here of that name, as wandb makes
            raise ImportError(f"No module named {package!r}")
        return module
    except ImportError as error:
        remedy = f"pip install 'hkmap[{package}]'"
        raise RunError(f"--log {package} needs the package {package} ({error}); {remedy}") from error
