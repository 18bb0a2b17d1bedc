"""Have something done in a process of its own, which may die rather than the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO


def run_apart(
    task: str, question: object, *, seconds: float, stdout: int | IO[bytes] = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    """Call the function ``task``, as "hkmap.storage.structure.answer_apart", with ``question`` as JSON on its stdin.

    Raises subprocess.TimeoutExpired after so many ``seconds`` on the wall; how else it ended, the answer tells.
    """
    module, _, _ = task.rpartition(".")
    # Our own path for modules: Python's would begin with the current folder, which may be the stranger's.
    program = f"import sys; sys.path[:] = {sys.path!r}; import {module}; {task}()"
    # -B: no file of Python's own is written, least of all half of one where a limit is met.
    return subprocess.run(
        [sys.executable, "-B", "-c", program], input=json.dumps(question).encode(), stdout=stdout,
        stderr=subprocess.PIPE, check=False, timeout=seconds,
    )


def limit_this_process(seconds: float, written: int = 0) -> None:
    """Let this process end after so many ``seconds`` of processor time, and write no file beyond ``written`` bytes.

    What goes into a pipe is not counted.
    """
    import resource
    import signal

    signal.setitimer(signal.ITIMER_PROF, seconds)      # SIGPROF ends a process
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (written, written))


def limit_memory(room: int) -> None:
    """Let this process take ``room`` bytes beyond what it has now; where that is unknown (macOS) the rest has to do."""
    import resource

    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, resource.RLIM_INFINITY))
