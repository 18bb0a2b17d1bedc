"""Options that more than one command has."""

from __future__ import annotations

import functools
import inspect
import math
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from hkmap.choices import TABLES, table
from hkmap.cli._stream import Function, other_kind, say
from hkmap.errors import ShardError

if TYPE_CHECKING:
    from hkmap.engine.runs import TrainedModel

Decorator = Callable[[Function], Function]
Colour = tuple[float, float, float]
Load = Callable[..., "TrainedModel"]        # the names of the classes, if they are known → the network


class Input(click.Path):
    """A file to read, or a folder where one may be given: never a pipe or a device, which do not end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from hkmap.files.opening import open_file

        path = Path(str(super().convert(value, param, ctx)))
        if not path.is_dir():
            try:
                open_file(path).close()
            except OSError as error:
                self.fail(f"{path}: {error.strerror}.", param, ctx)
        return path


class Number(click.FloatRange):
    """A number in a range: neither nan, which is in every range as it compares as false, nor an infinite one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Amount(click.FloatRange):
    """A number of records, from 1, as an int; or a share of them above 0 and up to 1.0, as a float."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        if re.fullmatch(r"0*[1-9][0-9]{0,8}", str(value)):
            return int(value)
        if not re.fullmatch(r"0?\.[0-9]*[1-9][0-9]*|1\.0+", str(value)):
            expected = "expected a number of records from 1 to 999999999, or a share such as 0.1; 1.0 is all."
            self.fail(f"{str(value)!r}: {expected}", param, ctx)
        return float(value)


FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
EXISTING = Input(exists=True, dir_okay=False, path_type=Path)
ANYTHING = Input(exists=True, path_type=Path)
OUTPUT = click.Path(path_type=Path)
COUNT = click.IntRange(1, 10**9)
AMOUNT = Amount(0, min_open=True)
SEED = click.IntRange(min=0, max=2**32 - 1)
RESAMPLES = click.IntRange(20, 100_000)      # statistics.LEAST
MOST_BATCHED = 2**16
_HEAVY = ("hkmap.engine", "hkmap.evaluation", "hkmap.networks", "hkmap.training")     # they import torch
LONGEST = 40      # characters of a list of names in a help text; `hkmap list` shows longer ones
_LARGEST_SIDE, _MOST_PIXELS = 16_384, 1 << 25      # of a map or stored image; drawing one takes up to 1 GiB
_LARGEST_FRAME = 10**6
MOST_FOLDS = 10_000


def composed(*decorators: Decorator) -> Decorator:
    """Return a decorator that adds several options, in this order."""
    return lambda function: functools.reduce(lambda wrapped, add: add(wrapped), reversed(decorators), function)


def ending_in(*endings: str) -> Callable[[click.Context, click.Parameter, Path | None], Path | None]:
    """Return a callback that refuses a file whose name has none of the ``endings``."""
    *others, last = endings
    words = f"{', '.join(others)} or {last}" if others else last

    def check(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
        if path is not None and path.suffix.lower() not in endings:
            raise click.BadParameter(f"'{path}': expected a name that ends in {words}.")
        return path

    return check


# choices by name


class Named(click.ParamType):
    """The name of a row in a table of hkmap.choices; the table is imported when a name is checked or completed."""

    name = "name"

    def __init__(self, table: str) -> None:
        self.table = table

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if ctx is not None and ctx.resilient_parsing:      # the shell completes another option
            return value
        choices = table(self.table)
        if value not in choices:
            self.fail(f"{choices.unknown(value)}.", param, ctx)
        return value

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Name our rows if they are few, except those whose module takes a second to import."""
        if TABLES[self.table].startswith(_HEAVY):
            return "NAME"
        choices = table(self.table)
        names = "|".join(name for name in choices if choices.origin(name) == "hkmap")
        return names if len(names) <= LONGEST else "NAME"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in table(self.table) if name.startswith(incomplete)]


