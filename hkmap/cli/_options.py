"""Options that the engine's commands share."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hkmap.cli._stream import EXISTING, OUTPUT, Function
from hkmap.errors import ShardError

if TYPE_CHECKING:
    from hkmap.engine.runs import TrainedModel


_SHARD = (
    "SHARD is a file, a folder (all its *.h5), or, quoted, a pattern ('train-*.h5') or a range of names "
    "('train-{00000..00007}.h5', of which none may be missing)."
)


class Shards(click.ParamType):
    """A shard, a folder of shards, a range or a pattern of names; with ``missing``, also a file that is not there."""

    name = "shards"

    def __init__(self, *, missing: bool = False) -> None:
        self._missing = missing

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Path]:
        from hkmap.shards.sequence import find_shards

        try:
            return find_shards([str(value)])
        except ShardError as error:
            if self._missing:
                return [Path(value)]
            self.fail(str(error), param, ctx)


def shards_argument(*, missing: bool = False) -> Callable[[Function], Function]:
    """Add the argument SHARD..., one or several, in the order given, and what it may be to the command's help."""

    def decorate(function: Function) -> Function:
        text, mark, example = inspect.cleandoc(function.__doc__ or "").partition("\b\nExample:")
        function.__doc__ = f"{text}{_SHARD}\n\n{mark}{example}"
        return click.argument(
            "shards", type=Shards(missing=missing), nargs=-1, required=True, metavar="SHARD...", callback=_flat
        )(function)

    return decorate


def _flat(ctx: click.Context, parameter: click.Parameter, found: tuple[list[Path], ...]) -> tuple[Path, ...]:
    return tuple(path for paths in found for path in paths)


def from_option(function: Function) -> Function:
    """Add --from RUN, as the argument ``source``."""
    return click.option("--from", "source", type=click.Path(exists=True, path_type=Path), required=True, metavar="RUN",
                        help="A run folder (its best.pt), or one checkpoint such as RUN/last.pt.")(function)


def device_option(function: Function) -> Function:
    """Add --device."""
    return click.option("--device", default="auto", show_default=True, metavar="NAME",
                        help="auto (CUDA where there is one), cpu, cuda or cuda:N.")(function)


class FoldNumber(click.ParamType):
    """I/K: fold I, from 1, of K, from 2; as text, as it stands in config.toml."""

    name = "fold"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        found = re.fullmatch(r"0*([1-9][0-9]*)/0*([1-9][0-9]*)", str(value))
        if found is None or int(found[2]) < 2 or int(found[1]) > int(found[2]):
            self.fail(f"{value!r}: expected fold I of K as I/K, such as 1/5 to 5/5.", param, ctx)
        return f"{found[1]}/{found[2]}"


def fold_options(purpose: str) -> Callable[[Function], Function]:
    """Add --fold, whose help begins with its ``purpose``, --fold-seed and --group, joined into the argument ``fold``.

    It is the number of the fold and how the records are cut, None without --fold.
    """

    def decorate(function: Function) -> Function:
        @click.option("--fold", type=FoldNumber(), metavar="I/K",
                      help=f"{purpose} Fold I, from 1, of the K that `hkmap split --folds K` would make of the shards.")
        @click.option("--fold-seed", type=click.IntRange(min=0, max=2**32 - 1), default=0, show_default=True,
                      help="The --seed of that split: another seed, other folds.")
        @click.option("--group", metavar="KEY",
                      help="The --group of that split: a key of the records, such as patient, of which no value is in "
                           "two folds.")
        @functools.wraps(function)
        def wrapper(*args: Any, fold: str | None, fold_seed: int, group: str | None, **kwargs: Any) -> Any:
            if fold is None:
                said = click.get_current_context().get_parameter_source("fold_seed")
                if group is not None or said is ParameterSource.COMMANDLINE:
                    raise click.UsageError("--group and --fold-seed say how folds are cut; say --fold I/K too.")
                return function(*args, fold=None, **kwargs)
            from hkmap.shards.folds import Folding

            number, folds = map(int, fold.split("/"))
            return function(*args, fold=(number, Folding(folds, fold_seed, group)), **kwargs)

        return wrapper

    return decorate


def use_maps_option(function: Function) -> Function:
    """Add --use-maps."""
    return click.option("--use-maps", is_flag=True,
                        help="Put the human map in the place of the predicted one (the paper's section 3).")(function)


def training_options(function: Function) -> Function:
    """Add what training and fine-tuning share, but for the epochs and the learning rate."""
    options: list[Callable[[Function], Function]] = [
        click.option("--val", type=Shards(), multiple=True, metavar="SHARD", callback=_flat,
                     help="A shard on which the best epoch is chosen; repeatable. Never the test set."),
        click.option("--val-share", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True,
                     help="Without --val: the share of the training samples held out. 0: the last epoch is kept."),
        fold_options("Train on all but this fold, which does not choose the best epoch either; measure on it by eval."),
        click.option("--augment", "augmentations", multiple=True, metavar="KIND",
                     type=click.Choice(["mirror", "crop", "rotate", "intensity"]),
                     help="Move image and map together, at random: mirror, crop (50 to 100 % of the area), rotate (up "
                          "to 15 degrees); intensity changes brightness and contrast. Repeatable; default: none."),
        click.option("--batch-size", type=click.IntRange(min=2), default=16, show_default=True,
                     help="Samples a step; 16 is the paper's. A lone last sample joins the batch before."),
        click.option("--momentum", type=click.FloatRange(0, 1, max_open=True), default=0.9, show_default=True),
        click.option("--weight-decay", type=click.FloatRange(min=0), default=1e-4, show_default=True),
        click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True,
                     help="bfloat16: automatic mixed precision."),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
                     help="Fixes the weights, the order, the augmentation and the sham control."),
        device_option,
        click.option("--out", type=OUTPUT, required=True, metavar="RUN", help="The run folder to make."),
        click.option("--resume", is_flag=True, help="Go on after the last whole epoch in --out; same options."),
        click.option("--overwrite", is_flag=True, help="Replace a run in --out."),
        click.option("--config", type=EXISTING, is_eager=True, expose_value=False, callback=_read_defaults,
                     metavar="FILE", help="Take options from a config.toml of a run; those on the line come first."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def epochs_options(*, epochs: int, learning_rate: float) -> Any:
    """Return a decorator that adds --epochs and --lr with these defaults."""

    def decorate(function: Function) -> Function:
        @click.option("--epochs", type=click.IntRange(min=1), default=epochs, show_default=True,
                      help="The learning rate falls to a tenth at a half and at three quarters of them.")
        @click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=learning_rate, show_default=True,
                      help="The first learning rate (SGD). The paper gives none; the default is ours.")
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    return decorate


def warn_of_control(model: TrainedModel) -> None:
    """Say on stderr that a network is a sham control, if it is one."""
    if model.control == "shuffled":
        click.echo("sham control: this network learnt from maps of other images", err=True)


def _read_defaults(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    from hkmap.engine.runs import read_config

    ctx.default_map = {**(ctx.default_map or {}), **read_config(path)}
