"""Break `hkmap pack` off at each of its steps: `python broken_packing.py kill|full|stop|limit STRIDE ARGUMENT...`.

A step opens (to write), truncates, renames or removes a file of the work, as Python's audit hooks see it, writes a row
of a dataset, has libhdf5 lay out a file, or waits for the disk. Run after run, each in a folder and a process of its
own, step 1, 1 + STRIDE, 1 + 2 * STRIDE, ... does not take place: the process is killed, or the disk is full, or
somebody presses Ctrl-C, until a run has no such step. "limit" has no file grow beyond so many thousand bytes instead.
Prints a line of JSON a run: how it ended, what it said, what it left, and the same of `--resume` after it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import hkmap.shards.writer  # noqa: F401  (as a command imports it late, and each child would)
from hkmap.cli.main import hkmap as group
from hkmap.files import hdf5

EVENTS = {"open", "os.truncate", "os.rename", "os.remove"}
WORK = (".part", ".lock", ".h5")      # what the names of its files end in
BYTES = 1000


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def stop() -> None:
    raise KeyboardInterrupt


def break_at(number: int, end: Callable[[], None]) -> Callable[[], bool]:
    """Have a step not take place; return what tells whether it was come to."""
    steps = count(1)
    reached = []

    def step() -> None:
        if next(steps) == number:
            reached.append(number)
            end()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or not str(arguments[0]).endswith(WORK):
            return
        reading = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not reading and not (event == "os.remove" and end is full):      # that needs no room
            step()

    for owner, name in ((hdf5.Part, "append"), (hdf5.Strings, "append"), (hdf5, "_lay_out"), (os, "fsync")):
        put_before(owner, name, step)
    sys.addaudithook(hook)
    return lambda: bool(reached)


def put_before(owner: Any, name: str, step: Callable[[], None]) -> None:
    function = getattr(owner, name)

    def broken(*arguments: Any) -> Any:
        step()
        return function(*arguments)

    setattr(owner, name, broken)


def run(arguments: list[str], mode: str, number: int) -> dict[str, Any]:
    """Run the command in a child; return how it ended."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as told:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 2)
            os.dup2(told.fileno(), 1)
            reached = prepare(mode, number)
            try:
                group.main(["pack", *arguments])
            except SystemExit as end:
                sys.stdout.flush()
                os._exit(int(end.code or 0) + 100 * reached())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        told.seek(0)
        result = {"exit": status % 100 if status > 0 else status, "reached": status < 0 or status >= 100}
        return {**result, "said": said.read().decode(), "told": told.read().decode(), "left": left()}


def prepare(mode: str, number: int) -> Callable[[], bool]:
    if mode == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (number * BYTES, number * BYTES))
        return lambda: False
    return break_at(number, {"kill": kill, "full": full, "stop": stop}[mode]) if mode else lambda: False


def left() -> dict[str, str]:
    """What is in the current folder, each file with a digest."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path().rglob("*")) if path.is_file()
    }


def breaks(mode: str, stride: int, arguments: list[str]) -> None:
    start = Path.cwd()
    for number in count(1, stride):
        folder = start / f"{mode}-{number}"
        folder.mkdir()
        os.chdir(folder)
        broken = run(arguments, mode, number)
        resumed = run([*arguments, "--resume"], "", 0)
        print(json.dumps({"number": number, "broken": broken, "resumed": resumed}), flush=True)
        if broken["exit"] == 0 and not broken["reached"]:
            return


if __name__ == "__main__":
    breaks(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
