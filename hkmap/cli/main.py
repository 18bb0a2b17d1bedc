"""The group `hkmap`: its commands, which are imported when they are called, and how each of them ends.

Exit codes: 0 done, 1 the data or the run failed, 2 wrong usage, 3 `check` found something, 130 interrupted, 143
terminated, 129 hung up.
"""

from __future__ import annotations

import errno
import functools
import importlib
import logging
import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from hkmap import __version__
from hkmap.choices import Choices
from hkmap.cli._process import Stopped, signals
from hkmap.cli._stream import byte_count, emit, plain, say
from hkmap.cli._strict import StrictCommand
from hkmap.errors import ChoiceError, HkmapError, UpstreamError

#: The commands in the order of a pipeline; each is the only one in its file, cli/NAME.py.
SECTIONS = {
    "Sources": {
        "cub": "Print Caltech-UCSD Birds, with boxes, bubbles and gaze.",
        "dogs": "Print Stanford Dogs, with boxes.",
        "idrid": "Print IDRiD's images of the retina, with lesion masks.",
        "folder": "Print the images of a folder, with masks if any.",
        "annotations": "Print the images of COCO, VOC, YOLO and other annotations.",
        "webdataset": "Print the samples of WebDataset tars.",
        "join": "Add the annotations of a file to records.",
        "sample": "Pass on some of the records, drawn at random.",
        "select": "Pass on the records that a network got wrong, or sorted.",
    },
    "Maps": {
        "bubbles2map": "Draw maps of bubbles or gaze points.",
        "boxes2map": "Draw maps of boxes.",
        "masks2map": "Draw maps of masks and polygons.",
        "certainty": "Compute how well each cell of a map is known.",
        "crop": "Crop or pad images, with everything that belongs to them.",
        "edit": "Edit maps by hand in the browser, or by strokes.",
        "plant": "Plant a decoy that goes with the label in images.",
        "resize": "Resize maps.",
    },
    "Shards": {
        "pack": "Pack images, maps and labels into HDF5 shards.",
        "unpack": "Print the records of shards, or write them as files.",
        "merge": "Join shards.",
        "split": "Split shards into parts or folds.",
        "info": "Describe shards.",
    },
    "Networks": {
        "import": "Make a run of another program's weights.",
        "train": "Train a network on images and labels.",
        "finetune": "Fine-tune a network to look where people look.",
        "predict": "Add predictions and attention maps to records.",
        "eval": "Measure a network on shards.",
        "compare": "Compare the results of runs, with statistics.",
        "plot": "Draw the learning curves of runs.",
        "report": "Write a page that shows evaluations.",
        "export": "Write a network as a file for other programs.",
    },
    "Looking and checking": {
        "show": "Draw contact sheets of images, annotations and maps.",
        "check": "Find what is odd about records, or damaged in shards.",
        "agreement": "Measure how far annotators agree.",
        "list": "List the choices of options, such as bandwidths or metrics.",
        "env": "Print versions and the machine, for a bug report.",
    },
}

#: Ours with their short help, and those that other packages add by entry points in `hkmap.commands`.
COMMANDS: Choices[Any] = Choices(
    "command", {name: line for lines in SECTIONS.values() for name, line in lines.items()}, group="hkmap.commands",
    kind=click.Command,
)
OURS = tuple(name for lines in SECTIONS.values() for name in lines)

# What torch and OpenCV say for a MemoryError.
_NO_MEMORY = ("can't allocate memory", "Insufficient memory")

# What cv2's wheel needs, and a machine without a desktop lacks.
_OF_DESKTOPS = ("libGL", "libgthread", "libSM", "libX")


class _StderrHandler(logging.Handler):
    """Prints warnings to the current stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {record.getMessage()}")


# What is to be done where the system's own words do not say it.
_REMEDIES = {
    errno.ENAMETOOLONG: "expected a name of at most 255 bytes", errno.ENOTDIR: "expected a folder on the way to it",
    errno.EACCES: "expected a place that you may use", errno.ELOOP: "expected no link in its place",
}


class Commands(StrictCommand, click.Group):
    """Imports a command when it is called; its end becomes a sentence and an exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            return super().main(*args, **extra)
        except OSError as error:      # of --help and --version, which print before a command begins
            say(f"Error: {_sentence(error)}")
            _forget_stdout()
            sys.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in OURS:
            return load(name)
        if name not in COMMANDS:
            return None
        found: click.Command = COMMANDS[name]
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            ctx.fail(f"{COMMANDS.unknown(args[0])}.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections without cutting lines, and one for the commands of other packages."""
        others = {name: _line(name) for name in COMMANDS if name not in OURS}
        width = max(map(len, (*OURS, *others)))
        for title, lines in {**SECTIONS, "Commands of other packages": others}.items():
            if lines:
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(width), line) for name, line in lines.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in COMMANDS if name.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [*(CompletionItem(name, help=_line(name)) for name in names), *options]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _forget_stdout()      # the reader has enough (`| head -1`): no error
            ctx.exit(0)
        except KeyboardInterrupt as stop:
            _stop(ctx, stop)
        except click.UsageError as error:
            raise click.UsageError(plain(error.format_message()), error.ctx) from error
        except (click.exceptions.Exit, click.ClickException):
            raise
        except Exception as error:
            if signals.stop is not None:      # a library made something else of it
                _stop(ctx, signals.stop)
            sentence = _sentence(error)
            if sentence is not None:
                _fail(ctx, sentence, pass_on=error.args[0] if isinstance(error, UpstreamError) else None)
            _pass_on(f"{type(error).__name__}: {error}")      # a bug keeps its traceback, and the next stage is told
            raise


