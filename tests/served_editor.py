"""`hkmap edit` in a process of its own, as a person starts it, for the tests, the benchmark and the screenshots."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class Served:
    """An editor that serves; ``with Served(folder, "records.jsonl", "--out", "edited") as editor`` kills it at the end.
    """

    link: str
    process: subprocess.Popen[str]

    def __init__(self, folder: Path, *arguments: object, **environment: str) -> None:
        self.folder, self.arguments, self.environment = folder, arguments, environment

    def __enter__(self) -> Served:
        self.start()
        return self

    def __exit__(self, *raised: Any) -> None:
        if self.process.poll() is None:
            self.kill()

    def start(self) -> None:
        """Start the command, and wait for the link that it prints."""
        command = [sys.executable, "-m", "hkmap", "edit", *map(str, self.arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **self.environment}
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        said = ""
        for line in self.process.stderr or ():
            said += line
            if found := re.search(r"http://\S+", line):
                self.link = found[0]
                return
        raise AssertionError(f"hkmap edit printed no link: {said}")

    def kill(self) -> None:
        """Kill it with kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def ended(self) -> tuple[int, str, str]:
        """Wait until it ends; its exit code, and what it printed."""
        out, said = self.process.communicate(timeout=120)
        return self.process.returncode, out, said
