"""Options that more than one command has."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from hkmap.choices import TABLES, origin, table
from hkmap.cli._stream import Function
from hkmap.errors import ShardError

if TYPE_CHECKING:
    from hkmap.engine.runs import TrainedModel

Decorator = Callable[[Function], Function]

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
ANYTHING = click.Path(exists=True, path_type=Path)
OUTPUT = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)
SEED = click.IntRange(min=0, max=2**32 - 1)
LONGEST = 40      # characters of a list of names in a help; a longer one is for `hkmap list`


def composed(*decorators: Decorator) -> Decorator:
    """Return a decorator that adds several options, in this order."""
    return lambda function: functools.reduce(lambda wrapped, add: add(wrapped), reversed(decorators), function)


# choices by name


class Named(click.ParamType):
    """The name of a row of a table of hkmap.choices, which is imported when a name is to be checked or completed."""

    name = "name"

    def __init__(self, table: str) -> None:
        self.table = table

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if ctx is not None and ctx.resilient_parsing:      # the shell completes another option, and need not wait
            return value
        choices = table(self.table)
        if value not in choices:
            self.fail(f"{choices.unknown(value)}.", param, ctx)
        return value

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Name our rows where they are few, but those of the engine, which takes a second to import."""
        if TABLES[self.table].startswith("hkmap.engine"):
            return "NAME"
        choices = table(self.table)
        names = "|".join(name for name in choices if origin(choices, name) == "hkmap")
        return names if len(names) <= LONGEST else "NAME"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in table(self.table) if name.startswith(incomplete)]


def named_option(*flags: str, table: str, help: str, **more: Any) -> Decorator:      # noqa: A002  (as click has it)
    """Add an option that takes a name of a table, which its help refers to."""
    return click.option(*flags, type=Named(table), help=f"{help} See `hkmap list {table}`.", **more)


# sources


def absolute_option(function: Function) -> Function:
    """Add --absolute, which makes every path of the command absolute."""

    @click.option("--absolute", is_flag=True,
                  help="Print absolute paths. By default a path is the folder as given, and what lies below it.")
    @functools.wraps(function)
    def wrapper(*args: Any, absolute: bool, **kwargs: Any) -> Any:
        if absolute:
            kwargs = {name: value.absolute() if isinstance(value, Path) else value for name, value in kwargs.items()}
        return function(*args, **kwargs)

    return wrapper


#: A source's argument ROOT, and --absolute.
root_argument = composed(click.argument("root", type=FOLDER), absolute_option)

split_option = click.option(
    "--split", type=click.Choice(["train", "test", "all"]), default="all",
    help="Print only the images of the data set's own training or test part.",
)


def sides(value: Any) -> tuple[int, int]:
    """Read (width, height) from N or WIDTHxHEIGHT."""
    found = re.fullmatch(r"0*([1-9][0-9]*)(?:[xX]0*([1-9][0-9]*))?", str(value))
    if found is None:
        raise click.BadParameter(f"{value!r}: expected a side N from 1, or WIDTHxHEIGHT, such as 224x168, in pixels.")
    return int(found[1]), int(found[2] or found[1])


def _columns(value: str) -> dict[str, str]:
    """Read NAME=COLUMN,... ."""
    names = ("image", "x", "y", "radius", "width", "height", "user", "weight", "label")
    pairs = [pair.partition("=") for pair in value.split(",")]
    for name, equals, column in pairs:
        if name.strip() not in names or not equals or not column.strip():
            raise click.BadParameter(f'"{name}{equals}{column}": expected NAME=COLUMN, NAME one of {", ".join(names)}.')
    return {name.strip(): column.strip() for name, _, column in pairs}


def table_options(function: Function) -> Function:
    """Add --columns, --frame and --origin, joined into the argument ``reading``: {} where none was given."""

    @click.option("--columns", type=_columns, metavar="NAME=COLUMN,...",
                  help="What the table calls its columns, where not by the names above: image=img,x=cx.")
    @click.option("--frame", type=sides, metavar="WIDTHxHEIGHT",
                  help="The picture size that the table's coordinates are for.  [default: each image's own pixels]")
    @click.option("--origin", type=click.Choice(["0", "1"]), default="0",
                  help="The table's coordinate of the left and top edge.")
    @functools.wraps(function)
    def wrapper(*args: Any, columns: Any, frame: Any, origin: str, **kwargs: Any) -> Any:
        given = columns or frame or origin != "0"
        reading = {"columns": columns or {}, "frame": frame, "origin": int(origin)} if given else {}
        return function(*args, reading=reading, **kwargs)

    return wrapper