class Names(Named):
    """Names with commas between them, as a tuple."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return tuple(Named.convert(self, name.strip(), param, ctx) for name in str(value).split(","))


def named_option(*flags: str, table: str, help: str, **more: Any) -> Decorator:      # noqa: A002  (as click has it)
    """Add an option that takes a name from a table; its help refers to `hkmap list`."""
    if more.get("multiple"):
        more |= {"type": Names(table), "callback": lambda ctx, parameter, names: tuple(chain.from_iterable(names))}
    return click.option(*flags, **{"type": Named(table), **more}, help=f"{help} See `hkmap list {table}`.")


# sources


def absolute_option(function: Function) -> Function:
    """Add --absolute, which makes every path of the command absolute."""

    @click.option("--absolute", is_flag=True,
                  help="Print absolute paths; by default they begin with the folder as given.")
    @functools.wraps(function)
    def wrapper(*args: Any, absolute: bool, **kwargs: Any) -> Any:
        if absolute:
            kwargs = {name: value.absolute() if isinstance(value, Path) else value for name, value in kwargs.items()}
        return function(*args, **kwargs)

    return wrapper


classes_option = click.option(
    "--classes", "present", type=click.Choice(["all", "present"]), default="all",
    callback=lambda _ctx, _parameter, value: value == "present",
    help="present: number from 0 only the classes whose folders are there, in the data set's order.",
)

#: A source's argument ROOT, and --absolute.
root_argument = composed(click.argument("root", type=FOLDER), absolute_option)

split_option = click.option(
    "--split", type=click.Choice(["train", "test", "all"]), default="all",
    help="Print only the training or test part, as the data set defines it.",
)


def sides(value: Any, largest: int = _LARGEST_SIDE, most: int = _MOST_PIXELS) -> tuple[int, int]:
    """Read (width, height) from N or WIDTHxHEIGHT: each up to ``largest``, and up to ``most`` pixels."""
    found = re.fullmatch(r"0*([1-9][0-9]*)(?:[xX]0*([1-9][0-9]*))?", str(value))
    if found is None:
        raise click.BadParameter(f"{value!r}: expected a side N from 1, or WIDTHxHEIGHT, such as 224x168, in pixels.")
    width, height = (whole(side, largest + 1) for side in (found[1], found[2] or found[1]))
    if max(width, height) > largest or width * height > most:
        raise click.BadParameter(f"{value}: expected sides from 1 to {largest:,}, and at most {most:,} pixels in all.")
    return width, height


def whole(digits: str, most: int) -> int:
    """Return a whole number, or ``most`` where it is larger: Python reads no number of more than 4,300 digits."""
    return min(int(digits), most) if len(digits) < 20 else most


def _columns(ctx: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, str]:
    """Read NAME=COLUMN,... ."""
    from hkmap.sources.tables import NAMES

    pairs = [pair.partition("=") for pair in value.split(",")] if value else []
    for name, equals, column in pairs:
        if name.strip() not in NAMES or not equals or not column.strip():
            raise click.BadParameter(f'"{name}{equals}{column}": expected NAME=COLUMN, NAME one of {", ".join(NAMES)}.')
    return {name.strip(): column.strip() for name, _, column in pairs}


def _columns_or_keys(ctx: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, str]:
    """Like _columns; beside --on of join NAME may be any key."""
    if not ctx.params.get("on"):
        return _columns(ctx, parameter, value)
    pairs = [pair.partition("=") for pair in value.split(",")] if value else []
    for name, _, column in pairs:
        if not name.strip() or not column.strip():
            raise click.BadParameter(f'"{name}={column}": expected KEY=COLUMN, such as class=diagnosis.')
    return {name.strip(): column.strip() for name, _, column in pairs}


#: --columns, --frame and --origin, by the names that sources.tables.Table has for them; all false by default.
table_options = composed(
    click.option("--columns", callback=_columns_or_keys, metavar="NAME=COLUMN,...",
                 help="The table's own names for the columns above, such as image=img,x=cx."),
    click.option("--frame", type=lambda value: sides(value, _LARGEST_FRAME, _LARGEST_FRAME**2), metavar="WIDTHxHEIGHT",
                 help="The picture size that the coordinates refer to, each side up to a million.  [default: each "
                      "image's own pixels]"),
    click.option("--origin", type=click.IntRange(0, 1), metavar="[0|1]", default=0,
                 help="The table's coordinate of the left and top edge."),
)


def format_options(function: Function) -> Function:
    """Add PATH, --format and the options of a table, joined into ``path`` and ``source``.

    Beside an option --on, which comes first and is eager, ``source`` is what --columns says.
    """

    @click.argument("path", type=ANYTHING)
    @named_option("--format", "name", table="formats", help="The format of PATH; by default it is recognised.")
    @table_options
    @functools.wraps(function)
    def wrapper(*args: Any, path: Path, name: str | None, **kwargs: Any) -> Any:
        from hkmap.sources.annotations import choose_format
        from hkmap.sources.tables import Table

        reading = {key: kwargs.pop(key) for key in ("columns", "frame", "origin")}
        if kwargs.get("on"):      # of join: a table of values, in no format
            if name or reading["frame"] or reading["origin"]:
                raise click.UsageError("--on reads a table of values; omit --format, --frame and --origin.")
            return function(*args, path=path, source=reading["columns"], **kwargs)
        if any(reading.values()) and name not in (None, "table"):
            raise click.UsageError("--columns, --frame and --origin say how to read a table; use --format table.")
        source = choose_format(path, name, Table(path, **reading) if any(reading.values()) else None)
        return function(*args, path=path, source=source, **kwargs)

    return wrapper


# maps


def size_option(flag: str, *, help: str, **more: Any) -> Decorator:      # noqa: A002  (as click has it)
    """Add an option for two sides: WIDTHxHEIGHT on the command line, (height, width) in the code, as for arrays."""
    text = f"{help} Sides up to {_LARGEST_SIDE:,}, at most {_MOST_PIXELS:,} pixels in all."
    return click.option(flag, type=lambda value: sides(value)[::-1], metavar="N|WIDTHxHEIGHT", help=text, **more)


def missing_option(what: str, passed_on: str) -> Decorator:
    """Add --missing: what to do with a record that lacks something."""
    return click.option("--missing", type=click.Choice(["error", "pass"]), default="error",
                        help=f"What to do with a record without {what}: fail, or pass it on {passed_on}.")


def normalise_option(default: str) -> Decorator:
    """Add --normalise."""
    return named_option("--normalise", table="normalisations", default=default,
                        help="How to scale each map; a map of zeros stays as it is.")


overwrite_option = click.option("--overwrite", is_flag=True, help="Replace existing output.")


def map_output_options(*, required: bool = True) -> Decorator:
    """Add --out, --format (as ``suffix``) and --overwrite of a MapWriter."""
    return composed(
        click.option("--out", type=OUTPUT, required=required, metavar="PATH",
                     help="Where the maps go: a folder (one file per map), or NAME.h5 (one row per map)."),
        click.option("--format", "suffix", type=click.Choice(["npy", "png"]), default="npy",
                     help="In a folder: float32 .npy or 16-bit grey .png files; no value above 0 becomes 0."),
        overwrite_option,
    )


# shards


def _found(ctx: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> tuple[Path, ...]:
    """Return the shards that the names stand for."""
    from hkmap.shards.sequence import find_shards

    try:
        found = tuple(find_shards(names))
    except ShardError as error:
        raise click.BadParameter(f"{error}.") from error
    for path in found:
        if path.suffix != ".h5" and (other := other_kind(path, "a shard", " | hkmap pack NAME.h5")):
            raise click.BadParameter(other)
    return found


#: The keywords of an option or argument that names shards.
SHARDS: dict[str, Any] = {"type": click.Path(), "callback": _found}


def shards_argument(function: Function) -> Function:
    """Add the argument SHARD... (one or more, in the order given), and its description to the command's help."""
    text, mark, example = inspect.cleandoc(function.__doc__ or "").partition("\b\nExample:")
    what = (
        "SHARD is a file, a folder (all its *.h5), or, in quotes, a pattern ('train-*.h5') or a range "
        "('train-{00000..00007}.h5', all of which must exist)."
    )
    function.__doc__ = f"{text}{what}\n\n{mark}{example}"
    return click.argument("shards", nargs=-1, required=True, metavar="SHARD...", **SHARDS)(function)


