"""What train and finetune share: their options, where options come from, and how a run is carried out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hkmap.cli._options import (
    EXISTING,
    MOST_BATCHED,
    OUTPUT,
    SEED,
    SHARDS,
    Decorator,
    Number,
    composed,
    device_option,
    fold_options,
    named_option,
    warn_of_control,
)
from hkmap.cli._process import signals
from hkmap.cli._stream import print_result, track
from hkmap.cli._strict import section
from hkmap.cli._watching import watched
from hkmap.errors import RunError
from hkmap.records import text_of

if TYPE_CHECKING:
    from hkmap.engine.data import Data
    from hkmap.engine.runs import TrainedModel
    from hkmap.shards.folds import Folding
    from hkmap.training.feeding import Feed
    from hkmap.training.optimisation import TrainingOptions
    from hkmap.training.steps import Training

Kind = TypeVar("Kind")


def training_options(*, epochs: int, select: str, update: str) -> Decorator:
    """Add the options that train and finetune share; ``epochs``, ``update`` and, in words, ``select`` are defaults."""
    return composed(
        section("Data", *_data_options(select)), section("Optimising", *_optimising_options(epochs, update)),
        section("The run", *_run_options()),
    )


def _data_options(select: str) -> Iterable[Decorator]:
    yield click.option("--val", multiple=True, metavar="SHARD", **SHARDS,
                       help="A shard to validate each epoch on, never the test set; repeatable.")
    yield click.option("--val-share", type=Number(0, 1, max_open=True), default=0.0,
                       help="Without --val: the share of training samples to hold out.")
    yield named_option("--select", table="selections",
                       help="Which epoch best.safetensors is: last, or by the validation data top1, loss, total (what "
                            f"is minimised) or mse (of the maps).  [default: {select}]")
    yield click.option("--patience", type=click.IntRange(1, 1_000_000), metavar="EPOCHS",
                       help="Stop early, after so many epochs without a better one by --select.")
    yield fold_options(
        "Train on all but this fold, and do not choose the best epoch by it; measure on it with eval."
    )
    yield named_option("--augment", "augmentations", table="augmentations", multiple=True,
                       help="Change images and their maps at random in this way; repeatable.")


def _optimising_options(epochs: int, update: str) -> Iterable[Decorator]:
    yield click.option("--epochs", type=click.IntRange(1, 1_000_000), default=epochs,
                       help="How often each sample is seen.")
    yield named_option("--update", table="updates", default=update, help="Which parts of the network to train.")
    yield click.option("--batch-size", type=click.IntRange(2, MOST_BATCHED), default=16,
                       help="Samples per step, of all processes together; the paper uses 16. A single last sample "
                            "joins the batch before.")
    yield click.option("--accumulate", type=click.IntRange(1, 10_000), default=1, metavar="BATCHES",
                       help="Add up the gradients of so many batches before a step.")
    yield named_option("--optimizer", table="optimizers", default="sgd", help="How gradients become steps.")
    yield click.option("--lr", type=Number(0, 1000, min_open=True), default=0.01,
                       help="The highest learning rate; AdamW wants about 0.001. The paper gives none; the "
                            "default is ours.")
    yield named_option("--schedule", table="schedules", default="step",
                       help="How the learning rate falls; step, the paper's, is a tenth after half and after three "
                            "quarters of the epochs.")
    yield click.option("--warmup", type=Number(0, 1_000_000), default=0.0, metavar="EPOCHS",
                       help="Let the learning rate rise over the first epochs.")
    yield click.option("--momentum", type=Number(0, 1, max_open=True), default=0.9,
                       help="Of SGD; AdamW's first beta.")
    yield click.option("--weight-decay", type=Number(0, 1000), default=1e-4)
    yield click.option("--clip-norm", type=Number(0, 1e9, min_open=True), metavar="NORM",
                       help="Scale gradients down where their norm is larger.")
    yield named_option("--class-weights", table="class_weights", default="none",
                       help="How much the samples of each class count.")
    yield click.option("--ema", type=Number(0, 1, min_open=True, max_open=True), metavar="DECAY",
                       help="Keep and validate a moving average of the weights, such as 0.999.")
    yield click.option("--mining", type=Number(0, 1e6), default=0.0, metavar="ALPHA",
                       help="Attention mining: scale of the answer's probability where the attention is hidden, summed "
                            "over the batch; its paper uses 1e-4.")
    yield click.option("--mask-threshold", type=Number(0, 1), default=0.5, metavar="SIGMA",
                       help="Attention mining hides where the attention is above this; its paper uses 0.78 for birds, "
                            "0.40 for dogs.")
    yield named_option("--precision", table="precisions", default="float32", help="The type of number to compute with.")
    yield click.option("--cache-features", is_flag=True,
                       help="Compute the frozen extractor's features once, and train the branches on them; of "
                            "augmentations, only mirror.")
    yield click.option("--compile", is_flag=True, help="Compile the network with torch.compile: slow to start.")


def _run_options() -> Iterable[Decorator]:
    yield click.option("--seed", type=SEED, default=0,
                       help="Determines the weights, the order, the augmentation and the sham control.")
    yield device_option
    yield click.option("--out", type=OUTPUT, required=True, metavar="RUN", help="The run folder to create.")
    yield click.option("--resume", is_flag=True,
                       help="Continue the run in --out after its last saved step; same options, or more --epochs.")
    yield click.option("--checkpoint-every", type=Number(0, 1e6, min_open=True), default=1.0,
                       metavar="MINUTES",
                       help="How often to save the run, within an epoch too. A signal to end saves it.")
    yield click.option("--overwrite", is_flag=True, help="Replace a run in --out.")
    yield named_option("--log", "logs", table="logs", multiple=True,
                       help="Write each step's figures for another program too; repeatable. They need the extras "
                            "hkmap[tensorboard] and hkmap[wandb].")
    yield recipe_option
    yield click.option("--config", type=EXISTING, is_eager=True, expose_value=False, callback=_read_defaults,
                       metavar="FILE",
                       help="Read options from a run's config.toml; the command line takes precedence.")


def taken(options: dict[str, Any], kind: type[Kind], **renamed: str) -> Kind:
    """Remove the fields of a dataclass from a command's options, and return it; ``renamed``: a field's other name."""
    names = {field.name: renamed.get(field.name, field.name) for field in fields(kind)}      # type: ignore[arg-type]
    return kind(**{field: options.pop(name) for field, name in names.items() if name in options})


@dataclass(frozen=True)
class RunOptions:
    """The options of a run's folder, and of what goes on in it."""

    out: Path
    resume: bool
    overwrite: bool
    checkpoint_every: float     # minutes
    logs: tuple[str, ...]
    cache_features: bool


