"""Open shards, each in a process of its own, and say what came of it: `python measured_opening.py SHARD...`.

Prints a line of JSON a shard: what the reader said, what verify found, and how many megabytes that took. A crash is an
answer too, and so is the end of memory.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from hkmap.errors import HkmapError
from hkmap.shards.reader import ShardReader
from hkmap.shards.verify import verify_shard

ADDRESSES = 4 << 30      # bytes that a process may ask for


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
    """The most memory that this process had at once since it was forked."""
    status = Path("/proc/self/status")
    if status.exists():      # ru_maxrss would count what the process had before the fork
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def measured(path: Path) -> dict[str, Any]:
    before = megabytes()
    said = read_all(path)
    problems = verify_shard(path, depth="full")["problems"]
    return {
        "said": said, "problems": [problem["sentence"] for problem in problems], "megabytes": megabytes() - before,
    }


def in_a_child(path: Path) -> dict[str, Any]:
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        for kind, most in ((resource.RLIMIT_AS, ADDRESSES), (resource.RLIMIT_CORE, 0)):
            resource.setrlimit(kind, (most, most))
        try:
            os.write(sender, json.dumps(measured(path)).encode())
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    return {"exit": os.waitstatus_to_exitcode(status), **json.loads(text or b'{"exit": "raised"}')}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(json.dumps({"path": name, **in_a_child(Path(name))}), flush=True)