@functools.cache
def load(name: str) -> click.Command:
    """Import one of our commands; add -v and -q, and an environment variable per option, as HKMAP_PREDICT_FROM."""
    module = importlib.import_module(f"hkmap.cli.{name}")
    command = next(
        found for found in vars(module).values() if isinstance(found, click.Command) and found.name == name
    )
    command.__class__ = StrictCommand
    command.short_help = COMMANDS[name]
    talk: dict[str, Any] = {"expose_value": False, "callback": _set_level, "show_default": False}
    command.params += [
        click.Option(["-v", "--verbose"], count=True, **talk, help="Print more."),
        click.Option(["-q", "--quiet"], is_flag=True, **talk, help="Print errors only."),
        click.Option(["--max-image-bytes"], hidden=True, **{**talk, "callback": _limit}, help="As before the command."),
    ]
    for option in command.params:
        if isinstance(option, click.Option):
            own = max(option.opts, key=len).removeprefix("--")
            option.envvar = f"HKMAP_{name}_{own}".replace("-", "_").upper()
            if isinstance(option.type, click.IntRange | click.FloatRange) and not option.count:
                # not "INTEGER RANGE": the range stands beside the default
                option.metavar = option.metavar or ("N" if isinstance(option.type, click.IntRange) else "NUMBER")
    return command


def _line(name: str) -> str:
    if name in OURS:
        return str(COMMANDS[name])
    try:
        return str(COMMANDS[name].get_short_help_str(limit=200))
    except ChoiceError:
        return f"cannot be loaded; call `hkmap {name}` to see why"


def _set_level(ctx: click.Context, parameter: click.Parameter, value: int) -> None:
    if value:
        level = logging.ERROR if parameter.name == "quiet" else logging.WARNING - 10 * min(value, 2)
        logging.getLogger("hkmap").setLevel(level)


def _limit(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    from hkmap.files import opening

    if value is not None:
        opening.max_image_bytes = byte_count(value)


def _sentence(error: Exception) -> str | None:
    """Return what is wrong and what is to be done about it; None for a bug."""
    if isinstance(error, HkmapError):
        return str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        remedy = _REMEDIES.get(error.errno or 0)
        return f"{place}{error.strerror or error}{f'; {remedy}' if remedy else ''}"
    if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        return "there is not enough memory for this; ask for smaller maps or pictures, or for fewer at a time"
    if isinstance(error, ImportError) and str(error).startswith(_OF_DESKTOPS):
        return (f"OpenCV cannot be loaded ({error}); on a machine without a desktop run "
                "`pip uninstall opencv-python`, then `pip install opencv-python-headless`")
    return None


def _stop(ctx: click.Context, stop: KeyboardInterrupt) -> NoReturn:
    word, code = (stop.word, stop.code) if isinstance(stop, Stopped) else ("interrupted", 130)
    say(word)
    _pass_on(word)       # `kill -INT` reaches only this stage, unlike Ctrl-C
    ctx.exit(code)


def _fail(ctx: click.Context, message: str, pass_on: str | None = None) -> NoReturn:
    say(f"Error: {message}")
    _pass_on(pass_on or message)
    ctx.exit(1)


def _pass_on(message: str) -> None:
    """Tell the next stage of an error, unless stdout is a terminal."""
    if sys.stdout.isatty():
        return
    try:
        emit([{"error": message.encode(errors="backslashreplace").decode()}])     # a file name may be Latin-1
    except OSError:
        _forget_stdout()          # the next stage has ended, or the disk is full: stderr has the sentence


def _forget_stdout() -> None:
    with suppress(OSError, ValueError):      # a test's stdout has no descriptor
        descriptor = sys.stdout.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


SETTINGS = {"auto_envvar_prefix": "HKMAP", "help_option_names": ["-h", "--help"], "show_default": True}


@click.group(cls=Commands, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="hkmap")
@click.option("--max-image-bytes", callback=_limit, expose_value=False, metavar="SIZE", default="1GiB",
              help="Refuse an image that takes more memory to decode; such as 500MB or 4GiB.")
def hkmap() -> None:
    """Turn what people know about where to look into attention maps, and train networks that look there.

    Commands pass records, one JSON object per line: sources print them, filters change them, sinks keep them.
    `hkmap COMMAND --help` explains a command.

    \b
    Example:
      set -o pipefail
      hkmap cub CUB_200_2011 --bubbles bubbles.csv --split train \\
        | hkmap bubbles2map --out maps/ | hkmap resize --size 14 --out maps14/ \\
        | hkmap pack train.h5
      hkmap train train.h5 --arch resnet18+abn --out run/
      hkmap finetune train.h5 --from run/ --gamma 1 --out run-ft/
      hkmap eval test.h5 --from run-ft/ --metric top1 --metric insertion
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")      # our own messages about damaged images are clearer
    logger = logging.getLogger("hkmap")
    logger.handlers[:] = [_StderrHandler()]
    logger.setLevel(logging.WARNING)
    logger.propagate = False