def format_options(function: Function) -> Function:
    """Add PATH, --format, and the options of a table, which only a table has, joined into ``path`` and ``source``."""

    @click.argument("path", type=ANYTHING)
    @named_option("--format", "name", table="formats", help="The format of PATH; by default its content tells.")
    @table_options
    @functools.wraps(function)
    def wrapper(*args: Any, path: Path, name: str | None, reading: dict[str, Any], **kwargs: Any) -> Any:
        from hkmap.sources.annotations import choose_format
        from hkmap.sources.tables import Table

        if reading and name not in (None, "table"):
            raise click.UsageError("--columns, --frame and --origin say how to read a table; use --format table.")
        source = choose_format(path, name, Table(path, **reading) if reading else None)
        return function(*args, path=path, source=source, **kwargs)

    return wrapper


# maps


def size_option(flag: str, **more: Any) -> Decorator:
    """Add an option of two sides, WIDTHxHEIGHT on the line and (height, width) in the code, as arrays have it."""
    return click.option(flag, type=lambda value: sides(value)[::-1], metavar="N|WIDTHxHEIGHT", **more)


def missing_option(what: str, passed_on: str) -> Decorator:
    """Add --missing: what becomes of a record that lacks something."""
    return click.option("--missing", type=click.Choice(["error", "pass"]), default="error",
                        help=f"A record without {what}: an error, or passed on {passed_on}.")


def normalise_option(default: str) -> Decorator:
    """Add --normalise."""
    return named_option("--normalise", table="normalisations", default=default,
                        help="How each map is scaled; a map of zeros stays one.")


overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what exists under the output's name.")


def map_output_options(*, required: bool = True) -> Decorator:
    """Add --out, --format and --overwrite, joined into the argument ``writer``, None without --out."""

    def decorate(function: Function) -> Function:
        @click.option("--out", type=OUTPUT, required=required, metavar="PATH",
                      help="Where the maps go: a folder (one file per map), or NAME.h5 (one row per map).")
        @click.option("--format", "suffix", type=click.Choice(["npy", "png"]), default="npy",
                      help="In a folder: float32 .npy files, or 16-bit grey .png files (steps of 1/65535; no value "
                           "above 0 becomes 0).")
        @overwrite_option
        @functools.wraps(function)
        def wrapper(*args: Any, out: Path | None, suffix: str, overwrite: bool, **kwargs: Any) -> Any:
            from hkmap.files.maps import open_writer

            writer = None if out is None else open_writer(out, suffix=suffix, overwrite=overwrite)
            return function(*args, writer=writer, **kwargs)

        return wrapper

    return decorate


# shards


def _shards(value: str) -> list[Path]:
    """Find the shards that a name stands for."""
    from hkmap.shards.sequence import find_shards

    try:
        return find_shards([value])
    except ShardError as error:
        raise click.BadParameter(f"{error}.") from error


def _flat(ctx: click.Context, parameter: click.Parameter, found: tuple[list[Path], ...]) -> tuple[Path, ...]:
    return tuple(path for paths in found for path in paths)