def _fold(value: str) -> str:
    """Read I/K: fold I, from 1, of K, from 2. It stays text, as in config.toml."""
    found = re.fullmatch(r"0*([1-9][0-9]*)/0*([1-9][0-9]*)", value)
    number, folds = (whole(found[part], MOST_FOLDS + 1) if found else 0 for part in (1, 2))
    if not 2 <= folds <= MOST_FOLDS or number > folds:
        raise click.BadParameter(f"{value!r}: expected fold I of K as I/K, such as 1/5 to 5/5, K at most {MOST_FOLDS}.")
    return f"{number}/{folds}"


def fold_options(purpose: str, *, grouped_intervals: bool = False) -> Decorator:
    """Add --fold, whose help begins with its ``purpose``, --fold-seed and --group, joined into the argument ``fold``.

    It is the number of the fold and how to cut the records, None without --fold. With ``grouped_intervals`` --group
    also is an argument by itself, and needs no --fold.
    """
    told = "--fold-seed says" if grouped_intervals else "--group and --fold-seed say"
    what = "The --group of that split"
    if grouped_intervals:
        what = "Intervals are over groups of records with the same KEY, such as patient; with --fold also that split's"

    def decorate(function: Function) -> Function:
        @click.option("--fold", type=_fold, metavar="I/K",
                      help=f"{purpose} Fold I, from 1, of the K that `hkmap split --folds K` would make.")
        @click.option("--fold-seed", type=SEED, default=0, help="The --seed of that split.")
        @click.option("--group", metavar="KEY", help=f"{what}.")
        @functools.wraps(function)
        def wrapper(*args: Any, fold: str | None, fold_seed: int, group: str | None, **kwargs: Any) -> Any:
            if grouped_intervals:
                kwargs["group"] = group
            if fold is None:
                source = click.get_current_context().get_parameter_source("fold_seed")
                if source is ParameterSource.COMMANDLINE or (group is not None and not grouped_intervals):
                    raise click.UsageError(f"{told} how to cut folds; give --fold I/K too.")
                return function(*args, fold=None, **kwargs)
            from hkmap.shards.folds import Folding

            number, folds = map(int, fold.split("/"))
            return function(*args, fold=(number, Folding(folds, fold_seed, group)), **kwargs)

        return wrapper

    return decorate


