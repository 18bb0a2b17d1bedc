"""Open shards, each in a process of its own, and say what came of it: `python measured_opening.py SHARD...`.

Prints a line of JSON a shard: what the reader said, and the time and memory that it and its children took. A crash or
a hang, cut off after five seconds of processor time, is an answer too.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hkmap.storage import hdf5

from hkmap.errors import HkmapError
from hkmap.shards.reader import ShardReader
from hkmap.shards.verify import verify_shard

PATIENCE = 5      # seconds


def asked_once(question: Callable[..., Any]) -> Callable[..., Any]:
    """The same question has the same answer: what the reader has asked, in a process of its own, verify need not."""
    answers: dict[tuple[Any, ...], Any] = {}

    def asked(*arguments: Any) -> Any:
        if arguments not in answers:
            try:
                answers[arguments] = question(*arguments)
            except HkmapError as error:
                answers[arguments] = error
        if isinstance(answers[arguments], HkmapError):
            raise answers[arguments]
        return answers[arguments]

    return asked


def read_all(path: Path) -> str:
    """Read a shard as training does; return the sentence that refuses it, "" where there is none."""
    try:
        reader = ShardReader(path)
        for index in range(len(reader)):
            reader.image(index)
    except HkmapError as error:
        return str(error)
    return ""


def megabytes() -> float:
    """The most memory that this process had at once since it was forked, or one of its children."""
    status = Path("/proc/self/status")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if status.exists():      # ru_maxrss would count what the process had before the fork
        own = int(status.read_text().partition("VmHWM:")[2].split()[0])
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


def measured(path: Path) -> dict[str, Any]:
    before, begin = megabytes(), time.perf_counter()
    said = read_all(path)
    wall = time.perf_counter() - begin
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result = {"said": said, "wall": wall, "cpu": sum(one.ru_utime + one.ru_stime for one in usage)}
    result["megabytes"] = megabytes() - before
    problems = verify_shard(path, depth="full")["problems"]
    return {**result, "problems": [problem["sentence"] for problem in problems]}


def in_a_child(path: Path) -> dict[str, Any]:
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.write(sender, json.dumps(measured(path)).encode())
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    return {"exit": os.waitstatus_to_exitcode(status), **json.loads(text or b"{}")}


if __name__ == "__main__":
    hdf5.read_structure = asked_once(hdf5.read_structure)
    for name in sys.argv[1:]:
        print(json.dumps({"path": name, **in_a_child(Path(name))}), flush=True)
