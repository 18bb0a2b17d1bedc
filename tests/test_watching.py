"""One sees what a training does: lines off a terminal, a live line on one, the pace by a clock that is given."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from hkmap.cli._watching import watched
from hkmap.training.steps import Step

PART = {"loss_attention": 0.75, "loss_perception": 0.5, "loss_map": 0.25, "loss_mining": 0.0}
FOUND = {"loss": 0.5, "top1": 0.875, "mse": None, "mse_of_zeros": 0.25}


def training(
    epochs: int, steps: int, *, samples: int = 16, start: int = 0, validation: dict[str, Any] | None = None, **more: Any
) -> Iterator[Step]:
    """Steps of a training as the engine reports them, after the first ``start``."""
    for number in range(start + 1, epochs * steps + 1):
        ends = number % steps == 0
        yield Step(**{
            "epoch": (number - 1) // steps + 1, "step": number, "loss": 1.25, **PART, "accuracy": 0.5,
            "learning_rate": 0.01, "attention_mean": 0.5, "samples": samples, "epoch_ends": ends,
            "validation": validation if ends else None, **more,
        })


def ticking(*gaps: float) -> Callable[[], float]:
    """A clock that goes on by each gap in turn, from the second look at it."""
    times = itertools.accumulate(itertools.chain([0.0], itertools.cycle(gaps)))
    return lambda: next(times)


def talk(capsys: pytest.CaptureFixture[str], steps: Iterator[Step], **more: Any) -> list[str]:
    """What `watched` says of steps, without its first line; all steps come through."""
    given = list(steps)
    shape = {"device": "cpu", "epochs": 10, "steps_per_epoch": 4, "done": 0, "clock": ticking(0.5), **more}
    assert list(watched(iter(given), **shape)) == given
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert not lines or re.fullmatch(r"training on cpu, \d+ threads?", lines[0])
    return lines[1:]


def set_level(monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    monkeypatch.setattr(logging.getLogger("hkmap"), "level", level)
    logging.getLogger("hkmap").manager._clear_cache()      # type: ignore[attr-defined]


# off a terminal


def test_a_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    lines = talk(capsys, training(10, 4, validation=FOUND))
    losses = "loss 1.2500 (att 0.7500, per 0.5000, map 0.2500)  val top1 0.8750 loss 0.5000"
    assert lines[0] == f"epoch  1/10  {losses}     32 images/s  eta 0:00:18"
    assert lines[8] == f"epoch  9/10  {losses}     32 images/s  eta 0:00:02"
    assert lines[9] == f"epoch 10/10  {losses}     32 images/s  eta 0:00:00"
    assert len(lines) == 10


@pytest.mark.parametrize(("more", "said"), [
    ({"loss_mining": 3.0}, "loss 1.2500 (att 0.7500, per 0.5000, map 0.2500, mining 3.0000)"),
    ({"loss_map": 0.0}, "loss 1.2500 (att 0.7500, per 0.5000)"),
    ({"loss_map": 0.0, "loss_attention": 0.0}, "loss 1.2500"),      # a plain network: the loss is the perception's
])
def test_only_the_parts_that_are_there(capsys: pytest.CaptureFixture[str], more: dict[str, float], said: str) -> None:
    assert talk(capsys, training(1, 4, **more), epochs=1) == [f"epoch 1/1  {said}     32 images/s  eta 0:00:00"]


def test_losses_are_means_over_the_epochs_samples(capsys: pytest.CaptureFixture[str]) -> None:
    of_steps = zip(training(2, 2), (1.0, 4.0, 8.0, 8.0), (3, 1, 2, 2), strict=True)
    steps = [replace(step, loss=loss, samples=samples) for step, loss, samples in of_steps]
    lines = talk(capsys, iter(steps), epochs=2, steps_per_epoch=2)
    assert [re.search("loss ([0-9.]+)", line)[1] for line in lines] == ["1.7500", "8.0000"]


def test_verbose_has_lines_between(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    set_level(monkeypatch, logging.INFO)
    lines = talk(capsys, training(2, 120), epochs=2, steps_per_epoch=120)
    within = "loss 1.2500 (att 0.7500, per 0.5000, map 0.2500)  lr 0.01     32 images/s"
    assert [line.partition("  eta")[0] for line in lines] == [
        f"epoch 1/2  step  50/120  {within}", f"epoch 1/2  step 100/120  {within}",
        f"epoch 1/2  {within.replace('  lr 0.01', '')}", f"epoch 2/2  step  30/120  {within}",
        f"epoch 2/2  step  80/120  {within}", f"epoch 2/2  {within.replace('  lr 0.01', '')}",
    ]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    set_level(monkeypatch, logging.ERROR)
    given = list(training(2, 4))
    assert list(watched(iter(given), device="cpu", epochs=2, steps_per_epoch=4, done=0)) == given
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("rank", "said"), [("0", r"training on cpu, \d+ threads?, 2 processes"), ("1", None)])
def test_of_several_processes_the_first_talks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rank: str, said: str | None
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = list(training(1, 2))
    assert list(watched(iter(given), device="cpu", epochs=1, steps_per_epoch=2, done=0)) == given
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == (2 if said else 0)
    assert said is None or re.fullmatch(said, shown[0])


# the pace


@pytest.mark.parametrize(("gaps", "shape", "rates", "left"), [
    ((0.5,), {}, [32] * 3, ["0:00:04", "0:00:02", "0:00:00"]),
    # 9 s of validation after an epoch's last step count for the time left alone
    ((0.5, 0.5, 0.5, 9.5), {"validation": FOUND}, [32] * 3, ["0:00:22", "0:00:11", "0:00:00"]),
    # a device's steps come in bunches
    ((2.0, 0.0, 0.0, 0.0), {}, [32] * 3, ["0:00:04", "0:00:02", "0:00:00"]),
    # resumed in the second epoch
    ((0.5,), {"start": 6}, [32, 32], ["0:00:02", "0:00:00"]),
    ((4.0,), {"samples": 2}, [0.5] * 3, ["0:00:32", "0:00:16", "0:00:00"]),
])
def test_the_pace(
    capsys: pytest.CaptureFixture[str], gaps: tuple[float, ...], shape: dict[str, Any], rates: list[float],
    left: list[str],
) -> None:
    lines = talk(capsys, training(3, 4, **shape), epochs=3, done=shape.get("start", 0), clock=ticking(*gaps))
    found = [re.search(r" ([0-9.,]+) images/s  eta (.*)$", line) for line in lines]
    assert [float(one[1].replace(",", "")) for one in found] == rates
    assert [one[2] for one in found] == left


def test_the_pace_is_that_of_the_last_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    gaps = [4.0] * 4 + [0.5] * 76      # the first epoch computes what the others read from a cache
    lines = talk(capsys, training(20, 4), epochs=20, clock=ticking(*gaps))
    rates = [float(re.search(r" ([0-9.]+) images/s", line)[1]) for line in lines]
    assert rates[0] == 4
    assert rates[-14:] == [32] * 14


def test_a_step_that_took_no_time_has_no_pace(capsys: pytest.CaptureFixture[str]) -> None:
    [line] = talk(capsys, training(1, 4), epochs=1, clock=lambda: 5.0)
    assert line == "epoch 1/1  loss 1.2500 (att 0.7500, per 0.5000, map 0.2500)"


# on a terminal

TOY = """
import itertools, logging, sys, click
sys.path.insert(0, {tests!r})
from test_watching import FOUND, ticking, training
from hkmap.cli._watching import watched