def carry_out(
    model: TrainedModel, optimisation: TrainingOptions, run: RunOptions, *, shards: tuple[Path, ...],
    val: tuple[Path, ...], val_share: float, fold: tuple[int, Folding] | None, augmentations: tuple[str, ...],
    device: str, start: dict[str, Path | None], control: str = "none", maps_for: float | None = None,
) -> None:
    """Train ``model`` on ``shards`` into a run folder and print the summary as JSON.

    ``start`` says by which option, and from which file, it has weights already; a "source" is another run, which must
    not have learnt from the fold that this run holds out.
    """
    from hkmap.engine import folders, runs
    from hkmap.engine.data import make_data
    from hkmap.engine.ranks import current, joined
    from hkmap.shards.sequence import ShardSequence
    from hkmap.training.steps import prepare

    if run.resume and run.overwrite:
        raise click.UsageError("--resume continues the run in --out, --overwrite replaces it; give one of them.")
    sequence, validation = ShardSequence(shards), ShardSequence(val) if val else None
    held_out = runs.hold_out(sequence, *fold) if fold else None
    if "source" in start:
        runs.check_fold(model, held_out)
    model = replace(model, fold=runs.described(held_out) if held_out else None)
    data = make_data(
        model, sequence, validation, val_share=val_share, augmentations=augmentations, seed=optimisation.seed,
        held_out=held_out, control=control, maps_for=maps_for,
    )
    warn_of_control(model)
    with joined(device) as on, runs.memory_errors(
        model.architecture, model.preprocessing, optimisation.batch_size, device=on
    ):
        training = prepare(model, data, optimisation, on, stop=lambda: signals.stop is not None)
        options = _options_in_force() | {"select": optimisation.select}
        config = options | folders.describe(model) | options
        _carry_on(model, training, data, run, config, folders.run_info(on, shards=sequence, val=validation, **start))
    signals.check()
    if current().first:
        summary = folders.read_summary(run.out)
        print_result({"run": text_of(run.out), **summary, **(runs.named(held_out) if held_out else {})})