# networks


def _image_size(value: Any) -> int | str:
    """Read N or WIDTHxHEIGHT; N where both are equal, as config.toml has it."""
    width, height = sides(value)
    if not all(8 <= side <= 8192 for side in (width, height)):
        raise click.BadParameter(f"{value!r:.80}: expected sides from 8 to 8192 pixels.")
    return width if width == height else f"{width}x{height}"


image_size_option = click.option("--image-size", type=_image_size, metavar="N|WIDTHxHEIGHT", default=224,
                                 help="Sides of the network's input in pixels, from 8 to 8192.")


def preprocessing_options(usual: str) -> Decorator:
    """Add --image-size, --fit, --mean and --std, the last two None by default, which means the ``usual``."""
    return composed(
        image_size_option,
        named_option("--fit", table="fits", default="squash", help="How to bring an image to the input's shape."),
        click.option("--mean", type=_colour(0, 1), metavar="R,G,B",
                     help="What was subtracted from images in [0, 1]. The ABN authors' networks for birds have 0.5, as "
                          f"--std too.  [default: {usual}]"),
        click.option("--std", type=_colour(1e-3, 100), metavar="R,G,B",
                     help="What they were then divided by.  [default: as of --mean]"),
    )


def _colour(low: float, high: float) -> Callable[[Any], Colour]:
    """Return what reads R,G,B, or one number for all three, each from ``low`` to ``high``."""

    def read(value: Any) -> Colour:
        try:
            numbers = [float(number) for number in str(value).split(",")]
            red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
        except ValueError:
            red = green = blue = math.nan
        if not all(low <= channel <= high for channel in (red, green, blue)):      # NaN is not
            said = f"expected R,G,B from {low:g} to {high:g}, such as 0.485,0.456,0.406, or one number for all three."
            raise click.BadParameter(f"{value!r:.80}: {said}")
        return red, green, blue

    return read


def class_names_option(told: str) -> Decorator:
    """Add --classes, which `class_names` reads; ``told`` says how their number is known without it."""
    return click.option("--classes", metavar="FILE|SHARD|N",
                        help="The names of the classes, one per line in UTF-8, label 0 first; or a shard that has "
                             f"them; or only their number.  [default: their number {told}]")


def class_names(given: str | None) -> list[str] | None:
    """Read the names of --classes, empty ones for a number."""
    from hkmap.engine.checkpoints import MOST_CLASSES
    from hkmap.shards.reader import ShardReader
    from hkmap.stream.packing import read_classes

    if given is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", given):
        if not 1 <= int(given) <= MOST_CLASSES:
            raise click.BadParameter(f"{given}: expected from 1 to {MOST_CLASSES:,} classes.", param_hint="'--classes'")
        return [""] * int(given)
    if not Path(given).is_file():
        raise click.BadParameter(f"{given}: no such file; expected a list, a shard or a number.",
                                 param_hint="'--classes'")
    return ShardReader(Path(given)).classes if given.endswith(".h5") else read_classes(Path(given))

