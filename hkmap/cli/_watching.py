"""One sees what a training does: a live line on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hkmap.cli._stream import quiet, say

if TYPE_CHECKING:
    from hkmap.training.steps import Step

EVERY = 50       # steps between two lines of -v
_SHOWN = ("top1", "loss", "total", "mse")      # of a validation, which has more; --select chooses by one of these
_WINDOW = 10     # seconds that images/s is taken over
_BUNCH = 0.05    # seconds: steps closer than this were read back from the device together


def watched(
    steps: Iterator[Step], *, device: str, epochs: int, steps_per_epoch: int, done: int,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Step]:
    """Yield the steps of a training of ``epochs``, ``done`` steps of which are done; show on stderr how it goes.

    ``device``, torch's name of it, is said first. A terminal then has a live line, which goes with the last step;
    elsewhere there is a line an epoch. -v adds a line every EVERY steps. With -q, and in all processes that torchrun
    starts but the first, nothing is shown.
    """
    from hkmap.engine.ranks import current

    ranks = current()
    if quiet() or not ranks.first:
        yield from steps
        return
    course = _Course(_described(device, ranks.ranks), epochs, steps_per_epoch, done, clock)
    say(f"training on {course.device}")
    verbose = logging.getLogger("hkmap").isEnabledFor(logging.INFO)
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    with _live(course) if terminal else nullcontext():
        for step in steps:
            course.add(step)
            if (step.epoch_ends and not terminal) or (verbose and (step.epoch_ends or step.step % EVERY == 0)):
                say(course.line(step))
            yield step


def _described(device: str, processes: int) -> str:
    """Return what people call a device of torch: "cpu, 2 threads", "cuda:0 NVIDIA H100, 4 processes"."""
    import torch

    if device == "cpu":
        threads = torch.get_num_threads()
        said = f"cpu, {threads} thread{'s' * (threads > 1)}"
    else:
        number = torch.device(device).index
        number = torch.cuda.current_device() if number is None else number
        said = f"cuda:{number} {torch.cuda.get_device_name(number)}"
    return said if processes == 1 else f"{said}, {processes} processes"


class _Course:
    """How far a training is, and how it goes."""

    def __init__(
        self, device: str, epochs: int, steps_per_epoch: int, done: int, clock: Callable[[], float]
    ) -> None:
        from hkmap.report.learning import Means

        self.device = device
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._step: Step | None = None
        self._means = Means()       # of the epoch up to now
        self._validation: Mapping[str, float | None] = {}       # the last
        self._pace = _Pace(clock, epochs * steps_per_epoch - done)

    def add(self, step: Step) -> None:
        """Count one more step."""
        if self._step is None or self._step.epoch != step.epoch:
            self._means = type(self._means)()
        before = self._means.samples
        self._means.add(vars(step))
        self._pace.add(self._means.samples - before, validated=step.validation is not None)
        self._step, self._validation = step, step.validation or self._validation

    def line(self, step: Step) -> str:
        """Return the line of the last step, with the means of its epoch up to now."""
        if step.epoch_ends:
            return _joined(self._epoch(step), self._losses(), _figures(step.validation or {}), self._pace.said())
        return _joined(self._epoch(step), self._place(step), self._losses(), _rate(step), self._pace.said())

    def live(self, width: int) -> str:
        """Return what a terminal shows: one line, or more where it is too narrow."""
        step = self._step
        if step is None:
            return f"{self.device}: waiting for the first step"
        lines = [self._epoch(step)]
        for part in (self._place(step), self._pace.said(), self.device, self._losses(), _rate(step),
                     _figures(self._validation)):
            joined = _joined(lines[-1], part)
            lines[-1:] = [joined] if len(joined) <= width else [lines[-1], part]
        return "\n".join(lines)

    def _epoch(self, step: Step) -> str:
        return f"epoch {step.epoch:>{len(str(self._epochs))}}/{self._epochs}"

    def _place(self, step: Step) -> str:
        most = self._steps_per_epoch
        return f"step {step.step - (step.epoch - 1) * most:>{len(str(most))}}/{most}"

    def _losses(self) -> str:
        from hkmap.report.learning import PARTS

        parts = [f"{short} {mean:.4f}" for name, short in PARTS.items() if (mean := self._means[name]) is not None]
        return f"loss {self._means['loss'] or 0:.4f}" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")


class _Pace:
    """Images per second of training, without the validation, and the time that is left, with it."""

    def __init__(self, clock: Callable[[], float], remaining: int) -> None:
        self._clock = clock
        self._began = self._last = clock()
        self._steps, self._remaining = 0, remaining
        self._trained = deque([(0.0, 0)])       # seconds and images up to a step, over the last _WINDOW seconds

    def add(self, images: int, *, validated: bool) -> None:
        """Count one more step of so many images, which has just ended; a validation may have followed it."""
        now = self._clock()
        gap, self._last = now - self._last, now
        self._steps += 1
        self._remaining -= 1
        seconds, before = self._trained[-1]
        if validated and len(self._trained) > 1:      # how much of the gap was training is not known
            return
        if len(self._trained) > 2 and seconds - self._trained[-2][0] < _BUNCH:
            self._trained.pop()
        self._trained.append((seconds + gap, before + images))
        while self._trained[-1][0] - self._trained[1][0] >= _WINDOW:
            self._trained.popleft()

    def said(self) -> str:
        """Return the pace in words; empty before it is known."""
        (start, before), (end, images) = self._trained[0], self._trained[-1]
        if end == start:
            return ""
        rate = (images - before) / (end - start)
        left = timedelta(seconds=round((self._last - self._began) / self._steps * self._remaining))
        return f"{rate:>5,.{0 if rate >= 10 else 1}f} images/s  eta {left}"


def _rate(step: Step) -> str:
    return f"lr {step.learning_rate:.3g}"


def _figures(validation: Mapping[str, float | None]) -> str:
    figures = [f"{name} {value:.4f}" for name in _SHOWN if (value := validation.get(name)) is not None]
    return f"val {' '.join(figures)}" if figures else ""


def _joined(*parts: str) -> str:
    return "  ".join(filter(None, parts))


def _live(course: _Course) -> AbstractContextManager[Any]:
    """Return a context in which the terminal shows, four times a second, how far the training is."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)

    def shown() -> Text:
        return Text(course.live(console.width), no_wrap=True, overflow="ellipsis")

    return Live(get_renderable=shown, console=console, transient=True, redirect_stdout=False)
