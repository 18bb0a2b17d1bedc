"""What a program owes the system: signals that ask it to end, and descriptors that may be closed."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

#: The signals that ask a program to end, and the word that it says then.
SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
_PATIENCE = 2.0      # seconds in which a second signal does not break the clean-up that the first has begun


class Stopped(KeyboardInterrupt):
    """A signal asks the program to end; ``word`` says so, and ``code`` is the exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.word, self.code = SIGNALS[signal.Signals(number)], 128 + number


class _Signals:
    """Turns the signals into Stopped, which is raised in the main thread; ``stop`` is the last one."""

    def __init__(self) -> None:
        self.stop: Stopped | None = None
        self._last = -_PATIENCE
        self._defers = False

    def handle(self) -> None:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:      # nohup, or a script's background, ignores some
                signal.signal(number, self._raise)
        sys.unraisablehook = self._again

    def check(self) -> None:
        """Raise the stop once more, if it came where it was dropped: C libraries swallow exceptions at times."""
        if self.stop is not None:
            raise self.stop

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a first signal only set ``stop``, which the body looks for; a second one is raised as ever."""
        self._defers = True
        try:
            yield
        finally:
            self._defers = False

    def end(self) -> None:
        """Let no signal break the end of Python itself, which has nothing to clean up."""
        for number in SIGNALS:
            if signal.getsignal(number) == self._raise:
                signal.signal(number, signal.SIG_IGN if self.stop else signal.SIG_DFL)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() - self._last >= _PATIENCE:
            self._last, self.stop, first = time.monotonic(), Stopped(number), self.stop is None
            if not (self._defers and first):
                raise self.stop

    def _again(self, lost: Any) -> None:
        """Send a signal once more that came where Python drops exceptions, such as the end of one of h5py's objects.

        A little later: in here the exception would be dropped as well.
        """
        if not isinstance(lost.exc_value, Stopped):
            sys.__unraisablehook__(lost)
            return
        self._last = -_PATIENCE
        threading.Timer(0.01, os.kill, (os.getpid(), lost.exc_value.args[0])).start()


signals = _Signals()


class _Talk(io.FileIO):
    """Standard error, where nobody may listen: it may be closed, or a full disk. That ends no command."""

    def write(self, text: Any) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)


def open_descriptors() -> None:
    """Put /dev/null in the place of closed descriptors, or the next file opened would get their number and messages.

    A closed stdin is an empty one, a closed stderr a silent one; a closed stdout ends the program.
    """
    closed = [number for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)) if stream is None]
    for number in closed:
        nothing = os.open(os.devnull, os.O_RDWR)
        if nothing != number:
            os.dup2(nothing, number)
            os.close(nothing)
    if 0 in closed:
        sys.stdin = open(0)      # noqa: SIM115
    talk: Any = _Talk(2, "w", closefd=False)      # without a buffer, which a signal could make say a line twice
    encoding = getattr(sys.stderr, "encoding", "utf-8")
    sys.stderr = io.TextIOWrapper(talk, encoding, "backslashreplace", line_buffering=True, write_through=True)
    if 1 in closed:
        sys.stderr.write("Error: stdout is closed; expected a file, a pipe or a terminal\n")
        sys.exit(1)
    sys.stdout.reconfigure(errors="backslashreplace")      # type: ignore[union-attr]  # help on a terminal of ASCII