def _files(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


#: What an option or argument is that names shards, one or several at a time.
SHARDS: dict[str, Any] = {"type": _shards, "callback": _flat, "shell_complete": _files}


def shards_argument(function: Function) -> Function:
    """Add the argument SHARD..., one or several, in the order given, and what it may be to the command's help."""
    text, mark, example = inspect.cleandoc(function.__doc__ or "").partition("\b\nExample:")
    what = (
        "SHARD is a file, a folder (all its *.h5), or, quoted, a pattern ('train-*.h5') or a range of names "
        "('train-{00000..00007}.h5', of which none may be missing)."
    )
    function.__doc__ = f"{text}{what}\n\n{mark}{example}"
    return click.argument("shards", nargs=-1, required=True, metavar="SHARD...", **SHARDS)(function)


def _fold(value: str) -> str:
    """Read I/K: fold I, from 1, of K, from 2; as text, as it stands in config.toml."""
    found = re.fullmatch(r"0*([1-9][0-9]*)/0*([1-9][0-9]*)", value)
    if found is None or int(found[2]) < 2 or int(found[1]) > int(found[2]):
        raise click.BadParameter(f"{value!r}: expected fold I of K as I/K, such as 1/5 to 5/5.")
    return f"{found[1]}/{found[2]}"


def fold_options(purpose: str) -> Decorator:
    """Add --fold, whose help begins with its ``purpose``, --fold-seed and --group, joined into the argument ``fold``.

    It is the number of the fold and how the records are cut, None without --fold.
    """

    def decorate(function: Function) -> Function:
        @click.option("--fold", type=_fold, metavar="I/K",
                      help=f"{purpose} Fold I, from 1, of the K that `hkmap split --folds K` would make of the shards.")
        @click.option("--fold-seed", type=SEED, default=0, help="The --seed of that split: another seed, other folds.")
        @click.option("--group", metavar="KEY",
                      help="The --group of that split: a key of the records, such as patient, of which no value is in "
                           "two folds.")
        @functools.wraps(function)
        def wrapper(*args: Any, fold: str | None, fold_seed: int, group: str | None, **kwargs: Any) -> Any:
            if fold is None:
                said = click.get_current_context().get_parameter_source("fold_seed")
                if group is not None or said is ParameterSource.COMMANDLINE:
                    raise click.UsageError("--group and --fold-seed say how folds are cut; give --fold I/K too.")
                return function(*args, fold=None, **kwargs)
            from hkmap.shards.folds import Folding

            number, folds = map(int, fold.split("/"))
            return function(*args, fold=(number, Folding(folds, fold_seed, group)), **kwargs)

        return wrapper

    return decorate


# networks

#: --from RUN, as the argument ``source``.
from_option = click.option("--from", "source", type=ANYTHING, required=True, metavar="RUN",
                           help="A run folder (its best.pt), or one checkpoint such as RUN/last.pt.")

device_option = click.option("--device", default="auto", metavar="NAME",
                             help="auto (CUDA where there is one), cpu, cuda or cuda:N.")


def network_options(*, batch_size: int) -> Decorator:
    """Add what predicting and measuring share."""
    return composed(
        from_option,
        click.option("--use-maps", is_flag=True,
                     help="Put the human map in the place of the predicted one (the paper's section 3)."),
        click.option("--batch-size", type=COUNT, default=batch_size),
        device_option,
    )


def training_options(*, epochs: int) -> Decorator:
    """Add what training and fine-tuning share; ``epochs`` is their default number."""
    return composed(
        click.option("--epochs", type=COUNT, default=epochs,
                     help="The learning rate falls to a tenth at a half and at three quarters of them."),
        click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=0.01,
                     help="The first learning rate (SGD). The paper gives none; the default is ours."),
        click.option("--val", multiple=True, metavar="SHARD", **SHARDS,
                     help="A shard on which the best epoch is chosen; repeatable. Never the test set."),
        click.option("--val-share", type=click.FloatRange(0, 1, max_open=True), default=0.0,
                     help="Without --val: the share of the training samples held out. 0: the last epoch is kept."),
        fold_options("Train on all but this fold, which does not choose the best epoch either; measure on it by eval."),
        named_option("--augment", "augmentations", table="augmentations", multiple=True,
                     help="Change images, and their maps with them, at random in this way; repeatable."),
        click.option("--batch-size", type=click.IntRange(min=2), default=16,
                     help="Samples per step; 16 is the paper's. A lone last sample joins the batch before."),
        click.option("--momentum", type=click.FloatRange(0, 1, max_open=True), default=0.9),
        click.option("--weight-decay", type=click.FloatRange(min=0), default=1e-4),
        named_option("--precision", table="precisions", default="float32", help="The numbers to compute with."),
        click.option("--seed", type=SEED, default=0,
                     help="Fixes the weights, the order, the augmentation and the sham control."),
        device_option,
        click.option("--out", type=OUTPUT, required=True, metavar="RUN", help="The run folder to make."),
        click.option("--resume", is_flag=True, help="Go on after the last whole epoch in --out; same options."),
        click.option("--overwrite", is_flag=True, help="Replace a run in --out."),
        click.option("--config", type=EXISTING, is_eager=True, expose_value=False, callback=_read_defaults,
                     metavar="FILE", help="Take options from a config.toml of a run; those on the line come first."),
    )


def _read_defaults(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    if path is not None:
        from hkmap.engine.runs import read_config

        ctx.default_map = {**(ctx.default_map or {}), **read_config(path)}


def warn_of_control(model: TrainedModel) -> None:
    """Say on stderr that a network is a sham control, if it is one."""
    if model.control == "shuffled":
        click.echo("sham control: this network learnt from maps of other images", err=True)