def _carry_on(
    model: TrainedModel, training: Training, data: Data, run: RunOptions, config: dict[str, Any], info: dict[str, Any]
) -> None:
    """Train to the end, or to a signal, and keep the run; the first of several processes shows and logs the steps."""
    from hkmap.engine import folders
    from hkmap.training.fitting import Keeping, Progress, fit, go_on
    from hkmap.training.logs import LOGS, logged

    feed = _feed(training, data, run.out, cached=run.cache_features)
    opened = folders.opened_run(run.out, config, info, overwrite=run.overwrite, resume=run.resume)
    first, epochs = training.ranks.first, training.options.epochs
    with (opened if first else nullcontext(run.out)) as begun, signals.deferred():
        progress = go_on(training, run.out) if run.resume else Progress()
        logs = [LOGS[name](run.out, config, training.step) for name in run.logs] if first else []
        if first and training.epoch < epochs:
            folders.write_run(begun, config, info)
        steps = fit(model, training, data, feed, Keeping(run.out, begun, 60 * run.checkpoint_every), progress)
        if first:
            steps = watched(
                logged(steps, logs), device=str(training.device), epochs=epochs, steps_per_epoch=training.steps(feed),
                done=training.step,
            )
        for _ in steps:
            pass


def _feed(training: Training, data: Data, folder: Path, *, cached: bool) -> Feed:
    """Return what feeds the training: images, or features that a file in ``folder`` holds where memory does not."""
    from hkmap.training.cache import CachedFeed
    from hkmap.training.feeding import image_feed

    images = image_feed(data, training.options, training.device)
    if not cached:
        return images
    return CachedFeed(images, training, folder, lambda batches, total: track(batches, "caching features", total))


def _options_in_force() -> dict[str, Any]:
    ctx = click.get_current_context()
    of_one_call = ("overwrite", "resume", "out", "checkpoint_every", "logs")
    options = {name: value for name, value in ctx.params.items() if name not in of_one_call}
    return {"command": ctx.info_name, **json.loads(json.dumps(options, default=text_of))}      # lists and strings only


#: What a config.toml says about its run beside the options; see runs.describe.
_DESCRIPTION = frozenset({
    "command", "arch", "stem", "width", "gate", "input", "fit", "mean", "std", "channels", "control", "classes",
})


def _read_defaults(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    from hkmap.engine.folders import read_config

    found = read_config(path)
    own = _keys(ctx.command)
    command = found.get("command")
    of_other = _keys_of(command) - own.keys() if command != ctx.info_name else set()
    for key in sorted(found.keys() - own.keys() - of_other - _DESCRIPTION):
        near = get_close_matches(key, own, 1)
        hint = f" did you mean {near[0]}?" if near else ""
        raise RunError(f"{path}: the key {key!r} is unknown;{hint} expected options of `hkmap {ctx.info_name}`")
    if unused := sorted(of_other & found.keys()):
        said = "%s: of `hkmap %s`; `hkmap %s` has no %s, and takes the rest"
        logging.getLogger("hkmap").warning(said, path, command, ctx.info_name, ", ".join(unused))
    for parameter in ctx.command.params:
        _check_type(path, parameter, found.get(parameter.name or ""))
    if command in ("train", "import"):
        found.pop("control", None)      # that of the weights they began with; no option of theirs
    ctx.default_map = {**(ctx.default_map or {}), **{own[key]: found[key] for key in own.keys() & found.keys()}}


def _read_recipe(ctx: click.Context, parameter: click.Parameter, name: str | None) -> None:
    if name is None:
        return
    from hkmap.training import recipes

    own = _keys(ctx.command)
    found = {own[key]: value for key, value in recipes.options(name, str(ctx.info_name)).items()}
    ctx.default_map = {**found, **(ctx.default_map or {})}      # --config, read before or after it, takes precedence


recipe_option = named_option(
    "--recipe", table="recipes", is_eager=True, expose_value=False, callback=_read_recipe,
    help="Take the options of a paper's training as defaults; --config and the command line take precedence.",
)


def _keys(command: click.Command) -> dict[str, str]:
    """Return the parameters of a command by the keys that a config may have: their own names, and their options'."""
    return {
        key: name for option in command.params if (name := option.name)
        for key in (name, max(option.opts, key=len).lstrip("-").replace("-", "_"))
    }


def _keys_of(command: object) -> set[str]:
    from hkmap.cli.main import load

    return {*_keys(load(command))} if command in ("train", "finetune") else set()


def _check_type(path: Path, parameter: click.Parameter, value: object) -> None:
    """Raise RunError where an option's value in a config is of another type; click would take true as 1."""
    many = parameter.nargs == -1 or getattr(parameter, "multiple", False)
    types: tuple[type, ...]
    what, types = "a text", (str, int)      # --image-size may be a number
    if getattr(parameter, "is_flag", False):
        what, types = "true or false", (bool,)
    elif isinstance(parameter.type, click.FloatRange | click.IntRange):
        what, types = "a number", (float, int) if isinstance(parameter.type, click.FloatRange) else (int,)
    items = value if many and isinstance(value, list) else [value]
    fits = isinstance(value, list) == many and all(type(item) in types for item in items)
    if value is not None and not fits:
        raise RunError(f"{path}: {parameter.name} is {value!r:.60}; expected {'a list of texts' if many else what}")