@click.command()
@click.option("--level", type=int, default=logging.WARNING)
def toy(level):
    logging.getLogger("hkmap").setLevel(level)
    shape = dict(device="cpu", epochs=3, steps_per_epoch=4, done=0, clock=ticking(0.5))
    for step in watched(training(3, 4, validation=FOUND), **shape):
        pass
    print("{{}}")
"""


@pytest.fixture
def on_terminal(installed: Callable[..., None], terminal: Callable[..., Any], request: pytest.FixtureRequest) -> Any:
    """Run a training with a terminal as stderr: what it shows, without the codes that move the cursor."""

    def run(columns: int, *arguments: str, **environment: str) -> str:
        installed("toy", TOY.format(tests=str(request.path.parent)), group="hkmap.commands", toy="toy:toy")
        size = {"COLUMNS": str(columns), "TERM": "xterm", **environment}
        code, shown, printed = terminal("toy", *arguments, stream="stderr", **size)
        assert (code, printed) == (0, "{}\n")
        return str(shown)

    return run


LAST = (
    r"epoch 3/3  step 4/4     32 images/s  eta 0:00:00  cpu, \d+ threads?\r\nloss 1\.2500 \(att 0\.7500, per 0\.5000, "
    r"map 0\.2500\)  lr 0\.01\r\nval top1 0\.8750 loss 0\.5000"
)


def test_a_narrow_terminal_has_more_lines_and_a_verbose_one_keeps_those_of_epochs_above(on_terminal: Any) -> None:
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_terminal(75, "--level", str(logging.INFO)))
    assert re.search(LAST, plain)
    assert len(re.findall(r"epoch \d/3  loss 1.2500 ", plain)) == 3


def test_a_dumb_terminal_gets_lines(on_terminal: Any) -> None:
    shown = on_terminal(80, TERM="dumb")
    assert "\x1b" not in shown
    assert len(re.findall(r"^epoch \d/3  loss ", shown, re.MULTILINE)) == 3


# the command

TINY = ("--arch", "resnet8+abn", "--stem", "small", "--width", "4", "--image-size", "16", "--batch-size", "4",
        "--epochs", "2")
LOSSES = r"loss \d\.\d{4} \(att \d\.\d{4}, per \d\.\d{4}, map \d\.\d{4}\)"
VALIDATION = r"val top1 \d\.\d{4} loss \d\.\d{4} total \d\.\d{4} mse \d\.\d{4}"
PACE = r" *[\d.,]+ images/s  eta \d+:\d\d:\d\d"


def test_train_prints_a_line_an_epoch(hk: Callable[..., Any], make_shard: Callable[..., Any], here: Any) -> None:
    shard = make_shard("train.h5")
    said = hk("train", shard, *TINY, "--val-share", 0.5, "--out", "run").stderr.splitlines()
    assert re.fullmatch(r"training on cpu, \d+ threads?", said[0])
    assert [bool(re.fullmatch(f"epoch {epoch}/2  {LOSSES}  {VALIDATION}  {PACE}", said[epoch]))
            for epoch in (1, 2)] == [True, True]
    resumed = hk("train", shard, *TINY[:-1], "3", "--val-share", 0.5, "--out", "run", "--resume").stderr.splitlines()
    assert len(resumed) == 2
    assert resumed[1].startswith("epoch 3/3  loss ")
    assert hk("train", shard, *TINY, "-q", "--out", "quiet").stderr == ""


def test_train_shows_a_live_line_on_a_terminal(terminal: Callable[..., Any], make_shard: Callable[..., Any]) -> None:
    options = ("--val-share", "0.5", "--out", "run")
    code, shown, printed = terminal(
        "train", str(make_shard("train.h5")), *TINY, *options, stream="stderr", COLUMNS="200",
        TERM="xterm", NO_COLOR="1",
    )
    assert (code, printed[:8]) == (0, '{"run": ')
    assert re.match(r"training on cpu, \d+ threads?\r\n", shown)
    assert not re.search(r"\x1b\[[0-9;]*m", shown)          # no colour
    assert "\x1b[2K" in shown[shown.rindex("eta"):]        # and it goes at the end
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(rf"epoch 2/2  step 2/2  {PACE}  cpu, \d threads?  {LOSSES}  lr [\de.-]+  {VALIDATION}", plain)
