from __future__ import annotations

import getpass
import io
import secrets
import signal
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hkmap.cli._drawing import draw_records, working_options
from hkmap.cli._options import ANYTHING, EXISTING, device_option, named_option, size_option, warn_of_control
from hkmap.cli._process import signals
from hkmap.cli._stream import Records, emit, plain, read, say, show_table, track
from hkmap.errors import RecordError, RunError
from hkmap.records import Record, Rejects, dump_record, each, label_of

if TYPE_CHECKING:
    from hkmap.editor.server import Editor
    from hkmap.editor.session import EditSession, Person

_PAGE = ("source", "users", "order", "start", "device", "host", "token", "port", "open_page")
_SCRIPT = ("suffix", "overwrite", "jobs", "backend", "scheduler")


class RecordsOrShard(Records):
    """Records, or the name of a shard."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return Path(value) if isinstance(value, str) and value.endswith(".h5") else super().convert(value, param, ctx)


class ShardLines(io.BytesIO):
    """The records of a shard, as `hkmap unpack` prints them."""

    def __init__(self, path: Path) -> None:
        from hkmap.stream.unpacking import unpack_records

        super().__init__(b"".join(map(dump_record, unpack_records([path]))))
        self.name = str(path)


def _people(ctx: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    people = tuple(unicodedata.normalize("NFC", name) for name in names)
    for name in people:
        if not name.strip() or plain(name) != name:
            raise click.BadParameter(f"{name[:20]!r}: expected a name that can be read.")
    if len(set(people)) < len(people):
        raise click.BadParameter("a name comes twice; expected each person once.")
    return people


@click.command("edit")
@click.argument("records", type=RecordsOrShard("rb"), default="-", metavar="[RECORDS|SHARD.h5]")
@click.option("--from", "source", type=ANYTHING, metavar="RUN",
              help="A run folder, or one file of weights, of a network with attention branch: its answer follows the "
                   "brush, and strokes may start from its map. Without it, maps are painted without answers.")
@click.option("--user", "users", multiple=True, callback=_people, metavar="NAME",
              help="Who edits; repeatable, each person gets a link.  [default: the login name]")
@named_option("--order", table="orders", default="given", help="Which record comes first.")
@click.option("--start", type=click.Choice(["map", "attention", "empty"]),
              help="What strokes start from: the record's map, the network's attention, or zeros; the page can change "
                   "it.  [default: the first of these that a record has]")
@size_option("--size", help="The size of a map that starts from zeros.  [default: that of the record's map, or the "
                             "network's, or 14]")
@device_option
@click.option("--host", default="127.0.0.1", metavar="ADDRESS",
              help="Where the page is served. For others in the network, such as 0.0.0.0, give --token too.")
@click.option("--token", metavar="SECRET",
              help="A secret of 16 characters or more that the links are made from; better in the environment, as "
                   "HKMAP_EDIT_TOKEN, where others on the machine do not see it.  [default: made up, and kept in "
                   "--out]")
@click.option("--port", type=click.IntRange(1, 65535),
              help="The page's port.  [default: the one used last with --out, or a free one]")
@click.option("--open", "open_page", is_flag=True, help="Open the page in the browser.")
@click.option("--script", type=EXISTING, metavar="FILE.jsonl",
              help="Instead of a page: the strokes of each record, one JSON object per line.")
@working_options
def edit(
    records: IO[bytes] | Path, out: Path, script: Path | None, size: tuple[int, int] | None, rejects: Rejects,
    **options: Any,
) -> None:
    """Edit maps by hand on a page in the browser, while the network of --from answers each movement of the brush.

    The page's link is printed. Done on the page, or Ctrl-C, saves the maps in --out and prints the records, with map
    (and certainty where somebody said "don't know"), edited_by, edited_at, edited_from and strokes; prediction is the
    network's answer with its own map, edited_prediction with the edited one. Records that nobody edited or confirmed
    pass unchanged. Each stroke is kept in --out at once, so the same command goes on where it was left, even after a
    crash.

    With --script no page opens: the strokes come from lines of {"id": ID, "strokes": [STROKE, ...]}, such as those that
    the page keeps in OUT/strokes/. Strokes start from the record's map, or from zeros where it has none; "start" names
    another key, such as attention, or empty. "edited_by" and "edited_at" are passed on. A record without a line passes
    unchanged.

    A STROKE is {"tool": "add", "points": [[x, y], ...], "radius": R}, with "strength" and "softness" from 0 to 1: a
    brush along points in pixels of the image. The tools are in `hkmap list tools`. With "outline": true the points are
    a polygon to fill; without points the whole map is meant. The map itself is never enlarged: a cell that no stroke
    touches keeps its value exactly, and a stroke smaller than a cell changes it by its area.

    The page needs pip install 'hkmap[edit]'. On another machine: ssh -L 8000:127.0.0.1:8000 HOST, and --port 8000.

    \b
    Example:
      hkmap unpack train.h5 | hkmap predict --from run/ --out maps/ \\
        | hkmap select --only misclassified --sort confidence \\
        | hkmap edit --from run/ --out edited/ --open | hkmap pack edited.h5
      hkmap edit records.jsonl --script strokes.jsonl --out edited/ | hkmap pack edited.h5
    """
    _refuse(*((_PAGE, "is for the page; omit it, or --script") if script else (_SCRIPT, "belongs to --script")))
    stream = ShardLines(records) if isinstance(records, Path) else records
    if script is not None:
        drawing = {name: options[name] for name in _SCRIPT}
        _by_script(script, size, records=stream, out=out, rejects=rejects, **drawing)
        return
    _check(out, **{name: options[name] for name in ("source", "device", "host", "token")})
    listed = list(each(read(stream, rejects), _checked, rejects))
    if not listed:
        raise RecordError("no record is left to edit: all were skipped; expected one or more")
    _on_a_page(listed, out, size, **{name: options[name] for name in _PAGE})


def _by_script(script: Path, size: tuple[int, int] | None, **drawing: Any) -> None:
    from hkmap.stream.editing import edited, read_script, watched

    edits = read_script(script)
    draw_records(
        partial(edited, edits=edits, size=size), reads_files=True, watch=partial(watched, edits=edits, script=script),
        **drawing,
    )


def _on_a_page(
    records: list[Record], out: Path, size: tuple[int, int] | None, *, users: tuple[str, ...], source: Path | None,
    device: str, order: str, start: str | None, open_page: bool, **where: Any,
) -> None:
    try:
        from hkmap.editor.server import Editor
        from hkmap.editor.serving import hosted
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        if package not in ("starlette", "uvicorn", "websockets"):
            raise
        raise RunError(f"the page needs {package}; pip install 'hkmap[edit]'") from error
    from hkmap.editor.session import EditSession
    from hkmap.files.atomic import locked

    with locked(out / "strokes"):
        session = EditSession(records, out, network=_network(source, device), size=size, begin=start)
        editor = Editor(session, users or (_login(),), orders=_orders(session, order), order=order)
        with hosted(editor, **where) as (thread, links):
            for user, link in zip(editor.users, links, strict=True):
                say(f"{user}: {link}" if len(links) > 1 else f"open {link}")
            _tell_of_sizes(session)
            if open_page:
                _browse(links[0])
            _wait(editor, thread)
        _show(session.table())
        emit(session.records_out())


def _refuse(names: Iterable[str], why: str) -> None:
    """Refuse options that do not belong to what was asked for."""
    context = click.get_current_context()
    for option in context.command.params:
        if option.name in names and context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option.opts[0]} {why}.")


def _check(out: Path, *, source: Path | None, device: str, host: str, token: str | None) -> None:
    from hkmap.editor.addresses import is_loopback

    if out.suffix == ".h5" or out.is_file():
        raise click.UsageError(f"--out {out}: expected a folder, for strokes and maps; `hkmap pack` joins them.")
    if device != "auto" and source is None:
        raise click.UsageError("--device is where the network of --from answers; give --from too, or omit it.")
    proposal = f"such as --token {secrets.token_urlsafe(24)}"
    if token is not None and len(token) < 16:
        raise click.UsageError(f"--token has {len(token)} characters; expected 16 or more, {proposal}.")
    if token is None and not is_loopback(host):
        raise click.UsageError(f"--host {host} lets others reach the page; give a secret too, {proposal}.")


def _checked(record: Record) -> Record:
    label_of(record)
    return record


def _network(source: Path | None, device: str) -> Any:
    if source is None:
        return None
    from hkmap.editor.live import LiveNetwork
    from hkmap.engine.runs import load_model, pick_device

    model = load_model(source)
    warn_of_control(model)
    return LiveNetwork(model, pick_device(device))


def _tell_of_sizes(session: EditSession) -> None:
    """Tell people before they paint, not after, that maps from the network are not of the size of the records' maps."""
    sizes = session.two_sizes()
    if sizes is None:
        return
    own, other = (f"{width}x{height}" for height, width in sizes)
    say(f"the records' maps are {own} and the network's {other} cells: what starts from the network's is {other}, and "
        f"a shard's maps have one size; put `hkmap resize --size {own} --out DIR` before `hkmap pack`")


def _orders(session: EditSession, order: str) -> dict[str, list[int]]:
    from hkmap.editor.ordering import orders

    count = len(session.records)
    bar = iter(track(range(count), "ordering", count))
    return orders(session, [order], lambda: next(bar, None))


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):      # a user without a name
        return "me"


def _browse(link: str) -> None:
    """Open a link, by another process, as a browser may write to stdout."""
    nothing = subprocess.DEVNULL
    subprocess.Popen([sys.executable, "-m", "webbrowser", link], stdin=nothing, stdout=nothing, stderr=nothing)


def _wait(editor: Editor, server: threading.Thread) -> None:
    """Wait until all people are done, or somebody presses Ctrl-C here; raise what other signals ask for."""
    with signals.deferred():
        while not editor.done.wait(0.1) and signals.stop is None:
            if not server.is_alive():
                raise RuntimeError("the server has ended by itself")
    if signals.stop is not None and signals.stop.args[0] == signal.SIGINT:
        signals.stop = None
    signals.check()


def _show(people: list[Person]) -> None:
    columns = ("person", "confirmed", "edited", "skipped", "strokes", "last change")
    rows = [[*map(str, person[:-1]), person.changed or ""] for person in people]
    if rows:
        show_table(columns, rows)