_INPUTS = ("image_size", "fit", "mean", "std", "classes")      # what --model and --onnx must be told
_FROM: dict[str, Any] = {
    "type": ANYTHING, "metavar": "RUN",
    "help": "A run folder (its best weights), or one file of weights such as RUN/last.safetensors.",
}

#: --from RUN, as the argument ``source``.
from_option = click.option("--from", "source", **_FROM, required=True)

device_option = click.option("--device", default="auto", metavar="NAME",
                             help="auto (CUDA where there is one), cpu, cuda or cuda:N.")


def network_options(*, batch_size: int | None) -> Decorator:
    """Add the options that predict and eval share; eval, without ``batch_size``, finds it for frames by itself.

    See `source_options`.
    """
    found = "Images in a forward pass.  [default: 32; of insertion and deletion 16 on the CPU, on CUDA what fits]"
    return composed(
        source_options,
        click.option("--use-maps", is_flag=True,
                     help="Use the human map instead of the predicted one (the paper's section 3)."),
        click.option("--batch-size", type=click.IntRange(1, MOST_BATCHED), default=batch_size,
                     help=None if batch_size else found),
        device_option,
    )


def source_options(function: Function) -> Function:
    """Add --from, --model and --onnx, one of which is given, and what images the last two take.

    They are joined into ``source``, which names the network, and ``load``, which returns it as a TrainedModel; it takes
    the names of the classes, which --classes of the command, if it has that, says instead.
    """

    @click.option("--from", "run", **_FROM)
    @click.option("--model", metavar="MODULE:FACTORY",
                  help="Instead of --from: a network of your own. FACTORY, in the Python module MODULE, takes nothing "
                       "and returns a torch.nn.Module that gives logits. MODULE is installed or in the current folder.")
    @click.option("--onnx", type=EXISTING, metavar="FILE",
                  help="Instead of --from: an ONNX file whose first output is logits. One of `hkmap export` says "
                       "itself what images it takes. Needs pip install 'hkmap[onnx]'.")
    @preprocessing_options("ImageNet's")
    @functools.wraps(function)
    def wrapper(*args: Any, run: Path | None, model: str | None, onnx: Path | None, **kwargs: Any) -> Any:
        sources = {"--from": run, "--model": model, "--onnx": onnx}
        given = [(flag, source) for flag, source in sources.items() if source is not None]
        if len(given) != 1:
            found = f"{' and '.join(flag for flag, _ in given)} are given" if given else "No network is given"
            raise click.UsageError(f"{found}; give one of --from RUN, --model MODULE:FACTORY or --onnx FILE.")
        flag, source = given[0]
        inputs = {name: kwargs.pop(name) for name in _INPUTS if name in kwargs}
        told = [name.replace("_", "-") for name in inputs if _is_given(name)]
        if told and flag == "--from":
            raise click.UsageError(f"--{told[0]} is for --model and --onnx; omit it, as a run knows its own.")
        load = functools.partial(_load, flag, source, inputs, told=bool(told))
        return function(*args, source=Path(source), load=load, **kwargs)

    return wrapper


def _load(
    flag: str, source: Any, inputs: dict[str, Any], names: Sequence[str] | None = None, *, told: bool
) -> TrainedModel:
    """Return the network that an option of `source_options` gives; ``told``: the user said what images it takes."""
    from hkmap.engine.inputs import Preprocessing
    from hkmap.engine.runs import load_model, onnx_model, other_model
    from hkmap.networks.outside import load_factory

    if flag == "--from":
        return load_model(source)
    width, height = sides(inputs["image_size"])
    usual = Preprocessing(height, width, inputs["fit"])
    preprocessing = replace(usual, mean=inputs["mean"] or usual.mean, std=inputs["std"] or usual.std)
    names = class_names(inputs.get("classes")) or names
    if flag == "--onnx":
        return onnx_model(source, preprocessing if told else None, names)
    with redirect_stdout(sys.stderr):      # what a factory prints is no result
        return other_model(load_factory(source), source, preprocessing, names)


def _is_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def warn_of_control(model: TrainedModel) -> None:
    """Tell people, on stderr, if a network was trained with a sham control."""
    from hkmap.engine.controls import told

    if (sentence := told(model.control)) is not None:
        say(sentence)
