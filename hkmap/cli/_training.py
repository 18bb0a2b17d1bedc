"""What `hkmap train` and `hkmap finetune` do alike: make the run folder, train with progress, print the summary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hkmap.cli._options import warn_of_control
from hkmap.cli._progress import track
from hkmap.cli._stream import print_result

if TYPE_CHECKING:
    from hkmap.engine.runs import TrainedModel
    from hkmap.engine.training import TrainingOptions
    from hkmap.shards.folds import Folding


def carry_out(
    model: TrainedModel,
    optimisation: TrainingOptions,
    *,
    shards: tuple[Path, ...],
    val: tuple[Path, ...],
    val_share: float,
    fold: tuple[int, Folding] | None,
    augmentations: tuple[str, ...],
    device: str,
    out: Path,
    resume: bool,
    overwrite: bool,
    pretrained: bool,
) -> None:
    """Train ``model`` on ``shards`` into the run folder ``out`` and print the summary as JSON.

    ``pretrained`` says that it is another run's, which must not have learnt from the fold that this one holds out.
    """
    from hkmap.engine import runs
    from hkmap.engine.data import make_data
    from hkmap.engine.runs import check_fold, described, hold_out, named
    from hkmap.engine.training import fit, go_on, prepare
    from hkmap.shards.sequence import ShardSequence

    sequence = ShardSequence(shards)
    held_out = hold_out(sequence, *fold) if fold else None
    if pretrained:
        check_fold(model, held_out)
    model = replace(model, fold=described(held_out) if held_out else None)
    data = make_data(
        model, sequence, ShardSequence(val) if val else None,
        val_share=val_share, augmentations=augmentations, seed=optimisation.seed, held_out=held_out,
    )
    warn_of_control(model)
    training = prepare(model, data, optimisation, runs.pick_device(device))
    runs.open_run(out, _options_in_force() | runs.describe(model), overwrite=overwrite, resume=resume)
    if resume:
        go_on(model, training, out)
    remaining = (optimisation.epochs - training.epoch) * data.steps(optimisation.batch_size)
    for _ in track(fit(model, training, data, out), "training", total=remaining):
        pass
    print_result({"run": str(out), **runs.read_summary(out), **(named(held_out) if held_out else {})})


def optimisation_options(options: dict[str, Any], **more: Any) -> TrainingOptions:
    """Take the optimiser's options out of a command's, by the names that the library uses."""
    from hkmap.engine.training import TrainingOptions

    names = ("epochs", "batch_size", "momentum", "weight_decay", "seed", "precision")
    return TrainingOptions(learning_rate=options.pop("lr"), **{name: options.pop(name) for name in names}, **more)


def _options_in_force() -> dict[str, Any]:
    ctx = click.get_current_context()
    left_out = ("overwrite", "resume", "out")       # they belong to one call, not to the run
    options = {name: value for name, value in ctx.params.items() if name not in left_out}
    return {"command": ctx.info_name, **{name: _as_toml(value) for name, value in options.items()}}


def _as_toml(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_toml(item) for item in value]
    return str(value) if isinstance(value, Path) else value
